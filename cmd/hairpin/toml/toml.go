// SPDX-License-Identifier: Apache-2.0

// Package toml reads the configuration file and its drop-ins, and writes the drop-in of "hairpin save".
// Every problem is reported with its file, line and column.
//
// It uses only files: it never asks the kernel, the network or the running configuration. It never writes a
// file that an administrator may edit.
//
// The package has its own tree with positions, because the library's decoder stops at the first value of a
// wrong type.
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

// maxSize is the largest size of a file in bytes; 65,535 forwards need less.
const maxSize = 16 << 20

// DropInDir is the directory next to the configuration file. Its *.toml files add forwards and intercepts.
const DropInDir = "forwards.d"

// Load reads the configuration file at path, and the *.toml files in DropInDir next to it, sorted by name.
// The error joins the problems of all files. If a file cannot be read at all, the error has only the files
// that cannot be read.
//
// Load fails if another user could have written a file or DropInDir; see trust.Check. It checks the open
// descriptor that it then reads, so nobody can exchange the file in between. For this reason it also opens
// drop-ins relative to the descriptor of their directory. Load follows symbolic links, because only root
// can make links in a directory that passes the check.
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

// Modified returns the last time at which a file that Load reads was written, added or removed.
func Modified(path string) (time.Time, error) {
	dir, names, err := dropIns(path)
	if err != nil {
		return time.Time{}, err
	}
	defer dir.Close()
	// Removing or renaming a file changes the time of the directory.
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

// Parse reads a configuration of one file; name is for errors. The caller must know that data can be
// trusted.
func Parse(name string, data []byte) (config.Config, error) {
	if len(data) > maxSize {
		return config.Config{}, tooLarge(name)
	}
	return parse([]source{{name: name, data: data}})
}

// source is the content of a file.
type source struct {
	name   string
	data   []byte
	dropIn bool
}

// dropIns opens DropInDir next to the file at path, and lists its drop-ins. The directory is nil if it does
// not exist; closing nil is harmless. Names that begin with a dot are left out, because atomicfile uses
// such names for its temporary files.
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

// read reads a file relative to an open directory; path is its name in messages. It accepts only regular
// files, because a pipe might never end, and only files that pass trust.Check.
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
	// Allocate once: a growing buffer would leave garbage of the same size.
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

// openAt opens a file relative to an open directory. os.Root cannot be used, because it refuses links that
// lead out of the directory.
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

// digest returns a hash of the names and contents of the files.
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
