// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Packet is an IPv4 packet as it arrived at an interface.
type Packet struct {
	Time     time.Time // time at which the capture read the packet
	Protocol uint8
	Src, Dst netip.AddrPort // the ports are 0 in later fragments, and in protocols other than TCP and UDP
	TTL      uint8
	Flags    uint8 // TCP flags
	ID       uint16
	DF       bool
	Fragment bool        // the packet is a fragment
	Length   int         // length of the IP packet
	Partial  bool        // the transport checksum is left to an offload
	ICMP     *ICMPHeader // nil if the packet is not ICMP
	Data     []byte      // the whole packet, valid until the observer returns
}

// ICMPHeader has the fields of an ICMP message.
type ICMPHeader struct {
	Type, Code uint8
	Rest       uint32  // second word; echo: id and sequence number; 3/4: the MTU
	Quote      *Packet // errors only: the quoted packet, with ports and without flags
}

// Types of ICMP messages, and codes of Destination Unreachable (RFC 792, RFC 1812).
const (
	EchoReply       = 0
	Unreachable     = 3
	EchoRequest     = 8
	TimeExceeded    = 11
	HostUnreachable = 1
	PortUnreachable = 3
	FragNeeded      = 4
	Prohibited      = 13
)

// MSS returns the maximum segment size that a TCP header announces, 0 if none.
func (p *Packet) MSS() int {
	tcp := p.Data[int(p.Data[0]&15)*4:]
	options := tcp[20 : tcp[12]>>4*4]
	for len(options) >= 4 {
		switch kind, length := options[0], options[1]; {
		case kind == 2:
			return int(binary.BigEndian.Uint16(options[2:]))
		case kind == 1:
			options = options[1:]
		case kind == 0 || length < 2 || int(length) > len(options):
			return 0
		default:
			options = options[length:]
		}
	}
	return 0
}

// Payload returns the bytes after the IP header.
func (p *Packet) Payload() []byte { return p.Data[int(p.Data[0]&15)*4:] }

// String returns the packet as text, for messages of a failed test.
func (p *Packet) String() string {
	text := fmt.Sprintf("protocol %d %s > %s flags %#02x ttl %d length %d", p.Protocol, p.Src, p.Dst, p.Flags, p.TTL, p.Length)
	if p.ICMP != nil {
		text += fmt.Sprintf(" type %d code %d rest %#x", p.ICMP.Type, p.ICMP.Code, p.ICMP.Rest)
	}
	if p.ICMP != nil && p.ICMP.Quote != nil {
		text += fmt.Sprintf(" quoting %v", p.ICMP.Quote)
	}
	return text
}

// TCP flags.
const (
	FIN = 0x01
	SYN = 0x02
	RST = 0x04
	ACK = 0x10
)

var errShort = errors.New("packet too short for its headers")

// parsePacket parses an IPv4 packet and checks all of its checksums. It shares no code with the programs under test, and computes
// each sum over all bytes. If partial is true, the sender has left the transport checksum to an offload, and the field must
// have the sum of the pseudo header. With an error, the returned packet has the fields that could be read.
func parsePacket(data []byte, partial bool) (*Packet, error) {
	p := &Packet{Partial: partial}
	if len(data) < 20 || data[0]>>4 != 4 || data[0]&15 < 5 {
		return p, errShort
	}
	header := int(data[0]&15) * 4
	p.Length = int(binary.BigEndian.Uint16(data[2:]))
	if p.Length < header || p.Length > len(data) {
		return p, errShort
	}
	data = data[:p.Length] // checksums do not include padding
	p.Data, p.ID, p.DF = data, binary.BigEndian.Uint16(data[4:]), data[6]&0x40 != 0
	p.Protocol, p.TTL = data[9], data[8]
	src, dst := netip.AddrFrom4([4]byte(data[12:])), netip.AddrFrom4([4]byte(data[16:]))
	p.Src, p.Dst = netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0)
	if s := sum(0, data[:header]); s != 0xffff {
		return p, fmt.Errorf("IP header checksum: sum is %#04x", s)
	}
	if binary.BigEndian.Uint16(data[6:])&0x3fff != 0 {
		p.Fragment = true // the transport checksum is over the whole datagram, so it cannot be checked here
		return p, nil
	}
	return p, p.transport(data[header:])
}

func (p *Packet) transport(data []byte) error {
	at := 0
	switch p.Protocol {
	case unix.IPPROTO_ICMP:
		if s := sum(0, data); s != 0xffff {
			return fmt.Errorf("ICMP checksum: sum is %#04x", s)
		}
		return p.icmp(data)
	case unix.IPPROTO_TCP:
		at = 16
	case unix.IPPROTO_UDP:
		at = 6
	default:
		return nil
	}
	if len(data) < at+2 {
		return errShort
	}
	p.Src = netip.AddrPortFrom(p.Src.Addr(), binary.BigEndian.Uint16(data))
	p.Dst = netip.AddrPortFrom(p.Dst.Addr(), binary.BigEndian.Uint16(data[2:]))
	if p.Protocol == unix.IPPROTO_TCP {
		p.Flags = data[13]
	}
	return p.transportChecksum(data, binary.BigEndian.Uint16(data[at:]))
}

func (p *Packet) icmp(data []byte) (err error) {
	if len(data) < 8 {
		return errShort
	}
	p.ICMP = &ICMPHeader{Type: data[0], Code: data[1], Rest: binary.BigEndian.Uint32(data[4:])}
	switch p.ICMP.Type {
	case Unreachable, TimeExceeded, 12:
		p.ICMP.Quote, err = parseQuote(data[8:])
	}
	return err
}

// parseQuote parses the packet that an ICMP error quotes; the end of the packet may be missing. The IP header checksum must be
// right. The transport checksum is not checked: it may have been left to an offload.
func parseQuote(data []byte) (*Packet, error) {
	p := &Packet{Data: data}
	if len(data) < 20 || data[0]>>4 != 4 || data[0]&15 < 5 || len(data) < int(data[0]&15)*4+8 {
		return p, fmt.Errorf("quote: %w", errShort)
	}
	header := int(data[0]&15) * 4
	p.Length, p.Protocol, p.TTL = int(binary.BigEndian.Uint16(data[2:])), data[9], data[8]
	p.ID, p.DF = binary.BigEndian.Uint16(data[4:]), data[6]&0x40 != 0
	p.Src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(data[12:])), binary.BigEndian.Uint16(data[header:]))
	p.Dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(data[16:])), binary.BigEndian.Uint16(data[header+2:]))
	if s := sum(0, data[:header]); s != 0xffff {
		return p, fmt.Errorf("quoted IP header checksum: sum is %#04x", s)
	}
	return p, nil
}

func (p *Packet) transportChecksum(data []byte, field uint16) error {
	src, dst := p.Src.Addr().As4(), p.Dst.Addr().As4()
	pseudo := sum(sum(0, src[:]), dst[:])
	pseudo = sum(pseudo, []byte{0, p.Protocol, byte(len(data) >> 8), byte(len(data))})
	switch {
	case p.Partial:
		if field != pseudo {
			return fmt.Errorf("partial checksum is %#04x, pseudo header sums to %#04x", field, pseudo)
		}
	case p.Protocol == unix.IPPROTO_UDP && field == 0: // the sender has not computed a checksum
	default:
		if s := sum(pseudo, data); s != 0xffff {
			return fmt.Errorf("transport checksum %#04x: sum is %#04x", field, s)
		}
	}
	return nil
}

// sum adds data to a ones' complement sum, as in RFC 1071 section 4.1. Data of odd length is padded, so only the last piece of
// a sum may be odd.
func sum(start uint16, data []byte) uint16 {
	s := uint64(start)
	for len(data) >= 4 {
		s += uint64(binary.BigEndian.Uint32(data))
		data = data[4:]
	}
	if len(data) >= 2 {
		s += uint64(binary.BigEndian.Uint16(data))
		data = data[2:]
	}
	if len(data) == 1 {
		s += uint64(data[0]) << 8
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}
