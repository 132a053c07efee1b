// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hairpin/bpf"
	"hairpin/maps/config"
	"hairpin/maps/layout"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

// targetList returns the addresses in map targets.
func (t *Tables) targetList(tb testing.TB) []string {
	tb.Helper()
	present, err := readAll[bpf.HairpinAddr, uint8](t.objs.Targets)
	if err != nil {
		tb.Fatal(err)
	}
	var list []string
	for addr, one := range present {
		if one != 1 {
			tb.Errorf("target %s has value %d", layout.FromAddr(addr), one)
		}
		list = append(list, layout.FromAddr(addr).String())
	}
	slices.Sort(list)
	return list
}

func (t *Tables) wantTargets(tb testing.TB, want ...string) {
	tb.Helper()
	if diff := cmp.Diff(want, t.targetList(tb)); diff != "" {
		tb.Errorf("targets (-want +got)\n%s", diff)
	}
}

func (t *Tables) mustSettings(tb testing.TB) (settings bpf.HairpinSettings) {
	tb.Helper()
	if err := t.objs.Settings.Lookup(uint32(0), &settings); err != nil {
		tb.Fatal(err)
	}
	return settings
}

func TestSettings(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	for _, test := range []struct {
		name   string
		change func(*config.Config)
		want   func(*bpf.HairpinSettings)
	}{
		{"as the RFCs have it", func(*config.Config) {}, func(*bpf.HairpinSettings) {}},
		{"transitory is for both", func(c *config.Config) { c.Timeouts.TCPTransitory = time.Hour },
			func(s *bpf.HairpinSettings) {
				s.TcpOpening, s.TcpClosing = 3600*uint64(time.Second), 3600*uint64(time.Second)
			}},
		{"stand-ins", func(c *config.Config) { c.StandIns = mapstest.StandIns("192.168.1.0/24 198.18.1.0/24") }, func(s *bpf.HairpinSettings) { s.StandIns = 1 }},
		{"opening alone", func(c *config.Config) { c.Timeouts.TCPOpening = time.Second }, func(s *bpf.HairpinSettings) { s.TcpOpening = uint64(time.Second) }},
		{"closing alone", func(c *config.Config) { c.Timeouts.TCPClosing = time.Second }, func(s *bpf.HairpinSettings) { s.TcpClosing = uint64(time.Second) }},
		{"others", func(c *config.Config) { c.Timeouts.UDP, c.Timeouts.ICMP = time.Second, 2*time.Second },
			func(s *bpf.HairpinSettings) { s.Udp, s.Icmp = uint64(time.Second), 2*uint64(time.Second) }},
		{"ports are free sooner", func(c *config.Config) { c.Timeouts.PortHold = 3 * time.Second }, func(s *bpf.HairpinSettings) { s.PortHold = 3 * uint64(time.Second) }},
		{"nobody is told", func(c *config.Config) { c.ICMP.Refuse = nil }, func(s *bpf.HairpinSettings) { s.Told = 0 }},
		{"WAN is told", func(c *config.Config) { c.ICMP.Refuse = []string{config.SideWAN} },
			func(s *bpf.HairpinSettings) { s.Told = bpf.HairpinSideSIDE_WAN }},
		{"both are told", func(c *config.Config) { c.ICMP.Refuse = []string{config.SideWAN, config.SideLAN} },
			func(s *bpf.HairpinSettings) { s.Told = bpf.HairpinSideSIDE_WAN | bpf.HairpinSideSIDE_LAN }},
		{"few of one client", func(c *config.Config) { c.MaxPerSource = 7 }, func(s *bpf.HairpinSettings) { s.SourceLimit = 7 }},
		{"most of one client", func(c *config.Config) { c.MaxPerSource = 100_000 },
			func(s *bpf.HairpinSettings) { s.SourceLimit, s.InterfaceLimit = 100_000, 100_000 }},
		{"an eighth of few", func(c *config.Config) { c.MaxConnections = 80 }, func(s *bpf.HairpinSettings) { s.SourceLimit, s.InterfaceLimit = 10, 40 }},
		{"one of very few", func(c *config.Config) { c.MaxConnections = 1 }, func(s *bpf.HairpinSettings) { s.SourceLimit, s.InterfaceLimit = 1, 1 }},
		{"slow", func(c *config.Config) { c.ICMP.Rate = 1 }, func(s *bpf.HairpinSettings) { s.IcmpInterval = uint64(time.Second) }},
		{"fast", func(c *config.Config) { c.ICMP.Rate = 1_000_000 }, func(s *bpf.HairpinSettings) { s.IcmpInterval = 1000 }},
	} {
		c := mapstest.Config(t)
		test.change(&c)
		mustApply(t, tables, c)
		want := bpf.HairpinSettings{
			TcpEstablished: 7440 * uint64(time.Second), TcpOpening: 240 * uint64(time.Second), TcpClosing: 240 * uint64(time.Second),
			Udp: 300 * uint64(time.Second), Icmp: 60 * uint64(time.Second), PortHold: 120 * uint64(time.Second), SourceLimit: 16384, InterfaceLimit: 65536, IcmpInterval: 1_000_000, InterceptFirst: 1, Told: bpf.HairpinSideSIDE_LAN,
		}
		test.want(&want)
		if got := tables.mustSettings(t); got != want {
			t.Errorf("%s: got %+v, want %+v", test.name, got, want)
		}
	}
}

func TestTargetsAreThoseOfTheForwards(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	mustApply(t, tables, mapstest.Config(t, "a tcp 80 to 10.0.0.1", "b udp 80 to 10.0.0.1", "c icmp any to 10.0.0.2"))
	tables.wantTargets(t, "10.0.0.1", "10.0.0.2")

	swapped := false
	tables.step = func(name string, do func() error) error {
		// Before the swap, the targets of both sets of forwards must be there.
		if name == "swap" {
			swapped = true
			tables.wantTargets(t, "10.0.0.1", "10.0.0.2", "10.0.0.3")
		}
		return do()
	}
	mustApply(t, tables, mapstest.Config(t, "b udp 80 to 10.0.0.1", "c icmp any to 10.0.0.3"))
	if !swapped {
		t.Error("the step was not reached")
	}
	tables.wantTargets(t, "10.0.0.1", "10.0.0.3")
}

func TestTooManyTargetsAreRefused(t *testing.T) {
	spec := mapstest.SmallSpec(t)
	spec.Maps[bpf.HairpinMapTargets].MaxEntries = 4
	tables := newTables(t, spec)
	to := func(first, last int) config.Config {
		c := mapstest.Config(t)
		for i := first; i <= last; i++ {
			c.Forwards = append(c.Forwards, mapstest.Forward(t, fmt.Sprintf("f%d tcp %d to 10.0.0.%d", i, i, i)))
		}
		return c
	}
	mustApply(t, tables, to(1, 4))
	for want, c := range map[string]config.Config{
		"the forwards have 5 targets, but the table holds 4":                                                                          to(1, 5),
		"the running forwards and the new forwards together have 5 targets, but the table holds 4 at once; apply the change in steps": to(2, 5),
	} {
		if _, err := tables.Apply(c); !mapstest.Contains(err, want) {
			t.Errorf("error %v lacks %q", err, want)
		}
		tables.wantTargets(t, "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4")
	}
	mustApply(t, tables, to(2, 4))
	mustApply(t, tables, to(2, 5))
	tables.wantTargets(t, "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5")
}

// TestTargetsOfAFailedWriterMakeRoom: the next Apply removes the targets that a failed Apply added.
func TestTargetsOfAFailedWriterMakeRoom(t *testing.T) {
	spec := mapstest.SmallSpec(t)
	spec.Maps[bpf.HairpinMapTargets].MaxEntries = 2
	tables := newTables(t, spec)
	mustApply(t, tables, mapstest.Config(t, "a tcp 80 to 10.0.0.1"))
	whole := tables.step
	tables.step = func(name string, do func() error) error {
		if name == "swap" {
			return errKilled
		}
		return do()
	}
	if _, err := tables.Apply(mapstest.Config(t, "a tcp 80 to 10.0.0.2")); err == nil {
		t.Fatal("not killed")
	}
	tables.step = whole
	mustApply(t, tables, mapstest.Config(t, "a tcp 80 to 10.0.0.3"))
	tables.wantTargets(t, "10.0.0.3")
}

func TestMSSClampFollowsTheLinks(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	ppp, ethernet := mapstest.WAN("wan0", 2), mapstest.WAN("wan1", 3)
	ppp.PPP, ppp.MTU, ethernet.MTU = true, 1492, 1500
	lan := config.Interface{Name: "lan0", Index: 4, Role: config.RoleLAN, MTU: 1280, PPP: true}
	for _, test := range []struct {
		name  string
		clamp []string
		want  [3]uint32 // MTUs of ppp, ethernet and lan
	}{
		{"by default", nil, [3]uint32{1492, 0, 0}},
		{"none", []string{}, [3]uint32{}},
		{"by name", []string{"wan1"}, [3]uint32{0, 1500, 0}},
		{"both", []string{"wan1", "wan0"}, [3]uint32{1492, 1500, 0}},
	} {
		c := mapstest.Config(t)
		c.MSSClamp = test.clamp
		mustApply(t, tables, c)
		// Another process reads the configuration: nil and an empty list must stay different.
		mustSetInterfaces(t, tables.again(), ppp, ethernet, lan)
		var got [3]uint32
		for i := range got {
			var value bpf.HairpinInterface
			if err := tables.objs.Interfaces.Lookup(uint32(2+i), &value); err != nil {
				t.Fatal(err)
			}
			got[i] = value.MssMtu
		}
		if got != test.want {
			t.Errorf("%s: MTUs %v, want %v", test.name, got, test.want)
		}
	}
	ethernet.MTU = 1280
	mustSetInterfaces(t, tables, ppp, ethernet, lan)
	var value bpf.HairpinInterface
	if err := tables.objs.Interfaces.Lookup(uint32(3), &value); err != nil || value.MssMtu != 1280 {
		t.Errorf("after the link's MTU changed to 1280: %d, %v", value.MssMtu, err)
	}
}

// TestTheTriePrefersWhatSaysMore: for each protocol and port, the trie finds the most specific forward.
func TestTheTriePrefersWhatSaysMore(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	mustApply(t, tables, mapstest.Config(t,
		"all any wan0:any to 10.0.0.1", "tcp tcp wan0:any to 10.0.0.2", "web tcp,sctp wan0:80 to 10.0.0.3", "ping icmp wan0:any to 10.0.0.4"))
	mustSetInterfaces(t, tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
	for _, test := range []struct {
		protocol rule.Protocol
		port     uint16
		target   string
	}{
		{rule.TCP, 80, "10.0.0.3"}, {rule.SCTP, 80, "10.0.0.3"}, {rule.TCP, 81, "10.0.0.2"}, {rule.SCTP, 81, "10.0.0.1"},
		{rule.UDP, 80, "10.0.0.1"}, {rule.ICMP, 0, "10.0.0.4"}, {rule.GRE, 0, "10.0.0.1"}, {rule.ESP, 0, "10.0.0.1"}, {rule.IPIP, 0, "10.0.0.1"}, {rule.UDPLite, 0, "10.0.0.1"},
	} {
		f, found, lives := mapstest.Route(t, tables.objs, "203.0.113.1", test.protocol, test.port)
		if want := netip.MustParseAddr(test.target); !found || !lives || layout.FromAddr(f.Target) != want || f.PortShift != 0 {
			t.Errorf("%s %d goes to %s (found %v, lives %v), want %s", test.protocol, test.port, layout.FromAddr(f.Target), found, lives, want)
		}
	}
}
