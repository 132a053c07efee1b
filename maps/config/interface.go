// SPDX-License-Identifier: Apache-2.0

package config

import (
	"net"
	"net/netip"
)

// Role is what an interface is to the datapath. The zero value is the role of an interface that hairpin has nothing to do with.
type Role uint8

// The roles.
const (
	RoleWAN Role = iota + 1
	RoleLAN
	// RoleLocal is the role of the loopback device, by which the router's own packets come in.
	RoleLocal
)

// String is "wan", "lan" or "local", and "" for none.
func (r Role) String() string { return [...]string{"", "wan", "lan", "local"}[r] }

// Interface is a device of the router as it is now.
type Interface struct {
	Name        string
	Index       int
	Role        Role           // 0 if hairpin has nothing to do with it
	Addresses   []netip.Prefix // with the lengths of their networks; of a family the one to use first
	Passive     []netip.Prefix // the same, but nothing is sent from them unless it answers
	XDPTransmit bool           // takes XDP frames
	MTU         int            // in bytes, of an IP packet
	PPP         bool           // a PPP device
	RPFilter    uint8          // the kernel's, for IPv4: 0 off, 1 strict, 2 by any way back

	HardwareAddr net.HardwareAddr // empty without Ethernet header
}

// Global6 reports whether an address is of IPv6 and not bound to its link: global
// or unique local (RFC 4193).
func Global6(addr netip.Addr) bool {
	return addr.Is6() && !addr.Is4In6() && addr.IsGlobalUnicast()
}

// IsExternal reports whether forwards can listen on an address of a WAN interface.
func IsExternal(addr netip.Addr) bool {
	return addr.Is4() && !addr.IsLoopback() || Global6(addr)
}
