// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"fmt"

	"hairpin/loader"
	"hairpin/maps"
	"hairpin/maps/config"
)

// Rehearsal is a program that decides about packets without effect, with what it decides by.
type Rehearsal struct {
	*loader.Rehearsal
	Tables  *maps.Tables // of the rehearsal
	Running *maps.Tables // of the running datapath; nil: the configuration does not run
	Config  config.Config
	Links   []loader.Link
}

// Rehearse prepares questions about the running configuration and one IP version. Close the Rehearsal before the Session.
func (s *Session) Rehearse(v6 bool) (*Rehearsal, error) {
	program, err := s.datapath.Rehearse(v6)
	if err != nil {
		return nil, err
	}
	// Read while the program is being loaded.
	cfg, err := s.Settings()
	if err != nil {
		return nil, errors.Join(err, program.Close())
	}
	links, err := s.listLinks()
	if err != nil {
		return nil, errors.Join(err, program.Close())
	}
	return &Rehearsal{Rehearsal: program, Tables: maps.New(program.Objects()), Running: s.Tables, Config: cfg, Links: links}, nil
}

// Rehearse prepares questions about a configuration that does not run, as if it ran on this machine, and about one IP version.
func Rehearse(cfg config.Config, v6 bool) (_ *Rehearsal, err error) {
	program, err := loader.NewRehearsal(v6)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, program.Close())
		}
	}()
	tables := maps.New(program.Objects())
	o := kernel()
	o.Tables = tables
	r := New(o)
	links, err := r.listLinks()
	if err != nil {
		return nil, err
	}
	if err := r.check(cfg, links); err != nil {
		return nil, err
	}
	return &Rehearsal{Rehearsal: program, Tables: tables, Config: cfg, Links: links}, r.stage(cfg, links)
}

// stage writes cfg into the tables, as if the programs were on every interface that cfg names.
func (r *Router) stage(cfg config.Config, links []loader.Link) error {
	seen := inventory{links: links, xdpTx: cfg.XDPTx}
	seen.addPorts(cfg.WAN, config.RoleWAN, cfg.Mode, nil)
	seen.addPorts(cfg.LAN, config.RoleLAN, cfg.Mode, nil)
	seen.addLoopback(nil)
	for i := range seen.ports {
		if p := &seen.ports[i]; p.Link != nil && p.Err == nil {
			p.Attachment = &loader.Attachment{Interface: p.Name, Index: p.Link.Index}
		}
	}
	if _, err := r.tables.Prepare(cfg); err != nil {
		return err
	}
	if err := r.tables.Swap(); err != nil {
		return err
	}
	if err := r.settlePolicies(); err != nil {
		return err
	}
	if err := r.tables.SetInterfaces(seen.interfaces()); err != nil {
		return fmt.Errorf("set interfaces: %w", err)
	}
	return nil
}
