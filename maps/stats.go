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

// statsPage is how many forwards' counters are in one map of forward_stats. The
// embedded object says so as well, but to read it takes longer than most commands do.
func (t *Tables) statsPage() (uint32, error) {
	const first = 0 // the lowest ids are given first
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

// ForwardIDs is the highest id of a forward: those above are of addresses, or have no counters.
func (t *Tables) forwardIDs() (uint32, error) {
	page, err := t.statsPage()
	return min(t.addressIDs(), page*t.objs.ForwardStats.MaxEntries()) - 1, err
}

// openStatsPage opens the page of an id, nil if there is none.
func (t *Tables) openStatsPage(number uint32) (*ebpf.Map, error) {
	var page *ebpf.Map
	err := t.objs.ForwardStats.Lookup(number, &page)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open counters of forwards: %w", err)
	}
	return page, nil
}

// zeroStats gives forwards counters that stand at zero.
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

// zeroStatsPage reports whether there is such a page.
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

// makeStatsPages puts all pages in place in one batch: the kernel makes every
// write wait for all CPUs.
func (t *Tables) makeStatsPages(numbers []uint32) error {
	descriptors := make([]uint32, len(numbers))
	for i := range numbers {
		page, err := newInner(bpf.HairpinMapForwardStats, 0)
		if err != nil {
			return err
		}
		defer page.Close()
		descriptors[i] = uint32(page.FD())
	}
	return putAll(t.objs.ForwardStats, numbers, descriptors, 1)
}

// StatsReader reads counters of forwards, a page at a time.
type StatsReader struct {
	tables *Tables
	Size   uint32 // of a page
	cpus   int
	places []uint32
	counts []bpf.HairpinForwardStats // of each place, one for each CPU
	sums   []ForwardStats
}

// NewStatsReader gives a reader with memory of its own for a page. One caller at a time uses it.
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

// page sums the counters of a page over the CPUs. They are the reader's, and the next page's afterwards. It is nil if
// there is no such page.
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

// eachStats calls visit with the counters of every forward that has counted anything. visit must not keep its last
// argument.
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

// Pages is how many pages have the forwards of a roster.
func (r *StatsReader) Pages(of *compile.Roster) uint32 {
	return (uint32(len(of.Names)) + r.Size - 1) / r.Size
}

// Each is eachStats for one page and the forwards of a roster, those left out that have gone since.
func (r *StatsReader) Each(wanted *compile.Roster, number uint32, visit func(name string, id uint32, s *ForwardStats) error) error {
	sums, err := r.page(number)
	if err != nil {
		return err
	}
	// The id may be another forward's by now. The counters are those of the wanted forward if the id still is, after they were read.
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

// dropStats gives the memory of counters back that no running forward has: those of whole pages.
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
	return dropAll(t.objs.ForwardStats, unused)
}

// droppedAtOnce bounds the threads that wait in the kernel.
const droppedAtOnce = 64

// dropAll empties slots of an outer map, several at a time: the kernel makes every
// write wait for all CPUs, but all that come together wait for the same.
func dropAll(outer *ebpf.Map, slots []uint32) error {
	for some := range slices.Chunk(slots, droppedAtOnce) {
		errs := make([]error, len(some))
		var dropping sync.WaitGroup
		for i, slot := range some {
			dropping.Go(func() { errs[i] = drop(outer, slot) })
		}
		dropping.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	return nil
}
