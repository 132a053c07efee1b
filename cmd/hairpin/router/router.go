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
	"slices"
	"time"

	"hairpin/cmd/hairpin/diagnose"
	"hairpin/loader"
	"hairpin/maps"
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
	Generation() (uint32, error)
	Drains() ([]rule.Forward, error)
	Leases() ([]rule.Forward, error)
	CountConnections(rule.Selector) (maps.Count, error)
	Plan(config.Config) (config.Change, error)
	Prepare(config.Config) (config.Change, error)
	Swap() error
	Add(rule.Forward) (bool, error)
	SetInterfaces([]config.Interface) error
	SetPolicies([]config.Policy) error
	HasInterfaces() (bool, error)
	LostInterfaces() ([]int, error)
	GraceLeft() (left time.Duration, away bool, err error)
	HasIPv6() (bool, error)
	BumpRoutes() error
	SweepDenied() (int, error)
}

// Options are the parts of the system that a Router reads and changes.
type Options struct {
	Datapath Datapath
	Tables   Tables
	Links    func() ([]loader.Link, error)
	Routes   func() ([]netip.Prefix, error)
	Policies func() ([]loader.Policy, error) // IPsec policies for packets that leave
	// Forwards reports whether the kernel forwards packets that arrive on an interface, or on "all";
	// sysctl is "net.ipv4" or "net.ipv6".
	Forwards func(sysctl, ifname string) bool
	// Shaping looks at an interface; nil: nothing is shaped.
	Shaping func(ifindex int) (loader.Shaping, error)
	// Conntrack says whether the programs ask the kernel's connection tracking, or could.
	Conntrack func() (loader.Conntrack, error)
	// Look adds to facts what only findings need: rules of netfilter, sockets, routes. done ends the use of the facts. nil: nothing
	// is added.
	Look func(facts *diagnose.Facts) (done func())
}

// Router changes the running programs and tables. The caller of a method that changes something holds the
// writer lock.
type Router struct {
	datapath Datapath
	tables   Tables
	links    func() ([]loader.Link, error)
	routes   func() ([]netip.Prefix, error)
	policies func() ([]loader.Policy, error)
	forwards func(sysctl, ifname string) bool
	shaping  func(ifindex int) (loader.Shaping, error)

	conntrack func() (loader.Conntrack, error)
	look      func(*diagnose.Facts) func()
}

// New makes a Router. A Router needs no Close.
func New(o Options) *Router {
	return &Router{
		datapath: o.Datapath, tables: o.Tables, links: o.Links, routes: o.Routes, policies: o.Policies, forwards: o.Forwards,
		shaping: o.Shaping, conntrack: o.Conntrack, look: o.Look,
	}
}

// kernel returns the Options for this machine's kernel, without a datapath.
func kernel() Options {
	return Options{
		Links: loader.Links, Routes: loader.Routes, Policies: loader.Policies, Forwards: forwards, Shaping: loader.ShapingOf,
		Look:      look,
		Conntrack: func() (loader.Conntrack, error) { return loader.FindConntrack("/sys"), nil },
	}
}

// CheckHere fails if cfg does not fit this machine. It needs no datapath. If no interface of cfg exists,
// cfg is for another machine, and CheckHere returns nil.
func CheckHere(cfg config.Config) error {
	r := New(kernel())
	links, err := r.listLinks()
	if err != nil {
		return err
	}
	if !isMachineOf(cfg, links) {
		return nil
	}
	return r.check(cfg, links)
}

// isMachineOf reports whether this machine has one of the interfaces of cfg.
func isMachineOf(cfg config.Config, links []loader.Link) bool {
	return slices.ContainsFunc(machine(cfg, links), func(i config.Interface) bool { return i.Role != 0 })
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

// GraceLeft returns how long it takes until the connections of a lost address end, or until an interface that has lost its name loses
// its programs. away reports whether there is such an address or interface. Then Follow must be called.
func (r *Router) GraceLeft() (left time.Duration, away bool, err error) { return r.tables.GraceLeft() }

// Running returns the running configuration. Before the first one, the error wraps maps.ErrEmpty.
func (r *Router) Running() (config.Config, error) { return r.tables.Running() }

// Settings returns the running configuration without its forwards.
func (r *Router) Settings() (config.Config, error) { return r.tables.Settings() }

// Generation returns a number that is another one after every change.
func (r *Router) Generation() (uint32, error) { return r.tables.Generation() }

// Drains returns the running forwards that drain.
func (r *Router) Drains() ([]rule.Forward, error) { return r.tables.Drains() }

// Leases returns the running forwards that stand for mappings in lease files, without those that drain.
func (r *Router) Leases() ([]rule.Forward, error) { return r.tables.Leases() }

// Inside returns a function that says why an address cannot be the target of a mapping: it is in no network of a LAN of cfg, or no other
// host may have it. A program of the LAN asks for mappings, so their targets are hosts of the LAN.
func (r *Router) Inside(cfg config.Config) (func(netip.Addr) error, error) {
	links, err := r.listLinks()
	if err != nil {
		return nil, err
	}
	here, alone := machine(cfg, links), cfg
	alone.StandIns = nil
	return func(target netip.Addr) error {
		for _, link := range here {
			if link.Role != config.RoleLAN {
				continue
			}
			if slices.ContainsFunc(link.Addresses, func(p netip.Prefix) bool { return p.Masked().Contains(target) }) {
				alone.Forwards = []rule.Forward{{Target: target}}
				if problems := rule.Problems(alone.CheckAddresses(here)); len(problems) > 0 {
					return errors.New(problems[0].Message)
				}
				return nil
			}
		}
		return fmt.Errorf("%s is in no network of a LAN interface", target)
	}, nil
}

// Connections returns the number of connections of each forward that has some.
func (r *Router) Connections() (map[string]int, error) {
	now, err := r.tables.CountConnections(rule.Selector{})
	return now.Forwards, err
}

// HasIPv6 reports whether an IPv6 forward runs.
func (r *Router) HasIPv6() (bool, error) { return r.tables.HasIPv6() }

// RoutesChanged makes the datapath resolve every next hop again.
func (r *Router) RoutesChanged() error { return r.tables.BumpRoutes() }

// listPolicies returns the IPsec policies as the tables want them.
func (r *Router) listPolicies() ([]config.Policy, error) {
	list, err := r.policies()
	if err != nil {
		return nil, err
	}
	policies := make([]config.Policy, 0, len(list))
	for _, p := range list {
		policies = append(policies, config.Policy{
			Source: config.PolicySide(p.Source), Destination: config.PolicySide(p.Destination), Protocol: p.Protocol, Protects: p.Protects,
		})
	}
	return policies, nil
}

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
		Bare:         link.Bare,
		RPFilter:     link.RPFilter,
		Below:        link.Below,
		HardwareAddr: link.HardwareAddr,
	}
}
