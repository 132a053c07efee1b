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
	Probe(ifname string, want loader.Hooks) error
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
	HasIPv6() (bool, error)
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
				p.err = fmt.Errorf("%s is the loopback device, to which hairpin attaches in any case; name the WAN and LAN interfaces in the configuration", name)
			case p.link.PortOf != "":
				// Programs that it has had until now are stray.
				p.err = fmt.Errorf("%s is a port of %s, which receives its packets; name %s in the configuration", name, p.link.PortOf, p.link.PortOf)
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

// hooks are what a port is to get in a mode. The leak guard is only added here: without the role of a WAN it lets every
// packet pass, and settle takes it off.
func (p port) hooks(mode string) loader.Hooks {
	return loader.Hooks{Mode: loader.Mode(mode), Guard: p.guarded() || p.attachment != nil && p.attachment.Guard}
}

// due are the ports that have to get programs: those that lack some in this mode, and all where the mode before was another.
func due(ports []port, mode, before string) (list []*port) {
	for i := range ports {
		p := &ports[i]
		if p.link != nil && p.err == nil && (mode != before || p.lacks(mode)) {
			list = append(list, p)
		}
	}
	return list
}

// probe asks, changing nothing, whether the interfaces would take the programs. A port that would refuse them keeps the
// reason in err.
func (r *router) probe(ports []port, mode, before string) error {
	for _, p := range due(ports, mode, before) {
		if err := r.attacher.Probe(p.name, p.hooks(mode)); errors.Is(err, loader.ErrNoInterface) {
			p.link, p.attachment = nil, nil // went away since it was listed
		} else {
			p.err = err
		}
	}
	return refusals(ports)
}

// attach puts the programs on the ports that lack them, or have them in another mode. It also takes XDP off where XDP does
// not see VLAN tags any more. A port that refuses the programs keeps the reason in err. undo brings the mode before back.
func (r *router) attach(ports []port, mode, before string) (undo func() error) {
	var back []func() error
	for _, p := range due(ports, mode, before) {
		back = append(back, r.reversal(*p, before))
		attachment, err := r.attacher.Attach(p.name, p.hooks(mode))
		switch {
		case errors.Is(err, loader.ErrNoInterface):
			p.link, p.attachment = nil, nil
		case err != nil:
			p.err = err
		default:
			p.attachment = &attachment
		}
	}
	return func() error {
		var errs []error
		for _, do := range back {
			if err := do(); !errors.Is(err, loader.ErrNoInterface) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	}
}

// reversal returns a function that undoes an attach: it restores the programs that the port has now, in the mode before.
// It also serves ports that refuse the programs, because some of the programs may be attached by then.
func (r *router) reversal(p port, before string) func() error {
	if p.attachment == nil {
		index := p.link.Index
		return func() error { return r.attacher.Detach(index) }
	}
	hooks := loader.Hooks{Mode: loader.Mode(before), Guard: p.attachment.Guard}
	return func() error {
		_, err := r.attacher.Attach(p.name, hooks)
		return err
	}
}

// guarded reports whether the leak guard belongs on a port.
func (p port) guarded() bool { return p.role == maps.RoleWAN }

// up reports whether packets may come by a port from outside.
func (p port) up() bool { return p.role != maps.RoleLocal && p.link != nil && p.link.Up }

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
	r.attach(seen.ports, cfg.Mode, cfg.Mode)
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
			return maps.Change{}, fmt.Errorf("read the running configuration: %w", err)
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

// change makes cfg what runs. It reads everything and asks every interface first; then it attaches, changes the tables by what
// prepare returns, and tells them what is there. Until the tables have changed, every step can be taken back: a change
// that is refused leaves what runs as it was.
func (r *router) change(cfg maps.Config, prepare func() (func() (maps.Change, error), error)) (applied, error) {
	p, err := r.plan(cfg)
	if err != nil {
		return applied{}, err
	}
	return r.commit(p, prepare)
}

// plan is what a change has found out before it changes anything.
type plan struct {
	cfg    maps.Config
	before string // the mode that runs
	fresh  bool   // nothing was ever applied
	seen   sight
}

// plan refuses what an interface would refuse.
func (r *router) plan(cfg maps.Config) (plan, error) {
	running, err := r.tables.Settings()
	p := plan{cfg: cfg, before: running.Mode, fresh: errors.Is(err, maps.ErrEmpty)}
	if p.fresh {
		p.before = cfg.Mode
	} else if err != nil {
		return plan{}, fmt.Errorf("read the running configuration: %w", err)
	}
	if p.seen, err = r.look(cfg); err != nil {
		return plan{}, err
	}
	return p, r.probe(p.seen.ports, cfg.Mode, p.before)
}

// commit carries a plan out. The tables are prepared first, as they may refuse, too. The programs go on next: a mode may
// change under the old tables, as TC does all that XDP does.
func (r *router) commit(p plan, prepare func() (func() (maps.Change, error), error)) (applied, error) {
	var (
		swap      func() (maps.Change, error)
		refused   error
		preparing sync.WaitGroup
	)
	preparing.Go(func() { swap, refused = prepare() })
	if !p.fresh {
		preparing.Wait()
	} // Otherwise both go on at once: they wait for the kernel most of the time.
	if !p.fresh && refused != nil {
		return applied{}, refused
	}
	undo := r.attach(p.seen.ports, p.cfg.Mode, p.before)
	preparing.Wait()
	err := errors.Join(refused, refusals(p.seen.ports))
	var change maps.Change
	if err == nil {
		change, err = swap()
	}
	if err != nil && !errors.Is(err, maps.ErrUnfinished) {
		return applied{}, errors.Join(err, undo())
	}
	err = errors.Join(err, r.settle(p.seen, p.cfg.Mode))
	return applied{done: true, change: change, ports: p.seen.ports}, err
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
		return started{}, fmt.Errorf("read the running configuration: %w", err)
	}
	if err != nil || running.Digest != cfg.Digest {
		result, err := r.apply(cfg)
		return started{change: result.change, ports: result.ports}, err
	}
	change, err := r.tables.Plan(cfg)
	if err != nil {
		return started{}, fmt.Errorf("compare with the running configuration: %w", err)
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
