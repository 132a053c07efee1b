// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// StandIn gives each client of a network an address of its own for servers to
// see, with reflect prefix: the one that has the same host bits in another
// network, as large and of the same family. Of all the networks of a
// configuration, of clients and of stand-ins, no two overlap.
type StandIn struct {
	Clients netip.Prefix `json:"clients"`
	Network netip.Prefix `json:"network"`
}

// Field is the key of the configuration file that gives s.
func (s StandIn) Field() string { return fmt.Sprintf("reflection.prefixes.%q", s.Clients) }

var nonHostNetworks = []struct {
	network netip.Prefix
	kind    string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "addresses of no host"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback addresses"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local addresses"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast addresses"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved addresses"},
	{netip.MustParsePrefix("::/64"), "the loopback address and IPv4-mapped ones"},
	{netip.MustParsePrefix("fe80::/10"), "link-local addresses"},
	{netip.MustParsePrefix("ff00::/8"), "multicast addresses"},
}

// NonHostNetworks are the networks whose addresses cannot be those of hosts behind a router.
func NonHostNetworks() []netip.Prefix {
	networks := make([]netip.Prefix, len(nonHostNetworks))
	for i, s := range nonHostNetworks {
		networks[i] = s.network
	}
	return networks
}

// checkHosts refuses what is not a network of hosts.
func checkHosts(prefix netip.Prefix) error {
	if !prefix.IsValid() || prefix.Addr().Is4In6() || prefix != prefix.Masked() {
		return fmt.Errorf("%s is not a network", prefix)
	}
	for _, s := range nonHostNetworks {
		if prefix.Overlaps(s.network) {
			return fmt.Errorf("%s has %s, %s", prefix, s.kind, s.network)
		}
	}
	return nil
}

// Check finds what is wrong with s, whatever else is configured.
func (s StandIn) Check() error {
	if err := cmp.Or(checkHosts(s.Clients), checkHosts(s.Network)); err != nil {
		return err
	}
	clients, network := s.Clients.Addr(), s.Network.Addr()
	switch {
	case clients.Is6() != network.Is6():
		return fmt.Errorf("%s is %s, but the clients %s are %s; both are of one family", s.Network, Family(network), s.Clients, Family(clients))
	case s.Clients.Bits() != s.Network.Bits():
		return fmt.Errorf("%s and the clients %s differ in size; the lengths must be the same, for each client has one stand-in with its own host bits", s.Network, s.Clients)
	}
	return nil
}

// CheckFree refuses stand-ins that share addresses with a network in use.
func (s StandIn) CheckFree(network netip.Prefix, whose string) error {
	if !s.Network.Overlaps(network) {
		return nil
	}
	return fmt.Errorf("%s overlaps %s, %s; stand-ins are addresses that nobody else has", s.Network, network, whose)
}

// SortedStandIns is the list in an order that does not depend on how it was written.
func SortedStandIns(list []StandIn) []StandIn {
	return slices.SortedFunc(slices.Values(list), func(a, b StandIn) int {
		return cmp.Or(ComparePrefixes(a.Clients, b.Clients), ComparePrefixes(a.Network, b.Network))
	})
}

// ComparePrefixes sorts a network before those that lie within it.
func ComparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
