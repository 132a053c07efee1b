// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"math"
	"slices"

	"golang.org/x/perf/benchmath"
)

// confidence is the least probability with which the interval of a spread contains the median.
const confidence = 0.95

// fewest is the least number of values that have an interval: the range of five values contains the median with 94 %.
const fewest = 6

// Spread is the median of Count values, and an interval that contains the true median with a probability of 95 % or more. The
// interval is between two of the values; their ranks come from the binomial distribution, so the kind of distribution does not
// matter.
type Spread struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
	Count  int     `json:"count"`
	// Exact: the value was not measured several times, because each time gives the same value.
	Exact bool `json:"exact,omitempty"`
}

// SpreadOf returns the spread of values. Fewer than 6 values have no interval; Low and High are then the least and the greatest
// value.
func SpreadOf(values []float64) Spread {
	if len(values) == 0 {
		return Spread{}
	}
	sorted := slices.Sorted(slices.Values(values))
	if len(sorted) < fewest {
		return Spread{Median: Quantile(sorted, 0.5), Low: sorted[0], High: sorted[len(sorted)-1], Count: len(sorted)}
	}
	s := benchmath.AssumeNothing.Summary(benchmath.NewSample(sorted, &benchmath.DefaultThresholds), confidence)
	return Spread{Median: s.Center, Low: s.Lo, High: s.Hi, Count: len(sorted)}
}

// Exactly returns the spread of a value that is the same each time.
func Exactly(value float64) Spread {
	return Spread{Median: value, Low: value, High: value, Count: 1, Exact: true}
}

// HasInterval reports whether Low and High are an interval of 95 %.
func (s Spread) HasInterval() bool { return s.Exact || s.Count >= fewest }

// Distance returns the larger distance of the interval's ends from 1. If the values are ratios of two equal contenders, a smaller
// difference between two contenders means nothing. Without an interval the distance is infinite.
func (s Spread) Distance() float64 {
	if !s.HasInterval() {
		return math.Inf(1)
	}
	return max(math.Abs(s.Low-1), math.Abs(s.High-1))
}

// Aim is what a value has to reach.
type Aim struct {
	Value  float64
	AtMost bool // true: the value must not be larger; false: not smaller
}

// Verdict says whether an aim is reached.
type Verdict string

const (
	Reached Verdict = "yes" // the whole interval reaches the aim
	Missed  Verdict = "NO"  // the whole interval misses the aim
	// Undecided: the interval contains the aim, or there is no interval.
	Undecided Verdict = "undecided"
	// Indistinct: the distance of the median from the aim is less than the noise, whatever the interval says.
	Indistinct Verdict = "undecided (A/A)"
)

// Judge returns the verdict on a spread. noise is the distance of two equal contenders, as a part of 1; 0: not known.
func (a Aim) Judge(s Spread, noise float64) Verdict {
	reaches := func(value float64) bool {
		if a.AtMost {
			return value <= a.Value
		}
		return value >= a.Value
	}
	switch {
	case !s.HasInterval() || reaches(s.Low) != reaches(s.High):
		return Undecided
	case math.Abs(s.Median/a.Value-1) < noise:
		return Indistinct
	case reaches(s.Median):
		return Reached
	}
	return Missed
}

// Quantile returns the quantile q, 0 to 1, of sorted values, interpolated between the two nearest values.
func Quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 == len(sorted) {
		return sorted[i]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

// Ratios returns a[i]/b[i] for each pair i. It leaves out pairs with a 0, which stands for a slice that failed.
func Ratios(a, b []float64) []float64 {
	out := make([]float64, 0, len(a))
	for i := range min(len(a), len(b)) {
		if a[i] > 0 && b[i] > 0 {
			out = append(out, a[i]/b[i])
		}
	}
	return out
}
