// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"hairpin/test/bench/measure"
	"hairpin/test/lab"
)

// bench runs the sections and collects their results in one report.
type bench struct {
	tb     testing.TB // belongs to the section that is running
	clock  *measure.Clock
	short  bool
	report *report
	log    io.Writer
}

// section is a part of the bench. It makes its own networks.
type section struct {
	name string
	run  func(*bench)
}

var sections = []section{
	{"packets", (*bench).packets},
	{"forwarded", (*bench).forwarded},
	{"openings", (*bench).openings},
	{"requests", (*bench).requests},
	{"bulk", (*bench).bulk},
	{"latency", (*bench).latency},
	{"others", (*bench).others},
	{"forwards", (*bench).forwards},
	{"connections", (*bench).connections},
	{"control", (*bench).control},
}

// run runs the sections whose names contain only; "" runs all.
func (b *bench) run(ctx context.Context, only string) error {
	start := time.Now()
	for _, s := range sections {
		if !strings.Contains(s.name, only) {
			continue
		}
		began := time.Now()
		err := lab.Play(ctx, func(tb testing.TB) {
			b.tb = tb
			s.run(b)
		})
		if ctx.Err() != nil {
			return fmt.Errorf("measure %s: %w", s.name, ctx.Err())
		}
		if err != nil {
			return fmt.Errorf("measure %s: %w", s.name, err)
		}
		fmt.Fprintf(b.log, "%-12s %5.1f s\n", s.name, time.Since(began).Seconds())
	}
	b.report.Seconds = time.Since(start).Seconds()
	b.report.Paper = b.report.estimates()
	return nil
}

// soak sends packets of this many flows through the named contender until the context ends, for a profiler.
func (b *bench) soak(ctx context.Context, name string, flows int) error {
	return lab.Play(ctx, func(tb testing.TB) {
		b.tb = tb
		entrants := b.enter(hairpinned, name)
		if len(entrants) == 0 {
			tb.Fatalf("no contender has the name %q", name)
		}
		e := entrants[0]
		if !e.bare {
			e.establish(hairpinned, flows)
		}
		slice := b.nanoseconds(e, course{hairpinned, toServer, flows}, manySlice)
		for ctx.Err() == nil {
			fmt.Fprintf(b.log, "%.0f ns\n", slice.run())
		}
	})
}

func (b *bench) must(what string, err error) {
	b.tb.Helper()
	if err != nil {
		b.tb.Fatalf("%s: %v", what, err)
	}
}

// rounds returns long, or short with make bench-short.
func (b *bench) rounds(long, short int) int {
	if b.short {
		return short
	}
	return long
}

// task is one measurement; run returns a new value at each call.
type task struct {
	contender string
	run       func() float64
}

// After patience there are no more rounds, but at least fewestRounds: a busy machine gets fewer rounds, not more time.
const (
	patience     = 45 * time.Second
	fewestRounds = 3
)

// interleave runs every task once in each round, and returns the values of each task. Every second round runs the tasks in
// reverse order, so that no task always runs after one certain task.
func (b *bench) interleave(rounds int, tasks []task) [][]float64 {
	values := make([][]float64, len(tasks))
	began := time.Now()
	for round := range rounds {
		if round >= fewestRounds && time.Since(began) > patience {
			break
		}
		for i := range tasks {
			if err := b.tb.Context().Err(); err != nil {
				b.tb.Fatalf("interrupted")
			}
			if round%2 == 1 {
				i = len(tasks) - 1 - i
			}
			values[i] = append(values[i], tasks[i].run())
		}
	}
	return values
}

// The tasks that also have a plot.
const (
	taskAnswered = "UDP openings, answered"
	taskRequests = "TCP connect, request, response, close"
	taskBulk     = "TCP bulk"
)
