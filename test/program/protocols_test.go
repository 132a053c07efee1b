// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"
	"slices"
	"strings"

	"hairpin/test/frames"
	"hairpin/test/rig"
)

// media is a new SCTP association through its forward.
func (c *corpus) media(way string) rig.Flow {
	return c.to(way, false, "203.0.113.1:9899", "192.168.1.20:9899")
}

const sctpTag = 0x1badcafe

func protocolRows() []row {
	return slices.Concat(unknownProtocolRows(), sctpRows(), basicRows())
}

// unknownProtocolRows: without a forward for it a protocol is the kernel's.
func unknownProtocolRows() (rows []row) {
	for _, e := range []struct {
		name     string
		protocol uint8
		body     string
	}{
		{"GRE", protocolGRE, "\x00\x00\x08\x00inner packet"}, {"ESP", protocolESP, "spi.seq.ciphertext"},
		{"UDP-Lite", protocolUDPLite, "\x4e\x20\x01\xbb\x00\x08\x12\x34data"},
		{"IPIP", protocolIPIP, "inner packet, not even a valid one"}, {"IPv6 in IPv4", protocolIPv6, "inner packet"},
		{"protocol 255", 255, "anything"}, {"protocol 0", 0, "anything"}, {"OSPF", 89, "hello"},
		{"SCTP to another port", protocolSCTP, "\x27\x10\x00\x50\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x04"},
	} {
		for _, way := range []string{"hairpin", "from the Internet"} {
			rows = append(rows, row{"row 17: " + e.name + " " + way, func(c *corpus) []step {
				f := c.flow(way, false)
				in, _ := f.In(raw(e.protocol, e.body))
				return []step{pass(f.At, in.Bytes())}
			}})
		}
	}
	for _, protocol := range []uint8{0, 2, protocolIPv6, 89, 255} {
		rows = append(rows, row{fmt.Sprintf("row 17: protocol %d to an address that is forwarded whole", protocol), func(c *corpus) []step {
			in, _ := c.dmz("from the Internet").In(raw(protocol, "anything"))
			return []step{pass(c.b.WAN, in.Bytes())}
		}})
	}
	return rows
}

// dmz is a flow of a protocol without ports to the address that is forwarded whole.
func (c *corpus) dmz(way string) rig.Flow {
	return c.to(way, false, "203.0.113.10:0", "192.168.1.22:0")
}

// sctpRows: SCTP by its ports, which stay.
func sctpRows() (rows []row) {
	for _, way := range []string{"hairpin", "from the Internet", "from another LAN"} {
		rows = append(rows,
			row{"issue 7: SCTP association " + way, func(c *corpus) []step {
				f := c.media(way)
				return []step{
					c.in(f, sctpPacket(0, sctpInit, "initiate tag and so on")).opening().deferred(uncounted),
					c.back(f, sctpPacket(sctpTag, 2, "INIT ACK")), c.in(f, sctpPacket(7, 10, "cookie")),
					c.back(f, sctpPacket(sctpTag, 11, "")), c.in(f, sctpPacket(7, sctpData, "odd data!")),
					c.back(f, sctpPacket(sctpTag, sctpData, strings.Repeat("more data", 100))),
				}
			}},
			row{"issue 7: SCTP without INIT " + way, func(c *corpus) []step {
				f := c.media(way)
				return []step{
					c.in(f, sctpPacket(7, sctpData, "data")).dropped("non_syn"),
					c.in(f, sctpPacket(7, sctpInit, "INIT with a tag")).dropped("non_syn"),
					c.in(f, sctpPacket(0, sctpData, "tag of an INIT")).dropped("non_syn"),
				}
			}},
			row{"issue 7: SCTP cut short " + way, func(c *corpus) []step {
				f := c.media(way)
				short := func(n int) func(*frames.Frame) {
					return raw(protocolSCTP, "\x4e\x20\x26\xab\x00\x00\x00\x00\x12\x34\x56\x78\x01\x00\x00\x14"[:n])
				}
				return []step{
					c.in(f, short(4)).dropped("malformed"), c.in(f, short(8)).dropped("malformed"),
					c.in(f, short(11)).dropped("malformed"), c.in(f, short(12)).dropped("non_syn"),
				}
			}},
		)
	}
	return append(rows,
		row{"issue 7: SCTP source port taken", func(c *corpus) []step {
			first := c.media("hairpin")
			second := c.b.Flows(false, first.Client.Port())["server to itself"]
			second.External, second.Target = first.External, first.Target
			init := sctpPacket(0, sctpInit, "initiate tag and so on")
			return []step{
				c.in(first, init).opening(),
				c.in(second, init).refused("port_fixed").told(rig.LANAddress, icmpUnreachable, codeProhibited, 0),
			}
		}},
		row{"issue 5: SCTP that is not reflected", func(c *corpus) []step {
			f := c.to("hairpin", false, "203.0.113.1:9898", "192.168.1.20:9898")
			return []step{c.in(f, sctpPacket(0, sctpInit, "initiate tag and so on")).refused("reflect_off").
				told(rig.LANAddress, icmpUnreachable, codeProhibited, 0)}
		}},
	)
}

// basicRows: protocols without ports, by address alone.
func basicRows() (rows []row) {
	kinds := []struct {
		name         string
		packet, back func(*frames.Frame)
	}{
		{"GRE", raw(protocolGRE, "\x00\x00\x08\x00inner packet"), raw(protocolGRE, "\x00\x00\x08\x00answer")},
		{"ESP", raw(protocolESP, "spi.seq.ciphertext"), raw(protocolESP, "ips.seq.ciphertexts")},
		{"IPIP", raw(protocolIPIP, "inner packet, not even a valid one"), raw(protocolIPIP, "")},
		{"UDP-Lite", udpLitePacket(8, "lossy data"), udpLitePacket(0, "covered data")},
	}
	for _, kind := range kinds {
		for _, address := range []string{"basic", "dmz"} {
			for _, way := range []string{"from the Internet", "from another LAN"} {
				rows = append(rows, row{"issue 7: " + kind.name + " to " + address + " " + way, func(c *corpus) []step {
					f := c.withoutPorts(address, way)
					return []step{
						c.in(f, kind.packet).opening().deferred(uncounted), c.back(f, kind.back), c.in(f, kind.packet),
					}
				}})
			}
		}
		rows = append(rows, row{"issue 7: " + kind.name + ", two hairpin clients", func(c *corpus) []step {
			first, second := c.withoutPorts("dmz", "hairpin"), c.withoutPorts("dmz", "server to itself")
			return []step{
				c.in(first, kind.packet).opening(), c.back(first, kind.back),
				c.in(second, kind.packet).refused("port_fixed").told(rig.LANAddress, icmpUnreachable, codeProhibited, 0),
				c.in(first, kind.packet),
			}
		}})
	}
	rows = append(rows, row{"row 8, 9: GRE with a total length that does not fit", func(c *corpus) []step {
		f := c.basic("hairpin")
		packet := raw(protocolGRE, "\x00\x00\x08\x00inner packet, longer than the padding of a frame")
		longer, shorter := set(ipAt+2, 0x05, 0xdc), set(ipAt+2, 0, 19)
		return []step{
			c.in(f, packet, longer).dropped("malformed"), c.in(f, packet).opening(), c.back(f, packet),
			c.in(f, packet, longer).dropped("malformed"), c.back(f, packet, longer).dropped("malformed"),
			c.in(f, packet, shorter).dropped("malformed"), c.back(f, packet, shorter).dropped("malformed"),
		}
	}})
	return append(rows, row{"issue 7: TCP and UDP to an address that is forwarded whole", func(c *corpus) []step {
		f := c.to("hairpin", false, "203.0.113.10:22", "192.168.1.22:22")
		g := c.to("hairpin", true, "203.0.113.10:53", "192.168.1.22:53")
		return append(c.opened(f), c.opened(g)...)
	}})
}

// withoutPorts is a flow of a protocol without ports to one of the 1:1 forwards.
func (c *corpus) withoutPorts(address, way string) rig.Flow {
	if address == "dmz" {
		return c.dmz(way)
	}
	return c.basic(way)
}
