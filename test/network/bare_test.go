// SPDX-License-Identifier: Apache-2.0

package network

import (
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// bareBytes go each way over each cable of bare packets.
const bareBytes = 2_000_000

// TestBarePackets: an interface whose packets have no Ethernet header, as PPP's, WireGuard's and
// tun's, is a WAN, a LAN, or both, and mixes with any other.
func TestBarePackets(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name      string
		wan, lan1 bool
	}{{"wan", true, false}, {"lan", false, true}, {"both", true, true}} {
		t.Run(test.name, func(t *testing.T) {
			n := lab.NewNetwork(t)
			if test.wan {
				bareWAN(n)
			}
			if test.lan1 {
				bareGuest(n)
			}
			n.Server.ServeTCP(":8080")
			udp := n.Server.ServeUDP(":5353")
			home.Start(t, n, "auto", home.Forwards)
			for _, w := range home.Ways(n) {
				t.Run(w.Name, func(t *testing.T) {
					overBareCables(t, n.For(t), w, udp)
				})
			}
		})
	}
}

// overBareCables moves bytes both ways, has what is in fragments echoed, and asks for what the router
// itself has to say.
func overBareCables(t *testing.T, n *lab.Network, w home.Way, udp *lab.Echoer) {
	from := w.From.For(t)
	c, err := from.DialTCP(lab.External+":80", "", lab.Patience)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	defer c.Close()
	if who, err := c.Who(); err != nil || who.Addr() != w.Sees {
		t.Errorf("server sees %v, want %v (%v)", who.Addr(), w.Sees, err)
	}
	if err := c.Echo(bareBytes); err != nil {
		t.Error(err)
	}
	d, err := from.DialUDP(lab.External+":53", "")
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	defer d.Close()
	for _, size := range []int{10, 1400, 8000} {
		if _, err := lab.Exchange(d, size, size); err != nil {
			t.Errorf("datagrams of %d bytes: %v", size, err)
		}
	}
	if hops := path(from.Run("traceroute", "-n", "-q2", "-w2", "-m6", "-T", "-p", "80", lab.External)); len(hops) < 2 {
		t.Errorf("traceroute names %v, want the router and the server", hops)
	}
}

// TestBareSources: a source address may have the number of the IP protocol where an Ethernet header has it. The packet is still taken for a
// bare one.
func TestBareSources(t *testing.T) {
	n := lab.NewNetwork6(t)
	vpnGuest(n, 1420)
	n.Guest.Address("lo", "8.0.0.50/32")
	n.Guest.Address6("lo", "2001:db8:86dd::50/128")
	n.Router.Route("lan1", "8.0.0.50/32", "", "")
	n.Router.Route("lan1", "2001:db8:86dd::50/128", "", "")
	n.Server.ServeTCP(":8080")
	n.Server.ServeTCP("[::]:8080")
	home.Start(t, n, "auto", home.Forwards+home.Forwards6)
	for source, external := range map[string]string{"8.0.0.50:0": lab.External, "[2001:db8:86dd::50]:0": "[" + lab.External6 + "]"} {
		c, err := n.Guest.DialTCP(external+":80", source, lab.Patience)
		if err != nil {
			t.Fatalf("from %s: %v", source, err)
		}
		defer c.Close()
		if err := c.Echo(bareBytes); err != nil {
			t.Errorf("from %s: %v", source, err)
		}
	}
}

func bareWAN(n *lab.Network) {
	n.Router.Run("ip", "link", "del", "wan0")
	lab.Tun(n.Router, "wan0", n.Internet, "eth0")
	n.Internet.Address("eth0", lab.Gateway+"/24", lab.InternetSource+"/32")
	n.Internet.Route("eth0", "203.0.113.0/24", "", lab.InternetSource)
	n.Router.Address("wan0", lab.External+"/24")
	n.Router.Route("wan0", "0.0.0.0/0", lab.Gateway, "")
}

func bareGuest(n *lab.Network) {
	n.Router.Run("ip", "link", "del", "lan1")
	lab.Tun(n.Router, "lan1", n.Guest, "eth0")
	n.Router.Address("lan1", lab.RouterGuest+"/24")
	n.Guest.Address("eth0", lab.Guest+"/24")
	n.Guest.Route("eth0", "0.0.0.0/0", lab.RouterGuest, "")
}
