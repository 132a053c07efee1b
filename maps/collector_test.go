// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"hairpin/bpf"
)

// countPackets adds to a counter of the datapath.
func (t *Tables) countPackets(tb testing.TB, index uint32, verdict bpf.HairpinVerdict, reason bpf.HairpinReason, packets uint64) {
	tb.Helper()
	values := make([]uint64, ebpf.MustPossibleCPU())
	values[0]++
	values[len(values)-1] += packets - 1
	key := bpf.HairpinCounterKey{Ifindex: index, Verdict: verdict, Reason: reason}
	if err := t.objs.Counters.Put(key, values); err != nil {
		tb.Fatal(err)
	}
}

func (t *Tables) countEvent(tb testing.TB, event bpf.HairpinConnEvent, count uint64) {
	tb.Helper()
	values := make([]uint64, ebpf.MustPossibleCPU())
	values[0] = count
	if err := t.objs.ConnEvents.Put(uint32(event), values); err != nil {
		tb.Fatal(err)
	}
}

// collected is a collector over connections and counters of every kind.
func collected(t testing.TB) *Collector {
	tables, _ := connected(t)
	web, _ := tables.stamps(t, "203.0.113.1", 443)
	tables.putStats(t, web.Id, 1, 7)
	tables.countPackets(t, 2, bpf.HairpinVerdictVERDICT_PASS, bpf.HairpinReasonREASON_NOT_ATTACHED, 3)
	tables.countPackets(t, 2, bpf.HairpinVerdictVERDICT_DEFER, bpf.HairpinReasonREASON_FRAGMENT, 4)
	tables.countPackets(t, 2, bpf.HairpinVerdictVERDICT_DROP, bpf.HairpinReasonREASON_ENDED, 5)
	tables.countPackets(t, 2, bpf.HairpinVerdictVERDICT_REFUSE, bpf.HairpinReasonREASON_TABLE_FULL, 6)
	tables.countPackets(t, 5, bpf.HairpinVerdictVERDICT_REFUSE, bpf.HairpinReasonREASON_TABLE_FULL, 7)
	tables.countPackets(t, 99, bpf.HairpinVerdictVERDICT_REFUSE, bpf.HairpinReasonREASON_TABLE_FULL, 8)
	tables.countEvent(t, bpf.HairpinConnEventCONN_OPENED, 100)
	tables.countEvent(t, bpf.HairpinConnEventCONN_ESTABLISHED, 80)
	tables.countEvent(t, bpf.HairpinConnEventCONN_ABANDONED, 10)
	c := NewCollector(tables, CollectorOptions{
		Version: "1.2.3",
		Interfaces: func() []InterfaceStatus {
			return []InterfaceStatus{
				{Name: "wan0", Index: 2, Role: RoleWAN, Mode: "xdp", Attached: true, Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")}},
				{Name: "lan0", Index: 5, Role: RoleLAN, Mode: "tc", Addresses: []netip.Addr{netip.MustParseAddr("192.168.1.1")}},
				{Name: "wan1", Role: RoleWAN, Mode: "tc"},
			}
		},
	})
	if err := c.Refresh(); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCollectorSamples(t *testing.T) {
	c := collected(t)
	c.Reloaded(true)
	c.Reloaded(false)
	c.reloaded = time.UnixMilli(1700000000500)
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	if err := testutil.GatherAndCompare(registry, strings.NewReader(wantSamples())); err != nil {
		t.Error(err)
	}
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
}

// wantSamples is every sample: those of the forwards by path, whether zero or not.
func wantSamples() string {
	text := `# HELP hairpin_build_info The running build.
# TYPE hairpin_build_info gauge
hairpin_build_info{goversion="` + runtime.Version() + `",version="1.2.3"} 1
# HELP hairpin_config_last_reload_success_timestamp_seconds When a configuration was taken last, in seconds since 1970.
# TYPE hairpin_config_last_reload_success_timestamp_seconds gauge
hairpin_config_last_reload_success_timestamp_seconds 1.7000000005e+09
# HELP hairpin_config_last_reload_successful 1 if the last configuration that was read was taken, 0 if it was refused.
# TYPE hairpin_config_last_reload_successful gauge
hairpin_config_last_reload_successful 0
# HELP hairpin_connections Connections by state.
# TYPE hairpin_connections gauge
hairpin_connections{state="closing"} 2
hairpin_connections{state="established"} 6
hairpin_connections{state="half-open"} 1
# HELP hairpin_connections_limit Connections that the table holds.
# TYPE hairpin_connections_limit gauge
hairpin_connections_limit 32
# HELP hairpin_connections_refused_total Openings that did not become connections, by reason.
# TYPE hairpin_connections_refused_total counter
hairpin_connections_refused_total{reason="table_full"} 21
# HELP hairpin_external_address_info Address that a WAN interface has and forwards listen on.
# TYPE hairpin_external_address_info gauge
hairpin_external_address_info{address="203.0.113.1",interface="wan0"} 1
# HELP hairpin_forward_connections Connections of a forward, half-open ones included.
# TYPE hairpin_forward_connections gauge
hairpin_forward_connections{forward="ssh"} 1
hairpin_forward_connections{forward="web"} 8
# HELP hairpin_half_open_evicted_total Half-open connections that gave way to newer ones, those past their time included.
# TYPE hairpin_half_open_evicted_total counter
hairpin_half_open_evicted_total 7
# HELP hairpin_interface_attached 1 if the datapath is attached to the interface, 0 if not.
# TYPE hairpin_interface_attached gauge
hairpin_interface_attached{interface="lan0",mode="tc",role="lan"} 0
hairpin_interface_attached{interface="wan0",mode="xdp",role="wan"} 1
hairpin_interface_attached{interface="wan1",mode="tc",role="wan"} 0
# HELP hairpin_packets_dropped_total Packets dropped, by incoming interface and reason.
# TYPE hairpin_packets_dropped_total counter
hairpin_packets_dropped_total{interface="lan0",reason="table_full"} 7
hairpin_packets_dropped_total{interface="unknown",reason="table_full"} 8
hairpin_packets_dropped_total{interface="wan0",reason="ended"} 5
hairpin_packets_dropped_total{interface="wan0",reason="table_full"} 6
# HELP hairpin_packets_passed_total Packets of forwards left to the kernel or from XDP to TC, by incoming interface and reason.
# TYPE hairpin_packets_passed_total counter
hairpin_packets_passed_total{interface="wan0",reason="fragment"} 4
hairpin_packets_passed_total{interface="wan0",reason="not_attached"} 3
# HELP hairpin_forward_bytes_total Bytes of IP packets translated for a forward, by path and direction (in: to the target).
# TYPE hairpin_forward_bytes_total counter
# HELP hairpin_forward_connections_total Connections of a forward that completed their handshake, by path.
# TYPE hairpin_forward_connections_total counter
# HELP hairpin_forward_packets_total Packets translated for a forward, by path and direction (in: to the target).
# TYPE hairpin_forward_packets_total counter
`
	values := map[string]int{
		"hairpin_forward_bytes_totalwebhairpinin":     700,
		"hairpin_forward_packets_totalwebhairpinin":   7,
		"hairpin_forward_connections_totalwebhairpin": min(2, 2*(ebpf.MustPossibleCPU()-1)),
	}
	for _, forward := range []string{"web", "ssh"} {
		for _, path := range []string{"wan", "hairpin", "local"} {
			for _, direction := range []string{"in", "out"} {
				for _, name := range []string{"hairpin_forward_bytes_total", "hairpin_forward_packets_total"} {
					text += fmt.Sprintf("%s{direction=%q,forward=%q,path=%q} %d\n", name, direction, forward, path, values[name+forward+path+direction])
				}
			}
			name := "hairpin_forward_connections_total"
			text += fmt.Sprintf("%s{forward=%q,path=%q} %d\n", name, forward, path, values[name+forward+path])
		}
	}
	return text
}

func TestNoLabelNamesAClient(t *testing.T) {
	c := collected(t)
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	clients := regexp.MustCompile(`198\.51\.100\.|192\.168\.1\.50|\b[56]00\d\b`)
	for _, family := range families {
		if found := clients.FindString(family.String()); found != "" {
			t.Errorf("%s shows %s", family.GetName(), found)
		}
	}
}

func TestACollectorOfFreshMaps(t *testing.T) {
	tables := newTables(t, smallSpec(t))
	c := NewCollector(tables, CollectorOptions{Version: "1"})
	if err := c.Refresh(); err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	// Build, limit, last reload, three states, evictions.
	if count, err := testutil.GatherAndCount(registry); err != nil || count != 7 {
		t.Errorf("%d samples, %v", count, err)
	}
}

func TestEvictionsNeverGoBack(t *testing.T) {
	c := collected(t)
	c.tables.countEvent(t, bpf.HairpinConnEventCONN_ABANDONED, 15)
	if err := c.Refresh(); err != nil || c.evicted != 7 {
		t.Errorf("%d, %v", c.evicted, err)
	}
	c.tables.countEvent(t, bpf.HairpinConnEventCONN_OPENED, 1)
	if err := c.Refresh(); err != nil || c.evicted != 7 {
		t.Errorf("%d, %v", c.evicted, err)
	}
}

// TestAnInterfaceKeepsItsCounters: a dialled line comes back with another index.
func TestAnInterfaceKeepsItsCounters(t *testing.T) {
	tables := newTables(t, smallSpec(t))
	index := 2
	c := NewCollector(tables, CollectorOptions{Interfaces: func() []InterfaceStatus {
		return []InterfaceStatus{{Name: "ppp0", Index: index, Role: RoleWAN}}
	}})
	tables.countPackets(t, 2, bpf.HairpinVerdictVERDICT_DROP, bpf.HairpinReasonREASON_ENDED, 5)
	dropped := func() string {
		registry := prometheus.NewRegistry()
		registry.MustRegister(c)
		text, err := testutil.CollectAndFormat(c, "text/plain; version=0.0.4", "hairpin_packets_dropped_total")
		if err != nil {
			t.Fatal(err)
		}
		return string(text[strings.LastIndex(strings.TrimSpace(string(text)), "\n")+1:])
	}
	first := dropped()
	index = 0
	if now := dropped(); now != first {
		t.Errorf("gone: %q, was %q", now, first)
	}
	index = 7
	tables.countPackets(t, 7, bpf.HairpinVerdictVERDICT_DROP, bpf.HairpinReasonREASON_ENDED, 6)
	if now, want := dropped(), strings.Replace(first, "} 5", "} 11", 1); now != want {
		t.Errorf("back: %q, want %q", now, want)
	}
}

func TestCountersOfGoneInterfacesMakeRoom(t *testing.T) {
	tables := newTables(t, smallSpec(t))
	for index := range uint32(31) {
		tables.countPackets(t, index, bpf.HairpinVerdictVERDICT_DROP, bpf.HairpinReasonREASON_ENDED, 5)
	}
	mustSetInterfaces(t, tables, wan("wan0", 2))
	if counters, err := tables.Counters(); err != nil || len(counters) != 31 {
		t.Errorf("%d counters, %v: they went without need", len(counters), err)
	}
	tables.countPackets(t, 31, bpf.HairpinVerdictVERDICT_DROP, bpf.HairpinReasonREASON_ENDED, 5)
	mustSetInterfaces(t, tables, wan("wan0", 2))
	counters, err := tables.Counters()
	want := []Counter{{0, "drop", "ended", 5}, {2, "drop", "ended", 5}}
	if diff := cmp.Diff(want, counters); diff != "" || err != nil {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
}

func TestRunRefreshesUntilItIsStopped(t *testing.T) {
	c := collected(t)
	c.counted = nil
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() {
		c.Run(ctx, func(err error) { t.Error(err) })
		close(stopped)
	}()
	for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		c.mu.Lock()
		done := c.counted != nil
		c.mu.Unlock()
		if done {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing counted")
		}
	}
	cancel()
	<-stopped
}

func TestScrapeOfTenThousandForwards(t *testing.T) {
	spec := smallSpec(t)
	full, _ := bpf.LoadHairpin()
	for _, name := range []string{bpf.HairpinMapEpochs, bpf.HairpinMapForwardStats, bpf.HairpinMapExternals} {
		spec.Maps[name].MaxEntries = full.Maps[name].MaxEntries
	}
	tables := newTables(t, spec)
	mustApply(t, tables, manyForwards(10000))
	c := NewCollector(tables, CollectorOptions{})
	if err := c.Refresh(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	text, err := testutil.CollectAndFormat(c, "text/plain; version=0.0.4")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes in %v", len(text), time.Since(start))
}
