// SPDX-License-Identifier: Apache-2.0

// Package layout knows how addresses, ports, keys and connections lie in the kernel's maps: addresses IPv4-mapped, ports in network
// order, prefix lengths of the 128-bit form. It turns Go values into these forms and back, and never opens a map.
package layout

import (
	"encoding/binary"
	"net"
	"net/netip"

	"hairpin/bpf"
)

// ToAddr is an address as the maps hold it: IPv4-mapped, 16 bytes.
func ToAddr(addr netip.Addr) bpf.HairpinAddr {
	return bpf.HairpinAddr{Bytes: addr.As16()}
}

// FromAddr is the reverse of ToAddr.
func FromAddr(addr bpf.HairpinAddr) netip.Addr {
	return netip.AddrFrom16(addr.Bytes).Unmap()
}

// MaybeExternalSlot is external_slot() of the datapath.
func MaybeExternalSlot(addr bpf.HairpinAddr) uint32 {
	folded := uint32(0)
	for i := 0; i < len(addr.Bytes); i += 4 {
		folded ^= binary.NativeEndian.Uint32(addr.Bytes[i:])
	}
	return folded * 2654435761 >> 20
}

// Be16 turns a port into its network order form, and such a form back.
func Be16(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}

// AddrPort is an address and a port in network order, as Go has them.
func AddrPort(addr bpf.HairpinAddr, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(FromAddr(addr), Be16(port))
}

// mappedBits is the prefix length of the 128-bit form: 120 for an IPv4 /24.
func mappedBits(prefix netip.Prefix) uint32 {
	bits := uint32(prefix.Bits())
	if prefix.Addr().Is4() {
		bits += 96
	}
	return bits
}

// MappedMask is the mask of the 128-bit form.
func MappedMask(prefix netip.Prefix) bpf.HairpinAddr {
	var mask bpf.HairpinAddr
	copy(mask.Bytes[:], net.CIDRMask(int(mappedBits(prefix)), 128))
	return mask
}

// mapped is an IPv4 address, as a word in network order, in the form that both families have.
func mapped(word uint32) bpf.HairpinAddr {
	var addr bpf.HairpinAddr
	addr.Bytes[10], addr.Bytes[11] = 0xff, 0xff
	binary.NativeEndian.PutUint32(addr.Bytes[12:], word)
	return addr
}

// unmapped is the reverse of mapped.
func unmapped(addr bpf.HairpinAddr) uint32 { return binary.NativeEndian.Uint32(addr.Bytes[12:]) }

// Reversed is the key of the other direction of a connection whose packets
// leave as `to`.
func Reversed(to bpf.HairpinTuple) bpf.HairpinTuple {
	to.Src, to.Dst = to.Dst, to.Src
	to.Sport, to.Dport = to.Dport, to.Sport
	return to
}

// CompareAddr sorts addresses, those of IPv4 first.
func CompareAddr(a, b bpf.HairpinAddr) int { return FromAddr(a).Compare(FromAddr(b)) }
