// SPDX-License-Identifier: Apache-2.0

package frames

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Frame describes an Ethernet frame with an IPv4 packet: TCP, UDP, or the bytes that Body returns. gopacket makes the bytes and
// checksums, so they share no code with the programs under test.
type Frame struct {
	From, To   net.HardwareAddr
	Src, Dst   netip.AddrPort
	UDP        bool
	Protocol   uint8                // of the packet, if Body is set
	Body       func(f Frame) []byte // returns the bytes after the IP header, for protocols other than TCP and UDP
	Segment    []layers.TCPOption   // options of TCP
	TOS        uint8
	DF         bool
	Flags      string // TCP flags, letters of SAFRP
	Seq, Ack   uint32
	TTL        uint8
	Options    []layers.IPv4Option
	Payload    []byte
	NoChecksum bool   // UDP only
	Trailer    []byte // bytes after the IP packet
	More       bool   // more fragments follow
	ID         uint16
	Partial    bool // the transport checksum is left to an offload (CHECKSUM_PARTIAL)
	Mutate     func([]byte)
}

func (f Frame) tcpLayer() *layers.TCP {
	tcp := &layers.TCP{
		SrcPort: layers.TCPPort(f.Src.Port()), DstPort: layers.TCPPort(f.Dst.Port()),
		Seq: f.Seq, Ack: f.Ack, Window: 64240, Options: f.Segment,
	}
	for _, flag := range f.Flags {
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

// Bytes returns the frame's bytes. The checksums are valid, except the transport checksum with NoChecksum or Partial. Mutate runs
// last, and the checksums do not include its changes.
func (f Frame) Bytes() []byte {
	ttl := f.TTL
	if ttl == 0 {
		ttl = 64
	}
	ip := &layers.IPv4{
		Version: 4, TTL: ttl, Id: f.ID, SrcIP: f.Src.Addr().AsSlice(), DstIP: f.Dst.Addr().AsSlice(),
		Protocol: layers.IPProtocolTCP, Options: f.Options, TOS: f.TOS,
	}
	if f.More {
		ip.Flags |= layers.IPv4MoreFragments
	}
	if f.DF {
		ip.Flags |= layers.IPv4DontFragment
	}
	stack := []gopacket.SerializableLayer{
		&layers.Ethernet{SrcMAC: f.From, DstMAC: f.To, EthernetType: layers.EthernetTypeIPv4}, ip,
	}
	switch {
	case f.Body != nil:
		ip.Protocol, f.Payload = layers.IPProtocol(f.Protocol), f.Body(f)
	case f.UDP:
		ip.Protocol = layers.IPProtocolUDP
		udp := &layers.UDP{SrcPort: layers.UDPPort(f.Src.Port()), DstPort: layers.UDPPort(f.Dst.Port())}
		must(udp.SetNetworkLayerForChecksum(ip))
		stack = append(stack, udp)
	default:
		tcp := f.tcpLayer()
		must(tcp.SetNetworkLayerForChecksum(ip))
		stack = append(stack, tcp)
	}
	buffer := gopacket.NewSerializeBuffer()
	must(gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		append(stack, gopacket.Payload(f.Payload))...))
	data := slices.Clone(buffer.Bytes())
	f.overrideChecksum(data)
	data = append(data, f.Trailer...)
	if f.Mutate != nil {
		f.Mutate(data)
	}
	return data
}

func (f Frame) overrideChecksum(data []byte) {
	l4 := L4Offset(data)
	at := l4 + 16
	if f.UDP {
		at = l4 + 6
	}
	switch {
	case f.NoChecksum:
		binary.BigEndian.PutUint16(data[at:], 0)
	case f.Partial:
		binary.BigEndian.PutUint16(data[at:], Fold(PseudoHeader(data)))
	}
}

const (
	EthernetLength = 14
	IPChecksumAt   = EthernetLength + 10
)

// L4Offset returns the offset of the transport header in a frame.
func L4Offset(data []byte) int { return EthernetLength + int(data[EthernetLength]&0x0f)*4 }

// IPLength returns the total length in the IPv4 header.
func IPLength(data []byte) int { return int(binary.BigEndian.Uint16(data[EthernetLength+2:])) }

// Sum returns the sum of all 16-bit words (RFC 1071), not folded.
func Sum(data []byte) (total uint32) {
	for i := 0; i+1 < len(data); i += 2 {
		total += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	if len(data)%2 == 1 {
		total += uint32(data[len(data)-1]) << 8
	}
	return total
}

// Fold returns a sum folded to 16 bits, by adding the carries.
func Fold(total uint32) uint16 {
	for total > 0xffff {
		total = total&0xffff + total>>16
	}
	return uint16(total)
}

// PseudoHeader returns the sum of the pseudo-header (RFC 9293 3.1) of a frame, not folded.
func PseudoHeader(data []byte) uint32 {
	length := IPLength(data) - (L4Offset(data) - EthernetLength)
	return Sum(data[EthernetLength+12:EthernetLength+20]) + uint32(data[EthernetLength+9]) + uint32(length)
}

// IPValid reports whether the checksum of the IP header is right.
func IPValid(data []byte) bool { return Fold(Sum(data[EthernetLength:L4Offset(data)])) == 0xffff }

// SetWord writes a 16-bit word in network order.
func SetWord(data []byte, at int, value uint16) { binary.BigEndian.PutUint16(data[at:], value) }

func must(err error) {
	if err != nil {
		panic(err)
	}
}
