// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
)

// Stats are a forward's counters since it began to do what it does: indices are
// the datapath's paths, and directions with the opener's first.
type Stats bpf.HairpinForwardStats

// Packets counts those of every path and both directions.
func (s Stats) Packets() (packets uint64) {
	for _, path := range s.Traffic {
		packets += path[0].Packets + path[1].Packets
	}
	return packets
}

// Bytes counts IP total lengths of every path and both directions.
func (s Stats) Bytes() (bytes uint64) {
	for _, path := range s.Traffic {
		bytes += path[0].Bytes + path[1].Bytes
	}
	return bytes
}

// Connections counts those that completed their handshake, by every path.
func (s Stats) Connections() (connections uint64) {
	for _, path := range s.Established {
		connections += path
	}
	return connections
}

// present is how many connections are in the table: closed ones may have
// completed their handshake on another CPU, so only the sums tell.
func (s Stats) present() int64 {
	present := int64(0)
	for path := range s.Established {
		present += int64(s.Established[path] - s.Closed[path])
	}
	return present
}

func (s *Stats) add(cpu *bpf.HairpinForwardStats) {
	for path := range s.Traffic {
		for direction := range s.Traffic[path] {
			s.Traffic[path][direction].Packets += cpu.Traffic[path][direction].Packets
			s.Traffic[path][direction].Bytes += cpu.Traffic[path][direction].Bytes
		}
		s.Established[path] += cpu.Established[path]
		s.Closed[path] += cpu.Closed[path]
	}
}

// Counter is how many packets of an interface met a verdict for a reason.
type Counter struct {
	Index   int // of the interface
	Verdict string
	Reason  string
	Packets uint64
}

// ForwardStats gives the counters of the running forwards, by name.
func (t *Tables) ForwardStats() (map[string]Stats, error) {
	doc, raw, err := t.runningStats()
	if err != nil {
		return nil, err
	}
	stats := make(map[string]Stats, len(doc.Stamps))
	for i, s := range doc.Stamps {
		stats[doc.Config.Forwards[i].Name] = raw[s.id]
	}
	return stats, nil
}

// runningStats gives the running forwards and the counters by id.
func (t *Tables) runningStats() (*document, map[uint32]Stats, error) {
	for {
		doc, generation, err := t.running()
		if err != nil {
			return doc, nil, err
		}
		raw, err := t.rawStats(doc.Stamps)
		if err != nil {
			return nil, nil, err
		}
		// Ids may have changed hands with a swap meanwhile.
		now, err := t.generation()
		if err != nil {
			return nil, nil, err
		}
		if now == generation {
			return doc, raw, nil
		}
	}
}

// Counters gives the packets that were not sent on, by interface, verdict and
// reason, in that order.
func (t *Tables) Counters() ([]Counter, error) {
	raw, err := t.rawCounters()
	if err != nil {
		return nil, err
	}
	counters := make([]Counter, 0, len(raw))
	for key, packets := range raw {
		counters = append(counters, Counter{
			Index:   int(key.Ifindex),
			Verdict: word(names().verdicts, uint32(key.Verdict)),
			Reason:  word(names().reasons, uint32(key.Reason)),
			Packets: packets,
		})
	}
	slices.SortFunc(counters, func(a, b Counter) int {
		return cmp.Or(cmp.Compare(a.Index, b.Index), cmp.Compare(a.Verdict, b.Verdict), cmp.Compare(a.Reason, b.Reason))
	})
	return counters, nil
}

func (t *Tables) rawCounters() (map[bpf.HairpinCounterKey]uint64, error) {
	all := map[bpf.HairpinCounterKey]uint64{}
	err := scanPerCPU(t.objs.Counters, func(key bpf.HairpinCounterKey, cpus []uint64) {
		sum := uint64(0)
		for _, packets := range cpus {
			sum += packets
		}
		all[key] = sum
	})
	if err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	return all, nil
}

func scanPerCPU[K, V any](m *ebpf.Map, visit func(K, []V)) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count CPUs: %w", err)
	}
	return scan(m, cpus, visit)
}
