// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/test/lab"
)

// silent tells nobody why an opening is refused. That is no reason to keep quiet about the end of a connection.
const silent = "[icmp]\nrefuse = []\n"

// TestBothSidesHearTheEnd: client and server of a TCP connection that has ended get a RST, whoever is told of
// refusals. The Internet's client gets none from an address that the router has no more.
func TestBothSidesHearTheEnd(t *testing.T) {
	ends := []struct {
		name  string
		hears bool // the Internet's client
		do    func(n *lab.Network, hp *lab.Hairpin)
	}{
		{"forward removed", true, func(_ *lab.Network, hp *lab.Hairpin) {
			hp.Run("forward", "del", "web")
			hp.Run("forward", "del", "web6")
		}},
		{"flushed", true, func(_ *lab.Network, hp *lab.Hairpin) {
			hp.Run("conn", "flush", "forward", "web")
			hp.Run("conn", "flush", "forward", "web6")
		}},
		{"address gone", false, func(n *lab.Network, _ *lab.Hairpin) {
			n.Router.Unaddress("wan0", lab.External+"/24")
			n.Router.Run("ip", "-6", "address", "del", external6+"/64", "dev", "wan0")
		}},
	}
	for _, mode := range []string{"tc", "xdp"} {
		for _, e := range ends {
			t.Run(mode+", "+e.name, func(t *testing.T) {
				n := newNetwork6(t)
				n.SetOffloads(offloadsFor(mode))
				n.Server.ServeTCP(":8080")
				serveTCP6(t, n.Server, "["+server6+"]:8080")
				hp := start(t, n, mode, silent+forwards+forwards6)
				clients := map[string]net.Conn{
					"LAN": waiting(t, n.Client), "LAN, IPv6": waiting6(t, n.Client),
					"Internet": waiting(t, n.Internet), "Internet, IPv6": waiting6(t, n.Internet),
				}
				e.do(n, hp)
				for _, name := range []string{"LAN", "LAN, IPv6", "Internet", "Internet, IPv6"} {
					if name[0] == 'I' && !e.hears {
						continue
					}
					clients[name].SetReadDeadline(time.Now().Add(atOnce))
					if _, err := clients[name].Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
						t.Errorf("the client in %s hears %v, want %v", name, err, unix.ECONNRESET)
					}
				}
				lab.Eventually(t, atOnce, func() error { return noneEstablished(n.Server, "") })
				for _, name := range []string{"Internet", "Internet, IPv6"} {
					// All that is sent at the end of a connection has been sent when its server knows.
					clients[name].SetReadDeadline(time.Now().Add(time.Millisecond))
					if _, err := clients[name].Read(make([]byte, 1)); !e.hears && errors.Is(err, unix.ECONNRESET) {
						t.Errorf("the client in %s gets a RST from an address that is not the router's", name)
					}
				}
			})
		}
	}
}

// waiting6 has connected, and waits for the server to speak.
func waiting6(t *testing.T, from *lab.Host) *conn6 {
	t.Helper()
	c, err := dialTCP6(from, fmt.Sprintf("[%s]:80", external6), "", lab.Patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.echo(1000); err != nil {
		t.Fatal(err)
	}
	return c
}
