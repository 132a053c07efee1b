// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Link is the present state of a network interface.
type Link struct {
	Name     string
	Index    int
	Up       bool // IFF_UP, set by the administrator; the link may have no carrier
	MTU      int  // in bytes, of an IP packet
	Bare     bool // its packets have no link-layer header, as of PPP, WireGuard and tun
	Loopback bool // lo, which carries the router's packets to itself
	// RPFilter is the effective net.ipv4.conf.*.rp_filter for packets that arrive here. 0: sources are not
	// checked. 1 (strict): the route to the source must use this link. 2 (loose): a route to the source
	// must exist.
	RPFilter uint8
	// Below is the index of the device below a macvlan. 0: the link is no macvlan, or the device is in another
	// network namespace.
	Below        int
	HardwareAddr net.HardwareAddr
	// Addresses holds the IPv4 and IPv6 addresses with prefix length and host bits. The preferred source is
	// first.
	Addresses []netip.Prefix
	// Passive holds the IPv6 addresses that new connections must not use as source: deprecated addresses,
	// and tentative addresses, which the kernel still probes for duplicates (RFC 4862 5.4). Their
	// connections continue: the kernel probes an address again each time its link comes up.
	Passive []netip.Prefix
	// PortOf is the bridge, bond or team that this interface is a port of, "" if there is none. The bridge,
	// bond or team receives the interface's packets.
	PortOf string
	// VLANs holds the names of the VLAN interfaces on this device.
	VLANs []string
	// XDPTransmit reports whether the device transmits frames that XDP redirects to it (ndo_xdp_xmit).
	// Other devices drop these frames, some without a counter.
	XDPTransmit bool
	// Veth reports whether the device is a veth. A veth passes skb->csum on to its peer, but generic XDP
	// does not update skb->csum when it changes a packet.
	Veth bool
	// Bridge reports whether the device is a bridge.
	Bridge bool
	// Tags says whether XDP sees the VLAN tags of frames.
	Tags TagVisibility

	// Physical reports whether the device is of a bus, as NICs are, also those of virtual machines.
	Physical bool

	// peer and peerNS are the ifindex of a veth's other end and the id of its network namespace; peerNS is negative for this network
	// namespace.
	peer, peerNS int
}

// Links lists the interfaces of the network namespace, sorted by index. It includes lo.
func Links() ([]Link, error) {
	devices, err := retryDump(netlink.LinkList)
	if err != nil {
		return nil, explain(fmt.Errorf("list interfaces: %w", err))
	}
	addresses, err := retryDump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, explain(fmt.Errorf("list addresses: %w", err))
	}
	features, err := xdpFeatures(devices)
	if err != nil {
		return nil, explain(err)
	}
	filters, err := rpFilters()
	if err != nil {
		return nil, explain(err)
	}
	links := make([]Link, 0, len(devices))
	for _, dev := range devices {
		l, err := newLink(dev, devices, addresses, features)
		if err != nil {
			return nil, explain(err)
		}
		l.PortOf = portOf(dev, devices)
		l.RPFilter = filters.of(l.Index)
		links = append(links, l)
	}
	slices.SortFunc(links, func(a, b Link) int { return a.Index - b.Index })
	return links, nil
}

func newLink(dev netlink.Link, devices []netlink.Link, addresses []netlink.Addr, features map[int]uint64) (Link, error) {
	attrs := dev.Attrs()
	tags, err := readTagVisibility(dev)
	if err != nil {
		return Link{}, err
	}
	l := Link{
		Name:         attrs.Name,
		Index:        attrs.Index,
		Up:           attrs.RawFlags&unix.IFF_UP != 0,
		MTU:          attrs.MTU,
		Bare:         hasNoLinkHeader(dev),
		Loopback:     loopback(dev),
		HardwareAddr: attrs.HardwareAddr,
		XDPTransmit:  transmitsXDP(dev, features),
		Veth:         dev.Type() == "veth",
		Bridge:       dev.Type() == "bridge",
		VLANs:        vlansOn(dev, devices),
		Tags:         tags,
		Below:        below(dev),
		Physical:     isPhysical(attrs),
		peer:         attrs.ParentIndex,
		peerNS:       attrs.NetNsID,
	}
	l.setAddresses(addresses)
	return l, nil
}

// setAddresses stores the usable addresses of this link from list. Temporary addresses (RFC 8981) come
// last: they expire soon, and are meant for the router's own connections.
func (l *Link) setAddresses(list []netlink.Addr) {
	var temporary []netip.Prefix
	for _, a := range list {
		address, ok := netip.AddrFromSlice(a.IP)
		// No packet on the wire has an IPv4-mapped address.
		if a.LinkIndex != l.Index || !ok || address.Is4In6() {
			continue
		}
		ones, _ := a.Mask.Size()
		prefix := netip.PrefixFrom(address, ones)
		switch {
		case address.Is4():
			l.Addresses = append(l.Addresses, prefix) // the flags below have another meaning for IPv4
		case a.Flags&unix.IFA_F_DADFAILED != 0: // a duplicate: another host has this address
		case a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DEPRECATED) != 0:
			l.Passive = append(l.Passive, prefix)
		case a.Flags&unix.IFA_F_TEMPORARY != 0:
			temporary = append(temporary, prefix)
		default:
			l.Addresses = append(l.Addresses, prefix)
		}
	}
	l.Addresses = append(l.Addresses, temporary...)
}

// portOf returns the name of the bridge, bond or team that receives the packets of dev, "" if there is
// none. A VRF does not count: its interfaces keep their own addresses and routes.
func portOf(dev netlink.Link, devices []netlink.Link) string {
	master := dev.Attrs().MasterIndex
	if master == 0 {
		return ""
	}
	for _, other := range devices {
		if other.Attrs().Index == master && other.Type() != "vrf" {
			return other.Attrs().Name
		}
	}
	return ""
}

// below returns the index of the device below a macvlan. It returns 0 for a device of another network namespace, whose
// index has no meaning here.
func below(dev netlink.Link) int {
	if dev.Type() != "macvlan" || dev.Attrs().NetNsID >= 0 {
		return 0
	}
	return dev.Attrs().ParentIndex
}

// RouteTo returns the index of the interface that the routing table selects for addr. It needs no
// privilege.
func RouteTo(addr netip.Addr) (int, error) {
	routes, err := netlink.RouteGet(addr.AsSlice())
	if err != nil {
		return 0, explain(fmt.Errorf("find the route to %s: %w", addr, err))
	}
	if len(routes) == 0 {
		return 0, fmt.Errorf("find the route to %s: no route", addr)
	}
	return routes[0].LinkIndex, nil
}

// retryDump repeats a netlink dump that the kernel marks as interrupted (NLM_F_DUMP_INTR): such a dump may
// lack entries. It gives up after 10 tries.
func retryDump[T any](list func() ([]T, error)) ([]T, error) {
	for range 10 {
		found, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return found, err
		}
	}
	return nil, netlink.ErrDumpInterrupted
}
