// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"hairpin/maps/rule"
)

// standInsOf returns the stand-ins of the forward's family.
func (c Config) standInsOf(f rule.Forward) []rule.StandIn {
	var all []rule.StandIn
	for _, s := range c.StandIns {
		if s.Clients.Addr().Is6() == f.Target.Is6() {
			all = append(all, s)
		}
	}
	return all
}

// standIns checks reflection.prefixes.
func (v *validator) standIns() {
	for _, s := range v.StandIns {
		err := s.Check()
		if v.check(-1, s.Field(), err) {
			v.check(-1, s.Field(), v.inUse(s))
		}
	}
	v.standInOverlaps()
	if v.ReflectOf(rule.Forward{}) == rule.ReflectPrefix && len(v.StandIns) == 0 {
		v.check(-1, "reflection.default", errors.New("prefix needs stand-ins for the clients, but reflection.prefixes is empty; add the networks of the clients and of their stand-ins"))
	}
}

// inUse returns an error if a target or an external address of the configuration is in the network of the stand-ins.
func (v *validator) inUse(s rule.StandIn) error {
	for i, f := range v.Forwards {
		switch name := rule.Quote(f.Name) + v.where(i); {
		case f.ServedFrom(s.Network).IsValid():
			return fmt.Errorf("%s contains %s, the target of %s %s; stand-ins must be unused addresses", s.Network, f.ServedFrom(s.Network), f.Kind(), name)
		case f.External.Address.IsValid() && s.Network.Contains(f.External.Address):
			return fmt.Errorf("%s contains %s, the external address of forward %s; stand-ins must be unused addresses", s.Network, f.External.Address, name)
		}
	}
	return nil
}

// side is one of the two networks of a StandIn.
type side struct {
	netip.Prefix
	of      int  // index of the StandIn in Config.StandIns
	clients bool // this is the network Clients
}

// standInOverlaps records networks that overlap. Networks can only overlap if one lies within the other. In sorted
// order, the networks within a network follow it directly.
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
	reason := "stand-ins must be unused addresses"
	switch {
	case s.clients && other.clients:
		reason = "a client can have only one stand-in"
	case !s.clients && !other.clients:
		reason = "a stand-in can have only one client"
	}
	whose := fmt.Sprintf("the stand-ins of %s", v.StandIns[other.of].Clients)
	if other.clients {
		whose = fmt.Sprintf("whose stand-ins are %s", v.StandIns[other.of].Network)
	}
	return fmt.Errorf("%s overlaps %s, %s; %s", s.Prefix, other.Prefix, whose, reason)
}

// reflect returns an error for reflect prefix if the forward's family has no stand-ins.
func (v *validator) reflect(f *rule.Forward) error {
	if v.ReflectOf(*f) != rule.ReflectPrefix || !f.Target.IsValid() || len(v.standInsOf(*f)) > 0 {
		return nil
	}
	if f.Reflect == "" && len(v.StandIns) == 0 {
		return nil // standIns reports this once, for reflection.default
	}
	by := ""
	if f.Reflect == "" {
		by = " by default"
	}
	return fmt.Errorf("the mode is prefix%s, but reflection.prefixes has no %s network; add the network of the clients, or choose another mode", by, rule.Family(f.Target))
}

// shortestRoute is the shortest prefix length that CheckRoutes checks. Shorter prefixes work as default routes, such as
// 0.0.0.0/1 of a VPN or 2000::/3.
const shortestRoute = 4

// CheckRoutes returns an error if the router has a route to stand-ins. Default routes do not count. The error joins
// Problems.
func (c Config) CheckRoutes(routes []netip.Prefix) error {
	v := validator{Config: c}
	for _, s := range c.StandIns {
		for _, network := range routes {
			if network.Bits() >= shortestRoute {
				v.check(-1, s.Field(), s.CheckFree(network, "to which this router has a route"))
			}
		}
	}
	return errors.Join(v.problems...)
}
