// SPDX-License-Identifier: Apache-2.0

package diagnose

import (
	"fmt"
	"net/netip"
	"strings"

	"hairpin/loader"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// forwarding looks whether the kernel forwards packets: where it does not, it finds no next hop for translated packets. IPv6 matters
// only if there is an IPv6 forward. Nothing is said while every link is down: at boot systemd-networkd turns forwarding on before it
// brings links up.
type forwarding struct {
	facts *Facts
	ipv6  bool
}

func newForwarding(f *Facts) forwardCheck { return &forwarding{facts: f} }

func (c *forwarding) add(forward *rule.Forward) { c.ipv6 = c.ipv6 || forward.Target.Is6() }

func (c *forwarding) findings() []Finding { return Forwarding(c.facts, c.ipv6) }

// Forwarding returns the findings of the check "forwarding"; ipv6 says whether there is an IPv6 forward.
func Forwarding(f *Facts, ipv6 bool) []Finding {
	if !f.isUp() {
		return nil
	}
	found := notForwarding(f, "IPv4", "net.ipv4", "ip_forward", func(on Families) bool { return on.IPv4 })
	text := "IPv4 is"
	if ipv6 {
		found = append(found, notForwarding(f, "IPv6", "net.ipv6", "conf.all.forwarding", func(on Families) bool { return on.IPv6 })...)
		text = "IPv4 and IPv6 are"
	}
	var where []string
	for i := range f.Ports {
		if p := &f.Ports[i]; p.Link != nil && p.Role != config.RoleLocal {
			where = append(where, p.Name)
		}
	}
	return orOK(found, text+" forwarded on "+strings.Join(where, ", "))
}

func notForwarding(f *Facts, family, sysctl, all string, forwards func(Families) bool) (list []Finding) {
	if !forwards(f.Forwarding) {
		return []Finding{Finding{Level: Problem, Code: "forwarding-off", Text: family + " forwarding is off"}.run("sysctl -w %s.%s=1", sysctl, all)}
	}
	stopped := f.Datapath != nil && f.Datapath.Stopped != nil
	for i := range f.Ports {
		if p := &f.Ports[i]; (p.Attachment != nil || stopped && p.Link != nil) && !forwards(p.Forwarding) {
			list = append(list, Finding{Level: Problem, Code: "forwarding-off-interface", Interface: p.Name,
				Text: family + " forwarding is off on this interface"}.run("%s", sysctlCommand(sysctl, p.Name, "forwarding=1")))
		}
	}
	return list
}

// acceptRA looks for WANs that ignore router advertisements because the router forwards.
type acceptRA struct {
	facts *Facts
	ipv6  bool
}

func newAcceptRA(f *Facts) forwardCheck { return &acceptRA{facts: f} }

func (c *acceptRA) add(forward *rule.Forward) { c.ipv6 = c.ipv6 || forward.Target.Is6() }

func (c *acceptRA) findings() []Finding {
	if !c.ipv6 {
		return nil
	}
	if c.facts.DefaultRoutes.IPv6 {
		return ok("there is a default route of IPv6")
	}
	var list []Finding
	for _, p := range c.facts.of(config.RoleWAN) {
		if p.AcceptRA == 1 && p.Forwarding.IPv6 {
			list = append(list, Finding{Level: Warning, Code: "accept-ra", Interface: p.Name,
				Text: "there is no default route of IPv6, and the kernel ignores router advertisements here, because accept_ra is 1 and the router forwards"}.
				run("%s", sysctlCommand("net.ipv6", p.Name, "accept_ra=2")))
		}
	}
	return list
}

// listening looks for forwards for whose address family no interface has an address. If an interface has no address at all, the
// check "interfaces" says so.
type listening struct {
	facts *Facts
	found groups[string]
	here  int
}

func newListening(f *Facts) forwardCheck { return &listening{facts: f} }

func (c *listening) add(f *rule.Forward) {
	if f.External.Address.IsValid() || f.Intercept {
		return
	}
	anyFamily, itsFamily := false, false
	for _, p := range c.facts.of(config.RoleWAN) {
		if f.External.Interface == "" || f.External.Interface == p.Name {
			anyFamily = anyFamily || len(p.Addresses) > 0
			itsFamily = itsFamily || p.hasFamily(f.Target)
		}
	}
	switch {
	case itsFamily:
		c.here++
	case anyFamily && f.External.Interface != "":
		c.found.add(fmt.Sprintf("%s has no %s address", f.External.Interface, rule.Family(f.Target)), f.Name)
	case anyFamily:
		c.found.add(fmt.Sprintf("no WAN interface has an %s address", rule.Family(f.Target)), f.Name)
	}
}

func (c *listening) findings() []Finding {
	list := c.found.each(func(lacks string) Finding {
		return Finding{Level: Problem, Code: "no-address-of-family", Text: lacks + ", so nothing reaches the forward"}
	})
	if c.here > 0 {
		return orOK(list, count(c.here, "forward")+" at the addresses of WAN interfaces")
	}
	return list
}

// foreign looks for forwards whose external address no interface of the router has.
type foreign struct {
	facts *Facts
	own   map[netip.Addr]bool
	found groups[netip.Addr]
	here  int
}

func newForeign(f *Facts) forwardCheck {
	c := &foreign{facts: f, own: map[netip.Addr]bool{}}
	for i := range f.Links {
		for _, addr := range ownOf(&f.Links[i]) {
			c.own[addr] = true
		}
	}
	return c
}

func (c *foreign) add(forward *rule.Forward) {
	switch addr := forward.External.Address; {
	case !addr.IsValid():
	case c.own[addr]:
		c.here++
	default:
		c.found.add(addr, forward.Name)
	}
}

func (c *foreign) findings() []Finding {
	list := c.found.each(func(addr netip.Addr) Finding {
		works := "the forward works"
		if c.found.of[addr].more > 0 {
			works = "these forwards work"
		}
		found := Finding{Level: Warning, Code: "external-address-missing",
			Text: fmt.Sprintf("no interface has the external address %s; %s only if another router routes %s to this one", addr, works, addr)}
		port, near := c.nearest(addr)
		if near {
			found.Level = Problem
			found.Text = fmt.Sprintf("no interface has the external address %s, and nobody answers for it in the network of %s", addr, port)
		}
		if port != "" {
			found = found.run("ip address add %s dev %s", netip.PrefixFrom(addr, addr.BitLen()), shellWord(port))
		}
		return found
	})
	if c.here > 0 {
		return orOK(list, count(c.here, "forward")+" at addresses that the router has")
	}
	return list
}

// nearest returns the WAN that should have an external address. near reports whether the address is in a network of the WAN.
func (c *foreign) nearest(addr netip.Addr) (name string, near bool) {
	for _, p := range c.facts.of(config.RoleWAN) {
		if name == "" {
			name = p.Name
		}
		for _, prefix := range p.Link.Addresses {
			if prefix.Masked().Contains(addr) {
				return p.Name, true
			}
		}
	}
	return name, false
}

// ipsec looks for forwards whose packets IPsec policies protect.
type ipsec struct {
	facts    *Facts
	warnings *config.PolicyWarnings
	forwards int
}

func newIPsec(f *Facts) forwardCheck {
	var external []netip.Addr
	for _, p := range f.of(config.RoleWAN) {
		external = append(external, ownOf(p.Link)...)
	}
	return &ipsec{facts: f, warnings: config.NewPolicyWarnings(f.Policies, external)}
}

func (c *ipsec) add(forward *rule.Forward) {
	c.forwards++
	c.warnings.Add(forward)
}

func (c *ipsec) findings() (list []Finding) {
	warn := func(code, text string) {
		list = append(list, Finding{Level: Warning, Code: code, Text: text})
	}
	for _, text := range c.warnings.Targets() {
		found := Finding{Level: Warning, Code: "ipsec-target", Text: text}
		if name, about, one := strings.Cut(strings.TrimPrefix(text, `forward "`), `": `); one && name != text {
			found.Forward, found.Text = name, about
		}
		list = append(list, found)
	}
	if c.facts.Added != nil {
		return list
	}
	if clients := c.warnings.Clients(); clients != "" {
		warn("ipsec-clients", clients)
	}
	switch err := c.facts.PoliciesErr; {
	case isPermission(err) && c.forwards > 0:
		list = append(list, Finding{Level: Unknown, Code: "ipsec-unseen", Text: "IPsec policies were not looked at: needs CAP_NET_ADMIN"})
	case isPermission(err):
		return list // "hairpin check" needs no privilege otherwise
	case err != nil:
		list = append(list, Finding{Level: Unknown, Code: "ipsec-unseen", Text: fmt.Sprintf("cannot look for IPsec policies: %s", err)})
	case len(c.facts.Policies) > config.MaxPolicies:
		warn("ipsec-too-many", fmt.Sprintf("there are %d IPsec policies, but hairpin asks at most %d: it does not start, and while it runs it asks those of before",
			len(c.facts.Policies), config.MaxPolicies))
	}
	return orOK(list, "no IPsec policy protects packets of forwards")
}

// conntrack looks for forwards that may take answers that belong to the router or to a masqueraded client.
type conntrack struct {
	facts *Facts
	found []Finding
}

func newConntrack(f *Facts) forwardCheck { return &conntrack{facts: f} }

func (c *conntrack) add(forward *rule.Forward) {
	if !c.facts.atRisk(forward) {
		return
	}
	found := Finding{Level: Warning, Code: "answers-taken", Forward: forward.Name, Text: fmt.Sprintf(
		"the router and masqueraded clients use the same ports; their answers may go to the forward's target, because hairpin does not ask conntrack: %s", c.facts.Conntrack)}
	if forward.Ports.Every() {
		found.Level = Problem
	}
	switch c.facts.Conntrack {
	case loader.ConntrackAbsent:
		found = found.run("modprobe nf_conntrack && hairpin upgrade")
	case loader.ConntrackLate, loader.ConntrackDenied:
		found = found.run("hairpin upgrade")
	default:
		found = found.advise("give the forward an external address of its own (key external)")
	}
	c.found = append(c.found, found)
}

func (c *conntrack) findings() []Finding {
	if c.facts.Conntrack == loader.ConntrackAsked {
		return orOK(c.found, "asked, so that answers to masqueraded clients reach them")
	}
	return orOK(c.found, "not asked ("+c.facts.Conntrack.String()+"), but no forward needs it")
}

// atRisk reports whether a forward may take answers that are not for it. That can happen only if hairpin does not ask conntrack. The
// forward has several ports. The kernel gives some of these ports to sockets. And the forward listens on an address from which the
// router itself sends.
func (f *Facts) atRisk(forward *rule.Forward) bool {
	asked := asks(forward, rule.TCP) || asks(forward, rule.UDP)
	return f.Conntrack != loader.ConntrackAsked && asked && !forward.Intercept && forward.Ports.Len() > 1 &&
		forward.Ports.Overlaps(f.Ephemeral) && f.usesAddress(forward)
}

// usesAddress reports whether the router itself sends from an address that the forward listens on. Of each family that is the first
// address of an interface: of a WAN, or of a LAN if the forward names this address.
func (f *Facts) usesAddress(forward *rule.Forward) bool {
	for i := range f.Ports {
		p := &f.Ports[i]
		if p.Link == nil || p.Role == config.RoleLocal ||
			forward.External.Interface != "" && forward.External.Interface != p.Name || p.Role != config.RoleWAN && !forward.External.Address.IsValid() {
			continue
		}
		for _, prefix := range p.Link.Addresses {
			if prefix.Addr().Is4() != forward.Target.Is4() || !config.IsExternal(prefix.Addr()) {
				continue
			}
			if !forward.External.Address.IsValid() || forward.External.Address == prefix.Addr() {
				return true
			}
			break
		}
	}
	return false
}
