// SPDX-License-Identifier: Apache-2.0

// Package dirlock takes the flock(2) locks of directories: a bpffs has no files to lock.
//
// github.com/gofrs/flock does not do: it opens the path anew at each try. A process that waits must keep
// the directory that it opened: meanwhile a mount, or a new directory, may have taken the path.
package dirlock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// poll is how often a lock that somebody holds is tried again: flock(2) cannot wait for a context.
const poll = 10 * time.Millisecond

// Take opens a directory and takes its lock for this process alone. Close releases it, as the end of the
// process does. A lock that is free is taken whatever ctx says.
//
// It returns an error wrapping ctx.Err() if the lock was not free before ctx ended.
func Take(ctx context.Context, dir string) (*os.File, error) {
	file, err := open(dir)
	if err != nil {
		return nil, err
	}
	for {
		taken, err := lock(file, unix.LOCK_EX)
		if taken {
			return file, nil
		}
		if err != nil {
			return nil, err
		}
		select {
		case <-ctx.Done():
			_ = file.Close()
			return nil, fmt.Errorf("wait for the lock of %s: %w", dir, ctx.Err())
		case <-time.After(poll):
		}
	}
}

// Try is Take without a wait. It returns nil if another process has the lock.
func Try(dir string) (*os.File, error) { return try(dir, unix.LOCK_EX) }

// TryShared is Try for a lock that several may have at once.
func TryShared(dir string) (*os.File, error) { return try(dir, unix.LOCK_SH) }

func try(dir string, how int) (*os.File, error) {
	file, err := open(dir)
	if err != nil {
		return nil, err
	}
	taken, err := lock(file, how)
	if err != nil {
		return nil, err
	}
	if !taken {
		return nil, file.Close()
	}
	return file, nil
}

func open(dir string) (*os.File, error) {
	file, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	return file, nil
}

// lock reports whether it took the lock. If it fails, the file is closed.
func lock(file *os.File, how int) (bool, error) {
	err := unix.Flock(int(file.Fd()), how|unix.LOCK_NB)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EWOULDBLOCK), errors.Is(err, unix.EINTR):
		return false, nil
	}
	_ = file.Close()
	return false, fmt.Errorf("lock %s: %w", file.Name(), err)
}
