// SPDX-License-Identifier: Apache-2.0

package router

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"hairpin/loader"
	"hairpin/maps/config"
)

// Port is the state of one interface of the configuration at one moment.
type Port struct {
	Name       string
	Role       config.Role
	Link       *loader.Link       // nil if no interface has this name yet
	Attachment *loader.Attachment // nil if the programs are not on the interface
	Err        error              // why the programs cannot be, or could not be put, on the interface

	xdpTx string // config.Config.XDPTx
}

// State returns "pending" (no interface), "detached" or "attached".
func (p Port) State() string {
	switch {
	case p.Attachment != nil:
		return "attached"
	case p.Link != nil:
		return "detached"
	}
	return "pending"
}

// Mode returns the hooks of an attached port: "xdp+tcx", "xdp-generic+tcx", "tcx", "clsact"; "" if it is
// not attached.
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

// Addresses returns the addresses of a port that forwards can listen on.
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

// hooks returns the hooks that a port should get in a mode. It keeps a leak guard that is no longer needed:
// settle removes it later, and on a port that is not a WAN the guard passes every packet.
func (p Port) hooks(mode string) loader.Hooks {
	return loader.Hooks{Mode: loader.Mode(mode), Guard: p.needsGuard() || p.Attachment != nil && p.Attachment.Guard}
}

// needsGuard reports whether the port needs the leak guard.
func (p Port) needsGuard() bool { return p.Role == config.RoleWAN }

// XDPTx reports whether frames that came in by this port, and leave by it, are sent by XDP_TX. If not, why says what prevents XDP_TX; why
// is "" if the configuration does not ask for XDP_TX.
func (p Port) XDPTx() (does bool, why string) {
	if p.Link == nil || p.Attachment == nil || p.Attachment.XDP != loader.XDPNative ||
		p.xdpTx != config.XDPTxOn && !(p.xdpTx == config.XDPTxAuto && p.Link.Physical) {
		return false, ""
	}
	why = p.Link.NoXDPTx()
	return why == "", why
}

// incomplete reports whether a port lacks a program that it needs, or has XDP that must be changed.
func (p Port) incomplete(mode string) bool {
	return p.Attachment == nil || p.needsGuard() && !p.Attachment.Guard || p.missesTags(mode)
}

// missesTags reports whether XDP runs although it does not see VLAN tags: a VLAN interface was added, or
// somebody switched the offload on again.
func (p Port) missesTags(mode string) bool {
	return p.Attachment.XDP != "" && (p.Link.StripsTags() || p.Link.NoXDP(loader.Mode(mode)) != "")
}

// Refusals joins the errors of the ports.
func Refusals(ports []Port) error {
	var errs []error
	for _, p := range ports {
		errs = append(errs, p.Err)
	}
	return errors.Join(errs...)
}

// Pending returns the names of the ports that do not exist yet.
func Pending(ports []Port) []string {
	var names []string
	for _, p := range ports {
		if p.Link == nil {
			names = append(names, p.Name)
		}
	}
	return names
}

// inventory is the state of all interfaces at one moment.
type inventory struct {
	ports     []Port              // the interfaces of the configuration
	unmanaged []loader.Attachment // attachments on any other interface
	givenUp   []string            // names of interfaces that only the configuration before has
	links     []loader.Link       // every interface
	xdpTx     string              // config.Config.XDPTx
}

// inventory reads the state of all interfaces; the interfaces of cfg become ports. It changes nothing.
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
	seen := inventory{links: links, xdpTx: cfg.XDPTx}
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

// addPorts adds the interfaces with these names, and removes their attachments from byIndex.
func (v *inventory) addPorts(names []string, role config.Role, mode string, byIndex map[int]*loader.Attachment) {
	for _, name := range names {
		p := Port{Name: name, Role: role, xdpTx: v.xdpTx, Link: v.link(func(l *loader.Link) bool { return l.Name == name })}
		switch {
		case p.Link == nil:
		case p.Link.Loopback:
			p.Err = fmt.Errorf("%s is the loopback device, to which hairpin always attaches; remove %s from wan and lan in the configuration", name, name)
		case p.Link.PortOf != "":
			// Its attachment stays in byIndex, so it becomes unmanaged and settle detaches it.
			p.Err = fmt.Errorf("%s is a port of %s, which receives its packets; name %s in the configuration", name, p.Link.PortOf, p.Link.PortOf)
		default:
			p.Attachment = byIndex[p.Link.Index]
			delete(byIndex, p.Link.Index)
		}
		if p.Attachment != nil && p.Attachment.XDP == "" {
			p.Attachment.Reason = cmp.Or(p.Link.NoXDP(loader.Mode(mode)), p.Attachment.Reason)
		}
		v.ports = append(v.ports, p)
	}
}

// addLoopback adds lo if there are other ports: on lo, the router's own processes reach the forwards.
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

// attached returns all interfaces that have the programs, interfaces of the configuration first.
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

// interfaces returns every interface for the tables: first the attached ports, with their roles. While
// generic XDP runs, a veth gets no XDPTransmit, so TC sends packets to it: generic XDP does not update
// skb->csum.
func (v *inventory) interfaces() []config.Interface {
	generic := slices.ContainsFunc(v.ports, func(p Port) bool { return p.Attachment != nil && p.Attachment.XDP == loader.XDPGeneric })
	var interfaces []config.Interface
	watched := make(map[int]bool)
	for _, p := range v.ports {
		if p.Attachment != nil && p.Link != nil {
			i := asInterface(*p.Link, p.Role)
			i.XDPTransmit = i.XDPTransmit && !(generic && p.Link.Veth)
			i.XDPBack, _ = p.XDPTx()
			interfaces = append(interfaces, i)
			watched[p.Link.Index] = true
		}
	}
	for _, link := range v.links {
		if watched[link.Index] {
			continue
		}
		i := asInterface(link, 0)
		i.Attached = !slices.Contains(v.givenUp, link.Name) &&
			slices.ContainsFunc(v.unmanaged, func(a loader.Attachment) bool { return a.Index == link.Index })
		interfaces = append(interfaces, i)
	}
	return interfaces
}
