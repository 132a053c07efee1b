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

// bench measures, section by section, into one report.
type bench struct {
	tb     testing.TB // of the section that runs
	clock  *measure.Clock
	short  bool
	report *report
	log    io.Writer
}

// section is a part of the bench with networks of its own.
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

// run goes through the sections whose names contain the word.
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

// soak sends the packets of so many flows through one contender until the context ends, for a profiler to look at.
func (b *bench) soak(ctx context.Context, name string, flows int) error {
	return lab.Play(ctx, func(tb testing.TB) {
		b.tb = tb
		entrants := b.enter(hairpinned, name)
		if len(entrants) == 0 {
			tb.Fatalf("no contender is called %q", name)
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

// rounds is how often something is done, in the long run and in the short one.
func (b *bench) rounds(long, short int) int {
	if b.short {
		return short
	}
	return long
}

// task is one thing to measure; it returns a value each time.
type task struct {
	contender string
	run       func() float64
}

// A busy machine gets fewer rounds rather than more time.
const (
	patience     = 45 * time.Second
	fewestRounds = 3
)

// interleave does every task once a round, in turn, and returns the values of each. The order turns
// round each time, so that whoever comes after whom is not always the same.
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

// Tasks that are drawn.
const (
	taskAnswered = "UDP openings, answered"
	taskRequests = "TCP connect, request, response, close"
	taskBulk     = "TCP bulk"
)
