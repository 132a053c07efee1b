// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"math/rand/v2"
	"net"
	"net/netip"
)

// Tuple has the source and the destination of a TCP segment.
type Tuple struct{ Src, Dst netip.AddrPort }

// Reverse returns the tuple of an answer.
func (t Tuple) Reverse() Tuple { return Tuple{t.Dst, t.Src} }

// ICMPError is the type and the code of an ICMP error.
type ICMPError struct{ Type, Code uint8 }

// Forge is the packets of an attacker who knows the tuples of TCP connections, but not their sequence numbers. The numbers are random.
type Forge struct {
	Tuples []Tuple
	// Flags and Errors are the kinds of packets; they take turns. A kind of Flags is a segment of a tuple. A kind of Errors is an ICMP
	// error about an answer: the error quotes a segment of the reversed tuple, and goes to its sender.
	Flags  []uint8
	Errors []ICMPError
	From   netip.Addr // source of the ICMP errors
	TTL    uint8
}

// SendForged sends forged packets out of an interface to a neighbour's MAC address, as fast as one thread can. stop and the result are
// those of SendFlood.
func (h *Host) SendForged(dev string, neighbour net.HardwareAddr, f Forge, stop func(sent int) bool) (int, error) {
	return h.sendFrames(dev, neighbour, 0, stop, func(b []byte, at int) []byte { return append(b, f.packet(at)...) })
}

// packet returns the packet with a number.
func (f *Forge) packet(at int) []byte {
	kinds := len(f.Flags) + len(f.Errors)
	kind, tuple := at%kinds, f.Tuples[at/kinds%len(f.Tuples)]
	if kind < len(f.Flags) {
		d := TCP(tuple.Src, tuple.Dst, f.Flags[kind], rand.Uint32(), rand.Uint32(), nil, nil)
		d.TTL = f.TTL
		return d.Packet()
	}
	// An error quotes at least 8 bytes behind the IP header: the ports and the sequence number (RFC 792).
	const quoted, lowMTU = 20 + 8, 576
	answer, message, rest := tuple.Reverse(), f.Errors[kind-len(f.Flags)], uint32(0)
	if message == (ICMPError{Unreachable, FragNeeded}) {
		rest = lowMTU
	}
	quote := TCP(answer.Src, answer.Dst, ACK, rand.Uint32(), rand.Uint32(), nil, nil).Packet()[:quoted]
	d := ICMP(f.From, answer.Src.Addr(), message.Type, message.Code, rest, quote)
	d.TTL = f.TTL
	return d.Packet()
}
