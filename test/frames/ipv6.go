// SPDX-License-Identifier: Apache-2.0

package frames

import (
	"encoding/binary"
	"slices"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Frame6 describes a frame with an IPv6 packet, by the fields of Frame.
type Frame6 struct {
	Frame
	Extensions []Extension
	Label      uint32 // flow label
}

// Extension is an IPv6 extension header. Bytes fills in its first byte, the next header.
type Extension struct {
	Kind uint8
	Data []byte
}

// IPv6 next headers and ICMPv6 types (RFC 8200, 4443, 4861, 3810).
const (
	HeaderFragment = 44
)

// IP6Header is the length of the IPv6 header.
const IP6Header = 40

// FragmentHeader6 returns a fragment header.
func FragmentHeader6(id uint32, offset int, more bool) Extension {
	data := make([]byte, 8)
	word := uint16(offset)
	if more {
		word |= 1
	}
	binary.BigEndian.PutUint16(data[2:], word)
	binary.BigEndian.PutUint32(data[4:], id)
	return Extension{HeaderFragment, data}
}

// transport returns the protocol, and the bytes after the IPv6 header and its extensions.
func (f Frame6) transport(ip *layers.IPv6) (uint8, []byte) {
	var layer gopacket.SerializableLayer
	switch {
	case f.Body != nil:
		return f.Protocol, f.Body(f.Frame)
	case f.UDP:
		udp := &layers.UDP{SrcPort: layers.UDPPort(f.Src.Port()), DstPort: layers.UDPPort(f.Dst.Port())}
		must(udp.SetNetworkLayerForChecksum(ip))
		layer, ip.NextHeader = udp, layers.IPProtocolUDP
	default:
		tcp := f.tcpLayer()
		must(tcp.SetNetworkLayerForChecksum(ip))
		layer, ip.NextHeader = tcp, layers.IPProtocolTCP
	}
	buffer := gopacket.NewSerializeBuffer()
	must(gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		layer, gopacket.Payload(f.Payload)))
	data := slices.Clone(buffer.Bytes())
	if f.NoChecksum {
		SetWord(data, 6, 0)
	}
	return uint8(ip.NextHeader), data
}

// Bytes returns the frame's bytes.
func (f Frame6) Bytes() []byte {
	hops := f.TTL
	if hops == 0 {
		hops = 64
	}
	ip := &layers.IPv6{
		Version: 6, TrafficClass: f.TOS, FlowLabel: f.Label, HopLimit: hops,
		SrcIP: f.Src.Addr().AsSlice(), DstIP: f.Dst.Addr().AsSlice(),
	}
	next, rest := f.transport(ip)
	for _, e := range slices.Backward(f.Extensions) {
		data := slices.Clone(e.Data)
		data[0] = next
		next, rest = e.Kind, append(data, rest...)
	}
	// With a next header of 0 gopacket makes a jumbogram. So a placeholder is set here, and replaced below.
	ip.NextHeader = layers.IPProtocolNoNextHeader
	buffer := gopacket.NewSerializeBuffer()
	must(gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true},
		&layers.Ethernet{SrcMAC: f.From, DstMAC: f.To, EthernetType: layers.EthernetTypeIPv6}, ip, gopacket.Payload(rest)))
	data := slices.Clone(buffer.Bytes())
	data[EthernetLength+6] = next
	data = append(data, f.Trailer...)
	if f.Mutate != nil {
		f.Mutate(data)
	}
	return data
}

// Fragments6 returns a frame's packet in fragments of these lengths. extensions is the length of the extension headers, which are
// copied into every fragment.
func Fragments6(data []byte, id uint32, extensions int, lengths ...int) (pieces [][]byte) {
	at := EthernetLength + IP6Header + extensions
	last := EthernetLength + 6 // offset of the last next-header field
	for off := EthernetLength + IP6Header; off < at; off += 8 * (int(data[off+1]) + 1) {
		last = off
	}
	header, rest := slices.Clone(data[:at]), data[at:EthernetLength+IP6Header+int(WordAt(data, EthernetLength+4))]
	protocol := header[last]
	header[last] = HeaderFragment
	for from := 0; from < len(rest); {
		n := len(rest) - from
		if len(lengths) > 0 {
			n, lengths = min(n, lengths[0]), lengths[1:]
		}
		e := FragmentHeader6(id, from, from+n < len(rest)).Data
		e[0] = protocol
		piece := slices.Concat(header, e, rest[from:from+n])
		SetWord(piece, EthernetLength+4, uint16(len(piece)-EthernetLength-IP6Header))
		pieces = append(pieces, piece)
		from += n
	}
	return pieces
}

// WordAt reads a 16-bit word in network order.
func WordAt(data []byte, at int) uint16 { return binary.BigEndian.Uint16(data[at:]) }
