// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"path/filepath"
	"reflect"
	"testing"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/loader"
)

// pinnedProgram returns the program that a pin holds.
func (r *router) pinnedProgram(name string) ebpf.ProgramID {
	r.t.Helper()
	program, err := ebpf.LoadPinnedProgram(filepath.Join(r.dir, "datapath", "programs", name), nil)
	if err != nil {
		r.t.Fatalf("open pin: %v", err)
	}
	defer program.Close()
	return programID(r.t, program)
}

var programNames = []string{bpf.HairpinProgHairpinXdp, bpf.HairpinProgHairpinTc, bpf.HairpinProgHairpinEnd, bpf.HairpinProgHairpinStart}

func (r *router) pinnedPrograms() map[string]ebpf.ProgramID {
	r.t.Helper()
	ids := make(map[string]ebpf.ProgramID)
	for _, name := range programNames {
		ids[name] = r.pinnedProgram(name)
	}
	return ids
}

// attachAll has every kind of attachment: XDP and TCX on wan0, clsact on lan0.
func attachAll(r *router) *loader.Datapath {
	r.t.Helper()
	r.attach(r.load(loader.Options{NoTCX: true}), "lan0", loader.ModeTC)
	d := r.load(loader.Options{})
	r.attach(d, "wan0", loader.ModeXDP)
	return d
}

// After an upgrade every hook and every pin has a new program, on the same maps, and nothing of the
// old one is left.
func TestUpgrade(t *testing.T) {
	r := newRouter(t)
	d := attachAll(r)
	pins, epochs := r.pinned(), mapID(t, d.Objects().Epochs)
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
		if len(newLan.Filters) != 1 || newLan.Filters[0] == lan.Filters[0] {
			t.Errorf("lan0 filters %q, were %q", newLan.Filters, lan.Filters)
		}
		if got := programID(t, d.Objects().HairpinTc); got != after[bpf.HairpinProgHairpinTc] {
			t.Errorf("the datapath has program %d open, pinned is %v", got, after)
		}
		if t.Failed() {
			return
		}
	}
	if now := r.pinned(); !reflect.DeepEqual(now, pins) {
		t.Errorf("pins %q, were %q", now, pins)
	}
	opened, err := loader.Open(loader.Options{Dir: r.dir})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	if got := mapID(t, opened.Objects().Epochs); got != epochs {
		t.Errorf("map %d, was %d", got, epochs)
	}
	var epoch uint32
	if err := opened.Objects().Epochs.Lookup(uint32(7), &epoch); err != nil || epoch != 70 {
		t.Errorf("epoch %d, %v: the upgrade wrote to the maps", epoch, err)
	}
}

// A process that only opened the pins can upgrade; one that had them open before sees new programs
// when it attaches.
func TestUpgradeByAnother(t *testing.T) {
	r := newRouter(t)
	d := attachAll(r)
	other, err := loader.Open(loader.Options{Dir: r.dir})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := r.upgrade(other); err != nil {
		t.Fatal(err)
	}
	upgraded := r.hooks("wan0")
	r.attach(d, "wan0", loader.ModeXDP)
	r.want("attached by the one with the old programs", "wan0", upgraded)
}

// Whatever step fails, the programs that ran before run on, and the pins name them.
func TestUpgradeFaults(t *testing.T) {
	r := newRouter(t)
	d := attachAll(r)
	pins, programs := r.pinned(), r.pinnedPrograms()
	wan, lan := r.hooks("wan0"), r.hooks("lan0")
	opened := programID(t, d.Objects().HairpinTc)
	eachFault(t, func() error { return r.upgrade(d) }, func(step string) {
		r.want(step+" failed", "wan0", wan)
		r.want(step+" failed", "lan0", lan)
		if now := r.pinnedPrograms(); !reflect.DeepEqual(now, programs) {
			t.Errorf("%s failed: pinned programs %v, were %v", step, now, programs)
		}
		if now := r.pinned(); !reflect.DeepEqual(now, pins) {
			t.Errorf("%s failed: pins %q, were %q", step, now, pins)
		}
		if now := programID(t, d.Objects().HairpinTc); now != opened {
			t.Errorf("%s failed: program %d is open, was %d", step, now, opened)
		}
	})
	if now := r.pinnedPrograms(); reflect.DeepEqual(now, programs) {
		t.Error("the last attempt changed nothing")
	}
}
