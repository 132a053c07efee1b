// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"net/netip"
	"sync"

	"hairpin/cmd/hairpin/diagnose"
	"hairpin/cmd/hairpin/gather"
	"hairpin/loader"
	"hairpin/maps"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// Findings are about what cfg asks for on this machine, whether it runs or not: what works otherwise than most people expect,
// although nothing is wrong with cfg itself. Findings of level OK are left out.
func (r *Router) Findings(cfg config.Config) ([]diagnose.Finding, error) {
	seen, err := r.inventory(cfg)
	if err != nil {
		return nil, err
	}
	return r.findings(cfg, seen)
}

// FindingsOf are the Findings that concern a forward of cfg, which has just been added.
func (r *Router) FindingsOf(cfg config.Config, forward rule.Forward) ([]diagnose.Finding, error) {
	seen, err := r.inventory(cfg)
	if err != nil {
		return nil, err
	}
	facts, done, err := r.facts(cfg, seen)
	if err != nil {
		return nil, err
	}
	defer done()
	facts.Added = &forward
	d := diagnose.New(facts, diagnose.Addition)
	d.Add(&forward)
	return withoutOK(d.Findings()), nil
}

// FindingsHere are Findings without a datapath.
func FindingsHere(cfg config.Config) ([]diagnose.Finding, error) {
	r := New(kernel())
	seen, err := r.inventoryHere(cfg)
	if err != nil {
		return nil, err
	}
	return r.findings(cfg, seen)
}

// findings returns nothing on a machine that has none of the interfaces of cfg, as CheckHere.
func (r *Router) findings(cfg config.Config, seen inventory) ([]diagnose.Finding, error) {
	if !isMachineOf(cfg, seen.links) {
		return nil, nil
	}
	facts, done, err := r.facts(cfg, seen)
	if err != nil {
		return nil, err
	}
	defer done()
	d := diagnose.New(facts, diagnose.Change)
	for i := range cfg.Forwards {
		d.Add(&cfg.Forwards[i])
	}
	return withoutOK(d.Findings()), nil
}

func withoutOK(findings []diagnose.Finding) (list []diagnose.Finding) {
	for _, f := range findings {
		if f.Level != diagnose.OK {
			list = append(list, f)
		}
	}
	return list
}

// Diagnosis asks for all findings.
type Diagnosis struct {
	Datapath *diagnose.Datapath // what the caller knows of the datapath; Diagnose adds to it
	Probe    bool               // connect to the targets by TCP
}

// Diagnose returns all findings about the running configuration.
func (s *Session) Diagnose(cfg config.Config, ask Diagnosis) ([]diagnose.Finding, error) {
	seen, err := s.inventory(cfg)
	if err != nil {
		return nil, err
	}
	d := ask.Datapath
	if d.Outdated, err = s.datapath.Outdated(); err != nil {
		return nil, err
	}
	d.Invalid = append(d.Invalid, s.problems(cfg, seen)...)
	d.Resize = s.ResizeWarning(cfg)
	return s.diagnose(cfg, seen, ask, s.Tables.EachForward, func(d *diagnose.Datapath) error { return s.traffic(d, seen.ports) })
}

// problems returns what CheckAddresses and the routes have against the running configuration, one forward at a time.
func (s *Session) problems(cfg config.Config, seen inventory) (list []string) {
	here, alone := machine(cfg, seen.links), cfg
	alone.StandIns, alone.Forwards = nil, make([]rule.Forward, 1)
	list = problemTexts(s.check(cfg, seen.links))
	_ = s.Tables.EachForward(func(f *rule.Forward) bool { // diagnose returns the error of the same call
		alone.Forwards[0] = *f
		list = append(list, problemTexts(alone.CheckAddresses(here))...)
		return true
	})
	return list
}

// traffic adds to d how the forwards are used.
func (s *Session) traffic(d *diagnose.Datapath, ports []Port) error {
	answers, established, err := s.Tables.Answers()
	if err != nil {
		return err
	}
	d.Connections, d.Limit = established, s.MaxConnections()
	counters, err := s.Tables.Counters()
	if err != nil {
		return err
	}
	d.PrivateDropped = privateSources(counters, ports)
	if d.Away, err = s.Tables.AwayAddresses(); err != nil {
		return err
	}
	d.Traffic = make(map[string]diagnose.Traffic, len(answers))
	for name, a := range answers {
		d.Traffic[name] = diagnose.Traffic(a)
	}
	return nil
}

// DiagnoseHere returns all findings about a configuration, without a datapath.
func DiagnoseHere(cfg config.Config, ask Diagnosis) ([]diagnose.Finding, error) {
	r := New(kernel())
	seen, err := r.inventoryHere(cfg)
	if err != nil {
		return nil, err
	}
	ask.Datapath.Invalid = append(ask.Datapath.Invalid, problemTexts(r.check(cfg, seen.links))...)
	return r.diagnose(cfg, seen, ask, func(visit func(*rule.Forward) bool) error {
		for i := range cfg.Forwards {
			if !visit(&cfg.Forwards[i]) {
				break
			}
		}
		return nil
	}, func(*diagnose.Datapath) error { return nil })
}

func problemTexts(err error) (list []string) {
	if err == nil {
		return nil
	}
	problems := rule.Problems(err)
	if len(problems) == 0 {
		return []string{err.Error()}
	}
	for _, p := range problems {
		list = append(list, p.Error())
	}
	return list
}

// diagnose returns all findings. each visits the forwards. traffic adds how the forwards are used; it runs beside the look at the
// machine, because both mostly wait for the kernel.
func (r *Router) diagnose(cfg config.Config, seen inventory, ask Diagnosis, each func(func(*rule.Forward) bool) error,
	traffic func(*diagnose.Datapath) error) ([]diagnose.Finding, error) {
	var counted sync.WaitGroup
	var uncounted error
	counted.Go(func() { uncounted = traffic(ask.Datapath) })
	facts, done, err := r.facts(cfg, seen)
	counted.Wait()
	if err != nil {
		return nil, err
	}
	defer done()
	if uncounted != nil {
		return nil, uncounted
	}
	facts.Datapath = ask.Datapath
	if ask.Probe {
		facts.Probe = gather.Probe
	}
	d := diagnose.New(facts, diagnose.Doctor)
	err = each(func(f *rule.Forward) bool {
		d.Add(f)
		return true
	})
	if err != nil && !errors.Is(err, maps.ErrEmpty) {
		return nil, err
	}
	return d.Findings(), nil
}

// inventoryHere is inventory without a datapath.
func (r *Router) inventoryHere(cfg config.Config) (inventory, error) {
	links, err := r.listLinks()
	if err != nil {
		return inventory{}, err
	}
	seen := inventory{links: links, xdpTx: cfg.XDPTx}
	seen.addPorts(cfg.WAN, config.RoleWAN, cfg.Mode, nil)
	seen.addPorts(cfg.LAN, config.RoleLAN, cfg.Mode, nil)
	seen.addLoopback(nil)
	return seen, nil
}

// facts gathers what the findings need. The caller calls done when it has the findings.
func (r *Router) facts(cfg config.Config, seen inventory) (facts *diagnose.Facts, done func(), err error) {
	facts = &diagnose.Facts{Config: cfg, Links: seen.links, Ports: r.judged(seen.ports, cfg.Mode), Forwarding: r.forwarding("all")}
	if facts.Conntrack, err = r.conntrack(); err != nil {
		return nil, nil, err
	}
	for i := range facts.Ports {
		if p := &facts.Ports[i]; p.Link != nil && r.shaping != nil {
			p.Shaping, p.ShapingErr = r.shaping(p.Link.Index)
		}
	}
	facts.Policies, facts.PoliciesErr = r.listPolicies()
	facts.Ephemeral.First, facts.Ephemeral.Last = loader.EphemeralPorts()
	if r.look == nil {
		return facts, func() {}, nil
	}
	return facts, r.look(facts), nil
}

// judged returns the ports as package diagnose wants them.
func (r *Router) judged(ports []Port, mode string) []diagnose.Port {
	list := make([]diagnose.Port, 0, len(ports))
	for _, p := range ports {
		j := diagnose.Port{Name: p.Name, Role: p.Role, Link: p.Link, Attachment: p.Attachment, Err: p.Err, Addresses: p.Addresses(), Forwarding: r.forwarding(p.Name)}
		if p.Attachment != nil {
			j.LacksGuard = p.needsGuard() && !p.Attachment.Guard
			j.MissesTags = p.missesTags(mode)
		}
		list = append(list, j)
	}
	return list
}

func (r *Router) forwarding(ifname string) diagnose.Families {
	return diagnose.Families{IPv4: r.forwards("net.ipv4", ifname), IPv6: r.forwards("net.ipv6", ifname)}
}

// look is Options.Look for this machine.
func look(f *diagnose.Facts) (done func()) {
	f.Reserved = gather.Sysctl("net/ipv4/ip_local_reserved_ports")
	f.BridgeCall = gather.BridgeCalls()
	for i := range f.Ports {
		f.Ports[i].AcceptRA = gather.AcceptRA(f.Ports[i].Name)
	}
	f.Rules, f.RulesErr = gather.Ruleset()
	var legacy []diagnose.Chain
	legacy, f.Legacy, f.LegacyErr = gather.Legacy()
	if f.Rules == nil && f.RulesErr == nil { // a kernel without nftables
		f.Rules = &diagnose.Ruleset{}
	}
	if f.Rules != nil {
		f.Rules.Chains = append(f.Rules.Chains, legacy...)
	}
	f.Sockets, f.SocketsErr = gather.Sockets()
	f.Owner = gather.Owners()

	names := map[int]string{}
	for _, link := range f.Links {
		names[link.Index] = link.Name
	}
	routing, err := gather.NewRouting(names)
	if err != nil {
		return func() {} // the checks of routes say nothing then
	}
	known := map[netip.Addr]diagnose.Route{}
	f.Route = func(addr netip.Addr) diagnose.Route {
		route, asked := known[addr]
		if !asked {
			route = routing.To(addr)
			known[addr] = route
		}
		return route
	}
	f.DefaultRoutes, f.Neighbour = routing.Defaults(), routing.Neighbour
	return routing.Close
}
