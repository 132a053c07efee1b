// SPDX-License-Identifier: Apache-2.0

package compile

import (
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
	value := bpf.HairpinInterface{Role: roles[link.Role], RpFilter: link.RPFilter}
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
	for i, prefix := range ownAddresses(link, len(value.Address)) {
		value.Address[i] = bpf.HairpinInterfaceAddress{
			Address: layout.ToAddr(prefix.Addr()),
			Mask:    layout.MappedMask(prefix),
		}
		value.Addresses++
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

// ownAddresses returns up to n addresses of an interface that the router may use as sources, IPv4 first. A family gets
// more than n/2 only if the other family does not need all of its half.
func ownAddresses(link config.Interface, n int) []netip.Prefix {
	var v4, v6 []netip.Prefix
	for _, prefix := range link.Addresses {
		switch addr := prefix.Addr(); {
		case addr.Is4():
			v4 = append(v4, prefix)
		case config.Global6(addr):
			v6 = append(v6, prefix)
		}
	}
	v4 = v4[:min(len(v4), max(n/2, n-len(v6)))]
	v6 = v6[:min(len(v6), n-len(v4))]
	return slices.Concat(v4, v6)
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

// GoneAddresses returns the addresses in the entries of map interfaces that no interface has any more.
func GoneAddresses(present map[uint32]bpf.HairpinInterface, ifs []config.Interface) map[bpf.HairpinAddr]bool {
	gone := map[bpf.HairpinAddr]bool{}
	for _, value := range present {
		for _, own := range value.Address[:value.Addresses] {
			gone[own.Address] = true
		}
	}
	for _, link := range ifs {
		for _, prefix := range slices.Concat(link.Addresses, link.Passive) {
			delete(gone, layout.ToAddr(prefix.Addr()))
		}
	}
	return gone
}

// Locals returns the router's own addresses for map locals. The datapath reads this map only for intercepts, so without
// intercepts the result is empty.
func Locals(doc *Document, ifs []config.Interface) map[bpf.HairpinAddr]bool {
	wanted := map[bpf.HairpinAddr]bool{}
	if !doc.Intercepts {
		return wanted
	}
	for _, link := range ifs {
		for _, prefix := range slices.Concat(link.Addresses, link.Passive) {
			wanted[layout.ToAddr(prefix.Addr())] = true
		}
	}
	return wanted
}
