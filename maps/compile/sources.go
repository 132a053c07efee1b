// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"net/netip"

	"hairpin/maps/layout"
	"hairpin/maps/rule"
)

// addStandIns adds two entries for each StandIn: client to stand-in, and stand-in to client.
func (p *Program) addStandIns() {
	for _, s := range p.Doc.Config.StandIns {
		client, standIn := layout.StandInEntry(s.Clients, s.Network)
		standIn.Client = 1
		back, clients := layout.StandInEntry(s.Network, s.Clients)
		p.StandInKeys = append(p.StandInKeys, client, back)
		p.StandIns = append(p.StandIns, standIn, clients)
	}
}

// addSources adds the entries of trie allow for forward i. For an intercept the datapath looks up both source and
// destination. The trie allows all addresses, except the intercept's Except list, its target, and addresses that no host
// behind a router can have.
func (p *Program) addSources(i int) {
	f := &p.Doc.Config.Forwards[i]
	for _, prefix := range f.From {
		p.addSource(i, prefix, true)
	}
	if !f.Intercept {
		return
	}
	p.addSource(i, everything(f.Target.Is6()), true)
	for _, network := range rule.NonHostNetworks() {
		if network.Addr().Is6() == f.Target.Is6() {
			p.addSource(i, network, false)
		}
	}
	for _, prefix := range f.Except {
		p.addSource(i, prefix, false)
	}
	for s := range f.EachServer() {
		p.addSource(i, netip.PrefixFrom(s.Target, s.Target.BitLen()), false)
	}
}

func (p *Program) addSource(i int, prefix netip.Prefix, allowed bool) {
	var value uint8
	if allowed {
		value = 1
	}
	p.AllowKeys = append(p.AllowKeys, layout.AllowKey(p.Doc.EpochRefs[i].ID, prefix))
	p.Allowed = append(p.Allowed, value)
}

// everything returns the network of all addresses of a family.
func everything(v6 bool) netip.Prefix {
	if v6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}
