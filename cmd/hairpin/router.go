// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"hairpin/loader"
	"hairpin/maps"
)

// attacher is what the commands and the daemon need of a *loader.Datapath.
type attacher interface {
	Attach(ifname string, want loader.Hooks) (loader.Attachment, error)
	Detach(ifindex int) error
	Attachments() ([]loader.Attachment, error)
}

// tables is what the commands and the daemon change of *maps.Tables.
type tables interface {
	Running() (maps.Config, error)
	Settings() (maps.Config, error)
	Plan(maps.Config) (maps.Change, error)
	Prepare(maps.Config) (swap func() (maps.Change, error), err error)
	Add(maps.Forward) (bool, error)
	SetInterfaces([]maps.Interface) error
	BumpRoutes() error
}

// router brings programs and tables in line with a configuration and with the
// interfaces that the machine has at this moment. Whoever calls a method that
// changes something holds the writer lock.
type router struct {
	attacher attacher
	tables   tables
	links    func() ([]loader.Link, error)
	routes   func() ([]netip.Prefix, error)
}

// port is one interface of the configuration as it stands now.
type port struct {
	name       string
	role       maps.Role
	link       *loader.Link       // nil: there is none of this name, it is pending
	attachment *loader.Attachment // nil: the programs are not on it
	err        error              // why they are not, if that was tried or cannot be
}

// sight is what is there at one moment.
type sight struct {
	ports  []port
	strays []loader.Attachment // whatever else is attached
	links  []loader.Link       // of the ports and all others
}

// look reports the interfaces of cfg and whatever else is there, changing nothing.
func (r *router) look(cfg maps.Config) (sight, error) {
	links, err := r.links()
	if err != nil {
		return sight{}, fmt.Errorf("list interfaces: %w", err)
	}
	attachments, err := r.attacher.Attachments()
	if err != nil {
		return sight{}, fmt.Errorf("list attachments: %w", err)
	}
	var ports []port
	byIndex := make(map[int]*loader.Attachment, len(attachments))
	for i := range attachments {
		byIndex[attachments[i].Index] = &attachments[i]
	}
	byName := make(map[string]*loader.Link, len(links))
	for i := range links {
		byName[links[i].Name] = &links[i]
	}

	add := func(names []string, role maps.Role) {
		for _, name := range names {
			p := port{name: name, role: role, link: byName[name]}
			switch {
			case p.link == nil:
			case p.link.Loopback:
				p.err = fmt.Errorf("%s is the loopback device, which is watched anyway; name the WAN and LAN interfaces in the configuration", name)
			case p.link.PortOf != "":
				// Programs that it has had until now are stray.
				p.err = fmt.Errorf("%s is a port of %s, and what arrives there is %s's; name that one in the configuration", name, p.link.PortOf, p.link.PortOf)
			default:
				p.attachment = byIndex[p.link.Index]
				delete(byIndex, p.link.Index)
			}
			if p.attachment != nil && p.attachment.XDP == "" {
				p.attachment.Reason = p.link.NoXDP(loader.Mode(cfg.Mode))
			}
			ports = append(ports, p)
		}
	}
	add(cfg.WAN, maps.RoleWAN)
	add(cfg.LAN, maps.RoleLAN)
	if own := slices.IndexFunc(links, func(link loader.Link) bool { return link.Loopback }); own >= 0 && len(ports) > 0 {
		// By it the router's own processes reach the forwards.
		link := &links[own]
		ports = append(ports, port{name: link.Name, role: maps.RoleLocal, link: link, attachment: byIndex[link.Index]})
		delete(byIndex, link.Index)
	}
	var strays []loader.Attachment
	for _, a := range attachments {
		if byIndex[a.Index] != nil {
			strays = append(strays, a)
		}
	}
	return sight{ports, strays, links}, nil
}

// attach puts the programs on the ports that lack them, and the leak guard on WANs that lack that; and XDP
// gives way, or the NIC, where VLAN tags have come to be out of its sight. A port that refuses them keeps the reason in err; added are the interfaces that had none before. A guard is
// only added here: without the role of a WAN it lets everything pass.
func (r *router) attach(ports []port, mode string) (added []int) {
	for i := range ports {
		p := &ports[i]
		if p.link == nil || p.err != nil || !p.lacks(mode) {
			continue
		}
		want := loader.Hooks{Mode: loader.Mode(mode), Guard: p.guarded() || p.attachment != nil && p.attachment.Guard}
		attachment, err := r.attacher.Attach(p.name, want)
		switch {
		case errors.Is(err, loader.ErrNoInterface):
			p.link = nil // went away since it was listed
		case err != nil:
			p.err = err
		case p.attachment == nil:
			added = append(added, attachment.Index)
			fallthrough
		default:
			p.attachment = &attachment
		}
	}
	return added
}

// guarded reports whether the leak guard belongs on a port.
func (p port) guarded() bool { return p.role == maps.RoleWAN }

// lacks reports whether a port is without a program that belongs on it, or has XDP that must not be as it is.
func (p port) lacks(mode string) bool {
	return p.attachment == nil || p.guarded() && !p.attachment.Guard || p.blind(mode)
}

// blind reports whether XDP runs where it does not see VLAN tags: VLAN devices came, or somebody switched
// the offload on again.
func (p port) blind(mode string) bool {
	return p.attachment.XDP != "" && (p.link.StripsTags() || p.link.NoXDP(loader.Mode(mode)) != "")
}

// follow brings programs and tables in line with the machine's interfaces, cfg
// being what runs. Ports that refuse the programs are left out.
func (r *router) follow(cfg maps.Config) ([]port, error) {
	seen, err := r.look(cfg)
	if err != nil {
		return nil, err
	}
	r.attach(seen.ports, cfg.Mode)
	return seen.ports, r.settle(seen, cfg.Mode)
}

// settle tells the tables what is there and then frees interfaces that are none of
// the ports, and those that are no WAN any more of their guard: in this order, so
// that no packet is sent by an unwatched interface.
func (r *router) settle(seen sight, mode string) error {
	if err := r.tables.SetInterfaces(seen.interfaces()); err != nil {
		return fmt.Errorf("set interfaces: %w", err)
	}
	var errs []error
	for _, stray := range seen.strays {
		errs = append(errs, r.attacher.Detach(stray.Index))
	}
	for i := range seen.ports {
		p := &seen.ports[i]
		if p.attachment == nil || !p.attachment.Guard || p.guarded() {
			continue
		}
		attachment, err := r.attacher.Attach(p.name, loader.Hooks{Mode: loader.Mode(mode)})
		if err == nil {
			p.attachment = &attachment
		} else if !errors.Is(err, loader.ErrNoInterface) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// forget takes the programs off interfaces that they were on before and that are
// not here any more: what is left of one that was deleted goes, and one that went
// to another network namespace does not translate there.
func (r *router) forget(before []port) error {
	links, err := r.links()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	var errs []error
	for _, p := range before {
		if p.attachment == nil {
			continue
		}
		index := p.attachment.Index
		if !slices.ContainsFunc(links, func(link loader.Link) bool { return link.Index == index }) {
			errs = append(errs, r.attacher.Detach(index))
		}
	}
	return errors.Join(errs...)
}

// check refuses what only the machine at hand can tell to be wrong with cfg.
func (r *router) check(cfg maps.Config) error {
	links, err := r.links()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	problems := cfg.CheckAddresses(machine(cfg, links))
	if len(cfg.StandIns) > 0 {
		// Only then: there may be a million.
		routes, err := r.routes()
		if err != nil {
			return err
		}
		problems = errors.Join(problems, cfg.CheckRoutes(routes))
	}
	return invalid(whereWritten(cfg, problems))
}

// whereWritten puts before each problem of a forward the place in a file that the forward is from.
func whereWritten(cfg maps.Config, problems error) error {
	var errs []error
	for _, problem := range maps.Problems(problems) {
		var err error = problem
		if i := problem.Index; i >= 0 && cfg.Forwards[i].Source != "" && cfg.Forwards[i].Source != sourceCLI {
			err = fmt.Errorf("%s: %w", cfg.Forwards[i].Source, problem)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// applied says what apply did.
type applied struct {
	done   bool // cfg runs, even if an error says that something about it went wrong
	change maps.Change
	ports  []port
}

// apply makes cfg what runs: wholly, or not at all if an interface refuses the
// programs or the tables refuse the forwards.
func (r *router) apply(cfg maps.Config) (applied, error) {
	if err := r.check(cfg); err != nil {
		return applied{}, err
	}
	return r.change(cfg, func() (func() (maps.Change, error), error) { return r.tables.Prepare(cfg) })
}

// add makes a forward run beside those that do, running being what runs, with or
// without its forwards. The tables may be able to do that in no more time than it
// takes; else it is to apply them all.
func (r *router) add(running maps.Config, forward maps.Forward) (applied, error) {
	alone := running
	alone.Forwards = []maps.Forward{forward}
	if err := r.check(alone); err != nil {
		return applied{}, err
	}
	add := func() (maps.Change, error) {
		done, err := r.tables.Add(forward)
		if done || err != nil {
			return maps.Change{Added: []string{forward.Name}}, err
		}
		wanted, err := r.tables.Running()
		if err != nil {
			return maps.Change{}, fmt.Errorf("read what runs: %w", err)
		}
		wanted.Forwards = append(slices.Clip(wanted.Forwards), forward)
		swap, err := r.tables.Prepare(wanted)
		if err != nil {
			return maps.Change{}, err
		}
		return swap()
	}
	return r.change(running, func() (func() (maps.Change, error), error) { return add, nil })
}

// change attaches the ports of cfg, changes the tables, and tells them what is there.
// What prepare returns changes them.
func (r *router) change(cfg maps.Config, prepare func() (func() (maps.Change, error), error)) (applied, error) {
	running, err := r.tables.Settings()
	fresh := errors.Is(err, maps.ErrEmpty)
	if fresh {
		running.Mode = cfg.Mode // nothing is attached by another
	} else if err != nil {
		return applied{}, fmt.Errorf("read what runs: %w", err)
	}
	seen, err := r.look(cfg)
	if err != nil {
		return applied{}, err
	}
	ports := seen.ports
	prepare = sync.OnceValues(prepare)
	var preparing sync.WaitGroup
	if fresh {
		// Both wait for the kernel most of the time. Where something runs, nothing is
		// written before every interface has taken the programs.
		preparing.Go(func() { _, _ = prepare() })
	}
	added := r.attach(ports, cfg.Mode)
	preparing.Wait()
	if err := refusals(ports); err != nil {
		return applied{}, errors.Join(err, r.undo(added))
	}
	tables, err := prepare()
	if err != nil {
		return applied{}, errors.Join(err, r.undo(added))
	}
	change, err := tables()
	if err != nil {
		return applied{}, errors.Join(err, r.undo(added))
	}
	if running.Mode != cfg.Mode {
		err = r.reattach(ports, added, cfg.Mode)
	}
	err = errors.Join(err, r.settle(seen, cfg.Mode))
	return applied{done: true, change: change, ports: ports}, err
}

// reattach moves the ports that were attached before to another mode.
func (r *router) reattach(ports []port, added []int, mode string) error {
	fresh := make(map[int]bool, len(added))
	for _, index := range added {
		fresh[index] = true
	}
	for i := range ports {
		if p := &ports[i]; p.attachment != nil && !fresh[p.attachment.Index] {
			p.attachment = nil
		}
	}
	r.attach(ports, mode)
	return refusals(ports)
}

func (r *router) undo(added []int) error {
	var errs []error
	for _, index := range added {
		errs = append(errs, r.attacher.Detach(index))
	}
	return errors.Join(errs...)
}

// started says how start left things.
type started struct {
	kept   bool        // what ran before goes on
	change maps.Change // what was changed; if kept, what the file would change
	ports  []port
}

// start brings a datapath into service. One that was served with these very
// files before keeps what runs, with the forwards that were changed at run
// time; otherwise cfg is applied.
func (r *router) start(cfg maps.Config) (started, error) {
	running, err := r.tables.Settings()
	if err != nil && !errors.Is(err, maps.ErrEmpty) {
		return started{}, fmt.Errorf("read what runs: %w", err)
	}
	if err != nil || running.Digest != cfg.Digest {
		result, err := r.apply(cfg)
		return started{change: result.change, ports: result.ports}, err
	}
	change, err := r.tables.Plan(cfg)
	if err != nil {
		return started{}, fmt.Errorf("compare with what runs: %w", err)
	}
	ports, err := r.follow(running)
	return started{kept: true, change: change, ports: ports}, err
}

// refusals joins the errors of ports that refused the programs.
func refusals(ports []port) error {
	var errs []error
	for _, p := range ports {
		errs = append(errs, p.err)
	}
	return errors.Join(errs...)
}

// interfaces are all there are, as the tables want them: first, with their roles,
// the ports that have the programs. What generic XDP would redirect to a veth is
// left to TC.
func (s sight) interfaces() []maps.Interface {
	generic := slices.ContainsFunc(s.ports, func(p port) bool { return p.attachment != nil && p.attachment.XDP == loader.XDPGeneric })
	var interfaces []maps.Interface
	watched := make(map[int]bool)
	for _, p := range s.ports {
		if p.attachment != nil && p.link != nil {
			i := asInterface(*p.link, p.role)
			i.XDPTransmit = i.XDPTransmit && !(generic && p.link.Veth)
			interfaces = append(interfaces, i)
			watched[p.link.Index] = true
		}
	}
	for _, link := range s.links {
		if !watched[link.Index] {
			interfaces = append(interfaces, asInterface(link, 0))
		}
	}
	return interfaces
}

// machine is every interface there is, those of cfg with their role.
func machine(cfg maps.Config, links []loader.Link) []maps.Interface {
	roles := make(map[string]maps.Role)
	for _, name := range cfg.LAN {
		roles[name] = maps.RoleLAN
	}
	for _, name := range cfg.WAN {
		roles[name] = maps.RoleWAN
	}
	interfaces := make([]maps.Interface, 0, len(links))
	for _, link := range links {
		interfaces = append(interfaces, asInterface(link, roles[link.Name]))
	}
	return interfaces
}

func asInterface(link loader.Link, role maps.Role) maps.Interface {
	return maps.Interface{
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

// pending names the ports that are not there.
func pending(ports []port) []string {
	var names []string
	for _, p := range ports {
		if p.link == nil {
			names = append(names, p.name)
		}
	}
	return names
}

// mode is how an interface is attached: "xdp+tcx", "xdp-generic+tcx", "tcx",
// "clsact" and so on; empty if it is not.
func (p port) mode() string {
	if p.attachment == nil {
		return ""
	}
	var parts []string
	switch p.attachment.XDP {
	case "":
	case "native":
		parts = append(parts, "xdp")
	default:
		parts = append(parts, "xdp-"+p.attachment.XDP)
	}
	if p.attachment.TC != "" {
		parts = append(parts, p.attachment.TC)
	}
	return strings.Join(parts, "+")
}

// addresses are those of a port that forwards can listen on.
func (p port) addresses() []netip.Addr {
	if p.link == nil {
		return nil
	}
	var list []netip.Addr
	for _, prefix := range slices.Concat(p.link.Addresses, p.link.Passive) {
		if addr := prefix.Addr(); maps.IsExternal(addr) {
			list = append(list, addr)
		}
	}
	return list
}

// hasFamily reports whether a port has an address that forwards to target can listen on.
func (p port) hasFamily(target netip.Addr) bool {
	return slices.ContainsFunc(p.addresses(), func(addr netip.Addr) bool { return addr.Is6() == target.Is6() })
}
