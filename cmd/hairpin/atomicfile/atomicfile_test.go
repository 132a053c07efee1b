// SPDX-License-Identifier: Apache-2.0

package atomicfile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func mustWrite(t *testing.T, path, text string) {
	t.Helper()
	if err := Write(path, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

// wantFile checks a file, and that the directory has no other file.
func wantFile(t *testing.T, path, text string, mode fs.FileMode, uid uint32) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil || string(data) != text {
		t.Errorf("the file holds %q, %v, want %q", data, err, text)
	}
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if owner := info.Sys().(*syscall.Stat_t); info.Mode() != mode || owner.Uid != uid || owner.Gid != uid {
		t.Errorf("mode %v, owner %d:%d, want %v, %d:%[5]d", info.Mode(), owner.Uid, owner.Gid, mode, uid)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("the directory holds %v, %v", entries, err)
	}
}

func TestWriteKeepsModeAndOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root: sudo make test")
	}
	// Daemons run with such a umask.
	defer syscall.Umask(syscall.Umask(0o077))
	path := filepath.Join(t.TempDir(), "file")
	mustWrite(t, path, "new")
	wantFile(t, path, "new", 0o644, 0)
	if err := errors.Join(os.Chown(path, 4711, 4711), os.Chmod(path, 0o640)); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, path, "newer")
	wantFile(t, path, "newer", 0o640, 4711)
}

// TestReadersSeeOneOrTheOther: a reader that has the old file open reads it to its end.
func TestReadersSeeOneOrTheOther(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	mustWrite(t, path, "old")
	reader, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	mustWrite(t, path, "new")
	data := make([]byte, 10)
	if n, err := reader.Read(data); string(data[:n]) != "old" || err != nil {
		t.Errorf("read %q, %v", data[:n], err)
	}
}

func TestWriteRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := Write(dir, nil); err == nil || err.Error() != "it is a directory" {
		t.Errorf("a directory: %v", err)
	}
	if err := Write(filepath.Join(dir, "none", "file"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	// In this directory nobody can make files, not even root.
	if err := Write("/proc/hairpin", nil); !errors.Is(err, fs.ErrNotExist) || err.Error() != "open: no such file or directory" {
		t.Errorf("no place for files: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("the directory holds %v, %v", entries, err)
	}
}

// TestStaleTemporariesGo: the next Write removes the temporary file of a killed writer. It keeps temporary
// files of running writers, and files of others.
func TestStaleTemporariesGo(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "50-cli.toml")
	for _, name := range []string{".50-cli.toml.123456", ".50-cli.toml.1", ".50-cli.toml.2", ".50-cli.toml.old", ".50-cli.toml.",
		".50-cli.toml", ".60-cli.toml.7", "50-cli.toml.7"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("half of"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink(path, filepath.Join(dir, ".50-cli.toml.3")), os.Mkdir(filepath.Join(dir, ".50-cli.toml.4"), 0o700)); err != nil {
		t.Fatal(err)
	}
	busy, err := os.Open(filepath.Join(dir, ".50-cli.toml.2"))
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	if err := flock(busy, unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	want := func(when string, want ...string) {
		t.Helper()
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, entry := range entries {
			names = append(names, entry.Name())
		}
		if !slices.Equal(names, want) {
			t.Errorf("%s: the directory holds\n%q, want\n%q", when, names, want)
		}
	}
	kept := []string{".50-cli.toml", ".50-cli.toml.", ".50-cli.toml.3", ".50-cli.toml.4", ".50-cli.toml.old", ".60-cli.toml.7", "50-cli.toml", "50-cli.toml.7"}
	mustWrite(t, path, "whole")
	want("while another writes", slices.Insert(slices.Clone(kept), 2, ".50-cli.toml.2")...)
	busy.Close()
	mustWrite(t, path, "whole")
	want("after that one was killed", kept...)
}

// TestWritersDoNotDisturbEachOther: many writers run at once; each writes a whole file, and no writer
// removes the temporary file of another writer.
func TestWritersDoNotDisturbEachOther(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	var writers sync.WaitGroup
	for i := range 8 {
		writers.Go(func() {
			for range 20 {
				if err := Write(path, bytes.Repeat([]byte{byte('a' + i)}, 10_000)); err != nil {
					t.Errorf("writer %d: %v", i, err)
					return
				}
			}
		})
	}
	writers.Wait()
	data, err := os.ReadFile(path)
	if err != nil || len(data) != 10_000 || bytes.Count(data, data[:1]) != len(data) {
		t.Errorf("%d bytes, %v, want those of one writer", len(data), err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("the directory holds %v, %v", entries, err)
	}
}
