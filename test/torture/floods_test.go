// SPDX-License-Identifier: Apache-2.0

package torture

import "hairpin/test/floods"

var flood = scenario{
	number: 1, name: "Floods of SYNs, of UDP to answering and slow servers, of TCP opened and closed, of fragments, of ICMP errors; from one source, a LAN, an IPv6 prefix, random sources",
	demanded: "0 established connections lost; of 100 new connections from each place at most one fewer opens than with nftables; a stream that only the server sends goes on",
	run:      floodOften,
}

func floodOften(t *trial) figures {
	s := floods.Setup{Idle: t.size(1000, min(10_000, t.descriptors()/2-floodOthers)), Watch: t.watchPart}
	var rows []floods.Row
	cases := floods.Short()
	if t.scale != short {
		cases = floods.Medium()
	}
	for i, c := range cases {
		rows = append(rows, c.Run(t.T, s)...)
		t.progress(i+1, len(cases), "kinds of floods")
	}
	t.Logf("\n%s", floods.Report(s, rows))
	measured, nftables := floods.Summary(rows)
	return figures{measured, nftables}
}

// floodOthers is the number of connections that this process has besides the idle ones: the active ones, the new clients', the flood's.
const floodOthers = 2000
