// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"hairpin/maps"
	"hairpin/test/lab"
)

const clientISN, serverISN = 1000, 900000

// flow is a connection through the bench's router: who talks to whom, and what each sees.
type flow struct {
	b        *bench
	at       port // where its client is
	mac      net.HardwareAddr
	udp      bool
	client   netip.AddrPort
	external netip.AddrPort
	source   netip.AddrPort // whom the server sees
	target   netip.AddrPort
}

// in is a packet of the client, and the packet that the server must get.
func (f flow) in(change ...func(*frame)) (in, want frame) {
	in = frame{from: f.mac, to: f.at.mac, src: f.client, dst: f.external, udp: f.udp, ttl: 64}
	for _, c := range change {
		c(&in)
	}
	want = in
	want.from, want.to = f.b.lan.mac, serverMAC
	want.src, want.dst = f.source, f.target
	want.ttl--
	return in, want
}

// back is a packet of the server, and the packet that the client must get.
func (f flow) back(change ...func(*frame)) (in, want frame) {
	in = frame{from: serverMAC, to: f.b.lan.mac, src: f.target, dst: f.source, udp: f.udp, ttl: 64}
	for _, c := range change {
		c(&in)
	}
	want = in
	want.from, want.to = f.at.mac, f.mac
	want.src, want.dst = f.external, f.client
	want.ttl--
	return in, want
}

// open sends what opens the connection, and two answers so that both ways are known.
func (f flow) open(tb testing.TB) {
	tb.Helper()
	if f.udp {
		f.send(tb, true, payload("open"))
		f.send(tb, false, payload("answer"))
		f.send(tb, false, payload("answer"))
		return
	}
	f.send(tb, true, tcp("S", clientISN, 0))
	f.send(tb, false, tcp("SA", serverISN, clientISN+1))
	f.send(tb, true, tcp("A", clientISN+1, serverISN+1))
	f.send(tb, false, tcp("A", serverISN+1, clientISN+1))
}

// send puts a packet through TC, which must send it on.
func (f flow) send(tb testing.TB, fromClient bool, change ...func(*frame)) {
	tb.Helper()
	at := f.b.lan
	in, _ := f.back(change...)
	if fromClient {
		at = f.at
		in, _ = f.in(change...)
	}
	if got := f.b.tc(tb, at, in.bytes()); got.code != tcRedirect {
		counters, _ := f.b.tables.Counters()
		tb.Fatalf("tc answers %d to %s > %s; counted: %+v", int32(got.code), in.src, in.dst, counters)
	}
}

func tcp(flags string, seq, ack uint32) func(*frame) {
	return func(f *frame) { f.flags, f.seq, f.ack = flags, seq, ack }
}

func payload(text string) func(*frame) { return func(f *frame) { f.payload = []byte(text) } }
func ttl(n uint8) func(*frame)         { return func(f *frame) { f.ttl = n } }
func trailer(n int) func(*frame)       { return func(f *frame) { f.trailer = bytes.Repeat([]byte{0xa5}, n) } }
func noChecksum(f *frame)              { f.noChecksum = true }
func partial(f *frame)                 { f.partial = true }
func mutate(m func([]byte)) func(*frame) {
	return func(f *frame) { f.mutate = m }
}

// options are n bytes of IP options that a router has nothing to do with.
func options(n int) func(*frame) {
	return func(f *frame) {
		for range n {
			f.options = append(f.options, layers.IPv4Option{OptionType: 1})
		}
	}
}

func with(changes ...func(*frame)) []func(*frame) { return changes }

var benchForwards = []string{
	"web tcp,udp 443 to 192.168.1.20:8443",
	"games udp 6000-6010 to 192.168.1.20:7000-7010",
	"plain tcp 80 to 192.168.1.20:80 reflect router",
	"closed tcp 81 to 192.168.1.20:81 reflect off",
	"friends tcp 82 to 192.168.1.20:82 from 198.51.100.0/24,192.168.1.0/24",
}

func mustForward(tb testing.TB, words string) maps.Forward {
	tb.Helper()
	forward, err := maps.ParseForward(strings.Fields(words))
	if err != nil {
		tb.Fatal(err)
	}
	return forward
}

// flows are the ways to a forward, each from the given port of its client.
func (b *bench) flows(udp bool, clientPort uint16) map[string]flow {
	external, target := netip.AddrPortFrom(wanAddress, 443), netip.AddrPortFrom(server, 8443)
	flows := map[string]flow{
		"from the Internet": {at: b.wan, mac: gatewayMAC, client: netip.AddrPortFrom(internetHost, clientPort)},
		"hairpin":           {at: b.lan, mac: clientMAC, client: netip.AddrPortFrom(client, clientPort)},
		"server to itself":  {at: b.lan, mac: serverMAC, client: netip.AddrPortFrom(server, clientPort)},
		"from another LAN":  {at: b.lan2, mac: otherClientMAC, client: netip.AddrPortFrom(otherClient, clientPort)},
	}
	for name, f := range flows {
		f.b, f.udp, f.external, f.target, f.source = b, udp, external, target, f.client
		if f.at.index == b.lan.index {
			f.source = netip.AddrPortFrom(lanAddress, clientPort)
		}
		flows[name] = f
	}
	return flows
}

// hook is one of the two programs.
type hook struct {
	name             string
	run              func(*bench, testing.TB, port, []byte) answer
	pass, drop, send uint32
}

var hooks = []hook{
	{"tc", (*bench).tc, tcUnspec, tcShot, tcRedirect},
	{"xdp", (*bench).xdp, xdpPass, xdpDrop, xdpRedirect},
}

// sends runs a packet of an open flow, which must come out as want. XDP leaves a packet to TC when
// the next hop was resolved more than a second ago, so what opens the flow is done again then.
func (h hook) sends(tb testing.TB, f flow, prepare func(), at port, in, want frame) {
	tb.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		late := f.b.counted(tb, "next_hop")
		prepare()
		got := h.run(f.b, tb, at, in.bytes())
		if got.code == h.pass && f.b.counted(tb, "next_hop") > late && time.Now().Before(deadline) {
			continue
		}
		if got.code != h.send {
			tb.Fatalf("%s answers %d, want %d", h.name, int32(got.code), h.send)
		}
		if wanted := want.bytes(); !bytes.Equal(got.data, wanted) {
			tb.Fatalf("%s\n got %x\nwant %x", h.name, got.data, wanted)
		}
		return
	}
}

// TestTranslation puts one packet of every kind, in both directions of every way to a forward,
// through both programs. Every byte of the result is compared.
func TestTranslation(t *testing.T) {
	b := newBench(t, benchForwards...)
	kinds := map[string][]func(*frame){
		"empty":               nil,
		"one byte":            with(payload("x")),
		"odd length":          with(payload("hairpin")),
		"full size":           with(payload(strings.Repeat("0123456789", 144))),
		"last hop but one":    with(payload("ttl"), ttl(2)),
		"highest ttl":         with(ttl(255)),
		"4 bytes of options":  with(payload("options"), options(4)),
		"40 bytes of options": with(payload("options"), options(40)),
		"Ethernet padding":    with(payload("pad"), trailer(18)),
		"10 byte trailer":     with(payload("odd"), trailer(10)),
	}
	clientPort := uint16(20000)
	for _, udp := range []bool{false, true} {
		for _, h := range hooks {
			for way := range b.flows(udp, 0) {
				for kind, changes := range kinds {
					clientPort++
					f := b.flows(udp, clientPort)[way]
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

func testBothDirections(t *testing.T, h hook, f flow, changes []func(*frame)) {
	t.Helper()
	prepare := func() { f.open(t) }
	in, want := f.in(append(with(tcp("PA", clientISN+1, serverISN+1)), changes...)...)
	h.sends(t, f, prepare, f.at, in, want)
	in, want = f.back(append(with(tcp("PA", serverISN+1, clientISN+1)), changes...)...)
	h.sends(t, f, prepare, f.b.lan, in, want)
}

// TestOpening: the first packet is translated like all others, by either program.
func TestOpening(t *testing.T) {
	b := newBench(t, benchForwards...)
	clientPort := uint16(20000)
	for _, h := range hooks {
		for _, udp := range []bool{false, true} {
			for way := range b.flows(udp, 0) {
				clientPort++
				f := b.flows(udp, clientPort)[way]
				t.Run(fmt.Sprintf("%s/%s/udp=%v", h.name, way, udp), func(t *testing.T) {
					in, want := f.in(tcp("S", clientISN, 0), payload(""))
					h.sends(t, f, func() {}, f.at, in, want)
				})
			}
		}
	}
}

// TestPortOfABond: XDP on a bond runs at its ports, of which nothing is known: they may be a WAN's or a LAN's. All is left to
// TC, at the bond.
func TestPortOfABond(t *testing.T) {
	b := newBench(t, benchForwards...)
	lab.Cable(b.router, "member0", lab.NewHost(t, "other"), "eth0")
	member := port{index: b.router.Index("member0")}
	f := b.flows(false, 20000)["from the Internet"]
	in, _ := f.in(tcp("S", clientISN, 0))
	if got := b.xdp(t, member, in.bytes()); got.code != xdpPass || !bytes.Equal(got.data, in.bytes()) {
		t.Fatalf("xdp answers %d to an opening, want it to leave this to tc", got.code)
	}
	f.open(t)
	in, _ = f.in(tcp("PA", clientISN+1, serverISN+1), payload("x"))
	if got := b.xdp(t, member, in.bytes()); got.code != xdpPass || !bytes.Equal(got.data, in.bytes()) {
		t.Errorf("xdp answers %d to a packet of a connection, want it to leave this to tc", got.code)
	}
}

// TestUDPChecksumZero: none stays none (RFC 768), and one that becomes zero is written 0xffff.
func TestUDPChecksumZero(t *testing.T) {
	b := newBench(t, benchForwards...)
	for i, h := range hooks {
		f := b.flows(true, uint16(20000+i))["hairpin"]
		in, want := f.in(noChecksum, payload("no checksum"))
		if h.name == "xdp" { // it may be a tunnel, whose inner checksum is not finished
			f.open(t)
			if got := b.xdp(t, f.at, in.bytes()); got.code != xdpPass || !bytes.Equal(got.data, in.bytes()) {
				t.Errorf("xdp answers %d to a datagram without checksum, want it to leave this to tc", got.code)
			}
		} else {
			h.sends(t, f, func() { f.open(t) }, f.at, in, want)
		}

		in, want = f.in(payload("##"))
		for word := range 0x10000 {
			binary.BigEndian.PutUint16(want.payload, uint16(word))
			if data := want.bytes(); binary.BigEndian.Uint16(data[l4Offset(data)+6:]) == 0xffff {
				break
			}
			if word == 0xffff {
				t.Fatal("no payload gives a checksum of zero")
			}
		}
		in.payload = want.payload
		h.sends(t, f, func() { f.open(t) }, f.at, in, want)
	}
}

// TestEveryChecksum goes through all 65,536 values of the transport's checksum and of the IP
// header's: each stays valid (RFC 1624 equation 3; that of RFC 1141 fails for some).
func TestEveryChecksum(t *testing.T) {
	b := newBench(t, benchForwards...)
	for i, h := range hooks {
		for _, udp := range []bool{false, true} {
			f := b.flows(udp, uint16(21000+i))["hairpin"]
			in, _ := f.in(tcp("PA", clientISN+1, serverISN+1), payload("##"))
			data := in.bytes()
			if !transportValid(data) {
				t.Fatal("the test's own packet is invalid")
			}
			l4 := l4Offset(data)
			at := map[bool]int{false: l4 + 16, true: l4 + 6}[udp]
			body := ethernetLength + ipLength(data) - 2
			checked := 0
			for word := range 0x10000 {
				if word%4096 == 0 {
					f.open(t)
				}
				retune(data, body, at, uint16(word))
				retune(data, ethernetLength+4, ipChecksumAt, uint16(word))
				if udp && binary.BigEndian.Uint16(data[at:]) == 0 {
					binary.BigEndian.PutUint16(data[at:], 0xffff)
				}
				got := h.run(b, t, f.at, data)
				if got.code == h.pass && h.name == "xdp" {
					f.open(t) // next hop due, or a checksum that looks partial: TC's
					continue
				}
				checked++
				if !ipValid(got.data) || !transportValid(got.data) || !ipValid(data) || !transportValid(data) {
					t.Fatalf("%s udp=%v word %#04x: checksums %v %v, before %v %v", h.name, udp, word,
						ipValid(got.data), transportValid(got.data), ipValid(data), transportValid(data))
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
	binary.BigEndian.PutUint16(data[checkAt:], ^fold(uint32(^check)+uint32(^old)+uint32(word)))
}

// TestCorruptionStays: a wrong checksum is changed by the same difference and stays wrong, so that
// the receiver still sees what the wire did.
func TestCorruptionStays(t *testing.T) {
	b := newBench(t, benchForwards...)
	flip := func(at int) func(*frame) { return mutate(func(data []byte) { data[at] ^= 0x40 }) }
	for i, h := range hooks {
		for j, udp := range []bool{false, true} {
			f := b.flows(udp, uint16(20000+10*i+j))["hairpin"]
			for name, at := range map[string]int{"ip header": ipChecksumAt, "payload": 14 + 20 + 20 + 2} {
				in, _ := f.in(tcp("PA", clientISN+1, serverISN+1), payload("some payload to damage"), flip(at))
				want := in
				_, want = f.in(tcp("PA", clientISN+1, serverISN+1), payload("some payload to damage"), flip(at))
				h.sends(t, f, func() { f.open(t) }, f.at, in, want)
				if data := in.bytes(); ipValid(data) && transportValid(data) {
					t.Fatalf("%s: the test damages nothing", name)
				}
			}
		}
	}
}

// TestPartialChecksum: XDP leaves a checksum that an offload is to finish to TC.
func TestPartialChecksum(t *testing.T) {
	b := newBench(t, benchForwards...)
	for i, udp := range []bool{false, true} {
		f := b.flows(udp, uint16(20000+i))["hairpin"]
		in, _ := f.in(tcp("PA", clientISN+1, serverISN+1), payload("partial"), partial)
		before := b.counted(t, "partial_checksum")
		for deadline := time.Now().Add(30 * time.Second); b.counted(t, "partial_checksum") == before; {
			f.open(t)
			got := b.xdp(t, f.at, in.bytes())
			if got.code != xdpPass || !bytes.Equal(got.data, in.bytes()) {
				t.Fatalf("udp=%v: xdp answers %d", udp, got.code)
			}
			if time.Now().After(deadline) {
				t.Fatal("never recognised")
			}
		}
	}
}

// TestTruncated: a frame cut at any length is passed or dropped, unchanged and without trace.
func TestTruncated(t *testing.T) {
	b := newBench(t, benchForwards...)
	for _, udp := range []bool{false, true} {
		f := b.flows(udp, 20000)["hairpin"]
		in, _ := f.in(tcp("S", clientISN, 0), payload("some payload"), options(8))
		data := in.bytes()
		// The kernel itself runs no program on less than an IP header.
		for length := ethernetLength + 20; length < len(data); length++ {
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

func mustAddrPort(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }
