// SPDX-License-Identifier: Apache-2.0

// Package presence finds out whether a daemon serves a datapath, and prevents a second daemon. It never
// signals or stops a daemon.
//
// A daemon locks a directory among the pins; a bpffs has no regular files to lock. The kernel releases the
// lock however the daemon ends.
package presence

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"hairpin/loader/dirlock"
)

// ErrRunning says that a daemon serves the datapath.
var ErrRunning = errors.New("a daemon is running")

// lockName is the name of the locked directory among the pins.
const lockName = "daemon"

// patience is the wait for the lock in Claim. It is longer than the moment for which Running holds the
// lock.
const patience = time.Second

// Claim makes this process the daemon of the datapath in dir, until the process closes the file. It returns
// an error wrapping ErrRunning if another daemon runs. The caller holds the writer lock.
func Claim(ctx context.Context, dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("create daemon lock: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	file, err := dirlock.Take(ctx, path)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("%w: another process serves %s; stop that process first, or use another --bpffs", ErrRunning, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("take daemon lock: %w", err)
	}
	return file, nil
}

// Remove removes the directory that daemons lock, so that all pins can be removed. No daemon may run. The
// caller holds the writer lock.
func Remove(dir string) error {
	err := os.Remove(filepath.Join(dir, lockName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove daemon lock: %w", err)
	}
	return nil
}

// Running reports whether a daemon serves the datapath in dir.
func Running(dir string) (bool, error) {
	file, err := dirlock.TryShared(filepath.Join(dir, lockName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("try daemon lock: %w", err)
	}
	if file == nil {
		return true, nil
	}
	return false, file.Close()
}
