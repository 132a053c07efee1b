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

// Way is one way to a forward, and whom the server takes for the client.
type Way struct {
	Name string
	From *lab.Host
	Addr netip.Addr // of the client itself
	Sees netip.Addr
}

// Ways are all the ways to a forward that reflects as `auto` does: a client whose answers
// would not pass the router appears as the router, everybody else as himself.
func Ways(n *lab.Network) []Way {
	return []Way{
		{"from the Internet", n.Internet, netip.MustParseAddr(lab.InternetSource), netip.MustParseAddr(lab.InternetSource)},
		{"from the LAN", n.Client, netip.MustParseAddr(lab.Client), RouterAddress},
		{"from the server itself", n.Server, ServerAddress, RouterAddress},
		{"from a second LAN", n.Guest, netip.MustParseAddr(lab.Guest), netip.MustParseAddr(lab.Guest)},
	}
}
