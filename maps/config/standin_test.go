// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"net/netip"
	"testing"

	"hairpin/maps/config"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

func TestStandInsAreChecked(t *testing.T) {
	for _, test := range []struct {
		pairs []string
		want  string // "": valid
	}{
		{[]string{"192.168.1.0/24 198.18.1.0/24", "192.168.2.0/24 198.18.2.0/24", "fd00:1::/64 fd00:2::/64"}, ""},
		{[]string{"192.168.1.50/32 198.18.1.0/32"}, ""},
		{[]string{"192.168.1.0/24 198.18.1.0/25"}, `reflection.prefixes."192.168.1.0/24": 198.18.1.0/25 and the clients 192.168.1.0/24 differ in size`},
		{[]string{"10.0.0.0/32 2001:db8::/32"}, `2001:db8::/32 is IPv6, but the clients 10.0.0.0/32 are IPv4`},
		{[]string{"192.168.1.7/24 198.18.1.0/24"}, "192.168.1.7/24 is not a network"},
		{[]string{"192.168.1.0/24 198.18.1.7/24"}, "198.18.1.7/24 is not a network"},
		{[]string{"192.168.1.0/24 224.0.1.0/24"}, "224.0.1.0/24 contains multicast addresses, 224.0.0.0/4"},
		{[]string{"192.168.1.0/24 127.0.1.0/24"}, "127.0.1.0/24 contains loopback addresses"},
		{[]string{"169.254.1.0/24 198.18.1.0/24"}, "169.254.1.0/24 contains link-local addresses"},
		{[]string{"10.0.0.0/8 0.0.0.0/8"}, "0.0.0.0/8 contains addresses that no host has"},
		{[]string{"192.168.1.0/24 255.0.1.0/24"}, "contains reserved addresses"},
		{[]string{"64.0.0.0/2 128.0.0.0/2"}, "64.0.0.0/2 contains loopback addresses, 127.0.0.0/8"},
		{[]string{"fe80::/64 fd00::/64"}, "fe80::/64 contains link-local addresses"},
		{[]string{"fd00::/64 ff0e::/64"}, "ff0e::/64 contains multicast addresses"},
		{[]string{"fd00::/96 ::/96"}, "::/96 contains the loopback address"},
		{[]string{"192.168.1.0/24 192.168.1.0/24"}, "192.168.1.0/24 overlaps 192.168.1.0/24"},
		{[]string{"10.0.0.0/8 11.0.0.0/8", "10.1.0.0/16 12.0.0.0/16"}, `reflection.prefixes."10.1.0.0/16": 10.1.0.0/16 overlaps 10.0.0.0/8, whose stand-ins are 11.0.0.0/8; a client can have only one stand-in`},
		{[]string{"10.1.0.0/16 12.0.0.0/16", "10.0.0.0/8 11.0.0.0/8"}, `reflection.prefixes."10.0.0.0/8": 10.0.0.0/8 overlaps 10.1.0.0/16`},
		{[]string{"192.168.1.0/24 198.18.1.0/24", "192.168.2.0/24 198.18.1.0/24"}, `198.18.1.0/24 overlaps 198.18.1.0/24, the stand-ins of 192.168.1.0/24; a stand-in can have only one client`},
		{[]string{"192.168.1.0/24 192.168.2.0/24", "192.168.2.0/24 198.18.1.0/24"}, `192.168.2.0/24 overlaps 192.168.2.0/24, the stand-ins of 192.168.1.0/24; stand-ins must be unused addresses`},
		{[]string{"192.168.1.0/24 10.0.0.0/24"}, `10.0.0.0/24 contains 10.0.0.1, the target of forward "a"`},
		{[]string{"192.168.1.0/24 203.0.113.0/24"}, `203.0.113.0/24 contains 203.0.113.1, the external address of forward "b"`},
	} {
		c := mapstest.Config(t, "a tcp 80 to 10.0.0.1", "b tcp 203.0.113.1:80 to 10.0.0.2")
		c.StandIns = mapstest.StandIns(test.pairs...)
		problems := rule.Problems(c.Validate())
		if len(problems) > 1 || (len(problems) == 1) != (test.want != "") {
			t.Errorf("%q: %d problems, %v", test.pairs, len(problems), problems)
		}
		if len(problems) == 1 && !mapstest.Contains(problems[0], test.want) {
			t.Errorf("%q: %v lacks %q", test.pairs, problems[0], test.want)
		}
	}
}

func TestPrefixNeedsNetworksOfTheFamily(t *testing.T) {
	own, byDefault := `forward "a": reflect: the mode is prefix, but reflection.prefixes has no `, `forward "a": reflect: the mode is prefix by default, but reflection.prefixes has no `
	v4, v6 := "192.168.1.0/24 198.18.1.0/24", "fd00:1::/64 fd00:2::/64"
	for _, test := range []struct {
		line    string
		general rule.Reflect
		pairs   []string
		want    string
	}{
		{"a tcp 80 to 10.0.0.1 reflect prefix", "", nil, own + "IPv4 network"},
		{"a tcp 80 to 10.0.0.1 reflect prefix", "", []string{v6}, own + "IPv4 network"},
		{"a tcp 80 to fd00::1 reflect prefix", "", []string{v4}, own + "IPv6 network"},
		{"a tcp 80 to fd00::1 reflect prefix", "", []string{v4, v6}, ""},
		{"a tcp 80 to fd00::1", rule.ReflectPrefix, []string{v4}, byDefault + "IPv6 network"},
		{"a tcp 80 to fd00::1 reflect public", rule.ReflectPrefix, []string{v4}, ""},
		{"a tcp 80 to fd00::1", rule.ReflectPrefix, nil, "reflection.default: prefix needs stand-ins for the clients"},
	} {
		c := mapstest.Config(t, test.line)
		c.Reflection, c.StandIns = test.general, mapstest.StandIns(test.pairs...)
		problems := rule.Problems(c.Validate())
		if len(problems) > 1 || (len(problems) == 1) != (test.want != "") || len(problems) == 1 && !mapstest.Contains(problems[0], test.want) {
			t.Errorf("%s, default %q, %q: %v, want %q", test.line, test.general, test.pairs, problems, test.want)
		}
	}
}

func TestStandInsThatAreInUse(t *testing.T) {
	ifs := []config.Interface{
		{Name: "lan0", Role: config.RoleLAN, Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.1.1/24")}},
		{Name: "eth7", Passive: []netip.Prefix{netip.MustParsePrefix("fd00:7::1/64")}},
	}
	routes := []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("0.0.0.0/1"), netip.MustParsePrefix("128.0.0.0/1"), netip.MustParsePrefix("2000::/3"),
		netip.MustParsePrefix("10.8.0.0/16"), netip.MustParsePrefix("198.18.9.9/32"), netip.MustParsePrefix("2001:db8:7::/48"),
	}
	for pair, want := range map[string]string{
		"192.168.1.0/24 198.18.1.0/24":      "",
		"192.168.1.0/24 198.18.9.0/24":      "198.18.9.0/24 overlaps 198.18.9.9/32, to which this router has a route",
		"192.168.1.0/24 10.8.7.0/24":        "10.8.7.0/24 overlaps 10.8.0.0/16, to which this router has a route",
		"10.0.0.0/25 192.168.1.128/25":      `reflection.prefixes."10.0.0.0/25": 192.168.1.128/25 overlaps 192.168.1.0/24, the network of lan0`,
		"fd00:1::/64 fd00:7::/64":           "fd00:7::/64 overlaps fd00:7::/64, the network of eth7",
		"fd00:1::/64 2001:db8:7:8::/64":     "2001:db8:7:8::/64 overlaps 2001:db8:7::/48",
		"fd00:1::/64 2001:db8:8::/64":       "",
		"192.168.1.0/24 192.0.2.0/24":       "",
		"192.168.1.64/26 192.168.2.0/26":    "",
		"192.168.1.1/32 198.18.1.1/32":      "",
		"192.168.1.0/24 192.168.1.0/24":     "the network of lan0", // Validate refuses this pair too, with another message
		"198.18.0.0/16 172.16.0.0/16":       "",                    // only stand-ins must have no route; clients have one
		"10.8.0.0/16 172.16.0.0/16":         "",
		"10.8.0.0/16 198.18.0.0/16":         "198.18.9.9/32",
		"10.99.0.0/30 198.18.9.8/30":        "198.18.9.9/32",
		"10.99.0.0/30 198.18.9.12/30":       "",
		"fd00:1::/32 2001:db8::/32":         "2001:db8:7::/48",
		"fd00:1::/128 2001:db8:7:8:9::/128": "2001:db8:7::/48",
	} {
		c := mapstest.Config(t)
		c.StandIns = mapstest.StandIns(pair)
		problems := append(rule.Problems(c.CheckAddresses(ifs)), rule.Problems(c.CheckRoutes(routes))...)
		if len(problems) > 1 || (len(problems) == 1) != (want != "") || len(problems) == 1 && !mapstest.Contains(problems[0], want) {
			t.Errorf("%s: %v, want %q", pair, problems, want)
		}
	}
}
