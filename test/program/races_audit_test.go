// SPDX-License-Identifier: Apache-2.0

package program

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
)

// This file is all that TestRaces knows about how connections are stored.

// audit is the result of a walk of the connection tables. Orphans counts entries without an entry of the other direction. Found has
// the places that connections hold, by kind; Counted has the datapath's own counts of these places. If there is no entry, Used counts the
// slots that are in use nevertheless, and the entries that are said to have passed a bucket.
type audit struct {
	Entries, Orphans int
	Used             uint64
	Counted, Found   map[string]int64
}

// auditTables walks the connection tables. While nothing changes them it is exact.
func auditTables(tb testing.TB, b *bench) audit {
	tb.Helper()
	found, err := b.Tables.Audit()
	// A walk is aborted if its current entry is deleted too often. The caller walks again.
	if errors.Is(err, ebpf.ErrIterationAborted) {
		return audit{Orphans: -1}
	}
	if err != nil {
		tb.Fatal(err)
	}
	if found.Entries > 0 {
		return audit{Entries: found.Entries, Orphans: found.Orphans, Counted: found.Counted, Found: found.Found}
	}
	used := usedOf(tb, b.Objects.Conns4, func(b *bpf.HairpinBucket4) (used uint64) {
		for _, e := range b.Entry {
			used += min(e.Conn.Identity, 1)
		}
		return used + uint64(b.Passed)
	})
	used += usedOf(tb, b.Objects.Conns6, func(b *bpf.HairpinBucket6) (used uint64) {
		for _, e := range b.Entry {
			used += min(e.Conn.Identity, 1)
		}
		return used + uint64(b.Passed)
	})
	return audit{Entries: found.Entries, Orphans: found.Orphans, Used: used, Counted: found.Counted, Found: found.Found}
}

func usedOf[Bucket any](tb testing.TB, m *ebpf.Map, of func(*Bucket) uint64) (used uint64) {
	tb.Helper()
	var bucket Bucket
	for i := range m.MaxEntries() {
		if err := m.Lookup(i, &bucket); err != nil {
			tb.Fatalf("read bucket: %v", err)
		}
		used += of(&bucket)
	}
	return used
}

// narrowTables leaves so few buckets in use that entries often pass one: walks of several buckets are then the rule.
func narrowTables(tb testing.TB, b *bench, buckets uint32) {
	tb.Helper()
	var table bpf.HairpinTable
	if err := b.Objects.Tables.Lookup(uint32(0), &table); err != nil {
		tb.Fatal(err)
	}
	table.Buckets = [2]uint32{buckets, buckets}
	if err := b.Objects.Tables.Put(uint32(0), table); err != nil {
		tb.Fatal(err)
	}
}

// racesSpec is the datapath with a sweeper that makes no pause.
func racesSpec(tb testing.TB) *ebpf.CollectionSpec {
	tb.Helper()
	spec, err := bpf.LoadHairpin()
	if err != nil {
		tb.Fatal(err)
	}
	pause, ok := spec.Variables["sweep_pause"]
	if !ok {
		tb.Fatal("the datapath has no sweep_pause: its sweeper cannot run without a pause")
	}
	if err := pause.Set(uint64(1)); err != nil {
		tb.Fatal(err)
	}
	return spec
}

// setIdleTimes writes idle times, in nanoseconds, that no configuration may have.
func setIdleTimes(tb testing.TB, b *bench, established, closing, other uint64) {
	tb.Helper()
	var settings bpf.HairpinSettings
	if err := b.Objects.Settings.Lookup(uint32(0), &settings); err != nil {
		tb.Fatal(err)
	}
	settings.TcpEstablished, settings.TcpOpening = established, established
	settings.TcpClosing = closing
	settings.Udp, settings.Icmp, settings.PortHold = other, other, other
	settings.SourceLimit = 0
	if err := b.Objects.Settings.Put(uint32(0), settings); err != nil {
		tb.Fatal(err)
	}
}
