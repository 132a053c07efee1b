// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"testing"

	"hairpin/test/floods"
	"hairpin/test/home"
	"hairpin/test/lab"
)

var flood = scenario{
	number: 1, name: "Floods: SYNs, UDP to a fast server, UDP to a slow server, short TCP connections, fragments, ICMP errors",
	demanded: "No established connection is lost. 100 clients at each place open a connection to the flooded forward: as many succeed as with nftables, or one fewer. All connections to another forward succeed. A UDP server that answers late answers every datagram. If devices drop packets, or if the forward of this server is flooded, it may answer one fewer than with nftables. A stream of the server to a silent client goes on. hairpin may use 10 % more memory than when it is idle",
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
