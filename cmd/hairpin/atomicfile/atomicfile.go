// SPDX-License-Identifier: Apache-2.0

// Package atomicfile replaces files as a whole.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// newMode is that of files that were not there.
const newMode fs.FileMode = 0o644

// Write replaces the file at path. Readers see the old file or the new one, also
// after a power cut; after an error the old one is intact. The file keeps its
// mode and owner; a new one is the caller's, with mode 0644. A symbolic link is
// replaced, not followed. What is written meanwhile lies beside it, under a name
// that begins with a dot.
func Write(path string, data []byte) error { return plain(write(path, data)) }

// plain takes paths out of an error: the caller knows his, and the other one is
// new each time.
func plain(err error) error {
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
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(file.Name())
		}
	}()
	if err := errors.Join(fill(file, data, old), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(file.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
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
