// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"hairpin/bpf"
	"hairpin/maps/compile"
	"hairpin/maps/config"
	"hairpin/maps/layout"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

// wantRoute checks the target of a TCP packet to this address and port; "": no forward matches.
func (t *Tables) wantRoute(tb testing.TB, addr string, port uint16, target string) bpf.HairpinForward {
	tb.Helper()
	f, found, lives := mapstest.Route(tb, t.objs, addr, rule.TCP, port)
	got := ""
	if found {
		got = netip.AddrPortFrom(layout.FromAddr(f.Target), port+f.PortShift).String()
	}
	if got != target || found && !lives {
		tb.Errorf("%s:%d goes to %q (lives: %v), want %q", addr, port, got, lives, target)
	}
	return f
}

func mustSetInterfaces(t testing.TB, tables *Tables, ifs ...config.Interface) {
	t.Helper()
	if err := tables.SetInterfaces(ifs); err != nil {
		t.Fatal(err)
	}
}

func TestApplyAndRunning(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	running, err := tables.Running()
	if !errors.Is(err, ErrEmpty) || len(running.Forwards) != 0 || running.Mode != config.ModeAuto {
		t.Fatalf("fresh maps run %+v, %v", running, err)
	}
	c := mapstest.Config(t, "a tcp,udp 80 to 10.0.0.1:8080 from 10.0.0.0/8 reflect off", "b tcp 203.0.113.7:81 to 10.0.0.2", "c tcp wan0:82-90 to 10.0.0.3")
	c.Digest, c.Forwards[0].Source, c.Forwards[0].Hosts = "abc", "hairpin.toml:12", []string{"a.example"}
	if plan, err := tables.Plan(c); err != nil || fmt.Sprint(plan.Added) != "[a b c]" {
		t.Errorf("plan %+v, %v", plan, err)
	}
	if _, err := tables.Running(); !errors.Is(err, ErrEmpty) {
		t.Errorf("planning changed something: %v", err)
	}
	change := mustApply(t, tables, c)
	if fmt.Sprint(change.Added, change.Changed, change.Removed) != "[a b c] [] []" {
		t.Errorf("change %+v", change)
	}
	mustSetInterfaces(t, tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"), mapstest.WAN("wan1", 3, "198.51.100.1/24", "198.51.100.2/24"))
	for name, tables := range map[string]*Tables{"this": tables, "the next": tables.again()} {
		running, err := tables.Running()
		if diff := cmp.Diff(c, running, mapstest.NetipValues, cmpopts.EquateEmpty()); diff != "" || err != nil {
			t.Errorf("%s process reads %v (-want +got)\n%s", name, err, diff)
		}
	}
	tables.wantRoute(t, "203.0.113.1", 80, "10.0.0.1:8080")
	tables.wantRoute(t, "198.51.100.2", 80, "10.0.0.1:8080")
	tables.wantRoute(t, "203.0.113.7", 81, "10.0.0.2:81")
	tables.wantRoute(t, "203.0.113.7", 80, "")
	tables.wantRoute(t, "203.0.113.1", 85, "10.0.0.3:85")
	tables.wantRoute(t, "198.51.100.1", 85, "")

	generation, _ := tables.generation()
	if change := mustApply(t, tables.again(), c); !change.Empty() || change.Unchanged != 3 {
		t.Errorf("applying the same again changes %+v", change)
	}
	if now, _ := tables.generation(); now != generation {
		t.Error("applying the same again swaps")
	}
	c.Digest = "def"
	if change := mustApply(t, tables, c); !change.Empty() {
		t.Errorf("another digest changes %+v", change)
	}
	if running, _ := tables.again().Running(); running.Digest != "def" {
		t.Errorf("digest %q", running.Digest)
	}
}

func TestWhatDoesTheSameKeepsItsStampAndCounters(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	mustApply(t, tables, mapstest.Config(t, "a tcp 80 to 10.0.0.1", "b tcp 81 to 10.0.0.1", "c tcp 82 to 10.0.0.1"))
	mustSetInterfaces(t, tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
	before := map[uint16]bpf.HairpinForward{}
	for port := uint16(80); port < 83; port++ {
		before[port] = tables.wantRoute(t, "203.0.113.1", port, fmt.Sprintf("10.0.0.1:%d", port))
	}
	for id := range uint32(3) {
		tables.putStats(t, id+1, 1, 7)
	}
	change := mustApply(t, tables, mapstest.Config(t, "d tcp 83 to 10.0.0.1", "b tcp 81 to 10.0.0.9", "a tcp 80 to 10.0.0.1"))
	if got := fmt.Sprint(change.Added, change.Changed, change.Removed, change.Unchanged); got != "[d] [b] [c] 1" {
		t.Errorf("change %s", got)
	}
	if a := tables.wantRoute(t, "203.0.113.1", 80, "10.0.0.1:80"); a.EpochRef != before[80].EpochRef {
		t.Errorf("epoch reference of a: %v, was %v", a.EpochRef, before[80].EpochRef)
	}
	tables.wantRoute(t, "203.0.113.1", 81, "10.0.0.9:81")
	tables.wantRoute(t, "203.0.113.1", 82, "")
	for _, port := range []uint16{81, 82} {
		if mapstest.IsCurrent(t, tables.objs, before[port].EpochRef) {
			t.Errorf("connections made by the old forward of port %d live on", port)
		}
	}
	totals, err := tables.ForwardTotals()
	for name, sum := range totals {
		sum.LastHit, sum.Established = 0, 0 // TestRefusalsAndLastHit looks at the first; putStats sets the second only on machines with two CPUs
		totals[name] = sum
	}
	if want := map[string]Totals{"a": {Packets: 7, Bytes: 700}}; err != nil || !maps.Equal(totals, want) {
		t.Errorf("totals %v, %v, want %v", totals, err, want)
	}
	// A removed forward that is added again gets a new id.
	mustApply(t, tables, mapstest.Config(t, "c tcp 82 to 10.0.0.1"))
	c := tables.wantRoute(t, "203.0.113.1", 82, "10.0.0.1:82")
	for port, f := range before {
		if f.EpochRef == c.EpochRef {
			t.Errorf("the id of port %d is used again", port)
		}
	}
}

// putStats sets the counters of one path of a forward, split over two CPUs.
func (t *Tables) putStats(tb testing.TB, id uint32, path int, packets uint64) {
	tb.Helper()
	values := make([]bpf.HairpinForwardStats, ebpf.MustPossibleCPU())
	values[0].Traffic[path][0] = bpf.HairpinTraffic{Packets: packets, Bytes: 100 * packets}
	if last := len(values) - 1; last > 0 {
		values[0].Traffic[path][0].Packets--
		values[last].Traffic[path][0].Packets++
		values[last].Established[path] = 2
	}
	mapstest.WriteStats(tb, t.objs, id, values)
}

var errKilled = errors.New("killed")

// TestAKilledWriterLeavesAConsistentState kills Apply before each of its steps. Then the old or the new configuration must
// work completely, and the next Apply must succeed.
func TestAKilledWriterLeavesAConsistentState(t *testing.T) {
	t.Parallel()
	old := mapstest.Config(t, "keep tcp 80 to 10.0.0.1", "move tcp 81 to 10.0.0.1", "gone tcp 82 to 10.0.0.1", "fixed tcp 203.0.113.7:83 to 10.0.0.1")
	old.Timeouts.UDP = time.Hour
	next := mapstest.Config(t, "keep tcp 80 to 10.0.0.1", "move tcp 81 to 10.0.0.2", "other tcp 203.0.113.8:84 to 10.0.0.1")
	recoveries := map[string]func(*Tables){
		"the same again": func(tables *Tables) { mustApply(t, tables, next) },
		"another in between": func(tables *Tables) {
			mustApply(t, tables, mapstest.Config(t, "keep tcp 80 to 10.0.0.1", "new tcp 203.0.113.9:85 to 10.0.0.5"))
			mustApply(t, tables, next)
		},
	}
	for name, recover := range recoveries {
		for step := 0; ; step++ {
			tables := newTables(t, mapstest.SmallSpec(t))
			mustApply(t, tables, old)
			mustSetInterfaces(t, tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
			keep := tables.wantRoute(t, "203.0.113.1", 80, "10.0.0.1:80")
			ended := []bpf.HairpinEpochRef{
				tables.wantRoute(t, "203.0.113.1", 81, "10.0.0.1:81").EpochRef,
				tables.wantRoute(t, "203.0.113.1", 82, "10.0.0.1:82").EpochRef,
				tables.wantRoute(t, "203.0.113.7", 83, "10.0.0.1:83").EpochRef,
			}
			at, killed := 0, false
			tables.step = func(_ string, do func() error) error {
				if at++; at > step {
					killed = true
					return errKilled
				}
				return do()
			}
			_, err := tables.Apply(next)
			if killed != errors.Is(err, errKilled) {
				t.Fatalf("step %d: %v", step, err)
			}

			after := tables.again()
			running, err := after.Running()
			if err != nil {
				t.Fatal(err)
			}
			swapped := mustPlan(t, after, next).Empty()
			if !swapped && !mustPlan(t, after, old).Empty() {
				t.Fatalf("step %d: neither the old nor the new configuration runs", step)
			}
			if swapped {
				after.wantRoute(t, "203.0.113.1", 81, "10.0.0.2:81")
				after.wantRoute(t, "203.0.113.1", 82, "")
				after.wantRoute(t, "203.0.113.7", 83, "")
				after.wantRoute(t, "203.0.113.8", 84, "10.0.0.1:84")
			} else {
				after.wantRoute(t, "203.0.113.1", 81, "10.0.0.1:81")
				after.wantRoute(t, "203.0.113.1", 82, "10.0.0.1:82")
				after.wantRoute(t, "203.0.113.7", 83, "10.0.0.1:83")
				after.wantRoute(t, "203.0.113.8", 84, "")
			}
			if again := after.wantRoute(t, "203.0.113.1", 80, "10.0.0.1:80"); again.EpochRef != keep.EpochRef {
				t.Errorf("%s, step %d: an unchanged forward lost its connections", name, step)
			}

			known := after.targetList(t)
			for addr := range (&compile.Document{Config: running}).Targets() {
				if target := layout.FromAddr(addr).String(); !slices.Contains(known, target) {
					t.Errorf("%s, step %d: target %s is not known", name, step, target)
				}
			}

			recover(after)
			after.wantTargets(t, "10.0.0.1", "10.0.0.2")
			after.wantRoute(t, "203.0.113.1", 81, "10.0.0.2:81")
			after.wantRoute(t, "203.0.113.8", 84, "10.0.0.1:84")
			after.wantRoute(t, "203.0.113.9", 85, "")
			if again := after.wantRoute(t, "203.0.113.1", 80, "10.0.0.1:80"); again.EpochRef != keep.EpochRef {
				t.Errorf("%s, step %d: an unchanged forward lost its connections", name, step)
			}
			for _, s := range ended {
				if mapstest.IsCurrent(t, after.objs, s) {
					t.Errorf("%s, step %d: connections of %v live on", name, step, s)
				}
			}
			if externals, _ := readAll[bpf.HairpinAddr, bpf.HairpinExternal](after.objs.Externals); len(externals) != 2 {
				t.Errorf("%s, step %d: external addresses %v", name, step, externals)
			}
			var settings bpf.HairpinSettings
			if after.objs.Settings.Lookup(uint32(0), &settings); settings.Udp != uint64(next.Timeouts.UDP) {
				t.Errorf("%s, step %d: timeouts %+v", name, step, settings)
			}
			if !killed {
				t.Logf("%d steps", step)
				break
			}
		}
	}
}

// TestSetInterfacesFinishesForAKilledWriter: the next writer may be the daemon, which calls only SetInterfaces.
func TestSetInterfacesFinishesForAKilledWriter(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	mustApply(t, tables, mapstest.Config(t, "a tcp 80 to 10.0.0.1"))
	link := mapstest.WAN("wan0", 2, "203.0.113.1/24")
	mustSetInterfaces(t, tables, link)
	old := tables.wantRoute(t, "203.0.113.1", 80, "10.0.0.1:80")
	tables.step = func(name string, do func() error) error {
		if name == "end connections" {
			return errKilled
		}
		return do()
	}
	if _, err := tables.Apply(mapstest.Config(t, "a tcp 80 to 10.0.0.2")); !errors.Is(err, ErrUnfinished) {
		t.Errorf("error %v", err)
	}
	if !mapstest.IsCurrent(t, tables.objs, old.EpochRef) {
		t.Fatal("not killed in time")
	}
	mustSetInterfaces(t, tables.again(), link)
	if mapstest.IsCurrent(t, tables.objs, old.EpochRef) {
		t.Error("connections of the old target live on")
	}
	tables.wantRoute(t, "203.0.113.1", 80, "10.0.0.2:80")
}

func TestFullTablesAreRefused(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*config.Config)
		want   string
	}{
		"forwards": {func(c *config.Config) { c.Forwards = mapstest.ManyForwards(48).Forwards }, "48 forwards, but the tables hold 47"},
		"at once":  {func(c *config.Config) { c.Forwards = mapstest.ManyForwards(47).Forwards }, "1 forwards run and 47 more are new or changed: all ids up to 47 are in use; apply the change in steps"},
		"addresses": {func(c *config.Config) {
			for i := range 17 {
				c.Forwards = append(c.Forwards, mapstest.Forward(t, fmt.Sprintf("x%d tcp 203.0.113.%d:80 to 10.0.0.1", i, i+1)))
			}
		}, "17 external addresses, but the table holds 16"},
	} {
		tables := newTables(t, mapstest.SmallSpec(t))
		c := mapstest.Config(t, "a tcp 7000 to 10.0.0.1")
		mustApply(t, tables, c)
		test.change(&c)
		if _, err := tables.Apply(c); !mapstest.Contains(err, test.want) {
			t.Errorf("%s: error %v lacks %q", name, err, test.want)
		}
		if running, err := tables.again().Running(); err != nil || len(running.Forwards) != 1 {
			t.Errorf("%s: %d forwards run, %v", name, len(running.Forwards), err)
		}
	}
}

// TestIDsAreUsedAgain applies several sets of forwards. Each set fills half of the table.
func TestIDsAreUsedAgain(t *testing.T) {
	t.Parallel()
	tables := newTables(t, mapstest.SmallSpec(t))
	mustSetInterfaces(t, tables)
	for round := range 40 {
		c := mapstest.ManyForwards(16)
		for i := range c.Forwards {
			c.Forwards[i].Target = netip.AddrFrom4([4]byte{10, 0, byte(round), 1})
		}
		mustApply(t, tables, c)
	}
	mustSetInterfaces(t, tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
	tables.wantRoute(t, "203.0.113.1", 5, "10.0.39.1:5")
}

func TestRunningNeedsNoLock(t *testing.T) {
	t.Parallel()
	tables := newTables(t, mapstest.SmallSpec(t))
	mustApply(t, tables, mapstest.ManyForwards(1))
	stop, failed := make(chan struct{}), make(chan error, 1)
	go func() {
		reader := tables.again()
		for {
			select {
			case <-stop:
				failed <- nil
				return
			default:
			}
			c, err := reader.Running()
			// Each configuration of this test has the number of its forwards as its digest.
			if err == nil && c.Digest != "" && c.Digest != fmt.Sprint(len(c.Forwards)) {
				err = fmt.Errorf("%d forwards, digest %s", len(c.Forwards), c.Digest)
			}
			if err == nil {
				_, err = reader.ForwardTotals()
			}
			if err != nil {
				failed <- err
				return
			}
		}
	}()
	for i := range 60 {
		c := mapstest.ManyForwards(1 + i%12)
		c.Digest = fmt.Sprint(len(c.Forwards))
		mustApply(t, tables, c)
	}
	close(stop)
	if err := <-failed; err != nil {
		t.Error(err)
	}
}

func TestSetInterfacesFollowsAddresses(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	c := mapstest.Config(t, "a tcp 80 to 10.0.0.1", "own tcp wan1:81 to 10.0.0.1", "fixed tcp 203.0.113.7:82 to 10.0.0.1")
	mustApply(t, tables, c)
	tables.wantRoute(t, "203.0.113.1", 80, "")
	wan0, wan1 := mapstest.WAN("wan0", 2, "203.0.113.1/24", "2001:db8::1/64"), mapstest.WAN("wan1", 3, "198.51.100.1/24")
	mustSetInterfaces(t, tables, wan0, wan1)
	first, _, _ := mapstest.Route(t, tables.objs, "203.0.113.1", rule.TCP, 80)
	tables.wantRoute(t, "203.0.113.1", 80, "10.0.0.1:80")
	tables.wantRoute(t, "203.0.113.1", 81, "")
	tables.wantRoute(t, "198.51.100.1", 81, "10.0.0.1:81")
	tables.wantRoute(t, "203.0.113.7", 82, "10.0.0.1:82")
	tables.wantRoute(t, "203.0.113.7", 80, "")

	address := func(addr string) bpf.HairpinEpochRef {
		var external bpf.HairpinExternal
		if err := tables.objs.Externals.Lookup(layout.ToAddr(netip.MustParseAddr(addr)), &external); err != nil {
			t.Fatal(addr, err)
		}
		return external.Address
	}
	old, other := address("203.0.113.1"), address("198.51.100.1")
	mustSetInterfaces(t, tables.again(), mapstest.WAN("wan0", 2, "203.0.113.2/24", "203.0.113.7/24"), wan1)
	tables.wantRoute(t, "203.0.113.1", 80, "")
	tables.wantRoute(t, "203.0.113.2", 80, "10.0.0.1:80")
	tables.wantRoute(t, "203.0.113.7", 80, "10.0.0.1:80")
	tables.wantRoute(t, "203.0.113.7", 82, "10.0.0.1:82")
	if mapstest.IsCurrent(t, tables.objs, old) {
		t.Error("connections of an address that went live on")
	}
	if !mapstest.IsCurrent(t, tables.objs, other) || !mapstest.IsCurrent(t, tables.objs, first.EpochRef) {
		t.Error("connections ended that have nothing to do with the address")
	}

	// The address comes back: new connections are live, old connections stay ended.
	fixed := address("203.0.113.7")
	mustSetInterfaces(t, tables, wan0, wan1)
	tables.wantRoute(t, "203.0.113.1", 80, "10.0.0.1:80")
	if now := address("203.0.113.1"); now == old {
		t.Error("the old connections live again")
	}
	// A fixed address that is on no interface any more has only the forwards of this address.
	if mapstest.IsCurrent(t, tables.objs, fixed) {
		t.Error("connections of a fixed address that left live on")
	}
	tables.wantRoute(t, "203.0.113.7", 80, "")
	tables.wantRoute(t, "203.0.113.7", 82, "10.0.0.1:82")

	// The interface is removed.
	mustSetInterfaces(t, tables, wan1)
	tables.wantRoute(t, "203.0.113.1", 80, "")
	if interfaces, err := readAll[uint32, bpf.HairpinInterface](tables.objs.Interfaces); err != nil || len(interfaces) != 1 {
		t.Errorf("interfaces %v, %v", interfaces, err)
	}
	tables.wantRoute(t, "198.51.100.1", 80, "10.0.0.1:80")
}

func TestInterfaceEntries(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	lan := config.Interface{Name: "lan0", Index: 5, Role: config.RoleLAN, Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.1.1/24")}, HardwareAddr: mac, RPFilter: 2}
	crowded := mapstest.WAN("wan0", 6)
	for i := range 10 {
		crowded.Addresses = append(crowded.Addresses, netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 28))
	}
	mustApply(t, tables, mapstest.Config(t, "a tcp 80 to 10.0.0.1"))
	mustSetInterfaces(t, tables, lan, crowded, config.Interface{Name: "other", Index: 7})
	got, err := readAll[uint32, bpf.HairpinInterface](tables.objs.Interfaces)
	if err != nil || len(got) != 2 {
		t.Fatalf("interfaces %v, %v", got, err)
	}
	want := bpf.HairpinInterface{Role: bpf.HairpinRoleROLE_LAN, RpFilter: 2, Mac: [6]byte(mac), Private: 1}
	if got[5] != want {
		t.Errorf("got %+v, want %+v", got[5], want)
	}
	if w := got[6]; w.Private != 0 {
		t.Errorf("got %+v", w)
	}
	for _, prefix := range crowded.Addresses {
		tables.wantRoute(t, prefix.Addr().String(), 80, "10.0.0.1:80")
	}
}

// The map follows the addresses: it has those that the interfaces have, and no other.
func TestOwnAddressesFollow(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	mustApply(t, tables, mapstest.Config(t, "a tcp 80 to 10.0.0.1"))
	lan := func(addresses ...string) config.Interface {
		link := mapstest.WAN("lan0", 5, addresses...)
		link.Role = config.RoleLAN
		return link
	}
	for _, links := range [][]config.Interface{
		{lan("192.168.1.1/24", "10.0.0.1/8")},
		{lan("10.0.0.1/8"), mapstest.WAN("wan0", 6, "203.0.113.1/24", "2001:db8::1/64")},
		{lan(), mapstest.WAN("wan0", 6, "203.0.113.2/24")},
		{mapstest.WAN("wan0", 6)},
	} {
		mustSetInterfaces(t, tables, links...)
		got, err := readAll[bpf.HairpinOwnAddressKey, bpf.HairpinOwnAddress](tables.objs.OwnAddresses)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(compile.OwnAddresses(&compile.Document{}, links), got); diff != "" {
			t.Errorf("%v: (-want +got)\n%s", links, diff)
		}
	}
}

func TestTransmittersFollow(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	link := config.Interface{Name: "lo", Index: lo.Index, Role: config.RoleLAN, XDPTransmit: true}
	gone := config.Interface{Name: "gone", Index: 1 << 30, Role: config.RoleLAN, XDPTransmit: true}
	var before bpf.HairpinRoutes
	for i, ifs := range [][]config.Interface{{link}, {link}, {{Name: "lo", Index: lo.Index, Role: config.RoleLAN}}, {link, gone}, {}} {
		mustSetInterfaces(t, tables, ifs...)
		var now bpf.HairpinRoutes
		if err := tables.objs.Routes.Lookup(uint32(0), &now); err != nil {
			t.Fatal(err)
		}
		// Cached next hops contain this, so a change must raise the route generation.
		if changed := i != 1; changed != (now != before) {
			t.Errorf("step %d: route generation %d, was %d", i, now.Generation, before.Generation)
		}
		before = now
		want := len(ifs) > 0 && ifs[0].XDPTransmit
		ports, err := readAll[uint32, bpf.HairpinBpfDevmapVal](tables.objs.TxPorts)
		if _, there := ports[uint32(lo.Index)]; err != nil || there != want || len(ports) > 1 {
			t.Errorf("step %d: devices %v, %v", i, ports, err)
		}
	}
}

func TestTooManyAddressesChangeNothing(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	mustApply(t, tables, mapstest.Config(t, "a tcp 80 to 10.0.0.1"))
	link := mapstest.WAN("wan0", 2, "203.0.113.1/24")
	mustSetInterfaces(t, tables, link)
	for i := range 16 {
		link.Addresses = append(link.Addresses, netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)}), 24))
	}
	if err := tables.SetInterfaces([]config.Interface{link}); !mapstest.Contains(err, "17 external addresses, but the table holds 16") {
		t.Errorf("error %v", err)
	}
	tables.wantRoute(t, "203.0.113.1", 80, "10.0.0.1:80")
}

func TestBumpRoutes(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	for want := uint32(1); want < 3; want++ {
		var routes bpf.HairpinRoutes
		if err := tables.BumpRoutes(); err != nil {
			t.Fatal(err)
		}
		if tables.objs.Routes.Lookup(uint32(0), &routes); routes.Generation != want {
			t.Errorf("generation %d, want %d", routes.Generation, want)
		}
	}
}

// TestTenThousandForwards uses tables of the default size.
func TestTenThousandForwards(t *testing.T) {
	tables := newTables(t, mapstest.RoomySpec(t))
	c := mapstest.ManyForwards(10000)
	for i := range c.Forwards {
		c.Forwards[i].From = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	}
	start := time.Now()
	mustApply(t, tables, c)
	t.Logf("10,000 new: %v", time.Since(start))
	mustSetInterfaces(t, tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
	for i := range c.Forwards {
		c.Forwards[i].Target = netip.AddrFrom4([4]byte{10, 2, 0, 1})
	}
	c.Forwards = slices.Delete(c.Forwards, 100, 200)
	start = time.Now()
	change := mustApply(t, tables.again(), c)
	t.Logf("10,000 changed: %v", time.Since(start))
	if len(change.Changed) != 9900 || len(change.Removed) != 100 {
		t.Errorf("%d changed, %d removed", len(change.Changed), len(change.Removed))
	}
	if roster, err := tables.Roster(); err != nil || len(roster.Names) < 9900 {
		t.Errorf("ids of %d forwards, %v", len(roster.Names), err)
	}
	tables.wantRoute(t, "203.0.113.1", 10000, "10.2.0.1:10000")
	tables.wantRoute(t, "203.0.113.1", 150, "")
	c.Forwards = append(c.Forwards, mapstest.Forward(t, "one tcp 60000 to 10.0.0.1"))
	start = time.Now()
	mustApply(t, tables.again(), c)
	t.Logf("one more: %v", time.Since(start))
	tables.wantRoute(t, "203.0.113.1", 60000, "10.0.0.1:60000")
}

func TestEveryPortIsAForward(t *testing.T) {
	tables := newTables(t, mapstest.RoomySpec(t))
	mustApply(t, tables, mapstest.ManyForwards(65535))
	mustSetInterfaces(t, tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
	tables.wantRoute(t, "203.0.113.1", 65535, "10.1.255.255:65535")
	tables.wantRoute(t, "203.0.113.1", 1, "10.1.0.1:1")
}

func TestWhatIsPreparedRunsOnceItIsSwapped(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	mustApply(t, tables, mapstest.Config(t, "a tcp 80 to 10.0.0.1"))
	mustSetInterfaces(t, tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
	change, err := tables.Prepare(mapstest.Config(t, "a tcp 80 to 10.0.0.2"))
	if err != nil || len(change.Changed) != 1 {
		t.Fatalf("prepare: %+v, %v", change, err)
	}
	tables.wantRoute(t, "203.0.113.1", 80, "10.0.0.1:80")
	for range 2 { // the second swap has nothing to do
		if err := tables.Swap(); err != nil {
			t.Fatal(err)
		}
		tables.wantRoute(t, "203.0.113.1", 80, "10.0.0.2:80")
	}
}

// TestAStaleChangeIsNotSwapped: after the change was prepared, another writer made another change live. The swap would undo that change.
func TestAStaleChangeIsNotSwapped(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	mustApply(t, tables, mapstest.Config(t, "a tcp 80 to 10.0.0.1"))
	mustSetInterfaces(t, tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
	if _, err := tables.Prepare(mapstest.Config(t, "a tcp 80 to 10.0.0.2")); err != nil {
		t.Fatal(err)
	}
	mustAdd(t, tables.again(), "b tcp 81 to 10.0.0.3")
	if err := tables.Swap(); !mapstest.Contains(err, "the change was prepared for generation 1") {
		t.Errorf("swap: %v", err)
	}
	tables.wantRoute(t, "203.0.113.1", 80, "10.0.0.1:80")
	tables.wantRoute(t, "203.0.113.1", 81, "10.0.0.3:81")
}

func TestDocumentsOfEverySize(t *testing.T) {
	mapstest.NeedRoot(t)
	for _, size := range []int{0, 1, 4087, 4088, 4089, 8183, 8184, 8185, 100000} {
		text := []byte(strings.Repeat("x", size))
		for i := range text {
			text[i] = byte('a' + i%23)
		}
		m, err := newChunks(text, 3)
		if err != nil {
			t.Fatal(err)
		}
		got, err := readChunks(m)
		m.Close()
		if err != nil || got != string(text) {
			t.Errorf("size %d: reads back %d bytes, %v", size, len(got), err)
		}
	}
}

func TestADocumentOfAnotherVersionIsRefused(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	inner, err := newChunks([]byte(`{"schema":1}`), compile.AdditionsRoom+1)
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	if err := tables.store(filling{tables.objs.Documents, inner, 0}); err != nil {
		t.Fatal(err)
	}
	if _, err := tables.Running(); !mapstest.Contains(err, "written by another version of hairpin") {
		t.Errorf("error %v", err)
	}
	if _, err := tables.Apply(mapstest.Config(t)); !mapstest.Contains(err, "written by another version of hairpin") {
		t.Errorf("error %v", err)
	}
}

// TestAnAddressOfAKilledWriterServesNobodyElse: a killed writer left an address in map externals. No other place may get
// the external id of this address while the address is there.
func TestAnAddressOfAKilledWriterServesNobodyElse(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	mustApply(t, tables, mapstest.Config(t, "a tcp 80 to 10.0.0.1"))
	kill := func(tables *Tables, step string, c config.Config) {
		tables.step = func(name string, do func() error) error {
			if name == step {
				return errKilled
			}
			return do()
		}
		if _, err := tables.Apply(c); !errors.Is(err, errKilled) {
			t.Fatalf("killed at %s: %v", step, err)
		}
	}
	kill(tables.again(), "swap", mapstest.Config(t, "b tcp 203.0.113.8:81 to 10.0.0.1"))
	next := mapstest.Config(t, "c tcp 203.0.113.9:81 to 10.0.0.2")
	kill(tables.again(), "end connections", next)
	tables.wantRoute(t, "203.0.113.9", 81, "10.0.0.2:81")
	tables.wantRoute(t, "203.0.113.8", 81, "")
}
