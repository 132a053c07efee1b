// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hairpin/bpf"
	"hairpin/maps/layout"
	"hairpin/maps/mapstest"
)

// liveOrigins returns the origins in the live slot.
func (t *Tables) liveOrigins(tb testing.TB) map[bpf.HairpinOriginKey]bpf.HairpinOrigin {
	tb.Helper()
	generation, err := t.generation()
	if err != nil {
		tb.Fatal(err)
	}
	all, err := readAll[bpf.HairpinOriginKey, bpf.HairpinOrigin](mapstest.Slot(tb, t.objs.Origins, generation&1))
	if err != nil {
		tb.Fatal(err)
	}
	return all
}

// TestAddedOriginsAreThoseOfApply adds random forwards with Add, and compares the origins with the origins after Apply of
// all forwards.
func TestAddedOriginsAreThoseOfApply(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(7, 8))
	pick := func(words ...string) string { return words[random.IntN(len(words))] }
	added, ambiguous := 0, 0
	for round := range 4 {
		fast, slow := newTables(t, mapstest.SmallSpec(t)), newTables(t, mapstest.SmallSpec(t))
		c := mapstest.Config(t, "base udp 203.0.113.1:500 to 10.0.0.1", "catch tcp 203.0.113.2:500 to 10.0.0.1")
		c.WAN = c.WAN[:1+round%2]
		mustApply(t, fast, c)
		for i := range 12 {
			first, target := 1+random.IntN(60), 1+random.IntN(60)
			f := mapstest.Forward(t, fmt.Sprintf("f%d %s %s%d-%d to 10.0.0.%d:%d", i, pick("tcp", "udp", "tcp,udp"), pick("", "wan0:", "203.0.113.1:", "203.0.113.2:"),
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

// byPlace formats origins with places instead of external ids, because the ids differ between datapaths.
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
				told[fmt.Sprintf("%s %d %d/%d", layout.FromAddr(key.Target), key.Protocol, layout.Be16(key.Port), key.PrefixLength)] = fmt.Sprint(at, origin.PortShift, origin.Wan, origin.SeveralWans)
			}
		}
	}
	if len(told) != len(origins) {
		tb.Fatalf("%d of %d origins lead somewhere", len(told), len(origins))
	}
	return told
}
