// SPDX-License-Identifier: Apache-2.0

package program

import (
	"encoding/binary"
	"fmt"
	stdmaps "maps"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"hairpin/bpf"
	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

// TestICMPBurst is row 48: a hundred thousand ICMP errors of all kinds, about connections and about
// nothing, make, refresh and end none.
func TestICMPBurst(t *testing.T) {
	x := newExecutor(t, family4)
	x.begin(t)
	before := x.b.halves(t)
	random := rand.New(rand.NewPCG(48, 0))
	f := x.b.Flows(true, 20001)["from the Internet"]
	err := x.b.Router.Do(func() error {
		for i := range 100_000 {
			_, about := f.Back(middle)
			if i%2 == 1 { // of a connection in every other one
				about.Dst = netip.AddrPortFrom(about.Dst.Addr(), uint16(random.Uint32()))
				about.Flags, about.UDP = "A", random.IntN(2) == 0
			}
			in := frames.Frame{From: f.MAC, To: f.At.MAC, Src: netip.AddrPortFrom(farRouter, 0), Dst: f.External}
			kind := []uint8{icmpUnreachable, icmpTimeExceeded, icmpParameter}[random.IntN(3)]
			icmpError(kind, uint8(random.IntN(16)), random.Uint32(), quote(about.Bytes(), 28+random.IntN(30)))(&in)
			if err := x.execute(0, in.Bytes()); err != nil {
				return fmt.Errorf("error %d: %w", i, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if after := x.b.halves(t); !stdmaps.Equal(before, after) {
		t.Errorf("connections before\n%+v\nand after\n%+v", before, after)
	}
	if n := x.b.tally(t)[fmt.Sprintf("send icmp_error on %d", f.At.Index)]; n < 40_000 {
		t.Errorf("only %d of the errors about a connection were translated", n)
	}
}

// TestStranger is row 75: what a stranger sends to a UDP connection does not keep it alive, once its
// server is silent (RFC 4787 REQ-6); what a LAN client sends does.
func TestStranger(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	b.shortLives(t)
	stranger, neighbour := b.Flows(true, 20001)["from the Internet"], b.Flows(true, 20002)["hairpin"]
	stranger.Open(t)
	neighbour.Open(t)
	opened := b.opened(t)
	// After the connection has expired, the next packet opens a new connection.
	for deadline := time.Now().Add(30 * time.Second); b.opened(t) == opened; {
		stranger.Send(t, true, frames.Payload("still there?"))
		neighbour.Send(t, true, frames.Payload("still here"))
		if time.Now().After(deadline) {
			t.Fatal("a stranger keeps a connection alive")
		}
	}
	for _, c := range b.Connections(t) {
		if established := c.State == "established"; established != (c.Client.Port() == 20002) {
			t.Errorf("%s: %s", c.Client, c.State)
		}
	}
}

// TestSourceLimit is row 87: a client that has reached its limit is refused more connections and gets an ICMP error. Other clients are
// not refused.
func TestSourceLimit(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	b.settings(t, func(s *bpf.HairpinSettings) { s.IcmpInterval, s.SourceLimit = 0, 3 })
	c := &corpus{b: b, nextPort: 20000}
	for range 3 {
		c.flow("hairpin", true).Open(t)
	}
	for _, h := range hooks {
		c.play(t, h, c.in(c.flow("hairpin", true), frames.Payload("one more")).refused("source_limit").
			told(rig.LANAddress, icmpUnreachable, codeProhibited, 0))
	}
	c.flow("server to itself", true).Open(t)
	c.flow("from the Internet", true).Open(t)
}

// TestToldRate: ICMP errors to a side are as many as the interval allows, with a burst of a second's
// worth; each side has its own, and Frag Needed is free (RFC 1812 4.3.2.8).
func TestToldRate(t *testing.T) {
	const rate, openings = 20, 200
	b := newBench(t, rig.Forwards...)
	b.settings(t, func(s *bpf.HairpinSettings) {
		s.IcmpInterval, s.Told = uint64(time.Second/rate), bpf.HairpinSideSIDE_LAN|bpf.HairpinSideSIDE_WAN
	})
	closed := b.Flows(false, 20001)["hairpin"]
	closed.External = netip.AddrPortFrom(rig.WANAddress, 81)
	limited := b.Flows(false, 20001)["from the Internet"]
	limited.External, limited.Client = netip.AddrPortFrom(rig.WANAddress, 82), netip.AddrPortFrom(farRouter, 20001)
	for _, f := range []rig.Flow{closed, limited} {
		in, _ := f.In(opener)
		began, heard := time.Now(), 0
		for range openings {
			if got := b.TC(t, f.At, in.Bytes()); told(in.Bytes(), got.Data) {
				heard++
			}
		}
		most := rate + 1 + int(time.Since(began)*rate/time.Second) + 1
		if heard < rate || heard > most {
			t.Errorf("%s hears of %d refusals, want %d to %d", f.Client, heard, rate, most)
		}
	}
	big := b.Flows(true, 20009)["hairpin"]
	big.Open(t)
	b.setMTU("lan0", 1000)
	b.Forget(t)
	in, _ := big.In(long(1200), dontCut)
	for range openings {
		if got := b.TC(t, big.At, in.Bytes()); !told(in.Bytes(), got.Data) {
			t.Fatalf("a packet that is too big: tc answers %d", int32(got.Code))
		}
	}
}

// TestToldSides: the configuration decides which sides get ICMP errors for refusals.
func TestToldSides(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	closed := b.Flows(false, 20001)["hairpin"]
	closed.External = netip.AddrPortFrom(rig.WANAddress, 81)
	limited := b.Flows(false, 20001)["from the Internet"]
	limited.External, limited.Client = netip.AddrPortFrom(rig.WANAddress, 82), netip.AddrPortFrom(farRouter, 20001)
	for _, sides := range []bpf.HairpinSide{0, bpf.HairpinSideSIDE_LAN, bpf.HairpinSideSIDE_WAN} {
		b.settings(t, func(s *bpf.HairpinSettings) { s.IcmpInterval, s.Told = 0, sides })
		for side, f := range map[bpf.HairpinSide]rig.Flow{bpf.HairpinSideSIDE_LAN: closed, bpf.HairpinSideSIDE_WAN: limited} {
			in, _ := f.In(opener)
			if got := b.TC(t, f.At, in.Bytes()); told(in.Bytes(), got.Data) != (sides&side != 0) {
				t.Errorf("sides %d are told, but %s: %v", sides, f.Client, told(in.Bytes(), got.Data))
			}
		}
	}
}

// TestFragmentsForgotten: ports are lent for 30 seconds (RFC 791, and Linux), then a later fragment waits.
func TestFragmentsForgotten(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	c := &corpus{b: b, nextPort: 20000, nextID: 1000}
	d := c.pieces(c.flow("hairpin", true), long(120), 48, 32)
	c.play(t, hooks[0], d.goes(0).opening())
	var key bpf.HairpinFragmentKey
	var value bpf.HairpinFragment
	for entries := b.Objects.Fragments.Iterate(); entries.Next(&key, &value); {
		value.Seen -= uint64(31 * time.Second)
		lab.Must(b.Objects.Fragments.Put(key, value))
	}
	c.play(t, hooks[0], d.waits(1))
}

// TestFirstlessFlood is rows 39 and 89, for the tables: a hundred thousand fragments without a first leave
// datagrams that come in order alone, and whole packets.
func TestFirstlessFlood(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	x := &executor{b: b, context: [2][]byte{make([]byte, 192)}, out: [2][]byte{make([]byte, 2048)}}
	c := &corpus{b: b, nextPort: 20000, nextID: 1000}
	f := c.flow("from the Internet", true)
	f.Open(t)
	flooding, _ := b.Flows(true, 30000)["from the Internet"].In(long(120))
	piece := fragments(flooding.Bytes(), 48)[1]
	lab.Must(b.Router.Do(func() error {
		for i := range 100_000 {
			frames.SetWord(piece, ipAt+4, uint16(i))
			binary.BigEndian.PutUint32(piece[ipAt+12:], 0x2d000000+uint32(i>>8))
			sealIP(piece)
			if _, err := x.run(0, b.WAN, piece); err != nil {
				return err
			}
		}
		return nil
	}))
	f.Send(t, true, frames.Payload("whole"))
	d := c.pieces(f, long(120), 48, 32)
	for i := range d.in {
		c.play(t, hooks[0], d.goes(i))
	}
}
