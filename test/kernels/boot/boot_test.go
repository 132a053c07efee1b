// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const said = "== begin load\r\n" +
	"=== RUN   TestLoad\r\n--- PASS: TestLoad (1.00s)\r\nPASS\r\n" +
	"== end load 0\r\n" +
	"== begin devices\r\n" +
	"    devices_test.go:1: it is broken\r\n" +
	"--- FAIL: TestDevices (2.00s)\r\n" +
	"    --- PASS: TestDevices/veth (1.00s)\r\n" +
	"        --- PASS: TestDevices/veth/tc (1.00s)\r\n" +
	"    --- PASS: TestDevices/bond (1.00s)\r\n" +
	"        --- FAIL: TestDevices/bond/xdp (1.00s)\r\n" +
	"    --- SKIP: TestDevices/PPP (0.00s)\r\n" +
	"== end devices 1\r\n" +
	"== begin T\r\n" +
	"--- PASS: TestCorpus (1.00s)\r\n"

// A test has passed if it says so, and nothing within it failed or was skipped; a run, if it also came
// to its end.
func TestListen(t *testing.T) {
	var told strings.Builder
	outcomes, err := listen(strings.NewReader(said), &told)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		run, test string
		passed    bool
	}{
		{"load", "", true},
		{"load", "TestLoad", true},
		{"load", "TestLoa", false},
		{"devices", "", false},
		{"devices", "TestDevices/veth", true},
		{"devices", "TestDevices/bond", false},
		{"devices", "TestDevices/PPP", false},
		{"devices", "TestDevices/tun", false},
		{"T", "", false},
		{"N", "", false},
	} {
		if got := outcomes[want.run].passed(want.test); got != want.passed {
			t.Errorf("%s %s: passed %v, want %v", want.run, want.test, got, want.passed)
		}
	}
	if !strings.Contains(told.String(), "it is broken") {
		t.Errorf("it does not say what failed:\n%s", &told)
	}
	if err := (guest{runs: runsFor(kernels[1], []string{"load", "devices", "T"})}).complete(outcomes); err == nil || !strings.Contains(err.Error(), `"T"`) {
		t.Errorf("complete: %v, want a word of the run that has no end", err)
	}
}

// A run without a test, as by a misspelt pattern, has not passed.
func TestListenToNothing(t *testing.T) {
	outcomes, err := listen(strings.NewReader("== begin N\ntesting: warning: no tests to run\nPASS\n== end N 0\n"), io.Discard)
	if err != nil || outcomes["N"].passed("") {
		t.Errorf("passed %v, error %v", outcomes["N"].passed(""), err)
	}
}

func TestFormat(t *testing.T) {
	outcomes, err := listen(strings.NewReader(said), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	rows := []row{
		{kernel: kernels[0], runs: runsFor(kernels[0], nil), version: "5.10.0-32-amd64", outcomes: outcomes},
		{kernel: kernels[1], runs: runsFor(kernels[1], nil), version: "6.12.117+deb13-amd64", outcomes: outcomes},
		{kernel: kernels[4], runs: runsFor(kernels[4], []string{"load", "T"}), version: "7.2.13-amd64", outcomes: outcomes},
		{kernel: kernels[5], runs: runsFor(kernels[5], nil), version: "6.1.0-50-arm64", outcomes: outcomes},
	}
	lines := strings.Split(format(rows), "\n")
	want := []string{
		"| 5.10, bullseye | refused |" + strings.Repeat("  |", 27),
		"| 6.12, bookworm | ok |" + strings.Repeat(" FAILED |", 16) + " ok |" + strings.Repeat(" FAILED |", 10),
		"| 7.2, unstable | ok |" + strings.Repeat("  |", 6) + " FAILED |" + strings.Repeat("  |", 20),
		"| 6.1, bookworm, arm64 | ok |" + strings.Repeat("  |", 5) + strings.Repeat(" FAILED |", 3) + strings.Repeat("  |", 19),
	}
	if diff := cmp.Diff(want, lines[2:6]); diff != "" {
		t.Error(diff)
	}
	if err := failures(rows); err == nil || strings.Contains(err.Error(), "5.10") || !strings.Contains(err.Error(), "6.12") {
		t.Errorf("failures: %v", err)
	}
}

// The rows of other kernels stay, in the order of all kernels; those of a table with other columns do not.
func TestUpdate(t *testing.T) {
	rowOf := func(i int, version string) row { return row{kernel: kernels[i], version: version} }
	before := preface + format([]row{rowOf(1, "6.1.0"), rowOf(4, "7.1.0"), rowOf(5, "6.1.0")})
	want := format([]row{rowOf(1, "6.1.0"), rowOf(2, "6.12.0"), rowOf(4, "7.2.0"), rowOf(5, "6.1.0")})
	run := []row{rowOf(4, "7.2.0"), rowOf(2, "6.12.0")}
	if diff := cmp.Diff(want, update(before, run)); diff != "" {
		t.Error(diff)
	}
	older := strings.Replace(before, "| load |", "|", 1)
	if diff := cmp.Diff(format([]row{rowOf(2, "6.12.0"), rowOf(4, "7.2.0")}), update(older, run)); diff != "" {
		t.Error(diff)
	}
}

// Debian packs kernels in two layouts; place returns equal paths for both, and leaves out files that a guest does not need.
func TestPlace(t *testing.T) {
	for name, want := range map[string]string{
		"./boot/vmlinuz-6.1.0-50-amd64":                                     "vmlinuz",
		"./boot/config-6.1.0-50-amd64":                                      "",
		"./usr/lib/modules/7.2.13-amd64/vmlinuz":                            "vmlinuz",
		"./lib/modules/6.1.0/modules.builtin":                               "root/usr/lib/modules/6.1.0/modules.builtin",
		"./lib/modules/6.1.0/kernel/drivers/net/veth.ko":                    "root/usr/lib/modules/6.1.0/kernel/drivers/net/veth.ko",
		"./usr/lib/modules/7.2/kernel/drivers/net/ppp/ppp_generic.ko.xz":    "root/usr/lib/modules/7.2/kernel/drivers/net/ppp/ppp_generic.ko.xz",
		"./usr/lib/modules/7.2/kernel/net/bridge/bridge.ko.xz":              "root/usr/lib/modules/7.2/kernel/net/bridge/bridge.ko.xz",
		"./usr/lib/modules/7.2/kernel/drivers/net/ethernet/intel/e1000.ko":  "",
		"./usr/lib/modules/7.2/kernel/drivers/gpu/drm/drm.ko":               "",
		"./usr/share/doc/linux-image-6.1.0-50-amd64/changelog.Debian.gz":    "",
		"./usr/lib/modules/7.2/kernel/arch/x86/crypto/curve25519-x86_64.ko": "root/usr/lib/modules/7.2/kernel/arch/x86/crypto/curve25519-x86_64.ko",
	} {
		if got := place(name); got != want {
			t.Errorf("%s goes to %q, want %q", name, got, want)
		}
	}
}

func TestPlaceProgram(t *testing.T) {
	for name, want := range map[string]string{
		"./bin/ip":                                "root/usr/bin/ip",
		"./sbin/modprobe":                         "root/usr/sbin/modprobe",
		"./lib/ld-linux-aarch64.so.1":             "root/usr/lib/ld-linux-aarch64.so.1",
		"./usr/lib/aarch64-linux-gnu/libz.so.1.2": "root/usr/lib/aarch64-linux-gnu/libz.so.1.2",
		"./usr/share/doc/iproute2/copyright":      "",
		"./etc/iproute2/rt_tables":                "",
	} {
		if got := placeProgram(name); got != want {
			t.Errorf("%s goes to %q, want %q", name, got, want)
		}
	}
}

func TestDepends(t *testing.T) {
	const about = "Package: linux-image-amd64\nDepends: linux-base-amd64 (= 7.2.13-1), linux-image-7.2.13+deb14-amd64 (= 7.2.13-1)\n" +
		"Description: linux-image-9.9-amd64\n"
	if got := imageName.FindString(depends(about)); got != "linux-image-7.2.13+deb14-amd64" {
		t.Errorf("image %q", got)
	}
}

func TestSelectKernels(t *testing.T) {
	selected, err := selectKernels([]string{"newest", "6.1"})
	if err != nil || len(selected) != 2 || selected[0].suite != "unstable" || selected[1].suite != "bookworm" {
		t.Errorf("selected %v, error %v", selected, err)
	}
	if _, err := selectKernels([]string{"2.6"}); err == nil || !strings.Contains(err.Error(), "backports, newest") {
		t.Errorf("error %v, want one that lists what there is", err)
	}
	if all, err := selectKernels(nil); err != nil || len(all) != len(kernels) {
		t.Errorf("selected %v, error %v", all, err)
	}
}
