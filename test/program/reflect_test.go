// SPDX-License-Identifier: Apache-2.0

package program

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"hairpin/maps/rule"
	"hairpin/test/frames"
	"hairpin/test/rig"
)

// reflectForwards have each mode, and each way that a target can be reached by one or by several.
var reflectForwards = []string{
	"web tcp,udp 203.0.113.9:443 to 192.168.1.20:8443 reflect prefix",
	"range tcp 203.0.113.9:6000-6010 to 192.168.1.20:7000 reflect prefix",
	"basic icmp,gre 203.0.113.9:any to 192.168.1.21 reflect prefix",
	"dmz any 203.0.113.10:any to 192.168.1.22 reflect prefix",
	"friends tcp 203.0.113.9:85 to 192.168.1.20:85 from 192.168.2.0/24 reflect prefix",
	"every tcp 82 to 192.168.1.20:82 reflect prefix",
	"twice tcp 203.0.113.9:83 to 192.168.1.20:84 reflect prefix",
	"again tcp 203.0.113.9:84 to 192.168.1.20:84 reflect prefix",
	"plain tcp,udp 203.0.113.9:86 to 192.168.1.20:86",
	"public tcp,udp 443 to 192.168.1.20:8443 reflect public",
	"public2 udp 444 to 192.168.1.21:8444 reflect public",
}

var (
	stranger    = netip.MustParseAddr("192.168.1.150") // a client without stand-in
	strangerMAC = net.HardwareAddr{2, 0, 0, 0, 0, 5}

	standInOf = map[string]netip.Addr{
		"hairpin": netip.MustParseAddr("198.18.1.50"), "server to itself": netip.MustParseAddr("198.18.1.20"),
		"from another LAN": netip.MustParseAddr("198.18.2.60"),
	}
)

// newReflectBench returns a bench with stand-ins for most of its clients. It sends no ICMP errors for refusals, and has room for this many
// connections.
func newReflectBench(tb testing.TB, connections uint32) *bench {
	tb.Helper()
	// A quarter of all places are for other protocols than TCP.
	b := newBenchFor(tb, 4*connections, 2048)
	b.Neighbour(tb, b.LAN, stranger, strangerMAC)
	b.Config.ICMP.Refuse = []string{}
	b.Config.StandIns = []rule.StandIn{
		{Clients: netip.MustParsePrefix("192.168.1.0/25"), Network: netip.MustParsePrefix("198.18.1.0/25")},
		{Clients: netip.MustParsePrefix("192.168.2.0/24"), Network: netip.MustParsePrefix("198.18.2.0/24")},
	}
	for _, words := range reflectForwards {
		b.Config.Forwards = append(b.Config.Forwards, rig.MustForward(tb, words))
	}
	b.Apply(tb)
	b.Watch(tb, netip.PrefixFrom(rig.WANAddress, 24), netip.PrefixFrom(rig.BasicAddress, 32), netip.PrefixFrom(rig.DMZAddress, 32))
	return b
}

// reflected returns a new flow whose client the server sees by its stand-in.
func (c *corpus) reflected(way string, udp bool, external, target string) rig.Flow {
	f := c.to(way, udp, external, target)
	if addr, reflects := standInOf[way]; reflects {
		f.Source = netip.AddrPortFrom(addr, f.Client.Port())
	}
	return f
}

// web is a new flow to the first forward.
func (c *corpus) web(way string, udp bool) rig.Flow {
	return c.reflected(way, udp, "203.0.113.9:443", "192.168.1.20:8443")
}

func reflectRows() []row {
	return slices.Concat(standInRows(), rebuiltRows(), notRebuiltRows(), publicRows(), forgedStandInRows())
}

// TestReflectCorpus puts every case through TC alone and through XDP, which may leave a packet to TC.
func TestReflectCorpus(t *testing.T) {
	b := newReflectBench(t, 2048)
	for _, h := range hooks {
		for _, r := range reflectRows() {
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

// standInRows: the server sees a LAN client by its stand-in, with the client's own port.
func standInRows() (rows []row) {
	for _, way := range []string{"from the Internet", "hairpin", "server to itself", "from another LAN"} {
		for _, udp := range []bool{false, true} {
			rows = append(rows, row{fmt.Sprintf("prefix: %s, udp=%v", way, udp), func(c *corpus) []step {
				f := c.web(way, udp)
				return append(c.opened(f), c.in(f, middle, frames.Payload("question")), c.back(f, answerer))
			}})
		}
		rows = append(rows, row{"prefix: ping " + way, func(c *corpus) []step {
			f := c.reflected(way, false, "203.0.113.9:0", "192.168.1.21:0")
			return []step{c.in(f, echo(icmpEchoRequest, 1, "hello")).opening(), c.back(f, echo(icmpEchoReply, 1, "hello"))}
		}}, row{"prefix: errors about it " + way, func(c *corpus) []step {
			f := c.web(way, true)
			r := report{kind: icmpUnreachable, code: codePortUnreachable, packet: frames.Payload("some of the data"), limit: 36}
			return append(c.opened(f), c.errorBack(f, f.Target.Addr(), r))
		}})
	}
	return append(rows, row{"prefix: a client without stand-in is as in auto", func(c *corpus) []step {
		f := c.web("hairpin", false)
		f.Client, f.MAC = netip.AddrPortFrom(stranger, f.Client.Port()), strangerMAC
		f.Source = netip.AddrPortFrom(rig.LANAddress, f.Client.Port())
		return c.opened(f)
	}}, row{"prefix: of the same port of all clients none is changed", func(c *corpus) (steps []step) {
		for way := range standInOf {
			f := c.web(way, true)
			f.Client, f.Source = netip.AddrPortFrom(f.Client.Addr(), 40000), netip.AddrPortFrom(f.Source.Addr(), 40000)
			steps = append(steps, c.opened(f)...)
		}
		return steps
	}}, row{"prefix: beside auto and public", func(c *corpus) []step {
		f := c.to("hairpin", false, "203.0.113.9:86", "192.168.1.20:86")
		g := c.to("hairpin", false, "203.0.113.1:443", "192.168.1.20:8443")
		g.Source = netip.AddrPortFrom(rig.WANAddress, g.Client.Port())
		return append(append(c.opened(f), c.opened(g)...), c.opened(c.web("hairpin", false))...)
	}})
}

// rebuiltRows: if the state of a connection is lost, a packet of either side rebuilds the connection.
func rebuiltRows() (rows []row) {
	for way := range standInOf {
		rows = append(rows, row{"rebuilt by its client " + way, func(c *corpus) []step {
			f := c.web(way, false)
			return []step{
				c.in(f, middle, frames.Payload("question")).opening(), c.in(f, middle, frames.Payload("question again")),
				c.back(f, answerer), c.in(f, middle, frames.Payload("more")), c.back(f, answerer),
			}
		}}, row{"rebuilt by its server " + way, func(c *corpus) []step {
			f := c.web(way, false)
			return []step{
				c.back(f, answerer).opening().deferred("next_hop"), c.back(f, answerer),
				c.in(f, middle, frames.Payload("question")), c.back(f, answerer), c.in(f, middle, frames.Payload("more")),
			}
		}}, row{"rebuilt by its server " + way + ", UDP", func(c *corpus) []step {
			f := c.web(way, true)
			return []step{c.back(f, frames.Payload("answer")).opening().deferred("next_hop"), c.in(f, frames.Payload("more")), c.back(f, frames.Payload("answer"))}
		}})
	}
	return append(rows, row{"rebuilt by a FIN", func(c *corpus) []step {
		f, g := c.web("hairpin", false), c.web("hairpin", false)
		return []step{c.in(f, frames.TCP("FA", rig.ClientISN+1, rig.ServerISN+1)).opening(), c.back(g, frames.TCP("FA", rig.ServerISN+1, rig.ClientISN+1)).opening().deferred("next_hop")}
	}}, row{"rebuilt by the server of a range", func(c *corpus) []step {
		f := c.reflected("hairpin", false, "203.0.113.9:6003", "192.168.1.20:7003")
		return []step{c.back(f, answerer).opening().deferred("next_hop"), c.in(f, middle)}
	}}, row{"rebuilt by the server of a 1:1 forward", func(c *corpus) []step {
		f := c.reflected("hairpin", false, "203.0.113.10:22", "192.168.1.22:22")
		g := c.reflected("from another LAN", false, "203.0.113.9:0", "192.168.1.21:0")
		gre := raw(protocolGRE, "\x00\x00\x08\x00inner packet")
		g.Client, g.Source = netip.AddrPortFrom(g.Client.Addr(), 0), netip.AddrPortFrom(g.Source.Addr(), 0)
		return []step{
			c.back(f, answerer).opening().deferred("next_hop"), c.in(f, middle),
			c.back(g, gre).opening().deferred(uncounted), c.in(g, gre),
		}
	}}, row{"rebuilt by its client where its server could not tell", func(c *corpus) []step {
		f := c.reflected("hairpin", false, "203.0.113.9:84", "192.168.1.20:84")
		return []step{c.in(f, middle).opening(), c.back(f, answerer), c.in(f, middle)}
	}})
}

// notRebuiltRows: what no rule accounts for stays as dead as it was.
func notRebuiltRows() (rows []row) {
	refused := func(name, reason string, in func(c *corpus) step) {
		rows = append(rows, row{"not rebuilt: " + name, func(c *corpus) []step { return []step{in(c).dropped(reason)} }})
	}
	for _, flags := range []string{"R", "RA", "SA"} {
		refused(flags+" of its server", "non_syn", func(c *corpus) step {
			return c.back(c.web("hairpin", false), frames.TCP(flags, rig.ServerISN+1, rig.ClientISN+1)).deferred("next_hop")
		})
		refused(flags+" of its client", "non_syn", func(c *corpus) step {
			return c.in(c.web("hairpin", false), frames.TCP(flags, rig.ClientISN+1, rig.ServerISN+1))
		})
	}
	refused("a SYN of its server", "non_syn", func(c *corpus) step {
		return c.back(c.web("hairpin", false), frames.TCP("S", rig.ServerISN, 0)).deferred("next_hop")
	})
	for name, f := range map[string][2]string{
		"a port that no forward leads to": {"203.0.113.9:99", "192.168.1.20:99"},
		"a host that no forward leads to": {"203.0.113.9:443", "192.168.1.50:8443"},
		"two forwards of one target":      {"203.0.113.9:83", "192.168.1.20:84"},
		"a forward of many addresses":     {"203.0.113.1:82", "192.168.1.20:82"},
		"a forward that reflects as auto": {"203.0.113.9:86", "192.168.1.20:86"},
	} {
		refused(name, "no_connection", func(c *corpus) step {
			return c.back(c.reflected("from another LAN", false, f[0], f[1]), answerer).deferred("next_hop")
		})
	}
	return append(rows, row{"not rebuilt: a client that may not", func(c *corpus) []step {
		f := c.reflected("hairpin", false, "203.0.113.9:85", "192.168.1.20:85")
		return []step{c.back(f, answerer).refused("not_allowed").deferred("next_hop"), c.in(f, middle).refused("not_allowed")}
	}}, row{"not rebuilt: a client without stand-in", func(c *corpus) []step {
		f := c.web("hairpin", false)
		f.Client, f.MAC = netip.AddrPortFrom(stranger, f.Client.Port()), strangerMAC
		return []step{c.in(f, middle).dropped("non_syn")}
	}}, row{"not rebuilt: from the Internet", func(c *corpus) []step {
		return []step{c.in(c.web("from the Internet", false), middle).dropped("non_syn")}
	}}, row{"a stand-in seen from the Internet is nobody", func(c *corpus) []step {
		f := c.web("hairpin", false)
		in, _ := f.Back(answerer)
		in.From, in.To, in.Src = rig.GatewayMAC, rig.WANMAC, netip.AddrPortFrom(rig.InternetHost, 8443)
		forged := in
		forged.Src = f.Target
		return []step{pass(c.b.WAN, in.Bytes()), pass(c.b.WAN, forged.Bytes())}
	}}, row{"a stand-in as the source is forged", func(c *corpus) []step {
		f := c.web("hairpin", false)
		f.Client = f.Source
		return []step{c.in(f, frames.TCP("S", rig.ClientISN, 0)).refused("spoofed"), c.in(f, middle).dropped("non_syn")}
	}})
}

// publicRows: whoever comes in by a LAN is seen by the external address he used.
func publicRows() (rows []row) {
	for way := range standInOf {
		for _, udp := range []bool{false, true} {
			rows = append(rows, row{fmt.Sprintf("public: %s, udp=%v", way, udp), func(c *corpus) []step {
				f := c.to(way, udp, "203.0.113.1:443", "192.168.1.20:8443")
				f.Source = netip.AddrPortFrom(rig.WANAddress, f.Client.Port())
				return append(c.opened(f), c.in(f, middle, frames.Payload("question")), c.back(f, answerer))
			}})
		}
	}
	return rows
}

// TestRemovedForwardIsNotRebuilt, whoever goes on with its connection.
func TestRemovedForwardIsNotRebuilt(t *testing.T) {
	b := newReflectBench(t, 2048)
	b.Config.Forwards = b.Config.Forwards[1:2]
	b.Apply(t)
	for _, h := range hooks {
		c := newCase(t, b)
		f := c.web("hairpin", false)
		in, _ := f.In(middle)
		for _, s := range []step{c.back(f, answerer).dropped("no_connection").deferred("next_hop"), pass(f.At, in.Bytes())} {
			c.play(t, h, s)
		}
	}
	b.Config.StandIns, b.Config.Forwards = nil, nil
	b.Apply(t)
	for _, h := range hooks {
		c := newCase(t, b)
		in, _ := c.web("hairpin", false).Back(answerer)
		c.play(t, h, pass(b.LAN, in.Bytes()))
	}
}

// TestForwardThatLeadsElsewhereIsNotRebuilt: of an address that forwards name and that is its interface's only one,
// the forward for just this address has the port; that it leads to the same server does not make it the one.
func TestForwardThatLeadsElsewhereIsNotRebuilt(t *testing.T) {
	b := newReflectBench(t, 2048)
	b.Config.Forwards = []rule.Forward{
		rig.MustForward(t, "group tcp 90 to 192.168.1.20:91 reflect prefix"), rig.MustForward(t, "own tcp 203.0.113.9:90 to 192.168.1.20:92 reflect prefix"),
	}
	b.Apply(t)
	b.Watch(t, netip.PrefixFrom(rig.BasicAddress, 24))
	for _, h := range hooks {
		c := newCase(t, b)
		f, g := c.reflected("hairpin", false, "203.0.113.9:90", "192.168.1.20:91"), c.reflected("hairpin", false, "203.0.113.9:90", "192.168.1.20:92")
		for _, s := range []step{
			c.back(f, answerer).dropped("no_connection").deferred("next_hop"), c.back(g, answerer).opening().deferred("next_hop"),
		} {
			c.play(t, h, s)
		}
	}
}

// TestManyConnectionsNeedNoPortSearch: with reflect prefix as many connections of a LAN as there may be keep their
// ports, all at once, at one port of one server.
func TestManyConnectionsNeedNoPortSearch(t *testing.T) {
	const clients, ports = 4, 50_000
	b := newReflectBench(t, clients*ports)
	x := &executor{b: b, context: [2][]byte{make([]byte, 192)}, out: [2][]byte{make([]byte, 2048)}}
	f := (&corpus{b: b}).web("hairpin", true)
	try := func(at rig.Port, in, want frames.Frame) error {
		got, err := x.run(0, at, in.Bytes())
		if err == nil && (got.Code != rig.TCRedirect || !bytes.Equal(got.Data[frames.EthernetLength:], want.Bytes()[frames.EthernetLength:])) {
			err = fmt.Errorf("%v > %v: tc answers %d, %x", in.Src, in.Dst, int32(got.Code), got.Data)
		}
		return err
	}
	err := b.Router.Do(func() error {
		for i := range clients * ports {
			host, number := byte(50+i%clients), uint16(10_000+i/clients)
			f.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, 1, host}), number)
			f.Source = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, 1, host}), number)
			in, want := f.In(frames.Payload("question"))
			if err := try(f.At, in, want); err != nil {
				return err
			}
			in, want = f.Back(frames.Payload("answer"))
			if err := try(b.LAN, in, want); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	count, err := b.Tables.CountConnections(rule.Selector{})
	if err != nil || count.Established != clients*ports {
		t.Errorf("%+v are there, want %d established (%v)", count, clients*ports, err)
	}
}

// TestPublicPortStaysTheClients: a client's port has one external port for all servers (RFC 4787 REQ-1), and no other client gets this
// external port.
func TestPublicPortStaysTheClients(t *testing.T) {
	b := newReflectBench(t, 2048)
	to := func(way, external, target string) rig.Flow {
		f := (&corpus{b: b}).to(way, true, external, target)
		f.Client = netip.AddrPortFrom(f.Client.Addr(), 40000)
		return f
	}
	first := sourcePort(to("server to itself", "203.0.113.1:443", "192.168.1.20:8443"), t, frames.Payload("mine"))
	second := sourcePort(to("hairpin", "203.0.113.1:443", "192.168.1.20:8443"), t, frames.Payload("another"))
	if first != 40000 || second == first || second%2 != 0 {
		t.Errorf("two clients with port 40000 have %d and %d", first, second)
	}
	for range 3 {
		again := sourcePort(to("hairpin", "203.0.113.1:444", "192.168.1.21:8444"), t, frames.Payload("the same"))
		if again != second {
			t.Errorf("a client that has port %d at one server has %d at another", second, again)
		}
	}
	if got := sourcePort(to("server to itself", "203.0.113.1:444", "192.168.1.21:8444"), t, frames.Payload("mine")); got != first {
		t.Errorf("a client that has port %d at one server has %d at another", first, got)
	}
}
