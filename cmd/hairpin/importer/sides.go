// SPDX-License-Identifier: Apache-2.0

package importer

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"hairpin/maps/rule"
)

// sides are the interfaces of the router, by their side, with the reason.
type sides struct {
	wan, lan []string
	why      []string // comments: how the side of an interface is known
}

// findSides returns the interfaces of Options, and those whose side the rules show:
//   - the format itself says it, as UCI's zones do;
//   - packets that leave by a WAN are masqueraded, whatever their destination. If this is so on several interfaces, those count
//     by which forwarded packets come in;
//   - an interface is a LAN if packets are masqueraded that come in and go out by it.
func findSides(f *found, o Options) *sides {
	s := &sides{wan: slices.Clone(o.WAN), lan: slices.Clone(o.LAN)}
	for _, name := range f.wan {
		s.add(&s.wan, name, "")
	}
	for _, name := range f.lan {
		s.add(&s.lan, name, "")
	}
	var hidden []*Rule // masquerading of all that leaves by an interface
	comesIn := map[string]bool{}
	for i := range f.rules {
		r := &f.rules[i]
		if r.disabled {
			continue
		}
		m := &r.match
		switch {
		case r.hook == prerouting && r.action != pass && m.dest.any():
			for _, name := range m.in.only {
				comesIn[name] = true
			}
		case r.hook == postrouting && (r.action == masquerade || r.action == snat) && m.dest.only == nil && m.in.any() && m.ports == nil && len(m.out.only) > 0 && len(m.others) == 0:
			hidden = append(hidden, r)
		case r.hook == postrouting && r.action == masquerade && len(m.in.only) == 1 && slices.Equal(m.in.only, m.out.only):
			s.add(&s.lan, m.in.only[0], r.place+" masquerades what comes in and goes out by it")
		}
	}
	outs := map[string]*Rule{}
	var order []string
	for _, r := range hidden {
		for _, name := range r.match.out.only {
			if outs[name] == nil && !slices.Contains(s.lan, name) {
				outs[name] = r
				order = append(order, name)
			}
		}
	}
	for _, name := range order {
		if len(order) == 1 || comesIn[name] {
			s.add(&s.wan, name, outs[name].place+" masquerades what goes out by it")
		}
	}
	return s
}

// add adds a name to a side, unless it is there or on the other side. A name that is not printable is not added: the forwards would have it,
// and a terminal may take it for commands.
func (s *sides) add(side *[]string, name, why string) {
	if slices.Contains(s.wan, name) || slices.Contains(s.lan, name) || strings.HasSuffix(name, "*") || name == "lo" ||
		rule.CheckInterfaceName(name) != nil || clean(name) != name {
		return
	}
	*side = append(*side, name)
	if why != "" {
		word := "wan"
		if side == &s.lan {
			word = "lan"
		}
		s.why = append(s.why, fmt.Sprintf("%s is in %s because %s", name, word, why))
	}
}

// Names that stand for all interfaces of a side, for formats that know sides, but no interfaces. No interface has such a name. A WAN
// among others is everyWAN with its name behind a slash: packets of two WANs are not the same, but what they are called is not known.
const everyWAN, everyLAN = "/wan", "/lan"

// incoming is what a condition about the incoming interface means.
type incoming struct {
	wan      []string // WANs; nil with everyWAN
	everyWAN bool
	lan      []string // LANs; nil with everyLAN
	everyLAN bool
	problem  string
}

// incoming sorts the interfaces of a condition by their side.
func (s *sides) incoming(n names) (in incoming) {
	if n.only == nil {
		in.wan, in.lan = except(s.wan, n.not), except(s.lan, n.not)
		in.everyWAN, in.everyLAN = len(in.wan) == len(s.wan), len(in.lan) == len(s.lan)
		if name := s.excluded(n.not); name != "" {
			in.problem = fmt.Sprintf("it leaves out %s, and the rules do not show which interfaces lead to a LAN: name them by --lan", name)
		}
		return in
	}
	allWAN, allLAN := false, false
	for _, pattern := range n.only {
		switch {
		case pattern == everyWAN, strings.HasPrefix(pattern, everyWAN+"/"):
			in.wan, allWAN = s.wan, true
			continue
		case pattern == everyLAN:
			if in.lan, allLAN = s.lan, true; len(s.lan) == 0 {
				in.problem = "the rules do not show which interfaces lead to a LAN: name them by --lan"
			}
			continue
		}
		found := false
		for _, name := range s.wan {
			if nameMatches(pattern, name) && !slices.Contains(n.not, name) {
				in.wan, found = append(in.wan, name), true
			}
		}
		for _, name := range s.lan {
			if nameMatches(pattern, name) && !slices.Contains(n.not, name) {
				in.lan, found = append(in.lan, name), true
			}
		}
		switch {
		case found || slices.Contains(n.not, pattern):
		case pattern == "lo":
			in.problem = "it is about packets of the loopback interface"
		case strings.HasSuffix(pattern, "*"):
			in.problem = fmt.Sprintf("%s stands for interfaces whose names are not known here: name them by --wan or --lan", pattern)
		default:
			in.problem = fmt.Sprintf("the rules do not show whether %s leads to the Internet or to a LAN: say --wan %s or --lan %s", pattern, pattern, pattern)
		}
	}
	in.everyWAN = allWAN || len(s.wan) > 0 && len(in.wan) == len(s.wan)
	in.everyLAN = allLAN || len(s.lan) > 0 && len(in.lan) == len(s.lan)
	return in
}

// excluded returns an interface that a condition excludes and that may be the only LAN, "" if there is none.
func (s *sides) excluded(not []string) string {
	i := slices.IndexFunc(not, func(n string) bool { return n != "lo" && !slices.Contains(s.wan, n) })
	if len(s.lan) > 0 || i < 0 {
		return ""
	}
	return not[i]
}

func except(list, not []string) (left []string) {
	for _, name := range list {
		if !slices.ContainsFunc(not, func(n string) bool { return nameMatches(n, name) }) {
			left = append(left, name)
		}
	}
	return left
}

func isPrivate(a netip.Addr) bool { return a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsLoopback() }
