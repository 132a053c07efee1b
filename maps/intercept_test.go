// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hairpin/bpf"
	"hairpin/maps/config"
	"hairpin/maps/layout"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

func (t *Tables) wantLocals(tb testing.TB, want ...string) {
	tb.Helper()
	present, err := readAll[bpf.HairpinOwnAddressKey, bpf.HairpinOwnAddress](t.objs.OwnAddresses)
	if err != nil {
		tb.Fatal(err)
	}
	var got []string
	for key := range present {
		if key.Ifindex == 0 {
			got = append(got, layout.FromAddr(key.Peer).String())
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		tb.Errorf("own addresses (-want +got)\n%s", diff)
	}
}

// intercepted looks up an intercept in the maps as intercept_find() of the datapath does.
func (t *Tables) intercepted(tb testing.TB, index uint32, v6 bool, protocol rule.Protocol, port uint16) string {
	tb.Helper()
	var settings bpf.HairpinSettings
	var link bpf.HairpinInterface
	if err := t.objs.Settings.Lookup(uint32(0), &settings); err != nil {
		tb.Fatal(err)
	}
	if port < settings.InterceptFirst || port > settings.InterceptLast || t.objs.Interfaces.Lookup(index, &link) != nil {
		return ""
	}
	id := link.InterceptV4
	if v6 {
		id = link.InterceptV6
	}
	generation, err := t.generation()
	if err != nil {
		tb.Fatal(err)
	}
	var f bpf.HairpinForward
	if mapstest.Slot(tb, t.objs.Forwards, generation&1).Lookup(layout.ForwardKey(id, uint8(protocol), port, 16), &f) != nil || !mapstest.IsCurrent(tb, t.objs, f.EpochRef) {
		return ""
	}
	return layout.FromAddr(f.Target).String()
}

func (t *Tables) wantIntercepted(tb testing.TB, when string, index uint32, protocol rule.Protocol, port uint16, want, want6 string) {
	tb.Helper()
	got, got6 := t.intercepted(tb, index, false, protocol, port), t.intercepted(tb, index, true, protocol, port)
	if got != want || got6 != want6 {
		tb.Errorf("%s: at interface %d %s %d goes to %q and %q, want %q and %q", when, index, protocol, port, got, got6, want, want6)
	}
}

func TestInterceptsInTheKernel(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	address := func(texts ...string) (list []netip.Prefix) {
		for _, text := range texts {
			list = append(list, netip.MustParsePrefix(text))
		}
		return list
	}
	ifs := []config.Interface{
		{Name: "lan0", Index: 5, Role: config.RoleLAN, Addresses: address("192.168.1.1/24", "fd00:1::1/64"), Passive: address("192.168.1.2/24")},
		{Name: "lan1", Index: 6, Role: config.RoleLAN, Addresses: address("192.168.2.1/24")},
		mapstest.WAN("wan0", 7, "203.0.113.1/24"),
		{Name: "docker0", Index: 8, Addresses: address("172.17.0.1/16")},
	}
	mustApply(t, tables, mapstest.Intercepts(t))
	mustSetInterfaces(t, tables, ifs...)
	tables.wantIntercepted(t, "before", 5, rule.UDP, 53, "", "")
	tables.wantLocals(t)

	mustApply(t, tables, mapstest.Intercepts(t, "a udp lan0:53 to 192.168.1.1", "b udp lan0:50-60 to fd00:1::1", "c tcp 1000 to 10.0.0.1"))
	mustSetInterfaces(t, tables, ifs...)
	tables.wantIntercepted(t, "now", 5, rule.UDP, 53, "192.168.1.1", "fd00:1::1")
	tables.wantIntercepted(t, "now", 5, rule.UDP, 60, "", "fd00:1::1")
	tables.wantIntercepted(t, "now", 5, rule.TCP, 1000, "10.0.0.1", "")
	tables.wantIntercepted(t, "now", 6, rule.TCP, 1000, "10.0.0.1", "")
	tables.wantIntercepted(t, "now", 6, rule.UDP, 53, "", "")
	tables.wantIntercepted(t, "now", 7, rule.TCP, 1000, "", "")
	tables.wantLocals(t, "172.17.0.1", "192.168.1.1", "192.168.1.2", "192.168.2.1", "203.0.113.1", "fd00:1::1")
	if s := tables.mustSettings(t); s.InterceptFirst != 50 || s.InterceptLast != 1000 {
		t.Errorf("ports %d to %d, want 50 to 1000", s.InterceptFirst, s.InterceptLast)
	}

	// Another process changes an intercept and the addresses.
	tables = tables.again()
	mustApply(t, tables, mapstest.Intercepts(t, "a udp lan1:53 to 192.168.1.1"))
	tables.wantIntercepted(t, "before the interfaces are set", 5, rule.UDP, 53, "", "")
	tables.wantIntercepted(t, "before the interfaces are set", 5, rule.TCP, 1000, "", "")
	ifs[1].Addresses = address("192.168.3.1/24")
	mustSetInterfaces(t, tables, ifs[:3]...)
	tables.wantIntercepted(t, "then", 5, rule.UDP, 53, "", "")
	tables.wantIntercepted(t, "then", 6, rule.UDP, 53, "192.168.1.1", "")
	tables.wantLocals(t, "192.168.1.1", "192.168.1.2", "192.168.3.1", "203.0.113.1", "fd00:1::1")

	mustApply(t, tables, mapstest.Intercepts(t))
	tables.wantIntercepted(t, "removed", 6, rule.UDP, 53, "", "")
	if s := tables.mustSettings(t); s.InterceptFirst <= s.InterceptLast {
		t.Errorf("ports %d to %d without intercepts", s.InterceptFirst, s.InterceptLast)
	}
	mustSetInterfaces(t, tables, ifs...)
	tables.wantLocals(t)
}

// TestAnOldInterceptIDIsNobodyElses: an interface keeps its old external id in map interfaces until SetInterfaces. No other
// interface may get this id before.
func TestAnOldInterceptIDIsNobodyElses(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	lan0 := config.Interface{Name: "lan0", Index: 5, Role: config.RoleLAN}
	mustApply(t, tables, mapstest.Intercepts(t, "a udp lan0:53 to 10.0.0.1"))
	mustSetInterfaces(t, tables, lan0)
	mustApply(t, tables, mapstest.Intercepts(t))
	mustApply(t, tables, mapstest.Intercepts(t, "b udp lan1:53 to 10.0.0.2"))
	tables.wantIntercepted(t, "of another one", 5, rule.UDP, 53, "", "")
	mustSetInterfaces(t, tables, lan0, config.Interface{Name: "lan1", Index: 6, Role: config.RoleLAN})
	tables.wantIntercepted(t, "of another one", 5, rule.UDP, 53, "", "")
	tables.wantIntercepted(t, "its own", 6, rule.UDP, 53, "10.0.0.2", "")
}

func TestTooManyOwnAddressesAreRefused(t *testing.T) {
	spec := mapstest.SmallSpec(t)
	spec.Maps[bpf.HairpinMapOwnAddresses].MaxEntries = 6 // 3 addresses, their network, every host
	tables := newTables(t, spec)
	lan0 := config.Interface{Name: "lan0", Index: 5, Role: config.RoleLAN}
	for i := range 3 {
		lan0.Addresses = append(lan0.Addresses, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 24))
	}
	mustApply(t, tables, mapstest.Intercepts(t))
	mustSetInterfaces(t, tables, lan0)
	mustApply(t, tables, mapstest.Intercepts(t, "a udp 53 to 10.0.0.1"))
	if err := tables.SetInterfaces([]config.Interface{lan0}); !mapstest.Contains(err, "the addresses of the router need 8 table entries, but the table holds 6") {
		t.Errorf("error %v", err)
	}
}
