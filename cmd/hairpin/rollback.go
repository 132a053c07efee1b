// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hairpin/cmd/hairpin/change"
	"hairpin/cmd/hairpin/control"
	"hairpin/cmd/hairpin/history"
	"hairpin/cmd/hairpin/places"
	"hairpin/maps/compile"
	"hairpin/maps/config"
)

func (a *app) confirmCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "confirm",
		Short: "Keep the change that \"apply --confirm\" made",
		Args:  takes(0),
		RunE: func(command *cobra.Command, _ []string) error {
			return a.confirm(command.Context())
		},
	}
}

func (a *app) confirm(ctx context.Context) error {
	w, err := a.openWriter(ctx)
	if err != nil {
		return err
	}
	defer w.Close()
	kept, unkept, err := w.keeper.Confirm()
	if err != nil {
		return err
	}
	a.say("confirmed: %s", kept.Command)
	a.noticeUnkept(unkept)
	if a.json {
		return a.printJSON("confirm", map[string]string{"command": kept.Command})
	}
	return nil
}

func (a *app) rollbackCommand() *cobra.Command {
	var list bool
	command := &cobra.Command{
		Use:   "rollback [N] [--list]",
		Short: "Run the configuration that ran N changes ago again; N is 1 without it",
		Long: `Run the configuration that ran N changes ago again; N is 1 without it. The last
` + strconv.Itoa(history.Limit) + ` configurations that ran are kept, also those of "forward add" and the like.
--list shows them, with what would change.

While a change waits for "hairpin confirm", rollback returns to the configuration
before that change at once.

The files stay as they are, so the next reload applies them. "hairpin diff" shows
the difference.`,
		Args: takes(1),
		RunE: func(command *cobra.Command, args []string) error {
			if list {
				if len(args) > 0 {
					a.started = false // a usage error
					return errors.New("--list takes no number")
				}
				return a.listKept()
			}
			back := 1
			if len(args) > 0 {
				number, err := strconv.Atoi(args[0])
				if err != nil || number < 1 {
					a.started = false
					return fmt.Errorf("%q is not a number of changes; it is 1 or more, see --list", clip(args[0]))
				}
				back = number
			}
			return a.rollback(command.Context(), back)
		},
	}
	command.Flags().BoolVar(&list, "list", false, "show the configurations that are kept")
	return command
}

func (a *app) rollback(ctx context.Context, back int) error {
	w, err := a.openToChange(ctx)
	if err != nil {
		return err
	}
	defer w.Close()
	out, err := w.keeper.Rollback(back)
	if err != nil {
		return err
	}
	a.say("rolled back: %s", out.Summary())
	a.say("runtime only: the files stay as they are, and the next reload applies them; see \"hairpin diff\"")
	a.noticeUnkept(out.Unkept)
	if a.json {
		return a.printJSON("rollback", withEmptyLists(out.Change))
	}
	return nil
}

// keptRow is the JSON form of a kept configuration.
type keptRow struct {
	Back    int           `json:"back"` // the number for "hairpin rollback"
	Time    time.Time     `json:"time"`
	Command string        `json:"command"`
	Change  config.Change `json:"change"` // what rollback would change
}

// listKept prints the kept configurations, with the difference between what runs and each of them.
func (a *app) listKept() error {
	s, err := a.open()
	if err != nil {
		return err
	}
	defer s.Close()
	keeper := &change.Keeper{Router: s.Router, Store: a.store()}
	running, err := s.Running()
	if err != nil {
		return err
	}
	list, err := keeper.List()
	rows := make([]keptRow, 0, len(list))
	for _, kept := range list {
		cfg, failed := keeper.Store.Config(kept.Generation)
		if failed == nil {
			row := keptRow{Back: kept.Back, Time: kept.Time, Command: kept.Command}
			if row.Change, failed = compile.Compare(running, cfg); failed == nil {
				row.Change = withEmptyLists(row.Change)
				rows = append(rows, row)
			}
		}
		err = errors.Join(err, failed)
	}
	if err != nil {
		a.warn("some kept configurations cannot be shown: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	if a.json {
		return a.printJSON("generations", rows)
	}
	if len(rows) == 0 {
		a.say("no configuration but the running one is kept yet")
		return nil
	}
	t := newTable(a.out, "N", "TIME", "COMMAND", "ROLLBACK WOULD CHANGE")
	for _, row := range rows {
		t.row(strconv.Itoa(row.Back), row.Time.Local().Format(time.DateTime), row.Command, shortChange(row.Change))
	}
	return t.flush()
}

// shortChange names the differences on a short line: "+ssh -web ~mail; timeouts.udp".
func shortChange(c config.Change) string {
	const most = 6
	var words []string
	for _, list := range []struct {
		sign  string
		names []string
	}{{"+", c.Added}, {"-", c.Removed}, {"~", c.Changed}, {"", c.Settings}} {
		for _, name := range list.names {
			words = append(words, list.sign+name)
		}
	}
	if len(words) == 0 {
		return "nothing"
	}
	if len(words) > most {
		words = append(slices.Clip(words[:most]), fmt.Sprintf("and %d more", len(words)-most))
	}
	return strings.Join(words, " ")
}

func (a *app) reloadCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Have the daemon apply its files, and wait for its answer",
		Long: `Have the daemon apply its files, and wait for its answer. The exit code is that of
"hairpin apply" for the same files: 1 for a mistake in a file, and nothing changes.
If no daemon runs, the exit code is 4.`,
		Args: takes(0),
		RunE: func(command *cobra.Command, _ []string) error {
			return a.reload(command.Context())
		},
	}
}

// reloadError is the daemon's reason not to run the files, with the exit code that it gave.
type reloadError struct {
	text string
	code int
}

func (e reloadError) Error() string { return e.text }

func (a *app) reload(ctx context.Context) error {
	answer, err := control.AskReload(ctx, places.Socket(a.dir))
	if errors.Is(err, control.ErrNoDaemon) {
		return fmt.Errorf("%w; start it (systemctl start hairpin), or apply the file without a daemon (hairpin apply)", err)
	}
	if err != nil {
		return err
	}
	if a.json {
		err = a.printJSON("reload", answer)
	}
	if answer.Done {
		a.say("reloaded: %s", answer.Summary)
	}
	if len(answer.Errors) > 0 || !answer.Done {
		return errors.Join(err, reloadError{strings.Join(answer.Errors, "\n"), answer.Code})
	}
	return err
}
