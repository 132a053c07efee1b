// SPDX-License-Identifier: Apache-2.0

package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func mustWrite(t *testing.T, path, text string) {
	t.Helper()
	if err := Write(path, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

// wantFile checks a file, and that nothing else lies beside it.
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
	// Daemons have such a mask.
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

// TestReadersSeeOneOrTheOther: who has the old file open reads it to its end.
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
	// Nobody makes files there, whoever he is.
	if err := Write("/proc/hairpin", nil); !errors.Is(err, fs.ErrNotExist) || err.Error() != "open: no such file or directory" {
		t.Errorf("no place for files: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("the directory holds %v, %v", entries, err)
	}
}
