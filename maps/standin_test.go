// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps/layout"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
	"hairpin/maps/slots"
)

// TestStandInsInTheKernel looks up stand-ins in the live slot, before and after a swap.
func TestStandInsInTheKernel(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	c := mapstest.WithStandIns(t, "a tcp 80 to 10.0.0.1:8080 reflect prefix")
	for round := range 3 {
		c.StandIns = mapstest.StandIns(fmt.Sprintf("192.168.1.0/24 198.18.%d.0/24", round))
		mustApply(t, tables, c)
		generation, err := tables.generation()
		if err != nil {
			t.Fatal(err)
		}
		var value bpf.HairpinStandIn
		client := bpf.HairpinPrefixKey{PrefixLength: 128, Address: layout.ToAddr(netip.MustParseAddr("192.168.1.50"))}
		if err := mapstest.Slot(t, tables.objs.StandIns, generation&1).Lookup(client, &value); err != nil {
			t.Fatal(err)
		}
		want := bpf.HairpinStandIn{
			Network: layout.ToAddr(netip.AddrFrom4([4]byte{198, 18, byte(round), 0})),
			Mask:    layout.MappedMask(netip.MustParsePrefix("0.0.0.0/24")), Client: 1,
		}
		if value != want {
			t.Errorf("round %d: %+v, want %+v", round, value, want)
		}
		key := layout.OriginKey(netip.MustParseAddr("10.0.0.1"), uint8(rule.TCP), 0, 8080, 16)
		var origin bpf.HairpinOrigin
		if err := mapstest.Slot(t, tables.objs.Origins, generation&1).Lookup(key, &origin); err != nil || origin.PortShift != 8000 || origin.External == 0 {
			t.Errorf("round %d: origin %+v, %v", round, origin, err)
		}
	}
	mustApply(t, tables, mapstest.Config(t))
	generation, _ := tables.generation()
	for _, outer := range []*ebpf.Map{tables.objs.StandIns, tables.objs.Origins} {
		var key, value []byte
		if mapstest.Slot(t, outer, generation&1).Iterate().Next(&key, &value) {
			t.Errorf("%s: something is left", slots.OuterName(outer))
		}
	}
}
