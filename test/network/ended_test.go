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

// ending is something after which connections cannot go on.
type ending struct {
	name string
	// wan is whether the Internet's connections end, too; the others are reflected ones.
	wan bool
	do  func(n *lab.Network, hp *lab.Hairpin)
}

var endings = []ending{
	{"WAN address replaced", true, func(n *lab.Network, _ *lab.Hairpin) {
		n.Router.Unaddress("wan0", lab.External+"/24")
		n.Router.Address("wan0", "203.0.113.77/24")
	}},
	{"LAN address replaced", false, func(n *lab.Network, _ *lab.Hairpin) {
		n.Router.Unaddress("lan0", lab.RouterLAN+"/24")
		n.Router.Address("lan0", "192.168.1.2/24")
		n.Server.Run("ip", "route", "replace", "default", "via", "192.168.1.2")
	}},
	{"forward removed", true, func(_ *lab.Network, hp *lab.Hairpin) { hp.Run("forward", "del", "web") }},
	{"forward retargeted", true, func(_ *lab.Network, hp *lab.Hairpin) {
		hp.Run("forward", "del", "web")
		hp.Run("forward", "add", "web", "tcp", "80", "to", "192.168.1.21:8080")
	}},
	{"flushed", true, func(_ *lab.Network, hp *lab.Hairpin) { hp.Run("conn", "flush", "forward", "web") }},
	{"forward removed while no daemon runs", true, func(_ *lab.Network, hp *lab.Hairpin) {
		hp.Kill()
		hp.Run("forward", "del", "web")
	}},
}

// TestEndedAreTold: when a connection ends, a side that waits for the other side gets a RST at once, without sending anything.
func TestEndedAreTold(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"tc", "xdp"} {
		for _, e := range endings {
			t.Run(mode+", "+e.name, func(t *testing.T) { endedAreTold(t, mode, e) })
		}
	}
}

func endedAreTold(t *testing.T, mode string, e ending) {
	n := lab.NewNetwork(t)
	n.SetOffloads(home.OffloadsFor(mode))
	n.Server.ServeTCP(":8080")
	hp := home.Start(t, n, mode, home.Forwards)
	reflected := home.Waiting(t, n.Client)
	internet := home.Waiting(t, n.Internet)

	e.do(n, hp)
	hears(t, reflected)
	from := lab.RouterLAN
	if e.wan {
		from = ""
	}
	lab.Eventually(t, atOnce, func() error { return noneEstablished(n.Server, from) })
	if !e.wan {
		if err := internet.Echo(1000); err != nil {
			t.Errorf("the Internet's connection does not go on: %v", err)
		}
	}
}

func hears(t *testing.T, c *lab.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(atOnce))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the client hears %v, want %v", err, unix.ECONNRESET)
	}
}

// noneEstablished tells of connections that a server has with peer, "" for anybody.
func noneEstablished(server *lab.Host, peer string) error {
	out := server.Run("ss", "-Htn", "state", "established")
	for line := range strings.Lines(out) {
		if fields := strings.Fields(line); len(fields) > 3 && strings.HasPrefix(fields[3], peer) {
			return fmt.Errorf("the server has still\n%s", out)
		}
	}
	return nil
}

// TestOthersAreToldOfTheirEnd: the router's own processes get the RST, too. Clients of UDP get an ICMP error for their next
// datagram.
func TestOthersAreToldOfTheirEnd(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"tc", "xdp"} {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.Server.ServeTCP(":8080")
			n.Server.ServeUDP(":5353")
			hp := home.Start(t, n, mode, home.Forwards)
			local := home.Waiting(t, n.Router)
			d, err := n.Client.DialUDP(lab.External+":53", "")
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if _, err := lab.Exchange(d, 10, 100); err != nil {
				t.Fatal(err)
			}

			hp.Run("forward", "del", "web")
			hears(t, local)
			n.Router.Unaddress("wan0", lab.External+"/24")
			lab.Eventually(t, atOnce, func() error { return refused(d) })
		})
	}
}

// refused sends a datagram and expects the error ECONNREFUSED.
func refused(c net.Conn) error {
	if _, err := c.Write([]byte("anybody there?")); err != nil {
		return nil
	}
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := c.Read(make([]byte, 100)); !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("heard %v, want %v", err, unix.ECONNREFUSED)
	}
	return nil
}
