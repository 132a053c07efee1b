// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"
	"slices"

	"github.com/gopacket/gopacket/layers"

	"hairpin/test/frames"
	"hairpin/test/rig"
)

const (
	ipAt = frames.EthernetLength
	l4At = frames.EthernetLength + 20 // without IP options
)

// set writes bytes into the finished frame. In the IP header its checksum is made good again: what
// is wrong with the packet then is that and nothing else.
func set(offset int, value ...byte) func(*frames.Frame) {
	return frames.Mutate(func(data []byte) {
		copy(data[offset:], value)
		if offset >= ipAt && offset < l4At && data[ipAt]&15 >= 5 && len(data) >= frames.L4Offset(data) {
			sealIP(data)
		}
	})
}

// insert puts bytes in front of the ethertype.
func insert(data []byte, value ...byte) []byte { return slices.Insert(data, 12, value...) }

func malformedRows() []row {
	return slices.Concat(notIPRows(), brokenIPRows(), brokenTransportRows(), optionRows())
}

// notIPRows are frames without IPv4, or with a header no stack would accept: none of hairpin's.
func notIPRows() (rows []row) {
	for _, e := range []struct {
		name string
		kind uint16
	}{{"ARP", 0x0806}, {"IPv6", 0x86dd}, {"LLDP", 0x88cc}, {"PPPoE", 0x8864}, {"MPLS", 0x8847}, {"an 802.3 length", 0x40}} {
		rows = append(rows, row{"row 2: ethertype of " + e.name, func(c *corpus) []step {
			data := c.syn("hairpin")
			frames.SetWord(data, 12, e.kind)
			return []step{pass(c.b.LAN, data)}
		}})
	}
	for _, e := range []struct {
		name string
		tags []byte
	}{
		{"row 3: one VLAN tag", []byte{0x81, 0, 0, 5}},
		{"row 3: a priority tag", []byte{0x81, 0, 0xe0, 0}},
		{"row 4: 802.1ad and 802.1Q", []byte{0x88, 0xa8, 0, 5, 0x81, 0, 0, 6}},
		{"row 4: three tags", []byte{0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 0x81, 0, 0, 7}},
	} {
		rows = append(rows, row{e.name, func(c *corpus) []step {
			return []step{pass(c.b.LAN, insert(c.syn("hairpin"), e.tags...))}
		}})
	}
	for _, version := range []byte{0, 5, 6, 15} {
		rows = append(rows, row{fmt.Sprintf("row 5: IP version %d", version), func(c *corpus) []step {
			return []step{pass(c.b.LAN, c.syn("hairpin", set(ipAt, version<<4|5)))}
		}})
	}
	for ihl := range byte(5) {
		rows = append(rows, row{fmt.Sprintf("row 6: IP header of %d words", ihl), func(c *corpus) []step {
			return []step{pass(c.b.LAN, c.syn("hairpin", set(ipAt, 0x40|ihl)))}
		}})
	}
	return rows
}

// syn is a TCP opening that would be translated were it not changed.
func (c *corpus) syn(way string, changes ...func(*frames.Frame)) []byte {
	in, _ := c.flow(way, false).In(append(frames.With(frames.TCP("S", rig.ClientISN, 0)), changes...)...)
	return in.Bytes()
}

// brokenIPRows are IP headers to an external address whose lengths do not fit.
func brokenIPRows() (rows []row) {
	for _, e := range []struct {
		name   string
		length uint16
	}{
		{"row 8: total length 0", 0},
		{"row 8: total length ends in the IP header", 19},
		{"row 8: total length ends in the ports", 23},
		{"row 8: total length ends in the TCP header", 27},
		{"row 8: total length ends one byte before the TCP header does", 39},
		{"row 9: total length far beyond the frame", 1500},
	} {
		for _, way := range []string{"hairpin", "from the Internet"} {
			rows = append(rows, row{e.name + ", " + way, func(c *corpus) []step {
				f := c.flow(way, false)
				length := set(ipAt+2, byte(e.length>>8), byte(e.length))
				opening := c.in(f, frames.TCP("S", rig.ClientISN, 0), length).dropped("malformed")
				data := c.in(f, frames.TCP("A", rig.ClientISN+1, rig.ServerISN+1), length).dropped("malformed")
				return append(append([]step{opening}, c.opened(f)...), data)
			}})
		}
	}
	rows = append(rows, row{"row 9: total length one more than there is", func(c *corpus) []step {
		longer := frames.Mutate(func(data []byte) {
			frames.SetWord(data, ipAt+2, uint16(len(data)-frames.EthernetLength+1))
			sealIP(data)
		})
		return []step{c.in(c.flow("hairpin", true), long(60), longer).dropped("malformed")}
	}})
	rows = append(rows, row{"row 40: reserved flag", func(c *corpus) []step {
		f := c.flow("hairpin", true)
		return []step{c.in(f, frames.Payload("evil"), set(ipAt+6, 0x80)).dropped("malformed")}
	}})
	return rows
}

// brokenTransportRows are packets of a forward's port whose transport header is invalid: dropped when
// they would open a connection, and when they are of one.
func brokenTransportRows() (rows []row) {
	udp, tcp := true, false
	for _, e := range []struct {
		name   string
		udp    bool
		change func(*frames.Frame)
	}{
		{"row 13: data offset 0", tcp, set(l4At+12, 0x00)},
		{"row 13: data offset 4", tcp, set(l4At+12, 0x40)},
		{"row 13: data offset past the end", tcp, set(l4At+12, 0xf0)},
		{"row 14: SYN FIN", tcp, set(l4At+13, 0x03)},
		{"row 14: SYN RST", tcp, set(l4At+13, 0x06)},
		{"row 14: SYN FIN ACK", tcp, set(l4At+13, 0x13)},
		{"row 14: FIN PSH URG", tcp, set(l4At+13, 0x29)},
		{"row 14: FIN alone", tcp, set(l4At+13, 0x01)},
		{"row 14: no flags", tcp, set(l4At+13, 0x00)},
		{"row 15: UDP length 0", udp, set(l4At+4, 0, 0)},
		{"row 15: UDP length 7", udp, set(l4At+4, 0, 7)},
		{"row 15: UDP length one past the end", udp, set(l4At+4, 0, 17)},
		{"row 15: UDP length 65535", udp, set(l4At+4, 0xff, 0xff)},
	} {
		for _, way := range []string{"hairpin", "from the Internet"} {
			rows = append(rows, row{e.name + ", " + way, func(c *corpus) []step {
				f := c.flow(way, e.udp)
				opening := c.in(f, opener, frames.Payload("12345678"), e.change).dropped("malformed")
				data := c.in(f, middle, frames.Payload("12345678"), e.change).dropped("malformed")
				answer := c.back(f, answerer, frames.Payload("12345678"), e.change).dropped("malformed")
				return append(append([]step{opening}, c.opened(f)...), data, answer)
			}})
		}
	}
	for _, e := range []struct {
		name string
		udp  bool
		at   int
	}{
		{"row 16: TCP source port 0", tcp, l4At}, {"row 16: TCP destination port 0", tcp, l4At + 2},
		{"row 16: UDP source port 0", udp, l4At}, {"row 16: UDP destination port 0", udp, l4At + 2},
	} {
		for _, way := range []string{"hairpin", "from the Internet"} {
			rows = append(rows, row{e.name + ", " + way, func(c *corpus) []step {
				return []step{c.in(c.flow(way, e.udp), opener, set(e.at, 0, 0)).dropped("malformed")}
			}})
		}
	}
	return append(rows, row{"row 15: UDP length shorter than the IP payload", func(c *corpus) []step {
		f := c.flow("hairpin", true)
		shorter := shortUDP(8 + 5)
		return []step{c.in(f, frames.Payload("five and what follows"), shorter).opening()}
	}})
}

// The flags of a packet that opens a connection, of a later packet, and of an answer; UDP has no flags.
func opener(f *frames.Frame) { f.Flags, f.Seq = "S", rig.ClientISN }

func middle(f *frames.Frame) { f.Flags, f.Seq, f.Ack = "PA", rig.ClientISN+1, rig.ServerISN+1 }

func answerer(f *frames.Frame) { f.Flags, f.Seq, f.Ack = "PA", rig.ServerISN+1, rig.ClientISN+1 }

// shortUDP makes the datagram end before the IP packet does, with the right checksum.
func shortUDP(length uint16) func(*frames.Frame) {
	return frames.Mutate(func(data []byte) {
		l4 := frames.L4Offset(data)
		frames.SetWord(data, l4+4, length)
		frames.SetWord(data, l4+6, 0)
		pseudo := frames.Sum(data[ipAt+12:ipAt+20]) + protocolUDP + uint32(length)
		frames.SetWord(data, l4+6, ^frames.Fold(pseudo+frames.Sum(data[l4:l4+int(length)])))
	})
}

// optionRows: the ports are behind the IP options, however long these are.
func optionRows() (rows []row) {
	kinds := []struct {
		name   string
		change func(*frames.Frame)
	}{
		{"record route", ipOption(7, 7, 4, 0, 0, 0, 0)},
		{"timestamp", ipOption(68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0)},
		{"router alert", ipOption(148, 4, 0, 0)},
	}
	for words := 6; words <= 15; words++ {
		kinds = append(kinds, struct {
			name   string
			change func(*frames.Frame)
		}{fmt.Sprintf("header of %d words", words), frames.Options((words - 5) * 4)})
	}
	for _, kind := range kinds {
		for _, udp := range []bool{false, true} {
			rows = append(rows, row{fmt.Sprintf("row 7: %s, udp=%v", kind.name, udp), func(c *corpus) []step {
				f := c.flow("hairpin", udp)
				return []step{
					c.in(f, opener, frames.Payload("options"), kind.change).opening(),
					c.back(f, frames.TCP("SA", rig.ServerISN, rig.ClientISN+1), kind.change),
				}
			}})
		}
	}
	return rows
}

// ipOption is an IP option with its type, its length and what follows.
func ipOption(kind, length uint8, data ...byte) func(*frames.Frame) {
	return func(f *frames.Frame) {
		f.Options = append(f.Options, layers.IPv4Option{OptionType: kind, OptionLength: length, OptionData: data})
	}
}

// checksumRows: what each checksum becomes.
func checksumRows() (rows []row) {
	for _, udp := range []bool{false, true} {
		for _, way := range []string{"hairpin", "from the Internet", "from another LAN"} {
			rows = append(rows, checksumRowsOf(udp, way)...)
		}
	}
	return append(rows, identicalRows()...)
}

func checksumRowsOf(udp bool, way string) []row {
	of := fmt.Sprintf(", %s, udp=%v", way, udp)
	flip := func(at int) func(*frames.Frame) { return frames.Mutate(func(data []byte) { data[at] ^= 0x40 }) }
	both := func(name string, changes ...func(*frames.Frame)) row {
		return row{name + of, func(c *corpus) []step {
			f := c.flow(way, udp)
			in := c.in(f, append(frames.With(middle), changes...)...)
			back := c.back(f, append(frames.With(answerer), changes...)...)
			return append(c.opened(f), in, back)
		}}
	}
	rows := []row{
		both("row 10: Ethernet padding", frames.Payload("pad"), trailer(18)),
		both("row 10: trailer of 10 bytes", frames.Payload("odd"), trailer(10)),
		both("row 11: wrong IP checksum", frames.Payload("some payload"), flip(frames.IPChecksumAt)),
		both("row 12: damaged payload", frames.Payload("some payload to damage"), flip(l4At+20+2)),
		both("row 31: odd length", frames.Payload("hairpin")),
		both("row 31: one byte", frames.Payload("x")),
		both("row 96: TTL 2", frames.Payload("ttl"), frames.TTL(2)),
		both("row 96: TTL 255", frames.Payload("ttl"), frames.TTL(255)),
	}
	if udp {
		rows = append(rows, both("row 21: UDP checksum 0", frames.Payload("none"), noChecksum))
	}
	return rows
}

// identicalRows: a 1:1 forward from another LAN changes the destination alone, and the port stays.
func identicalRows() (rows []row) {
	for _, udp := range []bool{false, true} {
		rows = append(rows, row{fmt.Sprintf("row 29: ports that stay as they are, udp=%v", udp), func(c *corpus) []step {
			f := c.to("from the Internet", udp, "203.0.113.10:7777", "192.168.1.22:7777")
			return append(c.opened(f), c.in(f, middle, frames.Payload("same")), c.back(f, answerer, frames.Payload("same")))
		}})
	}
	return rows
}
