// SPDX-License-Identifier: Apache-2.0

package program

import (
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
	"hairpin/maps/mapstest"
	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

// shortLives makes every connection expire after a second.
func (b *bench) shortLives(t *testing.T) {
	t.Helper()
	timeouts := &b.Config.Timeouts
	timeouts.TCPEstablished, timeouts.TCPTransitory = time.Second, time.Second
	timeouts.UDP, timeouts.ICMP = time.Second, time.Second
	b.Apply(t)
	b.StartSweeper(t)
}

// sourcePort is the port that the server sees behind a packet of a flow, which must be sent on.
func sourcePort(f rig.Flow, tb testing.TB, changes ...func(*frames.Frame)) uint16 {
	tb.Helper()
	in, _ := f.In(changes...)
	got := f.Rig.TC(tb, f.At, in.Bytes())
	if got.Code != rig.TCRedirect || told(in.Bytes(), got.Data) {
		tb.Fatalf("tc answers %d to %s > %s: %x", int32(got.Code), in.Src, in.Dst, got.Data)
	}
	return frames.WordAt(got.Data, l4At)
}

// TestHeldTuple: the tuple of a connection that expired is kept from other clients, and free for its
// own (RFC 6888 REQ-8).
func TestHeldTuple(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	b.shortLives(t)
	owner, other := b.Flows(true, 20001)["hairpin"], b.Flows(true, 20001)["server to itself"]
	owner.Open(t)
	for deadline := time.Now().Add(30 * time.Second); len(b.Connections(t)) > 0; {
		if time.Now().After(deadline) {
			t.Fatal("the connection never expires")
		}
		runtime.Gosched()
	}
	if got := sourcePort(other, t, frames.Payload("mine now?")); got == 20001 {
		t.Error("another client has the tuple at once")
	}
	if got := sourcePort(owner, t, frames.Payload("mine again")); got != 20001 {
		t.Errorf("its own client gets port %d", got)
	}
}

// TestPortsTaken is row 83: no client has the port of a socket of the router or of a forward.
func TestPortsTaken(t *testing.T) {
	b := newBench(t, append(rig.Forwards, "own tcp,udp 192.168.1.1:20003 to 192.168.1.20:20003")...)
	for _, udp := range []bool{false, true} {
		b.listen(t, udp, "192.168.1.1:20002")
		for port, keeps := range map[uint16]bool{20001: true, 20002: false, 20003: false} {
			if got := sourcePort(b.Flows(udp, port)["hairpin"], t, opener, frames.Payload("open")); (got == port) != keeps {
				t.Errorf("udp=%v: port %d of the client becomes %d", udp, port, got)
			}
		}
	}
}

// listen opens a socket on the router.
func (b *bench) listen(t *testing.T, udp bool, address string) {
	t.Helper()
	err := b.Router.Do(func() error {
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
	b := newBench(t, rig.Forwards...)
	for _, port := range []uint16{20002, 1000} {
		lowest, highest := 1024, 65536
		if port < 1024 {
			lowest, highest = 1, 1024
		}
		var count [buckets]int
		near, last := 0, 0
		for range draws {
			b.Forget(t)
			b.Flows(true, port)["hairpin"].Send(t, true, frames.Payload("first"))
			got := int(sourcePort(b.Flows(true, port)["server to itself"], t, frames.Payload("second")))
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

// TestPortsAtOnce is row 80: two CPUs choose one port for two clients at the same time. One client gets the port, the other client gets
// another port, and no single entry of a connection is left.
func TestPortsAtOnce(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Fatal("needs two processors")
	}
	const rounds = 1000
	// One client may hold a quarter of the places of half-open connections, when they are scarce.
	b := newBenchFor(t, 1<<16, 1<<16, rig.Forwards...)
	ways := []string{"hairpin", "server to itself"}
	var ready, done sync.WaitGroup
	for cpu, way := range ways {
		ready.Add(1)
		done.Go(func() {
			err := b.Router.Do(func() error {
				var one unix.CPUSet
				one.Set(cpu)
				if err := unix.SchedSetaffinity(0, &one); err != nil {
					return err
				}
				ready.Done()
				ready.Wait()
				for i := range rounds {
					in, _ := b.Flows(true, uint16(20000+i))[way].In(frames.Payload("open"))
					b.TC(t, b.LAN, in.Bytes())
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
		if _, whole := halves[rig.Reversed(conn.To)]; !whole {
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

// takeAllPorts makes every port of the router's address a connection's with the flow's server.
func takeAllPorts(f rig.Flow, tb testing.TB) (taken []bpf.HairpinTuple) {
	tb.Helper()
	f.Open(tb)
	for _, entry := range benchOf(f).halves(tb) {
		if entry.Opener() {
			continue
		}
		for port := range 1 << 16 {
			entry.Key.Dport = bigEndian(uint16(port))
			if err := mapstest.Entries(&f.Rig.Objects).Update(&entry, ebpf.UpdateAny); err != nil {
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

// TestPortsExhausted is row 79: when all ports are taken, the next client is refused and gets an ICMP error, and no port is used twice.
// Existing connections stay, and clients are served again when ports become free.
func TestPortsExhausted(t *testing.T) {
	b := newBenchFor(t, 1<<16, 1<<16, rig.Forwards...)
	b.settings(t, func(s *bpf.HairpinSettings) { s.IcmpInterval = 0 })
	first, second := b.Flows(false, 20001)["hairpin"], b.Flows(false, 20002)["server to itself"]
	taken := takeAllPorts(first, t)
	c := &corpus{b: b}
	refused := c.in(second, opener).refused("no_port").told(rig.LANAddress, icmpUnreachable, codeProhibited, 0)
	for _, h := range hooks {
		c.play(t, h, refused)
	}
	first.Send(t, true, middle, frames.Payload("still here"))
	for i := 0; i < len(taken); i += 2 {
		if taken[i].Dport == bigEndian(20001) {
			continue
		}
		if err := mapstest.Entries(&b.Objects).Delete(taken[i]); err != nil {
			t.Fatal(err)
		}
	}
	if got := sourcePort(second, t, opener); got%2 != 0 || got == 20001 {
		t.Errorf("with the even ports free the client gets %d", got)
	}
	first.Send(t, true, middle, frames.Payload("still here"))
}

// BenchmarkPortSearch is row 84: what an opening costs that keeps its port, and one that finds none.
func BenchmarkPortSearch(b *testing.B) {
	for name, exhausted := range map[string]bool{"free": false, "none": true} {
		b.Run(name, func(b *testing.B) {
			bench := newBenchFor(b, 1<<16, 1<<16, rig.Forwards...)
			if exhausted {
				takeAllPorts(bench.Flows(false, 20001)["hairpin"], b)
			}
			in, _ := bench.Flows(false, 20002)["server to itself"].In(opener)
			data, x := in.Bytes(), &executor{b: bench, context: [2][]byte{make([]byte, 192)}, out: [2][]byte{make([]byte, 2048)}}
			lab.Must(bench.Router.Do(func() error {
				for b.Loop() {
					if _, err := x.run(0, bench.LAN, data); err != nil {
						return err
					}
					if !exhausted {
						bench.Forget(b)
					}
				}
				return nil
			}))
		})
	}
}
