// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"

	"hairpin/test/frames"
	"hairpin/test/rig"
)

// restartTwins are row 64: a SYN/ACK gives an established connection new numbers only if it acknowledges a SYN that its client has sent
// since. The exact RST shows which numbers the connection has.
func restartTwins() (twins []twin) {
	const fresh, answer = rig.ClientISN + 1<<24, rig.ServerISN + 1<<25 // numbers of the new handshake
	syn := frames.TCP("S", fresh, 0)
	for _, way := range []string{"from the Internet", "hairpin", "from another LAN"} {
		add := func(name string, steps func(c twinCase, f twinFlow) []step) {
			twins = append(twins, twin{"row 64: " + name + ", " + way, func(c twinCase) []step {
				f := c.flow(way, false)
				return append(c.opened(f), steps(c, f)...)
			}})
		}
		old := func(c twinCase, f twinFlow) []step {
			return []step{
				c.in(f, frames.TCP("R", fresh+1, 0)).is("established"), c.back(f, frames.TCP("R", answer+1, 0)).is("established"),
				c.in(f, frames.TCP("R", rig.ClientISN+1, 0)).is("closing"),
			}
		}
		renewed := func(c twinCase, f twinFlow, seq uint32) []step {
			return []step{
				c.in(f, frames.TCP("A", seq, answer+1)).is("established"), c.back(f, frames.TCP("A", answer+1, seq)).is("established"),
				c.in(f, frames.TCP("R", rig.ClientISN+1, 0)).is("established"), c.back(f, frames.TCP("R", rig.ServerISN+1, 0)).is("established"),
				c.in(f, frames.TCP("R", seq, 0)).is("closing"),
			}
		}
		add("forged SYN/ACK, no SYN", func(c twinCase, f twinFlow) []step {
			return append([]step{c.back(f, frames.TCP("SA", answer, fresh+1)).is("established")}, old(c, f)...)
		})
		for name, ack := range map[string]uint32{"the SYN itself": fresh, "more than the SYN": fresh + 2, "the handshake's SYN": rig.ClientISN + 1, "nothing": 0} {
			add("forged SYN/ACK that acknowledges "+name, func(c twinCase, f twinFlow) []step {
				return append([]step{c.in(f, syn).is("established"), c.back(f, frames.TCP("SA", answer, ack)).is("established")}, old(c, f)...)
			})
		}
		add("server that has lost the connection", func(c twinCase, f twinFlow) []step {
			return append([]step{c.in(f, syn).is("established"), c.back(f, frames.TCP("SA", answer, fresh+1)).is("established")}, renewed(c, f, fresh+1)...)
		})
		add("server that has lost the connection answers the second SYN", func(c twinCase, f twinFlow) []step {
			return append([]step{
				c.in(f, frames.TCP("S", fresh+1000, 0)), c.in(f, syn), c.back(f, frames.TCP("SA", answer, fresh+1)), c.back(f, frames.TCP("SA", answer, fresh+1)),
			}, renewed(c, f, fresh+1)...)
		})
		for _, taken := range []uint32{0, 5} {
			add(fmt.Sprintf("server that has lost the connection takes %d bytes of Fast Open", taken), func(c twinCase, f twinFlow) []step {
				return append([]step{c.in(f, syn, frames.Payload("query")), c.back(f, frames.TCP("SA", answer, fresh+1+taken))}, renewed(c, f, fresh+1+taken)...)
			})
		}
		add("challenge ACK of a server that has the connection", func(c twinCase, f twinFlow) []step {
			return []step{
				c.in(f, syn).is("established"), c.back(f, frames.TCP("A", rig.ServerISN+1, rig.ClientISN+1)).is("established"),
				c.in(f, frames.TCP("R", rig.ClientISN+1, 0)).is("closing"), c.in(f, syn).opening().is("half-open"),
				c.back(f, frames.TCP("SA", answer, fresh+1)), c.in(f, frames.TCP("A", fresh+1, answer+1)).is("established"),
			}
		})
	}
	return twins
}
