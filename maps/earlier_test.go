// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"net/netip"
	"reflect"
	"testing"
)

// TestSameWrittenSeesEveryField: a new field of forwards must not be left out when a configuration is compared with
// what runs, nor make every application of the same one a change.
func TestSameWrittenSeesEveryField(t *testing.T) {
	full := Forward{
		Name: "a", Protocols: []Protocol{TCP}, External: External{Interface: "wan0"}, Ports: Ports{1, 2}, Target: netip.MustParseAddr("10.0.0.1"),
		TargetPort: 3, From: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Reflect: ReflectAuto, Hosts: []string{"a.b"}, Intercept: true,
		LAN: []string{"lan0"}, Except: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, Source: "x:1",
	}
	fields := reflect.TypeFor[Forward]()
	for i := range fields.NumField() {
		name, without := fields.Field(i).Name, full
		if reflect.ValueOf(full).Field(i).IsZero() {
			t.Fatalf("%s is not set here", name)
		}
		reflect.ValueOf(&without).Elem().Field(i).SetZero()
		if sameWritten(&full, &without) {
			t.Errorf("a difference in %s is not seen", name)
		}
	}
	// The second is read into the memory of the first, as all that run are.
	forwards := []Forward{full, {Name: "b"}}
	at := 0
	_, err := eachForward(string(encodeForwards(nil, forwards, make([]epochRef, 2))), func(f *Forward, _ epochRef) bool {
		if !sameWritten(f, &forwards[at]) {
			t.Errorf("forward %d is %+v when it is read, was %+v", at, f, forwards[at])
		}
		at++
		return true
	})
	if err != nil || at != 2 {
		t.Errorf("%d were read, %v", at, err)
	}
}

// TestForwardsInAnotherOrderAreNotTheSame, though nothing about them has changed.
func TestForwardsInAnotherOrderAreNotTheSame(t *testing.T) {
	one := configWith(t, "a tcp 1 to 10.0.0.1", "b tcp 2 to 10.0.0.1")
	other := configWith(t, "b tcp 2 to 10.0.0.1", "a tcp 1 to 10.0.0.1")
	shorter := configWith(t, "a tcp 1 to 10.0.0.1")
	running := document{Config: one, EpochRefs: make([]epochRef, 2)}
	for name, test := range map[string]struct {
		c    Config
		want bool
	}{"the same": {one, true}, "another order": {other, false}, "one less": {shorter, false}} {
		if got := running.before(test.c).unchanged(test.c); got != test.want {
			t.Errorf("%s: unchanged is %v", name, got)
		}
	}
	longer := document{Config: shorter, EpochRefs: make([]epochRef, 1)}
	if longer.before(one).unchanged(one) {
		t.Error("one more: unchanged")
	}
}
