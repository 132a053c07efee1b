// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"net/netip"
	"reflect"
	"testing"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps/config"
	"hairpin/maps/layout"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

// manyAddresses returns 1:1 forwards, each with its own external address, IPv4 and IPv6 in turn.
func manyAddresses(count int) config.Config {
	c := config.Default()
	for i := range count {
		high, low := byte(i>>8), byte(i)
		external, target := netip.AddrFrom4([4]byte{45, 7, high, low}), netip.AddrFrom4([4]byte{10, 1, high, low})
		if i%2 == 1 {
			external = netip.AddrFrom16([16]byte{0: 0x2a, 1: 1, 14: high, 15: low})
			target = netip.AddrFrom16([16]byte{0: 0xfd, 14: high, 15: low})
		}
		c.Forwards = append(c.Forwards, rule.Forward{
			Name: fmt.Sprintf("f%d", i), Protocols: []rule.Protocol{rule.Any}, External: rule.External{Address: external}, Target: target,
		})
	}
	return c
}

// kernelMemory returns the memory of all maps and inner maps, as the kernel reports it.
func kernelMemory(t *testing.T, objs *bpf.HairpinMaps) (bytes uint64) {
	t.Helper()
	all := []*ebpf.Map{}
	value := reflect.ValueOf(*objs)
	for i := range value.NumField() {
		all = append(all, value.Field(i).Interface().(*ebpf.Map))
	}
	for _, outer := range []*ebpf.Map{objs.Forwards, objs.Allow, objs.Origins} {
		all = append(all, mapstest.Slot(t, outer, 0), mapstest.Slot(t, outer, 1))
	}
	for _, m := range all {
		info, err := m.Info()
		if err != nil {
			t.Fatal(err)
		}
		taken, _ := info.Memlock() // 0 for an empty trie
		bytes += taken
	}
	return bytes
}

// TestOneToOneMemory: 10,000 forwards with one address each take at most 16 MiB of kernel memory, including the previous set
// of forwards. The kernel does not count the inner nodes of a trie, but there are fewer inner nodes than entries.
func TestOneToOneMemory(t *testing.T) {
	const most = 16 << 20
	tables := newTables(t, mapstest.RoomySpec(t))
	mustApply(t, tables, manyAddresses(2))
	before := kernelMemory(t, &tables.objs.HairpinMaps)
	c := manyAddresses(10_000)
	mustApply(t, tables, c)
	for i := range c.Forwards {
		c.Forwards[i].Reflect = rule.ReflectRouter
	}
	mustApply(t, tables, c)
	taken := kernelMemory(t, &tables.objs.HairpinMaps) - before
	t.Logf("%d bytes more, without the nodes between", taken)
	if 2*taken > most || taken < 100_000 {
		t.Errorf("10,000 forwards take %d bytes and at most as many again, want at most %d", taken, most)
	}
	tables.wantRoute(t, "45.7.0.100", 9, "10.1.0.100:9")
	tables.wantRoute(t, "2a01::f:65", 9, "")
	tables.wantRoute(t, "2a01::65", 9, "[fd00::65]:9")
}

// TestOneLookupForEveryPort: with the key that the datapath makes from a packet, one lookup finds the forward of a range
// for each port in the range, and finds nothing for the ports next to the range.
func TestOneLookupForEveryPort(t *testing.T) {
	for _, test := range []struct {
		forward     string
		first, last int
		shift       uint16
	}{
		{"one tcp wan0:7000 to 10.0.0.1:17000", 7000, 7000, 10000},
		{"every tcp wan0:1-65535 to 10.0.0.1", 1, 65535, 0},
		{"shifted tcp wan0:1-65534 to 10.0.0.1:2-65535", 1, 65534, 1},
		{"odd tcp wan0:1025-60001 to 10.0.0.1:1024-60000", 1025, 60001, 65535},
		{"one6 tcp wan0:7000 to [fd00::1]:17000", 7000, 7000, 10000},
		{"shifted6 tcp wan0:1-65534 to [fd00::1]:2-65535", 1, 65534, 1},
	} {
		tables := newTables(t, mapstest.SmallSpec(t))
		mustApply(t, tables, mapstest.Config(t, test.forward))
		link := mapstest.WAN("wan0", 2, "203.0.113.1/24", "2001:db8::1/64")
		mustSetInterfaces(t, tables, link)
		target := mapstest.Forward(t, test.forward).Target
		address := link.Addresses[0].Addr()
		if target.Is6() {
			address = link.Addresses[1].Addr()
		}
		var external bpf.HairpinExternal
		if err := tables.objs.Externals.Lookup(layout.ToAddr(address), &external); err != nil {
			t.Fatal(err)
		}
		generation, err := tables.generation()
		if err != nil {
			t.Fatal(err)
		}
		trie := mapstest.Slot(t, tables.objs.Forwards, generation&1)
		for port := range 65536 {
			var f bpf.HairpinForward
			err := trie.Lookup(layout.ForwardKey(external.Group, rule.TCP.Number(target.Is6()), uint16(port), 16), &f)
			found, want := err == nil, test.first <= port && port <= test.last
			if found != want || found && (layout.FromAddr(f.Target) != target || f.PortShift != test.shift) {
				t.Fatalf("%s, port %d: %v, to %v shifted by %d", test.forward, port, err, layout.FromAddr(f.Target), f.PortShift)
			}
		}
	}
}
