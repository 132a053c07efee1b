// SPDX-License-Identifier: Apache-2.0

package program

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"hairpin/maps/entries"
	"hairpin/maps/layout"
	"hairpin/maps/mapstest"
	"hairpin/test/frames"
	"hairpin/test/rig"
)

// age makes every connection idle for longer.
func (b *bench) age(tb testing.TB, by time.Duration) {
	tb.Helper()
	var all []layout.Entry
	if err := entries.Each(&b.Objects, func(e *layout.Entry) { all = append(all, *e) }); err != nil {
		tb.Fatal(err)
	}
	for _, entry := range all {
		entry.Seen -= uint32(by.Milliseconds())
		if err := mapstest.Entries(&b.Objects).Update(&entry, ebpf.UpdateExist); err != nil {
			tb.Fatal(err)
		}
	}
}

// idle returns the number of seconds since the last packet of the only connection.
func (b *bench) idle(tb testing.TB) uint64 {
	tb.Helper()
	list := b.Connections(tb)
	if len(list) != 1 {
		tb.Fatalf("%d connections, want one: %+v", len(list), list)
	}
	return list[0].IdleSeconds
}

// TestRandomPacketsRefreshNothing is row 212: of FINs and ACKs with the right tuple and random numbers one of
// 2^30 hits, where both windows are 2^17 of 2^32 numbers. A program that looks more closely only now and then
// may let pass one of 2^17: of 40,000 a third of one. More than three of them happen once in a thousand.
func TestRandomPacketsRefreshNothing(t *testing.T) {
	const rounds, packets, allowed = 100, 400, 3
	const aged = 100
	b := newBench6(t)
	playTwin(t, b, func(t *testing.T, c twinCase) []step {
		f := c.flow("from the Internet", false)
		// The last packet of the handshake is played, the random ones before it are not.
		steps := c.opened(f)
		last := c.in(f, middle, frames.Payload("data"))
		last.before = func() {
			random, hits := rand.New(rand.NewPCG(212, 0)), 0
			for range rounds {
				b.age(t, aged*time.Second)
				if err := c.throwRandom(f, random, packets); err != nil {
					t.Fatal(err)
				}
				if b.idle(t) < aged {
					hits++
				}
			}
			if hits > allowed {
				t.Errorf("a packet of random numbers refreshed the connection in %d of %d rounds", hits, rounds)
			}
			wantState(t, b, "after random FINs, ACKs and SYN/ACKs", "established")
			b.age(t, aged*time.Second)
		}
		steps = append(steps, last.is("established"))
		refreshed := c.back(f, frames.TCP("A", rig.ServerISN+1, rig.ClientISN+5)).is("established")
		refreshed.before = func() {
			if idle := b.idle(t); idle >= aged {
				t.Errorf("a packet of the connection leaves it idle for %d seconds", idle)
			}
		}
		return append(steps, refreshed)
	})
}

// throwRandom sends FINs, ACKs and SYN/ACKs of random numbers from both sides through both programs.
func (c twinCase) throwRandom(f twinFlow, random *rand.Rand, count int) error {
	x := &executor{b: c.b, context: [2][]byte{make([]byte, 192), make([]byte, 24)}, out: [2][]byte{make([]byte, 2048), make([]byte, 2048)}}
	return c.b.Router.Do(func() error {
		for i := range count {
			change, at := frames.TCP([]string{"A", "FA", "PA", "SA"}[i/2%4], random.Uint32(), random.Uint32()), f.At
			data, _ := f.inBytes(change)
			if i&1 != 0 {
				data, _ = f.backBytes(change)
				at = c.b.LAN
			}
			for _, program := range []int{1, 0} {
				got, err := x.run(program, at, data)
				if err != nil {
					return err
				}
				if program == 0 && got.Code != rig.TCRedirect && got.Code != rig.TCShot && got.Code != rig.TCUnspec {
					return errors.New(fmt.Sprint("tc answers ", int32(got.Code)))
				}
			}
		}
		return nil
	})
}
