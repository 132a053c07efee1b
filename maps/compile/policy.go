// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"hairpin/bpf"
	"hairpin/maps/config"
	"hairpin/maps/layout"
)

// Policies returns the entries of the list in map policies, in order.
func Policies(policies []config.Policy) []bpf.HairpinPolicy {
	entries := make([]bpf.HairpinPolicy, len(policies))
	for i, p := range policies {
		entries[i] = bpf.HairpinPolicy{Src: policySide(p.Source), Dst: policySide(p.Destination), Protocol: p.Protocol}
		if p.Protects {
			entries[i].Protects = 1
		}
	}
	return entries
}

func policySide(s config.PolicySide) bpf.HairpinPolicySide {
	return bpf.HairpinPolicySide{
		Address: layout.ToAddr(s.Network.Addr()), Mask: layout.MappedMask(s.Network),
		Port: layout.Be16(s.Port), PortMask: layout.Be16(s.PortMask),
	}
}
