// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// linkChange takes an interface away in some way, and brings it back.
type linkChange struct {
	name string
	away func(c changing)
	back func(c changing)
	says string // in what status says meanwhile
	ends bool   // the addresses are nobody's meanwhile, and what was bound to them is over
}

var linkChanges = []linkChange{
	{"LAN down",
		func(c changing) { c.Router.Down("lan0") },
		func(c changing) { c.Router.Up("lan0") },
		"lan0: the link is down", false},
	{"WAN down",
		func(c changing) { c.Router.Down("wan0") },
		changing.restore,
		"wan0: the link is down", false},
	{"LAN renamed",
		func(c changing) { c.Router.Rename("lan0", "else0") },
		func(c changing) { c.Router.Rename("else0", "lan0") },
		"pending", true},
	{"WAN renamed",
		func(c changing) { c.Router.Rename("wan0", "else0") },
		func(c changing) {
			c.Router.Rename("else0", "wan0")
			c.restore()
		},
		"pending", true},
	{"LAN in a bridge",
		func(c changing) { c.Router.Bridge("br9", "lan0") },
		func(c changing) { c.Router.Unmaster("lan0") },
		"lan0 is a port of br9, which receives its packets; name br9 in the configuration", true},
	{"WAN in a bridge",
		func(c changing) { c.Router.Plug("br9", "wan0") },
		func(c changing) { c.Router.Unmaster("wan0") },
		"wan0 is a port of br9", true},
}

// TestLinksChange: while an interface is away, status warns. When the interface is back, everything works as before.
// The kernel needs a second or two: it reports link changes once a second, and first waits for a bridge's port and for
// duplicate address detection.
func TestLinksChange(t *testing.T) {
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			c := newChanging(t, mode)
			for _, change := range linkChanges {
				t.Run(change.name, func(t *testing.T) { linkAwayAndBack(t, changing{c.For(t), c.hp.For(t)}, change) })
			}
		})
	}
}

func linkAwayAndBack(t *testing.T, c changing, change linkChange) {
	open := standings(t, c.Internet, c.Client, c.Router)
	change.away(c)
	lab.Eventually(t, atOnce, func() error { return c.says(change.says) })
	for _, s := range open[:2] { // from the Internet, by either interface
		lab.Eventually(t, atOnce, func() error {
			if s.answered() == nil {
				return fmt.Errorf("%s: served by an interface that is not there", s.name)
			}
			return nil
		})
	}
	change.back(c)
	if change.ends {
		lab.Eventually(t, lab.Patience, func() error { return serves(c.Client, lab.External+":80") })
		standings(t, c.Internet, c.Client, c.Router)
	} else {
		stand(t, open, lab.Patience)
	}
	if err := c.says(change.says); err == nil {
		t.Errorf("status still says %q", change.says)
	}
}

// says looks for a text in the warnings of status.
func (c changing) says(text string) error {
	out := c.hp.Run("status")
	if !strings.Contains(out, text) {
		return fmt.Errorf("status does not say %q:\n%s", text, out)
	}
	return nil
}

// TestInterfaceMovesAway: an interface that went to another network namespace is as good as gone, and
// translates nothing there; when it is back new connections are served. Those whose own addresses did not go
// with it go on.
func TestInterfaceMovesAway(t *testing.T) {
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			c := newChanging(t, mode)
			elsewhere := lab.NewHost(t, "elsewhere")
			internet, reflected := home.Waiting(t, c.Internet), home.Waiting(t, c.Client)
			c.Router.Move("lan0", elsewhere)
			lab.Eventually(t, atOnce, func() error { return c.says("pending") })
			lab.Eventually(t, atOnce, func() error {
				if tc, xdp := elsewhere.Attached("lan0"); len(tc) != 0 || xdp != 0 {
					return fmt.Errorf("still attached: TC %v, XDP %d", tc, xdp)
				}
				return nil
			})

			elsewhere.Move("lan0", c.Router)
			c.Router.Up("lan0")
			c.Router.Address("lan0", lab.RouterLAN+"/24")
			c.Router.Address6("lan0", lab.RouterLAN6+"/64", lab.RouterLink6+"/64")
			c.SetOffloads(home.OffloadsFor(mode))
			for _, w := range home.Ways(c.Network) {
				lab.Eventually(t, atOnce, func() error { return serves(w.From, lab.External+":80") })
			}
			// While the interface was away, no RST could be sent. If the interface was back before the daemon looked, no
			// connection has ended.
			if err := reflected.Echo(10_000); err != nil && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
				t.Errorf("the client hears %v, want %v or nothing of it", err, unix.ECONNRESET)
			}
			if err := internet.Echo(10_000); err != nil {
				t.Errorf("from the Internet: %v", err)
			}
			standings(t, c.Internet, c.Client, c.Router)
		})
	}
}

// TestNoExternalAddress: a WAN interface that has lost its last address forwards nothing, says so, and serves
// again with the next one.
func TestNoExternalAddress(t *testing.T) {
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			c := newChanging(t, mode)
			reflected := home.Waiting(t, c.Client)
			c.Router.Run("ip", "address", "flush", "dev", "wan0", "scope", "global")
			hears(t, reflected)
			lab.Eventually(t, atOnce, func() error { return c.says("wan0: no address, so nothing reaches its forwards") })
			if serves(c.Internet, lab.External+":80") == nil || serves(c.Client, lab.External+":80") == nil {
				t.Error("served by an address that is gone")
			}

			c.Router.Address("wan0", lab.External+"/24")
			c.Router.Route("wan0", "0.0.0.0/0", lab.Gateway, "")
			lab.Eventually(t, atOnce, func() error { return serves(c.Client, lab.External+":80") })
			lab.Eventually(t, atOnce, func() error { return c.says("no WAN interface has an IPv6 address") })
			c.Router.Address6("wan0", lab.External6+"/64")
			c.restore()
			lab.Eventually(t, atOnce, func() error { return c.says("attached") })
			standings(t, c.Internet, c.Client, c.Router)
		})
	}
}

const secondExternal = "203.0.113.3"

// TestSeveralExternalAddresses: forwards listen on each address of an interface, also on an address that is added later.
// Adding and removing addresses does not disturb connections of another address.
func TestSeveralExternalAddresses(t *testing.T) {
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.Server.ServeTCP(":8080")
			n.Server.ServeUDP(":5353")
			home.Start(t, n, mode, home.Forwards)
			loads := []*lab.Load{n.Internet.StartLoad(lab.External+":80", lab.External+":53"), n.Client.StartLoad(lab.External+":80", lab.External+":53")}
			for range 5 {
				n.Router.Address("wan0", secondExternal+"/24")
				for _, w := range home.Ways(n) {
					lab.Eventually(t, atOnce, func() error { return serves(w.From, secondExternal+":80") })
				}
				second := home.WaitingAt(t, n.Client, secondExternal)
				n.Router.Unaddress("wan0", secondExternal+"/24")
				hears(t, second)
			}
			for _, load := range loads {
				load.Advance(1)
				load.Stop()
			}
		})
	}
}

// TestAddressChangesWithoutDaemon: what the address of a WAN interface became while no daemon ran holds within
// a second of its return; until then the connections of other addresses go on, and none begins by the new one.
func TestAddressChangesWithoutDaemon(t *testing.T) {
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.Server.ServeTCP(":8080")
			n.Router.Sysctl("net/ipv4/conf/wan0/promote_secondaries", "1") // or they go with the first
			n.Router.Address("wan0", secondExternal+"/24")
			hp := home.Start(t, n, mode, home.Forwards)
			goes, stays := home.Waiting(t, n.Client), home.WaitingAt(t, n.Client, secondExternal)
			hp.Kill()
			const replacement = "203.0.113.77"
			n.Router.Unaddress("wan0", lab.External+"/24")
			n.Router.Address("wan0", replacement+"/24")
			n.Router.Route("wan0", "0.0.0.0/0", lab.Gateway, "")
			if err := stays.Echo(10_000); err != nil {
				t.Errorf("connection of an address that stays: %v", err)
			}
			if serves(n.Client, replacement+":80") == nil {
				t.Error("served by an address that nobody told of")
			}

			hp.Start()
			ready := time.Now()
			for _, w := range home.Ways(n) {
				lab.Eventually(t, atOnce-time.Since(ready), func() error { return serves(w.From, replacement+":80") })
			}
			hears(t, goes)
			if err := stays.Echo(10_000); err != nil {
				t.Errorf("connection of an address that stays: %v", err)
			}
			if serves(n.Client, lab.External+":80") == nil {
				t.Error("served by an address that is gone")
			}
		})
	}
}
