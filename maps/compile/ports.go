// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"hairpin/bpf"
	"hairpin/maps/rule"
)

const (
	portsPerWord = 64
	portWords    = 1 << 16 / portsPerWord
)

// PortSet is the content of map maybe_ports: the ports of TCP, then those of UDP. forward_maybe() in bpf/forward.h reads it.
type PortSet [2 * portWords]bpf.HairpinPortBits

// Add adds the ports of a forward. Protocols other than TCP and UDP have no ports in the set.
func (s *PortSet) Add(f *rule.Forward) {
	first, last := f.Ports.Bounds()
	for _, protocol := range f.Protocols {
		if protocol == rule.TCP || protocol == rule.Any {
			s.fill(first, last)
		}
		if protocol == rule.UDP || protocol == rule.Any {
			s.fill(portWords*portsPerWord+first, portWords*portsPerWord+last)
		}
	}
}

// fill sets the bits from first to last.
func (s *PortSet) fill(first, last int) {
	const all = ^uint64(0)
	for word := first / portsPerWord; word <= last/portsPerWord; word++ {
		bits := all
		if word == first/portsPerWord {
			bits &= all << (first % portsPerWord)
		}
		if word == last/portsPerWord {
			bits &= all >> (portsPerWord - 1 - last%portsPerWord)
		}
		s[word].Bits |= bits
	}
}
