// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"
	"net/netip"

	"hairpin/test/frames"
)

// forgedStandInRows are row 204: a packet from the Internet cannot use a client's stand-in as its source, and cannot take its ports.
func forgedStandInRows() (rows []row) {
	for way, standIn := range standInOf {
		for _, udp := range []bool{false, true} {
			for external, target := range map[string]string{
				"203.0.113.9:443": "192.168.1.20:8443", "203.0.113.9:86": "192.168.1.20:86", "203.0.113.10:9000": "192.168.1.22:9000",
			} {
				rows = append(rows, row{fmt.Sprintf("row 204: stand-in of %s on the WAN to %s, udp=%v", way, external, udp), func(c *corpus) []step {
					f := c.reflected(way, udp, external, target)
					if external == "203.0.113.9:86" { // reflects as auto
						f = c.to(way, udp, external, target)
					}
					forged := c.to("from the Internet", udp, external, target)
					forged.Client = netip.AddrPortFrom(standIn, f.Client.Port())
					in, _ := forged.In(opener, frames.Payload("let me in"))
					refused := step{at: forged.At, in: in.Bytes()}.refused("spoofed")
					return append(append([]step{refused, refused}, c.opened(f)...), refused, c.in(f, middle, frames.Payload("mine")))
				}})
			}
		}
		rows = append(rows, row{"row 204: ping of a stand-in on the WAN, " + way, func(c *corpus) []step {
			f := c.reflected("from the Internet", false, "203.0.113.9:0", "192.168.1.21:0")
			f.Client = netip.AddrPortFrom(standIn, f.Client.Port())
			in, _ := f.In(echo(icmpEchoRequest, 1, "hello"))
			return []step{step{at: f.At, in: in.Bytes()}.refused("spoofed")}
		}})
	}
	return rows
}

func forgedStandInRows6() (rows []row6) {
	for way, standIn := range standInOf6 {
		for _, udp := range []bool{false, true} {
			rows = append(rows, row6{fmt.Sprintf("row 204: stand-in of %s on the WAN, udp=%v", way, udp), func(c case6) []step {
				f, forged := c.standIn(way, udp), c.standIn("from the Internet", udp)
				forged.Client = netip.AddrPortFrom(standIn, f.Client.Port())
				in, _ := forged.In(opener6, data6("let me in"))
				refused := step{at: forged.At, in: in.Bytes()}.refused("spoofed")
				return append(append([]step{refused, refused}, c.opened(f)...), refused, c.in(f, middle6, data6("mine")))
			}})
		}
	}
	return rows
}
