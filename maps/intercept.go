// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"hairpin/bpf"
)

// interceptProtocols are those that name their servers by port.
var interceptProtocols = []Protocol{TCP, UDP}

// Kind is what the forward is called: "forward" or "intercept".
func (f Forward) Kind() string {
	if f.Intercept {
		return "intercept"
	}
	return "forward"
}

// one is Kind with its article.
func (f *Forward) one() string {
	if f.Intercept {
		return "an intercept"
	}
	return "a forward"
}

// intercept checks one that is f.Intercept.
func (v *validator) intercept(i int) {
	f := &v.Forwards[i]
	v.check(i, "name", v.name(i))
	v.check(i, "protocol", checkInterceptProtocols(f.Protocols))
	v.check(i, "port", checkInterceptPorts(f))
	v.check(i, "lan", v.lan(f))
	v.check(i, "to", v.target(f))
	v.check(i, "except", checkExcept(f))
	v.check(i, "reflect", v.interceptReflect(f))
}

func checkInterceptProtocols(protocols []Protocol) error {
	for i, protocol := range protocols {
		if _, err := ParseProtocol(protocol.String()); err == nil && !slices.Contains(interceptProtocols, protocol) {
			return ofItem(i, fmt.Errorf("%s cannot be intercepted: only tcp and udp have ports that tell for every server alike what is asked there", protocol))
		}
	}
	return checkProtocols(protocols)
}

func checkInterceptPorts(f *Forward) error {
	if f.Ports.Every() {
		return errors.New("there is none; without one an intercept would catch everything that clients send")
	}
	return checkPorts(f)
}

func (v *validator) lan(f *Forward) error {
	if len(f.LAN) == 0 && len(v.LAN) == 0 {
		return errors.New("it is every LAN interface, but none is configured; name one in interfaces.lan")
	}
	for i, name := range f.LAN {
		switch {
		case slices.Contains(f.LAN[:i], name):
			return ofItem(i, fmt.Errorf("%s is there twice", Quote(name)))
		case !slices.Contains(v.LAN, name):
			return ofItem(i, v.notLAN(name))
		}
	}
	return nil
}

func checkExcept(f *Forward) error {
	for i, prefix := range f.Except {
		switch {
		case !prefix.IsValid() || prefix.Addr().Is4In6() || prefix != prefix.Masked():
			return ofItem(i, fmt.Errorf("%s is not a network", prefix))
		case f.Target.IsValid() && prefix.Addr().Is6() != f.Target.Is6():
			return ofItem(i, fmt.Errorf("%s is an %s network, but the target %s is %s, and so is all that is intercepted; make an intercept of its own for each family",
				prefix, family(prefix.Addr()), f.Target, family(f.Target)))
		case prefix.Bits() == 0:
			return ofItem(i, fmt.Errorf("%s is everybody, so nothing would be intercepted", prefix))
		}
	}
	return nil
}

// interceptReflect refuses the modes that mean nothing here.
func (v *validator) interceptReflect(f *Forward) error {
	switch f.Reflect {
	case ReflectPublic:
		return errors.New("public cannot be intercepted by: it would give the target the very address that a client asked, which is another host's, and that host would get the answers; choose auto, router or prefix")
	case ReflectOff:
		return errors.New("off serves no LAN client, and an intercept has no others; leave the intercept out")
	}
	return v.reflect(f)
}

// loops refuses targets that another intercept would catch when they ask others
// in turn: in which LAN a target is nobody knows here. One is named for each.
func (v *validator) loops() {
	var order []int
	for i, f := range v.Forwards {
		if f.Intercept && f.Target.IsValid() {
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(v.Forwards[a].Ports.First, v.Forwards[b].Ports.First) })
	told := make([]bool, len(v.Forwards))
	for n, i := range order {
		for _, j := range order[n+1:] {
			if v.Forwards[j].Ports.First > v.Forwards[i].Ports.Last {
				break
			}
			told[i] = told[i] || !v.check(i, "to", v.loop(i, j))
			told[j] = told[j] || !v.check(j, "to", v.loop(j, i))
		}
	}
}

func (v *validator) loop(i, by int) error {
	f, g := &v.Forwards[i], &v.Forwards[by]
	if f.Target == g.Target || f.Target.Is6() != g.Target.Is6() || !g.catches(f.Target) ||
		!slices.ContainsFunc(f.Protocols, func(p Protocol) bool { return slices.Contains(g.Protocols, p) }) {
		return nil
	}
	return fmt.Errorf("what %s itself asks others, intercept %s%s would catch and send to %s, so that questions could go round; write %s into except there",
		f.Target, Quote(g.Name), v.where(by), g.Target, f.Target)
}

// catches reports whether what an address asks is not excepted.
func (f *Forward) catches(addr netip.Addr) bool {
	return !slices.ContainsFunc(f.Except, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// hasIntercepts reports whether there are any.
func (c Config) hasIntercepts() bool {
	for i := range c.Forwards {
		if c.Forwards[i].Intercept {
			return true
		}
	}
	return false
}

// ListensAt are the LAN interfaces of an intercept.
func (c Config) ListensAt(f Forward) []string {
	if len(f.LAN) > 0 {
		return f.LAN
	}
	return c.LAN
}

// interceptSpan is from the lowest to the highest port of all intercepts; first
// is above last if there are none.
func (c Config) interceptSpan() (first, last uint16) {
	first = 1
	for _, f := range c.Forwards {
		switch {
		case !f.Intercept:
		case last == 0:
			first, last = f.Ports.First, f.Ports.Last
		default:
			first, last = min(first, f.Ports.First), max(last, f.Ports.Last)
		}
	}
	return first, last
}

// addSources makes the entries of who may use a forward. An intercept catches
// everybody but those that it excepts, its target, and addresses that no router
// sends on: neither what they ask nor what they are asked.
func (p *program) addSources(i int) {
	f := &p.doc.Config.Forwards[i]
	for _, prefix := range f.From {
		p.addSource(i, prefix, true)
	}
	if !f.Intercept {
		return
	}
	p.addSource(i, everything(f.Target.Is6()), true)
	for _, s := range strange {
		if s.network.Addr().Is6() == f.Target.Is6() {
			p.addSource(i, s.network, false)
		}
	}
	for _, prefix := range f.Except {
		p.addSource(i, prefix, false)
	}
	p.addSource(i, netip.PrefixFrom(f.Target, f.Target.BitLen()), false)
}

func (p *program) addSource(i int, prefix netip.Prefix, allowed bool) {
	var value uint8
	if allowed {
		value = 1
	}
	p.sources = append(p.sources, allowKey(p.doc.EpochRefs[i].id, prefix))
	p.allowed = append(p.allowed, value)
}

// everything is all addresses of a family.
func everything(v6 bool) netip.Prefix {
	if v6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// wantedLocals are the router's own addresses; without intercepts nobody asks.
func wantedLocals(doc *document, ifs []Interface) map[bpf.HairpinAddr]bool {
	wanted := map[bpf.HairpinAddr]bool{}
	if !doc.Intercepts {
		return wanted
	}
	for _, link := range ifs {
		for _, prefix := range slices.Concat(link.Addresses, link.Passive) {
			wanted[toAddr(prefix.Addr())] = true
		}
	}
	return wanted
}

// putLocals goes before the interfaces that bring clients there.
func (t *Tables) putLocals(wanted map[bpf.HairpinAddr]bool) error {
	if limit := t.objs.Locals.MaxEntries(); uint32(len(wanted)) > limit {
		return fmt.Errorf("the router has %d addresses of its own, but the table holds %d", len(wanted), limit)
	}
	present, err := keepAddresses(t.objs.Locals, wanted)
	if err == nil {
		err = addAddresses(t.objs.Locals, wanted, present)
	}
	if err != nil {
		return fmt.Errorf("the router's own addresses: %w", err)
	}
	return nil
}
