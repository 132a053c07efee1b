// SPDX-License-Identifier: Apache-2.0

package maps

import "net/netip"

// addStandIns makes the entries of both ways.
func (p *program) addStandIns() {
	for _, s := range p.doc.Config.StandIns {
		client, standIn := standInEntry(s.Clients, s.Network)
		standIn.Client = 1
		back, clients := standInEntry(s.Network, s.Clients)
		p.standInKeys = append(p.standInKeys, client, back)
		p.standIns = append(p.standIns, standIn, clients)
	}
}

// addSources makes the entries of who may use a forward. An intercept catches
// everybody but those that it excepts, its target, and addresses that no router
// sends on: neither what they ask nor what they are asked.
func (p *program) addSources(i int) {
	f := &p.doc.Config.Forwards[i]
	for _, prefix := range f.From {
		p.addSource(i, prefix, true)
	}
	if !f.Intercept {
		return
	}
	p.addSource(i, everything(f.Target.Is6()), true)
	for _, network := range NonHostNetworks() {
		if network.Addr().Is6() == f.Target.Is6() {
			p.addSource(i, network, false)
		}
	}
	for _, prefix := range f.Except {
		p.addSource(i, prefix, false)
	}
	p.addSource(i, netip.PrefixFrom(f.Target, f.Target.BitLen()), false)
}

func (p *program) addSource(i int, prefix netip.Prefix, allowed bool) {
	var value uint8
	if allowed {
		value = 1
	}
	p.sources = append(p.sources, allowKey(p.doc.Stamps[i].id, prefix))
	p.allowed = append(p.allowed, value)
}

// everything is all addresses of a family.
func everything(v6 bool) netip.Prefix {
	if v6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}
