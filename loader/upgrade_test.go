// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"path/filepath"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
)

// pinnedProgram returns the ID of the pinned program.
func (r *router) pinnedProgram(name string) ebpf.ProgramID {
	r.t.Helper()
	program, err := ebpf.LoadPinnedProgram(filepath.Join(r.dir, "datapath", "programs", name), nil)
	if err != nil {
		r.t.Fatalf("open pin: %v", err)
	}
	defer program.Close()
	return mustProgramID(r.t, program)
}

var programNames = []string{
	bpf.HairpinProgHairpinXdp, bpf.HairpinProgHairpinTc, bpf.HairpinProgHairpinGuard, bpf.HairpinProgHairpinEnd,
	bpf.HairpinProgHairpinCorrect, bpf.HairpinProgHairpinStart,
}

func (r *router) pinnedPrograms() map[string]ebpf.ProgramID {
	r.t.Helper()
	ids := make(map[string]ebpf.ProgramID)
	for _, name := range programNames {
		ids[name] = r.pinnedProgram(name)
	}
	return ids
}

// attachAll attaches every kind of hook: XDP and TCX on wan0, clsact on lan0, the guard on both.
func attachAll(r *router) *Datapath {
	r.t.Helper()
	r.guard(r.load(Options{NoTCX: true}), "lan0", ModeTC)
	d := r.load(Options{})
	r.guard(d, "wan0", ModeXDPUntagged)
	return d
}

// TestUpgrade: after an upgrade every hook and every pin has a new program on the same maps. No old program
// is left.
func TestUpgrade(t *testing.T) {
	r := newRouter(t)
	d := attachAll(r)
	pins, epochs := r.pinned(), mustMapID(t, d.Objects().Epochs)
	if err := d.Objects().Epochs.Put(uint32(7), uint32(70)); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		before, wan, lan := r.pinnedPrograms(), r.hooks("wan0"), r.hooks("lan0")
		if err := r.upgrade(d); err != nil {
			t.Fatal(err)
		}
		after := r.pinnedPrograms()
		for _, name := range programNames {
			if after[name] == before[name] {
				t.Errorf("%s is the old program %d", name, before[name])
			}
		}
		newWan, newLan := r.hooks("wan0"), r.hooks("lan0")
		if len(newWan.TCX) != 1 || newWan.TCX[0] != after[bpf.HairpinProgHairpinTc] || newWan.TCX[0] == wan.TCX[0] {
			t.Errorf("wan0 TCX %v, was %v, pinned %v", newWan.TCX, wan.TCX, after)
		}
		if newWan.XDP != uint32(after[bpf.HairpinProgHairpinXdp]) {
			t.Errorf("wan0 XDP %d, pinned %v", newWan.XDP, after)
		}
		if len(newWan.Egress) != 1 || newWan.Egress[0] != after[bpf.HairpinProgHairpinGuard] {
			t.Errorf("wan0 TCX at egress %v, pinned %v", newWan.Egress, after)
		}
		if len(newLan.Filters) != 2 || newLan.Filters[0] == lan.Filters[0] || newLan.Filters[1] == lan.Filters[1] {
			t.Errorf("lan0 filters %q, were %q", newLan.Filters, lan.Filters)
		}
		if got := mustProgramID(t, d.Objects().HairpinTc); got != after[bpf.HairpinProgHairpinTc] {
			t.Errorf("the datapath has program %d open, pinned is %v", got, after)
		}
		if t.Failed() {
			return
		}
	}
	if now := r.pinned(); !reflect.DeepEqual(now, pins) {
		t.Errorf("pins %q, were %q", now, pins)
	}
	opened, err := Open(Options{Dir: r.dir})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	if got := mustMapID(t, opened.Objects().Epochs); got != epochs {
		t.Errorf("map %d, was %d", got, epochs)
	}
	var epoch uint32
	if err := opened.Objects().Epochs.Lookup(uint32(7), &epoch); err != nil || epoch != 70 {
		t.Errorf("epoch %d, %v: the upgrade wrote to the maps", epoch, err)
	}
}

// TestUpgradeByAnother: a process that called Open can upgrade. Another process that has the datapath open
// attaches the new programs.
func TestUpgradeByAnother(t *testing.T) {
	r := newRouter(t)
	d := attachAll(r)
	other, err := Open(Options{Dir: r.dir})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := r.upgrade(other); err != nil {
		t.Fatal(err)
	}
	upgraded := r.hooks("wan0")
	if _, err := r.tryHooks(d, "wan0", Hooks{ModeXDPUntagged, true}); err != nil {
		t.Fatal(err)
	}
	r.want("attached by the one with the old programs", "wan0", upgraded)
}

// TestUpgradeFaults: if any step fails, the old programs still run, and the pins are the old programs.
func TestUpgradeFaults(t *testing.T) {
	r := newRouter(t)
	d := attachAll(r)
	pins, programs := r.pinned(), r.pinnedPrograms()
	wan, lan := r.hooks("wan0"), r.hooks("lan0")
	opened := mustProgramID(t, d.Objects().HairpinTc)
	eachFault(t, func() error { return r.upgrade(d) }, func(step string) {
		r.want(step+" failed", "wan0", wan)
		r.want(step+" failed", "lan0", lan)
		if now := r.pinnedPrograms(); !reflect.DeepEqual(now, programs) {
			t.Errorf("%s failed: pinned programs %v, were %v", step, now, programs)
		}
		if now := r.pinned(); !reflect.DeepEqual(now, pins) {
			t.Errorf("%s failed: pins %q, were %q", step, now, pins)
		}
		if now := mustProgramID(t, d.Objects().HairpinTc); now != opened {
			t.Errorf("%s failed: program %d is open, was %d", step, now, opened)
		}
	})
	if now := r.pinnedPrograms(); reflect.DeepEqual(now, programs) {
		t.Error("the last attempt changed nothing")
	}
}

// TestRetryNoMemory: a program without memory is run again, soon at first, then with longer pauses, up to a
// time limit.
func TestRetryNoMemory(t *testing.T) {
	noMemory := unix.ENOMEM
	synctest.Test(t, func(t *testing.T) {
		runs := 0
		if err := retryNoMemory(func() (uint32, error) { runs++; return uint32(-int32(noMemory)), nil }); !errors.Is(err, noMemory) {
			t.Errorf("error %v, want %v", err, noMemory)
		}
		if runs < 10 || runs > 30 {
			t.Errorf("%d runs in a second", runs)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		runs, start := 0, time.Now()
		err := retryNoMemory(func() (uint32, error) {
			if runs++; runs < 3 {
				return uint32(-int32(noMemory)), nil
			}
			return 0, nil
		})
		if took := time.Since(start); err != nil || runs != 3 || took != 3*time.Millisecond {
			t.Errorf("%d runs, %v, after %v", runs, err, took)
		}
		if err := retryNoMemory(func() (uint32, error) { return 0, errInjected }); !errors.Is(err, errInjected) {
			t.Errorf("error %v", err)
		}
	})
}
