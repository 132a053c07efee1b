// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"hairpin/bpf"
	"hairpin/maps/layout"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

// setCount sets the datapath's count of connections in a ring.
func (t *Tables) setCount(tb testing.TB, index uint32, count int64) {
	tb.Helper()
	r, err := ring(t.objs, index)
	if err != nil {
		tb.Fatal(err)
	}
	r.Count = count
	if err := t.objs.Rings.Put(index, r); err != nil {
		tb.Fatal(err)
	}
}

// counts returns the datapath's count of connections in each ring.
func (t *Tables) counts(tb testing.TB) (counts [2 * bpf.HairpinPlaceKindPLACES]int64) {
	tb.Helper()
	for index := range counts {
		r, err := ring(t.objs, uint32(index))
		if err != nil {
			tb.Fatal(err)
		}
		counts[index] = r.Count
	}
	return counts
}

func (t *Tables) mustAudit(tb testing.TB) Audit {
	tb.Helper()
	audit, err := t.Audit()
	if err != nil {
		tb.Fatal(err)
	}
	return audit
}

// audited returns Tables with index + 1 connections in each ring, with correct counts and with the program that corrects
// counts.
func audited(t testing.TB) *Tables {
	t.Helper()
	mapstest.NeedRoot(t)
	spec := mapstest.SmallSpec(t)
	spec.Maps[bpf.HairpinMapConns4].MaxEntries = 256
	spec.Maps[bpf.HairpinMapConns6].MaxEntries = 256
	var objs struct {
		bpf.HairpinMaps
		Correct *ebpf.Program `ebpf:"hairpin_correct"`
	}
	if err := spec.LoadAndAssign(&objs, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { objs.HairpinMaps.Close(); objs.Correct.Close() })
	tables := New(&bpf.HairpinObjects{HairpinMaps: objs.HairpinMaps, HairpinPrograms: bpf.HairpinPrograms{HairpinCorrect: objs.Correct}})
	proven := func(e *layout.Entry) { e.Flags |= bpf.HairpinConnFlagCONN_PROVEN }
	in := func(state bpf.HairpinConnState) func(*layout.Entry) { return func(e *layout.Entry) { e.State = state } }
	kinds := [bpf.HairpinPlaceKindPLACES]mapstest.Flow{
		bpf.HairpinPlaceKindPLACE_HALF_TCP:    {Protocol: rule.TCP, HalfOpen: true},
		bpf.HairpinPlaceKindPLACE_HALF_PROVEN: {Protocol: rule.TCP, HalfOpen: true, Opener: proven},
		bpf.HairpinPlaceKindPLACE_HALF_OTHER:  {Protocol: rule.UDP, HalfOpen: true},
		// An established connection keeps the flag CONN_PROVEN, but the flag has no effect.
		bpf.HairpinPlaceKindPLACE_TCP:     {Protocol: rule.TCP, Opener: proven},
		bpf.HairpinPlaceKindPLACE_OTHER:   {Protocol: rule.GRE},
		bpf.HairpinPlaceKindPLACE_CLOSING: {Protocol: rule.TCP, Opener: in(bpf.HairpinConnStateCONN_CLOSING)},
	}
	for kind, f := range kinds {
		for v6, text := range []string{"198.51.100.9", "[2001:db8::9]"} {
			index := 2*kind + v6
			for n := range index + 1 {
				f.Client = fmt.Sprintf("%s:%d", text, 1000*index+n)
				f.External, f.Target = "203.0.113.1:443", "192.168.1.20:443"
				if v6 == 1 {
					f.External, f.Target = "[2001:db8:1::1]:443", "[2001:db8:2::1]:443"
				}
				f.Source = f.Client
				if n == 1 && kind == int(bpf.HairpinPlaceKindPLACE_CLOSING) {
					f.Opener = in(bpf.HairpinConnStateCONN_ENDED)
				}
				mapstest.Open(t, tables.objs, f)
			}
			tables.setCount(t, uint32(index), int64(index+1))
		}
	}
	// A CPU is about to delete this connection and has already reduced the count.
	gone := kinds[bpf.HairpinPlaceKindPLACE_TCP]
	gone.Client, gone.Source, gone.External, gone.Target = "198.51.100.9:1", "198.51.100.9:1", "203.0.113.1:443", "192.168.1.20:443"
	gone.Opener = in(bpf.HairpinConnStateCONN_GONE)
	mapstest.Open(t, tables.objs, gone)
	return tables
}

func TestAuditOfARightCount(t *testing.T) {
	audit := audited(t).mustAudit(t)
	want := map[string]int64{
		"half-open tcp": 3, "half-open proven": 7, "half-open other": 11, "established tcp": 15, "established other": 19, "closing": 23,
	}
	if diff := cmp.Diff(want, audit.Counted); diff != "" {
		t.Errorf("counted (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(want, audit.Found); diff != "" {
		t.Errorf("found (-want +got)\n%s", diff)
	}
	// The opener's entry of the connection that is being deleted is not an entry any more.
	if audit.Entries != 2*79-1 || audit.Orphans != 0 || !audit.steady || audit.drift != (Audit{}).drift {
		t.Errorf("got %+v", audit)
	}
}

func TestAuditFindsOrphans(t *testing.T) {
	tables := audited(t)
	orphan := mapstest.Flow{Protocol: rule.TCP, Client: "198.51.100.7:1", Source: "198.51.100.7:1", External: "203.0.113.1:443", Target: "192.168.1.20:443"}
	entries := func(port int) [2]layout.Entry {
		f := orphan
		f.Client = fmt.Sprintf("198.51.100.7:%d", port)
		f.Source = f.Client
		mapstest.Open(t, tables.objs, f)
		return f.Pair()
	}
	check := func(what string, want int) {
		t.Helper()
		if got := tables.mustAudit(t).Orphans; got != want {
			t.Errorf("%s: %d orphans, want %d", what, got, want)
		}
	}
	check("none", 0)
	if err := mapstest.Entries(tables.objs).Delete(entries(1)[0].Key); err != nil {
		t.Fatal(err)
	}
	check("without opener", 1)
	if err := mapstest.Entries(tables.objs).Delete(entries(2)[1].Key); err != nil {
		t.Fatal(err)
	}
	check("without answerer", 2)
	// Each call of Pair gives a new serial, so now both entries belong to different connections.
	other := entries(3)[1]
	if err := mapstest.Entries(tables.objs).Update(&other, ebpf.UpdateExist); err != nil {
		t.Fatal(err)
	}
	check("answerer of another connection", 4)
}

func TestAuditFindsACountThatDiffers(t *testing.T) {
	tables := audited(t)
	for index, count := range tables.counts(t) {
		for _, off := range []int64{-20, -1, 1, 100} {
			tables.setCount(t, uint32(index), count+off)
			audit := tables.mustAudit(t)
			want := Audit{}.drift
			want[index] = off
			kind := placeKinds[index/2]
			if audit.drift != want || audit.Counted[kind]-audit.Found[kind] != off {
				t.Errorf("%s, off by %d: %+v", kind, off, audit)
			}
		}
		tables.setCount(t, uint32(index), count)
	}
}

// TestRepairCorrectsWhatStaysOff: Repair corrects only counts that are wrong by the same number in both audits.
func TestRepairCorrectsWhatStaysOff(t *testing.T) {
	tables := audited(t)
	right := tables.counts(t)
	off := func(index uint32, by int64) { tables.setCount(t, index, right[index]+by) }
	off(2, 5)
	off(5, -3)
	off(7, 2)
	off(8, 1)
	earlier := tables.mustAudit(t)
	off(7, 1)
	off(8, 0)
	off(9, 1)
	now := tables.mustAudit(t)
	// This error of a count begins after both audits, so Repair must not change the count.
	off(2, 6)
	repaired, err := tables.repair(earlier, now)
	if err != nil || repaired != 8 {
		t.Errorf("repaired %d, want 8 (%v)", repaired, err)
	}
	want := right
	want[2], want[7], want[9] = right[2]+1, right[7]+1, right[9]+1
	if got := tables.counts(t); got != want {
		t.Errorf("counts are %v, want %v", got, want)
	}
}

func TestRepairWithoutProgramDoesNothing(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	tables.setCount(t, 0, 1)
	audit := tables.mustAudit(t)
	if repaired, err := tables.repair(audit, audit); err != nil || repaired != 0 {
		t.Errorf("repaired %d, %v", repaired, err)
	}
}

// TestTheAuditorRepairsAfterThreeAudits: the third audit with equal wrong counts corrects them.
func TestTheAuditorRepairsAfterThreeAudits(t *testing.T) {
	tables := audited(t)
	right := tables.counts(t)
	auditor, total := NewAuditor(tables), 0
	for i, step := range []struct {
		off, left int64 // error of the count before and after the audit
		total     int
	}{
		{0, 0, 0}, {0, 0, 0}, {0, 0, 0}, {0, 0, 0},
		{4, 4, 0}, {4, 4, 0}, {3, 3, 0}, {3, 3, 0}, {0, 0, 0},
		{3, 3, 0}, {3, 3, 0}, {3, 0, 3}, {0, 0, 3},
		{-1, -1, 3}, {-1, -1, 3}, {-1, 0, 4},
		// After a repair, the next repair needs three audits again.
		{-1, -1, 4}, {-1, -1, 4}, {-1, 0, 5}, {0, 0, 5},
	} {
		tables.setCount(t, 6, right[6]+step.off)
		repaired, err := auditor.Step()
		if err != nil {
			t.Fatal(err)
		}
		if total += repaired; total != step.total {
			t.Errorf("after audit %d: %d were repaired in all, want %d", i+1, total, step.total)
		}
		want := right
		want[6] += step.left
		if got := tables.counts(t); got != want {
			t.Errorf("after audit %d: counts are %v, want %v", i+1, got, want)
		}
	}
}

// TestAnAuditUnderChangeSaysNothing: an audit during changes is ignored, because the walk may have missed connections.
func TestAnAuditUnderChangeSaysNothing(t *testing.T) {
	tables := audited(t)
	for what, change := range map[string]func(n int64){
		"a count":     func(n int64) { tables.setCount(t, 6, n) },
		"the endings": func(n int64) { mapstest.PutEvents(t, tables.objs, 0, 0, 0, 0, uint64(n)) },
	} {
		auditor := NewAuditor(tables)
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for n := int64(1); ; n++ {
				select {
				case <-stop:
					return
				default:
					change(n)
				}
			}
		}()
		deadline := time.Now().Add(20 * time.Second)
		for tables.mustAudit(t).steady && time.Now().Before(deadline) {
		}
		seen := false
		for !seen && time.Now().Before(deadline) {
			before := auditor.alike
			if _, err := auditor.Step(); err != nil {
				t.Fatal(err)
			}
			seen = auditor.alike == before
		}
		close(stop)
		<-stopped
		if !seen {
			t.Errorf("every audit while %s changed was taken to be right", what)
		}
	}
}
