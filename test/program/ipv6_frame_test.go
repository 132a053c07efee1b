// SPDX-License-Identifier: Apache-2.0

package program

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"hairpin/maps/config"
	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

// IPv6 next headers and ICMPv6 types (RFC 8200, 4443, 4861, 3810).
const (
	headerHop      = 0
	headerRouting  = 43
	headerAuth     = 51
	protocolICMP6  = 58
	headerNone     = 59
	headerDest     = 60
	headerMobility = 135

	icmp6Unreachable  = 1
	icmp6TooBig       = 2
	icmp6TimeExceeded = 3
	icmp6Parameter    = 4
	icmp6EchoRequest  = 128
	icmp6EchoReply    = 129
	code6Prohibited   = 1
	code6Address      = 3
	code6Port         = 4
)

// padding is a header of options, all of them padding (RFC 8200 4.2).
func padding(kind uint8, length int) frames.Extension {
	data := make([]byte, length)
	data[1], data[2], data[3] = uint8(length/8-1), 1, uint8(length-4)
	return frames.Extension{Kind: kind, Data: data}
}

func extended(list ...frames.Extension) func(*frames.Frame6) {
	return func(f *frames.Frame6) { f.Extensions = append(f.Extensions, list...) }
}

// also makes a change of a frame one of a frame6.
func also(change func(*frames.Frame)) func(*frames.Frame6) {
	return func(f *frames.Frame6) { change(&f.Frame) }
}

// message6 is an ICMPv6 message between two addresses, with its checksum.
func message6(src, dst netip.Addr, kind, code uint8, rest uint32, body []byte) []byte {
	data := binary.BigEndian.AppendUint32([]byte{kind, code, 0, 0}, rest)
	data = append(data, body...)
	pseudo := frames.Sum(src.AsSlice()) + frames.Sum(dst.AsSlice()) + uint32(len(data)) + protocolICMP6
	frames.SetWord(data, 2, ^frames.Fold(pseudo+frames.Sum(data)))
	return data
}

func icmp6(kind, code uint8, rest uint32, body []byte) func(*frames.Frame6) {
	return func(f *frames.Frame6) {
		f.Protocol = protocolICMP6
		f.Body = func(f frames.Frame) []byte { return message6(f.Src.Addr(), f.Dst.Addr(), kind, code, rest, body) }
	}
}

// echo6 returns an ICMPv6 echo request or reply. Its id is the port on the side of the sender of the request.
func echo6(kind uint8, seq uint16, text string) func(*frames.Frame6) {
	return func(f *frames.Frame6) {
		f.Protocol = protocolICMP6
		f.Body = func(f frames.Frame) []byte {
			id := f.Src.Port()
			if kind == icmp6EchoReply {
				id = f.Dst.Port()
			}
			return message6(f.Src.Addr(), f.Dst.Addr(), kind, 0, uint32(id)<<16|uint32(seq), []byte(text))
		}
	}
}

// quote6 returns the part of a frame that an ICMPv6 error quotes: its IP packet, at most limit bytes.
func quote6(data []byte, limit int) []byte {
	data = data[frames.EthernetLength:]
	return slices.Clone(data[:min(limit, len(data), frames.IP6Header+int(frames.WordAt(data, 4)))])
}

// The bench's IPv6 network; its gateway is known by its link-local address, as usual.
var (
	wanAddress6   = netip.MustParseAddr("2001:db8:1::1")
	lanAddress6   = netip.MustParseAddr("fd00:1::1")
	otherAddress6 = netip.MustParseAddr("fd00:2::1")
	internetHost6 = netip.MustParseAddr("2001:db8:99::7")
	target6       = netip.MustParseAddr("fd00:1::20")
	pingTarget6   = netip.MustParseAddr("fd00:1::21")
	pingAddress6  = netip.MustParseAddr("2001:db8:1::9")
	dmzTarget6    = netip.MustParseAddr("fd00:1::22")
	dmzAddress6   = netip.MustParseAddr("2001:db8:1::10")
	client6Addr   = netip.MustParseAddr("fd00:1::50")
	otherClient6  = netip.MustParseAddr("fd00:2::60")
	farRouter6    = netip.MustParseAddr("2001:db8:77::1")
	nearRouter6   = netip.MustParseAddr("fd00:1::77")
)

var benchForwards6 = []string{
	"web6 tcp,udp 443 to [fd00:1::20]:8443",
	"closed6 tcp 81 to [fd00:1::20]:81 reflect off",
	"friends6 tcp 82 to [fd00:1::20]:82 from 2001:db8:99::/48",
	"ping6 icmp [2001:db8:1::9]:any to fd00:1::21",
	"dmz6 any [2001:db8:1::10]:any to fd00:1::22",
	"web4 tcp,udp 443 to 192.168.1.20:8443",
}

// newBench6 is a bench with both families, which tells everybody inside without limit.
func newBench6(tb testing.TB) *bench {
	tb.Helper()
	b := newBench(tb)
	b.Router.Enable6()
	b.Router.Sysctl("net/ipv6/conf/all/forwarding", "1")
	for _, a := range []struct{ dev, prefix string }{
		{"wan0", "2001:db8:1::1/64"}, {"wan0", "2001:db8:1::9/128"}, {"wan0", "2001:db8:1::10/128"},
		{"lan0", "fd00:1::1/64"}, {"lan1", "fd00:2::1/64"},
	} {
		b.Router.Address6(a.dev, a.prefix)
	}
	b.Neighbour(tb, b.WAN, netip.MustParseAddr("fe80::fe"), rig.GatewayMAC)
	for _, addr := range []netip.Addr{target6, pingTarget6, dmzTarget6} {
		b.Neighbour(tb, b.LAN, addr, rig.ServerMAC)
	}
	b.Neighbour(tb, b.LAN, client6Addr, rig.ClientMAC)
	b.Neighbour(tb, b.LAN2, otherClient6, rig.OtherClientMAC)
	b.Router.Route("wan0", "::/0", "fe80::fe", "")
	for _, words := range benchForwards6 {
		b.Config.Forwards = append(b.Config.Forwards, rig.MustForward(tb, words))
	}
	b.Apply(tb)
	b.watch6(tb)
	b.unlimited(tb)
	return b
}

// watch6 tells the programs of both families' addresses.
func (b *bench) watch6(tb testing.TB) {
	tb.Helper()
	prefixes := func(list ...string) (all []netip.Prefix) {
		for _, text := range list {
			all = append(all, netip.MustParsePrefix(text))
		}
		return all
	}
	interfaces := []config.Interface{
		{Name: "wan0", Index: b.WAN.Index, Role: config.RoleWAN, HardwareAddr: b.WAN.MAC, XDPTransmit: true, RPFilter: 1,
			Addresses: prefixes("203.0.113.1/24", "2001:db8:1::1/64", "2001:db8:1::9/128", "2001:db8:1::10/128")},
		{Name: "lan0", Index: b.LAN.Index, Role: config.RoleLAN, HardwareAddr: b.LAN.MAC, XDPTransmit: true, RPFilter: 1,
			Addresses: prefixes("192.168.1.1/24", "fd00:1::1/64")},
		{Name: "lan1", Index: b.LAN2.Index, Role: config.RoleLAN, HardwareAddr: b.LAN2.MAC, XDPTransmit: true, RPFilter: 1,
			Addresses: prefixes("192.168.2.1/24", "fd00:2::1/64")},
	}
	lab.Must(b.Router.Do(func() error { return b.Tables.SetInterfaces(interfaces) }))
}

// flow6 is a connection through the bench's router, like flow.
type flow6 struct{ rig.Flow }

func (f flow6) In(change ...func(*frames.Frame6)) (in, want frames.Frame6) {
	in.Frame, want.Frame = f.Flow.In()
	return change6(in, want, change)
}

func (f flow6) Back(change ...func(*frames.Frame6)) (in, want frames.Frame6) {
	in.Frame, want.Frame = f.Flow.Back()
	return change6(in, want, change)
}

// change6 applies the changes to a packet and to the expected packet. Their hop limits still differ by one.
func change6(in, want frames.Frame6, change []func(*frames.Frame6)) (frames.Frame6, frames.Frame6) {
	for _, c := range change {
		c(&in)
		c(&want)
	}
	want.TTL = in.TTL - 1
	return in, want
}

var ways6Names = []string{"from the Internet", "hairpin", "server to itself", "from another LAN"}

// flow6 is a new connection to the first forward.
func (b *bench) flow6(way string, udp bool, port uint16) flow6 {
	f := b.Flows(udp, port)[way]
	f.Client = netip.AddrPortFrom(map[string]netip.Addr{
		"from the Internet": internetHost6, "hairpin": client6Addr, "server to itself": target6, "from another LAN": otherClient6,
	}[way], port)
	f.External, f.Target, f.Source = netip.AddrPortFrom(wanAddress6, 443), netip.AddrPortFrom(target6, 8443), f.Client
	if f.At.Index == b.LAN.Index {
		f.Source = netip.AddrPortFrom(lanAddress6, port)
	}
	return flow6{f}
}

// ping6 is a new flow to the forward of echoes.
func (b *bench) ping6(way string, port uint16) flow6 {
	f := b.flow6(way, false, port)
	f.External, f.Target = netip.AddrPortFrom(pingAddress6, 0), netip.AddrPortFrom(pingTarget6, 0)
	return f
}

func (b *bench) unlimited(tb testing.TB) {
	tb.Helper()
	b.settings(tb, unlimited)
}
