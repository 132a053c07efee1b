// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// previous is the version of the package before.
const previous = "0.0.1~test"

// debian is a Debian with systemd as its first process, in the network namespace of a host.
type debian struct {
	t    *testing.T
	host *lab.Host
	root string
	init string // pid of systemd

	machine *lab.Process
	bpffs   string
}

// debootstrapped returns the directory of a new Debian, from the mirror and of the release of this machine.
func debootstrapped(t *testing.T) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	release := strings.TrimSpace(string(output(t, "sh", "-e", "-c", `. /etc/os-release && echo "$VERSION_CODENAME"`)))
	mirrors := strings.Fields(string(output(t, "apt-get", "indextargets", "--format", "$(SITE)", "Identifier: Packages", "Component: main",
		"Origin: Debian", "Codename: "+release)))
	if len(mirrors) == 0 {
		t.Fatalf("apt has no list of packages of Debian %s: run \"apt-get update\"", release)
	}
	mirror := mirrors[0]
	if list, found := strings.CutPrefix(mirror, "mirror+file:"); found {
		text, err := os.ReadFile(list)
		if err != nil {
			t.Fatal(err)
		}
		if mirrors = strings.Fields(string(text)); len(mirrors) == 0 {
			t.Fatalf("%s names no mirror", list)
		}
		mirror = mirrors[0]
	}
	output(t, "debootstrap", "--variant=minbase", "--include=systemd,systemd-sysv,dbus", release, root, mirror)
	return root
}

// boot starts the Debian in root on a host, and returns when its boot is complete. Its /sys/fs/bpf is a bpffs of its own.
func boot(t *testing.T, host *lab.Host, root string) *debian {
	t.Helper()
	bpffs := t.TempDir()
	if err := unix.Mount("bpf", bpffs, "bpf", 0, "mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(bpffs, unix.MNT_DETACH) })
	// systemd needs cgroups that it may write. Without --register and with --keep-unit, nspawn needs no systemd outside.
	machine := host.StartWith([]string{"SYSTEMD_NSPAWN_API_VFS_WRITABLE=1"}, "", "systemd-nspawn", "--quiet", "--directory="+root,
		"--machine="+fmt.Sprintf("hairpin-test-%d", os.Getpid()), "--register=no", "--keep-unit", "--boot", "--console=pipe",
		"--network-namespace-path=/proc/self/ns/net", "--capability=all", "--system-call-filter=bpf perf_event_open @mount",
		"--bind="+bpffs+":/sys/fs/bpf")
	d := &debian{t: t, host: host, root: root, machine: machine, bpffs: bpffs}
	t.Cleanup(func() {
		machine.Signal(unix.SIGTERM)
		machine.Signal(unix.SIGTERM) // the second one does not wait for the services
		machine.Wait()
	})
	lab.Eventually(t, 3*lab.Patience, func() error {
		select {
		case <-machine.Done():
			t.Fatalf("systemd-nspawn: ended\n%s%s", machine.Stdout, machine.Stderr)
		default:
		}
		found, err := exec.Command("pgrep", "--parent", fmt.Sprint(machine.Pid()), "systemd").Output()
		if d.init = strings.TrimSpace(string(found)); err != nil || d.init == "" {
			return fmt.Errorf("no systemd yet\n%s%s", machine.Stdout, machine.Stderr)
		}
		state, err := d.try("systemctl", "is-system-running")
		if said := strings.TrimSpace(state.Stdout); err == nil && said != "running" && said != "degraded" {
			err = fmt.Errorf("the system is %q\n%s", said, state.Stderr)
		}
		return err
	})
	return d
}

// reboot ends all services as systemd does, and boots again. The programs and tables in the kernel end, as at a reboot.
func (d *debian) reboot() *debian {
	d.t.Helper()
	d.run("systemctl", "--no-block", "poweroff")
	d.machine.Wait()
	if err := unix.Unmount(d.bpffs, unix.MNT_DETACH); err != nil {
		d.t.Fatal(err)
	}
	return boot(d.t, d.host, d.root)
}

func (d *debian) try(args ...string) (lab.Result, error) {
	path := "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
	return d.host.Try(slices.Concat([]string{"nsenter", "--target", d.init, "--all", "env", "-i", path, "DEBIAN_FRONTEND=noninteractive"}, args)...)
}

// run runs a command, which must succeed, and returns its standard output.
func (d *debian) run(args ...string) string {
	d.t.Helper()
	r, err := d.try(args...)
	if err != nil {
		d.t.Fatal(err)
	}
	if r.Code != 0 {
		d.t.Fatalf("%q: exit code %d\n%s%s\n%s", args, r.Code, r.Stdout, r.Stderr, d.journal())
	}
	return r.Stdout
}

func (d *debian) journal() string {
	r, _ := d.try("journalctl", "--boot", "--no-pager", "--lines=40", "--unit=hairpin*")
	return r.Stdout
}

// property returns a property of hairpin.service.
func (d *debian) property(name string) string {
	d.t.Helper()
	return strings.TrimSpace(d.run("systemctl", "show", "--value", "--property="+name, "hairpin.service"))
}

// copyIn copies a file to /root of the Debian, and returns its path there.
func (d *debian) copyIn(name string) string {
	d.t.Helper()
	data, err := os.ReadFile(name)
	if err == nil {
		err = os.WriteFile(filepath.Join(d.root, "root", filepath.Base(name)), data, 0o644)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return "/root/" + filepath.Base(name)
}

func (d *debian) write(path, text string) {
	d.t.Helper()
	name := filepath.Join(d.root, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
		d.t.Fatal(err)
	}
}

// install installs a package as users do.
func (d *debian) install(name string, options ...string) string {
	d.t.Helper()
	return d.run(slices.Concat([]string{"apt-get", "--quiet", "--assume-yes"}, options, []string{"install", d.copyIn(name)})...)
}

// eventually waits until the service's property is as wanted.
func (d *debian) eventually(name string, wanted func(string) bool) {
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
	root := debootstrapped(t)
	older := t.TempDir()
	if err := build(older, previous, "deb-amd64"); err != nil {
		t.Fatal(err)
	}
	oldDeb, newDeb := filepath.Join(older, "hairpin_"+previous+"_amd64.deb"), packageFile(t, "deb", "amd64")

	n := lab.NewNetwork(t)
	n.Server.ServeTCP(":8080")
	n.Server.ServeUDP(":5300")
	d := boot(t, n.Router, root)
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
	d.run("systemctl", "reload", "hairpin")
	d.run("hairpin", "forward", "add", "web", "tcp", "80", "to", lab.Server+":8080")
	d.run("hairpin", "forward", "add", "echo", "udp", "5300", "to", lab.Server+":5300")
	d.run("hairpin", "save")
	const status = "attached: wan0, lan0, lan1, lo; not there yet: ppp9"
	d.eventually("StatusText", is(status))
	d = d.reboot()
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
	if r, err := d.try("systemctl", "reload", "hairpin"); err != nil || r.Code == 0 {
		t.Errorf("a reload with a broken file: exit code %d, %v", r.Code, err)
	}
	d.eventually("StatusText", func(now string) bool { return strings.Contains(now, configuration+":") })
	works("after a broken file")
	d.write(configuration, config)
	d.run("systemctl", "reload", "hairpin")

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
		if got := d.run("hairpin", "version"); !strings.Contains(got, step.version) {
			t.Errorf("%s: the version is %q", step.name, got)
		}
		if kept, err := os.ReadFile(filepath.Join(root, configuration)); err != nil || string(kept) != config {
			t.Errorf("%s: the configuration was changed, %v:\n%s", step.name, err, kept)
		}
		if got := d.run("hairpin", "forward"); !strings.Contains(got, "web") {
			t.Errorf("%s: the forward is gone:\n%s", step.name, got)
		}
	}

	survives(t, d, works)

	d.run("apt-get", "--quiet", "--assume-yes", "purge", "hairpin")
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
	if pins := strings.Fields(d.run("ls", "--ignore=*.debug", "/sys/fs/bpf")); len(pins) > 0 {
		t.Errorf("the bpffs has %q after the purge", pins)
	}
	if r, err := d.try("test", "-e", "/run/hairpin"); err != nil || r.Code == 0 {
		t.Errorf("/run/hairpin is there after the purge, %v", err)
	}
	for path := range snapshot(t, root) {
		if !before[path] {
			t.Errorf("%s is there after the purge", path)
		}
	}
	if got, err := d.try("systemctl", "list-unit-files", "--no-legend", "hairpin*"); err != nil || strings.TrimSpace(got.Stdout) != "" {
		t.Errorf("units after the purge: %q, %v", got.Stdout, err)
	}
}

// wantPriorities: the journal knows which lines of the daemon are warnings, and who ran which command.
func wantPriorities(t *testing.T, d *debian) {
	t.Helper()
	d.run("journalctl", "--sync")
	show := func(options ...string) string {
		t.Helper()
		return d.run(append([]string{"journalctl", "--no-pager", "--output=cat", "--unit=hairpin"}, options...)...)
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
func wantBeforeNetwork(t *testing.T, d *debian) {
	t.Helper()
	var ready, network int64
	const key = "--property=ActiveEnterTimestampMonotonic"
	_, err := fmt.Sscan(d.run("systemctl", "show", "--value", key, "hairpin.service"), &ready)
	_, failed := fmt.Sscan(d.run("systemctl", "show", "--value", key, "network-pre.target"), &network)
	if err = errors.Join(err, failed); err != nil || ready == 0 || network < ready {
		t.Errorf("the daemon was ready at %d us, and the network could begin at %d us, %v", ready, network, err)
	}
}

// survives kills the daemon, stops it in the middle, and starts it again, as faults would. Connections stay in each case.
func survives(t *testing.T, d *debian, works func(when string)) {
	t.Helper()
	pid := d.property("MainPID")
	d.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "hairpin")
	d.eventually("MainPID", func(now string) bool { return now != "0" && now != pid })
	d.eventually("ActiveState", is("active"))
	works("after SIGKILL")

	// A daemon that hangs sends no WATCHDOG=1. The unit's own time would make the test long.
	d.write("/etc/systemd/system/hairpin.service.d/test.conf", "[Service]\nWatchdogSec=2s\nTimeoutAbortSec=1s\n")
	d.run("systemctl", "daemon-reload")
	d.run("systemctl", "restart", "hairpin")
	pid = d.property("MainPID")
	d.run("systemctl", "kill", "--kill-whom=main", "--signal=STOP", "hairpin")
	d.eventually("MainPID", func(now string) bool { return now != "0" && now != pid })
	d.eventually("ActiveState", is("active"))
	works("after the daemon hung")
	if err := os.RemoveAll(filepath.Join(d.root, "etc/systemd/system/hairpin.service.d")); err != nil {
		t.Fatal(err)
	}
	d.run("systemctl", "daemon-reload")

	// The bpffs is unmounted under the running daemon. What is mounted outside the service's mount namespace appears in it.
	d.run("umount", "--lazy", "/sys/fs/bpf/hairpin")
	d.run("hairpin", "prepare")
	lab.Eventually(t, 2*lab.Patience, func() error {
		r, err := d.try("hairpin", "forward")
		if err == nil && !strings.Contains(r.Stdout, "web") {
			err = fmt.Errorf("no forward: %s%s", r.Stdout, r.Stderr)
		}
		return err
	})
	works("after the bpffs was unmounted")

	d.run("systemctl", "stop", "hairpin")
	works("while the service is stopped")
	d.run("systemctl", "start", "hairpin")
	works("after the service was started")
}

// snapshot returns the paths and the users in root that a package could leave. It leaves out what the package manager and systemd write
// about every package.
func snapshot(t *testing.T, root string) map[string]bool {
	t.Helper()
	paths := make(map[string]bool)
	ignored := []string{"/root", "/proc", "/sys", "/dev", "/tmp", "/var/tmp", "/var/log", "/var/cache", "/var/lib/dpkg", "/var/lib/apt", "/var/lib/systemd", "/run"}
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
