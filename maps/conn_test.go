// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
)

// flow is a connection as the datapath would enter it.
type flow struct {
	protocol                         Protocol
	client, external, source, target string
	forward, address                 bpf.HairpinEpochRef
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
		e.Created = uint32((now - uint64(age)) / second)
	}
	for i, set := range []func(*Entry){f.opener, f.answer} {
		if set != nil {
			set(&entries[i])
		}
	}
	return entries
}

func (t *Tables) open(tb testing.TB, flows ...flow) {
	tb.Helper()
	for _, f := range flows {
		for _, e := range f.pair() {
			if err := UpdateEntry(t.objs, &e, ebpf.UpdateNoExist); err != nil {
				tb.Fatal(err)
			}
		}
	}
}

// epochRefs reads the epoch references that the datapath gives to connections to an address.
func (t *Tables) epochRefs(tb testing.TB, addr string, port uint16) (forward, address bpf.HairpinEpochRef) {
	tb.Helper()
	f, found, lives := t.route(tb, addr, TCP, port)
	if !found || !lives {
		tb.Fatalf("no forward for %s:%d", addr, port)
	}
	var external bpf.HairpinExternal
	if err := t.objs.Externals.Lookup(toAddr(netip.MustParseAddr(addr)), &external); err != nil {
		tb.Fatal(err)
	}
	return f.EpochRef, external.Address
}

// connected has two forwards and one flow of every kind, live and not.
func connected(t testing.TB) (*Tables, []flow) {
	tables := newTables(t, smallSpec(t))
	c := configWith(t, "web tcp,udp 443 to 192.168.1.20:8443", "ssh tcp 22 to 192.168.1.30")
	c.Timeouts.TCPOpening = 10 * time.Second
	mustApply(t, tables, c)
	mustSetInterfaces(t, tables, wan("wan0", 2, "203.0.113.1/24"))
	web, address := tables.epochRefs(t, "203.0.113.1", 443)
	ssh, _ := tables.epochRefs(t, "203.0.113.1", 22)
	old := bpf.HairpinEpochRef{Id: web.Id, Epoch: web.Epoch - 1}
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
	tables.open(t, flows...)
	return tables, flows[:9]
}

// list gives the connections that sel picks, sorted.
func (t *Tables) list(sel Selector) ([]Connection, error) {
	var list []Connection
	err := t.EachConnection(sel, func(c *Connection) { list = append(list, *c) })
	slices.SortFunc(list, func(a, b Connection) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), a.External.Compare(b.External), a.Client.Compare(b.Client))
	})
	return list, err
}

func TestConnections(t *testing.T) {
	tables, flows := connected(t)
	states := []string{"established", "established", "half-open", "closing", "closing", "established", "established", "established", "established"}
	want := map[string]string{}
	for i, f := range flows {
		want[fmt.Sprintln(f.protocol, f.client, f.external)] = states[i]
	}
	list, err := tables.list(Selector{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, c := range list {
		got[fmt.Sprintln(c.Protocol, c.Client, c.External)] = c.State
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if len(list) != len(flows) {
		t.Errorf("%d rows for %d connections", len(list), len(flows))
	}
	again, err := tables.again().list(Selector{Path: "hairpin"})
	if err != nil || len(again) != 1 {
		t.Fatalf("%d connections, %v", len(again), err)
	}
	text, err := json.Marshal(again[0])
	if err != nil {
		t.Fatal(err)
	}
	const wantText = `{"protocol":"tcp","path":"hairpin","forward":"web","state":"established",` +
		`"client":"192.168.1.50:5000","external":"203.0.113.1:443","source":"192.168.1.1:5001","target":"192.168.1.20:8443",` +
		`"age_seconds":5,"idle_seconds":0,"packets":17,"bytes":6000}`
	if string(text) != wantText {
		t.Errorf("got  %s\nwant %s", text, wantText)
	}
}

func TestSelectorsPick(t *testing.T) {
	tables, _ := connected(t)
	for line, want := range map[string]int{
		"":                               9,
		"forward ssh":                    1,
		"forward none":                   0,
		"proto udp":                      1,
		"src 192.168.1.0/24":             1,
		"src 198.51.100.9":               8,
		"dst 203.0.113.1":                9,
		"dst 192.168.1.30":               1,
		"port 443":                       8,
		"port 8443":                      8,
		"port 22":                        1,
		"port 5000":                      0,
		"path local":                     0,
		"path wan proto tcp forward web": 6,
	} {
		sel, err := ParseSelector(strings.Fields(line))
		if err != nil {
			t.Fatal(err)
		}
		count, err := tables.CountConnections(sel)
		if err != nil || count.Total != want {
			t.Errorf("%q counts %d, want %d (%v)", line, count.Total, want, err)
		}
		if list, err := tables.list(sel); err != nil || len(list) != want {
			t.Errorf("%q lists %d, want %d (%v)", line, len(list), want, err)
		}
	}
}

func TestCountConnections(t *testing.T) {
	tables, _ := connected(t)
	got, err := tables.CountConnections(Selector{})
	want := Count{Total: 9, HalfOpen: 1, Established: 6, Closing: 2, Forwards: map[string]int{"web": 8, "ssh": 1}}
	if diff := gocmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
	mustApply(t, tables, configWith(t, "ssh tcp 22 to 192.168.1.30"))
	if got, err := tables.CountConnections(Selector{}); err != nil || got.Total != 1 {
		t.Errorf("after web was removed: %+v, %v", got, err)
	}
	mustSetInterfaces(t, tables)
	if got, err := tables.CountConnections(Selector{}); err != nil || got.Total != 0 {
		t.Errorf("after the address went: %+v, %v", got, err)
	}
}

// TestHalfOpenOnesWaitAsLongAsTheirProtocol says, no longer.
func TestHalfOpenOnesWaitAsLongAsTheirProtocol(t *testing.T) {
	tables := newTables(t, smallSpec(t))
	c := configWith(t, "web tcp,udp,sctp 443 to 192.168.1.20", "tunnel gre,icmp any to 192.168.1.20")
	c.Timeouts.TCPOpening, c.Timeouts.UDP, c.Timeouts.ICMP = 5*time.Second, 10*time.Second, 15*time.Second
	mustApply(t, tables, c)
	mustSetInterfaces(t, tables, wan("wan0", 2, "203.0.113.1/24"))
	web, address := tables.epochRefs(t, "203.0.113.1", 443)
	patience := map[Protocol]time.Duration{
		TCP: 5 * time.Second, UDP: 10 * time.Second, SCTP: 10 * time.Second, GRE: 10 * time.Second, ICMP: 15 * time.Second,
	}
	want := map[string]bool{}
	for protocol, patience := range patience {
		for i, idle := range []time.Duration{patience - 4*time.Second, patience + time.Second} {
			client := fmt.Sprintf("198.51.100.%d:5000", i+1)
			tables.open(t, flow{
				protocol: protocol, client: client, external: "203.0.113.1:443", source: client, target: "192.168.1.20:443",
				forward: web, address: address, half: true, idle: idle,
			})
		}
		want[protocol.String()+" 198.51.100.1:5000"] = true
	}
	list, err := tables.list(Selector{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, conn := range list {
		got[conn.Protocol.String()+" "+conn.Client.String()] = true
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestConnectionsWithoutPorts have an identifier where there is one, else 0.
func TestConnectionsWithoutPorts(t *testing.T) {
	tables := newTables(t, smallSpec(t))
	mustApply(t, tables, configWith(t, "web tcp 443 to 192.168.1.20", "all any any to 192.168.1.20"))
	mustSetInterfaces(t, tables, wan("wan0", 2, "203.0.113.1/24"))
	_, address := tables.epochRefs(t, "203.0.113.1", 443)
	all, _, _ := tables.route(t, "203.0.113.1", GRE, 0)
	base := flow{external: "203.0.113.1:0", target: "192.168.1.20:0", forward: all.EpochRef, address: address}
	ping, tunnel := base, base
	ping.protocol, ping.client, ping.source = ICMP, "198.51.100.9:77", "198.51.100.9:78"
	tunnel.protocol, tunnel.client, tunnel.source = GRE, "198.51.100.9:0", "198.51.100.9:0"
	tables.open(t, ping, tunnel)
	for line, want := range map[string]string{
		"proto icmp": `{"protocol":"icmp","path":"wan","forward":"all","state":"established",` +
			`"client":"198.51.100.9:77","external":"203.0.113.1:0","source":"198.51.100.9:78","target":"192.168.1.20:0",` +
			`"age_seconds":5,"idle_seconds":0,"packets":17,"bytes":6000}`,
		"proto gre": `{"protocol":"gre","path":"wan","forward":"all","state":"established",` +
			`"client":"198.51.100.9:0","external":"203.0.113.1:0","source":"198.51.100.9:0","target":"192.168.1.20:0",` +
			`"age_seconds":5,"idle_seconds":0,"packets":17,"bytes":6000}`,
		"proto sctp": "",
	} {
		sel, err := ParseSelector(strings.Fields(line))
		if err != nil {
			t.Fatal(err)
		}
		list, err := tables.list(sel)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, conn := range list {
			text, err := json.Marshal(conn)
			if err != nil {
				t.Fatal(err)
			}
			got += string(text)
		}
		if got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", line, got, want)
		}
	}
}

func TestEndConnections(t *testing.T) {
	needRoot(t)
	spec := smallSpec(t)
	var objs struct {
		bpf.HairpinMaps
		End *ebpf.Program `ebpf:"hairpin_end"`
	}
	if err := spec.LoadAndAssign(&objs, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { objs.HairpinMaps.Close(); objs.End.Close() })
	tables := New(&bpf.HairpinObjects{HairpinMaps: objs.HairpinMaps, HairpinPrograms: bpf.HairpinPrograms{HairpinEnd: objs.End}})
	mustApply(t, tables, configWith(t, "web tcp,udp 443 to 192.168.1.20:8443"))
	mustSetInterfaces(t, tables, wan("wan0", 2, "203.0.113.1/24"))
	web, address := tables.epochRefs(t, "203.0.113.1", 443)
	for i := range 10 {
		client := fmt.Sprintf("198.51.100.9:%d", 5000+i)
		tables.open(t, flow{
			protocol: TCP, client: client, external: "203.0.113.1:443", source: client, target: "192.168.1.20:8443",
			forward: web, address: address, half: i == 3, path: bpf.HairpinConnPath(i % 2),
		})
	}
	for _, test := range []struct {
		sel         Selector
		ended, left int
	}{{Selector{Path: "hairpin"}, 5, 5}, {Selector{Path: "hairpin"}, 0, 5}, {Selector{Protocol: UDP}, 0, 5}, {Selector{}, 5, 0}} {
		ended, err := tables.EndConnections(test.sel)
		count, countErr := tables.CountConnections(Selector{})
		if err != nil || countErr != nil || ended != test.ended || count.Total != test.left {
			t.Errorf("%q: ended %d, want %d; %d are left, want %d (%v, %v)", test.sel, ended, test.ended, count.Total, test.left, err, countErr)
		}
	}
}

// TestListingUnderChange: what stays is listed once, whatever comes and goes.
func TestListingUnderChange(t *testing.T) {
	t.Parallel()
	spec := smallSpec(t)
	spec.Maps[bpf.HairpinMapConns4].MaxEntries = 4096
	tables := newTables(t, spec)
	mustApply(t, tables, configWith(t, "web tcp 443 to 192.168.1.20:8443"))
	mustSetInterfaces(t, tables, wan("wan0", 2, "203.0.113.1/24"))
	web, address := tables.epochRefs(t, "203.0.113.1", 443)
	client := func(path bpf.HairpinConnPath, n int) flow {
		from := fmt.Sprintf("198.51.%d.9:%d", n>>8, 5000+n&0xff)
		return flow{
			protocol: TCP, client: from, external: "203.0.113.1:443", source: from, target: "192.168.1.20:8443",
			forward: web, address: address, path: path,
		}
	}
	for i := range 800 {
		tables.open(t, client(bpf.HairpinConnPathPATH_WAN, i))
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			for _, e := range client(bpf.HairpinConnPathPATH_HAIRPIN, 1000+n%900).pair() {
				UpdateEntry(tables.objs, &e, ebpf.UpdateAny)
			}
			for _, e := range client(bpf.HairpinConnPathPATH_HAIRPIN, 1000+(n+450)%900).pair() {
				DeleteEntry(tables.objs, e.Key)
			}
		}
	}()
	for range 100 {
		list, err := tables.list(Selector{})
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		stay := 0
		for _, c := range list {
			if seen[c.Client.String()] {
				t.Fatalf("%s is listed twice", c.Client)
			}
			seen[c.Client.String()] = true
			if c.Path == "wan" {
				stay++
			}
		}
		if stay != 800 {
			t.Fatalf("%d of 800 are listed", stay)
		}
	}
	close(stop)
	<-stopped
}

const fullTable = 131072

// full has as many connections as there are by default, all of one forward.
func full(t *testing.T) *Tables {
	t.Helper()
	spec := smallSpec(t)
	const connections = fullTable
	spec.Maps[bpf.HairpinMapConns4].MaxEntries = 2 * connections
	tables := newTables(t, spec)
	mustApply(t, tables, configWith(t, "web tcp 443 to 192.168.1.20:8443"))
	mustSetInterfaces(t, tables, wan("wan0", 2, "203.0.113.1/24"))
	web, address := tables.epochRefs(t, "203.0.113.1", 443)
	keys, values := make([]bpf.HairpinTuple4, 0, 2*connections), make([]bpf.HairpinConn4, 0, 2*connections)
	f := flow{
		protocol: TCP, client: "10.0.0.0:5000", external: "203.0.113.1:443", source: "10.0.0.0:5000", target: "192.168.1.20:8443",
		forward: web, address: address,
	}
	base := f.pair()
	for i := range connections {
		client := toAddr(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
		pair := base
		pair[0].Key.Src, pair[1].Key.Dst = client, client
		for side := range pair {
			e := &pair[side]
			e.To, e.Serial = reversed(pair[1-side].Key), uint32(i+1)
			keys = append(keys, shortKey(e.Key))
			values = append(values, bpf.HairpinConn4{Conn: e.pack(), Src: unmapped(e.To.Src), Dst: unmapped(e.To.Dst)})
		}
	}
	if err := putAll(tables.objs.Conns4, keys, values, 1); err != nil {
		t.Fatal(err)
	}
	return tables
}

// heap is how much memory is in use, in bytes.
func heap() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

// TestFullTableIsListed in no more memory than a short one.
func TestFullTableIsListed(t *testing.T) {
	tables := full(t)
	const room = 4 << 20
	before, listed := heap(), 0
	start := time.Now()
	err := tables.EachConnection(Selector{}, func(c *Connection) {
		if listed++; c.Packets != 17 {
			t.Fatalf("%+v", c)
		}
		if now := heapEvery(listed, 1<<14); now > before+room {
			t.Fatalf("%d bytes more are in use after %d connections, want at most %d", now-before, listed, room)
		}
	})
	t.Logf("list: %v", time.Since(start))
	if err != nil || listed != fullTable {
		t.Errorf("%d connections, %v", listed, err)
	}
}

// heapEvery is heap for every nth of many, else 0.
func heapEvery(i, n int) uint64 {
	if i%n != 0 {
		return 0
	}
	return heap()
}

// TestFullTableIsCounted without a copy of it: what is allocated on the way is garbage or not, it is little.
func TestFullTableIsCounted(t *testing.T) {
	tables := full(t)
	const room = 4 << 20
	for name, count := range map[string]func() (int, error){
		"connections": func() (int, error) {
			count, err := tables.CountConnections(Selector{})
			return count.Established, err
		},
		"some connections": func() (int, error) {
			count, err := tables.CountConnections(Selector{Path: "wan"})
			return count.Established, err
		},
		"for an audit": func() (int, error) {
			err := NewCollector(tables, CollectorOptions{}).audit()
			return fullTable, err
		},
	} {
		var before, after runtime.MemStats
		start := time.Now()
		runtime.ReadMemStats(&before)
		got, err := count()
		runtime.ReadMemStats(&after)
		t.Logf("%s: %v", name, time.Since(start))
		if err != nil || got != fullTable {
			t.Errorf("%s: %d, %v", name, got, err)
		}
		if allocated := after.TotalAlloc - before.TotalAlloc; allocated > room {
			t.Errorf("%s: %d bytes were allocated, want at most %d", name, allocated, room)
		}
	}
}

func TestMonotonicIsTheDatapathsClock(t *testing.T) {
	var before, after unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &before)
	now := monotonic()
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &after)
	if now < uint64(before.Nano()) || now > uint64(after.Nano()) {
		t.Errorf("%d is not between %d and %d", now, before.Nano(), after.Nano())
	}
	if since(5, 7) != 0 || since(7, 5) != 2 {
		t.Error("time runs backwards")
	}
}
