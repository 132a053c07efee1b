// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"slices"
)

// Remove removes the datapath in dir, whatever state it is in: all links, filters, qdiscs and pins of
// hairpin. It also removes the mount and the directory if hairpin made them. Connections end. Programs and
// qdiscs of others stay. It is no error if there is no datapath. The caller holds the Lock.
func Remove(dir string) error {
	dir = Options{Dir: dir}.dir()
	if err := remove(pins(dir)); err != nil {
		return explain(fmt.Errorf("remove datapath: %w", err))
	}
	return nil
}

func remove(p pins) error {
	mounted, err := isMounted(string(p))
	if err != nil {
		return err
	}
	if !mounted {
		// A process that was killed may have made the directory, but not the mount.
		return removeDir(string(p))
	}
	if err := clean(string(p)); err != nil {
		return err
	}
	if err := removePins(p); err != nil {
		return err
	}
	return unmountDir(string(p))
}

// removePins detaches all programs and removes all pins.
func removePins(p pins) error {
	// Ignore a link that cannot be opened: removing its pin below detaches it.
	hooks, _ := p.hooks()
	defer closeHooks(hooks)
	slices.SortStableFunc(hooks, func(a, b *hook) int {
		return slices.Index(kinds, a.kind) - slices.Index(kinds, b.kind)
	})
	var errs []error
	for _, h := range hooks {
		if err := h.remove(); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	// One rename takes all pins away, so that nobody finds half of them if this process is killed now. The next writer removes the
	// rest (clean).
	if err := os.Rename(p.datapath(), p.aside()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin: %w", err)
	}
	if err := os.RemoveAll(p.aside()); err != nil {
		return fmt.Errorf("unpin: %w", err)
	}
	return nil
}
