// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"hairpin/bpf"
)

// putEvents writes the datapath's counts, on different CPUs for what begins a
// connection and what ends it.
func (t *Tables) putEvents(tb testing.TB, opened, established, abandoned, evicted, closed uint64) {
	tb.Helper()
	for event, count := range []uint64{opened, established, abandoned, evicted, closed} {
		cpus := make([]uint64, ebpf.MustPossibleCPU())
		cpus[event/2%len(cpus)] = count
		if err := t.objs.ConnEvents.Put(uint32(event), cpus); err != nil {
			tb.Fatal(err)
		}
	}
}

// putForwardStats writes counters of a forward, those of endings on another CPU.
func (t *Tables) putForwardStats(tb testing.TB, id uint32, sum bpf.HairpinForwardStats) {
	tb.Helper()
	cpus := make([]bpf.HairpinForwardStats, ebpf.MustPossibleCPU())
	last := len(cpus) - 1
	cpus[0].Traffic, cpus[0].Established = sum.Traffic, sum.Established
	cpus[last].Closed = sum.Closed
	t.writeStats(tb, id, cpus)
}

func (t *Tables) putCounter(tb testing.TB, index uint32, verdict bpf.HairpinVerdict, reason bpf.HairpinReason, packets uint64) {
	tb.Helper()
	cpus := make([]uint64, ebpf.MustPossibleCPU())
	cpus[0] = packets - 1
	cpus[len(cpus)-1]++
	key := bpf.HairpinCounterKey{Ifindex: index, Verdict: verdict, Reason: reason}
	if err := t.objs.Counters.Put(key, cpus); err != nil {
		tb.Fatal(err)
	}
}

// samples gathers what a scrape gives, a line each, of metrics that begin with
// one of the prefixes.
func samples(tb testing.TB, c *Collector, prefixes ...string) []string {
	tb.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	lines := []string{}
	for _, family := range families {
		if !slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(family.GetName(), prefix) }) {
			continue
		}
		for _, metric := range family.GetMetric() {
			var labels []string
			for _, label := range metric.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", label.GetName(), label.GetValue()))
			}
			value := metric.GetCounter().GetValue() + metric.GetGauge().GetValue()
			lines = append(lines, fmt.Sprintf("%s{%s} %v", family.GetName(), strings.Join(labels, ","), value))
		}
	}
	return lines
}

func wantSamples(tb testing.TB, got []string, want ...string) {
	tb.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		tb.Errorf("samples (-want +got)\n%s", diff)
	}
}

func mustRefresh(tb testing.TB, c *Collector) {
	tb.Helper()
	if err := c.Refresh(); err != nil {
		tb.Fatal(err)
	}
}

// counted is connected with the datapath's counts to match, but that two of the half-open ones are over.
func counted(t testing.TB) (tables *Tables, web, ssh uint32) {
	tables, _ = connected(t)
	forward, _ := tables.stamps(t, "203.0.113.1", 443)
	other, _ := tables.stamps(t, "203.0.113.1", 22)
	tables.putEvents(t, 30, 20, 2, 5, 9)
	displaced := make([]uint64, ebpf.MustPossibleCPU())
	displaced[len(displaced)-1] = 6
	if err := tables.objs.ConnEvents.Put(bpf.HairpinConnEventEVENT_DISPLACED, displaced); err != nil {
		t.Fatal(err)
	}
	tables.putForwardStats(t, forward.Id, bpf.HairpinForwardStats{
		Traffic:     [3][2]bpf.HairpinTraffic{{{Packets: 100, Bytes: 10000}, {Packets: 70, Bytes: 50000}}, {{Packets: 10, Bytes: 1000}, {Packets: 7, Bytes: 5000}}},
		Established: [3]uint64{15, 1},
		Closed:      [3]uint64{7},
	})
	tables.putForwardStats(t, other.Id, bpf.HairpinForwardStats{Established: [3]uint64{3}, Closed: [3]uint64{2}})
	return tables, forward.Id, other.Id
}

func TestCollectorGivesEverySample(t *testing.T) {
	tables, _, _ := counted(t)
	tables.putCounter(t, 2, bpf.HairpinVerdictVERDICT_REFUSE, bpf.HairpinReasonREASON_TABLE_FULL, 5)
	tables.putCounter(t, 3, bpf.HairpinVerdictVERDICT_REFUSE, bpf.HairpinReasonREASON_TABLE_FULL, 2)
	tables.putCounter(t, 2, bpf.HairpinVerdictVERDICT_DROP, bpf.HairpinReasonREASON_ENDED, 11)
	tables.putCounter(t, 2, bpf.HairpinVerdictVERDICT_PASS, bpf.HairpinReasonREASON_NO_ROUTE, 3)
	tables.putCounter(t, 3, bpf.HairpinVerdictVERDICT_DEFER, bpf.HairpinReasonREASON_NEXT_HOP, 4)
	tables.putCounter(t, 99, bpf.HairpinVerdictVERDICT_DROP, bpf.HairpinReason(4711), 1)
	// None of these is a drop of its own, or passes anything.
	tables.putCounter(t, 2, bpf.HairpinVerdictVERDICT_SEND, bpf.HairpinReasonREASON_ICMP_ERROR, 6)
	tables.putCounter(t, 3, bpf.HairpinVerdictVERDICT_SEND, bpf.HairpinReasonREASON_ICMP_ERROR, 2)
	tables.putCounter(t, 3, bpf.HairpinVerdictVERDICT_SEND, bpf.HairpinReasonREASON_NONE, 9)
	tables.putCounter(t, 3, bpf.HairpinVerdictVERDICT_TELL, bpf.HairpinReasonREASON_TABLE_FULL, 1)
	tables.putCounter(t, 2, bpf.HairpinVerdictVERDICT_TELL, bpf.HairpinReasonREASON_TTL_EXPIRED, 7)
	tables.putCounter(t, 2, bpf.HairpinVerdictVERDICT_HOLD, bpf.HairpinReasonREASON_FRAGMENT_EARLY, 4)
	tables.putCounter(t, 3, bpf.HairpinVerdictVERDICT_HOLD, bpf.HairpinReasonREASON_FRAGMENT_EARLY, 1)
	c := NewCollector(tables, CollectorOptions{Version: "v1", Interfaces: func() []InterfaceStatus {
		return []InterfaceStatus{
			{Name: "wan0", Index: 2, Role: RoleWAN, Mode: "xdp", Attached: true, Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")}},
			{Name: "lan0", Index: 3, Role: RoleLAN, Mode: "tc", Attached: true, Addresses: []netip.Addr{netip.MustParseAddr("192.168.1.1")}},
			{Name: "wan1", Role: RoleWAN, Mode: "auto"},
		}
	}})
	c.Reloaded(true)
	c.reloaded = time.Unix(1_700_000_000, 500_000_000)
	mustRefresh(t, c)
	problems, err := testutil.CollectAndLint(c)
	if len(problems) > 0 || err != nil {
		t.Errorf("promlint: %v, %v", problems, err)
	}
	wantSamples(t, samples(t, c, "hairpin_"),
		`hairpin_build_info{goversion="`+runtime.Version()+`",version="v1"} 1`,
		`hairpin_config_last_reload_success_timestamp_seconds{} 1.7000000005e+09`,
		`hairpin_config_last_reload_successful{} 1`,
		`hairpin_connections{state="closing"} 2`,
		`hairpin_connections{state="established"} 6`,
		`hairpin_connections{state="half-open"} 1`,
		`hairpin_connections_limit{} 32`,
		`hairpin_connections_refused_total{reason="table_full"} 7`,
		`hairpin_connections_repaired_total{} 0`,
		`hairpin_established_displaced_total{} 6`,
		`hairpin_external_address_info{address="2001:db8::1",interface="wan0"} 1`,
		`hairpin_external_address_info{address="203.0.113.1",interface="wan0"} 1`,
		`hairpin_forward_bytes_total{direction="in",forward="ssh",path="hairpin"} 0`,
		`hairpin_forward_bytes_total{direction="in",forward="ssh",path="local"} 0`,
		`hairpin_forward_bytes_total{direction="in",forward="ssh",path="wan"} 0`,
		`hairpin_forward_bytes_total{direction="in",forward="web",path="hairpin"} 1000`,
		`hairpin_forward_bytes_total{direction="in",forward="web",path="local"} 0`,
		`hairpin_forward_bytes_total{direction="in",forward="web",path="wan"} 10000`,
		`hairpin_forward_bytes_total{direction="out",forward="ssh",path="hairpin"} 0`,
		`hairpin_forward_bytes_total{direction="out",forward="ssh",path="local"} 0`,
		`hairpin_forward_bytes_total{direction="out",forward="ssh",path="wan"} 0`,
		`hairpin_forward_bytes_total{direction="out",forward="web",path="hairpin"} 5000`,
		`hairpin_forward_bytes_total{direction="out",forward="web",path="local"} 0`,
		`hairpin_forward_bytes_total{direction="out",forward="web",path="wan"} 50000`,
		`hairpin_forward_connections{forward="ssh"} 1`,
		`hairpin_forward_connections{forward="web"} 8`,
		`hairpin_forward_connections_total{forward="ssh",path="hairpin"} 0`,
		`hairpin_forward_connections_total{forward="ssh",path="local"} 0`,
		`hairpin_forward_connections_total{forward="ssh",path="wan"} 3`,
		`hairpin_forward_connections_total{forward="web",path="hairpin"} 1`,
		`hairpin_forward_connections_total{forward="web",path="local"} 0`,
		`hairpin_forward_connections_total{forward="web",path="wan"} 15`,
		`hairpin_forward_packets_total{direction="in",forward="ssh",path="hairpin"} 0`,
		`hairpin_forward_packets_total{direction="in",forward="ssh",path="local"} 0`,
		`hairpin_forward_packets_total{direction="in",forward="ssh",path="wan"} 0`,
		`hairpin_forward_packets_total{direction="in",forward="web",path="hairpin"} 10`,
		`hairpin_forward_packets_total{direction="in",forward="web",path="local"} 0`,
		`hairpin_forward_packets_total{direction="in",forward="web",path="wan"} 100`,
		`hairpin_forward_packets_total{direction="out",forward="ssh",path="hairpin"} 0`,
		`hairpin_forward_packets_total{direction="out",forward="ssh",path="local"} 0`,
		`hairpin_forward_packets_total{direction="out",forward="ssh",path="wan"} 0`,
		`hairpin_forward_packets_total{direction="out",forward="web",path="hairpin"} 7`,
		`hairpin_forward_packets_total{direction="out",forward="web",path="local"} 0`,
		`hairpin_forward_packets_total{direction="out",forward="web",path="wan"} 70`,
		`hairpin_fragments_held_total{} 5`,
		`hairpin_half_open_evicted_total{} 5`,
		`hairpin_icmp_errors_sent_total{interface="lan0",reason="table_full"} 1`,
		`hairpin_icmp_errors_sent_total{interface="wan0",reason="ttl_expired"} 7`,
		`hairpin_icmp_errors_translated_total{} 8`,
		`hairpin_interface_attached{interface="lan0",mode="tc",role="lan"} 1`,
		`hairpin_interface_attached{interface="wan0",mode="xdp",role="wan"} 1`,
		`hairpin_interface_attached{interface="wan1",mode="auto",role="wan"} 0`,
		`hairpin_packets_dropped_total{interface="lan0",reason="table_full"} 2`,
		`hairpin_packets_dropped_total{interface="unknown",reason="unknown_4711"} 1`,
		`hairpin_packets_dropped_total{interface="wan0",reason="ended"} 11`,
		`hairpin_packets_dropped_total{interface="wan0",reason="table_full"} 5`,
		`hairpin_packets_passed_total{interface="lan0",reason="next_hop"} 4`,
		`hairpin_packets_passed_total{interface="wan0",reason="no_route"} 3`,
	)
	counters, err := tables.Counters()
	if err != nil || len(counters) != 13 || counters[0] != (Counter{2, "drop", "ended", 11}) {
		t.Errorf("counters %v, %v", counters, err)
	}
}

// TestGaugesBeforeTheFirstWalk: a daemon that starts over a running datapath
// must not say that there is no connection.
func TestGaugesBeforeTheFirstWalk(t *testing.T) {
	tables, _, _ := counted(t)
	c := NewCollector(tables.again(), CollectorOptions{})
	// Those that are over but still in the table are not told apart yet.
	wantSamples(t, samples(t, c, "hairpin_connections", "hairpin_forward_connections", "hairpin_half_open"),
		`hairpin_connections{state="established"} 11`,
		`hairpin_connections{state="half-open"} 3`,
		`hairpin_connections_limit{} 32`,
		`hairpin_connections_repaired_total{} 0`,
		`hairpin_forward_connections{forward="ssh"} 1`,
		`hairpin_forward_connections{forward="web"} 9`,
		`hairpin_forward_connections_total{forward="ssh",path="hairpin"} 0`,
		`hairpin_forward_connections_total{forward="ssh",path="local"} 0`,
		`hairpin_forward_connections_total{forward="ssh",path="wan"} 3`,
		`hairpin_forward_connections_total{forward="web",path="hairpin"} 1`,
		`hairpin_forward_connections_total{forward="web",path="local"} 0`,
		`hairpin_forward_connections_total{forward="web",path="wan"} 15`,
		`hairpin_half_open_evicted_total{} 5`,
	)
}

func TestGaugesFollowBetweenWalks(t *testing.T) {
	tables, web, ssh := counted(t)
	c := NewCollector(tables, CollectorOptions{})
	mustRefresh(t, c)
	gauges := func() string {
		var values []string
		for _, line := range samples(t, c, "hairpin_connections", "hairpin_forward_connections", "hairpin_half_open") {
			if !strings.Contains(line, "_total{f") && !strings.Contains(line, "_limit") && !strings.Contains(line, "_repaired") {
				values = append(values, line[strings.LastIndexByte(line, ' ')+1:])
			}
		}
		return strings.Join(values, " ")
	}
	for _, step := range []struct {
		what                                            string
		opened, established, abandoned, evicted, closed uint64
		web, ssh                                        [2]uint64 // established, closed
		want                                            string    // closing, established, half-open; ssh, web; evicted
	}{
		{"nothing", 30, 20, 2, 5, 9, [2]uint64{16, 7}, [2]uint64{3, 2}, "2 6 1 1 8 5"},
		{"an opening", 31, 20, 2, 5, 9, [2]uint64{16, 7}, [2]uint64{3, 2}, "2 6 2 1 8 5"},
		{"it completes, of ssh", 31, 21, 2, 5, 9, [2]uint64{16, 7}, [2]uint64{4, 2}, "2 7 1 2 8 5"},
		{"the half-open one of web completes", 31, 22, 2, 5, 9, [2]uint64{17, 7}, [2]uint64{4, 2}, "2 8 0 2 8 5"},
		{"two of web end", 31, 22, 2, 5, 11, [2]uint64{17, 9}, [2]uint64{4, 2}, "2 6 0 2 6 5"},
		{"a flood", 5000, 22, 2, 4955, 11, [2]uint64{17, 9}, [2]uint64{4, 2}, "2 6 19 2 6 4955"},
		{"more end than the walk found alive", 5000, 22, 2, 4955, 22, [2]uint64{17, 17}, [2]uint64{4, 4}, "2 0 19 0 0 4955"},
	} {
		tables.putEvents(t, step.opened, step.established, step.abandoned, step.evicted, step.closed)
		tables.putForwardStats(t, web, bpf.HairpinForwardStats{Established: [3]uint64{step.web[0]}, Closed: [3]uint64{step.web[1]}})
		tables.putForwardStats(t, ssh, bpf.HairpinForwardStats{Established: [3]uint64{step.ssh[0]}, Closed: [3]uint64{step.ssh[1]}})
		if got := gauges(); got != step.want {
			t.Errorf("%s: gauges %s, want %s", step.what, got, step.want)
		}
	}
	mustRefresh(t, c)
	if got, want := gauges(), "2 6 1 1 8 4955"; got != want {
		t.Errorf("after another walk: gauges %s, want %s", got, want)
	}
}

// TestGaugesOfAForwardThatChanged: its counters begin anew, and what the walk
// found is not its own, even if it has the id of the one that went.
func TestGaugesOfAForwardThatChanged(t *testing.T) {
	tables, web, _ := counted(t)
	c := NewCollector(tables, CollectorOptions{})
	mustRefresh(t, c)
	mustApply(t, tables, configWith(t, "ssh tcp 22 to 192.168.1.30"))
	mustApply(t, tables, configWith(t, "ssh tcp 22 to 192.168.1.30", "heir tcp 443 to 192.168.1.21"))
	heir, _ := tables.stamps(t, "203.0.113.1", 443)
	if heir.Id != web {
		t.Fatalf("id %d, want %d again", heir.Id, web)
	}
	tables.putForwardStats(t, heir.Id, bpf.HairpinForwardStats{Established: [3]uint64{2}})
	wantSamples(t, slices.DeleteFunc(samples(t, c, "hairpin_forward_connections"), func(line string) bool { return strings.Contains(line, "_total") }),
		`hairpin_forward_connections{forward="heir"} 2`,
		`hairpin_forward_connections{forward="ssh"} 1`,
	)
}

// TestCollectorOfFreshMaps: nothing was applied yet.
func TestCollectorOfFreshMaps(t *testing.T) {
	c := NewCollector(newTables(t, smallSpec(t)), CollectorOptions{Version: "v1"})
	c.Reloaded(false)
	mustRefresh(t, c)
	wantSamples(t, samples(t, c, "hairpin_"),
		`hairpin_build_info{goversion="`+runtime.Version()+`",version="v1"} 1`,
		`hairpin_config_last_reload_successful{} 0`,
		`hairpin_connections{state="closing"} 0`,
		`hairpin_connections{state="established"} 0`,
		`hairpin_connections{state="half-open"} 0`,
		`hairpin_connections_limit{} 32`,
		`hairpin_connections_repaired_total{} 0`,
		`hairpin_established_displaced_total{} 0`,
		`hairpin_fragments_held_total{} 0`,
		`hairpin_half_open_evicted_total{} 0`,
		`hairpin_icmp_errors_translated_total{} 0`,
	)
}

// TestRunCountsAtOnce and stops when it is told to.
func TestRunCountsAtOnce(t *testing.T) {
	tables, _, _ := counted(t)
	c := NewCollector(tables, CollectorOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c.Run(ctx, func(err error) { t.Error(err) })
	if c.counted == nil || c.counted.established != 6 {
		t.Errorf("counted %+v", c.counted)
	}
}

// TestRunCountsForThoseWhoAsk: a walk costs what nobody may need.
func TestRunCountsForThoseWhoAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tables, _, _ := counted(t)
		c := NewCollector(tables, CollectorOptions{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go c.Run(ctx, func(err error) { t.Error(err) })
		last := func() *tally {
			synctest.Wait()
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.counted
		}
		first := last()
		time.Sleep(time.Hour)
		if last() != first {
			t.Error("counted though nobody asked")
		}
		samples(t, c, "hairpin_connections")
		if again := last(); again == first || again.established != 6 {
			t.Errorf("after somebody asked: counted %+v", again)
		}
	})
}

// TestRunKeepsTheLastCount when a walk fails.
func TestRunKeepsTheLastCount(t *testing.T) {
	tables, _, _ := counted(t)
	c := NewCollector(tables, CollectorOptions{})
	mustRefresh(t, c)
	last := c.counted
	broken := *tables.objs
	conns, err := tables.objs.Conns4.Clone()
	if err != nil {
		t.Fatal(err)
	}
	conns.Close()
	broken.Conns4 = conns
	c.tables = New(&broken)
	ctx, cancel := context.WithCancel(t.Context())
	var reported error
	c.Run(ctx, func(err error) { reported = errors.Join(reported, err); cancel() })
	if !contains(reported, "list connections") || c.counted != last {
		t.Errorf("error %v", reported)
	}
}
