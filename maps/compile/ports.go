// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"hairpin/bpf"
	"hairpin/maps/rule"
)

const (
	portsPerPlace = 64
	portPlaces    = 1 << 16 / portsPerPlace
)

// PortSet is the content of map maybe_ports: the ports of TCP, then those of UDP. forward_maybe() in bpf/forward.h reads it.
type PortSet [2 * portPlaces]bpf.HairpinPortBits

// Add adds the ports of a forward. Protocols other than TCP and UDP have no ports in the set.
func (s *PortSet) Add(f *rule.Forward) {
	first, last := f.Ports.Bounds()
	for _, protocol := range f.Protocols {
		if protocol == rule.TCP || protocol == rule.Any {
			s.fill(first, last)
		}
		if protocol == rule.UDP || protocol == rule.Any {
			s.fill(portPlaces*portsPerPlace+first, portPlaces*portsPerPlace+last)
		}
	}
}

// fill sets the bits from first to last.
func (s *PortSet) fill(first, last int) {
	const all = ^uint64(0)
	for place := first / portsPerPlace; place <= last/portsPerPlace; place++ {
		bits := all
		if place == first/portsPerPlace {
			bits &= all << (first % portsPerPlace)
		}
		if place == last/portsPerPlace {
			bits &= all >> (portsPerPlace - 1 - last%portsPerPlace)
		}
		s[place].Bits |= bits
	}
}
