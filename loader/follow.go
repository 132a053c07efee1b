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

// Event says what may have changed since the last Event.
type Event struct {
	Links  bool // interfaces, their addresses, rp_filter, or their ability to transmit XDP frames
	Routes bool // routes, rules or neighbours
}

func (e Event) merge(other Event) Event {
	return Event{Links: e.Links || other.Links, Routes: e.Routes || other.Routes}
}

var everything = Event{Links: true, Routes: true}

const (
	// followInterval is the shortest time between two events. Without this limit, a routing daemon that
	// installs a full table would cause a million events.
	followInterval = 50 * time.Millisecond
	// followBurst is the number of link events that may come without the wait of followInterval. A dial-up
	// line reports its link and each address separately, and connections wait for the last report.
	followBurst = 20
)

// Follow reports changes of the network namespace until ctx ends, then closes the channel. Changes that
// happen while the receiver is busy are merged into one event. Events are at least 50 ms apart; only events
// of links and addresses need not wait, up to 20 in a row. The first event has every field set: a receiver
// that reads the state only after events misses no change. Every field is also set after the kernel dropped
// messages.
func Follow(ctx context.Context) (<-chan Event, error) {
	sources, err := subscribe()
	if err != nil {
		return nil, explain(fmt.Errorf("follow interfaces: %w", err))
	}
	return follow(ctx, sources), nil
}

// source is a netlink socket with the function that classifies its messages. Each socket needs its own
// function: the ID of a generic netlink family is assigned at boot, and may equal the type of a route
// message.
type source struct {
	*nl.NetlinkSocket
	classify func(syscall.NetlinkMessage) Event
}

// subscribe opens sockets that only receive events, so that answers to requests never mix with events.
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
	if netdev != nil {
		sources = append(sources, source{netdev, classifyNetdev})
	}
	return sources, nil
}

// subscribeNetdev opens a socket for changes of XDP features. It returns nil if the kernel does not report
// them.
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

// eventQueue merges the events of all sockets until deliver takes them.
type eventQueue struct {
	mutex   sync.Mutex
	pending Event
	wake    chan struct{} // has one element while an event is pending
	urgent  chan struct{} // has one element while the pending event must not wait
}

func newEventQueue() *eventQueue {
	return &eventQueue{wake: make(chan struct{}, 1), urgent: make(chan struct{}, 1)}
}

// add merges e into the pending event.
func (q *eventQueue) add(e Event) { q.merge(e, false) }

// addReported merges an event that the kernel reported. Events of links and addresses are urgent. The event
// for dropped messages (add) is not urgent: more messages will follow.
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

// deliver sends events to the channel until ctx ends. Urgent events use a token bucket: each moves spentUntil on by
// followInterval. If spentUntil is followBurst-1 intervals ahead of now, urgent events must wait, too.
func (q *eventQueue) deliver(ctx context.Context, events chan<- Event) {
	var spentUntil time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.wake:
		}
		event := q.take()
		if event == (Event{}) {
			continue // the event before included this change
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

// read merges the messages of one socket until the socket is closed.
func (q *eventQueue) read(ctx context.Context, from source) {
	for {
		messages, sender, err := from.Receive()
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			// ENOBUFS: the kernel dropped messages, but the socket still works. After any other error,
			// messages may be lost, too.
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

// pause waits a second, so that a socket that fails at once does not use a whole CPU. It returns false when
// ctx ends.
func pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(time.Second):
		return true
	}
}

// classifyRoute returns the Event for a message of the route family.
func classifyRoute(message syscall.NetlinkMessage) Event {
	switch message.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_NEWADDR, unix.RTM_DELADDR:
		// These messages can change a route, its source or its MTU, and not always with a message for the
		// route.
		return everything
	case unix.RTM_NEWNETCONF:
		return Event{Links: true}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE, unix.RTM_NEWRULE, unix.RTM_DELRULE,
		unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		return Event{Routes: true}
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		if len(message.Data) > 0 && message.Data[0] == unix.AF_BRIDGE {
			// A bridge learned the port of a MAC address. The neighbours of IP packets stay the same.
			return Event{}
		}
		return Event{Routes: true}
	}
	return Event{}
}

// classifyNetdev returns the Event for a message of the netdev family.
func classifyNetdev(message syscall.NetlinkMessage) Event {
	// Smaller types are control messages of netlink itself, for example NLMSG_ERROR.
	if message.Header.Type < unix.NLMSG_MIN_TYPE {
		return Event{}
	}
	return Event{Links: true}
}
