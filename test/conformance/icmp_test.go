// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"

	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

// errorReport is an ICMP error about a packet of a connection.
type errorReport struct {
	flow       rig.Flow
	ofClient   bool       // about a packet of the client; it comes from the server's side
	reporter   netip.Addr // who sends it; by default the packet's receiver
	kind, code uint8
	rest       uint32                // second word of the ICMP header
	cut        int                   // bytes of the packet that are quoted; 0: all
	extension  []byte                // behind the quote, which is then padded to 128 bytes (RFC 4884)
	change     []func(*frames.Frame) // of the packet quoted
	damage     func(q []byte)        // done to the quote, and not made good
	damageICMP func(m []byte)        // done to the ICMP message, and not made good
}

const reportID = 4711 // IP id of the ICMP errors, which must not change

// frames are the error as it comes in, by which port, and as it has to leave.
func (e errorReport) frames() (at rig.Port, in, want []byte) {
	f := e.flow
	var sent, got frames.Frame
	src, dst, newSrc, newDst := e.reporter, f.Source.Addr(), f.External.Addr(), f.Client.Addr()
	at, from := f.Rig.LAN, rig.ServerMAC
	if e.ofClient {
		sent, got = f.In(e.change...)
	} else {
		sent, got = f.Back(e.change...)
		at, from = f.At, f.MAC
		dst, newSrc, newDst = f.External.Addr(), f.Source.Addr(), f.Target.Addr()
	}
	if !src.IsValid() {
		src = got.Dst.Addr()
	}
	if !e.ofClient && f.Source == f.Client {
		newSrc = src // the connection changes no source on this way
	}
	sent.TTL = got.TTL
	in = ethernet(from, at.MAC, e.message(src, dst, 64, got))
	want = ethernet(from, at.MAC, e.message(newSrc, newDst, 63, sent))
	return at, in, want
}

// message is the error as an IP packet.
func (e errorReport) message(src, dst netip.Addr, ttl uint8, about frames.Frame) []byte {
	quote := slices.Clone(about.Bytes()[frames.EthernetLength:])
	if e.cut > 0 {
		quote = quote[:e.cut]
	}
	if e.damage != nil {
		e.damage(quote)
	}
	if e.extension != nil {
		quote = append(append(quote, make([]byte, 128-len(quote))...), e.extension...)
	}
	d := lab.ICMP(src, dst, e.kind, e.code, e.rest, quote)
	d.ID, d.TTL = reportID, ttl
	if e.damageICMP != nil {
		e.damageICMP(d.Payload)
	}
	return d.Packet()
}

// translates says whether an ICMP error comes out as it has to, in every byte of the IP packet.
func (s *stage) translates(e errorReport) bool {
	s.p.Helper()
	at, in, want := e.frames()
	got := s.put(at, in)
	if got.fate != fateSent && got.fate != fateTold {
		s.p.Logf("ICMP %d/%d about %s: %s; counted %v", e.kind, e.code, e.flow.Client, got.fate, s.reasons())
		return false
	}
	if !bytes.Equal(got.data[frames.EthernetLength:], want[frames.EthernetLength:]) {
		s.p.Logf("ICMP %d/%d\n got %x\nwant %x", e.kind, e.code, got.data[frames.EthernetLength:], want[frames.EthernetLength:])
		return false
	}
	return true
}

// dropsFor says whether an ICMP error is dropped for a reason.
func (s *stage) dropsFor(reason string, at rig.Port, in []byte) bool {
	s.p.Helper()
	before := s.Counted(s.p, reason)
	got := s.put(at, in)
	if got.fate == fateDropped && s.Counted(s.p, reason) == before+1 {
		return true
	}
	s.p.Logf("%s, want it dropped as %s; counted %v", got.fate, reason, s.reasons())
	return false
}

// errorsOfEveryKind are reports about one connection, from both sides, of all that may be said of it.
func errorsOfEveryKind(f rig.Flow) (all []errorReport) {
	for _, ofClient := range []bool{true, false} {
		seq, ack := uint32(rig.ServerISN+1), uint32(rig.ClientISN+1)
		if ofClient {
			seq, ack = rig.ClientISN+1, rig.ServerISN+1
		}
		about := frames.With(frames.TCP("PA", seq, ack), frames.Payload("what the error is about"))
		add := func(kind, code uint8, rest uint32) {
			all = append(all, errorReport{
				flow: f, ofClient: ofClient, kind: kind, code: code, rest: rest, cut: 28, change: about,
			})
		}
		for code := range uint8(16) {
			add(lab.Unreachable, code, 0)
		}
		add(lab.Unreachable, lab.FragNeeded, 68)
		add(lab.Unreachable, lab.FragNeeded, 1280)
		add(lab.TimeExceeded, 0, 0)
		add(lab.TimeExceeded, 1, 0)
		add(parameterProblem, 0, 20<<24)
	}
	return all
}

// Types of ICMP messages (RFC 792, RFC 950) that lab does not name.
const (
	sourceQuench       = 4
	redirect           = 5
	routerAdvert       = 9
	parameterProblem   = 12
	timestampRequest   = 13
	informationRequest = 15
	addressMaskRequest = 17
)

// echo is an echo request or reply in a frame.
func (s *stage) echo(kind uint8, at rig.Port, from []byte, src, dst netip.Addr, id uint16, ttl uint8) []byte {
	d := lab.ICMP(src, dst, kind, 0, uint32(id)<<16|1, []byte("echo this to me, please"))
	d.ID, d.TTL = reportID, ttl
	return ethernet(from, at.MAC, d.Packet())
}

// pings says whether a host's echo request to the external address gets to the server and the reply
// back, both right in every byte; the server sees a source and the id.
func (s *stage) pings(f rig.Flow) bool {
	s.p.Helper()
	id, w := f.Client.Port(), rig.WANAddress
	request := s.put(f.At, s.echo(lab.EchoRequest, f.At, f.MAC, f.Client.Addr(), w, id, 64))
	wanted := s.echo(lab.EchoRequest, f.At, f.MAC, f.Source.Addr(), rig.Server, f.Source.Port(), 63)
	if request.fate != fateSent || !bytes.Equal(request.data[frames.EthernetLength:], wanted[frames.EthernetLength:]) {
		s.p.Logf("request of %s: %s %x; counted %v", f.Client, request.fate, request.data, s.reasons())
		return false
	}
	reply := s.put(s.LAN, s.echo(lab.EchoReply, s.LAN, rig.ServerMAC, rig.Server, f.Source.Addr(), f.Source.Port(), 64))
	wanted = s.echo(lab.EchoReply, f.At, f.MAC, w, f.Client.Addr(), id, 63)
	if reply.fate != fateSent || !bytes.Equal(reply.data[frames.EthernetLength:], wanted[frames.EthernetLength:]) {
		s.p.Logf("reply to %s: %s %x; counted %v", f.Client, reply.fate, reply.data, s.reasons())
		return false
	}
	return true
}

// mplsExtension is an RFC 4884 extension structure with an RFC 4950 label stack.
func mplsExtension() []byte {
	extension := []byte{0x20, 0, 0, 0, 0, 8, 1, 1, 0x12, 0x34, 0x51, 0x40}
	binary.BigEndian.PutUint16(extension[2:], ^frames.Fold(frames.Sum(extension)))
	return extension
}
