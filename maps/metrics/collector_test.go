// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	gomaps "maps"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"hairpin/bpf"
	"hairpin/maps"
	"hairpin/maps/config"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

// stand has the maps of a datapath, and Tables for them.
type stand struct {
	*maps.Tables
	objs *bpf.HairpinObjects
}

func newStand(tb testing.TB, spec *ebpf.CollectionSpec) stand {
	tb.Helper()
	objs := mapstest.NewMaps(tb, spec)
	return stand{maps.New(objs), objs}
}

// connected returns a stand with connections of every kind, and the live connections.
func connected(tb testing.TB) (stand, []mapstest.Flow) {
	tb.Helper()
	tables := newStand(tb, mapstest.SmallSpec(tb))
	return tables, mapstest.Connect(tb, tables, tables.objs)
}

func (s stand) mustApply(tb testing.TB, c config.Config) {
	tb.Helper()
	if _, err := s.Apply(c); err != nil {
		tb.Fatal(err)
	}
}

func (s stand) mustSetInterfaces(tb testing.TB, links ...config.Interface) {
	tb.Helper()
	if err := s.SetInterfaces(links); err != nil {
		tb.Fatal(err)
	}
}

// exposition returns the text of a scrape.
func exposition(tb testing.TB, c *Collector) []byte {
	tb.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	var text bytes.Buffer
	for _, family := range families {
		if _, err := expfmt.MetricFamilyToText(&text, family); err != nil {
			tb.Fatal(err)
		}
	}
	if err := c.WriteForwards(&text); err != nil {
		tb.Fatal(err)
	}
	return text.Bytes()
}

// samples scrapes and returns the samples of metrics that begin with one of the prefixes, one line for each sample.
func samples(tb testing.TB, c *Collector, prefixes ...string) []string {
	tb.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(exposition(tb, c)))
	if err != nil {
		tb.Fatal(err)
	}
	lines := []string{}
	for _, name := range slices.Sorted(gomaps.Keys(families)) {
		if !slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) {
			continue
		}
		first := len(lines)
		for _, metric := range families[name].GetMetric() {
			var labels []string
			for _, label := range metric.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", label.GetName(), label.GetValue()))
			}
			value := metric.GetCounter().GetValue() + metric.GetGauge().GetValue()
			lines = append(lines, fmt.Sprintf("%s{%s} %v", name, strings.Join(labels, ","), value))
		}
		slices.Sort(lines[first:])
	}
	return lines
}

func wantSamples(tb testing.TB, got []string, want ...string) {
	tb.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		tb.Errorf("samples (-want +got)\n%s", diff)
	}
}

// counted is connected, and also sets the counters of events and of the forwards web and ssh.
func counted(t testing.TB) (tables stand, web, ssh uint32) {
	tables, _ = connected(t)
	forward, _ := mapstest.EpochRefs(t, tables.objs, "203.0.113.1", 443)
	other, _ := mapstest.EpochRefs(t, tables.objs, "203.0.113.1", 22)
	mapstest.PutEvents(t, tables.objs, 30, 20, 2, 5, 9)
	displaced := make([]uint64, ebpf.MustPossibleCPU())
	displaced[len(displaced)-1] = 6
	if err := tables.objs.ConnEvents.Put(bpf.HairpinConnEventEVENT_DISPLACED, displaced); err != nil {
		t.Fatal(err)
	}
	mapstest.PutForwardStats(t, tables.objs, forward.Id, bpf.HairpinForwardStats{
		Traffic:     [3][2]bpf.HairpinTraffic{{{Packets: 100, Bytes: 10000}, {Packets: 70, Bytes: 50000}}, {{Packets: 10, Bytes: 1000}, {Packets: 7, Bytes: 5000}}},
		Established: [3]uint64{15, 1},
		Closed:      [3]uint64{7},
	})
	mapstest.PutForwardStats(t, tables.objs, other.Id, bpf.HairpinForwardStats{Established: [3]uint64{3}, Closed: [3]uint64{2}})
	return tables, forward.Id, other.Id
}

func TestCollectorGivesEverySample(t *testing.T) {
	tables, _, _ := counted(t)
	mapstest.PutCounter(t, tables.objs, 2, bpf.HairpinVerdictVERDICT_REFUSE, bpf.HairpinReasonREASON_TABLE_FULL, 5)
	mapstest.PutCounter(t, tables.objs, 3, bpf.HairpinVerdictVERDICT_REFUSE, bpf.HairpinReasonREASON_TABLE_FULL, 2)
	mapstest.PutCounter(t, tables.objs, 2, bpf.HairpinVerdictVERDICT_DROP, bpf.HairpinReasonREASON_ENDED, 11)
	mapstest.PutCounter(t, tables.objs, 2, bpf.HairpinVerdictVERDICT_PASS, bpf.HairpinReasonREASON_NO_ROUTE, 3)
	mapstest.PutCounter(t, tables.objs, 3, bpf.HairpinVerdictVERDICT_DEFER, bpf.HairpinReasonREASON_NEXT_HOP, 4)
	mapstest.PutCounter(t, tables.objs, 99, bpf.HairpinVerdictVERDICT_DROP, bpf.HairpinReason(4711), 1)
	// These counters must not change the metrics of dropped and passed packets.
	mapstest.PutCounter(t, tables.objs, 2, bpf.HairpinVerdictVERDICT_SEND, bpf.HairpinReasonREASON_ICMP_ERROR, 6)
	mapstest.PutCounter(t, tables.objs, 3, bpf.HairpinVerdictVERDICT_SEND, bpf.HairpinReasonREASON_ICMP_ERROR, 2)
	mapstest.PutCounter(t, tables.objs, 3, bpf.HairpinVerdictVERDICT_SEND, bpf.HairpinReasonREASON_NONE, 9)
	mapstest.PutCounter(t, tables.objs, 3, bpf.HairpinVerdictVERDICT_TELL, bpf.HairpinReasonREASON_TABLE_FULL, 1)
	mapstest.PutCounter(t, tables.objs, 2, bpf.HairpinVerdictVERDICT_TELL, bpf.HairpinReasonREASON_TTL_EXPIRED, 7)
	mapstest.PutCounter(t, tables.objs, 2, bpf.HairpinVerdictVERDICT_HOLD, bpf.HairpinReasonREASON_FRAGMENT_EARLY, 4)
	mapstest.PutCounter(t, tables.objs, 3, bpf.HairpinVerdictVERDICT_HOLD, bpf.HairpinReasonREASON_FRAGMENT_EARLY, 1)
	c := New(tables.Tables, Options{Version: "v1", Interfaces: func() []Interface {
		return []Interface{
			{Name: "wan0", Index: 2, Role: config.RoleWAN, Mode: "xdp", Attached: true, Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")}},
			{Name: "lan0", Index: 3, Role: config.RoleLAN, Mode: "tc", Attached: true, Addresses: []netip.Addr{netip.MustParseAddr("192.168.1.1")}},
			{Name: "wan1", Role: config.RoleWAN, Mode: "auto"},
		}
	}})
	c.Reloaded(true)
	c.reloaded = time.Unix(1_700_000_000, 500_000_000)
	problems, err := promlint.New(bytes.NewReader(exposition(t, c))).Lint()
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
		`hairpin_forward_bytes_total{direction="in",forward="ssh",path="wan"} 0`,
		`hairpin_forward_bytes_total{direction="in",forward="web",path="hairpin"} 1000`,
		`hairpin_forward_bytes_total{direction="in",forward="web",path="wan"} 10000`,
		`hairpin_forward_bytes_total{direction="out",forward="ssh",path="wan"} 0`,
		`hairpin_forward_bytes_total{direction="out",forward="web",path="hairpin"} 5000`,
		`hairpin_forward_bytes_total{direction="out",forward="web",path="wan"} 50000`,
		`hairpin_forward_connections{forward="ssh"} 1`,
		`hairpin_forward_connections{forward="web"} 8`,
		`hairpin_forward_connections_total{forward="ssh",path="wan"} 3`,
		`hairpin_forward_connections_total{forward="web",path="hairpin"} 1`,
		`hairpin_forward_connections_total{forward="web",path="wan"} 15`,
		`hairpin_forward_packets_total{direction="in",forward="ssh",path="wan"} 0`,
		`hairpin_forward_packets_total{direction="in",forward="web",path="hairpin"} 10`,
		`hairpin_forward_packets_total{direction="in",forward="web",path="wan"} 100`,
		`hairpin_forward_packets_total{direction="out",forward="ssh",path="wan"} 0`,
		`hairpin_forward_packets_total{direction="out",forward="web",path="hairpin"} 7`,
		`hairpin_forward_packets_total{direction="out",forward="web",path="wan"} 70`,
		`hairpin_fragments_held_total{} 5`,
		`hairpin_half_open_evicted_total{} 5`,
		`hairpin_icmp_errors_sent_total{interface="lan0",reason="table_full"} 1`,
		`hairpin_icmp_errors_sent_total{interface="wan0",reason="ttl_expired"} 7`,
		`hairpin_icmp_errors_translated_total{} 8`,
		`hairpin_interface_attached{interface="lan0",role="lan"} 1`,
		`hairpin_interface_attached{interface="wan0",role="wan"} 1`,
		`hairpin_interface_attached{interface="wan1",role="wan"} 0`,
		`hairpin_interface_mode_info{interface="lan0",mode="tc"} 1`,
		`hairpin_interface_mode_info{interface="wan0",mode="xdp"} 1`,
		`hairpin_packets_dropped_total{interface="lan0",reason="table_full"} 2`,
		`hairpin_packets_dropped_total{interface="unknown",reason="unknown_4711"} 1`,
		`hairpin_packets_dropped_total{interface="wan0",reason="ended"} 11`,
		`hairpin_packets_dropped_total{interface="wan0",reason="table_full"} 5`,
		`hairpin_packets_passed_total{interface="lan0",reason="next_hop"} 4`,
		`hairpin_packets_passed_total{interface="wan0",reason="no_route"} 3`,
	)
	counters, err := tables.Counters()
	if err != nil || len(counters) != 13 || counters[0] != (maps.Counter{Index: 2, Verdict: "drop", Reason: "ended", Packets: 11}) {
		t.Errorf("counters %v, %v", counters, err)
	}
}

// TestMetricsCountAsTheCommandLineDoes: after each change of connections, a scrape and CountConnections give equal numbers.
func TestMetricsCountAsTheCommandLineDoes(t *testing.T) {
	tables, flows := connected(t)
	c := New(tables.Tables, Options{})
	set := func(f int, state bpf.HairpinConnState) {
		t.Helper()
		for _, e := range flows[f].Pair() {
			e.State = state
			if err := mapstest.Entries(tables.objs).Update(&e, ebpf.UpdateExist); err != nil {
				t.Fatal(err)
			}
		}
	}
	config := func(forwards ...string) config.Config {
		c := mapstest.Config(t, forwards...)
		c.Timeouts.TCPOpening = 10 * time.Second
		return c
	}
	const web, ssh = "web tcp,udp 443 to 192.168.1.20:8443", "ssh tcp 22 to 192.168.1.30"
	for _, step := range []struct {
		what   string
		happen func()
		want   string // numbers of half-open, established, closing connections; of ssh, of web
	}{
		{"nothing", func() {}, "1 6 2 1 8"},
		{"an established one closes", func() { set(0, bpf.HairpinConnStateCONN_CLOSING) }, "1 5 3 1 8"},
		{"the half-open one completes", func() { set(2, bpf.HairpinConnStateCONN_ESTABLISHED) }, "0 6 3 1 8"},
		{"a closing one ends", func() { set(3, bpf.HairpinConnStateCONN_ENDED) }, "0 6 2 1 7"},
		{"one is deleted", func() {
			for _, e := range flows[1].Pair() {
				if err := mapstest.Entries(tables.objs).Delete(e.Key); err != nil {
					t.Fatal(err)
				}
			}
		}, "0 5 2 1 6"},
		{"ssh goes", func() { tables.mustApply(t, config(web)) }, "0 4 2 0 6"},
		{"ssh comes back", func() { tables.mustApply(t, config(web, ssh)) }, "0 4 2 0 6"},
	} {
		step.happen()
		count, err := maps.New(tables.objs).CountConnections(rule.Selector{})
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(count.HalfOpen, count.Established, count.Closing, count.Forwards["ssh"], count.Forwards["web"]); got != step.want {
			t.Errorf("%s: counted %s, want %s", step.what, got, step.want)
		}
		want := []string{
			fmt.Sprintf(`hairpin_connections{state="closing"} %d`, count.Closing),
			fmt.Sprintf(`hairpin_connections{state="established"} %d`, count.Established),
			fmt.Sprintf(`hairpin_connections{state="half-open"} %d`, count.HalfOpen),
		}
		for _, name := range []string{"ssh", "web"} {
			if count.Forwards[name] > 0 {
				want = append(want, fmt.Sprintf(`hairpin_forward_connections{forward=%q} %d`, name, count.Forwards[name]))
			}
		}
		got := slices.DeleteFunc(samples(t, c, "hairpin_connections", "hairpin_forward_connections"), func(line string) bool {
			return !strings.Contains(line, "_connections{state=") && !strings.Contains(line, "_connections{forward=")
		})
		wantSamples(t, got, want...)
	}
}

// TestForwardsHaveSeriesFromTheirFirstPacketOn checks forwards and the paths of a forward.
func TestForwardsHaveSeriesFromTheirFirstPacketOn(t *testing.T) {
	tables := newStand(t, mapstest.SmallSpec(t))
	tables.mustApply(t, mapstest.Config(t, "web tcp 443 to 192.168.1.20:8443", "ssh tcp 22 to 192.168.1.30"))
	tables.mustSetInterfaces(t, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
	ssh, address := mapstest.EpochRefs(t, tables.objs, "203.0.113.1", 22)
	c := New(tables.Tables, Options{})
	if got := samples(t, c, "hairpin_forward"); len(got) > 0 {
		t.Errorf("before any traffic: %q", got)
	}

	packet := bpf.HairpinTraffic{Packets: 1, Bytes: 60}
	mapstest.PutForwardStats(t, tables.objs, ssh.Id, bpf.HairpinForwardStats{Traffic: [3][2]bpf.HairpinTraffic{1: {packet, {}}}})
	first := []string{
		`hairpin_forward_bytes_total{direction="in",forward="ssh",path="hairpin"} 60`,
		`hairpin_forward_bytes_total{direction="out",forward="ssh",path="hairpin"} 0`,
		`hairpin_forward_connections{forward="ssh"} 0`,
		`hairpin_forward_connections_total{forward="ssh",path="hairpin"} 0`,
		`hairpin_forward_packets_total{direction="in",forward="ssh",path="hairpin"} 1`,
		`hairpin_forward_packets_total{direction="out",forward="ssh",path="hairpin"} 0`,
	}
	wantSamples(t, samples(t, c, "hairpin_forward"), first...)

	// A half-open connection without packets adds no series. The first packet on another path adds the series of this path.
	mapstest.Open(t, tables.objs, mapstest.Flow{
		Protocol: rule.TCP, Client: "198.51.100.9:5000", External: "203.0.113.1:22", Source: "198.51.100.9:5000", Target: "192.168.1.30:22",
		Forward: ssh, Address: address, HalfOpen: true,
	})
	first[2] = `hairpin_forward_connections{forward="ssh"} 1`
	wantSamples(t, samples(t, c, "hairpin_forward"), first...)
	mapstest.PutForwardStats(t, tables.objs, ssh.Id, bpf.HairpinForwardStats{
		Traffic:     [3][2]bpf.HairpinTraffic{0: {packet, packet}, 1: {packet, {}}},
		Established: [3]uint64{1},
	})
	wantSamples(t, samples(t, c, "hairpin_forward_connections_total"),
		`hairpin_forward_connections_total{forward="ssh",path="hairpin"} 0`,
		`hairpin_forward_connections_total{forward="ssh",path="wan"} 1`,
	)
}

// TestSeriesOfAForwardThatChanged: a new forward starts with zero counters and without connections, even if it has the id of
// a removed forward.
func TestSeriesOfAForwardThatChanged(t *testing.T) {
	tables, web, _ := counted(t)
	c := New(tables.Tables, Options{})
	samples(t, c)
	tables.mustApply(t, mapstest.Config(t, "ssh tcp 22 to 192.168.1.30"))
	tables.mustApply(t, mapstest.Config(t, "ssh tcp 22 to 192.168.1.30", "heir tcp 443 to 192.168.1.21"))
	heir, _ := mapstest.EpochRefs(t, tables.objs, "203.0.113.1", 443)
	if heir.Id != web {
		t.Fatalf("id %d, want %d again", heir.Id, web)
	}
	mapstest.PutForwardStats(t, tables.objs, heir.Id, bpf.HairpinForwardStats{Established: [3]uint64{2}})
	var text bytes.Buffer
	if err := c.WriteForwards(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`hairpin_forward_connections{forward="heir"} 0`,
		`hairpin_forward_connections{forward="ssh"} 1`,
		`hairpin_forward_connections_total{forward="heir",path="wan"} 2`,
	} {
		if !strings.Contains(text.String(), want+"\n") {
			t.Errorf("no %s in\n%s", want, &text)
		}
	}
}

// TestAForwardThatGoesDuringAScrape: a forward that is removed during a scrape has no series in the rest of the scrape,
// even if another forward gets its id.
func TestAForwardThatGoesDuringAScrape(t *testing.T) {
	tables, web, _ := counted(t)
	c := New(tables.Tables, Options{})
	samples(t, c)
	text := &watched{wrote: func(text string) {
		if strings.HasPrefix(text, "# HELP hairpin_forward_connections ") {
			tables.mustApply(t, mapstest.Config(t, "ssh tcp 22 to 192.168.1.30"))
			tables.mustApply(t, mapstest.Config(t, "ssh tcp 22 to 192.168.1.30", "heir tcp 443 to 192.168.1.21"))
			mapstest.PutForwardStats(t, tables.objs, web, bpf.HairpinForwardStats{Established: [3]uint64{2}})
		}
	}}
	if err := c.WriteForwards(text); err != nil {
		t.Fatal(err)
	}
	if got := text.String(); !strings.Contains(got, `connections_total{forward="ssh"`) || strings.Contains(got, `connections_total{forward="web"`) || strings.Contains(got, `forward="heir"`) {
		t.Errorf("got\n%s", got)
	}
}

// watched is a buffer that calls wrote after each write.
type watched struct {
	bytes.Buffer
	wrote func(text string)
}

func (w *watched) Write(text []byte) (int, error) {
	n, err := w.Buffer.Write(text)
	w.wrote(string(text))
	return n, err
}

// TestCollectorOfFreshMaps scrapes before the first Apply.
func TestCollectorOfFreshMaps(t *testing.T) {
	c := New(newStand(t, mapstest.SmallSpec(t)).Tables, Options{Version: "v1"})
	c.Reloaded(false)
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

// TestRunEndsWithItsContext: with a cancelled context, Run audits once and returns.
func TestRunEndsWithItsContext(t *testing.T) {
	tables, _, _ := counted(t)
	c := New(maps.New(mapstest.WithoutConnections(t, tables.objs)), Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	audits := 0
	c.Run(ctx, func(error) { audits++ })
	if audits != 1 {
		t.Errorf("%d audits", audits)
	}
}

// TestRunAuditsNowAndThen: Run audits once a minute, also without scrapes.
func TestRunAuditsNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tables, _, _ := counted(t)
		c := New(maps.New(mapstest.WithoutConnections(t, tables.objs)), Options{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var failed atomic.Int32
		go c.Run(ctx, func(error) { failed.Add(1) })
		time.Sleep(10*time.Minute + time.Second)
		synctest.Wait()
		if got := failed.Load(); got != 11 {
			t.Errorf("%d audits in ten minutes, want one a minute", got)
		}
	})
}

// TestRunGoesOn: Run reports the error of a failed walk and goes on.
func TestRunGoesOn(t *testing.T) {
	tables, _, _ := counted(t)
	c := New(maps.New(mapstest.WithoutConnections(t, tables.objs)), Options{})
	ctx, cancel := context.WithCancel(t.Context())
	var reported error
	c.Run(ctx, func(err error) { reported = errors.Join(reported, err); cancel() })
	if !mapstest.Contains(reported, "list IPv4 connections") {
		t.Errorf("error %v", reported)
	}
}

// TestAScrapeThatCannotCountFails: if counting connections fails, the scrape fails; it must not be incomplete.
func TestAScrapeThatCannotCountFails(t *testing.T) {
	tables, _, _ := counted(t)
	c := New(tables.Tables, Options{})
	samples(t, c)
	c.tables = maps.New(mapstest.WithoutConnections(t, tables.objs))
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	if _, err := registry.Gather(); !mapstest.Contains(err, "list connections") {
		t.Errorf("gather: %v", err)
	}
	if err := c.WriteForwards(io.Discard); !mapstest.Contains(err, "list connections") {
		t.Errorf("write: %v", err)
	}
}
