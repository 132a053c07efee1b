// SPDX-License-Identifier: Apache-2.0

package importer

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// Result is the translation of all rules.
type Result struct {
	WAN, LAN []string
	Forwards []Translated // the forwards and intercepts
	Left     []Left       // what was not translated
	Removals []string     // commands that remove the rules that hairpin replaces; from the last rule to the first
	Names    []string     // rules that hairpin replaces, and that no command removes
	Notes    []string     // about the whole configuration
}

// Translated is a forward or intercept with the rules that it replaces.
type Translated struct {
	rule.Forward
	Places []string
	Notes  []string // what is lost
}

// Left is a rule that was not translated.
type Left struct {
	Place  string `json:"place"`
	Reason string `json:"reason"`
	// Said is what its owner wrote about the rule.
	Said string `json:"comment,omitempty"`
}

// Errors of rules that do not show the interfaces which forwards need. Without a LAN interface, hairpin sees no answers of targets.
var (
	ErrNoWAN = errors.New("the rules do not show which interface leads to the Internet; name it by --wan")
	ErrNoLAN = errors.New("the rules do not show which interfaces lead to the servers and clients; name them by --lan")
)

// translator makes forwards of rules.
type translator struct {
	*sides
	found      *found
	router     []netip.Addr
	before     matchIndex          // rules that keep packets from those behind them: with action pass, or left
	excluded   map[string][]string // reasons of rules that an earlier round has left, by place
	late       map[string][]string // the same of this round
	sources    []int               // indices of the rules that translate sources
	candidates []candidate
	inside     []candidate // rules for LAN clients alone, and for the router itself
	left       []Left
	told       map[Left]bool
	notes      []string
}

// candidate is a forward that a rule means.
type candidate struct {
	rule.Forward
	from   *Rule
	places []string
	notes  []string
	served bool // LAN clients, too
	inside bool // the rule is for LAN clients alone, but has an external address
}

// translate goes through the rules in rounds. An untranslated rule stays in netfilter, but hairpin sees packets first. So a later rule that
// matches some of the same packets must stay, too. If a round finds late that a rule cannot be translated, the next round leaves it at once.
func translate(f *found, o Options) (*Result, error) {
	excluded := map[string][]string{}
	for {
		t := &translator{sides: findSides(f, o), found: f, router: o.Router, told: map[Left]bool{}, notes: f.notes, excluded: excluded, late: map[string][]string{}}
		if err := t.round(); err != nil {
			return nil, err
		}
		if len(t.late) == 0 {
			return t.result()
		}
		maps.Copy(excluded, t.late)
	}
}

func (t *translator) round() error {
	reached := map[string]bool{}
	for i := range t.found.rules {
		r := &t.found.rules[i]
		reached[r.place] = reached[r.place] || !r.match.never
		if r.hook == postrouting && !r.disabled && (r.action == masquerade || r.action == snat) {
			t.sources = append(t.sources, i)
		}
	}
	for i := range t.found.rules {
		r := &t.found.rules[i]
		switch {
		case r.disabled && r.action == pass, r.match.never && reached[r.place]:
		case r.hook == prerouting && r.action == pass:
			t.before.add(i, &r.match)
		case r.hook == prerouting && !t.one(i, r) && !r.disabled && !r.match.never:
			t.before.add(i, &r.match)
		case r.hook == output && r.action != pass, r.hook == postrouting && r.action == otherNAT:
			t.one(i, r)
		}
	}
	t.refused()
	t.pairInside()
	t.order()
	t.reflection()
	t.name()
	return t.validate()
}

func (t *translator) leave(r *Rule, format string, args ...any) {
	l := Left{Place: r.place, Reason: fmt.Sprintf(format, args...), Said: r.comment}
	if !t.told[l] {
		t.told[l] = true
		t.left = append(t.left, l)
	}
}

// leaveLate leaves a rule of which earlier steps have made forwards. The next round leaves it at once.
func (t *translator) leaveLate(r *Rule, format string, args ...any) {
	if reason := fmt.Sprintf(format, args...); !slices.Contains(t.late[r.place], reason) {
		t.late[r.place] = append(t.late[r.place], reason)
	}
}

// one translates one rule. It reports whether the rule is not left.
func (t *translator) one(i int, r *Rule) bool {
	if r.disabled {
		t.leave(r, "it is disabled")
		return false
	}
	for _, reason := range t.excluded[r.place] {
		t.leave(r, "%s", reason)
	}
	for _, text := range r.problems {
		t.leave(r, "%s", text)
	}
	for _, text := range r.match.others {
		t.leave(r, "hairpin has no such condition: %s", text)
	}
	if len(t.excluded[r.place])+len(r.problems)+len(r.match.others) > 0 || r.action == otherNAT {
		return false
	}
	narrowed := *r
	r = &narrowed
	if err := t.applyExceptions(i, r); err != nil {
		t.leave(r, "%s", err)
		return false
	}
	targets, err := t.targets(r)
	if err != nil {
		t.leave(r, "%s", err)
		return false
	}
	var made []candidate
	for _, target := range targets {
		list, err := t.forwards(r, target)
		if err != nil {
			t.leave(r, "%s", err)
			return false
		}
		made = append(made, list...)
	}
	if len(made) > maxFrom {
		t.leave(r, "it stands for %d forwards; an import makes at most %d of one rule", len(made), maxFrom)
		return false
	}
	for _, c := range made {
		c.from, c.places = r, []string{r.place}
		if r.hook == output || c.inside {
			t.inside = append(t.inside, c)
		} else {
			t.candidates = append(t.candidates, c)
		}
	}
	return true
}

// applyExceptions takes away from a rule what rules before it keep from it: an earlier "ip saddr 10.0.0.0/8 return".
func (t *translator) applyExceptions(i int, r *Rule) error {
	if r.hook != prerouting {
		return nil
	}
	for _, e := range t.before.meeting(&r.match) {
		x := &t.found.rules[e]
		if x.action == pass && x.until <= i || !x.match.overlaps(&r.match) || x.place == r.place {
			continue
		}
		switch {
		case x.action != pass:
			return fmt.Errorf("%s is left, and takes packets before it", x.place)
		case x.match.covers(&r.match) && x.match.source.not == nil && x.match.source.only != nil && coversNetworks(x.match.dest, r.match.dest):
			r.match.source.not = join(r.match.source.not, x.match.source.only)
		case x.match.covers(&r.match) && x.match.dest.not == nil && x.match.dest.only != nil && coversNetworks(x.match.source, r.match.source):
			r.match.dest.not = join(r.match.dest.not, x.match.dest.only)
		default:
			return fmt.Errorf("%s may take packets away from it", x.place)
		}
	}
	return nil
}

// target is a piece of a rule: ports, and where they lead.
type target struct {
	ports rule.Ports
	addr  netip.Addr
	port  uint16
	dest  []netip.Prefix // of a 1:1 translation: the external address; nil: as the rule says
}

// maxEach is the largest number of ports or addresses that get a forward of their own.
const maxEach = 32

// targets splits a rule into pieces whose ports hairpin can forward.
func (t *translator) targets(r *Rule) ([]target, error) {
	if r.action == oneToOne {
		return oneToOneTargets(r)
	}
	addr := r.target
	if r.action == redirect {
		var err error
		if addr, err = t.routerAddr(r); err != nil {
			return nil, err
		}
	}
	if !addr.IsValid() {
		if r.network.IsValid() {
			return nil, fmt.Errorf("it spreads connections over the targets of %s; write a forward with several servers yourself", r.network)
		}
		return nil, errors.New("it changes the port, but not the address; a forward needs a target")
	}
	if r.match.ports == nil {
		if !r.ports.Every() {
			return nil, fmt.Errorf("every port leads to %s of the target; a forward without a port keeps the ports", r.ports)
		}
		return []target{{addr: addr}}, nil
	}
	if len(r.match.protocols) == 0 {
		return nil, errors.New("it names ports, but no protocol")
	}
	var list []target
	for _, ports := range r.match.ports {
		pieces, err := r.shift(ports)
		if err != nil {
			return nil, err
		}
		for _, piece := range pieces {
			piece.addr = addr
			list = append(list, piece)
		}
	}
	return list, nil
}

// shift returns the target ports of external ports.
func (r *Rule) shift(ports rule.Ports) ([]target, error) {
	to := r.ports
	switch {
	case to.Every(), ports == to, ports.Within(to) && r.base == 0:
		return []target{{ports: ports}}, nil
	case r.base != 0:
		first := int(to.First) + int(ports.First) - int(r.base)
		if ports.First < r.base || first+ports.Len()-1 > int(to.Last) {
			return nil, fmt.Errorf("the external ports %s do not fit the target ports %s", ports, to)
		}
		return []target{{ports: ports, port: uint16(first)}}, nil
	case to.First != to.Last:
		return nil, fmt.Errorf("netfilter chooses one of the target ports %s for each connection to %s; a forward keeps the order of the ports", to, ports)
	case ports.Len() > maxEach:
		return nil, fmt.Errorf("the ports %s lead to the one port %s; that takes a forward for each, and they are more than %d", ports, to, maxEach)
	}
	var list []target
	for port := int(ports.First); port <= int(ports.Last); port++ {
		one := rule.Ports{First: uint16(port), Last: uint16(port)}
		list = append(list, target{ports: one, port: to.First})
	}
	return list, nil
}

// oneToOneTargets returns a piece for each address of a network.
func oneToOneTargets(r *Rule) ([]target, error) {
	if len(r.match.dest.only) != 1 || r.match.dest.only[0].Bits() != r.network.Bits() {
		return nil, errors.New("its networks have different sizes")
	}
	outside := r.match.dest.only[0]
	if outside.Addr().BitLen()-outside.Bits() > 8 {
		return nil, fmt.Errorf("the network %s takes a forward for each address, and they are more than 256", outside)
	}
	var list []target
	inside := r.network.Addr()
	for addr := outside.Addr(); outside.Contains(addr); addr, inside = addr.Next(), inside.Next() {
		one := []netip.Prefix{netip.PrefixFrom(addr, addr.BitLen())}
		if r.match.ports == nil {
			list = append(list, target{addr: inside, dest: one})
		}
		for _, ports := range r.match.ports {
			list = append(list, target{addr: inside, dest: one, ports: ports})
		}
	}
	return list, nil
}

// routerAddr returns where a redirect leads.
func (t *translator) routerAddr(r *Rule) (netip.Addr, error) {
	in := t.incoming(r.match.in)
	if r.match.in.only == nil || len(in.wan) > 0 || in.everyWAN || in.problem != "" {
		if in.problem != "" {
			return netip.Addr{}, errors.New(in.problem)
		}
		return netip.Addr{}, errors.New("it leads to the router itself; a forward leads to another host")
	}
	for _, addr := range t.router {
		if r.match.family == 0 || addr.Is6() == (r.match.family == 6) {
			return addr, nil
		}
	}
	return netip.Addr{}, errors.New("it leads to the router itself: give the router's address in this LAN by --router, and an intercept does it")
}

// forwards returns the forwards of one piece of a rule.
func (t *translator) forwards(r *Rule, at target) (list []candidate, err error) {
	m := &r.match
	dest := m.dest
	if at.dest != nil {
		dest.only = at.dest
	}
	f := rule.Forward{Protocols: m.protocols, Ports: at.ports, Target: at.addr, TargetPort: at.port, Comment: clean(r.comment)}
	if f.Protocols == nil {
		f.Protocols = []rule.Protocol{rule.Any}
	}
	if m.family != 0 && (m.family == 6) != at.addr.Is6() {
		return nil, fmt.Errorf("its packets are IPv%d, but the target %s is not", m.family, at.addr)
	}
	in := t.incoming(m.in)
	if in.problem != "" {
		return nil, errors.New(in.problem)
	}
	onlyLAN := m.in.only != nil && len(in.wan) == 0 && !in.everyWAN
	if onlyLAN && dest.only == nil && !m.local {
		c, err := t.intercept(f, r, in)
		return []candidate{c}, err
	}
	if r.action == redirect {
		return nil, errors.New("it leads to the router itself; a forward leads to another host")
	}
	if f.From, err = sources(m.source, at.addr.Is6()); err != nil {
		return nil, err
	}
	served := m.in.only == nil && (in.everyLAN || len(in.lan) > 0) || len(in.lan) > 0
	externals := []rule.External{{}}
	if !onlyLAN || dest.only != nil {
		if externals, err = t.externals(dest, in, at.addr.Is6()); err != nil {
			return nil, err
		}
	}
	for _, e := range externals {
		c := candidate{Forward: f, served: served, inside: onlyLAN}
		if m.in.only == nil && dest.only == nil && !m.local && r.reflect == "" {
			c.notes = []string{"the rule took packets to every address, also those of LAN clients to the Internet; the forward takes packets to the addresses of WANs"}
		}
		if len(in.wan) > 0 && !in.everyWAN && dest.only != nil {
			c.notes = []string{fmt.Sprintf("the rule took packets that come in by %s; the forward takes all to this address", strings.Join(in.wan, ", "))}
		}
		c.External = e
		list = append(list, c)
	}
	return list, nil
}

// externals returns where the forwards of a rule listen.
func (t *translator) externals(dest networks, in incoming, v6 bool) (list []rule.External, err error) {
	if dest.not != nil && dest.only == nil && !privateOnly(dest.not) {
		return nil, errors.New("it leaves out destinations; a forward has an external address, or those of a WAN")
	}
	if dest.only != nil {
		return addresses(dest, v6)
	}
	if in.everyWAN {
		return []rule.External{{}}, nil
	}
	for _, name := range in.wan {
		list = append(list, rule.External{Interface: name})
	}
	if len(list) == 0 {
		return nil, errors.New("no packet of a WAN matches it")
	}
	return list, nil
}

// privateOnly reports whether all networks are private. Whoever leaves them out means the addresses inside.
func privateOnly(list []netip.Prefix) bool {
	return !slices.ContainsFunc(list, func(p netip.Prefix) bool { return !isPrivate(p.Addr()) })
}

// addresses returns the external addresses of a condition.
func addresses(dest networks, v6 bool) (list []rule.External, err error) {
	for _, p := range dest.only {
		if p.Addr().Is6() != v6 {
			continue
		}
		if size := p.Addr().BitLen() - p.Bits(); size > 5 {
			return nil, fmt.Errorf("the network %s is its destination; that takes a forward for each address, and they are more than %d", p, maxEach)
		}
		for addr := p.Addr(); p.Contains(addr); addr = addr.Next() {
			if !within(netip.PrefixFrom(addr, addr.BitLen()), dest.not) {
				list = append(list, rule.External{Address: addr})
			}
		}
	}
	if len(list) == 0 {
		return nil, errors.New("its destination and its target have different families")
	}
	return list, nil
}

// sources returns the list from of a forward.
func sources(n networks, v6 bool) (list []netip.Prefix, err error) {
	own := func(all []netip.Prefix) (mine []netip.Prefix) {
		for _, p := range all {
			if p.Addr().Is6() == v6 {
				mine = append(mine, p)
			}
		}
		return mine
	}
	only, not := own(n.only), own(n.not)
	if n.only != nil && len(only) == 0 {
		return nil, errors.New("its clients and its target have different families")
	}
	if len(not) == 0 {
		return only, nil
	}
	left, ok := without(v6, not)
	if only != nil {
		left = []netip.Prefix{}
		for _, p := range only {
			parts := []netip.Prefix{p}
			for _, hole := range not {
				var next []netip.Prefix
				for _, part := range parts {
					next = append(next, cut(part, hole)...)
				}
				parts = next
			}
			left = append(left, parts...)
		}
		ok = len(left) <= maxFrom
	}
	if !ok {
		return nil, fmt.Errorf("the clients that it leaves out would need a list of more than %d networks in from", maxFrom)
	}
	if len(left) == 0 {
		return nil, errors.New("it leaves out all of its clients")
	}
	slices.SortFunc(left, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return left, nil
}

// intercept returns the intercept of a rule for LAN clients and any destination.
func (t *translator) intercept(f rule.Forward, r *Rule, in incoming) (candidate, error) {
	m := &r.match
	if m.source.only != nil {
		return candidate{}, errors.New("it is for some clients alone; an intercept is for a LAN, and has except")
	}
	if f.Ports.Every() || slices.ContainsFunc(f.Protocols, func(p rule.Protocol) bool { return p != rule.TCP && p != rule.UDP }) {
		return candidate{}, errors.New("it takes more than ports of tcp and udp from LAN clients; an intercept has only these")
	}
	f.Intercept, f.LAN = true, in.lan
	if in.everyLAN {
		f.LAN = nil
	}
	for _, p := range slices.Concat(m.source.not, m.dest.not) {
		if p.Addr().Is6() == f.Target.Is6() && !slices.Contains(f.Except, p) {
			f.Except = append(f.Except, p)
		}
	}
	return candidate{Forward: f, served: true}, nil
}

// refused leaves rules for some clients if another rule is left that takes other clients: hairpin would refuse these.
func (t *translator) refused() {
	for i := range t.candidates {
		c := &t.candidates[i]
		if len(c.From) == 0 {
			continue
		}
		everybody := c.from.match
		everybody.source = networks{}
		for _, e := range t.before.meeting(&everybody) {
			if x := &t.found.rules[e]; x.action != pass && x.place != c.from.place && x.match.overlaps(&everybody) {
				t.leaveLate(c.from, "%s is left, and takes clients that hairpin would refuse", x.place)
				break
			}
		}
	}
}

// pairInside finds the forwards that do what the rules for LAN clients, and for the router's own programs, do.
func (t *translator) pairInside() {
	type key struct {
		protocol rule.Protocol
		ports    rule.Ports
		target   netip.Addr
		port     uint16
	}
	keys := map[key][]int{}
	for i := range t.candidates {
		c := &t.candidates[i]
		if c.Intercept {
			continue
		}
		for _, p := range c.Protocols {
			k := key{p, c.Ports, c.Target, c.TargetPorts().First}
			keys[k] = append(keys[k], i)
		}
	}
	// A rule that leads several ways is left if one of them is.
	left := map[string]bool{}
	for i := range t.inside {
		c := &t.inside[i]
		pairs := 0
		for _, p := range c.Protocols {
			for _, j := range keys[key{p, c.Ports, c.Target, c.TargetPorts().First}] {
				with := &t.candidates[j]
				e := c.External.Address
				if e.IsValid() && with.External.Address.IsValid() && e != with.External.Address {
					continue
				}
				// A forward with from serves the clients inside only if they are in the list, too.
				if len(with.From) > 0 && (len(c.From) == 0 || !privateOnly(c.From)) {
					continue
				}
				if len(with.From) > 0 && c.from.hook == prerouting {
					with.From = union(with.From, c.From)
				}
				pairs++
				with.served = with.served || c.from.hook == prerouting
				with.places = addPlace(with.places, c.from.place)
				break
			}
		}
		switch {
		case pairs == len(c.Protocols) || left[c.from.place]:
		case c.from.hook == output:
			left[c.from.place] = true
			t.leaveLate(c.from, "it is for programs of the router alone; hairpin serves these by each forward, but has no forward for them alone")
		case len(c.From) > 0 && privateOnly(c.From) && c.External.Address.IsValid():
			c.served, c.inside = true, false
			t.candidates = append(t.candidates, *c)
		default:
			left[c.from.place] = true
			t.leaveLate(c.from, "it is for LAN clients alone, and no rule for all clients of the Internet has the same ports and target; a forward serves both, unless from says who may connect")
		}
	}
}

func union(a, b []netip.Prefix) []netip.Prefix {
	for _, p := range b {
		if !slices.Contains(a, p) {
			a = append(a[:len(a):len(a)], p)
		}
	}
	return a
}

func addPlace(places []string, place string) []string {
	if slices.Contains(places, place) {
		return places
	}
	return append(places, place)
}

// reflection sets reflect and clients.
func (t *translator) reflection() {
	for i := range t.candidates {
		c := &t.candidates[i]
		switch {
		case c.from.reflect != "":
			c.Reflect = c.from.reflect
			continue
		case c.Intercept:
			continue
		}
		source := t.sourceOf(c)
		hidden := source != nil && t.hidesAll(source)
		switch {
		case hidden:
			c.Clients = rule.ClientsRouter
		case source == nil || !c.served:
		case source.action == snat && !isPrivate(source.target):
			c.Reflect = rule.ReflectPublic
		case !ownLAN(source, c.Target):
			c.Reflect = rule.ReflectRouter
		}
		// A rule that also masquerades connections to the Internet stays.
		if source != nil && (hidden || c.served) && (source.match.dest.only != nil || ownLAN(source, c.Target) && source.match.out.only != nil) {
			c.places = addPlace(c.places, source.place)
		}
		if !c.served {
			c.Reflect = rule.ReflectOff
		}
	}
}

// sourceOf returns the first rule that translates the source of packets to the target of a forward.
func (t *translator) sourceOf(c *candidate) *Rule {
	for _, i := range t.sources {
		r := &t.found.rules[i]
		m := &r.match
		addr := netip.PrefixFrom(c.Target, c.Target.BitLen())
		switch {
		case len(m.others) > 0 || m.family != 0 && (m.family == 6) != c.Target.Is6():
		case m.out.only != nil && !slices.ContainsFunc(m.out.only, func(n string) bool { return !slices.Contains(t.wan, n) }):
		case m.out.not != nil && m.dest.any(): // what leaves by a WAN
		case m.dest.only != nil && !within(addr, m.dest.only), within(addr, m.dest.not):
		case m.protocols != nil && !slices.ContainsFunc(c.Protocols, func(p rule.Protocol) bool { return slices.Contains(m.protocols, p) || p == rule.Any }):
		case m.ports != nil && !c.Ports.Every() && !slices.ContainsFunc(m.ports, c.TargetPorts().Overlaps):
		default:
			return r
		}
	}
	return nil
}

// hidesAll reports whether a rule translates the source of clients from the Internet, too.
func (t *translator) hidesAll(r *Rule) bool {
	in := t.incoming(r.match.in)
	public := r.match.source.only == nil || slices.ContainsFunc(r.match.source.only, func(p netip.Prefix) bool { return !isPrivate(p.Addr()) })
	return public && (len(in.wan) > 0 || r.match.in.only == nil && len(t.wan) == 0)
}

// ownLAN reports whether a rule translates the source of clients in the target's own LAN alone, as reflect auto does.
func ownLAN(r *Rule, target netip.Addr) bool {
	m := &r.match
	if len(m.in.only) == 1 && slices.Equal(m.in.only, m.out.only) {
		return true
	}
	return m.source.only != nil && !slices.ContainsFunc(m.source.only, func(p netip.Prefix) bool { return !p.Contains(target) || p.Bits() < 16 && p.Addr().Is4() })
}

// firewall notes rules of the forward chains that say who may reach a target: packets of hairpin do not pass them.
func (t *translator) firewall() {
	targets := map[netip.Addr]bool{}
	for i := range t.candidates {
		targets[t.candidates[i].Target] = true
	}
	told := map[string]bool{}
	for i := range t.found.rules {
		r := &t.found.rules[i]
		if r.hook != forwarding || r.disabled || r.match.source.any() || told[r.place] {
			continue
		}
		for _, p := range r.match.dest.only {
			if p.IsSingleIP() && targets[p.Addr()] {
				told[r.place] = true
				t.notes = append(t.notes, fmt.Sprintf("%s says who may reach %s. Translated packets do not pass the firewall: use from in the forward", r.place, p.Addr()))
			}
		}
	}
}

// validate leaves out what hairpin itself refuses, with its reason.
func (t *translator) validate() error {
	for _, p := range rule.Problems(t.config().Validate()) {
		// The last rounds find what is wrong with interfaces.
		if p.Index >= 0 && (p.Field != "external" || len(t.wan) > 0) && (p.Field != "lan" || len(t.lan) > 0) {
			reason := strings.TrimPrefix(p.Error(), fmt.Sprintf("%s %s: ", p.Kind, rule.Quote(p.Forward)))
			t.leaveLate(t.candidates[p.Index].from, "hairpin refuses it: %s", reason)
		} else if p.Index < 0 {
			return p
		}
	}
	return nil
}

func (t *translator) config() config.Config {
	c := config.Default()
	c.WAN, c.LAN = t.wan, t.lan
	for i := range t.candidates {
		c.Forwards = append(c.Forwards, t.candidates[i].Forward)
	}
	return c
}

// result collects the forwards, and the commands that remove the rules that they replace. A rule that was left, in part or as a
// whole, stays.
func (t *translator) result() (*Result, error) {
	if len(t.wan) == 0 && slices.ContainsFunc(t.candidates, func(c candidate) bool { return !c.Intercept && !c.External.Address.IsValid() }) {
		return nil, ErrNoWAN
	}
	if len(t.lan) == 0 && len(t.candidates) > 0 {
		return nil, ErrNoLAN
	}
	t.firewall()
	left := map[string]bool{}
	for _, l := range t.left {
		left[l.Place] = true
	}
	t.sortLeft()
	result := &Result{WAN: t.wan, LAN: t.lan, Left: t.left, Notes: slices.Concat(t.why, t.notes)}
	replaced := map[string]bool{}
	for i := range t.candidates {
		c := &t.candidates[i]
		result.Forwards = append(result.Forwards, Translated{Forward: c.Forward, Places: c.places, Notes: slices.Concat(c.from.notes, c.notes)})
		for _, place := range c.places {
			replaced[place] = !left[place]
		}
	}
	for i := len(t.found.rules) - 1; i >= 0; i-- {
		r := &t.found.rules[i]
		// While a rule is left whose clients a source translation may serve, it stays.
		if !replaced[r.place] || r.hook == postrouting && len(t.left) > 0 {
			continue
		}
		replaced[r.place] = false
		if r.remove == "" {
			name := r.place
			if r.comment != "" {
				name += ": " + clean(r.comment)
			}
			result.Names = append(result.Names, name)
		} else {
			result.Removals = append(result.Removals, r.remove)
		}
	}
	if t.found.cleanup != "" && len(result.Removals) > 0 {
		result.Removals = append(result.Removals, t.found.cleanup)
	}
	return result, nil
}

// sortLeft orders what was left as the rules are ordered.
func (t *translator) sortLeft() {
	at := map[string]int{}
	for i := len(t.found.rules) - 1; i >= 0; i-- {
		at[t.found.rules[i].place] = i
	}
	slices.SortStableFunc(t.left, func(a, b Left) int { return at[a.Place] - at[b.Place] })
}

// LeftRules returns the number of rules that were not translated.
func (r *Result) LeftRules() int {
	places := map[string]bool{}
	for _, l := range r.Left {
		places[l.Place] = true
	}
	return len(places)
}
