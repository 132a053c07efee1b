// SPDX-License-Identifier: Apache-2.0

// Package debian boots a Debian with systemd as its first process on a host of the lab. Programs that would take over the network of the
// tester's machine run there.
package debian

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"hairpin/test/lab"
)

// Machine is a Debian that runs, in the network namespace of a host.
type Machine struct {
	Root string // its directory

	tb      testing.TB
	host    *lab.Host
	init    string // pid of systemd
	process *lab.Process
	bpffs   string
}

// Make returns the directory of a new Debian with systemd and these packages, from the mirror and of the release of this machine.
func Make(tb testing.TB, packages ...string) (root string) {
	tb.Helper()
	lab.NeedRoot(tb)
	root = filepath.Join(tb.TempDir(), "root")
	release := strings.TrimSpace(output(tb, "sh", "-e", "-c", `. /etc/os-release && echo "$VERSION_CODENAME"`))
	include := strings.Join(append([]string{"systemd", "systemd-sysv", "dbus"}, packages...), ",")
	output(tb, "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--include="+include, release, root, mirror(tb, release))
	return root
}

// mirror returns the address from which this machine has its packages.
func mirror(tb testing.TB, release string) string {
	tb.Helper()
	mirrors := strings.Fields(output(tb, "apt-get", "indextargets", "--format", "$(SITE)", "Identifier: Packages", "Component: main",
		"Origin: Debian", "Codename: "+release))
	if len(mirrors) == 0 {
		tb.Fatalf("apt has no list of packages of Debian %s: run \"apt-get update\"", release)
	}
	list, found := strings.CutPrefix(mirrors[0], "mirror+file:")
	if !found {
		return mirrors[0]
	}
	text, err := os.ReadFile(list)
	if err != nil {
		tb.Fatal(err)
	}
	if mirrors = strings.Fields(string(text)); len(mirrors) == 0 {
		tb.Fatalf("%s names no mirror", list)
	}
	return mirrors[0]
}

func output(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		var failed *exec.ExitError
		if errors.As(err, &failed) {
			out = append(out, failed.Stderr...)
		}
		tb.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// booted counts the machines, so that each has a name of its own.
var booted atomic.Int64

// alone waits until no other process has booted a Debian, and makes this process the only one until it ends: the kernel then releases the lock
// that alone returns. All systemds have the control groups /system.slice and so on. Where this machine has control groups of version 1,
// these are the same for all, and one systemd would remove those of another.
var alone = sync.OnceValues(func() (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(os.TempDir(), "hairpin-test-debian.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return lock, unix.Flock(int(lock.Fd()), unix.LOCK_EX)
})

// Boot starts the Debian in root on a host, and returns when its boot is complete. Its /sys/fs/bpf is a bpffs of its own. If
// the test fails, its log has the journal.
func Boot(tb testing.TB, host *lab.Host, root string) *Machine {
	tb.Helper()
	if _, err := alone(); err != nil {
		tb.Fatalf("wait for the Debians of other tests: %v", err)
	}
	bpffs := tb.TempDir()
	if err := unix.Mount("bpf", bpffs, "bpf", 0, "mode=0700"); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = unix.Unmount(bpffs, unix.MNT_DETACH) })
	// Only /proc/sys/net may be written. A /sys that is read-only tells systemd and NetworkManager that no udev runs: udev would ask the
	// kernel for events of all devices of this machine. Without --register and with --keep-unit, nspawn needs no systemd outside.
	process := host.StartWith([]string{"SYSTEMD_NSPAWN_API_VFS_WRITABLE=network"}, "", "systemd-nspawn", "--quiet", "--directory="+root,
		fmt.Sprintf("--machine=hairpin-test-%d-%d", os.Getpid(), booted.Add(1)), "--register=no", "--keep-unit", "--boot", "--console=pipe",
		"--network-namespace-path=/proc/self/ns/net", "--capability=all", "--system-call-filter=bpf perf_event_open @mount",
		"--bind="+bpffs+":/sys/fs/bpf")
	m := &Machine{Root: root, tb: tb, host: host, process: process, bpffs: bpffs}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("the journal ends with\n%s", m.Journal())
		}
		process.Signal(unix.SIGTERM)
		process.Signal(unix.SIGTERM) // the second one does not wait for the services
		process.Wait()
	})
	lab.Eventually(tb, 3*lab.Patience, func() error {
		select {
		case <-process.Done():
			tb.Fatalf("systemd-nspawn: ended\n%s%s", process.Stdout, process.Stderr)
		default:
		}
		found, err := exec.Command("pgrep", "--parent", fmt.Sprint(process.Pid()), "systemd").Output()
		if m.init = strings.TrimSpace(string(found)); err != nil || m.init == "" {
			return fmt.Errorf("no systemd yet\n%s%s", process.Stdout, process.Stderr)
		}
		state, err := m.Try("systemctl", "is-system-running")
		if said := strings.TrimSpace(state.Stdout); err == nil && said != "running" && said != "degraded" {
			err = fmt.Errorf("the system is %q\n%s", said, state.Stderr)
		}
		return err
	})
	return m
}

// Reboot ends all services as systemd does, and boots again. The programs and tables in the kernel end, as at a reboot.
func (m *Machine) Reboot() *Machine {
	m.tb.Helper()
	m.Run("systemctl", "--no-block", "poweroff")
	m.process.Wait()
	if err := unix.Unmount(m.bpffs, unix.MNT_DETACH); err != nil {
		m.tb.Fatal(err)
	}
	return Boot(m.tb, m.host, m.Root)
}

// Try runs a command, whatever its exit code is.
func (m *Machine) Try(args ...string) (lab.Result, error) {
	path := "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	return m.host.Try(slices.Concat([]string{"nsenter", "--target", m.init, "--all", "env", "-i", path, "DEBIAN_FRONTEND=noninteractive"}, args)...)
}

// Run runs a command, which must succeed, and returns its standard output.
func (m *Machine) Run(args ...string) string {
	m.tb.Helper()
	r, err := m.Try(args...)
	if err != nil {
		m.tb.Fatal(err)
	}
	if r.Code != 0 {
		m.tb.Fatalf("%q: exit code %d\n%s%s\n%s", args, r.Code, r.Stdout, r.Stderr, m.Journal())
	}
	return r.Stdout
}

// Journal returns the last lines of the journal of these units; without units, of all.
func (m *Machine) Journal(units ...string) string {
	args := []string{"journalctl", "--boot", "--no-pager", "--lines=40"}
	for _, unit := range units {
		args = append(args, "--unit="+unit)
	}
	r, _ := m.Try(args...)
	return r.Stdout
}

// Write writes a file of the Debian in root.
func Write(tb testing.TB, root, path, text string, mode os.FileMode) {
	tb.Helper()
	name := filepath.Join(root, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), mode), os.Chmod(name, mode)); err != nil {
		tb.Fatal(err)
	}
}
