// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// FloodSYN sends count SYNs to an address from random public sources, out of an interface of
// the host and to a neighbour's MAC address, as fast as one thread can.
func (h *Host) FloodSYN(dev string, neighbour net.HardwareAddr, to netip.AddrPort, count int) error {
	w := h.Wire(dev, neighbour)
	packet := make([]byte, 0, 64)
	for range count {
		packet = appendSYN(packet[:0], netip.AddrPortFrom(publicAddr(), uint16(1024+rand.N(64512))), to)
		if err := w.Send(packet); err != nil {
			return err
		}
	}
	return nil
}

// publicAddr returns a random address that somebody on the Internet may have.
func publicAddr() netip.Addr {
	for {
		addr := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, rand.Uint32())))
		first := addr.As4()[0]
		if first != 0 && first < 224 && addr.IsGlobalUnicast() && !addr.IsPrivate() && !carrierGrade.Contains(addr) && !onLink.Contains(addr) {
			return addr
		}
	}
}

var (
	carrierGrade = netip.MustParsePrefix("100.64.0.0/10")
	onLink       = netip.MustParsePrefix("203.0.113.0/24")
)

// appendSYN appends an IPv4 TCP SYN with an MSS option.
func appendSYN(b []byte, from, to netip.AddrPort) []byte {
	at := len(b)
	b = append(b, 0x45, 0, 0, 44)
	b = binary.BigEndian.AppendUint32(b, rand.Uint32()<<16|0x4000)
	b = append(b, 64, unix.IPPROTO_TCP, 0, 0)
	b = append(b, from.Addr().AsSlice()...)
	b = append(b, to.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint32(b, rand.Uint32())
	b = append(b, 0, 0, 0, 0, 6<<4, SYN, 0xfa, 0xf0, 0, 0, 0, 0, 2, 4, 5, 180)

	ip, tcp := b[at:at+20], b[at+20:]
	binary.BigEndian.PutUint16(ip[10:], ^sum(0, ip))
	pseudo := sum(sum(0, ip[12:]), []byte{0, unix.IPPROTO_TCP, 0, byte(len(tcp))})
	binary.BigEndian.PutUint16(tcp[16:], ^sum(pseudo, tcp))
	return b
}
