// SPDX-License-Identifier: Apache-2.0

package test

import "fmt"

// halfOpenTwins: what a server may say before its SYN/ACK is a SYN/ACK, a RST, and one ACK without data for each
// SYN (RFC 5961 section 4); after its SYN/ACK, what acknowledges the SYN (RFC 7413). Anything else is of a
// connection of the server's own, and the kernel's.
func halfOpenTwins() (twins []twin) {
	const seq, ack = 0x51000000, 0x61000000 // of a connection that the server itself has opened
	syn, synAck := tcp("S", clientISN, 0), tcp("SA", serverISN, clientISN+1)
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
			steps = append(steps, c.back(f, tcp("PA", seq+10*i, ack), payload("server's 10")).theKernels())
		}
		steps = append(steps, c.back(f, tcp("A", seq+30, ack), long(1400)).theKernels(), c.back(f, tcp("FA", seq+30, ack)).theKernels())
		return append(steps, c.in(f, syn).is("half-open"))
	})
	add("data of the server's own connection after each SYN", func(c twinCase, f twinFlow) (steps []step) {
		data := c.back(f, tcp("PA", seq, ack), payload("server's 10")).theKernels()
		return []step{data, c.in(f, syn).is("half-open"), data, c.in(f, tcp("S", clientISN+77, 0)).is("half-open"), data}
	})
	add("one challenge ACK for each SYN", func(c twinCase, f twinFlow) []step {
		challenge := c.back(f, tcp("A", seq, ack))
		return []step{
			challenge, challenge.theKernels(), challenge.theKernels(), c.in(f, syn), challenge, challenge.theKernels(),
			c.back(f, synAck), c.in(f, tcp("A", clientISN+1, serverISN+1)).is("established"),
		}
	})
	for _, flags := range []string{"R", "RA"} {
		add(flags, func(c twinCase, f twinFlow) []step {
			return []step{c.back(f, tcp(flags, 0, clientISN+1))}
		})
	}
	for name, wrong := range map[string]uint32{"0": 0, "too low": clientISN, "too high": clientISN + 70000, "any": ack} {
		add("SYN/ACK of another SYN, "+name, func(c twinCase, f twinFlow) []step {
			return []step{
				c.back(f, tcp("SA", serverISN+500, wrong)).theKernels(), c.back(f, synAck),
				c.in(f, tcp("A", clientISN+1, serverISN+1)).is("established"),
			}
		})
	}
	add("data behind the SYN/ACK", func(c twinCase, f twinFlow) []step {
		return []step{
			c.back(f, tcp("PA", seq, ack), payload("not yet")).theKernels(), c.back(f, synAck),
			c.back(f, tcp("PA", serverISN+1, clientISN+1), payload("fast open")).is("half-open"),
			c.back(f, tcp("PA", seq, ack), payload("another's")).theKernels(),
			c.in(f, tcp("A", clientISN+1, serverISN+10)).is("established"),
		}
	})
	for i, data := range []string{"", "query"} {
		add(fmt.Sprintf("Fast Open, %d", i), func(c twinCase, f twinFlow) []step {
			n := uint32(len(data))
			return []step{
				c.in(f, syn, payload(data)), c.back(f, tcp("SA", serverISN, clientISN+1+n)),
				c.back(f, tcp("PA", serverISN+1, clientISN+1+n), payload("answer")),
				c.in(f, tcp("A", clientISN+1+n, serverISN+7)).is("established"),
			}
		})
	}
	return twins
}
