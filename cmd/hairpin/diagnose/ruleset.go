// SPDX-License-Identifier: Apache-2.0

package diagnose

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"hairpin/maps/rule"
)

// Ruleset is what matters of the rules of nftables and of iptables-legacy. Rules of iptables-nft are among those of nftables.
type Ruleset struct {
	Chains     []Chain
	Flowtables []Flowtable
}

// Chain is a chain of a table of the families ip, ip6 or inet.
type Chain struct {
	Program             string // "iptables-legacy" or "ip6tables-legacy"; "": the table is of nftables
	Family, Table, Name string
	Hook                string // "prerouting", "forward", "postrouting", another hook, or "" for a chain that others jump to
	Type                string // "nat", "filter", "route", or ""
	Priority            int    // chains of one hook run in this order
	Drops               bool   // the policy is drop
	Rules               []Rule
}

// Flowtable is a flowtable with the devices whose packets it takes.
type Flowtable struct {
	Family, Table, Name string
	Devices             []string
}

// Action is what a rule does with a packet that meets its conditions.
type Action uint8

// The actions.
const (
	Nothing Action = iota
	Accept
	Drop // also reject
	DNAT // also redirect
	SNAT // also masquerade
	Jump // to Rule.Chain; afterwards the next rule
	Goto // to Rule.Chain; afterwards the end of the chain
	Return
)

// Rule is a rule of a chain.
type Rule struct {
	Handle     uint64 // of nftables; of iptables-legacy the number of the rule in its chain, from 1
	Conditions []Condition
	Action     Action
	Chain      string // of Jump and Goto
}

// Field is the part of a packet that a condition looks at.
type Field uint8

// The fields. FieldOther stands for everything that this package does not know.
const (
	FieldOther Field = iota
	FieldProtocol
	FieldPort        // destination port
	FieldDestination // destination address
	FieldIncoming    // name of the interface
	FieldOutgoing
	FieldVersion // 2 (AF_INET) or 10 (AF_INET6)
	FieldState   // bits of conntrack's state: 1 invalid, 2 established, 4 related, 8 new
	FieldStatus  // bits of conntrack's status: 0x20 is a destination that was translated
)

// The bits of FieldState and FieldStatus that a new connection to a forward has.
const (
	stateNew   = 8
	statusDNAT = 0x20
)

// Condition is one condition of a rule. A packet meets it if its field is in one of the lists; Not reverses that.
type Condition struct {
	Field    Field
	Not      bool
	Numbers  []Range        // of protocol, port and version; of state and status: each is a set of bits, and one common bit is enough
	Networks []netip.Prefix // of FieldDestination
	Names    []string       // of FieldIncoming and FieldOutgoing; a name may end with "*"
}

// Range is a range of numbers; both ends belong to it.
type Range struct{ First, Last uint32 }

// match says whether a packet meets conditions.
type match uint8

const (
	no match = iota
	maybe
	yes
)

func matchIf(is bool) match {
	if is {
		return yes
	}
	return no
}

// packet is the first packet of connections of a forward.
type packet struct {
	protocol    uint8
	ports       rule.Ports
	destination netip.Addr
	in, out     []string // the packet comes in by, or goes out by, one of these
	translated  bool     // its destination was translated
}

func (c *Condition) meets(p *packet) match {
	found := maybe
	switch c.Field {
	case FieldProtocol:
		found = matchIf(c.has(uint32(p.protocol)))
	case FieldVersion:
		found = matchIf(c.has(map[bool]uint32{false: 2, true: 10}[p.destination.Is6()]))
	case FieldPort:
		found = c.hasPorts(p.ports)
	case FieldDestination:
		found = matchIf(slices.ContainsFunc(c.Networks, func(n netip.Prefix) bool { return n.Contains(p.destination) }))
	case FieldIncoming:
		found = c.hasNames(p.in)
	case FieldOutgoing:
		found = c.hasNames(p.out)
	case FieldState:
		found = matchIf(c.hasBit(stateNew))
	case FieldStatus:
		found = matchIf(p.translated && c.hasBit(statusDNAT))
	}
	if c.Not {
		return yes - found
	}
	return found
}

func (c *Condition) has(number uint32) bool {
	return slices.ContainsFunc(c.Numbers, func(r Range) bool { return r.First <= number && number <= r.Last })
}

func (c *Condition) hasBit(bit uint32) bool {
	return slices.ContainsFunc(c.Numbers, func(r Range) bool { return r.First&bit != 0 })
}

// hasPorts is maybe if the packet may have a port that is in the condition, and one that is not.
func (c *Condition) hasPorts(ports rule.Ports) match {
	first, last := ports.Bounds()
	found := no
	for _, r := range c.Numbers {
		switch {
		case int(r.First) <= first && last <= int(r.Last):
			return yes
		case int(r.First) <= last && first <= int(r.Last):
			found = maybe
		}
	}
	return found
}

// hasNames is maybe if only some of the interfaces are in the condition.
func (c *Condition) hasNames(names []string) match {
	met := 0
	for _, name := range names {
		if slices.ContainsFunc(c.Names, func(want string) bool {
			prefix, all := strings.CutSuffix(want, "*")
			return name == want || all && strings.HasPrefix(name, prefix)
		}) {
			met++
		}
	}
	switch met {
	case 0:
		return no
	case len(names):
		return yes
	}
	return maybe
}

func (r *Rule) meets(p *packet) match {
	found := yes
	for i := range r.Conditions {
		if found = min(found, r.Conditions[i].meets(p)); found == no {
			break
		}
	}
	return found
}

func (r *Rule) has(field Field) bool {
	return slices.ContainsFunc(r.Conditions, func(c Condition) bool { return c.Field == field && !c.Not })
}

// named returns the rule as its user knows it.
func (c *Chain) named(r *Rule) string {
	return fmt.Sprintf("rule %d of the chain %s", r.Handle, c)
}

// String returns the name of the chain.
func (c *Chain) String() string {
	if c.Program != "" {
		return fmt.Sprintf("%s %s of %s", c.Table, c.Name, c.Program)
	}
	return fmt.Sprintf("%s %s %s", c.Family, c.Table, c.Name)
}

// deletion returns the command that deletes a rule of the chain.
func (c *Chain) deletion(r *Rule) string {
	if c.Program != "" {
		return fmt.Sprintf("%s -t %s -D %s %d", c.Program, c.Table, shellWord(c.Name), r.Handle)
	}
	return fmt.Sprintf("nft delete rule %s %s %s handle %d", c.Family, shellWord(c.Table), shellWord(c.Name), r.Handle)
}

// isFor reports whether packets to addr pass the chain.
func (c *Chain) isFor(addr netip.Addr) bool {
	return c.Family == "inet" || c.Family == "ip" == addr.Is4()
}

// walk follows packets through the base chains of a hook.
type walk struct {
	chains map[string]*Chain // by program, family, table and name
	bases  []*Chain          // in the order in which they run
}

// maxJumps is the depth of jumps that the kernel allows (NFT_JUMP_STACK_SIZE).
const maxJumps = 16

func newWalk(rules *Ruleset, hook, kind string) *walk {
	w := &walk{chains: map[string]*Chain{}}
	for i := range rules.Chains {
		c := &rules.Chains[i]
		w.chains[chainKey(c, c.Name)] = c
		if c.Hook == hook && c.Type == kind {
			w.bases = append(w.bases, c)
		}
	}
	slices.SortStableFunc(w.bases, func(a, b *Chain) int { return a.Priority - b.Priority })
	return w
}

func chainKey(c *Chain, name string) string {
	return c.Program + " " + c.Family + " " + c.Table + " " + name
}

// translates returns the first rule with this action that a packet meets, or may meet. A rule that it may meet counts only if the
// rule, or a jump to it, names ports: otherwise most of what is found would be wrong.
func (w *walk) translates(p *packet, action Action) (*Chain, *Rule) {
	for _, base := range w.bases {
		if !base.isFor(p.destination) {
			continue
		}
		if chain, found := w.find(base, p, action, yes, false, 0); found != nil {
			return chain, found
		}
	}
	return nil, nil
}

func (w *walk) find(c *Chain, p *packet, action Action, sure match, ports bool, depth int) (*Chain, *Rule) {
	for i := range c.Rules {
		r := &c.Rules[i]
		if r.Action != action && r.Action != Jump && r.Action != Goto {
			continue
		}
		met := min(sure, r.meets(p))
		if met == no {
			continue
		}
		named := ports || r.has(FieldPort)
		if r.Action == action {
			if met == yes || named {
				return c, r
			}
			continue
		}
		if next := w.chains[chainKey(c, r.Chain)]; next != nil && depth < maxJumps {
			if chain, found := w.find(next, p, action, met, named, depth+1); found != nil {
				return chain, found
			}
		}
	}
	return nil, nil
}

// verdict is what a firewall does with a packet.
type verdict uint8

const (
	undecided verdict = iota
	accepted          // or perhaps accepted
	dropped
)

// drops returns the first base chain that surely drops a packet, or nil.
func (w *walk) drops(p *packet) *Chain {
	for _, base := range w.bases {
		if !base.isFor(p.destination) {
			continue
		}
		v := w.judge(base, p, 0)
		if v == dropped || v == undecided && base.Drops {
			return base
		}
	}
	return nil
}

// judge follows a packet through a chain. A rule that the packet may meet decides only if it accepts.
func (w *walk) judge(c *Chain, p *packet, depth int) verdict {
	for i := range c.Rules {
		r := &c.Rules[i]
		if r.Action == Nothing {
			continue
		}
		met := r.meets(p)
		switch {
		case met == no:
			continue
		case r.Action == Accept:
			return accepted
		case r.Action == Drop && met == yes:
			return dropped
		case r.Action == Return && met == yes:
			return undecided
		case r.Action != Jump && r.Action != Goto:
			continue
		}
		next := w.chains[chainKey(c, r.Chain)]
		if next == nil || depth == maxJumps {
			continue
		}
		switch v := w.judge(next, p, depth+1); {
		case v == accepted, v == dropped && met == yes:
			return v
		case r.Action == Goto && met == yes:
			return undecided
		}
	}
	return undecided
}
