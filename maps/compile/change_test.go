// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"hairpin/maps/config"
	"hairpin/maps/mapstest"
)

// disabled returns c with these forwards disabled.
func disabled(c config.Config, names ...string) config.Config {
	for _, name := range names {
		c.Forwards[config.IndexByName(c.Forwards)[name]].Disabled = true
	}
	c.Split()
	return c
}

// A forward that is disabled or enabled is a changed one: neither removed nor added.
func TestChangesOfDisabledForwards(t *testing.T) {
	const a, b, otherB = "a tcp 1 to 10.0.0.1", "b tcp 2 to 10.0.0.1", "b tcp 3 to 10.0.0.1"
	both := func() config.Config { return mapstest.Config(t, a, b) }
	for name, test := range map[string]struct {
		from, to config.Config
		want     config.Change
	}{
		"disabled":                     {both(), disabled(both(), "b"), config.Change{Changed: []string{"b"}, Unchanged: 1}},
		"enabled":                      {disabled(both(), "b"), both(), config.Change{Changed: []string{"b"}, Unchanged: 1}},
		"stays disabled":               {disabled(both(), "b"), disabled(both(), "b"), config.Change{Unchanged: 2}},
		"changed while it is disabled": {disabled(both(), "b"), disabled(mapstest.Config(t, a, otherB), "b"), config.Change{Changed: []string{"b"}, Unchanged: 1}},
		"new and disabled":             {mapstest.Config(t, a), disabled(both(), "b"), config.Change{Added: []string{"b"}, Unchanged: 1}},
		"removed while it is disabled": {disabled(both(), "b"), mapstest.Config(t, a), config.Change{Removed: []string{"b"}, Unchanged: 1}},
	} {
		got, err := Compare(test.from, test.to)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", name, diff)
		}
	}
}

// A forward that drains keeps its epoch reference, so its connections live; it has no entry, so none opens. Once it is gone it is no
// difference, because whoever deleted it was told.
func TestDrainingForward(t *testing.T) {
	c := mapstest.Config(t, "a udp 1-4 to 10.0.0.1", "b tcp 2 to 10.0.0.1")
	running := Document{Config: c, EpochRefs: []EpochRef{{5, 1}, {6, 1}}, Externals: nil}
	draining := mapstest.Config(t, "a udp 1-4 to 10.0.0.1", "b tcp 2 to 10.0.0.1", "new udp 1 to 10.0.0.9")
	draining.Forwards[0].DrainUntil = time.Hour
	if err := draining.Validate(); err != nil {
		t.Fatalf("the port is not free for another forward: %v", err)
	}
	have := Inventory{Epoch: func(uint32) (uint32, error) { return 1, nil }, ForwardIDs: 10}
	p, err := Compile(draining, running.before(draining), have)
	if err != nil {
		t.Fatal(err)
	}
	if p.Doc.EpochRefs[0] != running.EpochRefs[0] || len(p.Doc.Ended) != 0 || !p.Doc.Draining {
		t.Errorf("epoch reference %v, was %v; ended %v; draining %v", p.Doc.EpochRefs[0], running.EpochRefs[0], p.Doc.Ended, p.Doc.Draining)
	}
	for i, forward := range p.Forwards {
		if forward.EpochRef.Id == 5 {
			t.Errorf("entry %+v leads to the forward that drains", p.ForwardKeys[i])
		}
	}
	if len(p.Origins) != len(p.OriginKeys) || len(p.Forwards) == 0 {
		t.Fatalf("%d entries", len(p.Forwards))
	}
	gone := mapstest.Config(t, "b tcp 2 to 10.0.0.1", "new udp 1 to 10.0.0.9")
	after := p.Doc.before(gone)
	if change := after.Change(gone); !change.Empty() || !cmp.Equal(after.Ending, []string{"a"}) {
		t.Errorf("change %+v, ends the connections of %v, want no change, and a", change, after.Ending)
	}
}
