// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"testing"

	"hairpin/maps/mapstest"
)

// pages returns the number of pages in forward_stats.
func (t *Tables) pages(tb testing.TB) (count int) {
	tb.Helper()
	for number := range t.objs.ForwardStats.MaxEntries() {
		page, err := t.openStatsPage(number)
		if err != nil {
			tb.Fatal(err)
		}
		if page != nil {
			count++
			page.Close()
		}
	}
	return count
}

// TestPagesOfCountersComeAndGo checks that Apply makes and drops as many pages as the forwards need.
func TestPagesOfCountersComeAndGo(t *testing.T) {
	tables := newTables(t, mapstest.RoomySpec(t))
	none, err := tables.statsPage()
	if err != nil {
		t.Fatal(err)
	}
	size := int(none)
	for _, step := range []struct{ forwards, pages int }{
		{1, 1}, {3*size - 1, 3}, {3 * size, 4}, {100 * size, 101}, {1, 1},
	} {
		mustApply(t, tables, mapstest.ManyForwards(step.forwards))
		if got := tables.pages(t); got != step.pages {
			t.Errorf("%d pages of %d forwards, want %d", got, step.forwards, step.pages)
		}
		if now, err := tables.statsPage(); err != nil || now != none {
			t.Errorf("pages of %d with %d forwards, %v, want %d", now, step.forwards, err, none)
		}
	}
}
