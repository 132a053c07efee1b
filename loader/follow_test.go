// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hairpin/test/lab"
)

// patience is the longest wait for an event.
const patience = 5 * time.Second

// listed returns the Link of an interface from Links.
func (r *router) listed(dev string) (found Link) {
	r.t.Helper()
	r.do("list links", func() error {
		links, err := Links()
		if !slices.IsSortedFunc(links, func(a, b Link) int { return a.Index - b.Index }) {
			r.t.Errorf("links are not by index: %+v", links)
		}
		for _, l := range links {
			if l.Name == dev {
				found = l
			}
		}
		return err
	})
	return found
}

func TestLinks(t *testing.T) {
	r := newRouter(t)
	r.Address("wan0", "203.0.113.2/24", "203.0.113.3/32")
	r.do("set MTU", func() error {
		dev, err := netlink.LinkByName("wan0")
		if err != nil {
			return err
		}
		return netlink.LinkSetMTU(dev, 1400)
	})
	l := r.listed("wan0")
	if l.Index != r.Index("wan0") || !l.Up || l.MTU != 1400 || l.HardwareAddr.String() != r.HardwareAddr("wan0").String() {
		t.Errorf("wan0: %+v", l)
	}
	want := []netip.Prefix{netip.MustParsePrefix("203.0.113.2/24"), netip.MustParsePrefix("203.0.113.3/32")}
	if !slices.Equal(l.Addresses, want) {
		t.Errorf("addresses %v, want %v", l.Addresses, want)
	}
	if lo := r.listed("lo"); lo.Index == 0 || !slices.Contains(lo.Addresses, netip.MustParsePrefix("127.0.0.1/8")) {
		t.Errorf("lo: %+v", lo)
	}
	r.do("set down", func() error {
		dev, err := netlink.LinkByName("wan0")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(dev)
	})
	if r.listed("wan0").Up {
		t.Error("wan0 is down and listed as up")
	}
	if gone := r.listed("wan9"); gone.Index != 0 {
		t.Errorf("no such interface: %+v", gone)
	}
}

func TestRouteTo(t *testing.T) {
	r := newRouter(t)
	r.Address("wan0", "203.0.113.2/24")
	r.Address("wan1", "198.51.100.2/24")
	r.Route("wan1", "192.0.2.0/24", "198.51.100.1", "")
	r.do("find routes", func() error {
		for target, dev := range map[string]string{"203.0.113.9": "wan0", "192.0.2.1": "wan1", "203.0.113.2": "lo"} {
			if index, err := RouteTo(netip.MustParseAddr(target)); index != r.Index(dev) || err != nil {
				t.Errorf("%s: interface %d, %v, want %s, %d", target, index, err, dev, r.Index(dev))
			}
		}
		if index, err := RouteTo(netip.MustParseAddr("10.0.0.1")); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("no route: interface %d, %v", index, err)
		}
		return nil
	})
}

// TestLinksXDPTransmit: a veth transmits redirected frames while its peer has GRO or an XDP program.
func TestLinksXDPTransmit(t *testing.T) {
	r := newRouter(t)
	if r.listed("wan1").XDPTransmit {
		t.Error("the peer has neither GRO nor XDP")
	}
	r.Offload("wan0", lab.ReceiveOffload, true)
	if !r.listed("wan1").XDPTransmit {
		t.Error("the peer has GRO")
	}
	if r.listed("lan1").XDPTransmit {
		t.Error("the peer of another interface has neither")
	}
	r.attach(r.load(Options{}), "lan0", ModeXDPUntagged)
	if !r.listed("lan1").XDPTransmit {
		t.Error("the peer has XDP")
	}
}

// followed reads the events of Follow.
type followed struct {
	t      *testing.T
	events <-chan Event
	cancel context.CancelFunc
}

func (r *router) follow() *followed {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r.t.Cleanup(cancel)
	f := &followed{t: r.t, cancel: cancel}
	r.do("follow", func() (err error) {
		f.events, err = Follow(ctx)
		return err
	})
	return f
}

// await waits for an event that satisfies want.
func (f *followed) await(what string, want func(Event) bool) {
	f.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case event, open := <-f.events:
			if !open {
				f.t.Fatalf("%s: the channel is closed", what)
			}
			if want(event) {
				return
			}
		case <-deadline:
			f.t.Fatalf("%s: no event within %v", what, patience)
		}
	}
}

// drain reads until no event has come for a while, so that the next event has a new cause.
func (f *followed) drain() {
	f.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case <-f.events:
		case <-time.After(150 * time.Millisecond):
			return
		case <-deadline:
			f.t.Fatal("events do not end")
		}
	}
}

func TestFollow(t *testing.T) {
	r := newRouter(t)
	r.Address("lan0", "192.168.1.1/24")
	f := r.follow()
	f.await("the first event", func(e Event) bool { return e == Event{Links: true, Routes: true} })

	links := func(e Event) bool { return e.Links }
	routes := func(e Event) bool { return e == Event{Routes: true} }
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "new0"
	steps := []struct {
		what string
		do   func()
		want func(Event) bool
	}{
		{"link added", func() {
			r.do("add link", func() error { return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "new1"}) })
		}, links},
		{"link up", func() { r.Up("new0") }, links},
		{"link deleted", func() { r.Unplug("new0") }, links},
		{"address added", func() { r.Address("wan0", "203.0.113.2/24") }, links},
		{"address deleted", func() { r.Unaddress("wan0", "203.0.113.2/24") }, links},
		{"route added", func() { r.Route("lan0", "198.51.100.0/24", "192.168.1.2", "") }, routes},
		{"route deleted", func() { r.Run("ip", "route", "del", "198.51.100.0/24") }, routes},
		{"neighbour added", func() {
			r.Run("ip", "neigh", "add", "192.168.1.9", "lladdr", "02:00:00:00:00:09", "dev", "lan0")
		}, routes},
		{"rule added", func() { r.Run("ip", "rule", "add", "from", "192.168.1.7", "lookup", "main") }, routes},
		{"rp_filter of an interface", func() { r.Sysctl("net/ipv4/conf/wan0/rp_filter", "2") }, links},
		{"rp_filter of all", func() { r.Sysctl("net/ipv4/conf/all/rp_filter", "1") }, links},
		{"XDP features", func() { r.Offload("wan0", lab.ReceiveOffload, true) }, links},
	}
	for _, step := range steps {
		f.drain()
		step.do()
		f.await(step.what, step.want)
	}
}

// TestFollowCoalesces: a busy receiver gets one event for all changes.
func TestFollowCoalesces(t *testing.T) {
	r := newRouter(t)
	r.Address("lan0", "192.168.1.1/24")
	f := r.follow()
	f.drain()
	for range 200 {
		r.Route("lan0", "198.51.100.0/24", "192.168.1.2", "")
		r.Route("lan0", "198.51.100.0/24", "192.168.1.3", "")
	}
	count := 0
	for quiet := false; !quiet; {
		select {
		case <-f.events:
			count++
		case <-time.After(150 * time.Millisecond):
			quiet = true
		}
	}
	// Expected are an event that waited for the receiver, an event for changes during the delivery, and a few
	// events for late messages of the kernel.
	if count == 0 || count > 5 {
		t.Errorf("%d events for 400 changes that nobody read", count)
	}
}

// TestFollowEnds: the channel is closed after the context ends, also without a reader.
func TestFollowEnds(t *testing.T) {
	f := newRouter(t).follow()
	f.cancel()
	lab.Eventually(t, patience, func() error {
		for range f.events { // ends when the channel is closed
		}
		return nil
	})
}

func TestClassify(t *testing.T) {
	message := func(kind uint16, data ...byte) syscall.NetlinkMessage {
		return syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind}, Data: data}
	}
	both, routes := Event{Links: true, Routes: true}, Event{Routes: true}
	for _, c := range []struct {
		name    string
		message syscall.NetlinkMessage
		want    Event
	}{
		{"link", message(unix.RTM_DELLINK), both},
		{"address", message(unix.RTM_DELADDR), both},
		{"rp_filter", message(unix.RTM_NEWNETCONF), Event{Links: true}},
		{"route", message(unix.RTM_NEWROUTE), routes},
		{"rule", message(unix.RTM_DELRULE), routes},
		{"next hop", message(unix.RTM_NEWNEXTHOP), routes},
		{"neighbour", message(unix.RTM_NEWNEIGH, unix.AF_INET), routes},
		{"neighbour without a family", message(unix.RTM_NEWNEIGH), routes},
		{"bridge port", message(unix.RTM_NEWNEIGH, unix.AF_BRIDGE), Event{}},
		{"end of a list", message(unix.NLMSG_DONE), Event{}},
		{"error", message(unix.NLMSG_ERROR), Event{}},
	} {
		if got := classifyRoute(c.message); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
	// The netdev family may have any ID, also the number of a route message type.
	for _, kind := range []uint16{unix.NLMSG_MIN_TYPE, unix.RTM_NEWROUTE, unix.RTM_NEWRULE, unix.RTM_NEWNEIGH, 0x20f} {
		if got := classifyNetdev(message(kind, unix.AF_BRIDGE)); got != (Event{Links: true}) {
			t.Errorf("netdev family %d: %+v", kind, got)
		}
	}
	if got := classifyNetdev(message(unix.NLMSG_ERROR)); got != (Event{}) {
		t.Errorf("netdev error: %+v", got)
	}
}
