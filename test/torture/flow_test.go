// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/test/floods"
	"hairpin/test/home"
	"hairpin/test/lab"
)

// flow is datagrams of a fixed number of connections from the Internet to a server. The server sends each datagram back. The Internet host
// counts the datagrams that it sends and the translated answers that it gets. A lost or an untranslated datagram is missing in the second count.
type flow struct {
	t    *trial
	n    *lab.Network
	rate int // datagrams a second
}

// flowPort is the port of the forward "dns" in home.Forwards, flowTarget the port of its target.
const flowPort, flowTarget = 53, 5353

// newFlow prepares a flow of a rate in datagrams a second, and opens its connections.
func (t *trial) newFlow(n *lab.Network, rate int) *flow {
	t.Helper()
	floods.AnswerUDP(t.T, n.Server, flowTarget)
	// Only translated answers count. They do not go on to the Internet host's IP stack, which has no socket for them.
	n.Internet.RunInput(fmt.Sprintf(`table netdev arrivals {
		counter answers { }
		chain arriving {
			type filter hook ingress device eth0 priority 0
			ip saddr %s ip daddr %s udp sport %d counter name answers drop
		}
	}`, lab.External, lab.InternetSource, flowPort), "nft", "-f", "-")
	f := &flow{t, n, rate}
	// Until the neighbours are known, datagrams wait in a short queue.
	for _, h := range []*lab.Host{n.Internet, n.Router} {
		lab.Eventually(t, lab.Patience, func() error {
			r, err := h.Try("ping", "-c1", "-W1", map[*lab.Host]string{n.Internet: lab.External, n.Router: lab.Server}[h])
			if err == nil && r.Code != 0 {
				err = fmt.Errorf("%s: no answer to a ping", h.Name)
			}
			return err
		})
	}
	first := f.begin()
	first.wait(time.Second)
	first.end()
	return f
}

// ride is one run of a flow.
type ride struct {
	*flow
	sent            atomic.Int64
	stop            atomic.Bool
	done            chan error
	began           time.Time
	arrived, missed uint64 // counts before it
}

// begin starts to send.
func (f *flow) begin() *ride {
	f.t.Helper()
	r := &ride{flow: f, done: make(chan error, 1), began: time.Now(), arrived: f.arrivals(), missed: f.dropped()}
	neighbour := f.n.Router.HardwareAddr("wan0")
	flood := lab.Flood{
		Protocol: unix.IPPROTO_UDP, From: []netip.Prefix{netip.MustParsePrefix(lab.InternetSource + "/32")},
		To: netip.AddrPortFrom(home.ExternalAddress, flowPort), Rate: f.rate,
		Times: 1 << 40, Seed: 1, // the first tuples, again and again
	}
	go func() {
		_, err := f.n.Internet.SendFlood("eth0", neighbour, flood, func(sent int) bool {
			r.sent.Store(int64(sent))
			return r.stop.Load()
		})
		r.done <- err
	}()
	f.t.Cleanup(func() { r.stop.Store(true) })
	return r
}

// wait returns when the flow has sent for this time, counted in datagrams.
func (r *ride) wait(d time.Duration) {
	r.t.Helper()
	want := r.sent.Load() + int64(float64(r.rate)*d.Seconds()/2)
	lab.Eventually(r.t, d+lab.Patience, func() error {
		if sent := r.sent.Load(); sent < want {
			return fmt.Errorf("%d datagrams sent, want %d", sent, want)
		}
		return nil
	})
}

// tally is what a ride has counted.
type tally struct {
	sent, lost int
	dropped    int // by devices, whose queues were full
	rate       int // datagrams a second
}

// end stops sending, and counts. Datagrams that a device of the lab has dropped are not hairpin's loss.
func (r *ride) end() (c tally) {
	r.t.Helper()
	r.stop.Store(true)
	if err := <-r.done; err != nil {
		r.t.Fatal(err)
	}
	c.sent = int(r.sent.Load())
	c.rate = int(float64(c.sent) / time.Since(r.began).Seconds())
	// The last datagrams are still on their way.
	lab.Within(lab.Patience, func() bool {
		c.dropped = int(r.flow.dropped() - r.missed)
		c.lost = c.sent - int(r.arrivals()-r.arrived) - c.dropped
		return c.lost == 0
	})
	return c
}

// arrivals returns the number of translated answers that have arrived.
func (f *flow) arrivals() uint64 {
	f.t.Helper()
	return uint64(f.t.counter(f.n.Internet, "arrivals", "answers"))
}

// counter returns the packets of a counter in a netdev table of nftables.
func (t *trial) counter(h *lab.Host, table, name string) int {
	t.Helper()
	var list struct {
		Nftables []struct {
			Counter *struct{ Packets int }
		}
	}
	out := h.Run("nft", "-j", "list", "counter", "netdev", table, name)
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("read counter: %v\n%s", err, out)
	}
	for _, entry := range list.Nftables {
		if entry.Counter != nil {
			return entry.Counter.Packets
		}
	}
	t.Fatalf("no counter in %s", out)
	return 0
}

// dropped returns how many packets the devices of the network have dropped because their queues were full.
func (f *flow) dropped() (count uint64) {
	for _, h := range []*lab.Host{f.n.Internet, f.n.Router, f.n.Switch, f.n.Server} {
		for _, l := range h.Links() {
			if s := l.Attrs().Statistics; s != nil {
				count += s.TxDropped + s.RxDropped
			}
		}
	}
	return count
}
