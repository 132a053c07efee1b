// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// nameNetns gives the network namespace of a host a name, as "ip netns add" does, until the test ends. Names that exist on
// the machine are hidden, only in the mount namespace of the tests.
func nameNetns(t *testing.T, h *lab.Host, name string) {
	t.Helper()
	const dir = "/run/netns"
	made := os.Mkdir(dir, 0o755) == nil
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
		t.Fatalf("mount on %s: %v", dir, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
		if made {
			os.Remove(dir)
		}
	})
	path := filepath.Join(dir, name)
	err := os.WriteFile(path, nil, 0o444)
	if err == nil {
		err = h.Do(func() error { return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "") })
	}
	if err != nil {
		t.Fatalf("name the namespace: %v", err)
	}
}

// freshBpffs mounts an empty bpffs on /sys/fs/bpf, only in the mount namespace of the test.
func freshBpffs(t *testing.T) string {
	t.Helper()
	const dir = "/sys/fs/bpf"
	if err := unix.Mount("none", dir, "bpf", 0, "mode=0700"); err != nil {
		t.Fatalf("mount on %s: %v", dir, err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// freshState mounts an empty /var/lib, only in the mount namespace of the test: there are the configurations that a datapath in
// /sys/fs/bpf keeps.
func freshState(t *testing.T) {
	t.Helper()
	const dir = "/var/lib"
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
		t.Fatalf("mount on %s: %v", dir, err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
}

// A command that attaches where its mounts end with it would lose everything at once: it is refused with the
// cause and the way out, and nothing is made.
func TestAttachInMountsThatEnd(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, home.Config("tc", home.Forwards))
	const name = "hairpin-lab"
	nameNetns(t, n.Router, name)
	inSys := filepath.Join(freshBpffs(t), "hairpin")
	freshState(t)
	exec := []string{"ip", "netns", "exec", name}
	wantExec := []string{`"ip netns exec ` + name + `"`, "nsenter --net=/run/netns/" + name}
	wantAlone := []string{"no other process is in this mount namespace", "mount -t bpf"}
	for _, test := range []struct {
		name   string
		before []string // the command
		want   []string
	}{
		{"ip netns exec", exec, wantExec},
		{"a script under ip netns exec", append(exec, "sh", "-c", `"$@"; exit $?`, "sh"), wantExec},
		{"private mounts", []string{"unshare", "-m"}, wantAlone},
		// Like the mounts of a systemd service: a peer group, but not the peer group of the host.
		{"mounts of a service", []string{"unshare", "-m", "--propagation", "shared"}, wantAlone},
	} {
		for _, dir := range []string{hp.Dir, inSys} {
			command := append(append([]string{}, test.before...), lab.Binary(t), "-c", hp.File, "--bpffs", dir, "attach")
			r, err := n.Router.Try(command...)
			if err != nil {
				t.Fatal(err)
			}
			if r.Code != 2 {
				t.Errorf("%s, %s: exit code %d, want 2", test.name, dir, r.Code)
			}
			for _, want := range append(test.want, "the pins would be lost") {
				if !strings.Contains(r.Stderr, want) {
					t.Errorf("%s, %s: %s\nlacks %q", test.name, dir, r.Stderr, want)
				}
			}
			if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %s is there: %v", test.name, dir, err)
			}
		}
	}

	// Somebody else uses the mounts, as in a container that is entered.
	n.Router.Run("unshare", "-m", "sh", "-c", `"$@" attach && "$@" status`, "sh", lab.Binary(t), "-c", hp.File, "--bpffs", hp.Dir)

	// What runs already is used, or it is said why it is not found.
	hp.Run("attach")
	n.Router.Run(append(exec, lab.Binary(t), "-c", hp.File, "--bpffs", hp.Dir, "attach")...)
	hp.Run("detach", "--all")
	hp.Run("--bpffs", inSys, "attach")
	r, err := n.Router.Try(append(exec, lab.Binary(t), "--bpffs", inSys, "status")...)
	if err != nil || r.Code != 4 || !strings.Contains(r.Stderr, wantExec[1]) {
		t.Errorf("status under ip netns exec: %+v, %v", r, err)
	}
	hp.Run("--bpffs", inSys, "detach", "--all")
}

// The daemon keeps its mounts, whoever else sees them.
func TestDaemonInMountsThatEnd(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, home.Config("tc", home.Forwards))
	const name = "hairpin-lab"
	nameNetns(t, n.Router, name)
	daemon := n.Router.Start("ip", "netns", "exec", name, lab.Binary(t), "-c", hp.File, "--bpffs", hp.Dir, "run")
	lab.Eventually(t, lab.Patience, func() error {
		log := daemon.Stderr.String()
		for _, want := range []string{"forwards and connections will be lost when the daemon ends", "attached to 4 interfaces"} {
			if !strings.Contains(log, want) {
				return fmt.Errorf("the log lacks %q:\n%s", want, log)
			}
		}
		return nil
	})
	daemon.Signal(unix.SIGTERM)
	if code := daemon.Wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
