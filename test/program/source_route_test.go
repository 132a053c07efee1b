// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"

	"github.com/gopacket/gopacket/layers"

	"hairpin/test/frames"
)

// IPv4 options (RFC 791 3.1).
const (
	optionNop         = 1
	optionRecordRoute = 7
	optionLSRR        = 131
	optionSSRR        = 137
)

// routed adds a route of one address to a packet, behind so many bytes of padding.
func routed(kind, pointer uint8, before int) func(*frames.Frame) {
	return func(f *frames.Frame) {
		for range before {
			f.Options = append(f.Options, layers.IPv4Option{OptionType: optionNop, OptionLength: 1})
		}
		f.Options = append(f.Options,
			layers.IPv4Option{OptionType: kind, OptionLength: 7, OptionData: []byte{pointer, 192, 168, 1, 77}},
			layers.IPv4Option{OptionType: 0, OptionLength: 1})
	}
}

// recorded adds the option of a route that is only recorded.
func recorded(f *frames.Frame) {
	f.Options = append(f.Options, layers.IPv4Option{OptionType: optionRecordRoute, OptionLength: 7, OptionData: []byte{4, 0, 0, 0, 0}})
}

// sourceRouteRows are row 203 (RFC 7126 4.3 and 4.4): who sends a packet does not say which way it goes.
func sourceRouteRows() (rows []row) {
	for name, route := range map[string]func(*frames.Frame){
		"LSRR":                      routed(optionLSRR, 4, 0),
		"SSRR":                      routed(optionSSRR, 4, 0),
		"LSRR that has been gone":   routed(optionLSRR, 8, 0),
		"SSRR behind other options": func(f *frames.Frame) { recorded(f); routed(optionSSRR, 4, 5)(f) },
		"LSRR as the last option":   routed(optionLSRR, 4, 32),
	} {
		for _, way := range []string{"from the Internet", "hairpin", "from another LAN"} {
			for _, udp := range []bool{false, true} {
				rows = append(rows, row{fmt.Sprintf("row 203: %s, %s, udp=%v", name, way, udp), func(c *corpus) []step {
					f := c.flow(way, udp)
					steps := []step{c.in(f, opener, frames.Payload("open"), route).dropped("source_route")}
					steps = append(steps, c.opened(f)...)
					return append(steps,
						c.in(f, middle, frames.Payload("data"), route).dropped("source_route"), c.back(f, answerer, frames.Payload("data"), route).dropped("source_route"),
						c.in(f, middle, frames.Payload("data")), c.back(f, answerer),
					)
				}})
			}
		}
		rows = append(rows, row{"row 203: " + name + " to what is no forward's", func(c *corpus) []step {
			f := c.to("from the Internet", true, "203.0.113.1:444", "192.168.1.20:8443")
			in, _ := f.In(frames.Payload("the kernel's"), route)
			return []step{pass(f.At, in.Bytes())}
		}}, row{"row 203: echo with " + name, func(c *corpus) []step {
			f := c.basic("from the Internet")
			return []step{c.in(f, echo(icmpEchoRequest, 1, "ping"), route).dropped("source_route")}
		}})
	}
	for _, before := range []int{0, 8} {
		rows = append(rows, row{fmt.Sprintf("row 203: record route goes as ever, %d", before), func(c *corpus) []step {
			f := c.flow("from the Internet", true)
			return append(c.opened(f), c.in(f, frames.Payload("data"), routed(optionRecordRoute, 4, before)))
		}})
	}
	return rows
}

// routingRows6 are row 203 of IPv6: what has a routing header is the kernel's (RFC 5095).
func routingRows6() (rows []row6) {
	for kind := range uint8(5) {
		rows = append(rows, row6{fmt.Sprintf("row 203: routing header of type %d", kind), func(c case6) []step {
			f := c.flow("from the Internet", false)
			route := frames.Extension{Kind: headerRouting, Data: make([]byte, 24)}
			route.Data[1], route.Data[2], route.Data[3] = 2, kind, 1
			copy(route.Data[8:], nearRouter6.AsSlice())
			first, _ := f.In(opener6, extended(route))
			in, _ := f.In(middle6, extended(route))
			back, _ := f.Back(answerer6, extended(padding(headerDest, 8), route))
			steps := append([]step{pass(f.At, first.Bytes())}, c.opened(f)...)
			return append(steps, pass(f.At, in.Bytes()), pass(c.b.LAN, back.Bytes()))
		}})
	}
	return rows
}
