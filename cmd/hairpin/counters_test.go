// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"hairpin/maps"
)

// TestDropsByReason: packets are summed over the interfaces. Only drops and refusals count.
func TestDropsByReason(t *testing.T) {
	rows := newDropRows([]maps.Counter{
		{Index: 1, Verdict: "drop", Reason: "ended", Packets: 3},
		{Index: 2, Verdict: "drop", Reason: "ended", Packets: 4},
		{Index: 2, Verdict: "refuse", Reason: "rate", Packets: 9},
		{Index: 2, Verdict: "pass", Reason: "no_route", Packets: 100},
		{Index: 2, Verdict: "defer", Reason: "mss", Packets: 100},
		{Index: 2, Verdict: "tell", Reason: "rate", Packets: 100},
		{Index: 1, Verdict: "drop", Reason: "malformed", Packets: 50},
		{Index: 1, Verdict: "refuse", Reason: "ended", Packets: 0},
	})
	want := []dropRow{
		{"drop", "malformed", 50}, {"refuse", "rate", 9}, {"drop", "ended", 7}, {"refuse", "ended", 0},
	}
	if diff := cmp.Diff(want, rows); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got := dropsText(rows, "drop"); got != "57: malformed 50, ended 7" {
		t.Errorf("dropped: %s", got)
	}
	if got := dropsText(rows, "refuse"); got != "9: rate 9" {
		t.Errorf("refused: %s", got)
	}
	if got := dropsText(nil, "drop"); got != "(none)" {
		t.Errorf("nothing dropped: %s", got)
	}
	var many []dropRow
	for i, reason := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		many = append(many, dropRow{"drop", reason, uint64(10 - i)})
	}
	if got := dropsText(many, "drop"); got != "49: a 10, b 9, c 8, d 7, e 6, 2 other reasons 9" {
		t.Errorf("many reasons: %s", got)
	}
}
