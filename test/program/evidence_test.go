// SPDX-License-Identifier: Apache-2.0

package program

import (
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hairpin/maps/entries"
	"hairpin/maps/layout"
	"hairpin/maps/mapstest"
	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

// evidenceBefore is the evidence of a connection at the start of a case, in seconds.
const evidenceBefore = 5

// TestEvidence: evidence shows that both sides want a connection. A second counts if both sides send in it, or if the server
// sends twice; any second may be one. TCP needs no evidence. In its first 16 s every second of a connection is looked at; later,
// the 8 s after each piece of evidence are not.
func TestEvidence(t *testing.T) {
	for name, test := range map[string]struct {
		age, since     uint32 // seconds: of the connection, and since its last evidence
		client         bool   // the client sends, too
		answers, gains int
	}{
		"both, in the first seconds":               {age: 10, since: 1, client: true, answers: 1, gains: 1},
		"the server twice, in the first seconds":   {age: 10, since: 1, answers: 2, gains: 1},
		"the server once":                          {age: 10, since: 1, answers: 1, gains: 0},
		"both, not asked yet":                      {age: 100, since: 5, client: true, answers: 3, gains: 0},
		"both, in time":                            {age: 100, since: 8, client: true, answers: 1, gains: 8},
		"the server twice, in time":                {age: 100, since: 8, answers: 2, gains: 8},
		"both, many times in one second":           {age: 100, since: 8, client: true, answers: 5, gains: 8},
		"both, 20 s after the last":                {age: 100, since: 20, client: true, answers: 1, gains: 1},
		"both, 23 s after the last":                {age: 100, since: 23, client: true, answers: 1, gains: 1},
		"the server once, a minute after the last": {age: 100, since: 60, answers: 1, gains: 0},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, rig.Forwards...)
			f := b.Flows(true, 20001)["from the Internet"]
			f.Send(t, true, frames.Payload("question"))
			f.Send(t, false, frames.Payload("answer"))
			within(t, func(second uint32) {
				b.setEvidence(t, second-test.age, second-test.since)
				if test.client {
					f.Send(t, true, frames.Payload("more"))
				}
				for range test.answers {
					f.Send(t, false, frames.Payload("more"))
				}
			})
			var gained []int
			lab.Must(entries.Each(&b.Objects, func(e *layout.Entry) {
				if e.Opener() {
					gained = append(gained, int(e.End)-evidenceBefore)
				}
			}))
			if len(gained) != 1 || gained[0] != test.gains {
				t.Errorf("evidence of %v, want of %d", gained, test.gains)
			}
		})
	}
}

// setEvidence makes every connection of this age, its client silent for long, with its last evidence in this second.
func (b *bench) setEvidence(tb testing.TB, created, last uint32) {
	tb.Helper()
	var all []layout.Entry
	lab.Must(entries.Each(&b.Objects, func(e *layout.Entry) { all = append(all, *e) }))
	for _, e := range all {
		e.Created, e.Ack, e.End = created, 0, last
		if e.Opener() {
			e.End = evidenceBefore
			e.Seen -= uint32((time.Minute).Milliseconds())
		}
		lab.Must(mapstest.Entries(&b.Objects).Update(&e, ebpf.UpdateExist))
	}
}

// within does something within one second of CLOCK_MONOTONIC, and does it again if the second has passed meanwhile.
func within(tb testing.TB, do func(second uint32)) {
	tb.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		var before, after unix.Timespec
		lab.Must(unix.ClockGettime(unix.CLOCK_MONOTONIC, &before))
		do(uint32(before.Sec))
		lab.Must(unix.ClockGettime(unix.CLOCK_MONOTONIC, &after))
		// The datapath's clock is behind by up to a tick.
		if tick := 20 * time.Millisecond; after.Sec == before.Sec && before.Nsec > tick.Nanoseconds() {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatal("no second was long enough")
		}
	}
}
