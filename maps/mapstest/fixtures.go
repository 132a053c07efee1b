// SPDX-License-Identifier: Apache-2.0

package mapstest

import (
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"

	"hairpin/bpf"
	"hairpin/maps/config"
	"hairpin/maps/entries"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
)

// NeedRoot fails the test if it does not run as root. It also lifts the limit of locked memory, which old kernels apply to
// maps.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: sudo make test")
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
}

// SmallSpec returns the embedded object with small tables, which are created quickly.
func SmallSpec(t testing.TB) *ebpf.CollectionSpec {
	t.Helper()
	spec, err := bpf.LoadHairpin()
	if err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]uint32{
		bpf.HairpinMapConns4:        61,
		bpf.HairpinMapConns6:        61,
		bpf.HairpinMapPlaces:        2 * uint32(bpf.HairpinPlaceKindPLACES) * smallRing,
		bpf.HairpinMapFragments:     16,
		bpf.HairpinMapHeldFragments: 16,
		bpf.HairpinMapExternals:     16,
		bpf.HairpinMapEpochs:        64,
		bpf.HairpinMapCounters:      64,
	} {
		spec.Maps[name].MaxEntries = size
	}
	spec.Maps[bpf.HairpinMapRings].Contents = smallRings()
	Sized(spec)
	return spec
}

// smallRing is the number of places of each kind and family in SmallSpec.
const smallRing = 16

func smallRings() []ebpf.MapKV {
	var rings []ebpf.MapKV
	for index := range uint32(2 * bpf.HairpinPlaceKindPLACES) {
		r := bpf.HairpinRing{Base: index * smallRing, Size: smallRing, Limit: smallRing}
		rings = append(rings, ebpf.MapKV{Key: index, Value: r})
	}
	return rings
}

// RoomySpec is SmallSpec with ids for the largest possible number of forwards and addresses.
func RoomySpec(t testing.TB) *ebpf.CollectionSpec {
	t.Helper()
	spec := SmallSpec(t)
	full, err := bpf.Spec()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{bpf.HairpinMapEpochs, bpf.HairpinMapExternals} {
		spec.Maps[name].MaxEntries = full.Maps[name].MaxEntries
	}
	return spec
}

// Sized tells the datapath the sizes of the tables of entries.
func Sized(spec *ebpf.CollectionSpec) {
	table := bpf.HairpinTable{Random: [10]uint64{3, 5, 7, 11, 13, 17, 19, 23, 29, 31}, Buckets: [2]uint32{spec.Maps[bpf.HairpinMapConns4].MaxEntries, spec.Maps[bpf.HairpinMapConns6].MaxEntries}}
	spec.Maps[bpf.HairpinMapTables].Contents = []ebpf.MapKV{{Key: uint32(0), Value: table}}
}

// NewMaps creates the datapath's maps, without programs. They are closed when the test ends.
func NewMaps(t testing.TB, spec *ebpf.CollectionSpec) *bpf.HairpinObjects {
	t.Helper()
	NeedRoot(t)
	Sized(spec)
	var objs bpf.HairpinObjects
	if err := spec.LoadAndAssign(&objs.HairpinMaps, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { objs.HairpinMaps.Close() })
	return &objs
}

// Slot opens the inner map in a slot of an outer map.
func Slot(t testing.TB, outer *ebpf.Map, slot uint32) *ebpf.Map {
	t.Helper()
	var m *ebpf.Map
	if err := outer.Lookup(slot, &m); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// Route looks up the forward of an external address and port in the maps as the datapath does. lives says whether the
// epoch references of the forward and the address are current, so that new connections would be live.
func Route(tb testing.TB, objs *bpf.HairpinObjects, addr string, protocol rule.Protocol, port uint16) (f bpf.HairpinForward, found, lives bool) {
	tb.Helper()
	var external bpf.HairpinExternal
	at := netip.MustParseAddr(addr)
	if err := objs.Externals.Lookup(layout.ToAddr(at), &external); err != nil {
		return f, false, false
	}
	var live bpf.HairpinLive
	if err := objs.Live.Lookup(uint32(0), &live); err != nil {
		tb.Fatal(err)
	}
	trie := Slot(tb, objs.Forwards, live.Generation&1)
	for _, id := range []uint32{external.Fixed, external.Group} {
		if id == 0 || trie.Lookup(layout.ForwardKey(id, protocol.Number(at.Is6()), port, 16), &f) != nil {
			continue
		}
		if !MayForward(tb, objs, protocol, port) {
			tb.Errorf("map maybe_ports says that no forward has port %d of %s", port, protocol)
		}
		return f, true, IsCurrent(tb, objs, f.EpochRef) && IsCurrent(tb, objs, external.Address)
	}
	return f, false, false
}

// MayForward reports whether map maybe_ports has this port.
func MayForward(tb testing.TB, objs *bpf.HairpinObjects, protocol rule.Protocol, port uint16) bool {
	tb.Helper()
	place := uint32(port / 64)
	switch protocol {
	case rule.UDP:
		place += 1024
	case rule.TCP:
	default:
		return true
	}
	var ports bpf.HairpinPortBits
	if err := objs.MaybePorts.Lookup(place, &ports); err != nil {
		tb.Fatal(err)
	}
	return ports.Bits>>(port%64)&1 == 1
}

// IsCurrent reports whether connections with this epoch reference are live.
func IsCurrent(tb testing.TB, objs *bpf.HairpinObjects, s bpf.HairpinEpochRef) bool {
	tb.Helper()
	var epoch uint32
	if err := objs.Epochs.Lookup(s.Id, &epoch); err != nil {
		tb.Fatal(err)
	}
	return epoch == s.Epoch
}

// WAN returns a WAN interface with addresses such as "203.0.113.1/24".
func WAN(name string, index int, addrs ...string) config.Interface {
	link := config.Interface{Name: name, Index: index, Role: config.RoleWAN}
	for _, addr := range addrs {
		link.Addresses = append(link.Addresses, netip.MustParsePrefix(addr))
	}
	return link
}

// WriteStats sets the counters of a forward for every CPU. The page of the forward must exist.
func WriteStats(tb testing.TB, objs *bpf.HairpinObjects, id uint32, cpus []bpf.HairpinForwardStats) {
	tb.Helper()
	size := Slot(tb, objs.ForwardStats, 0).MaxEntries()
	if err := Slot(tb, objs.ForwardStats, id/size).Put(id%size, cpus); err != nil {
		tb.Fatal(err)
	}
}

// PutEvents sets the counters of events. Events at the begin and at the end of a connection are on different CPUs.
func PutEvents(tb testing.TB, objs *bpf.HairpinObjects, opened, established, abandoned, evicted, closed uint64) {
	tb.Helper()
	for event, count := range []uint64{opened, established, abandoned, evicted, closed} {
		cpus := make([]uint64, ebpf.MustPossibleCPU())
		cpus[event/2%len(cpus)] = count
		if err := objs.ConnEvents.Put(uint32(event), cpus); err != nil {
			tb.Fatal(err)
		}
	}
}

// PutForwardStats sets the counters of a forward. Closed connections are counted on another CPU than the rest.
func PutForwardStats(tb testing.TB, objs *bpf.HairpinObjects, id uint32, sum bpf.HairpinForwardStats) {
	tb.Helper()
	cpus := make([]bpf.HairpinForwardStats, ebpf.MustPossibleCPU())
	last := len(cpus) - 1
	cpus[0].Traffic, cpus[0].Established, cpus[0].Hit = sum.Traffic, sum.Established, sum.Hit/2
	cpus[last].Closed, cpus[last].Refused, cpus[last].Hit = sum.Closed, sum.Refused, sum.Hit
	WriteStats(tb, objs, id, cpus)
}

// PutCounter sets the counter of an interface, verdict and reason, split over two CPUs.
func PutCounter(tb testing.TB, objs *bpf.HairpinObjects, index uint32, verdict bpf.HairpinVerdict, reason bpf.HairpinReason, packets uint64) {
	tb.Helper()
	cpus := make([]uint64, ebpf.MustPossibleCPU())
	cpus[0] = packets - 1
	cpus[len(cpus)-1]++
	key := bpf.HairpinCounterKey{Ifindex: index, Verdict: verdict, Reason: reason}
	if err := objs.Counters.Put(key, cpus); err != nil {
		tb.Fatal(err)
	}
}

// WithoutConnections returns a copy of objs in which map conns4 is closed, so that every walk of connections fails.
func WithoutConnections(tb testing.TB, objs *bpf.HairpinObjects) *bpf.HairpinObjects {
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

// Flow describes a connection. Pair makes the entries that the datapath would write for it.
type Flow struct {
	Protocol                         rule.Protocol
	Client, External, Source, Target string
	Forward, Address                 bpf.HairpinEpochRef
	Path                             bpf.HairpinConnPath
	HalfOpen                         bool
	Idle                             time.Duration
	Opener, answer                   func(*layout.Entry) // set more fields of the two entries; may be nil
}

func endpoint(text string) (bpf.HairpinAddr, uint16) {
	ap := netip.MustParseAddrPort(text)
	return layout.ToAddr(ap.Addr()), layout.Be16(ap.Port())
}

// Tuple returns the key of packets from one address and port to another.
func Tuple(protocol rule.Protocol, from, to string) bpf.HairpinTuple {
	key := bpf.HairpinTuple{Protocol: uint8(protocol)}
	key.Src, key.Sport = endpoint(from)
	key.Dst, key.Dport = endpoint(to)
	return key
}

// age is the age of the tests' connections. It must be short: CLOCK_MONOTONIC starts at 0 when the machine boots, and a
// test machine may have booted just before the tests.
const age = 5 * time.Second

// serials counts the serials of the tests' connections.
var serials atomic.Uint32

// Pair returns both entries of the connection, the opener's entry first.
func (f Flow) Pair() [2]layout.Entry {
	now := layout.Monotonic()
	keys := [2]bpf.HairpinTuple{Tuple(f.Protocol, f.Client, f.External), Tuple(f.Protocol, f.Target, f.Source)}
	entries := [2]layout.Entry{
		{Flags: bpf.HairpinConnFlagCONN_OPENER, Packets: 10, Bytes: 1000},
		{Packets: 7, Bytes: 5000},
	}
	serial := serials.Add(1)
	for i := range entries {
		e := &entries[i]
		e.Key, e.To, e.Serial, e.Path = keys[i], layout.Reversed(keys[1-i]), serial, f.Path
		e.State = bpf.HairpinConnStateCONN_ESTABLISHED
		if f.HalfOpen {
			e.State = bpf.HairpinConnStateCONN_HALF_OPEN
		}
		e.Forward, e.Address, e.Epochs = f.Forward.Id, f.Address.Id, f.Forward.Epoch+f.Address.Epoch
		e.Seen = uint32((now - uint64(f.Idle)) / layout.Millisecond)
		e.Created = uint32((now - uint64(age)) / uint64(time.Second))
	}
	for i, set := range []func(*layout.Entry){f.Opener, f.answer} {
		if set != nil {
			set(&entries[i])
		}
	}
	return entries
}

// Entries opens the tables of entries. It panics if the maps are closed.
func Entries(objs *bpf.HairpinObjects) *entries.Table {
	table, err := entries.Open(objs)
	if err != nil {
		panic(err)
	}
	return table
}

// Open writes the entries of connections into the maps.
func Open(tb testing.TB, objs *bpf.HairpinObjects, flows ...Flow) {
	tb.Helper()
	table := Entries(objs)
	for _, f := range flows {
		for _, e := range f.Pair() {
			if err := table.Update(&e, ebpf.UpdateNoExist); err != nil {
				tb.Fatal(err)
			}
		}
	}
}

// EpochRefs returns the epoch references of a TCP forward and of its external address.
func EpochRefs(tb testing.TB, objs *bpf.HairpinObjects, addr string, port uint16) (forward, address bpf.HairpinEpochRef) {
	tb.Helper()
	f, found, lives := Route(tb, objs, addr, rule.TCP, port)
	if !found || !lives {
		tb.Fatalf("no forward for %s:%d", addr, port)
	}
	var external bpf.HairpinExternal
	if err := objs.Externals.Lookup(layout.ToAddr(netip.MustParseAddr(addr)), &external); err != nil {
		tb.Fatal(err)
	}
	return f.EpochRef, external.Address
}

// writer is the part of maps.Tables that Connect needs. This package must not import package maps, whose tests import it.
type writer interface {
	Apply(config.Config) (config.Change, error)
	SetInterfaces([]config.Interface) error
}

// Connect applies two forwards and adds one connection of every kind. It returns the live connections.
func Connect(t testing.TB, tables writer, objs *bpf.HairpinObjects) []Flow {
	t.Helper()
	c := Config(t, "web tcp,udp 443 to 192.168.1.20:8443", "ssh tcp 22 to 192.168.1.30")
	c.Timeouts.TCPOpening = 10 * time.Second
	if _, err := tables.Apply(c); err != nil {
		t.Fatal(err)
	}
	if err := tables.SetInterfaces([]config.Interface{WAN("wan0", 2, "203.0.113.1/24")}); err != nil {
		t.Fatal(err)
	}
	web, address := EpochRefs(t, objs, "203.0.113.1", 443)
	ssh, _ := EpochRefs(t, objs, "203.0.113.1", 22)
	old := bpf.HairpinEpochRef{Id: web.Id, Epoch: web.Epoch - 1}
	fin := func(e *layout.Entry) { e.Flags |= bpf.HairpinConnFlagCONN_FIN }
	in := func(state bpf.HairpinConnState) func(*Flow) {
		set := func(e *layout.Entry) { e.State = state }
		return func(f *Flow) { f.Opener, f.answer = set, set }
	}
	const external, target = "203.0.113.1:443", "192.168.1.20:8443"
	base := Flow{Protocol: rule.TCP, External: external, Target: target, Forward: web, Address: address}
	from := func(client, source string, change func(*Flow)) Flow {
		f := base
		f.Client, f.Source = client, source
		if change != nil {
			change(&f)
		}
		return f
	}
	flows := []Flow{
		from("198.51.100.9:5000", "198.51.100.9:5000", func(f *Flow) { f.Idle = 11 * time.Second }),
		from("192.168.1.50:5000", "192.168.1.1:5001", func(f *Flow) { f.Path = bpf.HairpinConnPathPATH_HAIRPIN }),
		from("198.51.100.9:5001", "198.51.100.9:5001", func(f *Flow) { f.HalfOpen = true }),
		from("198.51.100.9:5002", "198.51.100.9:5002", in(bpf.HairpinConnStateCONN_CLOSING)),
		// Only the opener's entry is closing: its state is decisive, and the other entry copies it later.
		from("198.51.100.9:5003", "198.51.100.9:5003", func(f *Flow) {
			f.Opener = func(e *layout.Entry) { e.State = bpf.HairpinConnStateCONN_CLOSING }
		}),
		from("198.51.100.9:5004", "198.51.100.9:5004", func(f *Flow) { f.answer = fin }),
		from("198.51.100.9:5005", "198.51.100.9:5005", func(f *Flow) { f.Opener = fin }),
		from("198.51.100.9:5000", "198.51.100.9:5000", func(f *Flow) { f.Protocol = rule.UDP }),
		from("198.51.100.9:5000", "198.51.100.9:5000", func(f *Flow) {
			f.External, f.Target, f.Forward = "203.0.113.1:22", "192.168.1.30:22", ssh
		}),
		// The connections from here on are not live.
		from("198.51.100.9:6000", "198.51.100.9:6000", func(f *Flow) { f.Forward = old }),
		from("198.51.100.9:6001", "198.51.100.9:6001", func(f *Flow) { f.Address.Epoch++ }),
		from("198.51.100.9:6002", "198.51.100.9:6002", func(f *Flow) { f.HalfOpen, f.Idle = true, 11*time.Second }),
		from("198.51.100.9:6003", "198.51.100.9:6003", func(f *Flow) { f.HalfOpen, f.Forward = true, old }),
		from("198.51.100.9:6004", "198.51.100.9:6004", func(f *Flow) { f.Forward.Id = layout.IDMask }),
		from("198.51.100.9:6005", "198.51.100.9:6005", in(bpf.HairpinConnStateCONN_ENDED)),
		from("198.51.100.9:6006", "198.51.100.9:6006", in(bpf.HairpinConnStateCONN_GONE)),
	}
	Open(t, objs, flows...)
	return flows[:9]
}

// FillStats sets equal counters for every id of every existing page, on every CPU.
func FillStats(tb testing.TB, objs *bpf.HairpinObjects, counters bpf.HairpinForwardStats) {
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
