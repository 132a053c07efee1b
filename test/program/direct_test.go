// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/loader"
	"hairpin/maps/config"
	"hairpin/maps/rule"
	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

// direct is the connection of a flow's client to the flow's target itself, from the same port.
func (f twinFlow) direct() twinFlow {
	f.External = f.Target
	return f
}

// firstPacket opens a connection of the flow's protocol.
func (f twinFlow) firstPacket() func(*frames.Frame) {
	if f.UDP {
		return frames.Payload("first")
	}
	return frames.TCP("S", rig.ClientISN, 0)
}

// passes runs a packet through a hook, and through TC if XDP passes it. It reports whether the kernel gets the packet.
func (b *bench) passes(t *testing.T, h hook, at rig.Port, data []byte) bool {
	t.Helper()
	if got := h.run(b, t, at, data); got.Code != h.pass {
		return false
	}
	return b.TC(t, at, data).Code == rig.TCUnspec
}

// directCases runs a check for both hooks, families, and TCP and UDP. The flow's client is in another LAN than the server, which
// sees its address.
func directCases(t *testing.T, check func(t *testing.T, b *bench, h hook, c twinCase, f twinFlow)) {
	t.Helper()
	b := newBench6(t)
	forwards := b.Config.Forwards
	for _, h := range hooks {
		for _, v6 := range []bool{false, true} {
			for _, udp := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, IPv6=%v, udp=%v", h.name, v6, udp), func(t *testing.T) {
					c := twinCase{newCase(t, b), v6}
					check(t, b, h, c, c.flow("from another LAN", udp))
				})
				b.Config.Forwards = forwards
				b.Apply(t)
				b.Forget(t)
			}
		}
	}
}

// open sends the packets that open the flow's connection through TC.
func (c twinCase) open(t *testing.T, f twinFlow) {
	t.Helper()
	for _, s := range c.opened(f) {
		if got := c.b.TC(t, s.at, s.in); got.Code != rig.TCRedirect {
			t.Fatalf("tc answers %d to a packet that opens the connection", int32(got.Code))
		}
	}
}

// ofDirect returns the connections that no forward has.
func (b *bench) ofDirect(t *testing.T) (n int) {
	for _, c := range b.Connections(t) {
		if c.External == c.Target {
			n++
		}
	}
	return n
}

// TestDirectMeetsTranslated: a direct connection that meets a living translated one gets another port.
func TestDirectMeetsTranslated(t *testing.T) {
	directCases(t, func(t *testing.T, b *bench, h hook, c twinCase, f twinFlow) {
		c.open(t, f)
		d := f.direct()
		if b.passes(t, h, d.At, mustIn(d)) {
			t.Error("the kernel gets the direct connection")
		}
		if n := b.ofDirect(t); n != 1 {
			t.Errorf("%d direct connections are translated, want one", n)
		}
		for _, c := range b.Connections(t) {
			if c.External == c.Target && c.Source.Port() == f.Client.Port() {
				t.Errorf("the direct connection has its own port: %+v", c)
			}
		}
	})
}

func mustIn(f twinFlow) []byte {
	in, _ := f.inBytes(f.firstPacket())
	return in
}

// TestDirectAfterTheForward: once the translated connection is over, the direct one is the kernel's, and keeps its port. So it passes
// netfilter's FORWARD chain. The old entry is gone, so that the answers pass, too.
func TestDirectAfterTheForward(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, b *bench, f twinFlow){
		"forward removed": func(t *testing.T, b *bench, f twinFlow) {
			var others []rule.Forward
			for _, forward := range b.Config.Forwards {
				if forward.Target != f.Target.Addr() || forward.Ports.First > f.External.Port() || forward.Ports.Last < f.External.Port() {
					others = append(others, forward)
				}
			}
			spare := "spare tcp 999 to " + f.Target.Addr().String() + ":999"
			if f.v6 {
				spare = "spare tcp 999 to [" + f.Target.Addr().String() + "]:999"
			}
			b.Config.Forwards = append(others, rig.MustForward(t, spare))
			b.Apply(t)
		},
		"flushed": func(t *testing.T, b *bench, f twinFlow) {
			if n, err := b.Tables.EndConnections(rule.Selector{}); err != nil || n == 0 {
				t.Fatalf("%d connections ended, %v", n, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			directCases(t, func(t *testing.T, b *bench, h hook, c twinCase, f twinFlow) {
				c.open(t, f)
				end(t, b, f)
				d := f.direct()
				for range 2 {
					if !b.passes(t, h, d.At, mustIn(d)) {
						t.Error("the kernel does not get the direct connection")
					}
				}
				if n := b.ofDirect(t); n != 0 {
					t.Errorf("%d direct connections are translated", n)
				}
				answer := frames.With(frames.Payload("answer"))
				if !f.UDP {
					answer = frames.With(frames.TCP("SA", rig.ServerISN, rig.ClientISN+1))
				}
				in, _ := f.backBytes(answer...)
				if !b.passes(t, h, b.LAN, in) {
					t.Error("the kernel does not get the answer")
				}
			})
		})
	}
}

// TestDirectDoesNotLastByItself: a direct connection that had got another port ends together with the translated one. What its client
// opens next is the kernel's.
func TestDirectDoesNotLastByItself(t *testing.T) {
	directCases(t, func(t *testing.T, b *bench, h hook, c twinCase, f twinFlow) {
		c.open(t, f)
		d := f.direct()
		if got := b.TC(t, d.At, mustIn(d)); got.Code != rig.TCRedirect || b.ofDirect(t) != 1 {
			t.Fatalf("tc answers %d to the direct connection", int32(got.Code))
		}
		if n, err := b.Tables.EndConnections(rule.Selector{}); err != nil || n < 2 {
			t.Fatalf("%d connections ended, %v", n, err)
		}
		for range 2 {
			if !b.passes(t, h, d.At, mustIn(d)) {
				t.Error("the kernel does not get the direct connection")
			}
		}
		if n := b.ofDirect(t); n != 0 {
			t.Errorf("%d direct connections are translated", n)
		}
	})
}

// TestDirectFragments: all fragments of a direct connection that got another port have this port's connection.
func TestDirectFragments(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	f := b.Flows(true, 20001)["from another LAN"]
	f.Open(t)
	f.External = f.Target
	in, _ := f.In(numbered(77), long(120))
	for i, data := range fragments(in.Bytes(), 40, 40) {
		if got := b.TC(t, f.At, data); got.Code != rig.TCRedirect {
			t.Errorf("tc answers %d to fragment %d", int32(got.Code), i)
		}
	}
}

// notes returns how many direct connections are noted.
func (b *bench) notes(t *testing.T) (n int) {
	t.Helper()
	var key bpf.HairpinTuple
	value := make([]byte, b.Objects.Directs.ValueSize())
	for all := b.Objects.Directs.Iterate(); all.Next(&key, &value); n++ {
	}
	return n
}

// TestDirectNotes: only packets that may open a direct connection are noted as one. From the Internet nobody reaches a private target.
func TestDirectNotes(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	for _, test := range []struct {
		name, way, source string
		private           bool // wan0 has a private address
		noted             bool
	}{
		{"a LAN's client", "from another LAN", "192.168.2.60", false, true},
		{"an Internet host", "from the Internet", "198.51.100.7", false, false},
		{"a private source at a public WAN", "from the Internet", "10.1.2.3", false, false},
		{"a host of a private WAN's network", "from the Internet", "10.1.2.3", true, true},
		{"an Internet host at a private WAN", "from the Internet", "198.51.100.7", true, false},
	} {
		for _, h := range hooks {
			t.Run(test.name+", "+h.name, func(t *testing.T) {
				external := netip.PrefixFrom(rig.WANAddress, 24)
				if test.private {
					external = netip.MustParsePrefix("10.1.2.1/24")
				}
				b.Watch(t, external)
				f := twinFlow{b.Flows(true, 20001)[test.way], false}.direct()
				f.Client = netip.AddrPortFrom(netip.MustParseAddr(test.source), 20001)
				before := b.notes(t)
				h.run(b, t, f.At, mustIn(f))
				if got := b.notes(t) > before; got != test.noted {
					t.Errorf("noted: %v, want %v", got, test.noted)
				}
				lab.Must(b.forgetDirect())
			})
		}
	}
	t.Run("the router's own packets on the loopback device", func(t *testing.T) {
		f := b.local(true)
		f.External = f.Target
		in, _ := f.In(frames.Payload("own"))
		b.TC(t, f.At, in.Bytes())
		if n := b.notes(t); n != 0 {
			t.Errorf("%d are noted", n)
		}
	})
}

// forgetDirect removes all notes.
func (b *bench) forgetDirect() error {
	var key bpf.HairpinTuple
	value := make([]byte, b.Objects.Directs.ValueSize())
	for all := b.Objects.Directs.Iterate(); all.Next(&key, &value); {
		if err := b.Objects.Directs.Delete(&key); err != nil {
			return err
		}
	}
	return nil
}

// TestDirectComesFirst: a translated connection does not take the port of the client's direct one. A direct connection of UDP that has
// been silent for the idle time of UDP is over, one of TCP is not.
func TestDirectComesFirst(t *testing.T) {
	const port = 20001
	for _, udp := range []bool{false, true} {
		for _, silent := range []bool{false, true} {
			t.Run(fmt.Sprintf("udp=%v, silent=%v", udp, silent), func(t *testing.T) {
				b := newBench(t, rig.Forwards...)
				b.Config.Timeouts.UDP = time.Second
				b.Apply(t)
				f := b.Flows(udp, port)["from another LAN"]
				d := twinFlow{f, false}.direct()
				if got := b.TC(t, d.At, mustIn(d)); got.Code != rig.TCUnspec {
					t.Fatalf("tc answers %d to the direct connection", int32(got.Code))
				}
				if silent {
					b.ageDirect(t, 10)
				}
				got := sourcePort(f, t, twinFlow{f, false}.firstPacket())
				if keeps := udp && silent; (got == port) != keeps {
					t.Errorf("the translated connection gets port %d", got)
				}
			})
		}
	}
}

// ageDirect makes all notes older by this many seconds.
func (b *bench) ageDirect(t *testing.T, seconds uint32) {
	t.Helper()
	var key bpf.HairpinTuple
	var value struct{ Seen, Alone uint32 }
	for all := b.Objects.Directs.Iterate(); all.Next(&key, &value); {
		value.Seen -= seconds
		value.Alone = 0
		lab.Must(b.Objects.Directs.Update(&key, &value, ebpf.UpdateExist))
	}
}

// TestDirectNoteOfAForgedSource: a LAN's host has sent to the target with the source of an Internet host, which has a translated
// connection. Still no packet from the Internet opens a direct connection to a private target.
func TestDirectNoteOfAForgedSource(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	c := twinCase{newCase(t, b), false}
	f := c.flow("from the Internet", true)
	c.open(t, f)
	d := f.direct()
	forged := d
	forged.At, forged.MAC = b.LAN2, rig.OtherClientMAC
	for _, from := range []twinFlow{forged, d} {
		if !b.passes(t, hooks[0], from.At, mustIn(from)) {
			t.Errorf("the kernel does not get the packet at interface %d", from.At.Index)
		}
	}
	if b.notes(t) == 0 {
		t.Error("the forged packet has caused no note, so the test shows nothing")
	}
	if n := b.ofDirect(t); n != 0 {
		t.Errorf("%d direct connections are translated, want none", n)
	}
}

// TestDirectOnAPrivateWAN: a host of a private WAN's network has a direct connection to the server first, and then a translated one.
func TestDirectOnAPrivateWAN(t *testing.T) {
	const port = 5601
	for _, udp := range []bool{false, true} {
		b := newBench(t, rig.Forwards...)
		b.Router.Address("wan0", "10.1.2.1/24")
		host := netip.MustParseAddr("10.1.2.9")
		b.Neighbour(t, b.WAN, host, rig.GatewayMAC)
		b.Watch(t, netip.MustParsePrefix("10.1.2.1/24"), netip.PrefixFrom(rig.WANAddress, 24))
		f := b.Flows(udp, port)["from the Internet"]
		f.Client = netip.AddrPortFrom(host, port)
		d := twinFlow{f, false}.direct()
		if got := b.TC(t, d.At, mustIn(d)); got.Code != rig.TCUnspec {
			t.Fatalf("udp=%v: tc answers %d to the direct connection", udp, int32(got.Code))
		}
		if got := sourcePort(f, t, twinFlow{f, false}.firstPacket()); got == port {
			t.Errorf("udp=%v: the translated connection takes the direct one's port", udp)
		}
	}
}

// TestReflectedPortsAreNoSockets: a connection that shows the router's address gets a port of the configured range. When all are in
// use, it gets another one, but none that the kernel gives to sockets that ask for none.
func TestReflectedPortsAreNoSockets(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	b.Config.ReflectPorts = rule.Ports{First: 61000, Last: 61003}
	b.Apply(t)
	var ephemeral uint16
	lab.Must(b.Router.Do(func() error { ephemeral, _ = loader.EphemeralPorts(); return nil }))
	meant, others := 0, 0
	for port := uint16(20000); port < 20020; port++ {
		f := b.Flows(true, port)["hairpin"]
		in, _ := f.In(frames.Payload("first"))
		got := b.TC(t, f.At, in.Bytes())
		if got.Code != rig.TCRedirect || told(in.Bytes(), got.Data) {
			t.Errorf("port %d: tc answers %d", port, int32(got.Code))
			continue
		}
		switch p := frames.WordAt(got.Data, l4At); {
		case p >= 61000 && p <= 61003:
			meant++
		case p >= 1024 && p < ephemeral:
			others++
		default:
			t.Errorf("port %d becomes %d", port, p)
		}
	}
	if meant != 4 || others != 16 {
		t.Errorf("%d connections got a port of the range, %d another one", meant, others)
	}
}

// TestDrawnPortsDisplaceNone: while there are other ports, a connection whose port is drawn gets none that another connection has, even
// if that connection is over: its server may not know of the end yet, or has it in TIME-WAIT.
func TestDrawnPortsDisplaceNone(t *testing.T) {
	const kept = 61000
	ends := map[string]func(t *testing.T, b *bench, f rig.Flow){
		"closing": func(t *testing.T, b *bench, f rig.Flow) {
			f.Send(t, true, frames.TCP("FA", rig.ClientISN+1, rig.ServerISN+1))
			f.Send(t, false, frames.TCP("FA", rig.ServerISN+1, rig.ClientISN+2))
			f.Send(t, true, frames.TCP("A", rig.ClientISN+2, rig.ServerISN+2))
			for key, conn := range b.halves(t) {
				if conn.State != bpf.HairpinConnStateCONN_CLOSING {
					t.Fatalf("%+v has state %d", key, conn.State)
				}
			}
		},
		"ended, and no side has been told": func(t *testing.T, b *bench, _ rig.Flow) {
			for key, conn := range b.halves(t) {
				if !conn.Opener() {
					continue
				}
				var answer bpf.HairpinEndRequest
				_, err := b.Objects.HairpinEnd.Run(&ebpf.RunOptions{Context: bpf.HairpinEndRequest{Key: key}, ContextOut: &answer})
				if err != nil || answer.Found == 0 {
					t.Fatalf("end %+v: %v, found %d", key, err, answer.Found)
				}
			}
		},
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, rig.Forwards...)
			b.Config.ReflectPorts = rule.Ports{First: kept, Last: kept + 3}
			b.Apply(t)
			old := b.Flows(false, kept)["hairpin"]
			old.Open(t)
			end(t, b, old)
			for port := uint16(20000); port < 20040; port += 2 {
				if got := sourcePort(b.Flows(false, port)["hairpin"], t, opener); got == kept {
					t.Errorf("port %d becomes %d, the port of the old connection", port, got)
				}
			}
		})
	}
}

// TestDirectIsNotChallenged: under a SYN flood a direct SYN that needs another port gets one. A challenge would leave it to the kernel
// with its own port, which the server already knows.
func TestDirectIsNotChallenged(t *testing.T) {
	b := newBenchFor(t, 2048, 16, rig.Forwards...)
	f := b.Flows(false, 20001)["from another LAN"]
	f.Open(t)
	for i := 0; b.Counted(t, "challenged") == 0; i++ {
		if i == 10_000 {
			t.Fatal("no SYN is challenged")
		}
		flood := b.Flows(false, 30000)["from the Internet"]
		flood.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 30000)
		in, _ := flood.In(opener)
		b.TC(t, flood.At, in.Bytes())
	}
	before := b.ofDirect(t)
	d := twinFlow{f, false}.direct()
	if got := b.TC(t, d.At, mustIn(d)); got.Code != rig.TCRedirect || b.ofDirect(t) != before+1 {
		t.Errorf("tc answers %d to the direct connection", int32(got.Code))
	}
}

// TestDirectOfIPsec: a direct connection whose answers an IPsec policy protects is the kernel's, which encrypts.
func TestDirectOfIPsec(t *testing.T) {
	directCases(t, func(t *testing.T, b *bench, h hook, c twinCase, f twinFlow) {
		c.open(t, f)
		side := func(addr netip.Addr) config.PolicySide {
			return config.PolicySide{Network: netip.PrefixFrom(addr, addr.BitLen())}
		}
		// The answers of the translated connection leave with another source.
		lab.Must(b.Tables.SetPolicies([]config.Policy{{Source: side(f.Target.Addr()), Destination: side(f.Client.Addr()), Protects: true}}))
		defer func() { lab.Must(b.Tables.SetPolicies(nil)) }()
		d := f.direct()
		if !b.passes(t, h, d.At, mustIn(d)) {
			t.Error("the kernel does not get the direct connection")
		}
	})
}

// TestRuleEndsAnswers: a rule that prohibits, or drops, the packets to a client holds for established connections, too.
func TestRuleEndsAnswers(t *testing.T) {
	b := newBench6(t)
	for _, v6 := range []bool{false, true} {
		c := twinCase{newCase(t, b), v6}
		f := c.flow("from the Internet", false)
		c.open(t, f)
		in, _ := f.backBytes(frames.TCP("A", rig.ServerISN+1, rig.ClientISN+1))
		command := []string{"ip", "rule"}
		if v6 {
			command = []string{"ip", "-6", "rule"}
		}
		for _, kind := range []string{"prohibit", "blackhole", "unreachable"} {
			rule := []string{"to", f.Client.Addr().String(), kind}
			b.Router.Run(append(append([]string{}, append(command, "add")...), rule...)...)
			lab.Must(b.Tables.BumpRoutes())
			before := b.Counted(t, "no_route")
			if got := b.TC(t, b.LAN, in); got.Code == rig.TCRedirect && b.Counted(t, "no_route") == before {
				t.Errorf("IPv6=%v: the answer leaves despite a rule of the kind %s", v6, kind)
			}
			b.Router.Run(append(append([]string{}, append(command, "del")...), rule...)...)
			lab.Must(b.Tables.BumpRoutes())
			if got := b.TC(t, b.LAN, in); got.Code != rig.TCRedirect {
				t.Errorf("IPv6=%v: tc answers %d without the rule", v6, int32(got.Code))
			}
		}
	}
}
