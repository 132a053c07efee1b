// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"hairpin/maps/config"
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

// The entry of an interface has room for eight addresses; each family gets up to half, or more if there is room.
func TestInterfaceEntriesOfBothFamilies(t *testing.T) {
	list := func(v4, v6 int) (link config.Interface) {
		link.Addresses = []netip.Prefix{netip.MustParsePrefix("fe80::1/64"), netip.MustParsePrefix("::1/128")}
		for i := range v6 {
			link.Addresses = append(link.Addresses, netip.MustParsePrefix(fmt.Sprintf("2001:db8::%d/64", i+1)))
		}
		for i := range v4 {
			link.Addresses = append(link.Addresses, netip.MustParsePrefix(fmt.Sprintf("203.0.113.%d/24", i+1)))
		}
		return link
	}
	for _, test := range []struct{ v4, v6, want4, want6 int }{
		{0, 0, 0, 0}, {1, 1, 1, 1}, {4, 4, 4, 4}, {10, 1, 7, 1}, {10, 0, 8, 0}, {1, 10, 1, 7}, {10, 10, 4, 4}, {5, 3, 5, 3},
	} {
		entry := new(Document).InterfaceEntry(list(test.v4, test.v6))
		var got4, got6 int
		for _, at := range entry.Address[:entry.Addresses] {
			ones := 0
			for _, b := range at.Mask.Bytes {
				for ; b != 0; b &= b - 1 {
					ones++
				}
			}
			switch addr := layout.FromAddr(at.Address); {
			case addr.Is4() && ones == 120:
				got4++
			case addr.Is6() && ones == 64:
				got6++
			default:
				t.Errorf("%s with a mask of %d bits", addr, ones)
			}
		}
		if got4 != test.want4 || got6 != test.want6 || entry.Private != 0 {
			t.Errorf("of %d and %d: %d of IPv4 and %d of IPv6, private %d", test.v4, test.v6, got4, got6, entry.Private)
		}
	}
	if first := new(Document).InterfaceEntry(list(0, 3)).Address[0].Address; layout.FromAddr(first).String() != "2001:db8::1" {
		t.Errorf("the first is %s", layout.FromAddr(first))
	}
}
