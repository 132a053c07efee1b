// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"os"
	"path/filepath"
	"testing"

	"hairpin/bpf"
)

// Remove works from whatever state it finds, and once more after that; interfaces are as before.
func TestRemoveFromHalfStates(t *testing.T) {
	pin := func(r *router, path ...string) string {
		return filepath.Join(append([]string{r.dir, "datapath"}, path...)...)
	}
	cases := map[string]func(r *router) error{
		"all of it":       func(*router) error { return nil },
		"no maps":         func(r *router) error { return os.RemoveAll(pin(r, "maps")) },
		"no schema":       func(r *router) error { return os.Remove(pin(r, "maps", bpf.HairpinMapSchema)) },
		"no programs":     func(r *router) error { return os.RemoveAll(pin(r, "programs")) },
		"no TCX link":     func(r *router) error { return os.Remove(r.onlyLink("tcx_*")) },
		"no XDP link":     func(r *router) error { return os.Remove(r.onlyLink("xdp_*")) },
		"no clsact mark":  func(r *router) error { return r.delFilters("lan0") },
		"a killed writer": func(r *router) error { return os.MkdirAll(filepath.Join(r.dir, "new-1", "maps"), 0o700) },
		"an odd link name": func(r *router) error {
			return os.Mkdir(pin(r, "links", "tcx_x"), 0o700)
		},
		"links alone": func(r *router) error {
			if err := os.RemoveAll(pin(r, "maps")); err != nil {
				return err
			}
			return os.RemoveAll(pin(r, "programs"))
		},
	}
	for name, harm := range cases {
		t.Run(name, func(t *testing.T) {
			r := newRouter(t)
			wan, lan := r.hooks("wan0"), r.hooks("lan0")
			if err := attachAll(r).Close(); err != nil {
				t.Fatal(err)
			}
			if err := harm(r); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				r.remove()
				nothingLeft(t, r.dir)
				r.want("removed", "wan0", wan)
				r.want("removed", "lan0", lan)
			}
		})
	}
}

// onlyLink finds the pin of the only link of a kind.
func (r *router) onlyLink(pattern string) string {
	r.t.Helper()
	found, err := filepath.Glob(filepath.Join(r.dir, "datapath", "links", pattern))
	if err != nil || len(found) != 1 {
		r.t.Fatalf("links %s: %q, %v, want one", pattern, found, err)
	}
	return found[0]
}

// delFilters takes the qdisc away behind hairpin's back, and the filter with it.
func (r *router) delFilters(dev string) error {
	r.Run("tc", "qdisc", "del", "dev", dev, "clsact")
	return nil
}

// Remove where nothing was ever made.
func TestRemoveNothing(t *testing.T) {
	r := newRouter(t)
	r.remove()
	nothingLeft(t, r.dir)
}

// What was made by a first Load is all there is to remove, also if nobody attached.
func TestRemoveUnattached(t *testing.T) {
	r := newRouter(t)
	if err := r.load(Options{}).Close(); err != nil {
		t.Fatal(err)
	}
	if !isBPF(r.dir) {
		t.Fatal("no bpffs is mounted")
	}
	r.remove()
	nothingLeft(t, r.dir)
}

// The kernel's own files in a fresh bpffs are nobody's pins.
func TestKernelFilesAreNoPins(t *testing.T) {
	r := newRouter(t)
	r.load(Options{})
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		t.Logf("in the bpffs: %s", entry.Name())
	}
	if err := os.Mkdir(filepath.Join(r.dir, "maps.debug2"), 0o700); err == nil {
		t.Error("bpffs took a name with a dot: then it may be somebody's pin")
	}
	r.remove()
	nothingLeft(t, r.dir)
}
