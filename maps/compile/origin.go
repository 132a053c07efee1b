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

// service is where a forward leads to, without the port; protocol Any is every
// protocol. That of a WAN is about its answers to the Internet, the other one about
// those to stand-ins.
type service struct {
	target   netip.Addr
	protocol rule.Protocol
	wan      uint8 // 1 or 0
}

func compareService(a, b service) int {
	return cmp.Or(a.target.Compare(b.target), cmp.Compare(b.protocol, a.protocol), cmp.Compare(a.wan, b.wan))
}

// claim is a range of a service's ports, and how its clients get there.
type claim struct {
	first, last int
	origin      bpf.HairpinOrigin
}

// claim notes where the forwards lead to that show in a tree of at; ports that have
// none there are below's, -1 for nobody. Answers to stand-ins are about forwards with
// reflect prefix alone, those to the Internet about UDP alone: there the datapath can
// do without the connection.
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
		shift := f.PortShift()
		from := int(uint16(first) + shift)
		to := claim{from, from + last - first, bpf.HairpinOrigin{External: p.Doc.Externals[at], PortShift: shift}}
		if f.Intercept {
			to.origin.External = 0 // its clients may have asked anybody
		}
		if standIns && c.ReflectOf(*f) == rule.ReflectPrefix {
			p.addClaim(service{target: f.Target, protocol: protocol}, to)
		}
		if wan {
			to.origin.Wan = 1
			if len(c.WAN) > 1 {
				to.origin.SeveralWans = 1
			}
			p.addClaim(service{f.Target, protocol, 1}, to)
		}
	})
}

func (p *Program) addClaim(of service, c claim) { p.claims[of] = append(p.claims[of], c) }

// addOrigins makes the entries that lead back from targets. Those of one
// protocol are left out where they say what those of every protocol do. So are those
// to the Internet that say that several forwards lead to a port, for there are none
// of every protocol that would be found instead.
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

// soleClaims cuts claims into ranges that do not overlap, in port order. One that
// several claim has no origin: from there nobody can tell which it was.
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
	open, number := 0, 0 // how many are, and the sum of their numbers: that of one which is alone
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
