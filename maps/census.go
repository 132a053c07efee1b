// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"net/netip"

	"hairpin/bpf"
	"hairpin/maps/compile"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
)

// Count has numbers of connections.
type Count struct {
	Total       int            `json:"total"`
	HalfOpen    int            `json:"half_open"`
	Established int            `json:"established"`
	Closing     int            `json:"closing"`
	Ended       int            `json:"ended,omitempty"` // only if the selector asks for this state
	Forwards    map[string]int `json:"forwards"`        // connections by the forward's name; only forwards with connections
	Servers     map[Served]int `json:"-"`               // the same for each server of forwards with several
}

// Served is a server of a forward.
type Served struct {
	Forward string
	Target  netip.Addr
	Shift   uint16 // target port minus external port, modulo 65536
}

// CountConnections counts the connections that sel picks.
func (t *Tables) CountConnections(sel rule.Selector) (Count, error) {
	found, err := t.Census(sel)
	if err != nil {
		return Count{}, err
	}
	count := Count{
		Total:    found.HalfOpen + found.Established + found.Closing + found.ended,
		HalfOpen: found.HalfOpen, Established: found.Established, Closing: found.Closing, Ended: found.ended,
		Forwards: map[string]int{},
	}
	if len(found.servers) > 0 {
		count.Servers = make(map[Served]int, len(found.servers))
	}
	for of, connections := range found.servers {
		if name := found.roster.Name(of.forward); name != "" {
			count.Servers[Served{name, layout.FromAddr(of.target), of.shift}] = int(connections)
		}
	}
	for id, connections := range found.forwards {
		// The forward may have been removed during the walk.
		if name := found.roster.Name(uint32(id)); connections > 0 && name != "" {
			count.Forwards[name] = int(connections)
		}
	}
	return count, nil
}

// Census has the numbers of connections that one walk found. The metrics and the command line both use it, so at one
// moment both show the same numbers.
type Census struct {
	HalfOpen, Established, Closing int

	ended    int      // only if the selector asks for this state
	forwards []uint32 // connections by the forward's id, up to the highest id with connections
	servers  map[served]uint32
	roster   *compile.Roster // nil if there are no connections
}

type served struct {
	forward uint32
	target  bpf.HairpinAddr
	shift   uint16
}

// Of returns the number of connections of the forward with this id. It returns 0 if the id belongs to another forward in
// now, a later roster.
func (c *Census) Of(id uint32, now *compile.Roster) uint32 {
	if id >= uint32(len(c.forwards)) || !now.Has(id, c.roster) {
		return 0
	}
	return c.forwards[id]
}

// OfServer is Of for one server of a forward with several.
func (c *Census) OfServer(id uint32, server compile.ListedServer, now *compile.Roster) uint32 {
	if !now.Has(id, c.roster) {
		return 0
	}
	return c.servers[served{id, layout.ToAddr(server.Target), server.Shift}]
}

// Census counts the connections that sel picks.
func (t *Tables) Census(sel rule.Selector) (*Census, error) {
	found := new(Census)
	w, err := t.newWalk()
	if err != nil {
		return nil, err
	}
	if sel.State == StateEnded {
		err := t.each(sel, func(*layout.Entry, *Connection) error {
			found.ended++
			return nil
		})
		return found, err
	}
	all := sel.All()
	err = w.named(func(opener *layout.Entry, name string) error {
		if !all {
			c := derive(opener, w.now)
			if c.Forward = name; !picks(&sel, &c) {
				return nil
			}
		}
		found.add(opener, w.roster)
		return nil
	})
	found.roster = w.roster
	return found, err
}

func (c *Census) add(opener *layout.Entry, roster *compile.Roster) {
	switch stateOf(opener) {
	case StateHalfOpen:
		c.HalfOpen++
	case StateClosing:
		c.Closing++
	default:
		c.Established++
	}
	if opener.Forward == 0 {
		return
	}
	if missing := int(opener.Forward) + 1 - len(c.forwards); missing > 0 {
		c.forwards = append(c.forwards, make([]uint32, missing)...)
	}
	c.forwards[opener.Forward]++
	if roster.Servers(opener.Forward) != nil {
		if c.servers == nil {
			c.servers = make(map[served]uint32)
		}
		c.servers[served{opener.Forward, opener.To.Dst, layout.Be16(opener.To.Dport) - layout.Be16(opener.Key.Dport)}]++
	}
}

// Events counts events since the datapath was loaded.
type Events struct {
	Evicted   uint64 // half-open connections that were replaced by newer connections
	Displaced uint64 // established connections, not TCP, that were replaced by newer connections
}

// Events reads the counters.
func (t *Tables) Events() (Events, error) {
	sums, err := t.eventCounts()
	if err != nil {
		return Events{}, err
	}
	return Events{Evicted: sums[bpf.HairpinConnEventEVENT_EVICTED], Displaced: sums[bpf.HairpinConnEventEVENT_DISPLACED]}, nil
}

// eventCounts has the datapath's counters, by enum conn_event.
type eventCounts [bpf.HairpinConnEventEVENTS]uint64

// eventCounts returns the counters, summed over the CPUs.
func (t *Tables) eventCounts() (*eventCounts, error) {
	sums := new(eventCounts)
	for event := range sums {
		var cpus []uint64
		if err := t.objs.ConnEvents.Lookup(uint32(event), &cpus); err != nil {
			return nil, fmt.Errorf("read connection events: %w", err)
		}
		for _, count := range cpus {
			sums[event] += count
		}
	}
	return sums, nil
}
