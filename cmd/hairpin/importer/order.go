// SPDX-License-Identifier: Apache-2.0

package importer

import (
	"fmt"
	"strings"
	"unicode"

	"hairpin/maps/rule"
)

// The programs ask their rules in order, and the first that matches decides. In hairpin the more specific forward decides: an
// address before an interface before every WAN, a part of a range before the range, a protocol before any.
//
// order leaves out the later of two rules where hairpin would choose otherwise:
//   - the earlier rule takes all packets of the later one;
//   - the earlier rule takes some of its packets, but the later forward would be the more specific one, or none of them is;
//   - the earlier rule has fewer clients. The others came to the later rule, but hairpin refuses them.
func (t *translator) order() {
	o := &ordering{wan: t.wan, places: map[placeKey]*bucket{}, restricted: map[rule.Protocol]*bucket{}}
	for i := range t.candidates {
		c := &t.candidates[i]
		why, dead := "", true
		var earlier *candidate
		protocols := c.Protocols
		c.Protocols = nil
		for _, p := range protocols {
			if e, reason := o.meets(c, p); e != nil {
				earlier, why = e, reason
				dead = dead && reason == takesAll && e.hides(c, p)
			} else {
				c.Protocols = append(c.Protocols, p)
			}
		}
		if earlier != nil {
			whole := *c
			whole.Protocols = protocols
			if earlier.same(&whole) {
				earlier.places, earlier.served = addPlace(earlier.places, c.from.place), earlier.served || c.served
				continue
			}
			if dead {
				t.leave(c.from, "%s %s", earlier.from.place, why) // no packet reaches it, so it keeps none from rules behind it
			} else {
				t.leaveLate(c.from, "%s %s", earlier.from.place, why)
			}
			if why == takesClients {
				t.leaveLate(earlier.from, "hairpin would refuse clients that it does not take, and that %s takes", c.from.place)
			}
		}
		if len(c.Protocols) > 0 {
			o.add(c)
		}
	}
	t.candidates = nil
	for _, c := range o.kept {
		t.candidates = append(t.candidates, *c)
	}
}

// hides reports whether no packet of a protocol reaches the rule of c, because the rule of e takes all of them. Where a forward listens
// does not say this: an interface may have an address, or not.
func (e *candidate) hides(c *candidate, p rule.Protocol) bool {
	m := c.from.match
	if m.protocols != nil {
		m.protocols = []rule.Protocol{p}
	}
	if !c.Ports.Every() {
		m.ports = []rule.Ports{c.Ports}
	}
	return e.from.match.covers(&m) && coversNetworks(e.from.match.source, m.source) && coversNetworks(e.from.match.dest, m.dest)
}

// ordering finds earlier forwards that meet a later one.
type ordering struct {
	wan        []string
	kept       []*candidate
	places     map[placeKey]*bucket
	restricted map[rule.Protocol]*bucket // forwards with from
}

type placeKey struct {
	rule.Place
	protocol rule.Protocol
}

// bucket has forwards by their ports.
type bucket struct {
	single map[uint16][]*candidate
	ranges []*candidate
}

func (b *bucket) add(c *candidate) {
	if !c.Ports.Every() && c.Ports.First == c.Ports.Last {
		if b.single == nil {
			b.single = map[uint16][]*candidate{}
		}
		b.single[c.Ports.First] = append(b.single[c.Ports.First], c)
		return
	}
	b.ranges = append(b.ranges, c)
}

// overlapping calls visit for the forwards with some of the ports, until it returns true.
func (b *bucket) overlapping(ports rule.Ports, visit func(*candidate) bool) {
	if b == nil {
		return
	}
	if ports.First == ports.Last && !ports.Every() {
		for _, c := range b.single[ports.First] {
			if visit(c) {
				return
			}
		}
	} else {
		for port, list := range b.single {
			for _, c := range list {
				if ports.Has(port) && visit(c) {
					return
				}
			}
		}
	}
	for _, c := range b.ranges {
		if c.Ports.Overlaps(ports) && visit(c) {
			return
		}
	}
}

func (o *ordering) add(c *candidate) {
	o.kept = append(o.kept, c)
	for _, p := range c.Protocols {
		for _, at := range c.Places() {
			k := placeKey{at, p}
			if o.places[k] == nil {
				o.places[k] = &bucket{}
			}
			o.places[k].add(c)
		}
		if len(c.From) > 0 {
			if o.restricted[p] == nil {
				o.restricted[p] = &bucket{}
			}
			o.restricted[p].add(c)
		}
	}
}

// What an earlier rule does to a later one.
const (
	takesAll     = "takes all of its packets before it"
	takesSome    = "takes some of its packets before it; hairpin would choose otherwise between the two"
	takesClients = "takes some clients of these ports before it; hairpin would refuse the others"
)

// meets returns an earlier forward beside which c cannot have protocol p, and why.
func (o *ordering) meets(c *candidate, p rule.Protocol) (earlier *candidate, why string) {
	for _, at := range c.Places() {
		for _, around := range o.around(at) {
			for _, q := range []rule.Protocol{p, rule.Any} {
				o.places[placeKey{around, q}].overlapping(c.Ports, func(e *candidate) bool {
					covers := e.Ports == c.Ports || c.Ports.Within(e.Ports)
					switch {
					case len(e.From) > 0:
						earlier, why = e, takesClients
					case covers:
						earlier, why = e, takesAll
					case around != at || !e.Ports.Within(c.Ports) || q != p:
						earlier, why = e, takesSome
					}
					return earlier != nil
				})
				if earlier != nil {
					return earlier, why
				}
			}
		}
	}
	of := []rule.Protocol{p, rule.Any}
	if p == rule.Any {
		of = rule.Protocols()
	}
	for _, q := range of {
		o.restricted[q].overlapping(c.Ports, func(e *candidate) bool {
			if e.Intercept == c.Intercept && e.Target.Is6() == c.Target.Is6() && (e.External == c.External || !e.External.Address.IsValid() && e.External.Interface == "" || !c.External.Address.IsValid()) {
				earlier, why = e, takesClients
			}
			return earlier != nil
		})
		if earlier != nil {
			return earlier, why
		}
	}
	return nil, ""
}

// around returns the places that contain a place, and the place itself.
func (o *ordering) around(at rule.Place) []rule.Place {
	list := []rule.Place{at}
	if at.Address.IsValid() && !at.LAN {
		for _, name := range o.wan {
			list = append(list, rule.AtWAN(name, at.Is6()))
		}
	}
	if everywhere := at.Everywhere(); everywhere != at {
		list = append(list, everywhere)
	}
	return list
}

// same reports whether two forwards do the same.
func (c *candidate) same(d *candidate) bool {
	return c.Forward.Intercept == d.Forward.Intercept && c.External == d.External && c.Ports == d.Ports && c.Target == d.Target && c.TargetPorts() == d.TargetPorts() &&
		fmt.Sprint(c.Protocols, c.From, c.LAN, c.Except, c.from.reflect) == fmt.Sprint(d.Protocols, d.From, d.LAN, d.Except, d.from.reflect)
}

func (t *translator) name() {
	taken := map[string]bool{}
	next := map[string]int{}
	for i := range t.candidates {
		c := &t.candidates[i]
		base := nameOf(c)
		name := base
		for n := max(2, next[base]); taken[name]; n++ {
			suffix := fmt.Sprintf("-%d", n)
			name = base[:min(len(base), 32-len(suffix))] + suffix
			next[base] = n + 1
		}
		taken[name] = true
		c.Name = name
	}
}

// nameOf makes a name from the comment of the rule if it is short enough, else from the protocol and the port.
func nameOf(c *candidate) string {
	var name strings.Builder
	for _, r := range strings.ToLower(c.from.comment) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', strings.ContainsRune("._-", r) && name.Len() > 0:
			name.WriteRune(r)
		case name.Len() > 0 && !strings.HasSuffix(name.String(), "-"):
			name.WriteByte('-')
		}
	}
	if text := strings.Trim(name.String(), "-"); text != "" && len(text) <= 32 {
		return text
	}
	text := c.Protocols[0].String()
	if len(c.Protocols) > 1 {
		text += "-" + c.Protocols[1].String()
	}
	if !c.Ports.Every() {
		text += "-" + c.Ports.String()
	}
	return text
}

// clean returns a comment that a forward may have: one line of at most 200 bytes.
func clean(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
	text = strings.TrimSpace(text)
	for len(text) > maxComment {
		runes := []rune(text)
		text = string(runes[:len(runes)-1])
	}
	return text
}

// maxComment is the longest comment of a forward in bytes.
const maxComment = 200
