// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"hairpin/loader/dirlock"
)

// Lock makes the caller the only writer of the datapath in dir, until release; the kernel releases it
// should the process die. It mounts the bpffs if there is none, and release unmounts it again if
// nothing was made in it.
//
// It returns an error wrapping ErrLocked if another writer holds the lock until the deadline of ctx,
// and one wrapping context.Canceled if ctx is cancelled before.
func Lock(ctx context.Context, dir string) (release func(), err error) {
	dir = Options{Dir: dir}.dir()
	for {
		if err := mountDir(dir); err != nil {
			return nil, explain(err)
		}
		file, err := takeLock(ctx, dir)
		if errors.Is(err, os.ErrNotExist) && ctx.Err() == nil {
			continue
		}
		if err != nil {
			return nil, explain(err)
		}
		current, err := isLock(file, dir)
		if err != nil {
			_ = file.Close()
			return nil, explain(err)
		}
		if current {
			return func() { unlock(file, dir) }, nil
		}
		_ = file.Close()
	}
}

// isLock reports whether the file is the root of the mount on dir. Whoever held the lock before may
// have unmounted it: then the file is a thing of the past, or the directory below. Nobody mounts on
// that while we have its lock, so it cannot pass for mounted.
func isLock(file *os.File, dir string) (bool, error) {
	current, err := isCurrent(file, dir)
	if !current || err != nil {
		return false, err
	}
	return isMounted(dir)
}

// unlock leaves no empty mount behind. That it could not take it away is no news to a caller.
func unlock(file *os.File, dir string) {
	defer file.Close()
	// After Remove somebody may have mounted anew: that is theirs.
	if current, err := isCurrent(file, dir); err != nil || !current {
		return
	}
	if kept, err := firstPin(dir); err == nil && kept == "" {
		_ = unmountDir(dir)
	}
}

func isCurrent(file *os.File, dir string) (bool, error) {
	held, err := file.Stat()
	if err != nil {
		return false, fmt.Errorf("look at lock: %w", err)
	}
	named, err := os.Lstat(dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at lock: %w", err)
	}
	return os.SameFile(held, named), nil
}

// takeLock takes the lock of a directory, and says who has it if that takes too long.
func takeLock(ctx context.Context, dir string) (*os.File, error) {
	file, err := dirlock.Take(ctx, dir)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("%w: %s is locked%s: try again", ErrLocked, dir, holder(dir))
	}
	return file, err
}

// holder says who has the lock of a directory, as far as /proc/locks tells.
func holder(dir string) string {
	var stat unix.Stat_t
	if err := unix.Lstat(dir, &stat); err != nil {
		return ""
	}
	table, err := os.ReadFile("/proc/locks")
	if err != nil {
		return ""
	}
	id := fmt.Sprintf("%02x:%02x:%d", unix.Major(stat.Dev), unix.Minor(stat.Dev), stat.Ino)
	for line := range strings.Lines(string(table)) {
		// proc_locks(5): NUMBER: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE ..., with "->" after
		// the number of one that waits.
		fields := strings.Fields(line)
		if len(fields) >= 6 && fields[1] == "FLOCK" && fields[5] == id {
			return " by process " + fields[4]
		}
	}
	return ""
}
