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
// the places that connections hold, by kind; Counted has the datapath's own counts of these places.
type audit struct {
	Entries, Orphans int
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
	return audit{Entries: found.Entries, Orphans: found.Orphans, Counted: found.Counted, Found: found.Found}
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
