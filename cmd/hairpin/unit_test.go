// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coreos/go-systemd/v22/unit"
)

const (
	daemonUnit  = "hairpin.service"
	prepareUnit = "hairpin-prepare.service"
)

// unitWords returns the words of a key in the unit's first section, from all lines with this key.
func unitWords(t *testing.T, key string) (words []string) {
	t.Helper()
	return sectionWords(t, "Unit", key)
}

func sectionWords(t *testing.T, section, key string) (words []string) {
	t.Helper()
	return wordsOf(optionsOf(t, daemonUnit), section, key)
}

func wordsOf(options []*unit.UnitOption, section, key string) (words []string) {
	for _, option := range options {
		if option.Section == section && option.Name == key {
			words = append(words, strings.Fields(option.Value)...)
		}
	}
	return words
}

func optionsOf(t *testing.T, name string) []*unit.UnitOption {
	t.Helper()
	file, err := os.Open(filepath.Join("dist", name))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	options, err := unit.DeserializeOptions(file)
	if err != nil {
		t.Fatal(err)
	}
	return options
}

// TestUnitComesBeforeTheNetwork: network-pre.target delays the network only if a unit pulls it in with
// Wants (systemd.special(7)).
func TestUnitComesBeforeTheNetwork(t *testing.T) {
	const target = "network-pre.target"
	if !slices.Contains(unitWords(t, "Wants"), target) || !slices.Contains(unitWords(t, "Before"), target) {
		t.Errorf("Wants=%q, Before=%q: both need %s", unitWords(t, "Wants"), unitWords(t, "Before"), target)
	}
	// basic.target may come after the network, for example with cloud-init.
	if got := unitWords(t, "DefaultDependencies"); !slices.Equal(got, []string{"no"}) {
		t.Errorf("DefaultDependencies=%q: a cycle with whatever wants the network before basic.target", got)
	}
	for _, key := range []string{"Conflicts", "Before"} {
		if !slices.Contains(unitWords(t, key), "shutdown.target") {
			t.Errorf("%s lacks shutdown.target: nothing stops the daemon", key)
		}
	}
	if !slices.Contains(unitWords(t, "After"), "systemd-sysctl.service") {
		t.Error("the daemon would look at forwarding before it is set")
	}
}

// TestUnitNeedsFewCapabilities: the daemon has the capabilities of scenario 9 of test/torture. What needs more is in the unit before it.
func TestUnitNeedsFewCapabilities(t *testing.T) {
	got, want := sectionWords(t, "Service", "CapabilityBoundingSet"), []string{"CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"}
	if !slices.Equal(got, want) {
		t.Errorf("CapabilityBoundingSet=%q, want %q", got, want)
	}
	for _, key := range []string{"Wants", "After"} {
		if !slices.Contains(unitWords(t, key), prepareUnit) {
			t.Errorf("%s lacks %s: nothing mounts the bpffs for a daemon without CAP_SYS_ADMIN", key, prepareUnit)
		}
	}
}

// TestPrepareUnitMountsForAll: in a mount namespace of the service, the bpffs would be mounted for this service alone. systemd also gives a
// command with "+" the namespace.
func TestPrepareUnitMountsForAll(t *testing.T) {
	options := optionsOf(t, prepareUnit)
	if got := wordsOf(options, "Service", "ExecStart"); !slices.Equal(got, []string{"/usr/local/bin/hairpin", "prepare"}) {
		t.Errorf("ExecStart=%q", got)
	}
	// With RemainAfterExit=, the unit would not run again before the next start of the daemon.
	if got := wordsOf(options, "Service", "RemainAfterExit"); got != nil {
		t.Errorf("RemainAfterExit=%q", got)
	}
	for _, o := range options {
		for _, word := range []string{"Protect", "Private", "Paths", "Directory", "Bind", "TemporaryFileSystem", "ProcSubset", "MountFlags", "DynamicUser"} {
			if strings.Contains(o.Name, word) {
				t.Errorf("%s= gives the service a mount namespace", o.Name)
			}
		}
	}
	if got := sectionWords(t, "Service", "ExecStartPre"); got != nil {
		t.Errorf("%s has a command before the daemon, %q, which cannot mount for others", daemonUnit, got)
	}
}

// dropIn returns the drop-in that doc/limits.md describes.
func dropIn(t *testing.T) []byte {
	t.Helper()
	text, err := os.ReadFile("doc/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "```ini\n")
	lines, _, ended := strings.Cut(rest, "```")
	if !found || !ended {
		t.Fatal("doc/limits.md has no drop-in")
	}
	return []byte(strings.ReplaceAll(lines, "\n  ", "\n"))
}

// TestDropInLetsTheDaemonLoad: only CAP_SYS_ADMIN may load programs that ask a module. A bpffs that the daemon mounted would be visible
// to the daemon alone, so the drop-in must not allow mount(2).
func TestDropInLetsTheDaemonLoad(t *testing.T) {
	options, err := unit.DeserializeOptions(bytes.NewReader(dropIn(t)))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(options, func(o *unit.UnitOption) bool {
		return *o == unit.UnitOption{Section: "Service", Name: "CapabilityBoundingSet", Value: "CAP_SYS_ADMIN"}
	}) {
		t.Error("the drop-in lacks CAP_SYS_ADMIN")
	}
	for _, o := range options {
		if strings.Contains(o.Value, "@mount") {
			t.Errorf("the drop-in has %s=%s", o.Name, o.Value)
		}
	}
}

// mostExposure is the highest exposure that systemd-analyze may find, in tenths.
const mostExposure = 20

// TestUnitIsHardened: "systemd-analyze security" fails if it finds more exposure than the threshold.
func TestUnitIsHardened(t *testing.T) {
	out, err := exec.Command(analyzer(t), "security", "--offline=true", "--no-pager", fmt.Sprintf("--threshold=%d", mostExposure),
		filepath.Join("dist", daemonUnit)).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("Overall exposure level")) {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
}

// TestUnitSurvives: the service manager starts the daemon again however it ended, and ends a daemon that hangs. Reload waits for the
// daemon's answer.
func TestUnitSurvives(t *testing.T) {
	for key, want := range map[string]string{
		"Type": "notify", "Restart": "always", "WatchdogSec": "60s", "ExecReload": "/usr/local/bin/hairpin reload",
	} {
		if got := strings.Join(sectionWords(t, "Service", key), " "); got != want {
			t.Errorf("%s=%s, want %s", key, got, want)
		}
	}
	// Otherwise systemd gives up after a few starts, for example while an interface's driver refuses.
	if got := sectionWords(t, "Unit", "StartLimitIntervalSec"); !slices.Equal(got, []string{"0"}) {
		t.Errorf("StartLimitIntervalSec=%q, want 0", got)
	}
}

func analyzer(t *testing.T) string {
	t.Helper()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Fatal("there is no systemd-analyze: run \"make deps\"")
	}
	return analyze
}

// TestUnitIsValid runs systemd-analyze, which works without a running systemd. The drop-in is valid, too.
func TestUnitIsValid(t *testing.T) {
	paths := make(map[string]string)
	at := t.TempDir()
	for _, name := range []string{daemonUnit, prepareUnit} {
		text, err := os.ReadFile(filepath.Join("dist", name))
		if err != nil {
			t.Fatal(err)
		}
		paths[name] = filepath.Join(at, name)
		// The program need not be installed.
		if err := os.WriteFile(paths[name], []byte(strings.ReplaceAll(string(text), "/usr/local/bin/hairpin", "/bin/true")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	path := paths[daemonUnit]
	dir := path + ".d"
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "override.conf"), dropIn(t), 0o644)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyzer(t), "verify", path, paths[prepareUnit]).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}
