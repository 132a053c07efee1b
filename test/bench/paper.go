// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"math"
	"text/tabwriter"
)

// The cost of a packet on a network card, without hairpin. These are assumptions, for a core of about 3 GHz and a card with
// native XDP. README.md says how to measure a card.
const (
	driverXDP = 80  // ns: receive, hand to XDP, redirect, transmit
	driverTC  = 300 // ns: receive, make an skb of it, hand to TC, send
)

// shortestOnWire is the length of a 64-byte frame on the wire, with preamble and gap, in bits.
const shortestOnWire = 672

// estimate is the estimated rate of a network card, by its number of queues. Each queue has a core.
type estimate struct {
	Contender string          `json:"contender"`
	Flows     int             `json:"flows"`
	Own       float64         `json:"own_ns"`    // hairpin's cost, less the bare hook's cost
	Driver    float64         `json:"driver_ns"` // assumed
	Mpps      map[int]float64 `json:"mpps"`      // million packets a second, by number of queues; may be above the line rate
}

var (
	queues     = []int{1, 4, 8, 16}
	cardsGbits = []float64{10, 25, 100}
)

// packetsPerSecond returns how many million packets a second the cores forward, if a packet costs driver+own nanoseconds.
func packetsPerSecond(driver, own float64, cores int) float64 {
	return float64(cores) * 1000 / (driver + own)
}

// lineRate returns the rate of the shortest frames on a line of this speed, in millions a second.
func lineRate(gbits float64) float64 { return gbits * 1000 / shortestOnWire }

// estimates returns the estimates, from the direction with the higher measured cost.
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

// printEstimates writes the estimates as a table.
func printEstimates(w io.Writer, list []estimate) error {
	if len(list) == 0 {
		return nil
	}
	fmt.Fprintln(w, "\nEstimated, not measured: millions of packets a second, by number of queues of a network card, with one core for each queue;\nand the number of queues needed for the line rate of the shortest frames.")
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
