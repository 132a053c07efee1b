// SPDX-License-Identifier: Apache-2.0

package main

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
	"hairpin/cmd/hairpin/dns"
	"hairpin/maps"
)

// maxDNSFile is what a file of names may have, in bytes: 65,535 forwards with
// many hosts each take less.
const maxDNSFile = 256 << 20

// updateDNSFile makes the file at path hold names, and reports whether it had to
// be written. A file that is not ours, and what is no file, stays and is an error.
func updateDNSFile(path string, file dns.File, names []dns.Name, now time.Time) (bool, error) {
	previous, err := readDNSFile(path)
	if err != nil {
		return false, err
	}
	data := file.Update(previous, names, now)
	if previous != nil && string(previous) == string(data) {
		return false, nil
	}
	if err := atomicfile.Write(path, data); err != nil {
		return false, fmt.Errorf("write %s: %w", path, err)
	}
	return true, nil
}

// readDNSFile reads a file that hairpin wrote, or an empty one; nil if there is none.
func readDNSFile(path string) ([]byte, error) {
	dir := filepath.Dir(path)
	// Only the directory matters: the rename that puts the file in place replaces a
	// link, and does not follow it.
	switch resolved, err := filepath.EvalSymlinks(dir); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("write %s: directory %s does not exist; create it", path, dir)
	case err != nil:
		return nil, fmt.Errorf("look for %s: %w", path, err)
	case resolved != dir:
		return nil, invalid(fmt.Errorf("the path %s leads through a symbolic link; write %s", path, filepath.Join(resolved, filepath.Base(path))))
	}
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, unix.ELOOP):
		return nil, invalid(fmt.Errorf("%s is a symbolic link; give the path of a file", path))
	case err != nil:
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, invalid(fmt.Errorf("%s is not a regular file", path))
	}
	data, err := io.ReadAll(io.LimitReader(file, maxDNSFile))
	if err != nil {
		return nil, err
	}
	if len(data) > 0 && !dns.Ours(data) {
		return nil, invalid(fmt.Errorf("%s was not written by hairpin, which says so in the first line of its files, so the file is left alone; give another path", path))
	}
	return data, nil
}

// placed tells where the configuration asks for a file that there is an error with.
func placed(file maps.DNSFile, key string, err error) error {
	if file.Source == "" {
		return fmt.Errorf("%s: %w", key, err)
	}
	return fmt.Errorf("%s: %s: %w", file.Source, key, err)
}

// checkDNSFiles looks at the files that the daemon would write, and the programs that
// it would run. What may be otherwise when and where it runs is only warned of.
func (a *app) checkDNSFiles(cfg maps.Config) error {
	var errs []error
	for _, file := range cfg.DNS {
		if file.Reload != nil {
			if err := checkProgram(file.Reload[0]); err != nil {
				a.warn("%v", placed(file, maps.DNSReloadKey(file.Format), err))
			}
		}
		_, err := readDNSFile(file.Path)
		if err == nil {
			continue
		}
		err = placed(file, maps.DNSWriteKey(file.Format), err)
		if errors.As(err, new(invalidError)) {
			errs = append(errs, err)
			continue
		}
		a.warn("%v", err)
	}
	return errors.Join(errs...)
}
