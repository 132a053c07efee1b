// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"net/netip"
	"reflect"

	"hairpin/bpf"
	"hairpin/maps/config"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
)

// Running has the result of comparing the running configuration with a new configuration. It does not hold the running
// forwards: they are read one by one, because there may be tens of thousands.
type Running struct {
	settings  config.Config         // without the forwards
	externals map[rule.Place]uint32 // Document.Externals
	epochRefs []EpochRef            // epoch references of all running forwards
	Targets   map[bpf.HairpinAddr]bool
	removed   []string // names of forwards that are not in Config.Forwards of the new configuration
	Ending    []string // names of forwards whose connections end
	Dropped   []DroppedServer
	of        []former // running forwards, by the index of the new forward with the same name
	same      bool     // the forwards are equal, including their order and Source
}

// DroppedServer is a server that a forward no longer has. Its connections end, although those of the forward go on.
type DroppedServer struct {
	Forward uint32     `json:"forward"` // id
	Target  netip.Addr `json:"target"`
	Ports   rule.Ports `json:"ports"` // at the target

	// For the report of the change.
	Name    string `json:"-"` // of the forward
	Shift   uint16 `json:"-"` // target port minus external port, modulo 65536
	Several bool   `json:"-"` // the running forward has several servers
}

// former describes the running forward that has the name of a new forward.
type former struct {
	epochRef  EpochRef
	servers   *rule.Forward // its ports and servers alone; nil: both forwards have one server, as nearly all of tens of thousands
	there     bool          // there is such a running forward
	behaves   bool          // the datapath does the same for both
	unchanged bool          // all else that Change reports is equal, too
}

// running compares the document with the new configuration c. each must visit the forwards of the document.
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
		for s := range f.EachServer() {
			e.Targets[layout.ToAddr(s.Target)] = true
		}
		i, there := index[f.Name]
		if !there {
			if !f.Drains() { // whoever deleted it has been told
				e.removed = append(e.removed, f.Name)
			}
			e.Ending = append(e.Ending, f.Name)
			return true
		}
		g := c.Forwards[i]
		behaves := config.SameBehaviour(e.settings, *f, c, g)
		if !behaves {
			e.Ending = append(e.Ending, f.Name)
		}
		var servers *rule.Forward
		if f.Balanced() || g.Balanced() {
			servers = &rule.Forward{Ports: f.Ports, Target: f.Target, TargetPort: f.TargetPort, Pool: f.Pool}
			if behaves {
				e.drop(f, &g, s.ID)
			}
		}
		e.of[i] = former{epochRef: s, servers: servers, there: true, behaves: behaves, unchanged: behaves && config.SameBesides(*f, g)}
		return true
	})
	e.same = e.same && at == len(c.Forwards)
	return e, err
}

// drop notes the servers of a running forward that the new one has no more. The forward keeps its id.
func (e *Running) drop(f, g *rule.Forward, id uint32) {
	for s := range f.EachServer() {
		if !g.Has(f, s) {
			e.Dropped = append(e.Dropped, DroppedServer{
				Forward: id, Target: s.Target, Ports: f.TargetPortsOf(s), Name: f.Name, Shift: f.PortShiftOf(s), Several: f.Balanced(),
			})
		}
	}
}

// sameWritten reports whether two forwards are equal in every field, including Source. nil and empty lists are equal:
// decoding can make an empty list from nil.
func sameWritten(f, g *rule.Forward) bool {
	a, b := *f, *g
	for _, h := range []*rule.Forward{&a, &b} {
		h.Protocols, h.From, h.Hosts = clipped(h.Protocols), clipped(h.From), clipped(h.Hosts)
		h.LAN, h.Except = clipped(h.LAN), clipped(h.Except)
		h.Pool = unnumbered(h.Pool)
	}
	return reflect.DeepEqual(a, b)
}

// unnumbered returns a pool without what package compile has set.
func unnumbered(p *rule.Pool) *rule.Pool {
	if p == nil {
		return nil
	}
	written := &rule.Pool{Affinity: p.Affinity}
	for _, s := range p.Servers {
		s.Number = 0
		written.Servers = append(written.Servers, s)
	}
	return written
}

func clipped[T any](list []T) []T {
	if len(list) == 0 {
		return nil
	}
	return list
}

// Change returns the differences between the running configuration and the new configuration c. A different Source alone
// does not make a forward "changed".
func (e *Running) Change(c config.Config) config.Change {
	change := config.Change{Settings: config.CompareSettings(e.settings, c)}
	wasDisabled, isDisabled := config.IndexByName(e.settings.Disabled), config.IndexByName(c.Disabled)
	for _, name := range e.removed {
		if _, there := isDisabled[name]; there {
			change.Changed = append(change.Changed, name)
			continue
		}
		change.Removed = append(change.Removed, name)
	}
	for i, f := range c.Forwards {
		_, disabled := wasDisabled[f.Name]
		switch was := e.of[i]; {
		case !was.there && disabled:
			change.Changed = append(change.Changed, f.Name)
		case !was.there:
			change.Added = append(change.Added, f.Name)
		case was.unchanged && f.Drains(): // no difference, and on its way out
		case was.unchanged:
			change.Unchanged++
		default:
			change.Changed = append(change.Changed, f.Name)
		}
	}
	e.addDisabled(&change, c)
	return change
}

// addDisabled adds the differences of forwards that are disabled in both configurations, or are only in one.
func (e *Running) addDisabled(change *config.Change, c config.Config) {
	wasDisabled := config.IndexByName(e.settings.Disabled)
	changed := set(change.Changed)
	for _, f := range c.Disabled {
		was, disabled := wasDisabled[f.Name]
		switch {
		case disabled && c.Same(e.settings.Disabled[was], f):
			change.Unchanged++
		case disabled:
			change.Changed = append(change.Changed, f.Name)
		case !changed[f.Name]:
			change.Added = append(change.Added, f.Name)
		}
	}
	if len(wasDisabled) == 0 {
		return
	}
	now := config.IndexByName(c.All())
	for _, f := range e.settings.Disabled {
		if _, there := now[f.Name]; !there {
			change.Removed = append(change.Removed, f.Name)
		}
	}
}

func set(names []string) map[string]bool {
	members := make(map[string]bool, len(names))
	for _, name := range names {
		members[name] = true
	}
	return members
}

// Compare returns the differences between two configurations. It does not know their connections.
func Compare(from, to config.Config) (config.Change, error) {
	d := Document{Config: from}
	e, err := d.running(to, func(visit func(*rule.Forward, EpochRef) bool) error {
		for i := range from.Forwards {
			visit(&from.Forwards[i], EpochRef{})
		}
		return nil
	})
	return e.Change(to), err
}

// Unchanged reports whether the new configuration is equal to the running configuration, including every Source.
func (e *Running) Unchanged(c config.Config) bool {
	settings := c
	settings.Forwards = nil
	return e.same && reflect.DeepEqual(settings, e.settings)
}

// CompareWith compares the running configuration with c. On fresh maps the running configuration is config.Default().
func (o *Outline) CompareWith(c config.Config) (*Running, error) {
	each := o.Each
	if o.Schema == 0 {
		each = func(func(*rule.Forward, EpochRef) bool) error { return nil }
	}
	return o.Document.running(c, each)
}
