// SPDX-License-Identifier: Apache-2.0

package config

import (
	"net"
	"net/netip"
)

// Role says how the datapath treats an interface. The zero value means that hairpin is not configured for the interface.
type Role uint8

// The roles.
const (
	RoleWAN Role = iota + 1
	RoleLAN
	// RoleLocal is the role of the loopback device. Packets of the router's own sockets come in by this device.
	RoleLocal
)

// String returns "wan", "lan", "local", or "" for the zero value.
func (r Role) String() string { return [...]string{"", "wan", "lan", "local"}[r] }

// Interface is the current state of a network interface of the router.
type Interface struct {
	Name        string
	Index       int
	Role        Role           // 0: hairpin is not configured for it
	Attached    bool           // the programs are on it, although it has no role: it may be lost (compile.FindLost)
	Addresses   []netip.Prefix // addresses with their networks; per family, the preferred source address first
	Passive     []netip.Prefix // IPv6 addresses that must not be sources of new connections: deprecated or tentative
	XDPTransmit bool           // the driver can send redirected XDP frames (ndo_xdp_xmit)
	XDPBack     bool           // XDP sends frames that leave by the interface that they came in by with XDP_TX
	MTU         int            // largest IP packet, in bytes
	Bare        bool           // its packets have no link-layer header, as of PPP, WireGuard and tun
	RPFilter    uint8          // rp_filter of the kernel (RFC 3704), used for both families: 0 off, 1 strict, 2 loose
	Below       int            // macvlan: index of the device below it; 0: none

	HardwareAddr net.HardwareAddr // MAC address; empty if the interface has no Ethernet header
}

// Global6 reports whether addr is a global or unique local (RFC 4193) IPv6 address.
func Global6(addr netip.Addr) bool {
	return addr.Is6() && !addr.Is4In6() && addr.IsGlobalUnicast()
}

// IsExternal reports whether forwards can listen on addr if a WAN interface has it.
func IsExternal(addr netip.Addr) bool {
	return addr.Is4() && !addr.IsLoopback() || Global6(addr)
}
