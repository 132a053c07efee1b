// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"sync"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps/compile"
	"hairpin/maps/config"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
	"hairpin/maps/slots"
)

// Plan returns the changes that Apply would make, without making them. It needs no writer lock.
func (t *Tables) Plan(c config.Config) (config.Change, error) {
	o, _, err := t.outline()
	if err != nil && !errors.Is(err, ErrEmpty) {
		return config.Change{}, err
	}
	running, err := o.CompareWith(c)
	if err != nil {
		return config.Change{}, err
	}
	return t.changeTo(c, running)
}

// changeTo returns the change from the running configuration to c, with the connections that it ends.
func (t *Tables) changeTo(c config.Config, running *compile.Running) (config.Change, error) {
	change := running.Change(c)
	if len(running.Ending)+len(running.Dropped) == 0 {
		return change, nil
	}
	now, err := t.CountConnections(rule.Selector{})
	if err != nil {
		return config.Change{}, fmt.Errorf("count the connections that the change ends: %w", err)
	}
	for _, name := range running.Ending {
		if number := now.Forwards[name]; number > 0 {
			if change.Ends == nil {
				change.Ends = map[string]int{}
			}
			change.Ends[name] = number
		}
	}
	for _, d := range running.Dropped {
		number := now.Forwards[d.Name] // of the only server
		if d.Several {
			number = now.Servers[Served{d.Name, d.Target, d.Shift}]
		}
		if number > 0 {
			if change.Ends == nil {
				change.Ends = map[string]int{}
			}
			change.Ends[d.Name] += number
		}
	}
	return change, nil
}

// Apply makes c, which must be valid (see config.Config.Validate), the running configuration. First it builds everything. Then one write swaps the whole set of
// forwards, together with the document that Running reads. Forwards with unchanged behaviour keep their connections and
// counters. Connections of removed and changed forwards end directly after the swap. The caller must hold the writer lock
// and call SetInterfaces next.
//
// A writer may be killed at any step. Before the swap nothing has changed for packets: no live forward refers to the new
// ids, addresses and counters. After the swap the document says which steps are left, and the next writer does them.
func (t *Tables) Apply(c config.Config) (config.Change, error) {
	change, err := t.Prepare(c)
	if err != nil {
		return config.Change{}, err
	}
	return change, t.Swap()
}

// Prepare does the part of Apply before the swap, and returns the changes that Swap will make. No packet sees any of it.
func (t *Tables) Prepare(c config.Config) (config.Change, error) {
	t.prepared = 0
	before, generation, err := t.outline()
	fresh := errors.Is(err, ErrEmpty)
	if err != nil && !fresh {
		return config.Change{}, err
	}
	if err := t.finish(before); err != nil {
		return config.Change{}, err
	}
	running, err := before.CompareWith(c)
	if err != nil {
		return config.Change{}, err
	}
	change, err := t.changeTo(c, running)
	if err != nil {
		return config.Change{}, err
	}
	p, err := t.compile(c, running)
	if err != nil {
		return config.Change{}, err
	}
	if !fresh && running.Unchanged(c) {
		return change, nil
	}
	if err := t.stage(p, running, generation); err != nil {
		return config.Change{}, err
	}
	t.prepared = generation + 1
	return change, nil
}

// Swap makes the configuration that Prepare prepared the running one, and does the steps after the swap. It does nothing if
// that configuration runs already. It fails if another change went live after Prepare.
func (t *Tables) Swap() error {
	next := t.prepared
	t.prepared = 0
	if next == 0 {
		return nil
	}
	if now, err := t.generation(); err != nil || now != next-1 {
		return errors.Join(err, fmt.Errorf("generation %d runs, but the change was prepared for generation %d", now, next-1))
	}
	if err := t.step("swap", func() error {
		return t.objs.Live.Put(uint32(0), bpf.HairpinLive{Generation: next})
	}); err != nil {
		return err
	}
	after, _, err := t.outline()
	if err == nil {
		err = t.finish(after)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnfinished, err)
	}
	return nil
}

func (t *Tables) compile(c config.Config, running *compile.Running) (*compile.Program, error) {
	if t.objs.Epochs.MaxEntries() <= t.objs.Externals.MaxEntries()+1 {
		return nil, errors.New("epochs table is no larger than the table of external addresses")
	}
	limit, err := t.forwardIDs()
	if err != nil {
		return nil, err
	}
	if uint64(len(c.Forwards)) > uint64(limit) {
		return nil, fmt.Errorf("%d forwards, but the tables hold %d", len(c.Forwards), limit)
	}
	present, err := readAll[bpf.HairpinAddr, bpf.HairpinExternal](t.objs.Externals)
	if err != nil {
		return nil, fmt.Errorf("list external addresses: %w", err)
	}
	have := compile.Inventory{Epoch: t.epoch, ForwardIDs: limit}
	for _, external := range present {
		have.LastExternal = max(have.LastExternal, external.Fixed, external.Group)
	}
	// The absence of an address still has the id of its WAN after a change that dropped this WAN, until SetInterfaces runs.
	absences, err := t.absences()
	if err != nil {
		return nil, err
	}
	for _, absence := range absences {
		have.LastExternal = max(have.LastExternal, absence.Group)
	}
	interfaces, err := readAll[uint32, bpf.HairpinInterface](t.objs.Interfaces)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, link := range interfaces {
		have.LastExternal = max(have.LastExternal, link.InterceptV4, link.InterceptV6)
	}
	p, err := compile.Compile(c, running, have)
	if err != nil {
		return nil, err
	}
	return p, t.checkSizes(p, running, present)
}

// checkSizes returns an error if the entries do not fit into the maps. It runs before anything is written.
func (t *Tables) checkSizes(p *compile.Program, running *compile.Running, present map[bpf.HairpinAddr]bpf.HairpinExternal) error {
	spec, err := embedded()
	if err != nil {
		return err
	}
	if need, limit := uint32(len(p.ForwardKeys)), spec.Maps[bpf.HairpinMapForwards].InnerMap.MaxEntries; need > limit {
		return fmt.Errorf("the forwards need %d table entries, but the table holds %d; ranges that start and end at multiples of a power of two need the fewest", need, limit)
	}
	if need, limit := uint32(len(p.AllowKeys)), spec.Maps[bpf.HairpinMapAllow].InnerMap.MaxEntries; need > limit {
		return fmt.Errorf("the from and except lists have %d networks, but the table holds %d", need, limit)
	}
	if need, limit := uint32(len(p.StandInKeys)), spec.Maps[bpf.HairpinMapStandIns].InnerMap.MaxEntries; need > limit {
		return fmt.Errorf("reflection.prefixes needs %d table entries, two for each network, but the table holds %d", need, limit)
	}
	if need, limit := uint32(len(p.OriginKeys)), spec.Maps[bpf.HairpinMapOrigins].InnerMap.MaxEntries; need > limit {
		return fmt.Errorf("the target ports of UDP forwards and of forwards with reflect prefix need %d table entries, but the table holds %d; ranges that start and end at multiples of a power of two need the fewest", need, limit)
	}
	wanted := p.Doc.Targets()
	if need, limit := uint32(len(wanted)), t.objs.Targets.MaxEntries(); need > limit {
		return fmt.Errorf("the forwards have %d targets, but the table holds %d", need, limit)
	}
	maps.Copy(wanted, running.Targets)
	if need, limit := uint32(len(wanted)), t.objs.Targets.MaxEntries(); need > limit {
		return fmt.Errorf("the running forwards and the new forwards together have %d targets, but the table holds %d at once; apply the change in steps", need, limit)
	}
	addresses := uint32(len(present))
	for at := range p.Doc.Externals {
		if _, there := present[layout.ToAddr(at.Address)]; at.Address.IsValid() && !there {
			addresses++
		}
	}
	if limit := t.objs.Externals.MaxEntries(); addresses > limit {
		return fmt.Errorf("%d external addresses, but the table holds %d", addresses, limit)
	}
	return nil
}

// stage writes the program into the slot of the next generation, which no packet uses yet. generation is the live
// generation.
func (t *Tables) stage(p *compile.Program, running *compile.Running, generation uint32) error {
	slot := (generation + 1) & 1
	p.Doc.Generation = generation + 1
	var others fillings
	defer others.close()
	for _, step := range []struct {
		name string
		do   func() error
	}{
		// The document must be first. A datapath program that started before the last swap may still use this slot of
		// forwards. A write to an outer map waits until all such programs have ended (maybe_wait_bpf_programs).
		{"store configuration", func() error {
			return t.storeDocument(&p.Doc, &others)
		}},
		{"make forwards", func() error {
			return addTrie(t, &others, t.objs.Forwards, slot, bpf.HairpinMapForwards, p.ForwardKeys, p.Forwards)
		}},
		{"make from lists", func() error {
			return addTrie(t, &others, t.objs.Allow, slot, bpf.HairpinMapAllow, p.AllowKeys, p.Allowed)
		}},
		{"make stand-ins", func() error {
			return addTrie(t, &others, t.objs.StandIns, slot, bpf.HairpinMapStandIns, p.StandInKeys, p.StandIns)
		}},
		{"make origins", func() error {
			return addTrie(t, &others, t.objs.Origins, slot, bpf.HairpinMapOrigins, p.OriginKeys, p.Origins)
		}},
		{"make servers", func() error { return t.makeServers(p, &others, slot) }},
		{"store tables", func() error { return t.storeAll(others) }},
		{"make counters", func() error { return t.makeStats(p) }},
		{"make buckets", func() error { return t.makeBuckets(p.Doc.Config.Forwards, p.Doc.EpochRefs, p.Fresh) }},
		{"add external addresses", func() error { return t.addExternals(&p.Doc) }},
		{"add ports", func() error { return t.notePorts(p.Doc.Config.Forwards) }},
		{"add targets", func() error { return t.addTargets(p.Doc.Targets(), running.Targets) }},
	} {
		if err := t.step(step.name, step.do); err != nil {
			return err
		}
	}
	return nil
}

// storeDocument stores the document in its slot. The document of generation 1 is added to others instead: no program can
// use an old slot, so all slots can be filled in parallel.
func (t *Tables) storeDocument(doc *compile.Document, others *fillings) error {
	text, err := doc.Marshal()
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	inner, err := newChunks(text, compile.AdditionsRoom+1)
	if err != nil {
		return err
	}
	document := filling{t.objs.Documents, inner, doc.Generation & 1}
	if doc.Generation == 1 {
		*others = append(*others, document)
		return nil
	}
	defer inner.Close()
	return t.store(document)
}

// fillings are inner maps that are ready but not stored in their slots.
type fillings []filling

type filling struct {
	outer, inner *ebpf.Map
	slot         uint32
}

func (f *fillings) close() {
	for _, one := range *f {
		one.inner.Close()
	}
}

// storeAll stores the maps in their slots, in parallel. Each write waits for an RCU grace period in the kernel, and parallel
// writes wait for the same grace period.
func (t *Tables) storeAll(f fillings) error {
	errs := make([]error, len(f))
	var storing sync.WaitGroup
	for i, one := range f {
		storing.Go(func() { errs[i] = t.store(one) })
	}
	storing.Wait()
	return errors.Join(errs...)
}

func (t *Tables) store(f filling) error { return t.slots.Store(f.outer, f.slot, f.inner) }

// addTrie makes a trie for a slot and appends it to to. It does nothing if there are no keys and the slot is already
// empty.
func addTrie[K, V any](t *Tables, to *fillings, outer *ebpf.Map, slot uint32, name string, keys []K, values []V) error {
	if len(keys) == 0 {
		if empty, err := t.isEmptySlot(outer, slot); empty || err != nil {
			return err
		}
	}
	inner, err := newTrie(name, keys, values)
	if err == nil {
		*to = append(*to, filling{outer, inner, slot})
	}
	return err
}

func (t *Tables) isEmptySlot(outer *ebpf.Map, slot uint32) (bool, error) {
	inner, err := t.slots.Open(outer, slot)
	if err != nil {
		return false, fmt.Errorf("open slot %d of %s: %w", slot, slots.OuterName(outer), err)
	}
	defer inner.Close()
	key, err := inner.NextKeyBytes(nil)
	if err != nil {
		return false, fmt.Errorf("look into slot %d of %s: %w", slot, slots.OuterName(outer), err)
	}
	return key == nil, nil
}

func newTrie[K, V any](outer string, keys []K, values []V) (*ebpf.Map, error) {
	trie, err := newInner(outer, 0)
	if err != nil {
		return nil, err
	}
	if err := putAll(trie, keys, values, 1); err != nil {
		trie.Close()
		return nil, err
	}
	return trie, nil
}

// makeStats sets the counters of new and changed forwards to zero.
func (t *Tables) makeStats(p *compile.Program) error {
	ids := make([]uint32, len(p.Fresh))
	for i, s := range p.Fresh {
		ids[i] = s.ID
	}
	return t.zeroStats(ids)
}

// addExternals adds the fixed addresses of the new forwards to map externals. Addresses of running forwards stay, because
// they are in use until the swap.
func (t *Tables) addExternals(doc *compile.Document) error {
	present, err := readAll[bpf.HairpinAddr, bpf.HairpinExternal](t.objs.Externals)
	if err != nil {
		return fmt.Errorf("list external addresses: %w", err)
	}
	ids := t.freeAddressIDs(present)
	for at, id := range doc.Externals {
		if !at.Address.IsValid() {
			continue
		}
		addr := layout.ToAddr(at.Address)
		want := present[addr]
		want.Fixed = id
		if err := t.putExternal(addr, present[addr], want, ids); err != nil {
			return err
		}
	}
	return nil
}

// finish does the steps after the last swap to this document, or after its last addition, if they are not done. It also ends the
// connections of denied sources, and removes the pins of maps, that a killed writer has left. It is safe to repeat.
func (t *Tables) finish(o *compile.Outline) error {
	if err := t.slots.Sweep(slots.Outers(&t.objs.HairpinMaps)); err != nil {
		return err
	}
	if err := t.endLeftDenied(); err != nil {
		return err
	}
	if o.Schema == 0 {
		return nil
	}
	finished, err := t.isFinished(&o.Document)
	if err != nil {
		return err
	}
	if finished {
		return nil
	}
	if o.Added > 0 {
		return t.finishAdded(&o.Document)
	}
	left, err := o.Leftover()
	if err != nil {
		return err
	}
	doc := &left.Document
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"end connections", func() error { return t.endForwards(doc) }},
		{"end connections of removed servers", func() error { return t.endDropped(doc) }},
		{"drop counters", func() error { return t.dropStats(doc) }},
		{"drop external addresses", func() error { return t.dropExternals(doc) }},
		{"drop ports", func() error { return t.dropPorts(&left.Ports) }},
		{"drop targets", func() error { return t.dropTargets(left.Targets) }},
		{"set settings", func() error { return t.setSettings(doc.Config) }},
		{"deny sources", func() error { return t.denyConfigured(doc.Config.Deny) }},
		{"reset ended connections", func() error { return t.resetForwards(doc) }},
		{"record that the change is finished", func() error { return t.recordFinished(doc) }},
	} {
		if err := t.step(step.name, step.do); err != nil {
			return err
		}
	}
	return nil
}

func (t *Tables) endForwards(doc *compile.Document) error {
	for _, s := range doc.Ended {
		if err := t.endConnections(s); err != nil {
			return err
		}
	}
	return nil
}

func (t *Tables) resetForwards(doc *compile.Document) error {
	if len(doc.Ended)+len(doc.Dropped) == 0 {
		return nil
	}
	return t.resetEnded()
}

// dropExternals removes fixed addresses that no forward uses any more. If a WAN interface has the address too, the entry
// stays without its fixed id, because SetInterfaces manages the addresses of WAN interfaces. So does the entry of an
// address that a WAN interface has lost and that may come back.
func (t *Tables) dropExternals(doc *compile.Document) error {
	present, err := readAll[bpf.HairpinAddr, bpf.HairpinExternal](t.objs.Externals)
	if err != nil {
		return fmt.Errorf("list external addresses: %w", err)
	}
	absent, err := t.absences()
	if err != nil {
		return err
	}
	for addr, external := range present {
		if external.Fixed == 0 || doc.Externals[rule.AtAddress(layout.FromAddr(addr))] == external.Fixed {
			continue
		}
		external.Fixed = 0
		if _, away := absent[addr]; external.Group != 0 || away {
			err = t.objs.Externals.Put(addr, external)
		} else if err = t.endConnections(compile.EpochRef{ID: external.Address.Id, Epoch: external.Address.Epoch}); err == nil {
			err = drop(t.objs.Externals, addr)
		}
		if err != nil {
			return fmt.Errorf("forget address %s: %w", layout.FromAddr(addr), err)
		}
	}
	return nil
}

// addTargets adds the targets of the new forwards to map targets, so that the datapath handles fragments from them. The
// targets of running forwards stay until the swap. Targets that a failed writer added are removed, to make room.
func (t *Tables) addTargets(wanted, running map[bpf.HairpinAddr]bool) error {
	both := maps.Clone(wanted)
	maps.Copy(both, running)
	present, err := keepAddresses(t.objs.Targets, both)
	if err != nil {
		return fmt.Errorf("targets: %w", err)
	}
	for addr := range wanted {
		if err := t.noteMaybe(addr, bpf.HairpinMaybeMAYBE_TARGET); err != nil {
			return fmt.Errorf("targets: %w", err)
		}
	}
	return addAddresses(t.objs.Targets, wanted, present)
}

func (t *Tables) addTarget(addr bpf.HairpinAddr) error {
	if err := t.noteMaybe(addr, bpf.HairpinMaybeMAYBE_TARGET); err != nil {
		return err
	}
	return t.objs.Targets.Put(addr, uint8(1))
}

func (t *Tables) dropTargets(wanted map[bpf.HairpinAddr]bool) error {
	if _, err := keepAddresses(t.objs.Targets, wanted); err != nil {
		return fmt.Errorf("targets: %w", err)
	}
	return nil
}

// keepAddresses removes every address that is not wanted. It returns the addresses before the removal.
func keepAddresses(set *ebpf.Map, wanted map[bpf.HairpinAddr]bool) (map[bpf.HairpinAddr]uint8, error) {
	present, err := readAll[bpf.HairpinAddr, uint8](set)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for addr := range present {
		if wanted[addr] {
			continue
		}
		if err := drop(set, addr); err != nil {
			return nil, fmt.Errorf("forget address %s: %w", layout.FromAddr(addr), err)
		}
	}
	return present, nil
}

// addAddresses adds the wanted addresses that are not present.
func addAddresses(set *ebpf.Map, wanted map[bpf.HairpinAddr]bool, present map[bpf.HairpinAddr]uint8) error {
	var missing []bpf.HairpinAddr
	for addr := range wanted {
		if _, there := present[addr]; !there {
			missing = append(missing, addr)
		}
	}
	return putAll(set, missing, bytes.Repeat([]uint8{1}, len(missing)), 1)
}

func (t *Tables) setSettings(c config.Config) error {
	want := compile.SettingsEntry(c)
	var now bpf.HairpinSettings
	if err := t.objs.Settings.Lookup(uint32(0), &now); err != nil || now == want {
		return err
	}
	return t.objs.Settings.Put(uint32(0), want)
}
