// SPDX-License-Identifier: Apache-2.0

// Package mapstest has helpers for tests of several packages: configurations from text lines, small maps in the kernel,
// and connections in these maps. Only tests import it.
package mapstest

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp/cmpopts"

	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// Contains reports whether err is not nil and its text contains want.
func Contains(err error, want string) bool { return err != nil && strings.Contains(err.Error(), want) }

// NetipValues makes go-cmp compare the types of net/netip with ==.
var NetipValues = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, netip.AddrPort{})

// Forward parses a forward in the grammar of the command line.
func Forward(t testing.TB, line string) rule.Forward {
	t.Helper()
	f, err := rule.ParseForward(strings.Fields(line))
	if err != nil {
		t.Fatalf("parse %q: %v", line, err)
	}
	return f
}

// Config returns a configuration with WAN interfaces wan0 and wan1, LAN interface lan0, and one forward per line.
func Config(t testing.TB, lines ...string) config.Config {
	t.Helper()
	c := config.Default()
	c.WAN, c.LAN = []string{"wan0", "wan1"}, []string{"lan0"}
	for _, line := range lines {
		c.Forwards = append(c.Forwards, Forward(t, line))
	}
	return c
}

// ManyForwards returns a configuration with n forwards of one port each.
func ManyForwards(n int) config.Config {
	c := config.Default()
	c.WAN = []string{"wan0"}
	for i := range n {
		c.Forwards = append(c.Forwards, rule.Forward{
			Name:      fmt.Sprintf("f%d", i),
			Protocols: []rule.Protocol{rule.TCP},
			Ports:     rule.Ports{First: uint16(i + 1), Last: uint16(i + 1)},
			Target:    netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i) | 1}),
		})
	}
	return c
}

// Intercept parses an intercept in the form of Forward.String.
func Intercept(t testing.TB, line string) rule.Forward {
	t.Helper()
	words := strings.Fields(line)
	f := rule.Forward{Intercept: true, Name: words[0]}
	must := func(err error) {
		if err != nil {
			t.Fatalf("intercept %q: %v", line, err)
		}
	}
	var err error
	for name := range strings.SplitSeq(words[1], ",") {
		protocol, err := rule.ParseProtocol(name)
		must(err)
		f.Protocols = append(f.Protocols, protocol)
	}
	lan, ports, named := strings.Cut(words[2], ":")
	if !named {
		ports = lan
	} else {
		f.LAN = strings.Split(lan, ",")
	}
	f.Ports, err = rule.ParsePorts(ports)
	must(err)
	must(f.SetTarget(words[4]))
	for i := 5; i < len(words); i += 2 {
		switch words[i] {
		case "reflect":
			f.Reflect = rule.Reflect(words[i+1])
		case "except":
			for text := range strings.SplitSeq(words[i+1], ",") {
				prefix, err := rule.ParsePrefix(text)
				must(err)
				f.Except = append(f.Except, prefix)
			}
		}
	}
	return f
}

// Intercepts returns a configuration with LAN interfaces lan0 and lan1, and one intercept per line.
func Intercepts(t testing.TB, lines ...string) config.Config {
	t.Helper()
	c := Config(t)
	c.LAN = []string{"lan0", "lan1"}
	for _, line := range lines {
		c.Forwards = append(c.Forwards, Intercept(t, line))
	}
	return c
}

// StandIns parses pairs of networks: "CLIENTS NETWORK".
func StandIns(pairs ...string) (list []rule.StandIn) {
	for _, pair := range pairs {
		clients, network, _ := strings.Cut(pair, " ")
		list = append(list, rule.StandIn{Clients: netip.MustParsePrefix(clients), Network: netip.MustParsePrefix(network)})
	}
	return list
}

// WithStandIns is Config with only wan0, and with stand-ins for one network of each family.
func WithStandIns(t testing.TB, lines ...string) config.Config {
	c := Config(t, lines...)
	c.WAN = c.WAN[:1]
	c.StandIns = StandIns("192.168.1.0/24 198.18.1.0/24", "fd00:1::/64 fd00:2::/64")
	return c
}
