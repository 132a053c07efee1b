// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// footprint is what a running hairpin takes of the machine. Other tests may use the same kernel, so only objects count that belong
// to this datapath: its pinned maps, the programs that use one of these maps, the maps of these programs, and their links.
type footprint struct {
	programs, maps, links   int
	pins                    []string
	stale                   int // pins of inner maps that are in no slot
	descriptors, goroutines int // of the daemon
}

func footprintOf(t *testing.T, n *lab.Network, hp *lab.Hairpin) footprint {
	t.Helper()
	f, err := tryFootprint(t, n, hp)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func tryFootprint(t *testing.T, n *lab.Network, hp *lab.Hairpin) (f footprint, err error) {
	o, err := objectsOf(hp.Dir)
	if err != nil {
		return f, err
	}
	f.programs, f.maps, f.links, f.pins = len(o.programs), len(o.maps), len(o.links), o.pins
	if f.stale, err = o.stale(hp.Dir); err != nil {
		return f, err
	}
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", hp.Pid()))
	if err != nil {
		return f, err
	}
	f.descriptors = len(open)
	f.goroutines = int(home.Scrape(t, n, "go_goroutines"))
	return f, nil
}

// lazyGoroutines is the number of goroutines that the runtime and the HTTP server may start at their first use, and then keep.
const lazyGoroutines = 2

// grown fails the test if hairpin takes more than before, and goes on to. It returns the number of things that are more.
func (f footprint) grown(t *testing.T, n *lab.Network, hp *lab.Hairpin) (more int) {
	t.Helper()
	var now footprint
	lab.Eventually(softly{t, &more}, lab.Patience, func() (err error) {
		if now, err = tryFootprint(t, n, hp); err != nil {
			return err
		}
		more = 0
		for _, pair := range [][2]int{{now.programs, f.programs}, {now.maps, f.maps}, {now.links, f.links},
			{now.stale, f.stale}, {now.descriptors, f.descriptors}, {now.goroutines, f.goroutines + lazyGoroutines}} {
			more += max(0, pair[0]-pair[1])
		}
		for _, pin := range now.pins {
			if !slices.Contains(f.pins, pin) {
				more++
			}
		}
		if more != 0 {
			return fmt.Errorf("hairpin takes more than at the start: %+v, was %+v", now, f)
		}
		return nil
	})
	return more
}

// softly makes Eventually fail the test without ending it.
type softly struct {
	*testing.T
	count *int
}

// Fatalf implements the interface of lab.Eventually.
func (s softly) Fatalf(format string, args ...any) {
	s.Helper()
	*s.count = max(1, *s.count)
	s.Errorf(format, args...)
}

// removed stops the daemon, detaches everything, and returns the number of things that are left. The test fails if there are any.
func removed(t *testing.T, hp *lab.Hairpin) (left int) {
	t.Helper()
	hp.Stop()
	return detached(t, hp)
}

// detached is removed for a router without a daemon.
func detached(t *testing.T, hp *lab.Hairpin) (left int) {
	t.Helper()
	before, err := objectsOf(hp.Dir)
	if err != nil {
		t.Fatal(err)
	}
	hp.Run("detach", "--all")
	// The kernel frees objects after an RCU grace period.
	lab.Eventually(softly{t, &left}, lab.Patience, func() error {
		exist := before.exist()
		if left = len(exist); left != 0 {
			return fmt.Errorf("left after detach --all: %q", exist)
		}
		return nil
	})
	if _, err := os.Lstat(hp.Dir); !errors.Is(err, fs.ErrNotExist) {
		left++
		t.Errorf("left after detach --all: %s (%v)", hp.Dir, err)
	}
	return left
}

// objects are the objects of one datapath in the kernel.
type objects struct {
	programs map[ebpf.ProgramID]bool
	maps     map[ebpf.MapID]bool
	links    map[link.ID]bool
	pins     []string
	inner    []string // names of the pins of inner maps; each new inner map has another name
}

func objectsOf(dir string) (o objects, err error) {
	o = objects{make(map[ebpf.ProgramID]bool), make(map[ebpf.MapID]bool), make(map[link.ID]bool), nil, nil}
	if err := o.findPins(dir); err != nil {
		return o, err
	}
	if err := o.findPrograms(); err != nil {
		return o, err
	}
	return o, o.findLinks()
}

func (o *objects) findPins(dir string) error {
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed since
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if filepath.Base(filepath.Dir(path)) == "inner" {
			o.inner = append(o.inner, entry.Name())
			return nil
		}
		o.pins = append(o.pins, name)
		if filepath.Base(filepath.Dir(path)) != "maps" {
			return nil
		}
		m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			return err
		}
		defer m.Close()
		info, err := m.Info()
		if err != nil {
			return err
		}
		id, _ := info.ID()
		o.maps[id] = true
		return nil
	})
	if err != nil {
		return fmt.Errorf("look at the pins: %w", err)
	}
	return nil
}

// findPrograms adds the programs that use a pinned map, and all maps that these programs use.
func (o *objects) findPrograms() error {
	pinned := make(map[ebpf.MapID]bool)
	for id := range o.maps {
		pinned[id] = true
	}
	for id := ebpf.ProgramID(0); ; {
		var err error
		if id, err = ebpf.ProgramGetNextID(id); errors.Is(err, os.ErrNotExist) {
			return nil
		} else if err != nil {
			return fmt.Errorf("list programs: %w", err)
		}
		used, err := mapsOf(id)
		if errors.Is(err, os.ErrNotExist) {
			continue // gone since
		}
		if err != nil {
			return fmt.Errorf("inspect program %d: %w", id, err)
		}
		if slices.ContainsFunc(used, func(m ebpf.MapID) bool { return pinned[m] }) {
			o.programs[id] = true
			for _, m := range used {
				o.maps[m] = true
			}
		}
	}
}

func mapsOf(id ebpf.ProgramID) ([]ebpf.MapID, error) {
	program, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return nil, err
	}
	defer program.Close()
	info, err := program.Info()
	if err != nil {
		return nil, err
	}
	used, _ := info.MapIDs()
	return used, nil
}

func (o *objects) findLinks() error {
	all := new(link.Iterator)
	defer all.Close()
	for all.Next() {
		info, err := all.Link.Info()
		if err != nil {
			return fmt.Errorf("inspect link: %w", err)
		}
		if o.programs[info.Program] {
			o.links[info.ID] = true
		}
	}
	return all.Err()
}

// exist returns those of the objects that still exist.
func (o *objects) exist() (list []string) {
	for id := range o.programs {
		if program, err := ebpf.NewProgramFromID(id); err == nil {
			program.Close()
			list = append(list, fmt.Sprintf("program %d", id))
		}
	}
	for id := range o.maps {
		if m, err := ebpf.NewMapFromID(id); err == nil {
			m.Close()
			list = append(list, fmt.Sprintf("map %d", id))
		}
	}
	for id := range o.links {
		if l, err := link.NewFromID(id); err == nil {
			l.Close()
			list = append(list, fmt.Sprintf("link %d", id))
		}
	}
	return list
}
