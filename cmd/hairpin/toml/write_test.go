// SPDX-License-Identifier: Apache-2.0

package toml

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"hairpin/maps/rule"
)

func parsed(t *testing.T, text string) []rule.Forward {
	t.Helper()
	c, err := Parse("x.toml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c.Forwards
}

func TestWriteIsReadBack(t *testing.T) {
	dir := t.TempDir()
	main := filepath.Join(dir, "hairpin.toml")
	writeFile(t, main, "version = 1\n[interfaces]\nwan = [\"wan0\"]\nlan = [\"lan0\"]\n")
	path := filepath.Join(dir, DropInDir, "50-cli.toml")
	parts, err := Parse("x.toml", []byte(full))
	if err != nil {
		t.Fatal(err)
	}
	want := parts.All()
	if err := Write(path, want); err != nil {
		t.Fatal(err)
	}
	c, err := Load(main)
	if err != nil {
		t.Fatal(err)
	}
	// The target's ports are always written.
	want[1].TargetPort, want[7].TargetPort, want[8].TargetPort = 6000, 123, 443
	if diff := cmp.Diff(want, c.All(), append(values, cmpopts.IgnoreFields(rule.Forward{}, "Source"))...); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	text, err := os.ReadFile(path)
	if err != nil || !strings.HasPrefix(string(text), "# Written by `hairpin save`") {
		t.Errorf("%s, %v", text, err)
	}
	if err := Write(path, nil); err != nil {
		t.Fatal(err)
	}
	if c, err := Load(main); err != nil || len(c.Forwards) != 0 {
		t.Errorf("%d forwards, %v", len(c.Forwards), err)
	}
}

func TestWriteIsReadBackOfIPv6(t *testing.T) {
	main := filepath.Join(t.TempDir(), "hairpin.toml")
	writeFile(t, main, "version = 1\ninterfaces.wan = [\"wan0\"]\n")
	const forward = "[[forward]]\nprotocol = \"tcp\"\n"
	want := parsed(t, "version = 1\ninterfaces.wan = [\"wan0\"]\n"+
		forward+"name = \"a\"\nexternal = \"2001:db8::1\"\nport = \"6000-6010\"\nto = \"[fd00::20]:7000\"\nfrom = [\"2001:db8::/32\", \"fd00::9\"]\n"+
		forward+"name = \"b\"\nexternal = \"wan0\"\nto = \"fd00::20\"\n"+
		forward+"name = \"c\"\nexternal = \"[2001:db8::1:443]\"\nto = \"[fd00::20:80]\"\n")
	if err := Write(filepath.Join(filepath.Dir(main), DropInDir, "50-cli.toml"), want); err != nil {
		t.Fatal(err)
	}
	c, err := Load(main)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, c.Forwards, append(values, cmpopts.IgnoreFields(rule.Forward{}, "Source"))...); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestWriteKeepsTheMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), DropInDir, "50-cli.toml")
	for _, mode := range []fs.FileMode{0o644, 0o600, 0o640} {
		if _, err := os.Stat(path); err == nil {
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
		}
		if err := Write(path, parsed(t, full)); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != mode {
			t.Errorf("mode %v, want %v (%v)", info.Mode(), mode, err)
		}
	}
	wantOnly(t, path)
}

// wantOnly checks that the directory has no other file.
func wantOnly(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 || entries[0].Name() != filepath.Base(path) {
		t.Errorf("the directory holds %v, %v", entries, err)
	}
}

func TestWriteFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	writeFile(t, victim, "precious")
	path := filepath.Join(dir, DropInDir, "50-cli.toml")
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, path); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, parsed(t, full)); err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(victim); string(text) != "precious" {
		t.Errorf("the link's target holds %q", text)
	}
	if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() {
		t.Errorf("%v, %v", info, err)
	}
}

func TestWriteRefusesADirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "50-cli.toml")
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, nil); err == nil || !strings.Contains(err.Error(), "it is a directory") {
		t.Errorf("error %v", err)
	}
	wantOnly(t, path)
}

// TestAFullDiskLeavesTheOldFile uses its own full file system.
func TestAFullDiskLeavesTheOldFile(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root: sudo make test")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	path := filepath.Join(dir, "50-cli.toml")
	if err := Write(path, parsed(t, full)); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var many []rule.Forward
	for range 2000 {
		many = append(many, parsed(t, full)[0])
	}
	if err := Write(path, many); !errors.Is(err, unix.ENOSPC) || !strings.HasPrefix(err.Error(), "write "+path) {
		t.Errorf("error %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("the file holds %q, %v", after, err)
	}
	wantOnly(t, path)
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, nil); !errors.Is(err, unix.EROFS) {
		t.Errorf("error %v", err)
	}
	wantOnly(t, path)
}
