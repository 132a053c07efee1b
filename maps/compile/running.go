// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"reflect"

	"hairpin/bpf"
	"hairpin/maps/config"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
)

// Running describes the running configuration for a comparison with a new one. It does not hold the running forwards: they are
// read one by one, because there may be tens of thousands of them.
type Running struct {
	settings  config.Config         // without its forwards
	externals map[rule.Place]uint32 // as in the document
	epochRefs []EpochRef            // of the forwards
	Targets   map[bpf.HairpinAddr]bool
	removed   []string // names that the new configuration does not have
	of        []former // by index of the new configuration's forwards
	same      bool     // the forwards are the new ones, down to their order and where they were written
}

// former is the forward that runs under the name of a new one.
type former struct {
	epochRef  EpochRef
	there     bool // there is one
	behaves   bool // it does the same
	unchanged bool // nor does it differ in anything else that a change tells
}

// running looks at the forwards of a document, which each visits until it is told to stop.
func (d *Document) running(c config.Config, each func(visit func(*rule.Forward, EpochRef) bool) error) (*Running, error) {
	e := &Running{
		settings: d.Config, externals: d.Externals, Targets: map[bpf.HairpinAddr]bool{}, of: make([]former, len(c.Forwards)), same: true,
	}
	e.settings.Forwards = nil
	index, at := config.IndexByName(c.Forwards), 0
	err := each(func(f *rule.Forward, s EpochRef) bool {
		e.same = e.same && at < len(c.Forwards) && sameWritten(f, &c.Forwards[at])
		at++
		e.epochRefs = append(e.epochRefs, s)
		e.Targets[layout.ToAddr(f.Target)] = true
		i, there := index[f.Name]
		if !there {
			e.removed = append(e.removed, f.Name)
			return true
		}
		g := c.Forwards[i]
		behaves := config.SameBehaviour(e.settings, *f, c, g)
		e.of[i] = former{epochRef: s, there: true, behaves: behaves, unchanged: behaves && config.SameBesides(*f, g)}
		return true
	})
	e.same = e.same && at == len(c.Forwards)
	return e, err
}

// sameWritten reports whether two forwards differ in nothing. Lists of a forward that was decoded may be empty where
// there is none.
func sameWritten(f, g *rule.Forward) bool {
	a, b := *f, *g
	for _, h := range []*rule.Forward{&a, &b} {
		h.Protocols, h.From, h.Hosts = clipped(h.Protocols), clipped(h.From), clipped(h.Hosts)
		h.LAN, h.Except = clipped(h.LAN), clipped(h.Except)
	}
	return reflect.DeepEqual(a, b)
}

func clipped[T any](list []T) []T {
	if len(list) == 0 {
		return nil
	}
	return list
}

// Change is what the new configuration changes. A forward is changed if anything about it is, but only a change of
// what the datapath does ends its connections. Where a forward was written is not part of what it is.
func (e *Running) Change(c config.Config) config.Change {
	change := config.Change{Removed: e.removed, Settings: config.CompareSettings(e.settings, c)}
	for i, f := range c.Forwards {
		switch was := e.of[i]; {
		case !was.there:
			change.Added = append(change.Added, f.Name)
		case was.unchanged:
			change.Unchanged++
		default:
			change.Changed = append(change.Changed, f.Name)
		}
	}
	return change
}

// Unchanged reports whether the new configuration says the same, down to where it was written.
func (e *Running) Unchanged(c config.Config) bool {
	settings := c
	settings.Forwards = nil
	return e.same && reflect.DeepEqual(settings, e.settings)
}

// Beside is what runs, for a comparison with c. On fresh maps that is config.Default().
func (o *Outline) Beside(c config.Config) (*Running, error) {
	each := o.Each
	if o.Schema == 0 {
		each = func(func(*rule.Forward, EpochRef) bool) error { return nil }
	}
	return o.Document.running(c, each)
}
