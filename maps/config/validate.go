// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"hairpin/maps/rule"
)

const (
	minTimeout = time.Second
	maxTimeout = 720 * time.Hour
	// 1<<24 connections take about 8 GiB in the kernel.
	maxConnections = 1 << 24
	maxICMPRate    = 1_000_000
	// An address that is away for longer may be another router's.
	maxAddressGrace = time.Hour
)

// Validate returns all mistakes that can be found without the state of the machine. The error joins Problems.
//
// Two forwards may match the same packet if one is more specific. An address is more specific than an interface, and an
// interface is more specific than every WAN interface. At the same place, a range within a larger range is more
// specific, and one protocol is more specific than protocol any. Other overlaps are mistakes. The rules for intercepts
// are the same. An intercept must also not redirect the queries of another intercept's target.
//
// A disabled forward is checked alone: it may share its ports with another forward.
func (c Config) Validate() error {
	c.Forwards = c.All() // Problems of disabled forwards have the indices after those of Forwards
	v := validator{Config: c, names: make(map[string]int, len(c.Forwards)), fixed: map[netip.Addr]int{}, hostOf: map[hostTarget]int{}}
	v.interfaces()
	v.settings()
	for i, f := range c.Forwards {
		if f.External.Address.IsValid() && !f.Disabled {
			v.fixed[f.External.Address] = i
		}
	}
	for i := range c.Forwards {
		v.forward(i)
	}
	v.names = nil // free the memory: this map has one entry for each forward
	// If forwards are in conflict, loops would only report consequences of the conflict.
	if v.conflicts() {
		v.loops()
	}
	return errors.Join(v.problems...)
}

// ValidLast reports whether c is valid. c must be valid without its last forward, and the last forward must meet no
// other forward (Forward.Meets).
func (c Config) ValidLast() bool {
	v := validator{Config: c, names: map[string]int{}, fixed: map[netip.Addr]int{}, hostOf: map[hostTarget]int{}}
	last := len(c.Forwards) - 1
	f := &c.Forwards[last]
	for i := range last {
		g := &c.Forwards[i]
		if g.Name == f.Name {
			v.names[g.Name] = i
		}
		if addr := g.External.Address; addr.IsValid() && f.Serves(addr) {
			v.fixed[addr] = i
		}
		if len(f.Hosts) == 0 {
			continue
		}
		for _, host := range g.Hosts {
			v.hostOf[hostTarget{host, g.Target.Is6()}] = i
		}
	}
	v.forward(last)
	return len(v.problems) == 0
}

type validator struct {
	Config
	problems []error
	names    map[string]int     // index of the first forward with the name
	fixed    map[netip.Addr]int // index of the last forward that listens at the fixed address
	hostOf   map[hostTarget]int // index of the first forward with the host and family
}

// check records err as a problem of a field, and reports whether err is nil. Index -1 means a setting outside the
// forwards.
func (v *validator) check(index int, field string, err error) bool {
	if err != nil {
		v.record(index, rule.NewProblem(field, err))
	}
	return err == nil
}

func (v *validator) record(index int, p *rule.Problem) {
	if index >= 0 {
		p.Index, p.Forward, p.Kind = index, v.Forwards[index].Name, v.Forwards[index].Kind()
	}
	v.problems = append(v.problems, p)
}

func (v *validator) interfaces() {
	seen := map[string]string{}
	for _, list := range []struct {
		field string
		names []string
	}{{"interfaces.wan", v.WAN}, {"interfaces.lan", v.LAN}} {
		for i, name := range list.names {
			err := rule.CheckInterfaceName(name)
			if where := seen[name]; err == nil && where != "" {
				err = fmt.Errorf("%s is already in %s", rule.Quote(name), where)
				if where != list.field {
					err = fmt.Errorf("%w; an interface has one side: if clients, servers and the Internet are all behind it, name it in interfaces.lan alone", err)
				}
			}
			v.check(-1, list.field, rule.OfItem(i, err))
			seen[name] = list.field
		}
	}
	v.privateSources()
}

func (v *validator) privateSources() {
	for i, name := range v.PrivateSources {
		var err error
		switch {
		case !slices.Contains(v.WAN, name):
			err = v.notWAN(name)
		case slices.Contains(v.PrivateSources[:i], name):
			err = fmt.Errorf("%s is listed twice", rule.Quote(name))
		}
		v.check(-1, "interfaces.private_sources", rule.OfItem(i, err))
	}
}

func (v *validator) settings() {
	if !slices.Contains(modes, v.Mode) {
		v.check(-1, "datapath.mode", fmt.Errorf("%s is not a mode; %s", rule.Quote(v.Mode), rule.Suggest(v.Mode, modes...)))
	}
	if !slices.Contains(xdpTxs, v.XDPTx) {
		v.check(-1, "datapath.xdp_tx", fmt.Errorf("%s is not possible; %s", rule.Quote(v.XDPTx), rule.Suggest(v.XDPTx, xdpTxs...)))
	}
	if v.MaxConnections < 1 || v.MaxConnections > maxConnections {
		v.check(-1, "datapath.max_connections", fmt.Errorf("%d is out of range; it is 1 to %d", v.MaxConnections, maxConnections))
	}
	if v.MaxPerSource > v.MaxConnections {
		v.check(-1, "datapath.max_per_source", fmt.Errorf("%d is more than max_connections, %d", v.MaxPerSource, v.MaxConnections))
	}
	v.timeouts()
	v.icmp()
	v.mssClamp()
	if v.Reflection != "" {
		_, err := rule.ParseReflect(string(v.Reflection))
		v.check(-1, "reflection.default", err)
	}
	v.check(-1, "reflection.ports", checkReflectPorts(v.ReflectPorts))
	v.standIns()
	v.deny()
	v.check(-1, "metrics.listen", checkListen(v.MetricsListen))
	v.check(-1, "metrics.web_config", checkWebConfig(v.MetricsWeb))
	if v.LogConnections != "" && !slices.Contains(logs, v.LogConnections) {
		v.check(-1, "log.connections", fmt.Errorf("%s is not possible; %s", rule.Quote(v.LogConnections), rule.Suggest(v.LogConnections, logs...)))
	}
	v.dns()
	v.leases()
}

// Limits of reflection.ports. Below 1024 are the well-known ports: clients that have one of them keep to them (RFC 4787
// REQ-3a).
const (
	lowestReflectPort = 1024
	fewestReflectPort = 64
)

func checkReflectPorts(ports rule.Ports) error {
	switch {
	case ports.First < lowestReflectPort:
		return fmt.Errorf("%s begins below %d, where the well-known ports are", ports, lowestReflectPort)
	case ports.Last < ports.First || ports.Len() < fewestReflectPort:
		return fmt.Errorf("%s are fewer than %d ports; each connection to one port of a server needs one", ports, fewestReflectPort)
	}
	return nil
}

func (v *validator) timeouts() {
	check := func(field string, value time.Duration) { v.check(-1, "timeouts."+field, CheckTimeout(value)) }
	check("tcp_established", v.Timeouts.TCPEstablished)
	check("tcp_transitory", v.Timeouts.TCPTransitory)
	if v.Timeouts.TCPOpening != 0 {
		check("tcp_opening", v.Timeouts.TCPOpening)
	}
	if v.Timeouts.TCPClosing != 0 {
		check("tcp_closing", v.Timeouts.TCPClosing)
	}
	check("udp", v.Timeouts.UDP)
	check("icmp", v.Timeouts.ICMP)
	check("port_hold", v.Timeouts.PortHold)
	if grace := v.Timeouts.AddressGrace; grace < 0 || grace > maxAddressGrace {
		v.check(-1, "timeouts.address_grace", fmt.Errorf("%s is out of range; it is 0s to 1h", grace))
	}
}

// CheckTimeout returns an error if value is not in the range of Timeouts.
func CheckTimeout(value time.Duration) error {
	if value < minTimeout || value > maxTimeout {
		return fmt.Errorf("%s is out of range; it is %s to 720h", value, minTimeout)
	}
	return nil
}

func (v *validator) icmp() {
	sides := []string{SideLAN, SideWAN}
	for i, side := range v.ICMP.Refuse {
		var err error
		switch {
		case !slices.Contains(sides, side):
			err = fmt.Errorf("%s is not a side; %s", rule.Quote(side), rule.Suggest(side, sides...))
		case slices.Contains(v.ICMP.Refuse[:i], side):
			err = fmt.Errorf("%s is listed twice", rule.Quote(side))
		}
		v.check(-1, "icmp.refuse", rule.OfItem(i, err))
	}
	if v.ICMP.Rate < 1 || v.ICMP.Rate > maxICMPRate {
		v.check(-1, "icmp.rate", fmt.Errorf("%d is out of range; it is 1 to %d a second", v.ICMP.Rate, maxICMPRate))
	}
}

func (v *validator) mssClamp() {
	for i, name := range v.MSSClamp {
		var err error
		switch {
		case !slices.Contains(v.WAN, name) && !slices.Contains(v.LAN, name):
			err = v.notConfigured(name)
		case slices.Contains(v.MSSClamp[:i], name):
			err = fmt.Errorf("%s is listed twice", rule.Quote(name))
		}
		v.check(-1, "datapath.mss_clamp", rule.OfItem(i, err))
	}
}

// maxDeny is how many sources a configuration may deny. Each command reads them.
const maxDeny = 131072

// deny refuses what would deny everybody: whoever wants that needs no forward.
func (v *validator) deny() {
	seen := make(map[netip.Prefix]bool, len(v.Deny))
	for i, source := range v.Deny {
		var err error
		switch {
		case !source.IsValid() || source.Addr().Is4In6() || source != source.Masked():
			err = fmt.Errorf("%s is not a network", source)
		case source.Bits() == 0:
			err = fmt.Errorf("%s is every %s address, so no forward would serve anybody; remove the forwards instead, or say in their from lists who may connect",
				source, rule.Family(source.Addr()))
		case seen[source]:
			err = fmt.Errorf("%s is listed twice", rule.SourceText(source))
		}
		v.check(-1, "deny.sources", rule.OfItem(i, err))
		seen[source] = true
	}
	if len(v.Deny) > maxDeny {
		v.check(-1, "deny.sources", fmt.Errorf("%d sources are more than %d; give them to \"hairpin deny add -\" instead, which takes a million", len(v.Deny), maxDeny))
	}
}

func checkListen(listen string) error {
	if listen == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(listen)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err == nil && host != "" && host != "localhost" {
		_, err = netip.ParseAddr(host)
	}
	if err != nil {
		return fmt.Errorf("%s is not a listening address; write ADDR:PORT such as 127.0.0.1:9845, or \"\" for no metrics", rule.Quote(listen))
	}
	return nil
}

func checkWebConfig(path string) error {
	if path != "" && !filepath.IsAbs(path) {
		return fmt.Errorf("%s is not an absolute path", rule.Quote(path))
	}
	return nil
}

// forward records the mistakes of one forward, alone and in relation to the forwards before it.
func (v *validator) forward(i int) {
	f := &v.Forwards[i]
	for _, problem := range f.Check() {
		v.record(i, problem)
	}
	v.check(i, "name", v.name(i))
	if f.Disabled {
		return
	}
	if f.Intercept {
		v.check(i, "lan", v.lan(f))
	} else {
		v.check(i, "external", v.external(f.External))
	}
	v.check(i, "to", v.target(f))
	v.check(i, "reflect", v.reflect(f))
	v.hosts(i)
}

func (v *validator) name(i int) error {
	f := &v.Forwards[i]
	other, taken := v.names[f.Name]
	if !taken {
		v.names[f.Name] = i
		return nil
	}
	whose := "another " + f.Kind()
	switch g := &v.Forwards[other]; {
	case g.Intercept == f.Intercept:
	case g.Intercept:
		whose = "an intercept"
	default:
		whose = "a forward"
	}
	return fmt.Errorf("the name is taken by %s%s", whose, v.where(other))
}

func (v *validator) where(i int) string {
	if source := v.Forwards[i].Source; source != "" {
		return " (" + source + ")"
	}
	return ""
}

func (v *validator) external(e rule.External) error {
	switch {
	case e.Address.IsValid():
		return nil
	case e.Interface != "" && !slices.Contains(v.WAN, e.Interface):
		return v.notWAN(e.Interface)
	case e.Interface == "" && len(v.WAN) == 0:
		return errors.New("the forward listens on every WAN interface, but none is configured; name an interface in interfaces.wan, or give an address")
	}
	return nil
}

func (v *validator) notWAN(name string) error { return notOfSide(name, "WAN", "LAN", v.WAN, v.LAN) }

func (v *validator) notLAN(name string) error { return notOfSide(name, "LAN", "WAN", v.LAN, v.WAN) }

// notConfigured returns the error for a name that is an interface of neither side.
func (v *validator) notConfigured(name string) error {
	hint := "no interface is configured"
	if known := slices.Concat(v.WAN, v.LAN); len(known) > 0 {
		hint = rule.Suggest(name, known...)
	}
	return fmt.Errorf("%s is in neither interfaces.wan nor interfaces.lan; %s", rule.Quote(name), hint)
}

// notOfSide returns the error for a name that is not an interface of the wanted side. own has the interfaces of the
// wanted side, others the interfaces of the other side.
func notOfSide(name, side, other string, own, others []string) error {
	if slices.Contains(others, name) {
		return fmt.Errorf("%s is a %s interface where one of interfaces.%s was expected", rule.Quote(name), other, strings.ToLower(side))
	}
	hint := "no " + side + " interface is configured"
	if len(own) > 0 {
		hint = rule.Suggest(name, own...)
	}
	return fmt.Errorf("%s is not a %s interface; %s", rule.Quote(name), side, hint)
}

func (v *validator) target(f *rule.Forward) error {
	for s := range f.EachServer() {
		if other, fixed := v.fixed[s.Target]; fixed {
			return fmt.Errorf("%s is the external address of forward %s%s, so packets would loop", s.Target, rule.Quote(v.Forwards[other].Name), v.where(other))
		}
	}
	return nil
}

// hostTarget is the key of validator.hostOf: a DNS name has one target in each family.
type hostTarget struct {
	host string
	v6   bool
}

// hosts records an error if a name would need two targets in one family. A DNS answer has no port, so clients could not
// choose the right target.
func (v *validator) hosts(i int) {
	f := &v.Forwards[i]
	if f.Drains() {
		return // its names are not published any more
	}
	for n, host := range f.Hosts {
		at := hostTarget{host, f.Target.Is6()}
		other, taken := v.hostOf[at]
		if !taken {
			v.hostOf[at] = i
			continue
		}
		if g := &v.Forwards[other]; !f.SameTargets(g) {
			v.check(i, "hosts", rule.OfItem(n, fmt.Errorf("%s is also a host of forward %s%s, whose target is %s, not %s; a name has one address for all ports, so give each target another name",
				host, rule.Quote(g.Name), v.where(other), g.TargetsString(), f.TargetsString())))
		}
	}
}

// conflicts compares forwards of one place and protocol. It records each conflict, and returns true if there is none. If
// two forwards share ports, the ports of one must lie within the ports of the other.
func (v *validator) conflicts() bool {
	type listening struct {
		rule.Place
		rule.Protocol
	}
	places := map[listening][]int{}
	var order []listening
	for i, f := range v.Forwards {
		if f.Disabled || f.Drains() {
			continue
		}
		for n, protocol := range f.Protocols {
			if slices.Contains(f.Protocols[:n], protocol) {
				continue // Forward.Check has reported this duplicate
			}
			for _, where := range f.Places() {
				at := listening{where, protocol}
				if places[at] == nil {
					order = append(order, at)
				}
				places[at] = append(places[at], i)
			}
		}
	}
	reported := map[[2]int]bool{}
	for _, at := range order {
		for _, pair := range v.overlaps(places[at]) {
			if !reported[pair] {
				reported[pair] = true
				v.check(pair[1], "port", v.conflict(pair[1], pair[0], at.Protocol))
			}
		}
	}
	return len(reported) == 0
}

// overlaps returns pairs of forwards in conflict: their port ranges are equal or overlap partly. In a pair, the forward
// that is earlier in the configuration comes first. The ranges are sorted by start, larger ranges first. So the ranges
// around the current range form a stack.
func (v *validator) overlaps(forwards []int) (pairs [][2]int) {
	forwards = slices.Clone(forwards)
	slices.SortStableFunc(forwards, func(a, b int) int {
		af, al := v.Forwards[a].Ports.Bounds()
		bf, bl := v.Forwards[b].Ports.Bounds()
		return cmp.Or(cmp.Compare(af, bf), cmp.Compare(bl, al))
	})
	var around []int
	for _, i := range forwards {
		ports := v.Forwards[i].Ports
		for len(around) > 0 && !ports.Overlaps(v.Forwards[around[len(around)-1]].Ports) {
			around = around[:len(around)-1]
		}
		if n := len(around); n > 0 && !ports.Within(v.Forwards[around[n-1]].Ports) {
			pairs = append(pairs, [2]int{min(i, around[n-1]), max(i, around[n-1])})
		}
		around = append(around, i)
	}
	return pairs
}

func (v *validator) conflict(i, other int, protocol rule.Protocol) error {
	f, g := &v.Forwards[i], &v.Forwards[other]
	name := g.Kind() + " " + rule.Quote(g.Name) + v.where(other)
	switch {
	case protocol == rule.Any:
		return fmt.Errorf("every protocol is taken by %s", name)
	case !protocol.HasPorts():
		return fmt.Errorf("%s is taken by %s", protocol, name)
	case f.Ports == g.Ports && f.Ports.Every():
		return fmt.Errorf("every port is taken by %s", name)
	case f.Ports == g.Ports:
		return fmt.Errorf("%s is taken by %s", f.Ports, name)
	}
	return fmt.Errorf("%s shares some ports with %s, which has %s; ranges may overlap only if one lies within the other", f.Ports, name, g.Ports)
}

// CheckAddresses returns mistakes that depend on the addresses of the router's interfaces, of any role. The target of a
// forward must not be an address of the router; the target of an intercept may be. A target must not be the network,
// broadcast or anycast address of an attached network. Stand-ins must not be in an attached network. The error joins
// Problems.
func (c Config) CheckAddresses(ifs []Interface) error {
	v := validator{Config: c}
	for i, f := range c.Forwards {
		for _, link := range ifs {
			for _, prefix := range slices.Concat(link.Addresses, link.Passive) {
				for s := range f.EachServer() {
					if !f.Intercept || s.Target != prefix.Addr() {
						v.check(i, "to", checkAgainst(s.Target, prefix, link.Name))
					}
				}
			}
		}
	}
	for _, s := range c.StandIns {
		for _, link := range ifs {
			for _, prefix := range slices.Concat(link.Addresses, link.Passive) {
				v.check(-1, s.Field(), s.CheckFree(prefix.Masked(), "the network of "+link.Name))
			}
		}
	}
	return errors.Join(v.problems...)
}

func checkAgainst(target netip.Addr, prefix netip.Prefix, link string) error {
	switch {
	case !prefix.Contains(target):
		return nil
	case target == prefix.Addr():
		return fmt.Errorf("%s is this router's own address on %s; the target must be another host", target, link)
	case target.Is6():
		// RFC 4291 2.6.1. A /127 between two routers has no anycast address (RFC 6164).
		if prefix.Bits() < 127 && target == prefix.Masked().Addr() {
			return fmt.Errorf("%s is every router's address on the network of %s (subnet-router anycast); the target must be another host", target, link)
		}
		return nil
	case prefix.Bits() < 31 && target == prefix.Masked().Addr():
		return fmt.Errorf("%s is the network of %s, not a host", target, link)
	case prefix.Bits() < 31 && target == lastOf(prefix):
		return fmt.Errorf("%s is the broadcast address of %s, not a host", target, link)
	}
	return nil
}

// lastOf returns the broadcast address of an IPv4 network.
func lastOf(prefix netip.Prefix) netip.Addr {
	addr := prefix.Masked().Addr().As4()
	for bit := prefix.Bits(); bit < 32; bit++ {
		addr[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(addr)
}
