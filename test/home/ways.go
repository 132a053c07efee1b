// SPDX-License-Identifier: Apache-2.0

package home

import (
	"net/netip"

	"hairpin/test/lab"
)

// Addresses of the usual network.
var (
	ExternalAddress = netip.MustParseAddr(lab.External)
	ServerAddress   = netip.MustParseAddr(lab.Server)
	RouterAddress   = netip.MustParseAddr(lab.RouterLAN)
)

// Way is a client of a forward, and the address that the server sees for this client.
type Way struct {
	Name string
	From *lab.Host
	Addr netip.Addr // the client's own address
	Sees netip.Addr
}

// Ways returns the clients of a forward with reflect auto. A client whose answers would not go through the router appears as the
// router. All other clients appear as themselves.
func Ways(n *lab.Network) []Way {
	return []Way{
		{"from the Internet", n.Internet, netip.MustParseAddr(lab.InternetSource), netip.MustParseAddr(lab.InternetSource)},
		{"from the LAN", n.Client, netip.MustParseAddr(lab.Client), RouterAddress},
		{"from the server itself", n.Server, ServerAddress, RouterAddress},
		{"from a second LAN", n.Guest, netip.MustParseAddr(lab.Guest), netip.MustParseAddr(lab.Guest)},
	}
}
