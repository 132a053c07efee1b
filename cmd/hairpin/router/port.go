// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"hairpin/loader"
	"hairpin/maps/config"
)

// Port is one interface of the configuration as it stands at one moment.
type Port struct {
	Name       string
	Role       config.Role
	Link       *loader.Link       // nil: there is no interface of this name yet
	Attachment *loader.Attachment // nil: the programs are not on it
	Err        error              // why the programs are not on it, if that was tried or cannot be
}

// State is "pending", "detached" or "attached".
func (p Port) State() string {
	switch {
	case p.Attachment != nil:
		return "attached"
	case p.Link != nil:
		return "detached"
	}
	return "pending"
}

// Mode is how a port is attached: "xdp+tcx", "xdp-generic+tcx", "tcx", "clsact" and so on; empty if it is not.
func (p Port) Mode() string {
	if p.Attachment == nil {
		return ""
	}
	var parts []string
	switch p.Attachment.XDP {
	case "":
	case loader.XDPNative:
		parts = append(parts, "xdp")
	default:
		parts = append(parts, "xdp-"+p.Attachment.XDP)
	}
	if p.Attachment.TC != "" {
		parts = append(parts, p.Attachment.TC)
	}
	return strings.Join(parts, "+")
}

// Addresses are those of a port that forwards can listen on.
func (p Port) Addresses() []netip.Addr {
	if p.Link == nil {
		return nil
	}
	var list []netip.Addr
	for _, prefix := range slices.Concat(p.Link.Addresses, p.Link.Passive) {
		if addr := prefix.Addr(); config.IsExternal(addr) {
			list = append(list, addr)
		}
	}
	return list
}

// hasFamily reports whether a port has an address that forwards to target can listen on.
func (p Port) hasFamily(target netip.Addr) bool {
	return slices.ContainsFunc(p.Addresses(), func(addr netip.Addr) bool { return addr.Is6() == target.Is6() })
}

// hooks are what a port is to get in a mode. The leak guard is only added here: without the role of a WAN it lets every
// packet pass, and settle takes it off.
func (p Port) hooks(mode string) loader.Hooks {
	return loader.Hooks{Mode: loader.Mode(mode), Guard: p.needsGuard() || p.Attachment != nil && p.Attachment.Guard}
}

// needsGuard reports whether the leak guard belongs on a port.
func (p Port) needsGuard() bool { return p.Role == config.RoleWAN }

// isUp reports whether packets may arrive on a port from outside.
func (p Port) isUp() bool { return p.Role != config.RoleLocal && p.Link != nil && p.Link.Up }

// incomplete reports whether a port is without a program that belongs on it, or has XDP that must not be as it is.
func (p Port) incomplete(mode string) bool {
	return p.Attachment == nil || p.needsGuard() && !p.Attachment.Guard || p.missesTags(mode)
}

// missesTags reports whether XDP runs where it does not see VLAN tags: VLAN devices were added, or somebody switched
// the offload on again.
func (p Port) missesTags(mode string) bool {
	return p.Attachment.XDP != "" && (p.Link.StripsTags() || p.Link.NoXDP(loader.Mode(mode)) != "")
}

// Refusals joins the errors of ports that refused the programs.
func Refusals(ports []Port) error {
	var errs []error
	for _, p := range ports {
		errs = append(errs, p.Err)
	}
	return errors.Join(errs...)
}

// Pending names the ports that do not exist yet.
func Pending(ports []Port) []string {
	var names []string
	for _, p := range ports {
		if p.Link == nil {
			names = append(names, p.Name)
		}
	}
	return names
}

// inventory is what is there at one moment.
type inventory struct {
	ports     []Port              // the interfaces of the configuration
	unmanaged []loader.Attachment // our programs on any other interface
	links     []loader.Link       // every interface
}

// inventory looks at the interfaces of cfg and at whatever else is there, and changes nothing.
func (r *Router) inventory(cfg config.Config) (inventory, error) {
	links, err := r.listLinks()
	if err != nil {
		return inventory{}, err
	}
	attachments, err := r.datapath.Attachments()
	if err != nil {
		return inventory{}, fmt.Errorf("list attachments: %w", err)
	}
	byIndex := make(map[int]*loader.Attachment, len(attachments))
	for i := range attachments {
		byIndex[attachments[i].Index] = &attachments[i]
	}
	seen := inventory{links: links}
	seen.addPorts(cfg.WAN, config.RoleWAN, cfg.Mode, byIndex)
	seen.addPorts(cfg.LAN, config.RoleLAN, cfg.Mode, byIndex)
	seen.addLoopback(byIndex)
	for _, a := range attachments {
		if byIndex[a.Index] != nil {
			seen.unmanaged = append(seen.unmanaged, a)
		}
	}
	return seen, nil
}

// addPorts adds the interfaces of these names, and takes their attachments out of byIndex.
func (v *inventory) addPorts(names []string, role config.Role, mode string, byIndex map[int]*loader.Attachment) {
	for _, name := range names {
		p := Port{Name: name, Role: role, Link: v.link(func(l *loader.Link) bool { return l.Name == name })}
		switch {
		case p.Link == nil:
		case p.Link.Loopback:
			p.Err = fmt.Errorf("%s is the loopback device, to which hairpin always attaches; remove %s from wan and lan in the configuration", name, name)
		case p.Link.PortOf != "":
			// Programs that it has had until now are unmanaged.
			p.Err = fmt.Errorf("%s is a port of %s, which receives its packets; name %s in the configuration", name, p.Link.PortOf, p.Link.PortOf)
		default:
			p.Attachment = byIndex[p.Link.Index]
			delete(byIndex, p.Link.Index)
		}
		if p.Attachment != nil && p.Attachment.XDP == "" {
			p.Attachment.Reason = p.Link.NoXDP(loader.Mode(mode))
		}
		v.ports = append(v.ports, p)
	}
}

// addLoopback adds the loopback device, if there are other ports: the router's own processes reach the forwards by it.
func (v *inventory) addLoopback(byIndex map[int]*loader.Attachment) {
	if len(v.ports) == 0 {
		return
	}
	if link := v.link(func(l *loader.Link) bool { return l.Loopback }); link != nil {
		v.ports = append(v.ports, Port{Name: link.Name, Role: config.RoleLocal, Link: link, Attachment: byIndex[link.Index]})
		delete(byIndex, link.Index)
	}
}

func (v *inventory) link(is func(*loader.Link) bool) *loader.Link {
	for i := range v.links {
		if is(&v.links[i]) {
			return &v.links[i]
		}
	}
	return nil
}

// attached are all interfaces that have the programs, those of the configuration first.
func (v *inventory) attached() []Port {
	ports := slices.DeleteFunc(slices.Clone(v.ports), func(p Port) bool { return p.Attachment == nil })
	for i := range v.unmanaged {
		a := &v.unmanaged[i]
		ports = append(ports, Port{
			Name: a.Interface, Attachment: a,
			Link: v.link(func(l *loader.Link) bool { return l.Index == a.Index }),
		})
	}
	return ports
}

// interfaces are all there are, as the tables want them: first, with their roles, the ports that have the programs.
// What generic XDP would redirect to a veth is left to TC.
func (v *inventory) interfaces() []config.Interface {
	generic := slices.ContainsFunc(v.ports, func(p Port) bool { return p.Attachment != nil && p.Attachment.XDP == loader.XDPGeneric })
	var interfaces []config.Interface
	watched := make(map[int]bool)
	for _, p := range v.ports {
		if p.Attachment != nil && p.Link != nil {
			i := asInterface(*p.Link, p.Role)
			i.XDPTransmit = i.XDPTransmit && !(generic && p.Link.Veth)
			interfaces = append(interfaces, i)
			watched[p.Link.Index] = true
		}
	}
	for _, link := range v.links {
		if !watched[link.Index] {
			interfaces = append(interfaces, asInterface(link, 0))
		}
	}
	return interfaces
}
