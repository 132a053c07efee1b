// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps/compile"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
	"hairpin/maps/slots"
)

// The datapath remembers the servers of so many clients, for all forwards with affinity together. These tables are made with the first such
// forward, and stay.
const (
	knownClients = 65536
	newClients   = 16384
)

// The slots of the tables of clients: enum affinity_kind.
const (
	slotOfNew = iota
	slotOfKnown
)

// makeServers makes the tables of forwards with several servers.
func (t *Tables) makeServers(p *compile.Program, to *fillings, slot uint32) error {
	if err := addArray(t, to, t.objs.Servers, slot, bpf.HairpinMapServers, p.Servers); err != nil {
		return err
	}
	if err := addArray(t, to, t.objs.Lookups, slot, bpf.HairpinMapLookups, p.Lookups); err != nil {
		return err
	}
	if !slices.ContainsFunc(p.Doc.Config.Forwards, func(f rule.Forward) bool { return f.Affinity() != 0 }) {
		return nil
	}
	err := errors.Join(t.enlarge(t.objs.Affinities, slotOfNew, bpf.HairpinMapAffinities, newClients),
		t.enlarge(t.objs.Affinities, slotOfKnown, bpf.HairpinMapAffinities, knownClients))
	if err != nil {
		return fmt.Errorf("make the tables of clients: %w", err)
	}
	return nil
}

// addArray makes an array for a slot and appends it to to. Without values it makes the smallest array, if a larger one is in the slot: no
// forward refers to it.
func addArray[V any](t *Tables, to *fillings, outer *ebpf.Map, slot uint32, name string, values []V) error {
	if len(values) == 0 {
		there, err := t.slots.Open(outer, slot)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("open slot %d of %s: %w", slot, slots.OuterName(outer), err)
		}
		defer there.Close()
		if there.MaxEntries() == 1 {
			return nil
		}
	}
	inner, err := newInner(name, uint32(max(1, len(values))))
	if err != nil {
		return err
	}
	keys := make([]uint32, len(values))
	for i := range keys {
		keys[i] = uint32(i)
	}
	if err := putAll(inner, keys, values, 1); err != nil {
		inner.Close()
		return err
	}
	*to = append(*to, filling{outer, inner, slot})
	return nil
}

// endDropped ends the connections of servers that a forward no longer has. A program that began before the swap may still open one of
// them, so endDropped waits for such programs first.
func (t *Tables) endDropped(doc *compile.Document) error {
	if len(doc.Dropped) == 0 {
		return nil
	}
	if err := t.awaitPrograms(); err != nil {
		return err
	}
	type end struct {
		forward uint32
		target  netip.Addr
	}
	dropped := make(map[end][]rule.Ports)
	for _, d := range doc.Dropped {
		at := end{d.Forward, d.Target}
		dropped[at] = append(dropped[at], d.Ports)
	}
	w, err := t.newWalk()
	if err != nil {
		return err
	}
	var failed error
	err = w.openers(func(opener *layout.Entry) {
		c := derive(opener, w.now)
		if failed != nil || w.epochs.over(opener) ||
			!slices.ContainsFunc(dropped[end{opener.Forward, c.Target.Addr()}], func(p rule.Ports) bool { return p.Every() || p.Has(c.Target.Port()) }) {
			return
		}
		_, failed = t.end(bpf.HairpinEndRequest{Key: opener.Key, Serial: opener.Serial})
	})
	return errors.Join(failed, err)
}
