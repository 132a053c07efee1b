// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

func hopRows() []row {
	return slices.Concat(lastHopRows(), bigRows(), refusedRows(), notForUsRows())
}

// routerAt is the router's address on the interface of a flow's client.
func routerAt(f rig.Flow) netip.Addr {
	switch f.At.Index {
	case f.Rig.LAN.Index:
		return rig.LANAddress
	case f.Rig.LAN2.Index:
		return rig.OtherAddress
	}
	return rig.WANAddress
}

// lastHopRows: TTL 1 ends at the router, which says so, quoting the packet as its sender sent it.
func lastHopRows() (rows []row) {
	expired := func(s step, router netip.Addr) step {
		return s.dropped("ttl_expired").told(router, icmpTimeExceeded, 0, 0)
	}
	for _, way := range []string{"hairpin", "from the Internet", "from another LAN", "server to itself"} {
		for _, udp := range []bool{false, true} {
			rows = append(rows,
				row{fmt.Sprintf("row 95: TTL 1, %s, udp=%v", way, udp), func(c *corpus) []step {
					f := c.flow(way, udp)
					return append(c.opened(f),
						expired(c.in(f, middle, frames.Payload("probe"), frames.TTL(1)), routerAt(f)).deferred("ttl_expired"),
						expired(c.back(f, answerer, frames.Payload("probe"), frames.TTL(1)), rig.LANAddress).deferred("ttl_expired"),
						expired(c.in(f, middle, long(1000), frames.TTL(1), frames.Options(12)), routerAt(f)),
						expired(c.in(f, middle, frames.Payload("odd"), frames.TTL(1), trailer(9)), routerAt(f)),
					)
				}},
				row{fmt.Sprintf("row 95: TTL 1 of an opening, %s, udp=%v", way, udp), func(c *corpus) []step {
					f := c.flow(way, udp)
					return []step{
						expired(c.in(f, opener, frames.Payload("probe"), frames.TTL(1)), routerAt(f)).mayOpen(),
						expired(c.in(f, opener, frames.Payload("probe"), frames.TTL(1)), routerAt(f)).mayOpen(),
					}
				}},
			)
		}
		rows = append(rows,
			row{"row 95: echo with TTL 1, " + way, func(c *corpus) []step {
				f := c.basic(way)
				return []step{expired(c.in(f, echo(icmpEchoRequest, 1, "traceroute -I"), frames.TTL(1)), routerAt(f)).mayOpen()}
			}},
			row{"row 95: ICMP error with TTL 1 is not answered, " + way, func(c *corpus) []step {
				f, steps, r := c.openFlow("UDP", way)
				r.kind, r.code, r.limit, r.header = icmpUnreachable, codePortUnreachable, 28, frames.TTL(1)
				in, back := c.errorIn(f, f.Client.Addr(), r), c.errorBack(f, f.Target.Addr(), r)
				return append(steps, in.dropped("ttl_expired"), back.dropped("ttl_expired"))
			}},
			row{"row 95: later fragment with TTL 1 is not answered, " + way, func(c *corpus) []step {
				f := c.flow(way, true)
				d := c.pieces(f, long(120), 48)
				late := slices.Clone(d.in[1])
				late[ipAt+8] = 1
				sealIP(late)
				return []step{d.goes(0).opening(), step{at: f.At, in: late}.dropped("ttl_expired")}
			}},
		)
	}
	return append(rows, row{"row 95: TTL 1 to another's port", func(c *corpus) []step {
		f := c.flow("hairpin", true)
		f.External = mustAddrPort("203.0.113.1:444")
		in, _ := f.In(frames.TTL(1))
		return []step{pass(f.At, in.Bytes())}
	}})
}

// limited sets an interface's MTU before the packet.
func (c *corpus) limited(s step, dev string, mtu int) step {
	s.before = func() { c.b.setMTU(dev, mtu) }
	return s
}

func (b *bench) setMTU(dev string, mtu int) {
	lab.Must(b.Router.Do(func() error {
		link, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		return netlink.LinkSetMTU(link, mtu)
	}))
	b.narrow = b.narrow || mtu != defaultMTU
}

const defaultMTU = 1500

func dontCut(f *frames.Frame) { f.DF = true }

// bigRows: a packet that is longer than the next hop's MTU is cut. If it must not be cut, its sender gets an ICMP error.
func bigRows() (rows []row) {
	const mtu = 1000
	for _, way := range []string{"hairpin", "from the Internet", "from another LAN"} {
		for _, udp := range []bool{false, true} {
			rows = append(rows, bigRowsOf(way, udp, mtu)...)
		}
	}
	return append(rows,
		row{"row 100: echo with DF", func(c *corpus) []step {
			f := c.basic("from the Internet")
			first := c.limited(c.in(f, echo(icmpEchoRequest, 1, "small")).opening(), "lan0", mtu)
			big := echo(icmpEchoRequest, 2, string(make([]byte, 1300)))
			return []step{
				first, c.in(f, big, dontCut).dropped("too_big").told(routerAt(f), icmpUnreachable, codeFragNeeded, mtu),
				c.in(f, big).cut(mtu).deferred(uncounted),
			}
		}},
		row{"row 100: a fragment that has to be cut again", func(c *corpus) []step {
			f := c.flow("from the Internet", true)
			d := c.pieces(f, long(1400), 1208)
			return []step{c.limited(d.goes(0).opening().cut(mtu).deferred(uncounted), "lan0", mtu), d.goes(1)}
		}},
	)
}

func bigRowsOf(way string, udp bool, mtu int) []row {
	of := fmt.Sprintf(", %s, udp=%v", way, udp)
	needed := func(s step, router netip.Addr) step {
		return s.dropped("too_big").told(router, icmpUnreachable, codeFragNeeded, uint32(mtu))
	}
	// narrow is an open flow through a narrow interface on the server's side, or on the client's.
	narrow := func(c *corpus, clientSide bool) (rig.Flow, []step) {
		f := c.flow(way, udp)
		dev := "lan0"
		if clientSide {
			dev = map[string]string{"from the Internet": "wan0", "from another LAN": "lan1", "hairpin": "lan0"}[way]
		}
		steps := c.opened(f)
		steps[0] = c.limited(steps[0], dev, mtu)
		return f, steps
	}
	exact := mtu - 40
	if udp {
		exact = mtu - 28
	}
	return []row{
		{"row 100: too big with DF" + of, func(c *corpus) []step {
			f, steps := narrow(c, false)
			return append(steps,
				c.in(f, middle, long(exact), dontCut),
				needed(c.in(f, middle, long(exact+1), dontCut), routerAt(f)).deferred("too_big"),
				needed(c.in(f, middle, long(1400), dontCut), routerAt(f)).deferred("too_big"),
				needed(c.in(f, middle, long(1200), dontCut, frames.Options(8)), routerAt(f)),
				needed(c.in(f, middle, long(1200), dontCut, trailer(7)), routerAt(f)),
			)
		}},
		{"row 100: too big with DF, answer" + of, func(c *corpus) []step {
			f, steps := narrow(c, true)
			return append(steps, c.back(f, answerer, long(exact), dontCut),
				needed(c.back(f, answerer, long(exact+1), dontCut), rig.LANAddress).deferred("too_big"))
		}},
		{"row 101: too big without DF" + of, func(c *corpus) []step {
			f, steps := narrow(c, false)
			return append(steps,
				c.in(f, middle, long(exact)), c.in(f, middle, long(exact+1), numbered(c.id())).cut(mtu),
				c.in(f, middle, long(1401), numbered(c.id())).cut(mtu),
				c.in(f, middle, long(1400), numbered(c.id()), trailer(7)).cut(mtu),
				c.in(f, middle, long(1200), numbered(c.id()), frames.Options(8)).dropped("too_big"),
			)
		}},
		{"row 101: too big without DF, answer" + of, func(c *corpus) []step {
			f, steps := narrow(c, true)
			return append(steps, c.back(f, answerer, long(1401), numbered(c.id())).cut(mtu))
		}},
	}
}

// refusedRows: openings that are refused. A LAN client gets an ICMP error, an Internet client does not.
func refusedRows() (rows []row) {
	for _, e := range []struct {
		name, reason string
		port         uint16
		target       string
		ways         []string
		code         uint8
		udpToo       bool
	}{
		{"a forward that is not reflected", "reflect_off", 81, "192.168.1.20:81", []string{"hairpin", "from another LAN"}, codeProhibited, false},
		{"not in the from list", "not_allowed", 82, "192.168.1.20:82", []string{"from another LAN", "from afar"}, codeProhibited, false},
		{"no route to the target", "no_route", 83, "192.168.77.7:83", []string{"hairpin", "from the Internet"}, 1, false},
		{"target behind an interface nobody watches", "not_attached", 84, "192.168.88.8:84", []string{"hairpin", "from the Internet"}, codeProhibited, false},
	} {
		for _, way := range e.ways {
			rows = append(rows, row{"issue 5: " + e.name + ", " + way, func(c *corpus) []step {
				f := c.flow("from the Internet", false)
				f.Client = netip.AddrPortFrom(farRouter, f.Client.Port())
				if way != "from afar" {
					f = c.flow(way, false)
				}
				f.External, f.Target = netip.AddrPortFrom(rig.WANAddress, e.port), mustAddrPort(e.target)
				refused := c.in(f, opener, mss(1460)).refused(e.reason)
				if f.At.Index == c.b.WAN.Index {
					return []step{refused, refused}
				}
				refused = refused.told(routerAt(f), icmpUnreachable, e.code, 0).deferred(e.reason)
				return []step{refused, refused, c.in(f, middle).dropped("non_syn")}
			}})
		}
	}
	return rows
}

// notForUsRows: the kernel's, although the port is a forward's.
func notForUsRows() (rows []row) {
	to := func(dst string) func(c *corpus) (rig.Port, []byte) {
		return func(c *corpus) (rig.Port, []byte) {
			f := c.flow("hairpin", false)
			f.External = mustAddrPort(dst)
			in, _ := f.In(opener)
			return f.At, in.Bytes()
		}
	}
	for name, packet := range map[string]func(c *corpus) (rig.Port, []byte){
		"row 103: directed broadcast":               to("203.0.113.255:443"),
		"row 103: directed broadcast of the LAN":    to("192.168.1.255:443"),
		"row 103: multicast":                        to("224.0.0.251:443"),
		"row 103: broadcast":                        to("255.255.255.255:443"),
		"not ours: a host on the Internet":          to("198.51.100.9:443"),
		"not ours: another port":                    to("203.0.113.1:444"),
		"not ours: another protocol's port":         to("203.0.113.1:6000"),
		"not ours: the router's LAN address":        to("192.168.1.1:443"),
		"not ours: the server itself":               to("192.168.1.20:8443"),
		"not ours: 1:1 address, protocol not named": to("203.0.113.9:444"),
		"not ours: malformed, another's port": func(c *corpus) (rig.Port, []byte) {
			f := c.flow("hairpin", false)
			f.External = mustAddrPort("203.0.113.1:444")
			in, _ := f.In(opener, set(l4At+12, 0x10))
			return f.At, in.Bytes()
		},
		"not ours: frame for another station": func(c *corpus) (rig.Port, []byte) {
			f := c.flow("hairpin", false)
			in, _ := f.In(opener)
			in.To = rig.GatewayMAC
			return f.At, in.Bytes()
		},
		"not ours: malformed frame for another station": func(c *corpus) (rig.Port, []byte) {
			f := c.flow("hairpin", false)
			in, _ := f.In(opener, set(l4At+12, 0x10))
			in.To = rig.GatewayMAC
			return f.At, in.Bytes()
		},
		"not ours: frame to everybody": func(c *corpus) (rig.Port, []byte) {
			f := c.flow("hairpin", false)
			in, _ := f.In(opener)
			in.To = []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
			return f.At, in.Bytes()
		},
	} {
		rows = append(rows, row{name, func(c *corpus) []step {
			at, data := packet(c)
			return []step{pass(at, data)}
		}})
	}
	return rows
}
