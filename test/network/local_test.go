// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// TestLocal: the router's own processes reach the forwards by the external address; the servers see the
// router, and connections, counters and metrics say "local".
func TestLocal(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.Server.ServeTCP(":8080")
			udp := n.Server.ServeUDP(":5353")
			n.Server.ServeTCP("[::]:8080")
			n.Server.ServeUDP("[::]:5353")
			hp := home.Start(t, n, mode, home.Forwards+home.Forwards6)
			t.Run("IPv4", func(t *testing.T) { local4(t, n.For(t), udp) })
			t.Run("IPv6", func(t *testing.T) { local6(t, n.For(t)) })

			for _, c := range home.Show(t, hp, "conn", "show", "path", "local").Connections {
				if !strings.HasPrefix(c.Source, lab.RouterLAN+":") && !strings.HasPrefix(c.Source, "["+lab.RouterLAN6+"]:") {
					t.Errorf("%s is seen as %s, want the router", c.Client, c.Source)
				}
			}
			if f := home.ForwardNamed(t, hp, "web"); f.Packets < 1000 {
				t.Errorf("web has forwarded %d packets", f.Packets)
			}
			if made := home.Scrape(t, n, "hairpin_forward_connections_total", `forward="dns6"`, `path="local"`); made < 1 {
				t.Errorf("dns6 has had %v local connections", made)
			}
		})
	}
}

func local4(t *testing.T, n *lab.Network, udp *lab.Echoer) {
	c, err := n.Router.DialTCP(lab.External+":80", "", lab.Patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if who, err := c.Who(); err != nil || who.Addr() != home.RouterAddress {
		t.Errorf("server sees %v, want %v (%v)", who, home.RouterAddress, err)
	}
	for what, do := range map[string]func() error{
		"upload":   func() error { return c.Upload(20_000_000) },
		"download": func() error { return c.Download(20_000_000) },
		"echo":     func() error { return c.Echo(1_000_000) },
	} {
		if err := do(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	learnMTU(t, n)
	d, err := n.Router.DialUDP(lab.External+":53", "")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := lab.Exchange(d, 8000, 8000); err != nil {
		t.Error(err)
	}
	for peer := range udp.Seen() {
		if peer.Addr() != home.RouterAddress {
			t.Errorf("server sees %v over UDP, want %v", peer, home.RouterAddress)
		}
	}
}

// learnMTU has the router's kernel find out how long a packet may be, from an error that is for it alone: the
// loopback device takes more than any other.
func learnMTU(t *testing.T, n *lab.Network) {
	t.Helper()
	c, err := n.Router.DialUDP(lab.External+":53", "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(make([]byte, 8000)); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(lab.Patience))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("after a datagram that is too long: %v, want %v", err, unix.EMSGSIZE)
	}
}

func local6(t *testing.T, n *lab.Network) {
	c, err := n.Router.DialTCP("["+lab.External6+"]:80", "", lab.Patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Echo(5_000_000); err != nil {
		t.Error(err)
	}
	d, err := n.Router.DialUDP("["+lab.External6+"]:53", "")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	// Linux learns no MTU for an IPv6 address of its own.
	if _, err := lab.Exchange(d, 2000, 1400); err != nil {
		t.Error(err)
	}
}

// TestLocalClients: real programs on the router, among them those that send before they connect.
func TestLocalClients(t *testing.T) {
	n := lab.NewNetwork(t)
	n.Server.Start("dnsmasq", "--keep-in-foreground", "--port=5353", "--no-resolv", "--no-hosts", "--address=/name.test/192.0.2.77",
		"--user=root", "--pid-file=", "--bind-interfaces")
	n.Server.ServeTCP(":8080")
	hp := home.Start(t, n, "auto", home.Forwards+`
[[forward]]
name = "ping"
protocol = ["icmp"]
to = "192.168.1.20"

[[forward]]
name = "dns-tcp"
protocol = ["tcp"]
port = "53"
to = "192.168.1.20:5353"
`)
	lab.Eventually(t, lab.Patience, func() error {
		_, err := n.Client.Try("dig", "@"+lab.Server, "-p", "5353", "name.test", "+time=1")
		return err
	})
	for _, args := range [][]string{{}, {"+tcp"}} {
		out := n.Router.Run(append([]string{"dig", "@" + lab.External, "name.test", "+short", "+tries=3"}, args...)...)
		if strings.TrimSpace(out) != "192.0.2.77" {
			t.Errorf("dig %v: %s", args, out)
		}
	}
	n.Router.Run("ping", "-c", "3", "-i", "0.2", "-W", "5", lab.External)
	for _, path := range []string{"local", "hairpin"} {
		if path == "hairpin" {
			n.Client.Run("ping", "-c", "1", "-W", "5", lab.External)
		}
		if got := home.Show(t, hp, "conn", "show", "path", path, "proto", "icmp").Connections; len(got) != 1 {
			t.Errorf("%d pings by path %s", len(got), path)
		}
	}
}

// TestLocalIsRefusedByTheKernel: what a forward does not give to the router itself is answered as if there
// were no forward: at once, not by silence.
func TestLocalIsRefusedByTheKernel(t *testing.T) {
	n := lab.NewNetwork(t)
	n.Server.ServeTCP(":8080")
	home.Start(t, n, "auto", `
[[forward]]
name = "others"
protocol = ["tcp"]
port = "80"
to = "192.168.1.20:8080"
from = ["198.51.100.0/24"]

[[forward]]
name = "off"
protocol = ["tcp"]
port = "81"
to = "192.168.1.20:8080"
reflect = "off"
`)
	for _, port := range []string{"80", "81"} {
		_, err := n.Router.DialTCP(lab.External+":"+port, "", lab.Patience)
		if err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("port %s: %v, want a refusal", port, err)
		}
	}
	// What the router has for itself is not touched.
	n.Router.ServeTCP(lab.External + ":8081")
	c, err := n.Router.DialTCP(lab.External+":8081", "", lab.Patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if who, err := c.Who(); err != nil || who.Addr() != netip.MustParseAddr(lab.External) {
		t.Errorf("the router sees %v of itself (%v)", who, err)
	}
}
