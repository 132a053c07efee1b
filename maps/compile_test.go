// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"hairpin/bpf"
)

// TestPortTreeIsThePainter compares longest match in the prefixes with an array
// in which each range just overwrites what was there.
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
	for ports, want := range map[Ports]int{
		{}:             1,
		{1, 65535}:     16,
		{1, 65534}:     30,
		{6000, 6000}:   1,
		{8192, 16383}:  1,
		{6000, 6010}:   3,
		{1024, 65535}:  6,
		{32768, 65535}: 1,
		{65535, 65535}: 1,
		{10000, 20000}: 11,
	} {
		tree := newPortTree()
		first, last := ports.bounds()
		tree.paint(first, last, 0)
		count := 0
		tree.each(func(uint16, int, int) error { count++; return nil })
		if count != want {
			t.Errorf("%v: %d prefixes, want %d", ports, count, want)
		}
	}
}

func testInventory() inventory {
	return inventory{epoch: func(uint32) (uint32, error) { return 0, nil }, forwardIDs: 1000}
}

// before is a whole document as what ran before c.
func (d *document) before(c Config) *earlier {
	e, err := d.earlierThan(c, func(visit func(*Forward, epochRef) bool) error {
		for i := range d.Config.Forwards {
			visit(&d.Config.Forwards[i], d.EpochRefs[i])
		}
		return nil
	})
	if err != nil {
		panic(err) // nothing above fails
	}
	return e
}

// compare is the change from one configuration to another.
func compare(from, to Config) Change {
	d := document{Config: from, EpochRefs: make([]epochRef, len(from.Forwards))}
	return d.before(to).change(to)
}

func mustCompile(t *testing.T, c Config, running *document, have inventory) *program {
	t.Helper()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	p, err := compile(c, running.before(c), have)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// find looks up as the datapath does: a fixed address, then its interface.
func (p *program) find(at place, protocol Protocol, port uint16) string {
	best, name := uint32(0), ""
	for i, key := range p.keys {
		same := key.PrefixLength == externalBits
		if !same {
			bits := key.PrefixLength - protocolBits
			same = key.Protocol == protocol.number(at.is6()) && (be16(key.Port)^port)>>(16-bits) == 0
		}
		if same && key.External == p.doc.Externals[at] && key.External != 0 && key.PrefixLength > best {
			best, name = key.PrefixLength, p.nameOf(p.values[i].EpochRef.Id)
		}
	}
	return name
}

// nameOf is the name of the forward with an id.
func (p *program) nameOf(id uint32) string {
	i := slices.IndexFunc(p.doc.EpochRefs, func(s epochRef) bool { return s.id == id })
	return p.doc.Config.Forwards[i].Name
}

func TestTheMoreSpecificForwardWins(t *testing.T) {
	p := mustCompile(t, configWith(t,
		"every-port tcp 6005 to 10.0.0.1",
		"every-range tcp 6000-6100 to 10.0.0.1",
		"one-range tcp wan0:6000-6010 to 10.0.0.1",
		"one-port tcp wan0:6002 to 10.0.0.1",
		"one-half tcp wan0:6000-6001 to 10.0.0.1",
		"fixed tcp 203.0.113.1:6003 to 10.0.0.1",
		"all tcp wan1:any to 10.0.0.1",
	), &document{}, testInventory())
	wan0, wan1 := interfacePlace("wan0", false), interfacePlace("wan1", false)
	fixed := addressPlace(netip.MustParseAddr("203.0.113.1"))
	for _, test := range []struct {
		at   place
		port uint16
		want string
	}{
		{wan0, 6005, "one-range"}, // the interface beats the smaller range of every interface
		{wan0, 6000, "one-half"},
		{wan0, 6001, "one-half"},
		{wan0, 6002, "one-port"},
		{wan0, 6003, "one-range"},
		{wan0, 6010, "one-range"},
		{wan0, 6011, "every-range"},
		{wan0, 5999, ""},
		{wan1, 6005, "all"}, // even all of its ports
		{wan1, 80, "all"},
		{fixed, 6003, "fixed"},
		{fixed, 6004, ""}, // the datapath goes on with the group
	} {
		if got := p.find(test.at, TCP, test.port); got != test.want {
			t.Errorf("%s:%d goes to %q, want %q", test.at, test.port, got, test.want)
		}
		if got := p.find(test.at, UDP, test.port); got != "" {
			t.Errorf("udp %s:%d goes to %q", test.at, test.port, got)
		}
	}
}

func TestProtocolsWithoutPorts(t *testing.T) {
	p := mustCompile(t, configWith(t,
		"every-any any any to 10.0.0.1",
		"every-ping icmp any to 10.0.0.2",
		"every-web tcp 80 to 10.0.0.3",
		"own-any any wan0:any to 10.0.0.4",
		"own-tunnel gre,esp,ipip,udplite wan0:any to 10.0.0.5",
		"own-tcp tcp wan0:any to 10.0.0.6",
		"own-ssh tcp,sctp wan0:22 to 10.0.0.7",
		"fixed sctp,icmp 203.0.113.1:any to 10.0.0.8",
	), &document{}, testInventory())
	wan0, wan1 := interfacePlace("wan0", false), interfacePlace("wan1", false)
	fixed := addressPlace(netip.MustParseAddr("203.0.113.1"))
	for _, test := range []struct {
		at       place
		protocol Protocol
		port     uint16
		want     string
	}{
		{wan1, UDP, 80, "every-any"},
		{wan1, GRE, 0, "every-any"},
		{wan1, ICMP, 0, "every-ping"},
		{wan1, TCP, 80, "every-web"},
		{wan1, TCP, 81, "every-any"},
		{wan0, ICMP, 0, "own-any"}, // the interface beats the protocol of every interface
		{wan0, UDP, 80, "own-any"},
		{wan0, SCTP, 23, "own-any"},
		{wan0, SCTP, 22, "own-ssh"},
		{wan0, TCP, 22, "own-ssh"},
		{wan0, TCP, 80, "own-tcp"}, // and the port
		{wan0, GRE, 0, "own-tunnel"},
		{wan0, ESP, 0, "own-tunnel"},
		{wan0, IPIP, 0, "own-tunnel"},
		{wan0, UDPLite, 0, "own-tunnel"},
		{fixed, SCTP, 1, "fixed"},
		{fixed, ICMP, 0, "fixed"},
		{fixed, TCP, 1, ""}, // the datapath goes on with the group
	} {
		if got := p.find(test.at, test.protocol, test.port); got != test.want {
			t.Errorf("%s %s:%d goes to %q, want %q", test.protocol, test.at, test.port, got, test.want)
		}
	}
	for i, key := range p.keys {
		bits := key.PrefixLength
		if any := key.Protocol == 0; any != (bits == 32) || bits != 32 && bits < 48 {
			t.Errorf("prefix of %d bits for protocol %d", bits, key.Protocol)
		}
		if p.values[i].PortShift != 0 {
			t.Errorf("port shift %d", p.values[i].PortShift)
		}
	}
}

// TestRandomForwardsAgreeWithTheRule checks compile against the rule itself,
// port by port.
func TestRandomForwardsAgreeWithTheRule(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 15 {
		c := configWith(t)
		for i := range 60 {
			first := uint16(1 + rng.IntN(200))
			f := Forward{
				Name: fmt.Sprintf("f%d", i), Protocols: []Protocol{TCP}, Target: netip.MustParseAddr("10.0.0.1"),
				Ports: Ports{first, first + uint16(rng.IntN(1<<rng.IntN(8)))},
			}
			if rng.IntN(2) == 0 {
				f.External.Interface = "wan0"
			}
			c.Forwards = append(c.Forwards, f)
			if c.Validate() != nil {
				c.Forwards = c.Forwards[:len(c.Forwards)-1]
			}
		}
		p := mustCompile(t, c, &document{}, testInventory())
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
			if got := p.find(interfacePlace("wan0", false), TCP, port); got != want {
				t.Fatalf("port %d goes to %q, want %q, of\n%v", port, got, want, c.Forwards)
			}
		}
	}
}

func TestProtocolsShareTheForwardsID(t *testing.T) {
	c := configWith(t, "a tcp,udp 6000-6010 to 10.0.0.1:7000 from 10.0.0.0/8 reflect router")
	c.WAN = c.WAN[:1]
	p := mustCompile(t, c, &document{}, testInventory())
	if len(p.keys) != 6 || len(p.fresh) != 1 {
		t.Fatalf("%d entries, %d ids", len(p.keys), len(p.fresh))
	}
	for _, value := range p.values {
		want := bpf.HairpinForward{
			Target: toAddr(netip.MustParseAddr("10.0.0.1")), EpochRef: p.fresh[0].kernel(),
			Reflect: bpf.HairpinReflectREFLECT_ROUTER, PortShift: 1000, Restricted: 1,
		}
		if value != want {
			t.Errorf("got %+v, want %+v", value, want)
		}
	}
	if want := []bpf.HairpinAllowKey{allowKey(p.fresh[0].id, netip.MustParsePrefix("10.0.0.0/8"))}; !slices.Equal(p.sources, want) || want[0].PrefixLength != 32+96+8 {
		t.Errorf("sources %+v", p.sources)
	}
}

func TestPortShiftMayGoDown(t *testing.T) {
	p := mustCompile(t, configWith(t, "a tcp 8443 to 10.0.0.1:443"), &document{}, testInventory())
	if port := 8443 + p.values[0].PortShift; port != 443 {
		t.Errorf("8443 becomes %d", port)
	}
}

func TestStampsAndExternalIDsAreStable(t *testing.T) {
	have := testInventory()
	have.epoch = func(id uint32) (uint32, error) { return 100 + id, nil }
	have.lastExternal = 7
	first := mustCompile(t, configWith(t, "a tcp 1 to 10.0.0.1", "b tcp 203.0.113.5:2 to 10.0.0.1", "c tcp 3 to 10.0.0.1"), &document{}, have)
	if want := []epochRef{{1, 101}, {2, 102}, {3, 103}}; !slices.Equal(first.doc.EpochRefs, want) {
		t.Fatalf("epoch references %v, want %v", first.doc.EpochRefs, want)
	}
	fixed := addressPlace(netip.MustParseAddr("203.0.113.5"))
	if wan0, id := first.doc.Externals[interfacePlace("wan0", false)], first.doc.Externals[fixed]; wan0 != 8 || id != 12 {
		t.Errorf("external ids %v: those an address may still have are in them", first.doc.Externals)
	}

	// c goes, a is retargeted, b moves to the front, d comes.
	second := mustCompile(t, configWith(t, "b tcp 203.0.113.5:2 to 10.0.0.1", "d tcp 4 to 10.0.0.1", "a tcp 1 to 10.0.0.2"), &first.doc, have)
	if want := []epochRef{{2, 102}, {4, 104}, {5, 105}}; !slices.Equal(second.doc.EpochRefs, want) {
		t.Errorf("epoch references %v, want %v: new forwards get ids that nothing runs under", second.doc.EpochRefs, want)
	}
	if want := []epochRef{{1, 101}, {3, 103}}; !slices.Equal(second.doc.Ended, want) {
		t.Errorf("ended %v, want %v", second.doc.Ended, want)
	}
	if second.doc.Externals[fixed] != first.doc.Externals[fixed] {
		t.Error("external id of an address changed")
	}

	// What ended is free for the next.
	third := mustCompile(t, configWith(t, "b tcp 203.0.113.5:2 to 10.0.0.1", "e tcp 5 to 10.0.0.1"), &second.doc, have)
	if want := []epochRef{{2, 102}, {1, 101}}; !slices.Equal(third.doc.EpochRefs, want) {
		t.Errorf("epoch references %v, want %v", third.doc.EpochRefs, want)
	}
}

func TestWhatEndsConnections(t *testing.T) {
	base := configWith(t, "a tcp,udp 443 to 10.0.0.1 from 10.0.0.0/8,192.0.2.0/24")
	for name, test := range map[string]struct {
		change func(*Config)
		ends   bool
		listed bool
	}{
		"nothing":                   {func(*Config) {}, false, false},
		"where it is written":       {func(c *Config) { c.Forwards[0].Source = "x:1" }, false, false},
		"order of its lists":        {func(c *Config) { slices.Reverse(c.Forwards[0].From); slices.Reverse(c.Forwards[0].Protocols) }, false, false},
		"same target port, written": {func(c *Config) { c.Forwards[0].TargetPort = 443 }, false, false},
		"default mode, written":     {func(c *Config) { c.Forwards[0].Reflect = ReflectAuto }, false, false},
		"hosts":                     {func(c *Config) { c.Forwards[0].Hosts = []string{"a.example"} }, false, true},
		"target":                    {func(c *Config) { c.Forwards[0].Target = netip.MustParseAddr("10.0.0.2") }, true, true},
		"target port":               {func(c *Config) { c.Forwards[0].TargetPort = 444 }, true, true},
		"ports":                     {func(c *Config) { c.Forwards[0].Ports = Ports{444, 444} }, true, true},
		"protocols":                 {func(c *Config) { c.Forwards[0].Protocols = []Protocol{TCP} }, true, true},
		"external":                  {func(c *Config) { c.Forwards[0].External.Interface = "wan0" }, true, true},
		"from":                      {func(c *Config) { c.Forwards[0].From = c.Forwards[0].From[:1] }, true, true},
		"reflect":                   {func(c *Config) { c.Forwards[0].Reflect = ReflectOff }, true, true},
		"default reflection":        {func(c *Config) { c.Reflection = ReflectOff }, true, true},
	} {
		changed := base
		changed.Forwards = []Forward{base.Forwards[0]}
		changed.Forwards[0].From = slices.Clone(base.Forwards[0].From)
		changed.Forwards[0].Protocols = slices.Clone(base.Forwards[0].Protocols)
		changed.Forwards[0].TargetPort = 0
		test.change(&changed)
		before := base
		before.Forwards = []Forward{base.Forwards[0]}
		before.Forwards[0].TargetPort = 0
		running := mustCompile(t, before, &document{}, testInventory())
		p := mustCompile(t, changed, &running.doc, testInventory())
		if ends := len(p.doc.Ended) == 1; ends != test.ends {
			t.Errorf("%s: connections end: %v", name, ends)
		}
		if listed := len(compare(before, changed).Changed) == 1; listed != test.listed {
			t.Errorf("%s: in the list of changes: %v", name, listed)
		}
	}
}

func TestIDsRunOut(t *testing.T) {
	have := testInventory()
	have.forwardIDs = 2
	c := configWith(t, "a tcp 1 to 10.0.0.1", "b tcp 2 to 10.0.0.1", "c tcp 3 to 10.0.0.1")
	_, err := compile(c, new(document).before(c), have)
	if want := "all ids up to 2 are in use"; err == nil || !contains(err, want) {
		t.Errorf("error %v lacks %q", err, want)
	}
}

func TestCompareListsSettings(t *testing.T) {
	from, to := configWith(t), configWith(t)
	to.LAN, to.Timeouts.UDP, to.MaxConnections = nil, to.Timeouts.UDP*2, 5
	if got := fmt.Sprint(compare(from, to).Settings); got != "[interfaces.lan datapath.max_connections timeouts.udp]" {
		t.Error(got)
	}
	to = configWith(t)
	to.Timeouts.TCPTransitory, to.ICMP.Rate, to.ICMP.Refuse, to.MSSClamp = time.Second, 1, nil, []string{}
	if got := fmt.Sprint(compare(from, to).Settings); got != "[datapath.mss_clamp timeouts.tcp_transitory icmp.refuse icmp.rate]" {
		t.Error(got)
	}
	to = configWith(t)
	to.Timeouts.TCPOpening, to.Timeouts.TCPClosing = time.Second, to.Timeouts.TCPTransitory
	if got := fmt.Sprint(compare(from, to).Settings); got != "[timeouts.tcp_opening]" {
		t.Errorf("%s: what is written as it was by default is no change", got)
	}
	to = configWith(t)
	to.StandIns = standIns("192.168.1.0/24 198.18.1.0/24", "192.168.2.0/24 198.18.2.0/24")
	if got := fmt.Sprint(compare(from, to).Settings); got != "[reflection.prefixes]" {
		t.Error(got)
	}
	from.StandIns = slices.Clone(to.StandIns)
	slices.Reverse(from.StandIns)
	if got := fmt.Sprint(compare(from, to).Settings); got != "[]" {
		t.Errorf("%s: their order means nothing", got)
	}
	from.StandIns, to = nil, configWith(t)
	to.DNS = []DNSFile{{Format: DNSHosts, Path: "/a", Reload: []string{"true"}, Source: "x:1"}}
	if got := fmt.Sprint(compare(from, to).Settings); got != "[dns.write dns.reload]" {
		t.Error(got)
	}
	from.DNS = []DNSFile{{Format: DNSHosts, Path: "/a", Reload: []string{"true", "it"}, Source: "x:2"}}
	if got := fmt.Sprint(compare(from, to).Settings); got != "[dns.reload]" {
		t.Error(got)
	}
	from.DNS, to = nil, configWith(t)
	from.ICMP.Refuse, to.ICMP.Refuse = []string{"lan", "wan"}, []string{"wan", "lan"}
	to.LAN, from.LAN = []string{}, nil
	if change := compare(from, to); !change.Empty() {
		t.Errorf("an empty list is not none: %+v", change)
	}
}

func TestLabelsComeFromTheDatapath(t *testing.T) {
	for _, test := range []struct {
		words map[uint32]string
		value uint32
		want  string
	}{
		{names().reasons, uint32(bpf.HairpinReasonREASON_TABLE_FULL), "table_full"},
		{names().verdicts, uint32(bpf.HairpinVerdictVERDICT_REFUSE), "refuse"},
		{names().paths, uint32(bpf.HairpinConnPathPATH_HAIRPIN), "hairpin"},
		{names().roles, uint32(bpf.HairpinRoleROLE_LAN), "lan"},
		{names().reasons, 4711, "unknown_4711"},
	} {
		if got := word(test.words, test.value); got != test.want {
			t.Errorf("got %s, want %s", got, test.want)
		}
	}
	if paths := fmt.Sprint(pathNames()); paths != "[wan hairpin local]" {
		t.Error(paths)
	}
	spec, err := embedded()
	if err != nil {
		t.Fatal(err)
	}
	reflects := enumNames(spec.Types, "reflect")
	if len(reflects) != len(ReflectNames()) {
		t.Errorf("reflect modes %v of the datapath, %v here", reflects, ReflectNames())
	}
	for _, mode := range ReflectNames() {
		if got := reflects[uint32(reflectModes[Reflect(mode)])]; got != mode {
			t.Errorf("%s is %q to the datapath", mode, got)
		}
	}
}
