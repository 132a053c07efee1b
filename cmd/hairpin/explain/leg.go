// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"hairpin/bpf"
	"hairpin/loader"
	"hairpin/maps"
	"hairpin/maps/config"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
)

// leg puts what the program reports about a packet into words. known is the connection that the packet had before.
func (x *Explainer) leg(q Question, link *loader.Link, result *bpf.ExplainExplanation, known *layout.Entry) (Leg, error) {
	l := Leg{
		Interface: q.Interface, Role: x.role(link), Source: q.Source, Destination: q.Destination,
		External: result.External != 0, Intercept: result.Intercept != 0, Opened: result.Opened != 0,
		Verdict: maps.VerdictName(result.Verdict), Reason: maps.ReasonName(result.Reason),
		Back: x.linkName(result.BackIfindex), Notes: []string{},
	}
	l.Forward = x.roster.Name(result.Forward)
	if result.Identity != 0 {
		l.Path = maps.PathName(uint32(result.Identity) >> uint32(bpf.HairpinConnFlagCONN_PATH_SHIFT) & 3)
		if name := x.roster.Name(result.ConnForward); name != "" {
			l.Forward = name
		}
	}
	if known != nil {
		l.Connection = &Connection{State: maps.StateOf(known), Path: maps.PathName(uint32(known.Path)), Forward: x.roster.Name(known.Forward)}
	}
	if l.Sent() {
		x.way(&l, q, result)
	}
	return l, x.words(&l, q, link, result)
}

// role is the role of an interface in the configuration.
func (x *Explainer) role(link *loader.Link) string {
	switch {
	case link.Loopback:
		return config.RoleLocal.String()
	case slices.Contains(x.Config.WAN, link.Name):
		return config.RoleWAN.String()
	case slices.Contains(x.Config.LAN, link.Name):
		return config.RoleLAN.String()
	}
	return ""
}

// way adds where the packet leaves.
func (x *Explainer) way(l *Leg, q Question, result *bpf.ExplainExplanation) {
	to := tuple(result.Sent)
	l.NewSource, l.NewDestination = layout.AddrPort(to.Src, to.Sport), layout.AddrPort(to.Dst, to.Dport)
	if q.Protocol == rule.ICMP { // both ports are the identifier
		l.NewDestination = netip.AddrPortFrom(l.NewDestination.Addr(), 0)
	}
	l.PortLikely = l.Opened && l.NewSource.Port() != q.Source.Port()
	l.ToRouter, l.MTU, l.Output = result.ToRouter != 0, result.Mtu, x.linkName(result.Ifindex)
	if result.Resolved != 0 && result.GatewayFamily == 0 {
		l.MAC = net.HardwareAddr(result.Mac[:]).String()
	}
	if result.GatewayFamily == unix.AF_INET || result.GatewayFamily == unix.AF_INET6 {
		l.Gateway = layout.FromAddr(bpf.HairpinAddr(result.Gateway))
	}
}

// words adds the reason, near misses, and what is not known.
func (x *Explainer) words(l *Leg, q Question, link *loader.Link, result *bpf.ExplainExplanation) error {
	switch {
	case l.Sent():
		l.Why = x.source(l)
		if err := x.chosen(l, result); err != nil {
			return err
		}
		if l.Gateway.IsValid() && !l.ToRouter {
			l.Notes = append(l.Notes, fmt.Sprintf("unknown: is %s there? The kernel asks for its MAC address with the first packet", l.Gateway))
		}
		return nil
	case result.Parsed == 0:
		l.Why = "hairpin cannot read the packet"
		return nil
	case l.Reason != "":
		l.Why = x.reason(l.Reason, q, link)
		return nil
	case result.Attached == 0 && l.Role == "":
		l.Why = fmt.Sprintf("hairpin is not attached to %s: %s is in neither interfaces.wan nor interfaces.lan", l.Interface, l.Interface)
		return nil
	case result.Attached == 0:
		l.Why = fmt.Sprintf("hairpin is not attached to %s; \"hairpin status\" says why", l.Interface)
		return nil
	case l.Forward != "" && l.Intercept:
		l.Why = fmt.Sprintf("intercept %s takes only packets that open a connection, and the packet belongs to a connection of the kernel", l.Forward)
		return nil
	case l.Forward != "" && l.Role == config.RoleWAN.String() && x.isLANOnly(l.Forward):
		l.Why = fmt.Sprintf("forward %s is for clients of the LAN: the kernel gets what comes from the Internet", l.Forward)
		return nil
	case l.Forward != "":
		l.Why = fmt.Sprintf("forward %s listens there, but the packet belongs to a connection or a socket that the kernel has", l.Forward)
		return nil
	}
	return x.near(l, q)
}

func (x *Explainer) isLANOnly(name string) bool {
	f, _, err := x.Tables.Find(name)
	return err == nil && f.LANOnly
}

// chosen says how one of several servers was chosen.
func (x *Explainer) chosen(l *Leg, result *bpf.ExplainExplanation) error {
	if !l.Opened {
		return nil
	}
	f, _, err := x.Tables.Find(l.Forward)
	if err != nil || !f.Balanced() {
		return err
	}
	switch {
	case result.ByAffinity != 0:
		l.Chosen = "affinity"
		l.Notes = append(l.Notes, fmt.Sprintf("of %d servers, the one that the client had last (affinity %s)", len(f.Servers()), f.Affinity()))
	case f.Affinity() != 0:
		l.Chosen = "hash"
		l.Notes = append(l.Notes, fmt.Sprintf("of %d servers, chosen by the client's address", len(f.Servers())))
	default:
		l.Chosen = "hash"
		l.Notes = append(l.Notes, fmt.Sprintf("of %d servers, chosen by the client's address and port: another port may get another server", len(f.Servers())))
	}
	return nil
}

// reason returns a reason in words. Where forwarding is off, the kernel finds no route back to the source of a packet, so the datapath says
// spoofed.
func (x *Explainer) reason(name string, q Question, link *loader.Link) string {
	if name == "spoofed" || name == "forwarding_off" {
		if off := x.NotForwarding(link, q.Source.Addr().Is6()); off != "" {
			return off
		}
	}
	return reasons[name]
}

// source says how the source that the receiver sees was chosen.
func (x *Explainer) source(l *Leg) string {
	sees := l.NewSource.Addr()
	switch {
	case sees == l.Source.Addr() && l.Path == "hairpin":
		return "the server sees the client's own address, because its answers come back through this router"
	case sees == l.Source.Addr():
		return "the source stays"
	case !l.Opened && l.Connection == nil:
		return "the answer gets the source that the client has called"
	case l.Path == "hairpin" && l.Output == l.Interface:
		return fmt.Sprintf("the server sees %s, because client and server are both behind %s: the server would answer the client's own address directly", sees, l.Output)
	default:
		return fmt.Sprintf("the server sees %s, as the forward's options reflect and clients say", sees)
	}
}

// nearest is how many near misses are told.
const nearest = 4

// near says why no forward takes the packet, and which forwards nearly would.
func (x *Explainer) near(l *Leg, q Question) error {
	addr, port := q.Destination.Addr(), q.Destination.Port()
	switch {
	case l.External:
		l.Why = fmt.Sprintf("forwards listen on %s, but none on %s", addr, portOf(q))
	default:
		l.Why = fmt.Sprintf("no forward listens on %s", addr)
	}
	err := x.Tables.EachForward(func(f *rule.Forward) bool {
		if note := miss(f, q, addr, port, l.External); note != "" && !f.Intercept {
			l.Notes = append(l.Notes, note)
		}
		return len(l.Notes) < nearest
	})
	if !l.External {
		if list := x.externals(); len(list) > 0 {
			l.Notes = append(l.Notes, "the external addresses are "+strings.Join(list, ", "))
		}
	}
	return err
}

func portOf(q Question) string {
	if q.Protocol.HasPorts() {
		return fmt.Sprintf("%s port %d", q.Protocol, q.Destination.Port())
	}
	return q.Protocol.String()
}

// miss says how a forward misses the packet by one thing; "": it misses by more.
func miss(f *rule.Forward, q Question, addr netip.Addr, port uint16, external bool) string {
	hasProtocol := slices.Contains(f.Protocols, q.Protocol) || slices.Contains(f.Protocols, rule.Any)
	hasPort := f.Ports.Every() || f.Ports.Has(port)
	if f.Target.Is4() != addr.Is4() {
		if hasProtocol && hasPort {
			return fmt.Sprintf("forward %s has this port, but for the other IP version", f.Name)
		}
		return ""
	}
	switch {
	case hasProtocol && hasPort && !external:
		return fmt.Sprintf("forward %s has this port, at another address: %s", f.Name, where(f))
	case hasProtocol && hasPort:
		return fmt.Sprintf("forward %s has this port, but listens on %s only", f.Name, where(f))
	case hasPort && external && q.Protocol.HasPorts():
		return fmt.Sprintf("forward %s has port %d for %s only", f.Name, port, protocolNames(f))
	case hasProtocol && external && q.Protocol.HasPorts():
		return fmt.Sprintf("forward %s has %s port %s", f.Name, q.Protocol, f.Ports)
	}
	return ""
}

func where(f *rule.Forward) string {
	if text := f.External.String(); text != "" {
		return text
	}
	return "the addresses of the WAN interfaces"
}

func protocolNames(f *rule.Forward) string {
	names := make([]string, 0, len(f.Protocols))
	for _, p := range f.Protocols {
		names = append(names, p.String())
	}
	return strings.Join(names, ", ")
}

// externals are the addresses of the WAN interfaces.
func (x *Explainer) externals() (list []string) {
	for _, link := range x.Links {
		if !slices.Contains(x.Config.WAN, link.Name) {
			continue
		}
		for _, prefix := range slices.Concat(link.Addresses, link.Passive) {
			if config.IsExternal(prefix.Addr()) {
				list = append(list, fmt.Sprintf("%s (%s)", prefix.Addr(), link.Name))
			}
		}
	}
	return list
}
