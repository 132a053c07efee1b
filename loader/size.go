// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
)

const (
	// maxConnections leaves room to count table entries in 32 bits.
	maxConnections = 1 << 28
	// defaultConnections is how many connections there is room for unless Options say otherwise.
	defaultConnections = 1 << 17
	// minPlaces keeps openings and closings possible where few connections are asked for.
	minPlaces = 256
	// beingMade is how many entries may exist for a moment beyond those that hold places.
	beingMade = 256
)

// places are how many connections of each kind there is room for, by enum place_kind, in one family that may have
// so many established ones: three quarters for TCP, one for all other protocols.
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

// Size gives a datapath room for so many established IPv4 connections, and for a quarter of that of IPv6: entries, two a
// connection, and places. Established TCP has three sixteenths more places than there may be connections, as the datapath looks
// for a free one at random.
func Size(spec *ebpf.CollectionSpec, connections uint32) {
	rings := make([]ebpf.MapKV, 2*bpf.HairpinPlaceKindPLACES)
	for family, established := range []uint32{connections, max(connections/4, 1)} {
		base, all := uint32(0), uint32(0)
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
		entries, ring := bpf.HairpinMapConns4, bpf.HairpinMapPlaces4
		if family == 1 {
			entries, ring = bpf.HairpinMapConns6, bpf.HairpinMapPlaces6
		}
		spec.Maps[entries].MaxEntries = 2*all + beingMade
		spec.Maps[ring].MaxEntries = base
	}
	spec.Maps[bpf.HairpinMapRings].Contents = rings
}

// connectionsOf is how many connections Size was asked for.
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
