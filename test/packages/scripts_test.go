// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// distribution makes a directory with busybox, the scripts of all packages, and programs that note how they are called. hairpin detach
// fails if DETACH is "fails".
func distribution(t *testing.T) (root string) {
	t.Helper()
	root = t.TempDir()
	installBusybox(t, root)
	noted := "#!/bin/sh\necho \"${0##*/} $*\" >>/called\n"
	for _, name := range []string{"systemctl", "deb-systemd-helper", "deb-systemd-invoke", "rc-service", "rc-update"} {
		place(t, root, "/usr/bin/"+name, []byte(noted))
	}
	place(t, root, "/usr/bin/hairpin", []byte(noted+"test \"$DETACH\" != fails\n"))
	place(t, root, "/etc/init.d/hairpin", []byte(noted))
	place(t, root, "/dev/null", nil)
	place(t, root, "/run/systemd/system/x", nil)
	place(t, root, "/sys/fs/bpf/hairpin/datapath", nil)
	for _, script := range glob("../../cmd/hairpin/package/scripts/*") {
		text, err := os.ReadFile(script)
		if err != nil {
			t.Fatal(err)
		}
		place(t, root, "/"+filepath.Base(script), text)
	}
	return root
}

func place(t *testing.T, root, path string, data []byte) {
	t.Helper()
	to := filepath.Join(root, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, data, 0o755)); err != nil {
		t.Fatal(err)
	}
}

func installBusybox(t *testing.T, root string) {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	place(t, root, "/bin/busybox", data)
	output(t, "chroot", root, "/bin/busybox", "--install", "-s", "/bin")
}

const (
	detachAll = "hairpin --quiet detach --all"
	reread    = "systemctl --system daemon-reload"
)

// TestPackageScripts: an upgrade starts the daemon again, and detaches nothing. A removal stops the daemon, then detaches, then removes the
// state. If the programs cannot be detached, the script fails, so that the package stays, and the state stays, too.
func TestPackageScripts(t *testing.T) {
	for _, c := range []struct {
		name, script, environment string
		calls                     []string // in this order, perhaps with others between them
		detaches, removes         bool     // whether the programs are detached, and the state is removed
	}{
		{name: "deb, before a removal", script: "deb.prerm remove", calls: []string{"deb-systemd-invoke stop hairpin.service"}, detaches: true},
		{name: "deb, before an upgrade", script: "deb.prerm upgrade 2"},
		{name: "deb, after the first installation", script: "deb.postinst configure", calls: []string{reread, "deb-systemd-invoke start hairpin.service"}},
		{name: "deb, after an upgrade", script: "deb.postinst configure 1", calls: []string{reread, "deb-systemd-invoke try-restart hairpin.service"}},
		{name: "deb, after a removal", script: "deb.postrm remove", calls: []string{reread, "deb-systemd-helper mask hairpin.service"}},
		{name: "deb, after a purge", script: "deb.postrm purge", calls: []string{"deb-systemd-helper purge hairpin.service"}, removes: true},
		{name: "rpm, after the first installation", script: "rpm.post 1", calls: []string{reread, "systemctl --no-reload preset hairpin.service"}},
		{name: "rpm, after an upgrade", script: "rpm.post 2", calls: []string{reread}},
		{name: "rpm, before the older version goes", script: "rpm.preun 1"},
		{name: "rpm, after the older version has gone", script: "rpm.postun 1", calls: []string{reread, "systemctl try-restart hairpin.service"}},
		{name: "rpm, before a removal", script: "rpm.preun 0", calls: []string{"systemctl --no-reload disable hairpin.service", "systemctl stop hairpin.service"}, detaches: true},
		{name: "rpm, after a removal", script: "rpm.postun 0", calls: []string{reread}, removes: true},
		{name: "apk, before a removal", script: "apk.pre-deinstall", calls: []string{"rc-service --ifstarted hairpin stop", "rc-update --quiet delete hairpin"}, detaches: true, removes: true},
		{name: "apk, after an upgrade", script: "apk.post-upgrade", calls: []string{"rc-service --ifstarted hairpin restart"}},
		{name: "ipk, before a removal", script: "ipk.prerm", calls: []string{"hairpin stop", "hairpin disable"}, detaches: true, removes: true},
		{name: "ipk, before an upgrade", script: "ipk.prerm", environment: "PKG_UPGRADE=1"},
	} {
		for _, detach := range []string{"works", "fails"} {
			if detach == "fails" && !c.detaches {
				continue
			}
			t.Run(c.name+", detach "+detach, func(t *testing.T) {
				root := distribution(t)
				place(t, root, "/var/lib/hairpin/generations/1.json", nil)
				command := exec.Command("chroot", append([]string{root, "/bin/sh"}, strings.Fields("/"+c.script)...)...)
				command.Env = []string{"PATH=/usr/bin:/bin", "DETACH=" + detach, c.environment}
				out, err := command.CombinedOutput()
				if fails := err != nil; fails != (detach == "fails") {
					t.Errorf("%v\n%s", err, out)
				}
				called, err := os.ReadFile(filepath.Join(root, "called"))
				if err != nil && !errors.Is(err, os.ErrNotExist) {
					t.Fatal(err)
				}
				want := c.calls
				if c.detaches {
					want = append(want[:len(want):len(want)], detachAll)
				}
				if !inOrder(string(called), want) || len(want) == 0 && len(called) > 0 || !c.detaches && strings.Contains(string(called), "detach") {
					t.Errorf("called\n%swant %q", called, want)
				}
				_, err = os.Stat(filepath.Join(root, "var/lib/hairpin"))
				if gone := errors.Is(err, os.ErrNotExist); gone != (c.removes && detach == "works") {
					t.Errorf("the state is gone: %v", gone)
				}
			})
		}
	}
}

// inOrder reports whether these lines are in text, in this order.
func inOrder(text string, lines []string) bool {
	for _, line := range lines {
		_, rest, found := strings.Cut(text, line+"\n")
		if !found {
			return false
		}
		text = rest
	}
	return true
}
