// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
)

// Role is what an interface is to the datapath.
type Role bpf.HairpinRole

// The roles; an interface without one is not hairpin's.
const (
	RoleWAN = Role(bpf.HairpinRoleROLE_WAN)
	RoleLAN = Role(bpf.HairpinRoleROLE_LAN)
	// RoleLocal is the loopback device's, by which the router's own packets come in.
	RoleLocal = Role(bpf.HairpinRoleROLE_LOCAL)
)

// String is "wan", "lan" or "local", "" for none.
func (r Role) String() string {
	if r == 0 {
		return ""
	}
	return word(names().roles, uint32(r))
}

// Interface is a device of the router as it is now.
type Interface struct {
	Name        string
	Index       int
	Role        Role           // 0 if hairpin has nothing to do with it
	Addresses   []netip.Prefix // with the lengths of their networks; of a family the one to use first
	Passive     []netip.Prefix // the same, but nothing is sent from them unless it answers
	XDPTransmit bool           // takes XDP frames
	MTU         int            // in bytes, of an IP packet
	PPP         bool           // a PPP device
	RPFilter    uint8          // the kernel's, for IPv4: 0 off, 1 strict, 2 by any way back

	HardwareAddr net.HardwareAddr // empty without Ethernet header
}

// SetInterfaces tells the datapath which interfaces and addresses there are
// now, writing only what differs. Connections to an address that went are over.
// Call it after Apply and after each change of links and addresses, under the
// writer lock. Of an interface's own addresses the datapath knows eight, of both
// families if it has both; forwards listen on all. Interfaces without a role
// count for what is the router's own.
func (t *Tables) SetInterfaces(ifs []Interface) error {
	o, _, err := t.outline()
	if err != nil && !errors.Is(err, ErrEmpty) {
		return err
	}
	if err := t.finish(o); err != nil {
		return err
	}
	doc := &o.document // what forwards there are does not matter here
	locals := wantedLocals(doc, ifs)
	ifs = slices.DeleteFunc(slices.Clone(ifs), func(link Interface) bool { return link.Role == 0 })
	present, err := readAll[uint32, bpf.HairpinInterface](t.objs.Interfaces)
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	if err := t.putLocals(locals); err != nil {
		return err
	}
	// A new interface is known before its addresses, a gone one is forgotten after them.
	if err := t.putInterfaces(doc, ifs, present); err != nil {
		return err
	}
	if err := t.followAddresses(doc, ifs, present); err != nil {
		return err
	}
	if err := t.dropInterfaces(ifs, present); err != nil {
		return err
	}
	if err := t.setTransmitters(ifs); err != nil {
		return err
	}
	return t.pruneCounters(ifs)
}

// followAddresses ends the connections of addresses that have gone, external
// ones and those that reflected connections came from, and has both sides told.
func (t *Tables) followAddresses(doc *document, ifs []Interface, before map[uint32]bpf.HairpinInterface) error {
	ended, err := t.setExternals(doc, ifs)
	if err != nil {
		return err
	}
	gone := goneAddresses(before, ifs)
	if err := t.endReflectedFrom(gone); err != nil {
		return err
	}
	if !ended && len(gone) == 0 {
		return nil
	}
	return t.tellEnded()
}

// goneAddresses are the router's own that no interface has any more.
func goneAddresses(present map[uint32]bpf.HairpinInterface, ifs []Interface) map[bpf.HairpinAddr]bool {
	gone := map[bpf.HairpinAddr]bool{}
	for _, value := range present {
		for _, own := range value.Address[:value.Addresses] {
			gone[own.Address] = true
		}
	}
	for _, link := range ifs {
		for _, prefix := range slices.Concat(link.Addresses, link.Passive) {
			delete(gone, toAddr(prefix.Addr()))
		}
	}
	return gone
}

func (t *Tables) putInterfaces(doc *document, ifs []Interface, present map[uint32]bpf.HairpinInterface) error {
	for _, link := range ifs {
		value := link.kernel()
		// The MTU of the loopback device is no other one's.
		if link.Role == RoleLocal || doc.Config.clamps(link) {
			value.MssMtu = uint32(max(0, link.MTU))
		}
		if link.Role == RoleLAN {
			value.InterceptV4 = doc.Externals[lanPlace(link.Name, false)]
			value.InterceptV6 = doc.Externals[lanPlace(link.Name, true)]
		}
		if present[uint32(link.Index)] == value {
			continue
		}
		if err := t.objs.Interfaces.Put(uint32(link.Index), value); err != nil {
			return fmt.Errorf("write interface %s: %w", link.Name, err)
		}
	}
	return nil
}

func (t *Tables) dropInterfaces(ifs []Interface, present map[uint32]bpf.HairpinInterface) error {
	for index := range present {
		if indexOf(ifs, index) >= 0 {
			continue
		}
		if err := drop(t.objs.Interfaces, index); err != nil {
			return fmt.Errorf("forget interface %d: %w", index, err)
		}
	}
	return nil
}

func indexOf(ifs []Interface, index uint32) int {
	return slices.IndexFunc(ifs, func(link Interface) bool { return uint32(link.Index) == index })
}

// drop deletes an entry that may have gone already.
func drop(m *ebpf.Map, key any) error {
	if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

// carrierGrade is the shared address space of RFC 6598.
var carrierGrade = netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, 0, 0}), 10)

// kernel is the entry of the interfaces map.
func (link Interface) kernel() bpf.HairpinInterface {
	value := bpf.HairpinInterface{Role: bpf.HairpinRole(link.Role), RpFilter: link.RPFilter}
	if len(link.HardwareAddr) == len(value.Mac) {
		copy(value.Mac[:], link.HardwareAddr)
	}
	for _, prefix := range link.Addresses {
		addr := prefix.Addr()
		// An interface of IPv6 always has a link-local address, which says nothing.
		if addr.Is4() && (addr.IsPrivate() || addr.IsLinkLocalUnicast() || carrierGrade.Contains(addr)) {
			value.Private = 1
		}
	}
	for i, prefix := range link.own(len(value.Address)) {
		value.Address[i] = bpf.HairpinInterfaceAddress{
			Address: toAddr(prefix.Addr()),
			Mask:    mappedMask(prefix),
		}
		value.Addresses++
	}
	return value
}

// own are up to n addresses that the router may send from, IPv4 first. Neither
// family takes more than half while the other one needs it.
func (link Interface) own(n int) []netip.Prefix {
	var v4, v6 []netip.Prefix
	for _, prefix := range link.Addresses {
		switch addr := prefix.Addr(); {
		case addr.Is4():
			v4 = append(v4, prefix)
		case global6(addr):
			v6 = append(v6, prefix)
		}
	}
	v4 = v4[:min(len(v4), max(n/2, n-len(v6)))]
	v6 = v6[:min(len(v6), n-len(v4))]
	return slices.Concat(v4, v6)
}

// global6 reports whether an address is of IPv6 and not bound to its link: global
// or unique local (RFC 4193).
func global6(addr netip.Addr) bool {
	return addr.Is6() && !addr.Is4In6() && addr.IsGlobalUnicast()
}

// IsExternal reports whether forwards can listen on an address of a WAN interface.
func IsExternal(addr netip.Addr) bool {
	return addr.Is4() && !addr.IsLoopback() || global6(addr)
}

// setExternals brings the addresses that forwards listen on up to date, and says
// whether connections have ended by that.
func (t *Tables) setExternals(doc *document, ifs []Interface) (ended bool, err error) {
	present, err := readAll[bpf.HairpinAddr, bpf.HairpinExternal](t.objs.Externals)
	if err != nil {
		return false, fmt.Errorf("list external addresses: %w", err)
	}
	wanted := wantedExternals(doc, ifs)
	if limit := t.objs.Externals.MaxEntries(); uint32(len(wanted)) > limit {
		return false, fmt.Errorf("%d external addresses, but the table holds %d", len(wanted), limit)
	}
	listeners := wantedListeners(wanted)
	if err := t.dropListeners(listeners); err != nil {
		return false, err
	}
	ids := t.freeAddressIDs(present)
	for _, addr := range slices.SortedFunc(maps.Keys(present), compareAddr) {
		old, want := present[addr], wanted[addr]
		// Its connections end before anything else happens to the address.
		if old.Group != 0 && want.Group == 0 || want == (bpf.HairpinExternal{}) {
			ended = true
			if err := t.endConnections(epochRef{old.Address.Id, old.Address.Epoch}); err != nil {
				return ended, err
			}
		}
		if want == (bpf.HairpinExternal{}) {
			if err := drop(t.objs.Externals, addr); err != nil {
				return ended, fmt.Errorf("forget address %s: %w", fromAddr(addr), err)
			}
		}
	}
	for _, addr := range slices.SortedFunc(maps.Keys(wanted), compareAddr) {
		if err := t.putExternal(addr, present[addr], wanted[addr], ids); err != nil {
			return ended, err
		}
	}
	return ended, t.putListeners(listeners)
}

func compareAddr(a, b bpf.HairpinAddr) int { return fromAddr(a).Compare(fromAddr(b)) }

// wantedExternals leaves the epoch references to putExternal.
func wantedExternals(doc *document, ifs []Interface) map[bpf.HairpinAddr]bpf.HairpinExternal {
	wanted := map[bpf.HairpinAddr]bpf.HairpinExternal{}
	for _, link := range ifs {
		if link.Role != RoleWAN {
			continue
		}
		for _, prefix := range slices.Concat(link.Addresses, link.Passive) {
			addr := prefix.Addr()
			group := doc.Externals[interfacePlace(link.Name, addr.Is6())]
			if _, twice := wanted[toAddr(addr)]; group != 0 && IsExternal(addr) && !twice {
				wanted[toAddr(addr)] = bpf.HairpinExternal{Group: group}
			}
		}
	}
	for at, id := range doc.Externals {
		if at.Address.IsValid() {
			value := wanted[toAddr(at.Address)]
			value.Fixed = id
			wanted[toAddr(at.Address)] = value
		}
	}
	return wanted
}

// putExternal writes an entry if it differs. An address keeps its id, and its
// entry always carries the epoch that is current, also after a writer was
// killed between the two.
func (t *Tables) putExternal(addr bpf.HairpinAddr, old, want bpf.HairpinExternal, ids *idPool) error {
	id := old.Address.Id
	if id == 0 {
		var err error
		if id, err = ids.take(); err != nil {
			return fmt.Errorf("address %s: %w", fromAddr(addr), err)
		}
	}
	epoch, err := t.epoch(id)
	if err != nil {
		return err
	}
	want.Address = bpf.HairpinEpochRef{Id: id, Epoch: epoch}
	if want == old {
		return nil
	}
	err = t.objs.MaybeExternal.Put(maybeExternalSlot(addr), uint32(1))
	if err == nil {
		err = t.objs.Externals.Put(addr, want)
	}
	if err != nil {
		return fmt.Errorf("write address %s: %w", fromAddr(addr), err)
	}
	return nil
}

// setTransmitters fills the devmap of devices that take XDP frames. Next hops
// remember what it says, so a change makes them look again.
func (t *Tables) setTransmitters(ifs []Interface) error {
	present, err := readAll[uint32, bpf.HairpinBpfDevmapVal](t.objs.TxPorts)
	if err != nil {
		return fmt.Errorf("list devices for XDP: %w", err)
	}
	changed := false
	for index := range present {
		if i := indexOf(ifs, index); i >= 0 && ifs[i].XDPTransmit {
			continue
		}
		changed = true
		if err := drop(t.objs.TxPorts, index); err != nil {
			return fmt.Errorf("take device %d from XDP: %w", index, err)
		}
	}
	for _, link := range ifs {
		index := uint32(link.Index)
		if value, there := present[index]; !link.XDPTransmit || there && value.Ifindex == index {
			continue
		}
		changed = true
		err := t.objs.TxPorts.Put(index, bpf.HairpinBpfDevmapVal{Ifindex: index})
		// The kernel knows no such device: it went while this ran, and its
		// removal will be heard of.
		if err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("offer device %s to XDP: %w", link.Name, err)
		}
	}
	if !changed {
		return nil
	}
	return t.BumpRoutes()
}

// pruneCounters takes out the counters of interfaces that are gone once they
// fill half the table: devices of dialled lines come back with new numbers.
func (t *Tables) pruneCounters(ifs []Interface) error {
	counters, err := t.rawCounters()
	if err != nil || uint32(len(counters)) < t.objs.Counters.MaxEntries()/2 {
		return err
	}
	for key := range counters {
		if key.Ifindex == 0 || indexOf(ifs, key.Ifindex) >= 0 {
			continue
		}
		if err := drop(t.objs.Counters, key); err != nil {
			return fmt.Errorf("drop counters of interface %d: %w", key.Ifindex, err)
		}
	}
	return nil
}
