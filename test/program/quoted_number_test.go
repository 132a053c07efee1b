// SPDX-License-Identifier: Apache-2.0

package program

import (
	"slices"

	"hairpin/test/frames"
	"hairpin/test/rig"
)

// quoteTwins are row 49: an ICMP error about a TCP segment is translated only if the quoted number can have been in flight (RFC 5927 4.1).
func quoteTwins() (twins []twin) {
	const size = 16 // bytes of data of each side
	for _, way := range []string{"from the Internet", "hairpin", "from another LAN"} {
		add := func(name string, steps func(c twinCase, f twinFlow) []step) {
			twins = append(twins, twin{"row 49: " + name + ", " + way, func(c twinCase) []step {
				f := c.flow(way, false)
				data := frames.Payload("some of the data")
				return append(append(c.opened(f), c.in(f, middle, data), c.back(f, answerer, data)), steps(c, f)...)
			}})
		}
		// Each side has acknowledged the SYN of the other, and has sent 16 bytes since.
		for name, offset := range map[string]uint32{"a keepalive": 0, "the first number in flight": 1, "one in flight": 1 + size/2, "the next to be sent": 1 + size} {
			add("errors about "+name, func(c twinCase, f twinFlow) []step {
				return append(c.errorsIn(f, rig.ServerISN+offset), c.errorsBack(f, rig.ClientISN+offset)...)
			})
		}
		for name, offset := range map[string]uint32{"before": 1<<32 - 1, "behind": 2 + size, "far before": 1<<32 - 1<<20, "far behind": 1 << 20, "opposite": 1 << 31} {
			add("errors about a number "+name+" what is in flight", func(c twinCase, f twinFlow) []step {
				return noneConnected(append(c.errorsIn(f, rig.ServerISN+offset), c.errorsBack(f, rig.ClientISN+offset)...))
			})
		}
		add("errors about what has been acknowledged", func(c twinCase, f twinFlow) []step {
			steps := []step{
				c.in(f, frames.TCP("A", rig.ClientISN+1+size, rig.ServerISN+1+size)), c.back(f, frames.TCP("A", rig.ServerISN+1+size, rig.ClientISN+1+size)),
			}
			steps = append(steps, noneConnected(append(c.errorsIn(f, rig.ServerISN+1), c.errorsBack(f, rig.ClientISN+1)...))...)
			return append(steps, append(c.errorsIn(f, rig.ServerISN+1+size), c.errorsBack(f, rig.ClientISN+1+size)...)...)
		})
		add("errors about what only the receiver has seen", func(c twinCase, f twinFlow) []step {
			const unseen = 5000
			return append([]step{c.back(f, frames.TCP("A", rig.ServerISN+1+size, rig.ClientISN+unseen))}, c.errorsBack(f, rig.ClientISN+unseen/2)...)
		})
		const fresh, answer = rig.ClientISN + 1<<24, rig.ServerISN + 1<<25
		syn := frames.TCP("S", fresh, 0)
		add("errors about a new SYN, without an answer", func(c twinCase, f twinFlow) []step {
			return slices.Concat([]step{c.in(f, syn)}, c.errorsBack(f, fresh), noneConnected(append(c.errorsBack(f, fresh-1), c.errorsBack(f, fresh+1)...)),
				noneConnected(c.errorsIn(f, fresh)))
		})
		add("errors about the SYN to a server that has lost the connection", func(c twinCase, f twinFlow) []step {
			return append([]step{c.in(f, syn), c.back(f, frames.TCP("SA", answer, fresh+1))}, c.errorsBack(f, fresh)...)
		})
	}
	return twins
}

// noneConnected expects that each packet is dropped as one of no connection.
func noneConnected(steps []step) (dropped []step) {
	for _, s := range steps {
		dropped = append(dropped, s.dropped("no_connection"))
	}
	return dropped
}

// errorsIn are a path MTU error and a refusal of the client about a segment of the server with this number.
func (c twinCase) errorsIn(f twinFlow, seq uint32) (steps []step) {
	segment := frames.TCP("A", seq, rig.ClientISN+1)
	for _, r := range c.reports(segment) {
		if c.v6 {
			steps = append(steps, case6{c.corpus}.errorIn(flow6{f.Flow}, f.Client.Addr(), r.report6()))
		} else {
			steps = append(steps, c.errorIn(f.Flow, f.Client.Addr(), r))
		}
	}
	return steps
}

// errorsBack are a path MTU error and a refusal of the server about a segment of the client with this number.
func (c twinCase) errorsBack(f twinFlow, seq uint32) (steps []step) {
	segment := frames.TCP("A", seq, rig.ServerISN+1)
	for _, r := range c.reports(segment) {
		if c.v6 {
			steps = append(steps, case6{c.corpus}.errorBack(flow6{f.Flow}, f.Target.Addr(), r.report6()))
		} else {
			steps = append(steps, c.errorBack(f.Flow, f.Target.Addr(), r))
		}
	}
	return steps
}

// reports quote as little as possible: the ports and the number (RFC 792).
func (c twinCase) reports(segment func(*frames.Frame)) []report {
	if c.v6 {
		return []report{{kind: icmp6TooBig, rest: 1280, packet: segment}, {kind: icmp6Unreachable, code: code6Port, packet: segment}}
	}
	return []report{
		{kind: icmpUnreachable, code: codeFragNeeded, rest: 576, limit: 28, packet: segment},
		{kind: icmpUnreachable, code: codePortUnreachable, limit: 28, packet: segment},
	}
}

func (r report) report6() report6 {
	return report6{kind: r.kind, code: r.code, rest: r.rest, limit: frames.IP6Header + 8, packet: []func(*frames.Frame6){also(r.packet)}}
}
