// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"strings"

	"hairpin/loader"
	"hairpin/test/bench/measure"
	"hairpin/test/bench/traffic"
)

// tcpForwards returns count more forwards in TOML. They do not meet the forwards of hairpinConfig.
func tcpForwards(count int) string {
	var b strings.Builder
	for port, made := 1, 0; made < count; port++ {
		if port == 80 || port == 5201 {
			continue
		}
		fmt.Fprintf(&b, "[[forward]]\nname = \"f%d\"\nprotocol = [\"tcp\"]\nport = \"%[1]d\"\nto = \"%s:%[1]d\"\n", port, server)
		made++
	}
	return b.String()
}

const ownForwards = 3

// others measures the cost of packets that hairpin leaves to the kernel, less the cost of an empty program.
func (b *bench) others() {
	r := newRig(b.tb)
	hp := r.hairpin("xdp", hairpinOptions{connections: udpRoom(100000), forwards: tcpForwards(10000 - ownForwards)})
	r.establish(hairpinned, 100000)
	d, err := loader.Open(loader.Options{Dir: hp.Dir})
	b.must("open datapath", err)
	b.tb.Cleanup(func() { d.Close() })

	elsewhere := netip.MustParseAddrPort("198.51.100.77:443")
	away := udpFrame(clientMAC, r.lanMAC, netip.AddrPortFrom(client, firstSource), elsewhere, sourceVaries, elsewhere.Addr())
	back := udpFrame(gatewayMAC, r.wanMAC, elsewhere, netip.AddrPortFrom(external, firstSource), destinationVaries, external)
	xdp, tc := d.Objects().HairpinXdp, d.Objects().HairpinTc
	for _, k := range []struct {
		what     string
		frame    traffic.Frame
		run      measure.Run
		required float64
	}{
		{"to elsewhere", away, measure.Run{Hook: traffic.XDP, Program: xdp, In: "lan0", Code: measure.XDPPass}, 60},
		{"to the external address", back, measure.Run{Hook: traffic.XDP, Program: xdp, In: "wan0", Code: measure.XDPPass}, 77},
		{"to elsewhere", away, measure.Run{Hook: traffic.TC, Program: tc, In: "lan0", Code: measure.TCUnspec}, 80},
		{"to the external address", back, measure.Run{Hook: traffic.TC, Program: tc, In: "wan0", Code: measure.TCUnspec}, 84},
	} {
		k.run.Stream = traffic.Stream{Frames: []traffic.Frame{k.frame}, Flows: 1}
		name := fmt.Sprintf("not ours, %s, hairpin %s, over an empty program", k.what, k.run.Hook)
		over := b.values(name, b.rounds(30, 10), func() float64 {
			ns, err := k.run.Over(b.clock, r.traffic, r.router, nil)
			b.must("run", err)
			return ns
		})
		b.report.sample(name, "hairpin", "ns", over)
		b.report.add(atMost(name, "ns", k.required, measure.SpreadOf(over), "10,000 forwards, 100,000 connections"))
	}
}

// forwards measures whether a packet costs more if there are many forwards.
func (b *bench) forwards() {
	for _, mode := range []string{"xdp", "tc"} {
		few, many := newRig(b.tb), newRig(b.tb)
		few.hairpin(mode, hairpinOptions{})
		many.hairpin(mode, hairpinOptions{forwards: tcpForwards(65000 - ownForwards)})
		few.establish(hairpinned, 1)
		many.establish(hairpinned, 1)
		b.scale(mode, "65000 forwards", few, many)
	}
}

// udpRoom returns max_connections of a table with room for this many UDP connections: they may take a quarter of it.
func udpRoom(connections int) int { return 4 * connections }

// connections measures whether a packet costs more if there are many connections.
func (b *bench) connections() {
	count := b.rounds(1_000_000, 200_000)
	for _, mode := range []string{"xdp", "tc"} {
		few, many := newRig(b.tb), newRig(b.tb)
		few.hairpin(mode, hairpinOptions{})
		many.hairpin(mode, hairpinOptions{connections: udpRoom(count)})
		few.establish(hairpinned, 1)
		many.establish(hairpinned, count)
		b.scale(mode, fmt.Sprintf("%d connections", count), few, many)
	}
}

// scale compares the cost of packets of one flow on two routers, one with few and one with many forwards or connections.
func (b *bench) scale(mode, what string, few, many *rig) {
	name, like := nameHairXDP, noiseXDPOne
	if mode == "tc" {
		name, like = nameHairTC, noiseTCOne
	}
	m := match{one: name + " with " + what, than: name + " with 1"}
	entrants := []*entrant{{contender{Name: m.one}, many}, {contender{Name: m.than}, few}}
	r := b.race("1 or "+what+": ", entrants, []match{m}, coursesOf(hairpinned, 1), b.rounds(30, 8), fewSlice)
	value, detail, _ := r.faster(m, hairpinned, 1)
	b.report.add(atLeast(fmt.Sprintf("1 against %s, 1 flow, %s", what, name), "x", 0.9, value, detail).like(like))
}
