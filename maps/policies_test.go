// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"hairpin/bpf"
	"hairpin/maps/compile"
	"hairpin/maps/config"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
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

// connectThree adds a connection of a client on the Internet to each of two forwards, and one of a LAN client.
func connectThree(t *testing.T, tables *Tables) {
	t.Helper()
	mustApply(t, tables, mapstest.Config(t, "web tcp 443 to 192.168.1.20:8443", "ssh tcp 22 to 192.168.1.30"))
	mustSetInterfaces(t, tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
	web, address := mapstest.EpochRefs(t, tables.objs, "203.0.113.1", 443)
	ssh, _ := mapstest.EpochRefs(t, tables.objs, "203.0.113.1", 22)
	flow := mapstest.Flow{Protocol: rule.TCP, External: "203.0.113.1:443", Target: "192.168.1.20:8443", Forward: web, Address: address}
	client, lan := flow, flow
	client.Client, client.Source = "198.51.100.9:5000", "198.51.100.9:5000"
	lan.Client, lan.Source, lan.Path = "192.168.1.50:5000", "192.168.1.1:5001", bpf.HairpinConnPathPATH_HAIRPIN
	other := client
	other.External, other.Target, other.Forward = "203.0.113.1:22", "192.168.1.30:22", ssh
	mapstest.Open(t, tables.objs, client, other, lan)
}

// A connection ends when a policy begins to protect its packets or its answers, also by the order of the policies, and also
// if the writer that stored the policies was killed. The connections are read only if there may be such a connection.
func TestPoliciesEndConnections(t *testing.T) {
	pass := func(destination string) config.Policy { return policy(false, "0.0.0.0/0", destination) }
	answers := policy(true, "203.0.113.1/32", "198.51.100.0/24")
	packets := policy(true, "0.0.0.0/0", "192.168.1.30/32")
	none := policy(true, "0.0.0.0/0", "10.8.0.0/24")
	const all, lan, withoutSSH = 3, 1, 2
	for _, test := range []struct {
		name        string
		before, now []config.Policy
		left        int
		walks       bool
	}{
		{"answers are protected", nil, []config.Policy{answers}, lan, true},
		{"packets to a target are protected", nil, []config.Policy{none, packets}, withoutSSH, true},
		{"others are protected", nil, []config.Policy{none}, all, true},
		{"what let them pass has gone", []config.Policy{pass("0.0.0.0/0"), answers}, []config.Policy{answers}, lan, true},
		{"what let them pass is asked later", []config.Policy{pass("0.0.0.0/0"), answers}, []config.Policy{answers, pass("0.0.0.0/0")}, lan, true},
		{"what lets pass is new", []config.Policy{none}, []config.Policy{pass("10.9.0.0/16"), none, pass("10.9.0.0/24")}, all, false},
		{"what protects has gone", []config.Policy{pass("10.9.0.0/16"), none, policy(true, "0.0.0.0/0", "10.9.0.0/16")}, []config.Policy{pass("10.9.0.0/16"), none}, all, false},
		{"nothing has changed", []config.Policy{none}, []config.Policy{none}, all, false},
		{"no policy is left", []config.Policy{none}, nil, all, false},
	} {
		for _, killed := range []bool{false, true} {
			tables := newEndingTables(t)
			connectThree(t, tables)
			if err := tables.SetPolicies(test.before); err != nil {
				t.Fatal(err)
			}
			walks, fail := false, killed
			step := tables.step
			tables.step = func(name string, do func() error) error {
				walks = walks || name == "end protected connections"
				if fail {
					return errors.New("killed")
				}
				return step(name, do)
			}
			err := tables.SetPolicies(test.now)
			if killed && walks {
				fail = false
				walks = false
				err = tables.SetPolicies(test.now)
			}
			count, failed := tables.CountConnections(rule.Selector{})
			if err := errors.Join(err, failed); err != nil || count.Total != test.left || walks != test.walks {
				t.Errorf("%s (killed: %v): %d connections are left, want %d; they were read: %v (%v)", test.name, killed, count.Total, test.left, walks, err)
			}
		}
	}
}

// A writer is killed before it ended the connections. Meanwhile a policy is added that lets everything pass: the list is not
// the one of the killed writer with its mark.
func TestNoPolicyIsTheMark(t *testing.T) {
	tables := newEndingTables(t)
	connectThree(t, tables)
	list := []config.Policy{policy(true, "203.0.113.1/32", "198.51.100.0/24")}
	step := tables.step
	tables.step = func(string, func() error) error { return errors.New("killed") }
	if tables.SetPolicies(list) == nil {
		t.Fatal("not killed")
	}
	tables.step = step
	err := tables.SetPolicies(append(list, policy(false, "::/0", "::/0")))
	count, failed := tables.CountConnections(rule.Selector{})
	if err := errors.Join(err, failed); err != nil || count.Total != 1 {
		t.Errorf("%d connections are left, want that of the LAN (%v)", count.Total, err)
	}
}
