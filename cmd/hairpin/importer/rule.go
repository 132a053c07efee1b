// SPDX-License-Identifier: Apache-2.0

package importer

import (
	"net/netip"
	"slices"
	"strings"

	"hairpin/maps/rule"
)

// found is what a reader has read.
type found struct {
	rules []Rule // in the order in which they are asked
	// wan and lan are interfaces whose side the format itself says.
	wan, lan []string
	notes    []string // about the whole input
	cleanup  string   // command after all others of Rule.Remove; "": none
}

// action is what a rule does with a packet that matches.
type action uint8

const (
	dnat       action = iota
	redirect          // to the router itself
	oneToOne          // each address of a network to the address at the same place in another network
	masquerade        // the source becomes the address of the outgoing interface
	snat              // the source becomes Rule.target
	pass              // later rules do not see the packet, down to Rule.until
	otherNAT          // a translation that hairpin does not know; Rule.problems says why
)

// hook is where a rule is asked.
type hook uint8

const (
	prerouting hook = iota
	output
	postrouting
	forwarding
)

// Rule is a rule as a reader found it, with a meaning that is the same for all formats.
type Rule struct {
	place    string // where it was read: "line 12"
	remove   string // the command that removes it; "": it has none
	comment  string // what its owner wrote about it
	hook     hook
	action   action
	disabled bool
	match    match

	target  netip.Addr
	ports   rule.Ports   // of the target; zero: as the packet has
	base    uint16       // not 0: the external port that becomes ports.First, the next one becomes the next; 0: netfilter chooses one of ports
	network netip.Prefix // of oneToOne: the network of the targets
	until   int          // of pass: the index of the first rule that sees the packet again

	reflect  rule.Reflect // of a format that says so; "": what the other rules do
	problems []string     // why it cannot be translated
	notes    []string     // what is lost by the translation
}

// match is the conditions of a rule. nil lists match everything.
type match struct {
	family    int // 4, 6, or 0 for both
	protocols []rule.Protocol
	in, out   names
	source    networks
	dest      networks
	local     bool // the destination is an address of the router
	ports     []rule.Ports
	others    []string // conditions that hairpin does not know
	never     bool     // the conditions exclude each other
}

// names is a condition about an interface. A name may end with "*".
type names struct{ only, not []string }

func (n names) any() bool { return n.only == nil && n.not == nil }

// networks is a condition about an address.
type networks struct{ only, not []netip.Prefix }

func (n networks) any() bool { return n.only == nil && n.not == nil }

// and returns the conditions of both.
func (m match) and(o match) match {
	m.never = m.never || o.never
	switch {
	case m.family == 0:
		m.family = o.family
	case o.family != 0 && o.family != m.family:
		m.never = true
	}
	m.protocols = both(m.protocols, o.protocols, &m.never)
	m.in.only, m.in.not = both(m.in.only, o.in.only, &m.never), join(m.in.not, o.in.not)
	m.out.only, m.out.not = both(m.out.only, o.out.only, &m.never), join(m.out.not, o.out.not)
	m.source.only, m.source.not = bothNetworks(m.source.only, o.source.only, &m.never), join(m.source.not, o.source.not)
	m.dest.only, m.dest.not = bothNetworks(m.dest.only, o.dest.only, &m.never), join(m.dest.not, o.dest.not)
	m.local = m.local || o.local
	m.ports = bothPorts(m.ports, o.ports, &m.never)
	m.others = join(m.others, o.others)
	return m
}

// join appends without changing the array of a, which several rules may share.
func join[T any](a, b []T) []T {
	if len(b) == 0 {
		return a
	}
	return append(a[:len(a):len(a)], b...)
}

func both[T comparable](a, b []T, never *bool) []T {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	common := []T{}
	for _, item := range a {
		if slices.Contains(b, item) {
			common = append(common, item)
		}
	}
	*never = *never || len(common) == 0
	return common
}

func bothNetworks(a, b []netip.Prefix, never *bool) []netip.Prefix {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	common := []netip.Prefix{}
	for _, p := range a {
		for _, q := range b {
			switch {
			case !p.Overlaps(q):
			case p.Bits() >= q.Bits():
				common = append(common, p)
			default:
				common = append(common, q)
			}
		}
	}
	*never = *never || len(common) == 0
	return common
}

func bothPorts(a, b []rule.Ports, never *bool) []rule.Ports {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	common := []rule.Ports{}
	for _, p := range a {
		for _, q := range b {
			if p.Overlaps(q) {
				common = append(common, rule.Ports{First: max(p.First, q.First), Last: min(p.Last, q.Last)})
			}
		}
	}
	*never = *never || len(common) == 0
	return common
}

// exceptPorts returns all ports that are not in list.
func exceptPorts(list []rule.Ports) []rule.Ports {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b rule.Ports) int { return int(a.First) - int(b.First) })
	left, next := []rule.Ports{}, 1
	for _, p := range list {
		if int(p.First) > next {
			left = append(left, rule.Ports{First: uint16(next), Last: p.First - 1})
		}
		next = max(next, int(p.Last)+1)
	}
	if next <= 65535 {
		left = append(left, rule.Ports{First: uint16(next), Last: 65535})
	}
	return left
}

// nameMatches reports whether a name matches a pattern, which may end with "*".
func nameMatches(pattern, name string) bool {
	prefix, all := strings.CutSuffix(pattern, "*")
	return pattern == name || all && strings.HasPrefix(name, prefix)
}

func namesOverlap(a, b names) bool {
	if a.only == nil || b.only == nil {
		for _, pair := range [][2]names{{a, b}, {b, a}} {
			if one, other := pair[0], pair[1]; one.only != nil && !slices.ContainsFunc(one.only, func(n string) bool { return !slices.Contains(other.not, n) }) {
				return false
			}
		}
		return true
	}
	return slices.ContainsFunc(a.only, func(x string) bool {
		return !slices.Contains(b.not, x) && slices.ContainsFunc(b.only, func(y string) bool { return nameMatches(x, y) || nameMatches(y, x) })
	})
}

func networksOverlap(a, b networks) bool {
	for _, pair := range [][2]networks{{a, b}, {b, a}} {
		one, other := pair[0], pair[1]
		if one.only != nil && !slices.ContainsFunc(one.only, func(p netip.Prefix) bool { return !within(p, other.not) }) {
			return false
		}
	}
	return a.only == nil || b.only == nil || slices.ContainsFunc(a.only, func(p netip.Prefix) bool {
		return slices.ContainsFunc(b.only, p.Overlaps)
	})
}

// within reports whether one of the networks contains p.
func within(p netip.Prefix, list []netip.Prefix) bool {
	return slices.ContainsFunc(list, func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) })
}

func portsOverlap(a, b []rule.Ports) bool {
	return a == nil || b == nil || slices.ContainsFunc(a, func(p rule.Ports) bool {
		return slices.ContainsFunc(b, p.Overlaps)
	})
}

// overlaps reports whether a packet can match both. Conditions that are not understood may match.
func (m *match) overlaps(o *match) bool {
	return !m.never && !o.never && (m.family == 0 || o.family == 0 || m.family == o.family) &&
		(m.protocols == nil || o.protocols == nil || slices.ContainsFunc(m.protocols, func(p rule.Protocol) bool { return slices.Contains(o.protocols, p) })) &&
		portsOverlap(m.ports, o.ports) && namesOverlap(m.in, o.in) && namesOverlap(m.out, o.out) &&
		networksOverlap(m.source, o.source) && networksOverlap(m.dest, o.dest)
}

// covers reports whether m surely matches every packet that o matches, apart from source and destination addresses.
func (m *match) covers(o *match) bool {
	return len(m.others) == 0 && (m.family == 0 || m.family == o.family) &&
		(m.protocols == nil || o.protocols != nil && !slices.ContainsFunc(o.protocols, func(p rule.Protocol) bool { return !slices.Contains(m.protocols, p) })) &&
		(m.ports == nil || o.ports != nil && !slices.ContainsFunc(o.ports, func(p rule.Ports) bool {
			return !slices.ContainsFunc(m.ports, func(q rule.Ports) bool { return p == q || p.Within(q) })
		})) &&
		coversNames(m.in, o.in) && coversNames(m.out, o.out) && (!m.local || o.local)
}

// coversNetworks reports whether a surely matches every address that b matches.
func coversNetworks(a, b networks) bool {
	return a.any() || a.not == nil && b.only != nil && !slices.ContainsFunc(b.only, func(p netip.Prefix) bool { return !within(p, a.only) })
}

func coversNames(a, b names) bool {
	switch {
	case a.any():
		return true
	case a.only != nil:
		return b.only != nil && !slices.ContainsFunc(b.only, func(n string) bool { return !slices.Contains(a.only, n) }) && a.not == nil
	case b.only != nil:
		return !slices.ContainsFunc(b.only, func(n string) bool { return slices.Contains(a.not, n) })
	}
	return !slices.ContainsFunc(a.not, func(n string) bool { return !slices.Contains(b.not, n) })
}

// matchIndex finds conditions that may overlap others by their ports. Its numbers are those of rules.
type matchIndex struct {
	single map[uint16][]int
	wide   []int
}

// maxIndexed is how many ports of a condition are listed one by one.
const maxIndexed = 64

func (x *matchIndex) add(i int, m *match) {
	count := 0
	for _, p := range m.ports {
		count += p.Len()
	}
	if m.ports == nil || count > maxIndexed {
		x.wide = append(x.wide, i)
		return
	}
	if x.single == nil {
		x.single = map[uint16][]int{}
	}
	for _, p := range m.ports {
		for port := int(p.First); port <= int(p.Last); port++ {
			x.single[uint16(port)] = append(x.single[uint16(port)], i)
		}
	}
}

// meeting returns the numbers of all conditions that may overlap m, in order.
func (x *matchIndex) meeting(m *match) []int {
	list := slices.Clone(x.wide)
	switch {
	case m.ports == nil:
		for _, more := range x.single {
			list = append(list, more...)
		}
	default:
		for _, p := range m.ports {
			if p.Len() > maxIndexed {
				for port, more := range x.single {
					if p.Has(port) {
						list = append(list, more...)
					}
				}
				continue
			}
			for port := int(p.First); port <= int(p.Last); port++ {
				list = append(list, x.single[uint16(port)]...)
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}
