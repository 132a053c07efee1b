// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"

	"hairpin/cmd/hairpin/presence"
	"hairpin/loader"
)

// serving is the daemon's hold on a datapath: the lock that keeps a second daemon away, and the pins, which outlive an unmount of the
// bpffs.
type serving struct {
	dir    string
	lock   *os.File
	anchor *loader.Anchor
	moved  bool // the lock is in a bpffs that was unmounted
}

// claim makes this process the daemon of the datapath in dir. The caller holds the writer lock.
func claim(ctx context.Context, dir string) (*serving, error) {
	lock, err := presence.Claim(ctx, dir)
	if err != nil {
		return nil, err
	}
	anchor, err := loader.NewAnchor(dir)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &serving{dir: dir, lock: lock, anchor: anchor}, nil
}

// Close ends the hold.
func (s *serving) Close() error { return errors.Join(s.anchor.Close(), s.lock.Close()) }

// restore pins everything again if the bpffs was unmounted, and reports whether it did. The caller holds the writer lock.
func (s *serving) restore() (bool, error) {
	restored, err := s.anchor.Restore()
	s.moved = s.moved || restored
	if err != nil || !s.moved {
		return restored, err
	}
	lock, err := presence.Claim(context.Background(), s.dir)
	if err != nil {
		return restored, fmt.Errorf("serve the new pins: %w", err)
	}
	unmounted := s.lock
	s.lock, s.moved = lock, false
	return restored, unmounted.Close()
}
