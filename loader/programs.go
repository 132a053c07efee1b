// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
)

// ErrVersion says that the pinned programs are of another version than this binary.
var ErrVersion = errors.New("the running programs are of another version")

// ProgramsGeneration returns a number that changes whenever the pinned programs are replaced. It costs one system call.
//
// It returns an error wrapping ErrNotLoaded if nothing is pinned in dir; empty means DefaultDir.
func ProgramsGeneration(dir string) (uint64, error) {
	p := pins(Options{Dir: dir}.dir())
	var stat unix.Stat_t
	err := unix.Stat(p.programs(), &stat)
	if errors.Is(err, unix.ENOENT) {
		return 0, fmt.Errorf("%w: nothing is pinned in %s", ErrNotLoaded, string(p))
	}
	if err != nil {
		return 0, explain(fmt.Errorf("look at %s: %w", p.programs(), err))
	}
	// New programs come in a directory of their own, which takes the place of the old one.
	return stat.Ino, nil
}

// CheckVersion fails with an error wrapping ErrVersion if the pinned programs are of another version than this binary. Their
// working memory may have another layout, although the layout of the pinned maps is the same.
func (d *Datapath) CheckVersion() error {
	f, err := pins(d.dir).fit()
	if err != nil {
		return explain(err)
	}
	if f.Object != bpf.Fingerprint() {
		return fmt.Errorf(`%w: run "hairpin upgrade", which keeps every connection`, ErrVersion)
	}
	return nil
}

// MapsByName returns the maps that the programs of a datapath share, by their names in the kernel.
func MapsByName(maps *bpf.HairpinMaps) map[string]*ebpf.Map {
	shared := map[string]*ebpf.Map{}
	for name, m := range each[ebpf.Map](maps) {
		if isPinned(name) && *m != nil {
			shared[name] = *m
		}
	}
	return shared
}
