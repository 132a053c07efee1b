// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"fmt"
	"net/netip"
	"testing"

	"hairpin/maps/config"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

func TestInterceptsAreWrittenAlike(t *testing.T) {
	for _, line := range []string{
		"dns udp,tcp 53 to 192.168.1.1:53",
		"dns udp lan0,lan1:53-54 to [fd00::1]:5353-5354 except fd00::2/128,fd00:1::/64 reflect prefix",
	} {
		if got := mapstest.Intercept(t, line).String(); got != line {
			t.Errorf("%s is written %s", line, got)
		}
	}
}

func TestValidateRefusesIntercepts(t *testing.T) {
	for _, test := range []struct {
		name   string
		lines  []string
		change func(*config.Config)
		want   string
	}{
		{"icmp", []string{"a udp 53 to 10.0.0.1"}, func(c *config.Config) { c.Forwards[0].Protocols = []rule.Protocol{rule.UDP, rule.ICMP} }, `intercept "a": protocol: icmp cannot be intercepted: only tcp and udp have ports`},
		{"sctp", []string{"a sctp 53 to 10.0.0.1"}, nil, `intercept "a": protocol: sctp cannot be intercepted`},
		{"any", []string{"a any 53 to 10.0.0.1"}, nil, `intercept "a": protocol: any cannot be intercepted`},
		{"no protocol", []string{"a udp 53 to 10.0.0.1"}, func(c *config.Config) { c.Forwards[0].Protocols = nil }, `intercept "a": protocol: no protocol is given`},
		{"protocol twice", []string{"a udp,udp 53 to 10.0.0.1"}, nil, "udp is there twice"},
		{"every port", []string{"a udp 53 to 10.0.0.1"}, func(c *config.Config) { c.Forwards[0].Ports = rule.Ports{} }, `port: no port is given, so the intercept would redirect everything`},
		{"bad port", []string{"a udp 53 to 10.0.0.1"}, func(c *config.Config) { c.Forwards[0].Ports = rule.Ports{First: 0, Last: 53} }, `port: 0-53 is not a range`},
		{"name", []string{"A udp 53 to 10.0.0.1"}, nil, `intercept "A": name: "A" is not a name for an intercept`},
		{"same name", []string{"a udp 53 to 10.0.0.1", "a udp 54 to 10.0.0.1"}, nil, `intercept "a": name: the name is taken by another intercept`},
		{"name of a forward", []string{"a udp 53 to 10.0.0.1"}, func(c *config.Config) { c.Forwards = append(c.Forwards, mapstest.Forward(t, "a tcp 80 to 10.0.0.2")) }, `forward "a": name: the name is taken by an intercept`},
		{"unknown LAN", []string{"a udp lan9:53 to 10.0.0.1"}, nil, `intercept "a": lan: "lan9" is not a LAN interface; did you mean "lan0"?`},
		{"WAN", []string{"a udp wan0:53 to 10.0.0.1"}, nil, `lan: "wan0" is a WAN interface where one of interfaces.lan was expected`},
		{"LAN twice", []string{"a udp lan0,lan0:53 to 10.0.0.1"}, nil, `lan: "lan0" is there twice`},
		{"no LAN", []string{"a udp 53 to 10.0.0.1"}, func(c *config.Config) { c.LAN = nil }, "lan: the intercept is for every LAN interface, but none is configured"},
		{"a name, and no LAN", []string{"a udp lan0:53 to 10.0.0.1"}, func(c *config.Config) { c.LAN = nil }, `"lan0" is not a LAN interface; no LAN interface is configured`},

		{"target 0.0.0.0", []string{"a udp 53 to 0.0.0.0"}, nil, "to: 0.0.0.0 is not an address of a host"},
		{"target ::", []string{"a udp 53 to ::"}, nil, "to: :: is not an address of a host"},
		{"loopback target", []string{"a udp 53 to 127.0.0.1"}, nil, "to: 127.0.0.1 is a loopback address"},
		{"multicast target", []string{"a udp 53 to 224.0.0.251"}, nil, "is a multicast address"},
		{"multicast target of IPv6", []string{"a udp 53 to ff02::fb"}, nil, "is a multicast address"},
		{"link-local target", []string{"a udp 53 to fe80::1"}, nil, "is a link-local address"},
		{"broadcast target", []string{"a udp 53 to 255.255.255.255"}, nil, "is the broadcast address"},
		{"an external address", []string{"a udp 53 to 203.0.113.1"}, func(c *config.Config) {
			c.Forwards = append(c.Forwards, mapstest.Forward(t, "web tcp 203.0.113.1:80 to 10.0.0.2"))
		}, `intercept "a": to: 203.0.113.1 is the external address of forward "web"`},
		{"ports past the end", []string{"a udp 1-100 to 10.0.0.1:65500"}, nil, "100 ports from 65500 on end at 65599"},

		{"except of the other family", []string{"a udp 53 to 10.0.0.1 except fd00::1"}, nil, `intercept "a": except: fd00::1/128 is an IPv6 network, but the target 10.0.0.1 is IPv4`},
		{"except everybody", []string{"a udp 53 to 10.0.0.1 except 0.0.0.0/0"}, nil, "except: 0.0.0.0/0 contains every address, so nothing would be intercepted"},
		{"except no network", []string{"a udp 53 to 10.0.0.1"}, func(c *config.Config) { c.Forwards[0].Except = []netip.Prefix{{}} }, "is not a network"},
		{"public", []string{"a udp 53 to 10.0.0.1 reflect public"}, nil, `intercept "a": reflect: an intercept cannot use public: the target would see the address of the host that the client asked`},
		{"off", []string{"a udp 53 to 10.0.0.1 reflect off"}, nil, `reflect: off refuses LAN clients, and an intercept has only LAN clients`},
		{"what is no mode", []string{"a udp 53 to 10.0.0.1 reflect atuo"}, nil, `reflect: "atuo" is not a reflect mode; did you mean "auto"?`},
		{"prefix without", []string{"a udp 53 to 10.0.0.1 reflect prefix"}, nil, "reflect: the mode is prefix, but reflection.prefixes has no IPv4 network"},

		{"same port of one LAN", []string{"a udp,tcp lan0:53 to 10.0.0.1", "b udp lan1,lan0:53 to 10.0.0.2"}, nil, `intercept "b": port: 53 is taken by intercept "a"`},
		{"same port of every LAN", []string{"a udp 53 to 10.0.0.1", "b udp 53 to 10.0.0.2"}, nil, `intercept "b": port: 53 is taken by intercept "a"`},
		{"ports in common", []string{"a udp lan0:50-60 to 10.0.0.1", "b udp lan0:55-65 to 10.0.0.1"}, nil, `intercept "b": port: 55-65 shares some ports with intercept "a", which has 50-60`},
		{"a loop", []string{"a udp lan0:53 to 10.0.0.1", "b udp lan1:53 to 10.0.0.2"}, nil, `intercept "a": to: intercept "b" would redirect the queries of target 10.0.0.1 to 10.0.0.2, so queries could loop; add 10.0.0.1 to except of that intercept`},
		{"the other half of it", []string{"a udp lan0:53 to 10.0.0.1", "b udp lan1:53 to 10.0.0.2"}, nil, `intercept "b": to: intercept "a" would redirect the queries of target 10.0.0.2 to 10.0.0.1`},
		{"a loop of ranges", []string{"a udp lan0:50-60 to 10.0.0.1 except 10.0.0.2", "b tcp,udp 60-70 to 10.0.0.2"}, nil, `intercept "a": to: intercept "b" would redirect the queries of target 10.0.0.1`},
		{"a loop of IPv6", []string{"a udp lan0:53 to fd00::1", "b udp 53 to fd00::2 except fd00::1:0:0:0/80"}, nil, `intercept "a": to: intercept "b" would redirect the queries of target fd00::1`},
	} {
		c := mapstest.Intercepts(t, test.lines...)
		if test.change != nil {
			test.change(&c)
		}
		if err := c.Validate(); !mapstest.Contains(err, test.want) {
			t.Errorf("%s: error %v lacks %q", test.name, err, test.want)
		}
	}
}

func TestValidateTakesIntercepts(t *testing.T) {
	for name, c := range map[string]config.Config{
		"of each family":         mapstest.Intercepts(t, "a udp,tcp 53 to 10.0.0.1:5353", "b udp,tcp 53 to fd00::1"),
		"of each protocol":       mapstest.Intercepts(t, "a udp 53 to 10.0.0.1", "b tcp 53 to 10.0.0.2"),
		"one target":             mapstest.Intercepts(t, "a udp lan0:53 to 10.0.0.1", "b udp lan1:53 to 10.0.0.1:54"),
		"more and less specific": mapstest.Intercepts(t, "a udp 53 to 10.0.0.1 except 10.0.0.2", "b udp lan0:53 to 10.0.0.2 except 10.0.0.0/24", "c udp 50-60 to 10.0.0.1 except 10.0.0.2"),
		"other ports":            mapstest.Intercepts(t, "a udp 53 to 10.0.0.1", "b udp 123 to 10.0.0.2"),
		"beside forwards": func() config.Config {
			c := mapstest.Intercepts(t, "a udp 53 to 10.0.0.1")
			c.Forwards = append(c.Forwards, mapstest.Forward(t, "dns udp 53 to 10.0.0.2"))
			return c
		}(),
		"whatever the default": func() config.Config {
			c := mapstest.Intercepts(t, "a udp 53 to 10.0.0.1")
			c.Reflection = rule.ReflectOff
			return c
		}(),
		"by stand-ins": func() config.Config {
			c := mapstest.Intercepts(t, "a udp 53 to 10.0.0.1 reflect prefix")
			c.StandIns = mapstest.StandIns("192.168.1.0/24 198.18.1.0/24")
			return c
		}(),
	} {
		if err := c.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestManyInterceptsAreCheckedFast(t *testing.T) {
	c := mapstest.Intercepts(t)
	for i := range 65535 {
		c.Forwards = append(c.Forwards, rule.Forward{
			Intercept: true, Name: fmt.Sprintf("i%d", i), Protocols: []rule.Protocol{rule.UDP}, Ports: rule.Ports{First: uint16(i + 1), Last: uint16(i + 1)},
			Target: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i) | 1}),
		})
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	for i := range c.Forwards {
		c.Forwards[i].Ports = rule.Ports{First: 53, Last: 53}
	}
	if problems := len(rule.Problems(c.Validate())); problems != len(c.Forwards)-1 {
		t.Errorf("%d problems", problems)
	}
}

// The target of an intercept may be the router itself, but not an address that no host can have.
func TestCheckAddressesOfIntercepts(t *testing.T) {
	ifs := []config.Interface{{Name: "lan0", Role: config.RoleLAN, Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.1.1/24"), netip.MustParsePrefix("fd00:1::1/64")}}}
	for target, want := range map[string]string{
		"192.168.1.1":   "",
		"fd00:1::1":     "",
		"192.168.1.20":  "",
		"192.168.1.0":   "192.168.1.0 is the network of lan0",
		"192.168.1.255": "192.168.1.255 is the broadcast address of lan0",
		"fd00:1::":      "subnet-router anycast",
	} {
		err := mapstest.Intercepts(t, "a udp 53 to "+target).CheckAddresses(ifs)
		if want == "" && err != nil || want != "" && !mapstest.Contains(err, want) {
			t.Errorf("%s: error %v, want %q", target, err, want)
		}
	}
}
