// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coreos/go-systemd/v22/unit"
)

// unitWords returns the words of a key in the unit's first section, from all lines with this key.
func unitWords(t *testing.T, key string) (words []string) {
	t.Helper()
	return sectionWords(t, "Unit", key)
}

func sectionWords(t *testing.T, section, key string) (words []string) {
	t.Helper()
	file, err := os.Open("dist/hairpin.service")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	options, err := unit.DeserializeOptions(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, option := range options {
		if option.Section == section && option.Name == key {
			words = append(words, strings.Fields(option.Value)...)
		}
	}
	return words
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

// TestUnitNeedsFewCapabilities: the daemon has the capabilities of scenario 9 of test/torture, and CAP_CHOWN. What needs more is in the
// command before it.
func TestUnitNeedsFewCapabilities(t *testing.T) {
	got, want := sectionWords(t, "Service", "CapabilityBoundingSet"), []string{"CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "CAP_CHOWN"}
	if !slices.Equal(got, want) {
		t.Errorf("CapabilityBoundingSet=%q, want %q", got, want)
	}
	if got := sectionWords(t, "Service", "ExecStartPre"); !slices.Equal(got, []string{"+-/usr/local/bin/hairpin", "prepare"}) {
		t.Errorf("ExecStartPre=%q: nothing mounts the bpffs for a daemon without CAP_SYS_ADMIN", got)
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

// TestDropInLetsTheDaemonMount: mount(2) needs CAP_SYS_ADMIN, and the unit's filter has no system call for mounts.
func TestDropInLetsTheDaemonMount(t *testing.T) {
	options, err := unit.DeserializeOptions(bytes.NewReader(dropIn(t)))
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"CapabilityBoundingSet=CAP_SYS_ADMIN", "SystemCallFilter=@mount"} {
		name, value, _ := strings.Cut(key, "=")
		if !slices.ContainsFunc(options, func(o *unit.UnitOption) bool {
			return *o == unit.UnitOption{Section: "Service", Name: name, Value: value}
		}) {
			t.Errorf("the drop-in lacks %s", key)
		}
	}
}

// TestUnitIsValid runs systemd-analyze, which works without a running systemd. The drop-in is valid, too.
func TestUnitIsValid(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Fatal("there is no systemd-analyze: run \"make deps\"")
	}
	text, err := os.ReadFile("dist/hairpin.service")
	if err != nil {
		t.Fatal(err)
	}
	// The program need not be installed.
	path := filepath.Join(t.TempDir(), "hairpin.service")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(text), "/usr/local/bin/hairpin", "/bin/true")), 0o644); err != nil {
		t.Fatal(err)
	}
	dir := path + ".d"
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "override.conf"), dropIn(t), 0o644)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyze, "verify", path).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}
