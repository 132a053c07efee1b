// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"hairpin/test/bench/measure"
	"hairpin/test/lab"
)

// control measures the memory of all maps, the start of the daemon, and the time of commands.
func (b *bench) control() {
	b.memory()
	b.start()
	b.commands()
}

// memory measures the memory of hairpin's maps at the default size, as the kernel counts it (memlock in fdinfo), and the memory of
// nftables' connections.
func (b *bench) memory() {
	const connections, opened = 131072, 100000
	r := newRig(b.tb)
	hp := r.hairpin("xdp", hairpinOptions{connections: connections})
	before := b.mapBytes(hp)
	r.establish(hairpinned, opened)
	after := b.mapBytes(hp)
	mib := func(bytes uint64) float64 { return float64(bytes) / (1 << 20) }
	ours, detail := float64(after)/connections, fmt.Sprintf("all maps, %.1f MiB for %d connections", mib(after), connections)
	const what = "kernel memory per connection, both directions"
	b.report.sample(what, "hairpin", "B", []float64{ours})
	theirs, parts, err := b.conntrackBytes(opened)
	if err != nil {
		b.report.note("The memory of conntrack was not measured: %v.", err)
	} else {
		b.report.sample(what, nameNftables, "B", []float64{theirs})
		detail += fmt.Sprintf("; %s %.0f B: %s", nameNftables, theirs, parts)
	}
	b.report.add(
		atMost(what, "B", 500, measure.Exactly(ours), detail),
		atMost("kernel memory added by 100,000 connections", "B", float64(before)/1000, measure.Exactly(float64(after)-float64(before)),
			fmt.Sprintf("%.1f MiB at start, of which a thousandth", mib(before))))
}

func (b *bench) mapBytes(hp *lab.Hairpin) (total uint64) {
	b.tb.Helper()
	maps, err := pinnedMaps(hp.Dir)
	b.must("open maps", err)
	for name, m := range maps {
		info, err := m.Info()
		b.must("look at "+name, err)
		// The kernel shows no memlock for a trie without entries: it uses no memory.
		bytes, _ := info.Memlock()
		total += bytes
		m.Close()
	}
	return total
}

// pinnedMaps opens every pinned map under dir, and returns the maps by name.
func pinnedMaps(dir string) (map[string]*ebpf.Map, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "datapath", "maps", "*"))
	if err != nil {
		return nil, err
	}
	maps := make(map[string]*ebpf.Map)
	for _, path := range paths {
		m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", filepath.Base(path), err)
		}
		maps[filepath.Base(path)] = m
	}
	return maps, nil
}

// start measures the time until the daemon is ready, when it has to load and attach everything.
func (b *bench) start() {
	milliseconds := b.values("start to ready", b.rounds(20, 6), func() float64 {
		var took time.Duration
		err := lab.Play(b.tb.Context(), func(tb testing.TB) {
			r := newRig(tb)
			hp := lab.NewHairpin(r.router, hairpinConfig("xdp", hairpinOptions{}))
			began := time.Now()
			hp.Start()
			took = time.Since(began)
		})
		b.must("start", err)
		return float64(took.Microseconds()) / 1000
	})
	b.report.sample("start to ready", "hairpin", "ms", milliseconds)
	b.report.add(atMost("start to ready", "ms", 300, measure.SpreadOf(milliseconds), "mode xdp, 3 forwards"))
}

// commands measures commands on a running daemon, including the start and the end of their process.
func (b *bench) commands() {
	r := newRig(b.tb)
	small, large := hairpinConfig("tc", hairpinOptions{}), hairpinConfig("tc", hairpinOptions{forwards: tcpForwards(65000 - ownForwards)})
	hp := r.hairpin("tc", hairpinOptions{})
	var apply, add, addLarge []float64
	took := func(values *[]float64, args ...string) {
		began := time.Now()
		hp.Run(args...)
		*values = append(*values, float64(time.Since(began).Microseconds())/1000)
	}
	b.repeat("commands", b.rounds(10, 6), func(int) {
		took(&add, "forward", "add", "more", "tcp", "65501", "to", server.String())
		hp.Run("forward", "del", "more")
		hp.Write(large)
		took(&apply, "apply")
		took(&addLarge, "forward", "add", "more", "tcp", "65501", "to", server.String())
		hp.Write(small)
		hp.Run("apply")
	})
	for _, c := range []struct {
		what     string
		values   []float64
		required float64
	}{
		{"apply of 65,000 forwards", apply, 1000},
		{"forward add, beside 3 forwards", add, 20},
		{"forward add, beside 65,000 forwards", addLarge, 20},
	} {
		b.report.sample(c.what, "hairpin", "ms", c.values)
		b.report.add(atMost(c.what, "ms", c.required, measure.SpreadOf(c.values), "the command as a whole"))
	}
}
