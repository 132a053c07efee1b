// SPDX-License-Identifier: Apache-2.0

// Package dns makes files for split DNS: files that give LAN clients the targets' addresses for the host
// names of forwards.
//
// It never reads the running configuration or runs a command. It never overwrites a file that hairpin did
// not write.
package dns

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// Name is a host name with its addresses for LAN clients.
type Name struct {
	Host      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"` // at most one IPv4 address, then at most one IPv6 address
	Forwards  []string     `json:"forwards"`  // names of the forwards that have the host, in their order
}

// Warning says why a name may not lead LAN clients to the service that Internet clients get.
type Warning struct {
	Forward string // name of the forward
	Source  string // place of the forward in a file, "" if unknown
	Message string
}

// String formats the warning on one line.
func (w Warning) String() string {
	text := fmt.Sprintf("forward %s: hosts: %s", rule.Quote(w.Forward), w.Message)
	if w.Source != "" {
		text = w.Source + ": " + text
	}
	return text
}

// maxLines is the largest number of warnings from Lines: there may be thousands of forwards.
const maxLines = 100

// Lines returns one line for each warning, up to maxLines, and then a line with the number of further
// warnings.
func Lines(warnings []Warning) []string {
	var lines []string
	for _, warning := range warnings[:min(len(warnings), maxLines)] {
		lines = append(lines, warning.String())
	}
	if more := len(warnings) - maxLines; more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", more))
	}
	return lines
}

// Options select the names and checks.
type Options struct {
	// Format leaves out, with a warning, hosts that this format cannot contain; "" leaves out nothing.
	Format config.DNSFormat
	// Reach returns why LAN clients cannot reach an address, nil if they can. If Reach is nil, it is not
	// checked.
	Reach func(netip.Addr) error
}

// Names returns the hosts of valid forwards in alphabetical order.
func Names(forwards []rule.Forward, options Options) ([]Name, []Warning) {
	c := collector{options: options, names: map[string]*Name{}, reach: map[netip.Addr]error{}}
	others := otherTargets(forwards)
	for i := range forwards {
		f := &forwards[i]
		if len(f.Hosts) == 0 {
			continue
		}
		c.add(f)
		c.warnPorts(f)
		if other, ok := others[i]; ok {
			c.warnOtherTarget(f, &forwards[other])
		}
		c.warnFrom(f)
		c.warnReach(f)
	}
	names := make([]Name, 0, len(c.names))
	for _, name := range c.names {
		slices.SortFunc(name.Addresses, netip.Addr.Compare)
		names = append(names, *name)
	}
	slices.SortFunc(names, func(a, b Name) int { return cmp.Compare(a.Host, b.Host) })
	return names, c.warnings
}

type collector struct {
	options  Options
	names    map[string]*Name
	reach    map[netip.Addr]error // results of Reach, by target
	warnings []Warning
}

func (c *collector) warn(f *rule.Forward, format string, args ...any) {
	c.warnings = append(c.warnings, Warning{Forward: f.Name, Source: f.Source, Message: fmt.Sprintf(format, args...)})
}

func (c *collector) add(f *rule.Forward) {
	if f.Drains() {
		return // new clients would find nothing there
	}
	for _, host := range f.Hosts {
		if err := fits(c.options.Format, host); err != nil {
			c.warn(f, "%s is left out: %v", host, err)
			continue
		}
		name := c.names[host]
		if name == nil {
			name = &Name{Host: host}
			c.names[host] = name
		}
		name.Forwards = append(name.Forwards, f.Name)
		for s := range f.EachServer() {
			// A server that gets no new connection must not get one by its name either.
			if s.Weight > 0 && !slices.Contains(name.Addresses, s.Target) {
				name.Addresses = append(name.Addresses, s.Target)
			}
		}
	}
}

// warnPorts warns if the target's port differs from the external port: DNS carries no port.
func (c *collector) warnPorts(f *rule.Forward) {
	for s := range f.EachServer() {
		if there := f.TargetPortsOf(s); there != f.Ports {
			c.warn(f, "port %s is %s at %s, but DNS carries no port, so LAN clients of %s use port %s there; let the target listen on that port, too, or leave hosts out to reflect these clients",
				f.Ports, there, s.Target, hostsOf(f), f.Ports)
			return
		}
	}
}

func (c *collector) warnOtherTarget(f, other *rule.Forward) {
	ports := "port " + other.Ports.String()
	if other.Ports.Every() {
		ports = "a part of it"
	}
	c.warn(f, "%s goes to %s by forward %s, not to %s, but DNS has one address for all ports of %s; give the other target another name",
		ports, other.TargetsString(), rule.Quote(other.Name), f.TargetsString(), hostsOf(f))
}

// warnFrom warns if LAN clients can bypass the from list of the forward, because they connect to the target
// directly. The LAN networks are unknown here; only the target is known to be in a LAN.
func (c *collector) warnFrom(f *rule.Forward) {
	outside := slices.DeleteFunc(f.Targets(), func(target netip.Addr) bool {
		return slices.ContainsFunc(f.From, func(p netip.Prefix) bool { return p.Contains(target) })
	})
	if len(f.From) == 0 || len(outside) == 0 {
		return
	}
	c.warn(f, "its from list does not contain %s, but LAN clients of %s reach the target directly, so the list does not stop them; leave hosts out to stop them", outside[0], hostsOf(f))
}

func (c *collector) warnReach(f *rule.Forward) {
	if c.options.Reach == nil {
		return
	}
	for _, target := range f.Targets() {
		reason, asked := c.reach[target]
		if !asked {
			reason = c.options.Reach(target)
			c.reach[target] = reason
		}
		if reason != nil {
			c.warn(f, "LAN clients of %s do not reach the target: %v", hostsOf(f), reason)
			return
		}
	}
}

// hostsOf returns the first few hosts of a forward as text, because a forward may have thousands.
func hostsOf(f *rule.Forward) string {
	const few = 3
	if more := len(f.Hosts) - few; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(f.Hosts[:few], ", "), more)
	}
	return strings.Join(f.Hosts, ", ")
}

// listening is a place where forwards with overlapping ports compete.
type listening struct {
	external rule.External
	v6       bool
	protocol rule.Protocol
}

// otherTargets returns, for forwards with hosts, another forward that takes some of their ports to another
// target. Keys and values are indexes in forwards.
func otherTargets(forwards []rule.Forward) map[int]int {
	groups := map[listening][]int{}
	for i := range forwards {
		f := &forwards[i]
		if f.Intercept {
			continue // an intercept listens at no address that a name could have
		}
		for _, protocol := range f.Protocols {
			at := listening{f.External, f.Target.Is6(), protocol}
			groups[at] = append(groups[at], i)
		}
	}
	found := map[int]int{}
	for at, group := range groups {
		if at.protocol == rule.Any {
			continue
		}
		// A forward with protocol any takes every port of this protocol, too.
		at.protocol = rule.Any
		addNested(forwards, slices.Concat(groups[at], group), found)
	}
	return found
}

// addNested adds the forwards of a group whose ports contain the ports of another forward. The ranges are
// sorted by start, larger ranges first, so the ranges around one range form a stack.
func addNested(forwards []rule.Forward, group []int, found map[int]int) {
	slices.SortStableFunc(group, func(a, b int) int {
		af, al := forwards[a].Ports.Bounds()
		bf, bl := forwards[b].Ports.Bounds()
		return cmp.Or(cmp.Compare(af, bf), cmp.Compare(bl, al))
	})
	var around []int
	for _, i := range group {
		first, _ := forwards[i].Ports.Bounds()
		for len(around) > 0 {
			if _, last := forwards[around[len(around)-1]].Ports.Bounds(); last >= first {
				break
			}
			around = around[:len(around)-1]
		}
		for _, outer := range around {
			known, ok := found[outer]
			if len(forwards[outer].Hosts) > 0 && !forwards[outer].SameTargets(&forwards[i]) && (!ok || i < known) {
				found[outer] = i
			}
		}
		around = append(around, i)
	}
}
