// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"hairpin/bpf"
	"hairpin/maps/config"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
)

// carrierGrade is the shared address space of RFC 6598.
var carrierGrade = netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, 0, 0}), 10)

// roles maps each role to enum role of the datapath.
var roles = map[config.Role]bpf.HairpinRole{
	config.RoleWAN:   bpf.HairpinRoleROLE_WAN,
	config.RoleLAN:   bpf.HairpinRoleROLE_LAN,
	config.RoleLocal: bpf.HairpinRoleROLE_LOCAL,
}

// InterfaceEntry returns the value of an interface in map interfaces, if this document is running.
func (d *Document) InterfaceEntry(link config.Interface) bpf.HairpinInterface {
	value := bpf.HairpinInterface{Role: roles[link.Role], RpFilter: link.RPFilter, Below: uint32(link.Below)}
	if len(link.HardwareAddr) == len(value.Mac) {
		copy(value.Mac[:], link.HardwareAddr)
	}
	for _, prefix := range link.Addresses {
		addr := prefix.Addr()
		// IPv4 only: every IPv6 interface has a link-local address, even if its network is public.
		if addr.Is4() && (addr.IsPrivate() || addr.IsLinkLocalUnicast() || carrierGrade.Contains(addr)) {
			value.Private = 1
		}
	}
	if link.XDPBack {
		value.XdpTx = 1
	}
	if link.Role == config.RoleWAN && slices.Contains(d.Config.PrivateSources, link.Name) {
		value.PrivateSources = 1
	}
	// The kernel limits the MSS of a SYN through the loopback device only by the large MTU of that device. With an entry
	// here, nat_clamp_mss() also limits the MSS to the MTU of the route.
	if link.Role == config.RoleLocal || d.Config.ClampsMSS(link) {
		value.MssMtu = uint32(max(0, link.MTU))
	}
	if link.Role == config.RoleLAN {
		value.InterceptV4 = d.Externals[rule.AtLAN(link.Name, false)]
		value.InterceptV6 = d.Externals[rule.AtLAN(link.Name, true)]
	}
	return value
}

// uniqueLocal is the network of unique local addresses (RFC 4193).
var uniqueLocal = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfc}), 7)

// The prefixes of all hosts of a family, in map own_addresses.
var (
	every4 = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	every6 = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
)

// OwnAddresses returns the entries of map own_addresses. For each interface with a role they say which address of the
// router its hosts see: the address in the host's subnet, else the interface's first address, else an address of another
// interface. The choice is the one of the kernel's masquerading: inet_select_addr() for IPv4, ipv6_dev_get_saddr() for
// IPv6 (RFC 6724).
//
// An interface without a role has the entries of its subnets, without an address: these networks are internal ones, whose sources
// a WAN refuses.
//
// Where there are intercepts, all addresses of the router also have an entry that belongs to no interface.
func OwnAddresses(doc *Document, ifs []config.Interface) map[bpf.HairpinOwnAddressKey]bpf.HairpinOwnAddress {
	own := ownAddresses{}
	if doc.Intercepts {
		for addr := range addressesOf(ifs) {
			own[bpf.HairpinOwnAddressKey{PrefixLength: layout.OwnAddressBits, Peer: addr}] = bpf.HairpinOwnAddress{Address: addr}
		}
	}
	ifs = slices.SortedFunc(slices.Values(ifs), func(a, b config.Interface) int { return cmp.Compare(a.Index, b.Index) })
	for _, link := range ifs {
		v4, v6 := sources(link)
		if link.Role == 0 {
			own.putInternal(link, slices.Concat(v4, v6, link.Passive))
			continue
		}
		own.add4(link, v4, ifs)
		own.add6(link, v6, ifs)
		for _, prefix := range link.Passive {
			own.put(link, netip.PrefixFrom(prefix.Addr(), prefix.Addr().BitLen()), prefix.Addr(), false)
		}
	}
	return own
}

// sources returns the addresses of an interface that the router may use as sources.
func sources(link config.Interface) (v4, v6 []netip.Prefix) {
	for _, prefix := range link.Addresses {
		switch addr := prefix.Addr(); {
		case addr.Is4() && !addr.IsLoopback():
			v4 = append(v4, prefix)
		case config.Global6(addr):
			v6 = append(v6, prefix)
		}
	}
	return v4, v6
}

type ownAddresses map[bpf.HairpinOwnAddressKey]bpf.HairpinOwnAddress

// put adds an entry, unless an earlier address has the same prefix.
func (o ownAddresses) put(link config.Interface, peers netip.Prefix, addr netip.Addr, borrowed bool) {
	key := layout.OwnAddressKey(uint32(link.Index), peers)
	if _, there := o[key]; there {
		return
	}
	value := bpf.HairpinOwnAddress{Address: layout.ToAddr(addr)}
	if borrowed {
		value.Borrowed = 1
	}
	o[key] = value
}

// putAll adds the entries of addresses that an interface has itself, or borrows: of each address, and of its subnet.
func (o ownAddresses) putAll(link config.Interface, list []netip.Prefix, borrowed bool) {
	for _, prefix := range list {
		o.put(link, netip.PrefixFrom(prefix.Addr(), prefix.Addr().BitLen()), prefix.Addr(), borrowed)
	}
	for _, prefix := range list {
		o.put(link, prefix.Masked(), prefix.Addr(), borrowed)
	}
}

// putInternal adds the entries of an interface that has no role.
func (o ownAddresses) putInternal(link config.Interface, list []netip.Prefix) {
	for _, prefix := range list {
		none := netip.IPv6Unspecified()
		if prefix.Addr().Is4() {
			none = netip.IPv4Unspecified()
		}
		o.put(link, prefix.Masked(), none, false)
	}
}

// add4 adds the IPv4 entries of an interface. Like inet_select_addr(), it takes the first address of the first interface
// with an address of global scope if this interface has none. ifs is in the order of the kernel's list.
func (o ownAddresses) add4(link config.Interface, own []netip.Prefix, ifs []config.Interface) {
	o.putAll(link, own, false)
	if len(own) > 0 {
		o.put(link, every4, own[0].Addr(), false)
		return
	}
	for _, other := range ifs {
		lent, _ := sources(other)
		for _, prefix := range lent {
			if !prefix.Addr().IsLinkLocalUnicast() {
				o.put(link, every4, prefix.Addr(), true)
				return
			}
		}
	}
}

// add6 adds the IPv6 entries of an interface. Like ipv6_dev_get_saddr(), it takes an address of another interface if this
// interface has none. Rule 6 of RFC 6724: a unique local address is for unique local hosts, another address for others.
func (o ownAddresses) add6(link config.Interface, own []netip.Prefix, ifs []config.Interface) {
	borrowed := len(own) == 0
	if borrowed {
		for _, other := range ifs {
			_, lent := sources(other)
			own = append(own, lent...)
		}
	}
	o.putAll(link, own, borrowed)
	isLocal := func(prefix netip.Prefix) bool { return uniqueLocal.Contains(prefix.Addr()) }
	if i := slices.IndexFunc(own, isLocal); i >= 0 {
		o.put(link, uniqueLocal, own[i].Addr(), borrowed)
	}
	if i := slices.IndexFunc(own, func(prefix netip.Prefix) bool { return !isLocal(prefix) }); i >= 0 {
		o.put(link, every6, own[i].Addr(), borrowed)
	} else if len(own) > 0 {
		o.put(link, every6, own[0].Addr(), borrowed)
	}
}

// Externals returns the entries of map externals, the addresses that forwards listen on. The epoch references are not
// set.
func Externals(doc *Document, ifs []config.Interface) map[bpf.HairpinAddr]bpf.HairpinExternal {
	wanted := map[bpf.HairpinAddr]bpf.HairpinExternal{}
	for _, link := range ifs {
		if link.Role != config.RoleWAN {
			continue
		}
		for _, prefix := range slices.Concat(link.Addresses, link.Passive) {
			addr := prefix.Addr()
			group := doc.Externals[rule.AtWAN(link.Name, addr.Is6())]
			if _, twice := wanted[layout.ToAddr(addr)]; group != 0 && config.IsExternal(addr) && !twice {
				wanted[layout.ToAddr(addr)] = bpf.HairpinExternal{Group: group}
			}
		}
	}
	for at, id := range doc.Externals {
		if at.Address.IsValid() {
			value := wanted[layout.ToAddr(at.Address)]
			value.Fixed = id
			wanted[layout.ToAddr(at.Address)] = value
		}
	}
	return wanted
}

// Listeners returns the external ids that exactly one address has, with this address.
func Listeners(externals map[bpf.HairpinAddr]bpf.HairpinExternal) map[uint32]bpf.HairpinAddr {
	listeners := map[uint32]bpf.HairpinAddr{}
	addresses := map[uint32]int{0: 2} // 0 means "no id": count it twice, so that it is never a listener
	for addr, external := range externals {
		for _, id := range []uint32{external.Fixed, external.Group} {
			addresses[id]++
			listeners[id] = addr
		}
	}
	maps.DeleteFunc(listeners, func(id uint32, _ bpf.HairpinAddr) bool { return addresses[id] > 1 })
	return listeners
}

// GoneAddresses returns the addresses in the entries of map own_addresses that no interface has any more.
func GoneAddresses(present map[bpf.HairpinOwnAddressKey]bpf.HairpinOwnAddress, ifs []config.Interface) map[bpf.HairpinAddr]bool {
	gone := map[bpf.HairpinAddr]bool{}
	for _, own := range present {
		if !layout.FromAddr(own.Address).IsUnspecified() {
			gone[own.Address] = true
		}
	}
	for addr := range addressesOf(ifs) {
		delete(gone, addr)
	}
	return gone
}
