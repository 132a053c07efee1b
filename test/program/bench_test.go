// SPDX-License-Identifier: Apache-2.0

package program

import (
	"testing"

	"github.com/cilium/ebpf"

	"hairpin/test/rig"
)

// bench is a rig with what only these tests ask of it.
type bench struct {
	*rig.Rig
	narrow bool // some MTU is not as it was
}

func newBench(tb testing.TB, forwards ...string) *bench {
	tb.Helper()
	return &bench{Rig: rig.New(tb, forwards...)}
}

// benchOf is the bench that a flow goes through.
func benchOf(f rig.Flow) *bench { return &bench{Rig: f.Rig} }

// newBenchFor is a bench with room for so many connections, and so many half-open ones.
func newBenchFor(tb testing.TB, connections, halfOpen uint32, forwards ...string) *bench {
	tb.Helper()
	return &bench{Rig: rig.NewFor(tb, connections, halfOpen, forwards...)}
}

// newBenchOf is a bench with the programs of spec.
func newBenchOf(tb testing.TB, spec *ebpf.CollectionSpec, connections, halfOpen uint32, forwards ...string) *bench {
	tb.Helper()
	return &bench{Rig: rig.NewOf(tb, spec, connections, halfOpen, forwards...)}
}

// openSlot opens the map in the only slot of an outer map.
func openSlot(tb testing.TB, outer *ebpf.Map) *ebpf.Map {
	tb.Helper()
	var inner *ebpf.Map
	if err := outer.Lookup(uint32(0), &inner); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { inner.Close() })
	return inner
}
