// SPDX-License-Identifier: Apache-2.0

package program

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"hairpin/bpf"
	"hairpin/maps"
	"hairpin/maps/layout"
	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

func (b *bench) deny(tb testing.TB, lasts time.Duration, sources ...string) {
	tb.Helper()
	var denials []maps.Denial
	for _, source := range sources {
		denials = append(denials, maps.Denial{Source: netip.MustParsePrefix(source), Lasts: lasts})
	}
	if _, err := b.Tables.Deny(denials); err != nil {
		tb.Fatal(err)
	}
}

func (b *bench) undeny(tb testing.TB, sources ...string) {
	tb.Helper()
	for _, source := range sources {
		if missing, _, err := b.Tables.Undeny([]netip.Prefix{netip.MustParsePrefix(source)}); err != nil || len(missing) > 0 {
			tb.Fatalf("missing are %v, %v", missing, err)
		}
	}
}

// TestDeniedSources: a source is denied by its address and by every network that holds it, in both hooks and for every way in. What the
// Internet sends is dropped without a word, LAN clients are told.
func TestDeniedSources(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	b.settings(t, func(s *bpf.HairpinSettings) { s.IcmpInterval = 0 })
	c := &corpus{b: b, nextPort: 20000}
	for way, sources := range map[string][]string{
		"from the Internet": {"198.51.100.7/32", "198.51.100.0/24", "128.0.0.0/1"},
		"hairpin":           {"192.168.1.50/32", "192.168.1.48/29"},
		"from another LAN":  {"192.168.2.60/32", "192.168.2.0/24"},
		"server to itself":  {"192.168.1.20/32"},
	} {
		for _, source := range sources {
			b.deny(t, 0, source)
			for _, h := range hooks {
				for _, udp := range []bool{true, false} {
					f := c.flow(way, udp)
					s := c.in(f, opener).refused("denied")
					if way != "from the Internet" {
						router := rig.LANAddress
						if way == "from another LAN" {
							router = rig.OtherAddress
						}
						s = s.told(router, icmpUnreachable, codeProhibited, 0)
					}
					c.play(t, h, s)
				}
			}
			b.undeny(t, source)
			for _, udp := range []bool{true, false} {
				c.flow(way, udp).Open(t)
			}
		}
	}
	b.deny(t, 0, "198.51.100.6/32", "198.51.100.8/29", "::/0", "::ffff:0:0/95")
	c.flow("from the Internet", false).Open(t)
}

// TestDenialWithinADenial: the time of a network is never cut short by a smaller one within it, whichever comes first or goes first.
func TestDenialWithinADenial(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	c := &corpus{b: b, nextPort: 20000}
	is := func(want bool, when string) {
		t.Helper()
		before := b.Counted(t, "denied")
		f := c.flow("from the Internet", false)
		in, _ := f.In(opener)
		b.TC(t, f.At, in.Bytes())
		if got := b.Counted(t, "denied") > before; got != want {
			t.Errorf("%s: denied is %t, want %t", when, got, want)
		}
	}
	for _, order := range [][]string{{"198.51.0.0/16", "198.51.100.0/24"}, {"198.51.100.0/24", "198.51.0.0/16"}} {
		for _, network := range order {
			b.deny(t, map[string]time.Duration{"198.51.0.0/16": time.Hour, "198.51.100.0/24": time.Second}[network], network)
		}
		for deadline := time.Now().Add(10 * time.Second); ; {
			n, err := b.Tables.SweepDenied()
			if err != nil || time.Now().After(deadline) {
				t.Fatalf("the small network stays: %v", err)
			}
			is(true, "the large network is denied")
			if n == 1 {
				break
			}
		}
		is(true, "the small network has gone")
		b.deny(t, time.Hour, "198.51.100.0/24")
		b.undeny(t, "198.51.0.0/16")
		is(true, "the large network has gone")
		b.undeny(t, "198.51.100.0/24")
		is(false, "both have gone")
	}
}

// TestDeniedWhileItOpens is the race of deny.h: what another CPU opens for a source while that is being denied has ended, too, when the
// command returns.
func TestDeniedWhileItOpens(t *testing.T) {
	const rounds = 150
	b := newBench(t, rig.Forwards...)
	f := b.Flows(true, 20000)["from the Internet"]
	in, _ := f.In(opener)
	frame := in.Bytes()
	opened := 0
	for round := range rounds {
		source := netip.AddrFrom4([4]byte{198, 51, byte(101 + round/200), byte(1 + round%200)})
		f.Client = netip.AddrPortFrom(source, 20000)
		in, _ := f.In(opener)
		frame = in.Bytes()
		var stop atomic.Bool
		began, done := make(chan bool), make(chan bool)
		go func() {
			defer close(done)
			for port := uint16(1024); !stop.Load(); port++ {
				binary.BigEndian.PutUint16(frame[frames.EthernetLength+20:], port)
				binary.BigEndian.PutUint16(frame[frames.EthernetLength+26:], 0) // no checksum
				b.TC(t, f.At, frame)
				if port == 1024+20 {
					close(began)
				}
			}
		}()
		<-began
		b.deny(t, 0, netip.PrefixFrom(source, 32).String())
		stop.Store(true)
		<-done
		for _, c := range b.Connections(t) {
			if c.Client.Addr() == source {
				t.Fatalf("round %d: %s lives although its source is denied", round, c.Client)
			}
		}
		opened++
	}
	if opened != rounds {
		t.Errorf("%d rounds", opened)
	}
}

// TestDeniedMemory: 100,000 addresses take at most 20 MiB, and are found at once in an opening's look-up.
func TestDeniedMemory(t *testing.T) {
	const count = 100_000
	b := newBench(t, rig.Forwards...)
	var denials []maps.Denial
	for i := range uint32(count) {
		var addr [4]byte
		binary.BigEndian.PutUint32(addr[:], 0x0a000000+i*7)
		denials = append(denials, maps.Denial{Source: netip.PrefixFrom(netip.AddrFrom4(addr), 32)})
	}
	if _, err := b.Tables.Deny(denials); err != nil {
		t.Fatal(err)
	}
	table, marks := openSlot(t, b.Objects.Denied), openSlot(t, b.Objects.MaybeDenied)
	bytes := memory(t, table) + memory(t, marks)
	t.Logf("%d addresses: %d bytes, room for %d", count, bytes, table.MaxEntries())
	if bytes > 20<<20 {
		t.Errorf("%d bytes, want at most 20 MiB", bytes)
	}
	var d bpf.HairpinDenial
	for _, one := range denials {
		if err := table.Lookup(layout.ToAddr(one.Source.Addr()), &d); err != nil {
			t.Fatalf("%s: %v", one.Source, err)
		}
	}
	// The filter spares most other sources the look-up in the table.
	if n := marked(t, b); n > 1<<21/10 {
		t.Errorf("%d bits are set: more than a tenth", n)
	}
}

// marked is how many bits of the filter before denied addresses are set.
func marked(t *testing.T, b *bench) (n int) {
	t.Helper()
	marks := openSlot(t, b.Objects.MaybeDenied)
	for place := range marks.MaxEntries() {
		var word uint64
		lab.Must(marks.Lookup(place, &word))
		n += bits.OnesCount64(word)
	}
	return n
}

// TestFilterOfDeniedAddresses: the filter in front of the table of denied addresses finds every address, also after the table has
// grown. When the time of an address is over, the next sweep clears the bit of this address, and no other bit.
func TestFilterOfDeniedAddresses(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	c := &corpus{b: b, nextPort: 20000}
	var denials []maps.Denial
	for i := range 3000 {
		source := netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})
		denials = append(denials, maps.Denial{Source: netip.PrefixFrom(source, 32), Lasts: time.Second})
	}
	b.deny(t, 0, "198.51.100.7/32")
	_, err := b.Tables.Deny(denials)
	lab.Must(err)
	b.deny(t, 0, "198.51.100.9/32")
	if n := marked(t, b); n < 2500 {
		t.Errorf("%d bits are set for 3002 addresses", n)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		n, err := b.Tables.SweepDenied()
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("%d swept, %v", n, err)
		}
		if n == len(denials) {
			break
		}
	}
	if n := marked(t, b); n != 2 {
		t.Errorf("%d bits are set for two addresses", n)
	}
	for _, client := range []string{"198.51.100.7", "198.51.100.9"} {
		c.play(t, hooks[0], c.in(c.sourced(true, client), opener).refused("denied"))
	}
	c.play(t, hooks[0], c.in(c.sourced(true, "198.51.100.8"), opener).opening())
}
