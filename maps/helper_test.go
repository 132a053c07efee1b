// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"testing"

	"github.com/cilium/ebpf"

	"hairpin/maps/config"
	"hairpin/maps/mapstest"
)

// newTables creates the maps of a datapath, without programs.
func newTables(t testing.TB, spec *ebpf.CollectionSpec) *Tables {
	t.Helper()
	return New(mapstest.NewMaps(t, spec))
}

// again returns Tables for the same maps without cached state, as in another process.
func (t *Tables) again() *Tables { return New(t.objs) }

func mustApply(t testing.TB, tables *Tables, c config.Config) config.Change {
	t.Helper()
	change, err := tables.Apply(c)
	if err != nil {
		t.Fatal(err)
	}
	return change
}

func mustPlan(t testing.TB, tables *Tables, c config.Config) config.Change {
	t.Helper()
	change, err := tables.Plan(c)
	if err != nil {
		t.Fatal(err)
	}
	return change
}
