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
	Within time.Duration // time limit for each connection: handshake, and one byte there and back
	// FastOpen sends the first request in the SYN (RFC 7413) if the client has a cookie.
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

// OpenBurst opens the connections and returns how many of them sent a byte to the server and got it back. It closes all
// connections at the end.
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

// pollDials waits until a connection can continue, at most 10 ms.
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

// follow continues a connection as far as possible without waiting.
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
		// Before the handshake is complete, this write returns EAGAIN.
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

// lateness returns extra time for a connection that should have begun but has not, because the machine is busy.
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
	// churnPatience is the time limit for a connection to open, and to close.
	churnPatience = 2 * time.Second
)

// churner is one of the connections that ChurnTCP has open at the same time.
type churner struct {
	fd    int // 0: no connection
	begin time.Time
	asked bool
}

// ChurnTCP opens and closes TCP connections to a TCP service of the lab, as fast as one thread can. Their sources are random addresses of
// the networks from, which the host must own. Each client asks the server to close the connection, then closes it too. The
// argument of stop is the number of connections that both sides have closed; ChurnTCP ends when stop returns true. It returns this
// number, and the number of connections that failed.
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

// round begins a connection for every free churner, and continues the connections with events.
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
	// The kernel chooses the port at connect(2), when it knows the destination: an address then has 64512 ports for each destination.
	if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
		return fmt.Errorf("bind without port: %w", err)
	}
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(src, 0))); err != nil {
		return fmt.Errorf("bind to %v: %w", src, err)
	}
	switch err := unix.Connect(fd, sockaddr(c.to)); {
	case errors.Is(err, unix.EADDRNOTAVAIL): // all ports of the address are in use
		c.failed++
		c.drop(i)
		return nil
	case err != nil && !errors.Is(err, unix.EINPROGRESS):
		return fmt.Errorf("connect: %w", err)
	}
	// Events carry the connection's index in Fd, not its descriptor.
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
