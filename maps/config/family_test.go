// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hairpin/maps/config"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

func TestForwardsOfIPv6(t *testing.T) {
	prefix := netip.MustParsePrefix
	for _, test := range []struct {
		line, written string // written: the result of String; "": equal to line
		want          rule.Forward
	}{
		{"web tcp [2001:db8::1]:443 to [fd00::20]:8443", "", rule.Forward{
			Protocols: []rule.Protocol{rule.TCP}, External: rule.External{Address: netip.MustParseAddr("2001:db8::1")}, Ports: rule.Ports{First: 443, Last: 443}, TargetPort: 8443,
		}},
		{"web udp wan0:6000-6010 to [fd00::20]:7000-7010 from 2001:db8::/32,::/0,2001:db8::9 reflect router",
			"web udp wan0:6000-6010 to [fd00::20]:7000-7010 from 2001:db8::/32,::/0,2001:db8::9/128 reflect router", rule.Forward{
				Protocols: []rule.Protocol{rule.UDP}, External: rule.External{Interface: "wan0"}, Ports: rule.Ports{First: 6000, Last: 6010}, TargetPort: 7000,
				From: []netip.Prefix{prefix("2001:db8::/32"), prefix("::/0"), prefix("2001:db8::9/128")}, Reflect: rule.ReflectRouter,
			}},
		{"web tcp 443 to fd00::20", "web tcp 443 to [fd00::20]:443", rule.Forward{Protocols: []rule.Protocol{rule.TCP}, Ports: rule.Ports{First: 443, Last: 443}}},
		{"web tcp 443 to [FD00:0::20]", "web tcp 443 to [fd00::20]:443", rule.Forward{Protocols: []rule.Protocol{rule.TCP}, Ports: rule.Ports{First: 443, Last: 443}}},
		{"web any any to fd00::20", "", rule.Forward{Protocols: []rule.Protocol{rule.Any}}},
		{"web icmp [2001:db8::1]:any to [fd00::20]", "web icmp [2001:db8::1]:any to fd00::20", rule.Forward{
			Protocols: []rule.Protocol{rule.ICMP}, External: rule.External{Address: netip.MustParseAddr("2001:db8::1")},
		}},
	} {
		test.want.Name, test.want.Target = "web", netip.MustParseAddr("fd00::20")
		f := mapstest.Forward(t, test.line)
		if diff := cmp.Diff(test.want, f, mapstest.NetipValues); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", test.line, diff)
		}
		if test.written == "" {
			test.written = test.line
		}
		if f.String() != test.written {
			t.Errorf("%s: String gives %s", test.line, f)
		}
		if again := mapstest.Forward(t, f.String()); again.String() != f.String() {
			t.Errorf("%s: read again it is %s", f, again)
		}
		if err := mapstest.Config(t, test.line).Validate(); err != nil {
			t.Errorf("%s: %v", test.line, err)
		}
	}
}

// Wrong IPv6 forwards are refused when they are parsed, before the datapath is opened.
func TestWrongForwardsOfIPv6(t *testing.T) {
	for line, want := range map[string]string{
		"a tcp [2001:db8::1]:443 to 10.0.0.1":                        "to: 10.0.0.1 is an IPv4 address, but the external address 2001:db8::1 is IPv6; a forward cannot change the family",
		"a tcp 203.0.113.1:443 to fd00::1":                           "to: fd00::1 is an IPv6 address, but the external address 203.0.113.1 is IPv4",
		"a tcp 443 to 10.0.0.1 from ::/0":                            "from: ::/0 is an IPv6 network, but the target 10.0.0.1 is IPv4",
		"a tcp 443 to fd00::1 from 2001:db8::/32,0.0.0.0/0":          "from: 0.0.0.0/0 is an IPv4 network, but the target fd00::1 is IPv6",
		"a tcp 443 to fd00::1 from 2001:db8::1/32":                   "write 2001:db8::/32",
		"a tcp 443 to fd00::1 from 2001:db8::/129":                   "is not a network",
		"a tcp 443 to fd00::1 from ::ffff:10.0.0.0/104":              "is an IPv4-mapped address; write 10.0.0.0/8",
		"a tcp 443 to ::ffff:10.0.0.1":                               "is an IPv4-mapped address; write 10.0.0.1",
		"a tcp 443 to [::ffff:10.0.0.1]:443":                         "is an IPv4-mapped address; write 10.0.0.1",
		"a tcp [::ffff:203.0.113.1]:443 to 10.0.0.1":                 "external: ",
		"a tcp 443 to fe80::1%lan0":                                  "has a zone",
		"a tcp 443 to [fd00::1":                                      `"[fd00:" is not an address`,
		"a tcp 443 to fd00::1]:443":                                  `"fd00::1]:443" is not an address`,
		"a tcp 443 to [10.0.0.1]:443":                                `"[10.0.0.1]" is not an address`,
		"a tcp 443 to [fd00::1]443":                                  "is not an address",
		"a tcp 443 to [fd00::1]:":                                    "ends where a port was expected",
		"a tcp 443 to fd00:::1":                                      `"fd00:::1" is not an address`,
		"a tcp 443 to 2001:db8:1:2:3:4:5:6:443":                      "an IPv6 address with a port, which needs brackets; write [2001:db8:1:2:3:4:5:6]:443",
		"a tcp 2001:db8:1:2:3:4:5:6:443 to fd00::1":                  "external: \"2001:db8:1:2:3:4:5:6:443\" is an IPv6 address with a port",
		"a tcp 2001:db8::1 to fd00::1":                               "has no port; write [2001:db8::1]:443, or [2001:db8::1]:any",
		"a tcp [2001:db8::1] to fd00::1":                             "has no port; write [2001:db8::1]:443",
		"a sctp [2001:db8::1]:1 to [fd00::1]:2":                      "ports of sctp cannot change",
		"a icmp 1 to fd00::1":                                        "icmp has no ports",
		"a tcp [2001:db8::1]:443 to [fd00::1]:443 from fd00::/8,x:y": "is not an address",
	} {
		if _, err := rule.ParseForward(strings.Fields(line)); !mapstest.Contains(err, want) {
			t.Errorf("%s: error %v lacks %q", line, err, want)
		}
	}
}

func TestAddressesThatAreNoHosts(t *testing.T) {
	for addr, want := range map[string]string{
		"::":               "is not an address of a host",
		"::1":              "is a loopback address",
		"ff02::1":          "is a multicast address",
		"ff0e::1":          "is a multicast address",
		"fe80::1":          "is a link-local address, which routers do not forward to",
		"::ffff:10.0.0.1":  "is an IPv4-mapped address; write 10.0.0.1",
		"::ffff:127.0.0.1": "is an IPv4-mapped address",
	} {
		at := netip.MustParseAddr(addr)
		c := mapstest.Config(t, "a tcp 80 to fd00::1", "b tcp [2001:db8::1]:81 to fd00::1")
		c.Forwards[0].Target, c.Forwards[1].External.Address = at, at
		fields := ""
		for _, p := range rule.Problems(c.Validate()) {
			if strings.Contains(p.Message, want) {
				fields += p.Field + " "
			}
		}
		if fields != "to external " {
			t.Errorf("%s: %q refused for %q: %v", addr, fields, want, c.Validate())
		}
	}
	c := mapstest.Config(t, "a tcp [2001:db8::1]:80 to fd00::1")
	for _, cross := range []func(){
		func() { c.Forwards[0].Target = netip.MustParseAddr("10.0.0.1") },
		func() { c.Forwards[0].External.Address = netip.MustParseAddr("203.0.113.1") },
	} {
		before := c.Forwards[0]
		cross()
		if err := c.Validate(); !mapstest.Contains(err, "a forward cannot change the family") {
			t.Errorf("%s: %v", c.Forwards[0], err)
		}
		c.Forwards[0] = before
	}
	c.Forwards[0].From = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	if err := c.Validate(); !mapstest.Contains(err, "from: 10.0.0.0/8 is an IPv4 network") {
		t.Error(err)
	}
}

// An IPv4 and an IPv6 forward may have equal ports; two forwards of one family may not.
func TestFamiliesDoNotConflict(t *testing.T) {
	c := mapstest.Config(t, "a tcp 80 to 10.0.0.1", "a6 tcp 80 to fd00::1", "b any wan0:any to 10.0.0.2", "b6 any wan0:any to fd00::2")
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	for line, want := range map[string]string{
		"c tcp 80 to fd00::3":       `80 is taken by forward "a6"`,
		"c any wan0:any to fd00::3": `every protocol is taken by forward "b6"`,
		"c tcp 80 to 10.0.0.3":      `80 is taken by forward "a"`,
	} {
		if err := mapstest.Config(t, "a tcp 80 to 10.0.0.1", "a6 tcp 80 to fd00::1", "b any wan0:any to 10.0.0.2", "b6 any wan0:any to fd00::2", line).Validate(); !mapstest.Contains(err, want) {
			t.Errorf("%s: error %v lacks %q", line, err, want)
		}
	}
	ring := mapstest.Config(t, "a tcp [2001:db8::1]:80 to 2001:db8::2", "b tcp [2001:db8::2]:80 to fd00::1")
	if err := ring.Validate(); !mapstest.Contains(err, `2001:db8::2 is the external address of forward "b"`) {
		t.Error(err)
	}
}

func TestCheckAddressesOfIPv6(t *testing.T) {
	ifs := []config.Interface{
		{Name: "lan0", Addresses: []netip.Prefix{netip.MustParsePrefix("fd00::1/64"), netip.MustParsePrefix("fe80::1/64")}},
		{Name: "wan0", Addresses: []netip.Prefix{netip.MustParsePrefix("2001:db8::3/127"), netip.MustParsePrefix("2001:db8:1::9/128")},
			Passive: []netip.Prefix{netip.MustParsePrefix("2001:db8:2::5/64")}},
	}
	for target, want := range map[string]string{
		"fd00::1":                  "fd00::1 is this router's own address on lan0",
		"fd00::":                   "fd00:: is every router's address on the network of lan0",
		"2001:db8:1::9":            "is this router's own address on wan0",
		"2001:db8:2::5":            "is this router's own address on wan0",
		"2001:db8::2":              "", // the other router of a /127 link, RFC 6164
		"fd00::ffff:ffff:ffff:ff":  "",
		"fd00::20":                 "",
		"2001:db8:9::1":            "",
		"fd00::ffff:ffff:ffff:fff": "",
	} {
		err := mapstest.Config(t, "a tcp 80 to "+target).CheckAddresses(ifs)
		if want == "" && err != nil || want != "" && !mapstest.Contains(err, want) {
			t.Errorf("%s: error %v, want %q", target, err, want)
		}
	}
}
