// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
	"hairpin/maps/compile"
	"hairpin/maps/config"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
	"hairpin/maps/slots"
)

// SetInterfaces writes the current interfaces and addresses to the maps, if they differ. The connections of a lost address
// end if the address is not back within the grace of the configuration. Call it with the writer lock, after Apply, after
// each change of links or addresses, and when GraceLeft says so.
//
// Interfaces without a role must also be in ifs: their addresses are the router's own.
func (t *Tables) SetInterfaces(ifs []config.Interface) error {
	o, _, err := t.outline()
	if err != nil && !errors.Is(err, ErrEmpty) {
		return err
	}
	if err := t.finish(o); err != nil {
		return err
	}
	doc := &o.Document // without the decoded forwards, which are not needed here
	own, every := compile.OwnAddresses(doc, ifs), ifs
	ifs = slices.DeleteFunc(slices.Clone(ifs), func(link config.Interface) bool { return link.Role == 0 })
	present, err := t.interfaces()
	if err != nil {
		return err
	}
	absences, err := t.findAbsences(doc, every)
	if err != nil {
		return err
	}
	lost := compile.FindLost(doc, present, every, layout.Monotonic())
	if err := t.putOwnAddresses(own); err != nil {
		return err
	}
	// A new interface is added before its external addresses. A removed interface is deleted after them.
	if err := t.putInterfaces(doc, ifs, lost, present); err != nil {
		return err
	}
	if err := t.followAddresses(doc, ifs, absences); err != nil {
		return err
	}
	if err := t.dropInterfaces(ifs, lost, present); err != nil {
		return err
	}
	if err := t.setTransmitters(ifs, present); err != nil {
		return err
	}
	return t.pruneCounters(ifs)
}

// LostInterfaces returns the indexes of the interfaces that keep their role for the grace of the configuration, although they have
// another name now, or are ports of a bridge. Their programs must stay.
func (t *Tables) LostInterfaces() (list []int, err error) {
	lost, err := t.lost()
	for index := range lost {
		list = append(list, int(index))
	}
	return list, err
}

// lost returns the entries of the lost interfaces.
func (t *Tables) lost() (map[uint32]bpf.HairpinInterface, error) {
	present, err := t.interfaces()
	maps.DeleteFunc(present, func(_ uint32, entry bpf.HairpinInterface) bool { return entry.Lost == 0 })
	return present, err
}

func (t *Tables) interfaces() (map[uint32]bpf.HairpinInterface, error) {
	present, err := readAll[uint32, bpf.HairpinInterface](t.objs.Interfaces)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	return present, nil
}

// GraceLeft returns how long it takes until the grace of a lost address or of a lost interface is over. away reports whether there is
// one. Then SetInterfaces must be called.
func (t *Tables) GraceLeft() (left time.Duration, away bool, err error) {
	absences, err := t.absences()
	if err != nil {
		return 0, false, err
	}
	lost, err := t.lost()
	if err != nil || len(absences)+len(lost) == 0 {
		return 0, false, err
	}
	o, _, err := t.outline()
	if err != nil && !errors.Is(err, ErrEmpty) {
		return 0, false, err
	}
	return compile.Left(absences, lost, o.Config.Timeouts.AddressGrace, layout.Monotonic()), true, nil
}

// AwayAddresses returns the lost addresses whose connections have not ended yet, sorted.
func (t *Tables) AwayAddresses() (list []netip.Addr, err error) {
	absences, err := t.absences()
	for addr := range absences {
		list = append(list, layout.FromAddr(addr))
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list, err
}

// Listening returns the addresses on which forwards listen now, sorted: those of the WAN interfaces, by place. A place without an
// address is missing.
func (t *Tables) Listening() (map[rule.Place][]netip.Addr, error) {
	o, _, err := t.outline()
	if err != nil {
		return nil, err
	}
	externals, err := readAll[bpf.HairpinAddr, bpf.HairpinExternal](t.objs.Externals)
	if err != nil {
		return nil, fmt.Errorf("list external addresses: %w", err)
	}
	places := make(map[uint32]rule.Place, len(o.Externals))
	for place, id := range o.Externals {
		if !place.Address.IsValid() && !place.LAN {
			places[id] = place
		}
	}
	list := map[rule.Place][]netip.Addr{}
	for _, addr := range slices.SortedFunc(maps.Keys(externals), layout.CompareAddr) {
		if place, there := places[externals[addr].Group]; there {
			list[place] = append(list[place], layout.FromAddr(addr))
		}
	}
	return list, nil
}

// HasInterfaces reports whether SetInterfaces has ever written an interface with a role.
func (t *Tables) HasInterfaces() (bool, error) {
	key, err := t.objs.Interfaces.NextKeyBytes(nil)
	if err != nil {
		return false, fmt.Errorf("list interfaces: %w", err)
	}
	return key != nil, nil
}

// absences returns the lost addresses whose grace is not over.
func (t *Tables) absences() (map[bpf.HairpinAddr]bpf.HairpinAbsence, error) {
	entries, err := readAll[bpf.HairpinPrefixKey, bpf.HairpinAbsence](t.objs.Absences)
	if err != nil {
		return nil, fmt.Errorf("list absent addresses: %w", err)
	}
	absences := make(map[bpf.HairpinAddr]bpf.HairpinAbsence, len(entries))
	for key, absence := range entries {
		absences[key.Address] = absence
	}
	return absences, nil
}

// findAbsences finds the lost addresses, and records the new absences. It must run before the entries in map own_addresses
// change: a killed writer would leave no trace of the addresses otherwise.
func (t *Tables) findAbsences(doc *compile.Document, ifs []config.Interface) (compile.Absences, error) {
	var before compile.Router
	var err error
	if before.OwnAddresses, err = readAll[bpf.HairpinOwnAddressKey, bpf.HairpinOwnAddress](t.objs.OwnAddresses); err != nil {
		return compile.Absences{}, fmt.Errorf("list the router's own addresses: %w", err)
	}
	if before.Externals, err = readAll[bpf.HairpinAddr, bpf.HairpinExternal](t.objs.Externals); err != nil {
		return compile.Absences{}, fmt.Errorf("list external addresses: %w", err)
	}
	if before.Absences, err = t.absences(); err != nil {
		return compile.Absences{}, err
	}
	found := compile.FindAbsences(doc, before, ifs, layout.Monotonic())
	for addr, absence := range found.Waiting {
		if _, known := before.Absences[addr]; known {
			continue
		}
		if err := t.objs.Absences.Put(layout.AddressKey(addr), absence); err != nil {
			return compile.Absences{}, fmt.Errorf("record that address %s is away: %w", layout.FromAddr(addr), err)
		}
	}
	return found, nil
}

// followAddresses updates the external addresses. It ends the connections of addresses whose grace is over, external
// addresses and sources of reflected connections, and sends RSTs to both sides. The records of absences are deleted last.
func (t *Tables) followAddresses(doc *compile.Document, ifs []config.Interface, absences compile.Absences) error {
	ended, err := t.setExternals(doc, ifs, absences)
	if err != nil {
		return err
	}
	if err := t.endReflectedFrom(absences.Over); err != nil {
		return err
	}
	if ended || len(absences.Over) > 0 {
		if err := t.resetEnded(); err != nil {
			return err
		}
	}
	for _, addr := range slices.AppendSeq(absences.Back, maps.Keys(absences.Over)) {
		if err := drop(t.objs.Absences, layout.AddressKey(addr)); err != nil {
			return fmt.Errorf("forget that address %s was away: %w", layout.FromAddr(addr), err)
		}
	}
	return nil
}

func (t *Tables) putInterfaces(doc *compile.Document, ifs []config.Interface, lost, present map[uint32]bpf.HairpinInterface) error {
	wanted := maps.Clone(lost)
	for _, link := range ifs {
		wanted[uint32(link.Index)] = doc.InterfaceEntry(link)
	}
	for index, value := range wanted {
		if present[index] == value {
			continue
		}
		if err := t.objs.Interfaces.Put(index, value); err != nil {
			return fmt.Errorf("write interface %d: %w", index, err)
		}
	}
	return nil
}

func (t *Tables) dropInterfaces(ifs []config.Interface, lost, present map[uint32]bpf.HairpinInterface) error {
	for index := range present {
		if _, keeps := lost[index]; keeps || indexOf(ifs, index) >= 0 {
			continue
		}
		if err := drop(t.objs.Interfaces, index); err != nil {
			return fmt.Errorf("forget interface %d: %w", index, err)
		}
	}
	return nil
}

func indexOf(ifs []config.Interface, index uint32) int {
	return slices.IndexFunc(ifs, func(link config.Interface) bool { return uint32(link.Index) == index })
}

// drop deletes an entry. A missing entry is not an error.
func drop(m *ebpf.Map, key any) error {
	if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

// setExternals updates the addresses that forwards listen on, and reports whether connections ended.
//
// A lost address keeps its entry, without the id of its interface, until its grace is over: the entry keeps the id of the
// address, by which its connections end, from other addresses.
func (t *Tables) setExternals(doc *compile.Document, ifs []config.Interface, absences compile.Absences) (ended bool, err error) {
	present, err := readAll[bpf.HairpinAddr, bpf.HairpinExternal](t.objs.Externals)
	if err != nil {
		return false, fmt.Errorf("list external addresses: %w", err)
	}
	wanted := compile.Externals(doc, ifs)
	for addr := range absences.Waiting {
		if _, there := present[addr]; there {
			wanted[addr] = bpf.HairpinExternal{Fixed: wanted[addr].Fixed}
		}
	}
	if limit := t.objs.Externals.MaxEntries(); uint32(len(wanted)) > limit {
		return false, fmt.Errorf("%d external addresses, but the table holds %d", len(wanted), limit)
	}
	listeners := compile.Listeners(wanted)
	if err := t.dropListeners(listeners); err != nil {
		return false, err
	}
	ids := t.freeAddressIDs(present)
	for _, addr := range slices.SortedFunc(maps.Keys(present), layout.CompareAddr) {
		old, want := present[addr], wanted[addr]
		if _, waiting := absences.Waiting[addr]; waiting {
			continue
		}
		// End the connections of the address before its entry changes.
		if old.Group != 0 && want.Group == 0 || want == (bpf.HairpinExternal{}) || absences.Over[addr] {
			ended = true
			if err := t.endConnections(compile.EpochRef{ID: old.Address.Id, Epoch: old.Address.Epoch}); err != nil {
				return ended, err
			}
		}
		if want == (bpf.HairpinExternal{}) {
			if err := drop(t.objs.Externals, addr); err != nil {
				return ended, fmt.Errorf("forget address %s: %w", layout.FromAddr(addr), err)
			}
		}
	}
	for _, addr := range slices.SortedFunc(maps.Keys(wanted), layout.CompareAddr) {
		if err := t.putExternal(addr, present[addr], wanted[addr], ids); err != nil {
			return ended, err
		}
	}
	return ended, t.putListeners(listeners)
}

// putExternal writes the entry of an address if it differs. An address keeps its id. The epoch is always read from map
// epochs: a killed writer may have raised it without writing the entry.
func (t *Tables) putExternal(addr bpf.HairpinAddr, old, want bpf.HairpinExternal, ids *compile.IDPool) error {
	id := old.Address.Id
	if id == 0 {
		var err error
		if id, err = ids.Take(); err != nil {
			return fmt.Errorf("address %s: %w", layout.FromAddr(addr), err)
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
	err = t.noteMaybe(addr, bpf.HairpinMaybeMAYBE_EXTERNAL)
	if err == nil {
		err = t.objs.Externals.Put(addr, want)
	}
	if err != nil {
		return fmt.Errorf("write address %s: %w", layout.FromAddr(addr), err)
	}
	return nil
}

// noteMaybe sets a bit of an address in map maybe_external. It must run before the address gets into its own map.
func (t *Tables) noteMaybe(addr bpf.HairpinAddr, bit bpf.HairpinMaybe) error {
	slot := layout.MaybeExternalSlot(addr)
	var bits uint32
	if err := t.objs.MaybeExternal.Lookup(slot, &bits); err != nil {
		return err
	}
	if bits&uint32(bit) != 0 {
		return nil
	}
	return t.objs.MaybeExternal.Put(slot, bits|uint32(bit))
}

// setTransmitters updates the devmap tx_ports: the devices to which XDP can redirect. Cached next hops contain this
// information, and whether XDP sends back by the device, so after a change they must be resolved again. before has the interfaces as
// they were.
func (t *Tables) setTransmitters(ifs []config.Interface, before map[uint32]bpf.HairpinInterface) error {
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
			return fmt.Errorf("remove device %d from the XDP devmap: %w", index, err)
		}
	}
	for _, link := range ifs {
		index := uint32(link.Index)
		changed = changed || link.XDPBack != (before[index].XdpTx != 0)
		if value, there := present[index]; !link.XDPTransmit || there && value.Ifindex == index {
			continue
		}
		changed = true
		err := t.objs.TxPorts.Put(index, bpf.HairpinBpfDevmapVal{Ifindex: index})
		// EINVAL: the device was removed after ifs was read. A netlink event will report the removal.
		if err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("add device %s to the XDP devmap: %w", link.Name, err)
		}
	}
	if !changed {
		return nil
	}
	return t.BumpRoutes()
}

// pruneCounters removes the counters of removed interfaces when the table is half full. Each new PPP session makes a
// device with another index, so the table would fill up.
func (t *Tables) pruneCounters(ifs []config.Interface) error {
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

// putOwnAddresses writes the addresses that hosts behind each interface see. It must run before putInterfaces. Otherwise packets
// come in by a new interface whose addresses are not written yet. putOwnAddresses adds the new entries before it removes the old
// ones, so a packet always finds an address.
//
// Race: an opening on CPU A reads an address. The writer removes the address here, and endReflectedFrom ends the
// connections from it. Then A inserts its connection, from an address that the router no longer has. So the writer waits
// here until all programs have ended that may have read the old entries.
func (t *Tables) putOwnAddresses(wanted map[bpf.HairpinOwnAddressKey]bpf.HairpinOwnAddress) error {
	if limit := t.objs.OwnAddresses.MaxEntries(); uint32(len(wanted)) > limit {
		return fmt.Errorf("the addresses of the router need %d table entries, but the table holds %d", len(wanted), limit)
	}
	before, err := readAll[bpf.HairpinOwnAddressKey, bpf.HairpinOwnAddress](t.objs.OwnAddresses)
	if err != nil {
		return fmt.Errorf("list the router's own addresses: %w", err)
	}
	for key, value := range wanted {
		if old, there := before[key]; there && old == value {
			continue
		}
		if err := t.objs.OwnAddresses.Put(key, value); err != nil {
			return fmt.Errorf("write own address %s: %w", layout.FromAddr(value.Address), err)
		}
	}
	changed := false
	for key, old := range before {
		value, there := wanted[key]
		changed = changed || value != old
		if there {
			continue
		}
		if err := drop(t.objs.OwnAddresses, key); err != nil {
			return fmt.Errorf("forget own address %s: %w", layout.FromAddr(old.Address), err)
		}
	}
	if changed {
		return t.awaitPrograms()
	}
	return nil
}

// awaitPrograms waits until all programs have ended that run now. A write to an array of maps waits for them
// (maybe_wait_bpf_programs), so the writer puts a map where it is already.
func (t *Tables) awaitPrograms() error {
	inner, err := t.slots.Open(t.objs.StandIns, 0)
	if err != nil {
		return fmt.Errorf("open slot 0 of %s: %w", slots.OuterName(t.objs.StandIns), err)
	}
	defer inner.Close()
	return t.store(filling{t.objs.StandIns, inner, 0})
}

// dropListeners removes the ids that no longer belong to exactly one address. It must run before map externals changes,
// so that the datapath never rebuilds a connection at the wrong address. An id whose address was replaced
// stays: the datapath does not find the old address in externals, until putListeners writes the new address.
func (t *Tables) dropListeners(wanted map[uint32]bpf.HairpinAddr) error {
	present, err := readAll[uint32, bpf.HairpinAddr](t.objs.Listeners)
	if err != nil {
		return fmt.Errorf("list listeners: %w", err)
	}
	for id := range present {
		if _, there := wanted[id]; there {
			continue
		}
		if err := drop(t.objs.Listeners, id); err != nil {
			return fmt.Errorf("forget listener %d: %w", id, err)
		}
	}
	return nil
}

// putListeners writes the address of each id. It must run after these addresses are in map externals.
func (t *Tables) putListeners(wanted map[uint32]bpf.HairpinAddr) error {
	for _, id := range slices.Sorted(maps.Keys(wanted)) {
		var now bpf.HairpinAddr
		err := t.objs.Listeners.Lookup(id, &now)
		if err == nil && now == wanted[id] {
			continue
		}
		if err == nil || errors.Is(err, ebpf.ErrKeyNotExist) {
			err = t.objs.Listeners.Put(id, wanted[id])
		}
		if err != nil {
			return fmt.Errorf("write listener %s: %w", layout.FromAddr(wanted[id]), err)
		}
	}
	return nil
}

func (t *Tables) freeAddressIDs(present map[bpf.HairpinAddr]bpf.HairpinExternal) *compile.IDPool {
	pool := compile.NewIDPool(t.addressIDs(), t.objs.Epochs.MaxEntries()-1)
	for _, external := range present {
		pool.Reserve(external.Address.Id)
	}
	return pool
}
