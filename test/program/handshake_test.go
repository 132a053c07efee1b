// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"

	"hairpin/test/frames"
	"hairpin/test/rig"
)

// halfOpenTwins: what a server may say before its SYN/ACK is a SYN/ACK, a RST, and one ACK without data for each
// SYN (RFC 5961 section 4); after its SYN/ACK, what acknowledges the SYN (RFC 7413). Anything else is of a
// connection of the server's own, and the kernel's.
func halfOpenTwins() (twins []twin) {
	const seq, ack = 0x51000000, 0x61000000 // of a connection that the server itself has opened
	syn, synAck := frames.TCP("S", rig.ClientISN, 0), frames.TCP("SA", rig.ServerISN, rig.ClientISN+1)
	add := func(name string, steps func(c twinCase, f twinFlow) []step) {
		for _, way := range []string{"from the Internet", "from another LAN"} {
			twins = append(twins, twin{"half-open: " + name + ", " + way, func(c twinCase) []step {
				f := c.whole(way, 4444)
				return append([]step{c.in(f, syn).opening()}, steps(c, f)...)
			}})
		}
	}
	add("data of the server's own connection", func(c twinCase, f twinFlow) (steps []step) {
		for i := range uint32(3) {
			steps = append(steps, c.back(f, frames.TCP("PA", seq+10*i, ack), frames.Payload("server's 10")).theKernels())
		}
		steps = append(steps, c.back(f, frames.TCP("A", seq+30, ack), long(1400)).theKernels(), c.back(f, frames.TCP("FA", seq+30, ack)).theKernels())
		return append(steps, c.in(f, syn).is("half-open"))
	})
	add("data of the server's own connection after each SYN", func(c twinCase, f twinFlow) (steps []step) {
		data := c.back(f, frames.TCP("PA", seq, ack), frames.Payload("server's 10")).theKernels()
		return []step{data, c.in(f, syn).is("half-open"), data, c.in(f, frames.TCP("S", rig.ClientISN+77, 0)).is("half-open"), data}
	})
	add("one challenge ACK for each SYN", func(c twinCase, f twinFlow) []step {
		challenge := c.back(f, frames.TCP("A", seq, ack))
		return []step{
			challenge, challenge.theKernels(), challenge.theKernels(), c.in(f, syn), challenge, challenge.theKernels(),
			c.back(f, synAck), c.in(f, frames.TCP("A", rig.ClientISN+1, rig.ServerISN+1)).is("established"),
		}
	})
	for _, flags := range []string{"R", "RA"} {
		add(flags, func(c twinCase, f twinFlow) []step {
			return []step{c.back(f, frames.TCP(flags, 0, rig.ClientISN+1))}
		})
	}
	for name, wrong := range map[string]uint32{"0": 0, "too low": rig.ClientISN, "too high": rig.ClientISN + 70000, "any": ack} {
		add("SYN/ACK of another SYN, "+name, func(c twinCase, f twinFlow) []step {
			return []step{
				c.back(f, frames.TCP("SA", rig.ServerISN+500, wrong)).theKernels(), c.back(f, synAck),
				c.in(f, frames.TCP("A", rig.ClientISN+1, rig.ServerISN+1)).is("established"),
			}
		})
	}
	add("data behind the SYN/ACK", func(c twinCase, f twinFlow) []step {
		return []step{
			c.back(f, frames.TCP("PA", seq, ack), frames.Payload("not yet")).theKernels(), c.back(f, synAck),
			c.back(f, frames.TCP("PA", rig.ServerISN+1, rig.ClientISN+1), frames.Payload("fast open")).is("half-open"),
			c.back(f, frames.TCP("PA", seq, ack), frames.Payload("another's")).theKernels(),
			c.in(f, frames.TCP("A", rig.ClientISN+1, rig.ServerISN+10)).is("established"),
		}
	})
	for i, data := range []string{"", "query"} {
		add(fmt.Sprintf("Fast Open, %d", i), func(c twinCase, f twinFlow) []step {
			n := uint32(len(data))
			return []step{
				c.in(f, syn, frames.Payload(data)), c.back(f, frames.TCP("SA", rig.ServerISN, rig.ClientISN+1+n)),
				c.back(f, frames.TCP("PA", rig.ServerISN+1, rig.ClientISN+1+n), frames.Payload("answer")),
				c.in(f, frames.TCP("A", rig.ClientISN+1+n, rig.ServerISN+7)).is("established"),
			}
		})
	}
	return twins
}
