// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/vishvananda/netlink"

	"hairpin/loader"
	"hairpin/test/bench/measure"
	"hairpin/test/bench/traffic"
	"hairpin/test/tables"
)

// openingFlows is the number of connections that a slice opens. The tables are empty before, and have room for more.
const openingFlows = 10000

// openings measures the opening of UDP connections: with the client's first packet and the server's answer, which establishes the
// connection; and with the client's first packet only.
func (b *bench) openings() {
	entrants := b.enter(hairpinned, nameHairXDP, nameHairTC, nameNftables)
	rounds := b.rounds(15, 5)
	answered := b.openingRace(taskAnswered, entrants, rounds, true)
	alone := b.openingRace("UDP openings, first packet only", entrants, rounds, false)
	for _, limit := range []struct {
		name     string
		required float64
	}{{nameHairXDP, 3}, {nameHairTC, 1.5}} {
		for _, r := range []struct {
			what  string
			costs map[string][]float64
		}{{"UDP openings with answer", answered}, {"UDP openings, first packet only", alone}} {
			ours, theirs := r.costs[limit.name], r.costs[nameNftables]
			b.report.add(atLeast(fmt.Sprintf("%s, %s, against %s", r.what, limit.name, nameNftables), "x",
				limit.required, measure.SpreadOf(measure.Ratios(theirs, ours)),
				fmt.Sprintf("%.0f/s, %s %.0f/s", 1e9/measure.SpreadOf(ours).Median, nameNftables, 1e9/measure.SpreadOf(theirs).Median)))
		}
	}
}

// openingRace returns the cost of an opening in nanoseconds, by contender, one value for each round.
func (b *bench) openingRace(name string, entrants []*entrant, rounds int, answered bool) map[string][]float64 {
	var tasks []task
	for _, e := range entrants {
		tasks = append(tasks, b.opening(e, answered))
	}
	b.interleave(1, tasks)
	costs := make(map[string][]float64)
	for i, values := range b.interleave(rounds, tasks) {
		costs[entrants[i].Name] = values
		b.report.sample(name, entrants[i].Name, "ns", values)
	}
	return costs
}

func (b *bench) opening(e *entrant, answered bool) task {
	next := 0
	return task{e.Name, func() float64 {
		stream := traffic.Stream{
			Frames: []traffic.Frame{e.frame(hairpinned, toServer), e.frame(hairpinned, toClient)},
			Flows:  next + openingFlows, Ordered: true, From: next,
		}
		count := 2 * openingFlows
		if !answered {
			stream.Frames, count = stream.Frames[:1], openingFlows
		}
		next = (next + openingFlows) % (ports * traffic.FlowsPerRound)
		var arrived [2]uint64
		took, err := b.clock.Time(func() (err error) {
			arrived, err = e.send(hairpinned, toServer, stream, count)
			return err
		})
		b.must("open connections", err)
		opened := arrived[len(stream.Frames)-1]
		if opened < openingFlows*99/100 {
			b.tb.Fatalf("%s: of %d connections %d opened", e.Name, openingFlows, opened)
		}
		e.forget()
		return float64(took.CPU.Nanoseconds()) / float64(opened)
	}}
}

// forget removes all connections from hairpin's tables, or from conntrack.
func (r *rig) forget() {
	r.tb.Helper()
	if r.pins == "" {
		r.must("forget connections", r.router.Do(func() error {
			return netlink.ConntrackTableFlush(netlink.ConntrackTable)
		}))
		return
	}
	d, err := loader.Open(loader.Options{Dir: r.pins})
	r.must("open datapath", err)
	defer d.Close()
	objs := d.Objects()
	r.must("forget connections", tables.Forget(objs))
}
