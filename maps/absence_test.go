// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"net/netip"
	"testing"
	"time"

	"hairpin/bpf"
	"hairpin/maps/config"
	"hairpin/maps/layout"
	"hairpin/maps/mapstest"
)

// losing is a router with the WAN address 203.0.113.1, and others, that may lose them.
type losing struct {
	*Tables
	config config.Config
	ref    bpf.HairpinEpochRef // of 203.0.113.1
}

func newLosing(t *testing.T, forwards ...string) losing {
	t.Helper()
	l := losing{Tables: newTables(t, mapstest.SmallSpec(t)), config: mapstest.Config(t, forwards...)}
	l.config.Timeouts.AddressGrace = time.Hour
	mustApply(t, l.Tables, l.config)
	mustSetInterfaces(t, l.Tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
	l.ref = l.external(t, "203.0.113.1").Address
	return l
}

func (l losing) external(t *testing.T, addr string) (external bpf.HairpinExternal) {
	t.Helper()
	if err := l.objs.Externals.Lookup(layout.ToAddr(netip.MustParseAddr(addr)), &external); err != nil {
		t.Fatalf("external address %s: %v", addr, err)
	}
	return external
}

// pass has the grace of all lost addresses be over.
func (l losing) pass(t *testing.T) {
	t.Helper()
	absences, err := l.absences()
	if err != nil || len(absences) == 0 {
		t.Fatalf("absences %v, %v", absences, err)
	}
	for addr, absence := range absences {
		absence.Since -= uint64(time.Hour)
		if err := l.objs.Absences.Put(layout.AddressKey(addr), absence); err != nil {
			t.Fatal(err)
		}
	}
}

func (l losing) want(t *testing.T, when string, live bool, absences int) {
	t.Helper()
	if got := mapstest.IsCurrent(t, l.objs, l.ref); got != live {
		t.Errorf("%s: connections live: %v, want %v", when, got, live)
	}
	have, err := l.absences()
	if err != nil || len(have) != absences {
		t.Errorf("%s: absences %v, %v, want %d", when, have, err, absences)
	}
	_, away, err := l.GraceLeft()
	if err != nil || away != (absences > 0) {
		t.Errorf("%s: waits for an address: %v, %v", when, away, err)
	}
}

func TestAddressComesBack(t *testing.T) {
	l := newLosing(t, "a tcp 80 to 10.0.0.1")
	home := mapstest.WAN("wan0", 2, "203.0.113.1/24")
	mustSetInterfaces(t, l.Tables, mapstest.WAN("wan0", 2))
	l.want(t, "away", true, 1)
	l.wantRoute(t, "203.0.113.1", 80, "")
	// Another process, and one that only applies a forward.
	mustSetInterfaces(t, l.again(), mapstest.WAN("wan0", 2))
	l.want(t, "still away", true, 1)
	if left, _, _ := l.GraceLeft(); left <= 0 || left > time.Hour {
		t.Errorf("%s of the grace are left", left)
	}
	// No other address gets its id meanwhile.
	other := mapstest.WAN("wan1", 3, "198.51.100.1/24")
	mustSetInterfaces(t, l.Tables, mapstest.WAN("wan0", 2), other)
	if id := l.external(t, "198.51.100.1").Address.Id; id == l.ref.Id {
		t.Error("another address got the id of the lost one")
	}
	mustSetInterfaces(t, l.Tables, home, other)
	l.want(t, "back", true, 0)
	l.wantRoute(t, "203.0.113.1", 80, "10.0.0.1:80")
	if l.external(t, "203.0.113.1").Address != l.ref {
		t.Error("the address has another epoch")
	}

	// As another device, as after a redial.
	mustSetInterfaces(t, l.Tables, other)
	l.want(t, "the interface is gone", true, 1)
	mustSetInterfaces(t, l.Tables, mapstest.WAN("wan0", 9, "203.0.113.1/24"), other)
	l.want(t, "redialled", true, 0)

	// Its second absence has a grace of its own.
	mustSetInterfaces(t, l.Tables, mapstest.WAN("wan0", 9), other)
	l.pass(t)
	mustSetInterfaces(t, l.Tables, mapstest.WAN("wan0", 9, "203.0.113.1/24"), other)
	l.want(t, "back before anybody looked", true, 0)
}

func TestAddressStaysAway(t *testing.T) {
	l := newLosing(t, "a tcp 80 to 10.0.0.1")
	mustSetInterfaces(t, l.Tables, mapstest.WAN("wan0", 2))
	l.pass(t)
	l.want(t, "nobody has looked yet", true, 1)
	mustSetInterfaces(t, l.again(), mapstest.WAN("wan0", 2))
	l.want(t, "over", false, 0)
	mustSetInterfaces(t, l.Tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
	l.want(t, "back too late", false, 0)
	l.wantRoute(t, "203.0.113.1", 80, "10.0.0.1:80")
}

// A new address instead of the only one says that the old one does not come back. With several addresses nobody knows.
func TestAddressReplaced(t *testing.T) {
	for _, test := range []struct {
		name   string
		before []string
		now    []string
		live   bool
	}{
		{"the only one", []string{"203.0.113.1/24"}, []string{"203.0.113.2/24"}, false},
		{"one of two", []string{"203.0.113.1/24", "203.0.113.9/24"}, []string{"203.0.113.2/24", "203.0.113.9/24"}, true},
		{"by one of the other family", []string{"203.0.113.1/24"}, []string{"2001:db8::1/64"}, true},
		{"only a link-local one is new", []string{"203.0.113.1/24"}, []string{"fe80::1/64"}, true},
	} {
		l := newLosing(t, "a tcp 80 to 10.0.0.1", "b tcp 80 to fd00::1")
		mustSetInterfaces(t, l.Tables, mapstest.WAN("wan0", 2, test.before...))
		mustSetInterfaces(t, l.Tables, mapstest.WAN("wan0", 2, test.now...))
		absences := 0
		if test.live {
			absences = 1
		}
		l.want(t, test.name+", at once", test.live, absences)
		l = newLosing(t, "a tcp 80 to 10.0.0.1", "b tcp 80 to fd00::1")
		mustSetInterfaces(t, l.Tables, mapstest.WAN("wan0", 2, test.before...))
		mustSetInterfaces(t, l.Tables)
		mustSetInterfaces(t, l.Tables, mapstest.WAN("wan0", 9, test.now...))
		l.want(t, test.name+", redialled", test.live, absences)
	}
}

// TestAddressOfAnInterfaceWithoutPrograms: the address of an interface counts as lost when the interface has no programs any more.
// This happens when an interface is deleted: the kernel removes the programs first, and the addresses a moment later. It also
// happens when an interface becomes the port of a bridge.
func TestAddressOfAnInterfaceWithoutPrograms(t *testing.T) {
	l := newLosing(t, "a tcp 80 to 10.0.0.1")
	mustSetInterfaces(t, l.Tables, config.Interface{Name: "wan0", Index: 2, Addresses: []netip.Prefix{netip.MustParsePrefix("203.0.113.1/24")}})
	l.want(t, "without programs", true, 1)
	mustSetInterfaces(t, l.Tables)
	l.want(t, "deleted", true, 1)
	mustSetInterfaces(t, l.Tables, mapstest.WAN("wan0", 9, "203.0.113.1/24"))
	l.want(t, "redialled", true, 0)
}

// What is not a lost address has no grace: an interface that is no WAN any more, whether it has the address or not.
func TestNoGraceForOtherChanges(t *testing.T) {
	l := newLosing(t, "a tcp 80 to 10.0.0.1")
	mustSetInterfaces(t, l.Tables)
	l.want(t, "lost", true, 1)
	l.config.WAN = []string{"wan1"}
	mustApply(t, l.Tables, l.config)
	mustSetInterfaces(t, l.Tables)
	l.want(t, "lost, and wan0 is no WAN any more", false, 0)

	l = newLosing(t, "a tcp 80 to 10.0.0.1")
	l.config.WAN = []string{"wan1"}
	mustApply(t, l.Tables, l.config)
	mustSetInterfaces(t, l.Tables, config.Interface{Name: "wan0", Index: 2, Addresses: []netip.Prefix{netip.MustParsePrefix("203.0.113.1/24")}})
	l.want(t, "wan0 is no WAN any more", false, 0)

	l = newLosing(t, "a tcp 80 to 10.0.0.1")
	l.config.Timeouts.AddressGrace = 0
	mustApply(t, l.Tables, l.config)
	mustSetInterfaces(t, l.Tables, mapstest.WAN("wan0", 2))
	l.want(t, "no grace is configured", false, 0)
}

// A fixed address serves its forwards whether the router has it or not. The absence of a removed forward's address stays.
func TestLostFixedAddress(t *testing.T) {
	l := newLosing(t, "a tcp 203.0.113.1:80 to 10.0.0.1", "b tcp 81 to 10.0.0.1")
	mustSetInterfaces(t, l.Tables, mapstest.WAN("wan0", 2))
	l.want(t, "away", true, 1)
	l.wantRoute(t, "203.0.113.1", 80, "10.0.0.1:80")
	l.wantRoute(t, "203.0.113.1", 81, "")
	without := l.config
	without.Forwards = l.config.Forwards[1:]
	mustApply(t, l.Tables, without)
	l.want(t, "away, and its forward removed", true, 1)
	mustSetInterfaces(t, l.Tables, mapstest.WAN("wan0", 2))
	l.want(t, "still away", true, 1)
	mustApply(t, l.Tables, l.config)
	l.pass(t)
	mustSetInterfaces(t, l.Tables, mapstest.WAN("wan0", 2))
	l.want(t, "over", false, 0)
	l.wantRoute(t, "203.0.113.1", 80, "10.0.0.1:80")
	if !mapstest.IsCurrent(t, l.objs, l.external(t, "203.0.113.1").Address) {
		t.Error("new connections to the fixed address are over at once")
	}
}

// A change drops a WAN whose address is away, and its writer is killed before SetInterfaces. The next change adds another
// WAN, which does not get the id of the dropped one: the absence still has it.
func TestAbsenceKeepsTheIDOfItsWAN(t *testing.T) {
	l := newLosing(t, "a tcp 80 to 10.0.0.1")
	dropped := l.external(t, "203.0.113.1").Group
	mustSetInterfaces(t, l.Tables, mapstest.WAN("wan0", 2))
	l.want(t, "away", true, 1)
	without := l.config
	without.WAN = nil
	without.Forwards = nil
	mustApply(t, l.Tables, without)
	other := l.config
	other.WAN = []string{"wan1"}
	mustApply(t, l.again(), other)
	mustSetInterfaces(t, l.Tables, mapstest.WAN("wan1", 3, "198.51.100.1/24"))
	if group := l.external(t, "198.51.100.1").Group; group == dropped {
		t.Errorf("wan1 has the id %d of the dropped WAN", group)
	}
	l.want(t, "its WAN is dropped", false, 0)
}
