// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/test/tables"
)

// Reversed returns the tuple with source and destination swapped.
func Reversed(t bpf.HairpinTuple) bpf.HairpinTuple {
	t.Src, t.Dst, t.Sport, t.Dport = t.Dst, t.Src, t.Dport, t.Sport
	return t
}

// Forget empties the tables of connections and fragments.
func (r *Rig) Forget(tb testing.TB) {
	tb.Helper()
	r.Empty(tb, r.Objects.Mappings, r.Objects.Fragments, r.Objects.HeldFragments)
	if err := tables.Forget(&r.Objects); err != nil {
		tb.Fatal(err)
	}
}

// Empty deletes all entries of hash tables.
func (r *Rig) Empty(tb testing.TB, tables ...*ebpf.Map) {
	tb.Helper()
	for _, m := range tables {
		key := make([]byte, m.KeySize())
		for m.NextKey(nil, key) == nil {
			if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				tb.Fatalf("empty %s: %v", m, err)
			}
		}
	}
}
