// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"hairpin/maps/layout"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

func TestEachFamilyHasItsPlaces(t *testing.T) {
	p := mustCompile(t, mapstest.Config(t,
		"every4 tcp,icmp any to 10.0.0.1",
		"every6 tcp,icmp any to fd00::1",
		"own4 tcp wan0:80 to 10.0.0.2",
		"own6 tcp wan1:80 to fd00::2",
		"own-any6 any wan0:any to fd00::3",
		"fixed6 tcp,icmp [2001:db8::7]:any to fd00::4",
	), &Document{}, testInventory())
	fixed := rule.AtAddress(netip.MustParseAddr("2001:db8::7"))
	for _, test := range []struct {
		at       rule.Place
		protocol rule.Protocol
		port     uint16
		want     string
	}{
		{rule.AtWAN("wan0", false), rule.TCP, 80, "own4"},
		{rule.AtWAN("wan0", false), rule.TCP, 81, "every4"},
		{rule.AtWAN("wan0", false), rule.UDP, 81, ""},
		{rule.AtWAN("wan0", false), rule.ICMP, 0, "every4"},
		{rule.AtWAN("wan0", true), rule.TCP, 80, "own-any6"},
		{rule.AtWAN("wan0", true), rule.UDP, 81, "own-any6"},
		{rule.AtWAN("wan0", true), rule.ICMP, 0, "own-any6"},
		{rule.AtWAN("wan1", false), rule.TCP, 80, "every4"},
		{rule.AtWAN("wan1", true), rule.TCP, 80, "own6"},
		{rule.AtWAN("wan1", true), rule.TCP, 81, "every6"},
		{rule.AtWAN("wan1", true), rule.ICMP, 0, "every6"},
		{fixed, rule.TCP, 80, "fixed6"},
		{fixed, rule.ICMP, 0, "fixed6"},
		{fixed, rule.UDP, 80, ""},
	} {
		if got := p.find(test.at, test.protocol, test.port); got != test.want {
			t.Errorf("%s (IPv6: %v) %s %d goes to %q, want %q", test.at, test.at.Is6(), test.protocol, test.port, got, test.want)
		}
	}
	for i, key := range p.ForwardKeys {
		v6 := layout.FromAddr(p.Forwards[i].Target).Is6()
		if v6 && key.Protocol == unix.IPPROTO_ICMP || !v6 && key.Protocol == unix.IPPROTO_ICMPV6 {
			t.Errorf("a target of IPv6: %v, and protocol %d", v6, key.Protocol)
		}
	}
}

// A place without a family, from an older version, is an IPv4 place and keeps its id.
func TestPlacesInTheDocument(t *testing.T) {
	places := map[rule.Place]uint32{
		rule.AtWAN("wan0", false): 1, rule.AtWAN("wan0", true): 2,
		rule.AtAddress(netip.MustParseAddr("203.0.113.1")): 3, rule.AtAddress(netip.MustParseAddr("2001:db8::1")): 4,
	}
	text, err := json.Marshal(places)
	if err != nil {
		t.Fatal(err)
	}
	var again map[rule.Place]uint32
	if err := json.Unmarshal(text, &again); err != nil || fmt.Sprint(again) != fmt.Sprint(places) || len(again) != 4 {
		t.Errorf("%s reads as %v, %v", text, again, err)
	}
	var old map[rule.Place]uint32
	if err := json.Unmarshal([]byte(`{"wan0":7,"203.0.113.1":8}`), &old); err != nil || old[rule.AtWAN("wan0", false)] != 7 {
		t.Fatalf("old document: %v, %v", old, err)
	}
	p := mustCompile(t, mapstest.Config(t, "a tcp 80 to fd00::1"), &Document{Externals: old}, testInventory())
	if now := p.Doc.Externals; now[rule.AtWAN("wan0", false)] != 7 || now[rule.AtWAN("wan0", true)] <= 8 {
		t.Errorf("ids %v", now)
	}
}

func TestAllowKeysOfIPv6(t *testing.T) {
	p := mustCompile(t, mapstest.Config(t, "a tcp 80 to fd00::1 from 2001:db8::/32,::/0,2001:db8::9"), &Document{}, testInventory())
	var bits []uint32
	for _, key := range p.AllowKeys {
		bits = append(bits, key.PrefixLength-layout.SourceBits)
	}
	if want := []uint32{32, 0, 128}; !slices.Equal(bits, want) || p.AllowKeys[0].Source != layout.ToAddr(netip.MustParseAddr("2001:db8::")) {
		t.Errorf("sources %+v", p.AllowKeys)
	}
}
