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
	bpf.HairpinMapProven, bpf.HairpinMapLateSyns, bpf.HairpinMapSerials, bpf.HairpinMapDirects, bpf.HairpinMapFragments, bpf.HairpinMapHeldFragments,
	bpf.HairpinMapScratchPackets, bpf.HairpinMapAffinities, bpf.HairpinMapIcmpBudgets, bpf.HairpinMapForwardStats, bpf.HairpinMapBuckets,
	bpf.HairpinMapSourceBuckets, bpf.HairpinMapCounters, bpf.HairpinMapConnEvents, bpf.HairpinMapWorks,
}

// Rehearsal is a program that decides about a packet as the datapath does, and has no effect: it changes only maps of its own, and
// sends nothing. The program is loaded in the background, because the verifier takes nearly all the time of a question. Its methods are
// not safe for concurrent use.
type Rehearsal struct {
	objs    bpf.HairpinObjects
	owned   *ebpf.Collection
	program func() (*ebpf.Program, error) // waits until the program is loaded
}

// Rehearse loads the program beside the running datapath, whose forwards, interfaces and addresses the program reads. Its own maps are
// empty: see maps.Tables.Borrow. The Datapath must stay open.
func (d *Datapath) Rehearse() (*Rehearsal, error) {
	suited, err := pins(d.dir).fit()
	if err != nil {
		return nil, explain(err)
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
	spec, err := bpf.LoadExplain()
	if err != nil {
		return nil, fmt.Errorf("read embedded program: %w", err)
	}
	if err := complete(spec, rehearsalConnections); err != nil {
		return nil, err
	}
	own := spec.Copy()
	own.Programs, own.Variables = nil, nil
	all := make(map[string]*ebpf.Map)
	if running != nil {
		for name, m := range each[ebpf.Map](running) {
			if isPinned(name) && !slices.Contains(changedByPackets, name) {
				all[name] = *m
				delete(own.Maps, name)
			}
		}
		// Places are numbered as in the rings, whose content is borrowed.
		own.Maps[bpf.HairpinMapPlaces].MaxEntries = running.Places.MaxEntries()
		own.Maps[bpf.HairpinMapRings].Contents = nil
	}
	r := new(Rehearsal)
	slots, err := r.create(own)
	if err != nil {
		return nil, fmt.Errorf("create maps of the rehearsal: %w", err)
	}
	maps.Copy(all, r.owned.Maps)
	for name, m := range each[ebpf.Map](&r.objs.HairpinMaps) {
		*m = all[name]
	}
	for name, m := range all { // cilium/ebpf compares sizes
		spec.Maps[name].MaxEntries = m.MaxEntries()
	}
	r.program = inBackground(func() (*ebpf.Program, error) {
		programs, err := suited.load(spec, all)
		return programs[bpf.ExplainProgHairpinExplain], err
	})
	if err := fillSlots(r.owned.Maps, slots); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// create makes the Rehearsal's own maps. It returns the slots of their outer maps, which are still empty.
func (r *Rehearsal) create(own *ebpf.CollectionSpec) (slots []slot, err error) {
	maps.DeleteFunc(own.Maps, func(name string, _ *ebpf.MapSpec) bool { return isData(name) })
	slots = takeSlots(own.Maps)
	r.owned, err = ebpf.NewCollection(own)
	return slots, err
}

// inBackground starts f, and returns a function that waits for f's results.
func inBackground[T any](f func() (T, error)) func() (T, error) {
	var value T
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		value, err = f()
	}()
	return func() (T, error) {
		<-done
		return value, err
	}
}

// Run shows the program a frame with an Ethernet header, as if the frame came in by this interface. The error wraps ErrNoInterface if there
// is no such interface in the network namespace of the calling thread.
func (r *Rehearsal) Run(frame []byte, ifindex uint32) (bpf.ExplainExplanation, error) {
	var result bpf.ExplainExplanation
	program, err := r.program()
	if err != nil {
		return result, explain(fmt.Errorf("load the program: %w", err))
	}
	// struct __sk_buff (linux/bpf.h) up to the field ifindex.
	context := make([]byte, 44)
	binary.NativeEndian.PutUint32(context[40:], ifindex)
	_, err = program.Run(&ebpf.RunOptions{Data: frame, Context: context})
	switch {
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.EINVAL):
		return result, fmt.Errorf("%w: index %d", ErrNoInterface, ifindex)
	case err != nil:
		return result, fmt.Errorf("run the program: %w", err)
	}
	if err := r.owned.Maps[bpf.ExplainMapExplanations].Lookup(uint32(0), &result); err != nil {
		return result, fmt.Errorf("read the result of the program: %w", err)
	}
	return result, nil
}

// Objects returns the maps, as package maps needs them: the running ones, and the Rehearsal's own in place of those that packets
// change. The programs are nil. The Rehearsal owns the maps.
func (r *Rehearsal) Objects() *bpf.HairpinObjects { return &r.objs }

// Close frees the program and the Rehearsal's own maps. It waits until the program is loaded.
func (r *Rehearsal) Close() error {
	program, _ := r.program() // Run has returned the error
	r.owned.Close()
	return program.Close()
}
