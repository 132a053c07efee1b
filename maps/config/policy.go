// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"net/netip"

	"hairpin/maps/rule"
)

// MaxPolicies is how many IPsec policies the datapath asks (POLICIES_MAX in bpf/policy.h).
const MaxPolicies = 16384

// Policy is an IPsec policy of the router for packets that leave. Policies are in the order in which the kernel asks
// them: the first that matches a packet decides.
type Policy struct {
	Source, Destination PolicySide
	Protocol            uint8 // number; 0: every protocol
	Protects            bool  // encrypts or blocks; otherwise packets leave as they are
}

// PolicySide is the source or the destination of a policy.
type PolicySide struct {
	Network        netip.Prefix
	Port, PortMask uint16 // PortMask 0: every port
}

// Packet is the source and the destination of a packet that leaves, and its protocol number.
type Packet struct {
	Source, Destination netip.AddrPort
	Protocol            uint8
}

// Protected reports whether a policy protects a packet as it leaves: the datapath would send the packet as it is.
func Protected(policies []Policy, packet Packet) bool {
	for i := range policies {
		p := &policies[i]
		if (p.Protocol == 0 || p.Protocol == packet.Protocol) && p.Source.has(packet.Source) && p.Destination.has(packet.Destination) {
			return p.Protects
		}
	}
	return false
}

func (s *PolicySide) has(at netip.AddrPort) bool {
	return s.Network.Contains(at.Addr()) && (s.Port^at.Port())&s.PortMask == 0
}

// PolicyWarnings collects warnings about the policies that protect packets. Whether a connection is refused depends on both
// of its ends, and on the order of the policies.
type PolicyWarnings struct {
	policies []Policy
	target   []string // of each policy: the first forward whose target it protects
	forwards int
}

// NewPolicyWarnings begins without forwards.
func NewPolicyWarnings(policies []Policy) *PolicyWarnings {
	return &PolicyWarnings{policies: policies, target: make([]string, len(policies))}
}

// Add notes a forward.
func (w *PolicyWarnings) Add(f *rule.Forward) {
	w.forwards++
	for i := range w.policies {
		if p := &w.policies[i]; p.Protects && w.target[i] == "" && p.Destination.Network.Contains(f.Target) {
			w.target[i] = fmt.Sprintf("%s %q, %s", f.Kind(), f.Name, f.Target)
		}
	}
}

// Warnings returns one warning for each protecting policy. Without forwards there are none.
func (w *PolicyWarnings) Warnings() (list []string) {
	for i := range w.policies {
		p := &w.policies[i]
		if !p.Protects || w.forwards == 0 {
			continue
		}
		text := fmt.Sprintf("IPsec policy %s to %s: hairpin refuses connections whose packets the kernel would encrypt, to a target or to a client",
			p.Source.Network, p.Destination.Network)
		if w.target[i] != "" {
			text += "; it may protect the target of " + w.target[i]
		}
		list = append(list, text)
	}
	return list
}
