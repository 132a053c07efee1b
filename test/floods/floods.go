// SPDX-License-Identifier: Apache-2.0

// Package floods measures what clients get while their router is flooded, with hairpin and with nftables. The outcome depends on the
// processor time that a test gets, so nothing else may run beside it.
package floods

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/test/lab"
)

// floodKind is a kind of flood. The tuples of its packets are random within its sources.
type floodKind struct {
	name      string
	protocol  uint8
	churn     bool // real TCP connections, opened and closed
	fragments bool
	port      uint16
	times     int // packets with the same tuple
}

var (
	floodSYN   = floodKind{name: "SYN", protocol: unix.IPPROTO_TCP, port: portFlooded}
	floodUDP   = floodKind{name: "UDP, answered, 1 datagram a tuple", protocol: unix.IPPROTO_UDP, port: portAnswering, times: 1}
	floodUDP2  = floodKind{name: "UDP, answered, 2 datagrams a tuple", protocol: unix.IPPROTO_UDP, port: portAnswering, times: 2}
	floodSlow  = floodKind{name: "UDP, answered after 150 ms", protocol: unix.IPPROTO_UDP, port: portSlow, times: 1}
	floodChurn = floodKind{name: "TCP, opened and closed", protocol: unix.IPPROTO_TCP, churn: true, port: portFlooded}
	// In turn a first fragment, which is answered, and a last fragment of another datagram, which hairpin holds back.
	floodFragments = floodKind{name: "fragments of UDP, first and last", protocol: unix.IPPROTO_UDP, fragments: true, port: portAnswering, times: 1}
	floodErrors    = floodKind{name: "ICMP errors, about unknown connections", protocol: unix.IPPROTO_ICMP, port: portFlooded}

	floodKinds = []floodKind{floodSYN, floodUDP, floodUDP2, floodSlow, floodChurn, floodFragments, floodErrors}
)

// sources are the addresses from which a flood is sent.
type sources struct {
	name    string
	lan     bool
	family6 bool
	from    []netip.Prefix // empty: any public address
	churn   []netip.Prefix // addresses of the flooding host, for floods of real connections
}

var (
	sourceOne = sources{name: "one address", from: prefixesOf("51.15.0.7/32"), churn: prefixesOf("51.15.0.7/32")}
	sourceLAN = sources{name: "three LAN addresses", lan: true, from: floodLANSources[0], churn: floodLANSources[0]}
	source6   = sources{name: "one IPv6 /64", family6: true, from: prefixesOf("2001:db8:66:1::/64"), churn: prefixesOf("2001:db8:66:1::/64")}
	sourceAny = sources{name: "random", churn: prefixesOf("51.0.0.0/8")}

	floodSources = []sources{sourceOne, sourceLAN, source6, sourceAny}
)

func prefixesOf(prefixes ...string) (parsed []netip.Prefix) {
	for _, p := range prefixes {
		parsed = append(parsed, netip.MustParsePrefix(p))
	}
	return parsed
}

// translator is the NAT under test: nftables, or hairpin in a mode and size.
type translator struct {
	name        string
	mode        string // hairpin's mode; "": nftables
	connections int    // max_connections
	paced       bool   // send the flood at half the rate that nftables had; otherwise as fast as possible
}

const (
	placesDefault = 131072
	placesFew     = 16384
)

var (
	nftables    = translator{name: "nftables"}
	hairpinTC   = translator{name: "hairpin tc", mode: "tc", connections: placesDefault}
	hairpinFew  = translator{name: "hairpin tc", mode: "tc", connections: placesFew}
	hairpinXDP  = translator{name: "hairpin xdp", mode: "xdp", connections: placesDefault}
	hairpinXDPF = translator{name: "hairpin xdp", mode: "xdp", connections: placesFew}
	// The paced flood leaves room in the devices' rings for packets of new clients.
	hairpinPaced = translator{name: "hairpin xdp, paced", mode: "xdp", connections: placesFew, paced: true}
)

func (tr translator) size() string {
	if tr.mode == "" {
		return "-"
	}
	return fmt.Sprint(tr.connections)
}

// Case is a flood. It runs through nftables first, then through each of the hairpins, which must not be worse.
type Case struct {
	flood    floodKind
	sources  sources
	hairpins []translator
}

// Short returns one flood for each promise.
func Short() []Case {
	return []Case{
		{floodSYN, sourceAny, []translator{hairpinTC, hairpinFew, hairpinPaced}},
		{floodUDP, sourceAny, []translator{hairpinFew, hairpinPaced}},
		{floodSlow, sourceAny, []translator{hairpinFew}},
		{floodChurn, sourceAny, []translator{hairpinFew}},
		{floodUDP, sourceLAN, []translator{hairpinFew}},
		{floodUDP, source6, []translator{hairpinFew}},
		{floodFragments, sourceAny, []translator{hairpinFew}},
		{floodErrors, sourceAny, []translator{hairpinFew}},
	}
}

// Brief returns two floods, for slow processors.
func Brief() []Case {
	return []Case{
		{floodSYN, sourceAny, []translator{hairpinFew}},
		{floodUDP, source6, []translator{hairpinFew}},
	}
}

// All returns every kind of flood from every kind of source.
func All() (cases []Case) {
	for _, f := range floodKinds {
		for _, s := range floodSources {
			cases = append(cases, Case{f, s, []translator{hairpinTC, hairpinFew, hairpinXDP, hairpinXDPF}})
		}
	}
	return cases
}

const (
	floodClients   = 100 // for each place and each forward
	floodExchanges = 100
	floodTime      = 3 * time.Second
	// floodFilling is the shortest time between the start of a flood and the first client. The table is full then: a quarter of its places
	// is the most that connections of a flood can have. On a busy machine that takes longer, at most floodFillingMost.
	floodFilling     = 2 * time.Second
	floodFillingMost = 30 * time.Second
	// churnFilling is the longest time to fill a table of placesFew by connections that are opened and closed; a table is full
	// after twice its places. Such a flood is slower, so larger tables get more time, at most churnFillingMost.
	churnFilling     = 15 * time.Second
	churnFillingMost = time.Minute
)

// The new clients of a place open all their connections within clientsOver. Each connection has clientsTime.
var (
	clientsOver = time.Second * lab.Slowness
	clientsTime = 3 * time.Second * lab.Slowness
)

// Row is a row of the table in FLOODS.md.
type Row struct {
	flood, sources, translator, size string
	port                             uint16 // that is flooded

	rate               int  // packets a second, or connections opened and closed
	dropped            int  // packets per second dropped by network devices, because their rings were full
	overloaded         bool // devices also dropped packets of new clients, before the translator saw them
	established        int  // connections before the flood
	lostIdle, lostBusy int
	opened             map[string][]int // connections that opened, by the forward's name; index: floodPlaces
	stream             bool
	udpWAN, udpLAN     int
}

// floodPlaces are the places of new clients, in the order of the columns.
var floodPlaces = []string{"LAN", "20 ms", "100 ms", "300 ms"}

var floodedForwards = []struct {
	name string
	port uint16
}{{"flooded", portFlooded}, {"other", portOther}}

// Setup is how a flood runs.
type Setup struct {
	Idle int // established TCP connections without traffic
	Rate int // of the flood, in packets a second; 0: as fast as possible
	// Start starts hairpin on the router, before the flood. It returns a function that is called after the flood. nil: hairpin is
	// started, and nothing is called.
	Start func(t *testing.T, n *lab.Network, hp *lab.Hairpin) (end func())
}

// Rows returns the number of rows that a case adds to the table.
func (c Case) Rows() int { return 1 + len(c.hairpins) }

// Run floods a router that has connections, with nftables and then with each hairpin. It returns the rows. The test fails if hairpin
// breaks a promise; what nftables does in the same run is part of the promises.
func (c Case) Run(t *testing.T, s Setup) (rows []Row) {
	t.Run(c.flood.name+" from "+c.sources.name, func(t *testing.T) {
		peer := measureFlood(t, c, nftables, s, s.Rate)
		rows = append(rows, peer)
		for _, h := range c.hairpins {
			rate := s.Rate
			if h.paced {
				rate = peer.rate / 2
			}
			row := measureFlood(t, c, h, s, rate)
			rows = append(rows, row)
			for _, broken := range row.broken(peer) {
				t.Errorf("%s, max_connections %s: %s", row.translator, row.size, broken)
			}
		}
	})
	return rows
}

// broken returns the promises that the row breaks; peer is the row of nftables for the same flood.
func (r Row) broken(peer Row) (broken []string) {
	if r.lostIdle != 0 || r.lostBusy != 0 {
		broken = append(broken, fmt.Sprintf("%d idle and %d active established connections lost, want 0", r.lostIdle, r.lostBusy))
	}
	if !r.stream {
		broken = append(broken, "the stream that only the server sends has ended")
	}
	if r.overloaded {
		return broken
	}
	for _, f := range floodedForwards {
		for i, place := range floodPlaces {
			got, want, with := r.opened[f.name][i], floodClients, ""
			if f.port == r.port {
				want = peer.opened[f.name][i] - 1
				with = fmt.Sprintf(": with nftables %d opened", want+1)
			}
			if got < want {
				broken = append(broken, fmt.Sprintf("%d of %d new connections from %s to the %s forward opened, want %d%s", got, floodClients, place, f.name, want, with))
			}
		}
	}
	for _, side := range []struct {
		name      string
		got, peer int
		judged    bool
	}{
		{"WAN", r.udpWAN, peer.udpWAN, true},
		{"LAN", r.udpLAN, peer.udpLAN, r.port != portSlow},
	} {
		want := side.peer - 1
		if r.port != portSlow && r.dropped == 0 {
			want = floodExchanges
		}
		if side.judged && side.got < want {
			broken = append(broken, fmt.Sprintf("of %d datagrams from the %s to the server that answers after %v, %d were answered, want %d: with nftables it was %d",
				floodExchanges, side.name, slowAnswer, side.got, want, side.peer))
		}
	}
	return broken
}

// measureFlood makes a network, floods its router at a rate in packets per second, and returns the row. Rate 0 is as fast as possible.
func measureFlood(t *testing.T, c Case, tr translator, s Setup, rate int) (row Row) {
	t.Run(tr.name+" "+tr.size(), func(t *testing.T) {
		n := newFloodNetwork(t, c.sources.family6)
		if tr.mode == "xdp" {
			n.Network.CompleteFrames()
		}
		n.serve(t)
		end := func() {}
		if tr.mode == "" {
			n.useNFT()
		} else if hp := n.newHairpin(tr.mode, tr.connections); s.Start != nil {
			end = s.Start(t, n.Network, hp)
		} else {
			hp.Start()
		}
		row = n.measure(t, c, tr, s.Idle, rate)
		end()
		t.Logf("%+v", row)
	})
	row.flood, row.sources, row.translator, row.size, row.port = c.flood.name, c.sources.name, tr.name, tr.size(), c.flood.port
	if row.opened == nil {
		t.Fatal("not measured")
	}
	return row
}

func (n *floodNetwork) measure(t *testing.T, c Case, tr translator, idle, rate int) Row {
	var row Row
	rtp := n.startStream(t, n.Internet)
	conns := n.establish(t, idle)
	rtp.age(t)
	conns.begin()

	dropped, run := n.dropped(), n.startFlood(t, c, rate)
	run.fill(c.places(tr))
	row.opened, row.udpWAN, row.udpLAN = n.newClients(t)
	row.rate = run.stop(t)
	row.dropped = int(float64(n.dropped()-dropped) / run.took.Seconds())
	// The sender of a flood does not wait for XDP, so that the devices' rings overflow before it.
	row.overloaded = tr.mode == "xdp" && !tr.paced && 100*row.dropped > row.rate

	row.stream = rtp.survives()
	row.established = len(conns.idle) + len(conns.active)
	row.lostIdle, row.lostBusy = conns.lost()
	conns.close()
	return row
}

// dropped returns how many packets the network's devices have dropped because their rings were full.
func (n *floodNetwork) dropped() (count uint64) {
	for _, h := range append([]*lab.Host{n.Internet, n.Router, n.Switch, n.Client, n.Server, n.attacker}, n.far...) {
		for _, link := range h.Links() {
			if s := link.Attrs().Statistics; s != nil {
				count += s.TxDropped + s.RxDropped
			}
		}
	}
	return count
}

// places returns the number of connections that fill the table. nftables has another table; for it, places returns the number
// of the largest hairpin in the case.
func (c Case) places(tr translator) int {
	most := tr.connections
	if tr.mode == "" {
		for _, h := range c.hairpins {
			most = max(most, h.connections)
		}
	}
	return most
}

// floodRun is a flood that goes on.
type floodRun struct {
	kind  floodKind
	sent  atomic.Int64
	over  chan struct{} // closed to end it
	ended chan struct{}
	began time.Time
	took  time.Duration
	err   error
}

// startFlood starts a flood; it ends with the test at the latest.
func (n *floodNetwork) startFlood(t *testing.T, c Case, rate int) *floodRun {
	t.Helper()
	r := &floodRun{kind: c.flood, over: make(chan struct{}), ended: make(chan struct{})}
	from, dev, neighbour := n.Internet, "eth0", n.Router.HardwareAddr("wan0")
	if c.sources.lan {
		from, neighbour = n.attacker, n.Router.HardwareAddr("lan0")
	}
	if c.flood.churn {
		ownSources(from, c.sources)
	} else if c.sources.lan {
		// The attacker's kernel would end what it has not begun.
		from.RunInput(`table inet quiet {
			chain input {
				type filter hook input priority filter
				meta l4proto { tcp, udp } drop
			}
		}`, "nft", "-f", "-")
	}
	stop := func(sent int) bool {
		r.sent.Store(int64(sent))
		select {
		case <-r.over:
			return true
		default:
			return false
		}
	}
	to := n.external(c.flood.port)
	r.began = time.Now()
	go func() {
		defer close(r.ended)
		if c.flood.churn {
			_, _, r.err = from.ChurnTCP(c.sources.churn, to, stop)
		} else {
			f := lab.Flood{Protocol: c.flood.protocol, Fragments: c.flood.fragments, From: c.sources.from, To: to, Rate: rate, Times: c.flood.times}
			_, r.err = from.SendFlood(dev, neighbour, f, stop)
		}
		r.took = time.Since(r.began)
	}()
	t.Cleanup(func() {
		r.end()
		<-r.ended
	})
	return r
}

// ownSources lets a host open connections from all addresses of networks.
func ownSources(h *lab.Host, s sources) {
	h.Sysctl("net/ipv4/ip_local_port_range", "1024 65535")
	if s.lan {
		return
	}
	h.Sysctl("net/ipv6/ip_nonlocal_bind", "1")
	for _, prefix := range s.churn {
		h.Run("ip", "route", "add", "local", prefix.String(), "dev", "lo")
	}
}

// fill returns when the flood has gone on for long enough to fill a table of that size.
func (r *floodRun) fill(places int) {
	least, limit, enough := floodFilling, floodFillingMost, int64(places/2)
	if r.kind.churn {
		least, limit, enough = 0, min(churnFilling*time.Duration(places)/placesFew, churnFillingMost), int64(2*places)
	}
	for time.Since(r.began) < least || time.Since(r.began) < limit && r.sent.Load() < enough {
		select {
		case <-r.ended:
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (r *floodRun) end() {
	select {
	case <-r.over:
	default:
		close(r.over)
	}
}

// stop ends the flood once it has gone on for its time, and returns its rate a second.
func (r *floodRun) stop(t *testing.T) int {
	t.Helper()
	select {
	case <-r.ended:
	case <-time.After(time.Until(r.began.Add(floodTime))):
	}
	r.end()
	<-r.ended
	if r.err != nil {
		t.Errorf("flood: %v", r.err)
	}
	return int(float64(r.sent.Load()) / r.took.Seconds())
}

// newClients opens connections from everywhere on both forwards and asks the server that answers late, all at once.
func (n *floodNetwork) newClients(t *testing.T) (opened map[string][]int, udpWAN, udpLAN int) {
	opened = make(map[string][]int)
	var busy sync.WaitGroup
	for _, f := range floodedForwards {
		counts := make([]int, len(floodPlaces))
		opened[f.name] = counts
		for i, from := range append([]*lab.Host{n.Client}, n.far...) {
			busy.Go(func() {
				var err error
				counts[i], err = from.OpenBurst(lab.Burst{To: n.external(f.port), Count: floodClients, Over: clientsOver, Within: clientsTime})
				if err != nil {
					t.Error(err)
				}
			})
		}
	}
	for from, answered := range map[*lab.Host]*int{n.Internet: &udpWAN, n.Client: &udpLAN} {
		busy.Go(func() {
			var err error
			if *answered, err = n.exchangeSlowly(from, floodExchanges, clientsOver); err != nil {
				t.Error(err)
			}
		})
	}
	busy.Wait()
	return opened, udpWAN, udpLAN
}

// Summary says in a sentence what the rows show of hairpin, and of nftables.
func Summary(rows []Row) (hairpin, peer string) {
	var sums [2]summary
	for _, r := range rows {
		if r.translator == nftables.name {
			sums[1].add(r)
		} else {
			sums[0].add(r)
		}
	}
	return sums[0].String(), sums[1].String()
}

// summary is the worst of several rows.
type summary struct {
	floods, fastest   int
	established, lost int
	streams           int // that went on
	least             int // of the connections that opened from a place
}

func (s *summary) add(r Row) {
	if s.floods == 0 {
		s.least = floodClients
	}
	s.floods++
	s.fastest = max(s.fastest, r.rate)
	s.established += r.established
	s.lost += r.lostIdle + r.lostBusy
	if r.stream {
		s.streams++
	}
	if !r.overloaded {
		for _, opened := range r.opened {
			s.least = min(s.least, slices.Min(opened))
		}
	}
}

// String returns the summary in words for a table.
func (s *summary) String() string {
	return fmt.Sprintf("%d floods, the fastest %d/s: %d of %d established connections lost; at least %d of %d new ones open from each place; %d of %d streams go on",
		s.floods, s.fastest, s.lost, s.established, s.least, floodClients, s.streams, s.floods)
}

// Report returns the text of FLOODS.md.
func Report(s Setup, rows []Row) string {
	var text strings.Builder
	fmt.Fprintf(&text, floodPreface, s.Idle, standingActive, floodClients, clientsTime, floodExchanges, slowAnswer)
	text.WriteString("| flood | from | router | max_connections | a second | dropped by devices | lost idle / active |")
	for _, f := range floodedForwards {
		fmt.Fprintf(&text, " %s forward: %s |", f.name, strings.Join(floodPlaces, " / "))
	}
	text.WriteString(" stream | UDP 150 ms: WAN / LAN |\n|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&text, "| %s | %s | %s | %s | %d | %d | %d / %d |", r.flood, r.sources, r.translator, r.size, r.rate, r.dropped, r.lostIdle, r.lostBusy)
		for _, f := range floodedForwards {
			fmt.Fprintf(&text, " %s |", strings.Trim(strings.ReplaceAll(fmt.Sprint(r.opened[f.name]), " ", " / "), "[]"))
		}
		fmt.Fprintf(&text, " %s | %d / %d |\n", map[bool]string{true: "goes on", false: "ENDED"}[r.stream], r.udpWAN, r.udpLAN)
	}
	text.WriteString(floodNotes)
	return text.String()
}

const floodPreface = `# Floods

This table shows which connections of clients succeed while their router is flooded. Each flood runs with hairpin, and with the same
forwards in nftables (DNAT and masquerade, default settings of conntrack), one after the other on the same machine. ` + "`make floods`" + ` measures
and writes this file. ` + "`make torture` and `make test`" + ` measure some of the rows, and fail if hairpin breaks a promise (see the notes below).

Before each flood there are %d idle and %d active TCP connections, a quarter of them from the LAN, and one UDP stream that only the
server sends. The flood fills the table first. While it goes on, clients open new TCP connections to the flooded forward and to another
forward: %d from the LAN, and %[3]d from the WAN for each of the round trip times 20, 100 and 300 ms. A connection counts as opened if a byte
goes to the server and comes back within %[4]v. At the same time the WAN and the LAN each send %[5]d datagrams to a server that answers
after %[6]v.

`

const floodNotes = `
- One thread sends the flood as fast as it can. If a packet costs the router less CPU time, the thread sends more packets. A "paced" flood,
  only in ` + "`make torture` and `make test`" + `, is half as fast as the flood through nftables was. "A second" counts packets; for "TCP, opened and closed" it counts
  connections.
- "Dropped by devices" counts the packets per second that found the ring of a network device full: before the router, in it, or
  behind it. A sender waits while nftables or hairpin TC translates its packet. A sender does not wait for XDP, so its flood
  fills the rings of this small network. Clients then lose packets before hairpin can see them.
- The promises: hairpin loses no established connection and keeps the stream. To the flooded forward, at most one new connection fewer
  opens than with nftables in the same run; to the other forward all open. The slow server answers all datagrams, or at most one fewer
  than with nftables if devices dropped packets; when its own forward is flooded, this holds for the WAN. All but the first two are not
  demanded if the flood through XDP was not paced and devices dropped more than 1 % of its packets.
- The figures are from one run on one machine. Another run gives other figures, except where the figure is 0 or the full number.
`
