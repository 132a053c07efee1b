// SPDX-License-Identifier: Apache-2.0

package slots

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// newDir mounts a bpffs and returns a directory in it that does not exist yet.
func newDir(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: sudo make test")
	}
	mount := t.TempDir()
	if err := unix.Mount("hairpin", mount, "bpf", 0, "mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(mount, "inner")
}

func newMap(t *testing.T, spec *ebpf.MapSpec) *ebpf.Map {
	t.Helper()
	m, err := ebpf.NewMap(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// newInner returns a map with this number in its only entry.
func newInner(t *testing.T, number uint32) *ebpf.Map {
	t.Helper()
	spec := innerSpec()
	spec.Contents = []ebpf.MapKV{{Key: uint32(0), Value: number}}
	return newMap(t, spec)
}

func innerSpec() *ebpf.MapSpec {
	return &ebpf.MapSpec{Name: "inner", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
}

func newOuter(t *testing.T) *ebpf.Map {
	t.Helper()
	return newMap(t, &ebpf.MapSpec{Name: "outer", Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 4, InnerMap: innerSpec()})
}

// numberIn returns the number of the map in a slot.
func numberIn(s *Slots, outer *ebpf.Map, slot uint32) (number uint32, err error) {
	m, err := s.Open(outer, slot)
	if err != nil {
		return 0, err
	}
	defer m.Close()
	err = m.Lookup(uint32(0), &number)
	return number, err
}

func pinsIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

func mustName(t *testing.T, slot uint32, m *ebpf.Map) string {
	t.Helper()
	name, err := Name("outer", slot, m)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func mustStore(t *testing.T, s *Slots, outer *ebpf.Map, slot uint32, m *ebpf.Map) {
	t.Helper()
	if err := s.Store(outer, slot, m); err != nil {
		t.Fatal(err)
	}
}

// withoutSysAdmin runs do on a thread that has all capabilities but CAP_SYS_ADMIN.
func withoutSysAdmin(do func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var sets [2]unix.CapUserData
		err := unix.Capget(&header, &sets[0])
		sets[0].Effective &^= 1 << unix.CAP_SYS_ADMIN
		if err == nil {
			err = unix.Capset(&header, &sets[0])
		}
		if err == nil {
			err = do()
		}
		result <- err
	}()
	return <-result
}

// TestOpenWithoutSysAdmin: maps in slots can be opened, replaced and dropped without CAP_SYS_ADMIN. Every slot has one pin.
func TestOpenWithoutSysAdmin(t *testing.T) {
	for name, s := range map[string]*Slots{"pinned": Pinned(newDir(t)), "held": Held()} {
		t.Run(name, func(t *testing.T) {
			outer := newOuter(t)
			maps := []*ebpf.Map{newInner(t, 1), newInner(t, 2), newInner(t, 3)}
			err := withoutSysAdmin(func() error {
				err := errors.Join(s.StoreAll(outer, []uint32{0, 1}, maps[:2]), s.Store(outer, 1, maps[2]), s.Store(outer, 1, maps[2]))
				for slot, want := range []uint32{1, 3} {
					number, failed := numberIn(s, outer, uint32(slot))
					if err = errors.Join(err, failed); number != want {
						t.Errorf("slot %d has map %d, want %d", slot, number, want)
					}
				}
				return errors.Join(err, s.Drop(outer, 0), s.Drop(outer, 0))
			})
			if err != nil {
				t.Error(err)
			}
			if _, err := s.Open(outer, 0); !errors.Is(err, ebpf.ErrKeyNotExist) {
				t.Errorf("a dropped slot: %v", err)
			}
			if s.dir == "" {
				return
			}
			if now, want := pinsIn(t, s.dir), []string{mustName(t, 1, maps[2])}; !slices.Equal(now, want) {
				t.Errorf("pins %q, want %q", now, want)
			}
		})
	}
}

// TestUnpinned: a map that an older version has put in a slot is refused without CAP_SYS_ADMIN. With it the map is opened, and Complete
// pins it for all others.
func TestUnpinned(t *testing.T) {
	outer, s := newOuter(t), Pinned(newDir(t))
	if err := outer.Put(uint32(2), newInner(t, 7)); err != nil {
		t.Fatal(err)
	}
	open := func() error {
		_, err := numberIn(s, outer, 2)
		return err
	}
	if err := withoutSysAdmin(open); !errors.Is(err, ErrUnpinned) {
		t.Errorf("without CAP_SYS_ADMIN: %v", err)
	}
	all := map[string]*ebpf.Map{"outer": outer}
	if err := withoutSysAdmin(func() error { return s.Complete(all) }); !errors.Is(err, ErrUnpinned) {
		t.Errorf("Complete without CAP_SYS_ADMIN: %v", err)
	}
	if err := errors.Join(open(), s.Complete(all), withoutSysAdmin(open), withoutSysAdmin(func() error { return s.Complete(all) })); err != nil {
		t.Error(err)
	}
}

// TestKilledWriter: a writer that is killed before or after it writes the slot leaves a pin more. Readers find the map in the slot, and
// Sweep removes the other pin.
func TestKilledWriter(t *testing.T) {
	for name, written := range map[string]bool{"before the write": false, "after the write": true} {
		t.Run(name, func(t *testing.T) {
			outer, s := newOuter(t), Pinned(newDir(t))
			old, fresh := newInner(t, 1), newInner(t, 2)
			mustStore(t, s, outer, 0, old)
			if err := s.keep(outer, 0, fresh); err != nil {
				t.Fatal(err)
			}
			live, want := old, uint32(1)
			if written {
				live, want = fresh, 2
				if err := outer.Put(uint32(0), fresh); err != nil {
					t.Fatal(err)
				}
			}
			number := uint32(0)
			if err := withoutSysAdmin(func() (err error) { number, err = numberIn(s, outer, 0); return err }); err != nil || number != want {
				t.Errorf("the slot has map %d (%v), want %d", number, err, want)
			}
			if now := pinsIn(t, s.dir); len(now) != 2 {
				t.Fatalf("pins %q, want that of the killed writer, too", now)
			}
			if err := s.Sweep(map[string]*ebpf.Map{"outer": outer}); err != nil {
				t.Fatal(err)
			}
			if now, want := pinsIn(t, s.dir), []string{mustName(t, 0, live)}; !slices.Equal(now, want) {
				t.Errorf("pins %q, want %q", now, want)
			}
		})
	}
}

// TestFailedWrite: a write that fails leaves one pin, or one descriptor, for each map in a slot, and none for the others. The batch writes
// the first slot before the kernel refuses the second.
func TestFailedWrite(t *testing.T) {
	for kind, s := range map[string]*Slots{"pinned": Pinned(newDir(t)), "held": Held()} {
		t.Run(kind, func(t *testing.T) {
			outer := newOuter(t)
			old, fresh := newInner(t, 1), newInner(t, 2)
			mustStore(t, s, outer, 0, old)
			beyond := outer.MaxEntries()
			want := []string{mustName(t, 0, old)}
			check := func() {
				t.Helper()
				now := slices.Sorted(maps.Keys(s.held))
				if s.dir != "" {
					now = pinsIn(t, s.dir)
				}
				if !slices.Equal(now, want) {
					t.Errorf("kept %q, want %q", now, want)
				}
			}
			if s.Store(outer, beyond, fresh) == nil {
				t.Fatal("stored in a slot that does not exist")
			}
			check()
			if s.StoreAll(outer, []uint32{0, beyond}, []*ebpf.Map{fresh, newInner(t, 3)}) == nil {
				t.Fatal("stored in a slot that does not exist")
			}
			if now, err := in(outer, 0); err != nil || mustName(t, 0, fresh) != name("outer", 0, now) {
				t.Fatalf("slot 0 has map %d, %v: the batch wrote nothing before it failed", now, err)
			}
			want = []string{mustName(t, 0, fresh)}
			check()
		})
	}
}

// TestReadersBesideWriter: while a writer replaces the map in a slot, every reader finds the old map or the new one.
func TestReadersBesideWriter(t *testing.T) {
	outer, s := newOuter(t), Pinned(newDir(t))
	mustStore(t, s, outer, 0, newInner(t, 1))
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			err := withoutSysAdmin(func() error {
				for before := uint32(0); ; {
					number, err := numberIn(s, outer, 0)
					if err != nil {
						return err
					}
					if number < before {
						t.Errorf("map %d after map %d", number, before)
					}
					before = number
					select {
					case <-stop:
						return nil
					default:
					}
				}
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	for number := uint32(2); number < 100; number++ {
		mustStore(t, s, outer, 0, newInner(t, number))
	}
	close(stop)
	readers.Wait()
}
