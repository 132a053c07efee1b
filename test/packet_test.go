// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/binary"
	"hash/crc32"
	"net"
	"net/netip"
	"slices"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// frame is an Ethernet frame with an IPv4 packet, in words: TCP, UDP, or what body makes. Its
// bytes and its checksums are gopacket's, which knows nothing of the code under test.
type frame struct {
	from, to   net.HardwareAddr
	src, dst   netip.AddrPort
	udp        bool
	protocol   uint8                // with body
	body       func(f frame) []byte // what is behind the IP header, if neither TCP nor UDP
	segment    []layers.TCPOption   // of TCP
	tos        uint8
	df         bool
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
		Seq: f.seq, Ack: f.ack, Window: 64240, Options: f.segment,
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
		Protocol: layers.IPProtocolTCP, Options: f.options, FragOffset: f.offset / 8, TOS: f.tos,
	}
	if f.more {
		ip.Flags |= layers.IPv4MoreFragments
	}
	if f.df {
		ip.Flags |= layers.IPv4DontFragment
	}
	stack := []gopacket.SerializableLayer{
		&layers.Ethernet{SrcMAC: f.from, DstMAC: f.to, EthernetType: layers.EthernetTypeIPv4}, ip,
	}
	switch {
	case f.body != nil:
		ip.Protocol, f.payload = layers.IPProtocol(f.protocol), f.body(f)
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

// IP protocol numbers.
const (
	protocolICMP    = 1
	protocolIPIP    = 4
	protocolTCP     = 6
	protocolUDP     = 17
	protocolIPv6    = 41
	protocolGRE     = 47
	protocolESP     = 50
	protocolSCTP    = 132
	protocolUDPLite = 136
)

// ICMP types.
const (
	icmpEchoReply       = 0
	icmpUnreachable     = 3
	icmpRedirect        = 5
	icmpEchoRequest     = 8
	icmpTimeExceeded    = 11
	icmpParameter       = 12
	icmpTimestamp       = 13
	icmpTimestampReply  = 14
	codeFragNeeded      = 4
	codePortUnreachable = 3
	codeProhibited      = 13
)

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

// transportValid says whether the TCP, UDP, UDP-Lite or ICMP checksum of an unfragmented packet is
// right; an absent one of UDP is, and so is every one of a protocol whose checksum no translator changes.
func transportValid(data []byte) bool {
	l4, end := l4Offset(data), ethernetLength+ipLength(data)
	switch data[ethernetLength+9] {
	case protocolTCP:
	case protocolICMP:
		return fold(sum(data[l4:end])) == 0xffff
	case protocolUDPLite:
		coverage := int(binary.BigEndian.Uint16(data[l4+4:]))
		if coverage == 0 {
			coverage = end - l4
		}
		return fold(pseudoHeader(data)+sum(data[l4:min(l4+coverage, end)])) == 0xffff
	case protocolUDP:
		if binary.BigEndian.Uint16(data[l4+6:]) == 0 {
			return true
		}
		length := uint32(binary.BigEndian.Uint16(data[l4+4:]))
		pseudo := sum(data[ethernetLength+12:ethernetLength+20]) + 17 + length
		return fold(pseudo+sum(data[l4:l4+int(length)])) == 0xffff
	default:
		return true
	}
	return fold(pseudoHeader(data)+sum(data[l4:end])) == 0xffff
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// message is an ICMP message with its checksum.
func message(kind, code uint8, rest uint32, body []byte) []byte {
	data := binary.BigEndian.AppendUint32([]byte{kind, code, 0, 0}, rest)
	data = append(data, body...)
	binary.BigEndian.PutUint16(data[2:], ^fold(sum(data)))
	return data
}

// echo is an ICMP echo request or reply. Its id stands for the port that the frame has on the
// side of whoever asks.
func echo(kind uint8, seq uint16, text string) func(*frame) {
	return icmp(func(f frame) []byte {
		id := f.src.Port()
		if kind == icmpEchoReply {
			id = f.dst.Port()
		}
		return message(kind, 0, uint32(id)<<16|uint32(seq), []byte(text))
	})
}

// icmpError is an ICMP error about a packet, quoted as the bytes that follow its Ethernet header.
func icmpError(kind, code uint8, rest uint32, quoted []byte) func(*frame) {
	return icmp(func(frame) []byte { return message(kind, code, rest, quoted) })
}

func icmp(body func(frame) []byte) func(*frame) {
	return func(f *frame) { f.protocol, f.body = protocolICMP, body }
}

// quote is what an ICMP error says of a frame: its IP packet, at most so many bytes of it.
func quote(data []byte, limit int) []byte {
	data = data[ethernetLength:]
	return slices.Clone(data[:min(limit, len(data), int(binary.BigEndian.Uint16(data[2:])))])
}

// SCTP chunk types.
const (
	sctpData = 0
	sctpInit = 1
)

// sctpPacket is a packet of one chunk (RFC 9260 section 3). Its CRC32c covers the ports and no address.
func sctpPacket(tag uint32, chunk uint8, text string) func(*frame) {
	return func(f *frame) {
		f.protocol = protocolSCTP
		f.body = func(f frame) []byte {
			data := binary.BigEndian.AppendUint16(nil, f.src.Port())
			data = binary.BigEndian.AppendUint16(data, f.dst.Port())
			data = binary.BigEndian.AppendUint32(data, tag)
			data = append(data, 0, 0, 0, 0, chunk, 0)
			data = binary.BigEndian.AppendUint16(data, uint16(4+len(text)))
			data = append(data, text...)
			binary.LittleEndian.PutUint32(data[8:], crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)))
			return data
		}
	}
}

// udpLitePacket is a datagram whose checksum covers its first bytes only (RFC 3828).
func udpLitePacket(coverage uint16, text string) func(*frame) {
	return func(f *frame) {
		f.protocol = protocolUDPLite
		f.body = func(f frame) []byte {
			data := binary.BigEndian.AppendUint16(nil, 4000)
			data = binary.BigEndian.AppendUint16(data, 4001)
			data = binary.BigEndian.AppendUint16(data, coverage)
			data = append(data, 0, 0)
			data = append(data, text...)
			src, dst := f.src.Addr().As4(), f.dst.Addr().As4()
			pseudo := sum(src[:]) + sum(dst[:]) + protocolUDPLite + uint32(len(data))
			covered := data
			if coverage != 0 {
				covered = data[:coverage]
			}
			binary.BigEndian.PutUint16(data[6:], ^fold(pseudo+sum(covered)))
			return data
		}
	}
}

// raw is a packet of any protocol with this behind its IP header.
func raw(protocol uint8, text string) func(*frame) {
	return func(f *frame) { f.protocol, f.body = protocol, func(frame) []byte { return []byte(text) } }
}

// mss is the TCP option that says how long segments may be.
func mss(n uint16) func(*frame) {
	return func(f *frame) {
		f.segment = append(f.segment, layers.TCPOption{
			OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: binary.BigEndian.AppendUint16(nil, n),
		})
	}
}

// fragments cuts a frame's IP packet: the payload of each piece but the last has one of the lengths.
func fragments(data []byte, lengths ...int) (pieces [][]byte) {
	header := data[:l4Offset(data)]
	payload := data[len(header) : ethernetLength+ipLength(data)]
	for at := 0; at < len(payload); {
		n := len(payload) - at
		if len(lengths) > 0 {
			n, lengths = min(n, lengths[0]), lengths[1:]
		}
		pieces = append(pieces, fragment(header, payload[at:at+n], at, at+n < len(payload)))
		at += n
	}
	return pieces
}

// fragment is a piece of a datagram with this Ethernet and IP header.
func fragment(header, payload []byte, offset int, more bool) []byte {
	data := append(slices.Clone(header), payload...)
	word := uint16(offset / 8)
	if more {
		word |= moreFragments
	}
	setWord(data, ethernetLength+2, uint16(len(data)-ethernetLength))
	setWord(data, ethernetLength+6, word)
	sealIP(data)
	return data
}

const (
	dontFragment  = 0x4000
	moreFragments = 0x2000
	offsetMask    = 0x1fff
)

// sealIP makes the checksum of the IP header good.
func sealIP(data []byte) {
	setWord(data, ipChecksumAt, 0)
	setWord(data, ipChecksumAt, ^fold(sum(data[ethernetLength:l4Offset(data)])))
}

func wordAt(data []byte, at int) uint16         { return binary.BigEndian.Uint16(data[at:]) }
func setWord(data []byte, at int, value uint16) { binary.BigEndian.PutUint16(data[at:], value) }
