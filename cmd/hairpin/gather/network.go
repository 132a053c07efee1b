// SPDX-License-Identifier: Apache-2.0

package gather

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hairpin/cmd/hairpin/diagnose"
)

// Sysctl returns a setting of this network namespace as text; key is a path below /proc/sys. It returns "" for one that cannot be read.
func Sysctl(key string) string {
	data, err := os.ReadFile(filepath.Join("/proc/sys", key))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// AcceptRA returns net.ipv6.conf.IF.accept_ra, or 0 if it cannot be read.
func AcceptRA(ifname string) int {
	value, _ := strconv.Atoi(Sysctl("net/ipv6/conf/" + ifname + "/accept_ra"))
	return value
}

// BridgeCalls reports whether rules of iptables and nftables for routed packets see the frames of bridges.
func BridgeCalls() bool {
	return Sysctl("net/bridge/bridge-nf-call-iptables") == "1" || Sysctl("net/bridge/bridge-nf-call-ip6tables") == "1"
}

// Routing asks the kernel for routes. The caller closes it.
type Routing struct {
	handle *netlink.Handle
	names  map[int]string // of interfaces, by index
}

// NewRouting opens a socket; names are the interfaces by index.
func NewRouting(names map[int]string) (*Routing, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &Routing{handle: handle, names: names}, nil
}

// Close closes the socket.
func (r *Routing) Close() { r.handle.Close() }

// To returns the route of the router's own packets to an address.
func (r *Routing) To(addr netip.Addr) diagnose.Route {
	routes, err := r.handle.RouteGet(addr.AsSlice())
	if err == nil && len(routes) == 0 {
		err = unix.ENETUNREACH
	}
	if err != nil {
		return diagnose.Route{Err: err}
	}
	gateway, _ := netip.AddrFromSlice(routes[0].Gw)
	return diagnose.Route{Interface: r.names[routes[0].LinkIndex], Gateway: gateway.Unmap()}
}

// Defaults reports for which families the main table has a default route.
func (r *Routing) Defaults() (found diagnose.Families) {
	has := func(family int) bool {
		routes, err := r.handle.RouteListFiltered(family, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
		return err == nil && len(routes) > 0
	}
	return diagnose.Families{IPv4: has(netlink.FAMILY_V4), IPv6: has(netlink.FAMILY_V6)}
}

// Neighbour says what the kernel knows of a host on a network of the router.
func (r *Routing) Neighbour(addr netip.Addr) diagnose.Neighbour {
	family := netlink.FAMILY_V4
	if addr.Is6() {
		family = netlink.FAMILY_V6
	}
	list, err := r.handle.NeighList(0, family)
	if err != nil {
		return diagnose.NeighbourUnknown
	}
	for _, n := range list {
		if at, _ := netip.AddrFromSlice(n.IP); at.Unmap() != addr {
			continue
		}
		switch {
		case n.State&(unix.NUD_REACHABLE|unix.NUD_STALE|unix.NUD_DELAY|unix.NUD_PROBE) != 0:
			return diagnose.NeighbourSeen
		case n.State&(unix.NUD_FAILED|unix.NUD_INCOMPLETE) != 0:
			return diagnose.NeighbourSilent
		}
	}
	return diagnose.NeighbourUnknown
}
