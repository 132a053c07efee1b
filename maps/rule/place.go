// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"cmp"
	"net/netip"
	"strings"
)

// Place is where the forwards of one external id listen. It is one of:
//   - one fixed address;
//   - the addresses of one family on a WAN interface, or on every WAN interface if Interface is "";
//   - with LAN set: for intercepts, every destination address of one family in packets that come in by a LAN
//     interface, or by every LAN interface if Interface is "".
type Place struct {
	External
	LAN  bool
	IPv6 bool // the IPv6 addresses of the interface; false for a fixed address of either family
}

// AtAddress returns the place of forwards that listen at one fixed address.
func AtAddress(addr netip.Addr) Place { return Place{External: External{Address: addr}} }

// AtWAN returns the place of forwards that listen at the IPv4 or IPv6 addresses of a WAN interface.
func AtWAN(name string, v6 bool) Place {
	return Place{External: External{Interface: name}, IPv6: v6}
}

// AtLAN returns the place of IPv4 or IPv6 intercepts on a LAN interface.
func AtLAN(name string, v6 bool) Place {
	return Place{External: External{Interface: name}, LAN: true, IPv6: v6}
}

// Places returns the places where the forward listens. Only an intercept can have several. A place without a fixed
// address has the family of the target.
func (f *Forward) Places() []Place {
	v6 := f.Target.Is6()
	switch {
	case f.External.Address.IsValid():
		return []Place{{External: f.External}}
	case !f.Intercept:
		return []Place{{External: f.External, IPv6: v6}}
	case len(f.LAN) == 0:
		return []Place{{LAN: true, IPv6: v6}}
	}
	places := make([]Place, len(f.LAN))
	for i, name := range f.LAN {
		places[i] = AtLAN(name, v6)
	}
	return places
}

// Is6 reports whether the forwards at this place are IPv6 forwards.
func (p Place) Is6() bool { return p.IPv6 || p.Address.Is6() }

// Everywhere returns the place "every WAN interface", or "every LAN interface" if p is on a LAN, for the family of p.
func (p Place) Everywhere() Place { return Place{LAN: p.LAN, IPv6: p.Is6()} }

// Suffixes of a Place in the text of the running document. They cannot be part of an interface name, because such names
// have no slash.
const (
	suffixLAN = "/lan"
	suffix6   = "/ipv6"
)

// MarshalText implements encoding.TextMarshaler.
func (p Place) MarshalText() ([]byte, error) {
	text := p.String()
	if p.LAN {
		text += suffixLAN
	}
	if p.IPv6 {
		text += suffix6
	}
	return []byte(text), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Place) UnmarshalText(text []byte) error {
	external, v6 := strings.CutSuffix(string(text), suffix6)
	external, lan := strings.CutSuffix(external, suffixLAN)
	p.LAN, p.IPv6 = lan, v6
	return p.External.UnmarshalText([]byte(external))
}

// ComparePlaces orders places by address, interface, WAN before LAN, IPv4 before IPv6.
func ComparePlaces(a, b Place) int {
	return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Interface, b.Interface), compareBool(a.LAN, b.LAN), compareBool(a.IPv6, b.IPv6))
}

// compareBool orders false before true.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
