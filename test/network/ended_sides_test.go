// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// silent sends no ICMP errors for refused openings. RSTs for ended connections must be sent even then.
const silent = "[icmp]\nrefuse = []\n"

// TestBothSidesHearTheEnd: client and server of an ended TCP connection get a RST, whatever icmp.refuse says. A client on the
// Internet gets no RST from an address that the router no longer has.
func TestBothSidesHearTheEnd(t *testing.T) {
	t.Parallel()
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
			n.Router.Run("ip", "-6", "address", "del", lab.External6+"/64", "dev", "wan0")
		}},
	}
	for _, mode := range []string{"tc", "xdp"} {
		for _, e := range ends {
			t.Run(mode+", "+e.name, func(t *testing.T) {
				n := lab.NewNetwork6(t)
				n.SetOffloads(home.OffloadsFor(mode))
				n.Server.ServeTCP(":8080")
				n.Server.ServeTCP("[" + lab.Server6 + "]:8080")
				hp := home.Start(t, n, mode, silent+home.Forwards+home.Forwards6)
				clients := map[string]net.Conn{
					"LAN": home.Waiting(t, n.Client), "LAN, IPv6": home.WaitingAt(t, n.Client, "["+lab.External6+"]"),
					"Internet": home.Waiting(t, n.Internet), "Internet, IPv6": home.WaitingAt(t, n.Internet, "["+lab.External6+"]"),
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
