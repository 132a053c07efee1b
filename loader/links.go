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

// Link is a network interface as it is now.
type Link struct {
	Name     string
	Index    int
	Up       bool // by the administrator; the cable is another matter
	MTU      int  // in bytes, of an IP packet
	PPP      bool // a PPP device, as of PPPoE
	Loopback bool // brings the router its own packets
	// RPFilter is what net.ipv4.conf.*.rp_filter says of sources of packets that come in here: 0 nothing,
	// 1 the way back must be this link, 2 there must be one.
	RPFilter uint8
	// Below is the index of the device below a macvlan, if both are in this namespace; else 0.
	Below        int
	HardwareAddr net.HardwareAddr
	// Addresses are of both families, with the host part, and the one to send from first.
	Addresses []netip.Prefix
	// Passive are addresses of IPv6 that nothing new is sent from: deprecated, or still probed for
	// being another host's too (RFC 4862 5.4). An address is probed again when its link comes up
	// again, and its connections go on.
	Passive []netip.Prefix
	// PortOf names the bridge, bond or team that the interface belongs to: its packets are that one's.
	PortOf string
	// VLANs names the VLAN devices on top of it.
	VLANs []string
	// XDPTransmit says that the device sends frames that XDP redirects to it. One that does not
	// drops them, some without a count.
	XDPTransmit bool
	// Veth says that whoever is at the other end is told the kernel's sum of a packet, which generic
	// XDP leaves as it was.
	Veth bool
	// Tags says whether XDP sees the VLAN tags of frames.
	Tags TagVisibility

	physical, bare bool
}

// Links lists the interfaces of the network namespace by index, loopback included.
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
		PPP:          attrs.EncapType == "ppp", // the library's name for ARPHRD_PPP
		Loopback:     loopback(dev),
		HardwareAddr: attrs.HardwareAddr,
		XDPTransmit:  transmitsXDP(dev, features),
		Veth:         dev.Type() == "veth",
		VLANs:        vlansOn(dev, devices),
		Tags:         tags,
		Below:        below(dev),
		physical:     isPhysical(attrs),
		bare:         hasNoLinkHeader(dev),
	}
	l.setAddresses(addresses)
	return l, nil
}

// setAddresses takes those of a list that are the link's and can be used. Temporary ones (RFC 8981)
// come last: they are soon gone, and meant for the router's own connections.
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
			l.Addresses = append(l.Addresses, prefix) // the flags mean other things
		case a.Flags&unix.IFA_F_DADFAILED != 0: // it is another host's
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

// portOf names the device that takes what arrives on dev, if that is another one. A VRF does not:
// its interfaces have addresses and routes of their own.
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

// below returns the index of the device below a macvlan. A device of another namespace counts as none: its index means
// nothing here.
func below(dev netlink.Link) int {
	if dev.Type() != "macvlan" || dev.Attrs().NetNsID >= 0 {
		return 0
	}
	return dev.Attrs().ParentIndex
}

// RouteTo is the index of the interface by which the network namespace sends to an address. It needs
// no privilege.
func RouteTo(addr netip.Addr) (int, error) {
	routes, err := netlink.RouteGet(addr.AsSlice())
	if err != nil {
		return 0, explain(fmt.Errorf("find the route to %s: %w", addr, err))
	}
	if len(routes) == 0 {
		return 0, fmt.Errorf("find the route to %s: there is none", addr)
	}
	return routes[0].LinkIndex, nil
}

// retryDump asks again if what is listed changed meanwhile: the kernel tells, and an interrupted
// list may lack entries.
func retryDump[T any](list func() ([]T, error)) ([]T, error) {
	for range 10 {
		found, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return found, err
		}
	}
	return nil, netlink.ErrDumpInterrupted
}
