// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps/compile"
	"hairpin/maps/config"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

func denials(lasts time.Duration, sources ...string) (list []Denial) {
	for _, source := range sources {
		list = append(list, Denial{netip.MustParsePrefix(source), lasts})
	}
	return list
}

func denied(sources ...string) (list []netip.Prefix) {
	for _, source := range sources {
		list = append(list, netip.MustParsePrefix(source))
	}
	return list
}

func mustDeny(t *testing.T, tables *Tables, lasts time.Duration, sources ...string) {
	t.Helper()
	if _, err := tables.Deny(denials(lasts, sources...)); err != nil {
		t.Fatal(err)
	}
}

func mustUndeny(t *testing.T, tables *Tables, sources ...string) {
	t.Helper()
	for _, d := range denials(0, sources...) {
		if missing, _, err := tables.Undeny([]netip.Prefix{d.Source}); err != nil || len(missing) > 0 {
			t.Fatalf("%s: missing %v, %v", d.Source, missing, err)
		}
	}
}

// wantDenied compares with "SOURCE", or "SOURCE configured", in any order.
func wantDenied(t *testing.T, tables *Tables, want ...string) {
	t.Helper()
	var got []string
	err := tables.EachDenied(func(d Denied) {
		text := d.Source.String()
		if d.Configured {
			text += " configured"
		}
		if d.Asked {
			text += " asked"
		}
		got = append(got, text)
	})
	slices.Sort(got)
	slices.Sort(want)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("denied are %q, %v; want %q", got, err, want)
	}
}

// TestWhoDenies: the configuration and commands each take back only what is theirs.
func TestWhoDenies(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	c := mapstest.Config(t, "web tcp 80 to 192.168.1.20")
	mustDeny(t, tables, 0, "192.0.2.1/32", "198.51.0.0/16") // before anything was applied
	c.Deny = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8::/32")}
	mustApply(t, tables, c)
	wantDenied(t, tables, "192.0.2.1/32 configured asked", "198.51.0.0/16 asked", "198.51.100.0/24 configured", "2001:db8::/32 configured")
	mustUndeny(t, tables, "192.0.2.1/32", "198.51.0.0/16")
	mustDeny(t, tables, 0, "192.0.2.2/32")
	missing, configured, err := tables.Undeny(append(denied("192.0.2.2/32"), c.Deny...))
	if err != nil || !slices.Equal(missing, c.Deny) || !slices.Equal(configured, c.Deny) {
		t.Errorf("missing are %v, configured are %v, %v; want all of the configuration", missing, configured, err)
	}
	wantDenied(t, tables, "192.0.2.1/32 configured", "198.51.100.0/24 configured", "2001:db8::/32 configured")
	mustDeny(t, tables, time.Hour, "2001:db8::/32", "192.0.2.1/32")
	c.Deny = c.Deny[:1]
	mustApply(t, tables, c)
	wantDenied(t, tables, "192.0.2.1/32 configured asked", "2001:db8::/32 asked")
	again, err := tables.again().Running()
	if err != nil || !slices.Equal(again.Deny, c.Deny) {
		t.Errorf("running is %v, %v", again.Deny, err)
	}
	c.Deny = nil
	mustApply(t, tables, c)
	mustUndeny(t, tables, "192.0.2.1/32", "2001:db8::/32")
	wantDenied(t, tables)
}

// TestDeniedTableGrows: whether sources come one by one or all at once, none is lost.
func TestDeniedTableGrows(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	var want []string
	for i := range 1500 {
		source := fmt.Sprintf("10.1.%d.%d/32", i>>8, i&255)
		want = append(want, source+" asked")
		mustDeny(t, tables, 0, source)
	}
	wantDenied(t, tables, want...)
	var list []string
	for i := range 6000 {
		source := fmt.Sprintf("2001:db8::%x/128", i+1)
		list, want = append(list, source), append(want, source+" asked")
	}
	mustDeny(t, tables, time.Hour, list...)
	wantDenied(t, tables, want...)
	err := tables.EachDenied(func(d Denied) {
		if ends := d.Left > 0; ends != d.Source.Addr().Is6() {
			t.Errorf("%s has another source's time: %s", d.Source, d.Left)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	table, err := tables.openOnly(tables.objs.Denied)
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	if size := table.MaxEntries(); size != 16384 {
		t.Errorf("room for %d, want 16384", size)
	}
	mustUndeny(t, tables, list[0])
	mustDeny(t, tables, 0, "10.1.0.0/32")
}

// TestSmallNetworksDenyAsLongAsLargeOnes whatever the order they come in, and whoever denies them.
func TestSmallNetworksDenyAsLongAsLargeOnes(t *testing.T) {
	d := compile.Denials{}
	for source, asked := range map[string]uint32{
		"10.0.0.0/8": 100, "10.1.0.0/16": 50, "10.1.1.0/24": 200, "10.1.1.128/25": 20, "10.2.0.0/16": 300, "11.0.0.0/8": 10, "11.0.0.0/16": 5,
		"::/0": 40, "2001:db8::/32": 30, "12.0.0.0/8": 1,
	} {
		d[netip.MustParsePrefix(source)] = bpf.HairpinDenial{Asked: asked}
	}
	d[netip.MustParsePrefix("2001:db8:1::/48")] = bpf.HairpinDenial{Configured: 1}
	d.Settle(1)
	want := map[string]uint32{
		"10.0.0.0/8": 100, "10.1.0.0/16": 100, "10.1.1.0/24": 200, "10.1.1.128/25": 200, "10.2.0.0/16": 300, "11.0.0.0/8": 10, "11.0.0.0/16": 10,
		"::/0": 40, "2001:db8::/32": 40, "2001:db8:1::/48": compile.Forever,
	}
	if len(d) != len(want) {
		t.Errorf("%d networks, want %d: what has ended goes", len(d), len(want))
	}
	for source, until := range want {
		if got := d[netip.MustParsePrefix(source)].Until; got != until {
			t.Errorf("%s is denied until %d, want %d", source, got, until)
		}
	}
}

// denying are tables with the program that ends connections, and one forward.
type denying struct {
	*Tables
	config       config.Config
	web, address bpf.HairpinEpochRef
}

func newDenying(t *testing.T, connections uint32) *denying {
	t.Helper()
	mapstest.NeedRoot(t)
	spec := mapstest.SmallSpec(t)
	spec.Maps[bpf.HairpinMapConns4].MaxEntries = 2 * connections
	mapstest.Sized(spec)
	var objs struct {
		bpf.HairpinMaps
		End *ebpf.Program `ebpf:"hairpin_end"`
	}
	if err := spec.LoadAndAssign(&objs, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { objs.HairpinMaps.Close(); objs.End.Close() })
	d := &denying{
		Tables: New(&bpf.HairpinObjects{HairpinMaps: objs.HairpinMaps, HairpinPrograms: bpf.HairpinPrograms{HairpinEnd: objs.End}}),
		config: mapstest.Config(t, "web tcp 443 to 192.168.1.20:8443"),
	}
	mustApply(t, d.Tables, d.config)
	mustSetInterfaces(t, d.Tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
	d.web, d.address = mapstest.EpochRefs(t, d.objs, "203.0.113.1", 443)
	return d
}

func (d *denying) open(t *testing.T, client string, port int) {
	t.Helper()
	from := fmt.Sprintf("%s:%d", client, port)
	mapstest.Open(t, d.objs, mapstest.Flow{
		Protocol: rule.TCP, Client: from, External: "203.0.113.1:443", Source: from, Target: "192.168.1.20:8443", Forward: d.web, Address: d.address,
	})
}

// wantClients compares the clients of the live connections.
func (d *denying) wantClients(t *testing.T, when string, want ...string) {
	t.Helper()
	var got []string
	err := d.EachConnection(rule.Selector{}, func(c *Connection) { got = append(got, c.Client.Addr().String()) })
	slices.Sort(got)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%s: connections of %q, %v; want %q", when, got, err, want)
	}
}

// TestDenialOfAKilledWriter: a writer that is killed after it has denied sources leaves their connections. Whoever writes next ends them,
// even if that writer is killed, too.
func TestDenialOfAKilledWriter(t *testing.T) {
	killed := errors.New("killed")
	kill := func(tables *Tables) *Tables {
		tables.step = func(name string, do func() error) error {
			if name == "end connections of denied sources" {
				return killed
			}
			return do()
		}
		return tables
	}
	configured := func(d *denying) error {
		c := d.config
		c.Deny = denied("198.51.100.0/24")
		_, err := kill(d.again()).Apply(c)
		return err
	}
	asked := func(d *denying) error {
		_, err := kill(d.again()).Deny(denials(0, "198.51.100.7/32", "198.51.100.128/25"))
		return err
	}
	for name, first := range map[string]func(*denying) error{"a command": asked, "a change of the configuration": configured} {
		for next, do := range map[string]func(*denying) error{
			"the daemon's sweep":    func(d *denying) error { _, err := d.again().SweepDenied(); return err },
			"the configuration":     func(d *denying) error { _, err := d.again().Apply(d.config); return err },
			"another denied source": func(d *denying) error { _, err := d.again().Deny(denials(0, "192.0.2.1/32")); return err },
			"the same source":       func(d *denying) error { _, err := d.again().Deny(denials(0, "198.51.100.7/32")); return err },
		} {
			t.Run(name+", then "+next, func(t *testing.T) {
				d := newDenying(t, 64)
				for _, client := range []string{"198.51.100.7", "198.51.100.200", "192.0.2.9"} {
					d.open(t, client, 5000)
				}
				for range 2 {
					if err := first(d); !errors.Is(err, killed) {
						t.Fatalf("not killed: %v", err)
					}
				}
				d.wantClients(t, "killed", "192.0.2.9", "198.51.100.200", "198.51.100.7")
				if err := do(d); err != nil {
					t.Fatal(err)
				}
				d.wantClients(t, "afterwards", "192.0.2.9")
				d.open(t, "198.51.100.7", 5001) // nobody looks again
				if _, err := d.again().SweepDenied(); err != nil {
					t.Fatal(err)
				}
				d.wantClients(t, "at the next sweep", "192.0.2.9", "198.51.100.7")
			})
		}
	}
}

// TestConfigurationThatDeniesNobodyElse: a change that denies no more sources than before does not look at the connections.
func TestConfigurationThatDeniesNobodyElse(t *testing.T) {
	d := newDenying(t, 64)
	walks := 0
	d.step = func(name string, do func() error) error {
		if name == "end connections of denied sources" {
			walks++
		}
		return do()
	}
	for _, step := range []struct {
		name  string
		deny  []string
		walks int
	}{
		{"nobody", nil, 0}, {"two", []string{"198.51.100.7/32", "2001:db8::/32"}, 1}, {"the same", []string{"2001:db8::/32", "198.51.100.7/32"}, 0},
		{"one fewer", []string{"2001:db8::/32"}, 0}, {"another one", []string{"192.0.2.0/24"}, 1}, {"nobody again", nil, 0},
	} {
		walks = 0
		c := d.config
		c.Timeouts.UDP += time.Second // something changes
		d.config = c
		c.Deny = denied(step.deny...)
		mustApply(t, d.Tables, c)
		if walks != step.walks {
			t.Errorf("%s: looked at the connections %d times, want %d", step.name, walks, step.walks)
		}
		want := []string{}
		for _, source := range step.deny {
			want = append(want, source+" configured")
		}
		wantDenied(t, d.Tables, want...)
	}
}

// TestDenyManyNetworks: the time that a connection takes does not depend on how many networks are denied. If each connection was compared
// with each network, this would take minutes.
func TestDenyManyNetworks(t *testing.T) {
	const networks, connections, patience = 20_000, 100_000, 20 * time.Second
	d := newDenying(t, connections+2)
	for i := range connections {
		d.open(t, fmt.Sprintf("100.64.%d.%d", i>>8&255, i&255), 1024+i>>16)
	}
	d.open(t, "10.78.31.255", 5000)
	d.open(t, "192.0.2.9", 5000)
	var list []Denial
	for i := range networks {
		addr := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0})
		list = append(list, Denial{Source: netip.PrefixFrom(addr, 20+i%12).Masked()})
	}
	list = append(list, denials(0, "192.0.2.9/32", "2001:db8::/32")...)
	began := time.Now()
	ended, err := d.Deny(list)
	took := time.Since(began)
	t.Logf("%s", took)
	if err != nil || ended != 2 {
		t.Errorf("ended %d connections, %v; want 2", ended, err)
	}
	if took > patience {
		t.Errorf("took %s, want at most %s", took, patience)
	}
}

// TestSourcesHold compares with the plain way.
func TestSourcesHold(t *testing.T) {
	list := denied("10.0.0.0/8", "10.1.0.0/16", "192.0.2.1/32", "198.51.100.0/25", "2001:db8::/32", "2001:db8:1::1/128", "::/1", "224.0.0.0/3")
	sources := compile.NewSources(list)
	for _, text := range []string{
		"10.0.0.0", "10.255.255.255", "11.0.0.0", "192.0.2.1", "192.0.2.0", "198.51.100.127", "198.51.100.128", "2001:db8::1", "2001:db9::1", "::1", "8000::1",
		"fd00::1", "255.255.255.255", "0.0.0.0", "1.2.3.4",
	} {
		addr := netip.MustParseAddr(text)
		want := slices.ContainsFunc(list, func(network netip.Prefix) bool { return network.Contains(addr) })
		if got := sources.Hold(addr); got != want {
			t.Errorf("%s: %t, want %t", addr, got, want)
		}
	}
}
