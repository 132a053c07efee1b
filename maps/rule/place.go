// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"cmp"
	"net/netip"
	"strings"
)

// Place is where the forwards of one external id listen: at one address, at the
// addresses that a WAN interface has of one family, or, intercepts, behind a LAN
// interface at every address of one. Without interface and address it is every
// WAN or every LAN interface.
type Place struct {
	External
	LAN  bool
	IPv6 bool // of an interface: its IPv6 addresses. An address tells its family itself.
}

// AtAddress is the place of forwards that listen at one address.
func AtAddress(addr netip.Addr) Place { return Place{External: External{Address: addr}} }

// AtWAN is the place of forwards that listen at the addresses of a WAN interface, of one family.
func AtWAN(name string, v6 bool) Place {
	return Place{External: External{Interface: name}, IPv6: v6}
}

// AtLAN is the place of intercepts behind a LAN interface, of one family.
func AtLAN(name string, v6 bool) Place {
	return Place{External: External{Interface: name}, LAN: true, IPv6: v6}
}

// Places are where the forward listens, several only of an intercept. Without an
// address they have the family of its target.
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

// Is6 reports whether the place is one of IPv6.
func (p Place) Is6() bool { return p.IPv6 || p.Address.Is6() }

// Everywhere is every WAN interface, or every LAN interface, for the family of p.
func (p Place) Everywhere() Place { return Place{LAN: p.LAN, IPv6: p.Is6()} }

// These mark a LAN interface, and the IPv6 addresses of an interface, in the
// running document. No name of an interface has a slash.
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

// ComparePlaces sorts places: by address, then by interface, those of WANs and of IPv4 first.
func ComparePlaces(a, b Place) int {
	return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Interface, b.Interface), compareBool(a.LAN, b.LAN), compareBool(a.IPv6, b.IPv6))
}

// compareBool sorts false before true.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
