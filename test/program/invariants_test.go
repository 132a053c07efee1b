// SPDX-License-Identifier: Apache-2.0

package program

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"

	"hairpin/test/frames"
	"hairpin/test/rig"
)

// What is true of every frame, whatever it is. A frame is judged by itself: nothing here knows what
// connections there are.

// parts are the headers of a frame with a valid IP packet.
type parts struct {
	data        []byte
	v6          bool
	l4, end     int // of the transport header, and behind the IP packet
	protocol    uint8
	offset      int // of a fragment, in bytes
	more, whole bool
}

// dissect takes a frame apart; false if no translator may touch it.
func dissect(data []byte) (p parts, ok bool) {
	if len(data) < l4At {
		return p, false
	}
	switch frames.WordAt(data, 12) {
	case 0x0800:
		return dissect4(data)
	case 0x86dd:
		return dissect6(data)
	}
	return p, false
}

func dissect4(data []byte) (p parts, ok bool) {
	if data[ipAt]>>4 != 4 || data[ipAt]&15 < 5 {
		return p, false
	}
	p = parts{data: data, l4: frames.L4Offset(data), end: frames.EthernetLength + frames.IPLength(data), protocol: data[ipAt+9]}
	flags := frames.WordAt(data, ipAt+6)
	p.offset, p.more = int(flags&offsetMask)*8, flags&moreFragments != 0
	p.whole = p.offset == 0 && !p.more
	return p, p.l4 <= p.end && p.end <= len(data)
}

func dissect6(data []byte) (p parts, ok bool) {
	if len(data) < ipAt+frames.IP6Header || data[ipAt]>>4 != 6 {
		return p, false
	}
	p = parts{data: data, v6: true, l4: ipAt + frames.IP6Header, protocol: data[ipAt+6], whole: true}
	p.end = p.l4 + int(frames.WordAt(data, ipAt+4))
	for p.l4+8 <= p.end && p.end <= len(data) {
		at := p.l4
		switch p.protocol {
		case headerHop, headerDest:
			p.l4 += 8 * (int(data[at+1]) + 1)
		case frames.HeaderFragment:
			p.offset, p.more = int(frames.WordAt(data, at+2)&^7), frames.WordAt(data, at+2)&1 != 0
			p.whole = p.offset == 0 && !p.more
			p.l4 += 8
		default:
			return p, true
		}
		p.protocol = data[at]
	}
	return p, p.l4 <= p.end && p.end <= len(data)
}

// has says whether the transport header's first n bytes are there.
func (p parts) has(n int) bool { return p.offset == 0 && p.l4+n <= p.end }

// hops is where the TTL is, or the hop limit.
func (p parts) hops() int {
	if p.v6 {
		return ipAt + 7
	}
	return ipAt + 8
}

// addressesOf is where both addresses of an IP header at a place are.
func (p parts) addressesOf(ip int) [2]int {
	if p.v6 {
		return [2]int{ip + 8, ip + frames.IP6Header}
	}
	return [2]int{ip + 12, ip + 20}
}

func (p parts) addresses() (src, dst netip.Addr) {
	at := p.addressesOf(ipAt)
	both := p.data[at[0]:at[1]]
	src, _ = netip.AddrFromSlice(both[:len(both)/2])
	dst, _ = netip.AddrFromSlice(both[len(both)/2:])
	return src, dst
}

// isError says whether it is an ICMP error, with all its header.
func (p parts) isError() bool {
	if !p.has(8) {
		return false
	}
	kind := p.data[p.l4]
	if p.v6 {
		return p.protocol == protocolICMP6 && kind >= icmp6Unreachable && kind <= icmp6Parameter
	}
	return p.protocol == protocolICMP && (kind == icmpUnreachable || kind == icmpTimeExceeded || kind == icmpParameter)
}

// checkAnswer judges what a program made of a frame.
func checkAnswer(h hook, at side, in []byte, got rig.Answer) error {
	switch got.Code {
	case h.pass, h.drop:
		if !bytes.Equal(got.Data, in) && !rewrites(h, at, in, got) {
			return fmt.Errorf("%s answers %d and changes the packet to %x", h.name, int32(got.Code), got.Data)
		}
		return nil
	case h.send:
		out := delivered(in, got.Data)
		if told(in, out) {
			if h.name == "xdp" {
				return fmt.Errorf("xdp makes an ICMP error: %x", out)
			}
			return checkTold(at, in, out)
		}
		return checkTranslation(in, out)
	}
	return fmt.Errorf("%s answers %d", h.name, int32(got.Code))
}

// delivered gives what goes to the router itself, and has no Ethernet header, the type that it came with.
func delivered(in, out []byte) []byte {
	if len(out) < l4At || !bytes.Equal(out[:frames.EthernetLength], make([]byte, frames.EthernetLength)) {
		return out
	}
	return slices.Concat(out[:12], in[12:frames.EthernetLength], out[frames.EthernetLength:])
}

// rewrites says whether TC may have used the packet's memory for others: to release held fragments
// behind a first one, or to cut up what is too long. A first fragment that it passes is as it was,
// without what was behind its IP packet.
func rewrites(h hook, at side, in []byte, got rig.Answer) bool {
	p, ok := dissect(in)
	if !ok || h.name != "tc" {
		return false
	}
	first := p.offset == 0 && p.more
	if got.Code == h.pass {
		return first && bytes.Equal(got.Data, in[:p.end])
	}
	return first || !p.v6 && p.end-frames.EthernetLength > at.narrow && frames.WordAt(in, ipAt+6)&dontFragment == 0
}

// told reports whether out is an ICMP error of the router about in.
func told(in, out []byte) bool {
	before, ok := dissect(in)
	after, sound := dissect(out)
	return ok && sound && after.isError() && !before.isError()
}

// checkTold wants the router's own ICMP errors to be right in every byte and to go back to the sender.
func checkTold(at side, in, out []byte) error {
	p, _ := dissect(in)
	e, _ := dissect(out)
	header, limit := l4At, quoteLimit
	kinds := [][2]byte{{icmpUnreachable, 1}, {icmpUnreachable, codeFragNeeded}, {icmpUnreachable, codeProhibited}, {icmpTimeExceeded, 0}}
	if p.v6 {
		header, limit = ipAt+frames.IP6Header, quoteLimit6
		kinds = [][2]byte{{icmp6Unreachable, 0}, {icmp6Unreachable, code6Prohibited}, {icmp6Unreachable, code6Address}, {icmp6TooBig, 0}, {icmp6TimeExceeded, 0}}
	}
	quoted := min(limit, p.end-frames.EthernetLength)
	from, to := e.addresses()
	sender, _ := p.addresses()
	wrong := ""
	switch {
	case p.v6 != e.v6 || !slices.Contains(kinds, [2]byte(out[e.l4:])):
		wrong = "type and code"
	case e.l4 != header || len(out) != e.end || e.end != header+8+quoted || !e.whole:
		wrong = "lengths"
	case !e.headerValid() || !e.valid():
		wrong = "checksums"
	case !at.goesBack(in, out):
		wrong = "MAC addresses"
	case to != sender || at.routers != nil && !slices.Contains(at.routers, from):
		wrong = "addresses"
	case !bytes.Equal(out[header+8:], in[ipAt:ipAt+quoted]):
		wrong = "quote"
	case p.offset != 0:
		wrong = "cause: a later fragment"
	case out[e.hops()] < 64:
		wrong = "TTL"
	}
	if wrong != "" {
		return fmt.Errorf("an ICMP error of the router's with wrong %s: %x", wrong, out)
	}
	return nil
}

// goesBack says whether a frame is to where another came from.
func (s side) goesBack(in, out []byte) bool {
	if s.Index == loopback.Index {
		return bytes.Equal(out[:12], make([]byte, 12))
	}
	return bytes.Equal(out[:6], in[6:12]) && bytes.Equal(out[6:12], in[:6]) && bytes.Equal(s.MAC, in[:6])
}

// checkTranslation wants nothing changed but what address translation changes, and each checksum right
// afterwards exactly if it was before.
func checkTranslation(in, out []byte) error {
	p, ok := dissect(in)
	if !ok || len(in) != len(out) {
		return fmt.Errorf("%d bytes that may not be sent became %x", len(in), out)
	}
	q, sound := dissect(out)
	if !sound {
		return fmt.Errorf("what was sent makes no sense: %x", out)
	}
	want := slices.Clone(in)
	want[p.hops()]--
	adopted := p.changes()
	for _, r := range adopted {
		copy(want[r[0]:r[1]], out[r[0]:r[1]])
	}
	if !bytes.Equal(want, out) {
		return fmt.Errorf("%s in what must stay: %x", difference(want, out), out)
	}
	if p.headerValid() != q.headerValid() {
		return fmt.Errorf("IP checksum right %v, then %v: %x", p.headerValid(), q.headerValid(), out)
	}
	if p.isError() {
		return checkError(p, q)
	}
	if p.offset == 0 {
		return p.checkTransport(q)
	}
	return nil
}

// changes are the ranges of bytes that a translation may change.
func (p parts) changes() [][2]int {
	ranges := append([][2]int{{0, 12}}, p.headerChanges(ipAt)...)
	if p.offset != 0 {
		return ranges
	}
	if p.isError() {
		ranges = append(ranges, [2]int{p.l4 + 2, p.l4 + 4})
		quoted := p.l4 + 8
		if l4, protocol, ok := p.quote(quoted); ok {
			ranges = append(ranges, p.headerChanges(quoted)...)
			ranges = append(ranges, p.transportChanges(l4, protocol)...)
		}
		return ranges
	}
	return append(ranges, p.transportChanges(p.l4, p.protocol)...)
}

// headerChanges returns the byte ranges of the IP header at offset ip that translation may change, without the TTL.
func (p parts) headerChanges(ip int) [][2]int {
	if p.v6 {
		return [][2]int{p.addressesOf(ip)}
	}
	return [][2]int{{ip + 10, ip + 12}, p.addressesOf(ip)}
}

// quote takes apart what an ICMP error quotes at a place: where the transport header of that is; false if it
// tells nothing.
func (p parts) quote(at int) (l4 int, protocol uint8, ok bool) {
	if !p.v6 {
		if p.end < at+28 || p.data[at]>>4 != 4 || p.data[at]&15 < 5 {
			return 0, 0, false
		}
		l4, protocol = at+int(p.data[at]&15)*4, p.data[at+9]
		return l4, protocol, l4+8 <= p.end
	}
	if p.end < at+frames.IP6Header+8 || p.data[at]>>4 != 6 {
		return 0, 0, false
	}
	l4, protocol = at+frames.IP6Header, p.data[at+6]
	for l4+8 <= p.end && slices.Contains([]uint8{headerHop, headerDest, frames.HeaderFragment}, protocol) {
		length := 8
		if protocol != frames.HeaderFragment {
			length = 8 * (int(p.data[l4+1]) + 1)
		}
		protocol, l4 = p.data[l4], l4+length
	}
	return l4, protocol, l4+8 <= p.end
}

// transportChanges returns the byte ranges of the transport header at offset l4 that translation may change. The header may be cut short.
func (p parts) transportChanges(l4 int, protocol uint8) (ranges [][2]int) {
	add := func(from, to int) {
		if l4+to <= p.end {
			ranges = append(ranges, [2]int{l4 + from, l4 + to})
		}
	}
	switch protocol {
	case protocolTCP:
		add(0, 4)
		add(16, 18)
		if l4 == p.l4 && p.has(20) && p.data[l4+13]&2 != 0 {
			for at := l4 + 20; at < min(l4+60, p.end-3); at++ {
				if p.data[at] == 2 && p.data[at+1] == 4 {
					add(at+2-l4, at+4-l4)
				}
			}
		}
	case protocolUDP:
		add(0, 4)
		add(6, 8)
	case protocolUDPLite:
		add(6, 8)
	case protocolICMP, protocolICMP6:
		add(2, 6)
	}
	return ranges
}

// checkTransport checks that the change of a checksum matches the change of the covered bytes. The checksum of a whole packet is right after
// translation exactly if it was right before.
func (p parts) checkTransport(q parts) error {
	syn := p.protocol == protocolTCP && p.has(20) && p.data[p.l4+13]&2 != 0
	if p.whole && p.sound() && p.valid() != q.valid() {
		return fmt.Errorf("transport checksum right %v, then %v: %x", p.valid(), q.valid(), q.data)
	}
	if syn {
		return nil // its MSS may have changed as well
	}
	return p.sameSum(ipAt, p.l4, p.protocol, q.data)
}

// sameSum compares what a transport's checksum covers of the changed fields, checksum included.
func (p parts) sameSum(ip, l4 int, protocol uint8, out []byte) error {
	at := map[uint8]int{protocolTCP: 16, protocolUDP: 6, protocolUDPLite: 6, protocolICMP: 2, protocolICMP6: 2}[protocol]
	if at == 0 || l4+at+2 > p.end {
		return nil
	}
	before, after := frames.WordAt(p.data, l4+at), frames.WordAt(out, l4+at)
	if protocol == protocolUDP && (before == 0 || after == 0) {
		if before != after {
			return fmt.Errorf("UDP checksum %#04x became %#04x", before, after)
		}
		return nil
	}
	addresses := p.addressesOf(ip)
	covered := func(data []byte) uint16 {
		total := uint32(frames.WordAt(data, l4+at))
		switch protocol {
		case protocolTCP, protocolUDP:
			total += frames.Sum(data[l4 : l4+4])
		case protocolICMP, protocolICMP6:
			total += uint32(frames.WordAt(data, l4+4))
		}
		if protocol != protocolICMP {
			total += frames.Sum(data[addresses[0]:addresses[1]])
		}
		return frames.Fold(total) % 0xffff
	}
	if covered(p.data) != covered(out) {
		return fmt.Errorf("transport checksum %#04x became %#04x, which is not what changed: %x", before, after, out)
	}
	return nil
}

// headerValid says whether the IP header's checksum is right, if it has one.
func (p parts) headerValid() bool { return p.v6 || frames.IPValid(p.data) }

// sound says whether valid can judge a packet.
func (p parts) sound() bool {
	switch p.protocol {
	case protocolTCP:
		return p.has(20)
	case protocolUDP:
		return p.has(8) && int(frames.WordAt(p.data, p.l4+4)) >= 8 && p.l4+int(frames.WordAt(p.data, p.l4+4)) <= p.end
	case protocolUDPLite:
		coverage := int(frames.WordAt(p.data, p.l4+4))
		return p.has(8) && (coverage == 0 || coverage >= 8 && p.l4+coverage <= p.end)
	case protocolICMP, protocolICMP6:
		return p.has(8)
	}
	return true
}

// valid says whether the transport checksum of a sound packet that is whole is right; an absent one of UDP is,
// and so is every one of a protocol whose checksum no translator changes.
func (p parts) valid() bool {
	if !p.v6 {
		return transportValid(p.data)
	}
	length, covered := p.end-p.l4, p.end-p.l4
	switch p.protocol {
	case protocolTCP, protocolICMP6:
	case protocolUDP:
		if frames.WordAt(p.data, p.l4+6) == 0 {
			return true
		}
		length = int(frames.WordAt(p.data, p.l4+4))
		covered = length
	case protocolUDPLite:
		if coverage := int(frames.WordAt(p.data, p.l4+4)); coverage != 0 {
			covered = coverage
		}
	default:
		return true
	}
	return frames.Fold(p.pseudo(length)+frames.Sum(p.data[p.l4:p.l4+covered])) == 0xffff
}

// pseudo is the sum of the pseudo-header of a packet of this length, RFC 8200 8.1.
func (p parts) pseudo(length int) uint32 {
	at := p.addressesOf(ipAt)
	return frames.Sum(p.data[at[0]:at[1]]) + uint32(p.protocol) + uint32(length)
}

// checkError wants a translated ICMP error and the header it quotes to be right, before and after.
func checkError(p, q parts) error {
	if !p.valid() || !q.valid() {
		return fmt.Errorf("ICMP checksum right %v, then %v: %x", p.valid(), q.valid(), q.data)
	}
	quoted := p.l4 + 8
	l4, protocol, ok := p.quote(quoted)
	if !ok {
		return fmt.Errorf("an ICMP error was sent with a quote that tells nothing: %x", q.data)
	}
	header := func(data []byte) bool { return p.v6 || frames.Fold(frames.Sum(data[quoted:l4])) == 0xffff }
	if !header(p.data) || !header(q.data) {
		return fmt.Errorf("quoted IP header right %v, then %v: %x", header(p.data), header(q.data), q.data)
	}
	return p.sameSum(quoted, l4, protocol, q.data)
}

// opens says whether a frame is of the kind that may open a connection: whole or a first fragment,
// sound, to an external address, and of its protocol's opening kind.
func opens(data []byte) bool {
	p, ok := dissect(data)
	if !ok || p.offset != 0 {
		return false
	}
	_, to := p.addresses()
	whole := slices.Contains([]netip.Addr{rig.BasicAddress, rig.DMZAddress, pingAddress6, dmzAddress6}, to)
	if !whole && to != rig.WANAddress && to != wanAddress6 {
		return false
	}
	switch p.protocol {
	case protocolTCP:
		header := 0
		if p.has(20) {
			header = int(data[p.l4+12]>>4) * 4
		}
		return header >= 20 && p.has(header) && data[p.l4+13]&0x17 == 0x02 && frames.WordAt(data, p.l4) != 0
	case protocolUDP:
		return p.has(8) && frames.WordAt(data, p.l4) != 0 && frames.WordAt(data, p.l4+4) >= 8
	case protocolSCTP:
		tag := data[min(p.l4+4, len(data)):min(p.l4+8, len(data))]
		return p.has(16) && bytes.Equal(tag, make([]byte, 4)) && data[p.l4+12] == sctpInit && frames.WordAt(data, p.l4) != 0
	case protocolICMP:
		return whole && !p.v6 && p.has(8) && data[p.l4] == icmpEchoRequest && data[p.l4+1] == 0
	case protocolICMP6:
		return whole && p.v6 && p.has(8) && data[p.l4] == icmp6EchoRequest && data[p.l4+1] == 0
	case protocolUDPLite:
		return whole && p.has(8)
	case protocolGRE, protocolESP, protocolIPIP:
		return whole
	}
	return false
}
