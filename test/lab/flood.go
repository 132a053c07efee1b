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

// Flood is packets from random sources to one address: TCP SYNs or UDP datagrams.
type Flood struct {
	Protocol uint8 // unix.IPPROTO_TCP or unix.IPPROTO_UDP
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
	kind := []byte{0x08, 0x00}
	if f.To.Addr().Is6() {
		kind = []byte{0x86, 0xdd}
	}
	wire := h.Wire(dev, neighbour)
	ethernet := append(append(append([]byte(nil), neighbour...), h.HardwareAddr(dev)...), kind...)
	b, seed, times := newBatch(), f.Seed, max(1, f.Times)
	if seed == 0 {
		seed = rand.Uint64()
	}
	sent := 0
	for next := time.Now(); !stop(sent); sent += batchSize {
		if f.Rate > 0 {
			time.Sleep(time.Until(next))
			next = time.Now().Add(batchSize * time.Second / time.Duration(f.Rate))
		}
		for i := range batchSize {
			at := sent + i
			tuple := at/(floodBlock*times)*floodBlock + at%floodBlock
			frame := f.append(append(b.data[i][:0], ethernet...), seed+uint64(tuple))
			b.vectors[i].SetLen(len(frame))
		}
		if err := b.send(wire.fd, batchSize); err != nil {
			return sent, fmt.Errorf("%s: flood: %w", h.Name, err)
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
	at := len(b)
	payload := 12
	if f.Protocol == unix.IPPROTO_TCP {
		payload = 24
	}
	if f.To.Addr().Is6() {
		b = append(b, 0x60, 0, 0, 0, 0, byte(payload), f.Protocol, 64)
	} else {
		b = append(b, 0x45, 0, 0, byte(20+payload))
		b = binary.BigEndian.AppendUint32(b, rand.Uint32()<<16|0x4000)
		b = append(b, 64, f.Protocol, 0, 0)
	}
	addresses := len(b)
	b = appendAddr(appendAddr(b, src.Addr()), f.To.Addr())
	transport := len(b)
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, f.To.Port())
	check := transport + 6
	if f.Protocol == unix.IPPROTO_TCP {
		check = transport + 16
		b = binary.BigEndian.AppendUint32(b, rand.Uint32())
		b = append(b, 0, 0, 0, 0, 6<<4, SYN, 0xfa, 0xf0, 0, 0, 0, 0, 2, 4, 5, 180)
	} else {
		b = append(b, 0, byte(payload), 0, 0, 'f', 'l', 'o', 'd')
	}
	if f.To.Addr().Is4() {
		binary.BigEndian.PutUint16(b[at+10:], ^sum(0, b[at:transport]))
	}
	pseudo := sum(sum(0, b[addresses:transport]), []byte{0, f.Protocol, 0, byte(payload)})
	checksum := ^sum(pseudo, b[transport:])
	if checksum == 0 && f.Protocol == unix.IPPROTO_UDP {
		checksum = 0xffff
	}
	binary.BigEndian.PutUint16(b[check:], checksum)
	return b
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
