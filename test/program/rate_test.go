// SPDX-License-Identifier: Apache-2.0

package program

import (
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"hairpin/bpf"
	"hairpin/maps/rule"
	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

// rated gives the first forward rates, as a reload does.
func (b *bench) rated(tb testing.TB, all, each string) {
	tb.Helper()
	f := &b.Config.Forwards[0]
	f.Rate, f.RatePerSource = rule.Rate{}, rule.Rate{}
	lab.Must(f.Rate.UnmarshalText([]byte(all)))
	lab.Must(f.RatePerSource.UnmarshalText([]byte(each)))
	b.Apply(tb)
}

// sourced is a flow of another client on the Internet.
func (c *corpus) sourced(udp bool, client string) rig.Flow {
	f := c.flow("from the Internet", udp)
	f.Client = netip.AddrPortFrom(netip.MustParseAddr(client), f.Client.Port())
	f.Source = f.Client
	return f
}

// TestRates: as many connections as the number says open at once, then no more, in both hooks; the reason tells whose rate it was. A
// change of the rate ends no connection, and is in force at once.
func TestRates(t *testing.T) {
	for _, h := range hooks {
		t.Run(h.name, func(t *testing.T) {
			b := newBench(t, rig.Forwards...)
			c := newCase(t, b)
			begin := func(f rig.Flow) step { return c.in(f, opener).opening() }
			open := func(s step) { t.Helper(); c.play(t, h, s) }
			b.rated(t, "5/h", "")
			first := c.sourced(false, "198.51.100.7")
			open(begin(first))
			for range 4 {
				open(begin(c.sourced(false, "198.51.100.8")))
			}
			for _, client := range []string{"198.51.100.7", "198.51.100.9"} {
				open(c.in(c.sourced(false, client), opener).refused("rate"))
			}
			in, want := first.In(opener) // the SYN again opens nothing new
			open(send(first.At, in, want))

			// What the slower rate had used up is forgotten.
			b.rated(t, "1000000/s", "2/h")
			for range 2 {
				open(begin(c.sourced(false, "198.51.100.7")))
			}
			open(c.in(c.sourced(false, "198.51.100.7"), opener).refused("source_rate"))
			open(begin(c.sourced(false, "198.51.100.9")))
			if n := len(b.Connections(t)); n != 8 {
				t.Errorf("%d connections, want 8", n)
			}
			b.rated(t, "", "")
			for range 10 {
				open(begin(c.sourced(false, "198.51.100.7")))
			}
			// One client that is over its rate takes nothing from the others.
			b.rated(t, "3/h", "1/h")
			b.Config.Forwards[0].Name = "anew"
			b.rated(t, "3/h", "1/h")
			open(begin(c.sourced(false, "198.51.100.20")))
			for range 5 {
				open(c.in(c.sourced(false, "198.51.100.20"), opener).refused("source_rate"))
			}
			open(begin(c.sourced(false, "198.51.100.21")))
			open(begin(c.sourced(false, "198.51.100.22")))
			open(c.in(c.sourced(false, "198.51.100.23"), opener).refused("rate"))

			// A forward that is over its rate takes nothing from its clients' own rates.
			b.Config.Forwards[0].Name = "once more"
			b.rated(t, "2/h", "2/h")
			for range 2 {
				open(begin(c.sourced(false, "198.51.100.30")))
			}
			for range 5 {
				open(c.in(c.sourced(false, "198.51.100.31"), opener).refused("rate"))
			}
			b.rated(t, "1000000/s", "2/h")
			for range 2 {
				open(begin(c.sourced(false, "198.51.100.31")))
			}
			open(c.in(c.sourced(false, "198.51.100.31"), opener).refused("source_rate"))
		})
	}
}

// TestRateOfOneClient: of IPv6 on the Internet a client is a /64; LAN clients are told.
func TestRateOfOneClient(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	b.settings(t, func(s *bpf.HairpinSettings) { s.IcmpInterval = 0 })
	c := newCase(t, b)
	b.rated(t, "", "1/h")
	for _, way := range []string{"hairpin", "from another LAN", "server to itself"} {
		c.play(t, hooks[0], c.in(c.flow(way, false), opener).opening())
		router := rig.LANAddress
		if way == "from another LAN" {
			router = rig.OtherAddress
		}
		for _, h := range hooks {
			c.play(t, h, c.in(c.flow(way, false), opener).refused("source_rate").told(router, icmpUnreachable, codeProhibited, 0))
		}
	}
}

// TestRateIsReached: tokens come back in time, no fewer and no more, while two CPUs open as fast as they can.
func TestRateIsReached(t *testing.T) {
	const perSecond, length = 100, 2 * time.Second
	b := newBenchFor(t, 16384, 16384, rig.Forwards...)
	b.rated(t, "100/s", "")
	began := time.Now()
	var opened, asked atomic.Int64
	lab.Together(2, func(cpu int) {
		f := b.Flows(true, 20000)["from the Internet"]
		for n := 0; time.Since(began) < length; n++ {
			f.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(110 + cpu), byte(n)}), uint16(1024+n>>8))
			in, _ := f.In(frames.Payload("x"))
			asked.Add(1)
			if b.TC(t, f.At, in.Bytes()).Code == rig.TCRedirect {
				opened.Add(1)
			}
		}
	})
	most := int64(perSecond) + int64(time.Since(began)*perSecond/time.Second) + 1
	t.Logf("%d of %d", opened.Load(), asked.Load())
	if asked.Load() < 2*most {
		t.Errorf("only %d openings were asked for", asked.Load())
	}
	if got := opened.Load(); got > most || got < most*8/10 {
		t.Errorf("%d connections opened in %s, want %d at most, and nearly that", got, time.Since(began), most)
	}
}

// TestRateOfOneClientOnTwoCPUs: two CPUs ask for the last token of a client at one time. One of them opens, and the other takes nothing
// from the forward (race E of rate.h).
func TestRateOfOneClientOnTwoCPUs(t *testing.T) {
	const all, clients = 1000, 500
	b := newBenchFor(t, 16384, 16384, rig.Forwards...)
	b.rated(t, "1000/h", "1/h")
	began := time.Now()
	var opened atomic.Int64
	open := func(client, port int) {
		f := b.Flows(true, 20000)["from the Internet"]
		f.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(client >> 8), byte(client)}), uint16(port))
		in, _ := f.In(frames.Payload("x"))
		if b.TC(t, f.At, in.Bytes()).Code == rig.TCRedirect {
			opened.Add(1)
		}
	}
	var arrived atomic.Int64
	lab.Together(2, func(cpu int) {
		for client := range clients {
			arrived.Add(1)
			for arrived.Load() < int64(2*client+2) {
				runtime.Gosched()
			}
			open(client, 20000+cpu)
		}
	})
	for client := range all {
		open(clients+client, 20000)
	}
	// An opening that finds no place in the table has taken its tokens. Tokens come back meanwhile.
	taken, back := opened.Load()+int64(b.Counted(t, "table_full")), int64(time.Since(began)*all/time.Hour)+1
	if taken < all || taken > all+back {
		t.Errorf("%d tokens were good for connections, want %d, and at most %d more", taken, all, back)
	}
}

// TestChallengeComesBeforeTheRate: once half-open places are scarce, a SYN of a source that has proven nothing takes no token.
func TestChallengeComesBeforeTheRate(t *testing.T) {
	const all = 1000
	b := newBenchFor(t, 2048, evictedPlaces, rig.Forwards...)
	c := newCase(t, b)
	b.rated(t, "1000/h", "")
	for i := range 3 * all {
		f := c.sourced(false, netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}).String())
		in, _ := f.In(opener)
		b.TC(t, f.At, in.Bytes())
	}
	if challenged, over := b.Counted(t, "challenged"), b.Counted(t, "rate"); challenged <= all || over > 0 {
		t.Errorf("%d SYNs were challenged, want more than %d; %d were over the rate, want none", challenged, all, over)
	}
}
