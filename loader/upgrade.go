// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
)

// Upgrade replaces the programs with the programs of this version, on the same maps. Connections continue,
// and no interface is without a program for a moment. If a step fails, the old programs stay.
func (d *Datapath) Upgrade() error {
	if err := d.upgrade(); err != nil {
		return explain(fmt.Errorf("upgrade: %w", err))
	}
	return nil
}

func (d *Datapath) upgrade() error {
	old, err := d.pinnedPrograms()
	if err != nil {
		return err
	}
	defer old.Close()
	if err := clean(d.dir); err != nil {
		return err
	}
	if err := d.pinInner(); err != nil {
		return err
	}
	fresh, suited, err := d.loadPrograms()
	if err != nil {
		return err
	}
	if err := d.swapPrograms(old, fresh, suited); err != nil {
		return errors.Join(err, fresh.Close())
	}
	before := d.objs.HairpinPrograms
	d.objs.HairpinPrograms = *fresh
	return before.Close()
}

// swapPrograms changes every attachment and the pins from old to fresh. After an error, all stay old.
func (d *Datapath) swapPrograms(old, fresh *bpf.HairpinPrograms, suited fit) error {
	p := pins(d.dir)
	// After the exchange this directory holds the old pins. If they cannot be removed now, the next writer
	// removes them (clean).
	defer os.RemoveAll(p.aside())
	if err := p.pinProgramsAside(fresh); err != nil {
		return err
	}
	if err := suited.pin(p.asidePrograms()); err != nil {
		return err
	}
	hooks, err := d.liveHooks()
	if err != nil {
		return err
	}
	defer closeHooks(hooks)

	// From here on, packets meet the new programs.
	replaced, err := replaceAll(hooks, fresh)
	if err == nil {
		err = startSweeper(fresh)
	}
	if err == nil {
		err = exchangePrograms(p)
	}
	if err != nil {
		_, undone := replaceAll(replaced, old)
		return errors.Join(err, undone, startSweeper(old))
	}
	return nil
}

// startSweeper starts the timer that removes expired connections. From now on the timer runs the code of
// programs.
func startSweeper(programs *bpf.HairpinPrograms) error {
	if err := fault("start"); err != nil {
		return err
	}
	err := retryNoMemory(func() (uint32, error) { return programs.HairpinStart.Run(&ebpf.RunOptions{Data: make([]byte, 64)}) })
	if err != nil {
		return fmt.Errorf("start sweeper: %w", err)
	}
	return nil
}

// startPatience is how long retryNoMemory repeats the call.
const startPatience = time.Second

// retryNoMemory runs a program until it returns 0. The BPF allocator may have no memory ready for a timer;
// the kernel refills it in the background within milliseconds.
func retryNoMemory(run func() (uint32, error)) error {
	pause, deadline := time.Millisecond, time.Now().Add(startPatience)
	for {
		code, err := run()
		if err != nil || code == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return unix.Errno(-int32(code))
		}
		time.Sleep(pause)
		pause = min(2*pause, 50*time.Millisecond)
	}
}

// loadPrograms loads the embedded programs with the pinned maps, and says what they suit.
func (d *Datapath) loadPrograms() (*bpf.HairpinPrograms, fit, error) {
	if err := fault("load"); err != nil {
		return nil, fit{}, err
	}
	connections, err := connectionsOf(&d.objs.HairpinMaps)
	if err != nil {
		return nil, fit{}, err
	}
	spec, err := newSpec(connections)
	if err != nil {
		return nil, fit{}, err
	}
	pinned := make(map[string]*ebpf.Map)
	held := &ebpf.Collection{Maps: pinned}
	defer held.Close()
	for name := range spec.Maps {
		if !isPinned(name) {
			continue
		}
		if pinned[name], err = pins(d.dir).openMap(name); err != nil {
			delete(pinned, name)
			return nil, fit{}, err
		}
	}
	suited := currentFit()
	loaded, err := suited.load(spec, pinned)
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		return nil, fit{}, fmt.Errorf("%w: %w; use the version that created it, or %s", ErrSchema, err, anew)
	}
	if err != nil {
		return nil, fit{}, fmt.Errorf("load programs: %w", err)
	}
	programs := new(bpf.HairpinPrograms)
	for name, program := range each[ebpf.Program](programs) {
		*program = loaded[name]
	}
	return programs, suited, nil
}

func (p pins) pinProgramsAside(programs *bpf.HairpinPrograms) error {
	if err := os.Mkdir(p.aside(), 0o700); err != nil {
		return fmt.Errorf("make pin directory: %w", err)
	}
	if err := os.Mkdir(p.asidePrograms(), 0o700); err != nil {
		return fmt.Errorf("make pin directory: %w", err)
	}
	byName := make(map[string]*ebpf.Program)
	for name, program := range each[ebpf.Program](programs) {
		byName[name] = *program
	}
	return pinPrograms(byName, p.asidePrograms())
}

// liveHooks opens the attachments whose interface still exists.
func (d *Datapath) liveHooks() ([]*hook, error) {
	all, err := pins(d.dir).hooks()
	if err != nil {
		closeHooks(all)
		return nil, err
	}
	var live []*hook
	for i, h := range all {
		alive, err := h.alive()
		if err != nil {
			closeHooks(append(live, all[i:]...))
			return nil, fmt.Errorf("inspect %s: %w", h, err)
		}
		if alive {
			live = append(live, h)
		} else {
			h.Close()
		}
	}
	return live, nil
}

// alive reports whether the hook still has a program to replace. An XDP or TCX link is alive in another
// network namespace, too.
func (h *hook) alive() (bool, error) {
	if h.isNote() {
		return false, nil
	}
	if h.isFilter() {
		filter, err := findFilter(h.ifindex, sideOf(h.kind))
		return filter != nil, err
	}
	info, err := h.link.Info()
	if err != nil {
		return false, err
	}
	if xdp := info.XDP(); xdp != nil {
		return xdp.Ifindex != 0, nil
	}
	tcx := info.TCX()
	return tcx != nil && tcx.Ifindex != 0, nil
}

// replaceAll gives the hooks these programs. It returns the hooks that it changed.
func replaceAll(hooks []*hook, programs *bpf.HairpinPrograms) (done []*hook, err error) {
	for _, h := range hooks {
		err := h.replace(programs)
		if errors.Is(err, unix.ENOLINK) || errors.Is(err, unix.ENODEV) {
			// The interface was deleted a moment ago.
			continue
		}
		if err != nil {
			return done, fmt.Errorf("replace program of %s on %s: %w", h.kind, interfaceName(h.ifindex), err)
		}
		done = append(done, h)
	}
	return done, nil
}

func interfaceName(ifindex int) string {
	dev, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return fmt.Sprintf("interface %d", ifindex)
	}
	return dev.Attrs().Name
}

// exchangePrograms exchanges the pins of all programs in one rename.
func exchangePrograms(p pins) error {
	if err := fault("rename"); err != nil {
		return err
	}
	err := unix.Renameat2(unix.AT_FDCWD, p.asidePrograms(), unix.AT_FDCWD, p.programs(), unix.RENAME_EXCHANGE)
	if err != nil {
		return fmt.Errorf("put pins in place: %w", err)
	}
	return nil
}
