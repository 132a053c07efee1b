// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/cilium/ebpf"

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
	hp := r.hairpin("xdp", hairpinOptions{forwards: tcpForwards(10000 - ownForwards)})
	r.establish(hairpinned, 100000)
	d, err := loader.Open(loader.Options{Dir: hp.Dir})
	b.must("open datapath", err)
	b.tb.Cleanup(func() { d.Close() })

	elsewhere := netip.MustParseAddrPort("198.51.100.77:443")
	away := udpFrame(clientMAC, r.lanMAC, netip.AddrPortFrom(client, firstSource), elsewhere, sourceVaries, elsewhere.Addr())
	back := udpFrame(gatewayMAC, r.wanMAC, elsewhere, netip.AddrPortFrom(external, firstSource), destinationVaries, external)
	for _, hook := range []struct {
		hook     traffic.Hook
		program  *ebpf.Program
		required float64
		code     uint32
	}{
		{traffic.XDP, d.Objects().HairpinXdp, 60, measure.XDPPass},
		{traffic.TC, d.Objects().HairpinTc, 80, measure.TCUnspec},
	} {
		for _, kind := range []struct {
			what, in string
			frame    traffic.Frame
		}{
			{"to elsewhere", "lan0", away},
			{"to the external address", "wan0", back},
		} {
			run := measure.Run{Hook: hook.hook, Program: hook.program, In: kind.in, Code: hook.code,
				Stream: traffic.Stream{Frames: []traffic.Frame{kind.frame}, Flows: 1}}
			over := b.interleave(b.rounds(20, 10), []task{{"hairpin", func() float64 {
				ns, err := run.Over(b.clock, r.traffic, r.router, nil)
				b.must("run", err)
				return ns
			}}})[0]
			b.report.sample(fmt.Sprintf("not ours, %s, over an empty program", kind.what), "hairpin "+string(hook.hook), "ns", over)
			b.report.add(atMost(fmt.Sprintf("not ours, %s, hairpin %s, over an empty program", kind.what, hook.hook), "ns",
				hook.required, measure.SpreadOf(over), "10,000 forwards, 100,000 connections"))
		}
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

// connections measures whether a packet costs more if there are many connections.
func (b *bench) connections() {
	count := b.rounds(1_000_000, 200_000)
	for _, mode := range []string{"xdp", "tc"} {
		few, many := newRig(b.tb), newRig(b.tb)
		few.hairpin(mode, hairpinOptions{connections: count + 1000})
		many.hairpin(mode, hairpinOptions{connections: count + 1000})
		few.establish(hairpinned, 1)
		many.establish(hairpinned, count)
		b.scale(mode, fmt.Sprintf("%d connections", count), few, many)
	}
}

// scale compares the cost of packets of one flow on two routers, one with few and one with many forwards or connections.
func (b *bench) scale(mode, what string, few, many *rig) {
	name := "hairpin " + strings.ToUpper(mode)
	entrants := []*entrant{
		{contender{Name: name + " with 1"}, few},
		{contender{Name: name + " with " + what}, many},
	}
	r := b.race("1 or "+what+": ", entrants, coursesOf(hairpinned, 1), b.rounds(20, 6), fewSlice)
	value, detail := r.faster(entrants[1].Name, entrants[0].Name, hairpinned, 1)
	b.report.add(atLeast(fmt.Sprintf("1 against %s, 1 flow, %s", what, name), "x", 0.9, value, detail))
}
