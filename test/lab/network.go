// SPDX-License-Identifier: Apache-2.0

package lab

import "testing"

// Addresses of the usual network.
const (
	External       = "203.0.113.2"   // address of the router's wan0
	Gateway        = "203.0.113.1"   // address of the Internet host, on the cable to wan0
	InternetSource = "198.51.100.10" // source of the Internet host's packets, behind the gateway
	RouterLAN      = "192.168.1.1"   // address of the router's lan0
	RouterGuest    = "192.168.2.1"   // address of the router's lan1
	Server         = "192.168.1.20"
	Client         = "192.168.1.50"
	Guest          = "192.168.2.50"
)

// Network is a home: a router with the Internet on wan0, a LAN of a client and a server
// behind a switch on lan0, and a second LAN of one guest on lan1.
//
//	Internet eth0 --- wan0 Router lan0 --- port0 Switch port1 --- eth0 Client
//	                          lan1 --- eth0 Guest     port2 --- eth0 Server
type Network struct {
	Internet, Router, Switch, Client, Server, Guest *Host
}

// NewNetwork makes the usual network. The router forwards, but does not translate yet.
func NewNetwork(tb testing.TB) *Network {
	tb.Helper()
	n := &Network{
		Internet: NewHost(tb, "internet"),
		Router:   NewHost(tb, "router"),
		Switch:   NewHost(tb, "switch"),
		Client:   NewHost(tb, "client"),
		Server:   NewHost(tb, "server"),
		Guest:    NewHost(tb, "guest"),
	}
	Cable(n.Router, "wan0", n.Internet, "eth0")
	Cable(n.Router, "lan0", n.Switch, "port0")
	Cable(n.Router, "lan1", n.Guest, "eth0")
	Cable(n.Client, "eth0", n.Switch, "port1")
	Cable(n.Server, "eth0", n.Switch, "port2")
	n.Switch.Bridge("br0", "port0", "port1", "port2")

	n.Internet.Address("eth0", Gateway+"/24", InternetSource+"/32")
	n.Internet.Route("eth0", "203.0.113.0/24", "", InternetSource)
	n.Router.Address("wan0", External+"/24")
	n.Router.Address("lan0", RouterLAN+"/24")
	n.Router.Address("lan1", RouterGuest+"/24")
	n.Client.Address("eth0", Client+"/24")
	n.Server.Address("eth0", Server+"/24")
	n.Guest.Address("eth0", Guest+"/24")

	n.Router.Route("wan0", "0.0.0.0/0", Gateway, "")
	n.Client.Route("eth0", "0.0.0.0/0", RouterLAN, "")
	n.Server.Route("eth0", "0.0.0.0/0", RouterLAN, "")
	n.Guest.Route("eth0", "0.0.0.0/0", RouterGuest, "")
	n.Router.Sysctl("net/ipv4/ip_forward", "1")
	return n
}

// Addresses of a host behind the Internet host, which is then a router.
const (
	Far        = "192.0.2.10"
	FarGateway = "192.0.2.1" // address of the Internet host's eth1, on the cable to Far
)

// AddFar adds a host behind the Internet host.
//
//	Far eth0 --- eth1 Internet eth0 --- wan0 Router
func (n *Network) AddFar(tb testing.TB) *Host {
	tb.Helper()
	far := NewHost(tb, "far")
	Cable(n.Internet, "eth1", far, "eth0")
	n.Internet.Address("eth1", FarGateway+"/24")
	n.Internet.Sysctl("net/ipv4/ip_forward", "1")
	far.Address("eth0", Far+"/24")
	far.Route("eth0", "0.0.0.0/0", FarGateway, "")
	return far
}

// SetMTU sets the MTUs of all interfaces: on the WAN's cable, on the LAN's cables, and on the guest's cable.
func (n *Network) SetMTU(wan, lan, guest int) {
	n.Internet.MTU("eth0", wan)
	n.Router.MTU("wan0", wan)
	for _, port := range []string{"port0", "port1", "port2", "br0"} {
		n.Switch.MTU(port, lan)
	}
	n.Router.MTU("lan0", lan)
	n.Client.MTU("eth0", lan)
	n.Server.MTU("eth0", lan)
	n.Router.MTU("lan1", guest)
	n.Guest.MTU("eth0", guest)
}

// For returns the network for use in a subtest: its failures and cleanups are then the subtest's.
func (n *Network) For(tb testing.TB) *Network {
	return &Network{
		Internet: n.Internet.For(tb), Router: n.Router.For(tb), Switch: n.Switch.For(tb),
		Client: n.Client.For(tb), Server: n.Server.For(tb), Guest: n.Guest.For(tb),
	}
}

// For returns the host for use in a subtest: its failures and cleanups are then the subtest's.
func (h *Host) For(tb testing.TB) *Host {
	other := *h
	other.tb = tb
	return &other
}

// Offloads says which interfaces have checksum and segmentation offloads.
type Offloads int

const (
	// AsTheyCome is the default of veth: transport checksums stay partial, GSO packets stay whole.
	AsTheyCome Offloads = iota
	// RouterOff switches the offloads off on the router only. Its kernel then completes the partial checksums of the
	// hosts, so a wrong partial sum becomes a wrong checksum on the wire.
	RouterOff
	// AllOff switches the offloads off on all hosts: all checksums on the cables are complete.
	AllOff
	// AllOffGRO is AllOff with GRO on at all hosts except the router: with GRO their veths take XDP frames.
	AllOffGRO
	// OnGRO is AsTheyCome with GRO on, as in AllOffGRO. XDP could then send frames with partial checksums, which it must not do.
	OnGRO
)

// String returns the name of the subtest.
func (o Offloads) String() string {
	return [...]string{"as they come", "router off", "all off", "all off, GRO", "on, GRO"}[o]
}

// SetOffloads sets the offloads of every interface of the network.
func (n *Network) SetOffloads(o Offloads) {
	ports := []struct {
		host *Host
		devs []string
	}{
		{n.Router, []string{"wan0", "lan0", "lan1"}},
		{n.Internet, []string{"eth0"}},
		{n.Switch, []string{"port0", "port1", "port2"}},
		{n.Client, []string{"eth0"}},
		{n.Server, []string{"eth0"}},
		{n.Guest, []string{"eth0"}},
	}
	for i, port := range ports {
		for _, dev := range port.devs {
			off := o == AllOff || o == AllOffGRO || o == RouterOff && i == 0
			port.host.Offload(dev, TransmitChecksum, !off)
			port.host.Offload(dev, ReceiveOffload, (o == AllOffGRO || o == OnGRO) && i != 0)
		}
	}
}

// CompleteFrames makes all checksums complete, and makes the hosts' veths take XDP frames, so that the router's XDP can send.
func (n *Network) CompleteFrames() {
	for _, h := range []*Host{n.Internet, n.Router, n.Switch, n.Client, n.Server} {
		for name, link := range h.Links() {
			if link.Type() == "veth" {
				h.Offload(name, TransmitChecksum, false)
				h.Offload(name, ReceiveOffload, h != n.Router)
			}
		}
	}
}
