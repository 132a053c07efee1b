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

const (
	externalBits = 32
	// protocolBits is the prefix length that leaves the port open: a 1:1 forward
	// of one protocol. One of any protocol leaves that open too.
	protocolBits = externalBits + 8 + 8
	sourceBits   = 32
	targetBits   = 128
	// originBits is the prefix length that leaves the port of a target open.
	originBits = targetBits + 8 + 8
)

// forwardKey is the trie key of the ports that share the first `bits` bits of port.
func forwardKey(external uint32, protocol uint8, port uint16, bits int) bpf.HairpinForwardKey {
	return bpf.HairpinForwardKey{
		PrefixLength: protocolBits + uint32(bits),
		External:     external,
		Protocol:     protocol,
		Port:         be16(port),
	}
}

// anyKey is the trie key of every protocol.
func anyKey(external uint32) bpf.HairpinForwardKey {
	return bpf.HairpinForwardKey{PrefixLength: externalBits, External: external}
}

func allowKey(forward uint32, source netip.Prefix) bpf.HairpinAllowKey {
	return bpf.HairpinAllowKey{
		PrefixLength: sourceBits + mappedBits(source),
		Forward:      forward,
		Source:       toAddr(source.Addr()),
	}
}

// originKey is the trie key of the ports of a target that share the first `bits`
// bits of port. wan is 1 for answers to the Internet, 0 for those to stand-ins.
func originKey(target netip.Addr, protocol, wan uint8, port uint16, bits int) bpf.HairpinOriginKey {
	return bpf.HairpinOriginKey{
		PrefixLength: originBits + uint32(bits),
		Target:       toAddr(target),
		Protocol:     protocol,
		Wan:          wan,
		Port:         be16(port),
	}
}

// anyOriginKey is the trie key of every protocol of a target, for answers to
// stand-ins. A lookup for the Internet may find it, too; its value says what it is.
func anyOriginKey(target netip.Addr) bpf.HairpinOriginKey {
	return bpf.HairpinOriginKey{PrefixLength: targetBits, Target: toAddr(target)}
}

// standInEntry is what the addresses of a network become.
func standInEntry(from, to netip.Prefix) (bpf.HairpinStandInKey, bpf.HairpinStandIn) {
	return bpf.HairpinStandInKey{PrefixLength: mappedBits(from), Address: toAddr(from.Addr())},
		bpf.HairpinStandIn{Network: toAddr(to.Addr()), Mask: mappedMask(to)}
}
