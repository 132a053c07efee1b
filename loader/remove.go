// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"slices"
)

// Remove takes the datapath in dir away: every link, filter, qdisc and pin of ours, from whatever
// state it finds them in, and the mount and the directory if we made them. Connections end. Programs
// and qdiscs of others stay. It is no error if there is nothing. The caller holds the Lock.
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
		// A process that was killed may have come no further than to make it.
		return removeDir(string(p))
	}
	if err := removePins(p); err != nil {
		return err
	}
	if err := clean(string(p)); err != nil {
		return err
	}
	return unmountDir(string(p))
}

// removePins detaches and unpins everything.
func removePins(p pins) error {
	// A link that cannot be opened goes with its pin.
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
	if err := os.RemoveAll(p.datapath()); err != nil {
		return fmt.Errorf("unpin: %w", err)
	}
	return nil
}
