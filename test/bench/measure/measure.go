// SPDX-License-Identifier: Apache-2.0

// Package measure tells what work costs, on a machine that has other work to do, too.
package measure

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Clock tells how long one CPU has worked: the time of the thread that is pinned to it, and of the
// kernel's own thread that takes over its packets under load. Whatever else the machine is made to do
// meanwhile does not count.
type Clock struct {
	cpu      int
	softirqd string // its schedstat
}

// Cost is what a piece of work took.
type Cost struct {
	CPU  time.Duration
	Wall time.Duration
}

// NewClock finds out how the kernel accounts for a CPU.
func NewClock(cpu int) (*Clock, error) {
	names, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	want := fmt.Sprintf("ksoftirqd/%d\n", cpu)
	for _, entry := range names {
		comm, err := os.ReadFile("/proc/" + entry.Name() + "/comm")
		if err == nil && string(comm) == want {
			return &Clock{cpu, "/proc/" + entry.Name() + "/schedstat"}, nil
		}
	}
	return nil, fmt.Errorf("find the kernel's thread %q: is there a CPU %d?", want[:len(want)-1], cpu)
}

// Time runs fn on the clock's CPU.
func (c *Clock) Time(fn func() error) (Cost, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return Cost{}, fmt.Errorf("read affinity: %w", err)
	}
	var one unix.CPUSet
	one.Set(c.cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return Cost{}, fmt.Errorf("move to CPU %d: %w", c.cpu, err)
	}
	defer unix.SchedSetaffinity(0, &before)

	start, err := c.read()
	if err != nil {
		return Cost{}, err
	}
	wall := time.Now()
	if err := fn(); err != nil {
		return Cost{}, err
	}
	took := time.Since(wall)
	end, err := c.read()
	return Cost{CPU: end - start, Wall: took}, err
}

func (c *Clock) read() (time.Duration, error) {
	var thread unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &thread); err != nil {
		return 0, fmt.Errorf("read thread's CPU time: %w", err)
	}
	text, err := os.ReadFile(c.softirqd)
	if err != nil {
		return 0, fmt.Errorf("read the kernel's CPU time: %w", err)
	}
	field, _, _ := bytes.Cut(text, []byte(" "))
	kernel, err := strconv.ParseInt(string(field), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read the kernel's CPU time: %w", err)
	}
	return time.Duration(thread.Nano() + kernel), nil
}

// Spread is a median and how far apart the middle half of the values is.
type Spread struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`  // first quartile
	High   float64 `json:"high"` // third quartile
	Count  int     `json:"count"`
}

// SpreadOf sums up values.
func SpreadOf(values []float64) Spread {
	if len(values) == 0 {
		return Spread{}
	}
	sorted := slices.Sorted(slices.Values(values))
	return Spread{Quantile(sorted, 0.5), Quantile(sorted, 0.25), Quantile(sorted, 0.75), len(values)}
}

// Quantile interpolates between the two nearest of sorted values.
func Quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 == len(sorted) {
		return sorted[i]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

// Ratios divides what was measured in the same round.
func Ratios(a, b []float64) []float64 {
	out := make([]float64, 0, len(a))
	for i := range min(len(a), len(b)) {
		if b[i] > 0 {
			out = append(out, a[i]/b[i])
		}
	}
	return out
}
