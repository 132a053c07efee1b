// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"bytes"
	"io"
	"regexp"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"hairpin/bpf"
)

func TestNoLabelNamesAClient(t *testing.T) {
	tables, _, _ := counted(t)
	c := NewCollector(tables, CollectorOptions{})
	clients := regexp.MustCompile(`198\.51\.100\.|192\.168\.1\.50|"[56]00\d"`)
	for _, line := range samples(t, c, "hairpin_") {
		if clients.MatchString(line) {
			t.Error(line)
		}
	}
}

// TestAnInterfaceKeepsItsCounters: a dialled line comes back with another index.
func TestAnInterfaceKeepsItsCounters(t *testing.T) {
	tables := newTables(t, smallSpec(t))
	index := 2
	c := NewCollector(tables, CollectorOptions{Interfaces: func() []InterfaceStatus {
		return []InterfaceStatus{{Name: "ppp0", Index: index, Role: RoleWAN}}
	}})
	putCounter(t, tables.objs, 2, bpf.HairpinVerdictVERDICT_DROP, bpf.HairpinReasonREASON_ENDED, 5)
	wantSamples(t, samples(t, c, "hairpin_packets"), `hairpin_packets_dropped_total{interface="ppp0",reason="ended"} 5`)
	index = 0
	wantSamples(t, samples(t, c, "hairpin_packets"), `hairpin_packets_dropped_total{interface="ppp0",reason="ended"} 5`)
	index = 7
	putCounter(t, tables.objs, 7, bpf.HairpinVerdictVERDICT_DROP, bpf.HairpinReasonREASON_ENDED, 6)
	wantSamples(t, samples(t, c, "hairpin_packets"), `hairpin_packets_dropped_total{interface="ppp0",reason="ended"} 11`)
}

func TestCountersOfGoneInterfacesMakeRoom(t *testing.T) {
	tables := newTables(t, smallSpec(t))
	for index := range uint32(31) {
		putCounter(t, tables.objs, index, bpf.HairpinVerdictVERDICT_DROP, bpf.HairpinReasonREASON_ENDED, 5)
	}
	mustSetInterfaces(t, tables, wan("wan0", 2))
	if counters, err := tables.Counters(); err != nil || len(counters) != 31 {
		t.Errorf("%d counters, %v: they went without need", len(counters), err)
	}
	putCounter(t, tables.objs, 31, bpf.HairpinVerdictVERDICT_DROP, bpf.HairpinReasonREASON_ENDED, 5)
	mustSetInterfaces(t, tables, wan("wan0", 2))
	counters, err := tables.Counters()
	want := []Counter{{0, "drop", "ended", 5}, {2, "drop", "ended", 5}}
	if diff := cmp.Diff(want, counters); diff != "" || err != nil {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
}

// everyForward has as many forwards as there may be, which have all counted on all paths.
func everyForward(t testing.TB, forwards int) *Tables {
	t.Helper()
	tables := newTables(t, roomySpec(t))
	mustApply(t, tables, manyForwards(forwards))
	counters := bpf.HairpinForwardStats{Established: [3]uint64{1, 2, 3}}
	for path := range counters.Traffic {
		for direction := range counters.Traffic[path] {
			counters.Traffic[path][direction] = bpf.HairpinTraffic{Packets: 1 << 20, Bytes: 1 << 40}
		}
	}
	fillStats(t, tables.objs, counters)
	return tables
}

// TestScrapeOfEveryForward, all of them busy on every path: a million series, in the memory of few.
func TestScrapeOfEveryForward(t *testing.T) {
	const forwards, series, room = 65000, 3*(2+2+1) + 1, 8 << 20
	tables := everyForward(t, forwards)
	c := NewCollector(tables, CollectorOptions{})
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	if _, err := tables.roster(); err != nil { // is kept from scrape to scrape
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	lines := &lineCounter{}
	start := time.Now()
	runtime.ReadMemStats(&before)
	if _, err := registry.Gather(); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteForwards(lines); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	t.Logf("%d bytes in %v", lines.bytes, time.Since(start))
	const comments = 4 * 2
	if want := forwards*series + comments; lines.lines != want {
		t.Errorf("%d lines, want %d", lines.lines, want)
	}
	if allocated := after.TotalAlloc - before.TotalAlloc; allocated > room {
		t.Errorf("%d bytes were allocated, want at most %d", allocated, room)
	}
}

// lineCounter counts what is written to it.
type lineCounter struct{ lines, bytes int }

func (c *lineCounter) Write(text []byte) (int, error) {
	c.lines += bytes.Count(text, []byte{'\n'})
	c.bytes += len(text)
	return len(text), nil
}

// BenchmarkScrape measures a scrape with as many forwards as there may be.
func BenchmarkScrape(b *testing.B) {
	busy := everyForward(b, 65000)
	idle := newTables(b, roomySpec(b))
	mustApply(b, idle, manyForwards(65000))
	for name, tables := range map[string]*Tables{"busy": busy, "idle": idle} {
		c := NewCollector(tables, CollectorOptions{})
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := c.WriteForwards(io.Discard); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
