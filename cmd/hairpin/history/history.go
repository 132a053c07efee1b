// SPDX-License-Identifier: Apache-2.0

// Package history keeps configurations that ran: the last of them, for "hairpin rollback" and for a boot with a broken file, and the
// one to return to if a change is not confirmed.
//
// It only reads and writes files. It never asks the kernel what runs, and never changes what runs. Whoever writes holds the writer
// lock of the datapath, so two writers never meet; readers need no lock, because every file is replaced as a whole.
package history

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/cmd/hairpin/atomicfile"
	"hairpin/cmd/hairpin/trust"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

const (
	// Limit is how many configurations are kept.
	Limit = 10

	schema         = 1
	generationsDir = "generations"
	suffix         = ".json"
	pendingFile    = "pending.json"
	refusedFile    = "unconfirmed.json"
	// largeSize is the size in bytes of a file that takes long to write: more than 10,000 forwards.
	largeSize = 1 << 20
	// maxSize is the largest size of a file in bytes; 65,535 forwards need less.
	maxSize = 64 << 20
)

// Store is a directory of kept configurations.
type Store struct{ dir string }

// New returns the store in dir. The directory is made when something is kept.
func New(dir string) *Store { return &Store{dir} }

// Dir returns the directory.
func (s *Store) Dir() string { return s.dir }

// Generation describes a configuration that ran.
type Generation struct {
	Schema  int       `json:"schema"`
	Number  int       `json:"number"` // counts up; the first one is 1
	Time    time.Time `json:"time"`   // when it was applied
	Command string    `json:"command"`
	Sum     string    `json:"sum"` // hash of the configuration
}

// Keep stores a configuration that runs now as the newest generation, and removes the oldest one if there are more than Limit. It does
// nothing if the newest generation is this configuration. Forwards that drain are left out: they are on their way out. So are mappings of
// lease files.
func (s *Store) Keep(cfg config.Config, command string) error {
	now, err := SumOf(cfg)
	if err != nil {
		return fmt.Errorf("keep the configuration: %w", err)
	}
	kept, _ := s.List() // a file that cannot be read must not keep others from being written
	g := Generation{Schema: schema, Number: 1, Time: time.Now().UTC().Truncate(time.Second), Command: Shorten(command), Sum: now}
	if len(kept) > 0 {
		g.Number = kept[0].Number + 1
		if kept[0].Sum == g.Sum {
			return nil
		}
	}
	if err := s.write(generationPath(g.Number), g, cfg); err != nil {
		return fmt.Errorf("keep the configuration: %w", err)
	}
	for _, old := range kept[min(len(kept), Limit-1):] {
		if err := os.Remove(filepath.Join(s.dir, generationPath(old.Number))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove an old configuration: %w", err)
		}
	}
	return nil
}

// Large reports whether the newest generation is large, so that the next one would take long to write.
func (s *Store) Large() bool {
	list, _ := s.List()
	if len(list) == 0 {
		return false
	}
	info, err := os.Stat(filepath.Join(s.dir, generationPath(list[0].Number)))
	return err == nil && info.Size() > largeSize
}

// Shorten shortens a command, so that the first line of a file stays short.
func Shorten(command string) string {
	const most = 200
	if len(command) <= most {
		return command
	}
	return strings.ToValidUTF8(command[:most], "") + "..."
}

func generationPath(number int) string {
	return filepath.Join(generationsDir, strconv.Itoa(number)+suffix)
}

// SumOf returns the hash that the generation of a configuration has.
func SumOf(cfg config.Config) (string, error) {
	hash := sha256.New()
	buffered := bufio.NewWriter(hash)
	err := errors.Join(encode(buffered, cfg), buffered.Flush())
	return hex.EncodeToString(hash.Sum(nil)), err
}

// encode writes a configuration: one line for all but the forwards, and one for each forward that neither drains nor stands for a mapping
// of a lease file. There may be so many
// forwards that their text must not be in memory as a whole.
func encode(w io.Writer, cfg config.Config) error {
	encoder := json.NewEncoder(w)
	settings := cfg
	settings.Forwards = nil
	if err := encoder.Encode(settings); err != nil {
		return err
	}
	for i := range cfg.Forwards {
		if cfg.Forwards[i].Drains() || cfg.Forwards[i].IsLease() {
			continue
		}
		if err := encoder.Encode(&cfg.Forwards[i]); err != nil {
			return err
		}
	}
	return nil
}

// decode reads what encode wrote. The configuration is valid.
func decode(r io.Reader) (config.Config, error) {
	cfg := config.Default()
	decoder := json.NewDecoder(r)
	if err := decoder.Decode(&cfg); err != nil {
		return cfg, err
	}
	for {
		var f rule.Forward
		err := decoder.Decode(&f)
		if errors.Is(err, io.EOF) {
			return cfg, cfg.Validate()
		}
		if err != nil {
			return cfg, err
		}
		cfg.Forwards = append(cfg.Forwards, f)
	}
}

// List returns the kept generations, newest first. Nothing was kept: none, and no error. Files that cannot be read are left out, and the
// error names them.
func (s *Store) List() ([]Generation, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, generationsDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list kept configurations: %w", err)
	}
	var (
		list []Generation
		errs []error
	)
	for _, entry := range entries {
		number, ok := strings.CutSuffix(entry.Name(), suffix)
		if n, err := strconv.Atoi(number); !ok || err != nil || n < 1 {
			continue // a temporary file, or a file that is not ours
		}
		var g Generation
		if err := s.read(filepath.Join(generationsDir, entry.Name()), &g, nil); err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, g)
	}
	slices.SortFunc(list, func(a, b Generation) int { return b.Number - a.Number })
	return list, errors.Join(errs...)
}

// Config returns the configuration of a generation. It is valid.
func (s *Store) Config(g Generation) (cfg config.Config, err error) {
	err = s.read(generationPath(g.Number), &Generation{}, &cfg)
	return cfg, err
}

// Newest returns the configuration that was kept last, and false if none was kept.
func (s *Store) Newest() (config.Config, Generation, bool, error) {
	list, err := s.List()
	if len(list) == 0 {
		return config.Config{}, Generation{}, false, err
	}
	cfg, err := s.Config(list[0])
	return cfg, list[0], err == nil, err
}

// Pending is a change that waits for its confirmation, with the configuration to return to.
type Pending struct {
	Schema  int    `json:"schema"`
	Command string `json:"command"`
	Boot    string `json:"boot"` // the boot in which Deadline counts, as /proc/sys/kernel/random/boot_id says
	// Deadline is when the configuration of before runs again, as time since the boot (CLOCK_BOOTTIME). The time of the day would not
	// do: a router without a clock battery learns it minutes after the boot.
	Deadline   time.Duration `json:"deadline"`
	Generation uint32        `json:"generation"` // of the tables before the change: as long as it is live, the change was not made
	Digest     string        `json:"digest"`     // of the files of the change
	Before     config.Config `json:"-"`
}

// SetPending stores a change that will wait for its confirmation.
func (s *Store) SetPending(p Pending) error {
	p.Schema = schema
	if err := s.write(pendingFile, p, p.Before); err != nil {
		return fmt.Errorf("keep the configuration to return to: %w", err)
	}
	return nil
}

// Pending returns the change that waits for its confirmation, nil if there is none.
func (s *Store) Pending() (*Pending, error) {
	var p Pending
	err := s.read(pendingFile, &p, &p.Before)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &p, nil
}

// ClearPending ends the wait. It does nothing if no change waits.
func (s *Store) ClearPending() error { return s.remove(pendingFile) }

// RefusePending ends the wait of the pending change, and notes the digest of its files: they were applied but not confirmed, so no start
// may run them. It renames the file of the pending change, which a full disk cannot prevent.
func (s *Store) RefusePending() error {
	err := os.Rename(filepath.Join(s.dir, pendingFile), filepath.Join(s.dir, refusedFile))
	if err == nil {
		err = s.sync()
	}
	if err != nil {
		return fmt.Errorf("note that the change was not confirmed: %w", err)
	}
	return nil
}

// Refused returns the change of the last RefusePending, nil if there is none. It lacks Before.
func (s *Store) Refused() (*Pending, error) {
	var p Pending
	err := s.read(refusedFile, &p, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return &p, err
}

// Allow undoes RefusePending.
func (s *Store) Allow() error { return s.remove(refusedFile) }

// write replaces a file: one line with head, then the configuration.
func (s *Store) write(name string, head any, cfg config.Config) error {
	text, err := json.Marshal(head)
	if err != nil {
		return err
	}
	path := filepath.Join(s.dir, name)
	if err := s.makeDir(filepath.Dir(path)); err != nil {
		return err
	}
	err = atomicfile.WriteStream(path, func(w io.Writer) error {
		buffered := bufio.NewWriter(w)
		_, err := buffered.Write(append(text, '\n'))
		return errors.Join(err, encode(buffered, cfg), buffered.Flush())
	})
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// makeDir makes a directory that only its owner may read: the files name who may connect to what. It fails for a directory that others
// can write.
func (s *Store) makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, path := range []string{s.dir, dir} {
		if err := trust.CheckDir(path); err != nil {
			return err
		}
	}
	return nil
}

// read reads the head of a file, and its configuration unless cfg is nil. It fails for a file, or a directory, that others can write.
func (s *Store) read(name string, head any, cfg *config.Config) error {
	path := filepath.Join(s.dir, name)
	file, err := openTrusted(path)
	if errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil {
		defer file.Close()
		err = readFrom(bufio.NewReader(io.LimitReader(file, maxSize)), head, cfg)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

func readFrom(r *bufio.Reader, head any, cfg *config.Config) error {
	first, err := r.ReadSlice('\n') // the buffer limits the line
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	var version struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(first, &version); err != nil {
		return err
	}
	if version.Schema != schema {
		return fmt.Errorf("written by another version of hairpin (schema %d, this version reads %d)", version.Schema, schema)
	}
	if err := json.Unmarshal(first, head); err != nil || cfg == nil {
		return err
	}
	if *cfg, err = decode(r); err != nil {
		return fmt.Errorf("not a configuration that this version reads: %w", err)
	}
	return nil
}

func openTrusted(path string) (*os.File, error) {
	if err := trust.CheckDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil {
		err = trust.Check(path, info)
	}
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// remove removes a file, so that it is also gone after a power cut.
func (s *Store) remove(name string) error {
	path := filepath.Join(s.dir, name)
	if err := os.Remove(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return s.sync()
}

// sync makes a removal or a rename durable.
func (s *Store) sync() error {
	dir, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
