// SPDX-License-Identifier: Apache-2.0

// Package slots opens and fills the slots of outer maps. A slot is a key of an outer map; its value is an inner map.
//
// The kernel tells only the ID of the map in a slot, and opens a map by its ID only for CAP_SYS_ADMIN (BPF_MAP_GET_FD_BY_ID). So
// every map in a slot has a pin, which says the outer map, the slot and the ID. A process with CAP_BPF opens the map by this pin.
package slots

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
)

// ErrUnpinned says that a map in a slot has no pin, and that this process may not open the map by its ID. Versions before these pins
// left such maps.
var ErrUnpinned = errors.New("a map has no pin")

// Slots gives access to the slots of the outer maps of one datapath. Several goroutines may open at the same time. The caller of a
// method that changes something must hold the writer lock, and only one goroutine at a time may change a slot.
type Slots struct {
	dir string // directory of the pins; "": the maps are not pinned

	// Of a datapath without pins.
	initial []*ebpf.Map // maps that were in slots at the start; the caller closes them
	mu      sync.Mutex  // guards held
	held    map[string]*ebpf.Map
}

// Pinned returns the slots of a datapath that has the pins of its inner maps in dir.
func Pinned(dir string) *Slots { return &Slots{dir: dir} }

// Held returns the slots of a datapath without pins. It holds the descriptors of the maps that it stores. initial are maps that may be
// in slots already; a nil map is ignored.
func Held(initial ...*ebpf.Map) *Slots {
	return &Slots{initial: initial, held: make(map[string]*ebpf.Map)}
}

// Name returns the name of the pin of a map in a slot.
func Name(outer string, slot uint32, inner *ebpf.Map) (string, error) {
	id, err := idOf(inner)
	return name(outer, slot, id), err
}

func name(outer string, slot uint32, id ebpf.MapID) string {
	return fmt.Sprintf("%s-%d-%d", outer, slot, id)
}

// Parse returns what the name of a pin says. It is the inverse of Name.
func Parse(name string) (outer string, slot uint32, id ebpf.MapID, ok bool) {
	parts := strings.Split(name, "-")
	if len(parts) != 3 {
		return "", 0, 0, false
	}
	number, err := strconv.ParseUint(parts[1], 10, 32)
	unique, again := strconv.ParseUint(parts[2], 10, 32)
	return parts[0], uint32(number), ebpf.MapID(unique), err == nil && again == nil
}

func idOf(m *ebpf.Map) (ebpf.MapID, error) {
	info, err := m.Info()
	if err != nil {
		return 0, fmt.Errorf("read the ID of a map: %w", err)
	}
	id, _ := info.ID()
	return id, nil
}

// Outers returns the outer maps of a datapath by their names.
func Outers(maps *bpf.HairpinMaps) map[string]*ebpf.Map {
	outers := make(map[string]*ebpf.Map)
	fields := reflect.ValueOf(maps).Elem()
	for i := range fields.NumField() {
		if m, ok := fields.Field(i).Interface().(*ebpf.Map); ok && m != nil && m.Type() == ebpf.ArrayOfMaps {
			outers[fields.Type().Field(i).Tag.Get("ebpf")] = m
		}
	}
	return outers
}

// OuterName returns the name of an outer map.
func OuterName(m *ebpf.Map) string {
	_, name, _ := strings.Cut(m.String(), "(") // TYPE(NAME)#DESCRIPTOR
	name, _, _ = strings.Cut(name, ")")
	return name
}

func (s *Slots) pin(outer *ebpf.Map, slot uint32, id ebpf.MapID) string {
	return filepath.Join(s.dir, name(OuterName(outer), slot, id))
}

// in returns the ID of the map in a slot. The error wraps ebpf.ErrKeyNotExist if the slot is empty.
func in(outer *ebpf.Map, slot uint32) (ebpf.MapID, error) {
	var id uint32
	err := outer.Lookup(slot, &id)
	return ebpf.MapID(id), err
}

// Open opens the map in a slot. The error wraps ebpf.ErrKeyNotExist if the slot is empty.
//
// A reader may meet a writer that stores another map:
//
//  1. The reader reads the ID of the old map.
//  2. The writer writes the slot, and removes the pin of the old map.
//  3. The reader does not find the pin, and begins again: now the slot has another ID.
func (s *Slots) Open(outer *ebpf.Map, slot uint32) (*ebpf.Map, error) {
	for before := ebpf.MapID(0); ; {
		id, err := in(outer, slot)
		if err != nil {
			return nil, err
		}
		m, err := s.open(outer, slot, id)
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			return m, err
		}
		if id == before {
			return s.openUnpinned(outer, slot, id)
		}
		before = id
	}
}

// open opens the map of this ID. The error wraps os.ErrNotExist if the map is neither pinned nor held.
func (s *Slots) open(outer *ebpf.Map, slot uint32, id ebpf.MapID) (*ebpf.Map, error) {
	if s.dir != "" {
		return ebpf.LoadPinnedMap(s.pin(outer, slot, id), nil)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.held[name(OuterName(outer), slot, id)]; m != nil {
		return m.Clone()
	}
	for _, m := range s.initial {
		if m == nil {
			continue
		}
		if of, err := idOf(m); err == nil && of == id {
			return m.Clone()
		}
	}
	return nil, os.ErrNotExist
}

// openUnpinned opens a map by its ID, which needs CAP_SYS_ADMIN.
func (s *Slots) openUnpinned(outer *ebpf.Map, slot uint32, id ebpf.MapID) (*ebpf.Map, error) {
	m, err := ebpf.NewMapFromID(id)
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("%w: %s, as an older version has left it, and only a process with CAP_SYS_ADMIN opens such a map: %w; "+
			"run \"hairpin upgrade\" as root, with every capability, which pins all maps", ErrUnpinned, name(OuterName(outer), slot, id), err)
	}
	return m, err
}

// Store puts a map into a slot.
//
//  1. The writer pins the new map.
//  2. It writes the slot. From now on packets meet the new map, and readers open it.
//  3. It removes the pin of the map that was in the slot. The kernel frees this map when nobody uses it any more.
//
// A writer that is killed after 1 leaves the pin of a map that is in no slot. A writer that is killed after 2 leaves the old pin. Either
// pin has an ID that is not in the slot: the next writer removes it by Sweep. At every moment the map in the slot has a pin.
func (s *Slots) Store(outer *ebpf.Map, slot uint32, inner *ebpf.Map) error {
	return s.StoreAll(outer, []uint32{slot}, []*ebpf.Map{inner})
}

// StoreAll is Store for several slots of an outer map. It writes all slots in one batch: after each write to an outer map, the kernel
// waits for an RCU grace period (maybe_wait_bpf_programs).
func (s *Slots) StoreAll(outer *ebpf.Map, slots []uint32, inner []*ebpf.Map) error {
	old := make([]ebpf.MapID, len(slots))
	if err := s.storeAll(outer, slots, inner, old); err != nil {
		return errors.Join(err, s.forgetOutside(outer, slots, inner, old))
	}
	for i, slot := range slots {
		id, err := idOf(inner[i])
		if err == nil && old[i] != 0 && old[i] != id {
			err = s.forget(outer, slot, old[i])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// storeAll does the steps 1 and 2 of Store. It writes to old which maps were in the slots, 0 for an empty slot.
func (s *Slots) storeAll(outer *ebpf.Map, slots []uint32, inner []*ebpf.Map, old []ebpf.MapID) error {
	for i, slot := range slots {
		var err error
		if old[i], err = in(outer, slot); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		if err := s.keep(outer, slot, inner[i]); err != nil {
			return fmt.Errorf("pin the new map of slot %d of %s: %w", slot, OuterName(outer), err)
		}
	}
	if err := write(outer, slots, inner); err != nil {
		return fmt.Errorf("fill slots of %s: %w", OuterName(outer), err)
	}
	return nil
}

// forgetOutside removes the pins of old and inner maps that are not in their slots, after a write that failed: some slots may have the new
// map, and others the old one.
func (s *Slots) forgetOutside(outer *ebpf.Map, slots []uint32, inner []*ebpf.Map, old []ebpf.MapID) error {
	var errs []error
	for i, slot := range slots {
		fresh, err := idOf(inner[i])
		if err != nil {
			errs = append(errs, err)
			continue
		}
		now, err := in(outer, slot)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
			continue
		}
		for _, id := range []ebpf.MapID{old[i], fresh} {
			if id != 0 && id != now {
				errs = append(errs, s.forget(outer, slot, id))
			}
		}
	}
	return errors.Join(errs...)
}

func write(outer *ebpf.Map, slots []uint32, inner []*ebpf.Map) error {
	if len(slots) == 1 {
		return outer.Put(slots[0], inner[0])
	}
	descriptors := make([]uint32, len(inner))
	for i, m := range inner {
		descriptors[i] = uint32(m.FD())
	}
	_, err := outer.BatchUpdate(slots, descriptors, nil)
	if !errors.Is(err, ebpf.ErrNotSupported) {
		return err
	}
	for i, slot := range slots {
		if err := outer.Put(slot, inner[i]); err != nil {
			return err
		}
	}
	return nil
}

// Drop empties a slot. It does nothing if the slot is empty.
func (s *Slots) Drop(outer *ebpf.Map, slot uint32) error {
	old, err := in(outer, slot)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	if err == nil {
		err = outer.Delete(slot)
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return s.forget(outer, slot, old)
}

// keep pins a map for a slot, or holds its descriptor. It does nothing if that is done.
func (s *Slots) keep(outer *ebpf.Map, slot uint32, m *ebpf.Map) error {
	id, err := idOf(m)
	if err != nil {
		return err
	}
	if s.dir != "" {
		return Pin(s.pin(outer, slot, id), m)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	place := name(OuterName(outer), slot, id)
	if s.held[place] == nil {
		s.held[place], err = m.Clone()
	}
	return err
}

// Pin pins a map at a path, unless there is a pin. It makes the directory.
func Pin(path string, m *ebpf.Map) error {
	// The library would move the pin of a map that has one.
	again, err := m.Clone()
	if err != nil {
		return err
	}
	defer again.Close()
	err = again.Pin(path)
	if errors.Is(err, os.ErrNotExist) {
		if err = os.Mkdir(filepath.Dir(path), 0o700); err == nil || errors.Is(err, os.ErrExist) {
			err = again.Pin(path)
		}
	}
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	return err
}

// forget removes the pin of a map that is no longer in this slot, or lets go of its descriptor.
func (s *Slots) forget(outer *ebpf.Map, slot uint32, id ebpf.MapID) error {
	if s.dir != "" {
		return unpin(s.pin(outer, slot, id))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	place := name(OuterName(outer), slot, id)
	m := s.held[place]
	delete(s.held, place)
	return m.Close() // a map that was there at the start is not held; closing nil does nothing
}

func unpin(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin a replaced map: %w", err)
	}
	return nil
}

// Sweep removes the pins of maps that are in no slot. A writer that was killed leaves such pins.
func (s *Slots) Sweep(outers map[string]*ebpf.Map) error {
	if s.dir == "" {
		return nil
	}
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for pins of replaced maps: %w", err)
	}
	for _, entry := range entries {
		outer, slot, id, ok := Parse(entry.Name())
		if !ok || outers[outer] == nil {
			continue // of another version
		}
		now, err := in(outers[outer], slot)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("look for pins of replaced maps: %w", err)
		}
		if err == nil && now == id {
			continue
		}
		if err := unpin(filepath.Join(s.dir, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// Complete pins the maps in slots that have no pin, as a version without these pins leaves them, and sweeps. The error wraps
// ErrUnpinned if this process may not open such a map.
func (s *Slots) Complete(outers map[string]*ebpf.Map) error {
	for _, outer := range outers {
		for slot := range outer.MaxEntries() {
			m, err := s.Open(outer, slot)
			if errors.Is(err, ebpf.ErrKeyNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			err = s.keep(outer, slot, m)
			m.Close()
			if err != nil {
				return fmt.Errorf("pin the map in slot %d of %s: %w", slot, OuterName(outer), err)
			}
		}
	}
	return s.Sweep(outers)
}
