// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"hairpin/maps"
	"hairpin/test/frames"
	"hairpin/test/home"
	"hairpin/test/lab"
)

// explainedRouters are the routers of TestExplainIsWhatHappens. Their situations meet every reason that explain can be asked for.
var explainedRouters = []explainedRouter{
	{name: "usual", config: home.Config("tc", explainForwards), situations: usual,
		prepare: func(t *testing.T, n *lab.Network) {
			n.Router.Run("ip", "route", "add", "blackhole", "10.99.0.0/16")
		}},
	{name: "few places", config: home.Config("tc", fewPlaces), situations: []situation{
		{name: "a client with as many connections as it may have", in: "wan0", src: far + ":41001", dst: "203.0.113.2:80",
			before:  established(far + ":41900"),
			verdict: "refuse", reason: "source_limit", forward: "web"},
		{name: "a client with many half-open connections, while few places are free", in: "wan0", src: "198.51.100.20:41002", dst: "203.0.113.2:81",
			before:  halfOpen,
			verdict: "drop", reason: "challenged", forward: "nobody"},
	}},
	{name: "few ways", config: strings.Replace(home.Config("tc", fewWays), `, "lan1"`, "", 1), prepare: protectTunnel, situations: []situation{
		{name: "IPv6, no port is free", in: "lan0", udp: true, src: "[fd00:1::50]:42001", dst: "[2001:db8:0:1::2]:5000",
			verdict: "refuse", reason: "no_port", forward: "every-port6"},
		{name: "IPv6, from the Internet every port is served", in: "wan0", udp: true, src: "[2001:db8:9::10]:42002", dst: "[2001:db8:0:1::2]:5000",
			verdict: "send", forward: "every-port6", path: "wan", source: lab.InternetSource6},
		{name: "a second client of a protocol without ports", in: "lan0", gre: true, src: "192.168.1.50:0", dst: "203.0.113.2:0",
			before:  opening(situation{in: "lan0", gre: true, src: "192.168.1.51:0", dst: "203.0.113.2:0"}),
			verdict: "refuse", reason: "port_fixed", forward: "tunnel"},
		{name: "a target behind an interface without hairpin", in: "wan0", src: far + ":42004", dst: "203.0.113.2:89",
			verdict: "refuse", reason: "not_attached", forward: "to-guest"},
		{name: "a target behind an IPsec policy", in: "wan0", src: far + ":42005", dst: "203.0.113.2:91",
			verdict: "refuse", reason: "ipsec", forward: "protected"},
		{name: "an interface without hairpin", in: "lan1", src: "192.168.2.50:42006", dst: "203.0.113.2:91", verdict: "pass", forward: "protected"},
	}},
	{name: "no IPv6 address", config: home.Config("tc", fixedAddress6), prepare: withoutAddresses6, situations: []situation{
		{name: "a client who must be hidden", in: "lan0", src: "[fd00:1::50]:43001", dst: "[2001:db8:0:1::2]:80",
			verdict: "refuse", reason: "no_address", forward: "web6"},
		{name: "a client who need not be hidden", in: "wan0", src: "[2001:db8:9::10]:43002", dst: "[2001:db8:0:1::2]:80",
			verdict: "send", forward: "web6", path: "wan", source: lab.InternetSource6},
	}},
	// The addresses of the other IP version must not be taken for the router's.
	{name: "no IPv4 address", config: home.Config("tc", fixedAddress4), prepare: withoutAddresses, situations: []situation{
		{name: "a client who must be hidden", in: "lan0", src: "192.168.1.50:46001", dst: "203.0.113.2:80",
			verdict: "refuse", reason: "no_address", forward: "web"},
	}},
	{name: "IPv4 is not forwarded", config: home.Config("tc", home.Forwards), situations: []situation{
		{name: "a LAN client", in: "lan0", src: "192.168.1.50:44001", dst: "203.0.113.2:80",
			verdict: "refuse", reason: "spoofed", forward: "web", says: "IPv4 forwarding is off; run sysctl -w net.ipv4.ip_forward=1"},
		{name: "a process of the router", in: "lo", src: "203.0.113.2:44002", dst: "203.0.113.2:80",
			verdict: "pass", reason: "forwarding_off", forward: "web", says: "IPv4 forwarding is off; run sysctl -w net.ipv4.ip_forward=1"},
	}, prepare: func(t *testing.T, n *lab.Network) { n.Router.Sysctl("net/ipv4/ip_forward", "0") }},
	{name: "IPv6 is not forwarded on lan0", config: home.Config("tc", home.Forwards6), situations: []situation{
		{name: "a LAN client", in: "lan0", src: "[fd00:1::50]:45001", dst: "[2001:db8:0:1::2]:80",
			verdict: "refuse", reason: "spoofed", forward: "web6",
			says: "lan0: IPv6 forwarding is off on this interface; run sysctl -w net.ipv6.conf.lan0.forwarding=1"},
		{name: "a client on the Internet", in: "wan0", src: "[2001:db8:9::10]:45002", dst: "[2001:db8:0:1::2]:80",
			verdict: "send", forward: "web6", path: "wan", source: lab.InternetSource6},
	}, prepare: func(t *testing.T, n *lab.Network) { n.Router.Sysctl("net/ipv6/conf/lan0/forwarding", "0") }},
}

// fewPlaces has as few places as possible for connections that are being opened. No host has the target of forward nobody.
const fewPlaces = `
max_connections = 64
max_per_source = 1
[[forward]]
name = "web"
protocol = ["tcp"]
port = "80"
to = "192.168.1.20:8080"
[[forward]]
name = "nobody"
protocol = ["tcp"]
port = "81"
to = "192.168.1.77"
`

// halfOpen fills one more than three quarters of the places for half-open TCP connections, as one client.
func halfOpen(t *testing.T, n *lab.Network, hp *lab.Hairpin) {
	const connections = 512/4*3 + 1 // 512 is minPlaces of package loader, twice
	frame := frames.Frame{From: n.Internet.HardwareAddr("eth0"), To: n.Router.HardwareAddr("wan0"), Dst: netip.MustParseAddrPort("203.0.113.2:81"),
		Flags: "S", Seq: 1000}
	wire := n.Internet.Wire("eth0", frame.To)
	for i := range connections {
		frame.Src = netip.AddrPortFrom(netip.MustParseAddr("198.51.100.20"), uint16(20000+i))
		if err := wire.Send(frame.Bytes()[frames.EthernetLength:]); err != nil {
			t.Fatal(err)
		}
	}
	lab.Eventually(t, lab.Patience, func() error {
		if got := strings.TrimSpace(hp.Run("conn", "count", "state", "half-open")); got != fmt.Sprint(connections) {
			return fmt.Errorf("%s half-open connections", got)
		}
		return nil
	})
}

const fewWays = `
[[forward]]
name = "web"
protocol = ["tcp"]
port = "80"
to = "192.168.1.20:8080"
[[forward]]
name = "every-port6"
protocol = ["udp"]
port = "1-65535"
to = "fd00:1::20"
reflect = "public"
[[forward]]
name = "tunnel"
protocol = ["gre"]
to = "192.168.1.20"
[[forward]]
name = "to-guest"
protocol = ["tcp"]
port = "89"
to = "192.168.2.50"
[[forward]]
name = "protected"
protocol = ["tcp"]
port = "91"
to = "10.77.0.1"
`

// protectTunnel adds an IPsec policy for packets to 10.77.0.0/16, and a route.
func protectTunnel(t *testing.T, n *lab.Network) {
	n.Router.Run("ip", "route", "add", "10.77.0.0/16", "via", lab.Server)
	n.Router.Run("ip", "xfrm", "policy", "add", "dir", "out", "dst", "10.77.0.0/16", "tmpl", "src", lab.External, "dst", lab.Gateway, "proto", "esp", "mode", "tunnel")
}

const fixedAddress4 = `
[[forward]]
name = "web"
protocol = ["tcp"]
external = "203.0.113.2"
port = "80"
to = "192.168.1.20:8080"
`

// without takes the router's addresses of a family away, an option of ip(8).
func without(n *lab.Network, family string) {
	for _, dev := range []string{"wan0", "lan0", "lan1"} {
		n.Router.Run("ip", family, "address", "flush", "dev", dev)
	}
}

// withoutAddresses takes the router's IPv4 addresses away. A route to the LAN stays.
func withoutAddresses(t *testing.T, n *lab.Network) {
	without(n, "-4")
	n.Router.Route("lan0", "192.168.1.0/24", "", "")
}

const fixedAddress6 = `
[[forward]]
name = "web6"
protocol = ["tcp"]
external = "2001:db8:0:1::2"
port = "80"
to = "fd00:1::20"
`

// withoutAddresses6 takes the router's IPv6 addresses away. The routes stay.
func withoutAddresses6(t *testing.T, n *lab.Network) {
	without(n, "-6")
	n.Router.Route("lan0", "fd00:1::/64", "", "")
	n.Router.Route("wan0", "::/0", lab.GatewayLink6, "")
}

// unasked are the reasons that explain cannot be asked for, and why.
var unasked = map[string]string{
	"malformed":        "explain makes packets with sound headers",
	"bad_checksum":     "explain makes no ICMP errors",
	"fragment_tiny":    "explain makes no fragments",
	"fragment_overlap": "explain makes no fragments",
	"fragment_early":   "explain makes no fragments",
	"icmp_error":       "explain makes no ICMP errors",
	"mss":              "only XDP gives this reason, and explain asks the code of TC",
	"ttl_expired":      "the packets of explain have a TTL of 64",
	"too_big":          "the packets of explain are shorter than the least MTU: 68 bytes of IPv4, 1280 bytes of IPv6",
	"non_syn":          "a packet of no connection is the one that opens a connection",
	"bad_handshake":    "a packet of a half-open TCP connection is a repeated SYN",
	"table_full":       "the tables of explain are nearly empty",
	"tuple_in_use":     "the datapath says no_port or port_fixed in the end; a client's own old connection gives way",
	"next_hop":         "a packet of the router itself is asked about as the kernel sends it again, when the kernel resolves the next hop",
	"no_xdp_tx":        "only XDP gives this reason, and explain asks the code of TC",
	"partial_checksum": "only XDP gives this reason, and explain asks the code of TC",
	"other_host":       "only XDP gives this reason, and explain asks the code of TC",
	"write_failed":     "explain writes no packet",
	"begun":            "the datapath gives this reason to no packet in the end",
	"raced":            "no other CPU uses the tables of explain",
	"obstacle":         "the datapath gives this reason to no packet in the end",
	"not_ours":         "the datapath gives this reason to no packet in the end",
	"source_route":     "explain makes packets without IPv4 options",
	"leak":             "only the leak guard gives this reason, at egress",
}

// TestExplainMeetsEachReason: each reason of the datapath is met by a situation of TestExplainIsWhatHappens, or is in unasked. Both
// families and all reflect modes are asked about.
func TestExplainMeetsEachReason(t *testing.T) {
	met := map[string]bool{}
	count := 0
	for _, r := range explainedRouters {
		for _, s := range r.situations {
			met[s.reason] = true
			count++
		}
	}
	if count < 40 {
		t.Errorf("%d situations, want at least 40", count)
	}
	var known []string
	for reason := uint32(1); ; reason++ {
		name := maps.ReasonName(reason)
		if strings.HasPrefix(name, "unknown_") {
			break
		}
		known = append(known, name)
		if met[name] == (unasked[name] != "") {
			t.Errorf("reason %s: met by a situation: %t; not asked for because: %q", name, met[name], unasked[name])
		}
	}
	for name := range unasked {
		if !slices.Contains(known, name) {
			t.Errorf("unasked has %s, which is no reason of the datapath", name)
		}
	}
}
