// SPDX-License-Identifier: Apache-2.0

// Package loader brings the datapath into the kernel and looks after it there: it pins maps, programs
// and links in a bpffs of their own, attaches the programs to interfaces, replaces them without a
// packet missing one, and follows the links, addresses and routes they depend on.
//
// Everything it makes outlives the process. Whoever opens the pins later sees what runs.
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
)

// DefaultDir is where the datapath is pinned unless Options say otherwise.
const DefaultDir = "/sys/fs/bpf/hairpin"

// What a caller may want to tell apart. Each is wrapped with the place, the cause and the way out.
var (
	// ErrNotLoaded says that nothing is pinned in the directory, or no longer what was opened.
	ErrNotLoaded = errors.New("hairpin is not loaded")
	// ErrSchema says that the pins were made by a version that lays them out differently.
	ErrSchema = errors.New("the datapath has another layout")
	// ErrLocked says that another writer held the directory until the context ended.
	ErrLocked = errors.New("another hairpin is at work")
	// ErrPermission says that a privilege is missing.
	ErrPermission = errors.New("no permission")
	// ErrKernel says that the kernel is older than hairpin works with.
	ErrKernel = errors.New("kernel is too old")
	// ErrNoInterface says that there is no such interface now; it may appear later.
	ErrNoInterface = errors.New("no such interface")
	// ErrPrivateMount says that pins would be lost with the calling process.
	ErrPrivateMount = errors.New("the pins would be lost")
	// ErrLinkType says that an interface carries what the programs do not parse.
	ErrLinkType = errors.New("unsupported link type")
)

// Options say where the datapath lives and how large it is.
type Options struct {
	// Dir is the bpffs mount; empty means DefaultDir. Its parent must exist.
	Dir string
	// MaxConnections is the number of connections to have room for, 1 to 1<<28. 0 takes the size of
	// what is pinned, or 131072 if nothing is.
	MaxConnections uint32
	// NoTCX attaches with clsact filters, as on kernels before 6.6, though the kernel has TCX.
	NoTCX bool
}

// dir is the path that every function of the package uses. It has no slash at its end: with one,
// lstat(2) follows a symbolic link, and the parent of "DIR/" would be DIR.
func (o Options) dir() string {
	if o.Dir == "" {
		return DefaultDir
	}
	return filepath.Clean(o.Dir)
}

// Datapath is an open datapath. It holds file descriptors only: the datapath runs with or without
// it. Its methods are not safe for concurrent use, and those that change something want the Lock.
type Datapath struct {
	dir     string
	objs    bpf.HairpinObjects
	adopted bool
	noTCX   bool
}

// Load opens the pinned datapath, or makes one if there is none. The caller holds the Lock.
//
// It returns an error wrapping ErrKernel, ErrPermission or ErrSchema where that is the reason, and
// an error if what is pinned has room for another number of connections than asked for.
func Load(opts Options) (*Datapath, error) {
	d, err := load(opts)
	return d, explain(err)
}

func load(opts Options) (*Datapath, error) {
	if err := checkKernel(); err != nil {
		return nil, err
	}
	if opts.MaxConnections > maxConnections {
		return nil, fmt.Errorf("size connection table: %d connections are more than the limit of %d", opts.MaxConnections, maxConnections)
	}
	if err := mountDir(opts.dir()); err != nil {
		return nil, err
	}
	if err := clean(opts.dir()); err != nil {
		return nil, err
	}

	d, err := adopt(opts)
	if err == nil {
		if err = pins(opts.dir()).checkLayout(&d.objs.HairpinMaps); err != nil {
			return nil, errors.Join(err, d.Close())
		}
	}
	if !errors.Is(err, ErrNotLoaded) {
		return d, err
	}
	// Filters may have outlived pins that somebody removed.
	if err := removePins(pins(opts.dir())); err != nil {
		return nil, err
	}
	return create(opts)
}

// Open opens the pinned datapath and changes nothing. It needs no Lock.
//
// It returns an error wrapping ErrNotLoaded if there is none, ErrSchema if it is of another version.
// MaxConnections is not looked at.
func Open(opts Options) (*Datapath, error) {
	opts.MaxConnections = 0
	d, err := adopt(opts)
	return d, explain(err)
}

// Check looks whether there is a datapath that Open would open, but for what may be missing of it. It
// opens next to nothing.
//
// It returns an error wrapping ErrNotLoaded if there is none, ErrSchema if it is of another version.
func Check(opts Options) error {
	p := pins(opts.dir())
	if err := p.check(); err != nil {
		return explain(err)
	}
	return explain(p.checkSchema())
}

// Objects are the maps and programs, owned by the Datapath, without the templates of inner maps. Another process may have upgraded the
// pinned programs since; those that work on maps alone do so all the same.
func (d *Datapath) Objects() *bpf.HairpinObjects {
	return &d.objs
}

// Adopted reports whether the datapath was there already.
func (d *Datapath) Adopted() bool {
	return d.adopted
}

// Close lets go of the file descriptors. What is pinned and attached stays.
func (d *Datapath) Close() error {
	return d.objs.Close()
}

// create loads the datapath and pins it: aside first, then in place by one rename, so that there is
// no moment at which a reader finds half of it.
func create(opts Options) (_ *Datapath, err error) {
	spec, err := newSpec(opts.MaxConnections)
	if err != nil {
		return nil, err
	}
	suited := currentFit()
	coll, err := newCollection(spec, &suited)
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
	if err := errors.Join(p.pinAside(coll), suited.pin(p.asidePrograms())); err != nil {
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

// newCollection is ebpf.NewCollection with the programs loaded in parallel, and with them the slots
// of outer maps filled. The programs are made to suit the kernel.
func newCollection(spec *ebpf.CollectionSpec, suited *fit) (*ebpf.Collection, error) {
	bare := spec.Copy()
	bare.Programs, bare.Variables = nil, nil
	// Programs get their own, as in an upgrade: what they suit may turn out to be something else.
	maps.DeleteFunc(bare.Maps, func(name string, _ *ebpf.MapSpec) bool { return isData(name) })
	slots := takeSlots(bare.Maps)
	for _, m := range bare.Maps {
		// The kernel takes no types for these: it makes them, finds that out, and waits to unmake them.
		if m.Type == ebpf.DevMapHash {
			m.Key, m.Value = nil, nil
		}
	}
	coll, err := ebpf.NewCollection(bare)
	if err != nil {
		return nil, err
	}
	filled := make(chan error, 1)
	go func() { filled <- fillSlots(coll.Maps, slots) }()
	coll.Programs, err = suited.load(spec, coll.Maps)
	if err := errors.Join(err, <-filled); err != nil {
		coll.Close()
		return nil, err
	}
	return coll, nil
}

// slot is a place of an outer map and the inner map that belongs there, by name.
type slot struct {
	outer string
	key   any
	inner string
}

// takeSlots takes the initial contents out of the outer maps.
func takeSlots(specs map[string]*ebpf.MapSpec) (slots []slot) {
	for name, spec := range specs {
		if spec.Type != ebpf.ArrayOfMaps {
			continue
		}
		spec.Contents = slices.DeleteFunc(spec.Contents, func(entry ebpf.MapKV) bool {
			inner, named := entry.Value.(string)
			if named {
				slots = append(slots, slot{name, entry.Key, inner})
			}
			return named
		})
	}
	return slots
}

// fillSlots writes all at once: with each the kernel waits until no program runs that began before,
// and it waits once for those that come together.
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

// newPrograms loads every program over these maps. They go side by side: nearly all the time is the
// verifier's, who looks at each alone. The longest stays with the caller's thread and its privileges.
func newPrograms(spec *ebpf.CollectionSpec, options ebpf.CollectionOptions) (map[string]*ebpf.Program, error) {
	var (
		mu       sync.Mutex // guards the next two
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
	load(longest)
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
			// The library writes initial contents to a map that it is given as well. They would replace
			// the running forwards.
			one.Maps[name].Contents = nil
		case isData(name):
			// An upgrade finds no data section pinned: the program gets its own.
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

// adopt opens what is pinned.
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

// fault is for tests to make a step fail.
var fault = func(step string) error { return nil }
