// SPDX-License-Identifier: Apache-2.0

// Package tables empties the tables of connections, for tests and measurements that start without connections. It is not in
// package lab, because lab does not know the tables.
package tables

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
)

// Forget empties the tables of connections and their places, and sets their counts to zero. No traffic may run at the same time.
func Forget(objs *bpf.HairpinObjects) error {
	if err := errors.Join(zero[bpf.HairpinBucket4](objs.Conns4), zero[bpf.HairpinBucket6](objs.Conns6)); err != nil {
		return err
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
	return errors.Join(zero[bpf.HairpinPlace](objs.Places), zero[bpf.HairpinSourcePage](objs.Sources), zero[bpf.HairpinLoadPage](objs.Loads),
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
