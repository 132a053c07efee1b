// SPDX-License-Identifier: Apache-2.0

// Package router makes the kernel match the configuration: the programs on the interfaces, and the tables
// that the programs read.
//
// A change is a transaction. The plan reads everything and asks every interface. The commit executes the
// plan, and undoes it if a step fails. The result says what runs. A change that fails has changed nothing.
//
// The package never reads a configuration file, prints or logs, and it starts no goroutine that outlives a
// call: between two calls only the kernel keeps state.
package router

import (
	"errors"
	"fmt"
	"net/netip"

	"hairpin/loader"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// SourceCLI is the source of a forward that no file defines.
const SourceCLI = "cli"

// Datapath has the methods of *loader.Datapath that a Router uses.
type Datapath interface {
	Probe(ifname string, want loader.Hooks) error
	Attach(ifname string, want loader.Hooks) (loader.Attachment, error)
	Detach(ifindex int) error
	Attachments() ([]loader.Attachment, error)
}

// Tables has the methods of *maps.Tables that a Router uses.
type Tables interface {
	Running() (config.Config, error)
	Settings() (config.Config, error)
	Plan(config.Config) (config.Change, error)
	Prepare(config.Config) (config.Change, error)
	Swap() error
	Add(rule.Forward) (bool, error)
	SetInterfaces([]config.Interface) error
	HasIPv6() (bool, error)
	BumpRoutes() error
}

// Options are the parts of the system that a Router reads and changes.
type Options struct {
	Datapath Datapath
	Tables   Tables
	Links    func() ([]loader.Link, error)
	Routes   func() ([]netip.Prefix, error)
	// Forwards reports whether the kernel forwards packets that arrive on an interface, or on "all";
	// sysctl is "net.ipv4" or "net.ipv6".
	Forwards func(sysctl, ifname string) bool
}

// Router changes the running programs and tables. The caller of a method that changes something holds the
// writer lock.
type Router struct {
	datapath Datapath
	tables   Tables
	links    func() ([]loader.Link, error)
	routes   func() ([]netip.Prefix, error)
	forwards func(sysctl, ifname string) bool
}

// New makes a Router. A Router needs no Close.
func New(o Options) *Router {
	return &Router{datapath: o.Datapath, tables: o.Tables, links: o.Links, routes: o.Routes, forwards: o.Forwards}
}

// kernel returns the Options for this machine's kernel, without a datapath.
func kernel() Options {
	return Options{Links: loader.Links, Routes: loader.Routes, Forwards: forwards}
}

// CheckHere fails if cfg does not fit this machine. It needs no datapath. If no interface of cfg exists,
// cfg is for another machine, and CheckHere returns nil.
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

// Check fails if cfg does not fit this machine. The error has a *rule.Problem for each fault.
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
		// Read routes only for reflect prefixes: a router may have a million routes.
		routes, err := r.routes()
		if err != nil {
			return err
		}
		problems = errors.Join(problems, cfg.CheckRoutes(routes))
	}
	return withSources(cfg, problems)
}

// withSources adds to each problem of a forward the place in the file that defines the forward.
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

// HasIPv6 reports whether an IPv6 forward runs.
func (r *Router) HasIPv6() (bool, error) { return r.tables.HasIPv6() }

// RoutesChanged makes the datapath resolve every next hop again.
func (r *Router) RoutesChanged() error { return r.tables.BumpRoutes() }

// machine returns every interface; interfaces of cfg have their role.
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
