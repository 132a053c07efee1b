// SPDX-License-Identifier: Apache-2.0

// Package layout converts Go values to and from the form in the kernel's maps: keys, connections, IPv4-mapped addresses
// with prefix lengths of the 128-bit form, ports in network order. It does not access any map.
package layout

import (
	"encoding/binary"
	"net"
	"net/netip"

	"hairpin/bpf"
)

// ToAddr returns an address in the form of the maps: 16 bytes, IPv4 as an IPv4-mapped address.
func ToAddr(addr netip.Addr) bpf.HairpinAddr {
	return bpf.HairpinAddr{Bytes: addr.As16()}
}

// FromAddr reverses ToAddr.
func FromAddr(addr bpf.HairpinAddr) netip.Addr {
	return netip.AddrFrom16(addr.Bytes).Unmap()
}

// MaybeExternalSlot returns the index of an address in map maybe_external. It must agree with external_slot() in
// bpf/forward.h.
func MaybeExternalSlot(addr bpf.HairpinAddr) uint32 {
	return hash(addr) >> 20
}

// MaybeDeniedPlaces is how many places the map in maybe_denied has: 64 bits each, one bit for each value of deny_hash().
const MaybeDeniedPlaces = 1 << 15

// MaybeDeniedBit returns the place of an address in map maybe_denied, and its bit there. It must agree with deny_hash() in bpf/deny.h.
func MaybeDeniedBit(addr bpf.HairpinAddr) (place uint32, bit uint64) {
	number := hash(addr) >> 11
	return number >> 6, 1 << (number & 63)
}

func hash(addr bpf.HairpinAddr) uint32 {
	folded := uint32(0)
	for i := 0; i < len(addr.Bytes); i += 4 {
		folded ^= binary.NativeEndian.Uint32(addr.Bytes[i:])
	}
	return folded * 2654435761
}

// Be16 converts a port from host to network byte order, or back.
func Be16(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}

// AddrPort returns the Go form of an address and a port from a map; port is in network byte order.
func AddrPort(addr bpf.HairpinAddr, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(FromAddr(addr), Be16(port))
}

// mappedBits returns the prefix length of the 128-bit form: 120 for an IPv4 /24.
func mappedBits(prefix netip.Prefix) uint32 {
	bits := uint32(prefix.Bits())
	if prefix.Addr().Is4() {
		bits += 96
	}
	return bits
}

// MappedMask returns the netmask of the 128-bit form.
func MappedMask(prefix netip.Prefix) bpf.HairpinAddr {
	var mask bpf.HairpinAddr
	copy(mask.Bytes[:], net.CIDRMask(int(mappedBits(prefix)), 128))
	return mask
}

// mapped returns the IPv4-mapped form of an IPv4 address in network byte order.
func mapped(word uint32) bpf.HairpinAddr {
	var addr bpf.HairpinAddr
	addr.Bytes[10], addr.Bytes[11] = 0xff, 0xff
	binary.NativeEndian.PutUint32(addr.Bytes[12:], word)
	return addr
}

// unmapped reverses mapped.
func unmapped(addr bpf.HairpinAddr) uint32 { return binary.NativeEndian.Uint32(addr.Bytes[12:]) }

// Reversed swaps source and destination. If the packets of one direction of a connection leave as `to`, the result is
// the key of the other direction.
func Reversed(to bpf.HairpinTuple) bpf.HairpinTuple {
	to.Src, to.Dst = to.Dst, to.Src
	to.Sport, to.Dport = to.Dport, to.Sport
	return to
}

// CompareAddr orders addresses, IPv4 before IPv6.
func CompareAddr(a, b bpf.HairpinAddr) int { return FromAddr(a).Compare(FromAddr(b)) }
