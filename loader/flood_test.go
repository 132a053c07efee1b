// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vishvananda/netlink"

	"hairpin/test/lab"
)

// TestFollowIsBounded: during a flood of changes the receiver gets at most 20 events a second.
func TestFollowIsBounded(t *testing.T) {
	r := newRouter(t)
	f := r.follow()
	counted := make(chan int)
	go func() {
		count := 0
		for range f.events {
			count++
		}
		counted <- count
	}()
	index := r.Index("wan0")
	start := time.Now()
	r.do("change a neighbour", func() error {
		for n := 0; time.Since(start) < time.Second; n++ {
			err := netlink.NeighSet(&netlink.Neigh{
				LinkIndex: index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT,
				IP:           net.IPv4(10, 9, 9, 9),
				HardwareAddr: net.HardwareAddr{2, 0, 0, byte(n >> 16), byte(n >> 8), byte(n)},
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	f.cancel()
	count := <-counted
	if most := int(time.Since(start)/followInterval) + 2; count > most || count < 2 {
		t.Errorf("%d events, want 2 to %d", count, most)
	}
}

// TestLinksDoNotWait: events of links and addresses come at once, but not without limit.
func TestLinksDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, events := newEventQueue(), make(chan Event)
		go q.deliver(t.Context(), events)
		waits := func(what string, e Event, want time.Duration) {
			t.Helper()
			synctest.Wait()
			start := time.Now()
			q.addReported(e)
			if got := <-events; got != e {
				t.Errorf("%s: told %+v, want %+v", what, got, e)
			}
			if took := time.Since(start); took != want {
				t.Errorf("%s is told after %v, want %v", what, took, want)
			}
		}
		routes := Event{Routes: true}
		waits("the first event", routes, 0)
		waits("the next route", routes, followInterval)
		for range followBurst {
			waits("a link", everything, 0)
		}
		waits("one link too many", everything, followInterval)
		waits("a route after links", routes, followInterval)
		time.Sleep(time.Hour)
		for range followBurst {
			waits("a link after a pause", everything, 0)
		}
	})
}

// TestFollowSurvivesAnOverrun: after dropped messages every field of the event is set, and the socket still
// works.
func TestFollowSurvivesAnOverrun(t *testing.T) {
	r := newRouter(t)
	var sources []source
	r.do("overrun a socket", func() (err error) {
		if sources, err = subscribe(); err != nil {
			return err
		}
		return errors.Join(sources[0].SetReceiveBufferSize(1, false), addRules(200))
	})
	defer func() {
		for _, s := range sources {
			s.Close()
		}
	}()
	q := newEventQueue()
	go q.read(within(t, time.Minute), sources[0])
	q.awaits(t, everything)
	q.take()
	lab.Cable(r.Host, "c", r.Host, "d")
	q.awaits(t, everything)
}

// addRules makes rules. An interface would also cause events later.
func addRules(count int) error {
	for n := range count {
		rule := netlink.NewRule()
		rule.Priority, rule.Table = 1000+n, 100
		if err := netlink.RuleAdd(rule); err != nil {
			return err
		}
	}
	return nil
}

// awaits reads events until all fields in want were set.
func (q *eventQueue) awaits(t *testing.T, want Event) {
	t.Helper()
	var got Event
	for deadline := time.After(10 * time.Second); got != want; {
		select {
		case <-q.wake:
			got = got.merge(q.take())
		case <-deadline:
			t.Fatalf("told %+v, want %+v", got, want)
		}
	}
}

func TestFollowLeavesNoSocket(t *testing.T) {
	r := newRouter(t)
	round := func() {
		f := r.follow()
		f.cancel()
		for range f.events {
		}
	}
	round()
	before := openFiles(t)
	for range 20 {
		round()
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d files open, %d before", after, before)
	}
}

// TestNoDescriptorStays: every file descriptor that the loader opens is closed.
func TestNoDescriptorStays(t *testing.T) {
	r := newRouter(t)
	round := func() {
		d := r.load(Options{})
		r.attach(d, "wan0", ModeXDPUntagged)
		if err := r.upgrade(d); err != nil {
			t.Fatal(err)
		}
		r.attachments(d)
		r.detach(d, "wan0")
		d.Close()
	}
	round() // the library keeps a few descriptors open
	before := openFiles(t)
	for range 5 {
		round()
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d files open, %d before", after, before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
