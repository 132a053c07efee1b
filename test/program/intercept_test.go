// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"
	"net/netip"
	"testing"

	"hairpin/maps/rule"
	"hairpin/test/frames"
	"hairpin/test/rig"
)

// newInterceptBench is a bench whose lan0 is intercepted, for both families, which refuses in silence.
func newInterceptBench(tb testing.TB) *bench {
	tb.Helper()
	b := newBench6(tb)
	b.Config.ICMP.Refuse = []string{}
	b.Config.Forwards = append(b.Config.Forwards,
		rule.Forward{
			Intercept: true, Name: "low", Protocols: []rule.Protocol{rule.TCP, rule.UDP}, Ports: rule.Ports{First: 50, Last: 500},
			Target: rig.Server, TargetPort: 5050, LAN: []string{"lan0"},
			Except: []netip.Prefix{netip.MustParsePrefix("192.168.1.96/27"), netip.MustParsePrefix("198.51.100.0/24")},
		},
		rule.Forward{
			Intercept: true, Name: "high", Protocols: []rule.Protocol{rule.UDP}, Ports: rule.Ports{First: 600, Last: 600}, Target: rig.Server, LAN: []string{"lan0"},
		},
		rule.Forward{
			Intercept: true, Name: "low6", Protocols: []rule.Protocol{rule.TCP, rule.UDP}, Ports: rule.Ports{First: 53, Last: 53},
			Target: target6, TargetPort: 5053, LAN: []string{"lan0"}, Except: []netip.Prefix{netip.MustParsePrefix("2001:db8:99::/48")},
		},
		rig.MustForward(tb, "served udp 500 to 192.168.1.20:5000"),
	)
	b.Apply(tb)
	b.watch6(tb)
	return b
}

// asks is a new flow of a client to a server, which the target of that port's intercept would answer.
func (c *corpus) asks(way string, udp bool, server string) rig.Flow {
	f := c.to(way, udp, server, "192.168.1.20:1")
	f.Target = netip.AddrPortFrom(f.Target.Addr(), f.External.Port()+5000)
	return f
}

// TestInterceptCorpus puts every case through TC alone and through XDP, which may leave a packet to TC.
func TestInterceptCorpus(t *testing.T) {
	b := newInterceptBench(t)
	for _, h := range hooks {
		for _, r := range append(interceptRows(), interceptRows6()...) {
			t.Run(h.name+"/"+r.name, func(t *testing.T) {
				c := newCase(t, b)
				for i, s := range r.steps(c) {
					if !c.play(t, h, s) {
						t.Fatalf("that was packet %d of %q: %x", i+1, r.name, s.in)
					}
				}
			})
		}
	}
}

func interceptRows() (rows []row) {
	for _, udp := range []bool{false, true} {
		for _, asked := range []string{"8.8.8.8:53", "192.168.2.60:50", "192.168.1.1:499", "203.0.113.1:53"} {
			rows = append(rows, row{fmt.Sprintf("%s is answered, udp=%v", asked, udp), func(c *corpus) []step {
				f := c.asks("hairpin", udp, asked)
				return append(c.opened(f), c.in(f, frames.TCP("PA", rig.ClientISN+1, rig.ServerISN+1), frames.Payload("question")), c.back(f, frames.TCP("PA", rig.ServerISN+1, rig.ClientISN+1), frames.Payload("answer")))
			}})
		}
		rows = append(rows, untouchedRows(udp)...)
	}
	for _, flags := range []string{"A", "PA", "SA", "R", "RA", "FA"} {
		rows = append(rows, row{"not in the middle of a connection: " + flags, func(c *corpus) []step {
			in, _ := c.asks("hairpin", false, "8.8.8.8:53").In(frames.TCP(flags, rig.ClientISN+1, rig.ServerISN+1))
			return []step{pass(c.b.LAN, in.Bytes())}
		}})
	}
	return append(rows,
		row{"of UDP alone", func(c *corpus) []step {
			in, _ := c.asks("hairpin", false, "8.8.8.8:600").In(frames.TCP("S", rig.ClientISN, 0))
			f := c.asks("hairpin", true, "8.8.8.8:600")
			f.Target = netip.AddrPortFrom(rig.Server, 600)
			return append(c.opened(f), pass(c.b.LAN, in.Bytes()))
		}},
		row{"a forward of the address goes first", func(c *corpus) []step {
			return c.opened(c.to("hairpin", true, "203.0.113.1:500", "192.168.1.20:5000"))
		}},
		row{"a spoofed source", func(c *corpus) []step {
			f := c.asks("hairpin", true, "8.8.8.8:53")
			f.Client = netip.AddrPortFrom(rig.OtherClient, 5000)
			in, _ := f.In(frames.Payload("question"))
			return []step{pass(c.b.LAN, in.Bytes()).refused("spoofed")}
		}},
	)
}

// untouchedRows are packets that differ from intercepted packets in one property, and are not redirected.
func untouchedRows(udp bool) (rows []row) {
	for name, change := range map[string]func(*rig.Flow){
		"a lower port":        func(f *rig.Flow) { f.External = mustAddrPort("8.8.8.8:49") },
		"a higher port":       func(f *rig.Flow) { f.External = mustAddrPort("8.8.8.8:601") },
		"a port in between":   func(f *rig.Flow) { f.External = mustAddrPort("8.8.8.8:501") },
		"an excepted client":  func(f *rig.Flow) { f.Client = mustAddrPort("192.168.1.97:5000") },
		"an excepted server":  func(f *rig.Flow) { f.External = mustAddrPort("198.51.100.7:53") },
		"the target asks":     func(f *rig.Flow) { f.Client = netip.AddrPortFrom(rig.Server, 5000) },
		"the target is asked": func(f *rig.Flow) { f.External = netip.AddrPortFrom(rig.Server, 53) },
		"a link-local client": func(f *rig.Flow) { f.Client = mustAddrPort("169.254.1.1:5000") },
		"nobody yet":          func(f *rig.Flow) { f.Client = mustAddrPort("0.0.0.0:68") },
		"a multicast group":   func(f *rig.Flow) { f.External = mustAddrPort("224.0.0.251:53") },
		"another LAN": func(f *rig.Flow) {
			f.At, f.MAC, f.Client = f.Rig.LAN2, rig.OtherClientMAC, netip.AddrPortFrom(rig.OtherClient, 5000)
		},
		"the Internet": func(f *rig.Flow) {
			f.At, f.MAC, f.Client = f.Rig.WAN, rig.GatewayMAC, netip.AddrPortFrom(rig.InternetHost, 5000)
		},
		"the answer of a server": func(f *rig.Flow) {
			f.Client, f.External = mustAddrPort("192.168.1.50:53"), mustAddrPort("8.8.8.8:5000")
		},
	} {
		rows = append(rows, row{fmt.Sprintf("untouched, udp=%v: %s", udp, name), func(c *corpus) []step {
			f := c.asks("hairpin", udp, "8.8.8.8:53")
			change(&f)
			in, _ := f.In(frames.TCP("S", rig.ClientISN, 0), frames.Payload(""))
			return []step{pass(f.At, in.Bytes())}
		}})
	}
	return rows
}

func interceptRows6() (rows []row) {
	asks := func(c case6, way string, udp bool, asked string) flow6 {
		f := c.flow(way, udp)
		f.External, f.Target = mustAddrPort(asked), netip.AddrPortFrom(target6, 5053)
		return f
	}
	for _, udp := range []bool{false, true} {
		for _, asked := range []string{"[2001:db8:53::8]:53", "[2001:db8:1::1]:53", "[fd00:2::60]:53"} {
			rows = append(rows, row{fmt.Sprintf("%s is answered, udp=%v", asked, udp), func(c *corpus) []step {
				f := asks(case6{c}, "hairpin", udp, asked)
				return append(case6{c}.opened(f), case6{c}.in(f, middle6, data6("question")), case6{c}.back(f, answerer6))
			}})
		}
		for name, change := range map[string]func(*flow6){
			"another port":        func(f *flow6) { f.External = mustAddrPort("[2001:db8:53::8]:54") },
			"an excepted server":  func(f *flow6) { f.External = mustAddrPort("[2001:db8:99::8]:53") },
			"the target asks":     func(f *flow6) { f.Client = netip.AddrPortFrom(target6, 5000) },
			"the target is asked": func(f *flow6) { f.External = netip.AddrPortFrom(target6, 53) },
			"a link-local server": func(f *flow6) { f.External = mustAddrPort("[fe80::1]:53") },
			"a link-local client": func(f *flow6) { f.Client = mustAddrPort("[fe80::50]:5000") },
			"a multicast group":   func(f *flow6) { f.External = mustAddrPort("[ff02::fb]:53") },
		} {
			rows = append(rows, row{fmt.Sprintf("untouched IPv6, udp=%v: %s", udp, name), func(c *corpus) []step {
				f := asks(case6{c}, "hairpin", udp, "[2001:db8:53::8]:53")
				change(&f)
				in, _ := f.In(also(frames.TCP("S", rig.ClientISN, 0)))
				return []step{pass(f.At, in.Bytes())}
			}})
		}
	}
	return rows
}

// TestRemovedInterceptLetsItsClientsGo: whatever they used, and its target's late answers do not reach them.
func TestRemovedInterceptLetsItsClientsGo(t *testing.T) {
	b := newInterceptBench(t)
	for _, h := range hooks {
		c := newCase(t, b)
		f := c.asks("hairpin", true, "8.8.8.8:53")
		for _, s := range c.opened(f) {
			c.play(t, h, s)
		}
		with := b.Config.Forwards
		b.Config.Forwards = b.Config.Forwards[:len(with)-4]
		b.Apply(t)
		in, _ := f.In(frames.Payload("question"))
		if !c.play(t, h, pass(b.LAN, in.Bytes())) {
			t.Errorf("%s: the client is kept from whom it asks", h.name)
		}
		answer, _ := f.Back(frames.Payload("late answer"))
		if !c.play(t, h, pass(b.LAN, answer.Bytes()).dropped("ended")) {
			t.Errorf("%s: the target's late answer goes on", h.name)
		}
		b.Config.Forwards = with
		b.Apply(t)
		b.watch6(t)
		again, want := f.In(frames.Payload("question"))
		if !c.play(t, h, send(b.LAN, again, want).mayOpen()) {
			t.Errorf("%s: it is not intercepted again", h.name)
		}
	}
}
