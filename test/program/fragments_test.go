// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"hairpin/test/frames"
	"hairpin/test/rig"
)

func fragmentRows() []row {
	return slices.Concat(orderRows(), foreignFragmentRows(), tinyRows(), overlapRows(), brokenFragmentRows())
}

// datagram is a packet of a flow in pieces: as they come in, and as they have to leave.
type datagram struct {
	at        rig.Port
	in, leave [][]byte
}

// pieces cuts a packet of the client and what must become of it in the same places.
func (c *corpus) pieces(f rig.Flow, change func(*frames.Frame), lengths ...int) datagram {
	in, want := f.In(numbered(c.id()), change)
	return datagram{f.At, fragments(in.Bytes(), lengths...), fragments(want.Bytes(), lengths...)}
}

// answer is a datagram of the server, in fragments.
func (c *corpus) answer(f rig.Flow, change func(*frames.Frame), lengths ...int) datagram {
	in, want := f.Back(numbered(c.id()), change)
	return datagram{f.Rig.LAN, fragments(in.Bytes(), lengths...), fragments(want.Bytes(), lengths...)}
}

func numbered(id uint16) func(*frames.Frame) { return func(f *frames.Frame) { f.ID = id } }

// goes is a piece that is translated at once.
func (d datagram) goes(i int) step {
	return sendBytes(d.at, d.in[i], d.leave[i]).deferred(uncounted)
}

// waits is a piece whose first has not come.
func (d datagram) waits(i int) step {
	return step{at: d.at, in: d.in[i]}.held().deferred(uncounted)
}

// passes is a piece that is the kernel's.
func (d datagram) passes(i int) step { return pass(d.at, d.in[i]) }

// long is a payload of which no two parts are alike.
func long(n int) func(*frames.Frame) {
	var text strings.Builder
	for i := 0; text.Len() < n; i++ {
		fmt.Fprintf(&text, "%06d,", i)
	}
	return frames.Payload(text.String()[:n])
}

// fragmentWays are flows of which each protocol that knows fragments has one.
func fragmentWays() map[string]func(c *corpus) (f rig.Flow, packet, answer func(*frames.Frame)) {
	ways := map[string]func(c *corpus) (f rig.Flow, packet, answer func(*frames.Frame)){
		"echo": func(c *corpus) (rig.Flow, func(*frames.Frame), func(*frames.Frame)) {
			text := strings.Repeat("ping", 30)
			return c.basic("hairpin"), echo(icmpEchoRequest, 1, text), echo(icmpEchoReply, 1, text)
		},
		"GRE": func(c *corpus) (rig.Flow, func(*frames.Frame), func(*frames.Frame)) {
			tunnelled := raw(protocolGRE, strings.Repeat("tunnel", 20))
			return c.basic("server to itself"), tunnelled, tunnelled
		},
	}
	for _, way := range []string{"hairpin", "from the Internet", "from another LAN"} {
		ways["UDP "+way] = func(c *corpus) (rig.Flow, func(*frames.Frame), func(*frames.Frame)) {
			return c.flow(way, true), long(120), long(120)
		}
		ways["SCTP "+way] = func(c *corpus) (rig.Flow, func(*frames.Frame), func(*frames.Frame)) {
			return c.media(way), sctpPacket(0, sctpInit, strings.Repeat("init", 29)), sctpPacket(9, 2, strings.Repeat("ack.", 29))
		}
	}
	return ways
}

// orderRows: pieces in order and out of it are translated alike, both ways, and their transport's
// checksum is changed in the first alone.
func orderRows() (rows []row) {
	for name, way := range fragmentWays() {
		rows = append(rows,
			row{"row 32, 33: in order, " + name, func(c *corpus) []step {
				f, packet, answer := way(c)
				d, e := c.pieces(f, packet, 64, 32), c.answer(f, answer, 64, 32)
				return []step{d.goes(0).opening(), d.goes(1), d.goes(2), e.goes(0), e.goes(1), e.goes(2)}
			}},
			row{"row 34: reversed, " + name, func(c *corpus) []step {
				f, packet, answer := way(c)
				d, e := c.pieces(f, packet, 64, 32), c.answer(f, answer, 64, 32)
				return []step{
					d.waits(2), d.waits(1), d.goes(0).opening().releasing(d.leave[2], d.leave[1]),
					e.waits(2), e.waits(1), e.goes(0).releasing(e.leave[2], e.leave[1]),
				}
			}},
			row{"row 34: first in the middle, " + name, func(c *corpus) []step {
				f, packet, answer := way(c)
				d, e := c.pieces(f, packet, 64, 32), c.answer(f, answer, 64, 32)
				return []step{
					d.waits(1), d.goes(0).opening().releasing(d.leave[1]), d.goes(2),
					e.waits(2), e.goes(0).releasing(e.leave[2]), e.goes(1),
				}
			}},
		)
	}
	return append(rows,
		row{"row 33: TCP in order", func(c *corpus) []step {
			f := c.flow("hairpin", false)
			d := c.pieces(f, func(f *frames.Frame) { middle(f); long(100)(f) }, 40, 40)
			return append(c.opened(f), d.goes(0), d.goes(1), d.goes(2))
		}},
		row{"row 34: the first of another datagram translates nothing", func(c *corpus) []step {
			f := c.flow("hairpin", true)
			d, other := c.pieces(f, long(100), 48), c.pieces(f, long(100), 48)
			return []step{other.waits(1), d.goes(0).opening(), d.goes(1)}
		}},
		row{"row 34: longer than can be held", func(c *corpus) []step {
			d := c.pieces(c.flow("hairpin", true), long(3000), 800)
			early := step{at: d.at, in: d.in[1], mayFail: "longer than the MTU"}
			return []step{early.dropped("fragment_early").deferred(uncounted)}
		}},
		row{"row 34: a later fragment opens nothing, and its flow stays closed", func(c *corpus) []step {
			f := c.flow("from the Internet", true)
			d := c.pieces(f, long(100), 48)
			in, _ := f.Back(frames.Payload("unasked"))
			return []step{d.waits(1), pass(c.b.LAN, in.Bytes())}
		}},
	)
}

// foreignFragmentRows: what is not a forward's passes, in any order, also if it might have been one's.
func foreignFragmentRows() (rows []row) {
	to := func(dst string) func(*corpus) datagram {
		return func(c *corpus) datagram {
			f := c.flow("hairpin", true)
			f.External = mustAddrPort(dst)
			return c.pieces(f, long(100), 48, 32)
		}
	}
	ping := func(c *corpus) datagram {
		f := c.flow("from the Internet", true)
		return c.pieces(f, echo(icmpEchoRequest, 1, strings.Repeat("ping", 25)), 48, 32)
	}
	outbound := func(c *corpus) datagram {
		in := frames.Frame{
			From: rig.ServerMAC, To: c.b.LAN.MAC, UDP: true, ID: c.id(), Payload: []byte(strings.Repeat("own", 40)),
			Src: netip.AddrPortFrom(rig.Server, c.port()), Dst: netip.AddrPortFrom(rig.InternetHost, 53),
		}
		return datagram{at: c.b.LAN, in: fragments(in.Bytes(), 48, 32)}
	}
	never := map[string]func(*corpus) datagram{ // cannot be a forward's, so none waits
		"to a host on the Internet": to("198.51.100.9:443"),
		"to the router's LAN side":  to("192.168.1.1:443"),
	}
	perhaps := map[string]func(*corpus) datagram{
		"to a port without forward":           to("203.0.113.1:444"),
		"echo to the router":                  ping,
		"from a server to a host on Internet": outbound,
	}
	for name, make := range never {
		rows = append(rows, row{"row 41: reversed, " + name, func(c *corpus) []step {
			d := make(c)
			return []step{d.passes(2), d.passes(1), d.passes(0)}
		}})
	}
	for name, make := range perhaps {
		rows = append(rows,
			row{"row 41: in order, " + name, func(c *corpus) []step {
				d := make(c)
				return []step{d.passes(0), d.passes(1), d.passes(2)}
			}},
			row{"row 41: reversed, " + name, func(c *corpus) []step {
				d := make(c)
				first := d.passes(0)
				first.passed = append(first.passed, d.in[2], d.in[1])
				return []step{d.waits(2), d.waits(1), first}
			}},
		)
	}
	return rows
}

// tinyRows: a first fragment has to bring its whole transport header (RFC 1858).
func tinyRows() (rows []row) {
	for _, e := range []struct {
		name   string
		udp    bool
		size   int
		reason string
	}{
		{"row 36: TCP of 8 bytes", false, 8, "fragment_tiny"}, {"row 36: TCP of 16 bytes", false, 16, "fragment_tiny"},
		{"row 37: TCP of no byte", false, 0, "malformed"}, {"row 37: UDP of no byte", true, 0, "malformed"},
		{"row 37: TCP of 3 bytes", false, 3, "malformed"}, {"row 37: UDP of 3 bytes", true, 3, "malformed"},
	} {
		for _, way := range []string{"hairpin", "from the Internet"} {
			rows = append(rows, row{e.name + ", " + way, func(c *corpus) []step {
				f := c.flow(way, e.udp)
				tiny := func(s step, in []byte) step {
					s.in = fragment(in[:l4At], in[l4At:l4At+e.size], 0, true)
					return s.dropped(e.reason).deferred(uncounted)
				}
				open, _ := f.In(opener, numbered(c.id()), long(60))
				data, _ := f.In(middle, numbered(c.id()), long(60))
				answer, _ := f.Back(answerer, numbered(c.id()), long(60))
				steps := append([]step{tiny(step{at: f.At}, open.Bytes())}, c.opened(f)...)
				return append(steps, tiny(step{at: f.At}, data.Bytes()), tiny(step{at: c.b.LAN}, answer.Bytes()))
			}})
		}
	}
	return append(rows, row{"row 36: tiny, of another's port", func(c *corpus) []step {
		f := c.flow("hairpin", true)
		f.External = mustAddrPort("198.51.100.9:443")
		in, _ := f.In(numbered(c.id()), long(60))
		return []step{pass(f.At, fragment(in.Bytes()[:l4At], nil, 0, true))}
	}})
}

// overlapRows: no byte of a datagram comes twice.
func overlapRows() (rows []row) {
	for _, e := range []struct {
		name       string
		start, end int // of the payload, UDP header included
		more       bool
	}{
		{"the first again", 0, 48, true}, {"a later one again", 48, 80, true},
		{"head of a later one", 40, 64, true}, {"tail of a later one", 72, 96, true},
		{"within a later one", 56, 64, true}, {"around a later one", 40, 88, true},
		{"all of it", 0, 120, true}, {"the first and more", 0, 56, true},
	} {
		rows = append(rows, row{"row 38: " + e.name, func(c *corpus) []step {
			f := c.flow("hairpin", true)
			in, _ := f.In(numbered(c.id()), long(120))
			d := c.cut(f, in.ID, long(120), 48, 32)
			data := in.Bytes()
			twice := step{at: d.at, in: fragment(data[:l4At], data[l4At+e.start:l4At+e.end], e.start, e.more)}
			return []step{
				d.goes(0).opening(), d.goes(1), twice.dropped("fragment_overlap").deferred(uncounted), d.goes(2),
			}
		}})
	}
	return append(rows, row{"row 38: again while it is held", func(c *corpus) []step {
		d := c.pieces(c.flow("hairpin", true), long(120), 48, 32)
		again := step{at: d.at, in: d.in[1]}.dropped("fragment_overlap").deferred(uncounted)
		return []step{d.waits(1), again, d.goes(0).opening().releasing(d.leave[1]), d.goes(2)}
	}})
}

// cut is pieces with a given id.
func (c *corpus) cut(f rig.Flow, id uint16, change func(*frames.Frame), lengths ...int) datagram {
	in, want := f.In(numbered(id), change)
	return datagram{f.At, fragments(in.Bytes(), lengths...), fragments(want.Bytes(), lengths...)}
}

// brokenFragmentRows are fragments no stack may put together.
func brokenFragmentRows() (rows []row) {
	for _, e := range []struct {
		name   string
		size   int
		offset int
		flags  uint16
	}{
		{"ends behind 65535", 48, 65528, 0},
		{"ends behind 65535, and more follow", 48, 65504, moreFragments},
		{"DF and MF", 48, 0, dontFragment | moreFragments},
		{"DF and offset", 48, 64, dontFragment},
		{"middle of 7 bytes", 7, 64, moreFragments},
		{"first of 45 bytes", 45, 0, moreFragments},
	} {
		broken := func(c *corpus, f frames.Frame) []byte {
			data := f.Bytes()
			data = fragment(data[:l4At], data[l4At:l4At+e.size], 0, false)
			frames.SetWord(data, ipAt+6, e.flags|uint16(e.offset/8))
			sealIP(data)
			return data
		}
		rows = append(rows,
			row{"row 40: " + e.name, func(c *corpus) []step {
				f := c.flow("hairpin", true)
				in, _ := f.In(numbered(c.id()), long(60))
				back, _ := f.Back(numbered(c.id()), long(60))
				steps := []step{step{at: f.At, in: broken(c, in)}.dropped("malformed").deferred(uncounted)}
				return append(append(steps, c.opened(f)...),
					step{at: c.b.LAN, in: broken(c, back)}.dropped("malformed").deferred(uncounted))
			}},
			row{"row 40: not ours, " + e.name, func(c *corpus) []step {
				f := c.flow("hairpin", true)
				f.External = mustAddrPort("198.51.100.9:443")
				in, _ := f.In(numbered(c.id()), long(60))
				return []step{pass(f.At, broken(c, in))}
			}},
		)
	}
	return append(rows, row{"row 9: a later fragment longer than its frame", func(c *corpus) []step {
		f := c.flow("hairpin", true)
		d := c.pieces(f, long(120), 48)
		cut := slices.Clone(d.in[1])
		frames.SetWord(cut, ipAt+2, 1500)
		sealIP(cut)
		return []step{d.goes(0).opening(), step{at: f.At, in: cut}.dropped("malformed")}
	}})
}
