// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/binary"
	"fmt"
	stdmaps "maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps"
)

// TestICMPBurst is row 48: a hundred thousand ICMP errors of all kinds, about connections and about
// nothing, make, refresh and end none.
func TestICMPBurst(t *testing.T) {
	x := newExecutor(t, family4)
	x.begin(t)
	before := x.b.halves(t)
	random := rand.New(rand.NewPCG(48, 0))
	f := x.b.flows(true, 20001)["from the Internet"]
	err := x.b.router.Do(func() error {
		for i := range 100_000 {
			_, about := f.back(middle)
			if i%2 == 1 { // of a connection in every other one
				about.dst = netip.AddrPortFrom(about.dst.Addr(), uint16(random.Uint32()))
				about.flags, about.udp = "A", random.IntN(2) == 0
			}
			in := frame{from: f.mac, to: f.at.mac, src: netip.AddrPortFrom(farRouter, 0), dst: f.external}
			kind := []uint8{icmpUnreachable, icmpTimeExceeded, icmpParameter}[random.IntN(3)]
			icmpError(kind, uint8(random.IntN(16)), random.Uint32(), quote(about.bytes(), 28+random.IntN(30)))(&in)
			if err := x.execute(0, in.bytes()); err != nil {
				return fmt.Errorf("error %d: %w", i, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if after := x.b.halves(t); !stdmaps.Equal(before, after) {
		t.Errorf("connections before\n%+v\nand after\n%+v", before, after)
	}
	if n := x.b.tally(t)[fmt.Sprintf("send icmp_error on %d", f.at.index)]; n < 40_000 {
		t.Errorf("only %d of the errors about a connection were translated", n)
	}
}

// TestStranger is row 75: what a stranger sends to a UDP connection does not keep it alive, once its
// server is silent (RFC 4787 REQ-6); what a LAN client sends does.
func TestStranger(t *testing.T) {
	b := newBench(t, benchForwards...)
	b.shortLives(t)
	stranger, neighbour := b.flows(true, 20001)["from the Internet"], b.flows(true, 20002)["hairpin"]
	stranger.open(t)
	neighbour.open(t)
	opened := b.opened(t)
	// A connection that has expired is made anew by the next packet.
	for deadline := time.Now().Add(30 * time.Second); b.opened(t) == opened; {
		stranger.send(t, true, payload("still there?"))
		neighbour.send(t, true, payload("still here"))
		if time.Now().After(deadline) {
			t.Fatal("a stranger keeps a connection alive")
		}
	}
	for _, c := range b.connections(t) {
		if established := c.State == "established"; established != (c.Client.Port() == 20002) {
			t.Errorf("%s: %s", c.Client, c.State)
		}
	}
}

// shortLives makes every connection expire after a second.
func (b *bench) shortLives(t *testing.T) {
	t.Helper()
	timeouts := &b.config.Timeouts
	timeouts.TCPEstablished, timeouts.TCPTransitory = time.Second, time.Second
	timeouts.UDP, timeouts.ICMP = time.Second, time.Second
	b.apply(t)
	if code, err := b.objs.HairpinStart.Run(&ebpf.RunOptions{Data: make([]byte, 64)}); err != nil || code != 0 {
		t.Fatalf("start sweeper: %d %v", int32(code), err)
	}
}

// sourcePort is the port that the server sees behind a packet of a flow, which must be sent on.
func (f flow) sourcePort(tb testing.TB, changes ...func(*frame)) uint16 {
	tb.Helper()
	in, _ := f.in(changes...)
	got := f.b.tc(tb, f.at, in.bytes())
	if got.code != tcRedirect || told(in.bytes(), got.data) {
		tb.Fatalf("tc answers %d to %s > %s: %x", int32(got.code), in.src, in.dst, got.data)
	}
	return wordAt(got.data, l4At)
}

// TestHeldTuple: the tuple of a connection that expired is kept from other clients, and free for its
// own (RFC 6888 REQ-8).
func TestHeldTuple(t *testing.T) {
	b := newBench(t, benchForwards...)
	b.shortLives(t)
	owner, other := b.flows(true, 20001)["hairpin"], b.flows(true, 20001)["server to itself"]
	owner.open(t)
	for deadline := time.Now().Add(30 * time.Second); len(b.connections(t)) > 0; {
		if time.Now().After(deadline) {
			t.Fatal("the connection never expires")
		}
		runtime.Gosched()
	}
	if got := other.sourcePort(t, payload("mine now?")); got == 20001 {
		t.Error("another client has the tuple at once")
	}
	if got := owner.sourcePort(t, payload("mine again")); got != 20001 {
		t.Errorf("its own client gets port %d", got)
	}
}

// TestPortsTaken is row 83: no client has the port of a socket of the router or of a forward.
func TestPortsTaken(t *testing.T) {
	b := newBench(t, append(benchForwards, "own tcp,udp 192.168.1.1:20003 to 192.168.1.20:20003")...)
	for _, udp := range []bool{false, true} {
		b.listen(t, udp, "192.168.1.1:20002")
		for port, keeps := range map[uint16]bool{20001: true, 20002: false, 20003: false} {
			if got := b.flows(udp, port)["hairpin"].sourcePort(t, opener, payload("open")); (got == port) != keeps {
				t.Errorf("udp=%v: port %d of the client becomes %d", udp, port, got)
			}
		}
	}
}

// listen opens a socket on the router.
func (b *bench) listen(t *testing.T, udp bool, address string) {
	t.Helper()
	err := b.router.Do(func() error {
		if udp {
			c, err := net.ListenPacket("udp4", address)
			if err == nil {
				t.Cleanup(func() { c.Close() })
			}
			return err
		}
		l, err := net.Listen("tcp4", address)
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestPortsUnpredictable is row 82: ports that clients could not keep are of the same parity and range,
// and tell nothing about the next one (RFC 6056, RFC 4787 REQ-3a and REQ-4).
func TestPortsUnpredictable(t *testing.T) {
	const draws, buckets = 10_000, 64
	b := newBench(t, benchForwards...)
	for _, port := range []uint16{20002, 1000} {
		lowest, highest := 1024, 65536
		if port < 1024 {
			lowest, highest = 1, 1024
		}
		var count [buckets]int
		near, last := 0, 0
		for range draws {
			b.forget(t)
			b.flows(true, port)["hairpin"].send(t, true, payload("first"))
			got := int(b.flows(true, port)["server to itself"].sourcePort(t, payload("second")))
			if got%2 != int(port)%2 || got < lowest || got >= highest || got == int(port) {
				t.Fatalf("port %d becomes %d", port, got)
			}
			if got-last <= 16 && last-got <= 16 {
				near++
			}
			count[(got-lowest)*buckets/(highest-lowest)]++
			last = got
		}
		chi2, expected := 0.0, float64(draws)/buckets
		for _, n := range count {
			chi2 += (float64(n) - expected) * (float64(n) - expected) / expected
		}
		// With 63 degrees of freedom more than 140 happens once in a hundred million.
		if chi2 > 140 {
			t.Errorf("port %d: chi square of %d draws is %.0f: %v", port, draws, chi2, count)
		}
		if limit := draws * 40 * 2 / (highest - lowest); near > 2*limit+30 {
			t.Errorf("port %d: %d of %d draws are next to the one before", port, near, draws)
		}
	}
}

// TestPortsAtOnce is row 80: two processors that want the same port for two clients at once: one gets
// it, the other another one, and no half of a connection is left.
func TestPortsAtOnce(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Fatal("needs two processors")
	}
	const rounds = 1000
	// One client may hold a quarter of the places of half-open connections, when they are scarce.
	b := newBenchFor(t, 1<<16, 1<<16, benchForwards...)
	ways := []string{"hairpin", "server to itself"}
	var ready, done sync.WaitGroup
	for cpu, way := range ways {
		ready.Add(1)
		done.Go(func() {
			err := b.router.Do(func() error {
				var one unix.CPUSet
				one.Set(cpu)
				if err := unix.SchedSetaffinity(0, &one); err != nil {
					return err
				}
				ready.Done()
				ready.Wait()
				for i := range rounds {
					in, _ := b.flows(true, uint16(20000+i))[way].in(payload("open"))
					b.tc(t, b.lan, in.bytes())
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	done.Wait()
	seen, halves := map[uint16]bool{}, b.halves(t)
	for key, conn := range halves {
		if _, whole := halves[reversed(conn.To)]; !whole {
			t.Errorf("half a connection: %+v", key)
		}
		if conn.Opener() {
			if seen[conn.To.Sport] {
				t.Errorf("port %d is two clients'", conn.To.Sport)
			}
			seen[conn.To.Sport] = true
		}
	}
	if len(seen) != 2*rounds {
		t.Errorf("%d connections, want %d", len(seen), 2*rounds)
	}
}

func reversed(t bpf.HairpinTuple) bpf.HairpinTuple {
	t.Src, t.Dst, t.Sport, t.Dport = t.Dst, t.Src, t.Dport, t.Sport
	return t
}

// takeAllPorts makes every port of the router's address a connection's with the flow's server.
func (f flow) takeAllPorts(tb testing.TB) (taken []bpf.HairpinTuple) {
	tb.Helper()
	f.open(tb)
	for _, entry := range f.b.halves(tb) {
		if entry.Opener() {
			continue
		}
		for port := range 1 << 16 {
			entry.Key.Dport = bigEndian(uint16(port))
			if err := maps.UpdateEntry(&f.b.objs, &entry, ebpf.UpdateAny); err != nil {
				tb.Fatalf("take all ports: %v", err)
			}
			taken = append(taken, entry.Key)
		}
	}
	if taken == nil {
		tb.Fatal("no answering direction")
	}
	return taken
}

// TestPortsExhausted is row 79: the next client is refused and told, no port is used twice, the
// connections that are stay, and clients get through again as ports become free.
func TestPortsExhausted(t *testing.T) {
	b := newBenchFor(t, 1<<16, 1<<16, benchForwards...)
	b.settings(t, func(s *bpf.HairpinSettings) { s.IcmpInterval = 0 })
	first, second := b.flows(false, 20001)["hairpin"], b.flows(false, 20002)["server to itself"]
	taken := first.takeAllPorts(t)
	c := &corpus{b: b}
	refused := c.in(second, opener).refused("no_port").told(lanAddress, icmpUnreachable, codeProhibited, 0)
	for _, h := range hooks {
		c.play(t, h, refused)
	}
	first.send(t, true, middle, payload("still here"))
	for i := 0; i < len(taken); i += 2 {
		if taken[i].Dport == bigEndian(20001) {
			continue
		}
		if err := maps.DeleteEntry(&b.objs, taken[i]); err != nil {
			t.Fatal(err)
		}
	}
	if got := second.sourcePort(t, opener); got%2 != 0 || got == 20001 {
		t.Errorf("with the even ports free the client gets %d", got)
	}
	first.send(t, true, middle, payload("still here"))
}

// TestSourceLimit is row 87: a client that has all its connections is refused more, and told; the others
// are not.
func TestSourceLimit(t *testing.T) {
	b := newBench(t, benchForwards...)
	b.settings(t, func(s *bpf.HairpinSettings) { s.IcmpInterval, s.SourceLimit = 0, 3 })
	c := &corpus{b: b, nextPort: 20000}
	for range 3 {
		c.flow("hairpin", true).open(t)
	}
	for _, h := range hooks {
		c.play(t, h, c.in(c.flow("hairpin", true), payload("one more")).refused("source_limit").
			told(lanAddress, icmpUnreachable, codeProhibited, 0))
	}
	c.flow("server to itself", true).open(t)
	c.flow("from the Internet", true).open(t)
}

// BenchmarkPortSearch is row 84: what an opening costs that keeps its port, and one that finds none.
func BenchmarkPortSearch(b *testing.B) {
	for name, exhausted := range map[string]bool{"free": false, "none": true} {
		b.Run(name, func(b *testing.B) {
			bench := newBenchFor(b, 1<<16, 1<<16, benchForwards...)
			if exhausted {
				bench.flows(false, 20001)["hairpin"].takeAllPorts(b)
			}
			in, _ := bench.flows(false, 20002)["server to itself"].in(opener)
			data, x := in.bytes(), &executor{b: bench, context: [2][]byte{make([]byte, 192)}, out: [2][]byte{make([]byte, 2048)}}
			must(bench.router.Do(func() error {
				for b.Loop() {
					if _, err := x.run(0, bench.lan, data); err != nil {
						return err
					}
					if !exhausted {
						bench.forget(b)
					}
				}
				return nil
			}))
		})
	}
}

// TestToldRate: ICMP errors to a side are as many as the interval allows, with a burst of a second's
// worth; each side has its own, and Frag Needed is free (RFC 1812 4.3.2.8).
func TestToldRate(t *testing.T) {
	const rate, openings = 20, 200
	b := newBench(t, benchForwards...)
	b.settings(t, func(s *bpf.HairpinSettings) {
		s.IcmpInterval, s.Told = uint64(time.Second/rate), bpf.HairpinSideSIDE_LAN|bpf.HairpinSideSIDE_WAN
	})
	closed := b.flows(false, 20001)["hairpin"]
	closed.external = netip.AddrPortFrom(wanAddress, 81)
	limited := b.flows(false, 20001)["from the Internet"]
	limited.external, limited.client = netip.AddrPortFrom(wanAddress, 82), netip.AddrPortFrom(farRouter, 20001)
	for _, f := range []flow{closed, limited} {
		in, _ := f.in(opener)
		began, heard := time.Now(), 0
		for range openings {
			if got := b.tc(t, f.at, in.bytes()); told(in.bytes(), got.data) {
				heard++
			}
		}
		most := rate + 1 + int(time.Since(began)*rate/time.Second) + 1
		if heard < rate || heard > most {
			t.Errorf("%s hears of %d refusals, want %d to %d", f.client, heard, rate, most)
		}
	}
	big := b.flows(true, 20009)["hairpin"]
	big.open(t)
	b.setMTU("lan0", 1000)
	b.forget(t)
	in, _ := big.in(long(1200), dontCut)
	for range openings {
		if got := b.tc(t, big.at, in.bytes()); !told(in.bytes(), got.data) {
			t.Fatalf("a packet that is too big: tc answers %d", int32(got.code))
		}
	}
}

// TestToldSides: who is told is a matter of configuration.
func TestToldSides(t *testing.T) {
	b := newBench(t, benchForwards...)
	closed := b.flows(false, 20001)["hairpin"]
	closed.external = netip.AddrPortFrom(wanAddress, 81)
	limited := b.flows(false, 20001)["from the Internet"]
	limited.external, limited.client = netip.AddrPortFrom(wanAddress, 82), netip.AddrPortFrom(farRouter, 20001)
	for _, sides := range []bpf.HairpinSide{0, bpf.HairpinSideSIDE_LAN, bpf.HairpinSideSIDE_WAN} {
		b.settings(t, func(s *bpf.HairpinSettings) { s.IcmpInterval, s.Told = 0, sides })
		for side, f := range map[bpf.HairpinSide]flow{bpf.HairpinSideSIDE_LAN: closed, bpf.HairpinSideSIDE_WAN: limited} {
			in, _ := f.in(opener)
			if got := b.tc(t, f.at, in.bytes()); told(in.bytes(), got.data) != (sides&side != 0) {
				t.Errorf("sides %d are told, but %s: %v", sides, f.client, told(in.bytes(), got.data))
			}
		}
	}
}

// TestFragmentsForgotten: ports are lent for 30 seconds (RFC 791, and Linux), then a later fragment waits.
func TestFragmentsForgotten(t *testing.T) {
	b := newBench(t, benchForwards...)
	c := &corpus{b: b, nextPort: 20000, nextID: 1000}
	d := c.pieces(c.flow("hairpin", true), long(120), 48, 32)
	c.play(t, hooks[0], d.goes(0).opening())
	var key bpf.HairpinFragmentKey
	var value bpf.HairpinFragment
	for entries := b.objs.Fragments.Iterate(); entries.Next(&key, &value); {
		value.Seen -= uint64(31 * time.Second)
		must(b.objs.Fragments.Put(key, value))
	}
	c.play(t, hooks[0], d.waits(1))
}

// TestFirstlessFlood is rows 39 and 89, for the tables: a hundred thousand fragments without a first leave
// datagrams that come in order alone, and whole packets.
func TestFirstlessFlood(t *testing.T) {
	b := newBench(t, benchForwards...)
	x := &executor{b: b, context: [2][]byte{make([]byte, 192)}, out: [2][]byte{make([]byte, 2048)}}
	c := &corpus{b: b, nextPort: 20000, nextID: 1000}
	f := c.flow("from the Internet", true)
	f.open(t)
	flooding, _ := b.flows(true, 30000)["from the Internet"].in(long(120))
	piece := fragments(flooding.bytes(), 48)[1]
	must(b.router.Do(func() error {
		for i := range 100_000 {
			setWord(piece, ipAt+4, uint16(i))
			binary.BigEndian.PutUint32(piece[ipAt+12:], 0x2d000000+uint32(i>>8))
			sealIP(piece)
			if _, err := x.run(0, b.wan, piece); err != nil {
				return err
			}
		}
		return nil
	}))
	f.send(t, true, payload("whole"))
	d := c.pieces(f, long(120), 48, 32)
	for i := range d.in {
		c.play(t, hooks[0], d.goes(i))
	}
}
