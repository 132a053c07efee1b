// SPDX-License-Identifier: Apache-2.0

package program

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"hairpin/test/frames"
	"hairpin/test/rig"
)

// case6 is a corpus of IPv6. Its steps run like the steps of IPv4.
type case6 struct{ *corpus }

type row6 struct {
	name  string
	steps func(c case6) []step
}

func (c case6) flow(way string, udp bool) flow6 { return c.b.flow6(way, udp, c.port()) }

func (c case6) ping(way string) flow6 { return c.b.ping6(way, c.port()) }

func (c case6) in(f flow6, change ...func(*frames.Frame6)) step {
	in, want := f.In(change...)
	return sendBytes(f.At, in.Bytes(), want.Bytes())
}

func (c case6) back(f flow6, change ...func(*frames.Frame6)) step {
	in, want := f.Back(change...)
	return sendBytes(f.Rig.LAN, in.Bytes(), want.Bytes())
}

func data6(text string) func(*frames.Frame6) { return also(frames.Payload(text)) }

var (
	opener6   = also(frames.TCP("S", rig.ClientISN, 0))
	middle6   = also(frames.TCP("PA", rig.ClientISN+1, rig.ServerISN+1))
	answerer6 = also(frames.TCP("PA", rig.ServerISN+1, rig.ClientISN+1))
)

// opened is the handshake of a flow.
func (c case6) opened(f flow6) []step {
	if f.UDP {
		return []step{c.in(f, data6("open")).opening(), c.back(f, data6("answer")), c.back(f, data6("answer"))}
	}
	return []step{
		c.in(f, opener6).opening(), c.back(f, also(frames.TCP("SA", rig.ServerISN, rig.ClientISN+1))),
		c.in(f, also(frames.TCP("A", rig.ClientISN+1, rig.ServerISN+1))), c.back(f, also(frames.TCP("A", rig.ServerISN+1, rig.ClientISN+1))),
	}
}

func allRows6() []row6 {
	return slices.Concat(echoRows6(), errorRows6(), badErrorRows6(), foreignRows6(), malformedRows6(), openRows6(), fragmentRows6(),
		twinRows6(), errorPlaceRows6(), routingRows6())
}

// TestCorpus6 puts every case through TC alone and through XDP, which may leave a packet to TC.
func TestCorpus6(t *testing.T) {
	b := newBench6(t)
	for _, h := range hooks {
		for _, r := range allRows6() {
			t.Run(h.name+"/"+r.name, func(t *testing.T) {
				c := case6{newCase(t, b)}
				for i, s := range r.steps(c) {
					if !c.play(t, h, s) {
						t.Fatalf("that was packet %d of %q: %x", i+1, r.name, s.in)
					}
				}
			})
		}
	}
}

func echoRows6() (rows []row6) {
	for _, way := range ways6Names {
		rows = append(rows, row6{"echo " + way, func(c case6) []step {
			f := c.ping(way)
			return []step{
				c.in(f, echo6(icmp6EchoRequest, 1, "ping")).opening(), c.back(f, echo6(icmp6EchoReply, 1, "ping")),
				c.in(f, echo6(icmp6EchoRequest, 2, "odd")), c.back(f, echo6(icmp6EchoReply, 2, "odd")),
				c.in(f, echo6(icmp6EchoRequest, 3, ""), extended(padding(headerDest, 8))),
			}
		}})
	}
	return append(rows,
		row6{"echo without a forward for it", func(c case6) []step {
			f := c.flow("from the Internet", false)
			in, _ := f.In(echo6(icmp6EchoRequest, 1, "ping"))
			return []step{pass(f.At, in.Bytes())}
		}},
		row6{"unmatched echo reply", func(c case6) []step {
			f := c.ping("from the Internet")
			in, _ := f.In(echo6(icmp6EchoReply, 1, "ping"))
			return []step{pass(f.At, in.Bytes())}
		}},
		row6{"IPv4's echo request in ICMPv6", func(c case6) []step {
			f := c.ping("from the Internet")
			in, _ := f.In(icmp6(icmpEchoRequest, 0, 7<<16|1, []byte("ping")))
			return []step{pass(f.At, in.Bytes())}
		}},
		row6{"ICMP of IPv4 in IPv6", func(c case6) []step {
			f := c.ping("from the Internet")
			in, _ := f.In(also(icmp(func(frames.Frame) []byte { return message(icmpEchoRequest, 0, 7<<16|1, []byte("ping")) })))
			return []step{pass(f.At, in.Bytes())}
		}},
		row6{"ICMPv6 in IPv4", func(c case6) []step {
			f := c.b.Flows(false, c.port())["from the Internet"]
			in, _ := f.In(raw(protocolICMP6, "\x80\x00\x00\x00\x00\x07\x00\x01ping"))
			return []step{pass(f.At, in.Bytes())}
		}})
}

// report6 is an ICMPv6 error; its quote is of a packet of the flow as the reporter saw it.
type report6 struct {
	kind, code uint8
	rest       uint32
	limit      int
	packet     []func(*frames.Frame6)
	cut        bool         // the quoted packet is the first of two fragments
	tail       string       // behind the quote: extensions by RFC 4884
	damage     func([]byte) // of the finished error
	hops       uint8
	extensions []frames.Extension // of the error itself
}

func (r report6) quoted(f frames.Frame6) []byte {
	data := f.Bytes()
	if r.cut {
		data = frames.Fragments6(data, 99, 0, 64)[0]
	}
	return append(quote6(data, r.limit), r.tail...)
}

// toServer6 is an error about an answer of the server, from the client's side.
func (f flow6) toServer6(reporter netip.Addr, r report6) (in, want frames.Frame6) {
	sent, arrived := f.Back(r.packet...)
	sent.TTL = arrived.TTL
	in.Frame = frames.Frame{From: f.MAC, To: f.At.MAC, Src: netip.AddrPortFrom(reporter, 0), Dst: f.External, Mutate: r.damage, TTL: 64}
	if r.hops != 0 {
		in.TTL = r.hops
	}
	in.Extensions = r.extensions
	want = in
	want.From, want.To, want.Dst, want.TTL = f.Rig.LAN.MAC, rig.ServerMAC, f.Target, in.TTL-1
	if f.Source != f.Client {
		want.Src = f.Source
	}
	icmp6(r.kind, r.code, r.rest, r.quoted(arrived))(&in)
	icmp6(r.kind, r.code, r.rest, r.quoted(sent))(&want)
	return in, want
}

// toClient6 is an error about a packet of the client, from the server's side.
func (f flow6) toClient6(reporter netip.Addr, r report6) (in, want frames.Frame6) {
	sent, arrived := f.In(r.packet...)
	sent.TTL = arrived.TTL
	in.Frame = frames.Frame{From: rig.ServerMAC, To: f.Rig.LAN.MAC, Src: netip.AddrPortFrom(reporter, 0), Dst: f.Source, Mutate: r.damage, TTL: 64}
	if r.hops != 0 {
		in.TTL = r.hops
	}
	in.Extensions = r.extensions
	want = in
	want.From, want.To, want.Src, want.Dst, want.TTL = f.At.MAC, f.MAC, f.External, f.Client, in.TTL-1
	icmp6(r.kind, r.code, r.rest, r.quoted(arrived))(&in)
	icmp6(r.kind, r.code, r.rest, r.quoted(sent))(&want)
	return in, want
}

func (c case6) errorIn(f flow6, reporter netip.Addr, r report6) step {
	in, want := f.toServer6(reporter, r)
	return sendBytes(f.At, in.Bytes(), want.Bytes()).translatedError()
}

func (c case6) errorBack(f flow6, reporter netip.Addr, r report6) step {
	in, want := f.toClient6(reporter, r)
	return sendBytes(c.b.LAN, in.Bytes(), want.Bytes()).translatedError()
}

// errorRows6: errors of each type about each protocol, on each leg of each way, quoting much or little.
func errorRows6() (rows []row6) {
	kinds := []report6{
		{kind: icmp6TooBig, rest: 1280}, {kind: icmp6Unreachable, code: code6Port}, {kind: icmp6Unreachable, code: code6Address},
		{kind: icmp6TimeExceeded}, {kind: icmp6Parameter, code: 1, rest: 40},
		{kind: icmp6TimeExceeded, rest: 16 << 24, tail: "extensions by RFC 4884"},
	}
	quotes := map[string]func(*report6){
		"":                           func(*report6) {},
		", quoting 8 bytes":          func(r *report6) { r.limit = frames.IP6Header + 8 },
		", quoting 16 bytes":         func(r *report6) { r.limit = frames.IP6Header + 16 },
		", quoting 18 bytes":         func(r *report6) { r.limit = frames.IP6Header + 18 },
		", quoting an option header": func(r *report6) { r.packet = append(r.packet, extended(padding(headerDest, 8))) },
		", quoting a first fragment": func(r *report6) { r.cut = true },
		", with and quoting the most extensions": func(r *report6) {
			r.extensions = []frames.Extension{padding(headerHop, 32), padding(headerDest, 32)}
			r.packet = append(r.packet, extended(padding(headerHop, 8), padding(headerDest, 56)))
		},
		", quoting an atomic one": func(r *report6) { r.packet = append(r.packet, extended(frames.FragmentHeader6(5, 0, false))) },
	}
	for _, protocol := range []string{"TCP", "UDP", "UDP without checksum", "echo", "half-open TCP", "half-open UDP"} {
		for _, way := range ways6Names {
			for name, quote := range quotes {
				rows = append(rows, row6{fmt.Sprintf("errors, %s %s%s", protocol, way, name), func(c case6) []step {
					f, steps, packet := c.openFlow6(protocol, way)
					for _, r := range kinds {
						r.limit, r.packet = 1232, packet[0]
						quote(&r)
						// RFC 4884 4.5: extensions follow a quote of at least 128 bytes.
						if r.tail != "" && (r.cut || r.limit < 128) {
							continue
						}
						if r.tail != "" {
							r.limit = 128
						}
						back := r
						back.packet = slices.Clone(packet[1])
						quote(&back)
						steps = append(steps, c.errorBack(f, nearRouter6, r), c.errorBack(f, f.Target.Addr(), r))
						if len(packet[1]) > 0 {
							steps = append(steps, c.errorIn(f, f.Client.Addr(), back))
						}
						if way == "from the Internet" && len(packet[1]) > 0 {
							steps = append(steps, c.errorIn(f, farRouter6, back))
						}
					}
					return steps
				}})
			}
		}
	}
	return rows
}

// openFlow6 is an open flow, and a packet of it of either direction: what its client sends, and its server.
func (c case6) openFlow6(protocol, way string) (f flow6, opening []step, packet [2][]func(*frames.Frame6)) {
	long := data6(strings.Repeat("some of the data", 16))
	switch protocol {
	case "TCP":
		f = c.flow(way, false)
		return f, c.opened(f), [2][]func(*frames.Frame6){{middle6, long}, {answerer6, long}}
	case "UDP":
		f = c.flow(way, true)
		return f, c.opened(f), [2][]func(*frames.Frame6){{long}, {long}}
	case "UDP without checksum":
		f = c.flow(way, true)
		return f, c.opened(f), [2][]func(*frames.Frame6){{long, also(noChecksum)}, {long, also(noChecksum)}}
	case "half-open TCP":
		f = c.flow(way, false)
		return f, []step{c.in(f, opener6).opening()}, [2][]func(*frames.Frame6){{opener6, long}, {answerer6, long}}
	case "half-open UDP":
		f = c.flow(way, true)
		return f, []step{c.in(f, long).opening()}, [2][]func(*frames.Frame6){{long}, {long}}
	case "echo":
		f = c.ping(way)
		text := strings.Repeat("ping", 40)
		ask, tell := echo6(icmp6EchoRequest, 1, text), echo6(icmp6EchoReply, 1, text)
		return f, []step{c.in(f, ask).opening(), c.back(f, tell)}, [2][]func(*frames.Frame6){{ask}, {tell}}
	default:
		panic(protocol)
	}
}

func badErrorRows6() (rows []row6) {
	for _, way := range ways6Names {
		r := report6{kind: icmp6Unreachable, code: code6Port, limit: 1232, packet: []func(*frames.Frame6){data6("some of the data")}}
		rows = append(rows,
			row6{"error with a bad checksum, " + way, func(c case6) []step {
				f := c.flow(way, true)
				r := r
				r.damage = func(data []byte) { data[len(data)-1] ^= 1 }
				in, back := c.errorIn(f, f.Client.Addr(), r), c.errorBack(f, f.Target.Addr(), r)
				return append(c.opened(f), in.dropped("bad_checksum"), back.dropped("bad_checksum"))
			}},
			row6{"error with hop limit 1 is not answered, " + way, func(c case6) []step {
				f := c.flow(way, true)
				r := r
				r.hops = 1
				in, back := c.errorIn(f, f.Client.Addr(), r), c.errorBack(f, f.Target.Addr(), r)
				return append(c.opened(f), in.dropped("ttl_expired"), back.dropped("ttl_expired"))
			}},
			row6{"error about a packet that left without a connection, " + way, func(c case6) []step {
				f := c.flow(way, true)
				in := c.errorIn(f, f.Client.Addr(), r)
				return []step{in.dropped("no_connection").deferred(uncounted)}
			}},
			row6{"error about a connection that is over, " + way, func(c case6) []step {
				f := c.flow(way, true)
				steps := c.opened(f)
				over := c.errorBack(f, f.Target.Addr(), r).dropped("ended")
				over.before = c.end
				return append(steps, over)
			}},
		)
	}
	for length := range frames.IP6Header + 8 {
		rows = append(rows, row6{fmt.Sprintf("error quoting %d bytes", length), func(c case6) []step {
			f := c.flow("from the Internet", true)
			r := report6{kind: icmp6Unreachable, code: code6Port, limit: length, packet: []func(*frames.Frame6){data6("data")}}
			in := c.errorIn(f, farRouter6, r)
			return append(c.opened(f), in.dropped("malformed"))
		}})
	}
	return append(rows,
		row6{"error about a later fragment", func(c case6) []step {
			f := c.flow("from the Internet", true)
			_, arrived := f.Back(also(long(200)))
			later := frames.Fragments6(arrived.Bytes(), 9, 0, 64)[1]
			in, _ := f.In(icmp6(icmp6TimeExceeded, 1, 0, quote6(later, 1232)))
			return append(c.opened(f), pass(f.At, in.Bytes()))
		}},
		row6{"error quoting IPv4", func(c case6) []step {
			f := c.flow("from the Internet", true)
			v4, _ := c.b.Flows(true, c.port())["from the Internet"].In(frames.Payload("x"))
			in, _ := f.In(icmp6(icmp6TimeExceeded, 0, 0, append(quote(v4.Bytes(), 1000), make([]byte, 60)...)))
			return []step{step{at: f.At, in: in.Bytes()}.dropped("malformed").deferred(uncounted)}
		}},
		row6{"error about what is no forward's", func(c case6) []step {
			f := c.flow("from the Internet", true)
			f.External = netip.AddrPortFrom(wanAddress6, 9999)
			in, _ := f.toServer6(farRouter6, report6{kind: icmp6Unreachable, code: code6Port, limit: 1232, packet: []func(*frames.Frame6){data6("x")}})
			return []step{pass(f.At, in.Bytes())}
		}})
}

// foreignRows6: packets that IPv6 itself needs, and packets that belong to no forward, pass untouched.
func foreignRows6() (rows []row6) {
	external, all := wanAddress6, netip.MustParseAddr("ff02::1")
	link := netip.MustParseAddr("fe80::fe")
	snooped := netip.MustParseAddr("ff02::1:ff00:1")
	target := external.AsSlice()
	messages := []struct {
		name       string
		dst        netip.Addr
		kind, code uint8
		body       []byte
		extension  bool
	}{
		{"router solicitation", netip.MustParseAddr("ff02::2"), 133, 0, nil, false},
		{"router advertisement", all, 134, 0, make([]byte, 24), false},
		{"router advertisement to one", external, 134, 0, make([]byte, 24), false},
		{"neighbour solicitation", snooped, 135, 0, append(slices.Clone(target), 1, 1, 2, 0, 0, 0, 0, 1), false},
		{"neighbour solicitation to one", external, 135, 0, append(slices.Clone(target), 1, 1, 2, 0, 0, 0, 0, 1), false},
		{"neighbour advertisement", external, 136, 0, append(slices.Clone(target), 2, 1, 2, 0, 0, 0, 0, 1), false},
		{"redirect", external, 137, 0, slices.Concat(target, target), false},
		{"MLD query", all, 130, 0, make([]byte, 20), true},
		{"MLDv1 report", snooped, 131, 0, make([]byte, 16), true},
		{"MLDv2 report", netip.MustParseAddr("ff02::16"), 143, 0, make([]byte, 24), true},
		{"unknown error", external, 100, 0, make([]byte, 60), false},
		{"unknown message", external, 200, 0, make([]byte, 60), false},
	}
	for _, m := range messages {
		for _, to := range []netip.Addr{m.dst, dmzAddress6} {
			rows = append(rows, row6{m.name + " to " + to.String(), func(c case6) []step {
				var steps []step
				for _, at := range []rig.Port{c.b.WAN, c.b.LAN} {
					f := frames.Frame6{Frame: frames.Frame{From: rig.GatewayMAC, To: at.MAC, Src: netip.AddrPortFrom(link, 0), Dst: netip.AddrPortFrom(to, 0), TTL: 255}}
					icmp6(m.kind, m.code, 0, m.body)(&f)
					if m.extension {
						f.Extensions, f.TTL = []frames.Extension{{Kind: headerHop, Data: []byte{0, 0, 5, 2, 0, 0, 1, 0}}}, 1
					}
					steps = append(steps, pass(at, f.Bytes()))
				}
				return steps
			}})
		}
	}
	for name, change := range map[string]func(*frames.Frame6){
		"routing header":              extended(padding(headerRouting, 24)),
		"authentication header":       extended(frames.Extension{Kind: headerAuth, Data: append([]byte{0, 4}, make([]byte, 22)...)}),
		"mobility header":             extended(padding(headerMobility, 8)),
		"72 bytes of options":         extended(padding(headerDest, 72)),
		"64 and 8 bytes of options":   extended(padding(headerHop, 64), padding(headerDest, 8)),
		"unknown extension":           extended(padding(253, 8)),
		"more headers than looked at": extended(padding(headerHop, 8), padding(headerDest, 8), padding(headerDest, 8), padding(headerDest, 8), padding(headerDest, 8)),
		"no next header":              also(raw(headerNone, "nothing")),
		"protocol 41":                 also(raw(protocolIPv6, "tunnel")),
		"OSPF":                        also(raw(89, "routing")),
		"behind a fragment header":    extended(frames.FragmentHeader6(7, 0, true), padding(headerDest, 8)),
	} {
		for _, to := range []netip.Addr{external, dmzAddress6} {
			rows = append(rows, row6{name + " to " + to.String(), func(c case6) []step {
				f := c.flow("from the Internet", false)
				f.External = netip.AddrPortFrom(to, 443)
				in, _ := f.In(opener6, change)
				return []step{pass(f.At, in.Bytes())}
			}})
		}
	}
	for name, tags := range map[string][]byte{
		"one VLAN tag": {0x81, 0, 0, 5}, "a priority tag": {0x81, 0, 0xe0, 0}, "802.1ad and 802.1Q": {0x88, 0xa8, 0, 5, 0x81, 0, 0, 6},
	} {
		for _, way := range []string{"from the Internet", "hairpin"} {
			rows = append(rows, row6{name + ", " + way, func(c case6) []step {
				f := c.flow(way, false)
				in, _ := f.In(opener6)
				return []step{pass(f.At, insert(in.Bytes(), tags...))}
			}})
		}
	}
	mapped := netip.AddrPortFrom(netip.AddrFrom16(netip.MustParseAddr("::ffff:203.0.113.1").As16()), 443)
	return append(rows,
		row6{"v4-mapped destination", func(c case6) []step {
			f := c.flow("from the Internet", false)
			in, _ := f.In(opener6)
			data := in.Bytes()
			mappedAt(data, frames.EthernetLength+24, mapped.Addr())
			return []step{pass(f.At, data)}
		}},
		row6{"v4-mapped source", func(c case6) []step {
			f := c.flow("from the Internet", false)
			in, _ := f.In(opener6)
			data := in.Bytes()
			mappedAt(data, frames.EthernetLength+8, netip.MustParseAddr("::ffff:198.51.100.7"))
			return []step{pass(f.At, data)}
		}},
		row6{"v4-mapped both, of a connection that IPv4 has", func(c case6) []step {
			v4 := c.b.Flows(false, c.port())["from the Internet"]
			in, want := v4.In(frames.TCP("S", rig.ClientISN, 0))
			f := flow6{v4}
			six, _ := f.In(opener6)
			six.Src, six.Dst = netip.AddrPortFrom(internetHost6, v4.Client.Port()), netip.AddrPortFrom(wanAddress6, 443)
			data := six.Bytes()
			mappedAt(data, frames.EthernetLength+8, v4.Client.Addr())
			mappedAt(data, frames.EthernetLength+24, v4.External.Addr())
			return []step{sendBytes(v4.At, in.Bytes(), want.Bytes()).opening(), pass(v4.At, data)}
		}},
		row6{"no forward's port", func(c case6) []step {
			f := c.flow("from the Internet", false)
			f.External = netip.AddrPortFrom(external, 444)
			in, _ := f.In(opener6)
			return []step{pass(f.At, in.Bytes())}
		}},
		row6{"IPv6 in a frame of IPv4", func(c case6) []step {
			f := c.flow("from the Internet", false)
			in, _ := f.In(opener6, also(frames.Mutate(func(data []byte) { data[12], data[13] = 0x08, 0x00 })))
			return []step{pass(f.At, in.Bytes())}
		}},
		row6{"version 4 in a frame of IPv6", func(c case6) []step {
			f := c.flow("from the Internet", false)
			in, _ := f.In(opener6, also(frames.Mutate(func(data []byte) { data[frames.EthernetLength] = 0x45 })))
			return []step{pass(f.At, in.Bytes())}
		}})
}

// mappedAt writes the IPv4-mapped form of an address.
func mappedAt(data []byte, at int, addr netip.Addr) {
	bytes := netip.AddrFrom16(addr.As16()).As16()
	copy(data[at:], bytes[:])
}

func malformedRows6() (rows []row6) {
	for name, damage := range map[string]func([]byte){
		"payload longer than the frame": func(data []byte) {
			frames.SetWord(data, frames.EthernetLength+4, frames.WordAt(data, frames.EthernetLength+4)+1)
		},
		"payload of 65535 bytes":         func(data []byte) { frames.SetWord(data, frames.EthernetLength+4, 65535) },
		"payload without a header":       func(data []byte) { frames.SetWord(data, frames.EthernetLength+4, 3) },
		"TCP header longer than payload": func(data []byte) { data[frames.EthernetLength+frames.IP6Header+12] = 0xf0 },
		"TCP header of 16 bytes":         func(data []byte) { data[frames.EthernetLength+frames.IP6Header+12] = 0x40 },
		"SYN and FIN":                    func(data []byte) { data[frames.EthernetLength+frames.IP6Header+13] = 3 },
		"SYN and RST":                    func(data []byte) { data[frames.EthernetLength+frames.IP6Header+13] = 6 },
		"no flags":                       func(data []byte) { data[frames.EthernetLength+frames.IP6Header+13] = 0 },
		"source port 0":                  func(data []byte) { frames.SetWord(data, frames.EthernetLength+frames.IP6Header, 0) },
	} {
		rows = append(rows, row6{"TCP: " + name, func(c case6) []step {
			f := c.flow("hairpin", false)
			in, _ := f.In(opener6, also(frames.Mutate(damage)))
			return []step{step{at: f.At, in: in.Bytes()}.dropped("malformed")}
		}})
	}
	for name, damage := range map[string]func([]byte){
		"length shorter than its header": func(data []byte) { frames.SetWord(data, frames.EthernetLength+frames.IP6Header+4, 7) },
		"length longer than the packet":  func(data []byte) { frames.SetWord(data, frames.EthernetLength+frames.IP6Header+4, 13) },
	} {
		rows = append(rows, row6{"UDP: " + name, func(c case6) []step {
			f := c.flow("hairpin", true)
			in, _ := f.In(data6("data"), also(frames.Mutate(damage)))
			return []step{step{at: f.At, in: in.Bytes()}.dropped("malformed")}
		}})
	}
	return append(rows,
		row6{"extension header longer than any that is looked at, and than the packet", func(c case6) []step {
			f := c.flow("hairpin", false)
			in, _ := f.In(opener6, extended(padding(headerDest, 8)), also(frames.Mutate(func(data []byte) { data[frames.EthernetLength+frames.IP6Header+1] = 200 })))
			return []step{pass(f.At, in.Bytes())}
		}},
		row6{"extension header that ends with the packet", func(c case6) []step {
			f := c.flow("hairpin", false)
			in, _ := f.In(opener6, extended(padding(headerDest, 8)), also(frames.Mutate(func(data []byte) { data[frames.EthernetLength+frames.IP6Header+1] = 2 })))
			return []step{step{at: f.At, in: in.Bytes()}.dropped("malformed")}
		}})
}

func openRows6() (rows []row6) {
	for _, flags := range []string{"A", "SA", "FA", "R", "RA", "PA"} {
		rows = append(rows, row6{"only a SYN opens, not " + flags, func(c case6) []step {
			f := c.flow("from the Internet", false)
			in, _ := f.In(also(frames.TCP(flags, rig.ClientISN, rig.ServerISN)))
			return []step{step{at: f.At, in: in.Bytes()}.dropped("non_syn")}
		}})
	}
	for name, source := range map[string]string{
		"the LAN's":     "fd00:1::99",
		"another ULA":   "fd99::1",
		"the router's":  "2001:db8:1::1",
		"loopback":      "::1",
		"unspecified":   "::",
		"link-local":    "fe80::77",
		"multicast":     "ff02::77",
		"v4-compatible": "::203.0.113.77",
	} {
		rows = append(rows, row6{"spoofed source from the Internet: " + name, func(c case6) []step {
			f := c.flow("from the Internet", false)
			f.Client = netip.AddrPortFrom(netip.MustParseAddr(source), c.port())
			in, _ := f.In(opener6)
			return []step{step{at: f.At, in: in.Bytes()}.refused("spoofed")}
		}})
	}
	for name, source := range map[string]string{
		"IPv4 through a translator (RFC 6052)": "64:ff9b::c633:6407",
		"local translator (RFC 8215)":          "64:ff9b:1::c633:6407",
		"6to4":                                 "2002:c633:6407::1",
		"Teredo":                               "2001::1234",
		"last of global unicast":               "3fff::1",
	} {
		rows = append(rows, row6{"source: " + name, func(c case6) []step {
			f := c.flow("from the Internet", false)
			f.Client = netip.AddrPortFrom(netip.MustParseAddr(source), c.port())
			f.Source = f.Client
			return c.opened(f)
		}})
	}
	return append(rows, row6{"link-local source in the LAN", func(c case6) []step {
		f := c.flow("hairpin", false)
		f.Client = netip.AddrPortFrom(netip.MustParseAddr("fe80::50"), c.port())
		in, _ := f.In(opener6)
		return []step{step{at: f.At, in: in.Bytes()}.refused("spoofed")}
	}},
		row6{"source of another LAN", func(c case6) []step {
			f := c.flow("hairpin", false)
			f.Client = netip.AddrPortFrom(otherClient6, c.port())
			in, _ := f.In(opener6)
			return []step{step{at: f.At, in: in.Bytes()}.refused("spoofed")}
		}},
		row6{"1:1, UDP and TCP and echo", func(c case6) []step {
			var steps []step
			for _, udp := range []bool{false, true} {
				f := c.flow("from the Internet", udp)
				f.External, f.Target = netip.AddrPortFrom(dmzAddress6, 7777), netip.AddrPortFrom(dmzTarget6, 7777)
				steps = append(steps, c.opened(f)...)
			}
			f := c.ping("from the Internet")
			f.External, f.Target = netip.AddrPortFrom(dmzAddress6, 0), netip.AddrPortFrom(dmzTarget6, 0)
			return append(steps, c.in(f, echo6(icmp6EchoRequest, 1, "x")).opening(), c.back(f, echo6(icmp6EchoReply, 1, "x")))
		}},
		row6{"1:1, GRE", func(c case6) []step {
			f := c.flow("from the Internet", false)
			f.External, f.Target = netip.AddrPortFrom(dmzAddress6, 0), netip.AddrPortFrom(dmzTarget6, 0)
			tunnelled := also(raw(protocolGRE, "\x00\x00\x86\xddinner packet"))
			return []step{c.in(f, tunnelled).opening(), c.back(f, tunnelled)}
		}})
}

// datagram6 cuts a packet of a flow and what must become of it in the same places.
func (c case6) datagram6(at rig.Port, in, want frames.Frame6, lengths ...int) datagram {
	id := uint32(c.id()) | 0xabcd0000
	length := 0
	for _, e := range in.Extensions {
		length += len(e.Data)
	}
	return datagram{at, frames.Fragments6(in.Bytes(), id, length, lengths...), frames.Fragments6(want.Bytes(), id, length, lengths...)}
}

func (c case6) pieces(f flow6, change []func(*frames.Frame6), lengths ...int) datagram {
	in, want := f.In(change...)
	return c.datagram6(f.At, in, want, lengths...)
}

func (c case6) answer(f flow6, change []func(*frames.Frame6), lengths ...int) datagram {
	in, want := f.Back(change...)
	return c.datagram6(f.Rig.LAN, in, want, lengths...)
}

func fragmentRows6() (rows []row6) {
	text := strings.Repeat("fragment", 30)
	flows := map[string]func(c case6, way string) (f flow6, packet, answer []func(*frames.Frame6)){
		"UDP": func(c case6, way string) (flow6, []func(*frames.Frame6), []func(*frames.Frame6)) {
			return c.flow(way, true), []func(*frames.Frame6){data6(text)}, []func(*frames.Frame6){data6(text)}
		},
		"UDP with options": func(c case6, way string) (flow6, []func(*frames.Frame6), []func(*frames.Frame6)) {
			list := []func(*frames.Frame6){data6(text), extended(padding(headerHop, 8), padding(headerDest, 16))}
			return c.flow(way, true), list, list
		},
		"echo": func(c case6, way string) (flow6, []func(*frames.Frame6), []func(*frames.Frame6)) {
			return c.ping(way), []func(*frames.Frame6){echo6(icmp6EchoRequest, 1, text)}, []func(*frames.Frame6){echo6(icmp6EchoReply, 1, text)}
		},
	}
	for name, flow := range flows {
		for _, way := range ways6Names {
			rows = append(rows,
				row6{"fragments in order, " + name + " " + way, func(c case6) []step {
					f, packet, answer := flow(c, way)
					d, e := c.pieces(f, packet, 64, 32), c.answer(f, answer, 64, 32)
					return []step{d.goes(0).opening(), d.goes(1), d.goes(2), e.goes(0), e.goes(1), e.goes(2)}
				}},
				row6{"fragments reversed, " + name + " " + way, func(c case6) []step {
					f, packet, answer := flow(c, way)
					d, e := c.pieces(f, packet, 64, 32), c.answer(f, answer, 64, 32)
					return []step{
						d.waits(2), d.waits(1), d.goes(0).opening().releasing(d.leave[2], d.leave[1]),
						e.waits(2), e.waits(1), e.goes(0).releasing(e.leave[2], e.leave[1]),
					}
				}},
				row6{"fragments, first in the middle, " + name + " " + way, func(c case6) []step {
					f, packet, _ := flow(c, way)
					d := c.pieces(f, packet, 64, 32)
					return []step{d.waits(1), d.goes(0).opening().releasing(d.leave[1]), d.goes(2)}
				}},
			)
		}
	}
	bad := func(name, reason string, at int, change func(*frames.Frame6)) row6 {
		return row6{name, func(c case6) []step {
			f := c.flow("hairpin", true)
			in, _ := f.In(also(raw(protocolUDP, strings.Repeat("x", at))), change)
			return []step{step{at: f.At, in: in.Bytes()}.dropped(reason).deferred(uncounted)}
		}}
	}
	return append(rows,
		bad("fragment: no multiple of 8", "malformed", 61, extended(frames.FragmentHeader6(1, 64, true))),
		bad("fragment: behind the longest datagram", "malformed", 64, extended(frames.FragmentHeader6(2, 65528, false))),
		bad("fragment: empty", "malformed", 0, extended(frames.FragmentHeader6(3, 64, false))),
		row6{"tiny first fragment of TCP", func(c case6) []step {
			f := c.flow("hairpin", false)
			d := c.pieces(f, []func(*frames.Frame6){opener6, data6("x")}, 16)
			return []step{step{at: f.At, in: d.in[0]}.dropped("fragment_tiny").deferred(uncounted)}
		}},
		row6{"overlap and duplicate", func(c case6) []step {
			f := c.flow("hairpin", true)
			d := c.pieces(f, []func(*frames.Frame6){data6(text)}, 64, 32)
			overlap := slices.Clone(d.in[1])
			frames.SetWord(overlap, frames.EthernetLength+frames.IP6Header+2, 56|1)
			return []step{
				d.goes(0).opening(), step{at: f.At, in: overlap}.dropped("fragment_overlap").deferred(uncounted), d.goes(1),
				step{at: f.At, in: d.in[1]}.dropped("fragment_overlap").deferred(uncounted), d.goes(2),
			}
		}},
		row6{"ids that differ in their upper half are two datagrams", func(c case6) []step {
			f := c.flow("hairpin", true)
			d := c.pieces(f, []func(*frames.Frame6){data6(text)}, 64, 32)
			other := slices.Clone(d.in[1])
			binary.BigEndian.PutUint32(other[frames.EthernetLength+frames.IP6Header+4:], 0x12340000|uint32(frames.WordAt(other, frames.EthernetLength+frames.IP6Header+6)))
			return []step{d.goes(0).opening(), step{at: f.At, in: other}.held().deferred(uncounted), d.goes(1)}
		}},
		row6{"fragments of what is no forward's", func(c case6) []step {
			f := c.flow("hairpin", true)
			f.External = netip.AddrPortFrom(wanAddress6, 9999)
			d := c.pieces(f, []func(*frames.Frame6){data6(text)}, 64, 32)
			return []step{d.passes(0), d.passes(1), d.passes(2)}
		}},
		row6{"fragments between strangers", func(c case6) []step {
			f := c.flow("from another LAN", true)
			f.External = netip.AddrPortFrom(client6Addr, 9999)
			d := c.pieces(f, []func(*frames.Frame6){data6(text)}, 64, 32)
			return []step{d.passes(2), d.passes(1), d.passes(0)}
		}})
}

// told6 is the router's own ICMPv6 error about a packet, with hop limit and traffic class as it came.
func told6(in []byte, from netip.Addr, kind, code uint8, rest uint32) []byte {
	sender := netip.AddrFrom16([16]byte(in[frames.EthernetLength+8:]))
	f := frames.Frame6{Frame: frames.Frame{From: in[0:6], To: in[6:12], Src: netip.AddrPortFrom(from, 0), Dst: netip.AddrPortFrom(sender, 0), TOS: 0xc0, TTL: 64}}
	icmp6(kind, code, rest, quote6(in, quoteLimit6))(&f)
	return f.Bytes()
}

// RFC 4443 2.4(c): as much of the packet as fits into the least MTU.
const quoteLimit6 = 1280 - frames.IP6Header - 8

func (f flow6) routerAt6() netip.Addr {
	switch f.At.Index {
	case f.Rig.LAN.Index:
		return lanAddress6
	case f.Rig.LAN2.Index:
		return otherAddress6
	}
	return wanAddress6
}

// TestTold6: the ICMPv6 errors to a packet's sender are right in every byte.
func TestTold6(t *testing.T) {
	b := newBench6(t)
	tells := func(t *testing.T, at rig.Port, in, want []byte, reason string, xdp bool) {
		t.Helper()
		before := b.tally(t)
		if xdp {
			if got := b.XDP(t, at, in); got.Code != rig.XDPPass || !bytes.Equal(got.Data, in) {
				t.Errorf("xdp answers %d, want it to leave this to tc", got.Code)
			}
		}
		got := b.TC(t, at, in)
		if got.Code != rig.TCRedirect {
			t.Fatalf("tc answers %d to %x", int32(got.Code), in)
		}
		if !bytes.Equal(got.Data, want) {
			t.Fatalf("%s\n got %x\nwant %x", difference(want, got.Data), got.Data, want)
		}
		if name := fmt.Sprintf("tell %s on %d", reason, at.Index); b.tally(t)[name] != before[name]+1 {
			t.Errorf("%q was not counted", name)
		}
	}
	for _, way := range ways6Names {
		for _, udp := range []bool{false, true} {
			for _, size := range []int{0, 1, 100, 455, 456, 457, 1100, 1200, 1400} {
				t.Run(fmt.Sprintf("%s, udp=%v, %d bytes", way, udp, size), func(t *testing.T) {
					c := case6{newCase(t, b)}
					f := c.flow(way, udp)
					f.open6(t)
					probe := []func(*frames.Frame6){also(long(size)), also(frames.TTL(1))}
					in, _ := f.In(append(probe, middle6)...)
					tells(t, f.At, in.Bytes(), told6(in.Bytes(), f.routerAt6(), icmp6TimeExceeded, 0, 0), "ttl_expired", true)
					in, _ = f.Back(append(probe, answerer6, extended(padding(headerDest, 8)))...)
					tells(t, b.LAN, in.Bytes(), told6(in.Bytes(), lanAddress6, icmp6TimeExceeded, 0, 0), "ttl_expired", true)
				})
			}
		}
		t.Run("hop limit 1 of an opening and of an echo, "+way, func(t *testing.T) {
			c := case6{newCase(t, b)}
			f := c.flow(way, false)
			in, _ := f.In(opener6, also(frames.TTL(1)))
			tells(t, f.At, in.Bytes(), told6(in.Bytes(), f.routerAt6(), icmp6TimeExceeded, 0, 0), "ttl_expired", false)
			f = c.ping(way)
			in, _ = f.In(echo6(icmp6EchoRequest, 1, "traceroute -I"), also(frames.TTL(1)))
			tells(t, f.At, in.Bytes(), told6(in.Bytes(), f.routerAt6(), icmp6TimeExceeded, 0, 0), "ttl_expired", true)
		})
		t.Run("too big, "+way, func(t *testing.T) {
			c := case6{newCase(t, b)}
			b.setMTU("lan0", 1280)
			for _, udp := range []bool{false, true} {
				f := c.flow(way, udp)
				f.open6(t)
				in, _ := f.In(middle6, also(long(1400-map[bool]int{false: 60, true: 48}[udp])))
				tells(t, f.At, in.Bytes(), told6(in.Bytes(), f.routerAt6(), icmp6TooBig, 0, 1280), "too_big", false)
				in, want := f.In(middle6, also(long(1280-map[bool]int{false: 60, true: 48}[udp])))
				f.Rig.TC(t, f.At, in.Bytes())
				if got := f.Rig.TC(t, f.At, in.Bytes()); got.Code != rig.TCRedirect || !bytes.Equal(got.Data, want.Bytes()) {
					t.Errorf("udp=%v: 1280 bytes were not sent: %d", udp, got.Code)
				}
			}
			f := c.flow(way, true)
			first := c.pieces(f, []func(*frames.Frame6){also(long(3000))}, 1400)
			tells(t, f.At, first.in[0], told6(first.in[0], f.routerAt6(), icmp6TooBig, 0, 1280), "too_big", false)
		})
		if way == "from the Internet" {
			continue
		}
		t.Run("refused, "+way, func(t *testing.T) {
			c := case6{newCase(t, b)}
			f := c.flow(way, false)
			for port, reason := range map[uint16]string{81: "reflect_off", 82: "not_allowed"} {
				f.External = netip.AddrPortFrom(wanAddress6, port)
				in, _ := f.In(opener6)
				tells(t, f.At, in.Bytes(), told6(in.Bytes(), f.routerAt6(), icmp6Unreachable, code6Prohibited, 0), reason, true)
			}
		})
	}
}
