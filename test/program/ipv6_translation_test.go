// SPDX-License-Identifier: Apache-2.0

package program

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"hairpin/bpf"
	"hairpin/test/frames"
	"hairpin/test/rig"
)

// unlimited: answers to refused openings from inside, at any rate.
func unlimited(s *bpf.HairpinSettings) { s.IcmpInterval, s.Told = 0, bpf.HairpinSideSIDE_LAN }

// sends6 runs a packet of an open flow, which must leave as want; see hook.sends.
func (h hook) sends6(t *testing.T, f flow6, prepare func(), at rig.Port, in, want []byte) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		late := f.Rig.Counted(t, "next_hop")
		prepare()
		got := h.run(benchOf(f.Flow), t, at, in)
		if got.Code == h.pass && f.Rig.Counted(t, "next_hop") > late && time.Now().Before(deadline) {
			continue
		}
		if got.Code != h.send {
			t.Fatalf("%s answers %d, want %d to %x", h.name, int32(got.Code), h.send, in)
		}
		if !bytes.Equal(got.Data, want) {
			t.Fatalf("%s: %s\n got %x\nwant %x", h.name, difference(want, got.Data), got.Data, want)
		}
		return
	}
}

// open6 sends what opens the connection, through TC.
func (f flow6) open6(t *testing.T) {
	t.Helper()
	send := func(at rig.Port, in, want frames.Frame6) {
		t.Helper()
		if got := f.Rig.TC(t, at, in.Bytes()); got.Code != rig.TCRedirect {
			counters, _ := f.Rig.Tables.Counters()
			t.Fatalf("tc answers %d to %s > %s; counted: %+v", int32(got.Code), in.Src, in.Dst, counters)
		}
	}
	from := func(change ...func(*frames.Frame6)) { t.Helper(); in, want := f.In(change...); send(f.At, in, want) }
	back := func(change ...func(*frames.Frame6)) {
		t.Helper()
		in, want := f.Back(change...)
		send(f.Rig.LAN, in, want)
	}
	if f.UDP {
		from(also(frames.Payload("open")))
		back(also(frames.Payload("answer")))
		back(also(frames.Payload("answer")))
		return
	}
	from(also(frames.TCP("S", rig.ClientISN, 0)))
	back(also(frames.TCP("SA", rig.ServerISN, rig.ClientISN+1)))
	from(also(frames.TCP("A", rig.ClientISN+1, rig.ServerISN+1)))
	back(also(frames.TCP("A", rig.ServerISN+1, rig.ClientISN+1)))
}

// TestTranslation6 puts one packet of every kind, in both directions of every way to a forward,
// through both programs. Every byte of the result is compared.
func TestTranslation6(t *testing.T) {
	b := newBench6(t)
	kinds := map[string][]func(*frames.Frame6){
		"empty":                nil,
		"one byte":             {also(frames.Payload("x"))},
		"odd length":           {also(frames.Payload("hairpin"))},
		"full size":            {also(frames.Payload(strings.Repeat("0123456789", 142)))},
		"last hop but one":     {also(frames.TTL(2))},
		"highest hop limit":    {also(frames.TTL(255))},
		"traffic class, label": {func(f *frames.Frame6) { f.TOS, f.Label = 0xb9, 0xabcde }},
		"hop-by-hop":           {extended(padding(headerHop, 8)), also(frames.Payload("options"))},
		"destination options":  {extended(padding(headerDest, 16)), also(frames.Payload("options"))},
		"both, and again":      {extended(padding(headerHop, 8), padding(headerDest, 8), padding(headerDest, 8))},
		"64 bytes of options":  {extended(padding(headerHop, 24), padding(headerDest, 40)), also(frames.Payload("options"))},
		"atomic fragment":      {extended(frames.FragmentHeader6(77, 0, false)), also(frames.Payload("RFC 6946"))},
		"atomic fragment 0":    {extended(frames.FragmentHeader6(0, 0, false)), also(frames.Payload("RFC 6946"))},
		"trailer":              {also(trailer(9)), also(frames.Payload("odd"))},
	}
	port := uint16(20000)
	for _, udp := range []bool{false, true} {
		for _, h := range hooks {
			for _, way := range ways6Names {
				for kind, changes := range kinds {
					port++
					f := b.flow6(way, udp, port)
					t.Run(fmt.Sprintf("%s/%s/%s/udp=%v", h.name, way, kind, udp), func(t *testing.T) {
						in, want := f.In(append([]func(*frames.Frame6){also(frames.TCP("PA", rig.ClientISN+1, rig.ServerISN+1))}, changes...)...)
						h.sends6(t, f, func() { f.open6(t) }, f.At, in.Bytes(), want.Bytes())
						in, want = f.Back(append([]func(*frames.Frame6){also(frames.TCP("PA", rig.ServerISN+1, rig.ClientISN+1))}, changes...)...)
						h.sends6(t, f, func() { f.open6(t) }, f.Rig.LAN, in.Bytes(), want.Bytes())
					})
				}
			}
		}
	}
}

// TestUDPChecksum6: none stays none (RFC 6935), and one that becomes zero is written 0xffff.
func TestUDPChecksum6(t *testing.T) {
	b := newBench6(t)
	for i, h := range hooks {
		f := b.flow6("hairpin", true, uint16(20000+i))
		in, want := f.In(also(noChecksum), also(frames.Payload("no checksum")))
		if h.name == "xdp" { // it may be a tunnel, whose inner checksum is not finished
			f.open6(t)
			if got := b.XDP(t, f.At, in.Bytes()); got.Code != rig.XDPPass || !bytes.Equal(got.Data, in.Bytes()) {
				t.Errorf("xdp answers %d to a datagram without checksum, want it to leave this to tc", got.Code)
			}
		} else {
			h.sends6(t, f, func() { f.open6(t) }, f.At, in.Bytes(), want.Bytes())
		}

		in, want = f.In(also(frames.Payload("##")))
		for word := range 0x10000 {
			frames.SetWord(want.Payload, 0, uint16(word))
			if data := want.Bytes(); frames.WordAt(data, frames.EthernetLength+frames.IP6Header+6) == 0xffff {
				break
			}
			if word == 0xffff {
				t.Fatal("no payload gives a checksum of zero")
			}
		}
		in.Payload = want.Payload
		h.sends6(t, f, func() { f.open6(t) }, f.At, in.Bytes(), want.Bytes())
	}
}

// TestTruncated6: a frame cut at any length is passed or dropped, unchanged and without trace.
func TestTruncated6(t *testing.T) {
	b := newBench6(t)
	for _, udp := range []bool{false, true} {
		f := b.flow6("hairpin", udp, 20000)
		in, _ := f.In(also(frames.TCP("S", rig.ClientISN, 0)), also(frames.Payload("some payload")), extended(padding(headerHop, 8), padding(headerDest, 16)))
		data := in.Bytes()
		// The kernel itself runs no program on less than an IP header.
		for length := frames.EthernetLength + frames.IP6Header; length < len(data); length++ {
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
