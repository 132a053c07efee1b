// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hairpin/test/lab"
)

// fedora is a directory with busybox into which rpm installs.
type fedora struct {
	t    *testing.T
	host *lab.Host // what the scripts of the package run cannot reach the network of this machine
	root string
}

// rpm runs the real rpm.
func (f fedora) rpm(environment string, args ...string) lab.Result {
	f.t.Helper()
	r, err := f.host.Try(slices.Concat([]string{"env", environment, "rpm", "--root", f.root}, args)...)
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

// must runs rpm, and fails the test if rpm fails. It returns the output of rpm, and the calls of programs by the scripts of the package.
func (f fedora) must(args ...string) (out, called string) {
	f.t.Helper()
	if r := f.rpm("DAEMON=runs", args...); r.Code != 0 || strings.Contains(r.Stderr, "warning: %") {
		f.t.Fatalf("rpm %q: exit code %d\n%s%s", args, r.Code, r.Stdout, r.Stderr)
	} else {
		out = r.Stdout
	}
	return out, f.called()
}

// called returns the calls since the last time.
func (f fedora) called() string {
	f.t.Helper()
	name := filepath.Join(f.root, "called")
	calls, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if err = errors.Join(err, os.Remove(name)); err != nil {
		f.t.Fatal(err)
	}
	return string(calls)
}

func (f fedora) exists(path string) bool {
	_, err := os.Lstat(filepath.Join(f.root, path))
	return err == nil
}

// TestRPM: the real rpm installs the package, upgrades it, and erases it. A changed configuration file stays. While the programs cannot be
// detached, the package stays. An erasure leaves nothing but the changed file.
func TestRPM(t *testing.T) {
	older := t.TempDir()
	if err := build(older, previous, "rpm-amd64"); err != nil {
		t.Fatal(err)
	}
	oldRPM, newRPM := filepath.Join(older, "hairpin_"+previous+"_amd64.rpm"), packageFile(t, "rpm", "amd64")
	f := fedora{t, lab.NewHost(t, "fedora"), distribution(t)}
	place(t, f.root, "/etc/passwd", []byte("root:x:0:0::/root:/bin/sh\n"))
	place(t, f.root, "/etc/group", []byte("root:x:0:\n"))
	// The directories of Fedora's package filesystem.
	for _, dir := range []string{"lib/systemd/system", "share/bash-completion/completions", "share/zsh/site-functions", "share/fish/vendor_completions.d",
		"share/man/man5", "share/man/man8", "share/doc", "../var/lib"} {
		if err := os.MkdirAll(filepath.Join(f.root, "usr", dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	stub, err := os.ReadFile(filepath.Join(f.root, "usr/bin/hairpin"))
	if err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, f.root)

	// No package provides /bin/sh here.
	if _, calls := f.must("--install", "--nodeps", oldRPM); !inOrder(calls, []string{reread, "systemctl --no-reload preset hairpin.service"}) {
		t.Errorf("the installation called\n%s", calls)
	}
	if said, _ := f.must("--verify", "--nodeps", "hairpin"); said != "" {
		t.Errorf("files are not as in the package:\n%s", said)
	}
	for path := range expected("rpm") {
		if !f.exists(path) {
			t.Errorf("%s is missing", path)
		}
	}

	const changed = "# changed\n"
	place(t, f.root, configuration, []byte(changed))
	place(t, f.root, "/var/lib/hairpin/generations/1.json", nil)
	_, calls := f.must("--upgrade", "--nodeps", newRPM)
	if !inOrder(calls, []string{reread, "systemctl try-restart hairpin.service"}) || strings.Contains(calls, "stop") || strings.Contains(calls, "preset") {
		t.Errorf("the upgrade called\n%s", calls)
	}
	if got, _ := f.must("--query", "--queryformat", "%{VERSION}", "hairpin"); got != version {
		t.Errorf("after the upgrade the version is %q, want %q", got, version)
	}
	// Both versions have the same default. Where it differs, the flags matter: TestConfigurationIsKept.
	if got, err := os.ReadFile(filepath.Join(f.root, configuration)); err != nil || string(got) != changed {
		t.Errorf("the upgrade changed the configuration: %q, %v", got, err)
	}
	if !f.exists("/var/lib/hairpin/generations/1.json") {
		t.Error("the upgrade removed the state")
	}

	// From here on the program only notes its calls, and fails if DETACH is "fails".
	place(t, f.root, "/usr/bin/hairpin", stub)
	r := f.rpm("DETACH=fails", "--erase", "hairpin")
	if calls := f.called(); r.Code == 0 || !inOrder(calls, []string{detachAll}) || strings.Contains(calls, "disable") {
		t.Errorf("an erasure without detaching: exit code %d\n%s%scalled\n%s", r.Code, r.Stdout, r.Stderr, calls)
	}
	f.must("--query", "hairpin")
	if !f.exists("/usr/lib/systemd/system/hairpin.service") || !f.exists("/var/lib/hairpin") {
		t.Error("the package did not stay")
	}

	_, calls = f.must("--erase", "hairpin")
	if !inOrder(calls, []string{"systemctl stop hairpin.service", detachAll, "systemctl --no-reload disable hairpin.service", reread}) {
		t.Errorf("the erasure called\n%s", calls)
	}
	if r := f.rpm("DAEMON=runs", "--query", "hairpin"); r.Code == 0 {
		t.Errorf("the package is there after the erasure: %s", r.Stdout)
	}
	const kept = configuration + ".rpmsave"
	if !f.exists(kept) {
		t.Error("the erasure did not keep the changed configuration")
	}
	for path := range snapshot(t, f.root) {
		if !before[path] && path != kept && path != filepath.Dir(kept) {
			t.Errorf("%s is there after the erasure", path)
		}
	}
}
