// SPDX-License-Identifier: Apache-2.0

package measure

import "testing"

func TestSpread(t *testing.T) {
	got := SpreadOf([]float64{40, 10, 30, 20, 50})
	if want := (Spread{Median: 30, Low: 20, High: 40, Count: 5}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := SpreadOf([]float64{1, 2}); got.Median != 1.5 {
		t.Errorf("median of 1 and 2: %v", got.Median)
	}
	if got := SpreadOf(nil); got != (Spread{}) {
		t.Errorf("spread of nothing: %+v", got)
	}
}

// Ratios are of the same round, so that what slows down both does not show.
func TestRatios(t *testing.T) {
	got := Ratios([]float64{100, 400}, []float64{50, 200})
	if len(got) != 2 || got[0] != 2 || got[1] != 2 {
		t.Errorf("got %v", got)
	}
}
