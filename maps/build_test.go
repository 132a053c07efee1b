// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp/cmpopts"
)

// contains reports whether an error has a text in it.
func contains(err error, want string) bool { return err != nil && strings.Contains(err.Error(), want) }

// netipValues has cmp take addresses for values.
var netipValues = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, netip.AddrPort{})

// mustForward reads a forward as the command line does.
func mustForward(t testing.TB, line string) Forward {
	t.Helper()
	f, err := ParseForward(strings.Fields(line))
	if err != nil {
		t.Fatalf("parse %q: %v", line, err)
	}
	return f
}

// configWith is a configuration of two WANs and a LAN.
func configWith(t testing.TB, lines ...string) Config {
	t.Helper()
	c := DefaultConfig()
	c.WAN, c.LAN = []string{"wan0", "wan1"}, []string{"lan0"}
	for _, line := range lines {
		c.Forwards = append(c.Forwards, mustForward(t, line))
	}
	return c
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

// mustIntercept reads what Forward.String writes.
func mustIntercept(t testing.TB, line string) Forward {
	t.Helper()
	words := strings.Fields(line)
	f := Forward{Intercept: true, Name: words[0]}
	must := func(err error) {
		if err != nil {
			t.Fatalf("intercept %q: %v", line, err)
		}
	}
	var err error
	for name := range strings.SplitSeq(words[1], ",") {
		protocol, err := ParseProtocol(name)
		must(err)
		f.Protocols = append(f.Protocols, protocol)
	}
	lan, ports, named := strings.Cut(words[2], ":")
	if !named {
		ports = lan
	} else {
		f.LAN = strings.Split(lan, ",")
	}
	f.Ports, err = ParsePorts(ports)
	must(err)
	must(f.SetTarget(words[4]))
	for i := 5; i < len(words); i += 2 {
		switch words[i] {
		case "reflect":
			f.Reflect = Reflect(words[i+1])
		case "except":
			for text := range strings.SplitSeq(words[i+1], ",") {
				prefix, err := ParsePrefix(text)
				must(err)
				f.Except = append(f.Except, prefix)
			}
		}
	}
	return f
}

// withIntercepts is a configuration of two LANs.
func withIntercepts(t testing.TB, lines ...string) Config {
	t.Helper()
	c := configWith(t)
	c.LAN = []string{"lan0", "lan1"}
	for _, line := range lines {
		c.Forwards = append(c.Forwards, mustIntercept(t, line))
	}
	return c
}

// standIns reads pairs of networks: "CLIENTS NETWORK".
func standIns(pairs ...string) (list []StandIn) {
	for _, pair := range pairs {
		clients, network, _ := strings.Cut(pair, " ")
		list = append(list, StandIn{netip.MustParsePrefix(clients), netip.MustParsePrefix(network)})
	}
	return list
}

// withStandIns is a configuration of one WAN, with stand-ins for a network of each family.
func withStandIns(t testing.TB, lines ...string) Config {
	c := configWith(t, lines...)
	c.WAN = c.WAN[:1]
	c.StandIns = standIns("192.168.1.0/24 198.18.1.0/24", "fd00:1::/64 fd00:2::/64")
	return c
}
