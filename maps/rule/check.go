// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Check returns the mistakes in this forward alone. The Problems do not have the forward's index. Config.Validate finds
// mistakes that depend on other forwards and on interfaces.
func (f *Forward) Check() []*Problem {
	var problems []*Problem
	check := func(field string, err error) {
		if err != nil {
			problem := NewProblem(field, err)
			problem.Forward, problem.Kind = f.Name, f.Kind()
			problems = append(problems, problem)
		}
	}
	check("name", f.checkName())
	if f.Intercept {
		check("protocol", checkInterceptProtocols(f.Protocols))
		check("port", checkInterceptPorts(f))
		check("except", checkExcept(f))
	} else {
		check("protocol", checkProtocols(f.Protocols))
		check("external", checkExternal(f.External))
		check("port", checkPorts(f))
		check("from", checkFrom(f))
		check("rate_per_source", checkRates(f))
	}
	if f.Balanced() {
		check("to", checkServers(f))
	} else {
		check("to", checkTarget(f))
	}
	check("affinity", checkAffinity(f))
	check("reflect", checkReflect(f))
	check("clients", checkClients(f))
	check("comment", checkComment(f.Comment))
	for i, host := range f.Hosts {
		check("hosts", OfItem(i, checkPlain(host, f.Hosts[:i])))
	}
	return problems
}

func checkProtocols(protocols []Protocol) error {
	if len(protocols) == 0 {
		return errors.New("no protocol is given; give one or more of " + strings.Join(ProtocolNames(), ", "))
	}
	for i, protocol := range protocols {
		if _, err := ParseProtocol(protocol.String()); err != nil {
			return OfItem(i, err)
		}
		if slices.Contains(protocols[:i], protocol) {
			return OfItem(i, fmt.Errorf("%s is there twice", protocol))
		}
	}
	if len(protocols) > 1 && slices.Contains(protocols, Any) {
		return fmt.Errorf("%s means every protocol; leave the others out, or make another forward for them", Any)
	}
	return nil
}

func checkPorts(f *Forward) error {
	if f.Ports.Every() {
		return nil
	}
	if f.Ports.First == 0 || f.Ports.First > f.Ports.Last {
		return fmt.Errorf("%d-%d is not a range of ports", f.Ports.First, f.Ports.Last)
	}
	if protocol, portless := f.portless(); portless {
		return fmt.Errorf("%s is given, but protocol %s has no ports; leave the port out (on the command line write %q), or make another forward for %s",
			f.Ports, protocol, anyPort, protocol)
	}
	return nil
}

// checkFamilies returns an error if the external address and the target have different families. hairpin does not
// translate between IPv4 and IPv6.
func checkFamilies(f *Forward) error {
	if external := f.External.Address; external.IsValid() && external.Is6() != f.Target.Is6() {
		return fmt.Errorf("%s is an %s address, but the external address %s is %s; a forward cannot change the family",
			f.Target, Family(f.Target), external, Family(external))
	}
	return nil
}

// Family returns "IPv4" or "IPv6".
func Family(addr netip.Addr) string {
	if addr.Is6() {
		return "IPv6"
	}
	return "IPv4"
}

// checkFrom returns an error for a network that cannot contain clients of the forward. Clients have the family of the
// target.
func checkFrom(f *Forward) error {
	for i, prefix := range f.From {
		switch {
		case !prefix.IsValid() || prefix.Addr().Is4In6() || prefix != prefix.Masked():
			return OfItem(i, fmt.Errorf("%s is not a network", prefix))
		case f.Target.IsValid() && prefix.Addr().Is6() != f.Target.Is6():
			return OfItem(i, fmt.Errorf("%s is an %s network, but the target %s is %s, and so are its clients; make a forward for each family",
				prefix, Family(prefix.Addr()), f.Target, Family(f.Target)))
		}
	}
	return nil
}

// checkSCTP returns an error for SCTP with different external and target ports. The CRC32c of SCTP covers the ports and
// the whole payload, so a port change would need a new checksum over the payload. It does not cover addresses.
func checkSCTP(f *Forward) error {
	if !slices.Contains(f.Protocols, SCTP) || f.TargetPorts() == f.Ports {
		return nil
	}
	return fmt.Errorf("target port %s differs from external port %s, but ports of sctp cannot change, because its checksum covers them; give equal ports, or make another forward for sctp",
		f.TargetPorts(), f.Ports)
}

// checkUnicast returns an error for an address that no host and no router can have.
func checkUnicast(addr netip.Addr) error {
	kind := ""
	switch {
	case addr.Is4In6():
		return mappedError(addr.String(), addr.Unmap())
	case addr.IsLoopback():
		kind = "a loopback address"
	case addr.IsMulticast():
		kind = "a multicast address"
	case addr.Is6() && addr.IsLinkLocalUnicast():
		kind = "a link-local address, which routers do not forward to; give a global or unique local address"
	case addr.IsUnspecified(), addr.Is4() && addr.As4()[0] == 0:
		kind = "not an address of a host"
	case addr.Is6():
		return nil
	case addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		kind = "the broadcast address"
	case addr.As4()[0] >= 240:
		kind = "a reserved address"
	default:
		return nil
	}
	return fmt.Errorf("%s is %s", addr, kind)
}

// interceptProtocols are the protocols of an intercept. Only their ports identify the service that a client wants.
var interceptProtocols = []Protocol{TCP, UDP}

func checkInterceptProtocols(protocols []Protocol) error {
	for i, protocol := range protocols {
		if _, err := ParseProtocol(protocol.String()); err == nil && !slices.Contains(interceptProtocols, protocol) {
			return OfItem(i, fmt.Errorf("%s cannot be intercepted: only tcp and udp have ports that identify a service", protocol))
		}
	}
	return checkProtocols(protocols)
}

func checkInterceptPorts(f *Forward) error {
	if f.Ports.Every() {
		return errors.New("no port is given, so the intercept would redirect everything that clients send; give a port")
	}
	return checkPorts(f)
}

func checkExcept(f *Forward) error {
	for i, prefix := range f.Except {
		switch {
		case !prefix.IsValid() || prefix.Addr().Is4In6() || prefix != prefix.Masked():
			return OfItem(i, fmt.Errorf("%s is not a network", prefix))
		case f.Target.IsValid() && prefix.Addr().Is6() != f.Target.Is6():
			return OfItem(i, fmt.Errorf("%s is an %s network, but the target %s is %s, and so is all traffic to it; make an intercept for each family",
				prefix, Family(prefix.Addr()), f.Target, Family(f.Target)))
		case prefix.Bits() == 0:
			return OfItem(i, fmt.Errorf("%s contains every address, so nothing would be intercepted", prefix))
		}
	}
	return nil
}

func checkExternal(e External) error {
	switch {
	case e.Interface != "" && e.Address.IsValid():
		return errors.New("give an address or an interface, not both")
	case e.Address.IsValid():
		return checkUnicast(e.Address)
	}
	return nil
}

func checkTarget(f *Forward) error {
	if !f.Target.IsValid() {
		return errors.New("there is no target")
	}
	if err := checkUnicast(f.Target); err != nil {
		return err
	}
	if err := checkFamilies(f); err != nil {
		return err
	}
	if f.Ports.Every() && f.TargetPort != 0 {
		return fmt.Errorf("target port %d needs an external port; give both, or neither to forward every port", f.TargetPort)
	}
	if last := int(f.TargetPort) + f.Ports.Len() - 1; f.TargetPort != 0 && last > 65535 {
		return fmt.Errorf("%d ports from %d on end at %d, but the last port is 65535", f.Ports.Len(), f.TargetPort, last)
	}
	return checkSCTP(f)
}

// checkReflect returns an error for an unknown mode, or for a mode that an intercept cannot have.
func checkReflect(f *Forward) error {
	switch {
	case f.Reflect == "":
		return nil
	case f.Intercept && f.Reflect == ReflectPublic:
		return errors.New("an intercept cannot use public: the target would see the address of the host that the client asked, and would send its answers to that host; choose auto, router or prefix")
	case f.Intercept && f.Reflect == ReflectOff:
		return errors.New("off refuses LAN clients, and an intercept has only LAN clients; remove the intercept")
	}
	_, err := ParseReflect(string(f.Reflect))
	return err
}

// checkClients returns an error for an unknown value, and for a reflect mode that contradicts it.
func checkClients(f *Forward) error {
	switch {
	case f.Clients == "":
		return nil
	case f.Intercept:
		return errors.New("an intercept has only LAN clients; use reflect")
	case f.HidesClients() && (f.Reflect == ReflectPublic || f.Reflect == ReflectPrefix):
		return fmt.Errorf("router hides every client behind the router's address, but reflect %s gives LAN clients another address; remove one of the two", f.Reflect)
	}
	_, err := ParseClients(string(f.Clients))
	return err
}

// maxComment is the longest comment in bytes. Each writer reads and writes all comments.
const maxComment = 200

func checkComment(text string) error {
	switch {
	case len(text) > maxComment:
		return fmt.Errorf("the comment has %d bytes; at most %d are possible", len(text), maxComment)
	case !utf8.ValidString(text), strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }):
		return fmt.Errorf("%s has characters that cannot be printed; write one line of text", Quote(text))
	}
	return nil
}

// checkPlain returns an error unless host is in the form that ParseHost returns and is not in before, the names before
// it in the list.
func checkPlain(host string, before []string) error {
	name, err := ParseHost(host)
	switch {
	case err != nil:
		return err
	case name != host:
		return fmt.Errorf("%s is not in its plain form; write %s", Quote(host), name)
	case slices.Contains(before, host):
		return fmt.Errorf("%s is there twice", host)
	}
	return nil
}
