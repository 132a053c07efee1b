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

// farRouter reports errors from somewhere on the Internet, nearRouter from inside.
var (
	farRouter  = netip.MustParseAddr("45.9.8.7")
	nearRouter = netip.MustParseAddr("192.168.1.77")
)

// report is an ICMP error in words. Its quote is of a packet of the flow as the reporter saw it.
type report struct {
	kind, code uint8
	rest       uint32
	limit      int                 // of the quote
	packet     func(*frames.Frame) // what it is about
	answer     func(*frames.Frame) // what it is about if the server has sent that; nil: packet
	tail       string              // behind the quote: extensions by RFC 4884
	damage     func([]byte)        // of the finished ICMP error, checksums not made good
	header     func(*frames.Frame) // of the error itself
}

func (r report) body(quoted []byte) func(*frames.Frame) {
	return icmpError(r.kind, r.code, r.rest, append(quoted, r.tail...))
}

// toServer is an error about an answer of the server, from the client's side, and what the server must get.
func toServer(f rig.Flow, reporter netip.Addr, r report) (in, want frames.Frame) {
	about := r.packet
	if r.answer != nil {
		about = r.answer
	}
	sent, arrived := f.Back(about)
	sent.TTL = arrived.TTL
	in = frames.Frame{From: f.MAC, To: f.At.MAC, Src: netip.AddrPortFrom(reporter, 0), Dst: f.External, Mutate: r.damage}
	if r.header != nil {
		r.header(&in)
	}
	want = in
	want.From, want.To, want.Dst, want.TTL = f.Rig.LAN.MAC, rig.ServerMAC, f.Target, ttlOr64(in)-1
	if f.Source != f.Client {
		want.Src = f.Source
	}
	r.body(quote(arrived.Bytes(), r.limit))(&in)
	r.body(quote(sent.Bytes(), r.limit))(&want)
	return in, want
}

// toClient is an error about a packet of the client, from the server's side, and what the client must get.
func toClient(f rig.Flow, reporter netip.Addr, r report) (in, want frames.Frame) {
	sent, arrived := f.In(r.packet)
	sent.TTL = arrived.TTL
	in = frames.Frame{From: rig.ServerMAC, To: f.Rig.LAN.MAC, Src: netip.AddrPortFrom(reporter, 0), Dst: f.Source, Mutate: r.damage}
	if r.header != nil {
		r.header(&in)
	}
	want = in
	want.From, want.To, want.Src, want.Dst, want.TTL = f.At.MAC, f.MAC, f.External, f.Client, ttlOr64(in)-1
	r.body(quote(arrived.Bytes(), r.limit))(&in)
	r.body(quote(sent.Bytes(), r.limit))(&want)
	return in, want
}

func ttlOr64(f frames.Frame) uint8 {
	if f.TTL == 0 {
		return 64
	}
	return f.TTL
}

// errorIn is a translated error for the server, errorBack one for the client.
func (c *corpus) errorIn(f rig.Flow, reporter netip.Addr, r report) step {
	in, want := toServer(f, reporter, r)
	return send(f.At, in, want).translatedError()
}

func (c *corpus) errorBack(f rig.Flow, reporter netip.Addr, r report) step {
	in, want := toClient(f, reporter, r)
	return send(c.b.LAN, in, want).translatedError()
}

func icmpRows() []row {
	return slices.Concat(errorRows(), quoteRows(), badErrorRows(), foreignErrorRows(), echoRows(), otherICMPRows())
}

// openFlow is an open flow of a protocol, and a report about the last packets of it.
func (c *corpus) openFlow(protocol, way string) (f rig.Flow, opening []step, about report) {
	data := frames.Payload("some of the data")
	switch protocol {
	case "TCP":
		f = c.flow(way, false)
		about.packet = func(f *frames.Frame) { middle(f); data(f) }
		about.answer = func(f *frames.Frame) { answerer(f); data(f) }
		return f, append(c.opened(f), c.in(f, about.packet), c.back(f, about.answer)), about
	case "UDP":
		f = c.flow(way, true)
		return f, c.opened(f), report{packet: data}
	case "UDP without checksum":
		f = c.flow(way, true)
		return f, c.opened(f), report{packet: func(f *frames.Frame) { noChecksum(f); data(f) }}
	case "half-open TCP":
		f = c.flow(way, false)
		return f, []step{c.in(f, frames.TCP("S", rig.ClientISN, 0)).opening()}, report{packet: middle, answer: answerer}
	case "half-open UDP":
		f = c.flow(way, true)
		return f, []step{c.in(f, frames.Payload("open")).opening()}, report{packet: data}
	case "SCTP":
		f = c.media(way)
		return f, []step{c.in(f, sctpPacket(0, sctpInit, "initiate")).opening(), c.back(f, sctpPacket(8, 2, "INIT ACK"))}, report{packet: sctpPacket(8, sctpData, "data")}
	case "GRE":
		f = c.basic(way)
		about.packet = raw(protocolGRE, "\x00\x00\x08\x00inner packet")
		return f, []step{c.in(f, about.packet).opening(), c.back(f, about.packet)}, about
	default:
		panic(protocol)
	}
}

// errorRows: errors of each type about each protocol, in both directions and on both legs of a hairpin.
func errorRows() (rows []row) {
	kinds := []struct {
		name       string
		kind, code uint8
		rest       uint32
	}{
		{"fragmentation needed", icmpUnreachable, codeFragNeeded, 1280},
		{"port unreachable", icmpUnreachable, codePortUnreachable, 0},
		{"host unreachable", icmpUnreachable, 1, 0},
		{"time exceeded", icmpTimeExceeded, 0, 0},
		{"parameter problem", icmpParameter, 0, 20 << 24},
	}
	protocols := []string{"TCP", "UDP", "UDP without checksum", "half-open TCP", "half-open UDP", "SCTP", "GRE"}
	for _, protocol := range protocols {
		for _, way := range []string{"from the Internet", "hairpin", "from another LAN", "server to itself"} {
			if protocol == "GRE" && way == "server to itself" {
				continue
			}
			for _, kind := range kinds {
				rows = append(rows, row{fmt.Sprintf("row 42, 43, 44: %s, %s %s", kind.name, protocol, way), func(c *corpus) []step {
					f, steps, r := c.openFlow(protocol, way)
					r.kind, r.code, r.rest = kind.kind, kind.code, kind.rest
					return append(steps, c.everyReport(f, r)...)
				}})
			}
		}
	}
	return rows
}

// everyReport is an error to either side with a short quote and a long one, of the end and of a router
// on the way.
func (c *corpus) everyReport(f rig.Flow, r report) (steps []step) {
	far := farRouter
	if f.At.Index != c.b.WAN.Index {
		far = netip.MustParseAddr("192.168.2.77")
	}
	for _, limit := range []int{28, 36, 1000} {
		r.limit = limit
		steps = append(steps,
			c.errorIn(f, f.Client.Addr(), r), c.errorIn(f, far, r),
			c.errorBack(f, f.Target.Addr(), r), c.errorBack(f, nearRouter, r),
		)
	}
	return steps
}

// quoteRows: whatever a quote looks like, what has to be translated is found, and the rest stays.
func quoteRows() (rows []row) {
	on := func(name string, protocols []string, r report) {
		for _, protocol := range protocols {
			for _, way := range []string{"hairpin", "from the Internet"} {
				rows = append(rows, row{name + ", " + protocol + " " + way, func(c *corpus) []step {
					f, steps, about := c.openFlow(protocol, way)
					r, change := r, r.packet
					r.kind, r.code, r.packet, r.answer = icmpUnreachable, codePortUnreachable, about.packet, about.answer
					if change != nil {
						r.packet = func(f *frames.Frame) { about.packet(f); change(f) }
					}
					if change != nil && r.answer != nil {
						r.answer = func(f *frames.Frame) { about.answer(f); change(f) }
					}
					return append(steps, c.errorIn(f, f.Client.Addr(), r), c.errorBack(f, f.Target.Addr(), r))
				}})
			}
		}
	}
	both := []string{"TCP", "UDP"}
	for _, words := range []int{6, 10, 15} {
		with := frames.Options((words - 5) * 4)
		on(fmt.Sprintf("row 46: quoted header of %d words, short", words), both, report{limit: words*4 + 8, packet: with})
		on(fmt.Sprintf("row 46: quoted header of %d words, long", words), both, report{limit: 1000, packet: with})
	}
	on("row 30: odd quote", both, report{limit: 39})
	on("row 30: quote ends before the TCP checksum", both[:1], report{limit: 20 + 16})
	on("row 30: quote ends in the TCP checksum", both[:1], report{limit: 20 + 16, tail: "\x5a"})
	on("row 30: quote ends behind the TCP checksum", both[:1], report{limit: 20 + 18})
	on("row 30: options in the error itself", both, report{limit: 28, header: frames.Options(8)})
	on("row 30: error with a type of service", both, report{limit: 28, header: func(f *frames.Frame) { f.TOS = 0xc0 }})
	on("row 96: error with TTL 2", both, report{limit: 28, header: frames.TTL(2)})
	on("row 10: error with a trailer", both, report{limit: 28, header: trailer(10)})
	on("row 30: extensions of RFC 4884", both, report{
		limit: 128, rest: 32 << 16, packet: long(200), tail: "\x20\x00\x00\x00\x00\x08\x01\x01\x00\x01\x21\x01",
	})
	on("row 46: quoted first fragment", both, report{limit: 28, packet: func(f *frames.Frame) { f.More, f.ID = true, 77 }})
	on("row 30: quoted packet longer than the quote", both, report{limit: 60, packet: long(1000)})
	return rows
}

// badErrorRows: errors about a connection that are damaged, and some about what no connection sent.
func badErrorRows() (rows []row) {
	for _, way := range []string{"hairpin", "from the Internet"} {
		on := func(name, reason string, r report, steps func(c *corpus, f rig.Flow, opened []step) []step) {
			rows = append(rows, row{name + ", " + way, func(c *corpus) []step {
				f, opened, about := c.openFlow("UDP", way)
				r := r
				if r.kind == 0 {
					r.kind, r.code = icmpUnreachable, codePortUnreachable
				}
				if r.packet == nil {
					r.packet = about.packet
				}
				if steps != nil {
					opened = steps(c, f, opened)
				}
				in, back := c.errorIn(f, f.Client.Addr(), r), c.errorBack(f, f.Target.Addr(), r)
				if strings.HasPrefix(reason, "external ") {
					return append(opened, in.dropped(strings.TrimPrefix(reason, "external ")))
				}
				return append(opened, in.dropped(reason), back.dropped(reason))
			}})
		}
		icmpCheck := func(data []byte) { data[l4At+2] ^= 0x40 }
		quotedCheck := func(data []byte) {
			data[l4At+8+10] ^= 0x40
			sealICMP(data)
		}
		never := func(*corpus, rig.Flow, []step) []step { return nil }
		on("RFC 5508 REQ-3: wrong ICMP checksum", "bad_checksum", report{limit: 28, damage: icmpCheck}, nil)
		on("RFC 5508 REQ-3a: wrong quoted IP checksum", "bad_checksum", report{limit: 28, damage: quotedCheck}, nil)
		for _, limit := range []int{20, 23, 27} {
			on(fmt.Sprintf("row 47: quote of %d bytes", limit), "external malformed", report{limit: limit}, nil)
		}
		for _, limit := range []int{0, 8, 19} {
			on(fmt.Sprintf("row 47: quote of %d bytes", limit), "external malformed", report{limit: limit}, nil)
		}
		on("row 45: no connection", "external no_connection", report{limit: 28}, never)
		on("row 45: another kind of error, no connection", "external no_connection", report{kind: icmpTimeExceeded, limit: 28}, never)
	}
	return rows
}

// sealICMP makes the checksum of an ICMP message good.
func sealICMP(data []byte) {
	l4, end := frames.L4Offset(data), frames.EthernetLength+frames.IPLength(data)
	frames.SetWord(data, l4+2, 0)
	frames.SetWord(data, l4+2, ^frames.Fold(frames.Sum(data[l4:end])))
}

// foreignErrorRows: errors about what is no forward's are the kernel's.
func foreignErrorRows() (rows []row) {
	routers := func(c *corpus, src, dst string) []byte {
		about := frames.Frame{
			From: c.b.WAN.MAC, To: rig.GatewayMAC, Src: mustAddrPort(src), Dst: mustAddrPort(dst), UDP: true,
			Payload: []byte("of the router's own"),
		}
		in := frames.Frame{From: rig.GatewayMAC, To: c.b.WAN.MAC, Src: netip.AddrPortFrom(farRouter, 0), Dst: about.Src}
		icmpError(icmpUnreachable, codePortUnreachable, 0, quote(about.Bytes(), 28))(&in)
		return in.Bytes()
	}
	for name, addresses := range map[string][2]string{
		"the router's own packet":            {"203.0.113.1:40000", "198.51.100.9:53"},
		"a host's own packet":                {"192.168.1.50:40000", "198.51.100.9:53"},
		"the router's packet from a LAN":     {"192.168.1.1:40000", "192.168.1.20:53"},
		"a packet of the server to anywhere": {"192.168.1.20:40000", "198.51.100.9:53"},
	} {
		rows = append(rows, row{"row 45: about " + name, func(c *corpus) []step {
			return []step{pass(c.b.WAN, routers(c, addresses[0], addresses[1]))}
		}})
	}
	return append(rows,
		row{"row 45: reply to an echo of the router's, unreachable", func(c *corpus) []step {
			about := frames.Frame{
				From: c.b.WAN.MAC, To: rig.GatewayMAC, Src: mustAddrPort("203.0.113.1:4000"), Dst: mustAddrPort("198.51.100.9:0"),
			}
			echo(icmpEchoRequest, 1, "ping")(&about)
			in := frames.Frame{From: rig.GatewayMAC, To: c.b.WAN.MAC, Src: netip.AddrPortFrom(farRouter, 0), Dst: about.Src}
			icmpError(icmpUnreachable, 1, 0, quote(about.Bytes(), 28))(&in)
			return []step{pass(c.b.WAN, in.Bytes())}
		}},
		row{"row 45: about a connection that is over", func(c *corpus) []step {
			f, steps, r := c.openFlow("TCP", "hairpin")
			r.kind, r.code, r.limit = icmpUnreachable, codePortUnreachable, 28
			in, back := c.errorIn(f, f.Client.Addr(), r).dropped("ended"), c.errorBack(f, f.Target.Addr(), r).dropped("ended")
			in.before = c.end
			return append(steps, in, back)
		}},
		row{"row 48: about the right ports of the wrong server", func(c *corpus) []step {
			f, steps, r := c.openFlow("TCP", "from the Internet")
			stranger := f
			stranger.Client = netip.AddrPortFrom(farRouter, f.Client.Port())
			r.kind, r.code, r.limit = icmpUnreachable, codePortUnreachable, 28
			in, _ := toServer(stranger, farRouter, r)
			return append(steps, step{at: f.At, in: in.Bytes()}.dropped("no_connection"))
		}},
		row{"row 49: fragmentation needed with MTU 0, 68 and a sequence number of the past", func(c *corpus) []step {
			f, steps, _ := c.openFlow("TCP", "from the Internet")
			for _, mtu := range []uint32{0, 68} {
				r := report{kind: icmpUnreachable, code: codeFragNeeded, rest: mtu, limit: 28, packet: frames.TCP("A", rig.ServerISN-100000, 5)}
				steps = append(steps, c.errorIn(f, farRouter, r).dropped("no_connection"))
			}
			return steps
		}},
	)
}

// echoRows: an echo is the router's to answer unless a forward wants it.
func echoRows() (rows []row) {
	for _, way := range []string{"hairpin", "from the Internet", "from another LAN"} {
		rows = append(rows, row{"row 51: echo to the router's address " + way, func(c *corpus) []step {
			f := c.flow(way, false)
			request, _ := f.In(echo(icmpEchoRequest, 1, "ping"))
			reply, _ := f.In(echo(icmpEchoReply, 1, "unasked"))
			lan, _ := f.In(echo(icmpEchoRequest, 1, "ping"))
			lan.Dst = netip.AddrPortFrom(rig.LANAddress, 0)
			return []step{pass(f.At, request.Bytes()), pass(f.At, reply.Bytes()), pass(f.At, lan.Bytes())}
		}})
		for _, address := range []string{"basic", "dmz"} {
			rows = append(rows, row{"issue 1: echo through a forward, " + address + " " + way, func(c *corpus) []step {
				f := c.withoutPorts(address, way)
				return []step{
					c.in(f, echo(icmpEchoRequest, 1, "ping")).opening().deferred(uncounted),
					c.back(f, echo(icmpEchoReply, 1, "ping")),
					c.in(f, echo(icmpEchoRequest, 2, "odd ping")), c.back(f, echo(icmpEchoReply, 2, "odd ping")),
					c.in(f, echo(icmpEchoRequest, 2, "odd ping"), frames.Options(12)),
				}
			}})
			rows = append(rows, row{"row 47: less than an ICMP header, " + address + " " + way, func(c *corpus) []step {
				f := c.withoutPorts(address, way)
				return []step{
					c.in(f, raw(protocolICMP, "\x08\x00\xf7\xff")).passes(),
					c.in(f, raw(protocolICMP, "\x08\x00\xf7\xff\x00\x00\x00")).passes(),
					c.in(f, raw(protocolICMP, "\x03\x03\xfc\xfc\x00\x00\x00")).passes(),
				}
			}})
			rows = append(rows, row{"issue 1: errors about an echo, " + address + " " + way, func(c *corpus) []step {
				f := c.withoutPorts(address, way)
				request, reply := echo(icmpEchoRequest, 1, "ping"), echo(icmpEchoReply, 1, "ping")
				unreachable := report{kind: icmpUnreachable, code: 1, limit: 28, packet: request}
				exceeded := report{kind: icmpTimeExceeded, limit: 28, packet: reply}
				return []step{
					c.in(f, request).opening(), c.back(f, reply),
					c.errorBack(f, f.Target.Addr(), unreachable), c.errorBack(f, nearRouter, unreachable),
					c.errorIn(f, f.Client.Addr(), exceeded),
				}
			}})
		}
	}
	rows = append(rows, row{"row 24: echo reply that is zero but for its checksum", func(c *corpus) []step {
		f := c.basic("from the Internet")
		f.Client = netip.AddrPortFrom(f.Client.Addr(), 0)
		f.Source = f.Client
		reply, want := f.Back(echo(icmpEchoReply, 0, string(make([]byte, 40))))
		return []step{c.in(f, echo(icmpEchoRequest, 0, "ping of id 0")).opening(), send(c.b.LAN, reply, want)}
	}})
	return append(rows, row{"issue 1: echo with a wrong checksum stays wrong", func(c *corpus) []step {
		f := c.basic("hairpin")
		flip := frames.Mutate(func(data []byte) { data[l4At+9] ^= 0x40 })
		return []step{c.in(f, echo(icmpEchoRequest, 1, "ping"), flip).opening()}
	}})
}

// otherICMPRows: every other ICMP message is the kernel's.
func otherICMPRows() (rows []row) {
	for _, e := range []struct {
		name       string
		kind, code uint8
	}{
		{"source quench", 4, 0}, {"redirect", icmpRedirect, 1}, {"router advertisement", 9, 0},
		{"router solicitation", 10, 0}, {"timestamp", icmpTimestamp, 0}, {"timestamp reply", icmpTimestampReply, 0},
		{"address mask", 17, 0}, {"type 255", 255, 255},
	} {
		for _, external := range []string{"203.0.113.1:443", "203.0.113.9:0", "203.0.113.10:0"} {
			rows = append(rows, row{"row 50: " + e.name + " to " + external, func(c *corpus) []step {
				f := c.to("from the Internet", true, external, "192.168.1.20:8443")
				sent, _ := f.In(frames.Payload("what a redirect quotes"))
				in, _ := f.In(icmpError(e.kind, e.code, 0xc0a80101, quote(sent.Bytes(), 28)))
				return []step{pass(f.At, in.Bytes())}
			}})
		}
	}
	return rows
}
