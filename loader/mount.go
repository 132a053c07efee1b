// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"hairpin/loader/dirlock"
)

// mountSource is the source of hairpin's mounts in mountinfo, madeMode the mode of its directories. They
// mark what hairpin made and may remove: the marks survive the process, and a bpffs cannot hold a file.
// Nobody else sets the sticky bit on a directory that only root may write, where it has no effect.
const (
	mountSource = "hairpin"
	madeMode    = os.ModeDir | os.ModeSticky | 0o700
)

// mountWait is the longest wait for another process that mounts or unmounts.
const mountWait = 10 * time.Second

// mountPoint is the mount that contains a path.
type mountPoint struct {
	root bool // the path is the root of the mount
	*mountinfo.Info
}

func (m mountPoint) ours() bool {
	return m.root && m.FSType == "bpf" && m.Source == mountSource
}

// Mount mounts a bpffs for root alone on dir, unless a bpffs is mounted there. It lets processes without CAP_SYS_ADMIN do everything
// else; empty means DefaultDir.
func Mount(dir string) error { return explain(mountDir(Options{Dir: dir}.dir())) }

// mountDir mounts a bpffs for root alone on dir, and makes the directory, unless a bpffs is mounted there.
func mountDir(dir string) error {
	for deadline := time.Now().Add(mountWait); ; {
		mounted, err := isMounted(dir)
		if mounted || err != nil {
			return err
		}
		// Check before making the directory: a bpffs without a mode lets every user write. The directory of
		// such a user would keep root from using this name.
		if !hasCapability(unix.CAP_SYS_ADMIN) {
			return fmt.Errorf("%w: mount bpffs on %s: needs CAP_SYS_ADMIN; run as root, or mount it before: mount -t bpf -o mode=0700 hairpin %s",
				ErrPermission, dir, dir)
		}
		if err := makeDir(dir); err != nil {
			return err
		}
		err = mountOn(dir)
		if err == nil {
			return nil
		}
		// The process that unmounted dir also removed the directory: try again.
		if !errors.Is(err, os.ErrNotExist) || time.Now().After(deadline) {
			return errors.Join(err, removeDir(dir))
		}
	}
}

// mountOn mounts a bpffs on a directory that has none. Two processes must not mount over each other, so
// each takes the lock of the underlying directory and then checks again.
func mountOn(dir string) error {
	below, err := lockBelow(dir)
	if err != nil {
		return err
	}
	defer below.Close()
	mounted, err := isMounted(dir)
	if mounted || err != nil {
		return err
	}
	if current, err := isCurrent(below, dir); !current {
		return errors.Join(err, os.ErrNotExist)
	}
	if err := checkMountable(dir); err != nil {
		return err
	}
	return mountBPF(dir)
}

func lockBelow(dir string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(context.Background(), mountWait)
	defer cancel()
	return takeLock(ctx, dir)
}

// isMounted reports whether a bpffs that root can trust is mounted on dir. It fails if something else is at
// the path.
func isMounted(dir string) (bool, error) {
	info, err := os.Lstat(dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("inspect pin directory: %w", err)
	}
	if info.Mode()&os.ModeSymlink != 0 {
		return false, fmt.Errorf("pin directory %s is a symbolic link; name the directory itself", dir)
	}
	if !info.IsDir() {
		return false, fmt.Errorf("pin directory %s is not a directory; name a directory", dir)
	}
	if err := checkOwner(dir, info); err != nil {
		return false, err
	}
	at, err := mountOf(dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil // another process has removed the directory since Lstat
	}
	if err != nil {
		return false, err
	}
	if at.root && at.FSType != "bpf" {
		return false, fmt.Errorf("pin directory %s is a mount of type %s, not bpf; name another directory", dir, at.FSType)
	}
	return at.root, nil
}

// makeDir makes dir unless it exists.
func makeDir(dir string) error {
	err := os.Mkdir(dir, madeMode.Perm()|os.ModeSticky)
	if err == nil || errors.Is(err, os.ErrExist) {
		return nil
	}
	parent := filepath.Dir(dir)
	if onSysfs(parent) {
		// No bpffs is mounted on /sys/fs/bpf yet, and sysfs has no mkdir.
		if err := mountParent(parent); err != nil {
			return err
		}
		err = os.Mkdir(dir, madeMode.Perm()|os.ModeSticky)
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make pin directory: %w", err)
	}
	return nil
}

func mountParent(parent string) error {
	below, err := lockBelow(parent)
	if err != nil {
		return err
	}
	defer below.Close()
	if !onSysfs(parent) {
		return nil
	}
	return mountBPF(parent)
}

// checkMountable fails if dir has files, because a mount would hide them.
func checkMountable(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read pin directory: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("cannot mount a bpffs on pin directory %s: it contains %s; empty it or name another directory", dir, entries[0].Name())
	}
	return nil
}

func mountBPF(dir string) error {
	err := unix.Mount(mountSource, dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700")
	if err != nil {
		return fmt.Errorf("mount bpffs on %s: %w", dir, err)
	}
	return nil
}

// unmountDir unmounts dir if hairpin mounted it, then removes the directory if hairpin made it. It fails if
// the bpffs holds pins of others. Without CAP_SYS_ADMIN the empty bpffs stays.
func unmountDir(dir string) error {
	at, err := mountOf(dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && !at.ours() {
		return nil
	}
	if err != nil {
		return err
	}
	if !hasCapability(unix.CAP_SYS_ADMIN) {
		return nil // somebody with this capability has mounted it for this process
	}
	kept, err := firstPin(dir)
	if err != nil {
		return err
	}
	if kept != "" {
		return fmt.Errorf("unmount %s: it contains %s, which hairpin did not make; remove that first", dir, kept)
	}
	// MNT_DETACH, because the holder of the lock has the directory open.
	if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return removeDir(dir)
}

// removeDir removes the directory if hairpin made it and no process is about to mount on it.
func removeDir(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil || info.Mode() != madeMode || checkOwner(dir, info) != nil {
		return ignoreGone(err)
	}
	if err := removeUnlocked(dir); err != nil {
		return err
	}
	return unmountParent(filepath.Dir(dir))
}

// removeUnlocked keeps a directory whose lock another process holds: that process is about to mount on it.
func removeUnlocked(dir string) error {
	below, err := dirlock.Try(dir)
	if below == nil {
		return ignoreGone(err)
	}
	defer below.Close()
	if at, err := mountOf(dir); err != nil || at.root {
		return ignoreGone(err)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
		return ignoreGone(err)
	}
	return nil
}

func ignoreGone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// unmountParent unmounts the bpffs that makeDir mounted on /sys/fs/bpf, if nothing is pinned there.
func unmountParent(parent string) error {
	at, err := mountOf(parent)
	if err != nil || !at.ours() {
		return err
	}
	if kept, err := firstPin(parent); kept != "" || err != nil {
		return err
	}
	if err := unix.Unmount(parent, unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("unmount %s: %w", parent, err)
	}
	return nil
}

// firstPin returns the name of the first pin in a bpffs, "" if there is no pin. It skips the kernel's own
// files (maps.debug, progs.debug; populate_bpffs in kernel/bpf/inode.c): only their names contain a dot.
func firstPin(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("read pin directory: %w", err)
	}
	for _, entry := range entries {
		if !strings.Contains(entry.Name(), ".") {
			return entry.Name(), nil
		}
	}
	return "", nil
}

func onSysfs(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && fs.Type == unix.SYSFS_MAGIC
}

// mountOf returns the mount that contains path.
func mountOf(path string) (mountPoint, error) {
	// The mount may disappear between statx and the read of mountinfo. Then statx finds another mount.
	for range 100 {
		var stat unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &stat)
		if err != nil {
			return mountPoint{}, &os.PathError{Op: "statx", Path: path, Err: err}
		}
		at, err := mountByID(int(stat.Mnt_id))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		return mountPoint{stat.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, at}, err
	}
	return mountPoint{}, fmt.Errorf("find the mount of %s: not in mountinfo", path)
}

// mountByID returns the mount with this ID. It returns os.ErrNotExist if there is none.
func mountByID(id int) (*mountinfo.Info, error) {
	found, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.ID != id, m.ID == id })
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	if len(found) == 0 {
		return nil, os.ErrNotExist
	}
	return found[0], nil
}

// checkOwner fails if somebody other than root owns or may write the path: a pinned program runs in the
// kernel.
func checkOwner(path string, info os.FileInfo) error {
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || stat.Uid != 0 {
		return fmt.Errorf("%s is not owned by root, so it cannot be trusted; name another directory, or chown it to root", path)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s can be written by others than root (%s), so it cannot be trusted; name another directory, or chmod go-w it",
			path, info.Mode().Perm())
	}
	return nil
}
