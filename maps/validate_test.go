// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func configWith(t testing.TB, lines ...string) Config {
	t.Helper()
	c := DefaultConfig()
	c.WAN, c.LAN = []string{"wan0", "wan1"}, []string{"lan0"}
	for _, line := range lines {
		c.Forwards = append(c.Forwards, mustForward(t, line))
	}
	return c
}

func TestValidateRefuses(t *testing.T) {
	for _, test := range []struct {
		name   string
		lines  []string
		change func(*Config)
		want   string
	}{
		{"target 0.0.0.0", []string{"a tcp 80 to 0.0.0.0"}, nil, "to: 0.0.0.0 is no address of a host"},
		{"loopback target", []string{"a tcp 80 to 127.0.0.1"}, nil, "127.0.0.1 is a loopback address"},
		{"multicast target", []string{"a tcp 80 to 224.0.0.1"}, nil, "is a multicast address"},
		{"broadcast target", []string{"a tcp 80 to 255.255.255.255"}, nil, "is the broadcast address"},
		{"class E target", []string{"a tcp 80 to 240.0.0.1"}, nil, "is a reserved address"},
		{"loopback external", []string{"a tcp 127.0.0.1:80 to 10.0.0.1"}, nil, "external: 127.0.0.1 is a loopback address"},
		{"forward to itself", []string{"a tcp 203.0.113.1:80 to 203.0.113.1:81"}, nil, `203.0.113.1 is the external address of forward "a"`},
		{"two forwards in a ring", []string{"a tcp 203.0.113.1:80 to 203.0.113.2:80", "b tcp 203.0.113.2:80 to 203.0.113.1:80"}, nil, `forward "b": to: 203.0.113.1 is the external address of forward "a"`},
		{"target ports past the end", []string{"a tcp 1-100 to 10.0.0.1:65500"}, nil, "100 ports from 65500 on end at 65599, but 65535 is the last there is"},
		{"same name", []string{"a tcp 80 to 10.0.0.1", "a tcp 81 to 10.0.0.1"}, nil, `forward "a": name: the name is taken by another forward`},
		{"unknown interface", []string{"a tcp wan9:80 to 10.0.0.1"}, nil, `external: "wan9" is not a WAN interface; did you mean "wan0"?`},
		{"LAN interface", []string{"a tcp lan0:80 to 10.0.0.1"}, nil, `"lan0" is not a WAN interface`},
		{"no WAN interface", []string{"a tcp 80 to 10.0.0.1"}, func(c *Config) { c.WAN = nil }, "none is configured"},
		{"no protocol", []string{"a tcp 80 to 10.0.0.1"}, func(c *Config) { c.Forwards[0].Protocols = nil }, "protocol: there is none"},
		{"foreign protocol", []string{"a tcp 80 to 10.0.0.1"}, func(c *Config) { c.Forwards[0].Protocols = []Protocol{47} }, `"protocol-47" is not a supported protocol`},
		{"no target", []string{"a tcp 80 to 10.0.0.1"}, func(c *Config) { c.Forwards[0].Target = netip.Addr{} }, "there is no target"},
		{"IPv6 target", []string{"a tcp 80 to 10.0.0.1"}, func(c *Config) { c.Forwards[0].Target = netip.MustParseAddr("2001:db8::1") }, "IPv6 forwards are not supported by this version"},
		{"port 0", []string{"a tcp 80 to 10.0.0.1"}, func(c *Config) { c.Forwards[0].Ports.First = 0 }, "0-80 is not a range of ports"},
		{"bad host", []string{"a tcp 80 to 10.0.0.1"}, func(c *Config) { c.Forwards[0].Hosts = []string{"a b"} }, `hosts: "a b" is not a host name`},
		{"interface in both", nil, func(c *Config) { c.LAN = []string{"wan0"} }, `interfaces.lan: "wan0" is already in interfaces.wan`},
		{"interface name", nil, func(c *Config) { c.LAN = []string{"a name that is too long"} }, "cannot be the name of an interface"},
		{"mode", nil, func(c *Config) { c.Mode = "xpd" }, `datapath.mode: "xpd" is not a mode; did you mean "xdp"?`},
		{"no connections", nil, func(c *Config) { c.MaxConnections = 0 }, "datapath.max_connections: 0 is out of range"},
		{"timeout", nil, func(c *Config) { c.Timeouts.UDP = time.Millisecond }, "timeouts.udp: 1ms is out of range"},
		{"reflection", nil, func(c *Config) { c.Reflection = "prefix" }, "reflection.default: "},
		{"listen", nil, func(c *Config) { c.MetricsListen = "9845" }, "metrics.listen: "},

		{"same port", []string{"a tcp 80 to 10.0.0.1", "b tcp 80 to 10.0.0.2"}, nil, `forward "b": port: 80 is taken by forward "a"`},
		{"same port, one protocol in common", []string{"a tcp,udp 80 to 10.0.0.1", "b udp 80 to 10.0.0.2"}, nil, `forward "b": port: 80 is taken by forward "a"`},
		{"same range", []string{"a tcp wan0:6000-6010 to 10.0.0.1", "b tcp wan0:6000-6010 to 10.0.0.2"}, nil, "6000-6010 is taken"},
		{"equally long overlapping", []string{"a tcp 6000-6010 to 10.0.0.1", "b tcp 6005-6015 to 10.0.0.2"}, nil, `forward "b": port: 6005-6015 shares some ports with forward "a", which has 6000-6010`},
		{"partly overlapping", []string{"a tcp 6000-6010 to 10.0.0.1", "b tcp 6005-6100 to 10.0.0.2"}, nil, "shares some ports"},
		{"partly overlapping inside a larger one", []string{"o tcp 1-9000 to 10.0.0.1", "a tcp 6000-6010 to 10.0.0.1", "b tcp 6005-6100 to 10.0.0.2"}, nil, `forward "b": port: 6005-6100 shares some ports with forward "a"`},
		{"two 1:1", []string{"a tcp wan0:any to 10.0.0.1", "b tcp wan0:any to 10.0.0.2"}, nil, `every port is taken by forward "a"`},
	} {
		c := configWith(t, test.lines...)
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
	for name, c := range map[string]Config{
		"the default": DefaultConfig(),
		"different specificity": configWith(t, "a tcp 80 to 10.0.0.1", "b tcp wan0:80 to 10.0.0.2",
			"c tcp 203.0.113.1:80 to 10.0.0.3", "d tcp wan1:80 to 10.0.0.4", "e udp 80 to 10.0.0.5"),
		"a range in a range": configWith(t, "a tcp 6000-6010 to 10.0.0.1", "b tcp 6000 to 10.0.0.2", "c tcp 6010 to 10.0.0.2",
			"d tcp 6002-6004 to 10.0.0.2", "e tcp 6003 to 10.0.0.2", "f tcp any to 10.0.0.2"),
		"one after the other": configWith(t, "a tcp 6000-6010 to 10.0.0.1", "b tcp 6011-6020 to 10.0.0.1"),
		"hosts": func() Config {
			c := configWith(t, "a tcp 80 to 10.0.0.1")
			c.Forwards[0].Hosts = []string{"www.example.org."}
			return c
		}(),
		"no metrics": func() Config { c := DefaultConfig(); c.MetricsListen = ""; return c }(),
	} {
		if err := c.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestValidateReportsEverything(t *testing.T) {
	c := configWith(t, "a tcp 80 to 127.0.0.1", "a tcp 80 to 10.0.0.1", "b tcp nix:80 to 0.0.0.0")
	c.Mode = ""
	var fields []string
	for _, p := range Problems(c.Validate()) {
		fields = append(fields, fmt.Sprintf("%d %s", p.Index, p.Field))
	}
	want := "-1 datapath.mode, 0 to, 1 name, 2 external, 2 to, 1 port"
	if got := strings.Join(fields, ", "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestValidateIsFastForManyForwards(t *testing.T) {
	c := manyForwards(65535)
	start := time.Now()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	for i := range c.Forwards {
		c.Forwards[i].Ports = Ports{80, 80}
	}
	if problems := Problems(c.Validate()); len(problems) != len(c.Forwards)-1 {
		t.Errorf("%d problems", len(problems))
	}
	t.Log(time.Since(start))
}

// manyForwards is n forwards of one port each.
func manyForwards(n int) Config {
	c := DefaultConfig()
	c.WAN = []string{"wan0"}
	for i := range n {
		c.Forwards = append(c.Forwards, Forward{
			Name:      fmt.Sprintf("f%d", i),
			Protocols: []Protocol{TCP},
			Ports:     Ports{uint16(i + 1), uint16(i + 1)},
			Target:    netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i) | 1}),
		})
	}
	return c
}

func TestCheckAddresses(t *testing.T) {
	ifs := []Interface{
		{Name: "lan0", Role: RoleLAN, Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.1.1/24")}},
		{Name: "wan0", Role: RoleWAN, Addresses: []netip.Prefix{netip.MustParsePrefix("203.0.113.9/31"), netip.MustParsePrefix("2001:db8::1/64")}},
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
		err := configWith(t, "a tcp 80 to "+target).CheckAddresses(ifs)
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", target, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: error %v lacks %q", target, err, want)
		}
	}
}
