// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"hairpin/maps"
	"hairpin/test/lab"
)

const prefixes6 = `
[reflection]
prefixes = { "fd00:1::/64" = "fd00:9:1::/64", "fd00:2::50" = "2001:db8:99::50" }
`

// TestReflectModes6 is the twin of TestReflectModes.
func TestReflectModes6(t *testing.T) {
	nobody, addr := netip.Addr{}, netip.MustParseAddr
	internet, guest, router, external := addr(internetSource6), addr(guest6), addr(routerLAN6), addr(external6)
	tests := []struct {
		reflect                         string
		internet, client, server, guest netip.Addr // whom the server sees
	}{
		{"auto", internet, router, router, guest},
		{"router", internet, router, router, router},
		{"public", internet, external, external, external},
		{"prefix", internet, addr("fd00:9:1::50"), addr("fd00:9:1::20"), addr("2001:db8:99::50")},
		{"off", internet, nobody, nobody, nobody},
	}
	for _, mode := range []string{"tc", "xdp"} {
		n := newNetwork6(t)
		n.SetOffloads(offloadsFor(mode))
		serveTCP6(t, n.Server, "[::]:8080")
		peer := serveUDP6(t, n.Server, "[::]:8080")
		hp := start(t, n, mode, prefixes6)
		for i, tt := range tests {
			port := fmt.Sprint(80 + i)
			hp.Run("forward", "add", tt.reflect, "tcp,udp", port, "to", "["+server6+"]:8080", "reflect", tt.reflect)
			for _, c := range []struct {
				from *lab.Host
				want netip.Addr
			}{{n.Internet, tt.internet}, {n.Client, tt.client}, {n.Server, tt.server}, {n.Guest, tt.guest}} {
				t.Run(fmt.Sprintf("%s, %s, %s", mode, tt.reflect, c.from.Name), func(t *testing.T) {
					from := c.from.For(t)
					if got := seenTCP6(t, from, port, c.want.IsValid()); got != c.want {
						t.Errorf("over TCP the server sees %v, want %v", got, c.want)
					}
					if !answersUDP6(t, from, port, c.want.IsValid()) {
						return
					}
					if got := peer().Addr(); got != c.want {
						t.Errorf("over UDP the server sees %v, want %v", got, c.want)
					}
				})
			}
		}
	}
}

func seenTCP6(t *testing.T, from *lab.Host, port string, served bool) netip.Addr {
	t.Helper()
	c, err := dialTCP6(from, "["+external6+"]:"+port, "", patience(served))
	if err != nil {
		if served {
			t.Errorf("connect: %v", err)
		}
		return netip.Addr{}
	}
	defer c.Close()
	return c.sees.Addr()
}

func answersUDP6(t *testing.T, from *lab.Host, port string, served bool) bool {
	t.Helper()
	c, err := dialUDP6(from, "["+external6+"]:"+port, "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience(served)))
	if _, err := c.Write([]byte("anybody there?")); err != nil {
		t.Fatal(err)
	}
	_, err = c.Read(make([]byte, 100))
	if answered := err == nil; answered != served {
		t.Errorf("over UDP: %v", err)
	}
	return err == nil
}

// newReflectBench6 is newReflectBench for IPv6.
func newReflectBench6(tb testing.TB) *bench {
	tb.Helper()
	b := newBench6(tb)
	b.config.ICMP.Refuse = []string{}
	b.config.StandIns = []maps.StandIn{
		{Clients: netip.MustParsePrefix("fd00:1::/64"), Network: netip.MustParsePrefix("fd00:9:1::/64")},
		{Clients: netip.MustParsePrefix("fd00:2::/64"), Network: netip.MustParsePrefix("2001:db8:98::/64")},
	}
	for _, words := range []string{
		"stand-ins tcp,udp [2001:db8:1::9]:444 to [fd00:1::20]:8444 reflect prefix",
		"echoes icmp [2001:db8:1::10]:any to fd00:1::22 reflect prefix",
		"every tcp 445 to [fd00:1::20]:8445 reflect prefix",
		"mapped tcp,udp 446 to [fd00:1::20]:8446 reflect public",
	} {
		b.config.Forwards = append(b.config.Forwards, mustForward(tb, words))
	}
	b.apply(tb)
	b.watch6(tb)
	return b
}

var standInOf6 = map[string]netip.Addr{
	"hairpin": netip.MustParseAddr("fd00:9:1::50"), "server to itself": netip.MustParseAddr("fd00:9:1::20"),
	"from another LAN": netip.MustParseAddr("2001:db8:98::60"),
}

// reflected is a new flow of a client that its server sees by its stand-in.
func (c case6) reflected(way string, udp bool, external, target string) flow6 {
	f := c.flow(way, udp)
	f.external, f.target, f.source = mustAddrPort(external), mustAddrPort(target), f.client
	if addr, reflects := standInOf6[way]; reflects {
		f.source = netip.AddrPortFrom(addr, f.client.Port())
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
					f.source = netip.AddrPortFrom(wanAddress6, f.client.Port())
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
			steps = append(steps, c.back(f, also(tcp(flags, serverISN+1, clientISN+1))).dropped("non_syn").deferred("next_hop"),
				c.in(f, also(tcp(flags, clientISN+1, serverISN+1))).dropped("non_syn"))
		}
		return steps
	}}, row6{"not rebuilt: a forward of many addresses", func(c case6) []step {
		f := c.reflected("hairpin", false, "[2001:db8:1::1]:445", "[fd00:1::20]:8445")
		return []step{c.back(f, answerer6).dropped("no_connection").deferred("next_hop")}
	}}, row6{"a stand-in seen from the Internet is nobody", func(c case6) []step {
		in, _ := c.standIn("hairpin", false).back(answerer6)
		in.from, in.to, in.src = gatewayMAC, wanMAC, netip.AddrPortFrom(internetHost6, 8444)
		return []step{pass(c.b.wan, in.bytes())}
	}}, row6{"a stand-in as the source is forged", func(c case6) []step {
		f := c.standIn("hairpin", false)
		f.client = f.source
		return []step{c.in(f, opener6).refused("spoofed")}
	}})
}
