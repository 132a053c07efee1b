// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Event says what may have changed since the last one.
type Event struct {
	Links  bool // interfaces, their addresses, rp_filter, IPsec policies, or whether they take XDP frames
	Routes bool // routes, rules or neighbours
}

func (e Event) merge(other Event) Event {
	return Event{Links: e.Links || other.Links, Routes: e.Routes || other.Routes}
}

var everything = Event{Links: true, Routes: true}

const (
	// followInterval is the time from one event to the next: a routing daemon that installs a full
	// table makes twenty a second, not a million.
	followInterval = 50 * time.Millisecond
	// followBurst is how many events about links need not wait for it. A line that is dialled tells
	// of its link and its addresses one by one, and connections wait for the last.
	followBurst = 20
)

// Follow tells of changes in the network namespace until ctx ends, then closes the channel. What
// happens while the receiver is busy, or faster than 20 times a second, becomes one event; but up to
// 20 about links and addresses in a row are told at once. The first event says everything: a receiver
// that looks only then misses nothing. So does one after the kernel had more to tell than it could
// keep.
func Follow(ctx context.Context) (<-chan Event, error) {
	sources, err := subscribe()
	if err != nil {
		return nil, explain(fmt.Errorf("follow interfaces: %w", err))
	}
	return follow(ctx, sources), nil
}

// source is a socket that hears events, and what its messages mean. The number of a generic netlink
// family is given at boot, and may be that of a route message.
type source struct {
	*nl.NetlinkSocket
	classify func(syscall.NetlinkMessage) Event
}

// subscribe opens sockets that hear events and nothing else, so that no answer to a request is ever
// mixed with them.
func subscribe() ([]source, error) {
	route, err := nl.Subscribe(unix.NETLINK_ROUTE,
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_NEXTHOP, unix.RTNLGRP_IPV4_NETCONF)
	if err != nil {
		return nil, err
	}
	netdev, err := subscribeNetdev()
	if err != nil {
		route.Close()
		return nil, err
	}
	sources := []source{{route, classifyRoute}}
	policies, err := nl.Subscribe(unix.NETLINK_XFRM, nl.XFRMNLGRP_POLICY)
	if err == nil {
		sources = append(sources, source{policies, classifyPolicy})
	} else if !errors.Is(err, unix.EPROTONOSUPPORT) {
		route.Close()
		if netdev != nil {
			netdev.Close()
		}
		return nil, err
	}
	if netdev != nil {
		sources = append(sources, source{netdev, classifyNetdev})
	}
	return sources, nil
}

// subscribeNetdev returns nil if the kernel does not tell of XDP features.
func subscribeNetdev() (*nl.NetlinkSocket, error) {
	family, err := netlink.GenlFamilyGet(netdevFamily)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, group := range family.Groups {
		if group.Name != netdevGroup {
			continue
		}
		socket, err := nl.Subscribe(unix.NETLINK_GENERIC)
		if err != nil {
			return nil, err
		}
		err = unix.SetsockoptInt(socket.GetFd(), unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(group.ID))
		if err != nil {
			socket.Close()
			return nil, err
		}
		return socket, nil
	}
	return nil, nil
}

// eventQueue gathers what the sockets report until somebody takes it.
type eventQueue struct {
	mutex   sync.Mutex
	pending Event
	wake    chan struct{} // holds one: there is something pending
	urgent  chan struct{} // holds one: it cannot wait
}

func newEventQueue() *eventQueue {
	return &eventQueue{wake: make(chan struct{}, 1), urgent: make(chan struct{}, 1)}
}

// add notes what may have changed.
func (q *eventQueue) add(e Event) { q.merge(e, false) }

// addReported adds what the kernel reported. Links and addresses are urgent. Events that the kernel had no room for are
// not urgent: there will be more of them.
func (q *eventQueue) addReported(e Event) { q.merge(e, e.Links) }

func (q *eventQueue) merge(e Event, urgent bool) {
	if e == (Event{}) {
		return
	}
	q.mutex.Lock()
	defer q.mutex.Unlock()
	q.pending = q.pending.merge(e)
	if urgent {
		signalOnce(q.urgent)
	}
	signalOnce(q.wake)
}

func signalOnce(flag chan struct{}) {
	select {
	case flag <- struct{}{}:
	default:
	}
}

func (q *eventQueue) take() Event {
	q.mutex.Lock()
	defer q.mutex.Unlock()
	e := q.pending
	q.pending = Event{}
	select {
	case <-q.urgent:
	default:
	}
	return e
}

func follow(ctx context.Context, sources []source) <-chan Event {
	q := newEventQueue()
	q.add(everything)
	events := make(chan Event)
	var readers sync.WaitGroup
	for _, from := range sources {
		readers.Go(func() { q.read(ctx, from) })
	}
	go func() {
		q.deliver(ctx, events)
		for _, from := range sources {
			from.Close()
		}
		readers.Wait()
		close(events)
	}()
	return events
}

// deliver hands events on until ctx ends.
func (q *eventQueue) deliver(ctx context.Context, events chan<- Event) {
	var spentUntil time.Time // until then, urgent events have used up their burst
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.wake:
		}
		event := q.take()
		if event == (Event{}) {
			continue // went out with the event before
		}
		select {
		case <-ctx.Done():
			return
		case events <- event:
		}
		urgent := q.urgent
		if time.Until(spentUntil) > (followBurst-1)*followInterval {
			urgent = nil
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(followInterval):
		case <-urgent:
			spentUntil = latest(spentUntil, time.Now()).Add(followInterval)
		}
	}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// read gathers from one socket until it is closed.
func (q *eventQueue) read(ctx context.Context, from source) {
	for {
		messages, sender, err := from.Receive()
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			// ENOBUFS: the kernel dropped messages; the socket works on. Of any other error as
			// little is known.
			q.add(everything)
			if !errors.Is(err, unix.ENOBUFS) && !pause(ctx) {
				return
			}
			continue
		}
		if sender.Pid != nl.PidKernel {
			continue
		}
		for _, message := range messages {
			q.addReported(from.classify(message))
		}
	}
}

// pause keeps a socket that fails at once from taking the processor. It reports whether to go on.
func pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(time.Second):
		return true
	}
}

// classifyRoute says what a message of the route family is about.
func classifyRoute(message syscall.NetlinkMessage) Event {
	switch message.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_NEWADDR, unix.RTM_DELADDR:
		// A route, its source or its MTU goes with them, and not always a message of its own.
		return everything
	case unix.RTM_NEWNETCONF:
		return Event{Links: true}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE, unix.RTM_NEWRULE, unix.RTM_DELRULE,
		unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		return Event{Routes: true}
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		if len(message.Data) > 0 && message.Data[0] == unix.AF_BRIDGE {
			// A bridge learnt a port; whom a packet goes to is the same.
			return Event{}
		}
		return Event{Routes: true}
	}
	return Event{}
}

// classifyPolicy says what a message about an IPsec policy is about.
func classifyPolicy(message syscall.NetlinkMessage) Event {
	if message.Header.Type < unix.NLMSG_MIN_TYPE {
		return Event{}
	}
	return Event{Links: true}
}

// classifyNetdev says what a message on the socket of the netdev family is about.
func classifyNetdev(message syscall.NetlinkMessage) Event {
	// The kernel gives numbers below to messages about messages.
	if message.Header.Type < unix.NLMSG_MIN_TYPE {
		return Event{}
	}
	return Event{Links: true}
}
