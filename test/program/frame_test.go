// SPDX-License-Identifier: Apache-2.0

package program

import (
	"encoding/binary"
	"hash/crc32"
	"slices"

	"github.com/gopacket/gopacket/layers"

	"hairpin/test/frames"
)

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

// transportValid says whether the TCP, UDP, UDP-Lite or ICMP checksum of an unfragmented packet is
// right; an absent one of UDP is, and so is every one of a protocol whose checksum no translator changes.
func transportValid(data []byte) bool {
	l4, end := frames.L4Offset(data), frames.EthernetLength+frames.IPLength(data)
	switch data[frames.EthernetLength+9] {
	case protocolTCP:
	case protocolICMP:
		return frames.Fold(frames.Sum(data[l4:end])) == 0xffff
	case protocolUDPLite:
		coverage := int(binary.BigEndian.Uint16(data[l4+4:]))
		if coverage == 0 {
			coverage = end - l4
		}
		return frames.Fold(frames.PseudoHeader(data)+frames.Sum(data[l4:min(l4+coverage, end)])) == 0xffff
	case protocolUDP:
		if binary.BigEndian.Uint16(data[l4+6:]) == 0 {
			return true
		}
		length := uint32(binary.BigEndian.Uint16(data[l4+4:]))
		pseudo := frames.Sum(data[frames.EthernetLength+12:frames.EthernetLength+20]) + 17 + length
		return frames.Fold(pseudo+frames.Sum(data[l4:l4+int(length)])) == 0xffff
	default:
		return true
	}
	return frames.Fold(frames.PseudoHeader(data)+frames.Sum(data[l4:end])) == 0xffff
}

// message is an ICMP message with its checksum.
func message(kind, code uint8, rest uint32, body []byte) []byte {
	data := binary.BigEndian.AppendUint32([]byte{kind, code, 0, 0}, rest)
	data = append(data, body...)
	binary.BigEndian.PutUint16(data[2:], ^frames.Fold(frames.Sum(data)))
	return data
}

// echo returns an ICMP echo request or reply. Its id is the port that the frame has on the side of the sender of the request.
func echo(kind uint8, seq uint16, text string) func(*frames.Frame) {
	return icmp(func(f frames.Frame) []byte {
		id := f.Src.Port()
		if kind == icmpEchoReply {
			id = f.Dst.Port()
		}
		return message(kind, 0, uint32(id)<<16|uint32(seq), []byte(text))
	})
}

// icmpError is an ICMP error about a packet, quoted as the bytes that follow its Ethernet header.
func icmpError(kind, code uint8, rest uint32, quoted []byte) func(*frames.Frame) {
	return icmp(func(frames.Frame) []byte { return message(kind, code, rest, quoted) })
}

func icmp(body func(frames.Frame) []byte) func(*frames.Frame) {
	return func(f *frames.Frame) { f.Protocol, f.Body = protocolICMP, body }
}

// quote returns the part of a frame that an ICMP error quotes: its IP packet, at most limit bytes.
func quote(data []byte, limit int) []byte {
	data = data[frames.EthernetLength:]
	return slices.Clone(data[:min(limit, len(data), int(binary.BigEndian.Uint16(data[2:])))])
}

// SCTP chunk types.
const (
	sctpData = 0
	sctpInit = 1
)

// sctpPacket is a packet of one chunk (RFC 9260 section 3). Its CRC32c covers the ports and no address.
func sctpPacket(tag uint32, chunk uint8, text string) func(*frames.Frame) {
	return func(f *frames.Frame) {
		f.Protocol = protocolSCTP
		f.Body = func(f frames.Frame) []byte {
			data := binary.BigEndian.AppendUint16(nil, f.Src.Port())
			data = binary.BigEndian.AppendUint16(data, f.Dst.Port())
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
func udpLitePacket(coverage uint16, text string) func(*frames.Frame) {
	return func(f *frames.Frame) {
		f.Protocol = protocolUDPLite
		f.Body = func(f frames.Frame) []byte {
			data := binary.BigEndian.AppendUint16(nil, 4000)
			data = binary.BigEndian.AppendUint16(data, 4001)
			data = binary.BigEndian.AppendUint16(data, coverage)
			data = append(data, 0, 0)
			data = append(data, text...)
			src, dst := f.Src.Addr().As4(), f.Dst.Addr().As4()
			pseudo := frames.Sum(src[:]) + frames.Sum(dst[:]) + protocolUDPLite + uint32(len(data))
			covered := data
			if coverage != 0 {
				covered = data[:coverage]
			}
			binary.BigEndian.PutUint16(data[6:], ^frames.Fold(pseudo+frames.Sum(covered)))
			return data
		}
	}
}

// raw is a packet of any protocol with this behind its IP header.
func raw(protocol uint8, text string) func(*frames.Frame) {
	return func(f *frames.Frame) {
		f.Protocol, f.Body = protocol, func(frames.Frame) []byte { return []byte(text) }
	}
}

// mss is the TCP option that says how long segments may be.
func mss(n uint16) func(*frames.Frame) {
	return func(f *frames.Frame) {
		f.Segment = append(f.Segment, layers.TCPOption{
			OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: binary.BigEndian.AppendUint16(nil, n),
		})
	}
}

// fragments cuts a frame's IP packet: the payload of each piece but the last has one of the lengths.
func fragments(data []byte, lengths ...int) (pieces [][]byte) {
	header := data[:frames.L4Offset(data)]
	payload := data[len(header) : frames.EthernetLength+frames.IPLength(data)]
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
	frames.SetWord(data, frames.EthernetLength+2, uint16(len(data)-frames.EthernetLength))
	frames.SetWord(data, frames.EthernetLength+6, word)
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
	frames.SetWord(data, frames.IPChecksumAt, 0)
	frames.SetWord(data, frames.IPChecksumAt, ^frames.Fold(frames.Sum(data[frames.EthernetLength:frames.L4Offset(data)])))
}
