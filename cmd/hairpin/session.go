// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"hairpin/loader"
	"hairpin/maps"
)

// session is an open datapath.
type session struct {
	*router
	datapath *loader.Datapath
	tables   *maps.Tables
	release  func() // of the writer lock; nil for a reader
}

func newSession(datapath *loader.Datapath, release func()) *session {
	tables := maps.New(datapath.Objects())
	return &session{
		router:   &router{attacher: datapath, tables: tables, links: loader.Links, routes: loader.Routes},
		datapath: datapath,
		tables:   tables,
		release:  release,
	}
}

// Close leaves everything in the kernel as it is.
func (s *session) Close() error {
	defer s.unlock()
	return s.datapath.Close()
}

// unlock releases the writer lock, if it is held.
func (s *session) unlock() {
	if s.release != nil {
		s.release()
		s.release = nil
	}
}

// running is the configuration in the kernel. A datapath to which none was
// ever applied counts as not attached.
func (s *session) running() (maps.Config, error) { return explainRunning(s.tables.Running()) }

// settings are those of running, without its forwards.
func (s *session) settings() (maps.Config, error) { return explainRunning(s.tables.Settings()) }

func explainRunning(cfg maps.Config, err error) (maps.Config, error) {
	if errors.Is(err, maps.ErrEmpty) {
		return cfg, fmt.Errorf("%w: %w; \"hairpin attach\" applies the file", loader.ErrNotLoaded, err)
	}
	if err != nil {
		return cfg, fmt.Errorf("read the running configuration: %w", err)
	}
	return cfg, nil
}

// open opens the datapath for reading, without a lock.
func (a *app) open() (*session, error) {
	datapath, err := loader.Open(loader.Options{Dir: a.dir})
	if err != nil {
		return nil, err
	}
	return newSession(datapath, nil), nil
}

// openLocked opens the datapath to change it.
func (a *app) openLocked(ctx context.Context) (*session, error) {
	// Checked first, because taking the lock may mount a bpffs on the directory.
	if err := loader.Check(loader.Options{Dir: a.dir}); err != nil {
		return nil, err
	}
	release, err := a.lock(ctx)
	if err != nil {
		return nil, err
	}
	datapath, err := loader.Open(loader.Options{Dir: a.dir})
	if err != nil {
		release()
		return nil, err
	}
	return newSession(datapath, release), nil
}

// load opens the datapath to change it, and creates it if there is none.
func (a *app) load(ctx context.Context, maxConnections uint32) (*session, error) {
	release, err := a.lock(ctx)
	if err != nil {
		return nil, err
	}
	if err := loader.Check(loader.Options{Dir: a.dir}); err == nil {
		maxConnections = 0 // as it is: resizeNotice tells of a difference
	}
	datapath, err := loader.Load(loader.Options{Dir: a.dir, MaxConnections: maxConnections})
	if err != nil {
		release()
		return nil, err
	}
	return newSession(datapath, release), nil
}

// discard removes a datapath that this command created, after it failed to bring the
// datapath into service. A datapath that existed before stays.
func (a *app) discard(s *session) error {
	defer s.unlock()
	adopted := s.datapath.Adopted()
	if err := s.datapath.Close(); err != nil || adopted {
		return err
	}
	return errors.Join(releasePresence(a.dir), loader.Remove(a.dir))
}

// lock takes the writer lock.
func (a *app) lock(ctx context.Context) (func(), error) {
	ctx, cancel := context.WithTimeout(ctx, a.lockWait)
	defer cancel()
	return loader.Lock(ctx, a.dir)
}

// maxConnections is the size of the connection table, which is fixed when the
// datapath is created.
func (s *session) maxConnections() uint32 {
	return maps.ConnectionsLimit(s.datapath.Objects())
}

// resizeNotice is a warning if cfg asks for another size of the connection table than
// the running one has; else "".
func (s *session) resizeNotice(cfg maps.Config) string {
	if have := s.maxConnections(); have != cfg.MaxConnections {
		return fmt.Sprintf("max_connections is %d at the moment; %d takes effect after \"hairpin detach --all\", which ends every connection, and \"hairpin attach\"",
			have, cfg.MaxConnections)
	}
	return ""
}

// pendingNotice is a warning about configured interfaces that do not exist, "" if all
// do; daemon says that a daemon runs, which will attach them.
func pendingNotice(ports []port, daemon bool) string {
	names := pending(ports)
	if len(names) == 0 {
		return ""
	}
	text := "no such interface yet: " + strings.Join(names, ", ")
	if !daemon {
		text += "; \"hairpin run\" attaches them when they appear, \"hairpin attach\" once they are there"
	}
	return text
}

// notices prints a warning for each text that is not empty.
func (a *app) notices(texts ...string) {
	for _, text := range texts {
		if text != "" {
			a.warn("%s", text)
		}
	}
}
