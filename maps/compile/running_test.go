// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"hairpin/maps/config"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

// TestSameWrittenSeesEveryField: sameWritten must compare every field of a forward, also fields that are added later. Equal
// forwards must stay equal after encoding and decoding.
func TestSameWrittenSeesEveryField(t *testing.T) {
	full := rule.Forward{
		Name: "a", Protocols: []rule.Protocol{rule.TCP}, External: rule.External{Interface: "wan0"}, Ports: rule.Ports{First: 1, Last: 2}, Target: netip.MustParseAddr("10.0.0.1"),
		TargetPort: 3, From: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Reflect: rule.ReflectAuto, Clients: rule.ClientsRouter, Hosts: []string{"a.b"}, Intercept: true,
		LAN: []string{"lan0"}, Except: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, Source: "x:1",
		Rate: rule.Rate{Count: 1, Per: time.Second}, RatePerSource: rule.Rate{Count: 2, Per: time.Hour},
		Comment: "what it is for", Disabled: true, DrainUntil: time.Hour, LANOnly: true,
		Pool: &rule.Pool{Affinity: time.Minute,
			Servers: []rule.Server{{Target: netip.MustParseAddr("10.0.0.1"), Port: 3, Weight: 2, Number: 4}, {Target: netip.MustParseAddr("10.0.0.2")}}},
	}
	fields := reflect.TypeFor[rule.Forward]()
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
	// eachForward decodes the second forward into the memory of the first forward.
	forwards := []rule.Forward{full, {Name: "b"}}
	at := 0
	_, err := eachForward(string(encodeForwards(nil, forwards, make([]EpochRef, 2))), func(f *rule.Forward, _ EpochRef) bool {
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

// TestForwardsInAnotherOrderAreNotTheSame: another order is not a change of a forward, but Unchanged must be false.
func TestForwardsInAnotherOrderAreNotTheSame(t *testing.T) {
	one := mapstest.Config(t, "a tcp 1 to 10.0.0.1", "b tcp 2 to 10.0.0.1")
	other := mapstest.Config(t, "b tcp 2 to 10.0.0.1", "a tcp 1 to 10.0.0.1")
	shorter := mapstest.Config(t, "a tcp 1 to 10.0.0.1")
	running := Document{Config: one, EpochRefs: make([]EpochRef, 2)}
	for name, test := range map[string]struct {
		c    config.Config
		want bool
	}{"the same": {one, true}, "another order": {other, false}, "one less": {shorter, false}} {
		if got := running.before(test.c).Unchanged(test.c); got != test.want {
			t.Errorf("%s: unchanged is %v", name, got)
		}
	}
	longer := Document{Config: shorter, EpochRefs: make([]EpochRef, 1)}
	if longer.before(one).Unchanged(one) {
		t.Error("one more: unchanged")
	}
}
