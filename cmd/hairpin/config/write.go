// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/pelletier/go-toml/v2"

	"hairpin/maps"
)

// header tells whoever opens a written file what it is.
const header = "# Written by `hairpin save`, which replaces it as a whole.\n\n"

// fileForwards is the content of a file in DropInDir.
type fileForwards struct {
	Version  int           `toml:"version"`
	Forwards []fileForward `toml:"forward"`
}

type fileForward struct {
	Name     string   `toml:"name"`
	Protocol []string `toml:"protocol"`
	External string   `toml:"external,omitempty"`
	Port     string   `toml:"port,omitempty"`
	To       string   `toml:"to"`
	From     []string `toml:"from,omitempty"`
	Reflect  string   `toml:"reflect,omitempty"`
	Hosts    []string `toml:"hosts,omitempty"`
}

// Write replaces the file at path, in DropInDir, with these forwards. Readers
// see the old file or the new one, also after a power cut; after an error the
// old one is intact. The directory is made if it is missing, and the file keeps
// its mode, 0644 if it is new. A symbolic link is replaced, not followed.
func Write(path string, forwards []maps.Forward) error {
	data, err := format(forwards)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("write %s: %w", path, err)
	}
	mode := fs.FileMode(0o644)
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
		mode = info.Mode().Perm()
	} else if err == nil && info.IsDir() {
		return fmt.Errorf("write %s: it is a directory", path)
	}
	if err := replace(path, data, mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func format(forwards []maps.Forward) ([]byte, error) {
	file := fileForwards{Version: version}
	for _, f := range forwards {
		entry := fileForward{
			Name:     f.Name,
			External: f.External.String(),
			Port:     f.Ports.String(),
			To:       f.TargetString(),
			Reflect:  string(f.Reflect),
			Hosts:    f.Hosts,
		}
		for _, protocol := range f.Protocols {
			entry.Protocol = append(entry.Protocol, protocol.String())
		}
		for _, prefix := range f.From {
			entry.From = append(entry.From, prefix.String())
		}
		file.Forwards = append(file.Forwards, entry)
	}
	text := bytes.NewBufferString(header)
	if err := toml.NewEncoder(text).Encode(file); err != nil {
		return nil, err
	}
	return text.Bytes(), nil
}

// replace writes a file beside path and renames it into place. Its name begins
// with a dot, so a leftover is never read as configuration.
func replace(path string, data []byte, mode fs.FileMode) (err error) {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(file.Name())
		}
	}()
	if err := errors.Join(write(file, data, mode), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(file.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func write(file *os.File, data []byte, mode fs.FileMode) error {
	if _, err := file.Write(data); err != nil {
		return err
	}
	if err := file.Chmod(mode); err != nil {
		return err
	}
	return file.Sync()
}

// syncDir makes a rename last.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
