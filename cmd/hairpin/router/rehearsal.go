// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"fmt"
	"strings"

	"hairpin/cmd/hairpin/diagnose"
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
	// NotForwarding returns "" if the kernel forwards packets of this IP version that come in by an interface; otherwise what is off, and the
	// command that turns it on.
	NotForwarding func(link *loader.Link, v6 bool) string
}

// Rehearse prepares questions about the running configuration. Close the Rehearsal before the Session.
func (s *Session) Rehearse() (*Rehearsal, error) {
	program, err := s.datapath.Rehearse()
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
	tables := maps.NewIn(program.Objects(), s.datapath.Slots())
	return &Rehearsal{
		Rehearsal: program, Tables: tables, Running: s.Tables, Config: cfg, Links: links, NotForwarding: s.notForwarding,
	}, nil
}

// Rehearse prepares questions about a configuration that does not run, as if it ran on this machine.
func Rehearse(cfg config.Config) (_ *Rehearsal, err error) {
	program, err := loader.NewRehearsal()
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
	return &Rehearsal{
		Rehearsal: program, Tables: tables, Config: cfg, Links: links, NotForwarding: r.notForwarding,
	}, r.stage(cfg, links)
}

// notForwarding is Rehearsal.NotForwarding.
func (r *Router) notForwarding(link *loader.Link, v6 bool) string {
	here, all := r.forwarding(link.Name), r.forwarding("all")
	if v6 {
		here.IPv4, all.IPv4 = true, true // the question is not about IPv4
	}
	if here.IPv4 && (here.IPv6 || !v6) {
		return ""
	}
	facts := &diagnose.Facts{
		Ports:      []diagnose.Port{{Name: link.Name, Link: link, Attachment: new(loader.Attachment), Forwarding: here}},
		Forwarding: all,
	}
	return strings.Join(diagnose.Notices(diagnose.Forwarding(facts, v6)), "; ")
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
