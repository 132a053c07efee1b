// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Flood is packets from random sources to one address: TCP SYNs, UDP datagrams or fragments of them, or ICMP errors.
type Flood struct {
	// Protocol is unix.IPPROTO_TCP, unix.IPPROTO_UDP, or unix.IPPROTO_ICMP in both families: errors about segments that To never sent.
	Protocol uint8
	// Fragments makes the UDP datagrams fragments, in turn a first one and a last one. No two are of the same datagram.
	Fragments bool
	// From has the networks of the packets' source addresses. If it is empty, the sources are random public IPv4
	// addresses.
	From []netip.Prefix
	To   netip.AddrPort
	// Rate is the maximum number of packets per second, sent in batches; 0: as fast as one thread can.
	Rate int
	// Times is the number of packets of each tuple; 0 means 1. The second packet of a tuple follows after the first
	// packets of floodBlock tuples, so that an answer can come in between.
	Times int
	// Seed makes two floods have the same tuples; 0: each flood has its own.
	Seed uint64
}

// floodBlock is the number of tuples whose first packets are sent before their second packets.
const floodBlock = 8192

// SendFlood sends a flood out of an interface to a neighbour's MAC address, without the host's IP stack. The argument of stop
// is the number of packets sent; SendFlood ends when stop returns true, and returns this number.
func (h *Host) SendFlood(dev string, neighbour net.HardwareAddr, f Flood, stop func(sent int) bool) (int, error) {
	seed, times := f.Seed, max(1, f.Times)
	if seed == 0 {
		seed = rand.Uint64()
	}
	return h.sendFrames(dev, neighbour, f.Rate, stop, func(b []byte, at int) []byte {
		tuple := at/(floodBlock*times)*floodBlock + at%floodBlock
		return f.append(b, seed+uint64(tuple))
	})
}

// sendFrames sends packets out of an interface to a neighbour's MAC address, in batches, without the host's IP stack. appendPacket appends
// the packet with a number to b. The argument of stop is the number of packets sent; sendFrames ends when stop returns true, and returns
// this number. rate is the maximum number of packets per second; 0: as fast as one thread can.
func (h *Host) sendFrames(dev string, neighbour net.HardwareAddr, rate int, stop func(sent int) bool, appendPacket func(b []byte, at int) []byte) (int, error) {
	wire := h.Wire(dev, neighbour)
	ethernet := append(append(append([]byte(nil), neighbour...), h.HardwareAddr(dev)...), 0x08, 0x00)
	b, sent := newBatch(), 0
	for next := time.Now(); !stop(sent); sent += batchSize {
		if rate > 0 {
			time.Sleep(time.Until(next))
			next = time.Now().Add(batchSize * time.Second / time.Duration(rate))
		}
		for i := range batchSize {
			frame := appendPacket(append(b.data[i][:0], ethernet...), sent+i)
			if frame[len(ethernet)]>>4 == 6 {
				binary.BigEndian.PutUint16(frame[12:], unix.ETH_P_IPV6)
			}
			b.vectors[i].SetLen(len(frame))
		}
		if err := b.send(wire.fd, batchSize); err != nil {
			return sent, fmt.Errorf("%s: send many: %w", h.Name, err)
		}
	}
	return sent, nil
}

// FloodSYN sends count SYNs from random public sources to an address, as fast as one thread can. It sends them as SendFlood
// does.
func (h *Host) FloodSYN(dev string, neighbour net.HardwareAddr, to netip.AddrPort, count int) error {
	_, err := h.SendFlood(dev, neighbour, Flood{Protocol: unix.IPPROTO_TCP, To: to}, func(sent int) bool { return sent >= count })
	return err
}

// append appends the packet of a tuple to b. The number of a tuple determines its source.
func (f *Flood) append(b []byte, tuple uint64) []byte {
	random := rand.NewPCG(tuple, 0)
	src := netip.AddrPortFrom(f.source(random), uint16(1024+random.Uint64()%64512))
	at, part := len(b), wholeDatagram
	if f.Fragments {
		part = firstFragment + int(tuple%2)
	}
	b = f.appendHeader(b, f.protocol(), part, src.Addr(), f.To.Addr())
	transport, check := len(b), 0
	switch {
	case part == lastFragment:
		b = append(b, "fragment"...)
	case f.Protocol == unix.IPPROTO_ICMP:
		b = f.appendError(b, src)
		check = transport + 2
	default:
		b = binary.BigEndian.AppendUint16(b, src.Port())
		b = binary.BigEndian.AppendUint16(b, f.To.Port())
		if f.Protocol == unix.IPPROTO_TCP {
			check = transport + 16
			b = binary.BigEndian.AppendUint32(b, rand.Uint32())
			b = append(b, 0, 0, 0, 0, 6<<4, SYN, 0xfa, 0xf0, 0, 0, 0, 0, 2, 4, 5, 180)
			break
		}
		check = transport + 6
		b = append(b, 0, 12, 0, 0, 'f', 'l', 'o', 'd')
		if part == firstFragment {
			b[transport+5] += 4 + 8
			b = append(b, "rest"...)
		}
	}
	f.finish(b[at:], transport-at)
	if check != 0 {
		binary.BigEndian.PutUint16(b[check:], f.checksum(b[transport:], src.Addr()))
	}
	return b
}

// The parts of a datagram that a packet of a flood may be. The first fragment has fragmentBytes of it, the second fragment the rest.
const (
	wholeDatagram = iota
	firstFragment
	lastFragment

	fragmentBytes = 16
)

// protocol returns the number of the protocol in the header.
func (f *Flood) protocol() uint8 {
	if f.Protocol == unix.IPPROTO_ICMP && f.To.Addr().Is6() {
		return unix.IPPROTO_ICMPV6
	}
	return f.Protocol
}

// appendHeader appends an IP header whose length is 0. The ids of fragments are random, so no datagram is ever complete.
func (f *Flood) appendHeader(b []byte, protocol uint8, part int, src, dst netip.Addr) []byte {
	offset := uint16(0)
	if part == lastFragment {
		offset = fragmentBytes / 8
	}
	if src.Is4() {
		flags := [...]uint16{wholeDatagram: 0x4000, firstFragment: 0x2000, lastFragment: 0}[part]
		b = append(b, 0x45, 0, 0, 0)
		b = binary.BigEndian.AppendUint32(b, rand.Uint32()<<16|uint32(flags|offset))
		return appendAddr(appendAddr(append(b, 64, protocol, 0, 0), src), dst)
	}
	next := protocol
	if part != wholeDatagram {
		next = unix.IPPROTO_FRAGMENT
	}
	b = appendAddr(appendAddr(append(b, 0x60, 0, 0, 0, 0, 0, next, 64), src), dst)
	if part != wholeDatagram {
		more := [...]uint16{firstFragment: 1, lastFragment: 0}[part]
		b = binary.BigEndian.AppendUint16(append(b, protocol, 0), offset<<3|more)
		b = binary.BigEndian.AppendUint32(b, rand.Uint32())
	}
	return b
}

// finish writes the length of a packet into its IP header, and in IPv4 the header's checksum.
func (f *Flood) finish(packet []byte, header int) {
	if packet[0]>>4 == 6 {
		binary.BigEndian.PutUint16(packet[4:], uint16(len(packet)-40))
		return
	}
	binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
	binary.BigEndian.PutUint16(packet[10:], ^sum(0, packet[:header]))
}

// appendError appends an ICMP error, Port Unreachable. It quotes the head of a TCP segment from the flooded port to the tuple's source.
func (f *Flood) appendError(b []byte, src netip.AddrPort) []byte {
	if src.Addr().Is6() {
		b = append(b, 1, 4, 0, 0, 0, 0, 0, 0)
	} else {
		b = append(b, Unreachable, PortUnreachable, 0, 0, 0, 0, 0, 0)
	}
	quote := len(b)
	b = f.appendHeader(b, unix.IPPROTO_TCP, wholeDatagram, f.To.Addr(), src.Addr())
	header := len(b) - quote
	b = binary.BigEndian.AppendUint16(b, f.To.Port())
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint32(b, rand.Uint32())
	f.finish(b[quote:], header)
	return b
}

// checksum returns the checksum of the transport layer, whose checksum field is 0. That of a first fragment is wrong: it would be of the
// whole datagram.
func (f *Flood) checksum(transport []byte, src netip.Addr) uint16 {
	pseudo := uint16(0)
	if protocol := f.protocol(); protocol != unix.IPPROTO_ICMP {
		addresses := appendAddr(appendAddr(make([]byte, 0, 32), src), f.To.Addr())
		pseudo = sum(sum(0, addresses), []byte{0, protocol, 0, byte(len(transport))})
	}
	checksum := ^sum(pseudo, transport)
	if checksum == 0 && f.Protocol == unix.IPPROTO_UDP {
		checksum = 0xffff
	}
	return checksum
}

func (f *Flood) source(random rand.Source) netip.Addr {
	if len(f.From) == 0 {
		return publicAddr(random)
	}
	return randomAddr(f.From[random.Uint64()%uint64(len(f.From))], random)
}

func appendAddr(b []byte, addr netip.Addr) []byte {
	if addr.Is4() {
		a := addr.As4()
		return append(b, a[:]...)
	}
	a := addr.As16()
	return append(b, a[:]...)
}

// randomAddr returns a random address of a network. It avoids the first and the last address if the network has more than two.
func randomAddr(network netip.Prefix, random rand.Source) netip.Addr {
	host := network.Addr().BitLen() - network.Bits()
	bits := random.Uint64()
	if host < 64 {
		bits &= 1<<host - 1
	}
	if host > 1 && (bits == 0 || bits == 1<<host-1) {
		bits = 1
	}
	a := network.Masked().Addr().As16()
	if host > 64 {
		high := binary.BigEndian.Uint64(a[:]) | random.Uint64()&(1<<(host-64)-1)
		binary.BigEndian.PutUint64(a[:], high)
	}
	low := binary.BigEndian.Uint64(a[8:]) | bits
	binary.BigEndian.PutUint64(a[8:], low)
	if network.Addr().Is4() {
		return netip.AddrFrom16(a).Unmap()
	}
	return netip.AddrFrom16(a)
}

// publicAddr returns a random public IPv4 address.
func publicAddr(random rand.Source) netip.Addr {
	for {
		addr := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(random.Uint64()))))
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
