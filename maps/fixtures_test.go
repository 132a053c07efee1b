// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"hairpin/bpf"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
)

// needRoot fails a test that cannot do what it is for.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: sudo make test")
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
}

// smallSpec is the embedded object with tables that are quickly made.
func smallSpec(t testing.TB) *ebpf.CollectionSpec {
	t.Helper()
	spec, err := bpf.LoadHairpin()
	if err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]uint32{
		bpf.HairpinMapConns4:        64,
		bpf.HairpinMapConns6:        64,
		bpf.HairpinMapPlaces4:       uint32(bpf.HairpinPlaceKindPLACES) * smallRing,
		bpf.HairpinMapPlaces6:       uint32(bpf.HairpinPlaceKindPLACES) * smallRing,
		bpf.HairpinMapFragments:     16,
		bpf.HairpinMapHeldFragments: 16,
		bpf.HairpinMapExternals:     16,
		bpf.HairpinMapEpochs:        64,
		bpf.HairpinMapCounters:      64,
	} {
		spec.Maps[name].MaxEntries = size
	}
	spec.Maps[bpf.HairpinMapRings].Contents = smallRings()
	return spec
}

// smallRing is how many places of each kind and family the tests' tables have.
const smallRing = 16

func smallRings() []ebpf.MapKV {
	var rings []ebpf.MapKV
	for index := range uint32(2 * bpf.HairpinPlaceKindPLACES) {
		r := bpf.HairpinRing{Base: index / 2 * smallRing, Size: smallRing, Limit: smallRing}
		rings = append(rings, ebpf.MapKV{Key: index, Value: r})
	}
	return rings
}

// roomySpec has ids for as many forwards and addresses as there may be.
func roomySpec(t testing.TB) *ebpf.CollectionSpec {
	t.Helper()
	spec := smallSpec(t)
	full, err := bpf.Spec()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{bpf.HairpinMapEpochs, bpf.HairpinMapExternals} {
		spec.Maps[name].MaxEntries = full.Maps[name].MaxEntries
	}
	return spec
}

// newMaps makes a datapath's maps, without programs. The test closes them.
func newMaps(t testing.TB, spec *ebpf.CollectionSpec) *bpf.HairpinObjects {
	t.Helper()
	needRoot(t)
	var objs bpf.HairpinObjects
	if err := spec.LoadAndAssign(&objs.HairpinMaps, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { objs.HairpinMaps.Close() })
	return &objs
}

// inner opens a slot of an outer map.
func inner(t testing.TB, outer *ebpf.Map, slot uint32) *ebpf.Map {
	t.Helper()
	var m *ebpf.Map
	if err := outer.Lookup(slot, &m); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// routeOf finds a forward in the kernel's maps as the datapath does, and whether
// the connections it makes live.
func routeOf(tb testing.TB, objs *bpf.HairpinObjects, addr string, protocol Protocol, port uint16) (f bpf.HairpinForward, found, lives bool) {
	tb.Helper()
	var external bpf.HairpinExternal
	at := netip.MustParseAddr(addr)
	if err := objs.Externals.Lookup(toAddr(at), &external); err != nil {
		return f, false, false
	}
	var live bpf.HairpinLive
	if err := objs.Live.Lookup(uint32(0), &live); err != nil {
		tb.Fatal(err)
	}
	trie := inner(tb, objs.Forwards, live.Generation&1)
	for _, id := range []uint32{external.Fixed, external.Group} {
		if id == 0 || trie.Lookup(forwardKey(id, protocol.number(at.Is6()), port, 16), &f) != nil {
			continue
		}
		return f, true, isCurrent(tb, objs, f.Stamp) && isCurrent(tb, objs, external.Address)
	}
	return f, false, false
}

// isCurrent reports whether connections with this epoch live.
func isCurrent(tb testing.TB, objs *bpf.HairpinObjects, s bpf.HairpinStamp) bool {
	tb.Helper()
	var epoch uint32
	if err := objs.Epochs.Lookup(s.Id, &epoch); err != nil {
		tb.Fatal(err)
	}
	return epoch == s.Epoch
}

func wan(name string, index int, addrs ...string) Interface {
	link := Interface{Name: name, Index: index, Role: RoleWAN}
	for _, addr := range addrs {
		link.Addresses = append(link.Addresses, netip.MustParsePrefix(addr))
	}
	return link
}

// writeStats sets every CPU's counters of a forward, which must have some.
func writeStats(tb testing.TB, objs *bpf.HairpinObjects, id uint32, cpus []bpf.HairpinForwardStats) {
	tb.Helper()
	size := inner(tb, objs.ForwardStats, 0).MaxEntries()
	if err := inner(tb, objs.ForwardStats, id/size).Put(id%size, cpus); err != nil {
		tb.Fatal(err)
	}
}

// putEvents writes the datapath's counts, on different CPUs for what begins a
// connection and what ends it.
func putEvents(tb testing.TB, objs *bpf.HairpinObjects, opened, established, abandoned, evicted, closed uint64) {
	tb.Helper()
	for event, count := range []uint64{opened, established, abandoned, evicted, closed} {
		cpus := make([]uint64, ebpf.MustPossibleCPU())
		cpus[event/2%len(cpus)] = count
		if err := objs.ConnEvents.Put(uint32(event), cpus); err != nil {
			tb.Fatal(err)
		}
	}
}

// putForwardStats writes counters of a forward, those of endings on another CPU.
func putForwardStats(tb testing.TB, objs *bpf.HairpinObjects, id uint32, sum bpf.HairpinForwardStats) {
	tb.Helper()
	cpus := make([]bpf.HairpinForwardStats, ebpf.MustPossibleCPU())
	last := len(cpus) - 1
	cpus[0].Traffic, cpus[0].Established = sum.Traffic, sum.Established
	cpus[last].Closed = sum.Closed
	writeStats(tb, objs, id, cpus)
}

func putCounter(tb testing.TB, objs *bpf.HairpinObjects, index uint32, verdict bpf.HairpinVerdict, reason bpf.HairpinReason, packets uint64) {
	tb.Helper()
	cpus := make([]uint64, ebpf.MustPossibleCPU())
	cpus[0] = packets - 1
	cpus[len(cpus)-1]++
	key := bpf.HairpinCounterKey{Ifindex: index, Verdict: verdict, Reason: reason}
	if err := objs.Counters.Put(key, cpus); err != nil {
		tb.Fatal(err)
	}
}

// withoutConnections are the same maps without those of connections.
func withoutConnections(tb testing.TB, objs *bpf.HairpinObjects) *bpf.HairpinObjects {
	tb.Helper()
	broken := *objs
	conns, err := objs.Conns4.Clone()
	if err != nil {
		tb.Fatal(err)
	}
	conns.Close()
	broken.Conns4 = conns
	return &broken
}

// flow is a connection as the datapath would enter it.
type flow struct {
	protocol                         Protocol
	client, external, source, target string
	forward, address                 bpf.HairpinStamp
	path                             bpf.HairpinConnPath
	half                             bool
	idle                             time.Duration
	opener, answer                   func(*Entry) // what else to set
}

func endpoint(text string) (bpf.HairpinAddr, uint16) {
	ap := netip.MustParseAddrPort(text)
	return toAddr(ap.Addr()), be16(ap.Port())
}

func tuple(protocol Protocol, from, to string) bpf.HairpinTuple {
	key := bpf.HairpinTuple{Protocol: uint8(protocol)}
	key.Src, key.Sport = endpoint(from)
	key.Dst, key.Dport = endpoint(to)
	return key
}

// age is that of the tests' connections. All times are short: the datapath's clock begins when the machine
// boots, and that may be just before the tests.
const age = 5 * time.Second

// serials gives each of the tests' connections its own.
var serials atomic.Uint32

// pair gives both entries, the opener's first.
func (f flow) pair() [2]Entry {
	now := monotonic()
	keys := [2]bpf.HairpinTuple{tuple(f.protocol, f.client, f.external), tuple(f.protocol, f.target, f.source)}
	entries := [2]Entry{
		{Flags: bpf.HairpinConnFlagCONN_OPENER, Packets: 10, Bytes: 1000},
		{Packets: 7, Bytes: 5000},
	}
	serial := serials.Add(1)
	for i := range entries {
		e := &entries[i]
		e.Key, e.To, e.Serial, e.Path = keys[i], reversed(keys[1-i]), serial, f.path
		e.State = bpf.HairpinConnStateCONN_ESTABLISHED
		if f.half {
			e.State = bpf.HairpinConnStateCONN_HALF_OPEN
		}
		e.Forward, e.Address, e.Epochs = f.forward.Id, f.address.Id, f.forward.Epoch+f.address.Epoch
		e.Seen = uint32((now - uint64(f.idle)) / millisecond)
		e.Created = uint32((now - uint64(age)) / uint64(time.Second))
	}
	for i, set := range []func(*Entry){f.opener, f.answer} {
		if set != nil {
			set(&entries[i])
		}
	}
	return entries
}

// openFlows enters connections as the datapath does.
func openFlows(tb testing.TB, objs *bpf.HairpinObjects, flows ...flow) {
	tb.Helper()
	for _, f := range flows {
		for _, e := range f.pair() {
			if err := putEntry(objs, &e); err != nil {
				tb.Fatal(err)
			}
		}
	}
}

// putEntry writes an entry that is not there yet.
func putEntry(objs *bpf.HairpinObjects, e *Entry) error {
	if isV4(e.Key) {
		return objs.Conns4.Update(shortKey(e.Key), e.value4(), ebpf.UpdateNoExist)
	}
	return objs.Conns6.Update(e.Key, e.value6(), ebpf.UpdateNoExist)
}

// stampsOf reads what the datapath would stamp connections to an address with.
func stampsOf(tb testing.TB, objs *bpf.HairpinObjects, addr string, port uint16) (forward, address bpf.HairpinStamp) {
	tb.Helper()
	f, found, lives := routeOf(tb, objs, addr, TCP, port)
	if !found || !lives {
		tb.Fatalf("no forward for %s:%d", addr, port)
	}
	var external bpf.HairpinExternal
	if err := objs.Externals.Lookup(toAddr(netip.MustParseAddr(addr)), &external); err != nil {
		tb.Fatal(err)
	}
	return f.Stamp, external.Address
}

// writer is what a test has to write a configuration with.
type writer interface {
	Apply(Config) (Change, error)
	SetInterfaces([]Interface) error
}

// connect makes two forwards and one flow of every kind, and returns those that live.
func connect(t testing.TB, tables writer, objs *bpf.HairpinObjects) []flow {
	t.Helper()
	c := configWith(t, "web tcp,udp 443 to 192.168.1.20:8443", "ssh tcp 22 to 192.168.1.30")
	c.Timeouts.TCPOpening = 10 * time.Second
	if _, err := tables.Apply(c); err != nil {
		t.Fatal(err)
	}
	if err := tables.SetInterfaces([]Interface{wan("wan0", 2, "203.0.113.1/24")}); err != nil {
		t.Fatal(err)
	}
	web, address := stampsOf(t, objs, "203.0.113.1", 443)
	ssh, _ := stampsOf(t, objs, "203.0.113.1", 22)
	old := bpf.HairpinStamp{Id: web.Id, Epoch: web.Epoch - 1}
	fin := func(e *Entry) { e.Flags |= bpf.HairpinConnFlagCONN_FIN }
	in := func(state bpf.HairpinConnState) func(*flow) {
		set := func(e *Entry) { e.State = state }
		return func(f *flow) { f.opener, f.answer = set, set }
	}
	const external, target = "203.0.113.1:443", "192.168.1.20:8443"
	base := flow{protocol: TCP, external: external, target: target, forward: web, address: address}
	from := func(client, source string, change func(*flow)) flow {
		f := base
		f.client, f.source = client, source
		if change != nil {
			change(&f)
		}
		return f
	}
	flows := []flow{
		from("198.51.100.9:5000", "198.51.100.9:5000", func(f *flow) { f.idle = 11 * time.Second }),
		from("192.168.1.50:5000", "192.168.1.1:5001", func(f *flow) { f.path = bpf.HairpinConnPathPATH_HAIRPIN }),
		from("198.51.100.9:5001", "198.51.100.9:5001", func(f *flow) { f.half = true }),
		from("198.51.100.9:5002", "198.51.100.9:5002", in(bpf.HairpinConnStateCONN_CLOSING)),
		// The opener's entry decides; the other copies it a moment later.
		from("198.51.100.9:5003", "198.51.100.9:5003", func(f *flow) {
			f.opener = func(e *Entry) { e.State = bpf.HairpinConnStateCONN_CLOSING }
		}),
		from("198.51.100.9:5004", "198.51.100.9:5004", func(f *flow) { f.answer = fin }),
		from("198.51.100.9:5005", "198.51.100.9:5005", func(f *flow) { f.opener = fin }),
		from("198.51.100.9:5000", "198.51.100.9:5000", func(f *flow) { f.protocol = UDP }),
		from("198.51.100.9:5000", "198.51.100.9:5000", func(f *flow) {
			f.external, f.target, f.forward = "203.0.113.1:22", "192.168.1.30:22", ssh
		}),
		// None of these is there for anybody.
		from("198.51.100.9:6000", "198.51.100.9:6000", func(f *flow) { f.forward = old }),
		from("198.51.100.9:6001", "198.51.100.9:6001", func(f *flow) { f.address.Epoch++ }),
		from("198.51.100.9:6002", "198.51.100.9:6002", func(f *flow) { f.half, f.idle = true, 11*time.Second }),
		from("198.51.100.9:6003", "198.51.100.9:6003", func(f *flow) { f.half, f.forward = true, old }),
		from("198.51.100.9:6004", "198.51.100.9:6004", func(f *flow) { f.forward.Id = idMask }),
		from("198.51.100.9:6005", "198.51.100.9:6005", in(bpf.HairpinConnStateCONN_ENDED)),
		from("198.51.100.9:6006", "198.51.100.9:6006", in(bpf.HairpinConnStateCONN_GONE)),
	}
	openFlows(t, objs, flows...)
	return flows[:9]
}

// fillStats writes the same counters for every id that has some, on every CPU.
func fillStats(tb testing.TB, objs *bpf.HairpinObjects, counters bpf.HairpinForwardStats) {
	tb.Helper()
	cpus := slices.Repeat([]bpf.HairpinForwardStats{counters}, ebpf.MustPossibleCPU())
	var number uint32
	var page *ebpf.Map
	pages := objs.ForwardStats.Iterate()
	for pages.Next(&number, &page) {
		places, values := make([]uint32, page.MaxEntries()), slices.Repeat(cpus, int(page.MaxEntries()))
		for i := range places {
			places[i] = uint32(i)
		}
		_, err := page.BatchUpdate(places, values, nil)
		page.Close()
		if err != nil {
			tb.Fatal(err)
		}
		page = nil
	}
	if err := pages.Err(); err != nil {
		tb.Fatal(err)
	}
}
