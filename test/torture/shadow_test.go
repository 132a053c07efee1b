// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"fmt"
	"net/netip"
	"strings"

	"hairpin/test/home"
	"hairpin/test/lab"
)

var shadow = scenario{
	number: 6, name: "Port shadowing: a LAN client has the source port of a service of the router (CVE-2021-3773)",
	demanded: fmt.Sprintf("0 of %d clients appear to the server with the address and the port of the service", shadowTries),
	run:      shadowOften,
}

const (
	shadowTries = 100
	shadowPort  = 41000 // of the first service
)

func shadowOften(t *trial) figures {
	var said []string
	for _, mode := range t.modes() {
		n := t.newShadowed(mode)
		t.start(n, mode, "[reflection]\nports = \"1024-65535\"\n"+home.Forwards)
		taken := t.shadow(n)
		t.none(taken, "clients have the address and the port of a service, "+mode)
		said = append(said, fmt.Sprintf("%s: %d of %d", mode, taken, shadowTries))
	}
	return figures{measured: strings.Join(said, "; "), nftables: t.beside(func() string {
		n := t.newShadowed("tc")
		useNFT(n.Router)
		return fmt.Sprintf("%d of %d", t.shadow(n), shadowTries)
	})}
}

// newShadowed makes a network whose router has UDP services on many ports. They take datagrams, and answer none.
func (t *trial) newShadowed(mode string) *lab.Network {
	t.Helper()
	n := lab.NewNetwork(t)
	n.SetOffloads(home.OffloadsFor(mode))
	n.Router.RunInput("table ip mute {\n chain leaving {\n type filter hook output priority 0\n udp sport >= 41000 udp sport <= 41099 drop\n }\n}\n", "nft", "-f", "-")
	for i := range shadowTries {
		n.Router.ServeUDP(fmt.Sprintf(":%d", shadowPort+i))
	}
	return n
}

// shadow uses the forward "dns" from the port of each service. It returns how many clients the server sees with the address and the port
// of a service.
func (t *trial) shadow(n *lab.Network) (taken int) {
	t.Helper()
	server := n.Server.ServeUDP(":5353")
	lab.Together(10, func(worker int) {
		for i := worker; i < shadowTries; i += 10 {
			c, err := n.Client.DialUDP(fmt.Sprintf("%s:%d", lab.External, flowPort), fmt.Sprintf("%s:%d", lab.Client, shadowPort+i))
			if err == nil {
				_, err = lab.Exchange(c, 3, 100)
				c.Close()
			}
			if err != nil {
				t.Errorf("client with port %d: %v", shadowPort+i, err)
			}
		}
	})
	peers := server.Seen()
	for i := range shadowTries {
		if _, shadowed := peers[netip.AddrPortFrom(home.RouterAddress, uint16(shadowPort+i))]; shadowed {
			taken++
		}
	}
	if len(peers) != shadowTries {
		t.Errorf("the server sees %d clients, want %d", len(peers), shadowTries)
	}
	return taken
}
