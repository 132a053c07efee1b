// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hairpin/test/debian"
	"hairpin/test/home"
	"hairpin/test/lab"
)

// previous is the version of the package before.
const previous = "0.0.1~test"

// router is a Debian on which hairpin is installed.
type router struct {
	*debian.Machine
	t *testing.T
}

func (d router) journal() string { return d.Journal("hairpin*") }

// property returns a property of hairpin.service.
func (d router) property(name string) string {
	d.t.Helper()
	return strings.TrimSpace(d.Run("systemctl", "show", "--value", "--property="+name, "hairpin.service"))
}

// copyIn copies a file to /root of the Debian, and returns its path there.
func (d router) copyIn(name string) string {
	d.t.Helper()
	data, err := os.ReadFile(name)
	if err == nil {
		err = os.WriteFile(filepath.Join(d.Root, "root", filepath.Base(name)), data, 0o644)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return "/root/" + filepath.Base(name)
}

func (d router) write(path, text string) {
	d.t.Helper()
	debian.Write(d.t, d.Root, path, text, 0o644)
}

// install installs a package as users do.
func (d router) install(name string, options ...string) string {
	d.t.Helper()
	return d.Run(slices.Concat([]string{"apt-get", "--quiet", "--assume-yes"}, options, []string{"install", d.copyIn(name)})...)
}

// eventually waits until the service's property is as wanted.
func (d router) eventually(name string, wanted func(string) bool) {
	d.t.Helper()
	lab.Eventually(d.t, 2*lab.Patience, func() error {
		if now := d.property(name); !wanted(now) {
			return fmt.Errorf("%s=%s\n%s", name, now, d.journal())
		}
		return nil
	})
}

func is(want string) func(string) bool { return func(got string) bool { return got == want } }

// TestDebian installs the deb on a Debian with systemd, as a new user would, uses it, upgrades and downgrades it under traffic, and
// purges it.
func TestDebian(t *testing.T) {
	root := debian.Make(t)
	older := t.TempDir()
	if err := build(older, previous, "deb-amd64"); err != nil {
		t.Fatal(err)
	}
	oldDeb, newDeb := filepath.Join(older, "hairpin_"+previous+"_amd64.deb"), packageFile(t, "deb", "amd64")

	n := lab.NewNetwork(t)
	n.Server.ServeTCP(":8080")
	n.Server.ServeUDP(":5300")
	d := router{debian.Boot(t, n.Router, root), t}
	before := snapshot(t, root)

	said := d.install(oldDeb)
	if !strings.Contains(said, configuration) {
		t.Errorf("the installation does not name the configuration file:\n%s", said)
	}
	if got := d.property("UnitFileState") + " " + d.property("ActiveState"); got != "enabled active" {
		t.Fatalf("after the installation the service is %q\n%s", got, d.journal())
	}

	// ppp9 is absent, also at the boot.
	config := strings.Replace(home.Config("tc", ""), `wan = ["wan0"]`, `wan = ["wan0", "ppp9"]`, 1)
	if !strings.Contains(config, "ppp9") {
		t.Fatal("no wan0 in the configuration")
	}
	d.write(configuration, config)
	d.Run("systemctl", "reload", "hairpin")
	d.Run("hairpin", "forward", "add", "web", "tcp", "80", "to", lab.Server+":8080")
	d.Run("hairpin", "forward", "add", "echo", "udp", "5300", "to", lab.Server+":5300")
	d.Run("hairpin", "save")
	const status = "attached: wan0, lan0, lan1, lo; not there yet: ppp9"
	d.eventually("StatusText", is(status))
	d.Machine = d.Reboot()
	d.eventually("StatusText", is(status))
	wantBeforeNetwork(t, d)
	wantPriorities(t, d)
	inside, outside := home.Waiting(t, n.Client), home.Waiting(t, n.Internet)
	works := func(when string) {
		t.Helper()
		for name, c := range map[string]*lab.Conn{"the LAN": inside, "the Internet": outside} {
			if err := c.Echo(1000); err != nil {
				t.Errorf("%s: a connection from %s: %v", when, name, err)
			}
		}
		if t.Failed() {
			t.Fatal(d.journal())
		}
	}
	works("at first")

	d.write(configuration, config+"garbage\n")
	if r, err := d.Try("systemctl", "reload", "hairpin"); err != nil || r.Code == 0 {
		t.Errorf("a reload with a broken file: exit code %d, %v", r.Code, err)
	}
	d.eventually("StatusText", func(now string) bool { return strings.Contains(now, configuration+":") })
	works("after a broken file")
	d.write(configuration, config)
	d.Run("systemctl", "reload", "hairpin")

	for _, step := range []struct {
		name, deb, version string
		options            []string
	}{{"upgrade", newDeb, version, nil}, {"downgrade", oldDeb, previous, []string{"--allow-downgrades"}}, {"upgrade again", newDeb, version, nil}} {
		load := n.Client.StartLoad(lab.External+":80", lab.External+":5300")
		pid := d.property("MainPID")
		d.install(step.deb, step.options...)
		load.Advance(10)
		load.Stop()
		works(step.name)
		if now := d.property("MainPID"); now == pid {
			t.Errorf("%s: the daemon was not started again", step.name)
		}
		if got := d.Run("hairpin", "version"); !strings.Contains(got, step.version) {
			t.Errorf("%s: the version is %q", step.name, got)
		}
		if kept, err := os.ReadFile(filepath.Join(root, configuration)); err != nil || string(kept) != config {
			t.Errorf("%s: the configuration was changed, %v:\n%s", step.name, err, kept)
		}
		if got := d.Run("hairpin", "forward"); !strings.Contains(got, "web") {
			t.Errorf("%s: the forward is gone:\n%s", step.name, got)
		}
	}

	survives(t, d, works)

	d.Run("apt-get", "--quiet", "--assume-yes", "purge", "hairpin")
	for _, dev := range []string{"wan0", "lan0", "lan1", "lo"} {
		if tc, xdp := n.Router.Attached(dev); len(tc) > 0 || xdp != 0 {
			t.Errorf("programs are on %s after the purge", dev)
		}
		for _, qdisc := range n.Router.Qdiscs(dev) {
			if kind := qdisc.Type(); kind == "clsact" || kind == "ingress" {
				t.Errorf("a qdisc %s is on %s after the purge", kind, dev)
			}
		}
	}
	if pins := strings.Fields(d.Run("ls", "--ignore=*.debug", "/sys/fs/bpf")); len(pins) > 0 {
		t.Errorf("the bpffs has %q after the purge", pins)
	}
	if r, err := d.Try("test", "-e", "/run/hairpin"); err != nil || r.Code == 0 {
		t.Errorf("/run/hairpin is there after the purge, %v", err)
	}
	for path := range snapshot(t, root) {
		if !before[path] {
			t.Errorf("%s is there after the purge", path)
		}
	}
	if got, err := d.Try("systemctl", "list-unit-files", "--no-legend", "hairpin*"); err != nil || strings.TrimSpace(got.Stdout) != "" {
		t.Errorf("units after the purge: %q, %v", got.Stdout, err)
	}
}

// wantPriorities: the journal knows which lines of the daemon are warnings, and who ran which command.
func wantPriorities(t *testing.T, d router) {
	t.Helper()
	d.Run("journalctl", "--sync")
	show := func(options ...string) string {
		t.Helper()
		return d.Run(append([]string{"journalctl", "--no-pager", "--output=cat", "--unit=hairpin"}, options...)...)
	}
	const warning, info = "no such interface yet", "serving metrics"
	if got := show("--priority=warning"); !strings.Contains(got, warning) || strings.Contains(got, info) {
		t.Errorf("the warnings of the daemon are\n%s", got)
	}
	all := show()
	for _, want := range []string{info, `command="forward add web tcp 80 to ` + lab.Server + `:8080" uid=0`} {
		if !strings.Contains(all, want) {
			t.Errorf("the journal lacks %s:\n%s", want, all)
		}
	}
}

// wantBeforeNetwork: at the boot the forwards were there before the network.
func wantBeforeNetwork(t *testing.T, d router) {
	t.Helper()
	var ready, network int64
	const key = "--property=ActiveEnterTimestampMonotonic"
	_, err := fmt.Sscan(d.Run("systemctl", "show", "--value", key, "hairpin.service"), &ready)
	_, failed := fmt.Sscan(d.Run("systemctl", "show", "--value", key, "network-pre.target"), &network)
	if err = errors.Join(err, failed); err != nil || ready == 0 || network < ready {
		t.Errorf("the daemon was ready at %d us, and the network could begin at %d us, %v", ready, network, err)
	}
}

// survives kills the daemon, stops it in the middle, and starts it again, as faults would. Connections stay in each case.
func survives(t *testing.T, d router, works func(when string)) {
	t.Helper()
	pid := d.property("MainPID")
	d.Run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "hairpin")
	d.eventually("MainPID", func(now string) bool { return now != "0" && now != pid })
	d.eventually("ActiveState", is("active"))
	works("after SIGKILL")

	// A daemon that hangs sends no WATCHDOG=1. The unit's own time would make the test long.
	d.write("/etc/systemd/system/hairpin.service.d/test.conf", "[Service]\nWatchdogSec=2s\nTimeoutAbortSec=1s\n")
	d.Run("systemctl", "daemon-reload")
	d.Run("systemctl", "restart", "hairpin")
	pid = d.property("MainPID")
	d.Run("systemctl", "kill", "--kill-whom=main", "--signal=STOP", "hairpin")
	d.eventually("MainPID", func(now string) bool { return now != "0" && now != pid })
	d.eventually("ActiveState", is("active"))
	works("after the daemon hung")
	if err := os.RemoveAll(filepath.Join(d.Root, "etc/systemd/system/hairpin.service.d")); err != nil {
		t.Fatal(err)
	}
	d.Run("systemctl", "daemon-reload")

	// The bpffs is unmounted under the running daemon. What is mounted outside the service's mount namespace appears in it.
	d.Run("umount", "--lazy", "/sys/fs/bpf/hairpin")
	d.Run("hairpin", "prepare")
	lab.Eventually(t, 2*lab.Patience, func() error {
		r, err := d.Try("hairpin", "forward")
		if err == nil && !strings.Contains(r.Stdout, "web") {
			err = fmt.Errorf("no forward: %s%s", r.Stdout, r.Stderr)
		}
		return err
	})
	works("after the bpffs was unmounted")

	d.Run("systemctl", "stop", "hairpin")
	works("while the service is stopped")
	d.Run("systemctl", "start", "hairpin")
	works("after the service was started")
}

// snapshot returns the paths and the users in root that a package could leave. It leaves out what the package manager and systemd write
// about every package.
func snapshot(t *testing.T, root string) map[string]bool {
	t.Helper()
	paths := make(map[string]bool)
	ignored := []string{"/root", "/proc", "/sys", "/dev", "/tmp", "/var/tmp", "/var/log", "/var/cache", "/var/lib/dpkg", "/var/lib/apt", "/var/lib/rpm", "/var/lib/systemd", "/run"}
	err := filepath.WalkDir(root, func(name string, _ fs.DirEntry, err error) error {
		path := strings.TrimPrefix(name, root)
		switch {
		case slices.Contains(ignored, path):
			return fs.SkipDir
		case errors.Is(err, fs.ErrNotExist): // it has gone meanwhile
			return nil
		case err != nil:
			return err
		}
		paths[path] = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	users, err := os.ReadFile(filepath.Join(root, "etc/passwd"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(users) {
		paths["user "+string(line)] = true
	}
	return paths
}
