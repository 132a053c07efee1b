// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"hairpin/bpf"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
)

// service is a target and protocol, without the port. Protocol Any means every protocol. The datapath rebuilds lost
// connections from the answers of a service. wan says where these answers go.
type service struct {
	target   netip.Addr
	protocol rule.Protocol
	wan      uint8 // 1: answers to the Internet; 0: answers to stand-ins
}

func compareService(a, b service) int {
	return cmp.Or(a.target.Compare(b.target), cmp.Compare(b.protocol, a.protocol), cmp.Compare(a.wan, b.wan))
}

// claim is a range of target ports of a service, and the external id and port shift by which its clients reach it.
type claim struct {
	first, last int
	origin      bpf.HairpinOrigin
}

// claim records which target ports the forwards in tree reach, for one listening place and protocol. Ports without an
// owner in tree belong to forward below (-1: to no forward). Only two kinds of answers can rebuild a connection: answers
// to stand-ins, for forwards with reflect prefix; and answers to the Internet, for UDP.
func (p *Program) claim(at rule.Place, protocol rule.Protocol, tree *portTree, below int) {
	c := &p.Doc.Config
	standIns, wan := len(c.StandIns) > 0, protocol == rule.UDP && !at.LAN
	if !standIns && !wan {
		return
	}
	if p.claims == nil {
		p.claims = map[service][]claim{}
	}
	tree.eachRun(below, func(first, last, owner int) {
		f := &c.Forwards[owner]
		for s := range f.EachServer() {
			shift := f.PortShiftOf(s)
			from := int(uint16(first) + shift)
			to := claim{from, from + last - first, bpf.HairpinOrigin{External: p.Doc.Externals[at], PortShift: shift, Forward: p.Doc.EpochRefs[owner].ID}}
			if f.Intercept {
				to.origin.External, to.origin.Forward = 0, 0 // a client may have asked any address, so the origin is unknown
			}
			if standIns && c.ReflectOf(*f) == rule.ReflectPrefix {
				p.addClaim(service{target: s.Target, protocol: protocol}, to)
			}
			// Behind a forward that hides its clients, a server answers to the router. What it sends to an Internet host is
			// no answer. A forward for LANs alone has no client on the Internet.
			if wan && !f.HidesClients() && !f.LANOnly {
				to.origin.Wan = 1
				if len(c.WAN) > 1 {
					to.origin.SeveralWans = 1
				}
				p.addClaim(service{s.Target, protocol, 1}, to)
			}
		}
	})
}

func (p *Program) addClaim(of service, c claim) { p.claims[of] = append(p.claims[of], c) }

// addOrigins adds the entries of trie origins, from a target port to the only forward that reaches it. It leaves out two
// kinds of entries, because lookups have the same result without them:
//   - entries of one protocol that are equal to the entry of every protocol;
//   - entries of answers to the Internet that say "several forwards". There is no entry of every protocol for such
//     answers, so the lookup finds no origin.
func (p *Program) addOrigins() {
	for _, to := range slices.SortedFunc(maps.Keys(p.claims), compareService) {
		sole := soleClaims(p.claims[to])
		switch {
		case to.wan == 1:
			sole = slices.DeleteFunc(sole, func(c claim) bool { return c.origin.External == 0 })
		case to.protocol == rule.Any:
			p.addOrigin(layout.AnyOriginKey(to.target), sole[0].origin)
			continue
		case slices.Equal(sole, soleClaims(p.claims[service{target: to.target, protocol: rule.Any}])):
			continue
		}
		number := to.protocol.Number(to.target.Is6())
		for _, c := range sole {
			eachPrefix(c.first, c.last, func(port uint16, bits int) {
				p.addOrigin(layout.OriginKey(to.target, number, c.origin.Wan, port, bits), c.origin)
			})
		}
	}
}

func (p *Program) addOrigin(key bpf.HairpinOriginKey, origin bpf.HairpinOrigin) {
	p.OriginKeys = append(p.OriginKeys, key)
	p.Origins = append(p.Origins, origin)
}

// soleClaims splits claims into ranges that do not overlap, in port order. A range with several claims gets no origin,
// because an answer from there may belong to any of their forwards.
func soleClaims(claims []claim) []claim {
	if len(claims) == 1 {
		return slices.Clone(claims)
	}
	type edge struct{ port, count, number int }
	edges := make([]edge, 0, 2*len(claims))
	for i, c := range claims {
		edges = append(edges, edge{c.first, 1, i}, edge{c.last + 1, -1, -i})
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Compare(a.port, b.port) })
	var sole []claim
	open, number := 0, 0 // count of open claims and sum of their numbers: if one claim is open, number is its number
	for i, e := range edges {
		open, number = open+e.count, number+e.number
		if open == 0 || edges[i+1].port == e.port {
			continue
		}
		next := claim{first: e.port, last: edges[i+1].port - 1}
		if open == 1 {
			next.origin = claims[number].origin
		}
		if n := len(sole); n > 0 && sole[n-1].origin == next.origin && sole[n-1].last+1 == next.first {
			sole[n-1].last = next.last
			continue
		}
		sole = append(sole, next)
	}
	return sole
}
