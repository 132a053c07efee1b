// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"

	"hairpin/bpf"
)

func contains(err error, want string) bool { return err != nil && strings.Contains(err.Error(), want) }

// needRoot fails a test that cannot do what it is for.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: sudo make test")
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
}

// smallSpec is the embedded object with tables that are quickly made.
func smallSpec(t testing.TB) *ebpf.CollectionSpec {
	t.Helper()
	spec, err := bpf.LoadHairpin()
	if err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]uint32{
		bpf.HairpinMapConns4:        64,
		bpf.HairpinMapConns6:        64,
		bpf.HairpinMapPlaces4:       uint32(bpf.HairpinPlaceKindPLACES) * smallRing,
		bpf.HairpinMapPlaces6:       uint32(bpf.HairpinPlaceKindPLACES) * smallRing,
		bpf.HairpinMapFragments:     16,
		bpf.HairpinMapHeldFragments: 16,
		bpf.HairpinMapExternals:     16,
		bpf.HairpinMapEpochs:        64,
		bpf.HairpinMapCounters:      64,
	} {
		spec.Maps[name].MaxEntries = size
	}
	spec.Maps[bpf.HairpinMapRings].Contents = smallRings()
	return spec
}

// smallRing is how many places of each kind and family the tests' tables have.
const smallRing = 16

func smallRings() []ebpf.MapKV {
	var rings []ebpf.MapKV
	for index := range uint32(2 * bpf.HairpinPlaceKindPLACES) {
		r := bpf.HairpinRing{Base: index / 2 * smallRing, Size: smallRing, Limit: smallRing}
		rings = append(rings, ebpf.MapKV{Key: index, Value: r})
	}
	return rings
}

// roomySpec has ids for as many forwards and addresses as there may be.
func roomySpec(t testing.TB) *ebpf.CollectionSpec {
	t.Helper()
	spec := smallSpec(t)
	full, err := bpf.Spec()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{bpf.HairpinMapEpochs, bpf.HairpinMapExternals} {
		spec.Maps[name].MaxEntries = full.Maps[name].MaxEntries
	}
	return spec
}

// newTables makes a datapath's maps, without programs.
func newTables(t testing.TB, spec *ebpf.CollectionSpec) *Tables {
	t.Helper()
	needRoot(t)
	var objs bpf.HairpinObjects
	if err := spec.LoadAndAssign(&objs.HairpinMaps, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { objs.HairpinMaps.Close() })
	return New(&objs)
}

// again is what the next process sees.
func (t *Tables) again() *Tables { return New(t.objs) }

func mustApply(t testing.TB, tables *Tables, c Config) Change {
	t.Helper()
	change, err := tables.Apply(c)
	if err != nil {
		t.Fatal(err)
	}
	return change
}
