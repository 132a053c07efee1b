// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"hairpin/maps"
)

// frame6 is a frame with an IPv6 packet, in the words of frame.
type frame6 struct {
	frame
	extensions []extension
	label      uint32 // of the flow
}

// extension is a header between that of IPv6 and the transport's; its first byte is filled in.
type extension struct {
	kind uint8
	data []byte
}

// IPv6 next headers and ICMPv6 types (RFC 8200, 4443, 4861, 3810).
const (
	headerHop      = 0
	headerRouting  = 43
	headerFragment = 44
	headerAuth     = 51
	protocolICMP6  = 58
	headerNone     = 59
	headerDest     = 60
	headerMobility = 135

	icmp6Unreachable  = 1
	icmp6TooBig       = 2
	icmp6TimeExceeded = 3
	icmp6Parameter    = 4
	icmp6EchoRequest  = 128
	icmp6EchoReply    = 129
	code6Prohibited   = 1
	code6Address      = 3
	code6Port         = 4
)

const ip6Header = 40

// padding is a header of options, all of them padding (RFC 8200 4.2).
func padding(kind uint8, length int) extension {
	data := make([]byte, length)
	data[1], data[2], data[3] = uint8(length/8-1), 1, uint8(length-4)
	return extension{kind, data}
}

// piece6 is a fragment header.
func piece6(id uint32, offset int, more bool) extension {
	data := make([]byte, 8)
	word := uint16(offset)
	if more {
		word |= 1
	}
	binary.BigEndian.PutUint16(data[2:], word)
	binary.BigEndian.PutUint32(data[4:], id)
	return extension{headerFragment, data}
}

func extended(list ...extension) func(*frame6) {
	return func(f *frame6) { f.extensions = append(f.extensions, list...) }
}

// also makes a change of a frame one of a frame6.
func also(change func(*frame)) func(*frame6) { return func(f *frame6) { change(&f.frame) } }

// transport is what is behind the IPv6 header and its extensions, and its protocol.
func (f frame6) transport(ip *layers.IPv6) (uint8, []byte) {
	var layer gopacket.SerializableLayer
	switch {
	case f.body != nil:
		return f.protocol, f.body(f.frame)
	case f.udp:
		udp := &layers.UDP{SrcPort: layers.UDPPort(f.src.Port()), DstPort: layers.UDPPort(f.dst.Port())}
		must(udp.SetNetworkLayerForChecksum(ip))
		layer, ip.NextHeader = udp, layers.IPProtocolUDP
	default:
		tcp := f.tcpLayer()
		must(tcp.SetNetworkLayerForChecksum(ip))
		layer, ip.NextHeader = tcp, layers.IPProtocolTCP
	}
	buffer := gopacket.NewSerializeBuffer()
	must(gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		layer, gopacket.Payload(f.payload)))
	data := slices.Clone(buffer.Bytes())
	if f.noChecksum {
		setWord(data, 6, 0)
	}
	return uint8(ip.NextHeader), data
}

// bytes is the frame on the wire.
func (f frame6) bytes() []byte {
	hops := f.ttl
	if hops == 0 {
		hops = 64
	}
	ip := &layers.IPv6{
		Version: 6, TrafficClass: f.tos, FlowLabel: f.label, HopLimit: hops,
		SrcIP: f.src.Addr().AsSlice(), DstIP: f.dst.Addr().AsSlice(),
	}
	next, rest := f.transport(ip)
	for _, e := range slices.Backward(f.extensions) {
		data := slices.Clone(e.data)
		data[0] = next
		next, rest = e.kind, append(data, rest...)
	}
	// gopacket takes a next header of 0 for a jumbogram that it is to make.
	ip.NextHeader = layers.IPProtocolNoNextHeader
	buffer := gopacket.NewSerializeBuffer()
	must(gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true},
		&layers.Ethernet{SrcMAC: f.from, DstMAC: f.to, EthernetType: layers.EthernetTypeIPv6}, ip, gopacket.Payload(rest)))
	data := slices.Clone(buffer.Bytes())
	data[ethernetLength+6] = next
	data = append(data, f.trailer...)
	if f.mutate != nil {
		f.mutate(data)
	}
	return data
}

// message6 is an ICMPv6 message between two addresses, with its checksum.
func message6(src, dst netip.Addr, kind, code uint8, rest uint32, body []byte) []byte {
	data := binary.BigEndian.AppendUint32([]byte{kind, code, 0, 0}, rest)
	data = append(data, body...)
	pseudo := sum(src.AsSlice()) + sum(dst.AsSlice()) + uint32(len(data)) + protocolICMP6
	setWord(data, 2, ^fold(pseudo+sum(data)))
	return data
}

func icmp6(kind, code uint8, rest uint32, body []byte) func(*frame6) {
	return func(f *frame6) {
		f.protocol = protocolICMP6
		f.body = func(f frame) []byte { return message6(f.src.Addr(), f.dst.Addr(), kind, code, rest, body) }
	}
}

// echo6 is an echo request or reply; its id stands for the port on the side of whoever asks.
func echo6(kind uint8, seq uint16, text string) func(*frame6) {
	return func(f *frame6) {
		f.protocol = protocolICMP6
		f.body = func(f frame) []byte {
			id := f.src.Port()
			if kind == icmp6EchoReply {
				id = f.dst.Port()
			}
			return message6(f.src.Addr(), f.dst.Addr(), kind, 0, uint32(id)<<16|uint32(seq), []byte(text))
		}
	}
}

// quote6 is what an ICMPv6 error says of a frame: its IP packet, at most so many bytes of it.
func quote6(data []byte, limit int) []byte {
	data = data[ethernetLength:]
	return slices.Clone(data[:min(limit, len(data), ip6Header+int(wordAt(data, 4)))])
}

// fragments6 cuts a frame's packet behind its extension headers, so many bytes of them.
func fragments6(data []byte, id uint32, extensions int, lengths ...int) (pieces [][]byte) {
	at := ethernetLength + ip6Header + extensions
	last := ethernetLength + 6 // where the protocol is named
	for off := ethernetLength + ip6Header; off < at; off += 8 * (int(data[off+1]) + 1) {
		last = off
	}
	header, rest := slices.Clone(data[:at]), data[at:ethernetLength+ip6Header+int(wordAt(data, ethernetLength+4))]
	protocol := header[last]
	header[last] = headerFragment
	for from := 0; from < len(rest); {
		n := len(rest) - from
		if len(lengths) > 0 {
			n, lengths = min(n, lengths[0]), lengths[1:]
		}
		e := piece6(id, from, from+n < len(rest)).data
		e[0] = protocol
		piece := slices.Concat(header, e, rest[from:from+n])
		setWord(piece, ethernetLength+4, uint16(len(piece)-ethernetLength-ip6Header))
		pieces = append(pieces, piece)
		from += n
	}
	return pieces
}

// The bench's IPv6 network; its gateway is known by its link-local address, as usual.
var (
	wanAddress6   = netip.MustParseAddr("2001:db8:1::1")
	lanAddress6   = netip.MustParseAddr("fd00:1::1")
	otherAddress6 = netip.MustParseAddr("fd00:2::1")
	internetHost6 = netip.MustParseAddr("2001:db8:99::7")
	target6       = netip.MustParseAddr("fd00:1::20")
	pingTarget6   = netip.MustParseAddr("fd00:1::21")
	pingAddress6  = netip.MustParseAddr("2001:db8:1::9")
	dmzTarget6    = netip.MustParseAddr("fd00:1::22")
	dmzAddress6   = netip.MustParseAddr("2001:db8:1::10")
	client6Addr   = netip.MustParseAddr("fd00:1::50")
	otherClient6  = netip.MustParseAddr("fd00:2::60")
	farRouter6    = netip.MustParseAddr("2001:db8:77::1")
	nearRouter6   = netip.MustParseAddr("fd00:1::77")
)

var benchForwards6 = []string{
	"web6 tcp,udp 443 to [fd00:1::20]:8443",
	"closed6 tcp 81 to [fd00:1::20]:81 reflect off",
	"friends6 tcp 82 to [fd00:1::20]:82 from 2001:db8:99::/48",
	"ping6 icmp [2001:db8:1::9]:any to fd00:1::21",
	"dmz6 any [2001:db8:1::10]:any to fd00:1::22",
	"web4 tcp,udp 443 to 192.168.1.20:8443",
}

// newBench6 is a bench with both families, which tells everybody inside without limit.
func newBench6(tb testing.TB) *bench {
	tb.Helper()
	b := newBench(tb)
	enable6(b.router)
	b.router.Sysctl("net/ipv6/conf/all/forwarding", "1")
	for _, a := range []struct{ dev, prefix string }{
		{"wan0", "2001:db8:1::1/64"}, {"wan0", "2001:db8:1::9/128"}, {"wan0", "2001:db8:1::10/128"},
		{"lan0", "fd00:1::1/64"}, {"lan1", "fd00:2::1/64"},
	} {
		address6(b.router, a.dev, a.prefix)
	}
	b.neighbour(tb, b.wan, netip.MustParseAddr("fe80::fe"), gatewayMAC)
	for _, addr := range []netip.Addr{target6, pingTarget6, dmzTarget6} {
		b.neighbour(tb, b.lan, addr, serverMAC)
	}
	b.neighbour(tb, b.lan, client6Addr, clientMAC)
	b.neighbour(tb, b.lan2, otherClient6, otherClientMAC)
	b.router.Route("wan0", "::/0", "fe80::fe", "")
	for _, words := range benchForwards6 {
		b.config.Forwards = append(b.config.Forwards, mustForward(tb, words))
	}
	b.apply(tb)
	b.watch6(tb)
	b.unlimited(tb)
	return b
}

// watch6 tells the programs of both families' addresses.
func (b *bench) watch6(tb testing.TB) {
	tb.Helper()
	prefixes := func(list ...string) (all []netip.Prefix) {
		for _, text := range list {
			all = append(all, netip.MustParsePrefix(text))
		}
		return all
	}
	interfaces := []maps.Interface{
		{Name: "wan0", Index: b.wan.index, Role: maps.RoleWAN, HardwareAddr: b.wan.mac, XDPTransmit: true, RPFilter: 1,
			Addresses: prefixes("203.0.113.1/24", "2001:db8:1::1/64", "2001:db8:1::9/128", "2001:db8:1::10/128")},
		{Name: "lan0", Index: b.lan.index, Role: maps.RoleLAN, HardwareAddr: b.lan.mac, XDPTransmit: true, RPFilter: 1,
			Addresses: prefixes("192.168.1.1/24", "fd00:1::1/64")},
		{Name: "lan1", Index: b.lan2.index, Role: maps.RoleLAN, HardwareAddr: b.lan2.mac, XDPTransmit: true, RPFilter: 1,
			Addresses: prefixes("192.168.2.1/24", "fd00:2::1/64")},
	}
	must(b.router.Do(func() error { return b.tables.SetInterfaces(interfaces) }))
}

// flow6 is a connection through the bench's router, like flow.
type flow6 struct{ flow }

func (f flow6) in(change ...func(*frame6)) (in, want frame6) {
	in.frame, want.frame = f.flow.in()
	return change6(in, want, change)
}

func (f flow6) back(change ...func(*frame6)) (in, want frame6) {
	in.frame, want.frame = f.flow.back()
	return change6(in, want, change)
}

// change6 makes the same changes to a packet and to what must become of it; its hops stay one apart.
func change6(in, want frame6, change []func(*frame6)) (frame6, frame6) {
	for _, c := range change {
		c(&in)
		c(&want)
	}
	want.ttl = in.ttl - 1
	return in, want
}

var ways6Names = []string{"from the Internet", "hairpin", "server to itself", "from another LAN"}

// flow6 is a new connection to the first forward.
func (b *bench) flow6(way string, udp bool, port uint16) flow6 {
	f := b.flows(udp, port)[way]
	f.client = netip.AddrPortFrom(map[string]netip.Addr{
		"from the Internet": internetHost6, "hairpin": client6Addr, "server to itself": target6, "from another LAN": otherClient6,
	}[way], port)
	f.external, f.target, f.source = netip.AddrPortFrom(wanAddress6, 443), netip.AddrPortFrom(target6, 8443), f.client
	if f.at.index == b.lan.index {
		f.source = netip.AddrPortFrom(lanAddress6, port)
	}
	return flow6{f}
}

// ping6 is a new flow to the forward of echoes.
func (b *bench) ping6(way string, port uint16) flow6 {
	f := b.flow6(way, false, port)
	f.external, f.target = netip.AddrPortFrom(pingAddress6, 0), netip.AddrPortFrom(pingTarget6, 0)
	return f
}

func (b *bench) unlimited(tb testing.TB) {
	tb.Helper()
	b.settings(tb, unlimited)
}
