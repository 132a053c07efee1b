// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps/compile"
)

// statsPage returns how many forwards have their counters in one inner map (page) of forward_stats. The embedded object
// has this number too, but reading the object takes longer than most commands.
func (t *Tables) statsPage() (uint32, error) {
	const first = 0 // forwards get the lowest free ids, so page 0 almost always exists
	page, err := t.openStatsPage(first)
	if err != nil {
		return 0, err
	}
	if page != nil {
		defer page.Close()
		return page.MaxEntries(), nil
	}
	spec, err := embedded()
	if err != nil {
		return 0, err
	}
	return spec.Maps[bpf.HairpinMapForwardStats].InnerMap.MaxEntries, nil
}

// forwardIDs returns the highest id that a forward can have. Higher ids are for addresses, or have no page of counters.
func (t *Tables) forwardIDs() (uint32, error) {
	page, err := t.statsPage()
	return min(t.addressIDs(), page*t.objs.ForwardStats.MaxEntries()) - 1, err
}

// openStatsPage opens the page with this number. It returns nil if there is no such page.
func (t *Tables) openStatsPage(number uint32) (*ebpf.Map, error) {
	page, err := t.slots.Open(t.objs.ForwardStats, number)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open counters of forwards: %w", err)
	}
	return page, nil
}

// zeroStats sets the counters of the forwards with these ids to zero, and creates missing pages.
func (t *Tables) zeroStats(ids []uint32) error {
	size, err := t.statsPage()
	if err != nil {
		return err
	}
	places := map[uint32][]uint32{}
	for _, id := range ids {
		places[id/size] = append(places[id/size], id%size)
	}
	var missing []uint32
	for number := range places {
		there, err := t.zeroStatsPage(number, places[number])
		if err != nil {
			return fmt.Errorf("make counters of forwards: %w", err)
		}
		if !there {
			missing = append(missing, number)
		}
	}
	if err := t.makeStatsPages(missing); err != nil {
		return fmt.Errorf("make counters of forwards: %w", err)
	}
	return nil
}

// zeroStatsPage sets the counters at these places of a page to zero. It reports whether the page exists.
func (t *Tables) zeroStatsPage(number uint32, places []uint32) (bool, error) {
	page, err := t.openStatsPage(number)
	if page == nil || err != nil {
		return false, err
	}
	defer page.Close()
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return false, fmt.Errorf("count CPUs: %w", err)
	}
	return true, putAll(page, places, make([]bpf.HairpinForwardStats, len(places)*cpus), cpus)
}

// makeStatsPages creates pages and stores all of them at once.
func (t *Tables) makeStatsPages(numbers []uint32) error {
	pages := make([]*ebpf.Map, len(numbers))
	for i := range numbers {
		page, err := newInner(bpf.HairpinMapForwardStats, 0)
		if err != nil {
			return err
		}
		defer page.Close()
		pages[i] = page
	}
	return t.slots.StoreAll(t.objs.ForwardStats, numbers, pages)
}

// StatsReader reads the counters of forwards, one page at a time, and reuses its memory.
type StatsReader struct {
	tables *Tables
	Size   uint32 // forwards per page
	cpus   int
	places []uint32
	counts []bpf.HairpinForwardStats // for each place, one value per CPU
	sums   []ForwardStats            // for each place, the sum over the CPUs
}

// NewStatsReader returns a reader. Only one goroutine at a time may use the reader.
func (t *Tables) NewStatsReader() (*StatsReader, error) {
	size, err := t.statsPage()
	if err != nil {
		return nil, err
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("count CPUs: %w", err)
	}
	return &StatsReader{
		tables: t, Size: size, cpus: cpus,
		places: make([]uint32, size), counts: make([]bpf.HairpinForwardStats, int(size)*cpus), sums: make([]ForwardStats, size),
	}, nil
}

// page returns the counters of a page, summed over the CPUs, or nil if there is no such page. The next call reuses the
// memory of the result.
func (r *StatsReader) page(number uint32) ([]ForwardStats, error) {
	page, err := r.tables.openStatsPage(number)
	if page == nil || err != nil {
		return nil, err
	}
	defer page.Close()
	clear(r.sums)
	read := 0
	for cursor := (ebpf.MapBatchCursor{}); read < len(r.places); {
		n, err := page.BatchLookup(&cursor, r.places[read:], r.counts[read*r.cpus:], nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, fmt.Errorf("read counters of forwards: %w", err)
		}
		read += n
		if err != nil {
			break
		}
	}
	for i, place := range r.places[:read] {
		for _, cpu := range r.counts[i*r.cpus : (i+1)*r.cpus] {
			if cpu != (bpf.HairpinForwardStats{}) {
				r.sums[place].add(&cpu)
			}
		}
	}
	return r.sums, nil
}

// eachStats calls visit with the counters of every running forward whose counters are not all zero. visit must not keep
// its last argument.
func (t *Tables) eachStats(visit func(name string, id uint32, s *ForwardStats) error) error {
	wanted, err := t.Roster()
	if err != nil {
		return err
	}
	r, err := t.NewStatsReader()
	if err != nil {
		return err
	}
	for number := range r.Pages(wanted) {
		if err := r.Each(wanted, number, visit); err != nil {
			return err
		}
	}
	return nil
}

// Pages returns the number of pages for the forwards of a roster.
func (r *StatsReader) Pages(of *compile.Roster) uint32 {
	return (uint32(len(of.Names)) + r.Size - 1) / r.Size
}

// Each is eachStats for one page and the forwards of a roster. It leaves out forwards that are no longer running.
func (r *StatsReader) Each(wanted *compile.Roster, number uint32, visit func(name string, id uint32, s *ForwardStats) error) error {
	sums, err := r.page(number)
	if err != nil {
		return err
	}
	// Another forward may have got the id during the read. So check, after the counters were read, that the id still belongs to
	// the wanted forward.
	now, err := r.tables.Roster()
	if err != nil {
		return err
	}
	for place := range sums {
		id := number*r.Size + uint32(place)
		if sums[place] == (ForwardStats{}) || wanted.Name(id) == "" || !now.Has(id, wanted) {
			continue
		}
		if err := visit(wanted.Names[id], id, &sums[place]); err != nil {
			return err
		}
	}
	return nil
}

// dropStats removes the pages of ended forwards, if no running forward uses the page.
func (t *Tables) dropStats(doc *compile.Document) error {
	size, err := t.statsPage()
	if err != nil {
		return err
	}
	seen := map[uint32]bool{}
	for _, s := range doc.EpochRefs {
		seen[s.ID/size] = true
	}
	var unused []uint32
	for _, s := range doc.Ended {
		if number := s.ID / size; !seen[number] {
			seen[number] = true
			unused = append(unused, number)
		}
	}
	return t.dropAll(t.objs.ForwardStats, unused)
}

// droppedAtOnce limits the number of threads that wait in the kernel.
const droppedAtOnce = 64

// dropAll empties slots of an outer map, several in parallel. Each write waits for an RCU grace period in the kernel, and
// parallel writes wait for the same grace period.
func (t *Tables) dropAll(outer *ebpf.Map, slots []uint32) error {
	for some := range slices.Chunk(slots, droppedAtOnce) {
		errs := make([]error, len(some))
		var dropping sync.WaitGroup
		for i, slot := range some {
			dropping.Go(func() { errs[i] = t.slots.Drop(outer, slot) })
		}
		dropping.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	return nil
}
