// SPDX-License-Identifier: Apache-2.0

package main

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

var errDaemonRuns = errors.New("a daemon is running")

// presenceName is a directory among the pins, locked by the daemon for as long
// as it lives: the kernel lets go of the lock however the daemon ends. (A bpffs
// holds no regular files, but directories can be locked.)
const presenceName = "daemon"

// presenceRetry outlasts the moment for which daemonRuns holds the lock.
const presenceRetry = time.Second

// claimPresence makes this process the daemon of dir, or fails with
// errDaemonRuns. The caller holds the writer lock and keeps the file open.
func claimPresence(ctx context.Context, dir string) (*os.File, error) {
	path := filepath.Join(dir, presenceName)
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("create daemon lock: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, presenceRetry)
	defer cancel()
	file, err := dirlock.Take(ctx, path)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("%w: %s is served by another process; stop that first, or use another --bpffs", errDaemonRuns, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("take daemon lock: %w", err)
	}
	return file, nil
}

// releasePresence removes the lock of a daemon that does not run, so that the
// pins can be removed as a whole. The caller holds the writer lock.
func releasePresence(dir string) error {
	err := os.Remove(filepath.Join(dir, presenceName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove daemon lock: %w", err)
	}
	return nil
}

// daemonRuns tells whether a daemon serves dir.
func daemonRuns(dir string) (bool, error) {
	file, err := dirlock.TryShared(filepath.Join(dir, presenceName))
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
