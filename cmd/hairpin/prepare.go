// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"hairpin/cmd/hairpin/change"
	"hairpin/cmd/hairpin/control"
	"hairpin/cmd/hairpin/places"
	"hairpin/loader"
)

func (a *app) prepareCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "prepare",
		Short:  "Do what needs CAP_SYS_ADMIN, so that the daemon can do without: mount the bpffs, load or upgrade the programs",
		Hidden: true, // for the service unit
		Args:   takes(0),
		RunE:   func(command *cobra.Command, _ []string) error { return a.prepare(command.Context()) },
	}
}

// prepare mounts the bpffs, and loads the programs or upgrades them: only this process may load programs that call the module
// nf_conntrack, and only it may pin maps that an older version left without pins.
func (a *app) prepare(ctx context.Context) error {
	if err := loader.CheckMount(a.dir); err != nil {
		return err
	}
	if err := loader.Mount(a.dir); err != nil {
		return err
	}
	s, err := a.openLocked(ctx)
	defer func() { a.changes = false }() // the daemon starts only now
	if errors.Is(err, loader.ErrNotLoaded) {
		return a.loadEmpty(ctx)
	}
	if err != nil {
		return err
	}
	defer s.Close()
	return a.upgradePrograms(s)
}

// loadEmpty creates the datapath without forwards and attachments. Its tables have the size that the daemon would give them. If no
// configuration can be read, loadEmpty does nothing: the daemon then says why. It does nothing either if a daemon runs, whose bpffs was
// unmounted: the daemon pins everything in the new one.
func (a *app) loadEmpty(ctx context.Context) error {
	if _, err := control.AskStatus(ctx, places.Socket(a.dir)); !errors.Is(err, control.ErrNoDaemon) {
		return err
	}
	cfg, broken := a.readConfig(a.configFile)
	if broken != nil {
		var err error
		if cfg, err = change.Fallback(a.store(), broken); err != nil {
			return nil
		}
	}
	s, err := a.load(ctx, cfg.MaxConnections)
	if err != nil {
		return err
	}
	return s.Close()
}
