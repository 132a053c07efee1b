// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
)

// What is true of every frame, whatever it is. A frame is judged by itself: nothing here knows what
// connections there are.

// parts are a frame's headers, if it is an IPv4 packet whose lengths are sound.
type parts struct {
	data        []byte
	l4, end     int // of the transport header, and behind the IP packet
	protocol    uint8
	offset      int // of a fragment, in bytes
	more, whole bool
}

// dissect takes a frame apart; false if no translator may touch it.
func dissect(data []byte) (p parts, ok bool) {
	if len(data) < l4At || wordAt(data, 12) != 0x0800 || data[ipAt]>>4 != 4 || data[ipAt]&15 < 5 {
		return p, false
	}
	p = parts{data: data, l4: l4Offset(data), end: ethernetLength + ipLength(data), protocol: data[ipAt+9]}
	flags := wordAt(data, ipAt+6)
	p.offset, p.more = int(flags&offsetMask)*8, flags&moreFragments != 0
	p.whole = p.offset == 0 && !p.more
	return p, p.l4 <= p.end && p.end <= len(data)
}

// has says whether the transport header's first n bytes are there.
func (p parts) has(n int) bool { return p.offset == 0 && p.l4+n <= p.end }

// isError says whether it is an ICMP error, with all its header.
func (p parts) isError() bool {
	if p.protocol != protocolICMP || !p.has(8) {
		return false
	}
	kind := p.data[p.l4]
	return kind == icmpUnreachable || kind == icmpTimeExceeded || kind == icmpParameter
}

// checkAnswer judges what a program made of a frame.
func checkAnswer(h hook, at port, routers []netip.Addr, in []byte, got answer) error {
	switch got.code {
	case h.pass, h.drop:
		if !bytes.Equal(got.data, in) && !rewrites(h, in, got) {
			return fmt.Errorf("%s answers %d and changes the packet to %x", h.name, int32(got.code), got.data)
		}
		return nil
	case h.send:
		if told(in, got.data) {
			if h.name == "xdp" {
				return fmt.Errorf("xdp makes an ICMP error: %x", got.data)
			}
			return checkTold(at, routers, in, got.data)
		}
		return checkTranslation(in, got.data)
	}
	return fmt.Errorf("%s answers %d", h.name, int32(got.code))
}

// rewrites says whether TC may have used the packet's memory for others: to release held fragments
// behind a first one, or to cut up what is too long. A first fragment that it passes is as it was,
// without what was behind its IP packet.
func rewrites(h hook, in []byte, got answer) bool {
	p, ok := dissect(in)
	if !ok || h.name != "tc" {
		return false
	}
	first := p.offset == 0 && p.more
	if got.code == h.pass {
		return first && bytes.Equal(got.data, in[:p.end])
	}
	return first || p.end-ethernetLength > narrowMTU && wordAt(in, ipAt+6)&dontFragment == 0
}

// told says whether out is an ICMP error that the router made about in.
func told(in, out []byte) bool {
	before, ok := dissect(in)
	after, sound := dissect(out)
	return ok && sound && after.isError() && !before.isError()
}

// checkTold wants the router's own ICMP errors to be right in every byte and to go back to the sender.
func checkTold(at port, routers []netip.Addr, in, out []byte) error {
	p, _ := dissect(in)
	e, _ := dissect(out)
	quoted := min(quoteLimit, p.end-ethernetLength)
	wrong := ""
	switch kind := [2]byte{out[e.l4], out[e.l4+1]}; {
	case kind != [2]byte{icmpUnreachable, 1} && kind != [2]byte{icmpUnreachable, codeFragNeeded} &&
		kind != [2]byte{icmpUnreachable, codeProhibited} && kind != [2]byte{icmpTimeExceeded, 0}:
		wrong = "type and code"
	case e.l4 != l4At || len(out) != e.end || e.end != l4At+8+quoted || !e.whole:
		wrong = "lengths"
	case !ipValid(out) || !transportValid(out):
		wrong = "checksums"
	case !bytes.Equal(out[:6], in[6:12]) || !bytes.Equal(out[6:12], in[:6]) || !bytes.Equal(at.mac, in[:6]):
		wrong = "MAC addresses"
	case receiverOf(out) != senderOf(in) || !slices.Contains(routers, senderOf(out)):
		wrong = "addresses"
	case !bytes.Equal(out[l4At+8:], in[ipAt:ipAt+quoted]):
		wrong = "quote"
	case p.offset != 0:
		wrong = "cause: a later fragment"
	case out[ipAt+8] < 64:
		wrong = "TTL"
	}
	if wrong != "" {
		return fmt.Errorf("an ICMP error of the router's with wrong %s: %x", wrong, out)
	}
	return nil
}

// checkTranslation wants nothing changed but what address translation changes, and each checksum right
// afterwards exactly if it was before.
func checkTranslation(in, out []byte) error {
	p, ok := dissect(in)
	if !ok || len(in) != len(out) {
		return fmt.Errorf("%d bytes that may not be sent became %x", len(in), out)
	}
	want := slices.Clone(in)
	want[ipAt+8]--
	adopted := p.changes()
	for _, r := range adopted {
		copy(want[r[0]:r[1]], out[r[0]:r[1]])
	}
	if !bytes.Equal(want, out) {
		return fmt.Errorf("%s in what must stay: %x", difference(want, out), out)
	}
	if ipValid(in) != ipValid(out) {
		return fmt.Errorf("IP checksum right %v, then %v: %x", ipValid(in), ipValid(out), out)
	}
	if p.isError() {
		return checkError(p, out)
	}
	if p.offset == 0 {
		return p.checkTransport(p.l4, out)
	}
	return nil
}

// changes are the ranges of bytes that a translation may change.
func (p parts) changes() [][2]int {
	ranges := [][2]int{{0, 12}, {ipAt + 10, ipAt + 20}}
	if p.offset != 0 {
		return ranges
	}
	if p.isError() {
		ranges = append(ranges, [2]int{p.l4 + 2, p.l4 + 4})
		quoted := p.l4 + 8
		if p.end < quoted+20 {
			return ranges
		}
		ranges = append(ranges, [2]int{quoted + 10, quoted + 20})
		return append(ranges, p.transportChanges(quoted+int(p.data[quoted]&15)*4, p.data[quoted+9])...)
	}
	return append(ranges, p.transportChanges(p.l4, p.protocol)...)
}

// transportChanges are those in a transport header at a place, which may be cut short.
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
	case protocolICMP:
		add(2, 6)
	}
	return ranges
}

// checkTransport wants a checksum to have changed by what it covers: the sum of both is the same. At the
// end of a whole packet it is right exactly if it was.
func (p parts) checkTransport(l4 int, out []byte) error {
	syn := l4 == p.l4 && p.protocol == protocolTCP && p.has(20) && p.data[l4+13]&2 != 0
	if p.whole && transportSound(p.data) && transportValid(p.data) != transportValid(out) {
		return fmt.Errorf("transport checksum right %v, then %v: %x", transportValid(p.data), transportValid(out), out)
	}
	if syn {
		return nil // its MSS may have changed as well
	}
	return p.sameSum(ipAt, l4, p.protocol, out)
}

// sameSum compares what a transport's checksum covers of the changed fields, checksum included.
func (p parts) sameSum(ip, l4 int, protocol uint8, out []byte) error {
	at := map[uint8]int{protocolTCP: 16, protocolUDP: 6, protocolUDPLite: 6, protocolICMP: 2}[protocol]
	if at == 0 || l4+at+2 > p.end {
		return nil
	}
	before, after := wordAt(p.data, l4+at), wordAt(out, l4+at)
	if protocol == protocolUDP && (before == 0 || after == 0) {
		if before != after {
			return fmt.Errorf("UDP checksum %#04x became %#04x", before, after)
		}
		return nil
	}
	covered := func(data []byte) uint16 {
		total := uint32(wordAt(data, l4+at))
		switch protocol {
		case protocolTCP, protocolUDP:
			total += sum(data[l4 : l4+4])
		case protocolICMP:
			return fold(total+uint32(wordAt(data, l4+4))) % 0xffff
		}
		return fold(total+sum(data[ip+12:ip+20])) % 0xffff
	}
	if covered(p.data) != covered(out) {
		return fmt.Errorf("transport checksum %#04x became %#04x, which is not what changed: %x", before, after, out)
	}
	return nil
}

// transportSound says whether transportValid can judge a packet.
func transportSound(data []byte) bool {
	p, ok := dissect(data)
	if !ok {
		return false
	}
	switch p.protocol {
	case protocolTCP:
		return p.has(20)
	case protocolUDP:
		return p.has(8) && int(wordAt(data, p.l4+4)) >= 8 && p.l4+int(wordAt(data, p.l4+4)) <= p.end
	case protocolUDPLite:
		coverage := int(wordAt(data, p.l4+4))
		return p.has(8) && (coverage == 0 || coverage >= 8 && p.l4+coverage <= p.end)
	case protocolICMP:
		return p.has(8)
	}
	return true
}

// checkError wants a translated ICMP error and the header it quotes to be right, before and after.
func checkError(p parts, out []byte) error {
	quoted := p.l4 + 8
	if !transportValid(p.data) || !transportValid(out) {
		return fmt.Errorf("ICMP checksum right %v, then %v: %x", transportValid(p.data), transportValid(out), out)
	}
	if p.end < quoted+28 || p.data[quoted]>>4 != 4 || p.data[quoted]&15 < 5 {
		return fmt.Errorf("an ICMP error was sent with a quote that tells nothing: %x", out)
	}
	l4 := quoted + int(p.data[quoted]&15)*4
	header := func(data []byte) bool { return fold(sum(data[quoted:l4])) == 0xffff }
	if l4+8 > p.end || !header(p.data) || !header(out) {
		return fmt.Errorf("quoted IP header right %v, then %v: %x", header(p.data), header(out), out)
	}
	return p.sameSum(quoted, l4, p.data[quoted+9], out)
}

// opens says whether a frame is of the kind that may open a connection: whole or a first fragment,
// sound, to an external address, and of its protocol's opening kind.
func opens(data []byte) bool {
	p, ok := dissect(data)
	if !ok || p.offset != 0 {
		return false
	}
	to := receiverOf(data)
	whole := to == basicAddress || to == dmzAddress
	if !whole && to != wanAddress {
		return false
	}
	switch p.protocol {
	case protocolTCP:
		header := 0
		if p.has(20) {
			header = int(data[p.l4+12]>>4) * 4
		}
		return header >= 20 && p.has(header) && data[p.l4+13]&0x17 == 0x02 && wordAt(data, p.l4) != 0
	case protocolUDP:
		return p.has(8) && wordAt(data, p.l4) != 0 && wordAt(data, p.l4+4) >= 8
	case protocolSCTP:
		tag := data[min(p.l4+4, len(data)):min(p.l4+8, len(data))]
		return p.has(16) && bytes.Equal(tag, make([]byte, 4)) && data[p.l4+12] == sctpInit && wordAt(data, p.l4) != 0
	case protocolICMP:
		return whole && p.has(8) && data[p.l4] == icmpEchoRequest && data[p.l4+1] == 0
	case protocolUDPLite:
		return whole && p.has(8)
	case protocolGRE, protocolESP, protocolIPIP:
		return whole
	}
	return false
}
