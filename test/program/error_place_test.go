// SPDX-License-Identifier: Apache-2.0

package program

import (
	"net/netip"

	"hairpin/test/frames"
	"hairpin/test/rig"
)

// errorPlaceRows are row 202: an error is addressed to who sent what it quotes, and comes from where that went.
func errorPlaceRows() (rows []row) {
	for _, way := range ways6Names {
		for _, protocol := range []string{"TCP", "UDP", "half-open UDP"} {
			packets := func(c *corpus) (f rig.Flow, steps []step, in, back frames.Frame) {
				f, steps, r := c.openFlow(protocol, way)
				r.kind, r.code, r.limit = icmpUnreachable, codePortUnreachable, 28
				in, _ = toServer(f, f.Client.Addr(), r)
				back, _ = toClient(f, f.Target.Addr(), r)
				return f, append(steps, c.errorIn(f, f.Client.Addr(), r), c.errorBack(f, f.Target.Addr(), r)), in, back
			}
			rows = append(rows, row{"row 202: error to whom it is not about, " + protocol + " " + way, func(c *corpus) []step {
				f, steps, in, back := packets(c)
				for _, to := range []string{"203.0.113.10", "8.8.4.4", "192.168.1.21"} {
					in.Dst = netip.AddrPortFrom(netip.MustParseAddr(to), 0)
					back.Dst = in.Dst
					steps = append(steps, step{at: f.At, in: in.Bytes()}.droppedFor(noError...), step{at: c.b.LAN, in: back.Bytes()}.droppedFor(noError...))
				}
				return steps
			}}, row{"row 202: error from where its packet did not go, " + protocol + " " + way, func(c *corpus) []step {
				f, steps, in, back := packets(c)
				for _, s := range []step{{at: f.At, in: in.Bytes()}, {at: c.b.LAN, in: back.Bytes()}} {
					for _, other := range c.elsewhere(s) {
						steps = append(steps, other.droppedFor(noError...))
					}
				}
				back.Src, back.Dst = netip.AddrPortFrom(farRouter, 0), netip.AddrPortFrom(netip.MustParseAddr("8.8.4.4"), 0)
				return append(steps, step{at: c.b.LAN, in: back.Bytes()}.by(c.b.WAN, rig.GatewayMAC).droppedFor(noError...))
			}})
		}
	}
	return rows
}

// noError is why an error about a connection is not believed.
var noError = []string{"no_connection", "spoofed"}

func errorPlaceRows6() (rows []row6) {
	for _, way := range ways6Names {
		for _, protocol := range []string{"TCP", "UDP"} {
			packets := func(c case6) (f flow6, steps []step, in, back frames.Frame6) {
				f, steps, packet := c.openFlow6(protocol, way)
				r := report6{kind: icmp6Unreachable, code: code6Port, limit: 1232, packet: packet[0]}
				answer := r
				answer.packet = packet[1]
				in, _ = f.toServer6(f.Client.Addr(), answer)
				back, _ = f.toClient6(f.Target.Addr(), r)
				return f, append(steps, c.errorIn(f, f.Client.Addr(), answer), c.errorBack(f, f.Target.Addr(), r)), in, back
			}
			rows = append(rows, row6{"row 202: error to whom it is not about, " + protocol + " " + way, func(c case6) []step {
				f, steps, in, back := packets(c)
				for _, to := range []string{"2001:db8:1::10", "2001:db8:5::5", "fd00:1::21"} {
					in.Dst = netip.AddrPortFrom(netip.MustParseAddr(to), 0)
					back.Dst = in.Dst
					steps = append(steps, step{at: f.At, in: in.Bytes()}.droppedFor(noError...), step{at: c.b.LAN, in: back.Bytes()}.droppedFor(noError...))
				}
				return steps
			}}, row6{"row 202: error from where its packet did not go, " + protocol + " " + way, func(c case6) []step {
				f, steps, in, back := packets(c)
				for _, s := range []step{{at: f.At, in: in.Bytes()}, {at: c.b.LAN, in: back.Bytes()}} {
					for _, other := range c.elsewhere(s) {
						steps = append(steps, other.droppedFor(noError...))
					}
				}
				return steps
			}})
		}
	}
	return rows
}
