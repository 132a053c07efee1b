// SPDX-License-Identifier: Apache-2.0

package program

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"hairpin/test/frames"
	"hairpin/test/rig"
)

// change6 is change for a packet of IPv6.
func (m mutator) change6(p parts) []byte {
	switch m.IntN(10) {
	case 0, 1, 2:
		return m.damage(p.data)
	case 3:
		return m.resize6(p.data)
	case 4:
		return m.retarget6(p.data)
	case 5:
		return m.cut6(p)
	case 6:
		return m.wrap6(p)
	case 7:
		return m.extend6(p)
	case 8:
		return m.graft6(p)
	default:
		return m.flags6(p)
	}
}

// resize6 makes the frame shorter or longer, and in half of the cases its IP packet too.
func (m mutator) resize6(data []byte) []byte {
	if m.IntN(2) == 0 {
		data = data[:max(ipAt+frames.IP6Header, m.IntN(len(data)))]
	} else {
		data = append(data, make([]byte, m.IntN(700))...)
	}
	if m.IntN(2) == 0 {
		setLength6(data)
	}
	return data
}

func setLength6(data []byte) { frames.SetWord(data, ipAt+4, uint16(len(data)-ipAt-frames.IP6Header)) }

// retarget6 gives the packet another address that means something here.
func (m mutator) retarget6(data []byte) []byte {
	addresses := []netip.Addr{
		wanAddress6, pingAddress6, dmzAddress6, lanAddress6, otherAddress6, internetHost6,
		target6, pingTarget6, dmzTarget6, client6Addr, otherClient6, farRouter6, nearRouter6,
		netip.IPv6Unspecified(), netip.IPv6Loopback(), netip.MustParseAddr("ff02::1"), netip.MustParseAddr("fe80::fe"),
	}
	copy(data[ipAt+8+16*m.IntN(2):], addresses[m.IntN(len(addresses))].AsSlice())
	return data
}

// cut6 makes a fragment of the packet.
func (m mutator) cut6(p parts) []byte {
	payload := p.end - p.l4
	from := m.IntN(payload/8+1) * 8
	length := min(m.IntN(payload/8+2)*8, payload-from)
	data := m.insert6(p, p.l4, frames.FragmentHeader6(m.Uint32N(4), from, from+length < payload))
	start := p.l4 + 8
	data = slices.Concat(data[:start], data[start+from:start+from+length])
	if m.IntN(8) == 0 {
		frames.SetWord(data, p.l4+2, uint16(m.Uint32()))
	}
	setLength6(data)
	return data
}

// insert6 puts an extension header where another header begins.
func (m mutator) insert6(p parts, at int, e frames.Extension) []byte {
	header := slices.Clone(e.Data)
	last := ipAt + 6 // where the header at that place is named
	for off := ipAt + frames.IP6Header; off < at; {
		length := 8
		if p.data[last] != frames.HeaderFragment {
			length = 8 * (int(p.data[off+1]) + 1)
		}
		last, off = off, off+length
	}
	header[0] = p.data[last]
	data := slices.Insert(slices.Clone(p.data[:p.end]), at, header...)
	data[last] = e.Kind
	setLength6(data)
	return data
}

// extend6 adds an extension header.
func (m mutator) extend6(p parts) []byte {
	kinds := []uint8{headerHop, headerDest, headerDest, headerRouting, headerAuth, headerMobility, frames.HeaderFragment, 253}
	kind := kinds[m.IntN(len(kinds))]
	if kind == frames.HeaderFragment {
		return m.insert6(p, p.l4, frames.FragmentHeader6(m.Uint32(), 0, false))
	}
	at := p.l4
	if m.IntN(2) == 0 {
		at = ipAt + frames.IP6Header
	}
	return m.insert6(p, at, padding(kind, 8*(1+m.IntN(9))))
}

// wrap6 puts the packet of a sample, or this one, into an ICMPv6 error to wherever this one goes.
func (m mutator) wrap6(p parts) []byte {
	about := p.data
	if m.IntN(2) == 0 {
		about = m.samples[m.IntN(len(m.samples))].data
	}
	kinds := []byte{icmp6Unreachable, icmp6Unreachable, icmp6TooBig, icmp6TimeExceeded, icmp6Parameter, icmp6EchoRequest, 135}
	quoted := about[ipAt:min(len(about), ipAt+frames.IP6Header+m.IntN(120))]
	src, dst := p.addresses()
	data := slices.Concat(p.data[:ipAt+frames.IP6Header], message6(src, dst, kinds[m.IntN(len(kinds))], byte(m.IntN(8)), m.Uint32(), quoted))
	data[ipAt+6] = protocolICMP6
	setLength6(data)
	return data
}

// graft6 puts the transport of a sample behind these headers.
func (m mutator) graft6(p parts) []byte {
	other, ok := dissect(m.samples[m.IntN(len(m.samples))].data)
	if !ok {
		return p.data
	}
	data := slices.Concat(p.data[:ipAt+frames.IP6Header], other.data[other.l4:other.end])
	data[ipAt+6] = other.protocol
	setLength6(data)
	return data
}

// flags6 changes what a header says of the packet as a whole: hop limit, class and label, protocol, TCP flags.
func (m mutator) flags6(p parts) []byte {
	switch m.IntN(4) {
	case 0:
		p.data[ipAt+7] = byte(m.IntN(3))
	case 1:
		binary.BigEndian.PutUint32(p.data[ipAt:], 6<<28|m.Uint32()>>4)
	case 2:
		protocols := []byte{protocolICMP6, protocolICMP, protocolTCP, protocolUDP, protocolSCTP, protocolUDPLite, protocolGRE, protocolESP, headerNone}
		p.data[ipAt+6] = protocols[m.IntN(len(protocols))]
	default:
		if p.has(20) {
			p.data[p.l4+13] = byte(m.IntN(64))
			binary.BigEndian.PutUint32(p.data[p.l4+4:], []uint32{0, rig.ClientISN, rig.ClientISN + 1, rig.ServerISN + 1, m.Uint32()}[m.IntN(5)])
		}
	}
	return p.data
}
