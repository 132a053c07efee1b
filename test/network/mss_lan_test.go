// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"strings"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// vpnGuest makes lan1 a tun device with this MTU, in both families. The guest's end has the usual MTU: behind a VPN there
// are hosts that know nothing of the tunnel's MTU.
func vpnGuest(n *lab.Network, mtu int) {
	bareGuest(n)
	n.Router.MTU("lan1", mtu)
	n.Router.Address6("lan1", lab.RouterGuest6+"/64")
	n.Guest.Enable6()
	n.Guest.Address6("eth0", lab.Guest6+"/64")
	n.Guest.Run("ip", "-6", "route", "replace", "default", "dev", "eth0")
}

// TestMSSClampOnLAN: a client behind a tunnel in lan gets segments that fit into the tunnel, though the server ignores the
// ICMP errors about its MTU. The default is for tunnels on either side; a list may name interfaces of either side.
func TestMSSClampOnLAN(t *testing.T) {
	for _, mode := range home.Modes {
		for _, test := range []struct {
			name, clamp string
			want        int
		}{
			{"by default", "", 1240},
			{"by name", "mss_clamp = [\"lan1\"]\n", 1240},
			{"none", "mss_clamp = []\n", 1460},
		} {
			t.Run(mode+", "+test.name, func(t *testing.T) {
				n := lab.NewNetwork6(t)
				vpnGuest(n, 1280)
				n.Server.ServeTCP(":8080")
				n.Server.ServeTCP("[" + lab.Server6 + "]:8080")
				n.Server.RunInput(`table inet deaf {
					chain c {
						type filter hook input priority 0
						icmp type destination-unreachable drop
						icmpv6 type packet-too-big drop
					}
				}`, "nft", "-f", "-")
				hp := lab.NewHairpin(n.Router, strings.Replace(home.Config(mode, home.Forwards+home.Forwards6), "mode =", test.clamp+"mode =", 1))
				hp.Start()
				if server, client := handshakeMSS(t, n, n.Guest); server != test.want || client != test.want {
					t.Errorf("MSS is %d for the server and %d for the guest, want %d", server, client, test.want)
				}
				if server, client := handshakeMSS(t, n, n.Client); server != 1460 || client != 1460 {
					t.Errorf("MSS is %d for the server and %d for the client, want 1460 where no tunnel is on the way", server, client)
				}
				if test.want != 1240 {
					return
				}
				for _, external := range []string{lab.External, "[" + lab.External6 + "]"} {
					if err := guestDownload(n, external); err != nil {
						t.Errorf("from %s: %v", external, err)
					}
				}
			})
		}
	}
}

func guestDownload(n *lab.Network, external string) error {
	c, err := n.Guest.DialTCP(external+":80", "", lab.Patience)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer c.Close()
	return c.Download(500_000)
}
