// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"hairpin/test/bench/measure"
	"hairpin/test/bench/traffic"
)

const (
	// coreFlows is the number of connections of each CPU. A quarter of the default table has room for those of both CPUs.
	coreFlows = 25000
	coreSlice = 150 * time.Millisecond
	// leastTogether is the least part of a slice in which both CPUs must be at work.
	leastTogether = 0.7
)

// dual is a router with two LANs. Each LAN has its own generator on its own CPU, and its own connections.
type dual struct {
	name   string
	bare   bool
	halves []*half
}

// half is what one CPU does.
type half struct {
	*rig
	clock *measure.Clock
	next  int     // number of the next connection to open
	guess float64 // nanoseconds of a packet
}

// work is a kind of work. prepare and after are not measured; run returns how many packets or openings it did.
type work struct {
	what    string
	prepare func(d *dual, h *half) error
	run     func(d *dual, h *half) (uint64, error)
	after   func(d *dual)
}

// cores measures how much more two CPUs do than one CPU, at the same router.
func (b *bench) cores() {
	if runtime.NumCPU() < 2 {
		b.report.note("Two cores are not compared with one: this machine has one.")
		return
	}
	bare := b.dual(nameXDPTx)
	list := []*dual{b.dual(nameHairXDP), b.dual(nameHairTC), b.dual(nameNftables)}
	b.coreRace(list, work{"UDP openings", nothing, openOnCore, func(d *dual) { d.halves[0].forget() }})
	for _, d := range list {
		for _, h := range d.halves {
			h.establish(hairpinned, coreFlows)
		}
	}
	b.coreRace(append([]*dual{bare}, list...), work{"packets of 25,000 flows a core", passOnCore, sendOnCore, func(*dual) {}})
}

// dual makes a router with two LANs and a contender.
func (b *bench) dual(name string) *dual {
	b.tb.Helper()
	r := newRig(b.tb)
	d := &dual{name: name, bare: name == nameXDPTx}
	for i, half := range []*half{{rig: r}, {rig: r.beside(secondLAN)}} {
		clock, err := measure.NewClock((b.cpu + i) % runtime.NumCPU())
		b.must("find a CPU", err)
		half.clock = clock
		d.halves = append(d.halves, half)
	}
	lans := []segment{firstLAN, secondLAN}
	switch name {
	case nameXDPTx:
		for _, h := range d.halves {
			h.bareTransmit()
		}
	case nameHairXDP:
		r.pins = r.hairpin("xdp", hairpinOptions{lans: lans}).Dir
	case nameHairTC:
		r.pins = r.hairpin("tc", hairpinOptions{lans: lans}).Dir
	case nameNftables:
		r.nftables(lans...)
	}
	return d
}

// coreRace compares two CPUs with one CPU, for each contender. One CPU alone is the mean of both CPUs, one after the other.
func (b *bench) coreRace(list []*dual, w work) {
	var duels []duel
	for _, d := range list {
		duels = append(duels, duel{
			one:  &task{d.name, func() float64 { return b.together(w, d, d.halves) }},
			than: &task{d.name, func() float64 { return (b.together(w, d, d.halves[:1]) + b.together(w, d, d.halves[1:])) / 2 }},
		})
	}
	two, one := b.duels("two cores, "+w.what, b.rounds(12, 6), duels)
	for i, d := range list {
		ratio := outcome{two[i], one[i]}.inverse()
		failed := func(rate float64) bool { return rate == 0 }
		both, alone := slices.DeleteFunc(two[i], failed), slices.DeleteFunc(one[i], failed)
		b.report.sample(w.what+", one core", d.name, "1/s", alone)
		b.report.sample(w.what+", two cores", d.name, "1/s", both)
		b.report.add(known(fmt.Sprintf("%s, two cores against one, %s", w.what, d.name), "x", ratio,
			fmt.Sprintf("%.0f/s, one core %.0f/s", measure.SpreadOf(both).Median, measure.SpreadOf(alone).Median)))
	}
}

// together does the work of these halves at the same time, and returns the sum of their rates, each per second of its own CPU's time.
// 0: in three attempts, the halves were at work together for too small a part of the time.
func (b *bench) together(w work, d *dual, halves []*half) (rate float64) {
	b.tb.Helper()
	for range 3 {
		for _, h := range halves {
			b.must("prepare "+w.what, w.prepare(d, h))
		}
		rates, spans := make([]float64, len(halves)), make([]span, len(halves))
		errs := make([]error, len(halves))
		var ready, done sync.WaitGroup
		ready.Add(len(halves))
		for i, h := range halves {
			done.Go(func() { rates[i], spans[i], errs[i] = h.measure(&ready, func() (uint64, error) { return w.run(d, h) }) })
		}
		done.Wait()
		b.must(d.name+": "+w.what, errors.Join(errs...))
		w.after(d)
		if shared(spans) < leastTogether {
			continue
		}
		for _, r := range rates {
			rate += r
		}
		return rate
	}
	return 0
}

// span is a time of work.
type span struct{ start, end time.Time }

// shared returns the part of the longest span in which all spans run.
func shared(spans []span) float64 {
	start, end, longest := spans[0].start, spans[0].end, time.Duration(0)
	for _, s := range spans {
		if s.start.After(start) {
			start = s.start
		}
		if s.end.Before(end) {
			end = s.end
		}
		longest = max(longest, s.end.Sub(s.start))
	}
	return float64(end.Sub(start)) / float64(longest)
}

// measure waits until all halves are ready, and returns the rate of fn per second of CPU time.
func (h *half) measure(ready *sync.WaitGroup, fn func() (uint64, error)) (rate float64, s span, err error) {
	var count uint64
	arrive := sync.OnceFunc(ready.Done)
	defer arrive() // also after an error: the other half waits
	took, err := h.clock.Time(func() (err error) {
		arrive()
		ready.Wait()
		s.start = time.Now()
		count, err = fn()
		s.end = time.Now()
		return err
	})
	if err != nil {
		return 0, s, err
	}
	h.guess = float64(took.CPU.Nanoseconds()) / float64(count)
	return float64(count) / took.CPU.Seconds(), s, nil
}

func nothing(*dual, *half) error { return nil }

func openOnCore(d *dual, h *half) (uint64, error) {
	opened, err := h.openFrom(&h.next, coreFlows, true)
	if err == nil && opened < coreFlows*99/100 {
		err = fmt.Errorf("of %d connections %d opened", coreFlows, opened)
	}
	return opened, err
}

// stream returns the stream of a half's established connections.
func (h *half) stream(d *dual) traffic.Stream {
	return (&entrant{contender{bare: d.bare}, h.rig}).stream(course{hairpinned, toServer, coreFlows})
}

// passOnCore sends one packet of each flow before a slice, for the reason that nanoseconds tells.
func passOnCore(d *dual, h *half) error {
	_, err := h.clock.Time(func() error {
		_, err := h.send(hairpinned, toServer, h.stream(d), coreFlows)
		return err
	})
	return err
}

func sendOnCore(d *dual, h *half) (uint64, error) {
	count := coreFlows
	if h.guess > 0 {
		count = max(count, int(float64(coreSlice)/h.guess))
	}
	arrived, err := h.again(hairpinned, toServer, count)
	if err == nil && arrived[0] < uint64(count)*999/1000 {
		err = fmt.Errorf("of %d packets %d arrived", count, arrived[0])
	}
	return arrived[0], err
}
