// SPDX-License-Identifier: Apache-2.0

// Package trace watches the datapath while it runs: single packets, with what was decided about them, and connections as they
// open, are established, close and are refused.
//
// It attaches programs to the functions of the running programs by BPF trampolines. Nothing is pinned: the kernel detaches them
// when the process ends, however it ends. They never delay a packet for the reader: if the ring buffer is full, a report is
// lost and counted.
package trace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"

	"hairpin/bpf"
	"hairpin/loader"
)

// ErrUnsupported says that this kernel cannot attach programs to other programs.
var ErrUnsupported = errors.New("the kernel cannot trace programs")

// followEvery is how often a reader looks whether the datapath has new programs, and whether its context has ended.
const followEvery = 100 * time.Millisecond

// hook is a tracing program, and the program of the datapath to which it attaches.
type hook struct {
	program string
	target  func(*bpf.HairpinObjects) *ebpf.Program
	// sweeping says that the target removes expired connections, and handles no packet.
	sweeping bool
}

func tc(o *bpf.HairpinObjects) *ebpf.Program    { return o.HairpinTc }
func xdp(o *bpf.HairpinObjects) *ebpf.Program   { return o.HairpinXdp }
func start(o *bpf.HairpinObjects) *ebpf.Program { return o.HairpinStart }

// probe is a set of tracing programs with their ring buffer. Only one goroutine at a time may use it, except lost.
type probe struct {
	dir    string
	hooks  []hook
	filter bpf.TracePacketFilter

	own      map[string]*ebpf.Map // maps of the tracing programs
	reader   *ringbuf.Reader
	programs uint64 // generation of the programs to which links attach
	links    []link.Link
	looked   time.Time // when the generation was read last
}

// newProbe attaches the tracing programs. ringBytes is the size of the ring buffer, a power of two and at least a page.
func newProbe(dir string, hooks []hook, filter bpf.TracePacketFilter, ringBytes uint32) (_ *probe, err error) {
	p := &probe{dir: dir, hooks: hooks, filter: filter, own: map[string]*ebpf.Map{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	spec, err := bpf.LoadTrace()
	if err != nil {
		return nil, fmt.Errorf("read embedded tracing programs: %w", err)
	}
	for _, name := range []string{bpf.TraceMapTraceRing, bpf.TraceMapTallies, bpf.TraceMapTraceVerdicts, bpf.TraceMapTraceArrivals} {
		m := spec.Maps[name].Copy()
		if m.Type == ebpf.RingBuf {
			m.MaxEntries = ringBytes
		}
		if p.own[name], err = ebpf.NewMap(m); err != nil {
			return nil, explain(fmt.Errorf("make map %s: %w", name, err))
		}
	}
	if p.reader, err = ringbuf.NewReader(p.own[bpf.TraceMapTraceRing]); err != nil {
		return nil, fmt.Errorf("open ring buffer: %w", err)
	}
	return p, p.attach(spec)
}

// attach attaches to the programs that are pinned now, and detaches from those before.
func (p *probe) attach(spec *ebpf.CollectionSpec) error {
	generation, err := loader.ProgramsGeneration(p.dir)
	if err != nil {
		return err
	}
	datapath, err := loader.Open(loader.Options{Dir: p.dir})
	if err != nil {
		return err
	}
	defer datapath.Close()
	if err := datapath.CheckVersion(); err != nil {
		return err
	}
	before := p.links
	p.links = nil
	for _, h := range p.hooks {
		attached, err := p.attachHook(spec, h, datapath.Objects())
		if err != nil {
			return explain(errors.Join(fmt.Errorf("attach %s: %w", h.program, err), closeAll(before)))
		}
		p.links = append(p.links, attached)
	}
	p.programs = generation
	return closeAll(before)
}

func (p *probe) attachHook(spec *ebpf.CollectionSpec, h hook, objects *bpf.HairpinObjects) (link.Link, error) {
	program, err := p.load(spec, h, objects)
	if err != nil {
		return nil, err
	}
	defer program.Close() // the link holds it
	attached, err := link.AttachTracing(link.TracingOptions{Program: program})
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	return attached, nil
}

// load loads one tracing program over the maps of the datapath and of the probe.
func (p *probe) load(spec *ebpf.CollectionSpec, h hook, objects *bpf.HairpinObjects) (*ebpf.Program, error) {
	one := spec.Copy()
	program := one.Programs[h.program]
	program.AttachTarget = h.target(objects)
	one.Programs = map[string]*ebpf.ProgramSpec{h.program: program}
	if err := errors.Join(one.Variables[bpf.TraceVarFilter].Set(p.filter), one.Variables[bpf.TraceVarSweeping].Set(h.sweeping)); err != nil {
		return nil, fmt.Errorf("set filter: %w", err)
	}
	replaced := map[string]*ebpf.Map{}
	shared := loader.MapsByName(&objects.HairpinMaps)
	for name, m := range one.Maps {
		switch {
		case p.own[name] != nil:
			replaced[name] = p.own[name]
			m.MaxEntries = p.own[name].MaxEntries()
		case shared[name] != nil:
			replaced[name] = shared[name]
			m.MaxEntries, m.Contents = shared[name].MaxEntries(), nil
		case name != ".rodata":
			delete(one.Maps, name)
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(one, ebpf.CollectionOptions{MapReplacements: replaced})
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	return coll.DetachProgram(h.program), nil
}

// next returns the next report. It attaches to the new programs if the datapath was upgraded. After ctx has ended it detaches, returns
// the reports that are in the ring buffer, and then the cause of the end. If the datapath was removed, it returns an error wrapping
// loader.ErrNotLoaded.
func (p *probe) next(ctx context.Context, record *ringbuf.Record) error {
	for {
		if ctx.Err() != nil {
			return p.drain(ctx, record)
		}
		if err := p.follow(); err != nil {
			return err
		}
		p.reader.SetDeadline(time.Now().Add(followEvery))
		err := p.reader.ReadInto(record)
		if err == nil {
			return nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("read ring buffer: %w", err)
		}
	}
}

// drain returns the next report that is in the ring buffer, or the cause of the end if there is none.
func (p *probe) drain(ctx context.Context, record *ringbuf.Record) error {
	if p.links != nil {
		err := closeAll(p.links)
		p.links = nil
		p.reader.SetDeadline(time.Time{})
		if err = errors.Join(err, p.reader.Flush()); err != nil {
			return err
		}
	}
	err := p.reader.ReadInto(record)
	if errors.Is(err, ringbuf.ErrFlushed) {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("read ring buffer: %w", err)
	}
	return nil
}

// follow attaches to the new programs after an upgrade.
func (p *probe) follow() error {
	if time.Since(p.looked) < followEvery {
		return nil
	}
	p.looked = time.Now()
	generation, err := loader.ProgramsGeneration(p.dir)
	if err != nil || generation == p.programs {
		return err
	}
	spec, err := bpf.LoadTrace()
	if err != nil {
		return fmt.Errorf("read embedded tracing programs: %w", err)
	}
	return p.attach(spec)
}

// lost returns how many reports found no room in the ring buffer.
func (p *probe) lost() uint64 {
	var lost uint64
	if err := p.own[bpf.TraceMapTallies].Lookup(uint32(bpf.TraceTallyTALLY_LOST), &lost); err != nil {
		return 0 // the map is closed
	}
	return lost
}

// Close detaches the tracing programs.
func (p *probe) Close() error {
	err := closeAll(p.links)
	p.links = nil
	if p.reader != nil {
		err = errors.Join(err, p.reader.Close())
	}
	for _, m := range p.own {
		err = errors.Join(err, m.Close())
	}
	return err
}

func closeAll(links []link.Link) error {
	var errs []error
	for _, l := range links {
		errs = append(errs, l.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detach tracing programs: %w", err)
	}
	return nil
}

// explain wraps an error of a kernel that lacks what tracing needs in ErrUnsupported, and one of a missing privilege in
// loader.ErrPermission.
func explain(err error) error {
	if errors.Is(err, ebpf.ErrNotSupported) && !errors.Is(err, ErrUnsupported) {
		return fmt.Errorf("%w: it needs the kernel's types (CONFIG_DEBUG_INFO_BTF), the JIT (net.core.bpf_jit_enable) and trampolines: %w",
			ErrUnsupported, err)
	}
	return loader.Explain(err)
}
