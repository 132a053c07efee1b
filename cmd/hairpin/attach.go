// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"hairpin/loader"
	"hairpin/maps"
)

func (a *app) attachCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "attach",
		Short: "Load, attach to the configured interfaces and apply the file, once, without a daemon",
		Long: `Load the programs, attach them to the configured interfaces and apply the file,
once, without a daemon. If hairpin is attached already and the file has not
changed, the running forwards stay as they are, and only interfaces without the
programs get them.`,
		Args: takes(0),
		RunE: func(command *cobra.Command, _ []string) error {
			return a.attach(command.Context())
		},
	}
}

func (a *app) detachCommand() *cobra.Command {
	var all bool
	command := &cobra.Command{
		Use:   "detach [--all]",
		Short: "Take the programs off all interfaces; --all removes forwards, connections and pins too",
		Long: `Take the programs off all interfaces. Forwards and connections stay in the
kernel until the next attach, apply or change of a forward, which attaches again.
Meanwhile the kernel itself answers the packets of these connections: its RST
ends them at their client. --all removes forwards and connections too, with
every pin and the mount.`,
		Args: takes(0),
		RunE: func(command *cobra.Command, _ []string) error {
			if all {
				return a.detachAll(command.Context())
			}
			return a.detach(command.Context())
		},
	}
	command.Flags().BoolVar(&all, "all", false, "remove forwards, connections, pins and the mount too")
	return command
}

func (a *app) upgradeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "upgrade",
		Short: "Replace the attached programs by this binary's; no packet and no connection is lost",
		Args:  takes(0),
		RunE: func(command *cobra.Command, _ []string) error {
			s, err := a.openLocked(command.Context())
			if err != nil {
				return err
			}
			defer s.Close()
			if err := s.datapath.Upgrade(); err != nil {
				return fmt.Errorf("upgrade: %w", err)
			}
			attachments, err := s.datapath.Attachments()
			if err != nil {
				return fmt.Errorf("list attachments: %w", err)
			}
			a.say("upgraded on %s", count(len(attachments), "interface"))
			if !a.json {
				return nil
			}
			rows, err := s.attachedRows()
			if err != nil {
				return err
			}
			return a.printInterfaces("upgrade", rows)
		},
	}
}

func (a *app) attach(ctx context.Context) error {
	cfg, err := a.readConfig(a.configFile)
	if err != nil {
		return err
	}
	if err := loader.CheckMount(a.dir); err != nil {
		return err
	}
	s, err := a.load(ctx, cfg.MaxConnections)
	if err != nil {
		return err
	}
	result, err := s.start(cfg)
	if err = errors.Join(err, refusals(result.ports)); err != nil {
		return errors.Join(err, a.discard(s))
	}
	defer s.Close()
	a.say("%s", result)
	daemon, err := daemonRuns(a.dir)
	if err != nil {
		return err
	}
	a.notices(s.resizeNotice(cfg), unconfigured(cfg, a.configFile), pendingNotice(result.ports, daemon))
	a.notices(notForwarding(serves6(cfg), result.ports, forwards)...)
	return a.printInterfaces("attach", newPortRows(result.ports))
}

func (s started) String() string {
	var attached int
	for _, p := range s.ports {
		if p.attachment != nil {
			attached++
		}
	}
	text := fmt.Sprintf("attached to %s", count(attached, "interface"))
	if !s.kept {
		return text + ", applied: " + changeText(s.change)
	}
	text += ", kept the running configuration"
	if differ := len(s.change.Added) + len(s.change.Removed) + len(s.change.Changed); differ > 0 {
		text += fmt.Sprintf("; %s not as in the files, see \"hairpin diff\"", count(differ, "forward"))
	}
	return text
}

// detach leaves maps and pins: only the programs go. The tables keep interfaces and addresses, so that connections without
// traffic meanwhile go on after the next attach, which compares the addresses with the machine's. WANs come last: while
// a LAN has its program, packets leave by watched WANs only.
func (a *app) detach(ctx context.Context) error {
	s, err := a.openLocked(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := a.refuseIfDaemon("would attach again at once"); err != nil {
		return err
	}
	attachments, err := s.datapath.Attachments()
	if err != nil {
		return fmt.Errorf("list attachments: %w", err)
	}
	var rows []portRow
	if a.json {
		if rows, err = s.attachedRows(); err != nil {
			return err
		}
	}
	guarded := func(a loader.Attachment) bool { return a.Guard }
	lans := slices.DeleteFunc(slices.Clone(attachments), guarded)
	wans := slices.DeleteFunc(slices.Clone(attachments), func(a loader.Attachment) bool { return !guarded(a) })
	var errs []error
	for _, attachment := range append(lans, wans...) {
		errs = append(errs, s.datapath.Detach(attachment.Index))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	a.say("detached from %s; \"hairpin attach\" resumes", count(len(attachments), "interface"))
	return a.printInterfaces("detach", detachedRows(rows))
}

// printInterfaces prints the JSON document of a command that changed interfaces:
// {"schema":1,"<name>":{"interfaces":[..]}}, as status has them.
func (a *app) printInterfaces(name string, rows []portRow) error {
	if !a.json {
		return nil
	}
	return a.printJSON(name, map[string]any{"interfaces": append([]portRow{}, rows...)})
}

// attachedRows are the interfaces that have the programs, those of the
// configuration first.
func (s *session) attachedRows() ([]portRow, error) {
	cfg, err := s.tables.Settings()
	if err != nil && !errors.Is(err, maps.ErrEmpty) {
		return nil, fmt.Errorf("read what runs: %w", err)
	}
	seen, err := s.look(cfg)
	if err != nil {
		return nil, err
	}
	ports := slices.DeleteFunc(seen.ports, func(p port) bool { return p.attachment == nil })
	for i := range seen.strays {
		stray := port{name: seen.strays[i].Interface, attachment: &seen.strays[i]}
		if at := slices.IndexFunc(seen.links, func(l loader.Link) bool { return l.Index == stray.attachment.Index }); at >= 0 {
			stray.link = &seen.links[at]
		}
		ports = append(ports, stray)
	}
	return newPortRows(ports), nil
}

// detachedRows are rows of interfaces that had the programs until now.
func detachedRows(rows []portRow) []portRow {
	for i := range rows {
		row := &rows[i]
		row.State, row.Mode, row.Guard, row.RxVLAN, row.Reason = "detached", "", false, "", ""
	}
	return rows
}

// attachedNow lists the attachments of the datapath in a.dir; none if it is of another
// version.
func (a *app) attachedNow() []portRow {
	s, err := a.open()
	if err != nil {
		return nil
	}
	defer s.Close()
	rows, err := s.attachedRows()
	if err != nil {
		return nil
	}
	return rows
}

func (a *app) detachAll(ctx context.Context) error {
	if _, err := os.Lstat(a.dir); errors.Is(err, fs.ErrNotExist) {
		a.say("nothing to do: there is no %s", a.dir)
		return a.printInterfaces("detach", nil)
	}
	// The datapath is not opened, so that pins of another schema, or incomplete ones, can
	// be removed as well.
	release, err := a.lock(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := a.refuseIfDaemon("uses what would be removed"); err != nil {
		return err
	}
	rows := a.attachedNow()
	if err := releasePresence(a.dir); err != nil {
		return err
	}
	if err := loader.Remove(a.dir); err != nil {
		return err
	}
	a.say("detached; nothing of hairpin is left in %s", a.dir)
	return a.printInterfaces("detach", detachedRows(rows))
}

func (a *app) refuseIfDaemon(why string) error {
	runs, err := daemonRuns(a.dir)
	if err == nil && runs {
		err = fmt.Errorf("%w: it %s; stop it first (systemctl stop hairpin)", errDaemonRuns, why)
	}
	return err
}
