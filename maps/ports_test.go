// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"testing"

	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

// TestPortsOfForwards: map maybe_ports has the ports of the running forwards and no others, however the forwards came and went.
func TestPortsOfForwards(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	want := func(when string, tcp, udp []uint16) {
		t.Helper()
		for protocol, ports := range map[rule.Protocol][]uint16{rule.TCP: tcp, rule.UDP: udp} {
			has := make(map[uint16]bool)
			for _, port := range ports {
				has[port] = true
			}
			for port := range 1 << 16 {
				if got := mapstest.MayForward(t, tables.objs, protocol, uint16(port)); got != has[uint16(port)] {
					t.Errorf("%s: port %d of %s: %v", when, port, protocol, got)
				}
			}
		}
	}
	want("before any forward", nil, nil)
	mustApply(t, tables, mapstest.Config(t, "a tcp 63-65 to 10.0.0.1", "b udp 65535 to 10.0.0.1", "c tcp,udp 203.0.113.9:1 to 10.0.0.1:80", "d sctp 7 to 10.0.0.1"))
	want("applied", []uint16{1, 63, 64, 65}, []uint16{1, 65535})
	mustAdd(t, tables, "e udp 2 to 10.0.0.2")
	want("added", []uint16{1, 63, 64, 65}, []uint16{1, 2, 65535})
	mustApply(t, tables, mapstest.Config(t, "a tcp 64 to 10.0.0.1", "e udp 2 to 10.0.0.2"))
	want("applied again", []uint16{64}, []uint16{2})
	mustApply(t, tables, mapstest.Config(t, "a tcp 100-300 to 10.0.0.1"))
	var wide []uint16
	for port := uint16(100); port <= 300; port++ {
		wide = append(wide, port)
	}
	want("a range", wide, nil)
	mustApply(t, tables, mapstest.Config(t, "a any 203.0.113.9:any to 10.0.0.1"))
	for _, port := range []uint16{0, 1, 65535} {
		if !mapstest.MayForward(t, tables.objs, rule.TCP, port) || !mapstest.MayForward(t, tables.objs, rule.UDP, port) {
			t.Errorf("1:1: no forward has port %d", port)
		}
	}
	mustApply(t, tables, mapstest.Config(t))
	want("without forwards", nil, nil)
}
