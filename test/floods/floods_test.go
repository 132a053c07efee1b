// SPDX-License-Identifier: Apache-2.0

package floods

import (
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/test/lab"
	"hairpin/test/record"
)

const (
	floodsFile = "FLOODS.md"
	// floodsShort is where the short form writes its table; `make test` prints it.
	floodsShort = "../../bin/floods.md"
)

// floodKind is what comes in. Its tuples are random within its sources.
type floodKind struct {
	name  string
	tcp   bool
	churn bool // TCP connections that are opened and closed in earnest
	port  uint16
	times int // packets of a tuple
}

var (
	floodSYN   = floodKind{name: "SYN", tcp: true, port: portFlooded}
	floodUDP   = floodKind{name: "UDP, answered, 1 datagram a tuple", port: portAnswering, times: 1}
	floodUDP2  = floodKind{name: "UDP, answered, 2 datagrams a tuple", port: portAnswering, times: 2}
	floodSlow  = floodKind{name: "UDP, answered after 150 ms", port: portSlow, times: 1}
	floodChurn = floodKind{name: "TCP, opened and closed", tcp: true, churn: true, port: portFlooded}

	floodKinds = []floodKind{floodSYN, floodUDP, floodUDP2, floodSlow, floodChurn}
)

// sources are where a flood comes from.
type sources struct {
	name    string
	lan     bool
	family6 bool
	from    []netip.Prefix // none: any public address
	churn   []netip.Prefix // addresses that the flooding host has, for real connections
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

// translator is who translates.
type translator struct {
	name        string
	mode        string // of hairpin; "" is nftables
	connections int    // max_connections
	paced       bool   // the flood is half as fast as it was through nftables, instead of as fast as can be
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
	// A flood that leaves room for newcomers in the rings of the devices.
	hairpinPaced = translator{name: "hairpin xdp, paced", mode: "xdp", connections: placesFew, paced: true}
)

func (tr translator) size() string {
	if tr.mode == "" {
		return "-"
	}
	return fmt.Sprint(tr.connections)
}

// floodCase is one flood through nftables and through hairpins that have to do as well.
type floodCase struct {
	flood    floodKind
	sources  sources
	hairpins []translator
}

// shortFloods show each promise once.
func shortFloods() []floodCase {
	return []floodCase{
		{floodSYN, sourceAny, []translator{hairpinTC, hairpinFew, hairpinPaced}},
		{floodUDP, sourceAny, []translator{hairpinFew, hairpinPaced}},
		{floodSlow, sourceAny, []translator{hairpinFew}},
		{floodChurn, sourceAny, []translator{hairpinFew}},
		{floodUDP, sourceLAN, []translator{hairpinFew}},
		{floodUDP, source6, []translator{hairpinFew}},
	}
}

func allFloods() (cases []floodCase) {
	for _, f := range floodKinds {
		for _, s := range floodSources {
			cases = append(cases, floodCase{f, s, []translator{hairpinTC, hairpinFew, hairpinXDP, hairpinXDPF}})
		}
	}
	return cases
}

const (
	floodClients   = 100 // of a place and a forward
	floodExchanges = 60
	floodTime      = 3 * time.Second
	// floodFilling is for how long a flood goes on before the first client comes, so that the tables are full.
	floodFilling = 2 * time.Second
	// churnFilling is the most for connections that are opened and closed, of which a second sees far fewer: twice the
	// places of a table of placesFew are enough. Larger ones get more time, up to churnFillingMost.
	churnFilling     = 15 * time.Second
	churnFillingMost = time.Minute
	clientsOver      = time.Second
	clientsTime      = 3 * time.Second
)

// floodRow is a line of the table.
type floodRow struct {
	flood, sources, translator, size string

	rate               int  // packets a second, or connections opened and closed
	dropped            int  // a second, by network devices whose rings were full
	overloaded         bool // so many that newcomers' packets are lost, too, before the translator sees them
	lostIdle, lostBusy int
	opened             map[string][]int // by forward: the clients as in floodPlaces
	stream             bool
	udpWAN, udpLAN     int
}

// floodPlaces are where new clients are, in the order of the columns.
var floodPlaces = []string{"LAN", "20 ms", "100 ms", "300 ms"}

var floodedForwards = []struct {
	name string
	port uint16
}{{"flooded", portFlooded}, {"other", portOther}}

// TestFloods floods a router that holds connections, and compares what hairpin's clients get with what those of
// nftables get in the same run. The short form is for every run; with -rewrite every flood is tried and FLOODS.md written.
func TestFloods(t *testing.T) {
	cases, file := shortFloods(), floodsShort
	if *record.Rewrite {
		cases, file = allFloods(), floodsFile
	}
	var rows []floodRow
	want := 0
	for _, c := range cases {
		want += 1 + len(c.hairpins)
		t.Run(c.flood.name+" from "+c.sources.name, func(t *testing.T) {
			peer := measureFlood(t, c, nftables, 0)
			rows = append(rows, peer)
			for _, h := range c.hairpins {
				rate := 0
				if h.paced {
					rate = peer.rate / 2
				}
				row := measureFlood(t, c, h, rate)
				rows = append(rows, row)
				for _, broken := range row.broken(peer) {
					t.Errorf("%s, max_connections %s: %s", row.translator, row.size, broken)
				}
			}
		})
	}
	report := floodReport(rows)
	t.Logf("\n%s", report)
	if len(rows) != want {
		t.Logf("not everything ran: %s is not written", file)
		return
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(report), 0o644); err != nil {
		t.Fatalf("write table: %v", err)
	}
}

// broken says which promises the row breaks beside that of nftables.
func (r floodRow) broken(peer floodRow) (broken []string) {
	if r.lostIdle != 0 || r.lostBusy != 0 {
		broken = append(broken, fmt.Sprintf("%d idle and %d active established connections are lost, want none", r.lostIdle, r.lostBusy))
	}
	if !r.stream {
		broken = append(broken, "the stream that only the server sends has ended")
	}
	if r.overloaded {
		return broken
	}
	for _, f := range floodedForwards {
		for i, place := range floodPlaces {
			if got, want := r.opened[f.name][i], peer.opened[f.name][i]-1; got < want {
				broken = append(broken, fmt.Sprintf("%d of %d new connections opened from %s on the %s forward, want %d: nftables opened %d",
					got, floodClients, place, f.name, want, want+1))
			}
		}
	}
	if got, want := r.udpWAN, peer.udpWAN-1; got < want {
		broken = append(broken, fmt.Sprintf("%d of %d datagrams from the WAN answered by the server that takes %v, want %d: nftables had %d answered",
			got, floodExchanges, slowAnswer, want, want+1))
	}
	return broken
}

// measureFlood makes a network, floods it at a rate, 0 for the highest, and tells what its clients got.
func measureFlood(t *testing.T, c floodCase, tr translator, rate int) (row floodRow) {
	t.Run(tr.name+" "+tr.size(), func(t *testing.T) {
		n := newFloodNetwork(t, c.sources.family6)
		if tr.mode == "xdp" {
			n.Network.CompleteFrames()
		}
		n.serve(t)
		if tr.mode == "" {
			n.useNFT()
		} else {
			n.useHairpin(tr.mode, tr.connections)
		}
		row = n.measure(t, c, tr, rate)
		t.Logf("%+v", row)
	})
	row.flood, row.sources, row.translator, row.size = c.flood.name, c.sources.name, tr.name, tr.size()
	if row.opened == nil {
		t.Fatal("not measured")
	}
	return row
}

func (n *floodNetwork) measure(t *testing.T, c floodCase, tr translator, rate int) floodRow {
	var row floodRow
	rtp := n.startStream(t, n.Internet)
	conns := n.establish(t)
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
	row.lostIdle, row.lostBusy = conns.lost()
	return row
}

// dropped is how many packets the network's devices could not take, because their rings were full.
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

// places is how many connections the table holds that is to be filled: of nftables, which has others, as many as of the
// largest hairpin beside it.
func (c floodCase) places(tr translator) int {
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
func (n *floodNetwork) startFlood(t *testing.T, c floodCase, rate int) *floodRun {
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
			protocol := uint8(unix.IPPROTO_UDP)
			if c.flood.tcp {
				protocol = unix.IPPROTO_TCP
			}
			_, r.err = from.SendFlood(dev, neighbour, lab.Flood{Protocol: protocol, From: c.sources.from, To: to, Rate: rate, Times: c.flood.times}, stop)
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
	limit, enough := floodFilling, int64(math.MaxInt64)
	if r.kind.churn {
		limit, enough = min(churnFilling*time.Duration(places)/placesFew, churnFillingMost), int64(2*places)
	}
	for time.Since(r.began) < limit && r.sent.Load() < enough {
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

// floodReport is the text of FLOODS.md.
func floodReport(rows []floodRow) string {
	var text strings.Builder
	text.WriteString(floodPreface)
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

var floodPreface = fmt.Sprintf(`# Floods

What clients get while their router is flooded: with hairpin, and with the same forwards in nftables (DNAT and masquerade,
conntrack as it is by default), one after the other on the same machine. `+"`make floods`"+` measures and writes this file;
`+"`make test`"+` measures some of the rows and fails where hairpin breaks a promise.

Before each flood there are %d idle and %d active TCP connections, half of them from the LAN, and one UDP stream that only the
server sends. The flood then fills the table, and goes on while %d new TCP connections each come from the LAN and from the WAN
at round trip times of 20, 100 and 300 ms, to the forward that is flooded and to another one. A connection has opened when a
byte has gone to the server and come back within %v. At the same time %d datagrams each go from the WAN and the LAN to a server
that answers after %v.

`, standingIdle, standingActive, floodClients, clientsTime, floodExchanges, slowAnswer)

const floodNotes = `
- The flood comes as fast as one thread can send: the less a packet costs the router, the more there are. A "paced" flood, which
  only ` + "`make test`" + ` has, is half as fast as it was through nftables. "A second" counts packets, and for TCP that is opened and closed whole connections.
- "Dropped by devices" counts packets a second that found the ring of a network device full: before the router, in it, or
  behind it. A sender waits while nftables or hairpin TC translates its packet; it does not wait for XDP, so that such a flood
  fills the rings of this small network, and clients lose packets that no translator has seen.
- hairpin loses no established connection, keeps the stream, and opens at least as many new connections as nftables in the
  same run, less one. Of the datagrams from the WAN to the late server as many are answered as with nftables, less one. Neither
  is compared where the flood through XDP was not paced, and devices dropped more than one packet in a hundred.
- The figures are of one run on the machine that wrote them. Another run gives other figures, but for those that are 0 or all.
`
