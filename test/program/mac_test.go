// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"hairpin/test/rig"
)

// meet has the router know its neighbours again: it forgets them all when its MAC address changes.
func meet(t *testing.T, b *bench) {
	t.Helper()
	for _, n := range []struct {
		at    rig.Port
		mac   net.HardwareAddr
		addrs []netip.Addr
	}{
		{b.WAN, rig.GatewayMAC, []netip.Addr{netip.MustParseAddr("203.0.113.254"), netip.MustParseAddr("fe80::fe")}},
		{b.LAN, rig.ServerMAC, []netip.Addr{rig.Server, target6}}, {b.LAN, rig.ClientMAC, []netip.Addr{rig.Client, client6Addr}},
		{b.LAN2, rig.OtherClientMAC, []netip.Addr{rig.OtherClient, otherClient6}},
	} {
		for _, addr := range n.addrs {
			b.Neighbour(t, n.at, addr, n.mac)
		}
	}
}

// TestMACsLikeIP: what the router's MAC addresses begin with may look like the version of an IP header.
func TestMACsLikeIP(t *testing.T) {
	for _, first := range []byte{0x40, 0x46, 0x60, 0x64} {
		t.Run(fmt.Sprintf("%#x", first), func(t *testing.T) {
			b := newBench6(t)
			for i, p := range []*rig.Port{&b.WAN, &b.LAN, &b.LAN2} {
				p.MAC = net.HardwareAddr{first, 0, 0, 20, 1, byte(i)}
				b.Router.SetHardwareAddr([]string{"wan0", "lan0", "lan1"}[i], p.MAC)
			}
			b.watch6(t)
			meet(t, b)
			for _, way := range ways6Names {
				for _, udp := range []bool{false, true} {
					playTwin(t, b, func(_ *testing.T, c twinCase) []step { return c.lifeOf(c.flow(way, udp)) })
				}
			}
		})
	}
}
