// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"net/netip"
	"slices"
)

// catches reports whether what an address asks is not excepted.
func (f *Forward) catches(addr netip.Addr) bool {
	return !slices.ContainsFunc(f.Except, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// meets reports whether there may be a packet for both.
func (f *Forward) meets(g *Forward) bool {
	if f.Intercept != g.Intercept || f.Target.Is6() != g.Target.Is6() || !f.Ports.overlaps(g.Ports) {
		return false
	}
	if f.External != g.External && (f.External.String() != "" && g.External.String() != "" ||
		f.External.Address.IsValid() || g.External.Address.IsValid()) {
		return false
	}
	return slices.ContainsFunc(f.Protocols, func(p Protocol) bool {
		return slices.Contains(g.Protocols, p) || slices.Contains(g.Protocols, Any)
	})
}

// meetsBehind reports whether the same answers to the Internet may be of both
// forwards, so that neither is their origin.
func (f *Forward) meetsBehind(g *Forward) bool {
	udp := func(p Protocol) bool { return p == UDP || p == Any }
	return f.Target == g.Target && !g.Intercept && f.TargetPorts().overlaps(g.TargetPorts()) &&
		slices.ContainsFunc(f.Protocols, udp) && slices.ContainsFunc(g.Protocols, udp)
}

// relates reports whether g matters to whether f is valid, given that they do
// not meet (see validLast).
func (g *Forward) relates(f *Forward) bool {
	return g.Name == f.Name ||
		g.External.Address.IsValid() && g.External.Address == f.Target ||
		slices.ContainsFunc(g.Hosts, func(host string) bool { return slices.Contains(f.Hosts, host) })
}

// clone shares no list with f.
func (f *Forward) clone() Forward {
	c := *f
	c.Protocols, c.From, c.Hosts = slices.Clone(f.Protocols), slices.Clone(f.From), slices.Clone(f.Hosts)
	c.LAN, c.Except = slices.Clone(f.LAN), slices.Clone(f.Except)
	return c
}
