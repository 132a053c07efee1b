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
	tb    testing.TB // belongs to the section that is running
	clock *measure.Clock
	cpu   int // of the clock
	// deadline: after it, each part makes only its first rounds.
	deadline time.Time
	short    bool
	report   *report
	log      io.Writer
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
	{"cores", (*bench).cores},
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
	b.deadline = start.Add(limit)
	if b.short {
		b.deadline = start.Add(shortLimit)
	}
	for _, s := range sections {
		if !strings.Contains(s.name, only) {
			continue
		}
		began := time.Now()
		fmt.Fprintf(b.log, "%s\n", s.name)
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
		fmt.Fprintf(b.log, "%s: %.0f s, %.0f s in all\n", s.name, time.Since(began).Seconds(), time.Since(start).Seconds())
	}
	b.report.Seconds = time.Since(start).Seconds()
	b.report.judge()
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

// duel is two tasks whose values are compared.
type duel struct {
	one, than *task
	rare      bool // for information: runs only in every third round
}

// On a busy machine a part of the bench takes no longer than patience, and all parts together not much longer than limit or
// shortLimit: the later rounds are left out, but not the first leastRounds. A note then says how many rounds were made.
const (
	patience    = 3 * time.Minute
	limit       = 13 * time.Minute
	shortLimit  = 90 * time.Second
	leastRounds = 6
)

// duels runs every duel once in each round, and returns the values of both tasks of each duel. The two tasks of a duel run directly
// one after the other, so that a change of the machine's speed meets both. Every second round runs everything in reverse
// order, so that a task is as often the first of its duel as the second.
func (b *bench) duels(what string, rounds int, list []duel) (one, than [][]float64) {
	b.warmUp(list)
	one, than = make([][]float64, len(list)), make([][]float64, len(list))
	b.repeat(what, rounds, func(round int) {
		for i := range list {
			if round%2 == 1 {
				i = len(list) - 1 - i
			}
			if list[i].rare && round%3 != 0 {
				continue
			}
			if round%2 == 0 {
				one[i] = append(one[i], list[i].one.run())
				than[i] = append(than[i], list[i].than.run())
			} else {
				than[i] = append(than[i], list[i].than.run())
				one[i] = append(one[i], list[i].one.run())
			}
		}
	})
	return one, than
}

// warmUp runs each task once.
func (b *bench) warmUp(list []duel) {
	warm := make(map[*task]bool)
	for _, d := range list {
		for _, t := range []*task{d.one, d.than} {
			if !warm[t] {
				warm[t] = true
				t.run()
			}
		}
	}
}

// repeat calls fn once for each round, and tells the progress. It stops early if the machine is too slow.
func (b *bench) repeat(what string, rounds int, fn func(round int)) {
	began, told := time.Now(), time.Now()
	for round := range rounds {
		if round >= leastRounds && (time.Since(began) > patience || time.Now().After(b.deadline)) {
			b.report.note("%s: the machine was too slow for %d rounds; %d were made.", what, rounds, round)
			return
		}
		if b.tb.Context().Err() != nil {
			b.tb.Fatalf("interrupted")
		}
		if time.Since(told) > tellEvery {
			told = time.Now()
			fmt.Fprintf(b.log, "  %s: round %d of %d\n", what, round+1, rounds)
		}
		fn(round)
	}
}

// tellEvery is the time between two lines about the progress of a part.
const tellEvery = 10 * time.Second

// values runs a task once in each round, and returns its values.
func (b *bench) values(what string, rounds int, run func() float64) (values []float64) {
	b.repeat(what, rounds, func(int) { values = append(values, run()) })
	return values
}

// The tasks that also have a plot.
const (
	taskAnswered = "UDP openings, answered"
	taskRequests = "TCP connect, request, response, close"
	taskBulk     = "TCP bulk"
)
