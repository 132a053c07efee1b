// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"slices"
	"time"

	"hairpin/bpf"
	"hairpin/maps/config"
)

// FindLost returns the entries of the interfaces that keep their role, although the configuration does not mean them any more: an
// interface has another name, or is a port of a bridge now. Its programs stay for the grace, too. Otherwise the kernel would answer the
// segments of connections with RSTs, as addresses and sockets of the router do not know these connections.
//
// before has the entries in the table, now is a time of layout.Monotonic. An interface is lost only while the configuration names an
// interface of its role that is not there. So an interface that the configuration has given up loses its role at once.
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
			entry.Lost = max(1, uint16(now/uint64(time.Second)))
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

// leftOf returns what is left of the grace of a lost interface, up to two seconds more: the entry has whole seconds. An address of the
// interface must not be waiting any more when the interface loses its programs.
func leftOf(entry bpf.HairpinInterface, grace time.Duration, now uint64) time.Duration {
	if grace == 0 {
		return 0
	}
	since := time.Duration(uint16(now/uint64(time.Second))-entry.Lost) * time.Second
	since += time.Duration(now % uint64(time.Second))
	return max(0, grace.Truncate(time.Second)+2*time.Second-since)
}
