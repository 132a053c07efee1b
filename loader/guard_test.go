// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"reflect"
	"testing"
)

// TestGuard: the guard is attached if Hooks ask for it, by the same kind of hook as TC, and behind the
// programs of others. It is removed if Hooks do not ask for it.
func TestGuard(t *testing.T) {
	for _, noTCX := range []bool{false, true} {
		name := "tcx"
		if noTCX {
			name = "clsact"
		}
		t.Run(name, func(t *testing.T) {
			r := newRouter(t)
			foreignTC(t, r, "wan0")
			before := r.hooks("wan0")
			d := r.load(Options{NoTCX: noTCX})
			other := r.load(Options{NoTCX: !noTCX})
			r.attach(d, "wan0", ModeTC)
			unguarded := r.hooks("wan0")
			want := Attachment{Interface: "wan0", Index: r.Index("wan0"), TC: TCX, Guard: true}
			if noTCX {
				want.TC = TCClsact
			}
			for range 2 {
				if a := r.guard(d, "wan0", ModeTC); a != want {
					t.Errorf("attached %+v, want %+v", a, want)
				}
			}
			if list := r.attachments(d); !reflect.DeepEqual(list, []Attachment{want}) {
				t.Errorf("attachments %+v, want %+v", list, want)
			}
			guarded := r.hooks("wan0")
			guard := mustProgramID(t, d.Objects().HairpinGuard)
			if last := len(guarded.Egress) - 1; !noTCX && (last < 0 || guarded.Egress[last] != guard) {
				t.Errorf("TCX programs at egress %v, want the guard, %d, last", guarded.Egress, guard)
			}
			if added := len(guarded.Filters) - len(unguarded.Filters); noTCX && added != 1 {
				t.Errorf("filters %q, want one more than %q", guarded.Filters, unguarded.Filters)
			}

			r.guard(other, "wan0", ModeTC)
			r.guard(d, "wan0", ModeTC)
			r.want("by the other way and back", "wan0", guarded)
			r.attach(d, "wan0", ModeTC)
			r.want("not guarded any more", "wan0", unguarded)
			r.guard(d, "wan0", ModeTC)
			r.detach(d, "wan0")
			r.want("detached", "wan0", before)
			r.guard(d, "wan0", ModeXDPUntagged)
			r.remove()
			r.want("removed", "wan0", before)
		})
	}
}

// TestGuardIsUndone: if any step of an attachment fails, the guard is removed.
func TestGuardIsUndone(t *testing.T) {
	for _, noTCX := range []bool{false, true} {
		r := newRouter(t)
		d := r.load(Options{NoTCX: noTCX})
		before := r.hooks("wan0")
		attempt := func() error {
			_, err := r.tryHooks(d, "wan0", Hooks{ModeXDPUntagged, true})
			return err
		}
		eachFault(t, attempt, func(step string) { r.want(step+" failed", "wan0", before) })
	}
}
