// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"hairpin/bpf"
	"hairpin/maps/config"
	"hairpin/maps/layout"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

// TestPortTreeIsThePainter compares the longest match in the port tree with an array in which each range overwrites the
// earlier ranges.
func TestPortTreeIsThePainter(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 60 {
		tree, array := newPortTree(), make([]int, 65536)
		for i := range array {
			array[i] = -1
		}
		for owner := range 1 + rng.IntN(40) {
			first := rng.IntN(65536)
			last := min(65535, first+rng.IntN(1+65536>>rng.IntN(17)))
			if round%7 == 0 {
				first &^= 7
				last |= 7
			}
			tree.paint(first, last, owner)
			for port := first; port <= last; port++ {
				array[port] = owner
			}
		}
		type prefix struct {
			port uint16
			bits int
		}
		prefixes := map[prefix]int{}
		tree.each(func(port uint16, bits, owner int) error {
			prefixes[prefix{port, bits}] = owner
			return nil
		})
		runs := make([]int, 65536)
		for i := range runs {
			runs[i] = -1
		}
		before := -1
		tree.eachRun(-1, func(first, last, owner int) {
			if first <= before || last < first || first == before+1 && first > 0 && runs[before] == owner {
				t.Fatalf("round %d: run %d-%d of %d after %d", round, first, last, owner, before)
			}
			for before = first; before <= last; before++ {
				runs[before] = owner
			}
			before = last
		})
		for port := range 65536 {
			got := -1
			for bits := 16; bits >= 0 && got < 0; bits-- {
				if owner, ok := prefixes[prefix{uint16(port) &^ (1<<(16-bits) - 1), bits}]; ok {
					got = owner
				}
			}
			if got != array[port] || runs[port] != got {
				t.Fatalf("round %d: port %d belongs to %d, and by runs to %d, want %d", round, port, got, runs[port], array[port])
			}
		}
	}
}

func TestPortTreeNeedsFewPrefixes(t *testing.T) {
	for ports, want := range map[rule.Ports]int{
		{}:                          1,
		{First: 1, Last: 65535}:     16,
		{First: 1, Last: 65534}:     30,
		{First: 6000, Last: 6000}:   1,
		{First: 8192, Last: 16383}:  1,
		{First: 6000, Last: 6010}:   3,
		{First: 1024, Last: 65535}:  6,
		{First: 32768, Last: 65535}: 1,
		{First: 65535, Last: 65535}: 1,
		{First: 10000, Last: 20000}: 11,
	} {
		tree := newPortTree()
		first, last := ports.Bounds()
		tree.paint(first, last, 0)
		count := 0
		tree.each(func(uint16, int, int) error { count++; return nil })
		if count != want {
			t.Errorf("%v: %d prefixes, want %d", ports, count, want)
		}
	}
}

func testInventory() Inventory {
	return Inventory{Epoch: func(uint32) (uint32, error) { return 0, nil }, ForwardIDs: 1000}
}

// before compares the document, as the running configuration, with c.
func (d *Document) before(c config.Config) *Running {
	e, err := d.running(c, func(visit func(*rule.Forward, EpochRef) bool) error {
		for i := range d.Config.Forwards {
			visit(&d.Config.Forwards[i], d.EpochRefs[i])
		}
		return nil
	})
	if err != nil {
		panic(err) // cannot happen: the visit function returns no error
	}
	return e
}

// compare returns the change from one configuration to another.
func compare(from, to config.Config) config.Change {
	d := Document{Config: from, EpochRefs: make([]EpochRef, len(from.Forwards))}
	return d.before(to).Change(to)
}

func mustCompile(t *testing.T, c config.Config, running *Document, have Inventory) *Program {
	t.Helper()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	p, err := Compile(c, running.before(c), have)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// find returns the name of the forward that the datapath finds at a place, "" if there is none.
func (p *Program) find(at rule.Place, protocol rule.Protocol, port uint16) string {
	best, name := uint32(0), ""
	for i, key := range p.ForwardKeys {
		same := key.PrefixLength == layout.ExternalBits
		if !same {
			bits := key.PrefixLength - layout.ProtocolBits
			same = key.Protocol == protocol.Number(at.Is6()) && (layout.Be16(key.Port)^port)>>(16-bits) == 0
		}
		if same && key.External == p.Doc.Externals[at] && key.External != 0 && key.PrefixLength > best {
			best, name = key.PrefixLength, p.nameOf(p.Forwards[i].EpochRef.Id)
		}
	}
	return name
}

// nameOf returns the name of the forward with this id.
func (p *Program) nameOf(id uint32) string {
	i := slices.IndexFunc(p.Doc.EpochRefs, func(s EpochRef) bool { return s.ID == id })
	return p.Doc.Config.Forwards[i].Name
}

func TestTheMoreSpecificForwardWins(t *testing.T) {
	p := mustCompile(t, mapstest.Config(t,
		"every-port tcp 6005 to 10.0.0.1",
		"every-range tcp 6000-6100 to 10.0.0.1",
		"one-range tcp wan0:6000-6010 to 10.0.0.1",
		"one-port tcp wan0:6002 to 10.0.0.1",
		"one-half tcp wan0:6000-6001 to 10.0.0.1",
		"fixed tcp 203.0.113.1:6003 to 10.0.0.1",
		"all tcp wan1:any to 10.0.0.1",
	), &Document{}, testInventory())
	wan0, wan1 := rule.AtWAN("wan0", false), rule.AtWAN("wan1", false)
	fixed := rule.AtAddress(netip.MustParseAddr("203.0.113.1"))
	for _, test := range []struct {
		at   rule.Place
		port uint16
		want string
	}{
		{wan0, 6005, "one-range"}, // an interface wins over every interface, even with a larger range
		{wan0, 6000, "one-half"},
		{wan0, 6001, "one-half"},
		{wan0, 6002, "one-port"},
		{wan0, 6003, "one-range"},
		{wan0, 6010, "one-range"},
		{wan0, 6011, "every-range"},
		{wan0, 5999, ""},
		{wan1, 6005, "all"}, // an interface wins, even with every port
		{wan1, 80, "all"},
		{fixed, 6003, "fixed"},
		{fixed, 6004, ""}, // the datapath looks up the group next
	} {
		if got := p.find(test.at, rule.TCP, test.port); got != test.want {
			t.Errorf("%s:%d goes to %q, want %q", test.at, test.port, got, test.want)
		}
		if got := p.find(test.at, rule.UDP, test.port); got != "" {
			t.Errorf("udp %s:%d goes to %q", test.at, test.port, got)
		}
	}
}

func TestProtocolsWithoutPorts(t *testing.T) {
	p := mustCompile(t, mapstest.Config(t,
		"every-any any any to 10.0.0.1",
		"every-ping icmp any to 10.0.0.2",
		"every-web tcp 80 to 10.0.0.3",
		"own-any any wan0:any to 10.0.0.4",
		"own-tunnel gre,esp,ipip,udplite wan0:any to 10.0.0.5",
		"own-tcp tcp wan0:any to 10.0.0.6",
		"own-ssh tcp,sctp wan0:22 to 10.0.0.7",
		"fixed sctp,icmp 203.0.113.1:any to 10.0.0.8",
	), &Document{}, testInventory())
	wan0, wan1 := rule.AtWAN("wan0", false), rule.AtWAN("wan1", false)
	fixed := rule.AtAddress(netip.MustParseAddr("203.0.113.1"))
	for _, test := range []struct {
		at       rule.Place
		protocol rule.Protocol
		port     uint16
		want     string
	}{
		{wan1, rule.UDP, 80, "every-any"},
		{wan1, rule.GRE, 0, "every-any"},
		{wan1, rule.ICMP, 0, "every-ping"},
		{wan1, rule.TCP, 80, "every-web"},
		{wan1, rule.TCP, 81, "every-any"},
		{wan0, rule.ICMP, 0, "own-any"}, // an interface wins over one protocol of every interface
		{wan0, rule.UDP, 80, "own-any"},
		{wan0, rule.SCTP, 23, "own-any"},
		{wan0, rule.SCTP, 22, "own-ssh"},
		{wan0, rule.TCP, 22, "own-ssh"},
		{wan0, rule.TCP, 80, "own-tcp"}, // an interface wins over one port of every interface
		{wan0, rule.GRE, 0, "own-tunnel"},
		{wan0, rule.ESP, 0, "own-tunnel"},
		{wan0, rule.IPIP, 0, "own-tunnel"},
		{wan0, rule.UDPLite, 0, "own-tunnel"},
		{fixed, rule.SCTP, 1, "fixed"},
		{fixed, rule.ICMP, 0, "fixed"},
		{fixed, rule.TCP, 1, ""}, // the datapath looks up the group next
	} {
		if got := p.find(test.at, test.protocol, test.port); got != test.want {
			t.Errorf("%s %s:%d goes to %q, want %q", test.protocol, test.at, test.port, got, test.want)
		}
	}
	for i, key := range p.ForwardKeys {
		bits := key.PrefixLength
		if any := key.Protocol == 0; any != (bits == 32) || bits != 32 && bits < 48 {
			t.Errorf("prefix of %d bits for protocol %d", bits, key.Protocol)
		}
		if p.Forwards[i].PortShift != 0 {
			t.Errorf("port shift %d", p.Forwards[i].PortShift)
		}
	}
}

// TestRandomForwardsAgreeWithTheRule compares the entries with a direct implementation of the rule "the more specific
// forward wins", for each port.
func TestRandomForwardsAgreeWithTheRule(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 15 {
		c := mapstest.Config(t)
		for i := range 60 {
			first := uint16(1 + rng.IntN(200))
			f := rule.Forward{
				Name: fmt.Sprintf("f%d", i), Protocols: []rule.Protocol{rule.TCP}, Target: netip.MustParseAddr("10.0.0.1"),
				Ports: rule.Ports{First: first, Last: first + uint16(rng.IntN(1<<rng.IntN(8)))},
			}
			if rng.IntN(2) == 0 {
				f.External.Interface = "wan0"
			}
			c.Forwards = append(c.Forwards, f)
			if c.Validate() != nil {
				c.Forwards = c.Forwards[:len(c.Forwards)-1]
			}
		}
		p := mustCompile(t, c, &Document{}, testInventory())
		for port := range uint16(500) {
			want, size := "", 1<<20
			for _, f := range c.Forwards {
				weight := f.Ports.Len()
				if f.External.Interface == "" {
					weight += 1 << 17
				}
				if f.Ports.First <= port && port <= f.Ports.Last && weight < size {
					want, size = f.Name, weight
				}
			}
			if got := p.find(rule.AtWAN("wan0", false), rule.TCP, port); got != want {
				t.Fatalf("port %d goes to %q, want %q, of\n%v", port, got, want, c.Forwards)
			}
		}
	}
}

func TestProtocolsShareTheForwardsID(t *testing.T) {
	c := mapstest.Config(t, "a tcp,udp 6000-6010 to 10.0.0.1:7000 from 10.0.0.0/8 reflect router")
	c.WAN = c.WAN[:1]
	p := mustCompile(t, c, &Document{}, testInventory())
	if len(p.ForwardKeys) != 6 || len(p.Fresh) != 1 {
		t.Fatalf("%d entries, %d ids", len(p.ForwardKeys), len(p.Fresh))
	}
	for _, value := range p.Forwards {
		want := bpf.HairpinForward{
			Target: layout.ToAddr(netip.MustParseAddr("10.0.0.1")), EpochRef: p.Fresh[0].kernel(),
			Reflect: bpf.HairpinReflectREFLECT_ROUTER, PortShift: 1000, Restricted: 1, Wide: 1,
		}
		if value != want {
			t.Errorf("got %+v, want %+v", value, want)
		}
	}
	if want := []bpf.HairpinAllowKey{layout.AllowKey(p.Fresh[0].ID, netip.MustParsePrefix("10.0.0.0/8"))}; !slices.Equal(p.AllowKeys, want) || want[0].PrefixLength != 32+96+8 {
		t.Errorf("sources %+v", p.AllowKeys)
	}
}

func TestPortShiftMayGoDown(t *testing.T) {
	p := mustCompile(t, mapstest.Config(t, "a tcp 8443 to 10.0.0.1:443"), &Document{}, testInventory())
	if port := 8443 + p.Forwards[0].PortShift; port != 443 {
		t.Errorf("8443 becomes %d", port)
	}
}

func TestStampsAndExternalIDsAreStable(t *testing.T) {
	have := testInventory()
	have.Epoch = func(id uint32) (uint32, error) { return 100 + id, nil }
	have.LastExternal = 7
	first := mustCompile(t, mapstest.Config(t, "a tcp 1 to 10.0.0.1", "b tcp 203.0.113.5:2 to 10.0.0.1", "c tcp 3 to 10.0.0.1"), &Document{}, have)
	if want := []EpochRef{{1, 101}, {2, 102}, {3, 103}}; !slices.Equal(first.Doc.EpochRefs, want) {
		t.Fatalf("epochRefs %v, want %v", first.Doc.EpochRefs, want)
	}
	fixed := rule.AtAddress(netip.MustParseAddr("203.0.113.5"))
	if wan0, id := first.Doc.Externals[rule.AtWAN("wan0", false)], first.Doc.Externals[fixed]; wan0 != 8 || id != 12 {
		t.Errorf("external ids %v: those an address may still have are in them", first.Doc.Externals)
	}

	// c is removed, a gets another target, b moves to the front, d is new.
	second := mustCompile(t, mapstest.Config(t, "b tcp 203.0.113.5:2 to 10.0.0.1", "d tcp 4 to 10.0.0.1", "a tcp 1 to 10.0.0.2"), &first.Doc, have)
	if want := []EpochRef{{2, 102}, {4, 104}, {5, 105}}; !slices.Equal(second.Doc.EpochRefs, want) {
		t.Errorf("epochRefs %v, want %v: new forwards get ids that nothing runs under", second.Doc.EpochRefs, want)
	}
	if want := []EpochRef{{1, 101}, {3, 103}}; !slices.Equal(second.Doc.Ended, want) {
		t.Errorf("ended %v, want %v", second.Doc.Ended, want)
	}
	if second.Doc.Externals[fixed] != first.Doc.Externals[fixed] {
		t.Error("external id of an address changed")
	}

	// The ids of ended forwards are free for the next configuration.
	third := mustCompile(t, mapstest.Config(t, "b tcp 203.0.113.5:2 to 10.0.0.1", "e tcp 5 to 10.0.0.1"), &second.Doc, have)
	if want := []EpochRef{{2, 102}, {1, 101}}; !slices.Equal(third.Doc.EpochRefs, want) {
		t.Errorf("epochRefs %v, want %v", third.Doc.EpochRefs, want)
	}
}

func TestWhatEndsConnections(t *testing.T) {
	base := mapstest.Config(t, "a tcp,udp 443 to 10.0.0.1 from 10.0.0.0/8,192.0.2.0/24")
	for name, test := range map[string]struct {
		change func(*config.Config)
		ends   bool
		listed bool
	}{
		"nothing":                   {func(*config.Config) {}, false, false},
		"where it is written":       {func(c *config.Config) { c.Forwards[0].Source = "x:1" }, false, false},
		"order of its lists":        {func(c *config.Config) { slices.Reverse(c.Forwards[0].From); slices.Reverse(c.Forwards[0].Protocols) }, false, false},
		"same target port, written": {func(c *config.Config) { c.Forwards[0].TargetPort = 443 }, false, false},
		"default mode, written":     {func(c *config.Config) { c.Forwards[0].Reflect = rule.ReflectAuto }, false, false},
		"hosts":                     {func(c *config.Config) { c.Forwards[0].Hosts = []string{"a.example"} }, false, true},
		"target":                    {func(c *config.Config) { c.Forwards[0].Target = netip.MustParseAddr("10.0.0.2") }, true, true},
		"target port":               {func(c *config.Config) { c.Forwards[0].TargetPort = 444 }, true, true},
		"ports":                     {func(c *config.Config) { c.Forwards[0].Ports = rule.Ports{First: 444, Last: 444} }, true, true},
		"protocols":                 {func(c *config.Config) { c.Forwards[0].Protocols = []rule.Protocol{rule.TCP} }, true, true},
		"external":                  {func(c *config.Config) { c.Forwards[0].External.Interface = "wan0" }, true, true},
		"from":                      {func(c *config.Config) { c.Forwards[0].From = c.Forwards[0].From[:1] }, true, true},
		"reflect":                   {func(c *config.Config) { c.Forwards[0].Reflect = rule.ReflectOff }, true, true},
		"default reflection":        {func(c *config.Config) { c.Reflection = rule.ReflectOff }, true, true},
	} {
		changed := base
		changed.Forwards = []rule.Forward{base.Forwards[0]}
		changed.Forwards[0].From = slices.Clone(base.Forwards[0].From)
		changed.Forwards[0].Protocols = slices.Clone(base.Forwards[0].Protocols)
		changed.Forwards[0].TargetPort = 0
		test.change(&changed)
		before := base
		before.Forwards = []rule.Forward{base.Forwards[0]}
		before.Forwards[0].TargetPort = 0
		running := mustCompile(t, before, &Document{}, testInventory())
		p := mustCompile(t, changed, &running.Doc, testInventory())
		if ends := len(p.Doc.Ended) == 1; ends != test.ends {
			t.Errorf("%s: connections end: %v", name, ends)
		}
		if listed := len(compare(before, changed).Changed) == 1; listed != test.listed {
			t.Errorf("%s: in the list of changes: %v", name, listed)
		}
	}
}

func TestIDsRunOut(t *testing.T) {
	have := testInventory()
	have.ForwardIDs = 2
	c := mapstest.Config(t, "a tcp 1 to 10.0.0.1", "b tcp 2 to 10.0.0.1", "c tcp 3 to 10.0.0.1")
	_, err := Compile(c, new(Document).before(c), have)
	if want := "all ids up to 2 are in use"; err == nil || !mapstest.Contains(err, want) {
		t.Errorf("error %v lacks %q", err, want)
	}
}

func TestCompareListsSettings(t *testing.T) {
	from, to := mapstest.Config(t), mapstest.Config(t)
	to.LAN, to.Timeouts.UDP, to.MaxConnections = nil, to.Timeouts.UDP*2, 5
	if got := fmt.Sprint(compare(from, to).Settings); got != "[interfaces.lan datapath.max_connections timeouts.udp]" {
		t.Error(got)
	}
	to = mapstest.Config(t)
	to.Timeouts.TCPTransitory, to.ICMP.Rate, to.ICMP.Refuse, to.MSSClamp = time.Second, 1, nil, []string{}
	if got := fmt.Sprint(compare(from, to).Settings); got != "[datapath.mss_clamp timeouts.tcp_transitory icmp.refuse icmp.rate]" {
		t.Error(got)
	}
	to = mapstest.Config(t)
	to.PrivateSources = []string{"wan1", "wan0"}
	from.PrivateSources = []string{"wan0"}
	if got := fmt.Sprint(compare(from, to).Settings); got != "[interfaces.private_sources]" {
		t.Error(got)
	}
	from.PrivateSources = []string{"wan0", "wan1"}
	if got := fmt.Sprint(compare(from, to).Settings); got != "[]" {
		t.Errorf("%s: their order means nothing", got)
	}
	from, to = mapstest.Config(t), mapstest.Config(t)
	to.Timeouts.TCPOpening, to.Timeouts.TCPClosing = time.Second, to.Timeouts.TCPTransitory
	if got := fmt.Sprint(compare(from, to).Settings); got != "[timeouts.tcp_opening]" {
		t.Errorf("%s: what is written as it was by default is no change", got)
	}
	to = mapstest.Config(t)
	to.StandIns = mapstest.StandIns("192.168.1.0/24 198.18.1.0/24", "192.168.2.0/24 198.18.2.0/24")
	if got := fmt.Sprint(compare(from, to).Settings); got != "[reflection.prefixes]" {
		t.Error(got)
	}
	from.StandIns = slices.Clone(to.StandIns)
	slices.Reverse(from.StandIns)
	if got := fmt.Sprint(compare(from, to).Settings); got != "[]" {
		t.Errorf("%s: their order means nothing", got)
	}
	from.StandIns, to = nil, mapstest.Config(t)
	to.DNS = []config.DNSFile{{Format: config.DNSHosts, Path: "/a", Reload: []string{"true"}, Source: "x:1"}}
	if got := fmt.Sprint(compare(from, to).Settings); got != "[dns.write dns.reload]" {
		t.Error(got)
	}
	from.DNS = []config.DNSFile{{Format: config.DNSHosts, Path: "/a", Reload: []string{"true", "it"}, Source: "x:2"}}
	if got := fmt.Sprint(compare(from, to).Settings); got != "[dns.reload]" {
		t.Error(got)
	}
	from.DNS, to = nil, mapstest.Config(t)
	from.ICMP.Refuse, to.ICMP.Refuse = []string{"lan", "wan"}, []string{"wan", "lan"}
	to.LAN, from.LAN = []string{}, nil
	if change := compare(from, to); !change.Empty() {
		t.Errorf("an empty list is not none: %+v", change)
	}
}
