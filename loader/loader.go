// SPDX-License-Identifier: Apache-2.0

// Package loader loads the datapath into the kernel and manages it there. It pins maps, programs and links
// in a bpffs of their own and attaches the programs to interfaces. It replaces attached programs without a
// moment in which an interface has no program. It follows the links, addresses and routes that the datapath
// depends on.
//
// Everything that the package creates outlives the process: a later process opens the pins and sees the
// running datapath.
package loader

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"hairpin/bpf"
	"hairpin/maps/slots"
)

// DefaultDir is the directory of the pins when Options.Dir is empty.
const DefaultDir = "/sys/fs/bpf/hairpin"

// Errors that a caller can test for with errors.Is. Each is wrapped with the place, the cause and the cure.
var (
	// ErrNotLoaded says that nothing is pinned in the directory, or that another datapath is pinned
	// now.
	ErrNotLoaded = errors.New("hairpin is not loaded")
	// ErrSchema says that the pinned maps have the layout of another version.
	ErrSchema = errors.New("the datapath has another layout")
	// ErrLocked says that another process held the lock of the directory until the context ended.
	ErrLocked = errors.New("another hairpin command is running")
	// ErrPermission says that a privilege is missing.
	ErrPermission = errors.New("no permission")
	// ErrKernel says that the kernel is older than hairpin needs.
	ErrKernel = errors.New("kernel is too old")
	// ErrNoInterface says that the interface does not exist now; it may appear later.
	ErrNoInterface = errors.New("no such interface")
	// ErrPrivateMount says that the pins would be lost when the calling process ends.
	ErrPrivateMount = errors.New("the pins would be lost")
	// ErrLinkType says that the programs cannot parse the packets of the interface.
	ErrLinkType = errors.New("unsupported link type")
)

// Options are the place and the size of the datapath.
type Options struct {
	// Dir is the bpffs mount; empty means DefaultDir. The parent directory must exist.
	Dir string
	// MaxConnections is the number of IPv4 connections that the tables have room for, 1 to 1<<28. 0 means
	// the size of the pinned tables, or 131072 if nothing is pinned.
	MaxConnections uint32
	// NoTCX attaches clsact filters, as on kernels before 6.6, even if the kernel has TCX.
	NoTCX bool
}

// dir returns the path that all functions of the package use. The path has no slash at its end: with a
// slash, lstat(2) follows a symbolic link, and the parent of "DIR/" would be DIR.
func (o Options) dir() string {
	if o.Dir == "" {
		return DefaultDir
	}
	return filepath.Clean(o.Dir)
}

// Datapath is an open datapath. It holds only file descriptors: the datapath also runs without it. Its
// methods are not safe for concurrent use. The methods that change something need the Lock.
type Datapath struct {
	dir     string
	objs    bpf.HairpinObjects
	adopted bool
	noTCX   bool
}

// Load opens the pinned datapath, or creates a datapath if nothing is pinned. The caller holds the Lock.
//
// It returns an error wrapping ErrKernel, ErrPermission or ErrSchema if one of them is the cause. It also
// fails if the pinned tables have room for a different number of connections than MaxConnections.
func Load(opts Options) (*Datapath, error) {
	d, err := load(opts)
	return d, explain(err)
}

func load(opts Options) (*Datapath, error) {
	if err := CheckKernel(); err != nil {
		return nil, err
	}
	if opts.MaxConnections > maxConnections {
		return nil, fmt.Errorf("size connection table: %d connections exceed the limit of %d", opts.MaxConnections, maxConnections)
	}
	if err := mountDir(opts.dir()); err != nil {
		return nil, err
	}
	if err := clean(opts.dir()); err != nil {
		return nil, err
	}

	d, err := adopt(opts)
	if err == nil {
		if err = pins(opts.dir()).checkLayout(&d.objs.HairpinMaps); err == nil {
			err = d.pinInner()
		}
		if err != nil {
			return nil, errors.Join(err, d.Close())
		}
	}
	if !errors.Is(err, ErrNotLoaded) {
		return d, err
	}
	// Filters may still be attached although somebody removed the pins.
	if err := removePins(pins(opts.dir())); err != nil {
		return nil, err
	}
	return create(opts)
}

// Open opens the pinned datapath and changes nothing. It needs no Lock and ignores MaxConnections.
//
// It returns an error wrapping ErrNotLoaded if nothing is pinned, ErrSchema if the pins have the layout of
// another version.
func Open(opts Options) (*Datapath, error) {
	opts.MaxConnections = 0
	d, err := adopt(opts)
	return d, explain(err)
}

// Check reports whether Open would find a datapath. It is faster: it opens only the map with the schema
// number, so it does not notice other missing pins.
//
// It returns an error wrapping ErrNotLoaded if nothing is pinned, ErrSchema if the pins have the layout of
// another version.
func Check(opts Options) error {
	p := pins(opts.dir())
	if err := p.check(); err != nil {
		return explain(err)
	}
	return explain(p.checkSchema())
}

// Objects returns the maps and programs. The Datapath owns them and closes them. Do not use the templates
// of inner maps: they are nil if the datapath was adopted. Another process may have upgraded the pinned
// programs since; the programs in Objects that only work on maps can still be run.
func (d *Datapath) Objects() *bpf.HairpinObjects {
	return &d.objs
}

// Slots returns the slots of the outer maps.
func (d *Datapath) Slots() *slots.Slots { return slots.Pinned(pins(d.dir).inner()) }

// pinInner pins the maps in slots that have no pin, and removes the pins that a killed writer has left. A version before these pins
// left none. Only CAP_SYS_ADMIN can pin such maps; afterwards no command needs it.
func (d *Datapath) pinInner() error {
	if err := fault("pin inner maps"); err != nil {
		return err
	}
	if err := d.Slots().Complete(slots.Outers(&d.objs.HairpinMaps)); err != nil {
		return fmt.Errorf("pin inner maps: %w", err)
	}
	return nil
}

// Adopted reports whether the datapath was pinned before this process opened it.
func (d *Datapath) Adopted() bool {
	return d.adopted
}

// Close closes the file descriptors. Pins and attached programs stay.
func (d *Datapath) Close() error {
	return d.objs.Close()
}

// create loads the datapath and pins it. It pins into a temporary directory and renames that directory, so
// that a reader never finds half of the pins.
func create(opts Options) (_ *Datapath, err error) {
	spec, err := newSpec(opts.MaxConnections)
	if err != nil {
		return nil, err
	}
	suited := currentFit()
	coll, filled, err := newCollection(spec, &suited)
	if err != nil {
		return nil, fmt.Errorf("load datapath: %w", err)
	}
	defer coll.Close()

	if err := coll.Maps[bpf.HairpinMapSchema].Put(uint32(0), uint32(bpf.HairpinSchemaSCHEMA)); err != nil {
		return nil, fmt.Errorf("write schema number: %w", err)
	}

	p := pins(opts.dir())
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(p.aside()))
		}
	}()
	if err := errors.Join(p.pinAside(coll, filled), suited.pin(p.asidePrograms())); err != nil {
		return nil, err
	}
	if err := fault("rename"); err != nil {
		return nil, err
	}
	if err := startSweeper(&bpf.HairpinPrograms{HairpinStart: coll.Programs[bpf.HairpinProgHairpinStart]}); err != nil {
		return nil, err
	}
	if err := os.Rename(p.aside(), p.datapath()); err != nil {
		return nil, fmt.Errorf("put pins in place: %w", err)
	}
	d := &Datapath{dir: opts.dir(), noTCX: opts.NoTCX}
	if err := errors.Join(coll.Assign(&d.objs.HairpinMaps), coll.Assign(&d.objs.HairpinPrograms)); err != nil {
		return nil, errors.Join(fmt.Errorf("open datapath: %w", err), d.objs.Close())
	}
	return d, nil
}

// newCollection does the work of ebpf.NewCollection faster: it loads the programs in parallel, and fills
// the slots of the outer maps at the same time, and returns these slots. The programs are made to suit the kernel.
func newCollection(spec *ebpf.CollectionSpec, suited *fit) (*ebpf.Collection, []slot, error) {
	bare := spec.Copy()
	bare.Programs, bare.Variables = nil, nil
	// Programs get their own, as in an upgrade: what they suit may turn out to be something else.
	maps.DeleteFunc(bare.Maps, func(name string, _ *ebpf.MapSpec) bool { return isData(name) })
	toFill := takeSlots(bare.Maps)
	for _, m := range bare.Maps {
		// The kernel creates a devmap hash before it refuses the BTF types, and then waits for RCU to free
		// the map.
		if m.Type == ebpf.DevMapHash {
			m.Key, m.Value = nil, nil
		}
	}
	coll, err := ebpf.NewCollection(bare)
	if err != nil {
		return nil, nil, err
	}
	filled := make(chan error, 1)
	go func() { filled <- fillSlots(coll.Maps, toFill) }()
	coll.Programs, err = suited.load(spec, coll.Maps)
	if err := errors.Join(err, <-filled); err != nil {
		coll.Close()
		return nil, nil, err
	}
	return coll, toFill, nil
}

// slot is a key of an outer map, and the name of the inner map that belongs there.
type slot struct {
	outer string
	key   uint32
	inner string
}

// takeSlots removes the initial inner maps from the specs of the outer maps and returns them.
func takeSlots(specs map[string]*ebpf.MapSpec) (slots []slot) {
	for name, spec := range specs {
		if spec.Type != ebpf.ArrayOfMaps {
			continue
		}
		spec.Contents = slices.DeleteFunc(spec.Contents, func(entry ebpf.MapKV) bool {
			inner, named := entry.Value.(string)
			if named {
				slots = append(slots, slot{name, entry.Key.(uint32), inner})
			}
			return named
		})
	}
	return slots
}

// fillSlots writes the slots in parallel: each write waits for an RCU grace period (maybe_wait_bpf_programs
// in kernel/bpf/syscall.c), and parallel writes share one grace period.
func fillSlots(maps map[string]*ebpf.Map, slots []slot) error {
	errs := make([]error, len(slots))
	var filling sync.WaitGroup
	for i, s := range slots {
		filling.Go(func() {
			inner := maps[s.inner]
			if inner == nil {
				errs[i] = fmt.Errorf("fill slot of %s: no map %s", s.outer, s.inner)
				return
			}
			if err := maps[s.outer].Put(s.key, inner); err != nil {
				errs[i] = fmt.Errorf("fill slot of %s: %w", s.outer, err)
			}
		})
	}
	filling.Wait()
	return errors.Join(errs...)
}

// newPrograms loads every program. It loads the programs in parallel, because the verifier
// takes nearly all the time and checks each program alone. The program that takes longest is loaded by the
// calling goroutine, on the caller's thread with its privileges.
func newPrograms(spec *ebpf.CollectionSpec, options ebpf.CollectionOptions) (map[string]*ebpf.Program, error) {
	var (
		mu       sync.Mutex // guards programs and errs
		programs = make(map[string]*ebpf.Program)
		errs     []error
		loading  sync.WaitGroup
	)
	options.Cache = btf.NewCache()
	load := func(name string) {
		program, err := newProgram(spec, name, options)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			errs = append(errs, err)
			return
		}
		programs[name] = program
	}
	const longest = bpf.HairpinProgHairpinTc
	for name := range spec.Programs {
		if name != longest {
			loading.Go(func() { load(name) })
		}
	}
	if spec.Programs[longest] != nil {
		load(longest)
	}
	loading.Wait()
	if err := errors.Join(errs...); err != nil {
		for _, program := range programs {
			program.Close()
		}
		return nil, err
	}
	return programs, nil
}

func newProgram(spec *ebpf.CollectionSpec, name string, options ebpf.CollectionOptions) (*ebpf.Program, error) {
	one := &ebpf.CollectionSpec{
		Maps:      make(map[string]*ebpf.MapSpec),
		Programs:  map[string]*ebpf.ProgramSpec{name: spec.Programs[name]},
		Variables: make(map[string]*ebpf.VariableSpec),
		Types:     spec.Types,
		ByteOrder: spec.ByteOrder,
	}
	for name, variable := range spec.Variables {
		one.Variables[name] = variable.Copy()
	}
	for name, m := range spec.Maps {
		_, given := options.MapReplacements[name]
		switch {
		case given:
			one.Maps[name] = m.Copy()
			// cilium/ebpf writes Contents also to replacement maps. That would overwrite the running
			// forwards.
			one.Maps[name].Contents = nil
		case isData(name):
			// Data sections are not pinned, so an upgrade finds none: each program gets its own.
			one.Maps[name] = m.Copy()
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(one, options)
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	return coll.DetachProgram(name), nil
}

// adopt opens the pinned datapath.
func adopt(opts Options) (*Datapath, error) {
	p := pins(opts.dir())
	if err := p.check(); err != nil {
		return nil, err
	}
	d := &Datapath{dir: opts.dir(), adopted: true, noTCX: opts.NoTCX}
	if err := p.open(&d.objs, opts.MaxConnections); err != nil {
		return nil, errors.Join(err, d.objs.Close())
	}
	return d, nil
}

// fault lets tests make a step fail.
var fault = func(step string) error { return nil }
