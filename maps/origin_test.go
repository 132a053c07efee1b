// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hairpin/bpf"
	"hairpin/maps/layout"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

// wantListeners compares map listeners with lines "PLACE ADDRESS", sorted.
func (t *Tables) wantListeners(tb testing.TB, want ...string) {
	tb.Helper()
	doc, _, err := t.running()
	if err != nil {
		tb.Fatal(err)
	}
	present, err := readAll[uint32, bpf.HairpinAddr](t.objs.Listeners)
	if err != nil {
		tb.Fatal(err)
	}
	var got []string
	for at, id := range doc.Externals {
		if addr, there := present[id]; there {
			text, _ := at.MarshalText()
			got = append(got, fmt.Sprintf("%s %s", text, layout.FromAddr(addr)))
		}
		delete(present, id)
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" || len(present) > 0 {
		tb.Errorf("listeners (-want +got), and stale %v\n%s", slices.Collect(maps.Keys(present)), diff)
	}
}

func TestListenersAreAloneAtTheirID(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	c := mapstest.WithStandIns(t, "a tcp 80 to 10.0.0.1 reflect prefix", "fixed tcp 203.0.113.7:82 to 10.0.0.1")
	mustApply(t, tables, c)
	for _, step := range []struct {
		addrs []string
		want  string
	}{
		{nil, "203.0.113.7 203.0.113.7"},
		{[]string{"203.0.113.1/24"}, "203.0.113.7 203.0.113.7, wan0 203.0.113.1"},
		{[]string{"203.0.113.2/24", "2001:db8::1/64"}, "203.0.113.7 203.0.113.7, wan0 203.0.113.2, wan0/ipv6 2001:db8::1"},
		{[]string{"203.0.113.2/24", "203.0.113.3/24", "2001:db8::1/64"}, "203.0.113.7 203.0.113.7, wan0/ipv6 2001:db8::1"},
		{[]string{"203.0.113.3/24", "203.0.113.7/24"}, "203.0.113.7 203.0.113.7"},
		{[]string{"203.0.113.7/24", "fe80::1/64"}, "203.0.113.7 203.0.113.7, wan0 203.0.113.7"},
		{[]string{"2001:db8::1/64", "2001:db8::2/64"}, "203.0.113.7 203.0.113.7"},
	} {
		mustSetInterfaces(t, tables.again(), mapstest.WAN("wan0", 2, step.addrs...))
		tables.wantListeners(t, strings.Split(step.want, ", ")...)
	}
	mustSetInterfaces(t, tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
	c.Forwards = c.Forwards[:1]
	mustApply(t, tables, c)
	mustSetInterfaces(t, tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
	tables.wantListeners(t, "wan0 203.0.113.1")
	c.Forwards[0].Reflect, c.StandIns = rule.ReflectAuto, nil
	mustApply(t, tables, c)
	mustSetInterfaces(t, tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
	tables.wantListeners(t, "wan0 203.0.113.1")
}
