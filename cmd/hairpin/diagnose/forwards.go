// SPDX-License-Identifier: Apache-2.0

package diagnose

import (
	"fmt"
	"net/netip"
	"slices"
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
		// "hairpin check" needs no privilege otherwise.
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

// targets looks whether the router reaches the targets, and whether their answers come in where hairpin sees them. It says nothing
// while every link is down: a router that boots has no routes yet.
type targets struct {
	facts *Facts
	up    bool
	known map[netip.Addr]bool
	lost  groups[netip.Addr]
}

func newTargets(f *Facts) forwardCheck {
	return &targets{facts: f, up: f.isUp(), known: map[netip.Addr]bool{}}
}

func (c *targets) add(forward *rule.Forward) {
	if c.facts.Route == nil || !c.up {
		return
	}
	good, judged := c.known[forward.Target]
	if !judged {
		good = c.judge(forward.Target).Level == OK
		c.known[forward.Target] = good
	}
	if !good {
		c.lost.add(forward.Target, forward.Name)
	}
}

func (c *targets) judge(target netip.Addr) Finding {
	route := c.facts.Route(target)
	port := c.facts.port(route.Interface)
	switch {
	case route.Err != nil:
		return Finding{Level: Problem, Code: "target-no-route", Text: fmt.Sprintf("there is no route to the target %s: %s", target, route.Err)}.
			advise("correct the target (key to), or add a route")
	case port != nil && port.Role == config.RoleLAN:
		return Finding{Level: OK}
	case port != nil && port.Role == config.RoleWAN:
		return Finding{Level: Warning, Code: "target-behind-wan", Text: fmt.Sprintf("the route to the target %s leads out by the WAN %s", target, route.Interface)}.
			advise("correct the target (key to), or add a route by a LAN")
	case port != nil:
		return Finding{Level: Problem, Code: "target-is-router", Text: fmt.Sprintf("the target %s is an address of this router", target)}.
			advise("name the address of the server (key to)")
	}
	return Finding{Level: Problem, Code: "target-interface", Text: fmt.Sprintf(
		"the target %s is behind %s, which hairpin does not watch, so that its answers are not translated", target, route.Interface)}.
		advise("add %q to lan in the section interfaces of the configuration file", route.Interface)
}

func (c *targets) findings() []Finding {
	list := c.lost.each(c.judge)
	if len(c.known) == 0 {
		return nil
	}
	return orOK(list, count(len(c.known), "target")+" behind LAN interfaces")
}

// services looks for programs of the router whose ports a forward takes.
type services struct {
	facts   *Facts
	sockets map[rule.Protocol][]Socket
	found   groups[int] // by the place in taken
	taken   []Socket
	places  map[Socket]int
	count   int
}

func newServices(f *Facts) forwardCheck {
	c := &services{facts: f, sockets: map[rule.Protocol][]Socket{}, places: map[Socket]int{}}
	for _, s := range f.Sockets {
		c.sockets[s.Protocol] = append(c.sockets[s.Protocol], s)
	}
	return c
}

func (c *services) add(forward *rule.Forward) {
	c.count++
	if forward.Intercept {
		return // it takes the router's own services on purpose
	}
	var addresses []netip.Addr
	for _, protocol := range []rule.Protocol{rule.TCP, rule.UDP} {
		if !asks(forward, protocol) {
			continue
		}
		for _, s := range c.sockets[protocol] {
			if !forward.Ports.Has(s.Port) {
				continue
			}
			if addresses == nil {
				_, addresses = c.facts.externalOf(forward)
			}
			if !slices.ContainsFunc(addresses, s.takes) {
				continue
			}
			place, known := c.places[s]
			if !known {
				place = len(c.taken)
				c.places[s], c.taken = place, append(c.taken, s)
			}
			c.found.add(place, forward.Name)
		}
	}
}

// takes reports whether a socket would get packets to an address. A socket of :: also takes IPv4, as is the default of Linux.
func (s Socket) takes(addr netip.Addr) bool {
	if s.Address.IsUnspecified() {
		return s.Address.Is6() || addr.Is4()
	}
	return s.Address == addr
}

func (c *services) findings() []Finding {
	if err := c.facts.SocketsErr; err != nil {
		return []Finding{{Level: Unknown, Code: "services-unseen", Text: fmt.Sprintf("cannot list the sockets of the router: %s", err)}}
	}
	list := c.found.each(func(place int) Finding {
		s := c.taken[place]
		who := "a program of this router"
		if c.facts.Owner != nil {
			if owner := c.facts.Owner(s); owner != "" {
				who = owner
			}
		}
		return Finding{Level: Warning, Code: "service-shadowed", Text: fmt.Sprintf(
			"%s listens at %s port %d of %s; at the external address clients reach the target in its place", who, s.Protocol, s.Port, addressText(s.Address))}.
			advise("give the forward another port, or stop the program")
	})
	if c.count == 0 {
		return nil
	}
	return orOK(list, "no program of the router listens at a forwarded port")
}

func addressText(addr netip.Addr) string {
	if addr.IsUnspecified() {
		return "every address"
	}
	return addr.String()
}

// answers looks for forwards whose connections get no answer.
type answers struct {
	facts *Facts
	list  []Finding
	good  int
}

func newAnswers(f *Facts) forwardCheck { return &answers{facts: f} }

// fewPackets is the number of packets to a target from which no answer is a finding. TCP sends a SYN three times in 3 seconds.
const fewPackets = 3

func (c *answers) add(forward *rule.Forward) {
	t, used := c.facts.Datapath.Traffic[forward.Name]
	if !used {
		return
	}
	never := t.FromTarget == 0 && t.ToTarget >= fewPackets
	if !never && !(t.Waiting > 0 && t.Answered == 0) {
		c.good++
		return
	}
	found := Finding{Level: Warning, Code: "no-answers", Forward: forward.Name,
		Text: fmt.Sprintf("%s to the target %s without an answer, and none with one", count(t.Waiting, "connection"), forward.Target)}
	if never {
		found.Text = fmt.Sprintf("%s went to the target %s, and none came back", count(int(t.ToTarget), "packet"), forward.Target)
	}
	if asks(forward, rule.TCP) {
		found.Level = Problem // UDP may need no answers
	}
	c.list = append(c.list, c.explain(found, forward.Target))
}

// explain says what keeps the answers of a target away, as far as the router can tell.
func (c *answers) explain(found Finding, target netip.Addr) Finding {
	if c.facts.Route == nil || c.facts.Neighbour == nil {
		return found
	}
	route := c.facts.Route(target)
	seen := NeighbourUnknown
	if route.Err == nil && !route.Gateway.IsValid() {
		seen = c.facts.Neighbour(target)
	}
	if seen == NeighbourSilent {
		found.Code = "target-silent"
		found.Text += "; no host answers for this address"
		return found.advise("start the server, or correct the target (key to)")
	}
	if seen == NeighbourSeen {
		found.Code = "answers-elsewhere"
		found.Text += "; the host is there, so either its firewall drops the packets, or its answers do not go through this router"
	}
	router := c.routerAt(route.Interface, target)
	if router == "" {
		return found.advise("check the firewall of the target, and that its gateway is this router; or give the forward clients = \"router\"")
	}
	return found.advise("check the firewall of the target, and set its gateway there: ip route replace default via %s; or give the forward clients = \"router\"", router)
}

// routerAt returns the router's address on an interface, of the family of target, or "".
func (c *answers) routerAt(ifname string, target netip.Addr) string {
	if p := c.facts.port(ifname); p != nil {
		for _, addr := range p.Addresses {
			if addr.Is6() == target.Is6() {
				return addr.String()
			}
		}
	}
	return ""
}

func (c *answers) findings() []Finding {
	if c.facts.Datapath.Traffic == nil {
		return nil
	}
	if c.good == 0 && len(c.list) == 0 {
		return ok("no forward had traffic yet")
	}
	return orOK(c.list, count(c.good, "forward")+" with traffic, and all got answers")
}

// probe connects to the targets of TCP forwards.
type probe struct {
	facts *Facts
	found groups[netip.AddrPort]
}

func newProbe(f *Facts) forwardCheck { return &probe{facts: f} }

func (c *probe) add(forward *rule.Forward) {
	// Of a range, the first port counts. Of every port, none is known to be used.
	if c.facts.Probe != nil && asks(forward, rule.TCP) && !forward.Ports.Every() {
		c.found.add(netip.AddrPortFrom(forward.Target, forward.TargetPorts().First), forward.Name)
	}
}

func (c *probe) findings() []Finding {
	if c.facts.Probe == nil || len(c.found.order) == 0 {
		return nil
	}
	said := c.facts.Probe(c.found.order)
	var list []Finding
	for _, f := range c.found.each(func(to netip.AddrPort) Finding { return probed(to, said[to]) }) {
		if f.Level != OK {
			list = append(list, f)
		}
	}
	return orOK(list, count(len(said), "target")+" took a TCP connection from the router")
}

func probed(to netip.AddrPort, said Answer) Finding {
	switch said {
	case Connected:
		return Finding{Level: OK}
	case Refused:
		return Finding{Level: Problem, Code: "probe-refused", Text: fmt.Sprintf("the target refuses TCP connections to %s", to)}.
			advise("start the service on the target, or correct the port (key to)")
	case Unreachable:
		return Finding{Level: Problem, Code: "probe-unreachable", Text: fmt.Sprintf("the router cannot reach %s", to)}.
			advise("start the server, or correct the target (key to)")
	case Silent:
		return Finding{Level: Problem, Code: "probe-silent", Text: fmt.Sprintf("%s did not answer within %s", to, ProbeTime)}.
			advise("start the server, and check its firewall")
	}
	return Finding{Level: Unknown, Code: "probe-unfinished", Text: fmt.Sprintf("%s was not asked within %s", to, ProbeTime)}
}

// count formats a number with its noun: "1 forward", "2 forwards".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
