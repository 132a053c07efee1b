// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"hairpin/maps/rule"
)

func choices(weights ...uint16) (list []choice) {
	for i, weight := range weights {
		at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, 1, byte(20 + i)}), 443)
		list = append(list, choice{uint8(i), at, weight})
	}
	return list
}

// Shares follow the weights, also where the weights and the number of servers are extreme. Every server with a weight has a place.
func TestMaglevShares(t *testing.T) {
	many := make([]uint16, 256)
	for i := range many {
		many[i] = uint16(1 + i%256)
	}
	for _, weights := range [][]uint16{{1, 1}, {1, 2, 1}, {256, 1}, {3, 5, 7, 11}, slices.Repeat([]uint16{1}, 256), many} {
		table := maglev(choices(weights...), places(len(weights)))
		places, sum := make([]int, len(weights)), 0
		for _, server := range table {
			places[server]++
		}
		for _, weight := range weights {
			sum += int(weight)
		}
		for i, weight := range weights {
			got, want := float64(places[i])/float64(len(table)), float64(weight)/float64(sum)
			if math.Abs(got-want) > 0.005 || places[i] == 0 {
				t.Errorf("weights %v: server %d has %.4f of the places, want %.4f", weights[:min(len(weights), 4)], i, got, want)
			}
		}
	}
}

// If one server goes, at most 12 % of the places of the others change, also where its weight goes to 0.
func TestMaglevDisruption(t *testing.T) {
	for _, number := range []int{2, 10, 11, 20, 256} {
		all := choices(slices.Repeat([]uint16{1}, number)...)
		before := maglev(all, places(number))
		for gone := range min(number, 10) {
			after := maglev(slices.Delete(slices.Clone(all), gone, gone+1), places(number))
			moved, others := 0, 0
			for i, server := range before {
				if int(server) == gone {
					continue
				}
				others++
				if after[i] != server {
					moved++
				}
			}
			if share := float64(moved) / float64(others); share > 0.12 {
				t.Errorf("%d servers, %d is gone: %.3f of the places of the others have changed", number, gone, share)
			}
		}
	}
	// Few and many servers have tables of their own, of the same size each.
	for _, sizes := range [][2]int{{1, 10}, {11, 256}} {
		if places(sizes[0]) != places(sizes[1]) {
			t.Errorf("%d and %d servers have tables of %d and %d places", sizes[0], sizes[1], places(sizes[0]), places(sizes[1]))
		}
	}
}

// The numbers of the servers, which two routers may give in another order, decide nothing.
func TestMaglevIsTheSameEverywhere(t *testing.T) {
	one := choices(1, 2, 3, 4, 5)
	other := slices.Clone(one)
	numbers := rand.Perm(len(one))
	for i := range other {
		other[i].number = uint8(numbers[i])
	}
	a, b := maglev(one, places(len(one))), maglev(other, places(len(other)))
	for i := range a {
		if other[a[i]].number != b[i] {
			t.Fatalf("place %d is of server %v here, of another there", i, one[a[i]].at)
		}
	}
}

// TestLookupTablesHaveALimit: forwards that would need too much memory are refused before their tables are made.
func TestLookupTablesHaveALimit(t *testing.T) {
	pool := &rule.Pool{}
	for i := range fewServers + 1 {
		pool.Servers = append(pool.Servers, rule.Server{Target: netip.AddrFrom4([4]byte{192, 168, 1, byte(20 + i)}), Weight: 1})
	}
	number := func(forwards int) error {
		p := &Program{}
		p.Doc.Config.Forwards = slices.Repeat([]rule.Forward{{Name: "web", Ports: rule.Ports{First: 443, Last: 443}, Pool: pool}}, forwards)
		return p.number(&Running{of: make([]former, forwards)})
	}
	most := maxLookupPages / (placesOfMany/lookupPage + 1)
	if err := number(most); err != nil {
		t.Errorf("%d forwards: %v", most, err)
	}
	if err := number(most + 1); err == nil || !strings.Contains(err.Error(), "64 MiB") {
		t.Errorf("%d forwards: %v, want an error about 64 MiB", most+1, err)
	}
}
