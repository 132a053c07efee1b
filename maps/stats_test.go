// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps/layout"
	"hairpin/maps/mapstest"
)

// pages returns the number of pages in forward_stats.
func (t *Tables) pages(tb testing.TB) (count int) {
	tb.Helper()
	for number := range t.objs.ForwardStats.MaxEntries() {
		page, err := t.openStatsPage(number)
		if err != nil {
			tb.Fatal(err)
		}
		if page != nil {
			count++
			page.Close()
		}
	}
	return count
}

// TestPagesOfCountersComeAndGo checks that Apply makes and drops as many pages as the forwards need.
func TestPagesOfCountersComeAndGo(t *testing.T) {
	tables := newTables(t, mapstest.RoomySpec(t))
	none, err := tables.statsPage()
	if err != nil {
		t.Fatal(err)
	}
	size := int(none)
	for _, step := range []struct{ forwards, pages int }{
		{1, 1}, {3*size - 1, 3}, {3 * size, 4}, {100 * size, 101}, {1, 1},
	} {
		mustApply(t, tables, mapstest.ManyForwards(step.forwards))
		if got := tables.pages(t); got != step.pages {
			t.Errorf("%d pages of %d forwards, want %d", got, step.forwards, step.pages)
		}
		if now, err := tables.statsPage(); err != nil || now != none {
			t.Errorf("pages of %d with %d forwards, %v, want %d", now, step.forwards, err, none)
		}
	}
}

// TestRefusalsAndLastHit: refusals are summed over the CPUs. The last hit is the latest of all CPUs, and a forward that no packet has
// reached has none.
func TestRefusalsAndLastHit(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	mustApply(t, tables, mapstest.Config(t, "a tcp 80 to 10.0.0.1", "b tcp 81 to 10.0.0.1"))
	mustSetInterfaces(t, tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
	a := tables.wantRoute(t, "203.0.113.1", 80, "10.0.0.1:80").EpochRef.Id
	now := uint32(layout.Monotonic() / uint64(time.Second))
	cpus := make([]bpf.HairpinForwardStats, ebpf.MustPossibleCPU())
	cpus[0] = bpf.HairpinForwardStats{Refused: 3, Hit: now - min(now, 50)}
	cpus[0].Traffic[bpf.HairpinConnPathPATH_WAN][0].Bytes, cpus[0].Traffic[bpf.HairpinConnPathPATH_HAIRPIN][1].Bytes = 1, 100
	cpus[len(cpus)-1].Traffic[bpf.HairpinConnPathPATH_WAN][1].Bytes += 10
	cpus[len(cpus)-1].Traffic[bpf.HairpinConnPathPATH_LOCAL][0].Bytes += 1000
	cpus[len(cpus)-1].Refused += 4
	cpus[len(cpus)-1].Hit = now - min(now, 10)
	mapstest.WriteStats(t, tables.objs, a, cpus)
	totals, err := tables.ForwardTotals()
	if err != nil {
		t.Fatal(err)
	}
	if got := totals["a"]; got.Refused != 7 || got.LastHit < 10*time.Second || got.LastHit >= 50*time.Second {
		t.Errorf("%d refused, last hit %s ago; want 7, and 10 s or a little more", got.Refused, got.LastHit)
	}
	if got := totals["a"]; got.Bytes != 1111 || got.WANBytes != 11 || got.Packets != 0 {
		t.Errorf("%d bytes, %d of them of the Internet; want 1111 and 11", got.Bytes, got.WANBytes)
	}
	if got, there := totals["b"]; there {
		t.Errorf("a forward without packets has totals: %+v", got)
	}
}
