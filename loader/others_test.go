// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"
)

// second loads another hairpin on this router, with its own pins.
func (r *router) second(opts Options) *Datapath {
	r.t.Helper()
	opts.Dir = newDir(r.t)
	var d *Datapath
	r.do("load a second one", func() error {
		d = mustLoad(r.t, opts)
		return nil
	})
	return d
}

// TestAnotherHairpinIsRefused: two hairpins on one interface would both translate, with any combination of
// hooks.
func TestAnotherHairpinIsRefused(t *testing.T) {
	for _, c := range []struct {
		name          string
		first, second Options
		firstMode     Mode
		guard         bool
	}{
		{"tcx beside tcx", Options{}, Options{}, ModeTC, true},
		{"tcx beside xdp", Options{}, Options{}, ModeXDPUntagged, false},
		{"clsact beside tcx", Options{}, Options{NoTCX: true}, ModeTC, false},
		{"tcx beside clsact", Options{NoTCX: true}, Options{}, ModeTC, false},
		{"clsact in the place of clsact", Options{NoTCX: true}, Options{NoTCX: true}, ModeTC, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRouter(t)
			first := r.load(c.first)
			if _, err := r.tryHooks(first, "wan0", Hooks{c.firstMode, c.guard}); err != nil {
				t.Fatal(err)
			}
			running := r.hooks("wan0")
			second := r.second(c.second)
			for _, mode := range []Mode{ModeTC, ModeXDPUntagged} {
				_, err := r.tryHooks(second, "wan0", Hooks{mode, true})
				wantError(t, err, nil, "wan0", "another hairpin", "hairpin --bpffs "+r.dir+" detach --all", "both would translate")
				r.want("refused", "wan0", running)
			}
			if list := r.attachments(second); len(list) > 0 {
				t.Errorf("attached %+v", list)
			}

			// After the refusal each hairpin still works, and the second hairpin can attach to another
			// interface.
			if _, err := r.tryHooks(first, "wan0", Hooks{c.firstMode, c.guard}); err != nil {
				t.Errorf("the first one again: %v", err)
			}
			if err := r.upgrade(first); err != nil {
				t.Errorf("upgrade: %v", err)
			}
			if _, err := r.tryHooks(first, "wan0", Hooks{c.firstMode, c.guard}); err != nil {
				t.Errorf("the first one after an upgrade: %v", err)
			}
			r.attach(second, "lan0", ModeTC)

			r.remove()
			r.attach(second, "wan0", ModeTC)
		})
	}
}

// TestLoopbackIsShared: each hairpin has its program on lo, for packets of the router itself.
func TestLoopbackIsShared(t *testing.T) {
	r := newRouter(t)
	r.attach(r.load(Options{}), "lo", ModeTC)
	r.attach(r.second(Options{}), "lo", ModeTC)
	if got := len(r.hooks("lo").TCX); got != 2 {
		t.Errorf("%d programs on lo, want 2", got)
	}
}

// TestLoopbackFilterIsNotReplaced: without TCX there is one filter; its owner would not notice that it was
// replaced.
func TestLoopbackFilterIsNotReplaced(t *testing.T) {
	r := newRouter(t)
	r.attach(r.load(Options{NoTCX: true}), "lo", ModeTC)
	before := r.hooks("lo")
	_, err := r.tryAttach(r.second(Options{NoTCX: true}), "lo", ModeTC)
	wantError(t, err, nil, "another hairpin", r.dir)
	r.want("refused", "lo", before)
}

// TestFilterOfForgottenPins: a filter outlives its pins if somebody unmounts the bpffs. It may also belong
// to a container, so it stays until the administrator runs the command in the message.
func TestFilterOfForgottenPins(t *testing.T) {
	r := newRouter(t)
	d := r.load(Options{NoTCX: true})
	if _, err := r.tryHooks(d, "wan0", Hooks{ModeTC, true}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(r.dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	again := r.load(Options{})
	_, err := r.tryAttach(again, "wan0", ModeTC)
	wantError(t, err, nil, "not pinned in a bpffs", "tc filter del dev wan0 ingress pref 2", "egress pref 65534")
	r.Run("tc", "filter", "del", "dev", "wan0", "ingress", "pref", "2")
	r.Run("tc", "filter", "del", "dev", "wan0", "egress", "pref", "65534")
	r.attach(again, "wan0", ModeTC)
}

// TestFilterOfAKilledUpgrade: an upgrade is killed after it replaced the filter and before it renamed the
// pins. The filter's program is not pinned, but it is hairpin's own.
func TestFilterOfAKilledUpgrade(t *testing.T) {
	r := newRouter(t)
	d := r.load(Options{NoTCX: true})
	want := r.attach(d, "wan0", ModeTC)
	fresh, _, err := d.loadPrograms()
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	r.do("replace the filter", func() error { return replaceFilter(want.Index, ingress, fresh.HairpinTc) })
	if got := r.attach(d, "wan0", ModeTC); !reflect.DeepEqual(got, want) {
		t.Errorf("attached %+v, want %+v", got, want)
	}
}

// TestForeignProgramsAreNoHairpin: programs of others are not refused; a program that disappears during the
// check is ignored.
func TestForeignProgramsAreNoHairpin(t *testing.T) {
	r := newRouter(t)
	foreignTC(t, r, "wan0")
	d := r.load(Options{})
	r.attach(d, "wan0", ModeTC)
	if name, maps, err := readProgram(1<<31 - 1); name != "" || maps != nil || err != nil {
		t.Errorf("a program that is gone: %q, %v, %v", name, maps, err)
	}
	id := mustProgramID(t, d.Objects().HairpinTc)
	if name, maps, err := readProgram(id); name != "hairpin_tc" || len(maps) == 0 || err != nil {
		t.Errorf("a program of ours: %q, %v, %v", name, maps, err)
	}
	err := without([]int{unix.CAP_SYS_ADMIN}, func() error {
		name, _, err := readProgram(id)
		if err == nil && name != "" {
			err = errors.New("it is " + name)
		}
		return err
	})
	if err != nil {
		t.Errorf("a program, looked at without CAP_SYS_ADMIN: %v", err)
	}
	if dir := findPins(nil); dir != "" {
		t.Errorf("pins of no maps are found in %s", dir)
	}
}
