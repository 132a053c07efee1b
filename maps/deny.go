// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/bits"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
	"hairpin/maps/compile"
	"hairpin/maps/layout"
	"hairpin/maps/slots"
)

// A denied source opens no connection. The configuration denies sources, and commands deny sources at run time: each entry records
// whether the configuration or a command denies the source. Single addresses lie in a hash, networks in a trie. Whoever writes holds the
// writer lock: so two commands, or a command and the daemon that removes what has ended, do not write over each other's entries. The
// datapath judges by its clock when an entry ends, whether anybody removes it or not.
//
// A writer may be killed after it has denied a source, and before it has ended the connections of the source:
//
//  1. Writer A sets a mark in map denied_unended, and writes the entries.
//  2. A is killed. Its sources open nothing, but the connections that they have live on.
//  3. The next writer B finds the mark: a command that denies sources, a change of the configuration, or the daemon, which looks once
//     a minute. B does not know which sources were A's, so B ends the connections of all denied sources.
//  4. B clears the mark. If B is killed before that, the next writer does step 3 again.
//
// If B denies sources of its own, B's walk is for all denied sources, too: otherwise B would clear A's mark without A's walk.

const (
	// maxDenied is how many single addresses there may be, and how many networks.
	maxDenied = 1 << 20
	minDenied = 1 << 10 // room for addresses, once there are any
)

// Denied is a source that is denied.
type Denied struct {
	Source     netip.Prefix
	Configured bool          // the configuration denies it
	Asked      bool          // a command denies it
	Left       time.Duration // of what a command has asked for; 0: for ever
}

// Denial asks to deny a source for a time; 0 is for ever.
type Denial struct {
	Source netip.Prefix
	Lasts  time.Duration
}

// second is the datapath's clock as denials have it.
func second(now uint64) uint32 { return uint32(now / uint64(time.Second)) }

// Deny denies sources, or gives those that commands have denied before another time, and ends their connections. It says how many
// connections it has ended.
func (t *Tables) Deny(denials []Denial) (ended int, err error) {
	if len(denials) == 0 {
		return 0, nil
	}
	now := layout.Monotonic()
	until := make(map[netip.Prefix]uint32, len(denials))
	for _, d := range denials {
		until[d.Source] = compile.DeniedUntil(now, d.Lasts)
	}
	sources := slices.Collect(maps.Keys(until))
	return t.denyAndEnd(sources, func() error {
		return t.updateDenied(second(now), sources, func(source netip.Prefix, d *bpf.HairpinDenial) { d.Asked = until[source] })
	})
}

// Undeny takes back what Deny has done. missing are the sources that no command has denied, configured those that stay denied by the
// configuration. No source may be there twice.
func (t *Tables) Undeny(sources []netip.Prefix) (missing, configured []netip.Prefix, err error) {
	now := second(layout.Monotonic())
	err = t.updateDenied(now, sources, func(source netip.Prefix, d *bpf.HairpinDenial) {
		if d.Asked <= now {
			missing = append(missing, source)
		}
		if d.Configured != 0 {
			configured = append(configured, source)
		}
		d.Asked = 0
	})
	return missing, configured, err
}

// SweepDenied removes what has ended, and says how many sources that were. It also ends the connections that a killed writer has left.
func (t *Tables) SweepDenied() (int, error) {
	if err := t.endLeftDenied(); err != nil {
		return 0, err
	}
	now := second(layout.Monotonic())
	var over []netip.Prefix
	err := t.eachDenied(func(source netip.Prefix, d *bpf.HairpinDenial) {
		if compile.OwnDenial(*d, now) == 0 {
			over = append(over, source)
		}
	})
	if err != nil || len(over) == 0 {
		return 0, err
	}
	err = t.updateDenied(now, over, func(netip.Prefix, *bpf.HairpinDenial) {})
	if err != nil || !slices.ContainsFunc(over, netip.Prefix.IsSingleIP) {
		return len(over), err
	}
	var left []bpf.HairpinAddr
	err = t.eachDeniedAddress(func(source netip.Prefix, _ *bpf.HairpinDenial) { left = append(left, layout.ToAddr(source.Addr())) })
	if err != nil {
		return len(over), err
	}
	return len(over), t.remarkDenied(slices.Values(left))
}

// EachDenied calls visit for every source that is denied now, in no order. It needs no lock.
func (t *Tables) EachDenied(visit func(Denied)) error {
	clock := layout.Monotonic()
	now := second(clock)
	return t.eachDenied(func(source netip.Prefix, d *bpf.HairpinDenial) {
		denied := Denied{Source: source, Configured: d.Configured != 0, Asked: d.Asked > now}
		if !denied.Configured && !denied.Asked {
			return
		}
		if denied.Asked && d.Asked != compile.Forever {
			denied.Left = time.Duration(uint64(d.Asked)*uint64(time.Second) - clock)
		}
		visit(denied)
	})
}

func (t *Tables) eachDenied(visit func(netip.Prefix, *bpf.HairpinDenial)) error {
	if err := t.eachDeniedAddress(visit); err != nil {
		return fmt.Errorf("list denied addresses: %w", err)
	}
	if err := t.eachDeniedNetwork(visit); err != nil {
		return fmt.Errorf("list denied networks: %w", err)
	}
	return nil
}

func (t *Tables) eachDeniedAddress(visit func(netip.Prefix, *bpf.HairpinDenial)) error {
	table, err := t.openOnly(t.objs.Denied)
	if table == nil || err != nil {
		return err
	}
	defer table.Close()
	return scan(table, 1, func(key bpf.HairpinAddr, d []bpf.HairpinDenial) { visit(single(key), &d[0]) })
}

func (t *Tables) eachDeniedNetwork(visit func(netip.Prefix, *bpf.HairpinDenial)) error {
	trie, err := t.openOnly(t.objs.DeniedNets)
	if trie == nil || err != nil {
		return err
	}
	defer trie.Close()
	return scan(trie, 1, func(key bpf.HairpinDeniedKey, d []bpf.HairpinDenial) { visit(layout.FromDeniedKey(key), &d[0]) })
}

func single(addr bpf.HairpinAddr) netip.Prefix {
	at := layout.FromAddr(addr)
	return netip.PrefixFrom(at, at.BitLen())
}

// openOnly opens the map in the only slot of an outer map, nil if there is none yet.
func (t *Tables) openOnly(outer *ebpf.Map) (*ebpf.Map, error) {
	inner, err := t.slots.Open(outer, 0)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, fmt.Errorf("open %s: %w", slots.OuterName(outer), err)
	}
	return inner, nil
}

// updateDenied changes the entries of sources. update gets what is there, or an empty entry; an entry that denies nothing goes.
func (t *Tables) updateDenied(now uint32, sources []netip.Prefix, update func(netip.Prefix, *bpf.HairpinDenial)) error {
	var addresses, networks []netip.Prefix
	for _, source := range sources {
		if source.IsSingleIP() {
			addresses = append(addresses, source)
		} else {
			networks = append(networks, source)
		}
	}
	if err := t.updateAddresses(now, addresses, update); err != nil {
		return fmt.Errorf("deny addresses: %w", err)
	}
	if err := t.updateNetworks(now, networks, update); err != nil {
		return fmt.Errorf("deny networks: %w", err)
	}
	return nil
}

func (t *Tables) updateAddresses(now uint32, sources []netip.Prefix, update func(netip.Prefix, *bpf.HairpinDenial)) error {
	if len(sources) == 0 {
		return nil
	}
	table, err := t.openOnly(t.objs.Denied)
	if err != nil {
		return err
	}
	defer table.Close()
	var keys []bpf.HairpinAddr
	var values []bpf.HairpinDenial
	for _, source := range sources {
		key := layout.ToAddr(source.Addr())
		var d bpf.HairpinDenial
		if table != nil {
			if err := table.Lookup(key, &d); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return err
			}
		}
		update(source, &d)
		if d.Until = compile.OwnDenial(d, now); d.Until != 0 {
			keys, values = append(keys, key), append(values, d)
		} else if table != nil {
			if err := drop(table, key); err != nil {
				return err
			}
		}
	}
	if len(keys) == 0 {
		return nil
	}
	if table != nil {
		if err = t.markDenied(keys); err == nil {
			err = putAll(table, keys, values, 1)
		}
	}
	if table == nil || errors.Is(err, unix.E2BIG) {
		err = t.growDenied(now, keys, values)
	}
	return err
}

// growDenied puts a larger table of addresses in place of one that is full, or of none, with these entries besides. A packet finds the
// one table or the other, and each is whole. The writer lock keeps other writers away while the entries are copied.
func (t *Tables) growDenied(now uint32, keys []bpf.HairpinAddr, values []bpf.HairpinDenial) error {
	all := map[bpf.HairpinAddr]bpf.HairpinDenial{}
	err := t.eachDeniedAddress(func(source netip.Prefix, d *bpf.HairpinDenial) {
		if compile.OwnDenial(*d, now) != 0 {
			all[layout.ToAddr(source.Addr())] = *d
		}
	})
	if err != nil {
		return err
	}
	for i, key := range keys {
		all[key] = values[i]
	}
	if len(all) > maxDenied {
		return fmt.Errorf("%d addresses would be denied, but the table holds %d; deny networks instead", len(all), maxDenied)
	}
	// A quarter more than there are, so that the next ones fit as well.
	room := uint32(1) << bits.Len32(uint32(max(minDenied, min(maxDenied, len(all)+len(all)/4))-1))
	table, err := newInner(bpf.HairpinMapDenied, room)
	if err != nil {
		return err
	}
	defer table.Close()
	if err := putMap(table, all); err != nil {
		return err
	}
	if err := t.remarkDenied(maps.Keys(all)); err != nil {
		return err
	}
	return t.slots.Store(t.objs.Denied, 0, table)
}

// markDenied sets the bits of addresses in maybe_denied, before they are denied. growDenied has made the bits before the table.
func (t *Tables) markDenied(addresses []bpf.HairpinAddr) error {
	marks, err := t.slots.Open(t.objs.MaybeDenied, 0)
	if err != nil {
		return fmt.Errorf("open the bits of denied addresses: %w", err)
	}
	defer marks.Close()
	words := wordsOf(slices.Values(addresses))
	for place, word := range words {
		var there uint64
		if err := marks.Lookup(place, &there); err != nil {
			return fmt.Errorf("mark denied addresses: %w", err)
		}
		words[place] = there | word
	}
	return putMap(marks, words)
}

// remarkDenied puts other bits in place of those that there are: those of addresses that are denied no longer go. The addresses must be
// all that are denied now, and all that are denied next.
func (t *Tables) remarkDenied(addresses iter.Seq[bpf.HairpinAddr]) error {
	marks, err := newInner(bpf.HairpinMapMaybeDenied, layout.MaybeDeniedPlaces)
	if err != nil {
		return err
	}
	defer marks.Close()
	if err := putMap(marks, wordsOf(addresses)); err != nil {
		return err
	}
	return t.slots.Store(t.objs.MaybeDenied, 0, marks)
}

func wordsOf(addresses iter.Seq[bpf.HairpinAddr]) map[uint32]uint64 {
	words := map[uint32]uint64{}
	for addr := range addresses {
		place, bit := layout.MaybeDeniedBit(addr)
		words[place] |= bit
	}
	return words
}

func putMap[K comparable, V any](m *ebpf.Map, entries map[K]V) error {
	keys, values := slices.Collect(maps.Keys(entries)), make([]V, len(entries))
	for i, key := range keys {
		values[i] = entries[key]
	}
	return putAll(m, keys, values, 1)
}

func (t *Tables) updateNetworks(now uint32, sources []netip.Prefix, update func(netip.Prefix, *bpf.HairpinDenial)) error {
	if len(sources) == 0 {
		return nil
	}
	before := compile.Denials{}
	if err := t.eachDeniedNetwork(func(source netip.Prefix, d *bpf.HairpinDenial) { before[source] = *d }); err != nil {
		return err
	}
	after := maps.Clone(before)
	for _, source := range sources {
		d := after[source]
		update(source, &d)
		after[source] = d
	}
	after.Settle(now)
	if len(before) == 0 && len(after) == 0 {
		return nil
	}
	trie, err := t.ensureDeniedNets()
	if err != nil {
		return err
	}
	defer trie.Close()
	if limit := int(trie.MaxEntries()); len(after) > limit {
		return fmt.Errorf("%d networks would be denied, but the table holds %d", len(after), limit)
	}
	// What was within a network that goes is given its own time first.
	var keys []bpf.HairpinDeniedKey
	var values []bpf.HairpinDenial
	for source, d := range after {
		if before[source] != d {
			keys, values = append(keys, layout.DeniedKey(source)), append(values, d)
		}
	}
	if err := putAll(trie, keys, values, 1); err != nil {
		return err
	}
	for source := range before {
		if _, stays := after[source]; !stays {
			if err := drop(trie, layout.DeniedKey(source)); err != nil {
				return err
			}
		}
	}
	return nil
}

// denyAndEnd denies sources by update, and ends their connections. It says how many it has ended.
func (t *Tables) denyAndEnd(sources []netip.Prefix, update func() error) (ended int, err error) {
	left, err := t.deniedLeft()
	if err != nil {
		return 0, err
	}
	if err := t.setDeniedLeft(true); err != nil {
		return 0, err
	}
	if err := update(); err != nil {
		return 0, err
	}
	return t.endDenied(sources, left)
}

// endLeftDenied ends the connections of all denied sources, if a writer was killed before it ended those of its sources.
func (t *Tables) endLeftDenied() error {
	left, err := t.deniedLeft()
	if err != nil || !left {
		return err
	}
	_, err = t.endDenied(nil, true)
	return err
}

// deniedLeft reports whether denied sources may still have connections.
func (t *Tables) deniedLeft() (bool, error) {
	var left uint32
	if err := t.objs.DeniedUnended.Lookup(uint32(0), &left); err != nil {
		return false, fmt.Errorf("read whether denied sources may have connections: %w", err)
	}
	return left != 0, nil
}

func (t *Tables) setDeniedLeft(left bool) error {
	value := uint32(0)
	if left {
		value = 1
	}
	if err := t.objs.DeniedUnended.Put(uint32(0), value); err != nil {
		return fmt.Errorf("record whether denied sources may have connections: %w", err)
	}
	return nil
}

// endDenied ends the connections of sources that have just been denied, or of all denied sources if a writer has left some. Then no
// denied source has connections.
func (t *Tables) endDenied(sources []netip.Prefix, left bool) (ended int, err error) {
	if left {
		sources = nil
		if err := t.EachDenied(func(d Denied) { sources = append(sources, d.Source) }); err != nil {
			return 0, err
		}
	}
	err = t.step("end connections of denied sources", func() error {
		ended, err = t.endConnectionsOf(sources)
		return err
	})
	// A writer that was killed may have ended connections, but not sent the RSTs.
	if err == nil && (left || ended > 0) {
		err = t.resetEnded()
	}
	if err != nil {
		return ended, err
	}
	return ended, t.setDeniedLeft(false)
}

// endConnectionsOf ends the connections of sources. See deny.h for the race that the first step ends.
func (t *Tables) endConnectionsOf(sources []netip.Prefix) (ended int, err error) {
	if err := t.awaitPrograms(); err != nil {
		return 0, err
	}
	denied := compile.NewSources(sources)
	w, err := t.newWalk()
	if err != nil {
		return 0, err
	}
	var failed error
	err = w.openers(func(opener *layout.Entry) {
		if failed != nil || w.epochs.over(opener) || !denied.Hold(layout.FromAddr(opener.Key.Src)) {
			return
		}
		var n int
		n, failed = t.end(bpf.HairpinEndRequest{Key: opener.Key, Serial: opener.Serial})
		ended += n
	})
	if err = errors.Join(failed, err); err != nil {
		return ended, fmt.Errorf("end connections of denied sources: %w", err)
	}
	return ended, nil
}

// ensureDeniedNets opens the trie of networks, and makes it if there is none yet.
func (t *Tables) ensureDeniedNets() (*ebpf.Map, error) {
	trie, err := t.openOnly(t.objs.DeniedNets)
	if trie != nil || err != nil {
		return trie, err
	}
	if trie, err = newInner(bpf.HairpinMapDeniedNets, 0); err != nil {
		return nil, err
	}
	if err := t.slots.Store(t.objs.DeniedNets, 0, trie); err != nil {
		trie.Close()
		return nil, err
	}
	return trie, nil
}

// denyConfigured makes the sources of the configuration those that are denied besides what commands have denied.
func (t *Tables) denyConfigured(wanted []netip.Prefix) error {
	added := make(map[netip.Prefix]bool, len(wanted))
	for _, source := range wanted {
		added[source] = true
	}
	var gone []netip.Prefix
	err := t.eachDenied(func(source netip.Prefix, d *bpf.HairpinDenial) {
		switch {
		case d.Configured == 0:
		case added[source]:
			delete(added, source)
		default:
			gone = append(gone, source)
		}
	})
	if err != nil {
		return err
	}
	sources := slices.Collect(maps.Keys(added))
	update := func() error {
		return t.updateDenied(second(layout.Monotonic()), append(gone, sources...), func(source netip.Prefix, d *bpf.HairpinDenial) {
			d.Configured = 0
			if added[source] {
				d.Configured = 1
			}
		})
	}
	if len(sources) == 0 {
		return update()
	}
	_, err = t.denyAndEnd(sources, update)
	return err
}
