// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// frame is an Ethernet frame with an IPv4 TCP or UDP packet, in words. Its bytes and its
// checksums are gopacket's, which knows nothing of the code under test.
type frame struct {
	from, to   net.HardwareAddr
	src, dst   netip.AddrPort
	udp        bool
	flags      string // of TCP: letters of SAFRP
	seq, ack   uint32
	ttl        uint8
	options    []layers.IPv4Option
	payload    []byte
	noChecksum bool   // UDP only
	trailer    []byte // behind the IP packet
	more       bool   // more fragments follow
	offset     uint16 // of the fragment, in bytes
	id         uint16
	partial    bool // the transport checksum is left to an offload
	mutate     func([]byte)
}

func (f frame) tcpLayer() *layers.TCP {
	tcp := &layers.TCP{
		SrcPort: layers.TCPPort(f.src.Port()), DstPort: layers.TCPPort(f.dst.Port()),
		Seq: f.seq, Ack: f.ack, Window: 64240,
	}
	for _, flag := range f.flags {
		switch flag {
		case 'S':
			tcp.SYN = true
		case 'A':
			tcp.ACK = true
		case 'F':
			tcp.FIN = true
		case 'R':
			tcp.RST = true
		case 'P':
			tcp.PSH = true
		}
	}
	return tcp
}

// bytes is the frame on the wire. Its IP header checksum is valid; the transport's is too,
// unless the frame says otherwise. What mutate does comes last and is not made good.
func (f frame) bytes() []byte {
	ttl := f.ttl
	if ttl == 0 {
		ttl = 64
	}
	ip := &layers.IPv4{
		Version: 4, TTL: ttl, Id: f.id, SrcIP: f.src.Addr().AsSlice(), DstIP: f.dst.Addr().AsSlice(),
		Protocol: layers.IPProtocolTCP, Options: f.options, FragOffset: f.offset / 8,
	}
	if f.more {
		ip.Flags = layers.IPv4MoreFragments
	}
	stack := []gopacket.SerializableLayer{
		&layers.Ethernet{SrcMAC: f.from, DstMAC: f.to, EthernetType: layers.EthernetTypeIPv4}, ip,
	}
	switch {
	case f.offset > 0:
		if f.udp {
			ip.Protocol = layers.IPProtocolUDP
		}
	case f.udp:
		ip.Protocol = layers.IPProtocolUDP
		udp := &layers.UDP{SrcPort: layers.UDPPort(f.src.Port()), DstPort: layers.UDPPort(f.dst.Port())}
		must(udp.SetNetworkLayerForChecksum(ip))
		stack = append(stack, udp)
	default:
		tcp := f.tcpLayer()
		must(tcp.SetNetworkLayerForChecksum(ip))
		stack = append(stack, tcp)
	}
	buffer := gopacket.NewSerializeBuffer()
	must(gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		append(stack, gopacket.Payload(f.payload))...))
	data := slices.Clone(buffer.Bytes())
	f.overrideChecksum(data)
	data = append(data, f.trailer...)
	if f.mutate != nil {
		f.mutate(data)
	}
	return data
}

func (f frame) overrideChecksum(data []byte) {
	l4 := l4Offset(data)
	at := l4 + 16
	if f.udp {
		at = l4 + 6
	}
	switch {
	case f.noChecksum:
		binary.BigEndian.PutUint16(data[at:], 0)
	case f.partial:
		binary.BigEndian.PutUint16(data[at:], fold(pseudoHeader(data)))
	}
}

const (
	ethernetLength = 14
	ipChecksumAt   = ethernetLength + 10
)

func l4Offset(data []byte) int { return ethernetLength + int(data[ethernetLength]&0x0f)*4 }

func ipLength(data []byte) int { return int(binary.BigEndian.Uint16(data[ethernetLength+2:])) }

func sum(data []byte) (total uint32) {
	for i := 0; i+1 < len(data); i += 2 {
		total += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	if len(data)%2 == 1 {
		total += uint32(data[len(data)-1]) << 8
	}
	return total
}

func fold(total uint32) uint16 {
	for total > 0xffff {
		total = total&0xffff + total>>16
	}
	return uint16(total)
}

// pseudoHeader is the sum of RFC 9293 3.1's pseudo-header.
func pseudoHeader(data []byte) uint32 {
	length := ipLength(data) - (l4Offset(data) - ethernetLength)
	return sum(data[ethernetLength+12:ethernetLength+20]) + uint32(data[ethernetLength+9]) + uint32(length)
}

// ipValid says whether the IP header's checksum is right.
func ipValid(data []byte) bool { return fold(sum(data[ethernetLength:l4Offset(data)])) == 0xffff }

// transportValid says whether the TCP or UDP checksum of an unfragmented packet is right;
// an absent one of UDP is.
func transportValid(data []byte) bool {
	l4, end := l4Offset(data), ethernetLength+ipLength(data)
	if data[ethernetLength+9] == 17 {
		if binary.BigEndian.Uint16(data[l4+6:]) == 0 {
			return true
		}
		length := uint32(binary.BigEndian.Uint16(data[l4+4:]))
		pseudo := sum(data[ethernetLength+12:ethernetLength+20]) + 17 + length
		return fold(pseudo+sum(data[l4:l4+int(length)])) == 0xffff
	}
	return fold(pseudoHeader(data)+sum(data[l4:end])) == 0xffff
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
