// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"math"
	"math/rand/v2"
	"testing"
)

func count(n int) (values []float64) {
	for i := n; i > 0; i-- {
		values = append(values, float64(i))
	}
	return values
}

// The ranks are those of the sign test, as in tables of confidence limits for the median.
func TestSpread(t *testing.T) {
	for name, c := range map[string]struct {
		values []float64
		want   Spread
		has    bool
	}{
		"nothing":                      {nil, Spread{}, false},
		"two values have no interval":  {count(2), Spread{Median: 1.5, Low: 1, High: 2, Count: 2}, false},
		"five values have no interval": {count(5), Spread{Median: 3, Low: 1, High: 5, Count: 5}, false},
		"six values":                   {count(6), Spread{Median: 3.5, Low: 1, High: 6, Count: 6}, true},
		"twenty values":                {count(20), Spread{Median: 10.5, Low: 6, High: 15, Count: 20}, true},
		"thirty values":                {count(30), Spread{Median: 15.5, Low: 10, High: 21, Count: 30}, true},
	} {
		got := SpreadOf(c.values)
		if got != c.want || got.HasInterval() != c.has {
			t.Errorf("%s: got %+v, interval %t; want %+v", name, got, got.HasInterval(), c.want)
		}
	}
	if got := Exactly(7); got.Low != 7 || got.High != 7 || !got.HasInterval() {
		t.Errorf("an exact value: %+v", got)
	}
}

// SpreadOf must not change the order of values: it is the order of the rounds.
func TestSpreadKeepsValues(t *testing.T) {
	values := count(8)
	SpreadOf(values)
	if values[0] != 8 || values[7] != 1 {
		t.Errorf("values became %v", values)
	}
}

// The interval contains the true median in 95 of 100 runs or more, also if a part of the values is far too high.
func TestIntervalContainsTheMedian(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	const runs = 4000
	contains := 0
	for range runs {
		values := make([]float64, 20)
		for i := range values {
			// The median is 1.
			if values[i] = 2 * random.Float64(); values[i] > 1 {
				values[i] *= 1 + 10*random.Float64()
			}
		}
		if s := SpreadOf(values); s.Low <= 1 && s.High >= 1 {
			contains++
		}
	}
	if share := float64(contains) / runs; share < 0.945 || share > 0.975 {
		t.Errorf("%.3f of the intervals contain the median", share)
	}
}

func TestJudge(t *testing.T) {
	between := func(low, median, high float64) Spread { return Spread{Median: median, Low: low, High: high, Count: 20} }
	least, most := Aim{Value: 2}, Aim{Value: 2, AtMost: true}
	for name, c := range map[string]struct {
		aim   Aim
		value Spread
		noise float64
		want  Verdict
	}{
		"all above a least aim":                {least, between(2.1, 2.2, 2.3), 0, Reached},
		"all below a least aim":                {least, between(1.7, 1.8, 1.9), 0, Missed},
		"a least aim within":                   {least, between(1.9, 2.2, 2.3), 0, Undecided},
		"all below a greatest aim":             {most, between(1.7, 1.8, 1.9), 0, Reached},
		"all above a greatest aim":             {most, between(2.1, 2.2, 2.3), 0, Missed},
		"a greatest aim within":                {most, between(1.9, 1.95, 2.3), 0, Undecided},
		"the interval begins at the aim":       {least, between(2, 2.2, 2.3), 0, Reached},
		"ten per cent above, noise five":       {least, between(2.1, 2.2, 2.3), 0.05, Reached},
		"ten per cent above, noise eleven":     {least, between(2.1, 2.2, 2.3), 0.11, Indistinct},
		"ten per cent below, noise eleven":     {least, between(1.7, 1.8, 1.9), 0.11, Indistinct},
		"equal contenders without an interval": {least, between(2.1, 2.2, 2.3), math.Inf(1), Indistinct},
		"too few values":                       {least, SpreadOf([]float64{3, 3, 3}), 0, Undecided},
		"an exact value":                       {most, Exactly(1.9), 0, Reached},
	} {
		if got := c.aim.Judge(c.value, c.noise); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		value Spread
		want  float64
	}{
		{Spread{Median: 1, Low: 0.75, High: 1.125, Count: 20}, 0.25},
		{Spread{Median: 1.25, Low: 1.125, High: 1.5, Count: 20}, 0.5},
		{SpreadOf([]float64{1, 1}), math.Inf(1)},
	} {
		if got := c.value.Distance(); got != c.want {
			t.Errorf("%+v: %v, want %v", c.value, got, c.want)
		}
	}
}

// Ratios are of the same pair, so what slows down both does not show.
func TestRatios(t *testing.T) {
	got := Ratios([]float64{100, 400, 0, 5}, []float64{50, 200, 1, 0})
	if len(got) != 2 || got[0] != 2 || got[1] != 2 {
		t.Errorf("got %v", got)
	}
}
