// SPDX-License-Identifier: Apache-2.0

package program

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"hairpin/test/frames"
	"hairpin/test/rig"
)

// twin is a case that is the same in both families.
type twin struct {
	name  string
	steps func(c twinCase) []step
}

// twinCase is a corpus whose flows are of one family.
type twinCase struct {
	*corpus
	v6 bool
}

// twinFlow is a flow of either family.
type twinFlow struct {
	rig.Flow
	v6 bool
}

func allTwins() []twin {
	return slices.Concat(interfaceTwins(), halfOpenTwins(), closingTwins(), priorityTwins(), quoteTwins(), restartTwins())
}

func twinRows() (rows []row) {
	for _, t := range allTwins() {
		rows = append(rows, row{t.name, func(c *corpus) []step { return t.steps(twinCase{c, false}) }})
	}
	return rows
}

func twinRows6() (rows []row6) {
	for _, t := range allTwins() {
		rows = append(rows, row6{t.name, func(c case6) []step { return t.steps(twinCase{c.corpus, true}) }})
	}
	return rows
}

func (c twinCase) flow(way string, udp bool) twinFlow {
	if c.v6 {
		return twinFlow{c.b.flow6(way, udp, c.port()).Flow, true}
	}
	return twinFlow{c.corpus.flow(way, udp), false}
}

// whole is a new TCP flow to a port of the address that is forwarded whole.
func (c twinCase) whole(way string, port uint16) twinFlow {
	f := c.flow(way, false)
	f.External, f.Target = netip.AddrPortFrom(rig.DMZAddress, port), netip.AddrPortFrom(rig.DMZServer, port)
	if c.v6 {
		f.External, f.Target = netip.AddrPortFrom(dmzAddress6, port), netip.AddrPortFrom(dmzTarget6, port)
	}
	return f
}

func alsoAll(changes []func(*frames.Frame)) (all []func(*frames.Frame6)) {
	for _, change := range changes {
		all = append(all, also(change))
	}
	return all
}

// inBytes is a packet of the client, and the packet that the server must get.
func (f twinFlow) inBytes(changes ...func(*frames.Frame)) (in, want []byte) {
	if f.v6 {
		in, want := flow6{f.Flow}.In(alsoAll(changes)...)
		return in.Bytes(), want.Bytes()
	}
	in4, want4 := f.Flow.In(changes...)
	return in4.Bytes(), want4.Bytes()
}

// backBytes is a packet of the server, and the packet that the client must get.
func (f twinFlow) backBytes(changes ...func(*frames.Frame)) (in, want []byte) {
	if f.v6 {
		in, want := flow6{f.Flow}.Back(alsoAll(changes)...)
		return in.Bytes(), want.Bytes()
	}
	in4, want4 := f.Flow.Back(changes...)
	return in4.Bytes(), want4.Bytes()
}

func (c twinCase) in(f twinFlow, changes ...func(*frames.Frame)) step {
	in, want := f.inBytes(changes...)
	return sendBytes(f.At, in, want)
}

func (c twinCase) back(f twinFlow, changes ...func(*frames.Frame)) step {
	in, want := f.backBytes(changes...)
	return sendBytes(c.b.LAN, in, want)
}

// opened is the handshake of a flow.
func (c twinCase) opened(f twinFlow) []step {
	if f.UDP {
		return []step{c.in(f, frames.Payload("open")).opening(), c.back(f, frames.Payload("answer")), c.back(f, frames.Payload("answer"))}
	}
	return []step{
		c.in(f, frames.TCP("S", rig.ClientISN, 0)).opening(), c.back(f, frames.TCP("SA", rig.ServerISN, rig.ClientISN+1)),
		c.in(f, frames.TCP("A", rig.ClientISN+1, rig.ServerISN+1)), c.back(f, frames.TCP("A", rig.ServerISN+1, rig.ClientISN+1)),
	}
}

// sparing is the allowed result for a packet that must not be translated. Its sender gets no answer.
type sparing struct {
	passes, drops bool
	reasons       []string // that may be counted; nil: any
}

// untranslated: the kernel gets the packet as it is, or it is dropped.
func (s step) untranslated() step { return s.spare(sparing{passes: true, drops: true}) }

// theKernels: the kernel gets the packet as it is.
func (s step) theKernels() step { return s.spare(sparing{passes: true}) }

// droppedFor: the packet is dropped, for one of the reasons.
func (s step) droppedFor(reasons ...string) step {
	return s.spare(sparing{drops: true, reasons: reasons})
}

// spare makes the step one of a packet that opens, changes and refreshes nothing.
func (s step) spare(how sparing) step {
	return step{at: s.at, in: s.in, before: s.before, spared: &how}
}

func (s sparing) judge(t *testing.T, h hook, in []byte, got rig.Answer) bool {
	t.Helper()
	if got.Code == h.pass && s.passes || got.Code == h.drop && s.drops {
		if err := same(in, got.Data, in); err != nil {
			t.Errorf("%s changes what it must leave alone: %v", h.name, err)
			return false
		}
		return true
	}
	t.Errorf("%s answers %d, want it passed %v or dropped %v", h.name, int32(got.Code), s.passes, s.drops)
	return false
}

// judgeCounters wants at most one reason counted, and exactly one if a packet must be dropped.
func (s sparing) judgeCounters(t *testing.T, at rig.Port, before, after map[string]uint64) bool {
	t.Helper()
	ok, counted := true, uint64(0)
	for name, n := range after {
		d := n - before[name]
		verdict, reason, _ := strings.Cut(name, " ")
		if d == 0 || verdict == "defer" {
			continue
		}
		counted += d
		reason, _, _ = strings.Cut(reason, " ")
		if verdict == "tell" || verdict == "send" || s.reasons != nil && !slices.Contains(s.reasons, reason) {
			t.Errorf("%q was counted %d times, want one of the reasons %q", name, d, s.reasons)
			ok = false
		}
	}
	if counted > 1 || !s.passes && counted != 1 {
		t.Errorf("%d reasons were counted on interface %d", counted, at.Index)
		ok = false
	}
	return ok
}

// by is a packet as it comes in by another interface, from a station there.
func (s step) by(p rig.Port, station net.HardwareAddr) step {
	s.at, s.in = p, bytes.Clone(s.in)
	copy(s.in, p.MAC)
	copy(s.in[6:], station)
	return s
}

// elsewhere is a packet as it comes in by each other interface.
func (c twinCase) elsewhere(s step) (steps []step) {
	return c.corpus.elsewhere(s)
}

func (c *corpus) elsewhere(s step) (steps []step) {
	for _, other := range []struct {
		rig.Port
		station net.HardwareAddr
	}{{c.b.WAN, rig.GatewayMAC}, {c.b.LAN, rig.ClientMAC}, {c.b.LAN2, rig.OtherClientMAC}} {
		if other.Index != s.at.Index {
			steps = append(steps, s.by(other.Port, other.station))
		}
	}
	return steps
}
