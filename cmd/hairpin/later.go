// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/syslog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hairpin/cmd/hairpin/change"
	"hairpin/cmd/hairpin/detached"
	"hairpin/cmd/hairpin/router"
	"hairpin/loader"
)

// laterName is the hidden command that does later what is due later.
const laterName = "finish-changes"

const (
	// lookEvery is how often the watcher looks whether a change waits, and whether its time is over.
	lookEvery = 500 * time.Millisecond
	// drainsEvery is how often it looks at forwards that drain: it counts all connections.
	drainsEvery = 2 * time.Second
	// laterPause is the time after a failure.
	laterPause = 5 * time.Second
)

func (a *app) laterCommand() *cobra.Command {
	return &cobra.Command{
		Use:    laterName,
		Short:  "Take a change back that nobody confirms, and delete forwards that have drained",
		Hidden: true,
		Args:   takes(0),
		RunE: func(command *cobra.Command, _ []string) error {
			return a.finishLater(command.Context())
		},
	}
}

// finishLater runs in a process of its own until nothing waits any more; see packages change and detached. The time is compared with the
// clock every lookEvery, because the clock of a timer stands still while the machine sleeps.
func (a *app) finishLater(ctx context.Context) error {
	defer func() { a.changes = false }() // nobody ran this command
	if err := detached.Ready(); err != nil {
		return err
	}
	told := ""
	for drainsAt := change.SinceBoot(); ; {
		drains := change.SinceBoot() >= drainsAt
		if drains {
			drainsAt = change.SinceBoot() + drainsEvery
		}
		waits, err := a.finishOnce(ctx, drains)
		pause := lookEvery
		switch {
		case errors.Is(err, loader.ErrNotLoaded):
			return err // nothing runs, so nothing can be taken back
		case err != nil:
			if pause = laterPause; err.Error() != told {
				tellSystem(syslog.LOG_ERR, err.Error())
			}
			told = err.Error()
		case !waits:
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// finishOnce does what is due, and reports whether something still waits. Without drains it does not look at forwards that drain, and
// takes it that some do.
func (a *app) finishOnce(ctx context.Context, drains bool) (waits bool, err error) {
	p, err := a.store().Pending()
	if err != nil {
		return true, err
	}
	due := p != nil && change.Left(p) == 0
	waits = p != nil || !drains
	if drains {
		if drains, waits, err = a.drainsOver(waits); err != nil {
			return true, err
		}
	}
	if !due && !drains {
		return waits, nil
	}
	w, err := a.openWriter(ctx)
	if err != nil {
		return true, err
	}
	defer w.Close()
	reverted, err := w.keeper.Settle()
	if reverted != nil {
		tellSystem(syslog.LOG_WARNING, reverted.String())
	}
	gone, failed := w.keeper.FinishDrains()
	if len(gone) > 0 {
		tellSystem(syslog.LOG_INFO, "deleted forwards that had drained: "+strings.Join(gone, ", "))
	}
	return true, errors.Join(err, failed)
}

// drainsOver reports whether a forward has drained, and whether something waits: a forward that drains, or what waited before.
func (a *app) drainsOver(waited bool) (over, waits bool, err error) {
	s, err := router.Open(a.dir)
	if err != nil {
		return false, true, err
	}
	defer s.Close()
	keeper := &change.Keeper{Router: s.Router}
	over, some, err := keeper.DrainsOver()
	return over, waited || some, err
}

// tellSystem writes to the system's log, if there is one: this process has no terminal.
func tellSystem(priority syslog.Priority, text string) {
	log, err := syslog.New(syslog.LOG_DAEMON|priority, "hairpin")
	if err != nil {
		return
	}
	defer log.Close()
	_, _ = fmt.Fprint(log, text)
}
