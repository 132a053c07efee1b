// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"net/netip"
	"testing"

	"hairpin/maps/config"
	"hairpin/maps/mapstest"
)

func TestExternalAddressInfoOfBothFamilies(t *testing.T) {
	tables := newStand(t, mapstest.SmallSpec(t))
	addresses := func(list ...string) (addrs []netip.Addr) {
		for _, text := range list {
			addrs = append(addrs, netip.MustParseAddr(text))
		}
		return addrs
	}
	c := New(tables.Tables, Options{Interfaces: func() []Interface {
		return []Interface{
			{Name: "wan0", Role: config.RoleWAN, Attached: true, Addresses: addresses("203.0.113.1", "2001:db8::1", "fe80::1")},
			{Name: "lan0", Role: config.RoleLAN, Attached: true, Addresses: addresses("192.168.1.1", "fd00::1")},
		}
	}})
	wantSamples(t, samples(t, c, "hairpin_external_address"),
		`hairpin_external_address_info{address="2001:db8::1",interface="wan0"} 1`,
		`hairpin_external_address_info{address="203.0.113.1",interface="wan0"} 1`)
}
