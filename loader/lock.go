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

// Lock makes the caller the only writer of the datapath in dir, until it calls release or the process dies.
// Lock mounts the bpffs if none is mounted. release unmounts an empty bpffs that hairpin mounted.
//
// Lock returns an error wrapping ErrLocked if another process holds the lock until the deadline of ctx. If
// ctx is canceled before, the error wraps context.Canceled.
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

// isLock reports whether the file is the root of the bpffs on dir. The former holder of the lock may have
// unmounted it: then the file is an old root, or the directory under the mount. While this process has the
// lock of the directory under the mount, no process mounts on it, so isMounted is false for it.
func isLock(file *os.File, dir string) (bool, error) {
	current, err := isCurrent(file, dir)
	if !current || err != nil {
		return false, err
	}
	return isMounted(dir)
}

// unlock releases the lock and unmounts an empty bpffs. An error of the unmount does not matter to the
// caller.
func unlock(file *os.File, dir string) {
	defer file.Close()
	// After Remove another process may have mounted a new bpffs, which this process must not unmount.
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
		return false, fmt.Errorf("inspect lock: %w", err)
	}
	named, err := os.Lstat(dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("inspect lock: %w", err)
	}
	return os.SameFile(held, named), nil
}

// takeLock takes the lock of a directory. On a timeout the error names the process that has the lock.
func takeLock(ctx context.Context, dir string) (*os.File, error) {
	file, err := dirlock.Take(ctx, dir)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("%w: %s is locked%s; try again", ErrLocked, dir, holder(dir))
	}
	return file, err
}

// holder returns " by process PID" for the holder of a directory's lock, "" if /proc/locks does not show
// it.
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
		// proc_locks(5): NUMBER: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE ... A waiting process has "->"
		// after NUMBER.
		fields := strings.Fields(line)
		if len(fields) >= 6 && fields[1] == "FLOCK" && fields[5] == id {
			return " by process " + fields[4]
		}
	}
	return ""
}
