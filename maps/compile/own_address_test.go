// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"net/netip"
	"testing"

	"hairpin/bpf"
	"hairpin/maps/config"
	"hairpin/maps/layout"
)

// find does what the datapath does: the longest prefix of the interface that contains the peer.
func find(entries map[bpf.HairpinOwnAddressKey]bpf.HairpinOwnAddress, ifindex uint32, peer netip.Addr) (found string, borrowed bool) {
	for bits := peer.BitLen(); bits >= 0; bits-- {
		prefix, _ := peer.Prefix(bits)
		if own, there := entries[layout.OwnAddressKey(ifindex, prefix)]; there {
			return layout.FromAddr(own.Address).String(), own.Borrowed == 1
		}
	}
	return "", false
}

func link(name string, index int, role config.Role, addresses ...string) config.Interface {
	l := config.Interface{Name: name, Index: index, Role: role}
	for _, text := range addresses {
		l.Addresses = append(l.Addresses, netip.MustParsePrefix(text))
	}
	return l
}

func TestOwnAddresses(t *testing.T) {
	aging := link("aging", 8, config.RoleWAN, "2001:db8:8::1/64")
	aging.Passive = []netip.Prefix{netip.MustParsePrefix("2001:db8:7::1/64")}
	links := []config.Interface{
		link("bare", 9, config.RoleLAN, "fe80::9/64"),
		link("other", 7, 0, "10.7.0.1/24", "fd00:7::1/64"),
		link("link-local", 6, config.RoleLAN, "169.254.6.1/16"),
		link("lan", 5, config.RoleLAN, "192.168.1.1/24", "192.168.1.2/24", "10.0.0.1/8", "10.5.0.1/16", "fd00:5::1/64", "2001:db8:5::1/64", "fd00:55::1/64"),
		link("lo", 1, config.RoleLocal, "127.0.0.1/8", "::1/128"),
		aging,
	}
	entries := OwnAddresses(&Document{}, links)
	for _, test := range []struct {
		what     string
		ifindex  uint32
		peer     string
		want     string
		borrowed bool
	}{
		{"the first address of the host's subnet", 5, "192.168.1.20", "192.168.1.1", false},
		{"a second address of the subnet, itself", 5, "192.168.1.2", "192.168.1.2", false},
		{"a wide subnet", 5, "10.1.0.20", "10.0.0.1", false},
		{"a narrow subnet inside it", 5, "10.5.0.20", "10.5.0.1", false},
		{"no subnet: the first address", 5, "172.16.0.1", "192.168.1.1", false},
		{"a host of IPv6 subnet", 5, "fd00:55::20", "fd00:55::1", false},
		{"a unique local host elsewhere", 5, "fd12::20", "fd00:5::1", false},
		{"a global host elsewhere", 5, "2a00::20", "2001:db8:5::1", false},
		{"link-local addresses, if the interface has no other", 6, "10.0.0.1", "169.254.6.1", false},
		{"no address: the first interface's, not loopback or link-local", 9, "10.7.0.20", "192.168.1.1", true},
		{"no address: another interface's with this prefix", 9, "fd00:7::20", "fd00:7::1", true},
		{"no address: a unique local one for a unique local host", 9, "fd12::20", "fd00:5::1", true},
		{"no address: a global one for a global host", 9, "2a00::20", "2001:db8:5::1", true},
		{"the loopback device borrows, too", 1, "10.0.0.1", "192.168.1.1", true},
		{"a deprecated address, itself", 8, "2001:db8:7::1", "2001:db8:7::1", false},
		{"a deprecated address is not for others", 8, "2001:db8:7::2", "2001:db8:8::1", false},
		{"an interface without a role has no entries", 7, "10.7.0.20", "", false},
	} {
		if got, borrowed := find(entries, test.ifindex, netip.MustParseAddr(test.peer)); got != test.want || borrowed != test.borrowed {
			t.Errorf("%s: %q, borrowed %v; want %q, %v", test.what, got, borrowed, test.want, test.borrowed)
		}
	}
	// A router of IPv6 alone has no IPv4 address for an IPv4 host, and an IPv4 look-up may find an IPv6 address only
	// by a prefix of zero bits, which the datapath refuses.
	entries = OwnAddresses(&Document{}, []config.Interface{link("six", 3, config.RoleLAN, "fd00::1/64")})
	for key, own := range entries {
		if layout.FromAddr(own.Address).Is4() || key.PrefixLength > 32 && layout.FromAddr(key.Peer).Is4() {
			t.Errorf("entry %+v: %+v", key, own)
		}
	}
}
