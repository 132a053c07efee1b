// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps/compile"
	"hairpin/maps/rule"
)

// sourceBuckets is how many clients have a bucket of their own at a time, of all forwards with a rate for each client. The table takes
// 1.5 MiB, once there is such a forward.
const sourceBuckets = 16384

// makeBuckets gives the forwards with rates what the datapath counts by. Buckets of new forwards begin full. Those of forwards that go
// on stay: the datapath may be at them. A page takes 2 KiB, and stays.
func (t *Tables) makeBuckets(forwards []rule.Forward, refs, fresh []compile.EpochRef) error {
	if !slices.ContainsFunc(forwards, func(f rule.Forward) bool { return !f.Rate.IsZero() || !f.RatePerSource.IsZero() }) {
		return nil
	}
	spec, err := embedded()
	if err != nil {
		return err
	}
	page := spec.Maps[bpf.HairpinMapBuckets].InnerMap.MaxEntries
	pages := map[uint32][]uint32{} // the places in each that begin full
	each := false
	for i := range forwards {
		each = each || !forwards[i].RatePerSource.IsZero()
		if forwards[i].Rate.IsZero() {
			continue
		}
		number, place := refs[i].ID/page, refs[i].ID%page
		pages[number] = append(pages[number], place)
	}
	begin := make(map[uint32]bool, len(fresh))
	for _, s := range fresh {
		begin[s.ID] = true
	}
	for number, places := range pages {
		places = slices.DeleteFunc(places, func(place uint32) bool { return !begin[number*page+place] })
		if err := t.makeBucketsPage(number, places); err != nil {
			return fmt.Errorf("make buckets of rates: %w", err)
		}
	}
	if !each {
		return nil
	}
	if err := t.makeSourceBuckets(); err != nil {
		return fmt.Errorf("make buckets of clients: %w", err)
	}
	return nil
}

func (t *Tables) makeBucketsPage(number uint32, places []uint32) error {
	page, err := t.slots.Open(t.objs.Buckets, number)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		if page, err = newInner(bpf.HairpinMapBuckets, 0); err != nil {
			return err
		}
		defer page.Close()
		return t.slots.Store(t.objs.Buckets, number, page)
	}
	if err != nil {
		return err
	}
	defer page.Close()
	return putAll(page, places, make([]bpf.HairpinBucket, len(places)), 1)
}

func (t *Tables) makeSourceBuckets() error {
	return t.enlarge(t.objs.SourceBuckets, 0, bpf.HairpinMapSourceBuckets, sourceBuckets)
}

// enlarge replaces the table in a slot of an outer map by an empty one of this size, if the one there is smaller. The entries of the smaller
// one are lost.
func (t *Tables) enlarge(outer *ebpf.Map, slot uint32, name string, size uint32) error {
	table, err := t.slots.Open(outer, slot)
	if err != nil {
		return err
	}
	defer table.Close()
	if table.MaxEntries() >= size {
		return nil
	}
	larger, err := newInner(name, size)
	if err != nil {
		return err
	}
	defer larger.Close()
	return t.slots.Store(outer, slot, larger)
}
