// SPDX-License-Identifier: Apache-2.0

// Package atomicfile replaces whole files. It never reads the old content, and never follows a symbolic
// link at the path.
//
// No library does everything that is needed here. github.com/google/renameio/v2 does not keep the owner,
// which the files of name servers need. It does not sync the directory, so a power cut may undo the rename.
// It leaves the temporary file of a killed writer for ever. A file without a name (O_TMPFILE) does not
// help: linkat(2) does not overwrite a file, so it would need a temporary name, too.
package atomicfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// newMode is the mode of a file that did not exist before.
const newMode fs.FileMode = 0o644

// Write replaces the file at path. Readers see the old file or the new file, also after a power cut. After
// an error the old file is intact. The file keeps its mode and owner. A new file belongs to the caller and
// has mode 0644. A symbolic link is replaced, not followed.
//
// Write first makes a temporary file ".NAME.NUMBER" in the directory. If the writer is killed, the
// temporary file stays until the next Write for this path removes it.
func Write(path string, data []byte) error {
	return WriteStream(path, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// WriteStream is Write for content that content writes piece by piece, so that it is never in memory as a whole. After an error of
// content, the old file is intact.
func WriteStream(path string, content func(io.Writer) error) error {
	return stripPaths(write(path, content))
}

// stripPaths removes the paths from an error. The caller knows its own path. The path of the temporary file
// differs at each try, so a caller that compares messages would take each error for a new one.
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

func write(path string, content func(io.Writer) error) (err error) {
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
	// Close the file last: while it is open, its lock keeps other writers from removing it.
	defer file.Close()
	defer func() {
		if err != nil {
			os.Remove(file.Name())
		}
	}()
	if err := fill(file, content, old); err != nil {
		return err
	}
	if err := os.Rename(file.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// prefix returns the start of the names of temporary files for path; a number follows.
func prefix(path string) string { return "." + filepath.Base(path) + "." }

// temporary makes a temporary file for path, and locks it until it is closed.
//
// Before this writer locks the file, another writer may take it for the file of a killed writer:
//
//	this writer creates the file
//	the other writer opens the file, locks it, and removes it
//	this writer waits for the lock until the other writer closes the file
//
// Then the file has no name any more, and this writer makes a new file. If the file system has no locks,
// nobody removes the file, because removeUnlocked needs the lock, too.
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

// removeStale removes the temporary files for path whose writers were killed. It ignores errors, because
// they do not prevent the write.
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

// removeUnlocked removes a file unless a writer has locked it. It opens the file for writing, because NFS
// gives an exclusive lock only to a file that is open for writing.
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

// fill writes the content of a file, and gives it the mode and owner of the replaced file, if there is one.
func fill(file *os.File, content func(io.Writer) error, old fs.FileInfo) error {
	if err := content(file); err != nil {
		return err
	}
	mode := newMode
	if old != nil {
		mode = old.Mode().Perm()
	}
	if err := file.Chmod(mode); err != nil {
		return err
	}
	// chown comes after chmod, because only the owner may change the mode.
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

// syncDir makes a rename durable.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
