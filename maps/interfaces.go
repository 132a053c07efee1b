// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
	"hairpin/maps/compile"
	"hairpin/maps/config"
	"hairpin/maps/layout"
)

// SetInterfaces tells the datapath which interfaces and addresses there are
// now, writing only what differs. Connections to an address that went are over.
// Call it after Apply and after each change of links and addresses, under the
// writer lock. Of an interface's own addresses the datapath knows eight, of both
// families if it has both; forwards listen on all. Interfaces without a role
// count for what is the router's own.
func (t *Tables) SetInterfaces(ifs []config.Interface) error {
	o, _, err := t.outline()
	if err != nil && !errors.Is(err, ErrEmpty) {
		return err
	}
	if err := t.finish(o); err != nil {
		return err
	}
	doc := &o.Document // what forwards there are does not matter here
	locals := compile.Locals(doc, ifs)
	ifs = slices.DeleteFunc(slices.Clone(ifs), func(link config.Interface) bool { return link.Role == 0 })
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
func (t *Tables) followAddresses(doc *compile.Document, ifs []config.Interface, before map[uint32]bpf.HairpinInterface) error {
	ended, err := t.setExternals(doc, ifs)
	if err != nil {
		return err
	}
	gone := compile.GoneAddresses(before, ifs)
	if err := t.endReflectedFrom(gone); err != nil {
		return err
	}
	if !ended && len(gone) == 0 {
		return nil
	}
	return t.tellEnded()
}

func (t *Tables) putInterfaces(doc *compile.Document, ifs []config.Interface, present map[uint32]bpf.HairpinInterface) error {
	for _, link := range ifs {
		value := doc.InterfaceEntry(link)
		if present[uint32(link.Index)] == value {
			continue
		}
		if err := t.objs.Interfaces.Put(uint32(link.Index), value); err != nil {
			return fmt.Errorf("write interface %s: %w", link.Name, err)
		}
	}
	return nil
}

func (t *Tables) dropInterfaces(ifs []config.Interface, present map[uint32]bpf.HairpinInterface) error {
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

func indexOf(ifs []config.Interface, index uint32) int {
	return slices.IndexFunc(ifs, func(link config.Interface) bool { return uint32(link.Index) == index })
}

// drop deletes an entry that may have gone already.
func drop(m *ebpf.Map, key any) error {
	if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

// setExternals brings the addresses that forwards listen on up to date, and says
// whether connections have ended by that.
func (t *Tables) setExternals(doc *compile.Document, ifs []config.Interface) (ended bool, err error) {
	present, err := readAll[bpf.HairpinAddr, bpf.HairpinExternal](t.objs.Externals)
	if err != nil {
		return false, fmt.Errorf("list external addresses: %w", err)
	}
	wanted := compile.Externals(doc, ifs)
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
		// Its connections end before anything else happens to the address.
		if old.Group != 0 && want.Group == 0 || want == (bpf.HairpinExternal{}) {
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

// putExternal writes an entry if it differs. An address keeps its id, and its
// entry always carries the epoch that is current, also after a writer was
// killed between the two.
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
	err = t.objs.MaybeExternal.Put(layout.MaybeExternalSlot(addr), uint32(1))
	if err == nil {
		err = t.objs.Externals.Put(addr, want)
	}
	if err != nil {
		return fmt.Errorf("write address %s: %w", layout.FromAddr(addr), err)
	}
	return nil
}

// setTransmitters fills the devmap of devices that take XDP frames. Next hops
// remember what it says, so a change makes them look again.
func (t *Tables) setTransmitters(ifs []config.Interface) error {
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

// putLocals goes before the interfaces that bring clients there.
func (t *Tables) putLocals(wanted map[bpf.HairpinAddr]bool) error {
	if limit := t.objs.Locals.MaxEntries(); uint32(len(wanted)) > limit {
		return fmt.Errorf("the router has %d addresses of its own, but the table holds %d", len(wanted), limit)
	}
	present, err := keepAddresses(t.objs.Locals, wanted)
	if err == nil {
		err = addAddresses(t.objs.Locals, wanted, present)
	}
	if err != nil {
		return fmt.Errorf("the router's own addresses: %w", err)
	}
	return nil
}

// dropListeners forgets those of ids that no address has alone any more. It goes
// before the addresses change: until they have, nothing is rebuilt that might be
// another address's. One whose address was replaced stays; the datapath finds
// the old address gone, until one write puts the new one there.
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

// putListeners goes after the addresses that it names.
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
