// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"hairpin/loader"
)

func (a *app) prepareCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "prepare",
		Short:  "Do what needs CAP_SYS_ADMIN, so that the daemon can do without: mount the bpffs, upgrade the programs",
		Hidden: true, // for the service unit
		Args:   takes(0),
		RunE:   func(command *cobra.Command, _ []string) error { return a.prepare(command.Context()) },
	}
}

// prepare mounts the bpffs. If hairpin is loaded, it also upgrades the programs: only this process may load programs that call the
// module nf_conntrack, and only it may pin maps that an older version left without pins.
func (a *app) prepare(ctx context.Context) error {
	if err := loader.CheckMount(a.dir); err != nil {
		return err
	}
	if err := loader.Mount(a.dir); err != nil {
		return err
	}
	s, err := a.openLocked(ctx)
	if errors.Is(err, loader.ErrNotLoaded) {
		return nil
	}
	if err != nil {
		return err
	}
	defer s.Close()
	return s.Upgrade()
}
