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
	Time     time.Time // when it was read
	Protocol uint8
	Src, Dst netip.AddrPort // ports are 0 in later fragments and in anything but TCP and UDP
	TTL      uint8
	Flags    uint8 // of TCP
	Length   int   // of the IP packet
	Partial  bool  // the transport checksum is left to an offload
}

// String is the packet as a failed test shows it.
func (p *Packet) String() string {
	return fmt.Sprintf("protocol %d %s > %s flags %#02x ttl %d length %d", p.Protocol, p.Src, p.Dst, p.Flags, p.TTL, p.Length)
}

// TCP flags.
const (
	FIN = 0x01
	SYN = 0x02
	RST = 0x04
	ACK = 0x10
)

var errShort = errors.New("packet too short for its headers")

// parsePacket reads an IPv4 packet and checks every checksum in it. It shares no code and no
// method with what it judges: sums are made from scratch. With partial the sender left the
// transport checksum to an offload, and the field has to hold the sum of the pseudo header.
// The packet is as complete as could be read when there is an error.
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
	data = data[:p.Length] // padding is no part of any checksum
	p.Protocol, p.TTL = data[9], data[8]
	src, dst := netip.AddrFrom4([4]byte(data[12:])), netip.AddrFrom4([4]byte(data[16:]))
	p.Src, p.Dst = netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0)
	if s := sum(0, data[:header]); s != 0xffff {
		return p, fmt.Errorf("IP header checksum: sum is %#04x", s)
	}
	if binary.BigEndian.Uint16(data[6:])&0x3fff != 0 {
		return p, nil // a fragment: its checksum is over the whole datagram
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
		return nil
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

func (p *Packet) transportChecksum(data []byte, field uint16) error {
	src, dst := p.Src.Addr().As4(), p.Dst.Addr().As4()
	pseudo := sum(sum(0, src[:]), dst[:])
	pseudo = sum(pseudo, []byte{0, p.Protocol, byte(len(data) >> 8), byte(len(data))})
	switch {
	case p.Partial:
		if field != pseudo {
			return fmt.Errorf("partial checksum is %#04x, pseudo header sums to %#04x", field, pseudo)
		}
	case p.Protocol == unix.IPPROTO_UDP && field == 0: // sent without one
	default:
		if s := sum(pseudo, data); s != 0xffff {
			return fmt.Errorf("transport checksum %#04x: sum is %#04x", field, s)
		}
	}
	return nil
}

// sum adds data to a ones' complement sum in the plainest way (RFC 1071 section 4.1). Data
// of odd length counts as padded, so only the last piece of a sum may be odd.
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
