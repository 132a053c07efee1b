// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"math"
	"slices"
	"time"

	"hairpin/bpf"
	"hairpin/maps/config"
)

// FindLost returns the entries of the lost interfaces: they were renamed, or have become ports of a bridge. They keep their role for the
// grace, and the caller leaves their programs attached. Otherwise the kernel would answer the segments of their connections with RSTs.
//
// before has the entries in the table, now is a time of layout.Monotonic. An interface is lost only while the configuration names an
// interface of its role that is not there.
//
// The entry records since when the interface is lost, so it does not matter which writer has seen it (see Absences).
func FindLost(doc *Document, before map[uint32]bpf.HairpinInterface, ifs []config.Interface, now uint64) map[uint32]bpf.HairpinInterface {
	lost := make(map[uint32]bpf.HairpinInterface)
	for _, link := range ifs {
		entry, there := before[uint32(link.Index)]
		if !there || link.Role != 0 || !link.Attached || !doc.misses(entry.Role, ifs) {
			continue
		}
		if entry.Lost == 0 {
			entry.Lost = lostAt(now)
		}
		if leftOf(entry, doc.Config.Timeouts.AddressGrace, now) > 0 {
			lost[uint32(link.Index)] = entry
		}
	}
	return lost
}

// misses reports whether an interface that the configuration names for a role does not have it.
func (d *Document) misses(role bpf.HairpinRole, ifs []config.Interface) bool {
	names := map[bpf.HairpinRole][]string{bpf.HairpinRoleROLE_WAN: d.Config.WAN, bpf.HairpinRoleROLE_LAN: d.Config.LAN}[role]
	return slices.ContainsFunc(names, func(name string) bool {
		return !slices.ContainsFunc(ifs, func(link config.Interface) bool { return link.Name == name && link.Role != 0 })
	})
}

// lostAt returns the time of a lost interface for its entry. 0 means that an interface is not lost, so 65535 stands for it: a second less.
func lostAt(now uint64) uint16 {
	if at := uint16(now / uint64(time.Second)); at != 0 {
		return at
	}
	return math.MaxUint16
}

// leftOf returns how long a lost interface keeps its role and its programs: up to two seconds longer than the grace of its addresses, as
// the entry has whole seconds, and the connections of the addresses must end first.
func leftOf(entry bpf.HairpinInterface, grace time.Duration, now uint64) time.Duration {
	if grace == 0 {
		return 0
	}
	since := time.Duration(uint16(now/uint64(time.Second))-entry.Lost) * time.Second
	since += time.Duration(now % uint64(time.Second))
	return max(0, grace.Truncate(time.Second)+2*time.Second-since)
}
