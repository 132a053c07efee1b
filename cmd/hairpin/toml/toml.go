// SPDX-License-Identifier: Apache-2.0

// Package toml reads the configuration file and its drop-ins, and writes the drop-in of "hairpin save".
// Every problem is reported with its file, line and column.
//
// It looks at files only: it never asks the kernel, the network or what runs. It never writes a file that somebody else
// may edit.
//
// The tree with positions is our own, because the library's decoder stops at the first value that it cannot take.
package toml

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/cmd/hairpin/trust"
	"hairpin/maps/config"
)

// maxSize is what one file may have, in bytes; 65,535 forwards take less.
const maxSize = 16 << 20

// DropInDir is the directory beside the configuration file whose *.toml files
// add forwards and intercepts.
const DropInDir = "forwards.d"

// Load reads the configuration file at path and the forwards of the *.toml
// files in DropInDir beside it, in the order of their names. The error joins every
// problem of all files, unless a file could not be read at all.
//
// A file that others could have written is refused, and so is such a DropInDir; see
// trust.Check. The check is of the open descriptor that is then read, so that nobody
// can exchange the file in between. Drop-ins are opened relative to the descriptor of
// their directory, for the same reason. Symbolic links are followed: those in a
// directory that root alone can write are root's.
func Load(path string) (config.Config, error) {
	data, err := read(unix.AT_FDCWD, path, path)
	if err != nil {
		return config.Config{}, err
	}
	sources := []source{{name: path, data: data}}
	dir, names, err := dropIns(path)
	if err != nil {
		return config.Config{}, err
	}
	defer dir.Close()
	var errs []error
	for _, name := range names {
		whole := filepath.Join(dir.Name(), name)
		data, err := read(int(dir.Fd()), name, whole)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		sources = append(sources, source{name: whole, data: data, dropIn: true})
	}
	if len(errs) > 0 {
		return config.Config{}, errors.Join(errs...)
	}
	return parse(sources)
}

// Modified is when the files that Load reads were written, added or removed last.
func Modified(path string) (time.Time, error) {
	dir, names, err := dropIns(path)
	if err != nil {
		return time.Time{}, err
	}
	defer dir.Close()
	// A file that was removed or renamed leaves its time in the directory.
	paths := []string{path, filepath.Join(filepath.Dir(path), DropInDir)}
	for _, name := range names {
		paths = append(paths, filepath.Join(dir.Name(), name))
	}
	var last time.Time
	for _, name := range paths {
		info, err := os.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return time.Time{}, fmt.Errorf("read configuration: %w", err)
		}
		if info.ModTime().After(last) {
			last = info.ModTime()
		}
	}
	return last, nil
}

// Parse reads a configuration that is one file, called name in errors. The caller
// answers for where data is from.
func Parse(name string, data []byte) (config.Config, error) {
	if len(data) > maxSize {
		return config.Config{}, tooLarge(name)
	}
	return parse([]source{{name: name, data: data}})
}

// source is a file that has been read.
type source struct {
	name   string
	data   []byte
	dropIn bool
}

// dropIns opens DropInDir beside the file at path, and lists the drop-ins in it. The
// directory is nil if there is none; closing nil does no harm. Names that begin with a
// dot are left out: atomicfile gives such names to its temporary files.
func dropIns(path string) (*os.File, []string, error) {
	dir, err := os.OpenFile(filepath.Join(filepath.Dir(path), DropInDir), os.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read configuration: %w", err)
	}
	names, err := dropInNames(dir)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("read configuration: %w", err), dir.Close())
	}
	return dir, names, nil
}

func dropInNames(dir *os.File) ([]string, error) {
	info, err := dir.Stat()
	if err != nil {
		return nil, err
	}
	if err := trust.Check(dir.Name(), info); err != nil {
		return nil, err
	}
	all, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	names := slices.DeleteFunc(all, func(name string) bool {
		return filepath.Ext(name) != ".toml" || strings.HasPrefix(name, ".")
	})
	slices.Sort(names)
	return names, nil
}

func tooLarge(name string) error {
	return fmt.Errorf("%s: larger than %d MiB, the limit for a configuration", name, maxSize>>20)
}

// read reads a file relative to an open directory; path is what messages call it.
// It takes regular files only, because a pipe might never end, and only those that
// nobody else could have written.
func read(dir int, name, path string) ([]byte, error) {
	file, err := openAt(dir, name, path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read configuration: %s is not a regular file", path)
	}
	if err := trust.Check(path, info); err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	// In one piece: to grow would leave as much again behind.
	var data bytes.Buffer
	data.Grow(int(min(info.Size(), maxSize)) + bytes.MinRead)
	if _, err := data.ReadFrom(io.LimitReader(file, maxSize+1)); err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if data.Len() > maxSize {
		return nil, tooLarge(path)
	}
	return data.Bytes(), nil
}

// openAt opens a file as os.Open does, relative to an open directory. os.Root is no
// replacement: it refuses links that lead out of the directory.
func openAt(dir int, name, path string) (*os.File, error) {
	for {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// digest is the same only for the same files with the same content.
func digest(sources []source) string {
	hash := sha256.New()
	for _, s := range sources {
		name := filepath.Base(s.name)
		var sizes [16]byte
		binary.LittleEndian.PutUint64(sizes[:], uint64(len(name)))
		binary.LittleEndian.PutUint64(sizes[8:], uint64(len(s.data)))
		hash.Write(sizes[:])
		io.WriteString(hash, name)
		hash.Write(s.data)
	}
	return hex.EncodeToString(hash.Sum(nil))
}
