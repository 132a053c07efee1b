// SPDX-License-Identifier: Apache-2.0

package router

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"hairpin/cmd/hairpin/presence"
	"hairpin/loader"
	"hairpin/maps"
	"hairpin/maps/config"
)

// Session is an open datapath with its Router.
type Session struct {
	*Router
	Tables *maps.Tables // for commands that read the tables or end connections

	dir      string
	fresh    bool // no configuration had been applied when the session began
	datapath *loader.Datapath
	release  func() // releases the writer lock; nil for a reader
}

func newSession(dir string, datapath *loader.Datapath, release func()) *Session {
	tables := maps.NewIn(datapath.Objects(), datapath.Slots())
	o := kernel()
	o.Datapath, o.Tables, o.Conntrack = datapath, tables, datapath.Conntrack
	return &Session{Router: New(o), Tables: tables, dir: dir, datapath: datapath, release: release}
}

// Open opens the datapath for reading, without a lock.
func Open(dir string) (*Session, error) {
	datapath, err := loader.Open(loader.Options{Dir: dir})
	if err != nil {
		return nil, err
	}
	return newSession(dir, datapath, nil), nil
}

// OpenLocked takes the writer lock and opens the datapath. It waits for the lock until ctx ends.
func OpenLocked(ctx context.Context, dir string) (*Session, error) {
	// Check first, because taking the lock may mount a bpffs on the directory.
	if err := loader.Check(loader.Options{Dir: dir}); err != nil {
		return nil, err
	}
	return locked(ctx, dir, func() (*loader.Datapath, error) { return loader.Open(loader.Options{Dir: dir}) })
}

// Load takes the writer lock and opens the datapath. It creates a datapath with maxConnections if there is
// none. It waits for the lock until ctx ends.
func Load(ctx context.Context, dir string, maxConnections uint32) (*Session, error) {
	s, err := locked(ctx, dir, func() (*loader.Datapath, error) {
		if err := loader.Check(loader.Options{Dir: dir}); err == nil {
			maxConnections = 0 // keep the size; ResizeWarning warns of the difference
		}
		return loader.Load(loader.Options{Dir: dir, MaxConnections: maxConnections})
	})
	if err != nil {
		return nil, err
	}
	_, err = s.Tables.Settings()
	s.fresh = errors.Is(err, maps.ErrEmpty)
	return s, nil
}

func locked(ctx context.Context, dir string, open func() (*loader.Datapath, error)) (*Session, error) {
	release, err := loader.Lock(ctx, dir)
	if err != nil {
		return nil, err
	}
	datapath, err := open()
	if err != nil {
		release()
		return nil, err
	}
	return newSession(dir, datapath, release), nil
}

// Close closes the datapath and releases the writer lock. The kernel keeps everything.
func (s *Session) Close() error {
	defer s.Unlock()
	return s.datapath.Close()
}

// Unlock releases the writer lock, if the session holds it.
func (s *Session) Unlock() {
	if s.release != nil {
		s.release()
		s.release = nil
	}
}

// Discard closes the session. It removes a Fresh datapath, for a start that failed.
func (s *Session) Discard() error {
	defer s.Unlock()
	if err := s.datapath.Close(); err != nil || !s.fresh {
		return err
	}
	return Remove(s.dir)
}

// Remove removes the datapath in dir with everything that belongs to it. It also removes pins that cannot
// be opened: of another table layout, or incomplete. The caller holds the writer lock.
func Remove(dir string) error {
	return errors.Join(presence.Remove(dir), loader.Remove(dir))
}

// Adopted reports whether the datapath existed before this session.
func (s *Session) Adopted() bool { return s.datapath.Adopted() }

// Fresh reports whether no configuration had been applied when the session began: this session created the datapath, or "hairpin prepare"
// did. A session of Open or OpenLocked is never Fresh.
func (s *Session) Fresh() bool { return s.fresh }

// Upgrade replaces the attached programs with the programs of this binary.
func (s *Session) Upgrade() error { return s.datapath.Upgrade() }

// CompareUpgrade reports whether Upgrade would change something for the better, and whether the programs would no longer ask conntrack
// afterwards because CAP_SYS_ADMIN is missing.
func (s *Session) CompareUpgrade() (useful, loses bool, err error) {
	return s.datapath.CompareUpgrade()
}

// Renew replaces the programs if the kernel can do now what it could not when they were loaded, and reports whether it did. The
// caller holds the writer lock.
func Renew(dir string) (bool, error) { return loader.Renew(loader.Options{Dir: dir}) }

// Attached returns the interfaces that have the programs, interfaces of the configuration first.
func (s *Session) Attached() ([]Port, error) {
	cfg, err := s.Tables.Settings()
	if err != nil && !errors.Is(err, maps.ErrEmpty) {
		return nil, fmt.Errorf("read the running configuration: %w", err)
	}
	seen, err := s.inventory(cfg)
	if err != nil {
		return nil, err
	}
	return seen.attached(), nil
}

// Detach removes the programs from all interfaces, and returns the number of interfaces. The tables keep
// interfaces and addresses, so that connections can continue after the next attach; attach compares the
// addresses with the machine's. WANs come last: the leak guard must stay while a LAN still has its program.
func (s *Session) Detach() (int, error) {
	attachments, err := s.datapath.Attachments()
	if err != nil {
		return 0, fmt.Errorf("list attachments: %w", err)
	}
	slices.SortStableFunc(attachments, func(a, b loader.Attachment) int {
		switch {
		case a.Guard == b.Guard:
			return 0
		case b.Guard:
			return -1
		}
		return 1
	})
	var errs []error
	for _, attachment := range attachments {
		errs = append(errs, s.datapath.Detach(attachment.Index))
	}
	return len(attachments), errors.Join(errs...)
}

// Running returns the configuration in the kernel. It fails with ErrNotLoaded if none was ever applied.
func (s *Session) Running() (config.Config, error) { return explainRunning(s.Tables.Running()) }

// Settings returns the configuration in the kernel without its forwards.
func (s *Session) Settings() (config.Config, error) { return explainRunning(s.Tables.Settings()) }

func explainRunning(cfg config.Config, err error) (config.Config, error) {
	if errors.Is(err, maps.ErrEmpty) {
		return cfg, fmt.Errorf("%w: %w; run \"hairpin attach\" to apply the file", loader.ErrNotLoaded, err)
	}
	if err != nil {
		return cfg, fmt.Errorf("read the running configuration: %w", err)
	}
	return cfg, nil
}

// MaxConnections returns the size of the connection table. The size is fixed when the datapath is created.
func (s *Session) MaxConnections() uint32 { return maps.ConnectionsLimit(s.datapath.Objects()) }
