// SPDX-License-Identifier: Apache-2.0

package network

import (
	"net/netip"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// Addresses of a LAN behind a LAN: the guest is the router to it.
const (
	innerClient  = "192.168.4.50"
	innerClient6 = "fd00:4::50"
)

// addInner adds a client behind the guest, which is a router.
func addInner(t *testing.T, n *lab.Network) *lab.Host {
	t.Helper()
	inner := lab.NewHost(t, "inner")
	lab.Cable(n.Guest, "eth2", inner, "eth0")
	inner.Enable6()
	n.Guest.Enable6()
	n.Guest.Sysctl("net/ipv4/ip_forward", "1")
	n.Guest.Sysctl("net/ipv6/conf/all/forwarding", "1")
	n.Guest.Address("eth2", "192.168.4.1/24")
	n.Guest.Address6("eth2", "fd00:4::1/64")
	inner.Address("eth0", innerClient+"/24")
	inner.Address6("eth0", innerClient6+"/64")
	inner.Route("eth0", "0.0.0.0/0", "192.168.4.1", "")
	inner.Route("eth0", "::/0", "fd00:4::1", "")
	n.Router.Route("lan1", "192.168.4.0/24", lab.Guest, "")
	n.Router.Route("lan1", "fd00:4::/64", lab.Guest6, "")
	return inner
}

// TestRoutedLAN: behind a LAN is another, with clients and a server in it. Who shares the server's interface of
// the router is reflected, whichever net it is in; who does not is seen as itself.
func TestRoutedLAN(t *testing.T) {
	addr := netip.MustParseAddr
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			inner := addInner(t, n)
			n.SetOffloads(home.OffloadsFor(mode))
			services := home.Offers(n.Server)
			home.Start(t, n, mode, home.Forwards+home.Forwards6)
			for _, place := range []struct {
				name                  string
				client, guest, inner  string // whom the server sees
				client6, guest6, far6 string
			}{
				{"server in the LAN", lab.RouterLAN, lab.Guest, innerClient, lab.RouterLAN6, lab.Guest6, innerClient6},
				{"server behind another router", lab.Client, lab.RouterGuest, lab.RouterGuest, lab.Client6, lab.RouterGuest6, lab.RouterGuest6},
			} {
				if place.client == lab.Client {
					moveServer(n)
				}
				for i, sees := range [][]string{{place.client, place.guest, place.inner}, {place.client6, place.guest6, place.far6}} {
					for j, from := range []*lab.Host{n.Client, n.Guest, inner} {
						if err := services[i].Serves(from, addr(sees[j])); err != nil {
							t.Errorf("%s, %s, %s: %v", place.name, services[i].Family, from.Name, err)
						}
					}
					if err := services[i].Serves(n.Internet, services[i].Internet); err != nil {
						t.Errorf("%s, %s, from the Internet: %v", place.name, services[i].Family, err)
					}
				}
			}
		})
	}
}

// TestVPNClients: who comes in by a tunnel is a LAN client as any other, in each way of reflecting.
func TestVPNClients(t *testing.T) {
	n := lab.NewNetwork6(t)
	bareGuest(n)
	n.Router.Address6("lan1", lab.RouterGuest6+"/64")
	n.Guest.Address6("eth0", lab.Guest6+"/64")
	n.Guest.Route("eth0", "::/0", lab.RouterGuest6, "")
	services := home.Offers(n.Server)
	hp := home.Start(t, n, "auto", "")
	for _, test := range []struct{ reflect, sees, sees6 string }{
		{"auto", lab.Guest, lab.Guest6}, {"router", lab.RouterLAN, lab.RouterLAN6}, {"public", lab.External, lab.External6},
	} {
		hp.Write(home.Config("auto", "[reflection]\ndefault = \""+test.reflect+"\"\n"+home.Forwards+home.Forwards6))
		hp.Reload()
		for i, sees := range []string{test.sees, test.sees6} {
			if err := services[i].Serves(n.Guest, netip.MustParseAddr(sees)); err != nil {
				t.Errorf("reflect %s, %s: %v", test.reflect, services[i].Family, err)
			}
		}
	}
}

// TestPolicyRouting: the way to a server is the one that the router's rules give the translated packet, by its
// source, its protocol or its port.
func TestPolicyRouting(t *testing.T) {
	rules := map[string][]string{
		"source":            {"from", lab.InternetSource},
		"protocol and port": {"ipproto", "tcp", "dport", "8080"},
	}
	for _, mode := range home.Modes {
		for name, rule := range rules {
			t.Run(mode+", "+name, func(t *testing.T) {
				n := lab.NewNetwork(t)
				lab.Cable(n.Guest, "eth1", n.Server, "eth1")
				n.Guest.Sysctl("net/ipv4/ip_forward", "1")
				n.Guest.Address("eth1", "192.168.3.1/32")
				n.Guest.Route("eth1", lab.Server+"/32", "", "")
				n.SetOffloads(home.OffloadsFor(mode))
				n.Router.Run("ip", "route", "add", lab.Server, "via", lab.Guest, "dev", "lan1", "table", "77")
				n.Router.Run(append([]string{"ip", "rule", "add", "lookup", "77"}, rule...)...)
				n.Server.ServeTCP(":8080")
				n.Server.ServeUDP(":5353")
				home.Start(t, n, mode, home.Forwards)
				direct, around := n.Server.Watch("eth0", toServer(8080)), n.Server.Watch("eth1", toServer(8080))
				c, err := n.Internet.DialTCP(lab.External+":80", "", lab.Patience)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if err := c.Echo(100_000); err != nil {
					t.Error(err)
				}
				if _, err := around.Next(lab.Patience); err != nil {
					t.Errorf("the way of the rule: %v", err)
				}
				direct.Stop()
				if got := direct.Packets(); len(got) > 0 {
					t.Errorf("came the way of the main table: %v", got)
				}
				if name == "source" {
					return
				}
				// Nothing is said of other protocols.
				direct = n.Server.Watch("eth0", toServer(5353))
				u, err := n.Internet.DialUDP(lab.External+":53", "")
				if err != nil {
					t.Fatal(err)
				}
				defer u.Close()
				if _, err := lab.Exchange(u, 10, 100); err != nil {
					t.Error(err)
				}
				if _, err := direct.Next(lab.Patience); err != nil {
					t.Errorf("UDP, the way of the main table: %v", err)
				}
			})
		}
	}
}

// toServer matches what goes to a port of the server.
func toServer(port uint16) func(*lab.Packet) bool {
	return func(p *lab.Packet) bool { return p.Dst == netip.AddrPortFrom(home.ServerAddress, port) }
}
