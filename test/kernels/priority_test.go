// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// priorityDevice is a VLAN device with id 0 on top of eth0: what a host sends by it has a priority tag. Only frames with
// such a tag come in by it.
const priorityDevice = "eth0.0"

// fromRouter counts frames of the router's MAC address that come in by a device.
const fromRouter = `
table netdev router {
	counter tagged { }
	chain c {
		type filter hook ingress device "%s" priority 0
		ether saddr %s counter name tagged
	}
}
`

// tagByPriority has a host send to its neighbour, the router, by a VLAN device with id 0. Its addresses stay where they
// are, so the same connections go on with tags.
func tagByPriority(t *testing.T, h *lab.Host, router net.HardwareAddr, routes ...priorityRoute) {
	t.Helper()
	h.Run("ip", "link", "add", "link", "eth0", "name", priorityDevice, "type", "vlan", "id", "0", "egress-qos-map", "0:5")
	h.Enable6()
	h.Up(priorityDevice)
	h.RunInput(fmt.Sprintf(fromRouter, priorityDevice, router), "nft", "-f", "-")
	for _, r := range routes {
		args := []string{"ip", "route", "replace", r.network, "dev", priorityDevice, "src", r.source}
		if r.gateway != "" {
			args = append(args, "via", r.gateway, "onlink")
		}
		for _, neighbour := range r.neighbours {
			h.Neighbour(priorityDevice, netip.MustParseAddr(neighbour), router)
		}
		h.Run(args...)
	}
}

// priorityRoute is a route by the VLAN device. Without a gateway, the network is on the cable.
type priorityRoute struct {
	network, gateway, source string
	neighbours               []string
}

// tagAll has all hosts around the router send priority tags.
func tagAll(t *testing.T, n *lab.Network) {
	t.Helper()
	tagByPriority(t, n.Internet, n.Router.HardwareAddr("wan0"),
		priorityRoute{"203.0.113.0/24", "", lab.InternetSource, []string{lab.External}},
		priorityRoute{"2001:db8:0:1::/64", "", lab.InternetSource6, []string{lab.External6}})
	for _, h := range []struct {
		host                       *lab.Host
		dev, router, v4, v6        string
		network, network6, router6 string
	}{
		{n.Client, "lan0", lab.RouterLAN, lab.Client, lab.Client6, "192.168.1.0/24", "fd00:1::/64", lab.RouterLAN6},
		{n.Server, "lan0", lab.RouterLAN, lab.Server, lab.Server6, "192.168.1.0/24", "fd00:1::/64", lab.RouterLAN6},
		{n.Guest, "lan1", lab.RouterGuest, lab.Guest, lab.Guest6, "192.168.2.0/24", "fd00:2::/64", lab.RouterGuest6},
	} {
		tagByPriority(t, h.host, n.Router.HardwareAddr(h.dev),
			priorityRoute{"default", h.router, h.v4, []string{h.router}},
			priorityRoute{"::/0", lab.RouterLink6, h.v6, []string{lab.RouterLink6}},
			priorityRoute{h.router + "/32", "", h.v4, nil},
			priorityRoute{h.router6 + "/128", "", h.v6, []string{h.router6}})
	}
}

// tagsInFrames says whether the devices around the router write tags into their frames, as on a wire. Otherwise a tag travels
// beside the frame, as with the offload of a NIC.
func tagsInFrames(n *lab.Network, write bool) {
	offload := "on"
	if write {
		offload = "off"
	}
	for h, dev := range map[*lab.Host]string{n.Internet: "eth0", n.Guest: "eth0", n.Switch: "port0"} {
		h.Run("ethtool", "--offload", dev, "txvlan", offload)
	}
}

// untagAll removes what tagAll added.
func untagAll(n *lab.Network) {
	for _, h := range []*lab.Host{n.Internet, n.Client, n.Server, n.Guest} {
		h.Run("nft", "delete", "table", "netdev", "router")
		h.Run("ip", "link", "del", priorityDevice)
	}
	n.Internet.Route("eth0", "203.0.113.0/24", "", lab.InternetSource)
	n.Internet.Route("eth0", "2001:db8:0:1::/64", "", lab.InternetSource6)
	for h, router := range map[*lab.Host]string{n.Client: lab.RouterLAN, n.Server: lab.RouterLAN, n.Guest: lab.RouterGuest} {
		h.Route("eth0", "0.0.0.0/0", router, "")
		h.Route("eth0", "::/0", lab.RouterLink6, "")
	}
}

// TestPriorityTags: hosts begin to send frames with a priority tag, by VLAN devices with id 0. They keep their connections and can
// open new ones. The router sends them frames without a tag. Frames of VLAN 5 still belong to the device of VLAN 5.
func TestPriorityTags(t *testing.T) {
	kind{name: "VLAN", link: "vlan"}.need(t)
	n := lab.NewNetwork6(t)
	offer(n.Server)
	const forwards = home.Forwards + home.Forwards6
	hp := home.Start(t, n, "tc", forwards)
	for _, inFrames := range []bool{false, true} {
		// The modes take turns: XDP does not come back by itself when the VLAN device is gone.
		for _, mode := range home.Modes {
			t.Run(fmt.Sprintf("%s, tags in the frames %v", mode, inFrames), func(t *testing.T) {
				n, hp := n.For(t), hp.For(t)
				n.SetOffloads(home.OffloadsFor(mode))
				tagsInFrames(n, inFrames)
				hp.Write(home.Config(mode, forwards))
				hp.Reload()
				if xdp := xdpAttached(n.Router, "wan0"); xdp != (mode == "xdp") {
					t.Fatalf("XDP is attached to wan0: %v", xdp)
				}
				besidePriorityTags(t, n)
			})
		}
	}
}

func besidePriorityTags(t *testing.T, n *lab.Network) {
	t.Helper()
	var held []*lab.Conn
	clients := []*lab.Host{n.Internet, n.Client, n.Guest}
	for _, h := range clients {
		held = append(held, home.Waiting(t, h), home.WaitingAt(t, h, "["+lab.External6+"]"))
	}
	tagAll(t, n)
	defer untagAll(n)
	goOn := func() {
		t.Helper()
		for i, c := range held {
			if err := c.Echo(10_000); err != nil {
				t.Errorf("connection of %s, begun without tags: %v", clients[i/2].Name, err)
			}
		}
	}
	goOn()
	for _, h := range clients {
		served(t, h)
	}
	besideVLAN(t, n)
	goOn()
	for _, h := range append(clients, n.Server) {
		if packets := counted(t, h, "netdev", "router", "tagged"); packets != 0 {
			t.Errorf("the router sent %s %d frames with a priority tag", h.Name, packets)
		}
		if h.Links()[priorityDevice].Attrs().Statistics.TxPackets == 0 {
			t.Errorf("%s sent no frame with a priority tag", h.Name)
		}
	}
}

func xdpAttached(h *lab.Host, dev string) bool {
	xdp := h.Links()[dev].Attrs().Xdp
	return xdp != nil && xdp.Attached
}

// offer starts the services of the usual forwards.
func offer(server *lab.Host) {
	for _, address := range []string{"", "[::]"} {
		server.ServeTCP(address + ":8080")
		server.ServeUDP(address + ":5353")
	}
}

// served checks that a host reaches the usual forwards of both families.
func served(t *testing.T, h *lab.Host) {
	t.Helper()
	for _, external := range []string{lab.External, "[" + lab.External6 + "]"} {
		if err := echoes(h, external+":80", "", lab.Patience); err != nil {
			t.Errorf("%s at %s: %v", h.Name, external, err)
		}
		c, err := h.DialUDP(external+":53", "")
		if err != nil {
			t.Fatal(err)
		}
		if err := echo(c, 1000, lab.Patience); err != nil {
			t.Errorf("%s at %s, UDP: %v", h.Name, external, err)
		}
		c.Close()
	}
}

// besideVLAN adds VLAN 5 to the WAN's cable. Its hosts reach each other, and its frames reach no forward of the WAN.
func besideVLAN(t *testing.T, n *lab.Network) {
	t.Helper()
	for h, e := range map[*lab.Host][2]string{n.Router: {"wan0", "10.5.0.1/24"}, n.Internet: {"eth0", "10.5.0.2/24"}} {
		h.Run("ip", "link", "add", "link", e[0], "name", "vlan5", "type", "vlan", "id", "5")
		h.Up("vlan5")
		h.Address("vlan5", e[1])
	}
	// The daemon takes XDP off the WAN now. Until then, XDP takes a tag beside a frame for none.
	lab.Eventually(t, lab.Patience, func() error {
		if xdpAttached(n.Router, "wan0") {
			return errors.New("XDP is still attached to wan0, below a VLAN device")
		}
		return nil
	})
	lab.Eventually(t, lab.Patience, func() error { return pinged(n.Internet, "10.5.0.1") })
	n.Internet.Neighbour("vlan5", home.ExternalAddress, n.Router.HardwareAddr("wan0"))
	// A table of its own: connections without a tag keep their route.
	n.Internet.Run("ip", "route", "add", lab.External, "dev", "vlan5", "table", "5")
	n.Internet.Run("ip", "rule", "add", "from", "10.5.0.2", "lookup", "5")
	arrived := n.Router.Watch("vlan5", func(p *lab.Packet) bool { return p.Dst.Port() == 80 })
	c, err := n.Internet.DialTCP(lab.External+":80", "10.5.0.2:0", 500*time.Millisecond)
	if err == nil {
		who, err := c.Who()
		t.Errorf("a frame of VLAN 5 reached the forward of the WAN: %v %v", who, err)
		c.Close()
	}
	if _, err := arrived.Next(lab.Patience); err != nil {
		t.Errorf("the device of VLAN 5: %v", err)
	}
	if err := pinged(n.Router, "10.5.0.2"); err != nil {
		t.Errorf("in VLAN 5: %v", err)
	}
	for _, h := range []*lab.Host{n.Router, n.Internet} {
		h.Run("ip", "link", "del", "vlan5")
	}
	n.Internet.Run("ip", "rule", "del", "from", "10.5.0.2")
}
