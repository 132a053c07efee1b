// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Check finds what is wrong with the forward whatever else is configured, as Problems without an index. What depends on
// other forwards and on interfaces is Config.Validate's to find.
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
	check("to", checkTarget(f))
	check("reflect", checkReflect(f))
	for i, host := range f.Hosts {
		check("hosts", OfItem(i, checkPlain(host, f.Hosts[:i])))
	}
	return problems
}

func checkProtocols(protocols []Protocol) error {
	if len(protocols) == 0 {
		return errors.New("there is none; it is one or more of " + strings.Join(ProtocolNames(), ", "))
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
		return fmt.Errorf("%s is every protocol; leave the others out, or make a forward of its own for them", Any)
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
		return fmt.Errorf("%s is given, but %s has no ports to select by; leave it out (%q on the command line), or make a forward of its own for %s",
			f.Ports, protocol, anyPort, protocol)
	}
	return nil
}

// checkFamilies refuses to translate from one family to the other.
func checkFamilies(f *Forward) error {
	if external := f.External.Address; external.IsValid() && external.Is6() != f.Target.Is6() {
		return fmt.Errorf("%s is an %s address, but the external address %s is %s; a forward stays within its family",
			f.Target, Family(f.Target), external, Family(external))
	}
	return nil
}

// Family is the name of an address's family.
func Family(addr netip.Addr) string {
	if addr.Is6() {
		return "IPv6"
	}
	return "IPv4"
}

// checkFrom refuses networks that no client can have: with the target's family
// that of the clients is given.
func checkFrom(f *Forward) error {
	for i, prefix := range f.From {
		switch {
		case !prefix.IsValid() || prefix.Addr().Is4In6() || prefix != prefix.Masked():
			return OfItem(i, fmt.Errorf("%s is not a network", prefix))
		case f.Target.IsValid() && prefix.Addr().Is6() != f.Target.Is6():
			return OfItem(i, fmt.Errorf("%s is an %s network, but the target %s is %s, and so are its clients; make a forward of its own for each family",
				prefix, Family(prefix.Addr()), f.Target, Family(f.Target)))
		}
	}
	return nil
}

// checkSCTP refuses to change ports: the CRC32c of a packet covers them and all
// behind them, but no address.
func checkSCTP(f *Forward) error {
	if !slices.Contains(f.Protocols, SCTP) || f.TargetPorts() == f.Ports {
		return nil
	}
	return fmt.Errorf("port %s at the target, but %s at the external address: the ports of sctp cannot change, because its checksum covers them; give the same, or make a forward of its own for sctp",
		f.TargetPorts(), f.Ports)
}

// checkUnicast refuses what can be neither a host's nor the router's address.
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
		kind = "a link-local address, which cannot be reached through a router; give a global or unique local one"
	case addr.IsUnspecified(), addr.Is4() && addr.As4()[0] == 0:
		kind = "no address of a host"
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

// interceptProtocols are those that name their servers by port.
var interceptProtocols = []Protocol{TCP, UDP}

func checkInterceptProtocols(protocols []Protocol) error {
	for i, protocol := range protocols {
		if _, err := ParseProtocol(protocol.String()); err == nil && !slices.Contains(interceptProtocols, protocol) {
			return OfItem(i, fmt.Errorf("%s cannot be intercepted: only tcp and udp have ports that tell for every server alike what is asked there", protocol))
		}
	}
	return checkProtocols(protocols)
}

func checkInterceptPorts(f *Forward) error {
	if f.Ports.Every() {
		return errors.New("there is none; without one an intercept would catch everything that clients send")
	}
	return checkPorts(f)
}

func checkExcept(f *Forward) error {
	for i, prefix := range f.Except {
		switch {
		case !prefix.IsValid() || prefix.Addr().Is4In6() || prefix != prefix.Masked():
			return OfItem(i, fmt.Errorf("%s is not a network", prefix))
		case f.Target.IsValid() && prefix.Addr().Is6() != f.Target.Is6():
			return OfItem(i, fmt.Errorf("%s is an %s network, but the target %s is %s, and so is all that is intercepted; make an intercept of its own for each family",
				prefix, Family(prefix.Addr()), f.Target, Family(f.Target)))
		case prefix.Bits() == 0:
			return OfItem(i, fmt.Errorf("%s is everybody, so nothing would be intercepted", prefix))
		}
	}
	return nil
}

func checkExternal(e External) error {
	switch {
	case e.Interface != "" && e.Address.IsValid():
		return errors.New("it is an address or an interface, not both")
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
		return fmt.Errorf("port %d at the target, but the forward is for every port; leave one out or give both", f.TargetPort)
	}
	if last := int(f.TargetPort) + f.Ports.Len() - 1; f.TargetPort != 0 && last > 65535 {
		return fmt.Errorf("%d ports from %d on end at %d, but 65535 is the last there is", f.Ports.Len(), f.TargetPort, last)
	}
	return checkSCTP(f)
}

// checkReflect refuses modes that there are not, and those that mean nothing for an intercept.
func checkReflect(f *Forward) error {
	switch {
	case f.Reflect == "":
		return nil
	case f.Intercept && f.Reflect == ReflectPublic:
		return errors.New("public cannot be intercepted by: it would give the target the very address that a client asked, which is another host's, and that host would get the answers; choose auto, router or prefix")
	case f.Intercept && f.Reflect == ReflectOff:
		return errors.New("off serves no LAN client, and an intercept has no others; leave the intercept out")
	}
	_, err := ParseReflect(string(f.Reflect))
	return err
}

// checkPlain wants the name of a host as ParseHost gives it, and not among those before.
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
