// SPDX-License-Identifier: Apache-2.0

// Package tables empties the tables of connections, for tests and measurements that start without connections. It is not in
// package lab, because lab does not know the tables.
package tables

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps"
	"hairpin/maps/layout"
)

// Forget empties the tables of connections and sets their counts to zero. It does not clear the places: a place without a live
// connection is free. No traffic may run at the same time.
func Forget(objs *bpf.HairpinObjects) error {
	var keys []bpf.HairpinTuple
	if err := maps.EachEntry(objs, func(e layout.Entry) { keys = append(keys, e.Key) }); err != nil {
		return err
	}
	for _, key := range keys {
		if err := maps.DeleteEntry(objs, key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget a connection: %w", err)
		}
	}
	for index := range objs.Rings.MaxEntries() {
		var ring bpf.HairpinRing
		if err := objs.Rings.Lookup(index, &ring); err != nil {
			return fmt.Errorf("forget how many connections there are: %w", err)
		}
		if ring.Count == 0 {
			continue
		}
		ring.Count = 0
		if err := objs.Rings.Put(index, ring); err != nil {
			return fmt.Errorf("forget how many connections there are: %w", err)
		}
	}
	return errors.Join(zero[bpf.HairpinSourcePage](objs.Sources), zero[bpf.HairpinLoadPage](objs.Loads),
		zero[bpf.HairpinProvenPage](objs.Proven))
}

// zero sets every entry of an array to zero.
func zero[Value any](m *ebpf.Map) error {
	keys, values := make([]uint32, m.MaxEntries()), make([]Value, m.MaxEntries())
	for i := range keys {
		keys[i] = uint32(i)
	}
	if _, err := m.BatchUpdate(keys, values, nil); err != nil {
		return fmt.Errorf("empty %s: %w", m, err)
	}
	return nil
}
