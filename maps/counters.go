// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps/layout"
)

// ForwardStats has the counters of a forward since it was added or its behaviour changed. The first index is a path (enum
// conn_path), the second a direction: 0 from the opener, 1 to the opener.
type ForwardStats bpf.HairpinForwardStats

// Used reports whether a counter of this path is not zero.
func (s *ForwardStats) Used(path int) bool {
	return s.Traffic[path] != [2]bpf.HairpinTraffic{} || s.Established[path] != 0
}

func (s *ForwardStats) add(cpu *bpf.HairpinForwardStats) {
	for path := range s.Traffic {
		for direction := range s.Traffic[path] {
			s.Traffic[path][direction].Packets += cpu.Traffic[path][direction].Packets
			s.Traffic[path][direction].Bytes += cpu.Traffic[path][direction].Bytes
		}
		s.Established[path] += cpu.Established[path]
		s.Closed[path] += cpu.Closed[path]
	}
	s.Refused += cpu.Refused
	s.Hit = max(s.Hit, cpu.Hit)
}

// Counter has the number of packets of one interface with one verdict and reason.
type Counter struct {
	Index   int // index of the incoming interface
	Verdict string
	Reason  string
	Packets uint64
}

// Totals has the counters of a forward, summed over all paths and both directions.
type Totals struct {
	Packets, Bytes uint64 // Bytes: IP total length
	WANBytes       uint64 // those of Bytes that came from the Internet or went there
	Established    uint64 // connections that completed their handshake
	Refused        uint64 // packets that would have opened a connection, and were refused
	// LastHit is the time since the last packet that was translated or the last opening that was refused, in whole seconds.
	LastHit time.Duration
}

// ForwardTotals returns the totals of the running forwards, by name. It leaves out forwards that no packet has reached.
func (t *Tables) ForwardTotals() (map[string]Totals, error) {
	totals := map[string]Totals{}
	err := t.eachStats(func(name string, _ uint32, s *ForwardStats) error {
		now := layout.Monotonic() / uint64(time.Second)
		sum := Totals{Refused: s.Refused, LastHit: time.Duration(since(now, uint64(s.Hit))) * time.Second}
		for _, path := range s.Traffic {
			sum.Packets += path[0].Packets + path[1].Packets
			sum.Bytes += path[0].Bytes + path[1].Bytes
		}
		wan := s.Traffic[bpf.HairpinConnPathPATH_WAN]
		sum.WANBytes = wan[0].Bytes + wan[1].Bytes
		for _, established := range s.Established {
			sum.Established += established
		}
		totals[name] = sum
		return nil
	})
	return totals, err
}

// Counters returns the datapath's counters of verdicts, sorted by interface, verdict and reason.
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
