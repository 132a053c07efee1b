// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"hairpin/cmd/hairpin/change"
	"hairpin/cmd/hairpin/router"
	"hairpin/loader"
)

func (a *app) attachCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "attach",
		Short: "Load, attach to the configured interfaces and apply the file, once, without a daemon",
		Long: `Load the programs, attach them to the configured interfaces and apply the file,
once, without a daemon. If hairpin is attached already and the file has not
changed, the running forwards stay as they are. Only interfaces that lack the
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
Until then nothing translates the packets of these connections. The kernel may
answer a client with a RST, which ends the connection at the client. --all removes
forwards and connections too, with every pin and the mount.`,
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
		Short: "Replace the attached programs with those of this binary; no packet or connection is lost",
		Args:  takes(0),
		RunE: func(command *cobra.Command, _ []string) error {
			return a.upgrade(command.Context())
		},
	}
}

func (a *app) upgrade(ctx context.Context) error {
	s, err := a.openLocked(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := a.upgradePrograms(s); err != nil {
		return err
	}
	ports, err := s.Attached()
	if err != nil {
		return err
	}
	a.say("upgraded on %s", count(len(ports), "interface"))
	return a.printInterfaces("upgrade", newPortRows(ports))
}

// upgradePrograms warns if the new programs cannot ask conntrack and the old ones could.
func (a *app) upgradePrograms(s *router.Session) error {
	_, loses, err := s.CompareUpgrade()
	if err == nil {
		err = s.Upgrade()
	}
	if err == nil && loses {
		a.warn("the programs no longer ask conntrack, because CAP_SYS_ADMIN is missing; run \"hairpin upgrade\" as root, with every capability")
	}
	return err
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
	keeper := &change.Keeper{Router: s.Router, Store: a.store()}
	started, err := keeper.Start(cfg, nil)
	if err = errors.Join(err, router.Refusals(started.Ports)); err != nil {
		return errors.Join(err, s.Discard())
	}
	defer s.Close()
	a.say("%s", started)
	if started.Apart != nil {
		a.warn("%s does not run: %s", a.configFile, started.Apart)
	}
	a.noticeUnkept(started.Unkept)
	a.afterChange(s, cfg, a.configFile, started.Result)
	return a.printInterfaces("attach", newPortRows(started.Ports))
}

// detach removes only the programs; maps and pins stay.
func (a *app) detach(ctx context.Context) error {
	s, err := a.openLocked(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := a.refuseIfDaemon("would attach again at once"); err != nil {
		return err
	}
	var ports []router.Port
	if a.json {
		if ports, err = s.Attached(); err != nil {
			return err
		}
	}
	detached, err := s.Detach()
	if err != nil {
		return err
	}
	a.say("detached from %s; \"hairpin attach\" attaches again", count(detached, "interface"))
	return a.printInterfaces("detach", detachedRows(ports))
}

// printInterfaces prints the JSON document of a command that changed interfaces:
// {"schema":1,"<name>":{"interfaces":[..]}}. The rows have the format of status.
func (a *app) printInterfaces(name string, rows []portRow) error {
	if !a.json {
		return nil
	}
	return a.printJSON(name, map[string]any{"interfaces": append([]portRow{}, rows...)})
}

// detachedRows returns the rows of interfaces that had the programs until now.
func detachedRows(ports []router.Port) []portRow {
	for i := range ports {
		ports[i].Attachment = nil
	}
	rows := newPortRows(ports)
	for i := range rows {
		rows[i].State = "detached" // also if the interface no longer exists
	}
	return rows
}

// attachedNow lists the attachments of the datapath in a.dir, nil if this version cannot open the datapath.
func (a *app) attachedNow() []router.Port {
	s, err := a.open()
	if err != nil {
		return nil
	}
	defer s.Close()
	ports, err := s.Attached()
	if err != nil {
		return nil
	}
	return ports
}

func (a *app) detachAll(ctx context.Context) error {
	if _, err := os.Lstat(a.dir); errors.Is(err, fs.ErrNotExist) {
		a.say("nothing to do: there is no %s", a.dir)
		return a.printInterfaces("detach", nil)
	}
	ctx, cancel := context.WithTimeout(ctx, a.lockWait)
	defer cancel()
	release, err := loader.Lock(ctx, a.dir)
	if err != nil {
		return err
	}
	defer release()
	if err := a.refuseIfDaemon("would lose the datapath"); err != nil {
		return err
	}
	ports := a.attachedNow()
	if err := router.Remove(a.dir); err != nil {
		return err
	}
	if err := a.store().ClearPending(); err != nil { // nothing runs, so there is nothing to take back
		a.warn("%s", err)
	}
	a.say("detached; nothing of hairpin is left in %s", a.dir)
	return a.printInterfaces("detach", detachedRows(ports))
}
