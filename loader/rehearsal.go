// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
)

// rehearsalConnections is the size of a rehearsal's own tables, which hold the connections of a few packets.
const rehearsalConnections = 256

// changedByPackets are the maps that packets change. A rehearsal has its own. All others are changed by the control plane alone.
var changedByPackets = []string{
	bpf.HairpinMapConns4, bpf.HairpinMapConns6, bpf.HairpinMapTables, bpf.HairpinMapRings, bpf.HairpinMapPlaces,
	bpf.HairpinMapSweepers, bpf.HairpinMapHops, bpf.HairpinMapMappings, bpf.HairpinMapSources, bpf.HairpinMapLoads,
	bpf.HairpinMapProven, bpf.HairpinMapSerials, bpf.HairpinMapDirects, bpf.HairpinMapFragments, bpf.HairpinMapHeldFragments,
	bpf.HairpinMapScratchPackets, bpf.HairpinMapIcmpBudgets, bpf.HairpinMapForwardStats, bpf.HairpinMapBuckets,
	bpf.HairpinMapSourceBuckets, bpf.HairpinMapCounters, bpf.HairpinMapConnEvents, bpf.HairpinMapWorks,
}

// Rehearsal is a program that decides about a packet as the datapath does, and has no effect: it changes only maps of its own, and
// sends nothing. Its methods are not safe for concurrent use.
type Rehearsal struct {
	objs    bpf.HairpinObjects
	owned   *ebpf.Collection
	program *ebpf.Program
	result  *ebpf.Map
}

// Rehearse loads the program beside the running datapath, whose forwards, interfaces and addresses the program reads. Its own maps are
// empty: see maps.Tables.Borrow. The Datapath must stay open.
func (d *Datapath) Rehearse() (*Rehearsal, error) {
	suited, err := pins(d.dir).fit()
	if err != nil {
		return nil, err
	}
	r, err := rehearse(&d.objs.HairpinMaps, suited)
	return r, explain(err)
}

// NewRehearsal loads the program with empty maps, for a configuration that does not run.
func NewRehearsal() (*Rehearsal, error) {
	if err := CheckKernel(); err != nil {
		return nil, err
	}
	r, err := rehearse(nil, currentFit())
	return r, explain(err)
}

// rehearse shares the maps of running; nil: it shares none.
func rehearse(running *bpf.HairpinMaps, suited fit) (_ *Rehearsal, err error) {
	spec, err := newSpec(rehearsalConnections)
	if err != nil {
		return nil, err
	}
	spec.Programs, spec.Variables = nil, nil
	maps.DeleteFunc(spec.Maps, func(name string, _ *ebpf.MapSpec) bool { return isData(name) })
	shared := make(map[string]*ebpf.Map)
	if running != nil {
		for name, m := range each[ebpf.Map](running) {
			if isPinned(name) && !slices.Contains(changedByPackets, name) {
				shared[name] = *m
				delete(spec.Maps, name)
			}
		}
		// Places are numbered as in the rings, which are copied.
		spec.Maps[bpf.HairpinMapPlaces].MaxEntries = running.Places.MaxEntries()
		spec.Maps[bpf.HairpinMapRings].Contents = nil
	}
	slots := takeSlots(spec.Maps)
	r := new(Rehearsal)
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	if r.owned, err = ebpf.NewCollection(spec); err != nil {
		return nil, fmt.Errorf("create maps of the rehearsal: %w", err)
	}
	if err := fillSlots(r.owned.Maps, slots); err != nil {
		return nil, err
	}
	all := maps.Clone(r.owned.Maps)
	maps.Copy(all, shared)
	for name, m := range each[ebpf.Map](&r.objs.HairpinMaps) {
		*m = all[name]
	}
	return r, r.load(all, suited)
}

// load loads the program over these maps.
func (r *Rehearsal) load(all map[string]*ebpf.Map, suited fit) error {
	spec, err := bpf.LoadExplain()
	if err != nil {
		return fmt.Errorf("read embedded program: %w", err)
	}
	if err := suited.suit(spec); err != nil {
		return err
	}
	given := make(map[string]*ebpf.Map)
	for name, m := range spec.Maps {
		if name == bpf.ExplainMapExplanations || isTemplate(name) {
			continue
		}
		if replacement := all[name]; replacement != nil {
			given[name] = replacement
			m.Contents = nil // cilium/ebpf would write Contents also to replacement maps
			m.MaxEntries = replacement.MaxEntries()
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: given})
	if err != nil {
		return fmt.Errorf("load program: %w", err)
	}
	defer coll.Close()
	r.program = coll.DetachProgram(bpf.ExplainProgHairpinExplain)
	r.result = coll.DetachMap(bpf.ExplainMapExplanations)
	return nil
}

// Run shows the program a frame with an Ethernet header, as if the frame came in by this interface. The error wraps ErrNoInterface if there
// is no such interface in the network namespace of the calling thread.
func (r *Rehearsal) Run(frame []byte, ifindex uint32) (bpf.ExplainExplanation, error) {
	var result bpf.ExplainExplanation
	// struct __sk_buff (linux/bpf.h) up to the field ifindex.
	context := make([]byte, 44)
	binary.NativeEndian.PutUint32(context[40:], ifindex)
	_, err := r.program.Run(&ebpf.RunOptions{Data: frame, Context: context})
	switch {
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.EINVAL):
		return result, fmt.Errorf("%w: index %d", ErrNoInterface, ifindex)
	case err != nil:
		return result, fmt.Errorf("run the program: %w", err)
	}
	if err := r.result.Lookup(uint32(0), &result); err != nil {
		return result, fmt.Errorf("read the result of the program: %w", err)
	}
	return result, nil
}

// Objects returns the maps, as package maps needs them: the running ones, and the Rehearsal's own in place of those that packets
// change. The programs are nil. The Rehearsal owns the maps.
func (r *Rehearsal) Objects() *bpf.HairpinObjects { return &r.objs }

// Close frees the program and the Rehearsal's own maps.
func (r *Rehearsal) Close() error {
	var errs []error
	if r.program != nil {
		errs = append(errs, r.program.Close())
	}
	if r.result != nil {
		errs = append(errs, r.result.Close())
	}
	if r.owned != nil {
		r.owned.Close()
	}
	return errors.Join(errs...)
}
