// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"

	"hairpin/bpf"
)

// Forever is the time of a denial that has no end.
const Forever = math.MaxUint32

// DeniedUntil is the second of the datapath's clock at which a denial ends that begins now, in nanoseconds. It ends up to a
// second late, never early. A denial for no time has no end.
func DeniedUntil(now uint64, lasts time.Duration) uint32 {
	if lasts == 0 {
		return Forever
	}
	end := (now + uint64(lasts) + uint64(time.Second) - 1) / uint64(time.Second)
	return uint32(min(end, Forever-1))
}

// Denials are denied networks, or single addresses.
type Denials map[netip.Prefix]bpf.HairpinDenial

// OwnDenial is until when an entry denies its source by itself, 0 if it does not at all.
func OwnDenial(d bpf.HairpinDenial, now uint32) uint32 {
	switch {
	case d.Configured != 0:
		return Forever
	case d.Asked <= now:
		return 0
	}
	return d.Asked
}

// Sources finds out whether an address lies in one of many networks.
type Sources struct {
	networks map[netip.Prefix]bool
	lengths  map[bool][]int // the different lengths of the networks of IPv4 (true) and IPv6
}

// NewSources returns the Sources of a list of networks.
func NewSources(list []netip.Prefix) *Sources {
	s := &Sources{networks: make(map[netip.Prefix]bool, len(list)), lengths: map[bool][]int{}}
	for _, source := range list {
		s.networks[source] = true
		v4 := source.Addr().Is4()
		if !slices.Contains(s.lengths[v4], source.Bits()) {
			s.lengths[v4] = append(s.lengths[v4], source.Bits())
		}
	}
	return s
}

// Hold reports whether addr lies in one of the networks.
func (s *Sources) Hold(addr netip.Addr) bool {
	return slices.ContainsFunc(s.lengths[addr.Is4()], func(bits int) bool {
		return s.networks[netip.PrefixFrom(addr, bits).Masked()]
	})
}

// Settle removes what has ended, and sets until when each of the others denies its source. The datapath finds the smallest network
// that holds a source, and that alone: so a network that lies within another one denies for as long as that, if that is longer.
func (d Denials) Settle(now uint32) {
	maps.DeleteFunc(d, func(_ netip.Prefix, denial bpf.HairpinDenial) bool { return OwnDenial(denial, now) == 0 })
	order := slices.SortedFunc(maps.Keys(d), func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var around []netip.Prefix // the networks that hold the one at hand, the largest first
	for _, network := range order {
		for len(around) > 0 && !around[len(around)-1].Overlaps(network) {
			around = around[:len(around)-1]
		}
		denial := d[network]
		denial.Until = OwnDenial(denial, now)
		if len(around) > 0 {
			denial.Until = max(denial.Until, d[around[len(around)-1]].Until)
		}
		d[network] = denial
		around = append(around, network)
	}
}
