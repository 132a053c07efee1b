// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"

	"hairpin/bpf"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
)

// maxLookupPages limits the lookup tables of all forwards together to 64 MiB.
const maxLookupPages = 1 << 20

// number gives each server of the new configuration its number. A server that the running forward of this name has, too, keeps its number,
// because the datapath remembers the server of a client by its number.
func (p *Program) number(running *Running) error {
	if slices.ContainsFunc(p.Doc.Config.Forwards, func(f rule.Forward) bool { return f.Balanced() }) {
		p.Doc.Config.Forwards = slices.Clone(p.Doc.Config.Forwards) // the caller's configuration stays as it is
	}
	p.Doc.Dropped = running.Dropped
	pages := 0
	for i := range p.Doc.Config.Forwards {
		f := &p.Doc.Config.Forwards[i]
		if !f.Balanced() {
			continue
		}
		was := cmp.Or(running.of[i].servers, new(rule.Forward))
		if pages += places(len(f.Servers()))/lookupPage + 1; pages > maxLookupPages {
			return fmt.Errorf("the forwards with several servers need more than 64 MiB for their tables; a forward of up to %d servers needs 1 KiB, one of more servers 25 KiB", fewServers)
		}
		servers := slices.Clone(f.Servers())
		f.Pool = &rule.Pool{Servers: servers, Affinity: f.Affinity()}
		var used [rule.MaxServers]bool
		known := make([]bool, len(servers))
		for j := range servers {
			s := &servers[j]
			at := slices.IndexFunc(was.Servers(), func(t rule.Server) bool { return f.SameServer(*s, was, t) })
			if known[j] = at >= 0; known[j] {
				s.Number = was.Servers()[at].Number
				used[s.Number] = true
			}
		}
		for j := range servers {
			if !known[j] {
				s := &servers[j]
				s.Number = uint8(slices.Index(used[:], false)) // there are at most as many servers as numbers
				used[s.Number] = true
			}
		}
	}
	return nil
}

// lookupPage is the number of places in a page of a lookup table.
const lookupPage = len(bpf.HairpinLookupPage{}.Server)

// balance adds the servers of forward i and its lookup table, and says in value where they are.
func (p *Program) balance(i int, value *bpf.HairpinForward) {
	f := &p.Doc.Config.Forwards[i]
	if !f.Balanced() {
		return
	}
	value.Affinity = uint32(f.Affinity() / time.Second)
	if at, there := p.balanced[i]; there {
		value.Places, value.FirstPage, value.FirstServer = at.Places, at.FirstPage, at.FirstServer
		return
	}
	var choices []choice
	servers := make([]bpf.HairpinServer, 0, len(f.Servers()))
	for _, s := range f.Servers() {
		for len(servers) <= int(s.Number) {
			servers = append(servers, bpf.HairpinServer{})
		}
		servers[s.Number] = bpf.HairpinServer{
			Target: layout.ToAddr(s.Target), PortShift: f.PortShiftOf(s), Number: s.Number, Serial: serialOf(f, s), Takes: 1,
		}
		if s.Weight == 0 {
			servers[s.Number].Takes = 0
			continue
		}
		choices = append(choices, choice{s.Number, netip.AddrPortFrom(s.Target, f.TargetPortsOf(s).First), s.Weight})
	}
	slices.SortFunc(choices, func(a, b choice) int { return a.at.Compare(b.at) })
	table := maglev(choices, places(len(f.Servers())))
	value.Places, value.FirstPage, value.FirstServer = uint32(len(table)), uint32(len(p.Lookups)), uint32(len(p.Servers))
	p.Servers = append(p.Servers, servers...)
	for page := range slices.Chunk(table, lookupPage) {
		var c bpf.HairpinLookupPage
		copy(c.Server[:], page)
		p.Lookups = append(p.Lookups, c)
	}
	if p.balanced == nil {
		p.balanced = map[int]bpf.HairpinForward{}
	}
	p.balanced[i] = *value
}

// serialOf returns a hash of a server's address and port. When a server is removed, another one may get its number. The datapath then sees by the
// serial that this is not the server that a client had.
func serialOf(f *rule.Forward, s rule.Server) uint32 {
	hash := fnv.New32a()
	text, _ := netip.AddrPortFrom(s.Target, f.TargetPortsOf(s).First).MarshalBinary() // never fails
	hash.Write(text)
	return hash.Sum32()
}
