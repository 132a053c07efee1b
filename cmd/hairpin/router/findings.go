// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"hairpin/loader"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// Findings are warnings about what cfg asks for on this machine, whether it runs or not: what works otherwise than most people
// expect, although nothing is wrong with cfg itself.
func (r *Router) Findings(cfg config.Config) ([]string, error) {
	seen, err := r.inventory(cfg)
	if err != nil {
		return nil, err
	}
	return r.findings(cfg, seen)
}

// FindingsOf are the Findings that concern a forward of cfg, which has just been added.
func (r *Router) FindingsOf(cfg config.Config, forward rule.Forward) ([]string, error) {
	seen, err := r.inventory(cfg)
	if err != nil {
		return nil, err
	}
	f, err := r.newFinder(cfg, seen)
	if err != nil {
		return nil, err
	}
	f.add(&forward)
	list := slices.Concat(f.ofForwards(), f.unshaped)
	if f.conflict != "" && (cfg.ReflectOf(forward) != rule.ReflectOff || forward.Clients == rule.ClientsRouter) {
		list = append(list, f.conflict)
	}
	return list, nil
}

// FindingsHere are Findings without a datapath.
func FindingsHere(cfg config.Config) ([]string, error) {
	r := New(kernel())
	links, err := r.listLinks()
	if err != nil {
		return nil, err
	}
	seen := inventory{links: links}
	seen.addPorts(cfg.WAN, config.RoleWAN, cfg.Mode, nil)
	seen.addPorts(cfg.LAN, config.RoleLAN, cfg.Mode, nil)
	return r.findings(cfg, seen)
}

// findings returns nothing on a machine that has none of the interfaces of cfg, as CheckHere.
func (r *Router) findings(cfg config.Config, seen inventory) ([]string, error) {
	if !isMachineOf(cfg, seen.links) {
		return nil, nil
	}
	f, err := r.newFinder(cfg, seen)
	if err != nil {
		return nil, err
	}
	for i := range cfg.Forwards {
		f.add(&cfg.Forwards[i])
	}
	return f.list(), nil
}

// finder collects findings. It takes one forward after the other, because there may be tens of thousands.
type finder struct {
	general   []string // about everything but the forwards
	unshaped  []string // about shapers that the packets of every forward skip
	conflict  string   // about the ports of reflected connections
	unread    bool     // this user may not read IPsec policies
	forwards  int
	foreign   *foreignAddresses
	protected *config.PolicyWarnings

	conntrack loader.Conntrack
	here      []config.Interface
	ephemeral rule.Ports // that the kernel gives to sockets
	risks     []string
}

// newFinder finds what there is to say of cfg, its forwards apart. A part of the kernel that cannot be looked at is a finding, too.
func (r *Router) newFinder(cfg config.Config, seen inventory) (*finder, error) {
	conntrack, err := r.conntrack()
	if err != nil {
		return nil, err
	}
	f := &finder{conntrack: conntrack, here: machine(cfg, seen.links)}
	f.ephemeral.First, f.ephemeral.Last = loader.EphemeralPorts()
	if r.portConflict != nil {
		f.conflict = r.portConflict(cfg)
	}
	own := ownAddresses(seen.links)
	f.foreign = newForeignAddresses(own)
	f.general, f.unshaped = deniesRouter(cfg, own), r.unshaped(seen.ports)

	policies, err := r.listPolicies()
	switch {
	case errors.Is(err, loader.ErrPermission):
		// "hairpin check" needs no privilege otherwise.
		f.unread = true
	case err != nil:
		f.general = append(f.general, fmt.Sprintf("cannot look for IPsec policies: %s", err))
	case len(policies) > config.MaxPolicies:
		f.general = append(f.general, fmt.Sprintf("there are %d IPsec policies, but hairpin asks at most %d: it does not start, and while it runs it asks those of before",
			len(policies), config.MaxPolicies))
	}
	f.protected = config.NewPolicyWarnings(policies, externalAddresses(f.here))
	return f, nil
}

// externalAddresses are the addresses of the WAN interfaces.
func externalAddresses(here []config.Interface) (list []netip.Addr) {
	for _, i := range here {
		if i.Role != config.RoleWAN {
			continue
		}
		for _, prefix := range slices.Concat(i.Addresses, i.Passive) {
			list = append(list, prefix.Addr())
		}
	}
	return list
}

func (f *finder) add(forward *rule.Forward) {
	f.forwards++
	f.foreign.add(forward)
	f.protected.Add(forward)
	if f.atRisk(forward) {
		f.risks = append(f.risks, fmt.Sprintf("forward %q: the router and masqueraded clients use the same ports; their answers may go to the forward's target, because hairpin does not ask conntrack: %s",
			forward.Name, f.conntrack))
	}
}

// atRisk reports whether a forward may take answers that belong to the router or to a masqueraded client. That can happen only if
// hairpin does not ask conntrack. The forward has several ports. The kernel gives some of these ports to sockets. And the forward
// listens on an address from which the router itself sends.
func (f *finder) atRisk(forward *rule.Forward) bool {
	asked := slices.ContainsFunc(forward.Protocols, func(p rule.Protocol) bool { return p == rule.TCP || p == rule.UDP || p == rule.Any })
	return f.conntrack != loader.ConntrackAsked && asked && !forward.Intercept && forward.Ports.Len() > 1 &&
		forward.Ports.Overlaps(f.ephemeral) && usesAddress(f.here, forward)
}

// usesAddress reports whether the router itself sends from an address that the forward listens on. Of each family that is the first
// address of an interface: of a WAN, or of a LAN if the forward names this address.
func usesAddress(here []config.Interface, f *rule.Forward) bool {
	for _, i := range here {
		if i.Role == 0 || f.External.Interface != "" && f.External.Interface != i.Name || i.Role != config.RoleWAN && !f.External.Address.IsValid() {
			continue
		}
		for _, prefix := range i.Addresses {
			if prefix.Addr().Is4() != f.Target.Is4() || !config.IsExternal(prefix.Addr()) {
				continue
			}
			if !f.External.Address.IsValid() || f.External.Address == prefix.Addr() {
				return true
			}
			break
		}
	}
	return false
}

// ofForwards returns what is about single forwards.
func (f *finder) ofForwards() []string {
	return slices.Concat(f.foreign.warnings(), f.protected.Targets(), f.risks)
}

func (f *finder) list() []string {
	list := f.ofForwards()
	if clients := f.protected.Clients(); clients != "" {
		list = append(list, clients)
	}
	if f.unread && f.forwards > 0 {
		list = append(list, "IPsec policies were not looked at: needs CAP_NET_ADMIN")
	}
	list = slices.Concat(list, f.general, f.unshaped)
	if f.conflict != "" {
		list = append(list, f.conflict)
	}
	return list
}

// foreignAddresses collects the forwards whose external address no interface of the router has. Thousands of forwards may
// have the same external address, so there is one warning for each address.
type foreignAddresses struct {
	own   map[netip.Addr]bool
	order []netip.Addr
	first map[netip.Addr]string // name of the first forward
	more  map[netip.Addr]int    // number of the others
}

func newForeignAddresses(own []OwnAddress) *foreignAddresses {
	f := &foreignAddresses{own: map[netip.Addr]bool{}, first: map[netip.Addr]string{}, more: map[netip.Addr]int{}}
	for _, at := range own {
		f.own[at.Address] = true
	}
	return f
}

func (f *foreignAddresses) add(forward *rule.Forward) {
	addr := forward.External.Address
	if !addr.IsValid() || f.own[addr] {
		return
	}
	if _, known := f.first[addr]; known {
		f.more[addr]++
		return
	}
	f.order = append(f.order, addr)
	f.first[addr] = forward.Name
}

func (f *foreignAddresses) warnings() (list []string) {
	for _, addr := range f.order {
		who, works := fmt.Sprintf("forward %q", f.first[addr]), "the forward works"
		if more := f.more[addr]; more > 0 {
			who, works = fmt.Sprintf("%s and %d more", who, more), "these forwards work"
		}
		list = append(list, fmt.Sprintf("%s: no interface has the external address %s; %s only if another router routes %s to this one", who, addr, works, addr))
	}
	return list
}

// unshaped names the interfaces with shapers that hairpin's packets pass by.
func (r *Router) unshaped(ports []Port) (list []string) {
	const page = "; see \"Traffic shaping\" in doc/limits.md"
	xdp := slices.ContainsFunc(ports, func(p Port) bool { return p.Attachment != nil && p.Attachment.XDP != "" })
	for _, p := range ports {
		if p.Link == nil || r.shaping == nil {
			continue
		}
		found, err := r.shaping(p.Link.Index)
		if err != nil {
			list = append(list, fmt.Sprintf("%s: cannot look for shapers: %s", p.Name, err))
			continue
		}
		kinds := strings.Join(found.Ingress, ", ")
		switch {
		case kinds == "":
		case found.Early && p.Attachment != nil && p.Attachment.TC == loader.TCClsact:
			list = append(list, fmt.Sprintf("%s: a tc filter at ingress (%s) runs before hairpin; what it redirects to an IFB reaches no forward%s", p.Name, kinds, page))
		default:
			list = append(list, fmt.Sprintf("%s: tc filters at ingress (%s) do not see what hairpin translates, so that a shaper or policer there does not limit it%s", p.Name, kinds, page))
		}
		if found.Egress != "" && xdp && p.Link.XDPTransmit {
			list = append(list, fmt.Sprintf("%s: the qdisc %s does not see what XDP sends; set datapath.mode = \"tc\" to shape it%s", p.Name, found.Egress, page))
		}
	}
	return list
}

// deniesRouter names the denied sources that hold an address of the router's own.
func deniesRouter(cfg config.Config, own []OwnAddress) (list []string) {
	for _, source := range cfg.Deny {
		at := slices.IndexFunc(own, func(at OwnAddress) bool { return source.Contains(at.Address) })
		if at >= 0 {
			list = append(list, fmt.Sprintf("deny.sources: %s contains this router's address %s (%s); servers see reflected clients by this address",
				rule.SourceText(source), own[at].Address, own[at].Interface))
		}
	}
	return list
}

// portConflictHere returns a warning if the kernel may give sockets of the router the ports of cfg's reflected connections, otherwise
// "". A socket and a reflected connection with one port, to one port of a server, would get each other's answers.
func portConflictHere(cfg config.Config) string {
	var local rule.Ports
	local.First, local.Last = loader.EphemeralPorts()
	reserved, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_reserved_ports")
	if err != nil {
		reserved = nil // as if there were none
	}
	return portConflict(cfg.ReflectPorts, local, string(reserved))
}

// portConflict is portConflictHere for these ports of sockets, and this content of ip_local_reserved_ports: "8080,61000-65535".
func portConflict(reflect, local rule.Ports, reserved string) string {
	if !local.Overlaps(reflect) {
		return ""
	}
	shared := rule.Ports{First: max(local.First, reflect.First), Last: min(local.Last, reflect.Last)}
	// The kernel writes neighbouring reserved ports as one range.
	for text := range strings.SplitSeq(strings.TrimSpace(reserved), ",") {
		if kept, err := rule.ParsePorts(text); err == nil && kept.First <= shared.First && shared.Last <= kept.Last {
			return ""
		}
	}
	list := shared.String()
	if reserved := strings.TrimSpace(reserved); reserved != "" {
		list = reserved + "," + list
	}
	return fmt.Sprintf("the kernel may give ports %s (reflection.ports) to the router's own programs, and answers would reach the wrong one; run sysctl -w net.ipv4.ip_local_reserved_ports=%s", shared, list)
}
