// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"math"
	"text/tabwriter"
)

// What a packet costs on a network card besides hairpin: an assumption, for a core of some 3 GHz and a card with
// native XDP. README.md says where it is from and how to find out one's own.
const (
	driverXDP = 80  // ns: receive, hand to XDP, redirect, transmit
	driverTC  = 300 // ns: receive, make an skb of it, hand to TC, send
)

// shortestOnWire is a frame of 64 bytes with preamble and gap, in bits.
const shortestOnWire = 672

// estimate is packets a second, by how many queues of a card have a core each.
type estimate struct {
	Contender string          `json:"contender"`
	Flows     int             `json:"flows"`
	Own       float64         `json:"own_ns"`    // what hairpin adds to the bare hook
	Driver    float64         `json:"driver_ns"` // assumed
	Mpps      map[int]float64 `json:"mpps"`      // by queues, without a look at the line rate
}

var (
	queues     = []int{1, 4, 8, 16}
	cardsGbits = []float64{10, 25, 100}
)

// packetsPerSecond is what so many cores do with packets that cost so much each, in millions.
func packetsPerSecond(driver, own float64, cores int) float64 {
	return float64(cores) * 1000 / (driver + own)
}

// lineRate is how many of the shortest frames a card takes a second, in millions.
func lineRate(gbits float64) float64 { return gbits * 1000 / shortestOnWire }

// estimates are made from what was measured: of both directions the dearer.
func (r *report) estimates() (list []estimate) {
	for _, c := range []struct {
		name, bare string
		driver     float64
	}{{nameHairXDP, nameXDPRedir, driverXDP}, {nameHairTC, nameTC, driverTC}} {
		for _, flows := range []int{1, manyFlows} {
			own := 0.0
			for _, d := range directions {
				ours, ok := r.median(course{hairpinned, d, flows}.String(), c.name)
				bare, found := r.median(course{hairpinned, d, 1}.String(), c.bare)
				if ok && found {
					own = max(own, ours-bare)
				}
			}
			if own == 0 {
				continue
			}
			e := estimate{c.name, flows, own, c.driver, make(map[int]float64)}
			for _, n := range queues {
				e.Mpps[n] = packetsPerSecond(e.Driver, e.Own, n)
			}
			list = append(list, e)
		}
	}
	return list
}

func (r *report) median(task, contender string) (float64, bool) {
	for _, s := range r.Costs {
		if s.Task == task && s.Contender == contender {
			return s.Spread.Median, true
		}
	}
	return 0, false
}

// printEstimates writes them as a table.
func printEstimates(w io.Writer, list []estimate) error {
	if len(list) == 0 {
		return nil
	}
	fmt.Fprintln(w, "\nOn paper, not measured: millions of packets a second of so many queues of a network card, each with a core of its own;\nand how many queues keep up with a card full of the shortest frames.")
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprint(t, "CONTENDER\tFLOWS\tOWN\tDRIVER (ASSUMED)")
	for _, n := range queues {
		fmt.Fprintf(t, "\tMPPS OF %d", n)
	}
	for _, gbits := range cardsGbits {
		fmt.Fprintf(t, "\tFOR %.0f GBIT/S", gbits)
	}
	fmt.Fprintln(t)
	for _, e := range list {
		fmt.Fprintf(t, "%s\t%d\t%.0f ns\t%.0f ns", e.Contender, e.Flows, e.Own, e.Driver)
		for _, n := range queues {
			fmt.Fprintf(t, "\t%.1f", e.Mpps[n])
		}
		for _, gbits := range cardsGbits {
			fmt.Fprintf(t, "\t%.0f", math.Ceil(lineRate(gbits)/e.Mpps[1]))
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}
