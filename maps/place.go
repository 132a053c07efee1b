// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"cmp"
	"net/netip"
	"strings"
)

// place is where the forwards of one external id listen: at one address, or at
// the addresses that a WAN interface has of one family. Without interface and
// address it is every WAN interface.
type place struct {
	External
	v6 bool // of an interface: its IPv6 addresses. An address tells its family itself.
}

func addressPlace(addr netip.Addr) place { return place{External: External{Address: addr}} }

func interfacePlace(name string, v6 bool) place { return place{External{Interface: name}, v6} }

// place is where the forward listens. Without an address it has the family of
// its target.
func (f *Forward) place() place {
	if f.External.Address.IsValid() {
		return place{External: f.External}
	}
	return place{f.External, f.Target.Is6()}
}

func (p place) is6() bool { return p.v6 || p.Address.Is6() }

// everywhere is every WAN interface, for the family of p.
func (p place) everywhere() place { return place{v6: p.is6()} }

// suffix6 marks the IPv6 addresses of an interface in the running document.
// No name of an interface has a slash.
const suffix6 = "/ipv6"

// MarshalText implements encoding.TextMarshaler.
func (p place) MarshalText() ([]byte, error) {
	text := p.String()
	if p.v6 {
		text += suffix6
	}
	return []byte(text), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *place) UnmarshalText(text []byte) error {
	external, v6 := strings.CutSuffix(string(text), suffix6)
	p.v6 = v6
	return p.External.UnmarshalText([]byte(external))
}

func comparePlace(a, b place) int {
	if order := cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Interface, b.Interface)); order != 0 || a.v6 == b.v6 {
		return order
	}
	if b.v6 {
		return -1
	}
	return 1
}
