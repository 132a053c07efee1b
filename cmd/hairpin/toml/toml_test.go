// SPDX-License-Identifier: Apache-2.0

package toml

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"hairpin/maps/config"
	"hairpin/maps/rule"
)

var values = []cmp.Option{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()}

// full has every key.
const full = `version = 1
[interfaces]
wan = ["wan0"]
lan = ["lan0", "lan1"]
private_sources = ["wan0"]
[datapath]
mode = "xdp"
xdp_tx = "off"
max_connections = 65_536
max_per_source = 1000
mss_clamp = ["wan0"]
[timeouts]
tcp_established = "3h"
tcp_transitory = "5m"
tcp_opening = "4m1s"
tcp_closing = "4m2s"
udp = "6m"
icmp = "61s"
port_hold = "121s"
address_grace = "3s"
[icmp]
refuse = ["wan", "lan"]
rate = 50
[reflection]
ports = "62000-65000"
default = "router"
prefixes = { "192.168.1.0/24" = "198.18.1.0/24", "fd00:1::/64" = "fd00:2::/64" }
[deny]
sources = ["198.51.100.7", "2001:db8:bad::/48"]
[metrics]
web_config = "/etc/hairpin/web.yml"
listen = "127.0.0.1:9999"
[leases]
files = ["/var/lib/miniupnpd/upnp.leases", "/run/pinholes"]
max = 100
[dns]
write = { unbound = "/u", hosts = "/h" }
[dns.reload]
unbound = ["unbound-control", "reload"]
[[forward]]
name = "web"
protocol = ["tcp", "udp"]
external = "wan0"
port = "443"
to = "192.168.1.20:8443"
from = ["10.0.0.0/8", "192.0.2.1"]
reflect = "auto"
clients = "router"
hosts = ["WWW.example.org.", "bücher.example"]
comment = "the shop, see the wiki"
[[forward]]
name = "games"
protocol = "udp"
port = "6000-6010"
to = "192.168.1.30"
rate = "100/s"
rate_per_source = "20/min"
[[forward]]
name = "all"
protocol = ["tcp"]
external = "203.0.113.7"
to = "192.168.1.40"
[[forward]]
name = "tunnels"
protocol = ["icmp", "gre", "esp", "ipip", "udplite"]
to = "192.168.1.50"
[[forward]]
name = "signals"
protocol = "sctp"
port = "2905-2906"
to = "192.168.1.50:2905-2906"
[[forward]]
name = "later"
protocol = "tcp"
port = "443"
to = "192.168.1.21"
enabled = false
[[forward]]
name = "rest"
protocol = "any"
to = "192.168.1.60"
[[intercept]]
name = "dns"
protocol = ["udp", "tcp"]
port = "53"
to = "192.168.1.1:5353"
lan = ["lan0"]
except = ["192.168.1.53", "10.0.0.0/8"]
reflect = "router"
comment = "clients with fixed name servers"
enabled = true
[[intercept]]
name = "time"
protocol = "udp"
port = 123
to = "fd00::1"
[log]
connections = "json"
`

func TestParseReadsEveryKey(t *testing.T) {
	got, err := Parse("x.toml", []byte(full))
	if err != nil {
		t.Fatal(err)
	}
	want := config.Config{
		WAN: []string{"wan0"}, LAN: []string{"lan0", "lan1"}, PrivateSources: []string{"wan0"}, Mode: "xdp", XDPTx: "off", MaxConnections: 65536, MaxPerSource: 1000, MSSClamp: []string{"wan0"},
		Timeouts: config.Timeouts{
			TCPEstablished: 3 * time.Hour, TCPTransitory: 5 * time.Minute, TCPOpening: 241 * time.Second, TCPClosing: 242 * time.Second,
			UDP: 6 * time.Minute, ICMP: 61 * time.Second, PortHold: 121 * time.Second, AddressGrace: 3 * time.Second,
		},
		ICMP:       config.ICMPErrors{Refuse: []string{"wan", "lan"}, Rate: 50},
		Leases:     config.Leases{Files: []string{"/var/lib/miniupnpd/upnp.leases", "/run/pinholes"}, Max: 100},
		Reflection: rule.ReflectRouter, ReflectPorts: rule.Ports{First: 62000, Last: 65000}, MetricsListen: "127.0.0.1:9999", MetricsWeb: "/etc/hairpin/web.yml", LogConnections: config.LogJSON, Digest: got.Digest,
		Deny: []netip.Prefix{netip.MustParsePrefix("198.51.100.7/32"), netip.MustParsePrefix("2001:db8:bad::/48")},
		StandIns: []rule.StandIn{
			{Clients: netip.MustParsePrefix("192.168.1.0/24"), Network: netip.MustParsePrefix("198.18.1.0/24")},
			{Clients: netip.MustParsePrefix("fd00:1::/64"), Network: netip.MustParsePrefix("fd00:2::/64")},
		},
		DNS: []config.DNSFile{
			{Format: config.DNSHosts, Path: "/h", Source: "x.toml:37"},
			{Format: config.DNSUnbound, Path: "/u", Reload: []string{"unbound-control", "reload"}, Source: "x.toml:37"},
		},
		Forwards: []rule.Forward{
			{
				Name: "web", Protocols: []rule.Protocol{rule.TCP, rule.UDP}, External: rule.External{Interface: "wan0"},
				Ports: rule.Ports{First: 443, Last: 443}, Target: netip.MustParseAddr("192.168.1.20"), TargetPort: 8443,
				From:    []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.1/32")},
				Reflect: rule.ReflectAuto, Clients: rule.ClientsRouter, Hosts: []string{"www.example.org", "xn--bcher-kva.example"}, Comment: "the shop, see the wiki", Source: "x.toml:40",
			},
			{
				Name: "games", Protocols: []rule.Protocol{rule.UDP}, Ports: rule.Ports{First: 6000, Last: 6010},
				Target: netip.MustParseAddr("192.168.1.30"), Rate: rule.Rate{Count: 100, Per: time.Second}, RatePerSource: rule.Rate{Count: 20, Per: time.Minute}, Source: "x.toml:51",
			},
			{
				Name: "all", Protocols: []rule.Protocol{rule.TCP}, External: rule.External{Address: netip.MustParseAddr("203.0.113.7")},
				Target: netip.MustParseAddr("192.168.1.40"), Source: "x.toml:58",
			},
			{
				Name: "tunnels", Protocols: []rule.Protocol{rule.ICMP, rule.GRE, rule.ESP, rule.IPIP, rule.UDPLite},
				Target: netip.MustParseAddr("192.168.1.50"), Source: "x.toml:63",
			},
			{
				Name: "signals", Protocols: []rule.Protocol{rule.SCTP}, Ports: rule.Ports{First: 2905, Last: 2906},
				Target: netip.MustParseAddr("192.168.1.50"), TargetPort: 2905, Source: "x.toml:67",
			},
			{
				Name: "rest", Protocols: []rule.Protocol{rule.Any}, Target: netip.MustParseAddr("192.168.1.60"), Source: "x.toml:78",
			},
			{
				Intercept: true, Name: "dns", Protocols: []rule.Protocol{rule.UDP, rule.TCP}, Ports: rule.Ports{First: 53, Last: 53},
				Target: netip.MustParseAddr("192.168.1.1"), TargetPort: 5353, LAN: []string{"lan0"},
				Except:  []netip.Prefix{netip.MustParsePrefix("192.168.1.53/32"), netip.MustParsePrefix("10.0.0.0/8")},
				Reflect: rule.ReflectRouter, Comment: "clients with fixed name servers", Source: "x.toml:82",
			},
			{
				Intercept: true, Name: "time", Protocols: []rule.Protocol{rule.UDP}, Ports: rule.Ports{First: 123, Last: 123},
				Target: netip.MustParseAddr("fd00::1"), Source: "x.toml:92",
			},
		},
		Disabled: []rule.Forward{{
			Name: "later", Protocols: []rule.Protocol{rule.TCP}, Ports: rule.Ports{First: 443, Last: 443}, Target: netip.MustParseAddr("192.168.1.21"),
			Disabled: true, Source: "x.toml:72",
		}},
	}
	if diff := cmp.Diff(want, got, values...); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if len(got.Digest) != 64 {
		t.Errorf("digest %q", got.Digest)
	}
}

func TestParseTakes(t *testing.T) {
	wan := "version = 1\ninterfaces.wan = [\"wan0\"]\n"
	for name, text := range map[string]string{
		"nothing but the version": "version = 1",
		"CRLF":                    strings.ReplaceAll(full, "\n", "\r\n"),
		"dotted keys":             "version = 1\ntimeouts.udp = \"1m\"\n",
		"an inline table":         "version = 1\ntimeouts = { udp = \"1m\" }\n",
		"forwards in a list":      wan + `forward = [{ name = "a", protocol = "tcp", port = 1, to = "10.0.0.1" }, { name = "b", protocol = "tcp", port = 2, to = "10.0.0.1" }]`,
		"a port without quotes":   wan + "[[forward]]\nname = \"a\"\nprotocol = \"tcp\"\nport = 443\nto = \"10.0.0.1\"",
		"keys in any order":       wan + "[[forward]]\nto = \"10.0.0.1:9\"\nport = 443\nprotocol = \"tcp\"\nname = \"a\"",
		"no metrics":              "version = 1\nmetrics.listen = \"\"",
	} {
		if _, err := Parse("x.toml", []byte(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDefaults(t *testing.T) {
	got, err := Parse("x.toml", []byte("version = 1"))
	want := config.Default()
	want.Digest = got.Digest
	if diff := cmp.Diff(want, got, values...); diff != "" || err != nil {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
}

// TestNoneIsNotAbsent: an empty list differs from an absent key.
func TestNoneIsNotAbsent(t *testing.T) {
	none, err := Parse("x.toml", []byte("version = 1\ndatapath.mss_clamp = []\nicmp.refuse = []\n"))
	if err != nil || none.MSSClamp == nil || len(none.MSSClamp)+len(none.ICMP.Refuse) != 0 {
		t.Errorf("none: clamps %q, refuses %q, %v", none.MSSClamp, none.ICMP.Refuse, err)
	}
	absent, err := Parse("x.toml", []byte("version = 1\n"))
	if err != nil || absent.MSSClamp != nil || len(absent.ICMP.Refuse) != 1 {
		t.Errorf("absent: clamps %q, refuses %q, %v", absent.MSSClamp, absent.ICMP.Refuse, err)
	}
	one, err := Parse("x.toml", []byte("version = 1\nicmp.refuse = \"wan\"\n"))
	if err != nil || len(one.ICMP.Refuse) != 1 || one.ICMP.Refuse[0] != config.SideWAN {
		t.Errorf("one: refuses %q, %v", one.ICMP.Refuse, err)
	}
}

// TestProblems checks whole messages: the place, the cause and the cure.
func TestProblems(t *testing.T) {
	forward := func(lines string) string {
		return "version = 1\ninterfaces.wan = [\"wan0\", \"wan1\"]\n[[forward]]\n" + lines
	}
	intercept := func(lines string) string {
		return "version = 1\ninterfaces.lan = [\"lan0\"]\n[[intercept]]\n" + lines
	}
	goodIntercept := "name = \"dns\"\nprotocol = [\"udp\", \"tcp\"]\nport = 53\nto = \"192.168.1.1:5353\"\n"
	good := "name = \"a\"\nprotocol = [\"tcp\"]\nport = \"80\"\nto = \"10.0.0.1\"\n"
	for _, test := range []struct {
		name, text string
		want       []string
	}{
		{"empty", "", []string{`x.toml:1:1: version: it is missing; begin the file with version = 1`}},
		{"other version", "version = 2", []string{`x.toml:1:11: version: 2 is not supported; this hairpin reads version = 1`}},
		{"version as text", `version = "1"`, []string{`x.toml:1:11: version: "1" is a string where an integer was expected`}},
		{"not TOML", "version = 1\nmode = [1,,2]\n", []string{`x.toml:2:11: `}},
		{"truncated", "version = 1\n[[forw", []string{`x.toml:2:6: expected`}},
		{"NUL", "version = 1\n\x00\n", []string{`x.toml:2:1: `}},
		{"byte order mark", "\ufeffversion = 1", []string{`x.toml:1:1: a byte order mark before the first key`}},
		{"not UTF-8", "version = 1\n# \xff\n", []string{`x.toml:2:3: not UTF-8`}},
		{"key twice", "version = 1\nversion = 1\n", []string{`x.toml:2:1: `}},
		{"table twice", "version = 1\n[datapath]\n[datapath]\n", []string{`x.toml:3:2: `}},
		{"unknown table", "version = 1\n[timeout]\nudp = 1\n", []string{`x.toml:2:2: unknown key "timeout"; did you mean "timeouts"?`}},
		{"unknown key", "version = 1\n[timeouts]\n  tpc_established = \"1h\"\n", []string{`x.toml:3:3: unknown key "tpc_established" in [timeouts]; did you mean "tcp_established"?`}},
		{"hostile key", "version = 1\n\"a\\u001b[31m\\nb\" = 1\n", []string{`x.toml:2:1: unknown key "a\x1b[31m\nb"; possible are `}},
		{"characters before it", "version = 1\ndatapath = { mode = \"äöü\", x = 1 }\n", []string{
			`x.toml:2:21: datapath.mode: "äöü" is not a mode; possible are auto, xdp, xdp-untagged and tc`,
			`x.toml:2:28: unknown key "x" in [datapath]; possible are max_connections, max_per_source, mode, mss_clamp and xdp_tx`,
		}},
		{"table as text", "version = 1\ntimeouts = \"1h\"\n", []string{`x.toml:2:12: timeouts: "1h" is a string where a table was expected`}},
		{"one forward table", "version = 1\n[forward]\nname = \"a\"\n", []string{`x.toml:2:2: forward: it is a single table; write [[forward]] with two brackets`}},
		{"forward of numbers", "version = 1\nforward = [1]\n", []string{`x.toml:2:12: forward: "1" is an integer where a table was expected`}},
		{"duration without unit", "version = 1\ntimeouts.udp = 300\n", []string{`x.toml:2:16: timeouts.udp: "300" is an integer where a duration was expected; write a string with a unit, as in "90s"`}},
		{"not a duration", "version = 1\ntimeouts.udp = \"5 minutes\"\n", []string{`x.toml:2:16: timeouts.udp: "5 minutes" is not a duration; write for example 2h4m or 90s`}},
		{"short duration", "version = 1\ntimeouts.udp = \"0s\"\n", []string{`x.toml:2:16: timeouts.udp: 0s is out of range; it is 1s to 720h`}},
		{"no duration at all", "version = 1\ntimeouts.tcp_opening = \"0s\"\n", []string{`x.toml:2:24: timeouts.tcp_opening: 0s is out of range; it is 1s to 720h`}},
		{"long duration", "version = 1\ntimeouts.tcp_closing = \"721h\"\n", []string{`x.toml:2:24: timeouts.tcp_closing: 721h0m0s is out of range`}},
		{"no connections of one client", "version = 1\n[datapath]\nmax_per_source = 0\n", []string{`x.toml:3:18: datapath.max_per_source: 0 would refuse every connection; leave the key out for the default`}},
		{"more of one client than of all", "version = 1\n[datapath]\nmax_connections = 10\nmax_per_source = 11\n", []string{`x.toml:4:18: datapath.max_per_source: 11 is more than max_connections, 10`}},
		{"side", "version = 1\nicmp = { refuse = [\"lan\", \"dmz\"] }\n", []string{`x.toml:2:27: icmp.refuse: "dmz" is not a side; possible are lan and wan`}},
		{"side as number", "version = 1\n[icmp]\nrefuse = [1]\n", []string{`x.toml:3:11: icmp.refuse: "1" is an integer where a string was expected`}},
		{"a rate without a unit", "version = 1\ninterfaces.wan = [\"wan0\"]\n[[forward]]\nname = \"a\"\nprotocol = \"tcp\"\nport = \"80\"\nto = \"10.0.0.1\"\nrate = \"100\"\n", []string{`x.toml:8:8: forward "a": rate: "100" is not a rate; one looks like 100/s, 20/min or 5/h`}},
		{"a rate as a number", "version = 1\ninterfaces.wan = [\"wan0\"]\n[[forward]]\nname = \"a\"\nprotocol = \"tcp\"\nport = \"80\"\nto = \"10.0.0.1\"\nrate = 100\n", []string{`x.toml:8:8: forward "a": rate: "100" is an integer where a rate was expected; write it with its unit, as in "100/s"`}},
		{"a rate by the day", "version = 1\ninterfaces.wan = [\"wan0\"]\n[[forward]]\nname = \"a\"\nprotocol = \"tcp\"\nport = \"80\"\nto = \"10.0.0.1\"\nrate = \"5/d\"\n", []string{`x.toml:8:8: forward "a": rate: "5/d" is not a rate`}},
		{"a rate of none", "version = 1\ninterfaces.wan = [\"wan0\"]\n[[forward]]\nname = \"a\"\nprotocol = \"tcp\"\nport = \"80\"\nto = \"10.0.0.1\"\nrate_per_source = \"0/s\"\n", []string{`x.toml:8:19: forward "a": rate_per_source: 0/s is out of range; the number of a rate is 1 to 1000000`}},
		{"a huge rate", "version = 1\ninterfaces.wan = [\"wan0\"]\n[[forward]]\nname = \"a\"\nprotocol = \"tcp\"\nport = \"80\"\nto = \"10.0.0.1\"\nrate = \"1000001/s\"\n", []string{`x.toml:8:8: forward "a": rate: 1000001/s is out of range`}},
		{"a negative rate", "version = 1\ninterfaces.wan = [\"wan0\"]\n[[forward]]\nname = \"a\"\nprotocol = \"tcp\"\nport = \"80\"\nto = \"10.0.0.1\"\nrate = \"-1/s\"\n", []string{`x.toml:8:8: forward "a": rate: "-1/s" is not a rate`}},
		{"a rate for each that is never reached", "version = 1\ninterfaces.wan = [\"wan0\"]\n[[forward]]\nname = \"a\"\nprotocol = \"tcp\"\nport = \"80\"\nto = \"10.0.0.1\"\nrate = \"60/min\"\nrate_per_source = \"2/s\"\n", []string{`x.toml:9:19: forward "a": rate_per_source: 2/s for each client is more than rate, 60/min, allows all of them together`}},
		{"an intercept with a rate", "version = 1\ninterfaces.lan = [\"lan0\"]\n[[intercept]]\nname = \"a\"\nprotocol = \"tcp\"\nport = \"80\"\nto = \"10.0.0.1\"\nrate = \"1/s\"\nrate_per_source = \"1/s\"\n", []string{
			`x.toml:8:1: intercept "a": intercepts have no rate; only forwards have`, `x.toml:9:1: intercept "a": intercepts have no rate_per_source; only forwards have`,
		}},
		{"a lease file without a folder", "version = 1\n[leases]\nfiles = [\"/a\", \"b\"]\n", []string{`x.toml:3:16: leases.files: "b" is not an absolute path`}},
		{"no leases", "version = 1\n[leases]\nmax = 0\n", []string{`x.toml:3:7: leases.max: with 0 no mapping would become a forward`}},
		{"a name denied", "version = 1\n[deny]\nsources = [\"192.0.2.1\", \"bad.example\"]\n", []string{`x.toml:3:25: deny.sources: "bad.example" is not an address`}},
		{"a number denied", "version = 1\n[deny]\nsources = [7]\n", []string{`x.toml:3:12: deny.sources: "7" is an integer where a string was expected`}},
		{"a table denied", "version = 1\n[deny]\nsources = { a = 1 }\n", []string{`x.toml:3:11: deny.sources: it is a table where a string was expected`}},
		{"everybody denied", "version = 1\n[deny]\nsources = [\"192.0.2.1\", \"0.0.0.0/0\"]\n", []string{`x.toml:3:25: deny.sources: 0.0.0.0/0 is every IPv4 address`}},
		{"deny without sources", "version = 1\n[deny]\nsource = []\n", []string{`x.toml:3:1: unknown key "source" in [deny]`}},
		{"no rate", "version = 1\n[icmp]\nrate = 0\n", []string{`x.toml:3:8: icmp.rate: 0 is out of range; it is 1 to 1000000 a second`}},
		{"rate as text", "version = 1\n[icmp]\nrate = \"1/s\"\n", []string{`x.toml:3:8: icmp.rate: "1/s" is a string where an integer was expected`}},
		{"huge rate", "version = 1\n[icmp]\nrate = 5_000_000_000\n", []string{`x.toml:3:8: icmp.rate: 5_000_000_000 is out of range`}},
		{"clamp", "version = 1\ninterfaces.wan = [\"ppp0\"]\ndatapath.mss_clamp = [\"ppp1\"]\n", []string{`x.toml:3:23: datapath.mss_clamp: "ppp1" is in neither interfaces.wan nor interfaces.lan; did you mean "ppp0"?`}},
		{"clamp of a wrong type", "version = 1\ninterfaces.lan = [\"tun0\"]\ndatapath.mss_clamp = [\"tun0\", 1280]\n", []string{`x.toml:3:31: datapath.mss_clamp: "1280" is an integer where a string was expected`}},
		{"clamp on what cannot be read in lan", "version = 1\ninterfaces.lan = 7\ndatapath.mss_clamp = [\"tun0\"]\n", []string{`x.toml:2:18: interfaces.lan: "7" is an integer`}},
		{"private sources", "version = 1\n[interfaces]\nwan = [\"wan0\"]\nlan = [\"lan0\"]\nprivate_sources = [\"lan0\",\n\"wan1\", 7]\n", []string{
			`x.toml:6:9: interfaces.private_sources: "7" is an integer where a string was expected`,
		}},
		{"private sources where none come", "version = 1\n[interfaces]\nwan = [\"wan0\"]\nlan = [\"lan0\"]\nprivate_sources = [\"lan0\",\n\"wan1\",\n\"wan0\", \"wan0\"]\n", []string{
			`x.toml:5:20: interfaces.private_sources: "lan0" is a LAN interface where one of interfaces.wan was expected`,
			`x.toml:6:1: interfaces.private_sources: "wan1" is not a WAN interface; `,
			`x.toml:7:9: interfaces.private_sources: "wan0" is listed twice`,
		}},
		{"private sources as a table", "version = 1\ninterfaces.wan = \"wan0\"\ninterfaces.private_sources = { wan0 = true }\n", []string{`x.toml:3:30: interfaces.private_sources: it is a table where a string was expected`}},
		{"private sources on what cannot be read", "version = 1\ninterfaces.wan = 7\ninterfaces.private_sources = [\"ppp0\"]\n", []string{`x.toml:2:18: interfaces.wan: "7" is an integer`}},
		{"clamp on what cannot be read", "version = 1\ninterfaces.wan = 7\ndatapath.mss_clamp = [\"ppp0\"]\n", []string{`x.toml:2:18: interfaces.wan: "7" is an integer`}},
		{"connections", "version = 1\ndatapath.max_connections = -1\n", []string{`x.toml:2:28: datapath.max_connections: -1 is out of range`}},
		{"mode", "version = 1\n[datapath]\nmode = \"tcc\"\n", []string{`x.toml:3:8: datapath.mode: "tcc" is not a mode; did you mean "tc"?`}},
		{"listen", "version = 1\nmetrics.listen = \"9845\"\n", []string{`x.toml:2:18: metrics.listen: "9845" is not a listening address; write ADDR:PORT such as 127.0.0.1:9845, or "" for no metrics`}},
		{"log", "version = 1\nlog.connections = \"yes\"\n", []string{`x.toml:2:19: log.connections: "yes" is not possible; possible are off, text and json`}},
		{"log of something else", "version = 1\n[log]\npackets = \"json\"\n", []string{`x.toml:3:1: unknown key "packets" in [log]; only connections is possible here`}},
		{"reflection mode", "version = 1\nreflection.default = \"stand-in\"\n", []string{`x.toml:2:22: reflection.default: "stand-in" is not a reflect mode; possible are auto, router, public, prefix and off`}},
		{"no prefixes", "version = 1\nreflection.default = \"prefix\"\n", []string{`x.toml:2:22: reflection.default: prefix needs stand-ins for the clients`}},
		{"prefixes in a list", "version = 1\n[reflection]\ndefault = \"prefix\"\nprefixes = [\"192.168.1.0/24\"]\n", []string{`x.toml:4:12: reflection.prefixes: it is a list where a table was expected`}},
		{"what is no prefix", "version = 1\n[reflection]\ndefault = \"prefix\"\nprefixes = { \"192.168.1.7/24\" = \"198.18.1.0/24\", \"10.0.0.0/8\" = 11, lan0 = \"198.18.2.0/24\", \"fd00::/64\" = \"fd01::1/64\" }\n", []string{
			`x.toml:4:14: reflection.prefixes: "192.168.1.7/24" has host bits set; write 192.168.1.0/24`,
			`x.toml:4:50: reflection.prefixes."10.0.0.0/8": "11" is an integer where a network was expected`,
			`x.toml:4:69: reflection.prefixes: "lan0" is not an address`,
			`x.toml:4:93: reflection.prefixes."fd00::/64": "fd01::1/64" has host bits set; write fd01::/64`,
		}},
		{"prefixes", "version = 1\n[reflection.prefixes]\n\"192.168.1.0/24\" = \"198.18.1.0/25\"\n \"fd00:0::/64\" = \"10.0.0.0/24\"\n\"fd00::/64\" = \"fd01::/64\"\n", []string{
			`x.toml:3:1: reflection.prefixes."192.168.1.0/24": 198.18.1.0/25 and the clients 192.168.1.0/24 differ in size`,
			`x.toml:5:1: reflection.prefixes."fd00::/64": the network is there twice`,
		}},
		{"clients as a list", forward(good + "clients = [\"router\"]"), []string{`x.toml:8:11: forward "a": clients: it is a list where a string was expected`}},
		{"clients", forward(good + "clients = \"routers\""), []string{`x.toml:8:11: forward "a": clients: "routers" is not a value of clients; did you mean "router"?`}},
		{"clients against reflect", forward(good + "reflect = \"public\"\nclients = \"router\""), []string{`x.toml:9:11: forward "a": clients: router hides every client behind the router's address, but reflect public gives LAN clients another address; remove one of the two`}},
		{"clients of an intercept", intercept(goodIntercept + "clients = \"router\""), []string{`x.toml:8:1: intercept "dns": intercepts have no clients; only forwards have`}},
		{"prefix without prefixes of the family", forward(good + "reflect = \"prefix\"\n[reflection.prefixes]\n\"fd00::/64\" = \"fd01::/64\""), []string{
			`x.toml:8:11: forward "a": reflect: the mode is prefix, but reflection.prefixes has no IPv4 network; add the network of the clients, or choose another mode`,
		}},
		{"reflection ports as a list", "version = 1\n[reflection]\nports = [61000]\n", []string{`x.toml:3:9: reflection.ports: it is a list where a port was expected`}},
		{"reflection ports backwards", "version = 1\nreflection.ports = \"65535-61000\"\n", []string{`x.toml:2:20: reflection.ports: "65535-61000" runs backwards; write 61000-65535`}},
		{"well-known reflection ports", "version = 1\nreflection.ports = \"1000-2000\"\n", []string{`x.toml:2:20: reflection.ports: 1000-2000 begins below 1024, where the well-known ports are`}},
		{"few reflection ports", "version = 1\nreflection.ports = \"61000-61062\"\n", []string{`x.toml:2:20: reflection.ports: 61000-61062 are fewer than 64 ports; each connection to one port of a server needs one`}},
		{"prefix by default without", forward(good + "[reflection]\ndefault = \"prefix\"\nprefixes = { \"fd00::/64\" = \"fd01::/64\" }"), []string{
			`x.toml:3:3: forward "a": reflect: the mode is prefix by default, but reflection.prefixes has no IPv4 network`,
		}},
		{"grace of a wrong type", "version = 1\n[timeouts]\naddress_grace = 2\n", []string{`x.toml:3:17: timeouts.address_grace: "2" is an integer where a duration was expected; write a string with a unit, as in "90s"`}},
		{"grace out of range", "version = 1\n[timeouts]\naddress_grace = \"2h\"\n", []string{`x.toml:3:17: timeouts.address_grace: 2h0m0s is out of range; it is 0s to 1h`}},
		{"interface twice", "version = 1\n[interfaces]\nwan = [\"a\"]\nlan = [\"a\"]\n", []string{`x.toml:4:8: interfaces.lan: "a" is already in interfaces.wan; an interface has one side: if clients, servers and the Internet are all behind it, name it in interfaces.lan alone`}},
		{"interfaces of numbers", "version = 1\n[interfaces]\nlan = [1, true]\n", []string{`x.toml:3:8: interfaces.lan: "1" is an integer where a string was expected`, `x.toml:3:11: interfaces.lan: "true" is a boolean where a string was expected`}},

		{"nothing in it", forward(""), []string{
			`x.toml:3:3: forward "": name: it is missing`,
			`x.toml:3:3: forward "": protocol: it is missing`,
			`x.toml:3:3: forward "": to: it is missing`,
		}},
		{"unknown key of a forward", forward(good + "form = [\"10.0.0.0/8\"]"), []string{`x.toml:8:1: forward "a": unknown key "form"; did you mean "from"?`}},
		{"name", forward(strings.Replace(good, `"a"`, `"A b"`, 1)), []string{`x.toml:4:8: forward "A b": name: "A b" is not a name for a forward`}},
		{"name as number", forward(strings.Replace(good, `"a"`, `7`, 1)), []string{`x.toml:4:8: forward "": name: "7" is an integer where a string was expected`}},
		{"protocol", forward(strings.Replace(good, `"tcp"`, `"tcp", "ospf"`, 1)), []string{`x.toml:5:20: forward "a": protocol: "ospf" is not a supported protocol; possible are tcp, udp, sctp, icmp, udplite, gre, esp, ipip and any`}},
		{"port without", forward(strings.Replace(good, `"tcp"`, `"tcp", "icmp"`, 1)), []string{`x.toml:6:8: forward "a": port: 80 is given, but protocol icmp has no ports; leave the port out`}},
		{"port of the target without", forward("name = \"a\"\nprotocol = \"gre\"\nto = \"10.0.0.1:80\""), []string{`x.toml:6:6: forward "a": to: target port 80 is given, but protocol gre has no ports; leave the port out`}},
		{"sctp to another port", forward(strings.Replace(strings.Replace(good, "tcp", "sctp", 1), "10.0.0.1", "10.0.0.1:81", 1)), []string{
			`x.toml:7:6: forward "a": to: target port 81 differs from external port 80, but ports of sctp cannot change, because its checksum covers them`,
		}},
		{"any and another", forward("name = \"a\"\nprotocol = [\"any\", \"gre\"]\nto = \"10.0.0.1\""), []string{`x.toml:5:12: forward "a": protocol: any means every protocol; leave the others out`}},
		{"gre twice", forward("name = \"a\"\nprotocol = \"gre\"\nto = \"10.0.0.1\"\n[[forward]]\nname = \"b\"\nprotocol = \"gre\"\nto = \"10.0.0.2\""), []string{
			`x.toml:7:3: forward "b": port: gre is taken by forward "a" (x.toml:3)`,
		}},
		{"no protocol", forward(strings.Replace(good, `"tcp"`, ``, 1)), []string{`x.toml:5:12: forward "a": protocol: no protocol is given; give one or more of tcp, udp, sctp, icmp, udplite, gre, esp, ipip, any`}},
		{"port", forward(strings.Replace(good, `"80"`, `"80abc"`, 1)), []string{`x.toml:6:8: forward "a": port: "80abc" is not a port; a port is a number from 1 to 65535, a range is written 6000-6010`}},
		{"port 0", forward(strings.Replace(good, `"80"`, `0`, 1)), []string{`x.toml:6:8: forward "a": port: "0" is not a port`}},
		{"port list", forward(strings.Replace(good, `"80"`, `[80, 81]`, 1)), []string{`x.toml:6:8: forward "a": port: it is a list where a port was expected`}},
		{"backward range", forward(strings.Replace(good, `"80"`, `"90-80"`, 1)), []string{`x.toml:6:8: forward "a": port: "90-80" runs backwards; write 80-90`}},
		{"target", forward(strings.Replace(good, `"10.0.0.1"`, `"010.0.0.1:80"`, 1)), []string{`x.toml:7:6: forward "a": to: "010.0.0.1" is not an address; an address looks like 192.168.1.20 (no leading zeros)`}},
		{"target that may have a port", forward(strings.Replace(good, `"10.0.0.1"`, `"fd00::20:80"`, 1)), []string{`x.toml:7:6: forward "a": to: "fd00::20:80" is ambiguous: fd00::20 with port 80, or one longer address; write [fd00::20]:80 or [fd00::20:80]`}},
		{"external that may have a port", forward(strings.Replace(good, `"10.0.0.1"`, `"fd00::20"`, 1) + "external = \"2001:db8::1:443\""), []string{`x.toml:8:12: forward "a": external: "2001:db8::1:443" is ambiguous: 2001:db8::1 with port 443, or one longer address; write 2001:db8::1 and give the port separately, or write [2001:db8::1:443]`}},
		{"two families", forward(strings.Replace(good, `"10.0.0.1"`, `"[2001:db8::1]:80"`, 1) + "\nexternal = \"203.0.113.1\""), []string{`x.toml:7:6: forward "a": to: 2001:db8::1 is an IPv6 address, but the external address 203.0.113.1 is IPv4`}},
		{"clients of the other family", forward(good + "\nfrom = [\"10.0.0.0/8\", \"2001:db8::/32\"]"), []string{`x.toml:9:23: forward "a": from: 2001:db8::/32 is an IPv6 network, but the target 10.0.0.1 is IPv4`}},
		{"link-local target", forward(strings.Replace(good, `"10.0.0.1"`, `"fe80::1"`, 1)), []string{`x.toml:7:6: forward "a": to: fe80::1 is a link-local address`}},
		{"loopback target", forward(strings.Replace(good, `"10.0.0.1"`, `"127.0.0.1"`, 1)), []string{`x.toml:7:6: forward "a": to: 127.0.0.1 is a loopback address`}},
		{"range length", forward(strings.Replace(good, `"10.0.0.1"`, `"10.0.0.1:80-81"`, 1)), []string{`x.toml:7:6: forward "a": to: target range 80-81 has 2 ports, but external range 80 has 1; make the ranges equally long, or give only the first target port`}},
		{"empty external", forward(good + "external = \"\""), []string{`x.toml:8:12: forward "a": external: it is empty; leave the key out to listen on every WAN interface`}},
		{"unknown interface", forward(good + "external = \"wan\""), []string{`x.toml:8:12: forward "a": external: "wan" is not a WAN interface; did you mean "wan0"?`}},
		{"empty from", forward(good + "from = []"), []string{`x.toml:8:8: forward "a": from: the list is empty, so nobody could connect; leave the key out to let everybody in`}},
		{"from", forward(good + "from = [\"10.0.0.1/8\", \"x\"]"), []string{`x.toml:8:9: forward "a": from: "10.0.0.1/8" has host bits set; write 10.0.0.0/8`, `x.toml:8:23: forward "a": from: "x" is not an address`}},
		{"host", forward(good + "hosts = [\"a b\"]"), []string{`x.toml:8:10: forward "a": hosts: "a b" is not a host name`}},
		{"hosts", forward(good + "hosts = [\"*.example.org\", \"a_b\"]"), []string{`x.toml:8:10: forward "a": hosts: "*.example.org" is a wildcard, which would also match hosts elsewhere and does not work in a hosts file; write each name`, `x.toml:8:27: forward "a": hosts: "a_b" is not a host name: it has '_'`}},
		{"host twice", forward(good + "hosts = [\"a.b\", \"A.b.\"]"), []string{`x.toml:8:17: forward "a": hosts: a.b is there twice`}},
		{"host of two targets", forward(good+"hosts = [\"a.b\"]\n") + "[[forward]]\nname = \"b\"\nprotocol = \"tcp\"\nport = 81\nto = \"10.0.0.2\"\nhosts = [\"c.d\", \"a.b\"]", []string{
			`x.toml:14:17: forward "b": hosts: a.b is also a host of forward "a" (x.toml:3), whose target is 10.0.0.1, not 10.0.0.2; a name has one address for all ports, so give each target another name`,
		}},
		{"files as text", "version = 1\n[dns]\nwrite = \"/a\"\n", []string{`x.toml:3:9: dns.write: "/a" is a string where a table was expected`}},
		{"file of an unknown format", "version = 1\ndns.write = { dnsmask = \"/a\" }\n", []string{`x.toml:2:15: unknown key "dnsmask" in [dns.write]; did you mean "dnsmasq"?`}},
		{"unknown key of files", "version = 1\n[dns]\nwrites = {}\n", []string{`x.toml:3:1: unknown key "writes" in [dns]; did you mean "write"?`}},
		{"file as number", "version = 1\ndns.write = { hosts = 7 }\ndns.reload = { hosts = [\"true\"] }\n", []string{`x.toml:2:23: dns.write.hosts: "7" is an integer where a string was expected`}},
		{"file without a name", "version = 1\ndns.write.hosts = \"\"\n", []string{`x.toml:2:19: dns.write.hosts: it is empty; leave the key out to write no file`}},
		{"relative file", "version = 1\n[dns.write]\nhosts = \"a\"\n", []string{`x.toml:3:9: dns.write.hosts: "a" is not an absolute path`}},
		{"files that are one", "version = 1\n[dns.write]\nunbound = \"/a\"\nhosts = \"/a\"\n", []string{`x.toml:3:11: dns.write.unbound: "/a" is the file of hosts already`}},
		{"reload as a line", "version = 1\n[dns]\nwrite = { unbound = \"/a\" }\nreload = { unbound = \"unbound-control reload\" }\n", []string{
			`x.toml:4:22: dns.reload.unbound: "unbound-control reload" is a string where a list was expected; write the program and each argument as one item, as in ["unbound-control", "reload"]`,
		}},
		{"reload of nothing", "version = 1\n[dns]\nwrite = { unbound = \"/a\" }\nreload = { unbound = [] }\n", []string{`x.toml:4:22: dns.reload.unbound: there is no program; remove the key to run none`}},
		{"reload without a file", "version = 1\n[dns]\nreload = { unbound = [\"true\"] }\n", []string{`x.toml:3:22: dns.reload.unbound: the command has no file; give the path of the file in dns.write.unbound`}},
		{"same name", forward(good) + "[[forward]]\n" + strings.Replace(good, "80", "81", 1), []string{`x.toml:9:8: forward "a": name: the name is taken by another forward (x.toml:3)`}},
		{"nothing in an intercept", "version = 1\ninterfaces.lan = [\"lan0\"]\n[[intercept]]\n", []string{
			`x.toml:3:3: intercept "": name: it is missing`,
			`x.toml:3:3: intercept "": protocol: it is missing`,
			`x.toml:3:3: intercept "": port: it is missing`,
			`x.toml:3:3: intercept "": to: it is missing`,
		}},
		{"an intercept without a port", intercept(strings.Replace(goodIntercept, "port = 53\n", "", 1)), []string{`x.toml:3:3: intercept "dns": port: it is missing`}},
		{"intercept as a table", "version = 1\n[intercept]\n", []string{`x.toml:2:2: intercept: it is a single table; write [[intercept]] with two brackets`}},
		{"keys of forwards", intercept(goodIntercept + "external = \"wan0\"\nfrom = [\"10.0.0.0/8\"]\nhosts = [\"a.b\"]\n"), []string{
			`x.toml:8:1: intercept "dns": intercepts have no external; only forwards have`,
			`x.toml:9:1: intercept "dns": intercepts have no from; only forwards have`,
			`x.toml:10:1: intercept "dns": intercepts have no hosts; only forwards have`,
		}},
		{"keys of intercepts", forward(good + "lan = \"lan0\"\nexcept = \"10.0.0.1\"\n"), []string{
			`x.toml:8:1: forward "a": forwards have no lan; only intercepts have`,
			`x.toml:9:1: forward "a": forwards have no except; only intercepts have`,
		}},
		{"an unknown LAN", intercept(goodIntercept + "lan = [\"lan0\", \"lan\"]"), []string{`x.toml:8:16: intercept "dns": lan: "lan" is not a LAN interface; did you mean "lan0"?`}},
		{"no LAN in the list", intercept(goodIntercept + "lan = []"), []string{`x.toml:8:7: intercept "dns": lan: the list is empty, so no interface would be meant; leave the key out for every LAN interface`}},
		{"LANs that cannot be read", strings.Replace(intercept(goodIntercept), "[\"lan0\"]", "7", 1), []string{`x.toml:2:18: interfaces.lan: "7" is an integer`}},
		{"except", intercept(goodIntercept + "except = [\"10.0.0.1/8\", \"x\"]"), []string{`x.toml:8:11: intercept "dns": except: "10.0.0.1/8" has host bits set; write 10.0.0.0/8`, `x.toml:8:25: intercept "dns": except: "x" is not an address`}},
		{"except of the other family", intercept(goodIntercept + "except = [\"fd00::1\"]"), []string{`x.toml:8:11: intercept "dns": except: fd00::1/128 is an IPv6 network, but the target 192.168.1.1 is IPv4`}},
		{"reflect public", intercept(goodIntercept + "reflect = \"public\""), []string{`x.toml:8:11: intercept "dns": reflect: an intercept cannot use public`}},
		{"a name twice", intercept(goodIntercept) + "[[forward]]\nname = \"dns\"\nprotocol = \"udp\"\nport = 53\nto = \"192.168.1.9\"\nexternal = \"203.0.113.1\"\n", []string{
			`x.toml:9:8: forward "dns": name: the name is taken by an intercept (x.toml:3)`,
		}},
		{"a loop", intercept(goodIntercept+"lan = \"lan0\"\nexcept = [\"192.168.1.53\"]\n") + "[[intercept]]\nname = \"b\"\nprotocol = \"tcp\"\nport = 53\nto = \"192.168.1.53\"\n", []string{
			`x.toml:7:6: intercept "dns": to: intercept "b" (x.toml:10) would redirect the queries of target 192.168.1.1 to 192.168.1.53, so queries could loop; add 192.168.1.1 to except of that intercept`,
		}},
		{"same port", forward(good) + "[[forward]]\n" + strings.Replace(good, `"a"`, `"b"`, 1), []string{`x.toml:11:8: forward "b": port: 80 is taken by forward "a" (x.toml:3)`}},
	} {
		_, err := Parse("x.toml", []byte(test.text))
		if err == nil {
			t.Errorf("%s: taken", test.name)
			continue
		}
		lines := strings.Split(err.Error(), "\n")
		if len(lines) != len(test.want) {
			t.Errorf("%s: %d problems, want %d:\n%v", test.name, len(lines), len(test.want), err)
			continue
		}
		for i, line := range lines {
			if !strings.HasPrefix(line, test.want[i]) {
				t.Errorf("%s:\ngot  %s\nwant %s", test.name, line, test.want[i])
			}
		}
	}
}

// TestEveryProblemIsReported: every problem is reported, except problems that follow from another problem.
func TestEveryProblemIsReported(t *testing.T) {
	_, err := Parse("x.toml", []byte(`version = 3
[interfaces]
wan = [7]
[timeout]
[datapath]
mode = "fast"
[[forward]]
name = "a"
protocol = "tcp"
port = "x"
to = "127.0.0.1"
[[forward]]
name = "a"
protocol = "tcp"
external = "wan0"
port = 80
to = "10.0.0.1"
`))
	var got []string
	for _, p := range rule.Problems(err) {
		got = append(got, fmt.Sprint(p.Index, p.Field))
	}
	if want := "-1version -1interfaces.wan -1 -1datapath.mode 0port 0to 1name"; strings.Join(got, " ") != want {
		t.Errorf("got  %s\nwant %s\n%v", strings.Join(got, " "), want, err)
	}
	var found *problem
	if !errors.As(err, &found) || found.Line != 1 || found.Column != 11 || found.File != "x.toml" {
		t.Errorf("first problem %+v", found)
	}
}

func TestVeryManyProblemsAreCounted(t *testing.T) {
	_, err := Parse("x.toml", []byte("version = 1\n"+strings.Repeat("[[forward]]\n", 1000)))
	if lines := strings.Split(err.Error(), "\n"); len(lines) != maxProblems+1 || lines[maxProblems] != "and 3900 more problems" {
		t.Errorf("%d lines, the last %s", len(lines), lines[len(lines)-1])
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

const oneForward = "[[forward]]\nname = %q\nprotocol = \"tcp\"\nport = %d\nto = \"10.0.0.1\"\n"

func TestLoadAddsTheForwardsBesideIt(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "hairpin.toml")
	writeFile(t, path, "version = 1\ninterfaces.wan = [\"wan0\"]\n"+fmt.Sprintf(oneForward, "main", 1))
	writeFile(t, filepath.Join(dir, DropInDir, "50-cli.toml"), "version = 1\n"+fmt.Sprintf(oneForward, "cli", 3))
	writeFile(t, filepath.Join(dir, DropInDir, "10-first.toml"), fmt.Sprintf(oneForward, "first", 2))
	writeFile(t, filepath.Join(dir, DropInDir, ".50-cli.toml.123"), "rubbish")
	writeFile(t, filepath.Join(dir, DropInDir, ".50-cli.toml"), "rubbish")
	writeFile(t, filepath.Join(dir, DropInDir, "README"), "rubbish")
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range c.Forwards {
		got = append(got, f.Name+" "+strings.TrimPrefix(f.Source, dir))
	}
	if want := "main /hairpin.toml:3, first /forwards.d/10-first.toml:1, cli /forwards.d/50-cli.toml:2"; strings.Join(got, ", ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, ", "), want)
	}

	digests := map[string]bool{c.Digest: true}
	again, err := Load(path)
	if err != nil || again.Digest != c.Digest {
		t.Errorf("digest %s of the same files, was %s (%v)", again.Digest, c.Digest, err)
	}
	for _, change := range []func(){
		func() { writeFile(t, filepath.Join(dir, DropInDir, "60-new.toml"), "") },
		func() {
			os.Rename(filepath.Join(dir, DropInDir, "60-new.toml"), filepath.Join(dir, DropInDir, "61-new.toml"))
		},
		func() { writeFile(t, filepath.Join(dir, DropInDir, "61-new.toml"), "# comment") },
	} {
		change()
		c, err := Load(path)
		if err != nil || digests[c.Digest] {
			t.Errorf("digest %s is that of other files (%v)", c.Digest, err)
		}
		digests[c.Digest] = true
	}
}

func TestProblemsOfSeveralFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "hairpin.toml")
	writeFile(t, path, "version = 1\ninterfaces.wan = [\"wan0\"]\n"+fmt.Sprintf(oneForward, "a", 1)+"[nonsense]\n")
	writeFile(t, filepath.Join(dir, DropInDir, "1.toml"), "[interfaces]\nwan = [\"x\"]\n[[forward]]\n= 1")
	writeFile(t, filepath.Join(dir, DropInDir, "2.toml"), "version = 2\n[metrics]\nlisten = \"\"\n"+fmt.Sprintf(oneForward, "b", 1))
	_, err := Load(path)
	if err == nil {
		t.Fatal("taken")
	}
	want := []string{
		"/hairpin.toml:8:2: unknown key \"nonsense\"",
		"/forwards.d/1.toml:4:1: ",
		"/forwards.d/2.toml:1:11: version: 2 is not supported",
		"/forwards.d/2.toml:2:2: metrics: a file in forwards.d may have only version, [[forward]] and [[intercept]]; move this to the main file",
		"/forwards.d/2.toml:7:8: forward \"b\": port: 1 is taken by forward \"a\" (" + dir + "/hairpin.toml:3)",
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d problems:\n%v", len(lines), err)
	}
	for i := range want {
		if !strings.HasPrefix(lines[i], dir+want[i]) {
			t.Errorf("got  %s\nwant %s", lines[i], want[i])
		}
	}
}

func TestLoadTakesOnlyFilesOfBoundedSize(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(filepath.Join(dir, "none.toml")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "is not a regular file") {
		t.Errorf("a directory: %v", err)
	}
	fifo := filepath.Join(dir, "fifo.toml")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(fifo); err == nil || !strings.Contains(err.Error(), "is not a regular file") {
		t.Errorf("a pipe: %v", err)
	}
	huge := filepath.Join(dir, "huge.toml")
	writeFile(t, huge, "")
	if err := os.Truncate(huge, 1<<30); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(huge); err == nil || !strings.Contains(err.Error(), "larger than 16 MiB") {
		t.Errorf("a gigabyte: %v", err)
	}
	if _, err := Parse("x", make([]byte, maxSize+1)); err == nil || !strings.Contains(err.Error(), "larger than 16 MiB") {
		t.Errorf("data: %v", err)
	}
}

func TestTenThousandForwards(t *testing.T) {
	var text strings.Builder
	text.WriteString("version = 1\ninterfaces.wan = [\"wan0\"]\n")
	for i := range 10000 {
		fmt.Fprintf(&text, oneForward, fmt.Sprintf("f%d", i), i+1)
	}
	start := time.Now()
	c, err := Parse("x.toml", []byte(text.String()))
	if err != nil || len(c.Forwards) != 10000 {
		t.Fatalf("%d forwards, %v", len(c.Forwards), err)
	}
	t.Log(time.Since(start))
	if want := "x.toml:49998"; c.Forwards[9999].Source != want {
		t.Errorf("the last is at %s, want %s", c.Forwards[9999].Source, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte("version = 1\n[[forward]]\nname = \"a\"\n[forward.x]\n[[forward.x.y]]\n"))
	f.Add([]byte("version = 1\nforward = [[{a = {}}], {name = []}]\n"))
	f.Add([]byte("version = 1\n[dns]\nwrite = { hosts = [{}] }\nreload.hosts = [[]]\nreload.unbound = [\"a\"]\n"))
	f.Add([]byte("interfaces.wan.x = 1\n[interfaces.lan]\n\"\" = 1979-05-27\n"))
	f.Add([]byte("\ufeff\xff\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("x.toml", data)
		if err != nil {
			for _, line := range strings.Split(err.Error(), "\n") {
				if !strings.HasPrefix(line, "x.toml:") && !strings.HasPrefix(line, "and ") {
					t.Fatalf("no place in %q", line)
				}
			}
			return
		}
		if err := c.Validate(); err != nil {
			t.Fatalf("taken, but %v", err)
		}
		text, err := format(c.Forwards)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parse([]source{{name: "y.toml", data: text, dropIn: true}}); err != nil && len(c.WAN) == 0 {
			t.Fatalf("written as\n%s\nwhich gives %v", text, err)
		}
	})
}

func TestTheDigestTellsFilesApart(t *testing.T) {
	seen := map[string]int{}
	for i, sources := range [][]source{
		{{name: "a", data: []byte("bc")}},
		{{name: "ab", data: []byte("c")}},
		{{name: "a", data: []byte("b")}, {name: "c"}},
		{{name: "a"}, {name: "bc"}},
		{{name: "a"}},
	} {
		if other, same := seen[digest(sources)]; same {
			t.Errorf("files %d and %d have the same digest", other, i)
		}
		seen[digest(sources)] = i
	}
	if digest([]source{{name: "/etc/a"}}) != digest([]source{{name: "/tmp/a"}}) {
		t.Error("the directory is part of the digest")
	}
}

func TestModified(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "hairpin.toml")
	extra := filepath.Join(dir, DropInDir, "1.toml")
	writeFile(t, path, "version = 1\n")
	at := func(name string, seconds int64) {
		t.Helper()
		if err := os.Chtimes(name, time.Unix(seconds, 0), time.Unix(seconds, 0)); err != nil {
			t.Fatal(err)
		}
	}
	want := func(what string, seconds int64) {
		t.Helper()
		if got, err := Modified(path); got.Unix() != seconds || err != nil {
			t.Errorf("%s: %d, %v, want %d", what, got.Unix(), err, seconds)
		}
	}
	at(path, 1000)
	want("one file", 1000)
	writeFile(t, extra, "version = 1\n")
	at(extra, 3000)
	at(filepath.Dir(extra), 2000)
	want("a file beside it", 3000)
	if err := os.Remove(extra); err != nil {
		t.Fatal(err)
	}
	at(filepath.Dir(extra), 4000)
	want("a file that was removed", 4000)
}
