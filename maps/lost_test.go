// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"slices"
	"testing"
	"time"

	"hairpin/bpf"
	"hairpin/maps/config"
	"hairpin/maps/mapstest"
)

// role returns the role of an interface in the table, and whether the interface is lost.
func (l losing) role(t *testing.T, index uint32) (role bpf.HairpinRole, lost bool) {
	t.Helper()
	present, err := l.interfaces()
	if err != nil {
		t.Fatal(err)
	}
	list, err := l.LostInterfaces()
	if err != nil {
		t.Fatal(err)
	}
	return present[index].Role, slices.Contains(list, int(index))
}

// outlast has the grace of a lost interface be over.
func (l losing) outlast(t *testing.T, index uint32) {
	t.Helper()
	present, err := l.interfaces()
	if err != nil {
		t.Fatal(err)
	}
	entry := present[index]
	entry.Lost -= uint16((time.Hour + 3*time.Second).Seconds())
	if err := l.objs.Interfaces.Put(index, entry); err != nil {
		t.Fatal(err)
	}
}

func TestRenamedInterfaceKeepsItsRole(t *testing.T) {
	renamed := mapstest.WAN("else0", 2, "203.0.113.1/24")
	renamed.Role, renamed.Attached = 0, true
	bare := renamed
	bare.Attached = false
	elsewhere := mapstest.WAN("wan0", 3, "198.51.100.1/24")
	const wan = bpf.HairpinRoleROLE_WAN
	for name, c := range map[string]struct {
		now  []config.Interface
		role bpf.HairpinRole
		lost bool
	}{
		"there":                       {[]config.Interface{mapstest.WAN("wan0", 2, "203.0.113.1/24")}, wan, false},
		"renamed":                     {[]config.Interface{renamed}, wan, true},
		"renamed, without programs":   {[]config.Interface{bare}, 0, false},
		"deleted":                     {nil, 0, false},
		"another one has its name":    {[]config.Interface{renamed, elsewhere}, 0, false},
		"another one, and it is gone": {[]config.Interface{elsewhere}, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLosing(t, "a tcp 80 to 10.0.0.1")
			l.config.WAN = []string{"wan0"}
			mustApply(t, l.Tables, l.config)
			for range 2 { // the second time nothing may change
				mustSetInterfaces(t, l.Tables, c.now...)
				if role, lost := l.role(t, 2); role != c.role || lost != c.lost {
					t.Errorf("role %v, lost %v; want %v, %v", role, lost, c.role, c.lost)
				}
			}
		})
	}
}

func TestGraceOfARenamedInterface(t *testing.T) {
	l := newLosing(t, "a tcp 80 to 10.0.0.1")
	renamed := mapstest.WAN("else0", 2, "203.0.113.1/24")
	renamed.Role, renamed.Attached = 0, true
	mustSetInterfaces(t, l.Tables, renamed)
	l.want(t, "renamed", true, 1)
	if left, away, err := l.GraceLeft(); err != nil || !away || left <= 0 || left > time.Hour {
		t.Errorf("grace left: %v, %v, %v", left, away, err)
	}

	// Back under its name.
	mustSetInterfaces(t, l.Tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
	l.want(t, "back", true, 0)
	if role, lost := l.role(t, 2); role != bpf.HairpinRoleROLE_WAN || lost {
		t.Errorf("back: role %v, lost %v", role, lost)
	}

	// Away for longer than the grace: the connections end before the interface loses its role.
	mustSetInterfaces(t, l.Tables, renamed)
	l.pass(t)
	mustSetInterfaces(t, l.Tables, renamed)
	if mapstest.IsCurrent(t, l.objs, l.ref) {
		t.Error("the connections of an address that is away for too long live")
	}
	if role, lost := l.role(t, 2); role != bpf.HairpinRoleROLE_WAN || !lost {
		t.Errorf("its address has just ended: role %v, lost %v", role, lost)
	}
	l.outlast(t, 2)
	if left, away, err := l.GraceLeft(); err != nil || !away || left != 0 {
		t.Errorf("the grace is over: %v, %v, %v", left, away, err)
	}
	mustSetInterfaces(t, l.Tables, renamed)
	if role, lost := l.role(t, 2); role != 0 || lost {
		t.Errorf("away for too long: role %v, lost %v", role, lost)
	}
	if _, away, err := l.GraceLeft(); err != nil || away {
		t.Errorf("nothing is lost any more: %v, %v", away, err)
	}

	// Without a grace there is no wait.
	l.config.Timeouts.AddressGrace = 0
	mustApply(t, l.Tables, l.config)
	mustSetInterfaces(t, l.Tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
	mustSetInterfaces(t, l.Tables, renamed)
	if role, lost := l.role(t, 2); role != 0 || lost {
		t.Errorf("no grace: role %v, lost %v", role, lost)
	}
}
