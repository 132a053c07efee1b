// SPDX-License-Identifier: Apache-2.0

package floods

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"hairpin/test/lab"
)

// challengeTime is the round trip time of the clients: a half-open connection of theirs does not last so long in a
// small table that is flooded, unless the client has shown that it is there.
const challengeTime = 100 * time.Millisecond

// Under pressure the router answers a SYN with a SYN/ACK that acknowledges what the client never sent. A real
// client answers by a RST and sends its SYN again (RFC 9293 section 3.10.7.3), and then has priority. That
// works for every client, and the server hears nothing of the RST.
func TestSYNChallenge(t *testing.T) {
	t.Run("IPv4", func(t *testing.T) {
		n := newFloodNetwork(t, false)
		fast := n.addFar(t, 3, challengeTime)
		fast.Sysctl("net/ipv4/tcp_fastopen", "1")
		n.Server.Sysctl("net/ipv4/tcp_fastopen", "1026") // 2, server; 1024, every listener
		clients := []challenged{
			{"a client", n.far[1], false},
			{"a client behind a masquerade", n.addHome(t, 4, ""), false},
			{"a client behind a masquerade that drops what is invalid", n.addHome(t, 5, "ct state invalid drop"), false},
			{"a client with TCP Fast Open", fast, true},
		}
		n.challenge(t, clients, sourceAny)
	})
	t.Run("IPv6", func(t *testing.T) {
		n := newFloodNetwork(t, true)
		n.challenge(t, []challenged{{"a client", n.far[1], false}},
			sources{name: "random IPv6", family6: true, from: prefixesOf("2001:db8:8000::/33")})
	})
}

// challenged is a client that opens connections during a flood.
type challenged struct {
	name     string
	host     *lab.Host
	fastOpen bool
}

// challenge floods a small table with SYNs, and wants all clients to open all connections.
func (n *floodNetwork) challenge(t *testing.T, clients []challenged, from sources) {
	n.serve(t)
	n.newHairpin("tc", placesFew).Start()
	open := func(c challenged, count int) int {
		opened, err := c.host.OpenBurst(lab.Burst{
			To: n.external(portFlooded), Count: count, Over: clientsOver, Within: clientsTime, FastOpen: c.fastOpen,
		})
		if err != nil {
			t.Error(err)
		}
		return opened
	}
	for _, c := range clients {
		// Each works without a flood; and one learns its cookie by the first.
		for range 2 {
			if open(c, 1) != 1 {
				t.Fatalf("%s: opens nothing before the flood", c.name)
			}
		}
		if c.fastOpen && netstat(t, n.Server, "TCPFastOpenPassive") == 0 {
			t.Fatalf("%s: no connection was opened by TCP Fast Open before the flood", c.name)
		}
	}

	challenged, heard := n.Router.WatchResets("wan0"), n.Server.WatchResets("eth0")
	run := n.startFlood(t, Case{flood: floodSYN, sources: from}, 0)
	run.fill(placesFew)
	var busy sync.WaitGroup
	for _, c := range clients {
		busy.Go(func() {
			if opened := open(c, floodClients); opened < floodClients {
				t.Errorf("%s opened %d of %d connections during the flood, want all", c.name, opened, floodClients)
			}
		})
	}
	busy.Wait()
	t.Logf("%d SYNs a second", run.stop(t))

	if got := challenged.Stop(); len(got) == 0 {
		t.Error("no client sent a RST: no SYN was challenged, and this test shows nothing")
	} else {
		t.Logf("%d RSTs answered challenges, the first: %s", len(got), got[0])
	}
	if got := heard.Stop(); len(got) != 0 {
		t.Errorf("%d RSTs reached the server, want none; the first: %s", len(got), got[0])
	}
}

// addHome adds a client behind a router of its own that masquerades, with a round trip time to the Internet host.
// Its forward chain may have a rule.
//
//	home ---- Router ~~~ Internet
func (n *floodNetwork) addHome(t *testing.T, number int, rule string) *lab.Host {
	t.Helper()
	router := n.addFar(t, number, challengeTime)
	home := lab.NewHost(t, "home"+strconv.Itoa(number))
	lab.Cable(router, "lan", home, "eth0")
	router.Address("lan", "10.9.0.1/24")
	home.Address("eth0", "10.9.0.50/24")
	home.Route("eth0", "0.0.0.0/0", "10.9.0.1", "")
	router.Sysctl("net/ipv4/ip_forward", "1")
	router.RunInput(fmt.Sprintf(`table ip nat {
		chain postrouting {
			type nat hook postrouting priority srcnat
			oifname "up" masquerade
		}
		chain forward {
			type filter hook forward priority filter
			%s
		}
	}`, rule), "nft", "-f", "-")
	return home
}

// netstat returns a counter of TcpExt in /proc/net/netstat.
func netstat(t *testing.T, h *lab.Host, counter string) int {
	t.Helper()
	var names []string
	for line := range strings.Lines(h.Run("cat", "/proc/net/netstat")) {
		fields := strings.Fields(line)
		if fields[0] != "TcpExt:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, name := range names {
			if name != counter {
				continue
			}
			value, err := strconv.Atoi(fields[i])
			if err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	t.Fatalf("%s: no counter %s", h.Name, counter)
	return 0
}
