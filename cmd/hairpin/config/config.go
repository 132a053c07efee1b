// SPDX-License-Identifier: Apache-2.0

// Package config reads and writes configuration files.
package config

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

	"hairpin/maps"
)

// maxSize is what one file may have, in bytes; 65,535 forwards take less.
const maxSize = 16 << 20

// DropInDir is the directory beside the configuration file whose *.toml files
// add forwards and intercepts.
const DropInDir = "forwards.d"

// Load reads the configuration file at path and the forwards of the *.toml
// files in DropInDir beside it, in the order of their names. Everything wrong
// with any of them is reported: the error joins Problems, unless a file could
// not be read at all.
func Load(path string) (maps.Config, error) {
	data, err := read(path)
	if err != nil {
		return maps.Config{}, err
	}
	sources := []source{{name: path, data: data}}
	extra, err := dropIns(path)
	if err != nil {
		return maps.Config{}, err
	}
	for _, name := range extra {
		data, err := read(name)
		if err != nil {
			return maps.Config{}, err
		}
		sources = append(sources, source{name: name, data: data, dropIn: true})
	}
	return parse(sources)
}

// Modified is when the files that Load reads were written, added or removed last.
func Modified(path string) (time.Time, error) {
	names, err := dropIns(path)
	if err != nil {
		return time.Time{}, err
	}
	var last time.Time
	// A file that was removed or renamed leaves its time in the directory.
	for _, name := range append(names, path, filepath.Join(filepath.Dir(path), DropInDir)) {
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

// Parse reads a configuration that is one file, called name in errors.
func Parse(name string, data []byte) (maps.Config, error) {
	if len(data) > maxSize {
		return maps.Config{}, tooLarge(name)
	}
	return parse([]source{{name: name, data: data}})
}

// source is a file that has been read.
type source struct {
	name   string
	data   []byte
	dropIn bool
}

func dropIns(path string) ([]string, error) {
	dir := filepath.Join(filepath.Dir(path), DropInDir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	var files []string
	for _, entry := range entries {
		if name := entry.Name(); filepath.Ext(name) == ".toml" && !strings.HasPrefix(name, ".") {
			files = append(files, filepath.Join(dir, name))
		}
	}
	slices.Sort(files)
	return files, nil
}

func tooLarge(name string) error {
	return fmt.Errorf("%s: larger than %d MiB, which no configuration is", name, maxSize>>20)
}

// read takes regular files only: a pipe might never end.
func read(path string) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
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
