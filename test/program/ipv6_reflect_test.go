// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"hairpin/maps/rule"
	"hairpin/test/frames"
	"hairpin/test/rig"
)

// newReflectBench6 is newReflectBench for IPv6.
func newReflectBench6(tb testing.TB) *bench {
	tb.Helper()
	b := newBench6(tb)
	b.Config.ICMP.Refuse = []string{}
	b.Config.StandIns = []rule.StandIn{
		{Clients: netip.MustParsePrefix("fd00:1::/64"), Network: netip.MustParsePrefix("fd00:9:1::/64")},
		{Clients: netip.MustParsePrefix("fd00:2::/64"), Network: netip.MustParsePrefix("2001:db8:98::/64")},
	}
	for _, words := range []string{
		"stand-ins tcp,udp [2001:db8:1::9]:444 to [fd00:1::20]:8444 reflect prefix",
		"echoes icmp [2001:db8:1::10]:any to fd00:1::22 reflect prefix",
		"every tcp 445 to [fd00:1::20]:8445 reflect prefix",
		"mapped tcp,udp 446 to [fd00:1::20]:8446 reflect public",
	} {
		b.Config.Forwards = append(b.Config.Forwards, rig.MustForward(tb, words))
	}
	b.Apply(tb)
	b.watch6(tb)
	return b
}

var standInOf6 = map[string]netip.Addr{
	"hairpin": netip.MustParseAddr("fd00:9:1::50"), "server to itself": netip.MustParseAddr("fd00:9:1::20"),
	"from another LAN": netip.MustParseAddr("2001:db8:98::60"),
}

// reflected returns a new flow whose client the server sees by its stand-in.
func (c case6) reflected(way string, udp bool, external, target string) flow6 {
	f := c.flow(way, udp)
	f.External, f.Target, f.Source = mustAddrPort(external), mustAddrPort(target), f.Client
	if addr, reflects := standInOf6[way]; reflects {
		f.Source = netip.AddrPortFrom(addr, f.Client.Port())
	}
	return f
}

func (c case6) standIn(way string, udp bool) flow6 {
	return c.reflected(way, udp, "[2001:db8:1::9]:444", "[fd00:1::20]:8444")
}

// TestReflectCorpus6 puts every case through TC alone and through XDP, which may leave a packet to TC.
func TestReflectCorpus6(t *testing.T) {
	b := newReflectBench6(t)
	for _, h := range hooks {
		for _, r := range slices.Concat(standInRows6(), rebuiltRows6(), forgedStandInRows6()) {
			t.Run(h.name+"/"+r.name, func(t *testing.T) {
				c := case6{newCase(t, b)}
				for i, s := range r.steps(c) {
					if !c.play(t, h, s) {
						t.Fatalf("that was packet %d of %q: %x", i+1, r.name, s.in)
					}
				}
			})
		}
	}
}

func standInRows6() (rows []row6) {
	for _, way := range ways6Names {
		for _, udp := range []bool{false, true} {
			rows = append(rows, row6{fmt.Sprintf("prefix: %s, udp=%v", way, udp), func(c case6) []step {
				f := c.standIn(way, udp)
				return append(c.opened(f), c.in(f, middle6, data6("question")), c.back(f, answerer6))
			}}, row6{fmt.Sprintf("public: %s, udp=%v", way, udp), func(c case6) []step {
				f := c.reflected(way, udp, "[2001:db8:1::1]:446", "[fd00:1::20]:8446")
				if way != "from the Internet" {
					f.Source = netip.AddrPortFrom(wanAddress6, f.Client.Port())
				}
				return append(c.opened(f), c.in(f, middle6, data6("question")), c.back(f, answerer6))
			}})
		}
		rows = append(rows, row6{"prefix: ping " + way, func(c case6) []step {
			f := c.reflected(way, false, "[2001:db8:1::10]:0", "[fd00:1::22]:0")
			return []step{c.in(f, echo6(icmp6EchoRequest, 1, "ping")).opening(), c.back(f, echo6(icmp6EchoReply, 1, "ping"))}
		}})
	}
	return rows
}

func rebuiltRows6() (rows []row6) {
	for way := range standInOf6 {
		rows = append(rows, row6{"rebuilt by its client " + way, func(c case6) []step {
			f := c.standIn(way, false)
			return []step{c.in(f, middle6).opening(), c.back(f, answerer6), c.in(f, middle6), c.back(f, answerer6)}
		}}, row6{"rebuilt by its server " + way, func(c case6) []step {
			f := c.standIn(way, false)
			return []step{c.back(f, answerer6).opening().deferred("next_hop"), c.in(f, middle6), c.back(f, answerer6)}
		}})
	}
	return append(rows, row6{"not rebuilt: RST and SYN/ACK", func(c case6) (steps []step) {
		f := c.standIn("hairpin", false)
		for _, flags := range []string{"R", "SA"} {
			steps = append(steps, c.back(f, also(frames.TCP(flags, rig.ServerISN+1, rig.ClientISN+1))).dropped("non_syn").deferred("next_hop"),
				c.in(f, also(frames.TCP(flags, rig.ClientISN+1, rig.ServerISN+1))).dropped("non_syn"))
		}
		return steps
	}}, row6{"not rebuilt: a forward of many addresses", func(c case6) []step {
		f := c.reflected("hairpin", false, "[2001:db8:1::1]:445", "[fd00:1::20]:8445")
		return []step{c.back(f, answerer6).dropped("no_connection").deferred("next_hop")}
	}}, row6{"a stand-in seen from the Internet is nobody", func(c case6) []step {
		in, _ := c.standIn("hairpin", false).Back(answerer6)
		in.From, in.To, in.Src = rig.GatewayMAC, rig.WANMAC, netip.AddrPortFrom(internetHost6, 8444)
		return []step{pass(c.b.WAN, in.Bytes())}
	}}, row6{"a stand-in as the source is forged", func(c case6) []step {
		f := c.standIn("hairpin", false)
		f.Client = f.Source
		return []step{c.in(f, opener6).refused("spoofed")}
	}})
}
