// SPDX-License-Identifier: Apache-2.0

package test

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
	n := newNetwork6(tb)
	n.Router.Unplug("wan0")
	wan.cable(n.Router, "wan0", n.Internet, "eth0")
	n.Router.Unplug("lan0")
	lan.cable(n.Router, "lan0", n.Switch, "port0")
	addressWAN(n)
	n.Router.Address("lan0", lab.RouterLAN+"/24")
	address6(n.Router, "lan0", routerLAN6+"/64", routerLink6+"/64")
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

// addressWAN gives both ends of the WAN's cable what they had before it was laid anew.
func addressWAN(n *lab.Network) {
	n.Internet.Address("eth0", lab.Gateway+"/24", lab.InternetSource+"/32")
	address6(n.Internet, "eth0", gateway6+"/128", internetSource6+"/128", gatewayLink6+"/64")
	n.Internet.Route("eth0", "203.0.113.0/24", "", lab.InternetSource)
	n.Internet.Route("eth0", "2001:db8:0:1::/64", "", internetSource6)
	n.Router.Address("wan0", lab.External+"/24")
	address6(n.Router, "wan0", external6+"/64")
	n.Router.Route("wan0", "0.0.0.0/0", lab.Gateway, "")
	n.Router.Route("wan0", "::/0", gatewayLink6, "")
}

func addressServer(n *lab.Network) {
	n.Server.Address("eth0", lab.Server+"/24")
	address6(n.Server, "eth0", server6+"/64")
	n.Server.Route("eth0", "0.0.0.0/0", lab.RouterLAN, "")
	n.Server.Route("eth0", "::/0", routerLink6, "")
}

// routeLAN makes the switch a router, by which the client and the server are reached one by one.
func routeLAN(n *lab.Network) {
	const inner, innerLink = "192.168.1.254", "fe80::2"
	n.Switch.Unplug("br0")
	enable6(n.Switch)
	n.Switch.Sysctl("net/ipv4/ip_forward", "1")
	n.Switch.Sysctl("net/ipv6/conf/all/forwarding", "1")
	n.Switch.Route("port0", "0.0.0.0/0", "", "")
	n.Switch.Route("port0", "::/0", "", "")
	for port, host := range map[string]*lab.Host{"port1": n.Client, "port2": n.Server} {
		addr, addr6 := lab.Client, client6
		if host == n.Server {
			addr, addr6 = lab.Server, server6
		}
		n.Switch.Address(port, inner+"/32")
		address6(n.Switch, port, innerLink+"/64")
		n.Switch.Route(port, addr+"/32", "", inner)
		n.Switch.Route(port, addr6+"/128", "", "")
		host.Run("ip", "address", "flush", "dev", "eth0", "scope", "global")
		host.Address("eth0", addr+"/32")
		address6(host, "eth0", addr6+"/128")
		host.Route("eth0", inner+"/32", "", "")
		host.Route("eth0", "0.0.0.0/0", inner, "")
		host.Route("eth0", "::/0", innerLink, "")
	}
}

// completeFrames makes every veth carry what XDP sends: frames with their checksums, to who takes them.
func completeFrames(n *lab.Network) {
	for _, h := range []*lab.Host{n.Internet, n.Router, n.Switch, n.Client, n.Server} {
		for name, link := range h.Links() {
			if link.Type() == "veth" {
				h.Offload(name, lab.TransmitChecksum, false)
				h.Offload(name, lab.ReceiveOffload, h != n.Router)
			}
		}
	}
}
