// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"hairpin/test/home"
	"hairpin/test/lab"
)

var honest = scenario{
	number: 1, name: "Many honest new connections a second, from the Internet and from two LANs",
	demanded: "all new connections open, exchange bytes and close",
	run:      openOften,
}

const (
	// honestRate is the number of new connections a second.
	honestRate = 2_000
	// honestLeast is how many of them must come. The short form does not demand it: it runs beside other tests.
	honestLeast = honestRate * 9 / 10
)

func openOften(t *trial) figures {
	var said []string
	demanded := ""
	if t.scale > short {
		demanded = fmt.Sprintf("of at least %d new connections a second all open, exchange bytes and close", honestLeast)
	}
	for _, mode := range t.modes() {
		n := t.newHonest(mode)
		// More connections come than there are places, so each place is used again.
		t.start(n.Network, mode, fmt.Sprintf("max_connections = %d\n", t.choose(16_384, 16_384, 131_072))+home.Forwards)
		c := n.openFor(t, honestTime(t))
		t.none(c.refused, fmt.Sprintf("of %d new connections did not open, %s", c.tried, mode))
		if t.scale > short && c.rate < honestLeast {
			t.Errorf("%d new connections a second, want at least %d, %s", c.rate, honestLeast, mode)
		}
		said = append(said, mode+": "+c.String())
	}
	return figures{measured: strings.Join(said, "; "), demanded: demanded, nftables: t.beside(func() string {
		n := t.newHonest("tc")
		useNFT(n.Router)
		return n.openFor(t, 10*time.Second).String()
	})}
}

// honestTime is how long connections come in each mode.
func honestTime(t *trial) time.Duration {
	return time.Duration(t.choose(10, 15, 600)) * time.Second
}

// openFor opens honestRate connections a second for a time, and returns what it has counted.
func (n *honestNetwork) openFor(t *trial, d time.Duration) census {
	t.Helper()
	want, begun := int(d.Seconds())*honestRate, time.Now()
	a := n.open(honestRate)
	shown := 0
	lab.Eventually(t, 2*d+lab.Patience, func() error {
		tried := int(a.tried.Load())
		for ; shown < 10*tried/want; shown++ {
			t.progress(shown+1, 10, fmt.Sprintf("parts of %d connections", want))
		}
		if tried < want && a.failed.Load() == nil {
			return fmt.Errorf("%d connections after %v, want %d", tried, time.Since(begun), want)
		}
		return nil
	})
	took := time.Since(begun)
	c := a.finish(t)
	c.rate = int(float64(want) / took.Seconds())
	return c
}

// honestNetwork is a network with hosts that open connections.
type honestNetwork struct {
	*lab.Network
	clients []*lab.Host
}

// newHonest makes a network with two clients on the Internet and one in each LAN. A client has so many source ports that none is needed
// again while the kernel still keeps it.
func (t *trial) newHonest(mode string) *honestNetwork {
	t.Helper()
	n := &honestNetwork{Network: lab.NewNetwork(t)}
	n.SetOffloads(home.OffloadsFor(mode))
	n.clients = []*lab.Host{n.Internet, n.AddFar(t), n.Client, n.Guest}
	for _, h := range n.clients {
		h.Sysctl("net/ipv4/ip_local_port_range", "1024 65535")
	}
	n.Server.ServeTCP(":8080")
	return n
}

// arrivals opens new connections, the same number each second, until it is stopped.
type arrivals struct {
	stop           chan struct{}
	running        sync.WaitGroup
	tried, refused atomic.Int64
	failed         atomic.Pointer[error]
}

// open begins to open this many connections a second, from all clients. Each sends a byte, gets it back, and is closed within a second or
// a little more.
func (n *honestNetwork) open(rate int) *arrivals {
	a := &arrivals{stop: make(chan struct{})}
	for _, h := range n.clients {
		a.running.Go(func() {
			begun, free := time.Now(), make(chan struct{}, burstsAtOnce)
			for second := time.Duration(1); ; second++ {
				select {
				case <-a.stop:
					return
				case free <- struct{}{}:
				}
				a.running.Go(func() {
					a.burst(h, rate/len(n.clients))
					<-free
				})
				select {
				case <-a.stop:
					return
				case <-time.After(time.Until(begun.Add(second * time.Second))):
				}
			}
		})
	}
	return a
}

// burstsAtOnce is the number of seconds whose connections a client may have at the same time. On a machine that is too busy for the rate, the
// rate falls; otherwise this process would have too many descriptors.
const burstsAtOnce = 3

func (a *arrivals) burst(h *lab.Host, count int) {
	opened, err := h.OpenBurst(lab.Burst{
		To: netip.AddrPortFrom(home.ExternalAddress, 80), Count: count, Over: time.Second, Within: crowdPatience,
	})
	if err != nil {
		a.failed.Store(&err)
		return
	}
	a.tried.Add(int64(count))
	a.refused.Add(int64(count - opened))
}

// census is what arrivals have counted.
type census struct{ tried, refused, rate int }

// String returns the census in words for the table.
func (c census) String() string {
	return fmt.Sprintf("%d of %d refused, at %d/s", c.refused, c.tried, c.rate)
}

// finish stops, and returns the number of connections that were tried, and of those that did not open.
func (a *arrivals) finish(t *trial) census {
	t.Helper()
	close(a.stop)
	a.running.Wait()
	if err := a.failed.Load(); err != nil {
		t.Errorf("open connections: %v", *err)
	}
	return census{tried: int(a.tried.Load()), refused: int(a.refused.Load())}
}
