// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
)

// choice is a server in a table of choices: what it is called in the table, and its share.
type choice struct {
	number uint8
	at     netip.AddrPort // the same on all routers that have the same configuration
	weight uint16
}

// The number of places in a table. There are at least 100 for each server, so that the shares are near the weights. Both numbers are prime:
// then a server that goes through the table in steps of one length comes to every place. There are only two sizes, because nearly every
// client gets another server when the size changes.
const (
	placesOfFew  = 1009 // up to fewServers
	placesOfMany = 25603
	fewServers   = 10
)

// places returns the size of the table of a forward with this many servers, those with weight 0 included.
func places(servers int) int {
	if servers <= fewServers {
		return placesOfFew
	}
	return placesOfMany
}

// maglev returns a table that gives each place to a server, in proportion to the weights (Eisenbud et al. 2016, section 3.4). Two routers
// with the same servers make the same table, whatever their order and numbers are. If a server comes or goes, few of the places of the
// others change. servers is sorted by at, and at least one has a weight. size is a result of places.
func maglev(servers []choice, size int) []uint8 {
	table, taken := make([]uint8, size), make([]bool, size)
	next, step, credit := make([]int, len(servers)), make([]int, len(servers)), make([]int, len(servers))
	heaviest := 0
	for _, s := range servers {
		heaviest = max(heaviest, int(s.weight))
	}
	for i, s := range servers {
		next[i], step[i] = permutation(s.at, size)
		credit[i] = heaviest - int(s.weight) // every server has a turn in the first round, so each has a place
	}
	for filled := 0; ; {
		for i, s := range servers {
			// The heaviest server takes a place in every round. The others wait until their credit is as high.
			if credit[i] += int(s.weight); credit[i] < heaviest {
				continue
			}
			credit[i] -= heaviest
			for taken[next[i]] {
				next[i] = (next[i] + step[i]) % size
			}
			table[next[i]], taken[next[i]] = s.number, true
			if filled++; filled == size {
				return table
			}
		}
	}
}

// permutation returns the place where a server begins to choose, and its step through the table.
func permutation(at netip.AddrPort, size int) (offset, step int) {
	text, _ := at.MarshalBinary() // never fails
	sum := sha256.Sum256(text)
	high, low := binary.BigEndian.Uint64(sum[:]), binary.BigEndian.Uint64(sum[8:])
	return int(high % uint64(size)), int(low%uint64(size-1)) + 1
}
