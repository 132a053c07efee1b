// SPDX-License-Identifier: Apache-2.0

// Package presence tells whether a daemon serves a datapath, and sees to it that no second one does.
//
// A daemon holds the lock of a directory among the pins. The kernel releases the lock however the daemon ends. (A bpffs
// holds no regular files, but directories can be locked.) The package never signals or stops a daemon.
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

// lockName is the directory among the pins.
const lockName = "daemon"

// patience outlasts the moment for which Running holds the lock.
const patience = time.Second

// Claim makes this process the daemon of the datapath in dir until it closes the file, or fails with ErrRunning. The
// caller holds the writer lock.
func Claim(ctx context.Context, dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("create daemon lock: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	file, err := dirlock.Take(ctx, path)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("%w: another process serves %s: stop that process first, or use another --bpffs", ErrRunning, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("take daemon lock: %w", err)
	}
	return file, nil
}

// Remove removes the lock of a daemon that does not run, so that the pins can be removed as a whole. The caller holds
// the writer lock.
func Remove(dir string) error {
	err := os.Remove(filepath.Join(dir, lockName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove daemon lock: %w", err)
	}
	return nil
}

// Running tells whether a daemon serves the datapath in dir.
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
