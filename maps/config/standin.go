// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"hairpin/maps/rule"
)

// standInsOf are those that clients of a forward can have.
func (c Config) standInsOf(f rule.Forward) []rule.StandIn {
	var all []rule.StandIn
	for _, s := range c.StandIns {
		if s.Clients.Addr().Is6() == f.Target.Is6() {
			all = append(all, s)
		}
	}
	return all
}

// StandIns checks reflection.prefixes.
func (v *validator) standIns() {
	for _, s := range v.StandIns {
		err := s.Check()
		if v.check(-1, s.Field(), err) {
			v.check(-1, s.Field(), v.inUse(s))
		}
	}
	v.standInOverlaps()
	if v.ReflectOf(rule.Forward{}) == rule.ReflectPrefix && len(v.StandIns) == 0 {
		v.check(-1, "reflection.default", errors.New("prefix needs reflection.prefixes, which says what addresses stand in for the clients; there is none"))
	}
}

// inUse refuses stand-ins that the configuration itself names as another's.
func (v *validator) inUse(s rule.StandIn) error {
	for i, f := range v.Forwards {
		switch name := rule.Quote(f.Name) + v.where(i); {
		case f.Target.IsValid() && s.Network.Contains(f.Target):
			return fmt.Errorf("%s has %s, the target of %s %s; stand-ins are addresses that nobody else has", s.Network, f.Target, f.Kind(), name)
		case f.External.Address.IsValid() && s.Network.Contains(f.External.Address):
			return fmt.Errorf("%s has %s, the external address of forward %s; stand-ins are addresses that nobody else has", s.Network, f.External.Address, name)
		}
	}
	return nil
}

// side is one of the two networks of a StandIn.
type side struct {
	netip.Prefix
	of      int // index in StandIns
	clients bool
}

// standInOverlaps finds networks that lie within each other. Sorted, those that
// lie in one follow it.
func (v *validator) standInOverlaps() {
	var sides []side
	for i, s := range v.StandIns {
		sides = append(sides, side{s.Clients, i, true}, side{s.Network, i, false})
	}
	slices.SortStableFunc(sides, func(a, b side) int { return rule.ComparePrefixes(a.Prefix, b.Prefix) })
	for i, around := 1, 0; i < len(sides); i++ {
		if !sides[around].Overlaps(sides[i].Prefix) {
			around = i
			continue
		}
		first, second := sides[around], sides[i]
		if second.of < first.of {
			first, second = second, first
		}
		v.check(-1, v.StandIns[second.of].Field(), v.overlap(second, first))
	}
}

func (v *validator) overlap(s, other side) error {
	reason := "stand-ins are addresses that nobody else has"
	switch {
	case s.clients && other.clients:
		reason = "a client has one stand-in"
	case !s.clients && !other.clients:
		reason = "a stand-in has one client"
	}
	whose := fmt.Sprintf("the stand-ins of %s", v.StandIns[other.of].Clients)
	if other.clients {
		whose = fmt.Sprintf("whose stand-ins are %s", v.StandIns[other.of].Network)
	}
	return fmt.Errorf("%s overlaps %s, %s; %s", s.Prefix, other.Prefix, whose, reason)
}

// reflect refuses reflect prefix without the networks that it needs.
func (v *validator) reflect(f *rule.Forward) error {
	if v.ReflectOf(*f) != rule.ReflectPrefix || !f.Target.IsValid() || len(v.standInsOf(*f)) > 0 {
		return nil
	}
	if f.Reflect == "" && len(v.StandIns) == 0 {
		return nil // told once, of the default
	}
	by := ""
	if f.Reflect == "" {
		by = " by default"
	}
	return fmt.Errorf("it is prefix%s, but reflection.prefixes has no %s network; add that of the clients, or choose another mode", by, rule.Family(f.Target))
}

// shortestRoute is the length of a network that is more specific than a default
// route, and those that stand for one: 0.0.0.0/1 of a VPN, 2000::/3.
const shortestRoute = 4

// CheckRoutes finds stand-ins among the networks that the router has routes to.
// Default routes do not count. The error joins Problems.
func (c Config) CheckRoutes(routes []netip.Prefix) error {
	v := validator{Config: c}
	for _, s := range c.StandIns {
		for _, network := range routes {
			if network.Bits() >= shortestRoute {
				v.check(-1, s.Field(), s.CheckFree(network, "which this router has a route to"))
			}
		}
	}
	return errors.Join(v.problems...)
}
