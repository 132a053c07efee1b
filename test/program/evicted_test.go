// SPDX-License-Identifier: Apache-2.0

package program

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/bpf"
	"hairpin/maps"
	"hairpin/maps/rule"
	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

// evictedPlaces is the number of places for half-open connections.
const evictedPlaces = 16

// evictedCase has the configuration, the changes before and after the flood, and the expected result for the late answer.
type evictedCase struct {
	forwards         []string
	external, target string
	change           func(*testing.T, *bench, *rig.Flow) // before the flood
	late             func(*testing.T, *bench)            // after it
	asked            bool                                // there was a connection
	translated       bool
}

var evictedCases = map[string]evictedCase{
	"the only forward to its target": {
		forwards: []string{"slow udp 203.0.113.9:53 to 192.168.1.20:5353"}, external: "203.0.113.9:53", target: "192.168.1.20:5353", asked: true, translated: true,
	},
	"one of a range": {
		forwards: []string{"slow udp 203.0.113.9:6000-6010 to 192.168.1.20:7000"}, external: "203.0.113.9:6003", target: "192.168.1.20:7003", asked: true, translated: true,
	},
	"a forward of every protocol": {
		forwards: []string{"slow any 203.0.113.9:any to 192.168.1.20"}, external: "203.0.113.9:53", target: "192.168.1.20:53", asked: true, translated: true,
	},
	"the first of several servers": {
		forwards: []string{"slow udp 203.0.113.9:53 to 192.168.1.20:5353 to 192.168.1.21:5354 weight 0"}, external: "203.0.113.9:53", target: "192.168.1.20:5353", asked: true, translated: true,
	},
	"the second of several servers": {
		forwards: []string{"slow udp 203.0.113.9:53 to 192.168.1.20:5353 weight 0 to 192.168.1.21:5354"}, external: "203.0.113.9:53", target: "192.168.1.21:5354", asked: true, translated: true,
	},
	"another port of one of several servers": {
		forwards: []string{"slow udp 203.0.113.9:53 to 192.168.1.20:5353 to 192.168.1.21:5354"}, external: "203.0.113.9:53", target: "192.168.1.21:5353",
	},
	"a server of two forwards": {
		forwards: []string{"slow udp 203.0.113.9:53 to 192.168.1.20:5353 to 192.168.1.21:5353 weight 0", "same udp 203.0.113.9:54 to 192.168.1.20:5353"},
		external: "203.0.113.9:53", target: "192.168.1.20:5353", asked: true,
	},
	"two forwards to one target": {
		forwards: []string{"slow udp 203.0.113.9:53 to 192.168.1.20:5353", "same udp 203.0.113.9:54 to 192.168.1.20:5353"},
		external: "203.0.113.9:53", target: "192.168.1.20:5353", asked: true,
	},
	"its client is in the from list": {
		forwards: []string{"slow udp 203.0.113.9:53 to 192.168.1.20:5353 from 198.51.100.0/24"}, external: "203.0.113.9:53", target: "192.168.1.20:5353", asked: true, translated: true,
	},
	"its client is not in the from list": {
		forwards: []string{"slow udp 203.0.113.9:53 to 192.168.1.20:5353 from 198.51.99.0/24"}, external: "203.0.113.9:53", target: "192.168.1.20:5353",
	},
	"another port of the server": {
		forwards: []string{"slow udp 203.0.113.9:53 to 192.168.1.20:5353"}, external: "203.0.113.9:53", target: "192.168.1.20:5354",
	},
	"the forward is for LANs alone": {
		forwards: []string{"slow udp 203.0.113.9:53 to 192.168.1.20:5353"}, external: "203.0.113.9:53", target: "192.168.1.20:5353",
		change: func(t *testing.T, b *bench, _ *rig.Flow) {
			b.Config.Forwards[1].LANOnly = true
			b.Apply(t)
		},
	},
	"the forward is of TCP": {
		forwards: []string{"slow tcp 203.0.113.9:53 to 192.168.1.20:5353"}, external: "203.0.113.9:53", target: "192.168.1.20:5353",
	},
	"the answer is of TCP": {
		forwards: []string{"slow tcp,udp 203.0.113.9:53 to 192.168.1.20:5353"}, external: "203.0.113.9:53", target: "192.168.1.20:5353",
		change: func(_ *testing.T, _ *bench, f *rig.Flow) { f.UDP = false },
	},
	"the only address of the WAN interface": {
		forwards: []string{"slow udp 53 to 192.168.1.20:5353"}, external: "203.0.113.1:53", target: "192.168.1.20:5353", asked: true, translated: true,
		change: func(t *testing.T, b *bench, _ *rig.Flow) { b.Watch(t, netip.PrefixFrom(rig.WANAddress, 24)) },
	},
	"one of three addresses of the WAN interface": {
		forwards: []string{"slow udp 53 to 192.168.1.20:5353"}, external: "203.0.113.1:53", target: "192.168.1.20:5353", asked: true,
	},
	"an address that is routed to the router": {
		forwards: []string{"slow udp 203.0.113.77:53 to 192.168.1.20:5353"}, external: "203.0.113.77:53", target: "192.168.1.20:5353", asked: true, translated: true,
	},
	"an address of the WAN that the route leads by, of two WANs": {
		forwards: []string{"slow udp 203.0.113.9:53 to 192.168.1.20:5353"}, external: "203.0.113.9:53", target: "192.168.1.20:5353", asked: true, translated: true,
		change: secondWAN,
	},
	"another address, of two WANs": {
		forwards: []string{"slow udp 203.0.113.77:53 to 192.168.1.20:5353"}, external: "203.0.113.77:53", target: "192.168.1.20:5353", asked: true,
		change: secondWAN,
	},
	"a second forward to its target, the first one also answers stand-ins": {
		external: "203.0.113.9:53", target: "192.168.1.20:53", asked: true,
		change: func(t *testing.T, b *bench, _ *rig.Flow) {
			b.Config.StandIns = []rule.StandIn{{Clients: netip.MustParsePrefix("192.168.1.0/25"), Network: netip.MustParsePrefix("198.18.1.0/25")}}
			b.Config.Forwards = append(b.Config.Forwards,
				rig.MustForward(t, "slow any 203.0.113.9:any to 192.168.1.20 reflect prefix"), rig.MustForward(t, "same udp 203.0.113.10:53 to 192.168.1.20:53"))
			b.Apply(t)
			b.Watch(t, netip.PrefixFrom(rig.WANAddress, 24), netip.PrefixFrom(rig.BasicAddress, 32), netip.PrefixFrom(rig.DMZAddress, 32))
		},
	},
	"a private client": {
		forwards: []string{"slow udp 203.0.113.9:53 to 192.168.1.20:5353"}, external: "203.0.113.9:53", target: "192.168.1.20:5353",
		change: func(_ *testing.T, _ *bench, f *rig.Flow) {
			f.Client = netip.MustParseAddrPort("10.9.9.9:20000")
			f.Source = f.Client
		},
	},
	"a client of another LAN": {
		forwards: []string{"slow udp 203.0.113.9:53 to 192.168.1.20:5353"}, external: "203.0.113.9:53", target: "192.168.1.20:5353",
		change: func(_ *testing.T, b *bench, f *rig.Flow) {
			f.Client = netip.AddrPortFrom(rig.OtherClient, 20000)
			f.Source = f.Client
		},
	},
	"a group of many": {
		forwards: []string{"slow udp 203.0.113.9:53 to 192.168.1.20:5353"}, external: "203.0.113.9:53", target: "192.168.1.20:5353",
		change: func(_ *testing.T, b *bench, f *rig.Flow) {
			f.Client = netip.MustParseAddrPort("224.0.0.251:5353")
			f.Source = f.Client
		},
	},
	"long after the flood": {
		forwards: []string{"slow udp 203.0.113.9:53 to 192.168.1.20:5353"}, external: "203.0.113.9:53", target: "192.168.1.20:5353", asked: true,
		late: evictedBefore(61 * time.Second),
	},
	"a month after the flood": {
		forwards: []string{"slow udp 203.0.113.9:53 to 192.168.1.20:5353"}, external: "203.0.113.9:53", target: "192.168.1.20:5353", asked: true,
		late: evictedBefore(30 * 24 * time.Hour),
	},
	"the forward has gone since": {
		forwards: []string{"slow udp 203.0.113.9:53 to 192.168.1.20:5353"}, external: "203.0.113.9:53", target: "192.168.1.20:5353", asked: true,
		late: func(t *testing.T, b *bench) { b.Config.Forwards = b.Config.Forwards[:1]; b.Apply(t) },
	},
}

// evictedBefore makes the datapath believe that the flood was so long ago.
func evictedBefore(ago time.Duration) func(*testing.T, *bench) {
	return func(t *testing.T, b *bench) {
		index, ring := uint32(bpf.HairpinPlaceKindPLACE_HALF_OTHER)*2, bpf.HairpinRing{}
		lab.Must(b.Objects.Rings.Lookup(index, &ring))
		if ring.Evicted == 0 {
			t.Fatal("the flood has evicted nothing")
		}
		ring.Evicted -= uint32(ago.Milliseconds())
		lab.Must(b.Objects.Rings.Put(index, ring))
	}
}

func secondWAN(t *testing.T, b *bench, _ *rig.Flow) {
	b.Config.WAN = []string{"wan0", "wan1"}
	b.Apply(t)
	b.Watch(t, netip.PrefixFrom(rig.WANAddress, 24), netip.PrefixFrom(rig.BasicAddress, 32), netip.PrefixFrom(rig.DMZAddress, 32))
}

// flood sends more datagrams than there are half-open places, each of another client.
func (b *bench) flood(tb testing.TB, forward rig.Flow) {
	tb.Helper()
	for i := range 4 * evictedPlaces {
		forward.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(100 + i)}), 30000)
		forward.Source = forward.Client
		forward.Send(tb, true, frames.Payload("forged"))
	}
}

// of is the connection of a flow's client.
func (b *bench) of(tb testing.TB, f rig.Flow) (found []maps.Connection) {
	tb.Helper()
	for _, c := range b.Connections(tb) {
		if c.Client == f.Client {
			found = append(found, c)
		}
	}
	return found
}

// TestAnswerOfEvicted: a flood has evicted the connection of a slow server's client. Where the rules alone say which
// forward the answer is of, it is translated, and the connection is there again. XDP leaves that to TC.
func TestAnswerOfEvicted(t *testing.T) {
	for name, test := range evictedCases {
		t.Run(name, test.run)
	}
}

func (test evictedCase) run(t *testing.T) {
	b := newBenchFor(t, 2048, evictedPlaces, append([]string{"flooded udp 203.0.113.10:9 to 192.168.1.22:9"}, test.forwards...)...)
	c := &corpus{b: b, nextPort: 20000}
	f := c.to("from the Internet", true, test.external, test.target)
	if test.change != nil {
		test.change(t, b, &f)
	}
	test.leftToKernel(t, f, "before the flood")
	flooded := c.to("from the Internet", true, "203.0.113.10:9", "192.168.1.22:9")
	if test.asked {
		f.Send(t, true, frames.Payload("question"))
		flooded = f // else the connection keeps its forward's share
	}
	b.flood(t, flooded)
	if len(b.of(t, f)) != 0 {
		t.Fatal("the flood has not evicted the connection")
	}
	if test.late != nil {
		test.late(t, b)
	}
	if !test.translated {
		test.leftToKernel(t, f, "after the flood")
		return
	}
	test.goesOn(t, f)
}

// leftToKernel puts an answer through both programs, which must not touch it.
func (test evictedCase) leftToKernel(t *testing.T, f rig.Flow, when string, changes ...func(*frames.Frame)) {
	t.Helper()
	in, _ := f.Back(append(changes, frames.Payload("an answer of 24 bytes..."), frames.TCP("A", rig.ServerISN, rig.ClientISN))...)
	for _, h := range []hook{hooks[1], hooks[0]} {
		got := h.run(benchOf(f), t, f.Rig.LAN, in.Bytes())
		if got.Code != h.pass || !bytes.Equal(got.Data, in.Bytes()) || len(benchOf(f).of(t, f)) != 0 {
			t.Fatalf("%s %s answers %d, has %+v\n%x", when, h.name, int32(got.Code), benchOf(f).of(t, f), got.Data)
		}
	}
}

// goesOn puts an answer through XDP, which must leave it to TC, and then packets of both sides through both.
func (test evictedCase) goesOn(t *testing.T, f rig.Flow) {
	t.Helper()
	test.leftToKernel(t, f, "in fragments", func(first *frames.Frame) { first.More = true })
	b, late := benchOf(f), f.Rig.Counted(t, "next_hop")
	in, want := f.Back(frames.Payload("answer"))
	if got := b.XDP(t, b.LAN, in.Bytes()); got.Code != rig.XDPPass || b.Counted(t, "next_hop") != late+1 || len(b.of(t, f)) != 0 {
		t.Fatalf("xdp answers %d, deferred %d for the next hop, has %+v", got.Code, b.Counted(t, "next_hop")-late, b.of(t, f))
	}
	if got := b.TC(t, b.LAN, in.Bytes()); got.Code != rig.TCRedirect || !bytes.Equal(got.Data, want.Bytes()) {
		t.Fatalf("tc answers %d\n got %x\nwant %x", int32(got.Code), got.Data, want.Bytes())
	}
	opened := b.opened(t)
	for _, h := range hooks {
		in, want := f.In(frames.Payload("more"))
		h.sends(t, f, func() { b.TC(t, f.At, in.Bytes()) }, f.At, in, want)
		in, want = f.Back(frames.Payload("another answer"))
		h.sends(t, f, func() { b.TC(t, b.LAN, in.Bytes()) }, b.LAN, in, want)
	}
	if list := b.of(t, f); len(list) != 1 || list[0].State != "established" || list[0].Forward != "slow" || b.opened(t) != opened {
		t.Errorf("in the end: %+v, %d opened", list, b.opened(t)-opened)
	}
}

// TestFloodSparesLAN: a flood from the Internet does not evict a LAN client's half-open connection, whether the flood uses the client's forward
// or another forward.
func TestFloodSparesLAN(t *testing.T) {
	for name, to := range map[string]struct{ external, target string }{
		"the same forward": {"203.0.113.9:53", "192.168.1.20:5353"},
		"another forward":  {"203.0.113.10:9", "192.168.1.22:9"},
	} {
		t.Run(name, func(t *testing.T) {
			b, c := newSparingBench(t)
			inside := c.to("hairpin", true, "203.0.113.9:53", "192.168.1.20:5353")
			inside.Send(t, true, frames.Payload("question"))
			b.flood(t, c.to("from the Internet", true, to.external, to.target))
			if list := b.of(t, inside); len(list) != 1 {
				t.Errorf("after the flood the LAN client has %+v", list)
			}
		})
	}
}

// TestFloodSparesOtherForwards: a flood does not evict the connections of a slow server behind another forward. The newcomer's search meets
// these connections first, and they are the oldest.
func TestFloodSparesOtherForwards(t *testing.T) {
	for name, c := range map[string]struct{ slow, unanswered int }{
		"the flood has not quite its share of the places": {slow: 1, unanswered: evictedPlaces/2 - 1},
		"the flood is answered, most places are free":     {slow: 4, unanswered: 0},
	} {
		t.Run(name, func(t *testing.T) {
			b, corpus := newSparingBench(t)
			from := func(client byte, external, target string) rig.Flow {
				f := corpus.to("from the Internet", true, external, target)
				f.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, client}), 30000)
				f.Source = f.Client
				return f
			}
			flooding := func(i int) rig.Flow { return from(byte(100+i), "203.0.113.10:9", "192.168.1.22:9") }

			var slow []rig.Flow
			for i := range c.slow {
				slow = append(slow, from(byte(20+i), "203.0.113.9:53", "192.168.1.20:5353"))
				slow[i].Send(t, true, frames.Payload("question"))
			}
			for i := range evictedPlaces - c.slow {
				f := flooding(i)
				if i < c.unanswered {
					f.Send(t, true, frames.Payload("forged"))
				} else {
					f.Open(t)
				}
			}
			f := flooding(evictedPlaces)
			f.Send(t, true, frames.Payload("forged"))
			for _, f := range slow {
				if list := b.of(t, f); len(list) != 1 {
					t.Errorf("after the flood the client %s of the slow server has %+v", f.Client, list)
				}
			}
		})
	}
}

// TestLANFloodAdmits: LAN clients hold all half-open places. New clients from the Internet and from LANs are still admitted.
func TestLANFloodAdmits(t *testing.T) {
	b, c := newSparingBench(t)
	inside := c.to("hairpin", true, "203.0.113.9:53", "192.168.1.20:5353")
	for i := range 4 * evictedPlaces {
		inside.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, 1, byte(100 + i)}), 30000)
		inside.Send(t, true, frames.Payload("forged"))
	}
	outside := c.to("from the Internet", true, "203.0.113.9:53", "192.168.1.20:5353")
	outside.Send(t, true, frames.Payload("question"))
	for _, f := range []rig.Flow{inside, outside} {
		if list := b.of(t, f); len(list) != 1 {
			t.Errorf("%s has %+v", f.Client, list)
		}
	}
}

func newSparingBench(t *testing.T) (*bench, *corpus) {
	b := newBenchFor(t, 2048, evictedPlaces, "slow udp 203.0.113.9:53 to 192.168.1.20:5353", "flooded udp 203.0.113.10:9 to 192.168.1.22:9")
	return b, &corpus{b: b, nextPort: 20000}
}

// noteEvicted makes the datapath believe that it has just evicted a half-open UDP connection.
func (b *bench) noteEvicted(tb testing.TB, v6 bool) {
	tb.Helper()
	var now unix.Timespec
	lab.Must(unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
	index, ring := uint32(bpf.HairpinPlaceKindPLACE_HALF_OTHER)*2, bpf.HairpinRing{}
	if v6 {
		index++
	}
	lab.Must(b.Objects.Rings.Lookup(index, &ring))
	ring.Evicted = uint32(now.Nano() / 1e6)
	lab.Must(b.Objects.Rings.Put(index, ring))
}

// TestAnswerOfEvicted6 tests late answers of evicted IPv6 connections; IPv6 has its own places.
func TestAnswerOfEvicted6(t *testing.T) {
	b := newBench6(t)
	c := case6{&corpus{b: b, nextPort: 20000}}
	f := c.flow("from the Internet", true)
	f.External, f.Target = netip.AddrPortFrom(dmzAddress6, 53), netip.AddrPortFrom(dmzTarget6, 53)
	in, want := f.Back(data6("answer"))
	for _, h := range hooks {
		if got := h.run(b, t, b.LAN, in.Bytes()); got.Code != h.pass {
			t.Errorf("without pressure %s answers %d", h.name, int32(got.Code))
		}
	}
	b.noteEvicted(t, false)
	if got := b.TC(t, b.LAN, in.Bytes()); got.Code != rig.TCUnspec {
		t.Errorf("under pressure of IPv4 tc answers %d", int32(got.Code))
	}
	b.noteEvicted(t, true)
	if got := b.XDP(t, b.LAN, in.Bytes()); got.Code != rig.XDPPass {
		t.Errorf("under pressure xdp answers %d", int32(got.Code))
	}
	if got := b.TC(t, b.LAN, in.Bytes()); got.Code != rig.TCRedirect || !bytes.Equal(got.Data, want.Bytes()) {
		t.Errorf("under pressure tc answers %d\n got %x\nwant %x", int32(got.Code), got.Data, want.Bytes())
	}
	in, want = f.In(data6("more"))
	if got := b.TC(t, f.At, in.Bytes()); got.Code != rig.TCRedirect || !bytes.Equal(got.Data, want.Bytes()) {
		t.Errorf("the client's next datagram: tc answers %d\n got %x\nwant %x", int32(got.Code), got.Data, want.Bytes())
	}
}
