// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"hairpin/cmd/hairpin/change"
	"hairpin/cmd/hairpin/control"
	"hairpin/loader"
)

// answer answers commands until stop. If the socket cannot be made, only "hairpin reload" does not work.
func (d *daemon) answer(socket string) (stop func()) {
	server, err := control.Listen(socket, &commands{asked: d.asked, state: &d.state, log: d.log})
	if err != nil {
		d.log.Warn("\"hairpin reload\" does not work; SIGHUP does", "error", err)
		return func() {}
	}
	return func() { server.Close() }
}

// commands answers commands; its methods run outside the loop.
type commands struct {
	asked chan<- chan control.Reload
	log   *slog.Logger
	*state
}

// Changed implements control.Handler.
func (c *commands) Changed(changed control.Changed) {
	attrs := []any{"command", changed.Command, "uid", changed.UID}
	if changed.Login != "" {
		attrs = append(attrs, "login", changed.Login)
	}
	c.log.Info("a command was run", attrs...)
}

// Reload implements control.Handler.
func (c *commands) Reload(ctx context.Context) (control.Reload, error) {
	answer := make(chan control.Reload, 1) // the loop never waits for a command that is gone
	select {
	case c.asked <- answer:
	case <-ctx.Done():
		return control.Reload{}, errors.New("the daemon is busy, or ends")
	}
	select {
	case reload := <-answer:
		return reload, nil
	case <-ctx.Done():
		return control.Reload{}, ctx.Err()
	}
}

// sayApart notes why the forwards are not as in the files; nil: they are.
func (d *daemon) sayApart(why error) {
	if why == nil {
		d.state.apart.Store(nil)
		return
	}
	for line := range strings.Lines(why.Error()) {
		d.log.Error("the files do not run", "error", strings.TrimSuffix(line, "\n"))
	}
	d.state.apart.Store(&apart{"the files do not run: " + why.Error()})
}

func (d *daemon) warnUnkept(why error) {
	if why != nil {
		d.log.Warn("the configuration runs, but \"hairpin rollback\" cannot return to it later", "error", why)
	}
}

// seeFiles looks, after each change, whether a command has made the files run that a reload or the start could not run; or whether the
// files are those of a change that was taken back.
func (d *daemon) seeFiles() {
	if p, err := d.keeper.Store.Pending(); d.waits && p == nil && err == nil {
		d.waits = false
		d.seeEndOfWait()
	}
	now, err := d.router.Generation()
	if err != nil || now == d.apartAt {
		return
	}
	d.apartAt = now
	if d.state.apart.Load() == nil {
		d.seeTakenBack()
		return
	}
	running, err := d.router.Settings()
	if err != nil || running.Digest == "" {
		return
	}
	if files, err := d.read(); err == nil && files.Digest == running.Digest {
		d.log.Info("the files run now")
		d.state.apart.Store(nil)
		d.reloaded(true)
	}
}

// seeEndOfWait says what is true of the files after the change has ended for which the start waited.
func (d *daemon) seeEndOfWait() {
	running, err := d.router.Settings()
	files, failed := d.read()
	if err = errors.Join(err, failed); err != nil {
		d.sayApart(err)
		return
	}
	why, err := d.keeper.Refuses(files.Digest)
	switch {
	case files.Digest == running.Digest:
		d.reloaded(true)
	case why == nil && err == nil:
		why = errors.New("what was confirmed is another configuration; see \"hairpin diff\"")
	}
	d.sayApart(errors.Join(why, err))
}

// seeTakenBack looks whether the files are those of a change that was taken back.
func (d *daemon) seeTakenBack() {
	if refused, err := d.keeper.Store.Refused(); err != nil || refused == nil {
		return
	}
	files, err := d.read()
	if err != nil {
		return // the next reload tells
	}
	if why, err := d.keeper.Refuses(files.Digest); err == nil && why != nil {
		d.sayApart(why)
		d.reloaded(false)
	}
}

// revertPause is the time between two tries to take a change back.
const revertPause = time.Second

// awaitConfirmation sets unconfirmed for the next turn of the loop. A change that begins to wait is seen at the next beat at the latest.
func (d *daemon) awaitConfirmation() {
	d.unconfirmed = nil
	p, err := d.keeper.Store.Pending()
	d.report("look for a change that waits for its confirmation", err)
	if p != nil && err == nil {
		wait := change.Left(p)
		if wait == 0 {
			wait = revertPause // the last try failed, or the time is over in this moment
		}
		d.unconfirmed = time.After(wait)
	}
}

// finishChanges takes a change back that was not confirmed in time, and deletes forwards that have drained.
func (d *daemon) finishChanges(ctx context.Context) {
	p, err := d.keeper.Store.Pending()
	over, _, failed := d.keeper.DrainsOver()
	if err = errors.Join(err, failed); err == nil && (over || p != nil && change.Left(p) == 0) {
		err = d.locked(ctx, func() error {
			// settle comes first. It compares generations to find whether the change that waits was ever made, and FinishDrains begins a
			// new generation.
			failed := d.settle()
			gone, err := d.keeper.FinishDrains()
			if len(gone) > 0 {
				d.log.Info("deleted forwards that had drained", "forwards", gone)
			}
			return errors.Join(failed, err)
		})
	}
	if ctx.Err() == nil && !errors.Is(err, loader.ErrNotLoaded) {
		d.report("finish changes", err)
	}
}

// settle takes a change back that was not confirmed in time. The caller holds the writer lock.
func (d *daemon) settle() error {
	reverted, err := d.keeper.Settle()
	if reverted != nil {
		d.log.Warn(reverted.String())
		d.show(reverted.Ports)
		d.warnUnkept(reverted.Unkept)
	}
	return err
}
