// SPDX-License-Identifier: Apache-2.0

package network

import (
	"net/netip"
	"strings"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// TestSingleInterface: a router with one interface, in lan alone. Clients of the LAN and of the Internet, the server and
// the router itself reach the forward at the router's address. The Internet's packets come by another router of the LAN.
// The server's answers would go there directly, so the server sees the router's address.
func TestSingleInterface(t *testing.T) {
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.Server.ServeTCP(":8080")
			n.Router.Down("wan0")
			// The client is also the router to the Internet.
			const far = "198.51.100.77"
			n.Client.Address("lo", far+"/32")
			n.Router.Route("lan0", "0.0.0.0/0", lab.Client, "")
			hp := lab.NewHairpin(n.Router, strings.NewReplacer(`wan = ["wan0"]`, "", `lan = ["lan0", "lan1"]`, `lan = ["lan0"]`).Replace(home.Config(mode, `
[[forward]]
name = "web"
protocol = ["tcp"]
external = "`+lab.RouterLAN+`"
port = "80"
to = "192.168.1.20:8080"
`)))
			hp.Start()
			for _, way := range []struct {
				from   *lab.Host
				source string
			}{{n.Client, lab.Client}, {n.Client, far}, {n.Server, lab.Server}, {n.Router, lab.RouterLAN}} {
				c, err := way.from.DialTCP(lab.RouterLAN+":80", way.source+":0", lab.Patience)
				if err != nil {
					t.Errorf("from %s: %v", way.source, err)
					continue
				}
				if who, err := c.Who(); err != nil || who.Addr() != netip.MustParseAddr(lab.RouterLAN) {
					t.Errorf("from %s: the server sees %v, %v, want %s", way.source, who, err, lab.RouterLAN)
				}
				c.Close()
			}
		})
	}
}
