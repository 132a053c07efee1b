// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"testing"

	"github.com/cilium/ebpf"

	"hairpin/maps/mapstest"
)

// TestWithoutBatches checks putEach and scanEach, which replace batches on kernels and map types without batches.
func TestWithoutBatches(t *testing.T) {
	mapstest.NeedRoot(t)
	for _, test := range []struct {
		kind   ebpf.MapType
		perKey int
	}{{ebpf.Hash, 1}, {ebpf.PerCPUHash, ebpf.MustPossibleCPU()}} {
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: test.kind, KeySize: 4, ValueSize: 8, MaxEntries: 100})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		keys, values := make([]uint32, 100), make([]uint64, 100*test.perKey)
		for i := range keys {
			keys[i] = uint32(i)
			for cpu := range test.perKey {
				values[i*test.perKey+cpu] = uint64(1000*i + cpu)
			}
		}
		if err := putEach(m, keys, values, test.perKey); err != nil {
			t.Fatal(err)
		}
		for name, read := range map[string]func(*ebpf.Map, int, func(uint32, []uint64)) error{"batches": scan[uint32, uint64], "one by one": scanEach[uint32, uint64]} {
			seen := map[uint32]string{}
			if err := read(m, test.perKey, func(key uint32, values []uint64) { seen[key] = fmt.Sprint(values) }); err != nil {
				t.Fatal(err)
			}
			for i := range keys {
				if want := fmt.Sprint(values[i*test.perKey : (i+1)*test.perKey]); seen[keys[i]] != want {
					t.Errorf("%s, %s: entry %d is %s, want %s", test.kind, name, i, seen[keys[i]], want)
				}
			}
		}
	}
}

func TestAFullMapIsAnError(t *testing.T) {
	mapstest.NeedRoot(t)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := putAll(m, []uint32{1, 2, 3}, []uint32{1, 2, 3}, 1); err != nil {
		t.Fatal(err)
	}
	if err := putAll(m, []uint32{4}, []uint32{4}, 1); err == nil {
		t.Error("a full map took another entry")
	}
	if all, err := readAll[uint32, uint32](m); err != nil || len(all) != 3 {
		t.Errorf("%v, %v", all, err)
	}
}
