// SPDX-License-Identifier: Apache-2.0

// Package explain says what the datapath would do with a packet, and with the answer to it. It asks a program of the datapath, and
// decides nothing itself. It changes nothing in the running datapath, and sends nothing.
package explain

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"hairpin/bpf"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
)

// Question is the first packet of a connection, or a packet of a connection that exists.
type Question struct {
	Interface   string // by which the packet comes in
	Protocol    rule.Protocol
	Source      netip.AddrPort // port 0 for protocols without ports; of an ICMP echo request its identifier
	Destination netip.AddrPort // port 0 for protocols without ports
}

func (q Question) String() string {
	return fmt.Sprintf("%s %s to %s", q.Protocol, Endpoint(q.Source), Endpoint(q.Destination))
}

// Endpoint formats an address with its port. It leaves out port 0, which stands for a protocol without ports.
func Endpoint(at netip.AddrPort) string {
	if at.Port() == 0 {
		return at.Addr().String()
	}
	return at.String()
}

// tuple is the key of the packet in the datapath's tables.
func (q Question) tuple() bpf.HairpinTuple {
	t := bpf.HairpinTuple{
		Src: layout.ToAddr(q.Source.Addr()), Dst: layout.ToAddr(q.Destination.Addr()), Protocol: q.Protocol.Number(q.Source.Addr().Is6()),
		Sport: layout.Be16(q.Source.Port()), Dport: layout.Be16(q.Destination.Port()),
	}
	if q.Protocol == rule.ICMP {
		t.Dport = t.Sport
	}
	return t
}

// kind is what the packet is for its protocol.
type kind int

const (
	opening   kind = iota // the first packet of a client: of TCP a SYN
	answering             // the first packet of a server: of TCP a SYN/ACK
	following             // any later packet
)

// initChunk and ackChunk are SCTP chunks (RFC 9260 3.3.2, 3.3.3) with a tag of 1, a window of 64 KiB and one stream.
var (
	initChunk = []byte{1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1}
	ackChunk  = []byte{2, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1}
)

// firstSequence is the sequence number of both sides' first packets.
const firstSequence = 1

// frame returns the packet with an Ethernet header to a router with this MAC address.
func (q Question) frame(station net.HardwareAddr, kind kind) ([]byte, error) {
	if len(station) != 6 {
		station = make(net.HardwareAddr, 6)
	}
	const sender = "\x02\x00\x00\x00\x00\x01" // locally administered
	ethernet := &layers.Ethernet{SrcMAC: net.HardwareAddr(sender), DstMAC: station, EthernetType: layers.EthernetTypeIPv4}
	number := layers.IPProtocol(q.Protocol.Number(q.Source.Addr().Is6()))
	var ip gopacket.NetworkLayer
	stack := []gopacket.SerializableLayer{ethernet}
	if q.Source.Addr().Is4() {
		v4 := &layers.IPv4{Version: 4, TTL: 64, Protocol: number, SrcIP: q.Source.Addr().AsSlice(), DstIP: q.Destination.Addr().AsSlice(),
			Flags: layers.IPv4DontFragment}
		ip, stack = v4, append(stack, v4)
	} else {
		ethernet.EthernetType = layers.EthernetTypeIPv6
		v6 := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: number, SrcIP: q.Source.Addr().AsSlice(), DstIP: q.Destination.Addr().AsSlice()}
		ip, stack = v6, append(stack, v6)
	}
	stack = append(stack, q.transport(ip, kind)...)
	buffer := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...)
	if err != nil {
		return nil, fmt.Errorf("build the packet %s: %w", q, err)
	}
	return buffer.Bytes(), nil
}

func (q Question) transport(ip gopacket.NetworkLayer, kind kind) []gopacket.SerializableLayer {
	from, to := q.Source.Port(), q.Destination.Port()
	payload := gopacket.Payload("hairpin explain")
	switch q.Protocol {
	case rule.TCP:
		tcp := &layers.TCP{SrcPort: layers.TCPPort(from), DstPort: layers.TCPPort(to), Window: 65535, Seq: firstSequence,
			SYN: kind != following, ACK: kind != opening}
		if kind != opening {
			tcp.Ack = firstSequence + 1
		}
		_ = tcp.SetNetworkLayerForChecksum(ip) // it fails only for layers that are not IP
		return []gopacket.SerializableLayer{tcp}
	case rule.UDP:
		udp := &layers.UDP{SrcPort: layers.UDPPort(from), DstPort: layers.UDPPort(to)}
		_ = udp.SetNetworkLayerForChecksum(ip)
		return []gopacket.SerializableLayer{udp, payload}
	case rule.SCTP:
		chunk := initChunk
		if kind != opening {
			chunk = ackChunk
		}
		return []gopacket.SerializableLayer{&layers.SCTP{SrcPort: layers.SCTPPort(from), DstPort: layers.SCTPPort(to)}, gopacket.Payload(chunk)}
	case rule.ICMP:
		return q.echo(ip, kind, payload)
	}
	// The first bytes of the others are ports, or nothing that the datapath reads.
	header := []byte{byte(from >> 8), byte(from), byte(to >> 8), byte(to), 0, 8 + byte(len(payload)), 0, 0}
	return []gopacket.SerializableLayer{gopacket.Payload(header), payload}
}

// echo returns an echo request, or the reply to it.
func (q Question) echo(ip gopacket.NetworkLayer, kind kind, payload gopacket.Payload) []gopacket.SerializableLayer {
	if q.Source.Addr().Is4() {
		what := layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0)
		if kind == answering {
			what = layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoReply, 0)
		}
		return []gopacket.SerializableLayer{&layers.ICMPv4{TypeCode: what, Id: q.Source.Port(), Seq: 1}, payload}
	}
	what := layers.CreateICMPv6TypeCode(layers.ICMPv6TypeEchoRequest, 0)
	if kind == answering {
		what = layers.CreateICMPv6TypeCode(layers.ICMPv6TypeEchoReply, 0)
	}
	icmp := &layers.ICMPv6{TypeCode: what}
	_ = icmp.SetNetworkLayerForChecksum(ip)
	return []gopacket.SerializableLayer{icmp, &layers.ICMPv6Echo{Identifier: q.Source.Port(), SeqNumber: 1}, payload}
}
