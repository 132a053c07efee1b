// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps/compile"
	"hairpin/maps/config"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
)

// Plan says what Apply would do, and changes nothing. It needs no lock.
func (t *Tables) Plan(c config.Config) (config.Change, error) {
	if err := c.Validate(); err != nil {
		return config.Change{}, err
	}
	o, _, err := t.outline()
	if err != nil && !errors.Is(err, ErrEmpty) {
		return config.Change{}, err
	}
	running, err := o.Beside(c)
	if err != nil {
		return config.Change{}, err
	}
	return running.Change(c), nil
}

// Apply makes c what the datapath runs. Everything is checked and built first;
// then one write swaps the whole set of forwards, together with the document
// that Running reads. Forwards that do the same as before keep their connections
// and counters; connections of the others end right after the swap. The caller
// holds the writer lock and calls SetInterfaces next.
//
// A writer may be killed at any step. Before the swap nothing has changed for
// packets: new ids, addresses and counters that no live forward refers to mean
// nothing. After it the document lists what remains to be done, and the next
// writer does it.
func (t *Tables) Apply(c config.Config) (config.Change, error) {
	swap, err := t.Prepare(c)
	if err != nil {
		return config.Change{}, err
	}
	return swap()
}

// Prepare does what Apply does before the swap. To swap is the rest of it, which
// is to follow before anything else is changed.
func (t *Tables) Prepare(c config.Config) (swap func() (config.Change, error), err error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	before, generation, err := t.outline()
	fresh := errors.Is(err, ErrEmpty)
	if err != nil && !fresh {
		return nil, err
	}
	if err := t.finish(before); err != nil {
		return nil, err
	}
	running, err := before.Beside(c)
	if err != nil {
		return nil, err
	}
	change := running.Change(c)
	p, err := t.compile(c, running)
	if err != nil {
		return nil, err
	}
	if !fresh && running.Unchanged(c) {
		return func() (config.Change, error) { return change, nil }, nil
	}
	if err := t.stage(p, running, generation); err != nil {
		return nil, err
	}
	return func() (config.Change, error) { return change, t.swap(generation + 1) }, nil
}

// swap makes what is staged for a generation what runs.
func (t *Tables) swap(generation uint32) error {
	if err := t.step("swap", func() error {
		return t.objs.Live.Put(uint32(0), bpf.HairpinLive{Generation: generation})
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

// checkSizes refuses before anything is written what would not fit.
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
		return fmt.Errorf("the ports of forwards at their targets, of UDP and with reflect prefix, need %d table entries, but the table holds %d; ranges that start and end at multiples of a power of two need the fewest", need, limit)
	}
	wanted := p.Doc.Targets()
	if need, limit := uint32(len(wanted)), t.objs.Targets.MaxEntries(); need > limit {
		return fmt.Errorf("the forwards have %d targets, but the table holds %d", need, limit)
	}
	maps.Copy(wanted, running.Targets)
	if need, limit := uint32(len(wanted)), t.objs.Targets.MaxEntries(); need > limit {
		return fmt.Errorf("the forwards that run and the new ones have %d targets, but the table holds %d at once; apply the change in steps", need, limit)
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

// stage builds the program into the idle slot of generation, where nothing
// reads it.
func (t *Tables) stage(p *compile.Program, running *compile.Running, generation uint32) error {
	slot := (generation + 1) & 1
	p.Doc.Generation = generation + 1
	var others fillings
	defer others.close()
	for _, step := range []struct {
		name string
		do   func() error
	}{
		// The document goes first. Writing a slot of an outer map waits until no
		// program runs that began before, so that none is left that took this slot
		// of forwards for the live one before the last swap.
		{"store configuration", func() error {
			return t.storeDocument(&p.Doc, &others)
		}},
		{"make forwards", func() error {
			return addTrie(&others, t.objs.Forwards, slot, bpf.HairpinMapForwards, p.ForwardKeys, p.Forwards)
		}},
		{"make from lists", func() error {
			return addTrie(&others, t.objs.Allow, slot, bpf.HairpinMapAllow, p.AllowKeys, p.Allowed)
		}},
		{"make stand-ins", func() error {
			return addTrie(&others, t.objs.StandIns, slot, bpf.HairpinMapStandIns, p.StandInKeys, p.StandIns)
		}},
		{"make origins", func() error {
			return addTrie(&others, t.objs.Origins, slot, bpf.HairpinMapOrigins, p.OriginKeys, p.Origins)
		}},
		{"store what was made", others.store},
		{"make counters", func() error { return t.makeStats(p) }},
		{"make buckets", func() error { return t.makeBuckets(p.Doc.Config.Forwards, p.Doc.EpochRefs, p.Fresh) }},
		{"add external addresses", func() error { return t.addExternals(&p.Doc) }},
		{"add targets", func() error { return t.addTargets(p.Doc.Targets(), running.Targets) }},
	} {
		if err := t.step(step.name, step.do); err != nil {
			return err
		}
	}
	return nil
}

// storeDocument fills the slot of the document of a generation, or leaves it to
// the others' time if it is the first: nothing was swapped before.
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
	return document.store()
}

// fillings are maps on their way into slots.
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

// store fills the slots. The kernel makes every write of a slot wait for all CPUs,
// but all that come together wait for the same.
func (f *fillings) store() error {
	errs := make([]error, len(*f))
	var storing sync.WaitGroup
	for i, one := range *f {
		storing.Go(func() { errs[i] = one.store() })
	}
	storing.Wait()
	return errors.Join(errs...)
}

func (f filling) store() error {
	if err := f.outer.Put(f.slot, f.inner); err != nil {
		return fmt.Errorf("fill slot %d of %s: %w", f.slot, outerName(f.outer), err)
	}
	return nil
}

// addTrie makes a trie for a slot, unless an empty one is to replace an empty one.
func addTrie[K, V any](to *fillings, outer *ebpf.Map, slot uint32, name string, keys []K, values []V) error {
	if len(keys) == 0 {
		if empty, err := isEmptySlot(outer, slot); empty || err != nil {
			return err
		}
	}
	inner, err := newTrie(name, keys, values)
	if err == nil {
		*to = append(*to, filling{outer, inner, slot})
	}
	return err
}

func isEmptySlot(outer *ebpf.Map, slot uint32) (bool, error) {
	var inner *ebpf.Map
	if err := outer.Lookup(slot, &inner); err != nil {
		return false, fmt.Errorf("open slot %d of %s: %w", slot, outerName(outer), err)
	}
	defer inner.Close()
	key, err := inner.NextKeyBytes(nil)
	if err != nil {
		return false, fmt.Errorf("look into slot %d of %s: %w", slot, outerName(outer), err)
	}
	return key == nil, nil
}

func outerName(m *ebpf.Map) string { return strings.Split(m.String(), "#")[0] }

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

// makeStats gives every new id counters that stand at zero.
func (t *Tables) makeStats(p *compile.Program) error {
	ids := make([]uint32, len(p.Fresh))
	for i, s := range p.Fresh {
		ids[i] = s.ID
	}
	return t.zeroStats(ids)
}

// addExternals makes the datapath look for the forwards of fixed addresses. Old
// ones stay: until the swap they are in use.
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

// finish does what follows the swap to the document of an outline, or the last
// addition to it; it may be repeated.
func (t *Tables) finish(o *compile.Outline) error {
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
		{"drop counters", func() error { return t.dropStats(doc) }},
		{"drop external addresses", func() error { return t.dropExternals(doc) }},
		{"drop targets", func() error { return t.dropTargets(left.Targets) }},
		{"set settings", func() error { return t.setSettings(doc.Config) }},
		{"deny sources", func() error { return t.denyConfigured(doc.Config.Deny) }},
		{"tell of ended connections", func() error { return t.tellForwards(doc) }},
		{"note that it is finished", func() error { return t.noteFinished(doc) }},
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

func (t *Tables) tellForwards(doc *compile.Document) error {
	if len(doc.Ended) == 0 {
		return nil
	}
	return t.tellEnded()
}

// dropExternals forgets fixed addresses that no forward names any more. What an
// address means as a WAN interface's is SetInterfaces' to say.
func (t *Tables) dropExternals(doc *compile.Document) error {
	present, err := readAll[bpf.HairpinAddr, bpf.HairpinExternal](t.objs.Externals)
	if err != nil {
		return fmt.Errorf("list external addresses: %w", err)
	}
	for addr, external := range present {
		if external.Fixed == 0 || doc.Externals[rule.AtAddress(layout.FromAddr(addr))] == external.Fixed {
			continue
		}
		external.Fixed = 0
		if external.Group != 0 {
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

// addTargets makes the datapath take fragments from the new forwards' targets
// for its own. Those of the running ones stay until the swap; what a writer that
// failed has left goes, and makes room.
func (t *Tables) addTargets(wanted, running map[bpf.HairpinAddr]bool) error {
	both := maps.Clone(wanted)
	maps.Copy(both, running)
	present, err := keepAddresses(t.objs.Targets, both)
	if err != nil {
		return fmt.Errorf("targets: %w", err)
	}
	return addAddresses(t.objs.Targets, wanted, present)
}

func (t *Tables) dropTargets(wanted map[bpf.HairpinAddr]bool) error {
	if _, err := keepAddresses(t.objs.Targets, wanted); err != nil {
		return fmt.Errorf("targets: %w", err)
	}
	return nil
}

// keepAddresses forgets every address that is not wanted, and returns what was
// there.
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

// addAddresses adds those that are wanted and not among the present ones.
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
