// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hairpin/test/frames"
	"hairpin/test/home"
	"hairpin/test/lab"
)

// explained has what the tests read of "hairpin -j explain".
type explained struct {
	Summary string `json:"summary"`
	Reaches string `json:"reaches"`
	Packet  leg    `json:"packet"`
	Answer  *leg   `json:"answer"`
}

type leg struct {
	Role       string `json:"role"`
	Connection *struct {
		State, Path, Forward string
	} `json:"connection"`
	Forward        string         `json:"forward"`
	Opened         bool           `json:"opened"`
	Verdict        string         `json:"verdict"`
	Reason         string         `json:"reason"`
	Path           string         `json:"path"`
	NewSource      netip.AddrPort `json:"new_source"`
	NewDestination netip.AddrPort `json:"new_destination"`
	PortLikely     bool           `json:"port_likely"`
	Output         string         `json:"output"`
	Notes          []string       `json:"notes"`
}

func explain(t *testing.T, router *lab.Host, hp *lab.Hairpin, args ...string) (e explained) {
	t.Helper()
	// Without -c: the question is about what runs.
	text := router.Run(append([]string{lab.Binary(t), "--bpffs", hp.Dir, "-j", "explain"}, args...)...)
	document := struct {
		Schema  int
		Explain *explained
	}{Explain: &e}
	if err := json.Unmarshal([]byte(text), &document); err != nil || document.Schema != 1 {
		t.Fatalf("explain %v: %v\n%s", args, err, text)
	}
	return e
}

const explainForwards = `
[[forward]]
name = "web"
protocol = ["tcp"]
port = "80"
to = "192.168.1.20:8080"
[[forward]]
name = "dns"
protocol = ["udp"]
port = "53"
to = "192.168.1.20"
[[forward]]
name = "by-router"
protocol = ["tcp"]
port = "81"
to = "192.168.1.20"
reflect = "router"
[[forward]]
name = "by-public"
protocol = ["tcp"]
port = "82"
to = "192.168.1.20"
reflect = "public"
[[forward]]
name = "not-reflected"
protocol = ["tcp"]
port = "83"
to = "192.168.1.20"
reflect = "off"
[[forward]]
name = "for-some"
protocol = ["tcp"]
port = "84"
to = "192.168.1.20"
from = ["192.168.1.0/24"]
[[forward]]
name = "hides-clients"
protocol = ["tcp"]
port = "85"
to = "192.168.1.20"
clients = "router"
[[forward]]
name = "unreachable"
protocol = ["tcp"]
port = "86"
to = "10.99.0.1"
[[forward]]
name = "rated"
protocol = ["tcp"]
port = "87"
to = "192.168.1.20"
rate = "1/h"
[[forward]]
name = "rated-each"
protocol = ["tcp"]
port = "88"
to = "192.168.1.20"
rate_per_source = "1/h"
[[forward]]
name = "web6"
protocol = ["tcp"]
port = "80"
to = "[fd00:1::20]:8080"
[[forward]]
name = "by-router6"
protocol = ["tcp"]
port = "81"
to = "fd00:1::20"
reflect = "router"
[[forward]]
name = "by-public6"
protocol = ["tcp"]
port = "82"
to = "fd00:1::20"
reflect = "public"
[[forward]]
name = "for-some6"
protocol = ["tcp"]
port = "84"
to = "fd00:1::20"
from = ["fd00:1::/64"]
[[forward]]
name = "off6"
protocol = ["tcp"]
port = "83"
to = "fd00:1::20"
reflect = "off"
[[forward]]
name = "stand-in"
protocol = ["tcp"]
port = "90"
to = "192.168.1.20"
reflect = "prefix"
[[forward]]
name = "stand-in6"
protocol = ["tcp"]
port = "90"
to = "fd00:1::20"
reflect = "prefix"
[[intercept]]
name = "names"
protocol = ["udp"]
port = "5300"
to = "192.168.1.20:53"
[reflection]
prefixes = { "192.168.2.0/24" = "198.18.2.0/24", "fd00:2::/64" = "fd00:ff::/64" }
[[forward]]
name = "to-guest"
protocol = ["tcp"]
port = "89"
to = "192.168.2.50"
`

// situation is a packet, and what explain must say about it. The same packet is then sent.
type situation struct {
	name     string
	in       string // interface of the router by which the packet comes in
	udp, gre bool   // otherwise TCP
	flags    string // of TCP; "": a SYN
	src, dst string // of GRE with port 0
	before   func(t *testing.T, n *lab.Network, hp *lab.Hairpin)
	// What explain must say. verdict "pass": the kernel gets the packet.
	verdict, reason, forward, path string
	source                         string // address that the server sees; "": not sent
	says                           string // in the summary; "": anything
}

// explainedRouter is a router with a configuration, and what is asked about there.
type explainedRouter struct {
	name       string
	config     string
	prepare    func(t *testing.T, n *lab.Network) // before hairpin starts; nil: nothing
	situations []situation
}

const far = lab.InternetSource

// usual are the situations of a usual router.
var usual = []situation{
	{name: "from the Internet", in: "wan0", src: far + ":40001", dst: "203.0.113.2:80",
		verdict: "send", forward: "web", path: "wan", source: far},
	{name: "datagram from the Internet", in: "wan0", udp: true, src: far + ":40002", dst: "203.0.113.2:53",
		verdict: "send", forward: "dns", path: "wan", source: far},
	{name: "from the server's own LAN", in: "lan0", src: "192.168.1.50:40003", dst: "203.0.113.2:80",
		verdict: "send", forward: "web", path: "hairpin", source: lab.RouterLAN},
	{name: "datagram from the server's own LAN", in: "lan0", udp: true, src: "192.168.1.50:40004", dst: "203.0.113.2:53",
		verdict: "send", forward: "dns", path: "hairpin", source: lab.RouterLAN},
	{name: "from another LAN", in: "lan1", src: "192.168.2.50:40005", dst: "203.0.113.2:80",
		verdict: "send", forward: "web", path: "hairpin", source: "192.168.2.50"},
	{name: "reflect router", in: "lan1", src: "192.168.2.50:40006", dst: "203.0.113.2:81",
		verdict: "send", forward: "by-router", path: "hairpin", source: lab.RouterLAN},
	{name: "reflect public", in: "lan0", src: "192.168.1.50:40007", dst: "203.0.113.2:82",
		verdict: "send", forward: "by-public", path: "hairpin", source: lab.External},
	{name: "reflect off", in: "lan0", src: "192.168.1.50:40008", dst: "203.0.113.2:83",
		verdict: "refuse", reason: "reflect_off", forward: "not-reflected"},
	{name: "reflect off, from the Internet", in: "wan0", src: far + ":40009", dst: "203.0.113.2:83",
		verdict: "send", forward: "not-reflected", path: "wan", source: far},
	{name: "not in from", in: "wan0", src: far + ":40010", dst: "203.0.113.2:84",
		verdict: "refuse", reason: "not_allowed", forward: "for-some"},
	{name: "in from", in: "lan0", src: "192.168.1.50:40011", dst: "203.0.113.2:84",
		verdict: "send", forward: "for-some", path: "hairpin", source: lab.RouterLAN},
	{name: "clients router", in: "wan0", src: far + ":40012", dst: "203.0.113.2:85",
		verdict: "send", forward: "hides-clients", path: "wan", source: lab.RouterLAN},
	{name: "blackhole route", in: "wan0", src: far + ":40013", dst: "203.0.113.2:86",
		verdict: "refuse", reason: "no_route", forward: "unreachable"},
	{name: "a rate that is not used up", in: "wan0", src: far + ":40014", dst: "203.0.113.2:87",
		verdict: "send", forward: "rated", path: "wan", source: far},
	{name: "a rate that is used up", in: "wan0", src: far + ":40015", dst: "203.0.113.2:87",
		verdict: "refuse", reason: "rate", forward: "rated"},
	{name: "a client's rate that is used up", in: "wan0", src: far + ":40016", dst: "203.0.113.2:88",
		before:  opening(situation{in: "wan0", src: far + ":40900", dst: "203.0.113.2:88"}),
		verdict: "refuse", reason: "source_rate", forward: "rated-each"},
	{name: "denied source", in: "wan0", src: "198.51.100.66:40017", dst: "203.0.113.2:80",
		before:  func(t *testing.T, n *lab.Network, hp *lab.Hairpin) { hp.Run("deny", "add", "198.51.100.66") },
		verdict: "refuse", reason: "denied", forward: "web"},
	{name: "spoofed source", in: "wan0", src: "192.168.1.50:40018", dst: "203.0.113.2:80",
		verdict: "refuse", reason: "spoofed", forward: "web"},
	{name: "private source", in: "wan0", src: "10.1.2.3:40019", dst: "203.0.113.2:80",
		verdict: "refuse", reason: "private_source", forward: "web"},
	{name: "no forward has the port", in: "wan0", src: far + ":40020", dst: "203.0.113.2:8081", verdict: "pass"},
	{name: "no forward has the protocol", in: "wan0", udp: true, src: far + ":40021", dst: "203.0.113.2:80", verdict: "pass"},
	{name: "another address of the network", in: "lan0", src: "192.168.1.50:40022", dst: "203.0.113.9:80", verdict: "pass"},
	{name: "a server that another LAN has", in: "lan0", src: "192.168.1.50:40023", dst: "203.0.113.2:89",
		verdict: "send", forward: "to-guest", path: "hairpin", source: "192.168.1.50"},
	{name: "a taken source port", in: "lan1", src: "192.168.2.50:40024", dst: "203.0.113.2:80",
		before:  opening(situation{in: "lan1", src: "192.168.2.50:40024", dst: "203.0.113.2:81"}),
		verdict: "send", forward: "web", path: "hairpin", source: "192.168.2.50"},
	{name: "a substitute address", in: "lan1", src: "192.168.2.50:40025", dst: "203.0.113.2:90",
		verdict: "send", forward: "stand-in", path: "hairpin", source: "198.18.2.50"},
	{name: "a substitute address, from the Internet", in: "wan0", src: far + ":40026", dst: "203.0.113.2:90",
		verdict: "send", forward: "stand-in", path: "wan", source: far},
	{name: "an intercept", in: "lan1", udp: true, src: "192.168.2.50:40027", dst: "9.9.9.9:5300",
		verdict: "send", forward: "names", path: "hairpin", source: "192.168.2.50"},
	{name: "no intercept for the Internet", in: "wan0", udp: true, src: far + ":40028", dst: "203.0.113.2:5300", verdict: "pass"},
	{name: "IPv6, from the Internet", in: "wan0", src: "[2001:db8:9::10]:40031", dst: "[2001:db8:0:1::2]:80",
		verdict: "send", forward: "web6", path: "wan", source: lab.InternetSource6},
	{name: "IPv6, from the server's own LAN", in: "lan0", src: "[fd00:1::50]:40032", dst: "[2001:db8:0:1::2]:80",
		verdict: "send", forward: "web6", path: "hairpin", source: lab.RouterLAN6},
	{name: "IPv6, from another LAN", in: "lan1", src: "[fd00:2::50]:40033", dst: "[2001:db8:0:1::2]:80",
		verdict: "send", forward: "web6", path: "hairpin", source: lab.Guest6},
	{name: "IPv6, reflect router", in: "lan1", src: "[fd00:2::50]:40034", dst: "[2001:db8:0:1::2]:81",
		verdict: "send", forward: "by-router6", path: "hairpin", source: lab.RouterLAN6},
	{name: "IPv6, reflect public", in: "lan0", src: "[fd00:1::50]:40035", dst: "[2001:db8:0:1::2]:82",
		verdict: "send", forward: "by-public6", path: "hairpin", source: lab.External6},
	{name: "IPv6, reflect off", in: "lan0", src: "[fd00:1::50]:40036", dst: "[2001:db8:0:1::2]:83",
		verdict: "refuse", reason: "reflect_off", forward: "off6"},
	{name: "IPv6, not in from", in: "wan0", src: "[2001:db8:9::10]:40037", dst: "[2001:db8:0:1::2]:84",
		verdict: "refuse", reason: "not_allowed", forward: "for-some6"},
	{name: "IPv6, in from", in: "lan0", src: "[fd00:1::50]:40038", dst: "[2001:db8:0:1::2]:84",
		verdict: "send", forward: "for-some6", path: "hairpin", source: lab.RouterLAN6},
	{name: "IPv6, spoofed source", in: "wan0", src: "[fd00:1::50]:40039", dst: "[2001:db8:0:1::2]:80",
		verdict: "refuse", reason: "spoofed", forward: "web6"},
	{name: "IPv6, no forward has the port", in: "wan0", src: "[2001:db8:9::10]:40040", dst: "[2001:db8:0:1::2]:8081", verdict: "pass"},
	{name: "IPv6, no forward has the protocol", in: "lan0", udp: true, src: "[fd00:1::50]:40041", dst: "[2001:db8:0:1::2]:80", verdict: "pass"},
	{name: "no forward has the protocol, from a LAN", in: "lan0", udp: true, src: "192.168.1.50:40042", dst: "203.0.113.2:80", verdict: "pass"},
	{name: "IPv6, a substitute address", in: "lan1", src: "[fd00:2::50]:40043", dst: "[2001:db8:0:1::2]:90",
		verdict: "send", forward: "stand-in6", path: "hairpin", source: "fd00:ff::50"},
	{name: "an answer to a substitute address, of no connection", in: "lan0", udp: true, src: "192.168.1.20:40044", dst: "198.18.2.50:40044",
		verdict: "drop", reason: "no_connection"},
	{name: "a late packet of a connection that was flushed", in: "wan0", flags: "A", src: far + ":40045", dst: "203.0.113.2:80",
		before: func(t *testing.T, n *lab.Network, hp *lab.Hairpin) {
			established(far+":40045")(t, n, hp)
			hp.Run("conn", "flush", "client", far, "state", "established")
			lab.Eventually(t, lab.Patience, func() error { return inState(t, hp, far+":40045", "ended") })
		},
		verdict: "drop", reason: "ended", forward: "web", path: "wan"},
}

// opening returns a step that opens the connection of this packet.
func opening(s situation) func(*testing.T, *lab.Network, *lab.Hairpin) {
	return func(t *testing.T, n *lab.Network, hp *lab.Hairpin) {
		t.Helper()
		send(t, n, s)
		lab.Eventually(t, lab.Patience, func() error { return inState(t, hp, s.src, "half-open") })
	}
}

// established returns a step that opens a TCP connection of the Internet host to forward web, with this source.
func established(source string) func(*testing.T, *lab.Network, *lab.Hairpin) {
	return func(t *testing.T, n *lab.Network, hp *lab.Hairpin) {
		t.Helper()
		conn, err := n.Internet.DialTCP(lab.External+":80", source, lab.Patience)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if err := conn.Echo(1000); err != nil {
			t.Fatal(err)
		}
	}
}

// inState fails if no connection of this client is in this state.
func inState(t *testing.T, hp *lab.Hairpin, client, state string) error {
	t.Helper()
	if !slices.ContainsFunc(connectionsOf(t, hp, client, "state", state), func(c home.Connection) bool { return c.Client == client }) {
		return fmt.Errorf("no connection of %s is %s", client, state)
	}
	return nil
}

// connectionsOf returns the connections of the client's address that a selector picks.
func connectionsOf(t *testing.T, hp *lab.Hairpin, client string, selector ...string) []home.Connection {
	t.Helper()
	var list struct{ Connections []home.Connection }
	address := netip.MustParseAddrPort(client).Addr().String()
	out := hp.Run(append([]string{"-j", "conn", "show", "client", address}, selector...)...)
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return list.Connections
}

// Every answer of explain is what a real packet of the same addresses and ports then meets.
func TestExplainIsWhatHappens(t *testing.T) {
	for _, r := range explainedRouters {
		t.Run(r.name, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			if r.prepare != nil {
				r.prepare(t, n)
			}
			hp := lab.NewHairpin(n.Router, r.config)
			hp.Start()
			n.Server.ServeTCP(":8080")
			for _, s := range r.situations {
				t.Run(s.name, func(t *testing.T) {
					if s.before != nil {
						s.before(t, n, hp)
					}
					checkSituation(t, n, hp, s)
				})
			}
		})
	}
}

// sender returns the host whose packets come in by an interface of the router.
func (s *situation) sender(n *lab.Network) *lab.Host {
	return map[string]*lab.Host{"wan0": n.Internet, "lan0": n.Client, "lan1": n.Guest, "lo": n.Router}[s.in]
}

func (s *situation) protocol() string {
	switch {
	case s.udp:
		return "udp"
	case s.gre:
		return "gre"
	}
	return "tcp"
}

func send(t *testing.T, n *lab.Network, s situation) {
	t.Helper()
	host := s.sender(n)
	if host == n.Router {
		_, err := host.DialTCP(s.dst, s.src, lab.Patience)
		if err == nil {
			t.Errorf("the router has a connection to %s", s.dst)
		}
		return
	}
	frame := frames.Frame{Src: netip.MustParseAddrPort(s.src), Dst: netip.MustParseAddrPort(s.dst), UDP: s.udp, Flags: cmp.Or(s.flags, "S"),
		Seq: 1000, TTL: 64, From: host.HardwareAddr("eth0"), To: n.Router.HardwareAddr(s.in)}
	switch {
	case s.udp:
		frame.Payload = []byte("explained")
	case s.gre:
		frame.Protocol = unix.IPPROTO_GRE
		frame.Body = func(frames.Frame) []byte { return []byte{0, 0, 8, 0, 0, 0, 0, 0} }
	}
	bytes := frame.Bytes
	if frame.Src.Addr().Is6() {
		bytes = frames.Frame6{Frame: frame}.Bytes
	}
	if err := host.Wire("eth0", n.Router.HardwareAddr(s.in)).Send(bytes()[frames.EthernetLength:]); err != nil {
		t.Fatal(err)
	}
}

// opened fails if the client has no connection as explain has said.
func opened(t *testing.T, hp *lab.Hairpin, client string, p leg) error {
	t.Helper()
	for _, c := range connectionsOf(t, hp, client) {
		if c.Client != client {
			continue
		}
		source := netip.MustParseAddrPort(c.Source)
		if c.Target != p.NewDestination.String() || c.Path != p.Path || source.Addr() != p.NewSource.Addr() || (!p.PortLikely && source != p.NewSource) {
			t.Errorf("the connection is %+v, explain said %s -> %s", c, p.NewSource, p.NewDestination)
		}
		return nil
	}
	return fmt.Errorf("no connection of %s", client)
}

// endpoint is an address as explain takes it: without port 0.
func endpoint(address string) string { return strings.TrimSuffix(address, ":0") }

func checkSituation(t *testing.T, n *lab.Network, hp *lab.Hairpin, s situation) {
	t.Helper()
	connections := hp.Run("conn", "count")
	e := explain(t, n.Router, hp, "in", s.in, s.protocol(), endpoint(s.src), "to", endpoint(s.dst))
	p := e.Packet
	if p.Verdict != s.verdict || p.Reason != s.reason || p.Forward != s.forward || p.Path != s.path {
		t.Fatalf("explain: %s %s, forward %q, path %q, want %s %s, forward %q, path %q\n%s",
			p.Verdict, p.Reason, p.Forward, p.Path, s.verdict, s.reason, s.forward, s.path, e.Summary)
	}
	if !strings.Contains(e.Summary, s.says) {
		t.Errorf("explain: %s\nwant %q there", e.Summary, s.says)
	}
	if s.source != "" && p.NewSource.Addr().String() != s.source {
		t.Errorf("explain: the server sees %s, want %s", p.NewSource, s.source)
	}
	if s.verdict == "send" && (e.Answer == nil || e.Answer.Verdict != "send" || e.Answer.NewDestination.String() != s.src || e.Answer.NewSource.String() != s.dst) {
		t.Errorf("explain: the answer goes as %+v, want from %s to %s", e.Answer, s.dst, s.src)
	}
	if now := hp.Run("conn", "count"); now != connections {
		t.Errorf("explain has changed the number of connections from %s to %s", connections, now)
	}
	switch {
	case s.verdict == "send":
		checkSent(t, n, hp, s, p)
	case s.reason != "":
		checkCounted(t, n, hp, s)
	default:
		checkPassed(t, n, hp, s)
	}
}

// arrivals watches the first packets of connections at the server, or at the guest's host if the guest is the target.
func arrivals(n *lab.Network, forward string) *lab.Watch {
	server := n.Server
	if forward == "to-guest" {
		server = n.Guest
	}
	return server.Watch("eth0", func(got *lab.Packet) bool {
		const ack = 0x10
		return got.Src.Port() != 0 && got.Flags&ack == 0
	})
}

// checkSent sends the packet, which must arrive as explain has said.
func checkSent(t *testing.T, n *lab.Network, hp *lab.Hairpin, s situation, p leg) {
	t.Helper()
	watch := arrivals(n, s.forward)
	send(t, n, s)
	if p.NewSource.Addr().Is6() { // the capture reads IPv4 only
		lab.Eventually(t, lab.Patience, func() error { return opened(t, hp, s.src, p) })
		return
	}
	got, err := watch.Next(lab.Patience)
	if err != nil {
		t.Fatalf("the packet does not arrive: %v", err)
	}
	if got.Dst != p.NewDestination || got.Src.Addr() != p.NewSource.Addr() || (!p.PortLikely && got.Src != p.NewSource) {
		t.Errorf("the packet arrives as %s -> %s, explain said %s -> %s", got.Src, got.Dst, p.NewSource, p.NewDestination)
	}
}

// checkCounted sends the packet, which must be counted with the verdict and the reason, and must not arrive.
func checkCounted(t *testing.T, n *lab.Network, hp *lab.Hairpin, s situation) {
	t.Helper()
	counted := func() int { return drops(t, hp)[s.verdict+" "+s.reason] }
	if s.verdict == "pass" {
		counted = func() int {
			return int(home.Scrape(t, n, "hairpin_packets_passed_total", fmt.Sprintf("reason=%q", s.reason)))
		}
	}
	watch, before := arrivals(n, s.forward), counted()
	send(t, n, s)
	lab.Eventually(t, lab.Patience, func() error {
		if now := counted(); now != before+1 {
			return fmt.Errorf("%d packets are counted as %s %s, want %d", now, s.verdict, s.reason, before+1)
		}
		return nil
	})
	notArrived(t, watch, s)
}

// checkPassed sends the packet, which the kernel must get: hairpin counts nothing, and nothing arrives.
func checkPassed(t *testing.T, n *lab.Network, hp *lab.Hairpin, s situation) {
	t.Helper()
	watch, before := arrivals(n, s.forward), drops(t, hp)
	send(t, n, s)
	// Another packet that arrives comes behind the one that the kernel got.
	behind := netip.MustParseAddrPort(s.src).Port() + 1000
	send(t, n, situation{in: "wan0", src: fmt.Sprintf("%s:%d", far, behind), dst: "203.0.113.2:80"})
	lab.Eventually(t, lab.Patience, func() error {
		for _, got := range watch.Packets() {
			if got.Src.Port() == behind {
				return nil
			}
		}
		return fmt.Errorf("the packet behind it does not arrive")
	})
	if now := drops(t, hp); !maps.Equal(now, before) {
		t.Errorf("drops %v, before %v", now, before)
	}
	notArrived(t, watch, s)
}

func notArrived(t *testing.T, watch *lab.Watch, s situation) {
	t.Helper()
	for _, got := range watch.Packets() {
		if got.Src.Port() == netip.MustParseAddrPort(s.src).Port() {
			t.Errorf("the packet arrives as %s -> %s", got.Src, got.Dst)
		}
	}
}

// A question about a connection that exists says its state, from either side. A router's own process is asked about at lo.
func TestExplainKnowsConnections(t *testing.T) {
	n := lab.NewNetwork(t)
	n.Server.ServeTCP(":8080")
	hp := home.Start(t, n, "tc", explainForwards)
	for _, at := range []struct {
		from     *lab.Host
		in, path string
	}{{n.Internet, "wan0", "wan"}, {n.Client, "lan0", "hairpin"}, {n.Router, "lo", "local"}} {
		t.Run(at.path, func(t *testing.T) {
			conn := home.Waiting(t, at.from)
			client := conn.LocalAddr().String()
			p := explain(t, n.Router, hp, "in", at.in, "tcp", client, "to", lab.External+":80").Packet
			if p.Connection == nil || p.Connection.State != "established" || p.Connection.Path != at.path || p.Connection.Forward != "web" ||
				p.Verdict != "send" || p.Opened || p.NewDestination.String() != lab.Server+":8080" {
				t.Fatalf("explain: %+v", p)
			}
			back := explain(t, n.Router, hp, "in", "lan0", "tcp", lab.Server+":8080", "to", p.NewSource.String()).Packet
			if back.Connection == nil || back.Connection.State != "established" || back.Verdict != "send" || back.NewDestination.String() != client {
				t.Errorf("explain of an answer: %+v", back)
			}
			if err := conn.Echo(1000); err != nil {
				t.Errorf("the connection after the questions: %v", err)
			}
		})
	}
}

// --config asks about a file that does not run, with and without a running hairpin.
func TestExplainOfAFile(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, home.Config("tc", explainForwards))
	ask := func() explained {
		return explain(t, n.Router, hp, "in", "lan0", "tcp", "192.168.1.50:41000", "to", "203.0.113.2:8443")
	}
	question := []string{"-j", "explain", "in", "lan0", "tcp", "192.168.1.50:41000", "to", "203.0.113.2:8443"}
	inFile := func() (e explained) {
		t.Helper()
		document := struct{ Explain *explained }{&e}
		if err := json.Unmarshal([]byte(hp.Run(question...)), &document); err != nil {
			t.Fatal(err)
		}
		return e
	}
	more := strings.Replace(explainForwards, "port = \"80\"", "port = \"8443\"", 1)
	hp.Write(home.Config("tc", more))
	if e := inFile(); e.Packet.Verdict != "send" || e.Packet.Forward != "web" || e.Packet.NewSource.Addr().String() != lab.RouterLAN {
		t.Errorf("explain of a file, nothing runs: %+v", e.Packet)
	}
	hp.Write(home.Config("tc", explainForwards))
	hp.Start()
	hp.Write(home.Config("tc", more))
	if e := ask(); e.Packet.Verdict != "pass" {
		t.Errorf("explain of what runs: %+v", e.Packet)
	}
	if e := inFile(); e.Packet.Verdict != "send" || e.Packet.Forward != "web" {
		t.Errorf("explain of a file beside what runs: %+v", e.Packet)
	}
}

// Questions change no map of the running datapath.
func TestExplainChangesNothing(t *testing.T) {
	n := lab.NewNetwork(t)
	n.Server.ServeTCP(":8080")
	hp := home.Start(t, n, "tc", explainForwards)
	home.Waiting(t, n.Client).Close()
	hp.Kill() // the daemon writes now and then
	before := dump(t, hp)
	lab.Eventually(t, lab.Patience, func() error { // until the last packets of the connection are over
		last := before
		if before = dump(t, hp); !maps.Equal(last, before) {
			return errors.New("packets still change the maps")
		}
		return nil
	})
	sent := n.Server.Watch("eth0", func(p *lab.Packet) bool { return p.Src.Port() != 0 && p.Dst.Port() == 8080 })
	for port := range 5 {
		for _, args := range [][]string{
			{"in", "lan0", "tcp", fmt.Sprintf("192.168.1.50:%d", 42000+port), "to", "203.0.113.2:80"},
			{"in", "wan0", "udp", fmt.Sprintf("198.51.100.10:%d", 42000+port), "to", "203.0.113.2:53"},
			{"in", "lan0", "tcp", fmt.Sprintf("192.168.1.50:%d", 42000+port), "to", "203.0.113.2:82"},
			{"in", "wan0", "tcp", fmt.Sprintf("198.51.100.10:%d", 42000+port), "to", "203.0.113.2:88"},
			{"in", "wan0", "tcp", fmt.Sprintf("198.51.100.10:%d", 42000+port), "to", "203.0.113.2:84"},
		} {
			explain(t, n.Router, hp, args...)
		}
	}
	for name, content := range dump(t, hp) {
		if content != before[name] {
			t.Errorf("questions have changed map %s", name)
		}
	}
	for _, p := range sent.Packets() {
		t.Errorf("a packet was sent: %s -> %s", p.Src, p.Dst)
	}
}

// dump returns the content of every pinned map that packets or commands change, by name. It leaves out those that the
// sweeper changes by itself.
func dump(t *testing.T, hp *lab.Hairpin) map[string]string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(hp.Dir, "datapath", "maps", "*"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no pinned maps: %v", err)
	}
	all := map[string]string{}
	for _, path := range paths {
		m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		if name := filepath.Base(path); name != "sweepers" && name != "places" {
			all[name] = contentOf(t, m)
		}
		m.Close()
	}
	return all
}

// contentOf returns a hash of all keys and values of a map.
func contentOf(t *testing.T, m *ebpf.Map) string {
	t.Helper()
	var rows []string
	key := make([]byte, m.KeySize())
	var value any
	switch m.Type() {
	case ebpf.PerCPUArray, ebpf.PerCPUHash:
		value = new([][]byte)
	default:
		value = new([]byte)
	}
	entries := m.Iterate()
	for entries.Next(&key, value) {
		rows = append(rows, fmt.Sprintf("%x %x", key, value))
	}
	if err := entries.Err(); err != nil {
		t.Fatalf("read %s: %v", m, err)
	}
	slices.Sort(rows)
	return fmt.Sprintf("%x", sha256.Sum256([]byte(strings.Join(rows, "\n"))))
}
