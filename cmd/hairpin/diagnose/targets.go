// SPDX-License-Identifier: Apache-2.0

package diagnose

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// targets looks whether the router reaches the targets, and whether their answers come in where hairpin sees them. It says nothing
// while every link is down: a router that boots has no routes yet.
type targets struct {
	facts *Facts
	up    bool
	known map[netip.Addr]Finding
	lost  groups[netip.Addr]
}

// targetIsRouter is the code of the finding that the target is the router itself.
const targetIsRouter = "target-is-router"

func newTargets(f *Facts) forwardCheck {
	return &targets{facts: f, up: f.isUp(), known: map[netip.Addr]Finding{}}
}

func (c *targets) add(forward *rule.Forward) {
	if c.facts.Route == nil || !c.up {
		return
	}
	for _, target := range forward.Targets() {
		found, judged := c.known[target]
		if !judged {
			found = c.judge(target)
			c.known[target] = found
		}
		// An intercept may lead to the router's own name server.
		if found.Level != OK && !(forward.Intercept && found.Code == targetIsRouter) {
			c.lost.add(target, forward.Name)
		}
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
		return Finding{Level: Problem, Code: targetIsRouter, Text: fmt.Sprintf("the target %s is an address of this router", target)}.
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
	found   groups[Socket] // forwards of one port
	wide    []Finding      // one for each forward of several ports: it may take many sockets
	count   int
}

func newServices(f *Facts) forwardCheck {
	c := &services{facts: f, sockets: map[rule.Protocol][]Socket{}}
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
	taken := c.takenBy(forward)
	switch {
	case len(taken) == 0:
	case forward.Ports.Len() == 1:
		c.found.add(taken[0], forward.Name)
	default:
		c.wide = append(c.wide, c.shadowed(taken, Finding{Forward: forward.Name}))
	}
}

// takenBy returns the sockets whose packets a forward takes.
func (c *services) takenBy(forward *rule.Forward) (taken []Socket) {
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
			if slices.ContainsFunc(addresses, s.takes) {
				taken = append(taken, s)
			}
		}
	}
	return taken
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
	if c.count == 0 {
		return nil
	}
	list := c.found.each(func(s Socket) Finding { return c.shadowed([]Socket{s}, Finding{}) })
	return orOK(append(list, c.wide...), "no program of the router listens at a forwarded port")
}

// shownSockets is the number of sockets that a finding spells out.
const shownSockets = 3

// shadowed completes a finding about these sockets.
func (c *services) shadowed(taken []Socket, found Finding) Finding {
	var list []string
	for _, s := range taken[:min(len(taken), shownSockets)] {
		who := "a program of this router"
		if c.facts.Owner != nil {
			who = cmp.Or(c.facts.Owner(s), who)
		}
		list = append(list, fmt.Sprintf("%s listens at %s port %d of %s", who, s.Protocol, s.Port, addressText(s.Address)))
	}
	text := strings.Join(list, ", ")
	if more := len(taken) - shownSockets; more > 0 {
		text += fmt.Sprintf(", and %d more", more)
	}
	found.Level, found.Code = Warning, "service-shadowed"
	found.Text = text + "; at the external address clients reach the target in place of the program"
	return found.advise("give the forward another port, or stop the program")
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
		Text: fmt.Sprintf("%s to the target %s without an answer, and none with one", count(t.Waiting, "connection"), forward.TargetsString())}
	if never {
		found.Text = fmt.Sprintf("%s went to the target %s, and none came back", count(int(t.ToTarget), "packet"), forward.TargetsString())
	}
	if asks(forward, rule.TCP) {
		found.Level = Problem // UDP may need no answers
	}
	if !forward.Balanced() { // which of several servers is silent is not counted
		found = c.explain(found, forward.Target)
	}
	c.list = append(c.list, found)
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
	if c.facts.Probe == nil || !asks(forward, rule.TCP) || forward.Ports.Every() {
		return
	}
	for server := range forward.EachServer() {
		c.found.add(netip.AddrPortFrom(server.Target, forward.TargetPortsOf(server).First), forward.Name)
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
