// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"

	"hairpin/cmd/hairpin/change"
	"hairpin/cmd/hairpin/control"
	"hairpin/cmd/hairpin/detached"
	"hairpin/cmd/hairpin/history"
	"hairpin/cmd/hairpin/places"
	"hairpin/cmd/hairpin/presence"
	"hairpin/cmd/hairpin/router"
	"hairpin/maps/config"
)

// open opens the datapath for reading, without a lock.
func (a *app) open() (*router.Session, error) { return router.Open(a.dir) }

// openLocked takes the writer lock and opens the datapath.
func (a *app) openLocked(ctx context.Context) (*router.Session, error) {
	a.changes = true
	ctx, cancel := context.WithTimeout(ctx, a.lockWait)
	defer cancel()
	return router.OpenLocked(ctx, a.dir)
}

// load takes the writer lock and opens the datapath. It creates the datapath if there is none.
func (a *app) load(ctx context.Context, maxConnections uint32) (*router.Session, error) {
	a.changes = true
	ctx, cancel := context.WithTimeout(ctx, a.lockWait)
	defer cancel()
	return router.Load(ctx, a.dir, maxConnections)
}

// tellChanged tells the daemon what this command has changed, for its log. It does not matter whether a daemon runs.
func (a *app) tellChanged(ctx context.Context, args []string) {
	_ = control.TellChanged(ctx, places.Socket(a.dir), control.Changed{Command: history.Shorten(strings.Join(args, " ")), Login: loginName()})
}

// loginName returns the name of the user who logged in: sudo and su keep it (proc_pid_loginuid(5)). It returns "" if nobody did, as for a
// program that a service started.
func loginName() string {
	const nobody = "4294967295"
	id, err := os.ReadFile("/proc/self/loginuid")
	if err != nil || string(id) == nobody {
		return ""
	}
	if login, err := user.LookupId(string(id)); err == nil {
		return login.Username
	}
	return string(id)
}

// store is where the configurations of this datapath are kept.
func (a *app) store() *history.Store { return history.New(places.State(a.dir)) }

// writer is a datapath that this command may change.
type writer struct {
	*router.Session
	keeper *change.Keeper
}

// openToChange takes the writer lock and opens the datapath. First it does what is overdue: it takes a change back that was not confirmed
// in time, and deletes forwards whose connections have had their time.
func (a *app) openToChange(ctx context.Context) (*writer, error) {
	w, err := a.openWriter(ctx)
	if err != nil {
		return nil, err
	}
	reverted, err := w.keeper.Settle()
	if reverted != nil {
		a.say("%s", reverted)
	}
	if err == nil {
		_, err = w.keeper.FinishDrains()
	}
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// openWriter is openToChange without the overdue work.
func (a *app) openWriter(ctx context.Context) (*writer, error) {
	s, err := a.openLocked(ctx)
	if err != nil {
		return nil, err
	}
	return &writer{s, &change.Keeper{Router: s.Router, Store: a.store()}}, nil
}

// noticeUnkept warns of a change that runs but is not kept.
func (a *app) noticeUnkept(why error) {
	if why != nil {
		a.warn("the change runs, but \"hairpin rollback\" cannot return to it later: %s", why)
	}
}

// startLater starts the process that does what is due later, though this command, the daemon and the terminal are gone.
func (a *app) startLater() error {
	dir, err := filepath.Abs(a.dir)
	if err != nil {
		return err
	}
	return detached.Start(detached.Options{Args: []string{"--bpffs", dir, laterName}, Scope: detached.FindScope()})
}

// afterChange warns of everything in the configuration just applied that has no effect, or no effect yet.
func (a *app) afterChange(s *router.Session, cfg config.Config, file string, result router.Result) {
	daemon, err := presence.Running(a.dir)
	if err != nil {
		a.warn("cannot look for the daemon: %s", err)
	}
	for _, key := range []string{"metrics.listen", "log.connections"} {
		if daemon && !result.Kept && slices.Contains(result.Change.Settings, key) {
			a.say("%s takes effect when the daemon reloads; run \"hairpin reload\"", key)
		}
	}
	a.notices(s.ResizeWarning(cfg), router.Unconfigured(cfg, file), pendingNotice(result.Ports, daemon))
	// Use cfg instead of the tables: reading tens of thousands of forwards from the tables takes longer.
	a.noticeFindings(s.Findings(cfg))
}

// pendingNotice returns a warning about configured interfaces that do not exist, "" if all exist. daemon
// says whether a daemon runs, which attaches these interfaces later.
func pendingNotice(ports []router.Port, daemon bool) string {
	names := router.Pending(ports)
	if len(names) == 0 {
		return ""
	}
	text := "no such interface yet: " + strings.Join(names, ", ")
	if daemon {
		return text + "; the daemon attaches when an interface appears"
	}
	return text + "; run \"hairpin attach\" when they exist, or start the daemon (systemctl start hairpin), which attaches by itself"
}

// notices prints each text that is not empty as a warning.
func (a *app) notices(texts ...string) {
	for _, text := range texts {
		if text != "" {
			a.warn("%s", text)
		}
	}
}

func (a *app) refuseIfDaemon(why string) error {
	runs, err := presence.Running(a.dir)
	if err == nil && runs {
		err = fmt.Errorf("%w and %s; stop the daemon first (systemctl stop hairpin)", presence.ErrRunning, why)
	}
	return err
}
