// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"hairpin/maps/rule"
)

func (v *validator) lan(f *rule.Forward) error {
	if len(f.LAN) == 0 && len(v.LAN) == 0 {
		return errors.New("the intercept is for every LAN interface, but none is configured; name an interface in interfaces.lan")
	}
	for i, name := range f.LAN {
		switch {
		case slices.Contains(f.LAN[:i], name):
			return rule.OfItem(i, fmt.Errorf("%s is there twice", rule.Quote(name)))
		case !slices.Contains(v.LAN, name):
			return rule.OfItem(i, v.notLAN(name))
		}
	}
	return nil
}

// loops records an error for each intercept whose target's own queries another intercept would redirect. The LAN of a
// target is not known here, so intercepts of all LANs are compared. Only the first other intercept is named.
func (v *validator) loops() {
	var order []int
	for i, f := range v.Forwards {
		if f.Intercept && f.Target.IsValid() && !f.Disabled {
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(v.Forwards[a].Ports.First, v.Forwards[b].Ports.First) })
	told := make([]bool, len(v.Forwards))
	for n, i := range order {
		for _, j := range order[n+1:] {
			if v.Forwards[j].Ports.First > v.Forwards[i].Ports.Last {
				break
			}
			told[i] = told[i] || !v.check(i, "to", v.loop(i, j))
			told[j] = told[j] || !v.check(j, "to", v.loop(j, i))
		}
	}
}

func (v *validator) loop(i, by int) error {
	f, g := &v.Forwards[i], &v.Forwards[by]
	if f.Target.Is6() != g.Target.Is6() || !slices.ContainsFunc(f.Protocols, func(p rule.Protocol) bool { return slices.Contains(g.Protocols, p) }) {
		return nil
	}
	for s := range f.EachServer() {
		if !g.Serves(s.Target) && g.Redirects(s.Target) {
			return fmt.Errorf("intercept %s%s would redirect the queries of target %s to %s, so queries could loop; add %s to except of that intercept",
				rule.Quote(g.Name), v.where(by), s.Target, g.TargetsString(), s.Target)
		}
	}
	return nil
}
