// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"hairpin/test/lab"
)

// deviceBytes go over each TCP connection, each way.
const deviceBytes = 100_000

// datagramSizes are of one byte, of a usual and of a large packet, and of several fragments.
var datagramSizes = []int{1, 512, 1300, 5000}

// deviceConfig has a forward to a server in the LAN under test, and a forward to the guest in the other LAN.
const deviceConfig = `version = 1

[interfaces]
wan = ["wan0"]
lan = ["lan0", "lan1"]

[datapath]
mode = %q

[[forward]]
name = "server"
protocol = ["tcp", "udp"]
port = "80"
to = "192.168.1.20:8080"

[[forward]]
name = "guest"
protocol = ["tcp", "udp"]
port = "81"
to = "192.168.2.50:8080"

[[forward]]
name = "server6"
protocol = ["tcp", "udp"]
port = "80"
to = "[fd00:1::20]:8080"

[[forward]]
name = "guest6"
protocol = ["tcp", "udp"]
port = "81"
to = "[fd00:2::50]:8080"
`

// Traffic of every sort over a WAN and a LAN of each kind of device, in turn under the same daemon: it
// meets devices that vanish and come back as others.
func TestDevices(t *testing.T) {
	n := newDeviceNetwork(t)
	hp := lab.NewHairpin(n.Router, fmt.Sprintf(deviceConfig, "tc"))
	hp.Start()
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) { onDevices(t, n.For(t), hp.For(t), k) })
	}
}

func onDevices(t *testing.T, n *lab.Network, hp *lab.Hairpin, k kind) {
	k.need(t)
	lay(t, n, k)
	for _, mode := range k.modes() {
		t.Run(mode, func(t *testing.T) {
			hp := hp.For(t)
			hp.Write(fmt.Sprintf(deviceConfig, lab.DeviceMode(mode)))
			hp.Reload()
			overDevices(t, n.For(t))
		})
	}
}

// newDeviceNetwork makes the usual network with both families, without the cables that lay adds.
func newDeviceNetwork(t *testing.T) *lab.Network {
	n := lab.NewNetwork(t)
	for _, h := range []*lab.Host{n.Internet, n.Router, n.Client, n.Server, n.Guest} {
		h.Sysctl("net/ipv6/conf/all/disable_ipv6", "0")
		h.Sysctl("net/ipv6/conf/default/disable_ipv6", "0")
		h.Sysctl("net/ipv6/conf/default/dad_transmits", "0")
	}
	n.Router.Sysctl("net/ipv6/conf/all/forwarding", "1")
	n.Router.Address6("lan0", lab.RouterLAN6+"/64")
	n.Client.Address6("eth0", lab.Client6+"/64")
	n.Server.Address6("eth0", lab.Server6+"/64")
	n.Client.Route("eth0", "::/0", lab.RouterLAN6, "")
	n.Server.Route("eth0", "::/0", lab.RouterLAN6, "")
	n.Server.ServeTCP(lab.Server + ":8080")
	n.Server.ServeTCP("[" + lab.Server6 + "]:8080")
	return n
}

// lay makes the WAN and the guest's LAN of a kind.
func lay(t *testing.T, n *lab.Network, k kind) {
	prefix := netip.MustParsePrefix
	wan := line{
		router: n.Router, routerDev: "wan0", routerNet: prefix(lab.External + "/24"),
		host: n.Internet, hostDev: "eth0", hostNet: prefix(lab.Gateway + "/24"), number: 1,
	}
	lan := line{
		router: n.Router, routerDev: "lan1", routerNet: prefix(lab.RouterGuest + "/24"),
		host: n.Guest, hostDev: "eth0", hostNet: prefix(lab.Guest + "/24"), number: 2,
	}
	for _, l := range []line{wan, lan} {
		l.cut(t)
		k.join(t, l)
	}
	n.Internet.Address("eth0", lab.InternetSource+"/32")
	n.Router.Route("wan0", "0.0.0.0/0", lab.Gateway, "")
	n.Guest.Route("eth0", "0.0.0.0/0", lab.RouterGuest, "")

	n.Router.Address6("wan0", lab.External6+"/64")
	n.Internet.Address6("eth0", lab.Gateway6+"/64", lab.InternetSource6+"/128")
	n.Router.Address6("lan1", lab.RouterGuest6+"/64")
	n.Guest.Address6("eth0", lab.Guest6+"/64")
	n.Router.Route("wan0", "::/0", lab.Gateway6, "")
	n.Guest.Route("eth0", "::/0", lab.RouterGuest6, "")
}

// trip is one way through the router.
type trip struct {
	name         string
	from         *lab.Host
	source, sees string // the client's address, and what the server takes for it
	to           string // the forward
	server       *lab.Host
	at           string // the server's address
}

// trips lead in and out by the devices of the kind, in any mix with a cable.
func trips(n *lab.Network) []trip {
	const (
		toServer, toServer6 = lab.External + ":80", "[" + lab.External6 + "]:80"
		toGuest, toGuest6   = lab.External + ":81", "[" + lab.External6 + "]:81"
		atServer, atServer6 = lab.Server + ":8080", "[" + lab.Server6 + "]:8080"
		atGuest, atGuest6   = lab.Guest + ":8080", "[" + lab.Guest6 + "]:8080"
	)
	return []trip{
		{"WAN", n.Internet, lab.InternetSource, lab.InternetSource, toServer, n.Server, atServer},
		{"WAN to LAN", n.Internet, lab.InternetSource, lab.InternetSource, toGuest, n.Guest, atGuest},
		{"LAN", n.Guest, lab.Guest, lab.Guest, toServer, n.Server, atServer},
		{"to LAN", n.Client, lab.Client, lab.Client, toGuest, n.Guest, atGuest},
		{"hairpin", n.Guest, lab.Guest, lab.RouterGuest, toGuest, n.Guest, atGuest},
		{"WAN, IPv6", n.Internet, lab.InternetSource6, lab.InternetSource6, toServer6, n.Server, atServer6},
		{"WAN to LAN, IPv6", n.Internet, lab.InternetSource6, lab.InternetSource6, toGuest6, n.Guest, atGuest6},
		{"LAN, IPv6", n.Guest, lab.Guest6, lab.Guest6, toServer6, n.Server, atServer6},
		{"to LAN, IPv6", n.Client, lab.Client6, lab.Client6, toGuest6, n.Guest, atGuest6},
		{"hairpin, IPv6", n.Guest, lab.Guest6, lab.RouterGuest6, toGuest6, n.Guest, atGuest6},
	}
}

func overDevices(t *testing.T, n *lab.Network) { travel(t, n, trips(n)) }

func travel(t *testing.T, n *lab.Network, trips []trip) {
	n.Guest.ServeTCP(lab.Guest + ":8080")
	n.Guest.ServeTCP("[" + lab.Guest6 + "]:8080")
	for _, trip := range trips {
		trip.ready(t)
		t.Run(trip.name, func(t *testing.T) {
			trip.tcp(t)
			trip.udp(t)
		})
	}
}

// ready waits until the daemon has followed the devices.
func (w trip) ready(t *testing.T) {
	t.Helper()
	lab.Eventually(t, lab.Patience, func() error {
		c, err := w.from.DialTCP(w.to, w.local(), time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Who()
		return err
	})
}

// local is the client's address with a port of the kernel's choice.
func (w trip) local() string { return net.JoinHostPort(w.source, "0") }

func (w trip) tcp(t *testing.T) {
	c, err := w.from.For(t).DialTCP(w.to, w.local(), lab.Patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if who, err := c.Who(); err != nil || who.Addr() != netip.MustParseAddr(w.sees) {
		t.Errorf("TCP: server sees %v, want %v (%v)", who.Addr(), w.sees, err)
	}
	if err := c.Upload(deviceBytes); err != nil {
		t.Error(err)
	}
	if err := c.Download(deviceBytes); err != nil {
		t.Error(err)
	}
}

func (w trip) udp(t *testing.T) {
	server := w.server.For(t).ServeUDP(w.at)
	c, err := w.from.DialUDP(w.to, w.local())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// With IPv6 what is too big for a link is lost, until its sender knows.
	lab.Eventually(t, lab.Patience, func() error { return echo(c, datagramSizes[len(datagramSizes)-1], time.Second) })
	for _, size := range datagramSizes {
		if err := echo(c, size, lab.Patience); err != nil {
			t.Errorf("datagram of %d bytes: %v", size, err)
		}
	}
	for peer := range server.Seen() {
		if peer.Addr() != netip.MustParseAddr(w.sees) {
			t.Errorf("UDP: server sees %v, want %v", peer, w.sees)
		}
	}
}

// echo sends a datagram and compares what comes back within a time.
func echo(c *net.UDPConn, size int, within time.Duration) error {
	datagram, back := make([]byte, size), make([]byte, size+1)
	rand.Read(datagram)
	c.SetDeadline(time.Now().Add(within))
	if _, err := c.Write(datagram); err != nil {
		return err
	}
	n, err := c.Read(back)
	if err == nil && !bytes.Equal(datagram, back[:n]) {
		err = fmt.Errorf("%d other bytes came back", n)
	}
	return err
}
