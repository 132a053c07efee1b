// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
)

// statsPage is how many forwards' counters are in one map of forward_stats.
func statsPage() (uint32, error) {
	spec, err := embedded()
	if err != nil {
		return 0, err
	}
	return spec.Maps[bpf.HairpinMapForwardStats].InnerMap.MaxEntries, nil
}

// forwardIDs is the highest id of a forward: those above are of addresses, or have no counters.
func (t *Tables) forwardIDs() (uint32, error) {
	page, err := statsPage()
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
	size, err := statsPage()
	if err != nil {
		return err
	}
	places := map[uint32][]uint32{}
	for _, id := range ids {
		places[id/size] = append(places[id/size], id%size)
	}
	for number := range places {
		if err := t.zeroStatsPage(number, places[number]); err != nil {
			return fmt.Errorf("make counters of forwards: %w", err)
		}
	}
	return nil
}

func (t *Tables) zeroStatsPage(number uint32, places []uint32) error {
	page, err := t.openStatsPage(number)
	if err != nil {
		return err
	}
	if page == nil {
		return fillSlot(t.objs.ForwardStats, number, func() (*ebpf.Map, error) { return newInner(bpf.HairpinMapForwardStats, 0) })
	}
	defer page.Close()
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count CPUs: %w", err)
	}
	return putAll(page, places, make([]bpf.HairpinForwardStats, len(places)*cpus), cpus)
}

// rawStats sums the counters of forwards over the CPUs, by id.
func (t *Tables) rawStats(ids []stamp) (map[uint32]Stats, error) {
	size, err := statsPage()
	if err != nil {
		return nil, err
	}
	all := make(map[uint32]Stats, len(ids))
	pages := map[uint32]bool{}
	for _, s := range ids {
		all[s.id] = Stats{}
		pages[s.id/size] = true
	}
	for number := range pages {
		page, err := t.openStatsPage(number)
		if err != nil {
			return nil, err
		}
		if page == nil {
			continue
		}
		err = scanPerCPU(page, func(place uint32, cpus []bpf.HairpinForwardStats) {
			id := number*size + place
			if sum, wanted := all[id]; wanted {
				for i := range cpus {
					sum.add(&cpus[i])
				}
				all[id] = sum
			}
		})
		page.Close()
		if err != nil {
			return nil, fmt.Errorf("read counters of forwards: %w", err)
		}
	}
	return all, nil
}

// dropStats gives the memory of counters back that no running forward has: those of whole pages.
func (t *Tables) dropStats(doc *document) error {
	size, err := statsPage()
	if err != nil {
		return err
	}
	used := map[uint32]bool{}
	for _, s := range doc.Stamps {
		used[s.id/size] = true
	}
	for _, s := range doc.Ended {
		if number := s.id / size; !used[number] {
			if err := drop(t.objs.ForwardStats, number); err != nil {
				return err
			}
		}
	}
	return nil
}
