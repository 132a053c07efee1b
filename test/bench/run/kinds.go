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
	// The ports externalPort to externalPort+ports-1 are forwarded to targetPort to targetPort+ports-1.
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

// kind is a kind of packet, and the verdicts that the programs must give.
type kind struct {
	name    string
	in      string           // the router's interface that the packets come in by
	stream  traffic.Stream   // the packets
	prepare []traffic.Stream // run through TC before each slice, to make the connections and look up their next hops
	xdp, tc uint32           // the expected verdicts
}

// code returns the expected verdict of a hook's program.
func (k kind) code(hook traffic.Hook) uint32 {
	if hook == traffic.XDP {
		return k.xdp
	}
	return k.tc
}

// ends has the four endpoints of a reflected connection: the client sends to external, the server sends to router.
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

// kinds returns all kinds of packets, for a router with these MAC addresses of lan0 and wan0.
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
	thereWAN := ethernet(wanMAC, lab.UDP(elsewhere, ends4.external, make([]byte, 18)))

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
		// XDP can send an opening only if TC has looked up the next hop in the last second.
		{"new UDP", "lan0", openings(there, udpCheck), once(there, back), measure.XDPRedirect, measure.TCRedirect},
		// The server does not answer, so hairpin asks in each tick whether the kernel has asked for the packet (bpf/nat.h).
		{"UDP one way, from a WAN", "wan0", same(thereWAN), once(thereWAN), measure.XDPRedirect, measure.TCRedirect},
		// There is no "new TCP": hairpin challenges new TCP connections at this rate (bpf/lifecycle.h). make bench measures them.
		left("not ours, UDP", "lan0", udp(ends4.client, elsewhere)),
		left("not ours, TCP", "lan0", tcp(ends4.client, elsewhere, lab.ACK, 1, 1)),
		left("not ours, to external", "wan0", ethernet(wanMAC, lab.UDP(elsewhere, netip.AddrPortFrom(external, 9999), make([]byte, 18)))),
		forTC("fragments, two a datagram", fragments(mac), there, back),
		forTC("ICMP error", same(icmpError(mac)), there, back),
	}
}

// once returns streams that send each frame once.
func once(frames ...[]byte) (streams []traffic.Stream) {
	for _, f := range frames {
		streams = append(streams, same(f))
	}
	return streams
}

// same returns a stream in which every frame is equal.
func same(frame []byte) traffic.Stream {
	return traffic.Stream{Frames: []traffic.Frame{{Data: frame}}, Flows: 1}
}

// openings returns a stream of one frame with different ports in every packet.
func openings(frame []byte, check int) traffic.Stream {
	return traffic.Stream{
		Frames: []traffic.Frame{{Data: frame, First: sourcePort, Second: destinationPort, Check: check}},
		Flows:  ports * traffic.FlowsPerRound, Ordered: true,
	}
}

// fragments returns a stream of datagrams, each in two fragments, with a different IP id in every datagram.
func fragments(mac net.HardwareAddr) traffic.Stream {
	d := lab.UDP(ends4.client, ends4.external, make([]byte, 48))
	d.ID = 1
	s := traffic.Stream{Flows: traffic.FlowsPerRound, Ordered: true}
	for _, piece := range d.Fragments(32) {
		s.Frames = append(s.Frames, traffic.Frame{Data: frame(mac, 0x0800, piece), First: ipID, Check: ipCheck})
	}
	return s
}

// icmpError returns the client's ICMP error about a packet of the server.
func icmpError(mac net.HardwareAddr) []byte {
	quoted := lab.UDP(ends4.external, ends4.client, make([]byte, 18)).Packet()
	return ethernet(mac, lab.ICMP(client, external, lab.Unreachable, lab.PortUnreachable, 0, quoted[:28]))
}

func ethernet(mac net.HardwareAddr, d lab.Datagram) []byte { return frame(mac, 0x0800, d.Packet()) }

// frame returns the packet with an Ethernet header, padded at the end to a multiple of 8 bytes.
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
