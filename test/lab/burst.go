// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Burst is a number of TCP connections to a TCP service of the lab.
type Burst struct {
	To     netip.AddrPort
	Count  int
	Over   time.Duration // the openings begin evenly over this time
	Within time.Duration // each has so long for its handshake and for one byte there and back
	// FastOpen sends the first request in the SYN (RFC 7413) where the client has a cookie.
	FastOpen bool
}

// dial is one connection of a burst.
type dial struct {
	fd    int
	begin time.Time
	state dialState
}

type dialState int

const (
	dialWaiting dialState = iota
	dialConnecting
	dialAsking
	dialOpened
	dialFailed
)

// OpenBurst opens the connections and returns how many opened: a byte went there and came back.
// All are closed at the end.
func (h *Host) OpenBurst(b Burst) (opened int, err error) {
	dials := make([]dial, b.Count)
	start := time.Now()
	defer func() {
		for _, d := range dials {
			if d.fd > 0 {
				unix.Close(d.fd)
			}
		}
	}()
	err = h.Do(func() error {
		for i := range dials {
			fd, err := streamSocket(b.To.Addr())
			if err != nil {
				return err
			}
			dials[i].fd, dials[i].begin = fd, start.Add(b.Over*time.Duration(i)/time.Duration(b.Count))
			if b.FastOpen {
				if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1); err != nil {
					return fmt.Errorf("ask for fast open: %w", err)
				}
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("%s: %w", h.Name, err)
	}
	for open := b.Count; open > 0; {
		if err := pollDials(dials); err != nil {
			return 0, fmt.Errorf("%s: %w", h.Name, err)
		}
		open, opened = 0, 0
		for i := range dials {
			b.follow(&dials[i])
			switch dials[i].state {
			case dialOpened:
				opened++
			case dialFailed:
			default:
				open++
			}
		}
	}
	return opened, nil
}

// pollDials waits until something may have happened, for 10 ms at most.
func pollDials(dials []dial) error {
	var polls []unix.PollFd
	for _, d := range dials {
		switch d.state {
		case dialConnecting:
			polls = append(polls, unix.PollFd{Fd: int32(d.fd), Events: unix.POLLOUT})
		case dialAsking:
			polls = append(polls, unix.PollFd{Fd: int32(d.fd), Events: unix.POLLIN})
		}
	}
	if _, err := unix.Poll(polls, 10); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for connections: %w", err)
	}
	return nil
}

// follow takes a connection as far as it goes without waiting.
func (b *Burst) follow(d *dial) {
	now := time.Now()
	if d.state == dialOpened || d.state == dialFailed || now.Before(d.begin) {
		return
	}
	if now.Sub(d.begin) > b.Within+b.lateness(d) {
		d.state = dialFailed
		return
	}
	if d.state == dialWaiting {
		d.begin = now
		d.state = dialConnecting
		if err := unix.Connect(d.fd, sockaddr(b.To)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
			d.state = dialFailed
			return
		}
	}
	if d.state == dialConnecting {
		// Until the connection is there, this says EAGAIN.
		_, err := unix.Write(d.fd, []byte{opEcho, 0, 0, 0, 0, 0, 0, 0, 1, 'x'})
		switch {
		case err == nil:
			d.state = dialAsking
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINPROGRESS):
			d.state = dialFailed
		}
	}
	if d.state == dialAsking {
		var back [1]byte
		n, err := unix.Read(d.fd, back[:])
		switch {
		case n == 1:
			d.state = dialOpened
		case err == nil || !errors.Is(err, unix.EAGAIN):
			d.state = dialFailed
		}
	}
}

// lateness is not held against a connection that a busy machine has not begun yet.
func (b *Burst) lateness(d *dial) time.Duration {
	if d.state == dialWaiting {
		return time.Hour
	}
	return 0
}

func streamSocket(addr netip.Addr) (int, error) {
	domain := unix.AF_INET
	if addr.Is6() {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("make socket: %w", err)
	}
	return fd, nil
}

func sockaddr(to netip.AddrPort) unix.Sockaddr {
	if to.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
	}
	return &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}
}

const (
	churnParallel = 256
	// churnPatience is after how long one that neither opens nor closes is given up.
	churnPatience = 2 * time.Second
)

// churner is one of the connections that a churn has at a time.
type churner struct {
	fd    int // 0: none
	begin time.Time
	asked bool
}

// ChurnTCP opens TCP connections to a TCP service of the lab from random addresses of networks that
// are the host's own. Each asks for its end, is closed by the server and then by the client. They
// come as fast as one thread can, until stop, which is told how many were closed by both sides,
// returns true. ChurnTCP returns that number, and how many others failed.
func (h *Host) ChurnTCP(from []netip.Prefix, to netip.AddrPort, stop func(done int) bool) (done, failed int, err error) {
	err = h.Do(func() error {
		poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err != nil {
			return fmt.Errorf("make epoll: %w", err)
		}
		defer unix.Close(poll)
		c := &churn{from: from, to: to, poll: poll}
		defer c.close()
		for !stop(c.done) {
			if err := c.round(); err != nil {
				return err
			}
		}
		done, failed = c.done, c.failed
		return nil
	})
	if err != nil {
		return 0, 0, fmt.Errorf("%s: open and close connections: %w", h.Name, err)
	}
	return done, failed, nil
}

type churn struct {
	from         []netip.Prefix
	to           netip.AddrPort
	poll         int
	conns        [churnParallel]churner
	events       [churnParallel]unix.EpollEvent
	done, failed int
	swept        time.Time
}

func (c *churn) close() {
	for i := range c.conns {
		c.drop(i)
	}
}

// round begins connections in every free place and takes those on where something happened.
func (c *churn) round() error {
	now := time.Now()
	if now.Sub(c.swept) > churnPatience/8 {
		c.swept = now
		for i := range c.conns {
			if c.conns[i].fd != 0 && now.Sub(c.conns[i].begin) > churnPatience {
				c.failed++
				c.drop(i)
			}
		}
	}
	for i := range c.conns {
		if c.conns[i].fd == 0 {
			if err := c.begin(i, now); err != nil {
				return err
			}
		}
	}
	n, err := unix.EpollWait(c.poll, c.events[:], 20)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait: %w", err)
	}
	for _, event := range c.events[:max(n, 0)] {
		c.follow(int(event.Fd))
	}
	return nil
}

func (c *churn) drop(i int) {
	if c.conns[i].fd != 0 {
		unix.Close(c.conns[i].fd)
	}
	c.conns[i] = churner{}
}

func (c *churn) begin(i int, now time.Time) error {
	fd, err := streamSocket(c.to.Addr())
	if err != nil {
		return err
	}
	c.conns[i] = churner{fd: fd, begin: now}
	src := randomAddr(c.from[rand.N(len(c.from))], rand.NewPCG(rand.Uint64(), 0))
	// The port is chosen when the destination is known, so that one address has 64512 for each.
	if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
		return fmt.Errorf("bind without port: %w", err)
	}
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(src, 0))); err != nil {
		return fmt.Errorf("bind to %v: %w", src, err)
	}
	switch err := unix.Connect(fd, sockaddr(c.to)); {
	case errors.Is(err, unix.EADDRNOTAVAIL): // every port of the address is in use
		c.failed++
		c.drop(i)
		return nil
	case err != nil && !errors.Is(err, unix.EINPROGRESS):
		return fmt.Errorf("connect: %w", err)
	}
	// The index of the connection, not its descriptor, is what comes back.
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(i)}
	if err := unix.EpollCtl(c.poll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		return fmt.Errorf("watch connection: %w", err)
	}
	return nil
}

func (c *churn) follow(i int) {
	conn := &c.conns[i]
	if conn.fd == 0 {
		return
	}
	if !conn.asked {
		_, err := unix.Write(conn.fd, []byte{opClose, 0, 0, 0, 0, 0, 0, 0, 0})
		switch {
		case errors.Is(err, unix.EAGAIN):
			return
		case err != nil:
			c.failed++
			c.drop(i)
			return
		}
		conn.asked = true
	}
	var back [1]byte
	n, err := unix.Read(conn.fd, back[:])
	switch {
	case n == 0 && err == nil:
		c.done++
	case errors.Is(err, unix.EAGAIN):
		return
	default:
		c.failed++
	}
	c.drop(i)
}
