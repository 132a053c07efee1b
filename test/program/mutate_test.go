// SPDX-License-Identifier: Apache-2.0

package program

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"

	"hairpin/test/frames"
	"hairpin/test/rig"
)

// sample is a frame to begin with, and the interface it belongs to.
type sample struct {
	at   int // index into the bench's interfaces
	data []byte
}

// mutator makes frames out of samples. The same seed makes the same frames.
type mutator struct {
	*rand.Rand
	samples []sample
	sides   [4]side
}

const longestFrame = 2000

// next is a frame and the interface it comes in by: a sample as it is, or changed in a few places. In
// most of them checksums are made good again, or few would get beyond the first checks.
func (m mutator) next() (at int, data []byte) {
	s := m.samples[m.IntN(len(m.samples))]
	at, data = s.at, slices.Clone(s.data)
	if m.IntN(16) == 0 {
		at = m.IntN(len(m.sides))
	}
	copy(data, m.sides[at].MAC) // frames for other stations have rows of their own
	if m.IntN(8) == 0 {
		return at, data
	}
	for range 1 + m.IntN(3) {
		data = m.change(data)
	}
	if m.IntN(4) != 0 {
		repair(data)
	}
	return at, data[:min(len(data), longestFrame)]
}

func (m mutator) change(data []byte) []byte {
	p, ok := dissect(data)
	if !ok {
		return m.damage(data)
	}
	if p.v6 {
		return m.change6(p)
	}
	switch m.IntN(10) {
	case 0, 1, 2:
		return m.damage(data)
	case 3:
		return m.resize(data)
	case 4:
		return m.retarget(data)
	case 5:
		return m.cut(p)
	case 6:
		return m.wrap(p)
	case 7:
		return m.option(p)
	case 8:
		return m.graft(p)
	default:
		return m.flags(p)
	}
}

// damage writes a byte or a word somewhere, mostly into the headers.
func (m mutator) damage(data []byte) []byte {
	limit := len(data)
	if m.IntN(4) != 0 {
		limit = min(limit, 90)
	}
	at := 12 + m.IntN(max(limit-14, 1))
	switch m.IntN(3) {
	case 0:
		data[at] ^= 1 << m.IntN(8)
	case 1:
		data[at] = byte(m.Uint32())
	default:
		words := []uint16{0, 1, 4, 5, 7, 8, 19, 20, 21, 27, 28, 0x3fff, 0x4000, 0x2000, 0x7fff, 0x8000, 0xfffe, 0xffff,
			443, 8443, 9899, 20001, 20002, uint16(len(data)), uint16(len(data) - frames.EthernetLength)}
		frames.SetWord(data, at, words[m.IntN(len(words))])
	}
	return data
}

// resize makes the frame shorter or longer, and in half of the cases its IP packet too.
func (m mutator) resize(data []byte) []byte {
	if m.IntN(2) == 0 {
		data = data[:max(l4At, m.IntN(len(data)))]
	} else {
		data = append(data, make([]byte, m.IntN(700))...)
	}
	if m.IntN(2) == 0 {
		frames.SetWord(data, ipAt+2, uint16(len(data)-frames.EthernetLength))
	}
	return data
}

// retarget gives the packet another address or port that means something here.
func (m mutator) retarget(data []byte) []byte {
	addresses := [][4]byte{
		rig.WANAddress.As4(), rig.BasicAddress.As4(), rig.DMZAddress.As4(), rig.LANAddress.As4(), rig.OtherAddress.As4(), rig.InternetHost.As4(),
		rig.Server.As4(), rig.BasicServer.As4(), rig.DMZServer.As4(), rig.Client.As4(), rig.OtherClient.As4(), farRouter.As4(),
		{255, 255, 255, 255}, {224, 0, 0, 1}, {127, 0, 0, 1}, {192, 168, 1, 255},
	}
	address := addresses[m.IntN(len(addresses))]
	copy(data[ipAt+12+4*m.IntN(2):], address[:])
	return data
}

// cut makes a fragment of the packet.
func (m mutator) cut(p parts) []byte {
	payload := p.end - p.l4
	from := m.IntN(payload/8+1) * 8
	length := min(m.IntN(payload/8+2)*8, payload-from)
	data := fragment(p.data[:p.l4], p.data[p.l4+from:p.l4+from+length], from, from+length < payload)
	if m.IntN(8) == 0 {
		frames.SetWord(data, ipAt+6, frames.WordAt(data, ipAt+6)^uint16(m.Uint32())&0xe007)
	}
	return data
}

// wrap puts the packet of a sample, or this one, into an ICMP error to wherever this one goes.
func (m mutator) wrap(p parts) []byte {
	about := p.data
	if m.IntN(2) == 0 {
		about = m.samples[m.IntN(len(m.samples))].data
	}
	kinds := []byte{icmpUnreachable, icmpUnreachable, icmpTimeExceeded, icmpParameter, icmpRedirect, icmpEchoRequest}
	quoted := about[frames.EthernetLength:min(len(about), frames.EthernetLength+20+m.IntN(120))]
	data := slices.Concat(p.data[:p.l4], message(kinds[m.IntN(len(kinds))], byte(m.IntN(16)), m.Uint32(), quoted))
	frames.SetWord(data, ipAt+2, uint16(len(data)-frames.EthernetLength))
	frames.SetWord(data, ipAt+6, 0)
	data[ipAt+9] = protocolICMP
	return data
}

// option makes room in the IP header for options.
func (m mutator) option(p parts) []byte {
	room := (60 - (p.l4 - ipAt)) / 4
	if room == 0 {
		return p.data
	}
	options := make([]byte, 4*(1+m.IntN(room)))
	for i := range options {
		options[i] = []byte{0, 1, 7, 68, 148, byte(len(options)), 4}[m.IntN(7)]
	}
	data := slices.Insert(slices.Clone(p.data), p.l4, options...)
	data[ipAt] += byte(len(options) / 4)
	frames.SetWord(data, ipAt+2, uint16(frames.IPLength(data)+len(options)))
	return data
}

// graft puts the transport of a sample behind this IP header.
func (m mutator) graft(p parts) []byte {
	other, ok := dissect(m.samples[m.IntN(len(m.samples))].data)
	if !ok {
		return p.data
	}
	data := slices.Concat(p.data[:p.l4], other.data[other.l4:other.end])
	data[ipAt+9] = other.protocol
	frames.SetWord(data, ipAt+2, uint16(len(data)-frames.EthernetLength))
	return data
}

// flags changes what a header says of the packet as a whole: TTL, flags, protocol, TCP flags.
func (m mutator) flags(p parts) []byte {
	switch m.IntN(4) {
	case 0:
		p.data[ipAt+8] = byte(m.IntN(3))
	case 1:
		p.data[ipAt+6] ^= 1 << (5 + m.IntN(3))
	case 2:
		protocols := []byte{protocolICMP, protocolTCP, protocolUDP, protocolSCTP, protocolUDPLite, protocolGRE, protocolESP, protocolIPIP}
		p.data[ipAt+9] = protocols[m.IntN(len(protocols))]
	default:
		if p.has(20) {
			p.data[p.l4+13] = byte(m.IntN(64))
			binary.BigEndian.PutUint32(p.data[p.l4+4:], []uint32{0, rig.ClientISN, rig.ClientISN + 1, rig.ServerISN + 1, m.Uint32()}[m.IntN(5)])
		}
	}
	return p.data
}

// repair makes the checksums good, of the IP header and of a transport that is whole.
func repair(data []byte) {
	p, ok := dissect(data)
	if !ok {
		return
	}
	if !p.v6 {
		sealIP(data)
	}
	at := map[uint8]int{protocolTCP: 16, protocolUDP: 6, protocolICMP: 2, protocolICMP6: 2}[p.protocol]
	if at == 0 || !p.whole || !p.sound() {
		return
	}
	end, pseudo := p.end, uint32(0)
	if p.protocol == protocolUDP {
		end = p.l4 + int(frames.WordAt(data, p.l4+4))
	}
	if p.protocol != protocolICMP {
		pseudo = p.pseudo(end - p.l4)
	}
	frames.SetWord(data, p.l4+at, 0)
	frames.SetWord(data, p.l4+at, ^frames.Fold(pseudo+frames.Sum(data[p.l4:end])))
}
