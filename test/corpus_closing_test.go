// SPDX-License-Identifier: Apache-2.0

package test

// closingTwins are rows 211 and 212: an ordinary RST closes a connection, and what was forged or is old neither
// closes one nor brings one back.
func closingTwins() (twins []twin) {
	for _, way := range []string{"from the Internet", "hairpin", "from another LAN"} {
		add := func(name string, steps func(c twinCase, f twinFlow) []step) {
			twins = append(twins, twin{name + ", " + way, func(c twinCase) []step {
				f := c.flow(way, false)
				return append(c.opened(f), steps(c, f)...)
			}})
		}
		syn := func(c twinCase, f twinFlow) step {
			return c.in(f, tcp("S", clientISN+90000, 0)).opening().is("half-open")
		}
		for _, flags := range []string{"R", "RA"} {
			add("row 211: "+flags+" of the client behind its data", func(c twinCase, f twinFlow) []step {
				return []step{
					c.in(f, middle, payload("unanswered")), c.in(f, tcp("PA", clientISN+11, serverISN+1), payload("and more")),
					c.in(f, tcp(flags, clientISN+19, serverISN+1)).is("closing"), syn(c, f),
				}
			})
			add("row 211: "+flags+" of the server behind its data", func(c twinCase, f twinFlow) []step {
				return []step{
					c.back(f, answerer, payload("unanswered")), c.back(f, tcp(flags, serverISN+11, clientISN+1)).is("closing"), syn(c, f),
				}
			})
		}
		add("row 211: RST not exactly behind the data", func(c twinCase, f twinFlow) []step {
			return []step{
				c.in(f, middle, payload("unanswered")), c.in(f, tcp("R", clientISN+10, 0)).is("established"),
				c.in(f, tcp("R", clientISN+12, 0)).is("established"), c.back(f, tcp("R", serverISN+2, 0)).is("established"),
				c.in(f, tcp("R", clientISN+1, 0)).is("closing"),
			}
		})
		for name, late := range map[string]func(c twinCase, f twinFlow) step{
			"old ACK of the client":     func(c twinCase, f twinFlow) step { return c.in(f, tcp("A", clientISN+1, serverISN+1)) },
			"old ACK of the server":     func(c twinCase, f twinFlow) step { return c.back(f, tcp("A", serverISN+1, clientISN+1)) },
			"forged FIN of the client":  func(c twinCase, f twinFlow) step { return c.in(f, tcp("FA", clientISN+4000, serverISN+2)) },
			"forged FIN of the server":  func(c twinCase, f twinFlow) step { return c.back(f, tcp("FA", serverISN+4000, clientISN+2)) },
			"forged data of the client": func(c twinCase, f twinFlow) step { return c.in(f, tcp("PA", clientISN+90, 7), payload("forged")) },
			"forged data of the server": func(c twinCase, f twinFlow) step { return c.back(f, tcp("PA", serverISN+90, 7), payload("forged")) },
			"far ACK of the client":     func(c twinCase, f twinFlow) step { return c.in(f, tcp("A", 1<<31, 1<<30)) },
			"far FIN of the server":     func(c twinCase, f twinFlow) step { return c.back(f, tcp("FA", 1<<31, 1<<30)) },
		} {
			add("row 212: closed, then "+name, func(c twinCase, f twinFlow) []step {
				return []step{
					c.in(f, tcp("FA", clientISN+1, serverISN+1)), c.back(f, tcp("FA", serverISN+1, clientISN+2)),
					c.in(f, tcp("A", clientISN+2, serverISN+2)).is("closing"), late(c, f).is("closing"), late(c, f).is("closing"), syn(c, f),
				}
			})
		}
		add("row 212: forged FINs of both sides and their acknowledgements", func(c twinCase, f twinFlow) []step {
			const far = 1 << 20
			return []step{
				c.in(f, tcp("FA", clientISN+far, serverISN+1)), c.back(f, tcp("A", serverISN+1, clientISN+far+1)).is("established"),
				c.back(f, tcp("FA", serverISN+far, clientISN+far+1)), c.in(f, tcp("A", clientISN+far+1, serverISN+far+1)).is("established"),
				c.in(f, middle, payload("lives")).is("established"),
			}
		})
		add("row 212: a forged FIN does not keep a connection from closing", func(c twinCase, f twinFlow) []step {
			return []step{
				c.in(f, tcp("FA", clientISN+1, serverISN+1)), c.back(f, tcp("A", serverISN+1, clientISN+2)),
				c.in(f, tcp("FA", clientISN+1<<20, serverISN+1)), c.back(f, tcp("A", serverISN+1, clientISN+1)).is("established"),
				c.back(f, tcp("FA", serverISN+1, clientISN+2)), c.in(f, tcp("A", clientISN+2, serverISN+2)).is("closing"),
			}
		})
	}
	return twins
}
