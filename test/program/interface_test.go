// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"hairpin/maps/config"
	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
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
			for _, forged := range c.elsewhere(c.back(f, frames.TCP("A", rig.ServerISN+1, rig.ClientISN+5000))) {
				steps = append(steps, forged.untranslated())
			}
			for _, forged := range c.elsewhere(c.in(f, frames.TCP("A", rig.ClientISN+1, rig.ServerISN+5000))) {
				steps = append(steps, forged.untranslated())
			}
			return append(steps,
				c.in(f, frames.TCP("R", rig.ClientISN+5000, 0)).is("established"), c.back(f, frames.TCP("R", rig.ServerISN+5000, 0)).is("established"),
				c.in(f, middle, frames.Payload("lives")).is("established"), c.back(f, frames.TCP("A", rig.ServerISN+1, rig.ClientISN+6)).is("established"),
			)
		}}, twin{"row 201: a handshake finished by another interface, " + way, func(c twinCase) []step {
			f := c.flow(way, false)
			steps := []step{c.in(f, frames.TCP("S", rig.ClientISN, 0)).opening(), c.back(f, frames.TCP("SA", rig.ServerISN, rig.ClientISN+1))}
			for _, forged := range c.elsewhere(c.in(f, frames.TCP("A", rig.ClientISN+1, rig.ServerISN+1))) {
				steps = append(steps, forged.untranslated())
			}
			return append(steps, c.in(f, frames.TCP("S", rig.ClientISN, 0)).is("half-open"), c.in(f, frames.TCP("A", rig.ClientISN+1, rig.ServerISN+1)).is("established"))
		}}, twin{"row 201: a reset by another interface, " + way, func(c twinCase) []step {
			f := c.flow(way, false)
			steps := c.opened(f)
			for _, exact := range []step{c.in(f, frames.TCP("R", rig.ClientISN+1, 0)), c.back(f, frames.TCP("RA", rig.ServerISN+1, rig.ClientISN+1))} {
				for _, forged := range c.elsewhere(exact) {
					steps = append(steps, forged.untranslated())
				}
			}
			return append(steps, c.in(f, middle, frames.Payload("lives")).is("established"))
		}})
	}
	return twins
}

// lifeOf is a connection from its first packet to its end.
func (c twinCase) lifeOf(f twinFlow) []step {
	if f.UDP {
		return append(c.opened(f), c.in(f, frames.Payload("question")), c.back(f, frames.Payload("answer")))
	}
	return append(c.opened(f),
		c.in(f, frames.TCP("PA", rig.ClientISN+1, rig.ServerISN+1), frames.Payload("question")),
		c.back(f, frames.TCP("PA", rig.ServerISN+1, rig.ClientISN+9), frames.Payload("answer")),
		c.in(f, frames.TCP("FA", rig.ClientISN+9, rig.ServerISN+7)), c.back(f, frames.TCP("FA", rig.ServerISN+7, rig.ClientISN+10)),
		c.in(f, frames.TCP("A", rig.ClientISN+10, rig.ServerISN+8)).is("closing"),
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
	b.Router.Address("lan1", secondAddress.String()+"/24")
	b.Router.Address6("lan1", secondAddress6.String()+"/64")
	prefixes := func(list string) (all []netip.Prefix) {
		for _, text := range strings.Fields(list) {
			all = append(all, netip.MustParsePrefix(text))
		}
		return all
	}
	interfaces := []config.Interface{
		{Name: "wan0", Index: b.WAN.Index, Role: config.RoleWAN, HardwareAddr: b.WAN.MAC, XDPTransmit: true, RPFilter: 1,
			Addresses: prefixes("203.0.113.1/24 2001:db8:1::1/64 2001:db8:1::9/128 2001:db8:1::10/128")},
		{Name: "lan0", Index: b.LAN.Index, Role: config.RoleLAN, HardwareAddr: b.LAN.MAC, XDPTransmit: true, RPFilter: 1,
			Addresses: prefixes("192.168.1.1/24 fd00:1::1/64")},
		{Name: "lan1", Index: b.LAN2.Index, Role: config.RoleWAN, HardwareAddr: b.LAN2.MAC, XDPTransmit: true, RPFilter: 1,
			Addresses: prefixes("203.0.114.1/24 2001:db8:2::1/64")},
	}
	b.Config.WAN, b.Config.LAN = []string{"wan0", "lan1"}, []string{"lan0"}
	b.Apply(tb)
	lab.Must(b.Router.Do(func() error { return b.Tables.SetInterfaces(interfaces) }))
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
			moved := c.in(f, middle, frames.Payload("by the other uplink")).by(b.LAN2, rig.GatewayMAC)
			return append(c.opened(f), moved, c.back(f, answerer), c.in(f, middle, frames.Payload("by the first one")),
				moved.by(b.LAN, rig.ClientMAC).untranslated(), moved)
		})
	}
}

// TestOtherLAN is row 201: a packet of a connection may come by another LAN interface only if the route to its source uses this interface.
// Here two addresses move from one LAN interface to another.
func TestOtherLAN(t *testing.T) {
	b := newBench6(t)
	b.Neighbour(t, b.LAN, rig.OtherClient, rig.OtherClientMAC)
	b.Neighbour(t, b.LAN, otherClient6, rig.OtherClientMAC)
	move := func(how string) {
		b.Router.Run("ip", "route", how, rig.OtherClient.String()+"/32", "dev", "lan0")
		b.Router.Run("ip", "-6", "route", how, otherClient6.String()+"/128", "dev", "lan0")
		lab.Must(b.Tables.BumpRoutes())
	}
	for _, udp := range []bool{false, true} {
		playTwin(t, b, func(t *testing.T, c twinCase) []step {
			f := c.flow("from another LAN", udp)
			steps := c.opened(f)
			stays, moved := c.in(f, middle, frames.Payload("as before")), c.in(f, middle, frames.Payload("as before")).by(b.LAN, rig.OtherClientMAC)
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
