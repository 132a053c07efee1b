// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// aliases gives a host more addresses in the LAN and returns them.
func aliases(h *lab.Host, count int) (list []netip.Addr) {
	for i := range count {
		addr := netip.AddrFrom4([4]byte{192, 168, 1, byte(100 + i)})
		h.Address("eth0", addr.String()+"/24")
		list = append(list, addr)
	}
	return list
}

// everyPort lets a client keep its port where the server sees the router's address.
const everyPort = "[reflection]\nports = \"1024-65535\"\n"

// TestPortParityAndRange: many clients with one port each get another, of the same kind: odd or
// even as theirs (RFC 4787 REQ-4), below 1024 or not (REQ-3a). The first keeps a port below 1024; another port must be one of
// reflection.ports.
func TestPortParityAndRange(t *testing.T) {
	const clients = 20
	n := lab.NewNetwork(t)
	udp := n.Server.ServeUDP(":5353")
	home.Start(t, n, "tc", home.Forwards)
	addrs := aliases(n.Client, clients)
	for _, port := range []uint16{40000, 40001, 600, 601} {
		before := udp.Seen()
		for _, addr := range addrs {
			c, err := n.Client.DialUDP(lab.External+":53", netip.AddrPortFrom(addr, port).String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := lab.Exchange(c, 1, 10); err != nil {
				t.Errorf("%v port %d: %v", addr, port, err)
			}
		}
		seen, kept, own := udp.Seen(), false, port < 1024
		for peer := range before {
			delete(seen, peer)
		}
		for peer := range seen {
			kept = kept || peer.Port() == port
			if peer.Addr() != home.RouterAddress || peer.Port()%2 != port%2 || peer.Port() < 1024 != own || !own && peer.Port() < 61000 {
				t.Errorf("a client with port %d is seen as %v", port, peer)
			}
		}
		if len(seen) != clients || kept != own {
			t.Errorf("%d clients with port %d are seen as %d, kept %t", clients, port, len(seen), kept)
		}
	}
}

// TestPortsAreHardToGuess: who knows one client's port does not know the next one's.
func TestPortsAreHardToGuess(t *testing.T) {
	const clients = 60
	n := lab.NewNetwork(t)
	udp := n.Server.ServeUDP(":5353")
	home.Start(t, n, "tc", home.Forwards)
	var last, near int
	known := make(map[netip.AddrPort]bool)
	for i, addr := range aliases(n.Client, clients) {
		c, err := n.Client.DialUDP(lab.External+":53", netip.AddrPortFrom(addr, 40000).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := lab.Exchange(c, 1, 10); err != nil {
			t.Fatal(err)
		}
		for peer := range udp.Seen() {
			if known[peer] {
				continue
			}
			known[peer] = true
			if step := int(peer.Port()) - last; i > 1 && step > -16 && step < 16 {
				near++ // one in 150 by chance
			}
			last = int(peer.Port())
		}
	}
	if near > 8 {
		t.Errorf("%d of %d ports are near the one before", near, clients)
	}
}

// TestFreedPort: no other client gets the tuple of a client that has gone for a while (RFC 6888 REQ-8). The client itself gets
// its tuple back at once.
func TestFreedPort(t *testing.T) {
	t.Parallel()
	n := lab.NewNetwork(t)
	udp := n.Server.ServeUDP(":5353")
	hp := home.Start(t, n, "tc", "[timeouts]\nudp = \"1s\"\n"+everyPort+home.Forwards)
	addrs := aliases(n.Client, 2)
	seenAs := func(addr netip.Addr) netip.AddrPort {
		t.Helper()
		before := udp.Seen()
		c, err := n.Client.DialUDP(lab.External+":53", netip.AddrPortFrom(addr, 40000).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := lab.Exchange(c, 1, 10); err != nil {
			t.Fatalf("%v: %v", addr, err)
		}
		for peer, tally := range udp.Seen() {
			if before[peer] != tally {
				return peer
			}
		}
		t.Fatalf("%v was not seen", addr)
		return netip.AddrPort{}
	}
	expire := func() {
		t.Helper()
		lab.Eventually(t, lab.Patience, func() error {
			if list := home.Show(t, hp, "conn", "show").Connections; len(list) != 0 {
				return fmt.Errorf("still listed: %+v", list)
			}
			return nil
		})
	}
	first := netip.AddrPortFrom(home.RouterAddress, 40000)
	if got := seenAs(addrs[0]); got != first {
		t.Errorf("the first client is seen as %v, want %v", got, first)
	}
	expire()
	if got := seenAs(addrs[1]); got == first {
		t.Errorf("another client is seen as %v right after the first one", got)
	}
	expire()
	if got := seenAs(addrs[0]); got != first {
		t.Errorf("the first client is seen as %v when it comes back, want %v", got, first)
	}
}

// TestPortShadowing: no client gets a source port that would take packets away from a service of
// the router or from a forward (CVE-2021-3773).
func TestPortShadowing(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		t.Run(mode, func(t *testing.T) { portShadowing(t, mode) })
	}
}

func portShadowing(t *testing.T, mode string) {
	n := lab.NewNetwork(t)
	n.SetOffloads(home.OffloadsFor(mode))
	n.Server.ServeTCP(":8080")
	udp := n.Server.ServeUDP(":5353")
	service := n.Router.ServeUDP(":41000")
	n.Router.ServeTCP(":41000")
	n.Client.ServeUDP(":9000")
	// They shall not talk to the server's echo for ever.
	filter(n.Router, "output", "udp sport 41000 drop")
	filter(n.Client, "output", "udp sport 9000 drop")
	home.Start(t, n, mode, everyPort+home.Forwards+fmt.Sprintf(`
[[forward]]
name = "inside"
protocol = ["tcp", "udp"]
external = "%s"
port = "42000"
to = "192.168.1.50:9000"
`, lab.RouterLAN))
	for _, port := range []uint16{41000, 42000} {
		source := netip.AddrPortFrom(netip.MustParseAddr(lab.Client), port).String()
		c, err := n.Client.DialUDP(lab.External+":53", source)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := lab.Exchange(c, 5, 100); err != nil {
			t.Errorf("client with port %d: %v", port, err)
		}
		tcp, err := n.Client.DialTCP(lab.External+":80", source, lab.Patience)
		if err != nil {
			t.Fatal(err)
		}
		defer tcp.Close()
		if who, err := tcp.Who(); err != nil || who.Port() == port {
			t.Errorf("client with port %d is seen as %v (%v)", port, who, err)
		}
	}
	for peer := range udp.Seen() {
		if peer.Port() == 41000 || peer.Port() == 42000 {
			t.Errorf("a client is seen as %v", peer)
		}
	}
	shadowed(t, n, service)
}

// shadowed has the server use, from the port of its own service, what clients tried to shadow.
func shadowed(t *testing.T, n *lab.Network, service *lab.Echoer) {
	fromService := netip.MustParseAddrPort(lab.Server + ":5353")
	wire := n.Server.Wire("eth0", n.Router.HardwareAddr("lan0"))
	d := lab.UDP(fromService, netip.AddrPortFrom(home.RouterAddress, 41000), []byte("for the router itself"))
	if err := wire.Send(d.Packet()); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, lab.Patience, func() error {
		if service.Seen()[fromService].Datagrams != 1 {
			return fmt.Errorf("the router's service has seen %v", service.Seen())
		}
		return nil
	})
	atClient := n.Client.Watch("eth0", func(p *lab.Packet) bool { return p.Dst.Port() == 9000 })
	d = lab.UDP(fromService, netip.AddrPortFrom(home.RouterAddress, 42000), []byte("for the forward"))
	if err := wire.Send(d.Packet()); err != nil {
		t.Fatal(err)
	}
	if p, err := atClient.Next(5 * time.Second); err != nil {
		t.Errorf("the forward's target: %v", err)
	} else if p.Dst.Addr() != netip.MustParseAddr(lab.Client) {
		t.Errorf("the forward's target gets %v", p)
	}
}

// TestPortsRunOut: when every port of a range is taken, the next client is refused, gets an ICMP error, and is counted. Existing
// connections are not disturbed.
func TestPortsRunOut(t *testing.T) {
	const ports = 1023
	n := lab.NewNetwork(t)
	udp := n.Server.ServeUDP(":5353")
	hp := home.Start(t, n, "tc", home.Forwards)
	others := aliases(n.Client, 1)
	source, to := netip.MustParseAddr(lab.Client), netip.AddrPortFrom(home.ExternalAddress, 53)
	wire := n.Client.Wire("eth0", n.Router.HardwareAddr("lan0"))
	hello := func(rounds int) {
		t.Helper()
		for port := uint16(1); port <= ports; port++ {
			if err := wire.Send(lab.UDP(netip.AddrPortFrom(source, port), to, []byte("hello")).Packet()); err != nil {
				t.Fatal(err)
			}
		}
		lab.Eventually(t, lab.Patience, func() error {
			seen := udp.Seen()
			for port := uint16(1); port <= ports; port++ {
				if got := seen[netip.AddrPortFrom(home.RouterAddress, port)].Datagrams; got != rounds {
					return fmt.Errorf("the server has seen %d datagrams of port %d, want %d", got, port, rounds)
				}
			}
			return nil
		})
	}
	hello(1)
	late, err := n.Client.DialUDP(to.String(), netip.AddrPortFrom(others[0], 500).String())
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	if err := refusal(late, 5*time.Second); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("one client too many: %v, want no route to host", err)
	}
	if got := home.Scrape(t, n, "hairpin_connections_refused_total", `reason="no_port"`); got != 1 {
		t.Errorf("%v openings counted as refused for want of a port, want 1", got)
	}
	hello(2)
	if got := len(home.Show(t, hp, "conn", "show").Connections); got != ports {
		t.Errorf("%d connections are listed, want %d", got, ports)
	}
}
