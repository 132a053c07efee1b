// SPDX-License-Identifier: Apache-2.0

// Package router brings what runs in line with what should run: the programs on the interfaces, and the tables that the
// programs read.
//
// A change is a transaction. The plan reads everything and asks every interface. The commit carries the plan out, and
// takes it back if a step refuses. The result says what runs. A change that is refused has changed nothing.
//
// The package never reads a configuration file, never prints, never logs, and leaves nothing running behind: the kernel
// alone keeps state between two calls.
package router

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"hairpin/loader"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// SourceCLI is the source of a forward that no file defines.
const SourceCLI = "cli"

// Datapath is what a Router needs of a *loader.Datapath.
type Datapath interface {
	Probe(ifname string, want loader.Hooks) error
	Attach(ifname string, want loader.Hooks) (loader.Attachment, error)
	Detach(ifindex int) error
	Attachments() ([]loader.Attachment, error)
}

// Tables is what a Router needs of *maps.Tables.
type Tables interface {
	Running() (config.Config, error)
	Settings() (config.Config, error)
	Plan(config.Config) (config.Change, error)
	Prepare(config.Config) (swap func() (config.Change, error), err error)
	Add(rule.Forward) (bool, error)
	SetInterfaces([]config.Interface) error
	HasIPv6() (bool, error)
	BumpRoutes() error
	SweepDenied() (int, error)
}

// Options are what a Router reads and changes.
type Options struct {
	Datapath Datapath
	Tables   Tables
	Links    func() ([]loader.Link, error)
	Routes   func() ([]netip.Prefix, error)
	// Forwards reports whether the kernel forwards packets that arrive on an interface, or on "all";
	// sysctl is "net.ipv4" or "net.ipv6".
	Forwards func(sysctl, ifname string) bool
	// Shaping looks at an interface; nil: nothing is shaped.
	Shaping func(ifindex int) (loader.Shaping, error)
}

// Router changes what runs. The caller of a method that changes something holds the writer lock.
type Router struct {
	datapath Datapath
	tables   Tables
	links    func() ([]loader.Link, error)
	routes   func() ([]netip.Prefix, error)
	forwards func(sysctl, ifname string) bool
	shaping  func(ifindex int) (loader.Shaping, error)
}

// New makes a Router. It needs no end.
func New(o Options) *Router {
	return &Router{datapath: o.Datapath, tables: o.Tables, links: o.Links, routes: o.Routes, forwards: o.Forwards, shaping: o.Shaping}
}

// kernel are the options of this machine's kernel, without a datapath.
func kernel() Options {
	return Options{Links: loader.Links, Routes: loader.Routes, Forwards: forwards, Shaping: loader.ShapingOf}
}

// CheckHere refuses what only this machine can tell to be wrong with cfg. It needs no datapath. A machine that has none
// of the interfaces of cfg is not the machine that cfg is for, and refuses nothing.
func CheckHere(cfg config.Config) error {
	r := New(kernel())
	links, err := r.listLinks()
	if err != nil {
		return err
	}
	for _, i := range machine(cfg, links) {
		if i.Role != 0 {
			return r.check(cfg, links)
		}
	}
	return nil
}

// Check refuses what only the machine can tell to be wrong with cfg. Its error has a *rule.Problem for each fault.
func (r *Router) Check(cfg config.Config) error {
	links, err := r.listLinks()
	if err != nil {
		return err
	}
	return r.check(cfg, links)
}

func (r *Router) check(cfg config.Config, links []loader.Link) error {
	problems := cfg.CheckAddresses(machine(cfg, links))
	if len(cfg.StandIns) > 0 {
		// Only then: a router may have a million routes.
		routes, err := r.routes()
		if err != nil {
			return err
		}
		problems = errors.Join(problems, cfg.CheckRoutes(routes))
	}
	return withSources(cfg, problems)
}

// withSources puts before each problem of a forward the place in a file that the forward is from.
func withSources(cfg config.Config, problems error) error {
	var errs []error
	for _, problem := range rule.Problems(problems) {
		var err error = problem
		if i := problem.Index; i >= 0 && cfg.Forwards[i].Source != "" && cfg.Forwards[i].Source != SourceCLI {
			err = fmt.Errorf("%s: %w", cfg.Forwards[i].Source, problem)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (r *Router) listLinks() ([]loader.Link, error) {
	links, err := r.links()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	return links, nil
}

// HasIPv6 reports whether a forward of IPv6 runs.
func (r *Router) HasIPv6() (bool, error) { return r.tables.HasIPv6() }

// RoutesChanged makes the datapath resolve every next hop again.
func (r *Router) RoutesChanged() error { return r.tables.BumpRoutes() }

// SweepDenied removes denied sources whose time is over. They are not denied any more in any case.
func (r *Router) SweepDenied() error {
	_, err := r.tables.SweepDenied()
	return err
}

// OwnAddress is an address of this machine.
type OwnAddress struct {
	Interface string
	Address   netip.Addr
}

// OwnAddresses are those of all interfaces.
func (r *Router) OwnAddresses() ([]OwnAddress, error) {
	links, err := r.listLinks()
	return ownAddresses(links), err
}

func ownAddresses(links []loader.Link) (list []OwnAddress) {
	for _, link := range links {
		for _, prefix := range slices.Concat(link.Addresses, link.Passive) {
			list = append(list, OwnAddress{link.Name, prefix.Addr()})
		}
	}
	return list
}

// machine is every interface there is, those of cfg with their role.
func machine(cfg config.Config, links []loader.Link) []config.Interface {
	roles := make(map[string]config.Role)
	for _, name := range cfg.LAN {
		roles[name] = config.RoleLAN
	}
	for _, name := range cfg.WAN {
		roles[name] = config.RoleWAN
	}
	interfaces := make([]config.Interface, 0, len(links))
	for _, link := range links {
		interfaces = append(interfaces, asInterface(link, roles[link.Name]))
	}
	return interfaces
}

func asInterface(link loader.Link, role config.Role) config.Interface {
	return config.Interface{
		Name:         link.Name,
		Index:        link.Index,
		Role:         role,
		Addresses:    link.Addresses,
		Passive:      link.Passive,
		XDPTransmit:  link.XDPTransmit,
		MTU:          link.MTU,
		PPP:          link.PPP,
		RPFilter:     link.RPFilter,
		HardwareAddr: link.HardwareAddr,
	}
}
