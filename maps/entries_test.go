// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"hairpin/bpf"
	"hairpin/maps/entries"
	"hairpin/maps/layout"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

func TestEntriesComeAndGo(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	for family, pair := range map[string][2]string{
		"IPv4": {"198.51.100.9:5000", "203.0.113.1:443"},
		"IPv6": {"[2001:db8::9]:65535", "[2001:db8:1::1]:443"},
	} {
		want := layout.Entry{Key: mapstest.Tuple(rule.TCP, pair[0], pair[1]), To: mapstest.Tuple(rule.TCP, pair[1], pair[0]), Serial: 7, State: bpf.HairpinConnStateCONN_CLOSING, Bytes: 1 << 47}
		if err := mapstest.Entries(tables.objs).Update(&want, ebpf.UpdateAny); err != nil {
			t.Fatal(err)
		}
		got, err := mapstest.Entries(tables.objs).Lookup(want.Key)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got)\n%s", family, err, diff)
		}
		var listed []layout.Entry
		if err := entries.Each(tables.objs, func(e *layout.Entry) { listed = append(listed, *e) }); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]layout.Entry{want}, listed); diff != "" {
			t.Errorf("%s is listed as (-want +got)\n%s", family, diff)
		}
		if err := mapstest.Entries(tables.objs).Delete(want.Key); err != nil {
			t.Error(err)
		}
		if _, err := mapstest.Entries(tables.objs).Lookup(want.Key); !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Errorf("%s: after it was deleted: %v", family, err)
		}
	}
}
