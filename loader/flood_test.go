// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"net"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// A receiver that listens to a flood is told 20 times a second at most.
func TestFollowIsBounded(t *testing.T) {
	newNetNS(t)
	index := mustVeth(t, "a", "b")
	ctx, cancel := context.WithCancel(context.Background())
	events, err := Follow(ctx)
	if err != nil {
		t.Fatal("follow:", err)
	}
	counted := make(chan int)
	go func() {
		count := 0
		for range events {
			count++
		}
		counted <- count
	}()
	start := time.Now()
	for n := 0; time.Since(start) < time.Second; n++ {
		err := netlink.NeighSet(&netlink.Neigh{
			LinkIndex: index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT,
			IP:           net.IPv4(10, 9, 9, 9),
			HardwareAddr: net.HardwareAddr{2, 0, 0, byte(n >> 16), byte(n >> 8), byte(n)},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	count := <-counted
	if most := int(time.Since(start)/followInterval) + 2; count > most || count < 2 {
		t.Errorf("%d events, want 2 to %d", count, most)
	}
}

// What the kernel could not keep may have been anything. The socket goes on.
func TestFollowSurvivesAnOverrun(t *testing.T) {
	newNetNS(t)
	sources, err := subscribe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, s := range sources {
			s.Close()
		}
	}()
	if err := sources[0].SetReceiveBufferSize(1, false); err != nil {
		t.Fatal(err)
	}
	// Rules, because an interface would have something to tell on its own.
	for n := range 200 {
		rule := netlink.NewRule()
		rule.Priority, rule.Table = 1000+n, 100
		if err := netlink.RuleAdd(rule); err != nil {
			t.Fatal(err)
		}
	}
	f := &follower{wake: make(chan struct{}, 1)}
	go f.read(within(t, time.Minute), sources[0])
	f.awaits(t, everything)
	f.take()
	mustVeth(t, "c", "d")
	f.awaits(t, everything)
}

// awaits gathers until all that is wanted was told.
func (f *follower) awaits(t *testing.T, want Event) {
	t.Helper()
	var got Event
	for deadline := time.After(10 * time.Second); got != want; {
		select {
		case <-f.wake:
			got = got.merge(f.take())
		case <-deadline:
			t.Fatalf("told %+v, want %+v", got, want)
		}
	}
}

func TestFollowLeavesNoSocket(t *testing.T) {
	newNetNS(t)
	before := openFiles(t)
	for range 20 {
		ctx, cancel := context.WithCancel(context.Background())
		events, err := Follow(ctx)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		for range events {
		}
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d files open, %d before", after, before)
	}
}

// Nothing that is opened on the way stays open.
func TestNoDescriptorStays(t *testing.T) {
	newNetNS(t)
	dir := newDir(t)
	mustVeth(t, "a", "b")
	round := func() {
		d, err := Load(Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		mustAttach(t, d, "a", ModeXDP)
		if err := d.Upgrade(); err != nil {
			t.Fatal(err)
		}
		mustAttachments(t, d)
		if err := d.Detach(mustLink(t, "a").Attrs().Index); err != nil {
			t.Fatal(err)
		}
		d.Close()
	}
	mustLoad(t, Options{Dir: dir}).Close()
	round() // the library keeps a few for good
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
