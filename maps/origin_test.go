// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hairpin/bpf"
)

// origin looks up as the datapath's origin_find() does.
func (p *program) origin(target netip.Addr, protocol Protocol, wan uint8, port uint16) (best bpf.HairpinOrigin, found bool) {
	length := uint32(0)
	for i, key := range p.originKeys {
		if fromAddr(key.Target) != target || key.PrefixLength <= length {
			continue
		}
		bits := key.PrefixLength - targetBits
		if bits == 0 || key.Protocol == protocol.number(target.Is6()) && key.Wan == wan && (be16(key.Port)^port)>>(16-(bits-16)) == 0 {
			best, length, found = p.origins[i], key.PrefixLength, true
		}
	}
	return best, found && best.Wan == wan
}

// cameBy is where a client of reflect prefix has connected to, seen from a
// server's port: "" if none can have, "?" if nobody can tell.
func (p *program) cameBy(target string, protocol Protocol, port uint16) string {
	return p.cameByOf(target, protocol, 0, port)
}

// cameByWAN is the same of a client on the Internet.
func (p *program) cameByWAN(target string, protocol Protocol, port uint16) string {
	return p.cameByOf(target, protocol, 1, port)
}

func (p *program) cameByOf(target string, protocol Protocol, wan uint8, port uint16) string {
	origin, found := p.origin(netip.MustParseAddr(target), protocol, wan, port)
	switch {
	case !found:
		return ""
	case origin.External == 0:
		return "?"
	}
	for at, id := range p.doc.Externals {
		if id == origin.External {
			return fmt.Sprintf("%s:%d", at, port-origin.PortShift)
		}
	}
	return "nowhere"
}

func TestOriginsLeadBack(t *testing.T) {
	c := withStandIns(t,
		"web tcp 80 to 10.0.0.1:8080 reflect prefix",
		"range udp wan0:6000-6010 to 10.0.0.1:7000 reflect prefix",
		"hole udp wan0:6005 to 10.0.0.9 reflect prefix",
		"ping icmp,gre any to 10.0.0.1 reflect prefix",
		"fixed tcp 203.0.113.7:443 to 10.0.0.2 reflect prefix",
		"plain tcp 81 to 10.0.0.3",
		"twice tcp 82 to 10.0.0.4:1 reflect prefix",
		"again tcp 83 to 10.0.0.4:1 reflect prefix",
		"both tcp 84-90 to 10.0.0.5 reflect prefix",
		"own tcp 203.0.113.7:86 to 10.0.0.5 reflect prefix",
		"other tcp 203.0.113.7:87 to 10.0.0.5", // no client comes by it with a stand-in
		"web6 tcp,icmp any to fd00::1 reflect prefix",
		"every any 203.0.113.8:any to 10.0.0.6 reflect prefix",
		"ssh tcp 203.0.113.8:22 to 10.0.0.7 reflect prefix",
		"hidden tcp 203.0.113.8:23 to 10.0.0.6:24 reflect prefix",
	)
	p := mustCompile(t, c, &document{}, testInventory())
	for _, test := range []struct {
		target   string
		protocol Protocol
		port     uint16
		want     string
	}{
		{"10.0.0.1", TCP, 8080, "wan0:80"},
		{"10.0.0.1", UDP, 8080, ""},
		{"10.0.0.1", TCP, 80, ""},
		{"10.0.0.1", UDP, 7000, "wan0:6000"},
		{"10.0.0.1", UDP, 7004, "wan0:6004"},
		{"10.0.0.1", UDP, 7005, ""},
		{"10.0.0.9", UDP, 6005, "wan0:6005"},
		{"10.0.0.1", UDP, 7010, "wan0:6010"},
		{"10.0.0.1", UDP, 7011, ""},
		{"10.0.0.1", ICMP, 0, "wan0:0"},
		{"10.0.0.1", ICMP, 4711, "wan0:4711"},
		{"10.0.0.1", GRE, 0, "wan0:0"},
		{"10.0.0.1", ESP, 0, ""},
		{"10.0.0.2", TCP, 443, "203.0.113.7:443"},
		{"10.0.0.3", TCP, 81, ""},
		{"10.0.0.4", TCP, 1, "?"},
		{"10.0.0.5", TCP, 85, "wan0:85"},
		{"10.0.0.5", TCP, 86, "?"},
		{"10.0.0.5", TCP, 87, "wan0:87"},
		{"10.0.0.5", TCP, 91, ""},
		{"fd00::1", TCP, 443, "wan0:443"},
		{"fd00::1", ICMP, 1, "wan0:1"},
		{"fd00::1", UDP, 443, ""},
		{"10.0.0.6", UDP, 53, "203.0.113.8:53"},
		{"10.0.0.6", SCTP, 53, "203.0.113.8:53"},
		{"10.0.0.6", ICMP, 7, "203.0.113.8:7"},
		{"10.0.0.6", TCP, 25, "203.0.113.8:25"},
		{"10.0.0.6", TCP, 24, "?"},
		{"10.0.0.7", TCP, 22, "203.0.113.8:22"},
	} {
		if got := p.cameBy(test.target, test.protocol, test.port); got != test.want {
			t.Errorf("%s %s:%d came by %q, want %q", test.protocol, test.target, test.port, got, test.want)
		}
	}
	for i, key := range p.originKeys {
		if key.PrefixLength != 128 && (key.PrefixLength < 144 || key.PrefixLength > 160) || key.Wan != p.origins[i].Wan {
			t.Errorf("key %d: %+v", i, key)
		}
	}
}

// TestSeveralWANsAreNoOrigin: what listens on both cannot be told from its target.
func TestSeveralWANsAreNoOrigin(t *testing.T) {
	c := withStandIns(t, "every tcp 80 to 10.0.0.1 reflect prefix", "one tcp wan1:81 to 10.0.0.1 reflect prefix",
		"shadow tcp wan0:82 to 10.0.0.9", "rest tcp 82 to 10.0.0.1 reflect prefix")
	c.WAN = []string{"wan0", "wan1"}
	p := mustCompile(t, c, &document{}, testInventory())
	for port, want := range map[uint16]string{80: "?", 81: "wan1:81", 82: "wan1:82"} {
		if got := p.cameBy("10.0.0.1", TCP, port); got != want {
			t.Errorf("port %d came by %q, want %q", port, got, want)
		}
	}
}

// TestManyOneToOneForwardsNeedOneOriginEach of a kind, also those of every protocol.
func TestManyOneToOneForwardsNeedOneOriginEach(t *testing.T) {
	c := withStandIns(t)
	for i := range 1000 {
		c.Forwards = append(c.Forwards, mustForward(t, fmt.Sprintf("f%d any 203.0.%d.%d:any to 10.1.%d.%d reflect prefix", i, i>>8, i&255, i>>8, i&255)))
	}
	p := mustCompile(t, c, &document{}, testInventory())
	if len(p.originKeys) != 2000 || len(p.standInKeys) != 4 {
		t.Errorf("%d origins, %d stand-ins", len(p.originKeys), len(p.standInKeys))
	}
	c.StandIns, c.Reflection = nil, ReflectAuto
	for i := range c.Forwards {
		c.Forwards[i].Reflect = ""
	}
	if p = mustCompile(t, c, &document{}, testInventory()); len(p.originKeys) != 1000 {
		t.Errorf("without stand-ins: %d origins", len(p.originKeys))
	}
}

// TestRandomOriginsAgreeWithTheForwards asks every port of every listener where it
// leads, and the target where that came by.
func TestRandomOriginsAgreeWithTheForwards(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for round := range 15 {
		c := withStandIns(t)
		c.WAN = []string{"wan0", "wan1"}
		for i := range 60 {
			c.Forwards = append(c.Forwards, randomForward(t, rng, i))
			if c.Validate() != nil {
				c.Forwards = c.Forwards[:len(c.Forwards)-1]
			}
		}
		p := mustCompile(t, c, &document{}, testInventory())
		byName := byName(c.Forwards)
		want := map[string]string{}
		for at := range p.doc.Externals {
			for port := range uint16(700) {
				name := p.find(at, TCP, port)
				if name == "" || at.is6() {
					continue
				}
				f := c.Forwards[byName[name]]
				if f.Reflect != ReflectPrefix {
					continue
				}
				target := fmt.Sprintf("%s %d", f.Target, port+f.portShift())
				if want[target] != "" {
					want[target] = "?"
					continue
				}
				want[target] = fmt.Sprintf("%s:%d", at, port)
			}
		}
		for _, target := range []string{"10.0.0.1", "10.0.0.2"} {
			for port := range uint16(700) {
				got := p.cameBy(target, TCP, port)
				if at := want[fmt.Sprintf("%s %d", target, port)]; got != at {
					t.Fatalf("round %d: %s:%d came by %q, want %q, of\n%v", round, target, port, got, at, c.Forwards)
				}
			}
		}
	}
}

func randomForward(t *testing.T, rng *rand.Rand, i int) Forward {
	first := 1 + rng.IntN(200)
	last := first + rng.IntN(1<<rng.IntN(8))
	external := []string{"", "wan0:", "wan1:", "203.0.113.7:"}[rng.IntN(4)]
	mode := []string{"auto", "prefix", "prefix"}[rng.IntN(3)]
	return mustForward(t, fmt.Sprintf("f%d tcp %s%d-%d to 10.0.0.%d:%d reflect %s", i, external, first, last, 1+rng.IntN(2), 1+rng.IntN(200), mode))
}

func TestWhatChangesStandInsEndsConnections(t *testing.T) {
	for name, test := range map[string]struct {
		line  string
		pairs []string
		ends  bool
	}{
		"nothing":             {"a tcp 80 to 10.0.0.1 reflect prefix", []string{"fd00:1::/64 fd00:2::/64", "192.168.1.0/24 198.18.1.0/24"}, false},
		"one of the family":   {"a tcp 80 to 10.0.0.1 reflect prefix", []string{"192.168.1.0/24 198.18.2.0/24", "fd00:1::/64 fd00:2::/64"}, true},
		"one more":            {"a tcp 80 to 10.0.0.1 reflect prefix", []string{"192.168.1.0/24 198.18.1.0/24", "192.168.2.0/24 198.18.2.0/24"}, true},
		"of the other family": {"a tcp 80 to 10.0.0.1 reflect prefix", []string{"192.168.1.0/24 198.18.1.0/24"}, false},
		"that other family":   {"a tcp 80 to fd00::1 reflect prefix", []string{"192.168.1.0/24 198.18.1.0/24", "fd00:1::/64 fd00:3::/64"}, true},
		"another mode":        {"a tcp 80 to 10.0.0.1 reflect public", nil, false},
	} {
		before := withStandIns(t, test.line)
		after := withStandIns(t, test.line)
		after.StandIns = standIns(test.pairs...)
		running := mustCompile(t, before, &document{}, testInventory())
		p := mustCompile(t, after, &running.doc, testInventory())
		if ends := len(p.doc.Ended) == 1; ends != test.ends {
			t.Errorf("%s: connections end: %v", name, ends)
		}
	}
}

// wantListeners compares the table with "PLACE ADDRESS", sorted.
func (t *Tables) wantListeners(tb testing.TB, want ...string) {
	tb.Helper()
	doc, _, err := t.running()
	if err != nil {
		tb.Fatal(err)
	}
	present, err := readAll[uint32, bpf.HairpinAddr](t.objs.Listeners)
	if err != nil {
		tb.Fatal(err)
	}
	var got []string
	for at, id := range doc.Externals {
		if addr, there := present[id]; there {
			text, _ := at.MarshalText()
			got = append(got, fmt.Sprintf("%s %s", text, fromAddr(addr)))
		}
		delete(present, id)
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" || len(present) > 0 {
		tb.Errorf("listeners (-want +got), and stale %v\n%s", slices.Collect(maps.Keys(present)), diff)
	}
}

func TestListenersAreAloneAtTheirID(t *testing.T) {
	tables := newTables(t, smallSpec(t))
	c := withStandIns(t, "a tcp 80 to 10.0.0.1 reflect prefix", "fixed tcp 203.0.113.7:82 to 10.0.0.1")
	mustApply(t, tables, c)
	for _, step := range []struct {
		addrs []string
		want  string
	}{
		{nil, "203.0.113.7 203.0.113.7"},
		{[]string{"203.0.113.1/24"}, "203.0.113.7 203.0.113.7, wan0 203.0.113.1"},
		{[]string{"203.0.113.2/24", "2001:db8::1/64"}, "203.0.113.7 203.0.113.7, wan0 203.0.113.2, wan0/ipv6 2001:db8::1"},
		{[]string{"203.0.113.2/24", "203.0.113.3/24", "2001:db8::1/64"}, "203.0.113.7 203.0.113.7, wan0/ipv6 2001:db8::1"},
		{[]string{"203.0.113.3/24", "203.0.113.7/24"}, "203.0.113.7 203.0.113.7"},
		{[]string{"203.0.113.7/24", "fe80::1/64"}, "203.0.113.7 203.0.113.7, wan0 203.0.113.7"},
		{[]string{"2001:db8::1/64", "2001:db8::2/64"}, "203.0.113.7 203.0.113.7"},
	} {
		mustSetInterfaces(t, tables.again(), wan("wan0", 2, step.addrs...))
		tables.wantListeners(t, strings.Split(step.want, ", ")...)
	}
	mustSetInterfaces(t, tables, wan("wan0", 2, "203.0.113.1/24"))
	c.Forwards = c.Forwards[:1]
	mustApply(t, tables, c)
	mustSetInterfaces(t, tables, wan("wan0", 2, "203.0.113.1/24"))
	tables.wantListeners(t, "wan0 203.0.113.1")
	c.Forwards[0].Reflect, c.StandIns = ReflectAuto, nil
	mustApply(t, tables, c)
	mustSetInterfaces(t, tables, wan("wan0", 2, "203.0.113.1/24"))
	tables.wantListeners(t, "wan0 203.0.113.1")
}
