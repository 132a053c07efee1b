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

// The A/A rows of openings.
const (
	noiseOpenXDP  noise = "UDP openings with answer, hairpin XDP"
	noiseOpenTC   noise = "UDP openings with answer, hairpin TC"
	noiseAloneXDP noise = "UDP openings, first packet only, hairpin XDP"
	noiseAloneTC  noise = "UDP openings, first packet only, hairpin TC"
)

// openings measures the opening of UDP connections: with the client's first packet and the server's answer, which establishes the
// connection; and with the client's first packet only.
func (b *bench) openings() {
	matches := []match{xdpNftables, tcNftables, sameXDP, sameTC}
	entrants := b.enterMatches(hairpinned, matches...)
	answered := b.openingRace(taskAnswered, entrants, matches, true)
	alone := b.openingRace("UDP openings, first packet only", entrants, matches, false)
	for _, r := range []struct {
		outcomes map[match]outcome
		match    match
		required float64
		noise    noise
	}{
		{answered, xdpNftables, 3, noiseOpenXDP},
		{alone, xdpNftables, 3, noiseAloneXDP},
		{answered, tcNftables, 1.5, noiseOpenTC},
		{alone, tcNftables, 1.5, noiseAloneTC},
	} {
		o := r.outcomes[r.match]
		b.report.add(atLeast(fmt.Sprintf("%s, against %s", r.noise, r.match.than), "x", r.required, o.ratios(),
			fmt.Sprintf("%s, %s %s", perSecond(o.one), r.match.than, perSecond(o.than))).like(r.noise))
	}
	for _, r := range []struct {
		outcomes map[match]outcome
		match    match
		noise    noise
	}{{answered, sameXDP, noiseOpenXDP}, {alone, sameXDP, noiseAloneXDP}, {answered, sameTC, noiseOpenTC}, {alone, sameTC, noiseAloneTC}} {
		o := r.outcomes[r.match]
		b.report.add(same(r.noise, o.ratios(), fmt.Sprintf("%s and %s", perSecond(o.one), perSecond(o.than))))
	}
}

// perSecond returns the rate at a median cost in nanoseconds.
func perSecond(costs []float64) string {
	return fmt.Sprintf("%.0f/s", 1e9/measure.SpreadOf(costs).Median)
}

// openingRace returns the costs of an opening in nanoseconds.
func (b *bench) openingRace(name string, entrants []*entrant, matches []match, answered bool) map[match]outcome {
	tasks := make(map[string]*task)
	for _, e := range entrants {
		tasks[e.Name] = b.opening(e, answered)
	}
	var list []duel
	for _, m := range matches {
		list = append(list, duel{one: tasks[m.one], than: tasks[m.than]})
	}
	one, than := b.duels(name, b.rounds(24, 7), list)
	outcomes := make(map[match]outcome)
	for i, m := range matches {
		outcomes[m] = outcome{one[i], than[i]}
	}
	b.report.samples(name, "ns", matches, outcomes)
	return outcomes
}

func (b *bench) opening(e *entrant, answered bool) *task {
	next := 0
	return &task{e.Name, func() float64 {
		var opened uint64
		took, err := b.clock.Time(func() (err error) {
			opened, err = e.openFrom(&next, openingFlows, answered)
			return err
		})
		b.must("open connections", err)
		if opened < openingFlows*99/100 {
			b.tb.Fatalf("%s: of %d connections %d opened", e.Name, openingFlows, opened)
		}
		e.forget()
		return float64(took.CPU.Nanoseconds()) / float64(opened)
	}}
}

// openFrom opens connections from number next on, and sets next behind the last of them. It returns how many opened.
func (r *rig) openFrom(next *int, flows int, answered bool) (opened uint64, err error) {
	stream := traffic.Stream{
		Frames: []traffic.Frame{r.frame(hairpinned, toServer), r.frame(hairpinned, toClient)},
		Flows:  *next + flows, Ordered: true, From: *next,
	}
	count := 2 * flows
	if !answered {
		stream.Frames, count = stream.Frames[:1], flows
	}
	if *next += flows; *next+flows > ports*traffic.FlowsPerRound {
		*next = 0
	}
	arrived, err := r.send(hairpinned, toServer, stream, count)
	return arrived[len(stream.Frames)-1], err
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
