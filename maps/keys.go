// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"hairpin/bpf"
	"net/netip"
)

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
