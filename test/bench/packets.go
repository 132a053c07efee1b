// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"time"

	"hairpin/test/bench/measure"
	"hairpin/test/bench/traffic"
)

// CPU time of a slice of packets.
const (
	fewSlice  = 50 * time.Millisecond
	manySlice = 300 * time.Millisecond
	manyFlows = 60000
)

// entrant is a contender on its rig.
type entrant struct {
	contender
	*rig
}

// enter builds a rig for each of the named contenders that this kernel can run; no name: for all.
func (b *bench) enter(w way, names ...string) []*entrant {
	b.tb.Helper()
	var entrants []*entrant
	for _, c := range contenders(w) {
		if len(names) > 0 && !slices.Contains(names, c.Name) {
			continue
		}
		e := &entrant{c, newRig(b.tb)}
		if missing := c.setUp(e.rig); missing != "" {
			b.report.note("%s does not take part: %s.", c.Name, missing)
			continue
		}
		entrants = append(entrants, e)
	}
	return entrants
}

// course is a stream of packets in established connections.
type course struct {
	way       way
	direction direction
	flows     int
}

func (c course) String() string { return c.title() + ", " + string(c.direction) }

// title returns the name of the course without its direction.
func (c course) title() string {
	if c.flows == 1 {
		return fmt.Sprintf("%s, 1 flow", c.way)
	}
	return fmt.Sprintf("%s, %d flows", c.way, c.flows)
}

// stream returns the stream of a course for this entrant. A bare entrant does not translate, so the sink expects the original address.
func (e *entrant) stream(c course) traffic.Stream {
	f := e.frame(c.way, c.direction)
	if e.bare {
		f.Expected = destination(f)
	}
	return traffic.Stream{Frames: []traffic.Frame{f}, Flows: c.flows}
}

// nanoseconds returns the task that measures the cost of a packet of a course, from the generator to the sink. The first
// call is short: it estimates how many packets make a slice.
//
// Before a slice of many flows, each flow sends one packet that is not measured. hairpin works at certain times for each
// connection: it asks the kernel for the route again each time the clock passes a multiple of 8.192 s, which is shifted for each
// connection (bpf/fib.h). While the other tasks run, most connections pass such a time. Without the packet before the slice, all of
// them would ask within the slice. With it, those ask whose time comes within the slice, as under steady traffic.
func (b *bench) nanoseconds(e *entrant, c course, slice time.Duration) *task {
	guess := float64(slice / 20000)
	return &task{e.Name, func() float64 {
		count := max(c.flows, int(float64(slice)/guess))
		if c.flows > 1 {
			_, err := b.clock.Time(func() error {
				_, err := e.send(c.way, c.direction, e.stream(c), c.flows)
				return err
			})
			b.must("send before a slice", err)
		} else {
			b.must("set stream", e.traffic.Set(e.stream(c)))
		}
		var arrived [2]uint64
		took, err := b.clock.Time(func() (err error) {
			arrived, err = e.again(c.way, c.direction, count)
			return err
		})
		b.must(fmt.Sprintf("%s, %s", e.Name, c), err)
		if lost := 1 - float64(arrived[0])/float64(count); lost > 0.001 {
			b.tb.Fatalf("%s, %s: of %d packets %d arrived", e.Name, c, count, arrived[0])
		}
		guess = float64(took.CPU.Nanoseconds()) / float64(arrived[0])
		return guess
	}}
}

// match names two contenders whose costs are compared.
type match struct {
	one, than string
	rare      bool // only for the costs of the contenders, not for a row with an aim
}

// seldom returns the match for information only.
func (m match) seldom() match {
	m.rare = true
	return m
}

// outcome has the values of a match: the values at one index are of the same pair of slices.
type outcome struct{ one, than []float64 }

// ratios returns how many times as much contender than takes as contender one, in each pair of slices.
func (o outcome) ratios() measure.Spread { return measure.SpreadOf(measure.Ratios(o.than, o.one)) }

// results has the outcomes of matches, by course.
type results map[course]map[match]outcome

// race measures matches on all courses, in turn. A match is left out if one of its contenders does not take part. In the report the
// names of the tasks begin with the prefix.
func (b *bench) race(prefix string, entrants []*entrant, matches []match, courses []course, rounds int, slice time.Duration) results {
	var list []duel
	type key struct {
		course
		match
	}
	var keys []key
	for _, c := range courses {
		tasks := make(map[string]*task)
		for _, e := range entrants {
			tasks[e.Name] = b.nanoseconds(e, c, slice)
		}
		for _, m := range matches {
			if tasks[m.one] != nil && tasks[m.than] != nil {
				list = append(list, duel{tasks[m.one], tasks[m.than], m.rare})
				keys = append(keys, key{c, m})
			}
		}
	}
	out := make(results)
	one, than := b.duels(prefix+courses[0].title(), rounds, list)
	for i, k := range keys {
		if out[k.course] == nil {
			out[k.course] = make(map[match]outcome)
		}
		out[k.course][k.match] = outcome{one[i], than[i]}
	}
	for _, c := range courses {
		b.report.samples(prefix+c.String(), "ns", matches, out[c])
	}
	return out
}

// samples records the values of each contender, from all its matches, in the order of the contenders.
func (r *report) samples(name, unit string, matches []match, outcomes map[match]outcome) {
	var names []string
	for _, c := range contenders(hairpinned) {
		names = append(names, c.Name)
	}
	values := make(map[string][]float64)
	add := func(contender string, more []float64) {
		if !slices.Contains(names, contender) {
			names = append(names, contender)
		}
		values[contender] = append(values[contender], more...)
	}
	for _, m := range matches {
		add(m.one, outcomes[m].one)
		add(m.than, outcomes[m].than)
	}
	for _, contender := range names {
		if len(values[contender]) > 0 {
			r.sample(name, contender, unit, values[contender])
		}
	}
}

// faster returns the ratio of a match, for the direction in which the ratio is lower. The string has both costs. False: the
// match did not take place.
func (r results) faster(m match, w way, flows int) (worst measure.Spread, detail string, took bool) {
	for _, d := range directions {
		o, ok := r[course{w, d, flows}][m]
		if !ok {
			continue
		}
		value := o.ratios()
		if !took || value.Median < worst.Median {
			worst, took = value, true
			detail = fmt.Sprintf("%.0f ns, %s %.0f ns, %s", measure.SpreadOf(o.one).Median, m.than, measure.SpreadOf(o.than).Median, d)
		}
	}
	return worst, detail, took
}

// compare adds the row of a match; required 0: a row for information.
func (b *bench) compare(r results, m match, w way, flows int, required float64, n noise) {
	value, detail, took := r.faster(m, w, flows)
	if !took {
		return
	}
	what := fmt.Sprintf("%s, %s, against %s", m.one, course{way: w, flows: flows}.title(), m.than)
	if required == 0 {
		b.report.add(known(what, "x", value, detail).like(n))
		return
	}
	b.report.add(atLeast(what, "x", required, value, detail).like(n))
}

// same adds the A/A row of a match of equal contenders, for the direction that differs more.
func (b *bench) same(r results, m match, w way, flows int, n noise) {
	var worst row
	for _, d := range directions {
		if o, ok := r[course{w, d, flows}][m]; ok {
			row := same(n, o.ratios(), fmt.Sprintf("%.0f ns and %.0f ns, %s", measure.SpreadOf(o.one).Median, measure.SpreadOf(o.than).Median, d))
			if worst.What == "" || row.Value.Distance() > worst.Value.Distance() {
				worst = row
			}
		}
	}
	b.report.add(worst)
}

// Matches of established packets.
var (
	sameXDP       = match{one: nameHairXDP, than: nameSecondXDP}
	sameTC        = match{one: nameHairTC, than: nameSecondTC}
	xdpNftables   = match{one: nameHairXDP, than: nameNftables}
	tcNftables    = match{one: nameHairTC, than: nameNftables}
	xdpTransmit   = match{one: nameHairXDP, than: nameXDPTx}
	xdpRedirect   = match{one: nameHairXDP, than: nameXDPRedir}
	tcRedirect    = match{one: nameHairTC, than: nameTC}
	tcFlowtable   = match{one: nameHairTC, than: nameFlowtable}
	xdpXDPForward = match{one: nameHairXDP, than: nameXDPForward}
	tableIptables = match{one: nameNftables, than: nameIptables}.seldom()
)

func coursesOf(w way, flows int) []course {
	return []course{{w, toServer, flows}, {w, toClient, flows}}
}

// enterMatches builds the rigs of all contenders in these matches.
func (b *bench) enterMatches(w way, matches ...match) []*entrant {
	b.tb.Helper()
	var names []string
	for _, m := range matches {
		names = append(names, m.one, m.than)
	}
	return b.enter(w, names...)
}

// packets measures packets of established reflected connections.
func (b *bench) packets() {
	one := []match{xdpTransmit, xdpNftables, tcRedirect, tcNftables, sameXDP, sameTC, xdpRedirect}
	many := []match{xdpNftables, tcNftables, sameXDP, sameTC}
	if !b.short {
		more := []match{tcFlowtable, xdpXDPForward, tableIptables}
		one, many = append(one, more...), append(many, more...)
	}
	entrants := b.enterMatches(hairpinned, append(one, many...)...)
	for _, e := range entrants {
		if !e.bare {
			e.establish(hairpinned, manyFlows)
		}
	}
	few := b.race("", entrants, one, coursesOf(hairpinned, 1), b.rounds(30, 8), fewSlice)
	lots := b.race("", entrants, many, coursesOf(hairpinned, manyFlows), b.rounds(20, 6), b.manySlice())
	b.compare(few, xdpTransmit, hairpinned, 1, 0.78, noiseXDPOne)
	b.compare(few, xdpNftables, hairpinned, 1, 4.8, noiseXDPOne)
	b.compare(lots, xdpNftables, hairpinned, manyFlows, 3.8, noiseXDPMany)
	b.compare(few, tcRedirect, hairpinned, 1, 0.80, noiseTCOne)
	b.compare(few, tcNftables, hairpinned, 1, 1.7, noiseTCOne)
	b.compare(lots, tcNftables, hairpinned, manyFlows, 1.8, noiseTCMany)
	for _, r := range []struct {
		results
		flows   int
		xdp, tc noise
	}{{few, 1, noiseXDPOne, noiseTCOne}, {lots, manyFlows, noiseXDPMany, noiseTCMany}} {
		b.compare(r.results, tcFlowtable, hairpinned, r.flows, 0, r.tc)
		b.compare(r.results, xdpXDPForward, hairpinned, r.flows, 0, r.xdp)
		b.same(r.results, sameXDP, hairpinned, r.flows, r.xdp)
		b.same(r.results, sameTC, hairpinned, r.flows, r.tc)
	}
}

// manySlice returns the CPU time of a slice of many flows.
func (b *bench) manySlice() time.Duration {
	if b.short {
		return manySlice / 2
	}
	return manySlice
}

// forwarded measures packets of established connections from the Internet, which go from one device to another.
func (b *bench) forwarded() {
	matches := []match{xdpNftables, xdpRedirect, sameXDP}
	if !b.short {
		matches = append(matches, tcRedirect.seldom(), tcNftables.seldom(), tcFlowtable, xdpXDPForward, tableIptables)
	}
	entrants := b.enterMatches(forwarded, matches...)
	for _, e := range entrants {
		if !e.bare {
			e.establish(forwarded, 1)
		}
	}
	one := b.race("", entrants, matches, coursesOf(forwarded, 1), b.rounds(30, 8), fewSlice)
	b.compare(one, xdpNftables, forwarded, 1, 3.5, noiseWAN)
	b.compare(one, xdpRedirect, forwarded, 1, 0.82, noiseWAN)
	b.compare(one, tcFlowtable, forwarded, 1, 0, noNoise)
	b.compare(one, xdpXDPForward, forwarded, 1, 0, noiseWAN)
	b.same(one, sameXDP, forwarded, 1, noiseWAN)
}
