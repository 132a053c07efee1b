// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"time"

	"hairpin/bpf"
)

// events are the datapath's counts of what happens to connections, by conn_event.
type events [bpf.HairpinConnEventEVENTS]uint64

// present is how many connections are past their handshake, those that are over
// but not yet taken out included.
func (e *events) present() int64 {
	return int64(e[bpf.HairpinConnEventEVENT_ESTABLISHED] - e[bpf.HairpinConnEventEVENT_CLOSED])
}

// opening is how many half-open connections there are, those that are over or past their time but not yet
// taken out included.
func (e *events) opening() int64 {
	return int64(e[bpf.HairpinConnEventEVENT_OPENED] - e[bpf.HairpinConnEventEVENT_ESTABLISHED] -
		e[bpf.HairpinConnEventEVENT_ABANDONED] - e[bpf.HairpinConnEventEVENT_EVICTED])
}

// events sums the counts over the CPUs.
func (t *Tables) events() (*events, error) {
	sums := new(events)
	for event := range sums {
		var cpus []uint64
		if err := t.objs.ConnEvents.Lookup(uint32(event), &cpus); err != nil {
			return nil, fmt.Errorf("read connection events: %w", err)
		}
		for _, count := range cpus {
			sums[event] += count
		}
	}
	return sums, nil
}

// tally is what a walk of the connections found, and the datapath's counts from
// just before it: what these have become says what has changed since. Each walk
// starts anew, so a count that went astray does not last. Nil stands for no walk
// yet, when the counts are all there is.
type tally struct {
	halfOpen, established, closing int64
	events                         *events
	forwards                       map[stamp]forwardTally
}

type forwardTally struct {
	halfOpen, others int64
	stats            Stats
}

// tally walks the connections. What opens or ends during the walk may be counted twice or not at all, so
// a short one is done again, a few times at most, until nothing did.
func (t *Tables) tally() (*tally, error) {
	const walks, short = 3, 10 * time.Millisecond
	start := time.Now()
	for walk := 1; ; walk++ {
		found, err := t.walk()
		if err != nil {
			return nil, err
		}
		after, err := t.events()
		if err != nil {
			return nil, err
		}
		if *after == *found.events || walk == walks || time.Since(start) > short {
			return found, nil
		}
	}
}

func (t *Tables) walk() (*tally, error) {
	doc, stats, err := t.runningStats()
	if err != nil && !errors.Is(err, ErrEmpty) {
		return nil, err
	}
	before, err := t.events()
	if err != nil {
		return nil, err
	}
	snap, err := t.snapshot()
	if err != nil {
		return nil, err
	}
	found := &tally{events: before, forwards: map[stamp]forwardTally{}}
	stamps := make(map[uint32]stamp, len(doc.Stamps))
	for _, s := range doc.Stamps {
		stamps[s.id] = s
		found.forwards[s] = forwardTally{stats: stats[s.id]}
	}
	for _, opener := range snap.openers {
		of := stamps[opener.Forward]
		forward := found.forwards[of]
		switch stateOf(&opener) {
		case StateHalfOpen:
			found.halfOpen++
			forward.halfOpen++
		case StateClosing:
			found.closing++
			forward.others++
		default:
			found.established++
			forward.others++
		}
		found.forwards[of] = forward
	}
	return found, nil
}

func (t *tally) establishedAt(now *events) int64 {
	if t == nil {
		return max(0, now.present())
	}
	return max(0, t.established+now.present()-t.events.present())
}

func (t *tally) halfOpenAt(now *events) int64 {
	if t == nil {
		return max(0, now.opening())
	}
	return max(0, t.halfOpen+now.opening()-t.events.opening())
}

// forwardAt is how many connections the forward has whose counters are now.
func (t *tally) forwardAt(s stamp, now Stats) int64 {
	if t == nil {
		return max(0, now.present())
	}
	forward := t.forwards[s]
	// What has been established since was most likely half-open in the walk.
	since := int64(now.Connections() - forward.stats.Connections())
	return max(0, forward.others+now.present()-forward.stats.present()) + max(0, forward.halfOpen-since)
}
