// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"math"
	"net/netip"
	"slices"
	"time"

	"hairpin/bpf"
	"hairpin/maps/config"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
)

// Absences says what becomes of the connections of addresses that the router has lost.
//
// A WAN's address is lost when no WAN interface with programs has it; another address of the router is lost when no
// interface has it.
//
// An address may be back in a moment: a PPP line is dialled again and gets the same address, or a script deletes an
// address and adds it again. The connections of such an address live on. There is a race between the address and the
// writers (the daemon and the commands, which take turns by the writer lock):
//
//  1. The address goes. A writer looks at the interfaces, and records the absence with its time.
//  2. The address comes back, or another writer looks at the interfaces, or the grace passes, in any order.
//  3. The next writer looks again. If the address is back, it deletes the record: the connections were never ended. If
//     the grace has passed, it ends them, and deletes the record after that.
//
// So nothing depends on which writer recorded the absence. A writer that is killed between ending and deleting leaves the
// record: the next writer ends the connections again, which changes nothing. An address that goes and returns between two
// looks was never away. An address that returns and goes again after the record was deleted has a new grace.
//
// Without the daemon nobody looks when the grace is over. The next command that changes something ends the connections.
type Absences struct {
	Waiting map[bpf.HairpinAddr]bpf.HairpinAbsence // away, and may still come back
	Over    map[bpf.HairpinAddr]bool               // their connections end now
	Back    []bpf.HairpinAddr                      // with a record that is to be deleted
}

// Router is what the maps say of the router's addresses.
type Router struct {
	OwnAddresses map[bpf.HairpinOwnAddressKey]bpf.HairpinOwnAddress
	Externals    map[bpf.HairpinAddr]bpf.HairpinExternal
	Absences     map[bpf.HairpinAddr]bpf.HairpinAbsence
}

// FindAbsences compares what the maps say with the interfaces of now, a time of layout.Monotonic.
func FindAbsences(doc *Document, before Router, ifs []config.Interface, now uint64) Absences {
	found := Absences{Waiting: map[bpf.HairpinAddr]bpf.HairpinAbsence{}, Over: map[bpf.HairpinAddr]bool{}}
	own, served := addressesOf(ifs), Externals(doc, ifs)
	lost := GoneAddresses(before.OwnAddresses, ifs)
	for addr, external := range before.Externals {
		// An interface loses its programs before its addresses when it is deleted, so the address may still be there.
		if external.Group != 0 && served[addr].Group == 0 {
			lost[addr] = true
		}
	}
	for addr, absence := range before.Absences {
		if served[addr].Group != 0 || absence.Group == 0 && own[addr] {
			found.Back = append(found.Back, addr)
			continue
		}
		lost[addr] = true
	}
	for addr := range lost {
		absence, known := before.Absences[addr]
		if !known {
			absence = bpf.HairpinAbsence{Since: now, Group: before.Externals[addr].Group}
		}
		over := now-absence.Since >= uint64(doc.Config.Timeouts.AddressGrace)
		// The configuration has taken the address away, and not the network.
		dropped := absence.Group != 0 && doc.wanOf(absence.Group) == ""
		if over || dropped || doc.replaced(absence.Group, addr, before, ifs) {
			found.Over[addr] = true
		} else {
			found.Waiting[addr] = absence
		}
	}
	return found
}

// addressesOf returns all addresses of the interfaces.
func addressesOf(ifs []config.Interface) map[bpf.HairpinAddr]bool {
	all := map[bpf.HairpinAddr]bool{}
	for _, link := range ifs {
		for _, prefix := range slices.Concat(link.Addresses, link.Passive) {
			all[layout.ToAddr(prefix.Addr())] = true
		}
	}
	return all
}

// wanOf returns the WAN interface of an external id; "": the configuration has no such WAN.
func (d *Document) wanOf(group uint32) string {
	for _, name := range d.Config.WAN {
		if d.Externals[rule.AtWAN(name, false)] == group || d.Externals[rule.AtWAN(name, true)] == group {
			return name
		}
	}
	return ""
}

// replaced reports whether the WAN interface of group has a new address instead of its only one of this family. Then
// the old address will not come back.
func (d *Document) replaced(group uint32, lost bpf.HairpinAddr, before Router, ifs []config.Interface) bool {
	name := d.wanOf(group)
	if group == 0 || name == "" {
		return false
	}
	for addr, external := range before.Externals {
		if addr != lost && (external.Group == group || before.Absences[addr].Group == group) {
			return false
		}
	}
	for _, link := range ifs {
		if link.Name != name || link.Role != config.RoleWAN {
			continue
		}
		return slices.ContainsFunc(link.Addresses, func(prefix netip.Prefix) bool {
			return config.IsExternal(prefix.Addr()) && prefix.Addr().Is6() == layout.FromAddr(lost).Is6()
		})
	}
	return false
}

// Left returns how long it takes until the first grace is over, of an absent address or of a lost interface. There is at least one.
func Left(absences map[bpf.HairpinAddr]bpf.HairpinAbsence, lost map[uint32]bpf.HairpinInterface, grace time.Duration, now uint64) time.Duration {
	left := time.Duration(math.MaxInt64)
	for _, absence := range absences {
		left = min(left, max(0, grace-time.Duration(now-absence.Since)))
	}
	for _, entry := range lost {
		left = min(left, leftOf(entry, grace, now))
	}
	return left
}
