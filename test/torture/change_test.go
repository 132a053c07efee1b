// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

var change = scenario{
	number: 8, name: "Addresses removed and added again; interfaces renamed, down and up, moved to a bridge, and back",
	demanded: "0 established connections end where the address is back within the grace; otherwise both sides are told of every end",
	run:      changeOften,
}

// edge is an interface of the router, with what it loses when it goes down.
type edge struct {
	dev, address, gateway string
}

var edges = []edge{{"wan0", lab.External + "/24", lab.Gateway}, {"lan0", lab.RouterLAN + "/24", ""}}

// linkChange takes an interface or its address away, and brings it back.
type linkChange struct {
	name       string
	away, back func(n *lab.Network, e edge)
	says       string // what status says when the daemon has seen it; "": the daemon logs that the interface has no address
	ends       bool   // the connections end if the interface stays away longer than the grace
}

var changes = []linkChange{
	{"address", func(n *lab.Network, e edge) { n.Router.Unaddress(e.dev, e.address) },
		func(n *lab.Network, e edge) { n.Router.Address(e.dev, e.address) }, "", true},
	{"name", func(n *lab.Network, e edge) { n.Router.Rename(e.dev, "else0") },
		func(n *lab.Network, e edge) { n.Router.Rename("else0", e.dev) }, "pending", true},
	{"down", func(n *lab.Network, e edge) { n.Router.Down(e.dev) },
		func(n *lab.Network, e edge) { n.Router.Up(e.dev) }, "the link is down", false},
	{"bridge", func(n *lab.Network, e edge) { n.Router.Plug("br9", e.dev) },
		func(n *lab.Network, e edge) { n.Router.Unmaster(e.dev) }, "is a port of br9", true},
}

// restore gives the router the route that it loses with an interface or an address.
func (e edge) restore(n *lab.Network) {
	if e.gateway != "" {
		n.Router.Route(e.dev, "0.0.0.0/0", e.gateway, "")
	}
}

// newChanging makes the network of this scenario.
func (t *trial) newChanging(mode string) *lab.Network {
	n := lab.NewNetwork(t)
	n.SetOffloads(home.OffloadsFor(mode))
	n.Server.ServeTCP(":8080")
	n.Router.Bridge("br9")
	return n
}

func changeOften(t *trial) figures {
	perMode := t.count(3, 100) / len(t.modes())
	done, ended, told, untold := 0, 0, 0, 0
	for _, mode := range t.modes() {
		n := t.newChanging(mode)
		hp := t.start(n, mode, addressGrace("10m")+home.Forwards)
		c := t.newCrowd(30, n.Internet, n.Client, n.Guest)
		for _, change := range changes {
			ended += t.changeBack(n, hp, c, change, mode, perMode)
			done += perMode
		}
		heard, missed := t.changeForGood(mode)
		told, untold = told+heard, untold+missed
	}
	t.none(ended, "established connections ended although the interface came back within the grace")
	t.none(untold, "ends of connections were not told to a side")
	return figures{
		measured: fmt.Sprintf("%d changes with 30 idle and 12 busy connections: %d ended; away for longer: %d ends told, %d not", done, ended, told, untold),
		nftables: t.beside(t.changeNFT),
	}
}

// changeBack takes interfaces away and brings them back within the grace. It returns how many connections have ended.
func (t *trial) changeBack(n *lab.Network, hp *lab.Hairpin, idle *crowd, change linkChange, mode string, rounds int) (ended int) {
	t.Helper()
	busy := t.newCrowd(12, n.Internet, n.Client)
	busy.stream(100 * time.Millisecond)
	for round := range rounds {
		e := edges[round%len(edges)]
		see := t.watching(hp, e, change.says)
		change.away(n, e)
		if round%4 < 2 { // otherwise the interface is back before the daemon has looked
			see()
		}
		change.back(n, e)
		e.restore(n)
		settled(hp)
		when := fmt.Sprintf("%s, %s of %s, round %d", mode, change.name, e.dev, round)
		if ended = idle.alive(when) + int(busy.ended.Load()); ended != 0 {
			t.Fatalf("%s: %d connections ended", when, ended)
		}
		t.progress(round+1, rounds, fmt.Sprintf("changes, %s, %s", mode, change.name))
	}
	ended, _ = busy.finish()
	return ended
}

func addressGrace(d string) string { return "[timeouts]\naddress_grace = \"" + d + "\"\n" }

// watching returns a function that returns when the daemon has seen the change that comes now.
func (t *trial) watching(hp *lab.Hairpin, e edge, says string) func() {
	lost := fmt.Sprintf("msg=addresses interface=%s addresses=[]", e.dev)
	before := strings.Count(hp.Log(), lost)
	return func() {
		t.Helper()
		lab.Eventually(t, lab.Patience, func() error {
			if says == "" && strings.Count(hp.Log(), lost) == before {
				return fmt.Errorf("the daemon does not log %q again:\n%s", lost, hp.Log())
			}
			if says == "" {
				return nil
			}
			if out := hp.Run("status"); !strings.Contains(out, says) {
				return fmt.Errorf("status does not say %q:\n%s", says, out)
			}
			return nil
		})
	}
}

// settled returns when the daemon has seen that everything is back. It looks by itself, but nothing shows when: a reload looks at all
// interfaces, after all that came before. Until then the router's own kernel may get packets, and answer them with a RST.
func settled(hp *lab.Hairpin) { hp.Reload() }

// quiet returns when no segment is on its way: the clients delay their last acknowledgements.
func (t *trial) quiet(n *lab.Network) {
	t.Helper()
	lab.Eventually(t, lab.Patience, func() error {
		if out := n.Server.Run("ss", "-Htni", "state", "established", "sport", "=", "8080"); strings.Contains(out, "unacked:") {
			return fmt.Errorf("the server waits for acknowledgements:\n%s", out)
		}
		return nil
	})
}

// soon is the time limit for the end of a connection to be told. It is shorter than the time of TCP keepalives, by which a side would
// find out itself.
var soon = lab.Patience / 4

// changeForGood takes the WAN away for longer than the grace, and returns how many ends were told and not told. The server and the LAN
// client hear of an end at once. The client on the Internet hears of it with its next packet, when the WAN has the address again.
func (t *trial) changeForGood(mode string) (told, untold int) {
	t.Helper()
	n := t.newChanging(mode)
	hp := t.start(n, mode, addressGrace("200ms")+home.Forwards)
	e := edges[0]
	for _, change := range changes {
		if !change.ends {
			continue
		}
		for round := range t.count(1, 3) {
			when := fmt.Sprintf("%s, %s, round %d", mode, change.name, round)
			c := t.newCrowd(20, n.Internet, n.Client)
			t.quiet(n)
			see := t.watching(hp, e, change.says)
			change.away(n, e)
			see()
			told += t.tellsServer(n, len(c.conns), when, &untold)
			for _, m := range c.conns {
				if m.from == n.Client.Name {
					count(&told, &untold, hears(m))
				}
			}
			change.back(n, e)
			e.restore(n)
			settled(hp)
			for _, m := range c.conns {
				if m.from != n.Internet.Name {
					continue
				}
				if _, err := m.Write([]byte("anybody there?")); errors.Is(err, unix.ECONNRESET) {
					told++ // a last acknowledgement was answered already
					continue
				}
				count(&told, &untold, hears(m))
			}
			c.close()
			if untold != 0 {
				t.Errorf("%s: %d ends were not told", when, untold)
				return told, untold
			}
		}
	}
	return told, untold
}

// tellsServer waits until the server has no established connection, and returns how many ends it was told.
func (t *trial) tellsServer(n *lab.Network, had int, when string, untold *int) (told int) {
	t.Helper()
	left := had
	lab.Eventually(softly{t.T, new(int)}, soon, func() error {
		left = strings.Count(n.Server.Run("ss", "-Htn", "state", "established", "sport", "=", "8080"), "\n")
		if left != 0 {
			return fmt.Errorf("%s: the server still has %d connections", when, left)
		}
		return nil
	})
	*untold += left
	return had - left
}

func count(told, untold *int, err error) {
	if err != nil {
		*untold++
		return
	}
	*told++
}

// hears returns nil if the peer has reset the connection.
func hears(m member) error {
	m.SetReadDeadline(time.Now().Add(soon))
	if _, err := m.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		return fmt.Errorf("the client on %s hears %v, want %v", m.from, err, unix.ECONNRESET)
	}
	return nil
}

// changeNFT does the same changes with nftables, and returns its figure.
func (t *trial) changeNFT() string {
	t.Helper()
	var said []string
	for _, change := range changes {
		n := t.newChanging("tc")
		useNFT(n.Router)
		ended, conns := 0, 0
		for round := range t.count(2, 4) {
			e := edges[round%len(edges)]
			c := t.newCrowd(30, n.Internet, n.Client, n.Guest)
			change.away(n, e)
			change.back(n, e)
			e.restore(n)
			ended, conns = ended+c.endedWithin(2*time.Second), conns+len(c.conns)
			c.close()
		}
		said = append(said, fmt.Sprintf("%s: %d of %d ended", change.name, ended, conns))
	}
	return strings.Join(said, "; ")
}

// endedWithin returns the number of connections on which no exchange succeeds within a time.
func (c *crowd) endedWithin(limit time.Duration) (ended int) {
	errs := make([]error, len(c.conns))
	lab.Together(len(c.conns), func(i int) { errs[i] = c.conns[i].EchoWithin(crowdBytes, limit) })
	for _, err := range errs {
		if err != nil {
			ended++
		}
	}
	return ended
}
