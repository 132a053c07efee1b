// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hairpin/test/lab"
)

func TestMountAndUnmount(t *testing.T) {
	dir := newDir(t)
	mustLoad(t, Options{Dir: dir})
	at, err := mountOf(dir)
	if err != nil || !at.ours() {
		t.Fatalf("mounted: %+v, %v", at, err)
	}
	for range 2 { // the second Remove finds nothing
		if err := Remove(dir); err != nil {
			t.Fatal(err)
		}
		if exists(dir) {
			t.Fatal("the directory stays")
		}
	}
}

// TestSlashAtTheEnd: a path with a slash at its end, as shells complete it, works like a path without a
// slash.
func TestSlashAtTheEnd(t *testing.T) {
	dir := newDir(t)
	for _, path := range []string{dir + "/", dir + "//", dir + "/."} {
		release, err := Lock(within(t, 10*time.Second), path)
		if err != nil {
			t.Fatal(path, err)
		}
		mustLoad(t, Options{Dir: path})
		if err := Remove(path); err != nil {
			t.Errorf("remove %s: %v", path, err)
		}
		release()
		if exists(dir) {
			t.Errorf("%s: the directory stays", path)
		}
	}
	if err := os.Symlink(os.TempDir(), dir); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir + "/", dir + "/."} {
		_, err := Load(Options{Dir: path})
		wantError(t, err, nil, "symbolic link")
		wantError(t, Remove(path), nil, "symbolic link")
	}
}

// TestDirectoryOfOthersStays: Remove unmounts, but keeps a directory that existed before.
func TestDirectoryOfOthersStays(t *testing.T) {
	dir := newDir(t)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	mustLoad(t, Options{Dir: dir})
	if err := Remove(dir); err != nil {
		t.Fatal(err)
	}
	if at, err := mountOf(dir); err != nil || at.root {
		t.Errorf("after Remove: %+v, %v", at, err)
	}
}

// TestMountOfOthersStays: Remove keeps a bpffs that an administrator mounted.
func TestMountOfOthersStays(t *testing.T) {
	dir := newDir(t)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("fstab", dir, "bpf", 0, "mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	mustLoad(t, Options{Dir: dir})
	if err := Remove(dir); err != nil {
		t.Fatal(err)
	}
	if at, err := mountOf(dir); err != nil || !at.root {
		t.Errorf("after Remove: %+v, %v", at, err)
	}
	if left := pinnedIn(t, dir); len(left) > 0 {
		t.Errorf("left in it: %q", left)
	}
}

// TestPinOfOthersStays: Remove does not unmount a bpffs that contains a pin of somebody else.
func TestPinOfOthersStays(t *testing.T) {
	dir := newDir(t)
	mustLoad(t, Options{Dir: dir})
	pin := filepath.Join(dir, "foreign")
	if err := foreign(t, ebpf.XDP, 2).Pin(pin); err != nil {
		t.Fatal(err)
	}
	wantError(t, Remove(dir), nil, "foreign")
	if !exists(pin) {
		t.Error("the pin is gone")
	}
	if exists(pins(dir).datapath()) {
		t.Error("our own pins stay")
	}
	if err := os.Remove(pin); err != nil {
		t.Fatal(err)
	}
}

func TestUnfitDirectories(t *testing.T) {
	lab.NeedRoot(t)
	for name, c := range map[string]struct {
		make func(dir string) error
		want string
	}{
		"symbolic link": {func(dir string) error { return os.Symlink(os.TempDir(), dir) }, "symbolic link"},
		"file":          {func(dir string) error { return os.WriteFile(dir, nil, 0o600) }, "not a directory"},
		"not empty":     {func(dir string) error { return os.MkdirAll(filepath.Join(dir, "theirs"), 0o700) }, "theirs"},
		"not root's": {func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, 65534, 65534))
		}, "not owned by root"},
		"writable": {func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777))
		}, "written by others"},
		"other file system": {func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o700), unix.Mount("none", dir, "tmpfs", 0, "mode=0700"))
		}, "tmpfs"},
		"no parent": {func(dir string) error { return os.Remove(filepath.Dir(dir)) }, "no such file"},
	} {
		parent := filepath.Join(t.TempDir(), "parent")
		dir := filepath.Join(parent, "pins")
		if err := errors.Join(os.Mkdir(parent, 0o755), c.make(dir)); err != nil {
			t.Fatal(name, err)
		}
		_, err := Load(Options{Dir: dir})
		wantError(t, err, nil, dir, c.want)
		_, err = Lock(within(t, time.Second), dir)
		wantError(t, err, nil, dir, c.want)
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	}
}

// TestBareSysfs: without a bpffs on /sys/fs/bpf, this is an empty directory of sysfs.
func TestBareSysfs(t *testing.T) {
	lab.NeedRoot(t)
	sys := t.TempDir()
	if err := unix.Mount("sysfs", sys, "sysfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(sys, unix.MNT_DETACH)
	parent := filepath.Join(sys, "fs", "bpf")
	dir := filepath.Join(parent, "hairpin")
	d := mustLoad(t, Options{Dir: dir})
	defer d.Close()
	if at, err := mountOf(parent); err != nil || !at.ours() {
		t.Errorf("parent: %+v, %v", at, err)
	}
	if err := Remove(dir); err != nil {
		t.Fatal(err)
	}
	if at, err := mountOf(parent); err != nil || at.root {
		t.Errorf("parent after Remove: %+v, %v", at, err)
	}
}

// TestUnmountedWhileRunning: the bpffs is unmounted while the datapath runs; the next Load makes a new
// datapath.
func TestUnmountedWhileRunning(t *testing.T) {
	r := newRouter(t)
	d := r.load(Options{})
	r.attach(d, "wan0", ModeXDPUntagged)
	if err := unix.Unmount(r.dir, 0); err != nil {
		t.Fatal(err)
	}
	_, err := r.tryAttach(d, "wan0", ModeTC)
	wantError(t, err, ErrNotLoaded, r.dir)

	again := r.load(Options{})
	if again.Adopted() {
		t.Error("adopted what is not there")
	}
	r.attach(again, "wan0", ModeXDPUntagged)
	_, err = r.tryAttach(d, "wan0", ModeTC)
	wantError(t, err, ErrNotLoaded, "removed")
}

func TestLockExcludes(t *testing.T) {
	dir := newDir(t)
	release, err := Lock(within(t, 10*time.Second), dir)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err = Lock(short, dir)
	wantError(t, err, ErrLocked, dir, "process "+strconv.Itoa(os.Getpid()))

	// A process whose context ends must not get the lock.
	stopped, stop := context.WithCancel(within(t, 10*time.Second))
	stop()
	_, err = Lock(stopped, dir)
	wantError(t, err, context.Canceled, dir)
	if errors.Is(err, ErrLocked) {
		t.Errorf("cancelled: %v is ErrLocked", err)
	}

	next := make(chan error)
	go func() {
		release, err := Lock(within(t, 10*time.Second), dir)
		if err == nil {
			release()
		}
		next <- err
	}()
	release()
	if err := <-next; err != nil {
		t.Error("the next writer:", err)
	}
	if exists(dir) {
		t.Error("writers that made nothing leave their mount")
	}
}

// TestLockComesAndGoes: writers that make nothing unmount the bpffs while other writers wait for it.
func TestLockComesAndGoes(t *testing.T) {
	dir := newDir(t)
	ctx := within(t, time.Minute)
	var inside atomic.Int32
	var writers sync.WaitGroup
	for range 8 {
		writers.Go(func() {
			for range 300 {
				release, err := Lock(ctx, dir)
				if err != nil {
					t.Error("lock:", err)
					return
				}
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d writers at once", n)
				}
				inside.Add(-1)
				release()
			}
		})
	}
	writers.Wait()
	if exists(dir) {
		t.Error("the mount stays")
	}
}

// TestLockAcrossRemove: while writers load and remove, never two writers run at the same time.
func TestLockAcrossRemove(t *testing.T) {
	dir := newDir(t)
	ctx := within(t, 10*time.Minute)
	var inside atomic.Int32
	var writers sync.WaitGroup
	for range 8 {
		writers.Go(func() {
			for range 5 {
				release, err := Lock(ctx, dir)
				if err != nil {
					t.Error("lock:", err)
					return
				}
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d writers at once", n)
				}
				d, err := Load(Options{Dir: dir, MaxConnections: 1})
				if err != nil {
					t.Error("load:", err)
				} else {
					d.Close()
				}
				if err := Remove(dir); err != nil {
					t.Error("remove:", err)
				}
				inside.Add(-1)
				release()
			}
		})
	}
	writers.Wait()
	if exists(dir) {
		t.Error("the mount stays")
	}
}
