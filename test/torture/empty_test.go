// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/test/floods"
	"hairpin/test/home"
	"hairpin/test/lab"
)

var emptying = scenario{
	number: 1, name: "A full table empties",
	demanded: "nothing is left when the timeout of the last connection and one round of the sweeper have passed; nothing goes before its timeout",
	run:      empty,
}

// The sweeper's pace (bpf/README.md): how many places and connections a step visits, and when the next step follows.
const (
	sweepPlaces = 4096
	sweepVisits = 256
	sweepIdle   = 100 * time.Millisecond
	sweepBusy   = time.Millisecond
)

// sweepRound is the time in which the sweeper visits all places of a table once and removes all connections. The table has at most twice
// as many places as max_connections. A step takes less time than the pause before it.
func sweepRound(maxConnections int) time.Duration {
	places := 2 * maxConnections
	return time.Duration(places/sweepPlaces)*sweepIdle + time.Duration(places/sweepVisits)*2*sweepBusy
}

// scrapePause is the time between two counts of connections.
const scrapePause = 100 * time.Millisecond

func empty(t *trial) figures {
	// Filling takes less time than the timeout, on a busy machine, too.
	maxConnections, timeout := t.size(16_384, 131_072), time.Duration(t.choose(int(10*time.Second), int(30*time.Second), int(time.Minute)))
	n := lab.NewNetwork(t)
	hp := t.start(n, "tc", fmt.Sprintf("max_connections = %d\n[timeouts]\ntcp_established = %[2]q\ntcp_transitory = %[2]q\nudp = %[2]q\nport_hold = \"1s\"\n",
		maxConnections, timeout)+home.Forwards)

	first := time.Now()
	t.fillTCP(n, 3*maxConnections/4)
	t.fillRest(n, maxConnections)
	last := time.Now()
	established := int(home.Scrape(t.T, n, "hairpin_connections", `state="established"`))
	all := int(home.Scrape(t.T, n, "hairpin_connections"))
	if established < maxConnections*9/10 {
		t.Errorf("%d established connections, want about %d: the table is not full", established, maxConnections)
	}

	limit := timeout + sweepRound(maxConnections)
	pause := time.NewTicker(scrapePause)
	defer pause.Stop()
	left, whole, early := all, 0, 0
	var took, begun time.Duration // from last to the end, and to the begin, of a count
	for left != 0 && took < limit+lab.Patience {
		<-pause.C
		begun = time.Since(last)
		left = int(home.Scrape(t.T, n, "hairpin_connections"))
		took = time.Since(last)
		if time.Since(first) < timeout {
			whole++
			early = max(early, all-left)
		}
	}
	t.none(early, "connections went before the timeout of the first one")
	if whole == 0 {
		t.Errorf("no count was taken before the timeout of the first connection: to fill the table took %v", last.Sub(first))
	}
	if left != 0 || begun > limit+scrapePause {
		t.Errorf("%d of %d connections are left after %v, want none after %v", left, all, took, limit)
	}
	if out := hp.Run("conn", "count"); out != "0\n" {
		t.Errorf("conn count says %q, want 0", out)
	}
	return figures{measured: fmt.Sprintf("%d connections, %d of them established, with a timeout of %v: 0 left after %.1f s; %.1f s were allowed; %d went early in %d counts before the first timeout",
		all, established, timeout, took.Seconds(), limit.Seconds(), early, whole)}
}

// forgotten are the sources of the TCP connections that fill a table. No source reaches its share.
const forgotten = 500

// fillTCP opens this many TCP connections. Their two ends then forget them, so nobody sends anything more.
func (t *trial) fillTCP(n *lab.Network, count int) {
	t.Helper()
	n.Server.ServeForgetting(":8080")
	n.Internet.Run("ip", "route", "add", "local", "51.15.0.0/16", "dev", "lo")
	const parallel = 50
	lab.Together(parallel, func(worker int) {
		for i := worker; i < count; i += parallel {
			source := fmt.Sprintf("51.15.%d.%d:0", i%forgotten/250, i%forgotten%250+1)
			c, err := n.Internet.DialTCP(lab.External+":80", source, lab.Patience)
			if err == nil {
				err = c.Forget()
			}
			if err != nil {
				t.Errorf("open connection %d: %v", i, err)
				return
			}
		}
	})
	if t.Failed() {
		t.FailNow()
	}
}

// fillRest fills the places of a table that no TCP connection may have, and those of half-open TCP connections.
func (t *trial) fillRest(n *lab.Network, maxConnections int) {
	t.Helper()
	floods.AnswerUDP(t.T, n.Server, flowTarget)
	for protocol, port := range map[uint8]uint16{unix.IPPROTO_UDP: 53, unix.IPPROTO_TCP: 80} {
		f := lab.Flood{Protocol: protocol, To: netip.AddrPortFrom(home.ExternalAddress, port), Rate: 50_000}
		if _, err := n.Internet.SendFlood("eth0", n.Router.HardwareAddr("wan0"), f, func(sent int) bool { return sent >= maxConnections/2 }); err != nil {
			t.Fatal(err)
		}
	}
}
