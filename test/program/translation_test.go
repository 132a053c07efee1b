// SPDX-License-Identifier: Apache-2.0

package program

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

func trailer(n int) func(*frames.Frame) {
	return func(f *frames.Frame) { f.Trailer = bytes.Repeat([]byte{0xa5}, n) }
}

func noChecksum(f *frames.Frame) { f.NoChecksum = true }

func partial(f *frames.Frame) { f.Partial = true }

// hook is one of the two programs.
type hook struct {
	name             string
	run              func(*bench, testing.TB, rig.Port, []byte) rig.Answer
	pass, drop, send uint32
}

var hooks = []hook{
	{"tc", (*bench).TC, rig.TCUnspec, rig.TCShot, rig.TCRedirect},
	{"xdp", (*bench).XDP, rig.XDPPass, rig.XDPDrop, rig.XDPRedirect},
}

// sends runs a packet of an open flow, which must come out as want. XDP leaves a packet to TC when
// the next hop was resolved more than a second ago, so what opens the flow is done again then.
func (h hook) sends(tb testing.TB, f rig.Flow, prepare func(), at rig.Port, in, want frames.Frame) {
	tb.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		late := f.Rig.Counted(tb, "next_hop")
		prepare()
		got := h.run(benchOf(f), tb, at, in.Bytes())
		if got.Code == h.pass && f.Rig.Counted(tb, "next_hop") > late && time.Now().Before(deadline) {
			continue
		}
		if got.Code != h.send {
			tb.Fatalf("%s answers %d, want %d", h.name, int32(got.Code), h.send)
		}
		if wanted := want.Bytes(); !bytes.Equal(got.Data, wanted) {
			tb.Fatalf("%s\n got %x\nwant %x", h.name, got.Data, wanted)
		}
		return
	}
}

// TestTranslation puts one packet of every kind, in both directions of every way to a forward,
// through both programs. Every byte of the result is compared.
func TestTranslation(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	kinds := map[string][]func(*frames.Frame){
		"empty":               nil,
		"one byte":            frames.With(frames.Payload("x")),
		"odd length":          frames.With(frames.Payload("hairpin")),
		"full size":           frames.With(frames.Payload(strings.Repeat("0123456789", 144))),
		"last hop but one":    frames.With(frames.Payload("ttl"), frames.TTL(2)),
		"highest ttl":         frames.With(frames.TTL(255)),
		"4 bytes of options":  frames.With(frames.Payload("options"), frames.Options(4)),
		"40 bytes of options": frames.With(frames.Payload("options"), frames.Options(40)),
		"Ethernet padding":    frames.With(frames.Payload("pad"), trailer(18)),
		"10 byte trailer":     frames.With(frames.Payload("odd"), trailer(10)),
	}
	clientPort := uint16(20000)
	for _, udp := range []bool{false, true} {
		for _, h := range hooks {
			for way := range b.Flows(udp, 0) {
				for kind, changes := range kinds {
					clientPort++
					f := b.Flows(udp, clientPort)[way]
					if h.name == "xdp" && strings.HasSuffix(kind, "bytes of options") {
						continue // IPv4 options are TC's to read
					}
					t.Run(fmt.Sprintf("%s/%s/%s/udp=%v", h.name, way, kind, udp), func(t *testing.T) {
						testBothDirections(t, h, f, changes)
					})
				}
			}
		}
	}
}

func testBothDirections(t *testing.T, h hook, f rig.Flow, changes []func(*frames.Frame)) {
	t.Helper()
	prepare := func() { f.Open(t) }
	in, want := f.In(append(frames.With(frames.TCP("PA", rig.ClientISN+1, rig.ServerISN+1)), changes...)...)
	h.sends(t, f, prepare, f.At, in, want)
	in, want = f.Back(append(frames.With(frames.TCP("PA", rig.ServerISN+1, rig.ClientISN+1)), changes...)...)
	h.sends(t, f, prepare, f.Rig.LAN, in, want)
}

// TestOpening: the first packet is translated like all others, by either program.
func TestOpening(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	clientPort := uint16(20000)
	for _, h := range hooks {
		for _, udp := range []bool{false, true} {
			for way := range b.Flows(udp, 0) {
				clientPort++
				f := b.Flows(udp, clientPort)[way]
				t.Run(fmt.Sprintf("%s/%s/udp=%v", h.name, way, udp), func(t *testing.T) {
					in, want := f.In(frames.TCP("S", rig.ClientISN, 0), frames.Payload(""))
					h.sends(t, f, func() {}, f.At, in, want)
				})
			}
		}
	}
}

// TestPortOfABond: XDP on a bond runs at its ports, of which nothing is known: they may be a WAN's or a LAN's. All is left to
// TC, at the bond.
func TestPortOfABond(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	lab.Cable(b.Router, "member0", lab.NewHost(t, "other"), "eth0")
	member := rig.Port{Index: b.Router.Index("member0")}
	f := b.Flows(false, 20000)["from the Internet"]
	in, _ := f.In(frames.TCP("S", rig.ClientISN, 0))
	if got := b.XDP(t, member, in.Bytes()); got.Code != rig.XDPPass || !bytes.Equal(got.Data, in.Bytes()) {
		t.Fatalf("xdp answers %d to an opening, want it to leave this to tc", got.Code)
	}
	f.Open(t)
	in, _ = f.In(frames.TCP("PA", rig.ClientISN+1, rig.ServerISN+1), frames.Payload("x"))
	if got := b.XDP(t, member, in.Bytes()); got.Code != rig.XDPPass || !bytes.Equal(got.Data, in.Bytes()) {
		t.Errorf("xdp answers %d to a packet of a connection, want it to leave this to tc", got.Code)
	}
}

// TestUDPChecksumZero: none stays none (RFC 768), and one that becomes zero is written 0xffff.
func TestUDPChecksumZero(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	for i, h := range hooks {
		f := b.Flows(true, uint16(20000+i))["hairpin"]
		in, want := f.In(noChecksum, frames.Payload("no checksum"))
		if h.name == "xdp" { // it may be a tunnel, whose inner checksum is not finished
			f.Open(t)
			if got := b.XDP(t, f.At, in.Bytes()); got.Code != rig.XDPPass || !bytes.Equal(got.Data, in.Bytes()) {
				t.Errorf("xdp answers %d to a datagram without checksum, want it to leave this to tc", got.Code)
			}
		} else {
			h.sends(t, f, func() { f.Open(t) }, f.At, in, want)
		}

		in, want = f.In(frames.Payload("##"))
		for word := range 0x10000 {
			binary.BigEndian.PutUint16(want.Payload, uint16(word))
			if data := want.Bytes(); binary.BigEndian.Uint16(data[frames.L4Offset(data)+6:]) == 0xffff {
				break
			}
			if word == 0xffff {
				t.Fatal("no payload gives a checksum of zero")
			}
		}
		in.Payload = want.Payload
		h.sends(t, f, func() { f.Open(t) }, f.At, in, want)
	}
}

// TestEveryChecksum tries all 65,536 values of the transport checksum and of the IP header checksum. Each result must be valid. (RFC 1624
// equation 3 is right for all values, the equation of RFC 1141 is not.)
func TestEveryChecksum(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	for i, h := range hooks {
		for _, udp := range []bool{false, true} {
			f := b.Flows(udp, uint16(21000+i))["hairpin"]
			in, _ := f.In(frames.TCP("PA", rig.ClientISN+1, rig.ServerISN+1), frames.Payload("##"))
			data := in.Bytes()
			if !transportValid(data) {
				t.Fatal("the test's own packet is invalid")
			}
			l4 := frames.L4Offset(data)
			at := map[bool]int{false: l4 + 16, true: l4 + 6}[udp]
			body := frames.EthernetLength + frames.IPLength(data) - 2
			checked := 0
			for word := range 0x10000 {
				if word%4096 == 0 {
					f.Open(t)
				}
				retune(data, body, at, uint16(word))
				retune(data, frames.EthernetLength+4, frames.IPChecksumAt, uint16(word))
				if udp && binary.BigEndian.Uint16(data[at:]) == 0 {
					binary.BigEndian.PutUint16(data[at:], 0xffff)
				}
				got := h.run(b, t, f.At, data)
				if got.Code == h.pass && h.name == "xdp" {
					f.Open(t) // next hop due, or a checksum that looks partial: TC's
					continue
				}
				checked++
				if !frames.IPValid(got.Data) || !transportValid(got.Data) || !frames.IPValid(data) || !transportValid(data) {
					t.Fatalf("%s udp=%v word %#04x: checksums %v %v, before %v %v", h.name, udp, word,
						frames.IPValid(got.Data), transportValid(got.Data), frames.IPValid(data), transportValid(data))
				}
			}
			if checked < 0xff00 {
				t.Errorf("%s udp=%v: only %d of 65536 were sent", h.name, udp, checked)
			}
		}
	}
}

// retune sets a 16 bit word of the packet and makes its checksum good.
func retune(data []byte, wordAt, checkAt int, word uint16) {
	old := binary.BigEndian.Uint16(data[wordAt:])
	check := binary.BigEndian.Uint16(data[checkAt:])
	binary.BigEndian.PutUint16(data[wordAt:], word)
	binary.BigEndian.PutUint16(data[checkAt:], ^frames.Fold(uint32(^check)+uint32(^old)+uint32(word)))
}

// TestCorruptionStays: a wrong checksum is changed by the same difference and stays wrong, so that
// the receiver still sees what the wire did.
func TestCorruptionStays(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	flip := func(at int) func(*frames.Frame) { return frames.Mutate(func(data []byte) { data[at] ^= 0x40 }) }
	for i, h := range hooks {
		for j, udp := range []bool{false, true} {
			f := b.Flows(udp, uint16(20000+10*i+j))["hairpin"]
			for name, at := range map[string]int{"ip header": frames.IPChecksumAt, "payload": 14 + 20 + 20 + 2} {
				in, _ := f.In(frames.TCP("PA", rig.ClientISN+1, rig.ServerISN+1), frames.Payload("some payload to damage"), flip(at))
				want := in
				_, want = f.In(frames.TCP("PA", rig.ClientISN+1, rig.ServerISN+1), frames.Payload("some payload to damage"), flip(at))
				h.sends(t, f, func() { f.Open(t) }, f.At, in, want)
				if data := in.Bytes(); frames.IPValid(data) && transportValid(data) {
					t.Fatalf("%s: the test damages nothing", name)
				}
			}
		}
	}
}

// TestPartialChecksum: XDP leaves a checksum that an offload is to finish to TC.
func TestPartialChecksum(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	for i, udp := range []bool{false, true} {
		f := b.Flows(udp, uint16(20000+i))["hairpin"]
		in, _ := f.In(frames.TCP("PA", rig.ClientISN+1, rig.ServerISN+1), frames.Payload("partial"), partial)
		before := b.Counted(t, "partial_checksum")
		for deadline := time.Now().Add(30 * time.Second); b.Counted(t, "partial_checksum") == before; {
			f.Open(t)
			got := b.XDP(t, f.At, in.Bytes())
			if got.Code != rig.XDPPass || !bytes.Equal(got.Data, in.Bytes()) {
				t.Fatalf("udp=%v: xdp answers %d", udp, got.Code)
			}
			if time.Now().After(deadline) {
				t.Fatal("never recognised")
			}
		}
	}
}

// TestTruncated: a frame cut at any length is passed or dropped, unchanged and without trace.
func TestTruncated(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	for _, udp := range []bool{false, true} {
		f := b.Flows(udp, 20000)["hairpin"]
		in, _ := f.In(frames.TCP("S", rig.ClientISN, 0), frames.Payload("some payload"), frames.Options(8))
		data := in.Bytes()
		// The kernel itself runs no program on less than an IP header.
		for length := frames.EthernetLength + 20; length < len(data); length++ {
			for _, h := range hooks {
				got := h.run(b, t, f.At, data[:length])
				if got.Code != h.pass && got.Code != h.drop || !bytes.Equal(got.Data, data[:length]) {
					t.Errorf("%s, udp=%v, %d bytes: answers %d", h.name, udp, length, int32(got.Code))
				}
			}
		}
	}
	if list := b.Connections(t); len(list) != 0 {
		t.Errorf("connections were made: %+v", list)
	}
}

func mustAddrPort(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }
