// SPDX-License-Identifier: Apache-2.0

// Package atomicfile replaces files as a whole. It never looks at what the files hold, and never follows a symbolic link.
//
// It is our own because no library does all that the files here need:
// github.com/google/renameio/v2 does not keep the owner, which files of name servers
// depend on, does not sync the directory, so that a power cut may undo the rename, and
// leaves the temporary file of a writer that was killed for ever. A file without a name
// (O_TMPFILE) cannot replace one that has a name: linkat(2) does not overwrite, so it
// would need a temporary name as well.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// newMode is that of files that were not there.
const newMode fs.FileMode = 0o644

// Write replaces the file at path. Readers see the old file or the new one, also
// after a power cut; after an error the old one is intact. The file keeps its
// mode and owner; a new one is the caller's, with mode 0644. A symbolic link is
// replaced, not followed.
//
// What is written meanwhile lies beside it as ".NAME.NUMBER". A writer that is killed
// leaves that behind; the next one for the same path removes it.
func Write(path string, data []byte) error { return stripPaths(write(path, data)) }

// stripPaths takes the paths out of an error. The caller knows its own path, and that of the temporary file differs
// at each try, so that a caller that compares messages would take each for a new one.
func stripPaths(err error) error {
	var file *fs.PathError
	var files *os.LinkError
	switch {
	case errors.As(err, &file):
		return fmt.Errorf("%s: %w", file.Op, file.Err)
	case errors.As(err, &files):
		return fmt.Errorf("%s: %w", files.Op, files.Err)
	}
	return err
}

func write(path string, data []byte) (err error) {
	old, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		old = nil
	case err != nil:
		return err
	case old.IsDir():
		return errors.New("it is a directory")
	case !old.Mode().IsRegular():
		old = nil
	}
	removeStale(path)
	file, err := temporary(path)
	if err != nil {
		return err
	}
	// Closed last: until then its lock tells other writers that it is in use.
	defer file.Close()
	defer func() {
		if err != nil {
			os.Remove(file.Name())
		}
	}()
	if err := fill(file, data, old); err != nil {
		return err
	}
	if err := os.Rename(file.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// prefix begins the names of the temporary files for path; a number follows.
func prefix(path string) string { return "." + filepath.Base(path) + "." }

// temporary makes a temporary file for path, and locks it for as long as it is open.
//
// Between the two another writer may take it for stale:
//
//	this writer creates the file
//	the other one opens it, gets its lock, and removes it
//	this writer waits for the lock, which comes when the other one closes the file
//
// The file has no name then, so this writer makes another one. Where the file system has
// no locks, the file is in nobody's way: it is not removed either.
func temporary(path string) (*os.File, error) {
	for {
		file, err := os.CreateTemp(filepath.Dir(path), prefix(path)+"*")
		if err != nil {
			return nil, err
		}
		_ = flock(file, unix.LOCK_EX)
		info, err := file.Stat()
		if err != nil {
			return nil, errors.Join(err, file.Close(), os.Remove(file.Name()))
		}
		if info.Sys().(*syscall.Stat_t).Nlink > 0 {
			return file, nil
		}
		file.Close()
	}
}

// removeStale removes the temporary files for path whose writers were killed. What it
// cannot remove is no reason not to write.
func removeStale(path string) {
	dir := filepath.Dir(path)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, entry := range entries {
		if entry.Type().IsRegular() && isTemporary(path, entry.Name()) {
			removeUnlocked(filepath.Join(dir, entry.Name()))
		}
	}
}

func isTemporary(path, name string) bool {
	number, found := strings.CutPrefix(name, prefix(path))
	return found && number != "" && strings.Trim(number, "0123456789") == ""
}

// removeUnlocked removes a file unless a writer has its lock. It is opened for writing
// because NFS gives an exclusive lock to nobody else.
func removeUnlocked(path string) {
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer file.Close()
	if flock(file, unix.LOCK_EX|unix.LOCK_NB) == nil {
		os.Remove(path)
	}
}

func flock(file *os.File, how int) error {
	for {
		if err := unix.Flock(int(file.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// fill gives a file its content, and the mode and owner of the one it replaces,
// if there is one.
func fill(file *os.File, data []byte, old fs.FileInfo) error {
	if _, err := file.Write(data); err != nil {
		return err
	}
	mode := newMode
	if old != nil {
		mode = old.Mode().Perm()
	}
	if err := file.Chmod(mode); err != nil {
		return err
	}
	// After the mode, which only an owner may change.
	if err := chown(file, old); err != nil {
		return err
	}
	return file.Sync()
}

func chown(file *os.File, old fs.FileInfo) error {
	if old == nil {
		return nil
	}
	made, err := file.Stat()
	if err != nil {
		return err
	}
	is, want := made.Sys().(*syscall.Stat_t), old.Sys().(*syscall.Stat_t)
	if is.Uid == want.Uid && is.Gid == want.Gid {
		return nil
	}
	return file.Chown(int(want.Uid), int(want.Gid))
}

// syncDir makes a rename last.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
