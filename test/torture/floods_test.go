// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"testing"

	"hairpin/test/floods"
	"hairpin/test/home"
	"hairpin/test/lab"
)

var flood = scenario{
	number: 1, name: "Floods of six kinds: SYNs, UDP to a fast server, UDP to a slow server, short TCP connections, fragments, ICMP errors",
	demanded: "no established connection is lost; of 100 new connections from each place to the flooded forward, at most one fewer opens than with nftables; all new connections to another forward open; the UDP server answers all datagrams, or at most one fewer than with nftables if devices drop packets or its own forward is flooded; a stream that only the server sends goes on; the memory limit is 10 % above what an idle hairpin takes",
	run:      floodOften,
}

func floodOften(t *trial) figures {
	s := floods.Setup{Idle: t.size(1000, min(10_000, t.descriptors()-floodOthers)), Start: t.startSqueezed}
	var rows []floods.Row
	cases := floods.Short()
	switch t.scale {
	case brief:
		cases, s.Idle, s.Rate = floods.Brief(), t.pace(s.Idle), briefFlood
	case hours:
		cases = floods.All()
	}
	for i, c := range cases {
		rows = append(rows, c.Run(t.T, s)...)
		t.progress(i+1, len(cases), "kinds of floods")
	}
	t.Logf("\n%s", floods.Report(s, rows))
	measured, nftables := floods.Summary(rows)
	return figures{measured: measured, nftables: nftables}
}

// briefFlood is the rate of a flood on an emulated processor, in packets a second. It leaves time for the clients, which share the processor
// with the flood.
const briefFlood = 1000

// idleScrapes is the number of scrapes of a daemon without traffic. Its heap grows and shrinks with them by some MiB; right after its start
// it is smallest.
const idleScrapes = 40

// startSqueezed starts hairpin in a cgroup of its own, whose memory limit is a tenth above the most that hairpin takes without traffic,
// while it is scraped. It watches the router until the returned function is called.
func (t *trial) startSqueezed(part *testing.T, n *lab.Network, hp *lab.Hairpin) (end func()) {
	group := lab.NewMemoryCgroup(part)
	hp.StartIn(group)
	idle := group.Used()
	for range idleScrapes {
		home.Scrape(part, n, "go_goroutines")
		idle = max(idle, group.Used())
	}
	end = t.watchPart(part, n, hp) // after the scrapes: just after READY some goroutines may not run yet
	group.Limit(idle + idle/10)
	part.Logf("hairpin takes up to %d KiB when it is idle", idle>>10)
	return end
}

// floodOthers is the number of descriptors that this process needs besides those of the idle connections: the active connections, the new
// clients', the flood's.
const floodOthers = 2000
