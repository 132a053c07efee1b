// SPDX-License-Identifier: Apache-2.0

package importer

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"hairpin/maps/rule"
)

// pfReader reads config.xml of pfSense or OPNsense. Interfaces have other names there than on Linux: wan0 is not known here, but that
// a rule is for the only WAN.
type pfReader struct {
	found      *found
	root       *element
	interfaces map[string]*pfInterface
	wans, lans int
	aliases    map[string]*pfAlias
	reflect    rule.Reflect // of rules that leave it to the system
}

type pfInterface struct {
	wan       bool
	addresses []netip.Prefix // addresses with the length of their networks
}

// pfAlias is a list of addresses or ports with a name.
type pfAlias struct {
	kind  string // host, network, port, or others
	words []string
}

func readPfSense(name string, data []byte) (*found, error) {
	root, err := readXML(name, data)
	if err != nil {
		return nil, err
	}
	if root.name != "pfsense" && root.name != "opnsense" {
		return nil, problemAt(name, data, 0, "the document is <%s>, not the config.xml of pfSense or OPNsense", root.name)
	}
	r := &pfReader{found: &found{}, root: root, interfaces: map[string]*pfInterface{}, aliases: map[string]*pfAlias{}}
	r.readInterfaces()
	r.readAliases()
	r.readReflection()
	nat := root.find("nat")
	for _, e := range nat.all("rule", root.path+"/nat") {
		r.found.rules = append(r.found.rules, r.portForward(e))
	}
	// Port forwards come before 1:1.
	for _, e := range nat.all("onetoone", root.path+"/nat") {
		r.found.rules = append(r.found.rules, r.oneToOne(e, e.get("external"), e.find("source"), e.find("destination"), e.get("descr")))
	}
	newer := root.find("OPNsense", "Firewall", "Filter", "onetoone")
	for _, e := range newer.all("rule", root.path+"/OPNsense/Firewall/Filter/onetoone") {
		source := &element{children: []*element{{name: "address", text: e.get("source_net")}}}
		destination := &element{children: []*element{{name: "address", text: strings.TrimPrefix(e.get("destination_net"), "any")}}}
		u := r.oneToOne(e, e.get("external"), source, destination, e.get("description"))
		u.disabled = u.disabled || e.get("enabled") == "0"
		r.found.rules = append(r.found.rules, u)
	}
	for i := range r.found.rules {
		u := &r.found.rules[i]
		// A rule that keeps packets from those behind it ends with the list.
		if u.action == pass {
			u.until = len(r.found.rules)
		}
	}
	return r.found, nil
}

// readInterfaces finds the WANs: interfaces with a gateway, or with an address that a provider gives them.
func (r *pfReader) readInterfaces() {
	list := r.root.find("interfaces")
	if list == nil {
		return
	}
	for _, e := range list.children {
		i := &pfInterface{}
		for _, pair := range [][2]string{{"ipaddr", "subnet"}, {"ipaddrv6", "subnetv6"}} {
			addr, err := netip.ParseAddr(e.get(pair[0]))
			bits, wrong := strconv.Atoi(e.get(pair[1]))
			if err == nil && wrong == nil {
				if p := netip.PrefixFrom(addr, bits); p.IsValid() {
					i.addresses = append(i.addresses, p)
				}
			}
		}
		i.wan = e.name == "wan" || e.get("gateway") != "" && e.get("gateway") != "none" ||
			slices.Contains([]string{"dhcp", "pppoe", "pptp", "l2tp", "ppp"}, e.get("ipaddr"))
		if e.find("enable") == nil && e.name != "wan" && e.name != "lan" {
			continue
		}
		r.interfaces[e.name] = i
		if i.wan {
			r.wans++
		} else {
			r.lans++
		}
	}
}

func (r *pfReader) readAliases() {
	for _, e := range r.root.find("aliases").all("alias", "") {
		r.aliases[e.get("name")] = &pfAlias{e.get("type"), strings.Fields(e.get("address"))}
	}
	for _, e := range r.root.find("OPNsense", "Firewall", "Alias", "aliases").all("alias", "") {
		r.aliases[e.get("name")] = &pfAlias{e.get("type"), strings.Fields(e.get("content"))}
	}
}

func (r *pfReader) readReflection() {
	system := r.root.find("system")
	switch {
	case system.has("disablenatreflection"):
		r.reflect = rule.ReflectOff
	case system.has("enablenatreflectionpurenat"):
		r.reflect = rule.ReflectAuto
	case r.root.name == "opnsense":
		r.reflect = rule.ReflectOff
	default:
		r.reflect = rule.ReflectRouter // NAT and proxy: the server sees the firewall
	}
}

// reflection returns what a rule does for LAN clients.
func (r *pfReader) reflection(e *element, system rule.Reflect) rule.Reflect {
	switch e.get("natreflection") {
	case "disable":
		return rule.ReflectOff
	case "purenat":
		return rule.ReflectAuto
	case "enable":
		if r.root.name == "opnsense" || e.name == "onetoone" {
			return rule.ReflectAuto
		}
		return rule.ReflectRouter
	}
	return system
}

// pfKnown are the elements of a port forward that portForward reads, or that change nothing here.
var pfKnown = []string{
	"source", "destination", "ipprotocol", "protocol", "target", "local-port", "interface", "descr", "disabled", "natreflection", "nordr",
	"associated-rule-id", "created", "updated", "tracker", "sequence", "category", "nosync", "log", "type", "poolopts",
}

// problems adds a reason why a rule cannot be translated.
func (u *Rule) problem(format string, args ...any) {
	u.problems = append(u.problems, fmt.Sprintf(format, args...))
}

func (r *pfReader) begin(e *element, descr string) Rule {
	u := Rule{hook: prerouting, place: fmt.Sprintf("%s (line %d)", e.path, e.line), comment: descr, disabled: e.has("disabled")}
	u.match.family = map[string]int{"inet": 4, "inet6": 6}[e.get("ipprotocol")]
	if e.has("log") {
		u.notes = append(u.notes, "it logged connections; hairpin does so for all forwards: see [log] in hairpin.toml")
	}
	return u
}

func (r *pfReader) portForward(e *element) Rule {
	u := r.begin(e, e.get("descr"))
	for _, child := range e.children {
		if !slices.Contains(pfKnown, child.name) && (child.text != "" || len(child.children) > 0) {
			u.match.others = append(u.match.others, fmt.Sprintf("<%s>", child.name))
		}
	}
	r.protocols(&u, e.get("protocol"))
	i := r.incoming(&u, e.get("interface"))
	r.source(&u, e.find("source"))
	r.destination(&u, e.find("destination"), e.get("interface"))
	if e.has("nordr") {
		// What is not understood of the rule may keep any packet from those behind it.
		u.action, u.match.others, u.problems = pass, join(u.match.others, u.problems), nil
		return u
	}
	r.target(&u, e, i)
	if i != nil && i.wan {
		u.reflect = r.reflection(e, r.reflect)
	}
	return u
}

func (r *pfReader) protocols(u *Rule, text string) {
	for name := range strings.SplitSeq(strings.ToLower(text), "/") {
		if name == "" || name == "any" {
			u.match.protocols = nil
			return
		}
		p, ok := readProtocol(name)
		if !ok {
			u.problem("hairpin does not forward the protocol %s", rule.Quote(text))
		}
		u.match.protocols = append(u.match.protocols, p)
	}
}

// incoming sets the interface of a rule.
func (r *pfReader) incoming(u *Rule, name string) *pfInterface {
	i := r.interfaces[name]
	u.match.in.only = []string{"/interface/" + name} // the packets of other interfaces are others
	switch {
	case i == nil:
		u.problem("it is for the interface %s, which is no single interface of the firewall", rule.Quote(name))
	case i.wan && r.wans > 1:
		u.match.in.only = []string{everyWAN + "/" + name}
	case i.wan:
		u.match.in.only = []string{everyWAN}
	case r.lans > 1:
		u.problem("it is for the LAN %s alone, and what the interface is called on Linux is not known", rule.Quote(name))
	default:
		u.match.in.only = []string{everyLAN}
	}
	return i
}

func (r *pfReader) source(u *Rule, e *element) {
	if e == nil {
		return
	}
	if port := e.get("port"); port != "" && port != "any" {
		u.match.others = append(u.match.others, "a source port")
	}
	list, ok := r.networks(u, e)
	switch {
	case !ok:
	case e.find("not") != nil:
		u.match.source.not = list
	default:
		u.match.source.only = list
	}
}

// networks returns the addresses of <source> or <destination>. It reports false for every address, and after a problem.
func (r *pfReader) networks(u *Rule, e *element) (list []netip.Prefix, ok bool) {
	if network := e.get("network"); network != "" {
		if list, ok = r.named(network); !ok {
			u.problem("the addresses of %s are not in the file", rule.Quote(network))
		}
		return list, ok
	}
	text := e.get("address")
	if text == "" || text == "any" {
		return nil, false
	}
	if list, ok = r.addresses(text, 0); !ok {
		u.problem("%s is not a list of addresses", rule.Quote(text))
	}
	return list, ok
}

// named returns the network of an interface ("lan"), or its address ("lanip").
func (r *pfReader) named(name string) (list []netip.Prefix, ok bool) {
	if i := r.interfaces[name]; i != nil {
		for _, p := range i.addresses {
			list = append(list, p.Masked())
		}
		return list, len(list) > 0
	}
	plain, isAddress := strings.CutSuffix(name, "ip")
	if i := r.interfaces[plain]; i != nil && isAddress {
		for _, p := range i.addresses {
			list = append(list, netip.PrefixFrom(p.Addr(), p.Addr().BitLen()))
		}
		return list, len(list) > 0
	}
	return r.addresses(name, 0)
}

// maxAliases is how deep an alias may name other aliases.
const maxAliases = 8

// addresses reads an address, a network, or an alias of such.
func (r *pfReader) addresses(text string, depth int) (list []netip.Prefix, ok bool) {
	first, last, ranged := strings.Cut(text, "-")
	if !ranged {
		last = first
	}
	if list, ok = readNetworks(first, last); ok {
		return list, true
	}
	alias := r.aliases[text]
	if alias == nil || depth == maxAliases || alias.kind != "host" && alias.kind != "network" || len(alias.words) == 0 {
		return nil, false
	}
	for _, word := range alias.words {
		part, ok := r.addresses(word, depth+1)
		if list = append(list, part...); !ok || len(list) > maxFrom {
			return nil, false
		}
	}
	return list, true
}

// portList reads a port, a range, or an alias of such.
func (r *pfReader) portList(text string, depth int) (list []rule.Ports, ok bool) {
	if ports, ok := uciPorts(text); ok {
		return []rule.Ports{ports}, true
	}
	alias := r.aliases[text]
	if alias == nil || depth == maxAliases || alias.kind != "port" || len(alias.words) == 0 {
		return nil, false
	}
	for _, word := range alias.words {
		part, ok := r.portList(word, depth+1)
		if list = append(list, part...); !ok || len(list) > maxFrom {
			return nil, false
		}
	}
	return list, true
}

// destination sets the external address and the ports.
func (r *pfReader) destination(u *Rule, e *element, name string) {
	if e == nil {
		return
	}
	if port := e.get("port"); port != "" && port != "any" {
		var ok bool
		if u.match.ports, ok = r.portList(port, 0); !ok {
			u.problem("%s is not a list of ports", rule.Quote(port))
		}
	}
	network := e.get("network")
	switch {
	case network == "(self)" && e.find("not") == nil:
		u.match.local = true
		return
	case network == "(self)":
		for _, i := range r.interfaces {
			for _, p := range i.addresses {
				u.match.dest.not = append(u.match.dest.not, netip.PrefixFrom(p.Addr(), p.Addr().BitLen()))
			}
		}
		slices.SortFunc(u.match.dest.not, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
		return
	case network == name+"ip" && r.wans == 1 && r.interfaces[name] != nil && r.interfaces[name].wan && e.find("not") == nil:
		u.match.local = true // the addresses of the only WAN, whatever they will be
		return
	}
	list, ok := r.networks(u, e)
	switch {
	case !ok:
	case e.find("not") != nil:
		u.match.dest.not = list
	default:
		u.match.dest.only = list
	}
	if i := r.interfaces[name]; i != nil && i.wan && r.wans > 1 && u.match.dest.only == nil && len(u.problems) == 0 {
		u.problem("it is for the WAN %s alone, and what the interface is called on Linux is not known", rule.Quote(name))
	}
}

// target sets where the packets go. A range of ports begins at local-port, and keeps its order.
func (r *pfReader) target(u *Rule, e *element, in *pfInterface) {
	text := e.get("target")
	list, ok := r.addresses(text, 0)
	switch {
	case !ok:
		u.problem("its target %s is not an address", rule.Quote(text))
	case len(list) != 1 || !list[0].IsSingleIP():
		u.problem("it spreads connections over the targets of %s; write a forward with several servers yourself", rule.Quote(text))
	case list[0].Addr().IsLoopback():
		u.action = redirect
		r.toRouter(u, in)
	default:
		u.target = list[0].Addr()
	}
	port := e.get("local-port")
	if port == "" || port == "any" || port == e.get("destination", "port") {
		return
	}
	ports, ok := r.portList(port, 0)
	if !ok || len(ports) != 1 || len(u.match.ports) != 1 {
		if !slices.Equal(ports, u.match.ports) {
			u.problem("its ports lead to %s, which is not a port that the first of them goes to", rule.Quote(port))
		}
		return
	}
	outside := u.match.ports[0]
	if int(ports[0].First)+outside.Len()-1 > 65535 {
		u.problem("its last port would lead to a port beyond 65535")
		return
	}
	u.base = outside.First
	u.ports = rule.Ports{First: ports[0].First, Last: ports[0].First + uint16(outside.Len()-1)}
}

// toRouter makes a redirect of a LAN lead to the router's address there.
func (r *pfReader) toRouter(u *Rule, in *pfInterface) {
	if in == nil || in.wan {
		return
	}
	for _, p := range in.addresses {
		if p.Addr().Is6() == (u.match.family == 6) {
			u.action, u.target = dnat, p.Addr()
			return
		}
	}
}

// oneToOne reads a 1:1 translation. The external network begins at the external address, and is as large as the internal one.
func (r *pfReader) oneToOne(e *element, external string, source, destination *element, descr string) Rule {
	u := r.begin(e, descr)
	u.action = oneToOne
	if e.find("nobinat") != nil {
		u.problem("it excludes addresses from a 1:1 translation")
	}
	i := r.incoming(&u, e.get("interface"))
	if destination != nil {
		if _, ok := r.networks(&u, destination); ok {
			u.match.others = append(u.match.others, "the clients of a 1:1 translation")
		}
	}
	if source == nil {
		source = &element{}
	}
	inside, ok := r.networks(&u, source)
	outside, fine := readNetworks(external, external)
	if !ok || len(inside) != 1 || !fine || len(outside) != 1 || outside[0].Addr().Is6() != inside[0].Addr().Is6() {
		u.problem("its addresses %s and %s are not two networks", rule.Quote(external), rule.Quote(source.get("address")))
		return u
	}
	u.network = inside[0]
	u.match.dest.only = []netip.Prefix{netip.PrefixFrom(outside[0].Addr(), inside[0].Bits()).Masked()}
	if i != nil {
		reflect := rule.ReflectOff
		if r.root.find("system").has("enablebinatreflection") {
			reflect = rule.ReflectAuto
		}
		u.reflect = r.reflection(e, reflect)
	}
	return u
}
