// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hairpin/maps"
)

// TestRates: rates are of a second, whatever the interval. A forward without traffic since the first look is left out, unless it
// has connections. A counter that began again gives no rate.
func TestRates(t *testing.T) {
	began := time.Unix(1_700_000_000, 0).UTC()
	first := look{at: began, forwards: map[string]maps.Totals{
		"web": {Packets: 100, Bytes: 1000, Established: 5}, "idle": {Packets: 7}, "held": {Packets: 9}, "again": {Packets: 50},
	}, dropped: map[string]uint64{"denied": 3, "rate": 2, "mss": 9}}
	now := look{at: began.Add(4 * time.Second), forwards: map[string]maps.Totals{
		"web": {Packets: 140, Bytes: 9000, Established: 7}, "idle": {Packets: 7}, "held": {Packets: 9}, "again": {Packets: 2},
	}, dropped: map[string]uint64{"denied": 3, "rate": 42, "mss": 4}}
	now.connections.Forwards = map[string]int{"web": 2, "held": 1}
	now.connections.Established = 3
	got := compareLooks(first, first, now)
	want := rates{Time: now.at, Established: 3,
		Forwards: []forwardRate{{Name: "again"}, {Name: "held", Connections: 1}, {Name: "web", Connections: 2, Opened: 0.5, Packets: 10, Bytes: 2000}},
		Dropped:  []dropRate{{Reason: "mss", Packets: 4}, {Reason: "rate", Packets: 40, Rate: 10}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rates (-want +got):\n%s", diff)
	}
	page := ratesPage(got)
	for _, line := range []string{"3 established, 0 half-open", "web      2            0.5    10         2000", "rate     40       10"} {
		if !strings.Contains(page, line) {
			t.Errorf("no %q:\n%s", line, page)
		}
	}
	// Without time between the looks there is no rate, and no division by zero.
	if still := compareLooks(first, now, now); still.Forwards[2].Packets != 0 {
		t.Errorf("a rate without time: %+v", still)
	}
}
