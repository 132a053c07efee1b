// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"bytes"
	"io"
	"regexp"
	"runtime"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"hairpin/bpf"
	"hairpin/maps/config"
	"hairpin/maps/mapstest"
)

func TestNoLabelNamesAClient(t *testing.T) {
	tables, _, _ := counted(t)
	c := New(tables.Tables, Options{})
	clients := regexp.MustCompile(`198\.51\.100\.|192\.168\.1\.50|"[56]00\d"`)
	for _, line := range samples(t, c, "hairpin_") {
		if clients.MatchString(line) {
			t.Error(line)
		}
	}
}

// TestAnInterfaceKeepsItsCounters: a PPP interface comes back with another index and keeps its series.
func TestAnInterfaceKeepsItsCounters(t *testing.T) {
	tables := newStand(t, mapstest.SmallSpec(t))
	index := 2
	c := New(tables.Tables, Options{Interfaces: func() []Interface {
		return []Interface{{Name: "ppp0", Index: index, Role: config.RoleWAN}}
	}})
	mapstest.PutCounter(t, tables.objs, 2, bpf.HairpinVerdictVERDICT_DROP, bpf.HairpinReasonREASON_ENDED, 5)
	wantSamples(t, samples(t, c, "hairpin_packets"), `hairpin_packets_dropped_total{interface="ppp0",reason="ended"} 5`)
	index = 0
	wantSamples(t, samples(t, c, "hairpin_packets"), `hairpin_packets_dropped_total{interface="ppp0",reason="ended"} 5`)
	index = 7
	mapstest.PutCounter(t, tables.objs, 7, bpf.HairpinVerdictVERDICT_DROP, bpf.HairpinReasonREASON_ENDED, 6)
	wantSamples(t, samples(t, c, "hairpin_packets"), `hairpin_packets_dropped_total{interface="ppp0",reason="ended"} 11`)
}

// everyForward returns a stand with this many forwards. All their counters are set, on all paths.
func everyForward(t testing.TB, forwards int) stand {
	t.Helper()
	tables := newStand(t, mapstest.RoomySpec(t))
	tables.mustApply(t, mapstest.ManyForwards(forwards))
	counters := bpf.HairpinForwardStats{Established: [3]uint64{1, 2, 3}}
	for path := range counters.Traffic {
		for direction := range counters.Traffic[path] {
			counters.Traffic[path][direction] = bpf.HairpinTraffic{Packets: 1 << 20, Bytes: 1 << 40}
		}
	}
	mapstest.FillStats(t, tables.objs, counters)
	return tables
}

// TestScrapeOfEveryForward scrapes 65,000 forwards with traffic on every path. The memory must not grow with the million
// series.
func TestScrapeOfEveryForward(t *testing.T) {
	const forwards, series, room = 65000, 3*(2+2+1) + 1, 8 << 20
	tables := everyForward(t, forwards)
	c := New(tables.Tables, Options{})
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	if _, err := tables.Roster(); err != nil { // allocated once and cached for later scrapes
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

// lineCounter counts the lines and bytes that are written to it.
type lineCounter struct{ lines, bytes int }

func (c *lineCounter) Write(text []byte) (int, error) {
	c.lines += bytes.Count(text, []byte{'\n'})
	c.bytes += len(text)
	return len(text), nil
}

// BenchmarkScrape measures a scrape of the largest number of forwards.
func BenchmarkScrape(b *testing.B) {
	busy := everyForward(b, 65000)
	idle := newStand(b, mapstest.RoomySpec(b))
	idle.mustApply(b, mapstest.ManyForwards(65000))
	for name, tables := range map[string]stand{"busy": busy, "idle": idle} {
		c := New(tables.Tables, Options{})
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
