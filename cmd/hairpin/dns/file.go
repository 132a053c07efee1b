// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/cmd/hairpin/atomicfile"
)

// maxSize is the largest size of a DNS file in bytes. 65,535 forwards with many hosts each need less.
const maxSize = 256 << 20

// PathError is the error for a path that hairpin must not write to. Nothing was written.
type PathError struct{ Path, Reason string }

// Error implements error.
func (e *PathError) Error() string { return e.Path + " " + e.Reason }

// Write makes the file at path contain names, and reports whether it had to write the file. It returns a
// *PathError for a file that hairpin did not write, and for a path that is not a regular file.
func (f File) Write(path string, names []Name, now time.Time) (bool, error) {
	previous, err := read(path)
	if err != nil {
		return false, err
	}
	data := f.update(previous, names, now)
	if previous != nil && string(previous) == string(data) {
		return false, nil
	}
	if err := atomicfile.Write(path, data); err != nil {
		return false, fmt.Errorf("write %s: %w", path, err)
	}
	return true, nil
}

// CheckPath returns the error that Write would return for path now. It writes nothing.
func CheckPath(path string) error {
	_, err := read(path)
	return err
}

// read reads a file that hairpin wrote, or an empty file. It returns nil if there is no file.
func read(path string) ([]byte, error) {
	dir := filepath.Dir(path)
	// Check symbolic links only in the directory: the rename in atomicfile replaces a link at path and does
	// not follow it.
	switch resolved, err := filepath.EvalSymlinks(dir); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("write %s: directory %s does not exist; create it", path, dir)
	case err != nil:
		return nil, fmt.Errorf("look for %s: %w", path, err)
	case resolved != dir:
		return nil, &PathError{path, "leads through a symbolic link; write " + filepath.Join(resolved, filepath.Base(path))}
	}
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, unix.ELOOP):
		return nil, &PathError{path, "is a symbolic link; give the path of a file"}
	case err != nil:
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &PathError{path, "is not a regular file; give the path of a file"}
	}
	data, err := io.ReadAll(io.LimitReader(file, maxSize))
	if err != nil {
		return nil, err
	}
	if len(data) > 0 && !isOurs(data) {
		return nil, &PathError{path, "was not written by hairpin, so it is left alone; give another path"}
	}
	return data, nil
}
