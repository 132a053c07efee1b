// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Wire sends packets that a test has made out of an interface, without the host's IP stack.
type Wire struct {
	fd    int
	frame []byte // Ethernet header, and the last packet that was sent
}

// Wire returns a Wire on an interface of the host. Its packets go to a neighbour's MAC address.
func (h *Host) Wire(dev string, neighbour net.HardwareAddr) *Wire {
	h.tb.Helper()
	w := &Wire{frame: append(append(append([]byte(nil), neighbour...), h.HardwareAddr(dev)...), 0x08, 0x00)}
	index := h.Index(dev)
	h.must("open "+dev, h.Do(func() (err error) {
		// Protocol 0: the socket receives nothing.
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return fmt.Errorf("open packet socket: %w", err)
		}
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Ifindex: index})
	}))
	h.tb.Cleanup(func() { unix.Close(w.fd) })
	return w
}

// Send sends IPv4 or IPv6 packets, in this order. If the device's queue is full, the packet is lost, without an error.
func (w *Wire) Send(packets ...[]byte) error {
	for _, packet := range packets {
		kind := uint16(unix.ETH_P_IP)
		if packet[0]>>4 == 6 {
			kind = unix.ETH_P_IPV6
		}
		binary.BigEndian.PutUint16(w.frame[12:14], kind)
		w.frame = append(w.frame[:14], packet...)
		if _, err := unix.Write(w.fd, w.frame); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("send packet: %w", err)
		}
	}
	return nil
}

// Datagram is an IPv4 datagram to send, whole or in pieces.
type Datagram struct {
	Src, Dst netip.Addr
	Protocol uint8
	TTL      uint8  // 0: 64
	ID       uint16 // 0: random
	DF       bool
	Options  []byte // of IPv4, padded to a multiple of 4
	Payload  []byte
}

// Packet returns the datagram as one packet.
func (d Datagram) Packet() []byte { return d.piece(0, len(d.Payload), d.id()) }

// Fragments returns the datagram in fragments with size bytes of payload each; size is a multiple of 8.
func (d Datagram) Fragments(size int) [][]byte {
	var fragments [][]byte
	for id, at := d.id(), 0; at < len(d.Payload); at += size {
		fragments = append(fragments, d.piece(at, min(at+size, len(d.Payload)), id))
	}
	return fragments
}

// Fragment returns the fragment with the payload bytes [from, to); from is a multiple of 8.
func (d Datagram) Fragment(from, to int) []byte { return d.piece(from, to, d.id()) }

func (d Datagram) id() uint16 {
	if d.ID == 0 {
		return uint16(1 + rand.N(65535))
	}
	return d.ID
}

func (d Datagram) piece(from, to int, id uint16) []byte {
	ttl := d.TTL
	if ttl == 0 {
		ttl = 64
	}
	flags := uint16(from / 8)
	if to < len(d.Payload) {
		flags |= 0x2000
	}
	if d.DF {
		flags |= 0x4000
	}
	header := 20 + len(d.Options)
	b := binary.BigEndian.AppendUint16([]byte{0x40 | byte(header/4), 0}, uint16(header+to-from))
	b = binary.BigEndian.AppendUint16(b, id)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = append(b, ttl, d.Protocol, 0, 0)
	b = append(append(append(b, d.Src.AsSlice()...), d.Dst.AsSlice()...), d.Options...)
	binary.BigEndian.PutUint16(b[10:], ^sum(0, b))
	return append(b, d.Payload[from:to]...)
}

// seal writes the transport checksum at offset at of the payload. The checksum is over the pseudo header (RFC 9293 section 3.1) and
// the first cover bytes of the payload.
func (d Datagram) seal(at, cover int) Datagram {
	pseudo := sum(sum(0, d.Src.AsSlice()), d.Dst.AsSlice())
	pseudo = sum(pseudo, []byte{0, d.Protocol, byte(len(d.Payload) >> 8), byte(len(d.Payload))})
	checksum := ^sum(pseudo, d.Payload[:cover])
	if checksum == 0 && d.Protocol != unix.IPPROTO_TCP {
		checksum = 0xffff
	}
	binary.BigEndian.PutUint16(d.Payload[at:], checksum)
	return d
}

func ports(src, dst netip.AddrPort) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, src.Port()), dst.Port())
}

// UDP returns a UDP datagram.
func UDP(src, dst netip.AddrPort, data []byte) Datagram {
	b := binary.BigEndian.AppendUint16(ports(src, dst), uint16(8+len(data)))
	b = append(append(b, 0, 0), data...)
	return Datagram{Src: src.Addr(), Dst: dst.Addr(), Protocol: unix.IPPROTO_UDP, Payload: b}.seal(6, len(b))
}

// UDPLite returns a UDP-Lite datagram whose checksum covers only the header (RFC 3828).
func UDPLite(src, dst netip.AddrPort, data []byte) Datagram {
	b := append(append(ports(src, dst), 0, 8, 0, 0), data...)
	return Datagram{Src: src.Addr(), Dst: dst.Addr(), Protocol: unix.IPPROTO_UDPLITE, Payload: b}.seal(6, 8)
}

// TCP returns a TCP segment. options has the bytes of the options, padded to a multiple of 4.
func TCP(src, dst netip.AddrPort, flags uint8, seq, ack uint32, options, data []byte) Datagram {
	b := binary.BigEndian.AppendUint32(ports(src, dst), seq)
	b = binary.BigEndian.AppendUint32(b, ack)
	b = append(b, byte(20+len(options))<<2, flags, 0xfa, 0xf0, 0, 0, 0, 0)
	b = append(append(b, options...), data...)
	return Datagram{Src: src.Addr(), Dst: dst.Addr(), Protocol: unix.IPPROTO_TCP, Payload: b}.seal(16, len(b))
}

// ICMP returns an ICMP message; rest is the second word of its header.
func ICMP(src, dst netip.Addr, kind, code uint8, rest uint32, data []byte) Datagram {
	b := binary.BigEndian.AppendUint32([]byte{kind, code, 0, 0}, rest)
	b = append(b, data...)
	binary.BigEndian.PutUint16(b[2:], ^sum(0, b))
	return Datagram{Src: src, Dst: dst, Protocol: unix.IPPROTO_ICMP, Payload: b}
}
