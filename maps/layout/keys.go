// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"net/netip"

	"hairpin/bpf"
)

const (
	ExternalBits = 32
	// ProtocolBits is the prefix length of a key that matches every port: a 1:1 forward of one protocol. With
	// ExternalBits the key matches every protocol too.
	ProtocolBits = ExternalBits + 8 + 8
	SourceBits   = 32
	familyBits   = 32
	TargetBits   = 128
	// interfaceBits is the length of the interface in a key of map own_addresses.
	interfaceBits = 32
	// OwnAddressBits is the length of the key of one address there.
	OwnAddressBits = interfaceBits + 128
	// originBits is the prefix length of a key that matches every port of a target.
	originBits = TargetBits + 8 + 8
)

// ForwardKey returns the trie key that matches all ports with the same first `bits` bits as port.
func ForwardKey(external uint32, protocol uint8, port uint16, bits int) bpf.HairpinForwardKey {
	return bpf.HairpinForwardKey{
		PrefixLength: ProtocolBits + uint32(bits),
		External:     external,
		Protocol:     protocol,
		Port:         Be16(port),
	}
}

// AnyKey returns the trie key that matches every protocol and port at an external id.
func AnyKey(external uint32) bpf.HairpinForwardKey {
	return bpf.HairpinForwardKey{PrefixLength: ExternalBits, External: external}
}

// AllowKey returns the trie key for packets of a source network to the forward with this id.
func AllowKey(forward uint32, source netip.Prefix) bpf.HairpinAllowKey {
	return bpf.HairpinAllowKey{
		PrefixLength: SourceBits + mappedBits(source),
		Forward:      forward,
		Source:       ToAddr(source.Addr()),
	}
}

// OriginKey returns the trie key that matches all ports of a target with the same first `bits` bits as port. wan is 1
// for answers to the Internet, 0 for answers to stand-ins.
func OriginKey(target netip.Addr, protocol, wan uint8, port uint16, bits int) bpf.HairpinOriginKey {
	return bpf.HairpinOriginKey{
		PrefixLength: originBits + uint32(bits),
		Target:       ToAddr(target),
		Protocol:     protocol,
		Wan:          wan,
		Port:         Be16(port),
	}
}

// AnyOriginKey returns the trie key that matches every protocol and port of a target, for answers to stand-ins. A
// lookup for an answer to the Internet may find this entry too, so the datapath compares the field wan of the value.
func AnyOriginKey(target netip.Addr) bpf.HairpinOriginKey {
	return bpf.HairpinOriginKey{PrefixLength: TargetBits, Target: ToAddr(target)}
}

// OwnAddressKey returns the trie key of hosts behind an interface whose addresses have this prefix.
func OwnAddressKey(ifindex uint32, peers netip.Prefix) bpf.HairpinOwnAddressKey {
	return bpf.HairpinOwnAddressKey{
		PrefixLength: interfaceBits + mappedBits(peers),
		Ifindex:      ifindex,
		Peer:         ToAddr(peers.Addr()),
	}
}

// AddressKey returns the trie key of an address alone.
func AddressKey(addr bpf.HairpinAddr) bpf.HairpinPrefixKey {
	return bpf.HairpinPrefixKey{PrefixLength: 128, Address: addr}
}

// StandInEntry returns the trie entry by which an address of the network from becomes the address with the same host
// bits in the network to.
func StandInEntry(from, to netip.Prefix) (bpf.HairpinPrefixKey, bpf.HairpinStandIn) {
	return bpf.HairpinPrefixKey{PrefixLength: mappedBits(from), Address: ToAddr(from.Addr())},
		bpf.HairpinStandIn{Network: ToAddr(to.Addr()), Mask: MappedMask(to)}
}

// DeniedKey is the trie key of a denied network.
func DeniedKey(source netip.Prefix) bpf.HairpinDeniedKey {
	key := bpf.HairpinDeniedKey{PrefixLength: familyBits + mappedBits(source), Source: ToAddr(source.Addr())}
	if source.Addr().Is6() {
		key.V6 = 1
	}
	return key
}

// FromDeniedKey is the network of a key that DeniedKey gave.
func FromDeniedKey(key bpf.HairpinDeniedKey) netip.Prefix {
	bits := int(key.PrefixLength) - familyBits
	if key.V6 == 0 {
		return netip.PrefixFrom(FromAddr(key.Source), bits-96)
	}
	return netip.PrefixFrom(netip.AddrFrom16(key.Source.Bytes), bits)
}
