// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"time"

	"hairpin/test/bench/measure"
	"hairpin/test/bench/traffic"
)

// CPU time of a slice of packets. With many connections a slice takes one second: hairpin looks up each next hop again once a
// second, and a slice must include its share of these look-ups.
const (
	fewSlice  = 50 * time.Millisecond
	manySlice = time.Second
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
		if c.possible != nil && !c.possible(e.rig) {
			b.report.note("%s does not take part: this kernel is built without it.", c.Name)
			continue
		}
		c.setUp(e.rig)
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

func (c course) String() string {
	if c.flows == 1 {
		return fmt.Sprintf("%s, 1 flow, %s", c.way, c.direction)
	}
	return fmt.Sprintf("%s, %d flows, %s", c.way, c.flows, c.direction)
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
func (b *bench) nanoseconds(e *entrant, c course, slice time.Duration) task {
	guess := float64(slice / 20000)
	return task{e.Name, func() float64 {
		count := max(c.flows, int(float64(slice)/guess))
		stream := e.stream(c)
		var arrived [2]uint64
		took, err := b.clock.Time(func() (err error) {
			arrived, err = e.send(c.way, c.direction, stream, count)
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

// results has the cost of a packet in nanoseconds, by contender and course, one value for each round.
type results map[string]map[course][]float64

// race measures all entrants on all courses, in turn. In the report the names of the tasks begin with the prefix.
func (b *bench) race(prefix string, entrants []*entrant, courses []course, rounds int, slice time.Duration) results {
	var tasks []task
	var keys []course
	for _, c := range courses {
		for _, e := range entrants {
			if e.bare && c.flows > 1 {
				continue // a bare entrant has no tables, so many flows cost as much as one
			}
			tasks = append(tasks, b.nanoseconds(e, c, slice))
			keys = append(keys, c)
		}
	}
	b.interleave(1, tasks)
	out := make(results)
	for i, values := range b.interleave(rounds, tasks) {
		name := tasks[i].contender
		if out[name] == nil {
			out[name] = make(map[course][]float64)
		}
		out[name][keys[i]] = values
		b.report.sample(prefix+keys[i].String(), name, "ns", values)
	}
	return out
}

// faster returns how many times as many packets a second contender one forwards as contender than, for the direction in which this
// ratio is lower. The string has both costs.
func (r results) faster(one, than string, w way, flows int) (measure.Spread, string) {
	var worst measure.Spread
	var detail string
	for i, d := range directions {
		c, base := course{w, d, flows}, course{w, d, flows}
		if _, ok := r[than][base]; !ok {
			base.flows = 1
		}
		value := measure.SpreadOf(measure.Ratios(r[than][base], r[one][c]))
		if i == 0 || value.Median < worst.Median {
			worst = value
			detail = fmt.Sprintf("%.0f ns, %s %.0f ns, %s", measure.SpreadOf(r[one][c]).Median, than, measure.SpreadOf(r[than][base]).Median, d)
		}
	}
	return worst, detail
}

// compare adds the row of the ratio that faster returns.
func (b *bench) compare(r results, one, than string, w way, flows int, required float64) {
	value, detail := r.faster(one, than, w, flows)
	what := fmt.Sprintf("%s, %s, %d flows, against %s", one, w, flows, than)
	if flows == 1 {
		what = fmt.Sprintf("%s, %s, 1 flow, against %s", one, w, than)
	}
	b.report.add(atLeast(what, "x", required, value, detail))
}

func coursesOf(w way, flows int) []course {
	return []course{{w, toServer, flows}, {w, toClient, flows}}
}

// names returns the contenders to measure: in the short run those that a row of the table needs; otherwise nil, for all.
func (b *bench) names() []string {
	if b.short {
		return []string{nameXDPTx, nameXDPRedir, nameHairXDP, nameTC, nameHairTC, nameNftables}
	}
	return nil
}

// packets measures packets of established reflected connections.
func (b *bench) packets() {
	entrants := b.enter(hairpinned, b.names()...)
	for _, e := range entrants {
		if !e.bare {
			e.establish(hairpinned, manyFlows)
		}
	}
	one := b.race("", entrants, coursesOf(hairpinned, 1), b.rounds(30, 10), fewSlice)
	many := b.race("", entrants, coursesOf(hairpinned, manyFlows), b.rounds(8, 1), manySlice)
	b.compare(one, nameHairXDP, nameXDPTx, hairpinned, 1, 0.85)
	b.compare(one, nameHairXDP, nameNftables, hairpinned, 1, 4.0)
	b.compare(many, nameHairXDP, nameNftables, hairpinned, manyFlows, 3.2)
	b.compare(one, nameHairTC, nameTC, hairpinned, 1, 0.80)
	b.compare(one, nameHairTC, nameNftables, hairpinned, 1, 1.6)
	b.compare(many, nameHairTC, nameNftables, hairpinned, manyFlows, 1.5)
}

// forwarded measures packets of established connections from the Internet, which go from one device to another.
func (b *bench) forwarded() {
	entrants := b.enter(forwarded, b.names()...)
	for _, e := range entrants {
		if !e.bare {
			e.establish(forwarded, 1)
		}
	}
	one := b.race("", entrants, coursesOf(forwarded, 1), b.rounds(30, 10), fewSlice)
	b.compare(one, nameHairXDP, nameNftables, forwarded, 1, 3.5)
	b.compare(one, nameHairXDP, nameXDPRedir, forwarded, 1, 0.80)
}
