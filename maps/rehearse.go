// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps/entries"
	"hairpin/maps/layout"
)

// Borrow copies what decides about new connections from the running tables into those of a rehearsal. This is how full the tables are, how
// many connections each client has, the last server of each client, the counts of the rates, and the ports that are taken. Borrow copies no
// connections.
func (t *Tables) Borrow(from *Tables) error {
	return errors.Join(
		copyMap[uint32, bpf.HairpinRing](t.objs.Rings, from.objs.Rings),
		copyMap[uint32, bpf.HairpinSourcePage](t.objs.Sources, from.objs.Sources),
		copyMap[uint32, bpf.HairpinLoadPage](t.objs.Loads, from.objs.Loads),
		copyMap[uint32, bpf.HairpinProvenPage](t.objs.Proven, from.objs.Proven),
		copyInner[bpf.HairpinAffinityKey, bpf.HairpinAffinity](t.objs.Affinities, from, from.objs.Affinities, bpf.HairpinMapAffinities, slotOfNew),
		copyInner[bpf.HairpinAffinityKey, bpf.HairpinAffinity](t.objs.Affinities, from, from.objs.Affinities, bpf.HairpinMapAffinities, slotOfKnown),
		copyMap[bpf.HairpinTuple, [24]byte](t.objs.Mappings, from.objs.Mappings),
		copyMap[bpf.HairpinTuple, [8]byte](t.objs.Directs, from.objs.Directs),
		t.borrowBuckets(from),
	)
}

func copyMap[K, V any](to, from *ebpf.Map) error {
	var keys []K
	var values []V
	err := scan(from, 1, func(key K, value []V) { keys, values = append(keys, key), append(values, value[0]) })
	if err == nil {
		err = putAll(to, keys, values, 1)
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return nil
}

// borrowBuckets copies what the rates of forwards have counted.
func (t *Tables) borrowBuckets(from *Tables) error {
	for number := range from.objs.Buckets.MaxEntries() {
		if err := copyInner[uint32, bpf.HairpinBucket](t.objs.Buckets, from, from.objs.Buckets, bpf.HairpinMapBuckets, number); err != nil {
			return err
		}
	}
	return copyInner[bpf.HairpinSourceBucketKey, bpf.HairpinBucket](t.objs.SourceBuckets, from, from.objs.SourceBuckets, bpf.HairpinMapSourceBuckets, 0)
}

// copyInner copies the inner map with this number, if there is one. The copy gets no pin: the map that holds it has none either.
func copyInner[K, V any](to *ebpf.Map, tables *Tables, from *ebpf.Map, name string, number uint32) error {
	inner, err := tables.slots.Open(from, number)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open page %d of %s: %w", number, name, err)
	}
	defer inner.Close()
	own, err := newInner(name, inner.MaxEntries())
	if err != nil {
		return err
	}
	defer own.Close()
	if err := copyMap[K, V](own, inner); err != nil {
		return err
	}
	if err := to.Put(number, own); err != nil {
		return fmt.Errorf("set page %d of %s: %w", number, name, err)
	}
	return nil
}

// Entry returns the entry of a connection by its key, of either direction; nil if there is no such connection.
func (t *Tables) Entry(key bpf.HairpinTuple) (*layout.Entry, error) {
	table, err := entries.Open(t.objs)
	if err != nil {
		return nil, err
	}
	entry, err := table.Lookup(key)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, nil
	}
	return &entry, err
}

// BorrowConnection copies both entries of a connection from the running tables. The copy is in no place, so nothing evicts it.
func (t *Tables) BorrowConnection(from *Tables, entry *layout.Entry) error {
	own, err := entries.Open(t.objs)
	if err != nil {
		return err
	}
	other, err := from.Entry(entry.Answer())
	if err != nil {
		return err
	}
	if other != nil && other.Serial == entry.Serial { // otherwise it has ended meanwhile
		if err := own.Update(other, ebpf.UpdateAny); err != nil {
			return err
		}
	}
	return own.Update(entry, ebpf.UpdateAny)
}

// Forget deletes both entries of a connection of a rehearsal, by its key of either direction.
func (t *Tables) Forget(key bpf.HairpinTuple) error {
	own, err := entries.Open(t.objs)
	if err != nil {
		return err
	}
	entry, err := own.Lookup(key)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(own.Delete(entry.Answer()), own.Delete(key))
}

// StateOf returns the name of an entry's state.
func StateOf(entry *layout.Entry) string { return stateOf(entry) }
