// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"hairpin/bpf"
	"hairpin/maps/mapstest"
)

func TestCountersOfGoneInterfacesMakeRoom(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	for index := range uint32(31) {
		mapstest.PutCounter(t, tables.objs, index, bpf.HairpinVerdictVERDICT_DROP, bpf.HairpinReasonREASON_ENDED, 5)
	}
	mustSetInterfaces(t, tables, mapstest.WAN("wan0", 2))
	if counters, err := tables.Counters(); err != nil || len(counters) != 31 {
		t.Errorf("%d counters, %v: they went without need", len(counters), err)
	}
	mapstest.PutCounter(t, tables.objs, 31, bpf.HairpinVerdictVERDICT_DROP, bpf.HairpinReasonREASON_ENDED, 5)
	mustSetInterfaces(t, tables, mapstest.WAN("wan0", 2))
	counters, err := tables.Counters()
	want := []Counter{{0, "drop", "ended", 5}, {2, "drop", "ended", 5}}
	if diff := cmp.Diff(want, counters); diff != "" || err != nil {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
}
