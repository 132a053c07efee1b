// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Load is traffic that runs while a test does something else: an established TCP connection, a UDP flow, and new TCP
// connections one after another. The test fails if a packet is lost or a connection fails.
type Load struct {
	host     *Host
	tcp, udp string
	stop     chan struct{}
	running  sync.WaitGroup

	// Rounds that each kind of traffic has done.
	Echoes, Datagrams, Connections atomic.Int64

	mu       sync.Mutex
	problems []string
}

// StartLoad starts traffic from the host to a TCP and a UDP service.
func (h *Host) StartLoad(tcp, udp string) *Load {
	h.tb.Helper()
	l := &Load{host: h, tcp: tcp, udp: udp, stop: make(chan struct{})}
	c, err := h.DialTCP(tcp, "", Patience)
	h.must("connect", err)
	u, err := h.DialUDP(udp, "")
	h.must("connect", err)
	l.run(func() error { return l.echoes(c) })
	l.run(func() error { return l.datagrams(u) })
	l.run(l.connections)
	h.tb.Cleanup(l.Stop)
	l.Advance(1)
	return l
}

// Advance returns when each kind of traffic has done n more rounds.
func (l *Load) Advance(n int64) {
	l.host.tb.Helper()
	echoes, datagrams, connections := l.Echoes.Load()+n, l.Datagrams.Load()+n, l.Connections.Load()+n
	Eventually(l.host.tb, 2*Patience, func() error {
		if l.Echoes.Load() < echoes || l.Datagrams.Load() < datagrams || l.Connections.Load() < connections {
			l.mu.Lock()
			defer l.mu.Unlock()
			return fmt.Errorf("traffic from %s has stopped: %d echoes, %d datagrams, %d connections, problems %q",
				l.host.Name, l.Echoes.Load(), l.Datagrams.Load(), l.Connections.Load(), l.problems)
		}
		return nil
	})
}

// Stop ends the traffic and reports its errors to the test.
func (l *Load) Stop() {
	l.host.tb.Helper()
	select {
	case <-l.stop:
		return
	default:
	}
	close(l.stop)
	l.running.Wait()
	for _, problem := range l.problems {
		l.host.tb.Errorf("traffic from %s: %s", l.host.Name, problem)
	}
	l.host.tb.Logf("traffic from %s: %d echoes on one connection, %d datagrams, %d new connections",
		l.host.Name, l.Echoes.Load(), l.Datagrams.Load(), l.Connections.Load())
}

func (l *Load) run(part func() error) {
	l.running.Go(func() {
		if err := part(); err != nil {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.problems = append(l.problems, err.Error())
		}
	})
}

func (l *Load) stopped() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

func (l *Load) echoes(c *Conn) error {
	defer c.Close()
	for size := 1; !l.stopped(); size = size*3%65521 + 1 {
		if err := c.Echo(size); err != nil {
			return fmt.Errorf("established connection: %w", err)
		}
		l.Echoes.Add(1)
	}
	return lossless(c)
}

func (l *Load) datagrams(c *net.UDPConn) error {
	defer c.Close()
	for !l.stopped() {
		if _, err := Exchange(c, 32, 1472); err != nil {
			return fmt.Errorf("UDP after %d datagrams: %w", l.Datagrams.Load(), err)
		}
		l.Datagrams.Add(32)
	}
	return nil
}

// connections opens new connections, at most a few hundred a second: with more, the client would run out of ports in a long
// test.
func (l *Load) connections() error {
	pace := time.NewTicker(3 * time.Millisecond)
	defer pace.Stop()
	for !l.stopped() {
		c, err := l.host.DialTCP(l.tcp, "", Patience)
		if err != nil {
			return fmt.Errorf("new connection %d: %w", l.Connections.Load(), err)
		}
		_, err = c.Who()
		err = errors.Join(err, lossless(c), c.Close())
		if err != nil {
			return fmt.Errorf("new connection %d: %w", l.Connections.Load(), err)
		}
		l.Connections.Add(1)
		<-pace.C
	}
	return nil
}

func lossless(c *Conn) error {
	lost, err := c.Lost()
	if err == nil && lost > 0 {
		err = fmt.Errorf("%d segments lost", lost)
	}
	return err
}
