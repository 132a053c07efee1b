// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"testing"

	"hairpin/test/lab"
)

// device is a kind of interface that this kernel may have.
type device struct {
	name  string
	cable func(a *lab.Host, aName string, b *lab.Host, bName string) // whose first end is of this kind
	bare  bool                                                       // no Ethernet header
	mtu   int
}

var (
	vethDevice    = device{"veth", lab.Cable, false, 1500}
	bridgeDevice  = device{"bridge", lab.BridgeCable, false, 1500}
	macvlanDevice = device{"macvlan", lab.Macvlan, false, 1500}
	tapDevice     = device{"tap", lab.Tap, false, 1500}
	tunDevice     = device{"tun", lab.Tun, true, 1500}
	vxlanDevice   = device{"vxlan", lab.Vxlan, false, 1450}
)

// newDeviceNetwork is the usual network of both families, with the router's LAN and WAN on devices of these
// kinds. The bridge of a LAN has the server at a port of its own; behind a LAN of bare packets is another
// router instead of a switch.
func newDeviceNetwork(tb testing.TB, lan, wan device) *lab.Network {
	tb.Helper()
	n := lab.NewNetwork6(tb)
	n.Router.Unplug("wan0")
	wan.cable(n.Router, "wan0", n.Internet, "eth0")
	n.Router.Unplug("lan0")
	lan.cable(n.Router, "lan0", n.Switch, "port0")
	addressWAN(n)
	n.Router.Address("lan0", lab.RouterLAN+"/24")
	n.Router.Address6("lan0", lab.RouterLAN6+"/64", lab.RouterLink6+"/64")
	switch {
	case lan.bare:
		routeLAN(n)
	case lan.name == bridgeDevice.name:
		n.Switch.Plug("br0", "port0")
		n.Server.Unplug("eth0")
		lab.Cable(n.Router, "lan0server", n.Server, "eth0")
		n.Router.Plug("lan0", "lan0server")
		addressServer(n)
	default:
		n.Switch.Plug("br0", "port0")
	}
	for _, h := range []*lab.Host{n.Client, n.Server} {
		h.MTU("eth0", lan.mtu)
	}
	return n
}

// addressWAN gives both ends of a new WAN cable the addresses that the old cable had.
func addressWAN(n *lab.Network) {
	n.Internet.Address("eth0", lab.Gateway+"/24", lab.InternetSource+"/32")
	n.Internet.Address6("eth0", lab.Gateway6+"/128", lab.InternetSource6+"/128", lab.GatewayLink6+"/64")
	n.Internet.Route("eth0", "203.0.113.0/24", "", lab.InternetSource)
	n.Internet.Route("eth0", "2001:db8:0:1::/64", "", lab.InternetSource6)
	n.Router.Address("wan0", lab.External+"/24")
	n.Router.Address6("wan0", lab.External6+"/64")
	n.Router.Route("wan0", "0.0.0.0/0", lab.Gateway, "")
	n.Router.Route("wan0", "::/0", lab.GatewayLink6, "")
}

func addressServer(n *lab.Network) {
	n.Server.Address("eth0", lab.Server+"/24")
	n.Server.Address6("eth0", lab.Server6+"/64")
	n.Server.Route("eth0", "0.0.0.0/0", lab.RouterLAN, "")
	n.Server.Route("eth0", "::/0", lab.RouterLink6, "")
}

// routeLAN makes the switch a router, by which the client and the server are reached one by one.
func routeLAN(n *lab.Network) {
	const inner, innerLink = "192.168.1.254", "fe80::2"
	n.Switch.Unplug("br0")
	n.Switch.Enable6()
	n.Switch.Sysctl("net/ipv4/ip_forward", "1")
	n.Switch.Sysctl("net/ipv6/conf/all/forwarding", "1")
	n.Switch.Route("port0", "0.0.0.0/0", "", "")
	n.Switch.Route("port0", "::/0", "", "")
	for port, host := range map[string]*lab.Host{"port1": n.Client, "port2": n.Server} {
		addr, addr6 := lab.Client, lab.Client6
		if host == n.Server {
			addr, addr6 = lab.Server, lab.Server6
		}
		n.Switch.Address(port, inner+"/32")
		n.Switch.Address6(port, innerLink+"/64")
		n.Switch.Route(port, addr+"/32", "", inner)
		n.Switch.Route(port, addr6+"/128", "", "")
		host.Run("ip", "address", "flush", "dev", "eth0", "scope", "global")
		host.Address("eth0", addr+"/32")
		host.Address6("eth0", addr6+"/128")
		host.Route("eth0", inner+"/32", "", "")
		host.Route("eth0", "0.0.0.0/0", inner, "")
		host.Route("eth0", "::/0", innerLink, "")
	}
}
