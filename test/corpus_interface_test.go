// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"hairpin/maps"
)

// interfaceTwins are row 201: a connection's packets count only by the interfaces that the connection uses.
func interfaceTwins() (twins []twin) {
	for _, way := range ways6Names {
		for _, udp := range []bool{false, true} {
			twins = append(twins, twin{fmt.Sprintf("row 201: every packet by each other interface, %s, udp=%v", way, udp), func(c twinCase) []step {
				return c.replayed(c.lifeOf(c.flow(way, udp)))
			}})
		}
		twins = append(twins, twin{"row 201: a forged acknowledgement makes no RST exact, " + way, func(c twinCase) []step {
			f := c.flow(way, false)
			steps := c.opened(f)
			for _, forged := range c.elsewhere(c.back(f, tcp("A", serverISN+1, clientISN+5000))) {
				steps = append(steps, forged.untranslated())
			}
			for _, forged := range c.elsewhere(c.in(f, tcp("A", clientISN+1, serverISN+5000))) {
				steps = append(steps, forged.untranslated())
			}
			return append(steps,
				c.in(f, tcp("R", clientISN+5000, 0)).is("established"), c.back(f, tcp("R", serverISN+5000, 0)).is("established"),
				c.in(f, middle, payload("lives")).is("established"), c.back(f, tcp("A", serverISN+1, clientISN+6)).is("established"),
			)
		}}, twin{"row 201: a handshake finished by another interface, " + way, func(c twinCase) []step {
			f := c.flow(way, false)
			steps := []step{c.in(f, tcp("S", clientISN, 0)).opening(), c.back(f, tcp("SA", serverISN, clientISN+1))}
			for _, forged := range c.elsewhere(c.in(f, tcp("A", clientISN+1, serverISN+1))) {
				steps = append(steps, forged.untranslated())
			}
			return append(steps, c.in(f, tcp("S", clientISN, 0)).is("half-open"), c.in(f, tcp("A", clientISN+1, serverISN+1)).is("established"))
		}}, twin{"row 201: a reset by another interface, " + way, func(c twinCase) []step {
			f := c.flow(way, false)
			steps := c.opened(f)
			for _, exact := range []step{c.in(f, tcp("R", clientISN+1, 0)), c.back(f, tcp("RA", serverISN+1, clientISN+1))} {
				for _, forged := range c.elsewhere(exact) {
					steps = append(steps, forged.untranslated())
				}
			}
			return append(steps, c.in(f, middle, payload("lives")).is("established"))
		}})
	}
	return twins
}

// lifeOf is a connection from its first packet to its end.
func (c twinCase) lifeOf(f twinFlow) []step {
	if f.udp {
		return append(c.opened(f), c.in(f, payload("question")), c.back(f, payload("answer")))
	}
	return append(c.opened(f),
		c.in(f, tcp("PA", clientISN+1, serverISN+1), payload("question")),
		c.back(f, tcp("PA", serverISN+1, clientISN+9), payload("answer")),
		c.in(f, tcp("FA", clientISN+9, serverISN+7)), c.back(f, tcp("FA", serverISN+7, clientISN+10)),
		c.in(f, tcp("A", clientISN+10, serverISN+8)).is("closing"),
	)
}

// replayed puts behind each packet the first one, itself and the next one by each other interface.
func (c twinCase) replayed(life []step) (steps []step) {
	for i, s := range life {
		steps = append(steps, s)
		replays := []step{life[0], life[i]}
		if i+1 < len(life) {
			replays = append(replays, life[i+1])
		}
		for _, replay := range replays {
			for _, forged := range c.elsewhere(replay) {
				steps = append(steps, forged.untranslated())
			}
		}
	}
	return steps
}

// The second uplink of newUplinkBench.
var (
	secondAddress  = netip.MustParseAddr("203.0.114.1")
	secondAddress6 = netip.MustParseAddr("2001:db8:2::1")
	onLinkMAC      = net.HardwareAddr{2, 0, 0, 0, 0, 0x66} // of a station that is no gateway
)

// newUplinkBench is a bench of both families whose lan1 is a second uplink. No route leads that way.
func newUplinkBench(tb testing.TB) *bench {
	tb.Helper()
	b := newWireBench6(tb)
	b.router.Address("lan1", secondAddress.String()+"/24")
	address6(b.router, "lan1", secondAddress6.String()+"/64")
	prefixes := func(list string) (all []netip.Prefix) {
		for _, text := range strings.Fields(list) {
			all = append(all, netip.MustParsePrefix(text))
		}
		return all
	}
	interfaces := []maps.Interface{
		{Name: "wan0", Index: b.wan.index, Role: maps.RoleWAN, HardwareAddr: b.wan.mac, XDPTransmit: true, RPFilter: 1,
			Addresses: prefixes("203.0.113.1/24 2001:db8:1::1/64 2001:db8:1::9/128 2001:db8:1::10/128")},
		{Name: "lan0", Index: b.lan.index, Role: maps.RoleLAN, HardwareAddr: b.lan.mac, XDPTransmit: true, RPFilter: 1,
			Addresses: prefixes("192.168.1.1/24 fd00:1::1/64")},
		{Name: "lan1", Index: b.lan2.index, Role: maps.RoleWAN, HardwareAddr: b.lan2.mac, XDPTransmit: true, RPFilter: 1,
			Addresses: prefixes("203.0.114.1/24 2001:db8:2::1/64")},
	}
	b.config.WAN, b.config.LAN = []string{"wan0", "lan1"}, []string{"lan0"}
	b.apply(tb)
	must(b.router.Do(func() error { return b.tables.SetInterfaces(interfaces) }))
	return b
}

// playTwin plays steps in each family by each hook.
func playTwin(t *testing.T, b *bench, steps func(t *testing.T, c twinCase) []step) {
	t.Helper()
	for _, h := range hooks {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, IPv6=%v", h.name, v6), func(t *testing.T) {
				c := twinCase{newCase(t, b), v6}
				for i, s := range steps(t, c) {
					if !c.play(t, h, s) {
						t.Fatalf("that was packet %d: %x", i+1, s.in)
					}
				}
			})
		}
	}
}

// TestOtherUplink is row 201: the Internet's connections are taken from any WAN interface, and from no LAN.
func TestOtherUplink(t *testing.T) {
	b := newUplinkBench(t)
	for _, udp := range []bool{false, true} {
		playTwin(t, b, func(_ *testing.T, c twinCase) []step {
			f := c.flow("from the Internet", udp)
			moved := c.in(f, middle, payload("by the other uplink")).by(b.lan2, gatewayMAC)
			return append(c.opened(f), moved, c.back(f, answerer), c.in(f, middle, payload("by the first one")),
				moved.by(b.lan, clientMAC).untranslated(), moved)
		})
	}
}

// TestOtherLAN is row 201: a packet is taken from another LAN interface only if the way back to its source leads
// there. Here two addresses move from one to the other.
func TestOtherLAN(t *testing.T) {
	b := newBench6(t)
	b.neighbour(t, b.lan, otherClient, otherClientMAC)
	b.neighbour(t, b.lan, otherClient6, otherClientMAC)
	move := func(how string) {
		b.router.Run("ip", "route", how, otherClient.String()+"/32", "dev", "lan0")
		b.router.Run("ip", "-6", "route", how, otherClient6.String()+"/128", "dev", "lan0")
		must(b.tables.BumpRoutes())
	}
	for _, udp := range []bool{false, true} {
		playTwin(t, b, func(t *testing.T, c twinCase) []step {
			f := c.flow("from another LAN", udp)
			steps := c.opened(f)
			stays, moved := c.in(f, middle, payload("as before")), c.in(f, middle, payload("as before")).by(b.lan, otherClientMAC)
			steps = append(steps, stays, moved.untranslated(), stays)
			moves := false
			moved.before = func() {
				if !moves {
					moves = true
					move("add")
					t.Cleanup(func() { move("del") })
				}
			}
			return append(steps, moved, moved, stays.untranslated(), moved)
		})
	}
}
