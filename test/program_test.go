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
	"github.com/vishvananda/netlink"

	"hairpin/maps"
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

// TestUDPChecksumZero: none stays none (RFC 768), and one that becomes zero is written 0xffff.
func TestUDPChecksumZero(t *testing.T) {
	b := newBench(t, benchForwards...)
	for i, h := range hooks {
		f := b.flows(true, uint16(20000+i))["hairpin"]
		in, want := f.in(noChecksum, payload("no checksum"))
		h.sends(t, f, func() { f.open(t) }, f.at, in, want)

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

// TestNotOursPasses: what is not ours passes, byte for byte, and leaves no trace.
func TestNotOursPasses(t *testing.T) {
	b := newBench(t, benchForwards...)
	at := func(data []byte, offset int, value ...byte) []byte {
		copy(data[offset:], value)
		return data
	}
	other := func(dst string, changes ...func(*frame)) []byte {
		in, _ := b.flows(false, 20000)["hairpin"].in(append(with(tcp("S", clientISN, 0)), changes...)...)
		in.dst = netip.MustParseAddrPort(dst)
		return in.bytes()
	}
	syn := func() []byte { return other("203.0.113.1:443") }
	cases := map[string][]byte{
		"a host on the Internet":       other("198.51.100.9:443"),
		"another port":                 other("203.0.113.1:444"),
		"another protocol's port":      other("203.0.113.1:6000"),
		"directed broadcast":           other("203.0.113.255:443"),
		"multicast":                    other("224.0.0.251:443"),
		"broadcast":                    other("255.255.255.255:443"),
		"the router's LAN address":     other("192.168.1.1:443"),
		"the server itself":            other("192.168.1.20:8443"),
		"ARP":                          at(syn(), 12, 0x08, 0x06),
		"IPv6":                         at(syn(), 12, 0x86, 0xdd),
		"LLDP":                         at(syn(), 12, 0x88, 0xcc),
		"PPPoE":                        at(syn(), 12, 0x88, 0x64),
		"MPLS":                         at(syn(), 12, 0x88, 0x47),
		"802.3 length":                 at(syn(), 12, 0x00, 0x40),
		"VLAN tag":                     append(at(syn(), 12, 0x81, 0x00), 0, 0),
		"two VLAN tags":                append(at(syn(), 12, 0x88, 0xa8), 0, 0),
		"version 0":                    at(syn(), 14, 0x05),
		"version 5":                    at(syn(), 14, 0x55),
		"version 6":                    at(syn(), 14, 0x65),
		"version 15":                   at(syn(), 14, 0xf5),
		"ihl 0":                        at(syn(), 14, 0x40),
		"ihl 4":                        at(syn(), 14, 0x44),
		"ICMP":                         at(syn(), 23, 1),
		"IPIP":                         at(syn(), 23, 4),
		"IPv6 in IPv4":                 at(syn(), 23, 41),
		"GRE":                          at(syn(), 23, 47),
		"ESP":                          at(syn(), 23, 50),
		"SCTP":                         at(syn(), 23, 132),
		"UDP-Lite":                     at(syn(), 23, 136),
		"protocol 255":                 at(syn(), 23, 255),
		"a later fragment of nothing":  at(syn(), 20, 0x00, 0x10),
		"malformed but another's port": other("203.0.113.1:444", mutate(func(d []byte) { d[46] = 0x10 })),
	}
	for name, data := range cases {
		for _, h := range hooks {
			got := h.run(b, t, b.lan, data)
			if got.code != h.pass || !bytes.Equal(got.data, data) {
				t.Errorf("%s: %s answers %d, changed %v", name, h.name, int32(got.code), !bytes.Equal(got.data, data))
			}
		}
	}
	if list := b.connections(t); len(list) != 0 {
		t.Errorf("connections were made: %+v", list)
	}
}

// TestDropped: what is ours but invalid, or may not be, is dropped for its reason and makes no state.
func TestDropped(t *testing.T) {
	b := newBench(t, benchForwards...)
	set := func(offset int, value ...byte) func(*frame) {
		return mutate(func(data []byte) { copy(data[offset:], value) })
	}
	udp := func(f *frame) { f.udp = true }
	from := func(address string) func(*frame) {
		return func(f *frame) { f.src = netip.MustParseAddrPort(address) }
	}
	to := func(port uint16) func(*frame) {
		return func(f *frame) { f.dst = netip.AddrPortFrom(wanAddress, port) }
	}
	const ip, l4 = 14, 34
	cases := []struct {
		name, way, reason string
		changes           []func(*frame)
	}{
		{"tot_len 0", "hairpin", "malformed", with(set(ip+2, 0, 0))},
		{"tot_len shorter than the header", "hairpin", "malformed", with(set(ip+2, 0, 19))},
		{"tot_len ends in the ports", "hairpin", "malformed", with(set(ip+2, 0, 23))},
		{"tot_len ends in the TCP header", "hairpin", "malformed", with(set(ip+2, 0, 27))},
		{"tot_len longer than the frame", "hairpin", "malformed", with(set(ip+2, 0x05, 0xdc))},
		{"data offset 4", "hairpin", "malformed", with(set(l4+12, 0x40))},
		{"data offset past the end", "hairpin", "malformed", with(set(l4+12, 0xf0))},
		{"SYN FIN", "hairpin", "malformed", with(set(l4+13, 0x03))},
		{"SYN RST", "hairpin", "malformed", with(set(l4+13, 0x06))},
		{"FIN PSH URG", "hairpin", "malformed", with(set(l4+13, 0x29))},
		{"no flags", "hairpin", "malformed", with(set(l4+13, 0x00))},
		{"source port 0", "hairpin", "malformed", with(set(l4, 0, 0))},
		{"destination port 0", "hairpin", "malformed", with(set(l4+2, 0, 0))},
		{"UDP length 7", "hairpin", "malformed", with(udp, payload("12345678"), set(l4+4, 0, 7))},
		{"UDP length past the end", "hairpin", "malformed", with(udp, payload("12345678"), set(l4+4, 0, 17))},
		{"UDP source port 0", "from the Internet", "malformed", with(udp, set(l4, 0, 0))},

		{"ACK out of nothing", "from the Internet", "non_syn", with(tcp("A", 5, 6))},
		{"SYN ACK out of nothing", "from the Internet", "non_syn", with(tcp("SA", 5, 6))},
		{"RST out of nothing", "hairpin", "non_syn", with(tcp("R", 5, 0))},
		{"FIN out of nothing", "hairpin", "non_syn", with(tcp("FA", 5, 6))},

		{"a LAN's address on the WAN", "from the Internet", "spoofed", with(from("192.168.1.50:20000"))},
		{"another LAN's address on the WAN", "from the Internet", "spoofed", with(from("192.168.2.60:20000"))},
		{"the router's address on the WAN", "from the Internet", "spoofed", with(from("192.168.1.1:20000"))},
		{"the external address on the WAN", "from the Internet", "spoofed", with(from("203.0.113.1:20000"))},
		{"land", "from the Internet", "spoofed", with(from("203.0.113.1:443"))},
		{"loopback on the WAN", "from the Internet", "spoofed", with(from("127.0.0.1:20000"))},
		{"this network on the WAN", "from the Internet", "spoofed", with(from("0.1.2.3:20000"))},
		{"multicast on the WAN", "from the Internet", "spoofed", with(from("224.1.2.3:20000"))},
		{"class E on the WAN", "from the Internet", "spoofed", with(from("240.1.2.3:20000"))},
		{"a private address on the WAN", "from the Internet", "spoofed", with(from("10.1.2.3:20000"))},
		{"shared space on the WAN", "from the Internet", "spoofed", with(from("100.64.2.3:20000"))},
		{"another LAN's address on a LAN", "hairpin", "spoofed", with(from("192.168.2.60:20000"))},
		{"an Internet address on a LAN", "hairpin", "spoofed", with(from("198.51.100.7:20000"))},
		{"the router's address on a LAN", "hairpin", "spoofed", with(from("192.168.1.1:20000"))},
		{"the external address on a LAN", "hairpin", "spoofed", with(from("203.0.113.1:20000"))},
		{"broadcast on a LAN", "hairpin", "spoofed", with(from("192.168.1.255:20000"))},

		{"reflect off", "hairpin", "reflect_off", with(to(81))},
		{"not in from, Internet", "from the Internet", "not_allowed", with(to(82), from("192.0.2.9:20000"))},
		{"not in from, LAN", "from another LAN", "not_allowed", with(to(82))},
	}
	for _, c := range cases {
		for _, h := range hooks {
			f := b.flows(false, 20000)[c.way]
			in, _ := f.in(append(with(tcp("S", clientISN, 0)), c.changes...)...)
			before := b.counted(t, c.reason)
			got := h.run(b, t, f.at, in.bytes())
			if got.code != h.drop || !bytes.Equal(got.data, in.bytes()) {
				t.Errorf("%s: %s answers %d, want drop", c.name, h.name, int32(got.code))
			}
			if n := b.counted(t, c.reason) - before; n != 1 {
				t.Errorf("%s: %s counted %s %d times", c.name, h.name, c.reason, n)
			}
		}
	}
	if list := b.connections(t); len(list) != 0 {
		t.Errorf("connections were made: %+v", list)
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

// TestLastHop: a packet whose TTL ends here is not sent on, by neither program.
func TestLastHop(t *testing.T) {
	b := newBench(t, benchForwards...)
	f := b.flows(false, 20000)["hairpin"]
	f.open(t)
	in, _ := f.in(tcp("PA", clientISN+1, serverISN+1), ttl(1))
	if got := b.xdp(t, f.at, in.bytes()); got.code != xdpPass || !bytes.Equal(got.data, in.bytes()) {
		t.Errorf("xdp answers %d", got.code)
	}
	before := b.counted(t, "ttl_expired")
	if got := b.tc(t, f.at, in.bytes()); got.code != tcShot || b.counted(t, "ttl_expired") != before+1 {
		t.Errorf("tc answers %d", got.code)
	}
}

// TestTooBig: what does not fit the next hop is not sent on, by neither program.
func TestTooBig(t *testing.T) {
	b := newBench(t, benchForwards...)
	must(b.router.Do(func() error {
		link, err := netlink.LinkByName("lan0")
		if err != nil {
			return err
		}
		return netlink.LinkSetMTU(link, 1000)
	}))
	for i, udp := range []bool{false, true} {
		f := b.flows(udp, uint16(20000+i))["from the Internet"]
		f.open(t)
		big, _ := f.in(tcp("PA", clientISN+1, serverISN+1), payload(strings.Repeat("x", 1200)))
		if got := b.xdp(t, f.at, big.bytes()); got.code != xdpPass || !bytes.Equal(got.data, big.bytes()) {
			t.Errorf("udp=%v: xdp answers %d", udp, got.code)
		}
		before := b.counted(t, "too_big")
		if got := b.tc(t, f.at, big.bytes()); got.code != tcShot || b.counted(t, "too_big") != before+1 {
			t.Errorf("udp=%v: tc answers %d", udp, int32(got.code))
		}
		f.send(t, true, tcp("PA", clientISN+1, serverISN+1), payload(strings.Repeat("x", 900)))
	}
}

// TestFragments: the first fragment lends its ports to the others, whose payload stays untouched.
func TestFragments(t *testing.T) {
	b := newBench(t, benchForwards...)
	f := b.flows(true, 20000)["hairpin"]
	f.open(t)
	fragment := func(id, offset uint16, more bool) func(*frame) {
		return func(f *frame) { f.id, f.offset, f.more = id, offset, more }
	}
	whole := mutate(func(data []byte) { binary.BigEndian.PutUint16(data[l4Offset(data)+4:], 32) })
	first, wantFirst := f.in(payload("sixteen bytes it"), fragment(7, 0, true), whole)
	later, wantLater := f.in(payload("the rest"), fragment(7, 24, false))

	if got := b.tc(t, f.at, later.bytes()); got.code != tcUnspec {
		t.Errorf("a later fragment before the first: tc answers %d", got.code)
	}
	hooks[0].sends(t, f, func() { f.open(t) }, f.at, first, wantFirst)
	hooks[0].sends(t, f, func() { f.open(t) }, f.at, later, wantLater)
	stranger, _ := f.in(payload("the rest"), fragment(8, 24, false))
	if got := b.tc(t, f.at, stranger.bytes()); got.code != tcUnspec {
		t.Errorf("another datagram's fragment: tc answers %d", got.code)
	}
	cut, _ := f.in(payload("the rest"), fragment(7, 24, false), mutate(func(data []byte) { data[16], data[17] = 0x05, 0xdc }))
	if got := b.tc(t, f.at, cut.bytes()); got.code != tcShot {
		t.Errorf("a fragment of this datagram that is longer than its frame: tc answers %d", int32(got.code))
	}
	for _, data := range [][]byte{first.bytes(), later.bytes()} {
		if got := b.xdp(t, f.at, data); got.code != xdpPass || !bytes.Equal(got.data, data) {
			t.Errorf("xdp answers %d", got.code)
		}
	}
}

func mustAddrPort(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }
