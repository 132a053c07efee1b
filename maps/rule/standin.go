// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// StandIn is for reflect prefix: servers see each client of the network Clients under a substitute address, its
// stand-in. The stand-in has the client's host bits in Network: 192.168.1.50 becomes 198.18.1.50. Both networks have the
// same family and prefix length. No two networks of all the stand-ins in a configuration may overlap.
type StandIn struct {
	Clients netip.Prefix `json:"clients"`
	Network netip.Prefix `json:"network"`
}

// Field returns the key of s in the configuration file.
func (s StandIn) Field() string { return fmt.Sprintf("reflection.prefixes.%q", s.Clients) }

var nonHostNetworks = []struct {
	network netip.Prefix
	kind    string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "addresses that no host has"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback addresses"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local addresses"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast addresses"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved addresses"},
	{netip.MustParsePrefix("::/64"), "the loopback address and IPv4-mapped addresses"},
	{netip.MustParsePrefix("fe80::/10"), "link-local addresses"},
	{netip.MustParsePrefix("ff00::/8"), "multicast addresses"},
}

// NonHostNetworks returns the networks of addresses that no host behind a router can have.
func NonHostNetworks() []netip.Prefix {
	networks := make([]netip.Prefix, len(nonHostNetworks))
	for i, s := range nonHostNetworks {
		networks[i] = s.network
	}
	return networks
}

// checkHosts returns an error unless hosts behind a router can have every address of prefix.
func checkHosts(prefix netip.Prefix) error {
	if !prefix.IsValid() || prefix.Addr().Is4In6() || prefix != prefix.Masked() {
		return fmt.Errorf("%s is not a network", prefix)
	}
	for _, s := range nonHostNetworks {
		if prefix.Overlaps(s.network) {
			return fmt.Errorf("%s contains %s, %s", prefix, s.kind, s.network)
		}
	}
	return nil
}

// Check returns the first mistake in s. It does not compare s with the rest of the configuration.
func (s StandIn) Check() error {
	if err := cmp.Or(checkHosts(s.Clients), checkHosts(s.Network)); err != nil {
		return err
	}
	clients, network := s.Clients.Addr(), s.Network.Addr()
	switch {
	case clients.Is6() != network.Is6():
		return fmt.Errorf("%s is %s, but the clients %s are %s; both must have one family", s.Network, Family(network), s.Clients, Family(clients))
	case s.Clients.Bits() != s.Network.Bits():
		return fmt.Errorf("%s and the clients %s differ in size; give both the same prefix length, because a stand-in has the host bits of its client", s.Network, s.Clients)
	}
	return nil
}

// CheckFree returns an error if stand-ins of s are in a network that is in use; whose describes this network.
func (s StandIn) CheckFree(network netip.Prefix, whose string) error {
	if !s.Network.Overlaps(network) {
		return nil
	}
	return fmt.Errorf("%s overlaps %s, %s; stand-ins must be unused addresses", s.Network, network, whose)
}

// SortedStandIns returns a sorted copy of list. Two lists with the same items in another order become equal.
func SortedStandIns(list []StandIn) []StandIn {
	return slices.SortedFunc(slices.Values(list), func(a, b StandIn) int {
		return cmp.Or(ComparePrefixes(a.Clients, b.Clients), ComparePrefixes(a.Network, b.Network))
	})
}

// ComparePrefixes orders networks by address. A network comes before the smaller networks within it.
func ComparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
