// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"strings"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// rulesets drop all that comes by wan0 or leaves by lan0, each at one place.
var rulesets = []struct{ name, rules string }{
	{"netdev ingress", "table netdev t { chain c { type filter hook ingress device wan0 priority -500; tcp dport 80 counter drop; }; }"},
	{"raw prerouting", "table inet t { chain c { type filter hook prerouting priority raw; iifname wan0 tcp dport 80 drop; }; }"},
	{"mangle prerouting", "table inet t { chain c { type filter hook prerouting priority mangle; iifname wan0 tcp dport 80 drop; }; }"},
	{"conntrack", "table inet t { chain c { type filter hook forward priority filter; ct state new drop; }; }"},
	{"FORWARD", "table inet t { chain c { type filter hook forward priority filter; policy drop; }; }"},
	{"INPUT", "table inet t { chain c { type filter hook input priority filter; iifname wan0 tcp dport 80 drop; }; }"},
	{"postrouting", "table inet t { chain c { type filter hook postrouting priority srcnat; oifname lan0 tcp dport 8080 drop; }; }"},
	{"netdev egress", "table netdev t { chain c { type filter hook egress device lan0 priority 0; tcp dport 8080 drop; }; }"},
}

// TestWhatNetfilterDoesNotSee keeps the list of what translated packets pass by, in README and in limits.md.
func TestWhatNetfilterDoesNotSee(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		n := lab.NewNetwork6(t)
		n.SetOffloads(home.OffloadsFor(mode))
		n.Server.ServeTCP(":8080")
		n.Server.ServeTCP("[::]:8080")
		home.Start(t, n, mode, home.Forwards+home.Forwards6)
		for _, c := range clients(n) {
			if c.host != n.Internet {
				continue
			}
			for _, r := range rulesets {
				t.Run(mode+", "+c.name+", "+r.name, func(t *testing.T) {
					n.Router.For(t).RunInput(r.rules, "nft", "-f", "-")
					t.Cleanup(func() { n.Router.Run("nft", "flush", "ruleset") })
					c.isServed(t, r.name)
				})
			}
		}
	}
}

// TestRoutesHold: routes and rules that send a client or a target nowhere keep connections from being opened, and end those there are
// within the time of a next hop.
func TestRoutesHold(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"tc", "xdp"} {
		n := lab.NewNetwork6(t)
		n.SetOffloads(home.OffloadsFor(mode))
		n.Server.ServeTCP(":8080")
		n.Server.ServeTCP("[::]:8080")
		home.Start(t, n, mode, home.Forwards+home.Forwards6)
		for _, c := range clients(n) {
			target, family := lab.Server, "-4"
			if strings.Contains(c.source, ":") {
				target, family = lab.Server6, "-6"
			}
			for _, words := range []string{
				"route SET blackhole " + c.source, "route SET prohibit " + c.source, "route SET unreachable " + c.source,
				"route SET blackhole " + target, "route SET prohibit " + target,
				"rule SET from " + c.source + " prohibit pref 10", "rule SET to " + target + " blackhole pref 10",
			} {
				if c.host == n.Client && strings.Contains(words, "from") && strings.Contains(words, "rule") {
					words = "rule SET to " + c.source + " blackhole pref 10"
				}
				t.Run(mode+", "+c.name+", "+words, func(t *testing.T) {
					waiting := home.WaitingAt(t, c.host, c.external)
					ip := func(set string) {
						n.Router.Run(append([]string{"ip", family}, strings.Fields(strings.Replace(words, "SET", set, 1))...)...)
					}
					ip("add")
					defer c.isServed(t, "without it again")
					defer ip("del")
					c.isRefused(t, words)
					lab.Eventually(t, 3*lab.Patience, func() error { return goesOn(waiting) })
				})
			}
		}
	}
}

var errGoesOn = errors.New("the connection goes on")

// goesOn is nil once a connection does not go on.
func goesOn(c *lab.Conn) error {
	if err := c.EchoWithin(10, lab.Patience/20); err != nil {
		return nil
	}
	return errGoesOn
}
