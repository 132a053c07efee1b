// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

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

// PolicyIndex finds the policy that decides about a packet. A gateway may have a policy for each of a thousand clients, so
// the index does not compare them all: it looks once for each pair of prefix lengths that the policies have.
type PolicyIndex struct {
	policies []Policy
	lengths  []prefixLengths
	byPair   map[networkPair][]int // policies with these networks, in order
}

type networkPair struct{ source, destination netip.Prefix }

type prefixLengths struct {
	v6                  bool
	source, destination int
}

// NewPolicyIndex makes an index of policies, which must not change.
func NewPolicyIndex(policies []Policy) *PolicyIndex {
	x := &PolicyIndex{policies: policies, byPair: map[networkPair][]int{}}
	for i := range policies {
		source, destination := policies[i].Source.Network, policies[i].Destination.Network
		pair := networkPair{source, destination}
		x.byPair[pair] = append(x.byPair[pair], i)
		lengths := prefixLengths{destination.Addr().Is6(), source.Bits(), destination.Bits()}
		if !slices.Contains(x.lengths, lengths) {
			x.lengths = append(x.lengths, lengths)
		}
	}
	return x
}

// Protects reports whether a policy protects a packet as it leaves: the datapath would send the packet as it is.
func (x *PolicyIndex) Protects(packet Packet) bool {
	first := len(x.policies)
	for _, lengths := range x.lengths {
		if lengths.v6 != packet.Destination.Addr().Is6() {
			continue
		}
		// Prefix fails for an address of another family alone. Then the pair is not in the map.
		source, _ := packet.Source.Addr().Prefix(lengths.source)
		destination, _ := packet.Destination.Addr().Prefix(lengths.destination)
		for _, i := range x.byPair[networkPair{source, destination}] {
			if i >= first || x.policies[i].has(packet) {
				first = min(first, i)
				break
			}
		}
	}
	return first < len(x.policies) && x.policies[first].Protects
}

// has reports whether the policy matches a packet between its networks.
func (p *Policy) has(packet Packet) bool {
	return (p.Protocol == 0 || p.Protocol == packet.Protocol) && p.Source.hasPort(packet.Source.Port()) && p.Destination.hasPort(packet.Destination.Port())
}

func (s *PolicySide) hasPort(port uint16) bool { return (s.Port^port)&s.PortMask == 0 }

// everything reports whether the policy matches every packet to its destination.
func (p *Policy) everything() bool {
	return p.Protocol == 0 && p.Source.Network.Bits() == 0 && p.Source.PortMask == 0 && p.Destination.PortMask == 0
}

// shownTargets and shownNetworks limit what PolicyWarnings spells out.
const shownTargets, shownNetworks = 3, 2

// PolicyWarnings collects warnings about the policies that protect packets. Whether a connection is refused depends on both
// of its ends.
type PolicyWarnings struct {
	policies []Policy
	byTarget map[netip.Prefix][]int // policies with this destination, in order; none after the first that matches everything
	lengths  map[prefixLengths]bool // of the destinations

	targets []string     // the first warnings about targets
	more    int          // number of forwards without one
	named   map[int]bool // policies in targets

	answers   []netip.Addr // where the answers to clients come from; they leave by a WAN
	anyAnswer bool         // they may come from any address: there is an intercept
	protocols map[uint8]bool
	ports     [1 << 16]bool // of external addresses
	everyPort bool
}

// NewPolicyWarnings begins without forwards. external are the addresses of the WAN interfaces.
func NewPolicyWarnings(policies []Policy, external []netip.Addr) *PolicyWarnings {
	w := &PolicyWarnings{
		policies: policies, byTarget: map[netip.Prefix][]int{}, lengths: map[prefixLengths]bool{}, named: map[int]bool{},
		answers: slices.Clone(external), protocols: map[uint8]bool{},
	}
	for i := range policies {
		network := policies[i].Destination.Network
		w.lengths[prefixLengths{v6: network.Addr().Is6(), destination: network.Bits()}] = true
		list := w.byTarget[network]
		if len(list) == 0 || !policies[list[len(list)-1]].everything() {
			w.byTarget[network] = append(list, i)
		}
	}
	return w
}

// Add notes a forward.
func (w *PolicyWarnings) Add(f *rule.Forward) {
	if len(w.policies) == 0 {
		return
	}
	w.addAnswers(f)
	for s := range f.EachServer() {
		w.addTarget(f, s.Target)
	}
}

func (w *PolicyWarnings) addTarget(f *rule.Forward, target netip.Addr) {
	i := w.protecting(target)
	if i < 0 {
		return
	}
	if len(w.targets) == shownTargets {
		w.more++
		return
	}
	w.named[i] = true
	p := &w.policies[i]
	w.targets = append(w.targets, fmt.Sprintf("%s %q: IPsec policy %s to %s protects packets to the target %s; hairpin cannot encrypt, so it refuses connections of targets and clients that this policy matches",
		f.Kind(), f.Name, p.Source.Network, p.Destination.Network, target))
}

// addAnswers notes what the answers to clients of a forward look like.
func (w *PolicyWarnings) addAnswers(f *rule.Forward) {
	w.anyAnswer = w.anyAnswer || f.Intercept
	if addr := f.External.Address; addr.IsValid() && !slices.Contains(w.answers, addr) {
		w.answers = append(w.answers, addr)
	}
	for _, p := range f.Protocols {
		w.protocols[p.Number(f.Target.Is6())] = true
	}
	if f.Ports.Every() {
		w.everyPort = true
		return
	}
	first, last := f.Ports.Bounds()
	for port := int(first); port <= int(last); port++ {
		w.ports[port] = true
	}
}

// protecting returns the first policy that may protect packets to a target, -1 if there is none. Ports, protocols and sources
// are not compared: a policy without them that lets the packets pass is what keeps later policies from being asked.
func (w *PolicyWarnings) protecting(target netip.Addr) int {
	protects, passes := len(w.policies), len(w.policies)
	for lengths := range w.lengths {
		if lengths.v6 != target.Is6() {
			continue
		}
		network, _ := target.Prefix(lengths.destination)
		for _, i := range w.byTarget[network] {
			if w.policies[i].Protects {
				protects = min(protects, i)
				break
			}
			if w.policies[i].everything() {
				passes = min(passes, i)
			}
		}
	}
	if protects < passes {
		return protects
	}
	return -1
}

// Targets returns a warning for each forward whose target a policy protects; many forwards are summed up.
func (w *PolicyWarnings) Targets() []string {
	list := slices.Clone(w.targets)
	switch {
	case w.more == 1:
		list = append(list, "1 more forward: an IPsec policy protects packets to its target")
	case w.more > 1:
		list = append(list, fmt.Sprintf("%d more forwards: IPsec policies protect packets to their targets", w.more))
	}
	return list
}

// Clients returns a warning about the policies that protect answers to clients, without those that Targets names; "" if there
// are none.
func (w *PolicyWarnings) Clients() string {
	count := 0
	seen := map[netip.Prefix]bool{}
	var networks []string
	for i := range w.policies {
		if w.named[i] || !w.protectsAnswers(&w.policies[i]) {
			continue
		}
		count++
		if network := w.policies[i].Destination.Network; !seen[network] {
			seen[network] = true
			networks = append(networks, network.String())
		}
	}
	if count == 0 {
		return ""
	}
	policies, where := "1 IPsec policy protects", strings.Join(networks, " and ")
	if count > 1 {
		policies = fmt.Sprintf("%d IPsec policies protect", count)
	}
	switch more := len(networks) - shownNetworks; {
	case more == 1:
		where = strings.Join(networks[:shownNetworks], ", ") + " and 1 more network"
	case more > 1:
		where = fmt.Sprintf("%s and %d more networks", strings.Join(networks[:shownNetworks], ", "), more)
	}
	return fmt.Sprintf("%s packets to %s: clients there are refused", policies, where)
}

// protectsAnswers reports whether a policy protects an answer of a forward to some client.
func (w *PolicyWarnings) protectsAnswers(p *Policy) bool {
	if !p.Protects || len(w.protocols) == 0 || p.Protocol != 0 && !w.protocols[p.Protocol] && !w.protocols[uint8(rule.Any)] {
		return false
	}
	if p.Source.PortMask == 0xffff && !w.everyPort && !w.ports[p.Source.Port] {
		return false
	}
	return w.anyAnswer || slices.ContainsFunc(w.answers, p.Source.Network.Contains)
}
