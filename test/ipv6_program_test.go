// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"hairpin/bpf"
)

// unlimited: answers to refused openings from inside, at any rate.
func unlimited(s *bpf.HairpinSettings) { s.IcmpInterval, s.Told = 0, bpf.HairpinSideSIDE_LAN }

// sends6 runs a packet of an open flow, which must leave as want; see hook.sends.
func (h hook) sends6(t *testing.T, f flow6, prepare func(), at port, in, want []byte) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		late := f.b.counted(t, "next_hop")
		prepare()
		got := h.run(f.b, t, at, in)
		if got.code == h.pass && f.b.counted(t, "next_hop") > late && time.Now().Before(deadline) {
			continue
		}
		if got.code != h.send {
			t.Fatalf("%s answers %d, want %d to %x", h.name, int32(got.code), h.send, in)
		}
		if !bytes.Equal(got.data, want) {
			t.Fatalf("%s: %s\n got %x\nwant %x", h.name, difference(want, got.data), got.data, want)
		}
		return
	}
}

// open6 sends what opens the connection, through TC.
func (f flow6) open6(t *testing.T) {
	t.Helper()
	send := func(at port, in, want frame6) {
		t.Helper()
		if got := f.b.tc(t, at, in.bytes()); got.code != tcRedirect {
			counters, _ := f.b.tables.Counters()
			t.Fatalf("tc answers %d to %s > %s; counted: %+v", int32(got.code), in.src, in.dst, counters)
		}
	}
	from := func(change ...func(*frame6)) { t.Helper(); in, want := f.in(change...); send(f.at, in, want) }
	back := func(change ...func(*frame6)) { t.Helper(); in, want := f.back(change...); send(f.b.lan, in, want) }
	if f.udp {
		from(also(payload("open")))
		back(also(payload("answer")))
		back(also(payload("answer")))
		return
	}
	from(also(tcp("S", clientISN, 0)))
	back(also(tcp("SA", serverISN, clientISN+1)))
	from(also(tcp("A", clientISN+1, serverISN+1)))
	back(also(tcp("A", serverISN+1, clientISN+1)))
}

// TestTranslation6 puts one packet of every kind, in both directions of every way to a forward,
// through both programs. Every byte of the result is compared.
func TestTranslation6(t *testing.T) {
	b := newBench6(t)
	kinds := map[string][]func(*frame6){
		"empty":                nil,
		"one byte":             {also(payload("x"))},
		"odd length":           {also(payload("hairpin"))},
		"full size":            {also(payload(strings.Repeat("0123456789", 142)))},
		"last hop but one":     {also(ttl(2))},
		"highest hop limit":    {also(ttl(255))},
		"traffic class, label": {func(f *frame6) { f.tos, f.label = 0xb9, 0xabcde }},
		"hop-by-hop":           {extended(padding(headerHop, 8)), also(payload("options"))},
		"destination options":  {extended(padding(headerDest, 16)), also(payload("options"))},
		"both, and again":      {extended(padding(headerHop, 8), padding(headerDest, 8), padding(headerDest, 8))},
		"64 bytes of options":  {extended(padding(headerHop, 24), padding(headerDest, 40)), also(payload("options"))},
		"atomic fragment":      {extended(piece6(77, 0, false)), also(payload("RFC 6946"))},
		"atomic fragment 0":    {extended(piece6(0, 0, false)), also(payload("RFC 6946"))},
		"trailer":              {also(trailer(9)), also(payload("odd"))},
	}
	port := uint16(20000)
	for _, udp := range []bool{false, true} {
		for _, h := range hooks {
			for _, way := range ways6Names {
				for kind, changes := range kinds {
					port++
					f := b.flow6(way, udp, port)
					t.Run(fmt.Sprintf("%s/%s/%s/udp=%v", h.name, way, kind, udp), func(t *testing.T) {
						in, want := f.in(append([]func(*frame6){also(tcp("PA", clientISN+1, serverISN+1))}, changes...)...)
						h.sends6(t, f, func() { f.open6(t) }, f.at, in.bytes(), want.bytes())
						in, want = f.back(append([]func(*frame6){also(tcp("PA", serverISN+1, clientISN+1))}, changes...)...)
						h.sends6(t, f, func() { f.open6(t) }, f.b.lan, in.bytes(), want.bytes())
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
		in, want := f.in(also(noChecksum), also(payload("no checksum")))
		if h.name == "xdp" { // it may be a tunnel, whose inner checksum is not finished
			f.open6(t)
			if got := b.xdp(t, f.at, in.bytes()); got.code != xdpPass || !bytes.Equal(got.data, in.bytes()) {
				t.Errorf("xdp answers %d to a datagram without checksum, want it to leave this to tc", got.code)
			}
		} else {
			h.sends6(t, f, func() { f.open6(t) }, f.at, in.bytes(), want.bytes())
		}

		in, want = f.in(also(payload("##")))
		for word := range 0x10000 {
			setWord(want.payload, 0, uint16(word))
			if data := want.bytes(); wordAt(data, ethernetLength+ip6Header+6) == 0xffff {
				break
			}
			if word == 0xffff {
				t.Fatal("no payload gives a checksum of zero")
			}
		}
		in.payload = want.payload
		h.sends6(t, f, func() { f.open6(t) }, f.at, in.bytes(), want.bytes())
	}
}

// TestTruncated6: a frame cut at any length is passed or dropped, unchanged and without trace.
func TestTruncated6(t *testing.T) {
	b := newBench6(t)
	for _, udp := range []bool{false, true} {
		f := b.flow6("hairpin", udp, 20000)
		in, _ := f.in(also(tcp("S", clientISN, 0)), also(payload("some payload")), extended(padding(headerHop, 8), padding(headerDest, 16)))
		data := in.bytes()
		// The kernel itself runs no program on less than an IP header.
		for length := ethernetLength + ip6Header; length < len(data); length++ {
			for _, h := range hooks {
				got := h.run(b, t, f.at, data[:length])
				if got.code != h.pass && got.code != h.drop || !bytes.Equal(got.data, data[:length]) {
					t.Errorf("%s, udp=%v, %d bytes: answers %d", h.name, udp, length, int32(got.code))
				}
			}
		}
	}
	if list := b.connections(t); len(list) != 0 {
		t.Errorf("connections were made: %+v", list)
	}
}
