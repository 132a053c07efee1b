// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"net/netip"
	"slices"
)

// Redirects reports whether the intercept redirects traffic from addr: true unless Except contains addr.
func (f *Forward) Redirects(addr netip.Addr) bool {
	return !slices.ContainsFunc(f.Except, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// Meets reports whether table entries of f and g can have the same external id and match the same packet, so that the
// more specific forward must win. f must not have protocol Any.
func (f *Forward) Meets(g *Forward) bool {
	if f.Drains() || g.Drains() {
		return false // it has no table entries
	}
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

// MeetsBehind reports whether a UDP answer from the target to the Internet may belong to f or to g. Then the datapath
// cannot tell the forward of such an answer, and neither forward has an origin entry for these ports.
func (f *Forward) MeetsBehind(g *Forward) bool {
	udp := func(p Protocol) bool { return p == UDP || p == Any }
	return !g.Intercept && !f.Drains() && !g.Drains() && f.sharesServer(g) &&
		slices.ContainsFunc(f.Protocols, udp) && slices.ContainsFunc(g.Protocols, udp)
}

// sharesServer reports whether a server of f is one of g, at a port of both.
func (f *Forward) sharesServer(g *Forward) bool {
	for s := range f.EachServer() {
		for t := range g.EachServer() {
			if s.Target == t.Target && f.TargetPortsOf(s).Overlaps(g.TargetPortsOf(t)) {
				return true
			}
		}
	}
	return false
}

// Relates reports whether g can make f invalid although they do not meet: g has the name or a host of f, or listens at
// the target of f. See Config.ValidLast.
func (g *Forward) Relates(f *Forward) bool {
	return g.Name == f.Name ||
		g.External.Address.IsValid() && f.Serves(g.External.Address) ||
		slices.ContainsFunc(g.Hosts, func(host string) bool { return slices.Contains(f.Hosts, host) })
}

// Clone returns a copy of f that shares no slice with f.
func (f *Forward) Clone() Forward {
	c := *f
	c.Protocols, c.From, c.Hosts = slices.Clone(f.Protocols), slices.Clone(f.From), slices.Clone(f.Hosts)
	c.LAN, c.Except, c.Pool = slices.Clone(f.LAN), slices.Clone(f.Except), f.Pool.clone()
	return c
}
