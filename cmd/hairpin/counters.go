// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"hairpin/maps"
)

// dropRow is how many packets were dropped for one reason, on all interfaces together, since the datapath was loaded.
type dropRow struct {
	Verdict string `json:"verdict"` // "drop"; "refuse": the packet would have opened a connection
	Reason  string `json:"reason"`
	Packets uint64 `json:"packets"`
}

// The verdicts of dropRow.
const (
	verdictDrop   = "drop"
	verdictRefuse = "refuse"
)

// newDropRows sums counters by verdict and reason, the most packets first.
func newDropRows(counters []maps.Counter) []dropRow {
	sums := map[dropRow]uint64{}
	for _, c := range counters {
		if c.Verdict == verdictDrop || c.Verdict == verdictRefuse {
			sums[dropRow{Verdict: c.Verdict, Reason: c.Reason}] += c.Packets
		}
	}
	rows := make([]dropRow, 0, len(sums))
	for row, packets := range sums {
		row.Packets = packets
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b dropRow) int {
		return cmp.Or(cmp.Compare(b.Packets, a.Packets), cmp.Compare(a.Verdict, b.Verdict), cmp.Compare(a.Reason, b.Reason))
	})
	return rows
}

// reasonsShown is the number of reasons on one line of the status.
const reasonsShown = 5

// dropsText returns the packets of a verdict by reason: "12: rate 10, not_allowed 2".
func dropsText(rows []dropRow, verdict string) string {
	var parts []string
	total, rest, others := uint64(0), uint64(0), 0
	for _, row := range rows {
		if row.Verdict != verdict || row.Packets == 0 {
			continue
		}
		total += row.Packets
		if len(parts) == reasonsShown {
			rest += row.Packets
			others++
			continue
		}
		parts = append(parts, fmt.Sprintf("%s %d", row.Reason, row.Packets))
	}
	if total == 0 {
		return none
	}
	if others > 0 {
		parts = append(parts, fmt.Sprintf("%s %d", count(others, "other reason"), rest))
	}
	return fmt.Sprintf("%d: %s", total, strings.Join(parts, ", "))
}
