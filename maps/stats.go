// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
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

// forwardIDs is the highest id of a forward: those above are of addresses, or have no counters.
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

// statsReader reads counters of forwards, a page at a time.
type statsReader struct {
	tables *Tables
	size   uint32 // of a page
	cpus   int
	places []uint32
	counts []bpf.HairpinForwardStats // of each place, one for each CPU
	sums   []forwardStats
}

func (t *Tables) newStatsReader() (*statsReader, error) {
	size, err := t.statsPage()
	if err != nil {
		return nil, err
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("count CPUs: %w", err)
	}
	return &statsReader{
		tables: t, size: size, cpus: cpus,
		places: make([]uint32, size), counts: make([]bpf.HairpinForwardStats, int(size)*cpus), sums: make([]forwardStats, size),
	}, nil
}

// page sums the counters of a page over the CPUs. They are the reader's, and the next page's afterwards. It is nil if
// there is no such page.
func (r *statsReader) page(number uint32) ([]forwardStats, error) {
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
func (t *Tables) eachStats(visit func(name string, id uint32, s *forwardStats) error) error {
	wanted, err := t.roster()
	if err != nil {
		return err
	}
	r, err := t.newStatsReader()
	if err != nil {
		return err
	}
	for number := range r.pages(wanted) {
		if err := r.each(wanted, number, visit); err != nil {
			return err
		}
	}
	return nil
}

// pages is how many pages have the forwards of a roster.
func (r *statsReader) pages(of *roster) uint32 { return (uint32(len(of.names)) + r.size - 1) / r.size }

// each is eachStats for one page and the forwards of a roster, those left out that have gone since.
func (r *statsReader) each(wanted *roster, number uint32, visit func(name string, id uint32, s *forwardStats) error) error {
	sums, err := r.page(number)
	if err != nil {
		return err
	}
	// An id may have changed hands since. Its counters are its own if it had the same epoch reference after they were read.
	now, err := r.tables.roster()
	if err != nil {
		return err
	}
	for place := range sums {
		id := number*r.size + uint32(place)
		if sums[place] == (forwardStats{}) || wanted.name(id) == "" || !now.has(id, wanted) {
			continue
		}
		if err := visit(wanted.names[id], id, &sums[place]); err != nil {
			return err
		}
	}
	return nil
}

// dropStats gives the memory of counters back that no running forward has: those of whole pages.
func (t *Tables) dropStats(doc *document) error {
	size, err := t.statsPage()
	if err != nil {
		return err
	}
	seen := map[uint32]bool{}
	for _, s := range doc.EpochRefs {
		seen[s.id/size] = true
	}
	var unused []uint32
	for _, s := range doc.Ended {
		if number := s.id / size; !seen[number] {
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
