// SPDX-License-Identifier: Apache-2.0

package setups

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hairpin/test/lab"
)

// machine is a host with a file system of its own: programs read and write this machine's files in a copy.
type machine struct {
	*lab.Host
	root string
}

// newMachine gives a host a copy of this machine's file system. Directories in which this machine keeps its own network are empty.
func newMachine(t *testing.T, h *lab.Host) *machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "hairpin-setups-")
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{h, filepath.Join(dir, "root")}
	mounts := []string{dir}
	t.Cleanup(func() {
		for i := len(mounts) - 1; i >= 0; i-- {
			if err := unix.Unmount(mounts[i], unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", mounts[i], err)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	// An overlay cannot keep its changes on another overlay.
	must("mount tmpfs", unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"))
	for _, name := range []string{"root", "upper", "work"} {
		must("make directory", os.Mkdir(filepath.Join(dir, name), 0o755))
	}
	mount := func(source, target, kind string, flags uintptr, data string) {
		t.Helper()
		must("mount "+kind+" on "+target, h.Do(func() error { return unix.Mount(source, filepath.Join(m.root, target), kind, flags, data) }))
		mounts = append(mounts, filepath.Join(m.root, target))
	}
	mount("overlay", "", "overlay", 0, fmt.Sprintf("lowerdir=/,upperdir=%s/upper,workdir=%s/work", dir, dir))
	mount("tmpfs", "run", "tmpfs", 0, "mode=755")
	mount("/dev", "dev", "", unix.MS_BIND|unix.MS_REC, "")
	mount("/proc", "proc", "", unix.MS_BIND|unix.MS_REC, "")
	// The interfaces of this host. Read-only tells systemd-networkd that no udev runs, as in a container.
	mount("sysfs", "sys", "sysfs", unix.MS_RDONLY, "")
	for _, name := range []string{"network", "systemd/network"} {
		for _, top := range []string{"etc", "lib", "usr/lib"} {
			if name == "systemd/network" || top == "etc" {
				must("empty "+name, os.RemoveAll(filepath.Join(m.root, top, name)))
			}
		}
		must("make "+name, os.MkdirAll(filepath.Join(m.root, "etc", name), 0o755))
	}
	for _, scripts := range []string{"if-pre-up.d", "if-up.d", "if-down.d", "if-post-down.d"} { // ifup demands them
		must("make "+scripts, os.Mkdir(filepath.Join(m.root, "etc/network", scripts), 0o755))
	}
	return m
}

// write writes a file of the machine.
func (m *machine) write(t *testing.T, path, text string) {
	t.Helper()
	path = filepath.Join(m.root, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// in is a command of the machine. Whatever the command has started ends with the command.
func (m *machine) in(args ...string) []string { return append([]string{"chroot", m.root}, args...) }

// service is in for a program that runs until the test ends.
func (m *machine) service(args ...string) []string {
	return append([]string{"unshare", "--pid", "--fork", "--kill-child", "chroot", m.root}, args...)
}

// needProgram fails the test if a program is missing: test/deps.sh installs it.
func needProgram(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil && !strings.HasPrefix(name, "/") {
		t.Fatalf("%v; make deps installs it", err)
	}
}
