// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps/slots"
)

// pins is the bpffs directory of a datapath. It contains:
//
//	datapath/maps/NAME       every map but data sections and templates
//	datapath/inner/OUTER-SLOT-ID  the map in each slot of an outer map (package slots)
//	datapath/programs/NAME
//	datapath/links/KIND_IFINDEX
//	new-PID/...              temporary: a process fills it, then renames it; or it has what a process removes
//
// Names have no dot: bpffs refuses names with a dot.
type pins string

func (p pins) datapath() string          { return filepath.Join(string(p), "datapath") }
func (p pins) aside() string             { return filepath.Join(string(p), asidePrefix+strconv.Itoa(os.Getpid())) }
func (p pins) maps() string              { return filepath.Join(p.datapath(), "maps") }
func (p pins) programs() string          { return filepath.Join(p.datapath(), "programs") }
func (p pins) links() string             { return filepath.Join(p.datapath(), "links") }
func (p pins) inner() string             { return filepath.Join(p.datapath(), "inner") }
func (p pins) mapPin(name string) string { return filepath.Join(p.maps(), name) }
func (p pins) asidePrograms() string     { return filepath.Join(p.aside(), "programs") }

const asidePrefix = "new-"

// newSpec returns the embedded datapath with room for this number of connections; 0 means
// defaultConnections.
func newSpec(connections uint32) (*ebpf.CollectionSpec, error) {
	spec, err := bpf.Spec()
	if err != nil {
		return nil, fmt.Errorf("read embedded datapath: %w", err)
	}
	spec = spec.Copy()
	return spec, complete(spec, connections)
}

// complete adds to the maps of spec what is known at run time only: their sizes and their random content.
func complete(spec *ebpf.CollectionSpec, connections uint32) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count CPUs: %w", err)
	}
	spec.Maps[bpf.HairpinMapScratchPackets].MaxEntries = uint32(cpus)
	if connections == 0 {
		connections = defaultConnections
	}
	Size(spec, connections)
	secret := make([]byte, 16)
	if _, err := rand.Read(secret); err != nil {
		return fmt.Errorf("make a random secret: %w", err)
	}
	spec.Maps[bpf.HairpinMapSecrets].Contents = []ebpf.MapKV{{Key: uint32(0), Value: secret}}
	return nil
}

// isTemplate reports whether a map only shows the kernel the layout of an inner map. The running datapath
// does not use it.
func isTemplate(name string) bool {
	return strings.HasSuffix(name, "_empty")
}

// isData reports whether a map is a data section. A data section belongs to the program that it was
// compiled with.
func isData(name string) bool {
	return strings.HasPrefix(name, ".")
}

// isPinned reports whether a map is pinned, so that it outlives its programs.
func isPinned(name string) bool {
	return !isTemplate(name) && !isData(name)
}

// pinAside pins everything into the temporary directory, which no reader opens.
func (p pins) pinAside(coll *ebpf.Collection, filled []slot) error {
	for _, dir := range []string{"", "maps", "inner", "programs", "links"} {
		if err := os.Mkdir(filepath.Join(p.aside(), dir), 0o700); err != nil {
			return fmt.Errorf("make pin directory: %w", err)
		}
	}
	for name, m := range coll.Maps {
		if !isPinned(name) {
			continue
		}
		if err := fault("pin " + name); err != nil {
			return err
		}
		if err := m.Pin(filepath.Join(p.aside(), "maps", name)); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	for _, s := range filled {
		name, err := slots.Name(s.outer, s.key, coll.Maps[s.inner])
		if err != nil {
			return err
		}
		if err := fault("pin " + name); err != nil {
			return err
		}
		if err := slots.Pin(filepath.Join(p.aside(), "inner", name), coll.Maps[s.inner]); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	return pinPrograms(coll.Programs, p.asidePrograms())
}

func pinPrograms(programs map[string]*ebpf.Program, dir string) error {
	for name, program := range programs {
		if err := fault("pin " + name); err != nil {
			return err
		}
		if err := program.Pin(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("pin program %s: %w", name, err)
		}
	}
	return nil
}

// check fails if there is no datapath, or if somebody other than root could have changed its pins.
func (p pins) check() error {
	mounted, err := isMounted(string(p))
	if err != nil {
		return err
	}
	if !mounted {
		return fmt.Errorf("%w: nothing is mounted on %s", ErrNotLoaded, string(p))
	}
	if isEmpty(p.maps()) && isEmpty(p.programs()) {
		return fmt.Errorf("%w: nothing is pinned in %s", ErrNotLoaded, string(p))
	}
	return filepath.WalkDir(p.datapath(), checkPin)
}

// isEmpty reports whether a directory is empty or does not exist.
func isEmpty(dir string) bool {
	entries, err := os.ReadDir(dir)
	return len(entries) == 0 && (err == nil || errors.Is(err, os.ErrNotExist))
}

// checkPin checks the owner of one pin. Another process may remove the pin at the same time; that is no
// error.
func checkPin(path string, entry fs.DirEntry, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("inspect pins: %w", err)
	}
	info, err := entry.Info()
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("inspect pins: %w", err)
	}
	return checkOwner(path, info)
}

// open opens the pinned maps and programs. Templates stay nil.
func (p pins) open(objs *bpf.HairpinObjects, connections uint32) error {
	if err := p.checkSchema(); err != nil {
		return err
	}
	if err := p.openMaps(&objs.HairpinMaps); err != nil {
		return err
	}
	have, err := connectionsOf(&objs.HairpinMaps)
	if err != nil {
		return err
	}
	if connections > 0 && connections != have {
		return fmt.Errorf("the tables in %s have room for %d connections, but the configuration asks for %d; "+
			"set max_connections = %d, or "+anew,
			string(p), have, connections, have)
	}
	return p.openPrograms(&objs.HairpinPrograms)
}

// each yields the fields of a generated struct of maps or programs, with their names in the kernel.
func each[T any](objects any) iter.Seq2[string, **T] {
	return func(yield func(string, **T) bool) {
		fields := reflect.ValueOf(objects).Elem()
		for i := range fields.NumField() {
			if !yield(fields.Type().Field(i).Tag.Get("ebpf"), fields.Field(i).Addr().Interface().(**T)) {
				return
			}
		}
	}
}

// checkSchema fails if the schema number of the pinned maps is not the number of this version. A new
// number means another layout of the maps.
func (p pins) checkSchema() error {
	m, err := p.openMap(bpf.HairpinMapSchema)
	if err != nil {
		return err
	}
	defer m.Close()
	var schema uint32
	if err := m.Lookup(uint32(0), &schema); err != nil {
		return fmt.Errorf("%w: cannot read the schema number in %s: %w; %s", ErrSchema, string(p), err, anew)
	}
	if schema != uint32(bpf.HairpinSchemaSCHEMA) {
		return fmt.Errorf("%w: schema %d in %s, but this version needs %d; use the version that created it, or %s",
			ErrSchema, schema, string(p), uint32(bpf.HairpinSchemaSCHEMA), anew)
	}
	return nil
}

// anew is the cure for a datapath that this version cannot open; it completes a sentence of an error.
const anew = `run "hairpin detach --all" (this ends every connection), then start hairpin again`

func (p pins) openMap(name string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(p.mapPin(name), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("pin %s is missing: somebody removed it; %s", p.mapPin(name), anew)
	}
	if err != nil {
		return nil, fmt.Errorf("open map %s: %w", name, err)
	}
	return m, nil
}

func (p pins) openMaps(maps *bpf.HairpinMaps) (err error) {
	for name, m := range each[ebpf.Map](maps) {
		if !isPinned(name) {
			continue
		}
		if *m, err = p.openMap(name); err != nil {
			return err
		}
	}
	return nil
}

// checkLayout fails if the layout of a pinned map is not the layout in this version. Open checks only the
// schema number, because reading the embedded object takes longer than most commands.
func (p pins) checkLayout(maps *bpf.HairpinMaps) error {
	connections, err := connectionsOf(maps)
	if err != nil {
		return err
	}
	spec, err := newSpec(connections)
	if err != nil {
		return err
	}
	for name, m := range each[ebpf.Map](maps) {
		if !isPinned(name) {
			continue
		}
		if err := spec.Maps[name].Compatible(*m); err != nil {
			return fmt.Errorf("%w: map %s in %s: %w; use the version that created it, or %s", ErrSchema, name, string(p), err, anew)
		}
	}
	return nil
}

func (p pins) openPrograms(programs *bpf.HairpinPrograms) error {
	for name, program := range each[ebpf.Program](programs) {
		path := filepath.Join(p.programs(), name)
		opened, err := ebpf.LoadPinnedProgram(path, nil)
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("pin %s is missing: somebody removed it; %s", path, anew)
		}
		if err != nil {
			return fmt.Errorf("open program %s: %w", name, err)
		}
		*program = opened
	}
	return nil
}

// clean removes the temporary directories of processes that were killed. The caller holds the Lock, so no
// process still uses these directories.
func clean(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("look for leftovers: %w", err)
	}
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), asidePrefix) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, entry.Name())); err != nil {
			return fmt.Errorf("remove leftover: %w", err)
		}
	}
	return nil
}
