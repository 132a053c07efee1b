// SPDX-License-Identifier: Apache-2.0

package diagnose

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"hairpin/loader"
	"hairpin/maps/rule"
)

func isPermission(err error) bool {
	return errors.Is(err, loader.ErrPermission) || errors.Is(err, fs.ErrPermission)
}

// toTarget returns the packets of a forward for each of its protocols with ports, as a firewall would see them after DNAT.
func (f *Facts) toTarget(forward *rule.Forward) (list []packet) {
	in, _ := f.externalOf(forward)
	if len(in) == 0 {
		return nil
	}
	for server := range forward.EachServer() {
		var out []string
		if f.Route != nil {
			out = []string{f.Route(server.Target).Interface}
		}
		for _, protocol := range []rule.Protocol{rule.TCP, rule.UDP} {
			if asks(forward, protocol) {
				list = append(list, packet{
					protocol: protocol.Number(server.Target.Is6()), ports: forward.TargetPortsOf(server), destination: server.Target, in: names(in), out: out, translated: true,
				})
			}
		}
	}
	return list
}

// toExternal returns the packets of a forward as they arrive.
func (f *Facts) toExternal(forward *rule.Forward) (list []packet) {
	_, addresses := f.externalOf(forward)
	for _, p := range f.toTarget(forward) {
		p.ports, p.out, p.translated = forward.Ports, nil, false
		for _, p.destination = range addresses {
			list = append(list, p)
		}
	}
	return list
}

// natRules looks for rules of netfilter that translate the same packets as a forward. They see none of these packets.
type natRules struct {
	facts    *Facts
	dnat     *walk
	snat     *walk
	found    groups[*Rule]
	chains   map[*Rule]*Chain
	forwards int
}

func newNATRules(f *Facts) forwardCheck {
	c := &natRules{facts: f, chains: map[*Rule]*Chain{}}
	if f.Rules != nil {
		c.dnat, c.snat = newWalk(f.Rules, "prerouting", "nat"), newWalk(f.Rules, "postrouting", "nat")
	}
	return c
}

func (c *natRules) add(forward *rule.Forward) {
	c.forwards++
	// The rules for the Internet are those of the program that made the mapping.
	if c.dnat == nil || forward.Intercept || forward.LANOnly {
		return
	}
	if len(c.dnat.bases) > 0 {
		for _, p := range c.facts.toExternal(forward) {
			if c.note(forward, c.dnat, &p, DNAT) {
				break
			}
		}
	}
	if len(c.snat.bases) > 0 {
		for _, p := range c.facts.toTarget(forward) {
			if c.note(forward, c.snat, &p, SNAT) {
				break
			}
		}
	}
}

// note records the first rule with this action. A rule that translates the source of everything is there for other packets: it
// counts only if it names ports.
func (c *natRules) note(forward *rule.Forward, w *walk, p *packet, action Action) bool {
	chain, found := w.translates(p, action)
	if found == nil || action == SNAT && !found.has(FieldPort) {
		return false
	}
	c.chains[found] = chain
	c.found.add(found, forward.Name)
	return true
}

func (c *natRules) findings() []Finding {
	if c.forwards == 0 {
		return nil
	}
	list := append(rulesUnseen(c.facts), c.found.each(func(r *Rule) Finding {
		chain := c.chains[r]
		code, does := "second-dnat", "translates the destination of the same packets (DNAT)"
		if r.Action == SNAT {
			code, does = "second-masquerade", "translates the source of the same packets (masquerade or SNAT)"
		}
		return Finding{Level: Warning, Code: code, Text: fmt.Sprintf(
			"%s %s; while hairpin runs it sees none of them, and without hairpin it takes them", chain.named(r), does)}.run("%s", chain.deletion(r))
	})...)
	return orOK(list, "no rule of nftables or iptables translates the same packets")
}

// rulesUnseen says what of the rules of netfilter could not be looked at.
func rulesUnseen(f *Facts) (list []Finding) {
	switch err := f.LegacyErr; {
	case len(f.Legacy) > 0:
		list = append(list, Finding{Level: Unknown, Code: "iptables-legacy-unseen", Text: fmt.Sprintf(
			"rules of iptables-legacy were not looked at (tables %s): %s; hairpin's packets skip these rules", strings.Join(f.Legacy, ", "), oneLine(err))}.
			advise("install iptables-legacy-save, and remove DNAT rules for the same ports"))
	case err != nil && !isPermission(err):
		list = append(list, Finding{Level: Unknown, Code: "iptables-legacy-unseen", Text: oneLine(err)})
	}
	if err := f.RulesErr; err != nil {
		text := fmt.Sprintf("cannot look at the rules of nftables: %s", err)
		if isPermission(err) {
			text = "the rules of nftables were not looked at: needs CAP_NET_ADMIN"
		}
		list = append(list, Finding{Level: Unknown, Code: "nftables-unseen", Text: text})
	}
	return list
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// firewall looks for forwards that the firewall would have refused. Translated packets skip it.
type firewall struct {
	facts *Facts
	walk  *walk
	found groups[*Chain]
	kept  int // forwards that the firewall accepts, or that say who may connect
}

func newFirewall(f *Facts) forwardCheck {
	c := &firewall{facts: f}
	if f.Rules != nil {
		c.walk = newWalk(f.Rules, "forward", "filter")
	}
	return c
}

func (c *firewall) add(forward *rule.Forward) {
	if c.walk == nil || len(c.walk.bases) == 0 || forward.Intercept || forward.LANOnly {
		return
	}
	if len(forward.From) == 0 {
		for _, p := range c.facts.toTarget(forward) {
			if chain := c.walk.drops(&p); chain != nil {
				c.found.add(chain, forward.Name)
				return
			}
		}
	}
	c.kept++
}

func (c *firewall) findings() []Finding {
	list := c.found.each(func(chain *Chain) Finding {
		return Finding{Level: Warning, Code: "firewall-bypassed", Text: fmt.Sprintf(
			"the chain %s would drop these packets, but they skip it: everybody may connect", chain)}.
			advise("say who may connect (key from), or accept the target's port in the chain")
	})
	if c.kept > 0 {
		return orOK(list, count(c.kept, "forward")+" that the firewall accepts, or that say who may connect")
	}
	return list
}
