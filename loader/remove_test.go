// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"os"
	"path/filepath"
	"testing"

	"hairpin/bpf"
)

// TestRemoveFromHalfStates: Remove works in every state, also a second time. Interfaces are as before.
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

// onlyLink returns the pin of the only link that matches pattern.
func (r *router) onlyLink(pattern string) string {
	r.t.Helper()
	found, err := filepath.Glob(filepath.Join(r.dir, "datapath", "links", pattern))
	if err != nil || len(found) != 1 {
		r.t.Fatalf("links %s: %q, %v, want one", pattern, found, err)
	}
	return found[0]
}

// delFilters removes the qdisc, and the filter with it, without hairpin.
func (r *router) delFilters(dev string) error {
	r.Run("tc", "qdisc", "del", "dev", dev, "clsact")
	return nil
}

// TestRemoveNothing: Remove works if nothing was ever made.
func TestRemoveNothing(t *testing.T) {
	r := newRouter(t)
	r.remove()
	nothingLeft(t, r.dir)
}

// TestRemoveUnattached: Remove removes what Load made, also if nothing was attached.
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

// TestKernelFilesAreNoPins: the kernel's own files in a new bpffs do not count as pins.
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
