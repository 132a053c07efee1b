// SPDX-License-Identifier: Apache-2.0

package importer

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"hairpin/maps/rule"
)

// uciSection is a section of a package of UCI, such as "config redirect 'web'".
type uciSection struct {
	pack, kind, name string
	index            int // among the sections of this kind in the package
	line             int
	options          map[string][]string
	order            []string // names of options, as they are written
}

// get returns the value of an option; a list has its items in one text.
func (s *uciSection) get(option string) string { return strings.Join(s.options[option], " ") }

// list returns the words of an option, which may be a list.
func (s *uciSection) list(option string) []string { return strings.Fields(s.get(option)) }

// uciGrammar is what follows the first word of a line.
var uciGrammar = map[string]string{"package": "a name", "config": "a type", "option": "a name and a value", "list": "a name and a value"}

// readUCISections reads the output of "uci export", or a file of /etc/config.
func readUCISections(name string, data []byte) ([]*uciSection, error) {
	lines, err := readStatements(name, data)
	if err != nil {
		return nil, err
	}
	var sections []*uciSection
	pack := "firewall"
	counts := map[string]int{}
	for _, l := range lines {
		least := map[string]int{"package": 2, "config": 2, "option": 3, "list": 3}[l.words[0]]
		most := map[string]int{"package": 2, "config": 3, "option": 3, "list": 3}[l.words[0]]
		switch {
		case least == 0:
			return nil, problemAt(name, data, l.offset, "%s where package, config, option or list was expected; write the file with \"uci export firewall\"", rule.Quote(l.words[0]))
		case len(l.words) < least:
			return nil, problemAt(name, data, l.offset, "%s needs %s", l.words[0], uciGrammar[l.words[0]])
		case len(l.words) > most:
			return nil, problemAt(name, data, l.at[most], "%s is one word too many", rule.Quote(l.words[most]))
		}
		switch l.words[0] {
		case "package":
			pack = l.words[1]
		case "config":
			s := &uciSection{pack: pack, kind: l.words[1], line: l.line, options: map[string][]string{}}
			if len(l.words) > 2 {
				s.name = l.words[2]
			}
			s.index = counts[pack+" "+s.kind]
			counts[pack+" "+s.kind]++
			sections = append(sections, s)
		default:
			if len(sections) == 0 || sections[len(sections)-1].pack != pack {
				return nil, problemAt(name, data, l.offset, "%s before the first section", l.words[0])
			}
			s, option := sections[len(sections)-1], l.words[1]
			if l.words[0] == "option" || s.options[option] == nil {
				s.options[option] = nil
				s.order = append(s.order, option)
			}
			s.options[option] = append(s.options[option], l.words[2])
		}
	}
	if len(sections) == 0 {
		return nil, problemAt(name, data, len(data), "there are no sections; write the file with \"uci export firewall\"")
	}
	return sections, nil
}

// uciZone is a zone of the firewall.
type uciZone struct {
	masquerades bool
	devices     []string
	known       bool         // devices has all of its devices
	router      []netip.Addr // addresses of the router in the zone
}

type uciReader struct {
	found *found
	zones map[string]*uciZone
	wans  int // zones that masquerade
	lans  int
}

func readUCI(name string, data []byte) (*found, error) {
	sections, err := readUCISections(name, data)
	if err != nil {
		return nil, err
	}
	r := &uciReader{found: &found{cleanup: "uci commit firewall && /etc/init.d/firewall reload"}, zones: map[string]*uciZone{}}
	r.readZones(sections)
	for _, s := range sections {
		if s.pack != "firewall" {
			continue
		}
		switch s.kind {
		case "redirect":
			r.found.rules = append(r.found.rules, r.redirect(s))
		case "include":
			if enabled(s) {
				r.found.notes = append(r.found.notes, fmt.Sprintf("line %d includes %s, whose rules are not in the input", s.line, s.get("path")))
			}
		}
	}
	return r.found, nil
}

func enabled(s *uciSection) bool {
	return !slices.Contains([]string{"0", "no", "off", "false", "disabled"}, s.get("enabled"))
}

// readZones reads the zones, and the devices of their networks if the package network is there, too.
func (r *uciReader) readZones(sections []*uciSection) {
	networks := map[string]*uciSection{}
	for _, s := range sections {
		if s.pack == "network" && s.kind == "interface" {
			networks[s.name] = s
		}
	}
	for _, s := range sections {
		if s.pack != "firewall" || s.kind != "zone" || !enabled(s) {
			continue
		}
		z := &uciZone{masquerades: s.get("masq") == "1" || s.get("masq6") == "1", devices: s.list("device"), known: true}
		for _, network := range s.list("network") {
			device := uciDevice(network, networks[network])
			switch {
			case device == "":
				z.known = false
			case !slices.Contains(z.devices, device) && device[0] != '@':
				z.devices = append(z.devices, device)
			}
			z.router = append(z.router, uciAddresses(networks[network])...)
		}
		z.known = z.known && len(z.devices) > 0 && !slices.ContainsFunc(z.devices, func(d string) bool { return rule.CheckInterfaceName(d) != nil })
		r.zones[s.get("name")] = z
		side, count := &r.found.lan, &r.lans
		if z.masquerades {
			side, count = &r.found.wan, &r.wans
		}
		*count++
		if z.known {
			*side = append(*side, z.devices...)
		}
	}
}

// uciDevice returns the name of the device of a network: "" if it is not known, "@NAME" if it is that of another network.
func uciDevice(name string, s *uciSection) string {
	if s == nil {
		return ""
	}
	device := s.get("device")
	if device == "" {
		device = s.get("ifname")
	}
	switch s.get("proto") {
	case "pppoe", "pppoa", "pptp", "l2tp":
		return s.get("proto") + "-" + name
	case "wireguard":
		return name
	case "static", "dhcp", "dhcpv6", "none":
	default:
		return ""
	}
	if s.get("type") == "bridge" {
		return "br-" + name
	}
	if strings.Contains(device, " ") {
		return ""
	}
	return device
}

func uciAddresses(s *uciSection) (list []netip.Addr) {
	if s == nil {
		return nil
	}
	for _, text := range append(s.list("ipaddr"), s.list("ip6addr")...) {
		text, _, _ = strings.Cut(text, "/")
		if addr, ok := readAddr(text); ok {
			list = append(list, addr)
		}
	}
	return list
}

// uciKnown are the options of a redirect that redirect reads, or that change nothing here.
var uciKnown = []string{
	"name", "_name", "enabled", "src", "src_ip", "src_dip", "src_dport", "dest", "dest_ip", "dest_port", "proto", "family", "target",
	"reflection", "reflection_src", "reflection_zone", "counter", "log", "log_limit",
}

// redirect reads one port forward.
func (r *uciReader) redirect(s *uciSection) Rule {
	u := Rule{hook: prerouting, disabled: !enabled(s), comment: s.get("name"), place: fmt.Sprintf("line %d", s.line)}
	if u.comment == "" {
		u.comment = s.get("_name")
	}
	u.remove = "uci delete " + shellWord(fmt.Sprintf("firewall.@redirect[%d]", s.index))
	if s.name != "" {
		u.remove = "uci delete " + shellWord("firewall."+s.name)
	}
	if target := s.get("target"); target != "" && target != "DNAT" {
		u.action, u.hook = otherNAT, postrouting
		u.problems = []string{fmt.Sprintf("its target is %s; a forward is a DNAT", rule.Quote(target))}
		return u
	}
	for _, option := range s.order {
		if !slices.Contains(uciKnown, option) && s.get(option) != "" {
			u.match.others = append(u.match.others, fmt.Sprintf("option %s %s", option, rule.Quote(s.get(option))))
		}
	}
	if s.get("log") == "1" {
		u.notes = append(u.notes, "it logged connections; hairpin does so for all forwards: see [log] in hairpin.toml")
	}
	problem := func(format string, args ...any) { u.problems = append(u.problems, fmt.Sprintf(format, args...)) }
	zone := r.from(&u, s.get("src"), problem)
	r.addresses(&u, s, problem)
	r.ports(&u, s, problem)
	r.target(&u, s, zone, problem)
	r.reflection(&u, s, zone)
	return u
}

// from sets the incoming interface by the zone of the packets.
func (r *uciReader) from(u *Rule, name string, problem func(string, ...any)) *uciZone {
	zone := r.zones[name]
	u.match.in.only = []string{"/zone/" + name} // no name of an interface: the packets of other zones are others
	switch {
	case zone == nil:
		problem("there is no zone %s", rule.Quote(name))
	case zone.known:
		u.match.in.only = zone.devices
	case zone.masquerades && r.wans == 1:
		u.match.in.only = []string{everyWAN}
	case !zone.masquerades && r.lans == 1:
		u.match.in.only = []string{everyLAN}
	default:
		problem("the devices of the zone %s are not in the input: add the output of \"uci export network\"", rule.Quote(name))
	}
	return zone
}

func (r *uciReader) addresses(u *Rule, s *uciSection, problem func(string, ...any)) {
	u.match.family = map[string]int{"ipv4": 4, "inet": 4, "ipv6": 6, "inet6": 6}[s.get("family")]
	for _, option := range []string{"src_ip", "src_dip"} {
		var n networks
		for _, text := range s.list(option) {
			plain, not := strings.CutPrefix(text, "!")
			list, ok := readNetworks(plain, plain)
			switch {
			case !ok:
				problem("%s %s is not an address", option, rule.Quote(text))
			case not:
				n.not = append(n.not, list...)
			default:
				n.only = append(n.only, list...)
			}
		}
		if option == "src_ip" {
			u.match.source = n
		} else {
			u.match.dest = n
		}
	}
}

func (r *uciReader) ports(u *Rule, s *uciSection, problem func(string, ...any)) {
	protocols := s.list("proto")
	if len(protocols) == 0 {
		protocols = []string{"tcp", "udp"}
	}
	for _, text := range protocols {
		switch text {
		case "tcpudp":
			u.match.protocols = append(u.match.protocols, rule.TCP, rule.UDP)
			continue
		case "all", "any", "*", "0":
			u.match.protocols = nil
			u.match.ports = nil
			if s.get("src_dport") != "" {
				problem("it names ports, but no protocol")
			}
			return
		}
		p, ok := readProtocol(text)
		if !ok {
			problem("hairpin does not forward the protocol %s", rule.Quote(text))
		}
		u.match.protocols = append(u.match.protocols, p)
	}
	var not []rule.Ports
	for _, text := range s.list("src_dport") {
		plain, negated := strings.CutPrefix(text, "!")
		ports, ok := uciPorts(plain)
		switch {
		case !ok:
			problem("src_dport %s is not a port", rule.Quote(text))
		case negated:
			not = append(not, ports)
		default:
			u.match.ports = append(u.match.ports, ports)
		}
	}
	if not != nil {
		u.match.ports = bothPorts(u.match.ports, exceptPorts(not), &u.match.never)
	}
}

// uciPorts reads "80", "6000-6010" or "6000:6010".
func uciPorts(text string) (rule.Ports, bool) {
	first, last, ranged := strings.Cut(strings.ReplaceAll(text, ":", "-"), "-")
	if !ranged {
		last = first
	}
	return readPorts(first, last)
}

func (r *uciReader) target(u *Rule, s *uciSection, zone *uciZone, problem func(string, ...any)) {
	if text := s.get("dest_port"); text != "" {
		var ok bool
		if u.ports, ok = uciPorts(text); !ok {
			problem("dest_port %s is not a port", rule.Quote(text))
		}
	}
	text := s.get("dest_ip")
	if text != "" {
		var ok bool
		if u.target, ok = readAddr(strings.TrimSuffix(text, "/32")); !ok {
			problem("dest_ip %s is not the address of a host", rule.Quote(text))
		}
		return
	}
	u.action = redirect
	if zone == nil || zone.masquerades {
		return
	}
	for _, addr := range zone.router {
		if u.match.family == 0 && addr.Is4() || u.match.family != 0 && addr.Is6() == (u.match.family == 6) {
			u.action, u.target = dnat, addr
			return
		}
	}
}

// reflection sets what the firewall does for LAN clients. Without an option it reflects, and the server sees the router.
func (r *uciReader) reflection(u *Rule, s *uciSection, zone *uciZone) {
	if zone == nil || !zone.masquerades {
		return
	}
	switch {
	case slices.Contains([]string{"0", "no", "off", "false", "disabled"}, s.get("reflection")):
		u.reflect = rule.ReflectOff
	case s.get("reflection_src") == "external":
		u.reflect = rule.ReflectPublic
	default:
		u.reflect = rule.ReflectRouter
	}
	if zones := s.get("reflection_zone"); zones != "" && u.reflect != rule.ReflectOff {
		u.notes = append(u.notes, fmt.Sprintf("it was reflected for the zones %s; a forward is reflected for every LAN", zones))
	}
}
