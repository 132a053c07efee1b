// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"net"
	"net/netip"

	"hairpin/bpf"
)

// The one place that knows how addresses, ports and prefixes lie in the maps:
// addresses v4-mapped, ports in network order, prefix lengths of the 128-bit form.

func toAddr(addr netip.Addr) bpf.HairpinAddr {
	return bpf.HairpinAddr{Bytes: addr.As16()}
}

func fromAddr(addr bpf.HairpinAddr) netip.Addr {
	return netip.AddrFrom16(addr.Bytes).Unmap()
}

// maybeExternalSlot is external_slot() of the datapath.
func maybeExternalSlot(addr bpf.HairpinAddr) uint32 {
	folded := uint32(0)
	for i := 0; i < len(addr.Bytes); i += 4 {
		folded ^= binary.NativeEndian.Uint32(addr.Bytes[i:])
	}
	return folded * 2654435761 >> 20
}

// be16 turns a port into its network order form, and such a form back.
func be16(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}

func addrPort(addr bpf.HairpinAddr, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(fromAddr(addr), be16(port))
}

// mappedBits is the prefix length of the 128-bit form: 120 for an IPv4 /24.
func mappedBits(prefix netip.Prefix) uint32 {
	bits := uint32(prefix.Bits())
	if prefix.Addr().Is4() {
		bits += 96
	}
	return bits
}

// mappedMask is the mask of the 128-bit form.
func mappedMask(prefix netip.Prefix) bpf.HairpinAddr {
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

// reversed is the key of the other direction of a connection whose packets
// leave as `to`.
func reversed(to bpf.HairpinTuple) bpf.HairpinTuple {
	to.Src, to.Dst = to.Dst, to.Src
	to.Sport, to.Dport = to.Dport, to.Sport
	return to
}
