// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/bpf"
)

// anchored attaches to wan0 and lan0, and anchors the datapath.
func anchored(t *testing.T) (*router, *Datapath, *Anchor) {
	t.Helper()
	r := newRouter(t)
	d := attachAll(r)
	a, err := NewAnchor(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return r, d, a
}

// restore calls Restore with the Lock, which mounts a new bpffs.
func restore(t *testing.T, r *router, a *Anchor) (restored bool, err error) {
	t.Helper()
	release, err := Lock(within(t, 10*time.Second), r.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	return a.Restore()
}

func (r *router) unmount() {
	r.t.Helper()
	if err := unix.Unmount(r.dir, unix.MNT_DETACH); err != nil {
		r.t.Fatalf("unmount: %v", err)
	}
}

// TestRestoreAfterUnmount: the programs run on while the bpffs is unmounted. Restore pins the same objects, also the programs of an
// upgrade by another process. Then the datapath can be upgraded, changed and removed as before.
func TestRestoreAfterUnmount(t *testing.T) {
	r, d, a := anchored(t)
	for round := range 2 {
		if err := r.upgrade(d); err != nil {
			t.Fatal(err)
		}
		pins, programs, wan, lan := r.pinned(), r.pinnedPrograms(), r.hooks("wan0"), r.hooks("lan0")
		r.unmount()
		if restored, err := restore(t, r, a); !restored || err != nil {
			t.Fatalf("restore %d: %t, %v", round, restored, err)
		}
		r.want("after Restore", "wan0", wan)
		r.want("after Restore", "lan0", lan)
		if now := r.pinned(); !reflect.DeepEqual(now, pins) {
			t.Errorf("pins %q, were %q", now, pins)
		}
		if now := r.pinnedPrograms(); !reflect.DeepEqual(now, programs) {
			t.Errorf("pinned programs %v, were %v", now, programs)
		}
		if restored, err := restore(t, r, a); restored || err != nil {
			t.Errorf("a second Restore: %t, %v", restored, err)
		}
	}
	if _, err := r.tryHooks(d, "wan0", Hooks{ModeTC, true}); err != nil {
		t.Errorf("attach: %v", err)
	}
	opened, err := Open(Options{Dir: r.dir})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	if got, want := mustMapID(t, opened.Objects().Epochs), mustMapID(t, d.Objects().Epochs); got != want {
		t.Errorf("map %d, was %d", got, want)
	}
	r.remove()
	if h := r.hooks("wan0"); len(h.TCX) != 0 || h.XDP != 0 {
		t.Errorf("after Remove wan0 has %+v", h)
	}
}

// TestRestoreFaults: if any step fails, the programs run on, no pin is left, and the next attempt works.
func TestRestoreFaults(t *testing.T) {
	r, _, a := anchored(t)
	wan, pins := r.hooks("wan0"), r.pinned()
	r.unmount()
	eachFault(t, func() error {
		_, err := restore(t, r, a)
		return err
	}, func(step string) {
		r.want(step+" failed", "wan0", wan)
		if left := pinnedIn(t, r.dir); len(left) != 0 {
			t.Errorf("%s failed: left %q", step, left)
		}
	})
	if now := r.pinned(); !reflect.DeepEqual(now, pins) {
		t.Errorf("pins %q, were %q", now, pins)
	}
}

// TestRestoreKeepsOthers: Restore leaves another datapath alone, and does not bring back pins that somebody removed.
func TestRestoreKeepsOthers(t *testing.T) {
	r, d, a := anchored(t)
	r.remove()
	r.load(Options{})
	pins := r.pinned()
	if restored, err := restore(t, r, a); restored || err != nil {
		t.Errorf("beside another datapath: %t, %v", restored, err)
	}
	if now := r.pinned(); !reflect.DeepEqual(now, pins) {
		t.Errorf("pins %q, were %q", now, pins)
	}
	if err := d.checkCurrent(); err == nil {
		t.Error("the other datapath counts as the one that was opened")
	}
	pin := filepath.Join(r.dir, "datapath", "maps", bpf.HairpinMapEpochs)
	b, err := NewAnchor(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := os.Remove(pin); err != nil {
		t.Fatal(err)
	}
	if restored, err := restore(t, r, b); restored || err != nil || exists(pin) {
		t.Errorf("after a pin was removed: %t, %v", restored, err)
	}
}
