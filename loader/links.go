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
	Name         string
	Index        int
	Up           bool // by the administrator; the cable is another matter
	MTU          int  // in bytes, of an IP packet
	PPP          bool // a PPP device, as of PPPoE
	HardwareAddr net.HardwareAddr
	Addresses    []netip.Prefix // of both families, with the host part
	// XDPTransmit says that the device sends frames that XDP redirects to it. One that does not
	// drops them, some without a count.
	XDPTransmit bool
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
	links := make([]Link, 0, len(devices))
	for _, dev := range devices {
		links = append(links, newLink(dev, addresses, features))
	}
	slices.SortFunc(links, func(a, b Link) int { return a.Index - b.Index })
	return links, nil
}

func newLink(dev netlink.Link, addresses []netlink.Addr, features map[int]uint64) Link {
	attrs := dev.Attrs()
	l := Link{
		Name:         attrs.Name,
		Index:        attrs.Index,
		Up:           attrs.RawFlags&unix.IFF_UP != 0,
		MTU:          attrs.MTU,
		PPP:          attrs.EncapType == "ppp", // the library's name for ARPHRD_PPP
		HardwareAddr: attrs.HardwareAddr,
		XDPTransmit:  transmitsXDP(dev, features),
	}
	for _, a := range addresses {
		if a.LinkIndex != attrs.Index {
			continue
		}
		if address, ok := netip.AddrFromSlice(a.IP); ok {
			ones, _ := a.Mask.Size()
			l.Addresses = append(l.Addresses, netip.PrefixFrom(address.Unmap(), ones))
		}
	}
	return l
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
