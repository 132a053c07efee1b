// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"net/netip"
	"testing"

	"hairpin/maps/layout"
	"hairpin/maps/mapstest"
)

// standIn looks up an address as stand_in_swap() of the datapath does; "": the address is not a client or a stand-in.
func (p *Program) standIn(addr string, client bool) string {
	at := layout.ToAddr(netip.MustParseAddr(addr))
	for i, key := range p.StandInKeys {
		if uint32(1) == p.StandIns[i].Client != client || !netip.PrefixFrom(netip.AddrFrom16(key.Address.Bytes), int(key.PrefixLength)).Contains(netip.AddrFrom16(at.Bytes)) {
			continue
		}
		for b := range at.Bytes {
			at.Bytes[b] = at.Bytes[b]&^p.StandIns[i].Mask.Bytes[b] | p.StandIns[i].Network.Bytes[b]
		}
		return layout.FromAddr(at).String()
	}
	return ""
}

func TestStandInsHaveTheHostBitsOfTheirClients(t *testing.T) {
	c := mapstest.Config(t)
	c.StandIns = mapstest.StandIns("192.168.1.0/24 198.18.1.0/24", "10.9.8.7/32 198.18.2.9/32", "fd00:1:2:3::/64 fd00:9::/64", "172.16.0.0/12 100.64.0.0/12")
	p := mustCompile(t, c, &Document{}, testInventory())
	for client, want := range map[string]string{
		"192.168.1.50":        "198.18.1.50",
		"192.168.1.255":       "198.18.1.255",
		"192.168.2.50":        "",
		"198.18.1.50":         "",
		"10.9.8.7":            "198.18.2.9",
		"10.9.8.6":            "",
		"fd00:1:2:3:4:5:6:7":  "fd00:9::4:5:6:7",
		"fd00:1:2:4:4:5:6:7":  "",
		"172.31.254.3":        "100.79.254.3",
		"::ffff:192.168.1.50": "198.18.1.50", // the datapath's form of an IPv4 address
	} {
		if got := p.standIn(client, true); got != want {
			t.Errorf("%s has the stand-in %q, want %q", client, got, want)
		}
		if want == "" {
			continue
		}
		if back := p.standIn(want, false); back != netip.MustParseAddr(client).Unmap().String() {
			t.Errorf("%s stands in for %q, want %s", want, back, client)
		}
	}
}
