// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"hairpin/bpf"
)

func TestNoLabelNamesAClient(t *testing.T) {
	tables, _, _ := counted(t)
	c := NewCollector(tables, CollectorOptions{})
	mustRefresh(t, c)
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
	tables.putCounter(t, 2, bpf.HairpinVerdictVERDICT_DROP, bpf.HairpinReasonREASON_ENDED, 5)
	wantSamples(t, samples(t, c, "hairpin_packets"), `hairpin_packets_dropped_total{interface="ppp0",reason="ended"} 5`)
	index = 0
	wantSamples(t, samples(t, c, "hairpin_packets"), `hairpin_packets_dropped_total{interface="ppp0",reason="ended"} 5`)
	index = 7
	tables.putCounter(t, 7, bpf.HairpinVerdictVERDICT_DROP, bpf.HairpinReasonREASON_ENDED, 6)
	wantSamples(t, samples(t, c, "hairpin_packets"), `hairpin_packets_dropped_total{interface="ppp0",reason="ended"} 11`)
}

func TestCountersOfGoneInterfacesMakeRoom(t *testing.T) {
	tables := newTables(t, smallSpec(t))
	for index := range uint32(31) {
		tables.putCounter(t, index, bpf.HairpinVerdictVERDICT_DROP, bpf.HairpinReasonREASON_ENDED, 5)
	}
	mustSetInterfaces(t, tables, wan("wan0", 2))
	if counters, err := tables.Counters(); err != nil || len(counters) != 31 {
		t.Errorf("%d counters, %v: they went without need", len(counters), err)
	}
	tables.putCounter(t, 31, bpf.HairpinVerdictVERDICT_DROP, bpf.HairpinReasonREASON_ENDED, 5)
	mustSetInterfaces(t, tables, wan("wan0", 2))
	counters, err := tables.Counters()
	want := []Counter{{0, "drop", "ended", 5}, {2, "drop", "ended", 5}}
	if diff := cmp.Diff(want, counters); diff != "" || err != nil {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
}

func TestScrapeOfTenThousandForwards(t *testing.T) {
	tables := newTables(t, roomySpec(t))
	mustApply(t, tables, manyForwards(10000))
	c := NewCollector(tables, CollectorOptions{})
	mustRefresh(t, c)
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	answer := httptest.NewRecorder()
	start := time.Now()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
	t.Logf("%d bytes in %v", answer.Body.Len(), time.Since(start))
	if lines := strings.Count(answer.Body.String(), "\nhairpin_forward_"); lines != 160000 {
		t.Errorf("%d samples", lines)
	}
}
