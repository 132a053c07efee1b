// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"math/big"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
)

const (
	// maxConnections keeps the numbers of table entries within 31 bits.
	maxConnections = 1 << 28
	// defaultConnections is the number of connections when nothing is pinned and Options do not give a
	// number.
	defaultConnections = 1 << 17
	// minPlaces is the least room for half-open and closing connections, however small the table is.
	minPlaces = 256
	// beingMade is the number of entries that may exist for a moment without a place.
	beingMade = 256
)

// places returns the largest number of connections of each kind, by enum place_kind, in one address family
// with this number of established connections. Three quarters of these are for TCP, one quarter for all
// other protocols.
func places(established uint32) [bpf.HairpinPlaceKindPLACES]uint32 {
	tcp := established - established/4
	return [...]uint32{
		bpf.HairpinPlaceKindPLACE_HALF_TCP:    max(established/8, 2*minPlaces),
		bpf.HairpinPlaceKindPLACE_HALF_PROVEN: max(established/64, 4*minPlaces),
		bpf.HairpinPlaceKindPLACE_HALF_OTHER:  max(established/16, 2*minPlaces),
		bpf.HairpinPlaceKindPLACE_TCP:         tcp,
		bpf.HairpinPlaceKindPLACE_OTHER:       established - tcp,
		bpf.HairpinPlaceKindPLACE_CLOSING:     max(established/64*3, minPlaces),
	}
}

// bucketsFor returns the number of buckets for this number of entries: a prime number, as bpf/table.h needs it. The tables
// are then at most 5/9 full. Fuller tables take less memory, but searches read more buckets.
func bucketsFor(entries uint32) uint32 {
	buckets := int64(entries) / 5 * 3
	for !big.NewInt(buckets).ProbablyPrime(0) {
		buckets++
	}
	return uint32(buckets)
}

// Size makes room in spec for this number of established IPv4 connections, and a quarter of it for IPv6. A
// connection has two table entries and one place. Established TCP gets 3/16 more places than its limit,
// because the datapath finds a free place by random tries.
func Size(spec *ebpf.CollectionSpec, connections uint32) {
	rings := make([]ebpf.MapKV, 2*bpf.HairpinPlaceKindPLACES)
	table := bpf.HairpinTable{}
	base := uint32(0)
	for family, established := range []uint32{connections, max(connections/4, 1)} {
		all := uint32(0)
		for kind, limit := range places(established) {
			size := max(limit, 1)
			if kind == int(bpf.HairpinPlaceKindPLACE_TCP) {
				size += limit/16*3 + 16
			}
			index := 2*kind + family
			rings[index] = ebpf.MapKV{Key: uint32(index), Value: bpf.HairpinRing{Base: base, Size: size, Limit: limit}}
			base += size
			all += max(limit, 1)
		}
		table.Buckets[family] = bucketsFor(2*all + beingMade)
	}
	spec.Maps[bpf.HairpinMapPlaces].MaxEntries = base
	spec.Maps[bpf.HairpinMapConns4].MaxEntries = table.Buckets[0]
	spec.Maps[bpf.HairpinMapConns6].MaxEntries = table.Buckets[1]
	for i := range table.Random {
		var random [8]byte
		rand.Read(random[:]) // never fails
		table.Random[i] = binary.NativeEndian.Uint64(random[:])
	}
	spec.Maps[bpf.HairpinMapTables].Contents = []ebpf.MapKV{{Key: uint32(0), Value: table}}
	spec.Maps[bpf.HairpinMapRings].Contents = rings
}

// connectionsOf returns the number of connections that Size got for these maps.
func connectionsOf(maps *bpf.HairpinMaps) (uint32, error) {
	connections := uint32(0)
	for _, kind := range []bpf.HairpinPlaceKind{bpf.HairpinPlaceKindPLACE_TCP, bpf.HairpinPlaceKindPLACE_OTHER} {
		var ring bpf.HairpinRing
		if err := maps.Rings.Lookup(uint32(kind)*2, &ring); err != nil {
			return 0, fmt.Errorf("read size of the connection table: %w", err)
		}
		connections += ring.Limit
	}
	return connections, nil
}
