// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"hairpin/bpf"
	"hairpin/maps/config"
	"hairpin/maps/layout"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

// origin looks up an origin as origin_find() of the datapath does.
func (p *Program) origin(target netip.Addr, protocol rule.Protocol, wan uint8, port uint16) (best bpf.HairpinOrigin, found bool) {
	length := uint32(0)
	for i, key := range p.OriginKeys {
		if layout.FromAddr(key.Target) != target || key.PrefixLength <= length {
			continue
		}
		bits := key.PrefixLength - layout.TargetBits
		if bits == 0 || key.Protocol == protocol.Number(target.Is6()) && key.Wan == wan && (layout.Be16(key.Port)^port)>>(16-(bits-16)) == 0 {
			best, length, found = p.Origins[i], key.PrefixLength, true
		}
	}
	return best, found && best.Wan == wan
}

// cameBy returns the external address and port that a client of reflect prefix has used to reach this target port. "": no
// forward reaches the port. "?": several forwards do.
func (p *Program) cameBy(target string, protocol rule.Protocol, port uint16) string {
	return p.cameByOf(target, protocol, 0, port)
}

// cameByWAN is cameBy for a client on the Internet.
func (p *Program) cameByWAN(target string, protocol rule.Protocol, port uint16) string {
	return p.cameByOf(target, protocol, 1, port)
}

func (p *Program) cameByOf(target string, protocol rule.Protocol, wan uint8, port uint16) string {
	origin, found := p.origin(netip.MustParseAddr(target), protocol, wan, port)
	switch {
	case !found:
		return ""
	case origin.External == 0:
		return "?"
	}
	for at, id := range p.Doc.Externals {
		if id == origin.External {
			return fmt.Sprintf("%s:%d", at, port-origin.PortShift)
		}
	}
	return "nowhere"
}

func TestOriginsLeadBack(t *testing.T) {
	c := mapstest.WithStandIns(t,
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
		"other tcp 203.0.113.7:87 to 10.0.0.5", // not reflect prefix, so its clients have no stand-ins
		"web6 tcp,icmp any to fd00::1 reflect prefix",
		"every any 203.0.113.8:any to 10.0.0.6 reflect prefix",
		"ssh tcp 203.0.113.8:22 to 10.0.0.7 reflect prefix",
		"hidden tcp 203.0.113.8:23 to 10.0.0.6:24 reflect prefix",
	)
	p := mustCompile(t, c, &Document{}, testInventory())
	for _, test := range []struct {
		target   string
		protocol rule.Protocol
		port     uint16
		want     string
	}{
		{"10.0.0.1", rule.TCP, 8080, "wan0:80"},
		{"10.0.0.1", rule.UDP, 8080, ""},
		{"10.0.0.1", rule.TCP, 80, ""},
		{"10.0.0.1", rule.UDP, 7000, "wan0:6000"},
		{"10.0.0.1", rule.UDP, 7004, "wan0:6004"},
		{"10.0.0.1", rule.UDP, 7005, ""},
		{"10.0.0.9", rule.UDP, 6005, "wan0:6005"},
		{"10.0.0.1", rule.UDP, 7010, "wan0:6010"},
		{"10.0.0.1", rule.UDP, 7011, ""},
		{"10.0.0.1", rule.ICMP, 0, "wan0:0"},
		{"10.0.0.1", rule.ICMP, 4711, "wan0:4711"},
		{"10.0.0.1", rule.GRE, 0, "wan0:0"},
		{"10.0.0.1", rule.ESP, 0, ""},
		{"10.0.0.2", rule.TCP, 443, "203.0.113.7:443"},
		{"10.0.0.3", rule.TCP, 81, ""},
		{"10.0.0.4", rule.TCP, 1, "?"},
		{"10.0.0.5", rule.TCP, 85, "wan0:85"},
		{"10.0.0.5", rule.TCP, 86, "?"},
		{"10.0.0.5", rule.TCP, 87, "wan0:87"},
		{"10.0.0.5", rule.TCP, 91, ""},
		{"fd00::1", rule.TCP, 443, "wan0:443"},
		{"fd00::1", rule.ICMP, 1, "wan0:1"},
		{"fd00::1", rule.UDP, 443, ""},
		{"10.0.0.6", rule.UDP, 53, "203.0.113.8:53"},
		{"10.0.0.6", rule.SCTP, 53, "203.0.113.8:53"},
		{"10.0.0.6", rule.ICMP, 7, "203.0.113.8:7"},
		{"10.0.0.6", rule.TCP, 25, "203.0.113.8:25"},
		{"10.0.0.6", rule.TCP, 24, "?"},
		{"10.0.0.7", rule.TCP, 22, "203.0.113.8:22"},
	} {
		if got := p.cameBy(test.target, test.protocol, test.port); got != test.want {
			t.Errorf("%s %s:%d came by %q, want %q", test.protocol, test.target, test.port, got, test.want)
		}
	}
	for i, key := range p.OriginKeys {
		if key.PrefixLength != 128 && (key.PrefixLength < 144 || key.PrefixLength > 160) || key.Wan != p.Origins[i].Wan {
			t.Errorf("key %d: %+v", i, key)
		}
	}
}

// TestSeveralWANsAreNoOrigin: if a forward listens on both WAN interfaces, its target port does not tell which interface.
func TestSeveralWANsAreNoOrigin(t *testing.T) {
	c := mapstest.WithStandIns(t, "every tcp 80 to 10.0.0.1 reflect prefix", "one tcp wan1:81 to 10.0.0.1 reflect prefix",
		"shadow tcp wan0:82 to 10.0.0.9", "rest tcp 82 to 10.0.0.1 reflect prefix")
	c.WAN = []string{"wan0", "wan1"}
	p := mustCompile(t, c, &Document{}, testInventory())
	for port, want := range map[uint16]string{80: "?", 81: "wan1:81", 82: "wan1:82"} {
		if got := p.cameBy("10.0.0.1", rule.TCP, port); got != want {
			t.Errorf("port %d came by %q, want %q", port, got, want)
		}
	}
}

// TestManyOneToOneForwardsNeedOneOriginEach: a 1:1 forward of every protocol needs one origin for each kind of answer.
func TestManyOneToOneForwardsNeedOneOriginEach(t *testing.T) {
	c := mapstest.WithStandIns(t)
	for i := range 1000 {
		c.Forwards = append(c.Forwards, mapstest.Forward(t, fmt.Sprintf("f%d any 203.0.%d.%d:any to 10.1.%d.%d reflect prefix", i, i>>8, i&255, i>>8, i&255)))
	}
	p := mustCompile(t, c, &Document{}, testInventory())
	if len(p.OriginKeys) != 2000 || len(p.StandInKeys) != 4 {
		t.Errorf("%d origins, %d stand-ins", len(p.OriginKeys), len(p.StandInKeys))
	}
	c.StandIns, c.Reflection = nil, rule.ReflectAuto
	for i := range c.Forwards {
		c.Forwards[i].Reflect = ""
	}
	if p = mustCompile(t, c, &Document{}, testInventory()); len(p.OriginKeys) != 1000 {
		t.Errorf("without stand-ins: %d origins", len(p.OriginKeys))
	}
}

// TestRandomOriginsAgreeWithTheForwards looks up the target of every external port, and checks that the origin of this
// target port is the external port again.
func TestRandomOriginsAgreeWithTheForwards(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for round := range 15 {
		c := mapstest.WithStandIns(t)
		c.WAN = []string{"wan0", "wan1"}
		for i := range 60 {
			c.Forwards = append(c.Forwards, randomForward(t, rng, i))
			if c.Validate() != nil {
				c.Forwards = c.Forwards[:len(c.Forwards)-1]
			}
		}
		p := mustCompile(t, c, &Document{}, testInventory())
		byName := config.IndexByName(c.Forwards)
		want := map[string]string{}
		for at := range p.Doc.Externals {
			for port := range uint16(700) {
				name := p.find(at, rule.TCP, port)
				if name == "" || at.Is6() {
					continue
				}
				f := c.Forwards[byName[name]]
				if f.Reflect != rule.ReflectPrefix {
					continue
				}
				target := fmt.Sprintf("%s %d", f.Target, port+f.PortShift())
				if want[target] != "" {
					want[target] = "?"
					continue
				}
				want[target] = fmt.Sprintf("%s:%d", at, port)
			}
		}
		for _, target := range []string{"10.0.0.1", "10.0.0.2"} {
			for port := range uint16(700) {
				got := p.cameBy(target, rule.TCP, port)
				if at := want[fmt.Sprintf("%s %d", target, port)]; got != at {
					t.Fatalf("round %d: %s:%d came by %q, want %q, of\n%v", round, target, port, got, at, c.Forwards)
				}
			}
		}
	}
}

func randomForward(t *testing.T, rng *rand.Rand, i int) rule.Forward {
	first := 1 + rng.IntN(200)
	last := first + rng.IntN(1<<rng.IntN(8))
	external := []string{"", "wan0:", "wan1:", "203.0.113.7:"}[rng.IntN(4)]
	mode := []string{"auto", "prefix", "prefix"}[rng.IntN(3)]
	return mapstest.Forward(t, fmt.Sprintf("f%d tcp %s%d-%d to 10.0.0.%d:%d reflect %s", i, external, first, last, 1+rng.IntN(2), 1+rng.IntN(200), mode))
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
		before := mapstest.WithStandIns(t, test.line)
		after := mapstest.WithStandIns(t, test.line)
		after.StandIns = mapstest.StandIns(test.pairs...)
		running := mustCompile(t, before, &Document{}, testInventory())
		p := mustCompile(t, after, &running.Doc, testInventory())
		if ends := len(p.Doc.Ended) == 1; ends != test.ends {
			t.Errorf("%s: connections end: %v", name, ends)
		}
	}
}
