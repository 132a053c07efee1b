// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"hairpin/test/bench/measure"
	"hairpin/test/bench/traffic"
	"hairpin/test/lab"
)

// The addresses of the router and its neighbours.
var (
	client   = netip.MustParseAddr(lab.Client)
	server   = netip.MustParseAddr(lab.Server)
	router   = netip.MustParseAddr(lab.RouterLAN)
	external = netip.MustParseAddr(lab.External)
	gateway  = netip.MustParseAddr(lab.Gateway)

	server6   = netip.MustParseAddr("fd00:1::20")
	client6   = netip.MustParseAddr("fd00:1::50")
	router6   = netip.MustParseAddr("fd00:1::1")
	external6 = netip.MustParseAddr("2001:db8::2")

	clientMAC  = net.HardwareAddr{2, 0, 0, 0, 0, 3}
	serverMAC  = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	gatewayMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}
)

const (
	// firstSource is the client's port of flow 0.
	firstSource = 1025
	// externalPort to externalPort+ports-1 are forwarded to as many ports from targetPort on.
	externalPort = 10000
	targetPort   = 20000
	ports        = 100
	manyFlows    = 60000
)

// Offsets in a frame of IPv4 without options.
const (
	ipID            = 18
	ipCheck         = 24
	sourcePort      = 34
	destinationPort = 36
	udpCheck        = 40
	tcpCheck        = 50
)

// kind is a kind of packet, and what either program has to do with it.
type kind struct {
	name    string
	in      string           // interface of the router
	stream  traffic.Stream   // what the programs are run with
	prepare []traffic.Stream // run at TC before each slice: the connections, and their next hops
	xdp, tc uint32           // what the programs have to answer
}

// code is what the program of a hook has to answer.
func (k kind) code(hook traffic.Hook) uint32 {
	if hook == traffic.XDP {
		return k.xdp
	}
	return k.tc
}

// ends are both sides of a reflected connection as either sends its packets.
type ends struct{ client, external, server, router netip.AddrPort }

var (
	ends4 = ends{
		netip.AddrPortFrom(client, firstSource), netip.AddrPortFrom(external, externalPort),
		netip.AddrPortFrom(server, targetPort), netip.AddrPortFrom(router, firstSource),
	}
	ends6 = ends{
		netip.AddrPortFrom(client6, firstSource), netip.AddrPortFrom(external6, externalPort),
		netip.AddrPortFrom(server6, targetPort), netip.AddrPortFrom(router6, firstSource),
	}
)

// kinds are all that is measured, for a router with these MAC addresses.
func kinds(mac, wanMAC net.HardwareAddr) []kind {
	udp := func(from, to netip.AddrPort) []byte { return ethernet(mac, lab.UDP(from, to, make([]byte, 18))) }
	tcp := func(from, to netip.AddrPort, flags uint8, seq, ack uint32) []byte {
		return ethernet(mac, lab.TCP(from, to, flags, seq, ack, nil, nil))
	}
	there, back := udp(ends4.client, ends4.external), udp(ends4.server, ends4.router)
	there6, back6 := udpFrame6(mac, ends6.client, ends6.external), udpFrame6(mac, ends6.server, ends6.router)
	thereTCP := tcp(ends4.client, ends4.external, lab.ACK, 101, 501)
	backTCP := tcp(ends4.server, ends4.router, lab.ACK, 501, 101)
	handshake := [][]byte{
		tcp(ends4.client, ends4.external, lab.SYN, 100, 0),
		tcp(ends4.server, ends4.router, lab.SYN|lab.ACK, 500, 101),
		thereTCP, backTCP,
	}
	elsewhere := netip.MustParseAddrPort("198.51.100.77:443")

	sent := func(name string, frame []byte, prepare ...[]byte) kind {
		return kind{name, "lan0", same(frame), once(prepare...), measure.XDPRedirect, measure.TCRedirect}
	}
	left := func(name, in string, frame []byte, prepare ...[]byte) kind {
		return kind{name, in, same(frame), once(prepare...), measure.XDPPass, measure.TCUnspec}
	}
	forTC := func(name string, stream traffic.Stream, prepare ...[]byte) kind {
		return kind{name, "lan0", stream, once(prepare...), measure.XDPPass, measure.TCRedirect}
	}
	thereMany := traffic.Frame{Data: there, First: sourcePort, Check: udpCheck}
	backMany := traffic.Frame{Data: back, First: destinationPort, Check: udpCheck}
	both := []traffic.Stream{{Frames: []traffic.Frame{thereMany, backMany}, Flows: manyFlows, Ordered: true}}
	many := func(name string, f traffic.Frame) kind {
		stream := traffic.Stream{Frames: []traffic.Frame{f}, Flows: manyFlows}
		return kind{name, "lan0", stream, both, measure.XDPRedirect, measure.TCRedirect}
	}
	return []kind{
		sent("UDP hit, to server", there, there, back),
		sent("UDP hit, to client", back, there, back),
		sent("TCP hit, to server", thereTCP, handshake...),
		sent("TCP hit, to client", backTCP, handshake...),
		sent("IPv6 UDP hit, to server", there6, there6, back6),
		sent("IPv6 UDP hit, to client", back6, there6, back6),
		many("UDP hit, 60,000 flows, to server", thereMany),
		many("UDP hit, 60,000 flows, to client", backMany),
		// XDP sends an opening to a next hop that TC has had confirmed in the last second.
		{"new UDP", "lan0", openings(there, udpCheck), once(there, back), measure.XDPRedirect, measure.TCRedirect},
		// New TCP connections at this pace are challenged (bpf/lifecycle.h): make bench has them.
		left("not ours, UDP", "lan0", udp(ends4.client, elsewhere)),
		left("not ours, TCP", "lan0", tcp(ends4.client, elsewhere, lab.ACK, 1, 1)),
		left("not ours, to external", "wan0", ethernet(wanMAC, lab.UDP(elsewhere, netip.AddrPortFrom(external, 9999), make([]byte, 18)))),
		forTC("fragments, two a datagram", fragments(mac), there, back),
		forTC("ICMP error", same(icmpError(mac)), there, back),
	}
}

// once is each of these frames once.
func once(frames ...[]byte) (streams []traffic.Stream) {
	for _, f := range frames {
		streams = append(streams, same(f))
	}
	return streams
}

// same is one frame for ever.
func same(frame []byte) traffic.Stream {
	return traffic.Stream{Frames: []traffic.Frame{{Data: frame}}, Flows: 1}
}

// openings is one frame with ever new ports.
func openings(frame []byte, check int) traffic.Stream {
	return traffic.Stream{
		Frames: []traffic.Frame{{Data: frame, First: sourcePort, Second: destinationPort, Check: check}},
		Flows:  ports * traffic.FlowsPerRound, Ordered: true,
	}
}

// fragments are the two of ever new datagrams.
func fragments(mac net.HardwareAddr) traffic.Stream {
	d := lab.UDP(ends4.client, ends4.external, make([]byte, 48))
	d.ID = 1
	s := traffic.Stream{Flows: traffic.FlowsPerRound, Ordered: true}
	for _, piece := range d.Fragments(32) {
		s.Frames = append(s.Frames, traffic.Frame{Data: frame(mac, 0x0800, piece), First: ipID, Check: ipCheck})
	}
	return s
}

// icmpError is what the client says of a packet that has come from the server.
func icmpError(mac net.HardwareAddr) []byte {
	quoted := lab.UDP(ends4.external, ends4.client, make([]byte, 18)).Packet()
	return ethernet(mac, lab.ICMP(client, external, lab.Unreachable, lab.PortUnreachable, 0, quoted[:28]))
}

func ethernet(mac net.HardwareAddr, d lab.Datagram) []byte { return frame(mac, 0x0800, d.Packet()) }

// frame puts an Ethernet header before a packet, and fills up to a multiple of 8 bytes behind it.
func frame(mac net.HardwareAddr, protocol uint16, packet []byte) []byte {
	data := append(append([]byte(nil), mac...), clientMAC...)
	data = append(append(data, byte(protocol>>8), byte(protocol)), packet...)
	return append(data, make([]byte, max(64-len(data), -len(data)&7))...)
}

func udpFrame6(mac net.HardwareAddr, from, to netip.AddrPort) []byte {
	ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice()}
	udp := &layers.UDP{SrcPort: layers.UDPPort(from.Port()), DstPort: layers.UDPPort(to.Port())}
	if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
		panic(err)
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, udp, gopacket.Payload(make([]byte, 18))); err != nil {
		panic(err)
	}
	return frame(mac, 0x86dd, b.Bytes())
}
