// SPDX-License-Identifier: Apache-2.0

// Package dirlock takes flock(2) locks on directories: a bpffs cannot hold a lock file.
//
// github.com/gofrs/flock does not fit: it opens the path again at each try. A waiting process must keep the
// directory that it opened, because a mount or a new directory may take the path while it waits.
package dirlock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// poll is the time between two tries to take a lock. flock(2) cannot wait for a context.
const poll = 10 * time.Millisecond

// Take opens a directory and takes its exclusive lock. Closing the file releases the lock, and so does the
// end of the process. A free lock is taken even if ctx has ended.
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

// Try takes the exclusive lock without waiting. It returns nil if another process has the lock.
func Try(dir string) (*os.File, error) { return try(dir, unix.LOCK_EX) }

// TryShared takes a shared lock without waiting. It returns nil if another process has the exclusive lock.
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

// lock reports whether it took the lock. On an error it closes the file.
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
