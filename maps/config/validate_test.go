// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"hairpin/maps/config"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

func TestValidateRefuses(t *testing.T) {
	for _, test := range []struct {
		name   string
		lines  []string
		change func(*config.Config)
		want   string
	}{
		{"target 0.0.0.0", []string{"a tcp 80 to 0.0.0.0"}, nil, "to: 0.0.0.0 is not an address of a host"},
		{"loopback target", []string{"a tcp 80 to 127.0.0.1"}, nil, "127.0.0.1 is a loopback address"},
		{"multicast target", []string{"a tcp 80 to 224.0.0.1"}, nil, "is a multicast address"},
		{"broadcast target", []string{"a tcp 80 to 255.255.255.255"}, nil, "is the broadcast address"},
		{"class E target", []string{"a tcp 80 to 240.0.0.1"}, nil, "is a reserved address"},
		{"loopback external", []string{"a tcp 127.0.0.1:80 to 10.0.0.1"}, nil, "external: 127.0.0.1 is a loopback address"},
		{"forward to itself", []string{"a tcp 203.0.113.1:80 to 203.0.113.1:81"}, nil, `203.0.113.1 is the external address of forward "a"`},
		{"two forwards in a ring", []string{"a tcp 203.0.113.1:80 to 203.0.113.2:80", "b tcp 203.0.113.2:80 to 203.0.113.1:80"}, nil, `forward "b": to: 203.0.113.1 is the external address of forward "a"`},
		{"target ports past the end", []string{"a tcp 1-100 to 10.0.0.1:65500"}, nil, "100 ports from 65500 on end at 65599, but the last port is 65535"},
		{"same name", []string{"a tcp 80 to 10.0.0.1", "a tcp 81 to 10.0.0.1"}, nil, `forward "a": name: the name is taken by another forward`},
		{"unknown interface", []string{"a tcp wan9:80 to 10.0.0.1"}, nil, `external: "wan9" is not a WAN interface; did you mean "wan0"?`},
		{"LAN interface", []string{"a tcp lan0:80 to 10.0.0.1"}, nil, `external: "lan0" is a LAN interface where one of interfaces.wan was expected`},
		{"no WAN interface", []string{"a tcp 80 to 10.0.0.1"}, func(c *config.Config) { c.WAN = nil }, "none is configured"},
		{"no protocol", []string{"a tcp 80 to 10.0.0.1"}, func(c *config.Config) { c.Forwards[0].Protocols = nil }, "protocol: no protocol is given"},
		{"foreign protocol", []string{"a tcp 80 to 10.0.0.1"}, func(c *config.Config) { c.Forwards[0].Protocols = []rule.Protocol{41} }, `"protocol-41" is not a supported protocol`},
		{"no target", []string{"a tcp 80 to 10.0.0.1"}, func(c *config.Config) { c.Forwards[0].Target = netip.Addr{} }, "there is no target"},
		{"port 0", []string{"a tcp 80 to 10.0.0.1"}, func(c *config.Config) { c.Forwards[0].Ports.First = 0 }, "0-80 is not a range of ports"},
		{"bad host", []string{"a tcp 80 to 10.0.0.1"}, func(c *config.Config) { c.Forwards[0].Hosts = []string{"a b"} }, `hosts: "a b" is not a host name`},
		{"host in another form", []string{"a tcp 80 to 10.0.0.1"}, func(c *config.Config) { c.Forwards[0].Hosts = []string{"A.b."} }, `hosts: "A.b." is not in its plain form; write a.b`},
		{"host twice", []string{"a tcp 80 to 10.0.0.1"}, func(c *config.Config) { c.Forwards[0].Hosts = []string{"a.b", "a.b"} }, `hosts: a.b is there twice`},
		{"file of another format", nil, func(c *config.Config) { c.DNS = []config.DNSFile{{Format: "hots", Path: "/a"}} }, `dns.write.hots: "hots" is not a format; did you mean "hosts"?`},
		{"file by a relative path", nil, func(c *config.Config) { c.DNS = []config.DNSFile{{Format: "hosts", Path: "a"}} }, `dns.write.hosts: "a" is not an absolute path`},
		{"file by a roundabout path", nil, func(c *config.Config) { c.DNS = []config.DNSFile{{Format: "hosts", Path: "/a/../b"}} }, `dns.write.hosts: "/a/../b" is not in its shortest form; write "/b"`},
		{"file of two formats", nil, func(c *config.Config) {
			c.DNS = []config.DNSFile{{Format: "hosts", Path: "/a"}, {Format: "unbound", Path: "/a"}}
		}, `dns.write.unbound: "/a" is the file of hosts already`},
		{"file that ends a string", nil, func(c *config.Config) { c.DNS = []config.DNSFile{{Format: "hosts", Path: "/a\"b"}} }, "has a character that is not possible in the configuration of a name server"},
		{"root as a file", nil, func(c *config.Config) { c.DNS = []config.DNSFile{{Format: "hosts", Path: "/"}} }, `"/" is a directory`},
		{"reload without a file", nil, func(c *config.Config) { c.DNS = []config.DNSFile{{Format: "hosts", Reload: []string{"true"}}} }, "dns.reload.hosts: the command has no file; give the path of the file in dns.write.hosts"},
		{"reload of nothing", nil, func(c *config.Config) { c.DNS = []config.DNSFile{{Format: "hosts", Path: "/a", Reload: []string{}}} }, "dns.reload.hosts: there is no program"},
		{"reload by a relative path", nil, func(c *config.Config) {
			c.DNS = []config.DNSFile{{Format: "hosts", Path: "/a", Reload: []string{"./a"}}}
		}, `dns.reload.hosts: "./a" depends on the working directory`},
		{"reload as a line", nil, func(c *config.Config) {
			c.DNS = []config.DNSFile{{Format: "hosts", Path: "/a", Reload: []string{"a b"}}}
		}, "write each argument as a separate string"},
		{"reload with NUL", nil, func(c *config.Config) {
			c.DNS = []config.DNSFile{{Format: "hosts", Path: "/a", Reload: []string{"a", "\x00"}}}
		}, "has a NUL in it"},
		{"interface in both", nil, func(c *config.Config) { c.LAN = []string{"wan0"} }, `interfaces.lan: "wan0" is already in interfaces.wan; an interface has one side: if clients, servers and the Internet are all behind it, name it in interfaces.lan alone`},
		{"interface twice on a side", nil, func(c *config.Config) { c.LAN = []string{"lan0", "lan0"} }, `interfaces.lan: "lan0" is already in interfaces.lan`},
		{"interface name", nil, func(c *config.Config) { c.LAN = []string{"a name that is too long"} }, "cannot be the name of an interface"},
		{"XDP_TX", nil, func(c *config.Config) { c.XDPTx = "offf" }, `datapath.xdp_tx: "offf" is not possible; did you mean "off"?`},
		{"mode", nil, func(c *config.Config) { c.Mode = "xpd" }, `datapath.mode: "xpd" is not a mode; did you mean "xdp"?`},
		{"too many of one client", nil, func(c *config.Config) { c.MaxPerSource = c.MaxConnections + 1 }, "datapath.max_per_source: 131073 is more than max_connections, 131072"},
		{"no connections", nil, func(c *config.Config) { c.MaxConnections = 0 }, "datapath.max_connections: 0 is out of range"},
		{"timeout", nil, func(c *config.Config) { c.Timeouts.UDP = time.Millisecond }, "timeouts.udp: 1ms is out of range"},
		{"opening timeout", nil, func(c *config.Config) { c.Timeouts.TCPOpening = time.Millisecond }, "timeouts.tcp_opening: 1ms is out of range"},
		{"closing timeout", nil, func(c *config.Config) { c.Timeouts.TCPClosing = 721 * time.Hour }, "timeouts.tcp_closing: 721h0m0s is out of range"},
		{"port hold", nil, func(c *config.Config) { c.Timeouts.PortHold = 0 }, "timeouts.port_hold: 0s is out of range"},
		{"grace below zero", nil, func(c *config.Config) { c.Timeouts.AddressGrace = -time.Second }, "timeouts.address_grace: -1s is out of range; it is 0s to 1h"},
		{"grace of a day", nil, func(c *config.Config) { c.Timeouts.AddressGrace = 24 * time.Hour }, "timeouts.address_grace: 24h0m0s is out of range; it is 0s to 1h"},
		{"refused side", nil, func(c *config.Config) { c.ICMP.Refuse = []string{"lna"} }, `icmp.refuse: "lna" is not a side; did you mean "lan"?`},
		{"refused side twice", nil, func(c *config.Config) { c.ICMP.Refuse = []string{"wan", "wan"} }, `icmp.refuse: "wan" is listed twice`},
		{"no ICMP at all", nil, func(c *config.Config) { c.ICMP.Rate = 0 }, "icmp.rate: 0 is out of range; it is 1 to 1000000 a second"},
		{"too much ICMP", nil, func(c *config.Config) { c.ICMP.Rate = 1_000_001 }, "icmp.rate: 1000001 is out of range"},
		{"clamp on no interface", nil, func(c *config.Config) { c.MSSClamp = []string{"wan0", "lan7"} }, `datapath.mss_clamp: "lan7" is in neither interfaces.wan nor interfaces.lan; did you mean "lan0"?`},
		{"clamp twice", nil, func(c *config.Config) { c.MSSClamp = []string{"wan0", "lan0", "wan0"} }, `datapath.mss_clamp: "wan0" is listed twice`},
		{"clamp without interfaces", nil, func(c *config.Config) { *c = config.Default(); c.MSSClamp = []string{"wan0"} }, `datapath.mss_clamp: "wan0" is in neither interfaces.wan nor interfaces.lan; no interface is configured`},
		{"private sources on a LAN", nil, func(c *config.Config) { c.PrivateSources = []string{"wan0", "lan0"} }, `interfaces.private_sources: "lan0" is a LAN interface where one of interfaces.wan was expected`},
		{"private sources nowhere", nil, func(c *config.Config) { c.PrivateSources = []string{"wan7"} }, `interfaces.private_sources: "wan7" is not a WAN interface; `},
		{"private sources twice", nil, func(c *config.Config) { c.PrivateSources = []string{"wan0", "wan0"} }, `interfaces.private_sources: "wan0" is listed twice`},
		{"reflection", nil, func(c *config.Config) { c.Reflection = "stand-in" }, `reflection.default: "stand-in" is not a reflect mode`},
		{"deny everybody", nil, func(c *config.Config) { c.Deny = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")} }, "deny.sources: 0.0.0.0/0 is every IPv4 address, so no forward would serve anybody"},
		{"deny everybody of IPv6", nil, func(c *config.Config) { c.Deny = []netip.Prefix{netip.MustParsePrefix("::/0")} }, "deny.sources: ::/0 is every IPv6 address"},
		{"deny twice", nil, func(c *config.Config) {
			c.Deny = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("192.0.2.1/32")}
		}, "deny.sources: 192.0.2.1 is listed twice"},
		{"too many leases", nil, func(c *config.Config) { c.Leases.Max = 4097 }, "leases.max: 4097 is out of range; it is 1 to 4096"},
		{"too many lease files", nil, func(c *config.Config) { c.Leases.Files = strings.Fields("/1 /2 /3 /4 /5 /6 /7 /8 /9") }, "leases.files: there are 9 files"},
		{"lease file twice", nil, func(c *config.Config) { c.Leases.Files = []string{"/a", "/a"} }, `leases.files: "/a" is listed twice`},
		{"lease file without a name", nil, func(c *config.Config) { c.Leases.Files = []string{""} }, "leases.files: it is empty"},
		{"deny no network", nil, func(c *config.Config) { c.Deny = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")} }, "deny.sources: 192.0.2.1/24 is not a network"},
		{"listen", nil, func(c *config.Config) { c.MetricsListen = "9845" }, "metrics.listen: "},
		{"log", nil, func(c *config.Config) { c.LogConnections = "jsonl" }, `log.connections: "jsonl" is not possible; did you mean "json"?`},

		{"same port", []string{"a tcp 80 to 10.0.0.1", "b tcp 80 to 10.0.0.2"}, nil, `forward "b": port: 80 is taken by forward "a"`},
		{"same port, one protocol in common", []string{"a tcp,udp 80 to 10.0.0.1", "b udp 80 to 10.0.0.2"}, nil, `forward "b": port: 80 is taken by forward "a"`},
		{"same range", []string{"a tcp wan0:6000-6010 to 10.0.0.1", "b tcp wan0:6000-6010 to 10.0.0.2"}, nil, "6000-6010 is taken"},
		{"equally long overlapping", []string{"a tcp 6000-6010 to 10.0.0.1", "b tcp 6005-6015 to 10.0.0.2"}, nil, `forward "b": port: 6005-6015 shares some ports with forward "a", which has 6000-6010`},
		{"partly overlapping", []string{"a tcp 6000-6010 to 10.0.0.1", "b tcp 6005-6100 to 10.0.0.2"}, nil, "shares some ports"},
		{"partly overlapping inside a larger one", []string{"o tcp 1-9000 to 10.0.0.1", "a tcp 6000-6010 to 10.0.0.1", "b tcp 6005-6100 to 10.0.0.2"}, nil, `forward "b": port: 6005-6100 shares some ports with forward "a"`},
		{"port of a protocol without", []string{"a gre any to 10.0.0.1"}, func(c *config.Config) { c.Forwards[0].Ports = rule.Ports{First: 80, Last: 80} }, `port: 80 is given, but protocol gre has no ports`},
		{"any and another", []string{"a tcp any to 10.0.0.1"}, func(c *config.Config) { c.Forwards[0].Protocols = []rule.Protocol{rule.TCP, rule.Any} }, `protocol: any means every protocol`},
		{"sctp to another port", []string{"a sctp 80 to 10.0.0.1"}, func(c *config.Config) { c.Forwards[0].TargetPort = 81 }, `to: target port 81 differs from external port 80, but ports of sctp cannot change`},
		{"two of one protocol", []string{"a icmp any to 10.0.0.1", "b gre,icmp any to 10.0.0.2"}, nil, `forward "b": port: icmp is taken by forward "a"`},
		{"two of every protocol", []string{"a any wan0:any to 10.0.0.1", "b any wan0:any to 10.0.0.2"}, nil, `forward "b": port: every protocol is taken by forward "a"`},
		{"two 1:1", []string{"a tcp wan0:any to 10.0.0.1", "b tcp wan0:any to 10.0.0.2"}, nil, `every port is taken by forward "a"`},
	} {
		c := mapstest.Config(t, test.lines...)
		if test.change != nil {
			test.change(&c)
		}
		err := c.Validate()
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v lacks %q", test.name, err, test.want)
		}
	}
}

func TestValidateTakes(t *testing.T) {
	for name, c := range map[string]config.Config{
		"the default": config.Default(),
		"different specificity": mapstest.Config(t, "a tcp 80 to 10.0.0.1", "b tcp wan0:80 to 10.0.0.2",
			"c tcp 203.0.113.1:80 to 10.0.0.3", "d tcp wan1:80 to 10.0.0.4", "e udp 80 to 10.0.0.5"),
		"a range in a range": mapstest.Config(t, "a tcp 6000-6010 to 10.0.0.1", "b tcp 6000 to 10.0.0.2", "c tcp 6010 to 10.0.0.2",
			"d tcp 6002-6004 to 10.0.0.2", "e tcp 6003 to 10.0.0.2", "f tcp any to 10.0.0.2"),
		"any under its protocols": mapstest.Config(t, "a any wan0:any to 10.0.0.1", "b tcp wan0:any to 10.0.0.2", "c tcp wan0:80 to 10.0.0.3",
			"d icmp,gre wan0:any to 10.0.0.4", "e any any to 10.0.0.5", "f any 203.0.113.1:any to 10.0.0.6"),
		"sctp to its own ports": mapstest.Config(t, "a sctp,tcp 80-90 to 10.0.0.1:80", "b sctp wan0:any to 10.0.0.2"),
		"every ICMP setting": func() config.Config {
			c := mapstest.Config(t)
			c.ICMP = config.ICMPErrors{Refuse: []string{"wan", "lan"}, Rate: 1_000_000}
			c.MSSClamp, c.Timeouts.TCPOpening, c.Timeouts.TCPClosing = []string{"wan1", "lan0"}, time.Second, 720*time.Hour
			return c
		}(),
		"silence": func() config.Config {
			c := mapstest.Config(t)
			c.ICMP.Refuse, c.MSSClamp, c.PrivateSources = []string{}, []string{}, []string{}
			return c
		}(),
		"private sources": func() config.Config {
			c := mapstest.Config(t)
			c.PrivateSources = []string{"wan1", "wan0"}
			return c
		}(),
		"one after the other": mapstest.Config(t, "a tcp 6000-6010 to 10.0.0.1", "b tcp 6011-6020 to 10.0.0.1"),
		"hosts": func() config.Config {
			c := mapstest.Config(t, "a tcp 80 to 10.0.0.1")
			c.Forwards[0].Hosts = []string{"www.example.org"}
			return c
		}(),
		"files of names": func() config.Config {
			c := mapstest.Config(t)
			c.DNS = []config.DNSFile{{Format: config.DNSHosts, Path: "/run/a b"}, {Format: config.DNSUnbound, Path: "/b", Reload: []string{"/bin/true", "a b", ""}}}
			return c
		}(),
		"no metrics": func() config.Config { c := config.Default(); c.MetricsListen = ""; return c }(),
	} {
		if err := c.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestValidateReportsEverything(t *testing.T) {
	c := mapstest.Config(t, "a tcp 80 to 127.0.0.1", "a tcp 80 to 10.0.0.1", "b tcp nix:80 to 0.0.0.0")
	c.Mode = ""
	var fields []string
	for _, p := range rule.Problems(c.Validate()) {
		fields = append(fields, fmt.Sprintf("%d %s", p.Index, p.Field))
	}
	want := "-1 datapath.mode, 0 to, 1 name, 2 to, 2 external, 1 port"
	if got := strings.Join(fields, ", "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestValidateIsFastForManyForwards(t *testing.T) {
	c := mapstest.ManyForwards(65535)
	start := time.Now()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	for i := range c.Forwards {
		c.Forwards[i].Ports = rule.Ports{First: 80, Last: 80}
	}
	if problems := rule.Problems(c.Validate()); len(problems) != len(c.Forwards)-1 {
		t.Errorf("%d problems", len(problems))
	}
	t.Log(time.Since(start))
}

func TestCheckAddresses(t *testing.T) {
	ifs := []config.Interface{
		{Name: "lan0", Role: config.RoleLAN, Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.1.1/24")}},
		{Name: "wan0", Role: config.RoleWAN, Addresses: []netip.Prefix{netip.MustParsePrefix("203.0.113.9/31"), netip.MustParsePrefix("2001:db8::1/64")}},
	}
	for target, want := range map[string]string{
		"192.168.1.1":   "192.168.1.1 is this router's own address on lan0",
		"203.0.113.9":   "203.0.113.9 is this router's own address on wan0",
		"192.168.1.0":   "192.168.1.0 is the network of lan0",
		"192.168.1.255": "192.168.1.255 is the broadcast address of lan0",
		"192.168.1.20":  "",
		"203.0.113.8":   "",
		"10.9.9.9":      "",
	} {
		err := mapstest.Config(t, "a tcp 80 to "+target).CheckAddresses(ifs)
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", target, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: error %v lacks %q", target, err, want)
		}
	}
}

// A disabled forward may share its ports with another forward, and need not fit the interfaces; but it must be right in itself, and
// its name is its own.
func TestValidateDisabledForwards(t *testing.T) {
	c := mapstest.Config(t, "a tcp 80 to 10.0.0.1", "b tcp 80 to 10.0.0.2", "c tcp wan7:80 to 10.0.0.2")
	c.Forwards[1].Disabled, c.Forwards[2].Disabled = true, true
	c.Split()
	if err := c.Validate(); err != nil || len(c.Forwards) != 1 || len(c.Disabled) != 2 {
		t.Errorf("%d forwards, %d disabled, %v", len(c.Forwards), len(c.Disabled), err)
	}
	c.Disabled[0].Name, c.Disabled[1].TargetPort = "a", 0
	c.Disabled[1].Protocols = nil
	err := c.Validate()
	for _, want := range []string{"the name is taken by another forward", "no protocol is given"} {
		if !mapstest.Contains(err, want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
}

func TestEndsText(t *testing.T) {
	for want, ends := range map[string]map[string]int{
		"":                                  nil,
		"ends 1 connection of forward web":  {"web": 1},
		"ends 2 connections of forward web": {"web": 2},
		"ends 12 connections of forwards mail, web":                        {"web": 9, "mail": 3},
		"ends 9 connections of forwards a, b, c, d, e, f, g, h and 1 more": {"a": 1, "b": 1, "c": 1, "d": 1, "e": 1, "f": 1, "g": 1, "h": 1, "i": 1},
	} {
		if got := (config.Change{Ends: ends}).EndsText(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
