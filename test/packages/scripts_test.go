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
// fails if DETACH is "fails". The daemon runs if DAEMON is "runs".
func distribution(t *testing.T) (root string) {
	t.Helper()
	root = t.TempDir()
	installBusybox(t, root)
	noted := "#!/bin/sh\necho \"${0##*/} $*\" >>/called\n" +
		"case $* in *is-active*|*status|running) test \"$DAEMON\" = runs; exit ;; esac\n"
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
// state, and then the service no longer starts at a boot. If the programs cannot be detached, the script fails, so that the package stays. The
// state stays, too, and the service, which then runs as before. dpkg itself has the deb's service started again.
func TestPackageScripts(t *testing.T) {
	for _, c := range []struct {
		name, script, environment string
		calls                     []string // in this order, perhaps with others between them
		detaches, removes         bool     // whether the programs are detached, and the state is removed
		then, again               string   // after the programs were detached; after they could not be, if the daemon ran
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
		{name: "rpm, before a removal", script: "rpm.preun 0", calls: []string{"systemctl stop hairpin.service"}, detaches: true,
			then: "systemctl --no-reload disable hairpin.service", again: "systemctl start hairpin.service"},
		{name: "rpm, after a removal", script: "rpm.postun 0", calls: []string{reread}, removes: true},
		{name: "apk, before a removal", script: "apk.pre-deinstall", calls: []string{"rc-service --ifstarted hairpin stop"}, detaches: true, removes: true,
			then: "rc-update --quiet delete hairpin", again: "rc-service hairpin start"},
		{name: "apk, after an upgrade", script: "apk.post-upgrade", calls: []string{"rc-service --ifstarted hairpin restart"}},
		{name: "ipk, before a removal", script: "ipk.prerm", calls: []string{"hairpin stop"}, detaches: true, removes: true,
			then: "hairpin disable", again: "hairpin start"},
		{name: "ipk, before an upgrade", script: "ipk.prerm", environment: "PKG_UPGRADE=1"},
	} {
		for _, run := range []struct{ detach, daemon string }{{"works", "runs"}, {"works", "stopped"}, {"fails", "runs"}, {"fails", "stopped"}} {
			detach, daemon := run.detach, run.daemon
			if detach == "fails" && !c.detaches {
				continue
			}
			t.Run(c.name+", detach "+detach+", daemon "+daemon, func(t *testing.T) {
				root := distribution(t)
				place(t, root, "/var/lib/hairpin/generations/1.json", nil)
				command := exec.Command("chroot", append([]string{root, "/bin/sh"}, strings.Fields("/"+c.script)...)...)
				command.Env = []string{"PATH=/usr/bin:/bin", "DETACH=" + detach, "DAEMON=" + daemon, c.environment}
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
				for call, wanted := range map[string]bool{c.then: detach == "works", c.again: detach == "fails" && daemon == "runs"} {
					_, after, _ := strings.Cut(string(called), detachAll+"\n")
					if call != "" && (strings.Contains(string(called), call) != wanted || wanted && !strings.Contains(after, call+"\n")) {
						t.Errorf("called\n%safter %q, %q: want %v", called, detachAll, call, wanted)
					}
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
