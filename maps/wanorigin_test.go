// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hairpin/bpf"
)

// TestWhereAnswersToTheInternetCameBy: a UDP port of a target has an origin if exactly one external address and port
// lead there.
func TestWhereAnswersToTheInternetCameBy(t *testing.T) {
	c := configWith(t,
		"dns udp 53 to 10.0.0.1:5353",
		"web tcp 80 to 10.0.0.1:8080",
		"both tcp,udp 443 to 10.0.0.1",
		"range udp 6000-6010 to 10.0.0.1:7000",
		"hole udp 6005 to 10.0.0.9",
		"twice udp 82 to 10.0.0.4:1",
		"again udp 203.0.113.7:83 to 10.0.0.4:1",
		"wide udp 84-90 to 10.0.0.5",
		"own udp 203.0.113.7:86 to 10.0.0.5",
		"every any 203.0.113.8:any to 10.0.0.6",
		"shadow udp 203.0.113.8:54 to 10.0.0.7",
		"meets udp 203.0.113.8:55 to 10.0.0.6:24",
		"v6 udp 53 to fd00::1",
		"basic udp 203.0.113.9:any to 10.0.0.8",
	)
	c.WAN = c.WAN[:1]
	c.Forwards = append(c.Forwards,
		Forward{Name: "catch", Intercept: true, Protocols: []Protocol{UDP}, Ports: Ports{53, 53}, Target: mustForward(t, "x udp 1 to 10.0.0.1").Target, TargetPort: 5353, Reflect: ReflectRouter})
	p := mustCompile(t, c, &document{}, testInventory())
	for _, test := range []struct {
		target   string
		protocol Protocol
		port     uint16
		want     string
	}{
		{"10.0.0.1", UDP, 5353, "wan0:53"}, // an intercept serves LANs
		{"10.0.0.1", UDP, 53, ""},
		{"10.0.0.1", UDP, 8080, ""},
		{"10.0.0.1", TCP, 8080, ""},
		{"10.0.0.1", UDP, 443, "wan0:443"},
		{"10.0.0.1", TCP, 443, ""},
		{"10.0.0.1", UDP, 7000, "wan0:6000"},
		{"10.0.0.1", UDP, 7005, ""},
		{"10.0.0.9", UDP, 6005, "wan0:6005"},
		{"10.0.0.1", UDP, 7010, "wan0:6010"},
		{"10.0.0.1", UDP, 7011, ""},
		{"10.0.0.4", UDP, 1, ""},
		{"10.0.0.5", UDP, 85, "wan0:85"},
		{"10.0.0.5", UDP, 86, ""},
		{"10.0.0.5", UDP, 87, "wan0:87"},
		{"10.0.0.6", UDP, 53, "203.0.113.8:53"},
		{"10.0.0.6", UDP, 54, ""},
		{"10.0.0.7", UDP, 54, "203.0.113.8:54"},
		{"10.0.0.6", UDP, 24, ""},
		{"10.0.0.6", UDP, 55, ""},
		{"10.0.0.6", TCP, 53, ""},
		{"10.0.0.8", UDP, 65535, "203.0.113.9:65535"},
		{"fd00::1", UDP, 53, "wan0:53"},
	} {
		if got := p.cameByWAN(test.target, test.protocol, test.port); got != test.want {
			t.Errorf("%s %s:%d came by %q, want %q", test.protocol, test.target, test.port, got, test.want)
		}
	}
	for i, origin := range p.origins {
		if origin.Wan != 1 || origin.SeveralWans != 0 || p.originKeys[i].Wan != 1 || p.originKeys[i].Protocol != uint8(UDP) {
			t.Errorf("%+v: %+v", p.originKeys[i], origin)
		}
	}
}

// TestOriginsOfSeveralWANs: a forward of all of them has none.
func TestOriginsOfSeveralWANs(t *testing.T) {
	p := mustCompile(t, configWith(t, "all udp 53 to 10.0.0.1", "one udp wan1:54 to 10.0.0.1", "own udp 203.0.113.7:55 to 10.0.0.1"), &document{}, testInventory())
	for port, want := range map[uint16]string{53: "", 54: "wan1:54", 55: "203.0.113.7:55"} {
		if got := p.cameByWAN("10.0.0.1", UDP, port); got != want {
			t.Errorf("port %d came by %q, want %q", port, got, want)
		}
	}
	for i, origin := range p.origins {
		if origin.SeveralWans != 1 {
			t.Errorf("%+v: %+v", p.originKeys[i], origin)
		}
	}
}

// TestTwoKindsOfOrigin: what answers a stand-in does not answer the Internet, also where a forward is of every protocol.
func TestTwoKindsOfOrigin(t *testing.T) {
	c := withStandIns(t, "every any 203.0.113.8:any to 10.0.0.6 reflect prefix", "more udp 53 to 10.0.0.6", "only udp 203.0.113.9:9 to 10.0.0.7 reflect prefix")
	p := mustCompile(t, c, &document{}, testInventory())
	for _, test := range []struct {
		target       string
		port         uint16
		standIn, wan string
	}{
		{"10.0.0.6", 53, "203.0.113.8:53", ""}, // two lead there, one of them with reflect prefix
		{"10.0.0.6", 54, "203.0.113.8:54", "203.0.113.8:54"},
		{"10.0.0.7", 9, "203.0.113.9:9", "203.0.113.9:9"},
	} {
		if standIn, wan := p.cameBy(test.target, UDP, test.port), p.cameByWAN(test.target, UDP, test.port); standIn != test.standIn || wan != test.wan {
			t.Errorf("%s:%d: stand-ins by %q, the Internet by %q, want %q and %q", test.target, test.port, standIn, wan, test.standIn, test.wan)
		}
	}
}

// liveOrigins are those that the datapath finds now.
func (t *Tables) liveOrigins(tb testing.TB) map[bpf.HairpinOriginKey]bpf.HairpinOrigin {
	tb.Helper()
	generation, err := t.generation()
	if err != nil {
		tb.Fatal(err)
	}
	all, err := readAll[bpf.HairpinOriginKey, bpf.HairpinOrigin](inner(tb, t.objs.Origins, generation&1))
	if err != nil {
		tb.Fatal(err)
	}
	return all
}

// TestAddedOriginsAreThoseOfApply adds forwards at random, and compares with all of them applied at once.
func TestAddedOriginsAreThoseOfApply(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(7, 8))
	pick := func(words ...string) string { return words[random.IntN(len(words))] }
	added, ambiguous := 0, 0
	for round := range 4 {
		fast, slow := newTables(t, smallSpec(t)), newTables(t, smallSpec(t))
		c := configWith(t, "base udp 203.0.113.1:500 to 10.0.0.1", "catch tcp 203.0.113.2:500 to 10.0.0.1")
		c.WAN = c.WAN[:1+round%2]
		mustApply(t, fast, c)
		for i := range 12 {
			first, target := 1+random.IntN(60), 1+random.IntN(60)
			f := mustForward(t, fmt.Sprintf("f%d %s %s%d-%d to 10.0.0.%d:%d", i, pick("tcp", "udp", "tcp,udp"), pick("", "wan0:", "203.0.113.1:", "203.0.113.2:"),
				first, first+random.IntN(6), 1+random.IntN(3), target))
			next := c
			if next.Forwards = append(slices.Clip(c.Forwards), f); next.Validate() != nil {
				continue
			}
			before := fast.liveOrigins(t)
			c = next
			done, err := fast.Add(f)
			if err != nil {
				t.Fatal(err)
			}
			if !done {
				mustApply(t, fast, c)
			} else {
				added++
			}
			mustApply(t, slow, c)
			got, want := fast.liveOrigins(t), slow.liveOrigins(t)
			for key := range before {
				if _, stays := got[key]; !stays {
					ambiguous++
				}
			}
			if diff := cmp.Diff(byPlace(t, slow, want), byPlace(t, fast, got)); diff != "" {
				t.Fatalf("after %s beside %v (-want +got)\n%s", f, c.Forwards, diff)
			}
		}
	}
	if added < 10 || ambiguous == 0 {
		t.Errorf("%d were added in place, %d origins became ambiguous", added, ambiguous)
	}
}

// byPlace tells origins without ids, which differ between datapaths.
func byPlace(tb testing.TB, t *Tables, origins map[bpf.HairpinOriginKey]bpf.HairpinOrigin) map[string]string {
	tb.Helper()
	doc, _, err := t.running()
	if err != nil {
		tb.Fatal(err)
	}
	told := map[string]string{}
	for key, origin := range origins {
		for at, id := range doc.Externals {
			if id == origin.External {
				told[fmt.Sprintf("%s %d %d/%d", fromAddr(key.Target), key.Protocol, be16(key.Port), key.PrefixLength)] = fmt.Sprint(at, origin.PortShift, origin.Wan, origin.SeveralWans)
			}
		}
	}
	if len(told) != len(origins) {
		tb.Fatalf("%d of %d origins lead somewhere", len(told), len(origins))
	}
	return told
}
