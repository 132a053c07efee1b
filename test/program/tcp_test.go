// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/gopacket/gopacket/layers"

	"hairpin/test/frames"
	"hairpin/test/rig"
)

func tcpRows() []row {
	return slices.Concat(noStateRows(), handshakeRows(), closeRows(), resetRows(), mssRows())
}

// is expects this state of the only connection after the packet.
func (s step) is(state string) step { s.state = state; return s }

// noStateRows: only a SYN opens.
func noStateRows() (rows []row) {
	for _, flags := range []string{"A", "PA", "SA", "R", "RA", "FA", "FPA"} {
		for _, way := range []string{"hairpin", "from the Internet"} {
			rows = append(rows, row{fmt.Sprintf("row 54: %s out of nothing %s", flags, way), func(c *corpus) []step {
				return []step{c.in(c.flow(way, false), frames.TCP(flags, 5, 6), frames.Payload("data")).dropped("non_syn")}
			}})
		}
	}
	for _, udp := range []bool{false, true} {
		rows = append(rows, row{fmt.Sprintf("row 72: answer of a server nobody asked, udp=%v", udp), func(c *corpus) []step {
			hairpin, in := c.flow("hairpin", udp), c.flow("from the Internet", udp)
			toRouter, _ := hairpin.Back(answerer)
			toHost, _ := in.Back(answerer)
			return []step{pass(c.b.LAN, toRouter.Bytes()), pass(c.b.LAN, toHost.Bytes())}
		}})
	}
	return rows
}

func handshakeRows() (rows []row) {
	for _, way := range []string{"hairpin", "from the Internet", "from another LAN", "server to itself"} {
		syn, synAck := frames.TCP("S", rig.ClientISN, 0), frames.TCP("SA", rig.ServerISN, rig.ClientISN+1)
		add := func(name string, steps func(c *corpus, f rig.Flow) []step) {
			rows = append(rows, row{name + " " + way, func(c *corpus) []step { return steps(c, c.flow(way, false)) }})
		}
		add("row 55: SYN five times", func(c *corpus, f rig.Flow) []step {
			steps := []step{c.in(f, syn).opening()}
			for range 4 {
				steps = append(steps, c.in(f, syn).is("half-open"))
			}
			return append(steps, c.back(f, synAck), c.in(f, frames.TCP("A", rig.ClientISN+1, rig.ServerISN+1)).is("established"))
		})
		add("row 56: lost SYN/ACK, lost ACK, then data", func(c *corpus, f rig.Flow) []step {
			return []step{
				c.in(f, syn).opening(), c.back(f, synAck), c.in(f, syn), c.back(f, synAck), c.back(f, synAck).is("half-open"),
				c.in(f, frames.TCP("PA", rig.ClientISN+1, rig.ServerISN+1), frames.Payload("data")).is("established"),
				c.back(f, frames.TCP("A", rig.ServerISN+1, rig.ClientISN+5)),
			}
		})
		add("row 57: simultaneous open", func(c *corpus, f rig.Flow) []step {
			return []step{
				c.in(f, syn).opening(), c.back(f, frames.TCP("S", rig.ServerISN, 0)).is("half-open"),
				c.in(f, frames.TCP("SA", rig.ClientISN, rig.ServerISN+1)), c.back(f, synAck),
				c.in(f, frames.TCP("PA", rig.ClientISN+1, rig.ServerISN+1), frames.Payload("data")).is("established"),
				c.back(f, frames.TCP("PA", rig.ServerISN+1, rig.ClientISN+5), frames.Payload("answer")).is("established"),
			}
		})
		add("row 64: an ACK that was never asked for completes nothing", func(c *corpus, f rig.Flow) []step {
			return []step{
				c.in(f, syn).opening(), c.in(f, frames.TCP("A", rig.ClientISN+1, rig.ServerISN+1)).dropped("bad_handshake").is("half-open"),
				c.back(f, synAck), c.in(f, frames.TCP("A", rig.ClientISN+1, rig.ServerISN-70000)).dropped("bad_handshake").is("half-open"),
			}
		})
		add("row 64: SYN on an established connection", func(c *corpus, f rig.Flow) []step {
			return append(c.opened(f), c.in(f, frames.TCP("S", rig.ClientISN+90000, 0)).is("established"),
				c.back(f, frames.TCP("A", rig.ServerISN+1, rig.ClientISN+1)), c.in(f, middle, frames.Payload("data")).is("established"))
		})
	}
	return rows
}

func closeRows() (rows []row) {
	for _, way := range []string{"hairpin", "from the Internet"} {
		add := func(name string, steps func(c *corpus, f rig.Flow) []step) {
			rows = append(rows, row{name + " " + way, func(c *corpus) []step {
				f := c.flow(way, false)
				return append(c.opened(f), steps(c, f)...)
			}})
		}
		add("row 58: the client closes first", func(c *corpus, f rig.Flow) []step {
			return []step{
				c.in(f, frames.TCP("FA", rig.ClientISN+1, rig.ServerISN+1)), c.in(f, frames.TCP("FA", rig.ClientISN+1, rig.ServerISN+1)),
				c.back(f, frames.TCP("A", rig.ServerISN+1, rig.ClientISN+2)).is("established"),
				c.back(f, frames.TCP("PA", rig.ServerISN+1, rig.ClientISN+2), frames.Payload("half closed")).is("established"),
				c.in(f, frames.TCP("A", rig.ClientISN+2, rig.ServerISN+12)), c.back(f, frames.TCP("FA", rig.ServerISN+12, rig.ClientISN+2)),
				c.in(f, frames.TCP("A", rig.ClientISN+2, rig.ServerISN+13)).is("closing"),
				c.back(f, frames.TCP("FA", rig.ServerISN+12, rig.ClientISN+2)).is("closing"),
				c.in(f, frames.TCP("A", rig.ClientISN+2, rig.ServerISN+13)).is("closing"),
			}
		})
		add("row 58: the server closes first", func(c *corpus, f rig.Flow) []step {
			return []step{
				c.back(f, frames.TCP("FA", rig.ServerISN+1, rig.ClientISN+1)), c.in(f, frames.TCP("A", rig.ClientISN+1, rig.ServerISN+2)).is("established"),
				c.in(f, frames.TCP("FA", rig.ClientISN+1, rig.ServerISN+2)), c.back(f, frames.TCP("A", rig.ServerISN+2, rig.ClientISN+2)).is("closing"),
			}
		})
		add("row 58: both close at once", func(c *corpus, f rig.Flow) []step {
			return []step{
				c.in(f, frames.TCP("FA", rig.ClientISN+1, rig.ServerISN+1)), c.back(f, frames.TCP("FA", rig.ServerISN+1, rig.ClientISN+1)),
				c.in(f, frames.TCP("A", rig.ClientISN+2, rig.ServerISN+2)), c.back(f, frames.TCP("A", rig.ServerISN+2, rig.ClientISN+2)).is("closing"),
				c.in(f, frames.TCP("S", rig.ClientISN+90000, 0)).opening().is("half-open"),
			}
		})
		add("row 64: a forged FIN closes nothing", func(c *corpus, f rig.Flow) []step {
			return []step{
				c.in(f, frames.TCP("FA", rig.ClientISN+4000, rig.ServerISN+1)), c.back(f, frames.TCP("FA", rig.ServerISN+1, rig.ClientISN+1)),
				c.in(f, frames.TCP("A", rig.ClientISN+1, rig.ServerISN+2)).is("established"),
			}
		})
	}
	return rows
}

func resetRows() (rows []row) {
	for _, way := range []string{"hairpin", "from the Internet"} {
		add := func(name string, steps func(c *corpus, f rig.Flow) []step) {
			rows = append(rows, row{name + " " + way, func(c *corpus) []step {
				f := c.flow(way, false)
				return append(c.opened(f), steps(c, f)...)
			}})
		}
		add("row 59: RST out of the blue", func(c *corpus, f rig.Flow) (steps []step) {
			for _, seq := range []uint32{0, 5, rig.ClientISN, rig.ClientISN + 1<<31, 0xffffffff, rig.ServerISN + 1} {
				steps = append(steps, c.in(f, frames.TCP("R", seq, 0)).is("established"))
			}
			return append(steps, c.in(f, middle, frames.Payload("lives")).is("established"))
		})
		add("row 60: RST in the window", func(c *corpus, f rig.Flow) []step {
			return []step{
				c.in(f, frames.TCP("R", rig.ClientISN+2, 0)).is("established"), c.in(f, frames.TCP("RA", rig.ClientISN+5000, rig.ServerISN+1)).is("established"),
				c.back(f, frames.TCP("R", rig.ServerISN+2, 0)).is("established"),
			}
		})
		add("row 61: RST exactly where it is expected", func(c *corpus, f rig.Flow) []step {
			return []step{c.in(f, frames.TCP("R", rig.ClientISN+1, 0)).is("closing")}
		})
		add("row 61: RST of the server", func(c *corpus, f rig.Flow) []step {
			return []step{c.back(f, frames.TCP("RA", rig.ServerISN+1, rig.ClientISN+1)).is("closing")}
		})
		add("row 62: inexact RST after both FINs", func(c *corpus, f rig.Flow) []step {
			return []step{
				c.in(f, frames.TCP("FA", rig.ClientISN+1, rig.ServerISN+1)), c.back(f, frames.TCP("FA", rig.ServerISN+1, rig.ClientISN+2)),
				c.in(f, frames.TCP("A", rig.ClientISN+2, rig.ServerISN+2)).is("closing"), c.in(f, frames.TCP("R", rig.ClientISN+900, 0)).is("closing"),
			}
		})
		add("row 63: RST behind the window that acknowledges nothing", func(c *corpus, f rig.Flow) []step {
			return []step{
				c.in(f, frames.TCP("RA", 1<<32-69000, 0)).is("established"), c.in(f, middle, frames.Payload("lives")).is("established"),
			}
		})
		add("row 64: data behind an exact RST", func(c *corpus, f rig.Flow) []step {
			return []step{
				c.in(f, frames.TCP("R", rig.ClientISN+1, 0)).is("closing"), c.in(f, middle, frames.Payload("still here")).is("closing"),
				c.back(f, frames.TCP("A", rig.ServerISN+1, rig.ClientISN+11)).is("closing"),
			}
		})
	}
	return rows
}

// mssRows: the MSS of a handshake is lowered to the interface's limit, and never raised.
func mssRows() (rows []row) {
	const capped = cappedMTU - 40
	for _, e := range []struct{ offered, passed uint16 }{
		{9000, capped}, {capped + 1, capped}, {capped, capped}, {capped - 1, capped - 1}, {536, 536}, {0, 0},
	} {
		rows = append(rows,
			row{fmt.Sprintf("row 102: MSS %d on a capped interface", e.offered), func(c *corpus) []step {
				f := c.flow("from another LAN", false)
				in, _ := f.In(opener, mss(e.offered))
				_, want := f.In(opener, mss(e.passed))
				back, _ := f.Back(frames.TCP("SA", rig.ServerISN, rig.ClientISN+1), mss(e.offered))
				_, wantBack := f.Back(frames.TCP("SA", rig.ServerISN, rig.ClientISN+1), mss(e.passed))
				return []step{send(f.At, in, want).opening().deferred("mss"), send(c.b.LAN, back, wantBack).deferred(uncounted)}
			}},
			row{fmt.Sprintf("row 102: MSS %d at an odd offset", e.offered), func(c *corpus) []step {
				f := c.flow("from another LAN", false)
				odd := func(n uint16) func(*frames.Frame) {
					return func(f *frames.Frame) {
						noOperation(f)
						mss(n)(f)
						noOperation(f)
						noOperation(f)
						noOperation(f)
					}
				}
				in, _ := f.In(opener, odd(e.offered))
				_, want := f.In(opener, odd(e.passed))
				return []step{send(f.At, in, want).opening()}
			}},
			row{fmt.Sprintf("row 102: MSS %d on interfaces without a cap", e.offered), func(c *corpus) []step {
				f := c.flow("from the Internet", false)
				return []step{
					c.in(f, opener, mss(e.offered)).opening(), c.back(f, frames.TCP("SA", rig.ServerISN, rig.ClientISN+1), mss(e.offered)),
				}
			}},
		)
	}
	rows = append(rows, row{"row 102: MSS option that hangs over the header", func(c *corpus) []step {
		f := c.flow("from another LAN", false)
		// Two words of options, of which the header's length admits one.
		shorter := frames.Mutate(func(data []byte) {
			data[l4At+12] = 6 << 4
			frames.SetWord(data, l4At+16, 0)
			frames.SetWord(data, l4At+16, ^frames.Fold(frames.PseudoHeader(data)+frames.Sum(data[l4At:frames.EthernetLength+frames.IPLength(data)])))
		})
		hanging := func(f *frames.Frame) {
			noOperation(f)
			mss(9000)(f)
			noOperation(f)
			noOperation(f)
			noOperation(f)
		}
		return []step{c.in(f, opener, hanging, shorter).opening()}
	}})
	return append(rows, row{"row 102: SYN without MSS", func(c *corpus) []step {
		f := c.flow("from another LAN", false)
		return []step{c.in(f, opener).opening(), c.back(f, frames.TCP("SA", rig.ServerISN, rig.ClientISN+1))}
	}})
}

// noOperation is a TCP option that does nothing but take a byte.
func noOperation(f *frames.Frame) {
	f.Segment = append(f.Segment, layers.TCPOption{OptionType: layers.TCPOptionKindNop, OptionLength: 1})
}

// spoofRows: sources that do not belong behind the interface open nothing, and hear nothing.
func spoofRows() (rows []row) {
	for _, e := range []struct{ number, name, way, source string }{
		{"67", "a LAN's address on the WAN", "from the Internet", "192.168.1.50:20000"},
		{"67", "another LAN's address on the WAN", "from the Internet", "192.168.2.60:20000"},
		{"67", "the server's address on the WAN", "from the Internet", "192.168.1.20:20000"},
		{"67", "the router's LAN address on the WAN", "from the Internet", "192.168.1.1:20000"},
		{"67", "the external address on the WAN", "from the Internet", "203.0.113.1:20000"},
		{"67", "another external address on the WAN", "from the Internet", "203.0.113.9:20000"},
		{"69", "land on the WAN", "from the Internet", "203.0.113.1:443"},
		{"67", "loopback on the WAN", "from the Internet", "127.0.0.1:20000"},
		{"67", "this network on the WAN", "from the Internet", "0.1.2.3:20000"},
		{"67", "no address on the WAN", "from the Internet", "0.0.0.0:20000"},
		{"67", "multicast on the WAN", "from the Internet", "224.1.2.3:20000"},
		{"67", "class E on the WAN", "from the Internet", "240.1.2.3:20000"},
		{"67", "broadcast on the WAN", "from the Internet", "255.255.255.255:20000"},
		{"67", "10/8 on the WAN", "from the Internet", "10.1.2.3:20000"},
		{"67", "172.16/12 on the WAN", "from the Internet", "172.31.2.3:20000"},
		{"67", "192.168/16 on the WAN", "from the Internet", "192.168.250.3:20000"},
		{"67", "shared space on the WAN", "from the Internet", "100.64.2.3:20000"},
		{"67", "link-local on the WAN", "from the Internet", "169.254.2.3:20000"},
		{"68", "another LAN's address on a LAN", "hairpin", "192.168.2.60:20000"},
		{"68", "an Internet address on a LAN", "hairpin", "198.51.100.7:20000"},
		{"68", "the router's address on a LAN", "hairpin", "192.168.1.1:20000"},
		{"68", "the external address on a LAN", "hairpin", "203.0.113.1:20000"},
		{"69", "land on a LAN", "hairpin", "203.0.113.1:443"},
		{"68", "broadcast on a LAN", "hairpin", "192.168.1.255:20000"},
		{"68", "loopback on a LAN", "hairpin", "127.0.0.1:20000"},
		{"68", "multicast on a LAN", "hairpin", "224.0.0.1:20000"},
	} {
		for _, udp := range []bool{false, true} {
			rows = append(rows, row{fmt.Sprintf("row %s: %s, udp=%v", e.number, e.name, udp), func(c *corpus) []step {
				f := c.flow(e.way, udp)
				f.Client = mustAddrPort(e.source)
				in, _ := f.In(opener, frames.Payload("spoofed"))
				short, _ := f.In(opener, frames.Payload("spoofed"), frames.TTL(1))
				return []step{
					step{at: f.At, in: in.Bytes()}.refused("spoofed"), step{at: f.At, in: short.Bytes()}.refused("spoofed"),
				}
			}})
		}
		rows = append(rows, row{fmt.Sprintf("row %s: echo from %s", e.number, e.name), func(c *corpus) []step {
			f := c.basic(e.way)
			f.Client = netip.AddrPortFrom(mustAddrPort(e.source).Addr(), f.Client.Port())
			in, _ := f.In(echo(icmpEchoRequest, 1, "spoofed"))
			return []step{step{at: f.At, in: in.Bytes()}.refused("spoofed")}
		}})
	}
	return rows
}
