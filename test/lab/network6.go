// SPDX-License-Identifier: Apache-2.0

package lab

import "testing"

// IPv6 addresses of the usual network: global ones outside, unique local ones (RFC 4193) inside.
const (
	External6       = "2001:db8:0:1::2"
	Gateway6        = "2001:db8:0:1::1"
	InternetSource6 = "2001:db8:9::10"
	RouterLAN6      = "fd00:1::1"
	RouterGuest6    = "fd00:2::1"
	Server6         = "fd00:1::20"
	Client6         = "fd00:1::50"
	Guest6          = "fd00:2::50"
	GatewayLink6    = "fe80::fe"
	RouterLink6     = "fe80::1"
)

// NewNetwork6 makes the usual network with both families.
func NewNetwork6(tb testing.TB) *Network {
	tb.Helper()
	n := NewNetwork(tb)
	for _, h := range []*Host{n.Internet, n.Router, n.Client, n.Server, n.Guest} {
		h.Enable6()
	}
	// /128, because the on-link route of a /64 would be preferred to the route below.
	n.Internet.Address6("eth0", Gateway6+"/128", InternetSource6+"/128")
	n.Router.Address6("wan0", External6+"/64")
	n.Router.Address6("lan0", RouterLAN6+"/64")
	n.Router.Address6("lan1", RouterGuest6+"/64")
	n.Client.Address6("eth0", Client6+"/64")
	n.Server.Address6("eth0", Server6+"/64")
	n.Guest.Address6("eth0", Guest6+"/64")

	n.Internet.Route("eth0", "2001:db8:0:1::/64", "", InternetSource6)
	// Gateways are link-local addresses, as with router advertisements.
	n.Internet.Address6("eth0", GatewayLink6+"/64")
	n.Router.Route("wan0", "::/0", GatewayLink6, "")
	for dev, hosts := range map[string][]*Host{"lan0": {n.Client, n.Server}, "lan1": {n.Guest}} {
		n.Router.Address6(dev, RouterLink6+"/64")
		for _, h := range hosts {
			h.Route("eth0", "::/0", RouterLink6, "")
		}
	}
	n.Router.Sysctl("net/ipv6/conf/all/forwarding", "1")
	return n
}

// Enable6 turns IPv6 on.
func (h *Host) Enable6() {
	h.tb.Helper()
	for name := range h.Links() {
		h.Sysctl("net/ipv6/conf/"+name+"/mldv2_unsolicited_report_interval", "1")
		h.Sysctl("net/ipv6/conf/"+name+"/accept_ra", "0")
		h.Sysctl("net/ipv6/conf/"+name+"/router_solicitations", "0")
		h.Sysctl("net/ipv6/conf/"+name+"/dad_transmits", "0")
	}
	h.Sysctl("net/ipv6/icmp/ratelimit", "0")
	h.Sysctl("net/ipv6/conf/all/disable_ipv6", "0")
}

// Address6 adds addresses without duplicate address detection, so that they can be used at once.
func (h *Host) Address6(dev string, prefixes ...string) {
	h.tb.Helper()
	for _, prefix := range prefixes {
		h.Run("ip", "-6", "address", "add", prefix, "dev", dev, "nodad")
	}
}
