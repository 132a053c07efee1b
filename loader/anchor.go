// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf/pin"
	"golang.org/x/sys/unix"
)

// Anchor keeps the pins of a datapath when its bpffs is unmounted. The Anchor has an open descriptor of the root of the bpffs. While this
// descriptor is open, the kernel keeps the bpffs and all pins in it, so the programs stay attached. The methods of Anchor are not safe for
// concurrent use.
type Anchor struct {
	dir  string
	root *os.File // the root of the bpffs with the pins
}

// NewAnchor holds on to the datapath in dir; empty means DefaultDir. Close the Anchor when the process no longer serves the datapath.
func NewAnchor(dir string) (*Anchor, error) {
	dir = Options{Dir: dir}.dir()
	root, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open pin directory: %w", err)
	}
	return &Anchor{dir, root}, nil
}

// Close lets go of the bpffs. If it is unmounted, its pins are gone then.
func (a *Anchor) Close() error { return a.root.Close() }

// Restore pins everything again if the bpffs was unmounted, and reports whether it did. The new pins are of the same maps, programs
// and links. It changes nothing if the directory has pins, of this datapath or of another, and if the pins were removed one by one.
// The caller holds the Lock, which has mounted a new bpffs.
func (a *Anchor) Restore() (bool, error) {
	current, err := isCurrent(a.root, a.dir)
	if current || err != nil {
		return false, explain(err)
	}
	old, fresh := pins(fmt.Sprintf("/proc/self/fd/%d", a.root.Fd())), pins(a.dir)
	if isEmpty(old.maps()) || !isEmpty(fresh.datapath()) {
		return false, nil
	}
	if err := a.restore(old, fresh); err != nil {
		return false, explain(fmt.Errorf("pin the datapath again: %w", err))
	}
	return true, nil
}

func (a *Anchor) restore(old, fresh pins) error {
	if err := clean(a.dir); err != nil {
		return err
	}
	root, err := NewAnchor(a.dir)
	if err != nil {
		return err
	}
	err = copyPins(old.datapath(), fresh.aside())
	if err == nil {
		err = fault("rename")
	}
	if err == nil {
		err = os.Rename(fresh.aside(), fresh.datapath())
	}
	if err != nil {
		return errors.Join(err, root.Close(), os.RemoveAll(fresh.aside()))
	}
	unmounted := a.root
	a.root = root.root
	return unmounted.Close()
}

// copyPins pins every object below a directory again, below another one.
func copyPins(from, to string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("read old pins: %w", err)
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if err := os.Mkdir(filepath.Join(to, name), 0o700); err != nil {
				return fmt.Errorf("make pin directory: %w", err)
			}
			return nil
		}
		if err := fault("pin " + entry.Name()); err != nil {
			return err
		}
		if err := copyPin(path, filepath.Join(to, name)); err != nil {
			return fmt.Errorf("pin %s: %w", name, err)
		}
		return nil
	})
}

// copyPin gives a pinned object another pin.
func copyPin(from, to string) error {
	object, err := pin.Load(from, nil)
	if err != nil {
		return err
	}
	defer object.Close()
	return object.Pin(to)
}
