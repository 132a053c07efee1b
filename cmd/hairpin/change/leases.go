// SPDX-License-Identifier: Apache-2.0

package change

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"hairpin/cmd/hairpin/router"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// leaseDrain is how long connections of a mapping that has ended live on at most. The rules of miniupnpd end with the mapping, too, but
// the connections that conntrack knows live on.
const leaseDrain = 24 * time.Hour

// Reasons why a mapping becomes no forward. They are labels of a metric.
const (
	LeaseTaken  = "taken"  // a forward of the configuration has the port, or the name
	LeaseTarget = "target" // its target is no host of a LAN
)

// RefusedLease is a mapping that becomes no forward.
type RefusedLease struct {
	Name   string // of the forward that it would have been
	Reason string
	Text   string
}

// Leased is what SetLeases has done.
type Leased struct {
	Added, Removed int // forwards
	Running        int // forwards that stand for mappings now
	Refused        []RefusedLease
	Ports          []router.Port // nil: nothing was changed
}

// SetLeases makes the forwards that stand for mappings these, as one change. Mappings that do not fit beside the forwards of the
// configuration are refused. A forward that is not among them any more opens no connection from now on, and is deleted when its connections
// have ended. Nothing of this is kept for "hairpin rollback".
//
// It works also while a change waits for its confirmation: like the end of forwards that drain, it is no change of the configuration. The
// caller calls Settle first, which sees by the generation whether the change that waits was ever made.
func (k *Keeper) SetLeases(leases []rule.Forward) (Leased, error) {
	running, err := k.Router.Running()
	if err != nil {
		return Leased{}, err
	}
	inside, err := k.Router.Inside(running)
	if err != nil {
		return Leased{}, err
	}
	if running.Reflection == rule.ReflectOff {
		// Whoever follows lease files wants mappings to be reflected.
		leases = slices.Clone(leases)
		for i := range leases {
			leases[i].Reflect = rule.ReflectAuto
		}
	}
	// One copy of the forwards: there may be tens of thousands, and the daemon must stay small.
	wanted := running
	wanted.Forwards = make([]rule.Forward, 0, len(running.Forwards)+len(leases))
	var before []rule.Forward
	for _, f := range running.Forwards {
		if f.IsLease() {
			before = append(before, f)
		} else {
			wanted.Forwards = append(wanted.Forwards, f)
		}
	}
	running.Forwards = nil
	fit, refused := FitLeases(wanted, leases, inside)
	done := Leased{Running: len(fit), Refused: refused}

	// A lease whose mapping ended drains. A lease that already drains keeps draining, unless its mapping has returned.
	has := config.IndexByName(fit)
	var drains []rule.Forward
	same := 0
	for _, f := range before {
		if i, there := has[f.Name]; there {
			if wanted.Same(f, fit[i]) {
				same++
			}
			continue
		}
		if !f.Drains() {
			f.DrainUntil = SinceBoot() + leaseDrain
			done.Removed++
		}
		drains = append(drains, f)
	}
	done.Added = len(fit) - same
	if done.Added+done.Removed == 0 {
		return done, nil
	}
	wanted.Forwards = append(append(wanted.Forwards, fit...), newestDrains(drains, int(wanted.Leases.Limit()))...)
	if err := wanted.Validate(); err != nil {
		return Leased{}, err
	}
	result, err := k.Router.Apply(wanted)
	if !result.Done {
		return Leased{}, err
	}
	done.Ports = result.Ports
	return done, err
}

// newestDrains returns those that end last. A program that makes and deletes mappings all the time must not fill the tables.
func newestDrains(drains []rule.Forward, most int) []rule.Forward {
	if len(drains) <= most {
		return drains
	}
	slices.SortStableFunc(drains, func(a, b rule.Forward) int { return int(min(1, max(-1, b.DrainUntil-a.DrainUntil))) })
	return drains[:most]
}

// FitLeases returns the leases that fit beside the forwards of cfg, and why the others do not. cfg has no leases itself. inside says why an
// address cannot be a target.
func FitLeases(cfg config.Config, leases []rule.Forward, inside func(netip.Addr) error) (fit []rule.Forward, refused []RefusedLease) {
	met := meetings(cfg, leases)
	fixed := map[netip.Addr]bool{}
	for i := range cfg.Forwards {
		fixed[cfg.Forwards[i].External.Address] = true
	}
	for i := range leases {
		f := &leases[i]
		if by := met[i]; by != "" {
			refused = append(refused, RefusedLease{f.Name, LeaseTaken, by})
		} else if fixed[f.Target] {
			refused = append(refused, RefusedLease{f.Name, LeaseTarget, fmt.Sprintf("%s is the external address of a forward", f.Target)})
		} else if err := inside(f.Target); err != nil {
			refused = append(refused, RefusedLease{f.Name, LeaseTarget, err.Error()})
		} else {
			fit = append(fit, *f)
		}
	}
	return fit, refused
}

// meetings returns, by the index of the leases, which forward of cfg keeps a lease from running; "" is none. There may be tens of thousands
// of forwards, so it goes through them once.
func meetings(cfg config.Config, leases []rule.Forward) []string {
	met := make([]string, len(leases))
	byPort, names := map[uint16][]int{}, config.IndexByName(leases)
	for i := range leases {
		byPort[leases[i].Ports.First] = append(byPort[leases[i].Ports.First], i)
	}
	for _, list := range [][]rule.Forward{cfg.Forwards, cfg.Disabled} {
		for n := range list {
			g := &list[n]
			if i, there := names[g.Name]; there {
				met[i] = fmt.Sprintf("%s %s has this name", g.Kind(), rule.Quote(g.Name))
			}
			if g.Disabled {
				continue
			}
			if first, last := g.Ports.Bounds(); first == last {
				meet(g, leases, byPort[uint16(first)], met)
			} else {
				for _, list := range byPort {
					meet(g, leases, list, met)
				}
			}
		}
	}
	return met
}

func meet(g *rule.Forward, leases []rule.Forward, among []int, met []string) {
	for _, i := range among {
		if met[i] == "" && leases[i].Meets(g) {
			met[i] = fmt.Sprintf("forward %s (%s) has this port", rule.Quote(g.Name), g.Source)
		}
	}
}

// WithoutLeases returns the forwards of the configuration alone.
func WithoutLeases(forwards []rule.Forward) []rule.Forward {
	return slices.DeleteFunc(slices.Clone(forwards), func(f rule.Forward) bool { return f.IsLease() })
}

// DropMet removes the leases of cfg that another forward of cfg meets: a forward of the configuration wins.
func DropMet(cfg *config.Config) {
	if !slices.ContainsFunc(cfg.Forwards, func(f rule.Forward) bool { return f.IsLease() && !f.Drains() }) {
		return
	}
	others := *cfg
	var leases []rule.Forward
	others.Forwards = make([]rule.Forward, 0, len(cfg.Forwards)+1)
	for _, f := range cfg.Forwards {
		if f.IsLease() && !f.Drains() {
			leases = append(leases, f)
		} else {
			others.Forwards = append(others.Forwards, f)
		}
	}
	fit, _ := FitLeases(others, leases, func(netip.Addr) error { return nil })
	cfg.Forwards = append(others.Forwards, fit...)
}

// WithLeases adds the running leases to a configuration that does not have them, as far as they fit. If the configuration follows no lease
// files, there are none.
func (k *Keeper) WithLeases(cfg config.Config) (config.Config, error) {
	if len(cfg.Leases.Files) == 0 {
		return cfg, nil
	}
	leases, err := k.Router.Leases()
	if err != nil || len(leases) == 0 {
		return cfg, err
	}
	inside, err := k.Router.Inside(cfg)
	if err != nil {
		return cfg, err
	}
	fit, _ := FitLeases(cfg, leases, inside)
	with := cfg
	with.Forwards = append(slices.Clip(with.Forwards), fit...)
	if with.Validate() != nil {
		return cfg, nil // the daemon looks again soon
	}
	return with, nil
}
