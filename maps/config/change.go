// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"hairpin/maps/rule"
)

// Change lists the differences between the running configuration and a new configuration. Every difference makes a
// forward "changed", but its connections end only if the datapath must do something else for it.
type Change struct {
	Added     []string `json:"added"`
	Removed   []string `json:"removed"`
	Changed   []string `json:"changed"`
	Unchanged int      `json:"unchanged"`
	Settings  []string `json:"settings"` // changed keys outside the forwards, such as "timeouts.udp"
	// Ends has the present number of connections that the change ends, by the name of their forward. Forwards without
	// connections are left out.
	Ends map[string]int `json:"ends"`
}

// EndsText says how many connections the change ends: "ends 12 connections of forwards mail, web"; "" if none.
func (c Change) EndsText() string {
	names, total := slices.Sorted(maps.Keys(c.Ends)), 0
	for _, number := range c.Ends {
		total += number
	}
	if total == 0 {
		return ""
	}
	const most = 8 // names on the line
	more := ""
	if len(names) > most {
		names, more = names[:most], fmt.Sprintf(" and %d more", len(names)-most)
	}
	connections, forwards := "connections", "forwards"
	if total == 1 {
		connections = "connection"
	}
	if len(c.Ends) == 1 {
		forwards = "forward"
	}
	return fmt.Sprintf("ends %d %s of %s %s%s", total, connections, forwards, strings.Join(names, ", "), more)
}

// Empty reports whether the configurations are equal.
func (c Change) Empty() bool {
	return len(c.Added)+len(c.Removed)+len(c.Changed)+len(c.Settings) == 0
}

// CompareSettings returns the changed keys outside the forwards, such as "timeouts.udp".
func CompareSettings(from, to Config) (keys []string) {
	for _, setting := range []struct {
		key      string
		from, to any
	}{
		{"interfaces.wan", from.WAN, to.WAN},
		{"interfaces.lan", from.LAN, to.LAN},
		{"interfaces.private_sources", sorted(from.PrivateSources), sorted(to.PrivateSources)},
		{"datapath.mode", from.Mode, to.Mode},
		{"datapath.xdp_tx", from.XDPTx, to.XDPTx},
		{"datapath.max_connections", from.MaxConnections, to.MaxConnections},
		{"datapath.max_per_source", from.PerSource(), to.PerSource()},
		{"datapath.mss_clamp", from.mssClamp(), to.mssClamp()},
		{"timeouts.tcp_established", from.Timeouts.TCPEstablished, to.Timeouts.TCPEstablished},
		{"timeouts.tcp_transitory", from.Timeouts.TCPTransitory, to.Timeouts.TCPTransitory},
		{"timeouts.tcp_opening", from.Timeouts.Opening(), to.Timeouts.Opening()},
		{"timeouts.tcp_closing", from.Timeouts.Closing(), to.Timeouts.Closing()},
		{"timeouts.udp", from.Timeouts.UDP, to.Timeouts.UDP},
		{"timeouts.icmp", from.Timeouts.ICMP, to.Timeouts.ICMP},
		{"timeouts.port_hold", from.Timeouts.PortHold, to.Timeouts.PortHold},
		{"timeouts.address_grace", from.Timeouts.AddressGrace, to.Timeouts.AddressGrace},
		{"icmp.refuse", sorted(from.ICMP.Refuse), sorted(to.ICMP.Refuse)},
		{"icmp.rate", from.ICMP.Rate, to.ICMP.Rate},
		{"reflection.default", from.ReflectOf(rule.Forward{}), to.ReflectOf(rule.Forward{})},
		{"reflection.ports", from.ReflectPorts, to.ReflectPorts},
		{"reflection.prefixes", rule.SortedStandIns(from.StandIns), rule.SortedStandIns(to.StandIns)},
		{"deny.sources", sortedPrefixes(from.Deny), sortedPrefixes(to.Deny)},
		{"metrics.listen", from.MetricsListen, to.MetricsListen},
		{"metrics.web_config", from.MetricsWeb, to.MetricsWeb},
		{"log.connections", cmp.Or(from.LogConnections, LogOff), cmp.Or(to.LogConnections, LogOff)},
		{"dns.write", dnsWrites(from), dnsWrites(to)},
		{"dns.reload", dnsReloads(from), dnsReloads(to)},
		{"leases.files", sorted(from.Leases.Files), sorted(to.Leases.Files)},
		{"leases.max", from.Leases.Limit(), to.Leases.Limit()},
	} {
		// Compare as text, so that a nil list equals an empty list.
		if fmt.Sprint(setting.from) != fmt.Sprint(setting.to) {
			keys = append(keys, setting.key)
		}
	}
	// These keys have a default that depends on another key. If the other key alone has changed, leave them out.
	return slices.DeleteFunc(keys, func(key string) bool {
		return key == "datapath.max_per_source" && from.MaxPerSource == to.MaxPerSource ||
			key == "timeouts.tcp_opening" && from.Timeouts.TCPOpening == to.Timeouts.TCPOpening ||
			key == "timeouts.tcp_closing" && from.Timeouts.TCPClosing == to.Timeouts.TCPClosing
	})
}

func dnsWrites(c Config) (files []string) {
	for _, file := range c.DNS {
		files = append(files, fmt.Sprintf("%s %q", file.Format, file.Path))
	}
	return sorted(files)
}

func dnsReloads(c Config) (commands []string) {
	for _, file := range c.DNS {
		if file.Reload != nil {
			commands = append(commands, fmt.Sprintf("%s %q", file.Format, file.Reload))
		}
	}
	return sorted(commands)
}

// mssClamp formats datapath.mss_clamp for a comparison. nil means the bare devices; an empty list means no interface.
func (c Config) mssClamp() string {
	if c.MSSClamp == nil {
		return "bare"
	}
	return fmt.Sprintf("%q", sorted(c.MSSClamp))
}

func sorted(list []string) []string { return slices.Sorted(slices.Values(list)) }

func sortedPrefixes(list []netip.Prefix) []netip.Prefix {
	return slices.SortedFunc(slices.Values(list), func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
}

// Same reports whether two forwards of c have the same name and mean the same. It does not compare Source, the place
// where they were written.
func (c Config) Same(f, g rule.Forward) bool {
	return f.Name == g.Name && SameBehaviour(c, f, c, g) && SameBesides(f, g)
}

// SameBesides reports whether two forwards are the same in all that SameBehaviour does not compare and Same does. A difference ends no
// connection.
func SameBesides(f, g rule.Forward) bool {
	return slices.Equal(f.Hosts, g.Hosts) && f.Rate == g.Rate && f.RatePerSource == g.RatePerSource &&
		f.Comment == g.Comment && f.Disabled == g.Disabled && f.DrainUntil == g.DrainUntil && rule.SameServers(&f, &g)
}

// SameBehaviour reports whether the datapath does the same for the connections of forward f of configuration fc and of forward g of gc.
func SameBehaviour(fc Config, f rule.Forward, gc Config, g rule.Forward) bool {
	return f.Intercept == g.Intercept && sameSet(f.LAN, g.LAN) && sameSet(f.Except, g.Except) &&
		f.External == g.External && f.Ports == g.Ports && sameTarget(&f, &g) && fc.ReflectOf(f) == gc.ReflectOf(g) && f.HidesClients() == g.HidesClients() && f.LANOnly == g.LANOnly &&
		sameSet(f.Protocols, g.Protocols) && sameSet(f.From, g.From) &&
		(fc.ReflectOf(f) != rule.ReflectPrefix || sameSet(fc.standInsOf(f), gc.standInsOf(g)))
}

// sameTarget reports whether two forwards lead to the same server, or one of them to several: then each server keeps its connections as
// long as the forward has it.
func sameTarget(f, g *rule.Forward) bool {
	return f.Balanced() || g.Balanced() || f.Target == g.Target && f.TargetPorts() == g.TargetPorts()
}

func sameSet[T comparable](a, b []T) bool {
	return !slices.ContainsFunc(a, func(x T) bool { return !slices.Contains(b, x) }) &&
		!slices.ContainsFunc(b, func(x T) bool { return !slices.Contains(a, x) })
}

// IndexByName returns the index of each forward in the list, by its name.
func IndexByName(forwards []rule.Forward) map[string]int {
	index := make(map[string]int, len(forwards))
	for i, f := range forwards {
		index[f.Name] = i
	}
	return index
}
