// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"net/netip"
	"slices"
)

// Catches reports whether what an address asks is not excepted.
func (f *Forward) Catches(addr netip.Addr) bool {
	return !slices.ContainsFunc(f.Except, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// Meets reports whether there may be a packet for both.
func (f *Forward) Meets(g *Forward) bool {
	if f.Intercept != g.Intercept || f.Target.Is6() != g.Target.Is6() || !f.Ports.Overlaps(g.Ports) {
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

// MeetsBehind reports whether the same answers to the Internet may be of both
// forwards, so that neither is their origin.
func (f *Forward) MeetsBehind(g *Forward) bool {
	udp := func(p Protocol) bool { return p == UDP || p == Any }
	return f.Target == g.Target && !g.Intercept && f.TargetPorts().Overlaps(g.TargetPorts()) &&
		slices.ContainsFunc(f.Protocols, udp) && slices.ContainsFunc(g.Protocols, udp)
}

// Relates reports whether g matters to whether f is valid, given that they do
// not meet (see ValidLast).
func (g *Forward) Relates(f *Forward) bool {
	return g.Name == f.Name ||
		g.External.Address.IsValid() && g.External.Address == f.Target ||
		slices.ContainsFunc(g.Hosts, func(host string) bool { return slices.Contains(f.Hosts, host) })
}

// Clone shares no list with f.
func (f *Forward) Clone() Forward {
	c := *f
	c.Protocols, c.From, c.Hosts = slices.Clone(f.Protocols), slices.Clone(f.From), slices.Clone(f.Hosts)
	c.LAN, c.Except = slices.Clone(f.LAN), slices.Clone(f.Except)
	return c
}
