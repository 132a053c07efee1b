// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"hairpin/maps/compile"
	"hairpin/maps/config"
	"hairpin/maps/mapstest"
)

func policy(protects bool, source, destination string) config.Policy {
	return config.Policy{
		Source: config.PolicySide{Network: netip.MustParsePrefix(source)}, Destination: config.PolicySide{Network: netip.MustParsePrefix(destination)}, Protects: protects,
	}
}

// The list in the kernel is the list of now, whatever its length. A writer that was killed before it ended the connections
// leaves a list that the next writer takes for another one.
func TestSetPolicies(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	list := []config.Policy{policy(false, "10.1.0.0/16", "10.8.0.1/32"), policy(true, "0.0.0.0/0", "10.8.0.0/24"), policy(true, "::/0", "fd08::/64")}
	want := func(when string, policies []config.Policy) {
		t.Helper()
		got, err := tables.policies()
		if err != nil || !slices.Equal(got, compile.Policies(policies)) {
			t.Errorf("%s: %+v, %v", when, got, err)
		}
	}
	for _, step := range []struct {
		name string
		list []config.Policy
	}{{"none", nil}, {"three", list}, {"one", list[1:2]}, {"two", list[1:]}, {"none again", nil}} {
		for range 2 {
			if err := tables.SetPolicies(step.list); err != nil {
				t.Errorf("%s: %v", step.name, err)
			}
			want(step.name, step.list)
		}
	}
	killed := errors.New("killed")
	tables.step = func(name string, do func() error) error {
		if name == "end protected connections" {
			return killed
		}
		return do()
	}
	if err := tables.SetPolicies(list); !errors.Is(err, killed) {
		t.Fatalf("not killed: %v", err)
	}
	if err := tables.again().SetPolicies(list); err != nil {
		t.Error(err)
	}
	want("after a killed writer", list)
	if err := tables.SetPolicies(make([]config.Policy, config.MaxPolicies+1)); err == nil {
		t.Error("more policies than the datapath asks are taken")
	}
}
