// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/test/lab"
)

// crowd is established TCP connections through one forward.
type crowd struct {
	t     *trial
	conns []member

	stop    chan struct{} // closed to end the stream
	running sync.WaitGroup
	rounds  atomic.Int64 // that all members have done
	ended   atomic.Int64
}

// member is a connection, and the name of its client.
type member struct {
	*lab.Conn
	from string
}

const (
	// crowdPatience is the time limit for an exchange. TCP sends a lost segment again within it.
	crowdPatience = 20 * time.Second
	// crowdBytes is the length of an exchange, each way.
	crowdBytes = 100
)

// newCrowd opens this many connections, the same number from each host.
func (t *trial) newCrowd(count int, hosts ...*lab.Host) *crowd {
	t.Helper()
	return t.newCrowdTo(lab.External+":80", count, hosts...)
}

// newCrowdTo is newCrowd for another forward.
func (t *trial) newCrowdTo(address string, count int, hosts ...*lab.Host) *crowd {
	t.Helper()
	c := &crowd{t: t, conns: make([]member, count), stop: make(chan struct{})}
	const parallel = 50
	t.Cleanup(c.close)
	lab.Together(parallel, func(worker int) {
		for i := worker; i < count; i += parallel {
			host := hosts[i%len(hosts)]
			conn, err := host.DialTCP(address, "", lab.Patience)
			if err != nil {
				t.Errorf("open connection %d: %v", i, err)
				return
			}
			c.conns[i] = member{conn, host.Name}
			if err := conn.EchoWithin(crowdBytes, crowdPatience); err != nil {
				t.Errorf("use connection %d: %v", i, err)
				return
			}
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return c
}

// descriptors is how many descriptors this process may have for connections. It returns when those of earlier connections are closed:
// servers close theirs a moment later.
func (t *trial) descriptors() int {
	t.Helper()
	const others = 2000
	lab.Eventually(t, lab.Patience, func() error {
		used, err := os.ReadDir("/proc/self/fd")
		if err == nil && len(used) > others/2 {
			err = fmt.Errorf("%d descriptors are in use", len(used))
		}
		return err
	})
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatalf("read the limit of descriptors: %v", err)
	}
	return int(min(limit.Cur, 1<<20)) - others
}

func (c *crowd) close() {
	for _, m := range c.conns {
		if m.Conn != nil {
			m.Close()
		}
	}
}

// alive exchanges bytes on every connection, and returns the number of connections that have ended.
func (c *crowd) alive(when string) (ended int) {
	c.t.Helper()
	errs := make([]error, len(c.conns))
	lab.Together(len(c.conns), func(i int) { errs[i] = c.conns[i].EchoWithin(crowdBytes, crowdPatience) })
	for i, err := range errs {
		if err == nil {
			continue
		}
		if ended++; ended <= 3 {
			c.t.Logf("%s: connection from %s: %v", when, c.conns[i].from, err)
		}
	}
	return ended
}

// stream starts an exchange on each connection once in a period, spread over the period.
func (c *crowd) stream(period time.Duration) {
	for i, m := range c.conns {
		c.running.Go(func() {
			next := time.Now().Add(period * time.Duration(i) / time.Duration(len(c.conns)))
			for {
				select {
				case <-c.stop:
					return
				case <-time.After(time.Until(next)):
				}
				if err := m.EchoWithin(crowdBytes, crowdPatience); err != nil {
					if c.ended.Add(1) <= 3 {
						c.t.Logf("connection %d from %s: %v", i, m.from, err)
					}
					return
				}
				c.rounds.Add(1)
				next = next.Add(period)
			}
		})
	}
}

// advance returns when the stream has done this many more exchanges.
func (c *crowd) advance(more int) {
	c.t.Helper()
	want := c.rounds.Load() + int64(more)
	lab.Eventually(c.t, 3*lab.Patience, func() error {
		if now := c.rounds.Load(); now < want {
			return fmt.Errorf("%d exchanges, want %d; %d connections have ended", now, want, c.ended.Load())
		}
		return nil
	})
}

// finish ends the stream and closes the connections. It returns the number of connections that ended too early, and the number of segments that were lost.
func (c *crowd) finish() (ended, lost int) {
	c.t.Helper()
	close(c.stop)
	c.running.Wait()
	for _, m := range c.conns {
		n, err := m.Lost()
		if err != nil {
			c.t.Errorf("read statistics of a connection: %v", err)
		}
		lost += n
	}
	c.close()
	return int(c.ended.Load()), lost
}
