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
	"testing"
	"time"

	"github.com/cilium/ebpf"
	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
	"hairpin/maps/layout"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

// connected returns Tables with two forwards and one connection of every kind, and the live connections.
func connected(t testing.TB) (*Tables, []mapstest.Flow) {
	t.Helper()
	tables := newTables(t, mapstest.SmallSpec(t))
	return tables, mapstest.Connect(t, tables, tables.objs)
}

// list returns the connections that sel picks, sorted.
func (t *Tables) list(sel rule.Selector) ([]Connection, error) {
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
		want[fmt.Sprintln(f.Protocol, f.Client, f.External)] = states[i]
	}
	list, err := tables.list(rule.Selector{})
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
	again, err := tables.again().list(rule.Selector{Path: "hairpin"})
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

		"client 192.168.1.0/24":                                1,
		"not client 192.168.1.0/24":                            8,
		"state half-open":                                      1,
		"state established":                                    6,
		"state closing":                                        2,
		"state ended":                                          5, // one by its state, four whose forward or address is gone
		"not state established":                                3,
		"not state ended":                                      9,
		"not state established not state closing":              1,
		"not forward web":                                      1,
		"not proto udp not path hairpin":                       7,
		"not port 443":                                         1,
		"not port 22 not dst 192.168.1.30":                     8,
		"state closing not client 192.168.1.0/24":              2,
		"state closing not client 198.51.100.0/24":             0,
		"forward web not forward web":                          0,
		"path wan not proto udp forward web not state closing": 4,
	} {
		sel, err := rule.ParseSelector(strings.Fields(line))
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
	got, err := tables.CountConnections(rule.Selector{})
	want := Count{Total: 9, HalfOpen: 1, Established: 6, Closing: 2, Forwards: map[string]int{"web": 8, "ssh": 1}}
	if diff := gocmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
	mustApply(t, tables, mapstest.Config(t, "ssh tcp 22 to 192.168.1.30"))
	if got, err := tables.CountConnections(rule.Selector{}); err != nil || got.Total != 1 {
		t.Errorf("after web was removed: %+v, %v", got, err)
	}
	mustSetInterfaces(t, tables)
	if got, err := tables.CountConnections(rule.Selector{}); err != nil || got.Total != 0 {
		t.Errorf("after the address went: %+v, %v", got, err)
	}
}

// TestHalfOpenOnesWaitAsLongAsTheirProtocol: a half-open connection is listed until the timeout of its protocol.
func TestHalfOpenOnesWaitAsLongAsTheirProtocol(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	c := mapstest.Config(t, "web tcp,udp,sctp 443 to 192.168.1.20", "tunnel gre,icmp any to 192.168.1.20")
	c.Timeouts.TCPOpening, c.Timeouts.UDP, c.Timeouts.ICMP = 5*time.Second, 10*time.Second, 15*time.Second
	mustApply(t, tables, c)
	mustSetInterfaces(t, tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
	web, address := mapstest.EpochRefs(t, tables.objs, "203.0.113.1", 443)
	patience := map[rule.Protocol]time.Duration{
		rule.TCP: 5 * time.Second, rule.UDP: 10 * time.Second, rule.SCTP: 10 * time.Second, rule.GRE: 10 * time.Second, rule.ICMP: 15 * time.Second,
	}
	want := map[string]bool{}
	for protocol, patience := range patience {
		for i, idle := range []time.Duration{patience - 4*time.Second, patience + time.Second} {
			client := fmt.Sprintf("198.51.100.%d:5000", i+1)
			mapstest.Open(t, tables.objs, mapstest.Flow{
				Protocol: protocol, Client: client, External: "203.0.113.1:443", Source: client, Target: "192.168.1.20:443",
				Forward: web, Address: address, HalfOpen: true, Idle: idle,
			})
		}
		want[protocol.String()+" 198.51.100.1:5000"] = true
	}
	list, err := tables.list(rule.Selector{})
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

// TestConnectionsWithoutPorts: protocols without ports show an identifier as the port, or 0.
func TestConnectionsWithoutPorts(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	mustApply(t, tables, mapstest.Config(t, "web tcp 443 to 192.168.1.20", "all any any to 192.168.1.20"))
	mustSetInterfaces(t, tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
	_, address := mapstest.EpochRefs(t, tables.objs, "203.0.113.1", 443)
	all, _, _ := mapstest.Route(t, tables.objs, "203.0.113.1", rule.GRE, 0)
	base := mapstest.Flow{External: "203.0.113.1:0", Target: "192.168.1.20:0", Forward: all.EpochRef, Address: address}
	ping, tunnel := base, base
	ping.Protocol, ping.Client, ping.Source = rule.ICMP, "198.51.100.9:77", "198.51.100.9:78"
	tunnel.Protocol, tunnel.Client, tunnel.Source = rule.GRE, "198.51.100.9:0", "198.51.100.9:0"
	mapstest.Open(t, tables.objs, ping, tunnel)
	for line, want := range map[string]string{
		"proto icmp": `{"protocol":"icmp","path":"wan","forward":"all","state":"established",` +
			`"client":"198.51.100.9:77","external":"203.0.113.1:0","source":"198.51.100.9:78","target":"192.168.1.20:0",` +
			`"age_seconds":5,"idle_seconds":0,"packets":17,"bytes":6000}`,
		"proto gre": `{"protocol":"gre","path":"wan","forward":"all","state":"established",` +
			`"client":"198.51.100.9:0","external":"203.0.113.1:0","source":"198.51.100.9:0","target":"192.168.1.20:0",` +
			`"age_seconds":5,"idle_seconds":0,"packets":17,"bytes":6000}`,
		"proto sctp": "",
	} {
		sel, err := rule.ParseSelector(strings.Fields(line))
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

// newEndingTables is newTables with the program that ends connections.
func newEndingTables(t *testing.T) *Tables {
	t.Helper()
	mapstest.NeedRoot(t)
	var objs struct {
		bpf.HairpinMaps
		End *ebpf.Program `ebpf:"hairpin_end"`
	}
	if err := mapstest.SmallSpec(t).LoadAndAssign(&objs, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { objs.HairpinMaps.Close(); objs.End.Close() })
	return New(&bpf.HairpinObjects{HairpinMaps: objs.HairpinMaps, HairpinPrograms: bpf.HairpinPrograms{HairpinEnd: objs.End}})
}

func TestEndConnections(t *testing.T) {
	tables := newEndingTables(t)
	mustApply(t, tables, mapstest.Config(t, "web tcp,udp 443 to 192.168.1.20:8443"))
	mustSetInterfaces(t, tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
	web, address := mapstest.EpochRefs(t, tables.objs, "203.0.113.1", 443)
	for i := range 10 {
		client := fmt.Sprintf("198.51.100.9:%d", 5000+i)
		mapstest.Open(t, tables.objs, mapstest.Flow{
			Protocol: rule.TCP, Client: client, External: "203.0.113.1:443", Source: client, Target: "192.168.1.20:8443",
			Forward: web, Address: address, HalfOpen: i == 3, Path: bpf.HairpinConnPath(i % 2),
		})
	}
	for _, test := range []struct {
		sel         rule.Selector
		ended, left int
	}{{rule.Selector{Path: "hairpin"}, 5, 5}, {rule.Selector{Path: "hairpin"}, 0, 5}, {rule.Selector{Protocol: rule.UDP}, 0, 5}, {rule.Selector{}, 5, 0}} {
		ended, err := tables.EndConnections(test.sel)
		count, countErr := tables.CountConnections(rule.Selector{})
		if err != nil || countErr != nil || ended != test.ended || count.Total != test.left {
			t.Errorf("%q: ended %d, want %d; %d are left, want %d (%v, %v)", test.sel, ended, test.ended, count.Total, test.left, err, countErr)
		}
		over := rule.Selector{State: StateEnded}
		list, err := tables.list(over)
		if err != nil || len(list) != 10-test.left {
			t.Errorf("%q: %d connections have ended, want %d (%v)", test.sel, len(list), 10-test.left, err)
		}
		for _, c := range list {
			if c.State != "ended" || c.Forward != "" || !c.Client.IsValid() {
				t.Errorf("an ended connection is listed as %+v", c)
			}
		}
		if count, err := tables.CountConnections(over); err != nil || count.Ended != len(list) || count.Total != len(list) {
			t.Errorf("%q: %+v, %v, want %d that have ended", test.sel, count, err, len(list))
		}
		if again, err := tables.EndConnections(over); err != nil || again != 0 {
			t.Errorf("%d connections ended twice, %v", again, err)
		}
	}
}

// TestListingUnderChange: connections that stay are listed once, while other connections begin and end.
func TestListingUnderChange(t *testing.T) {
	t.Parallel()
	spec := mapstest.SmallSpec(t)
	spec.Maps[bpf.HairpinMapConns4].MaxEntries = 4096
	tables := newTables(t, spec)
	mustApply(t, tables, mapstest.Config(t, "web tcp 443 to 192.168.1.20:8443"))
	mustSetInterfaces(t, tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
	web, address := mapstest.EpochRefs(t, tables.objs, "203.0.113.1", 443)
	client := func(path bpf.HairpinConnPath, n int) mapstest.Flow {
		from := fmt.Sprintf("198.51.%d.9:%d", n>>8, 5000+n&0xff)
		return mapstest.Flow{
			Protocol: rule.TCP, Client: from, External: "203.0.113.1:443", Source: from, Target: "192.168.1.20:8443",
			Forward: web, Address: address, Path: path,
		}
	}
	for i := range 800 {
		mapstest.Open(t, tables.objs, client(bpf.HairpinConnPathPATH_WAN, i))
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() {
		close(stop)
		<-stopped
	})
	go func() {
		defer close(stopped)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			for _, e := range client(bpf.HairpinConnPathPATH_HAIRPIN, 1000+n%900).Pair() {
				mapstest.Entries(tables.objs).Update(&e, ebpf.UpdateAny)
			}
			for _, e := range client(bpf.HairpinConnPathPATH_HAIRPIN, 1000+(n+450)%900).Pair() {
				mapstest.Entries(tables.objs).Delete(e.Key)
			}
		}
	}()
	for range 100 {
		list, err := tables.list(rule.Selector{})
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		stay := 0
		for _, c := range list {
			if c.Path != "wan" {
				continue // it may end and begin again while the list is made
			}
			if stay++; seen[c.Client.String()] {
				t.Fatalf("%s is listed twice", c.Client)
			}
			seen[c.Client.String()] = true
		}
		if stay != 800 {
			t.Fatalf("%d of 800 are listed", stay)
		}
	}
}

const fullTable = 131072

// full returns Tables with fullTable connections of one forward: the default limit.
func full(t *testing.T) *Tables {
	t.Helper()
	spec := mapstest.SmallSpec(t)
	const connections = fullTable
	spec.Maps[bpf.HairpinMapConns4].MaxEntries = connections / 2 * 3 // as many buckets as on a router with these connections
	tables := newTables(t, spec)
	mustApply(t, tables, mapstest.Config(t, "web tcp 443 to 192.168.1.20:8443"))
	mustSetInterfaces(t, tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
	web, address := mapstest.EpochRefs(t, tables.objs, "203.0.113.1", 443)
	table := mapstest.Entries(tables.objs)
	f := mapstest.Flow{
		Protocol: rule.TCP, Client: "10.0.0.0:5000", External: "203.0.113.1:443", Source: "10.0.0.0:5000", Target: "192.168.1.20:8443",
		Forward: web, Address: address,
	}
	base := f.Pair()
	for i := range connections {
		client := layout.ToAddr(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
		pair := base
		pair[0].Key.Src, pair[1].Key.Dst = client, client
		for side := range pair {
			e := &pair[side]
			e.To, e.Serial = layout.Reversed(pair[1-side].Key), uint32(i+1)
			if err := table.Update(e, ebpf.UpdateNoExist); err != nil {
				t.Fatal(err)
			}
		}
	}
	return tables
}

// heap returns the size of live heap objects, in bytes.
func heap() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

// TestFullTableIsListed: listing a full table must not need memory for all connections.
func TestFullTableIsListed(t *testing.T) {
	tables := full(t)
	const room = 4 << 20
	before, listed := heap(), 0
	start := time.Now()
	err := tables.EachConnection(rule.Selector{}, func(c *Connection) {
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

// heapEvery returns heap() if i is a multiple of n, else 0: heap is slow.
func heapEvery(i, n int) uint64 {
	if i%n != 0 {
		return 0
	}
	return heap()
}

// TestFullTableIsCounted: counting must not copy the table. The test limits all allocations, including garbage.
func TestFullTableIsCounted(t *testing.T) {
	tables := full(t)
	const room = 4 << 20
	for name, count := range map[string]func() (int, error){
		"connections": func() (int, error) {
			count, err := tables.CountConnections(rule.Selector{})
			return count.Established, err
		},
		"some connections": func() (int, error) {
			count, err := tables.CountConnections(rule.Selector{Path: "wan"})
			return count.Established, err
		},
		"for an audit": func() (int, error) {
			_, err := NewAuditor(tables).Step()
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
	now := layout.Monotonic()
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &after)
	if now < uint64(before.Nano()) || now > uint64(after.Nano()) {
		t.Errorf("%d is not between %d and %d", now, before.Nano(), after.Nano())
	}
	if since(5, 7) != 0 || since(7, 5) != 2 {
		t.Error("time runs backwards")
	}
}

// A port selector matches the external port or the target port.
func TestSelectPorts(t *testing.T) {
	c := Connection{External: netip.MustParseAddrPort("203.0.113.1:6005"), Target: netip.MustParseAddrPort("192.168.1.20:7005")}
	for ports, want := range map[string]bool{
		"6005": true, "7005": true, "6004": false, "6000-6010": true, "7000-7005": true, "6005-6006": true,
		"6006-7004": false, "1-6004": false, "7006-65535": false, "1-65535": true,
	} {
		s, err := rule.ParseSelector([]string{"port", ports})
		if err != nil || s.String() != "port "+ports {
			t.Errorf("port %s reads as %s, %v", ports, s, err)
		}
		if got := picks(&s, &c); got != want {
			t.Errorf("port %s: %v, want %v", ports, got, want)
		}
	}
}
