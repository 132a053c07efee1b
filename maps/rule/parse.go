// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// ForwardSyntax is the grammar of ParseForward, for help texts and messages.
const ForwardSyntax = "NAME PROTO [ADDR|IF:]PORT[-PORT] to ADDR[:PORT[-PORT]] [weight N] [to ADDR[:PORT[-PORT]] [weight N]]... [affinity TIME] [from CIDR[,CIDR]] [reflect MODE] [clients WHO] [rate N/UNIT] [rate_per_source N/UNIT] [host NAME[,NAME]] [comment TEXT]"

// ParseForward reads the arguments of `forward add` (ForwardSyntax). PROTO is one of ProtocolNames, or several separated
// by commas. The port "any" makes a 1:1 forward. The error joins one Problem for each mistake. ParseForward does not
// compare the forward with other forwards or with the interfaces: Config.Validate does.
func ParseForward(args []string) (Forward, error) {
	if len(args) < 5 {
		return Forward{}, fmt.Errorf("forward needs %s", ForwardSyntax)
	}
	p := forwardParser{Forward: Forward{Name: args[0]}}
	p.check("name", p.checkName())
	p.protocols(args[1])
	p.external(args[2])
	if args[3] != "to" {
		p.check("", fmt.Errorf("%s where \"to\" was expected, after the port; the order is %s", Quote(args[3]), ForwardSyntax))
	}
	p.options(p.servers(args[3:]))
	if p.problems == nil {
		p.check("to", checkFamilies(&p.Forward))
		p.check("to", checkServers(&p.Forward))
		p.check("affinity", checkAffinity(&p.Forward))
		p.check("from", checkFrom(&p.Forward))
		p.check("rate_per_source", checkRates(&p.Forward))
		p.check("protocol", checkProtocols(p.Protocols))
		p.check("port", checkPorts(&p.Forward))
		p.check("to", checkSCTP(&p.Forward))
		p.check("clients", checkClients(&p.Forward))
	}
	if err := errors.Join(p.problems...); err != nil {
		return Forward{}, err
	}
	return p.Forward, nil
}

type forwardParser struct {
	Forward
	problems []error
}

func (p *forwardParser) check(field string, err error) bool {
	if err != nil {
		p.problems = append(p.problems, &Problem{Forward: p.Name, Field: field, Message: err.Error()})
	}
	return err == nil
}

func (p *forwardParser) protocols(text string) {
	for name := range strings.SplitSeq(text, ",") {
		protocol, err := ParseProtocol(name)
		if err == nil && slices.Contains(p.Protocols, protocol) {
			err = fmt.Errorf("%s is there twice", protocol)
		}
		if p.check("protocol", err) {
			p.Protocols = append(p.Protocols, protocol)
		}
	}
}

func (p *forwardParser) external(text string) {
	selector, ports := splitPorts(text)
	if ports == "" && selector != "" {
		if looksLikeAddress(selector) {
			if !p.check("external", checkNoPort(selector)) {
				return
			}
			addr, err := parseAddress(selector)
			if !p.check("external", err) {
				return
			}
			selector = addr.String()
			if addr.Is6() {
				selector = "[" + selector + "]"
			}
			p.check("port", fmt.Errorf("%s has no port; write %s:443, or %s:%s for every port", Quote(text), selector, selector, anyPort))
			return
		}
		selector, ports = "", selector
	}
	external, err := ParseExternal(selector)
	p.check("external", err)
	p.External = external
	if ports == anyPort {
		return
	}
	p.Ports, err = ParsePorts(ports)
	p.check("port", err)
}

// servers reads "to ADDR", each with a weight or without, and returns the words after them.
func (p *forwardParser) servers(args []string) []string {
	for i := 0; ; i++ {
		text, weight := args[1], uint16(DefaultWeight)
		args = args[2:]
		if len(args) > 1 && args[0] == "weight" {
			var err error
			weight, err = ParseWeight(args[1])
			p.check("to", OfItem(i, err))
			args = args[2:]
		}
		p.check("to", p.AddServer(text, weight))
		if len(args) < 2 || args[0] != "to" {
			break
		}
	}
	p.ServersRead()
	return args
}

// SetTarget reads the target, ADDR[:PORT[-PORT]]. f.Ports must be set before. A range of target ports must be as long
// as f.Ports.
func (f *Forward) SetTarget(text string) error {
	if err := checkNoPort(text); err != nil {
		return err
	}
	addr, ports := splitPorts(text)
	target, err := parseAddress(addr)
	if err != nil {
		return err
	}
	f.Target = target
	switch {
	case ports != "":
		return f.setTargetPorts(ports)
	case addr != text:
		return fmt.Errorf("%s ends where a port was expected", Quote(text))
	}
	return nil
}

func (f *Forward) setTargetPorts(text string) error {
	ports, err := ParsePorts(text)
	if err != nil {
		return err
	}
	protocol, portless := f.portless()
	switch {
	case portless:
		return fmt.Errorf("target port %s is given, but protocol %s has no ports; leave the port out", ports, protocol)
	case f.Ports.Every():
		return fmt.Errorf("target port %s needs an external port; give both, or neither to forward every port", ports)
	case strings.Contains(text, "-") && ports.Len() != f.Ports.Len():
		return fmt.Errorf("target range %s has %d ports, but external range %s has %d; make the ranges equally long, or give only the first target port",
			ports, ports.Len(), f.Ports, f.Ports.Len())
	}
	f.TargetPort = ports.First
	return nil
}

func (p *forwardParser) options(args []string) {
	seen := map[string]bool{}
	for len(args) > 0 {
		option := args[0]
		if !slices.Contains(ForwardOptions(), option) {
			p.check("", fmt.Errorf("%s is not an option of a forward; %s", Quote(option), Suggest(option, ForwardOptions()...)))
			return
		}
		if len(args) == 1 {
			p.check("", fmt.Errorf("no value after %q", option))
			return
		}
		if seen[option] {
			p.check("", fmt.Errorf("%q is there twice", option))
		}
		seen[option] = true
		p.option(option, args[1])
		args = args[2:]
	}
}

// ForwardOptions returns the words of ForwardSyntax that may follow the target.
func ForwardOptions() []string {
	return []string{"affinity", "from", "reflect", "clients", "rate", "rate_per_source", "host", "comment"}
}

func (p *forwardParser) option(option, value string) {
	switch option {
	case "reflect":
		mode, err := ParseReflect(value)
		p.check(option, err)
		p.Reflect = mode
	case "affinity":
		affinity, err := ParseAffinity(value)
		p.check(option, err)
		p.pool().Affinity = affinity
	case "clients":
		who, err := ParseClients(value)
		p.check(option, err)
		p.Clients = who
	case "rate", "rate_per_source":
		rate, err := ParseRate(value)
		p.check(option, err)
		if option == "rate" {
			p.Rate = rate
		} else {
			p.RatePerSource = rate
		}
	case "host":
		for text := range strings.SplitSeq(value, ",") {
			host, err := ParseHost(text)
			if p.check(option, err) && !slices.Contains(p.Hosts, host) {
				p.Hosts = append(p.Hosts, host)
			}
		}
	case "comment":
		p.check(option, checkComment(value))
		p.Comment = value
	case "from":
		for text := range strings.SplitSeq(value, ",") {
			prefix, err := ParsePrefix(text)
			if p.check(option, err) && !slices.Contains(p.From, prefix) {
				p.From = append(p.From, prefix)
			}
		}
	}
}

// IPv6Rule says when an IPv6 address needs brackets in arguments and configuration files, for help texts.
const IPv6Rule = `Write an IPv6 address in brackets if a port follows, [fd00::1]:80, or if its last group
looks like a port, [fd00::1:80].`

// checkNoPort returns an error for an IPv6 address without brackets that ends in a port, or in a group that may be a
// port. A group may be a port if it is a decimal number and the text before it is also a valid address. So a full
// address of eight groups is accepted: seven groups are not an address. fd00::20 is accepted too, because "::" comes
// directly before the last group.
func checkNoPort(text string) error {
	addr, ports, doubtful := cutPort(text)
	if !doubtful {
		return nil
	}
	if whole, err := netip.ParseAddr(text); err == nil {
		return fmt.Errorf("%s is ambiguous: %s with port %s, or one longer address; write [%s]:%s or [%s]", Quote(text), addr, ports, addr, ports, whole)
	}
	return fmt.Errorf("%s is an IPv6 address with a port, which needs brackets; write [%s]:%s", Quote(text), addr, ports)
}

// cutPort splits text such as "fd00::1:80" into an IPv6 address without brackets and its ports. It reports false if
// text cannot be read in this way.
func cutPort(text string) (netip.Addr, Ports, bool) {
	i := strings.LastIndexByte(text, ':')
	if i < 0 || strings.HasSuffix(text[:i], ":") {
		return netip.Addr{}, Ports{}, false
	}
	addr, err := netip.ParseAddr(text[:i])
	if err != nil || !addr.Is6() {
		return netip.Addr{}, Ports{}, false
	}
	ports, err := ParsePorts(text[i+1:])
	return addr, ports, err == nil
}

// unmistakable formats an address, with brackets if checkNoPort would refuse it without them.
func unmistakable(addr netip.Addr) string {
	text := addr.String()
	if _, _, doubtful := cutPort(text); doubtful {
		return "[" + text + "]"
	}
	return text
}

// splitPorts splits "ADDR:PORT" at its last colon. Text with several colons is an IPv6 address: it has a port only if
// the address is in brackets. 2001:db8::1:443 is an address without a port.
func splitPorts(text string) (before, ports string) {
	i := strings.LastIndexByte(text, ':')
	if i < 0 || strings.HasSuffix(text, "]") || strings.Contains(text[:i], ":") && text[0] != '[' {
		return text, ""
	}
	return text[:i], text[i+1:]
}
