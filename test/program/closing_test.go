// SPDX-License-Identifier: Apache-2.0

package program

import (
	"hairpin/test/frames"
	"hairpin/test/rig"
)

// closingTwins are rows 211 and 212: an ordinary RST closes a connection. A forged or old RST does not close a connection, and does not reopen
// a closed connection.
func closingTwins() (twins []twin) {
	for _, way := range []string{"from the Internet", "hairpin", "from another LAN"} {
		add := func(name string, steps func(c twinCase, f twinFlow) []step) {
			twins = append(twins, twin{name + ", " + way, func(c twinCase) []step {
				f := c.flow(way, false)
				return append(c.opened(f), steps(c, f)...)
			}})
		}
		syn := func(c twinCase, f twinFlow) step {
			return c.in(f, frames.TCP("S", rig.ClientISN+90000, 0)).opening().is("half-open")
		}
		for _, flags := range []string{"R", "RA"} {
			add("row 211: "+flags+" of the client behind its data", func(c twinCase, f twinFlow) []step {
				return []step{
					c.in(f, middle, frames.Payload("unanswered")), c.in(f, frames.TCP("PA", rig.ClientISN+11, rig.ServerISN+1), frames.Payload("and more")),
					c.in(f, frames.TCP(flags, rig.ClientISN+19, rig.ServerISN+1)).is("closing"), syn(c, f),
				}
			})
			add("row 211: "+flags+" of the server behind its data", func(c twinCase, f twinFlow) []step {
				return []step{
					c.back(f, answerer, frames.Payload("unanswered")), c.back(f, frames.TCP(flags, rig.ServerISN+11, rig.ClientISN+1)).is("closing"), syn(c, f),
				}
			})
		}
		add("row 211: RST not exactly behind the data", func(c twinCase, f twinFlow) []step {
			return []step{
				c.in(f, middle, frames.Payload("unanswered")), c.in(f, frames.TCP("R", rig.ClientISN+10, 0)).is("established"),
				c.in(f, frames.TCP("R", rig.ClientISN+12, 0)).is("established"), c.back(f, frames.TCP("R", rig.ServerISN+2, 0)).is("established"),
				c.in(f, frames.TCP("R", rig.ClientISN+1, 0)).is("closing"),
			}
		})
		for name, late := range map[string]func(c twinCase, f twinFlow) step{
			"old ACK of the client": func(c twinCase, f twinFlow) step { return c.in(f, frames.TCP("A", rig.ClientISN+1, rig.ServerISN+1)) },
			"old ACK of the server": func(c twinCase, f twinFlow) step { return c.back(f, frames.TCP("A", rig.ServerISN+1, rig.ClientISN+1)) },
			"forged FIN of the client": func(c twinCase, f twinFlow) step {
				return c.in(f, frames.TCP("FA", rig.ClientISN+4000, rig.ServerISN+2))
			},
			"forged FIN of the server": func(c twinCase, f twinFlow) step {
				return c.back(f, frames.TCP("FA", rig.ServerISN+4000, rig.ClientISN+2))
			},
			"forged data of the client": func(c twinCase, f twinFlow) step {
				return c.in(f, frames.TCP("PA", rig.ClientISN+90, 7), frames.Payload("forged"))
			},
			"forged data of the server": func(c twinCase, f twinFlow) step {
				return c.back(f, frames.TCP("PA", rig.ServerISN+90, 7), frames.Payload("forged"))
			},
			"far ACK of the client": func(c twinCase, f twinFlow) step { return c.in(f, frames.TCP("A", 1<<31, 1<<30)) },
			"far FIN of the server": func(c twinCase, f twinFlow) step { return c.back(f, frames.TCP("FA", 1<<31, 1<<30)) },
		} {
			add("row 212: closed, then "+name, func(c twinCase, f twinFlow) []step {
				return []step{
					c.in(f, frames.TCP("FA", rig.ClientISN+1, rig.ServerISN+1)), c.back(f, frames.TCP("FA", rig.ServerISN+1, rig.ClientISN+2)),
					c.in(f, frames.TCP("A", rig.ClientISN+2, rig.ServerISN+2)).is("closing"), late(c, f).is("closing"), late(c, f).is("closing"), syn(c, f),
				}
			})
		}
		add("row 212: forged FINs of both sides and their acknowledgements", func(c twinCase, f twinFlow) []step {
			const far = 1 << 20
			return []step{
				c.in(f, frames.TCP("FA", rig.ClientISN+far, rig.ServerISN+1)), c.back(f, frames.TCP("A", rig.ServerISN+1, rig.ClientISN+far+1)).is("established"),
				c.back(f, frames.TCP("FA", rig.ServerISN+far, rig.ClientISN+far+1)), c.in(f, frames.TCP("A", rig.ClientISN+far+1, rig.ServerISN+far+1)).is("established"),
				c.in(f, middle, frames.Payload("lives")).is("established"),
			}
		})
		add("row 212: a forged FIN does not keep a connection from closing", func(c twinCase, f twinFlow) []step {
			return []step{
				c.in(f, frames.TCP("FA", rig.ClientISN+1, rig.ServerISN+1)), c.back(f, frames.TCP("A", rig.ServerISN+1, rig.ClientISN+2)),
				c.in(f, frames.TCP("FA", rig.ClientISN+1<<20, rig.ServerISN+1)), c.back(f, frames.TCP("A", rig.ServerISN+1, rig.ClientISN+1)).is("established"),
				c.back(f, frames.TCP("FA", rig.ServerISN+1, rig.ClientISN+2)), c.in(f, frames.TCP("A", rig.ClientISN+2, rig.ServerISN+2)).is("closing"),
			}
		})
	}
	return twins
}
