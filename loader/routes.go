// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Routes lists the networks of all routes in every table of the network namespace. It leaves out routes
// that the kernel made for the router's own addresses. It also leaves out blackhole, unreachable, prohibit
// and throw routes, because administrators use them to reserve a network.
func Routes() ([]netip.Prefix, error) {
	routes, err := retryDump(func() (found []netip.Prefix, err error) {
		everyTable := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
		err = netlink.RouteListFilteredIter(netlink.FAMILY_ALL, everyTable, netlink.RT_FILTER_TABLE, func(route netlink.Route) bool {
			if network, ok := routedNetwork(route); ok {
				found = append(found, network)
			}
			return true
		})
		return found, err
	})
	if err != nil {
		return nil, explain(fmt.Errorf("list routes: %w", err))
	}
	return routes, nil
}

func routedNetwork(route netlink.Route) (netip.Prefix, bool) {
	switch route.Type {
	case unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT, unix.RTN_THROW:
		return netip.Prefix{}, false
	}
	if route.Protocol == unix.RTPROT_KERNEL || route.Dst == nil {
		return netip.Prefix{}, false
	}
	address, ok := netip.AddrFromSlice(route.Dst.IP)
	length, _ := route.Dst.Mask.Size()
	return netip.PrefixFrom(address, length), ok
}
