// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// grace sets the time that connections wait for a lost address.
func grace(d string) string { return "[timeouts]\naddress_grace = \"" + d + "\"\n" }

// seesNoWAN returns after the daemon has seen that wan0 is without an address.
func seesNoWAN(t *testing.T, hp *lab.Hairpin, text string) {
	t.Helper()
	lab.Eventually(t, lab.Patience, func() error {
		if log := hp.Log(); !strings.Contains(log, text) {
			return fmt.Errorf("the daemon does not log %q:\n%s", text, log)
		}
		return nil
	})
}

// losses are ways in which the router loses its WAN addresses and gets them back.
var losses = []struct {
	name string
	away func(n *lab.Network)
	back func(n *lab.Network)
	seen string // what the daemon logs when it has seen the loss
}{
	{"addresses deleted and added", func(n *lab.Network) {
		n.Router.Unaddress("wan0", lab.External+"/24")
		n.Router.Run("ip", "-6", "address", "del", lab.External6+"/64", "dev", "wan0")
	}, func(n *lab.Network) {
		n.Router.Address("wan0", lab.External+"/24")
		n.Router.Address6("wan0", lab.External6+"/64")
		n.Router.Route("wan0", "0.0.0.0/0", lab.Gateway, "")
		n.Router.Route("wan0", "::/0", lab.GatewayLink6, "")
	}, "msg=addresses interface=wan0 addresses=[]"},
	{"redialled", func(n *lab.Network) { n.Router.Unplug("wan0") }, func(n *lab.Network) {
		lab.Cable(n.Router, "wan0", n.Internet, "eth0")
		n.Internet.Address("eth0", lab.Gateway+"/24", lab.InternetSource+"/32")
		n.Internet.Route("eth0", "203.0.113.0/24", "", lab.InternetSource)
		n.Router.Enable6()
		n.Internet.Enable6()
		n.Internet.Address6("eth0", lab.Gateway6+"/128", lab.InternetSource6+"/128", lab.GatewayLink6+"/64")
		n.Internet.Route("eth0", "2001:db8:0:1::/64", "", lab.InternetSource6)
		n.Router.Address("wan0", lab.External+"/24")
		n.Router.Address6("wan0", lab.External6+"/64")
		n.Router.Route("wan0", "0.0.0.0/0", lab.Gateway, "")
		n.Router.Route("wan0", "::/0", lab.GatewayLink6, "")
		n.Router.Sysctl("net/ipv6/conf/all/forwarding", "1")
	}, "no such interface yet"},
}

// TestLostAddressComesBack: the connections of an address that comes back live on, however the router lost it. Between
// the loss and the return the daemon sees that the address is away.
func TestLostAddressComesBack(t *testing.T) {
	for _, mode := range home.Modes {
		for _, loss := range losses {
			t.Run(mode+", "+loss.name, func(t *testing.T) {
				n := lab.NewNetwork6(t)
				n.SetOffloads(home.OffloadsFor(mode))
				n.Server.ServeTCP(":8080")
				n.Server.ServeUDP(":5353")
				n.Server.ServeTCP("[::]:8080")
				n.Server.ServeUDP("[::]:5353")
				// The grace is no matter of this test: a slow machine may take its time.
				hp := home.Start(t, n, mode, grace("10m")+home.Forwards+home.Forwards6)
				open := standings(t, n.Internet, n.Client, n.Router)
				loss.away(n)
				seesNoWAN(t, hp, loss.seen)
				if serves(n.Client, lab.External+":80") == nil {
					t.Error("served at an address that is away")
				}
				loss.back(n)
				n.SetOffloads(home.OffloadsFor(mode))
				// A workqueue adds the local route of an IPv6 address (addrconf_dad_work). Until then the router's own
				// sockets would take the default route, and keep it.
				lab.Eventually(t, lab.Patience, func() error {
					if route := n.Router.Run("ip", "-6", "route", "get", lab.External6); !strings.HasPrefix(route, "local") {
						return fmt.Errorf("the router's own address has the route %s", route)
					}
					return nil
				})
				stand(t, open, lab.Patience)
				lab.Eventually(t, lab.Patience, func() error { return serves(n.Client, lab.External+":80") })
			})
		}
	}
}

// TestLostLANAddressComesBack: the same for an address by which servers see reflected clients.
func TestLostLANAddressComesBack(t *testing.T) {
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.Server.ServeTCP(":8080")
			hp := home.Start(t, n, mode, grace("10m")+home.Forwards)
			reflected := home.Waiting(t, n.Client)
			n.Router.Unaddress("lan0", lab.RouterLAN+"/24")
			seesNoWAN(t, hp, "msg=addresses interface=lan0 addresses=[]")
			n.Router.Address("lan0", lab.RouterLAN+"/24")
			if err := reflected.Echo(10_000); err != nil {
				t.Errorf("reflected connection: %v", err)
			}
		})
	}
}

// TestLostAddressStaysAway: when the grace is over, the server and the LAN client hear at once that the connection has
// ended. The client on the Internet hears it with its next packet, if the WAN holds the address again.
func TestLostAddressStaysAway(t *testing.T) {
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.Server.ServeTCP(":8080")
			n.Server.ServeTCP("[::]:8080")
			home.Start(t, n, mode, grace("200ms")+home.Forwards+home.Forwards6)
			clients := map[string]*lab.Conn{}
			for _, external := range []string{lab.External, "[" + lab.External6 + "]"} {
				clients["LAN, "+external] = home.WaitingAt(t, n.Client, external)
				clients["Internet, "+external] = home.WaitingAt(t, n.Internet, external)
			}
			losses[0].away(n)
			lab.Eventually(t, atOnce, func() error { return noneEstablished(n.Server, "") })
			for name, c := range clients {
				if strings.HasPrefix(name, "LAN") {
					hears(t, c)
				}
			}
			losses[0].back(n)
			lab.Eventually(t, lab.Patience, func() error { return serves(n.Client, lab.External+":80") })
			for name, c := range clients {
				if strings.HasPrefix(name, "Internet") {
					if err := resetByNext(c); err != nil {
						t.Errorf("%s: %v", name, err)
					}
				}
			}
		})
	}
}

// resetByNext sends something and wants a RST in return.
func resetByNext(c net.Conn) error {
	if _, err := c.Write([]byte("anybody there?")); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	c.SetReadDeadline(time.Now().Add(lab.Patience))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		return fmt.Errorf("hears %v, want %v", err, unix.ECONNRESET)
	}
	return nil
}

// TestLostAddressWithoutDaemon: a command records the loss, and the grace is not lost with it. If the address is back
// when the next command looks, the connections live on; if not, and the grace is over, that command ends them.
func TestLostAddressWithoutDaemon(t *testing.T) {
	for _, test := range []struct {
		name, grace string
		back        bool
	}{{"comes back", "10m", true}, {"stays away", "1ms", false}} {
		t.Run(test.name, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			n.Server.ServeTCP(":8080")
			n.Server.ServeTCP("[::]:8080")
			hp := lab.NewHairpin(n.Router, home.Config("tc", grace(test.grace)+home.Forwards+home.Forwards6))
			hp.Run("attach")
			reflected := home.Waiting(t, n.Client)
			losses[0].away(n)
			hp.Run("attach")
			if test.back {
				losses[0].back(n)
			}
			hp.Run("attach")
			if !test.back {
				hears(t, reflected)
				lab.Eventually(t, atOnce, func() error { return noneEstablished(n.Server, "") })
				return
			}
			if err := reflected.Echo(10_000); err != nil {
				t.Errorf("the address is back: %v", err)
			}
		})
	}
}
