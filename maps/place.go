// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"cmp"
	"net/netip"
	"strings"
)

// place is where the forwards of one external id listen: at one address, at the
// addresses that a WAN interface has of one family, or, intercepts, behind a LAN
// interface at every address of one. Without interface and address it is every
// WAN or every LAN interface.
type place struct {
	External
	lan bool
	v6  bool // of an interface: its IPv6 addresses. An address tells its family itself.
}

func addressPlace(addr netip.Addr) place { return place{External: External{Address: addr}} }

func interfacePlace(name string, v6 bool) place {
	return place{External: External{Interface: name}, v6: v6}
}

func lanPlace(name string, v6 bool) place {
	return place{External: External{Interface: name}, lan: true, v6: v6}
}

// places are where the forward listens, several only of an intercept. Without an
// address they have the family of its target.
func (f *Forward) places() []place {
	v6 := f.Target.Is6()
	switch {
	case f.External.Address.IsValid():
		return []place{{External: f.External}}
	case !f.Intercept:
		return []place{{External: f.External, v6: v6}}
	case len(f.LAN) == 0:
		return []place{{lan: true, v6: v6}}
	}
	places := make([]place, len(f.LAN))
	for i, name := range f.LAN {
		places[i] = lanPlace(name, v6)
	}
	return places
}

func (p place) is6() bool { return p.v6 || p.Address.Is6() }

// everywhere is every WAN interface, or every LAN interface, for the family of p.
func (p place) everywhere() place { return place{lan: p.lan, v6: p.is6()} }

// These mark a LAN interface, and the IPv6 addresses of an interface, in the
// running document. No name of an interface has a slash.
const (
	suffixLAN = "/lan"
	suffix6   = "/ipv6"
)

// MarshalText implements encoding.TextMarshaler.
func (p place) MarshalText() ([]byte, error) {
	text := p.String()
	if p.lan {
		text += suffixLAN
	}
	if p.v6 {
		text += suffix6
	}
	return []byte(text), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *place) UnmarshalText(text []byte) error {
	external, v6 := strings.CutSuffix(string(text), suffix6)
	external, lan := strings.CutSuffix(external, suffixLAN)
	p.lan, p.v6 = lan, v6
	return p.External.UnmarshalText([]byte(external))
}

func comparePlace(a, b place) int {
	return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Interface, b.Interface), compareBool(a.lan, b.lan), compareBool(a.v6, b.v6))
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
