// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"hairpin/maps"
	"hairpin/maps/rule"
)

// TestSortConnections: figures from the highest, the rest from the lowest, over all blocks of a listing.
func TestSortConnections(t *testing.T) {
	var list []maps.Connection
	const many = 2*connBlock + 7
	for i := range uint64(many) {
		n := i * 5003 % many // every number once, in no order
		list = append(list, maps.Connection{
			Protocol: rule.TCP, Path: "wan", Forward: string(rune('a' + n%7)), State: rule.StateNames()[n%4],
			Client:   netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), 5000),
			External: netip.AddrPortFrom(netip.MustParseAddr("203.0.113.1"), uint16(many-n)), Source: netip.MustParseAddrPort("192.168.1.1:1"),
			Target:     netip.MustParseAddrPort("192.168.1.20:80"),
			AgeSeconds: n, IdleSeconds: many - n, Packets: 2 * n, Bytes: 3 * n,
		})
	}
	for _, key := range connectionKeys {
		for _, json := range []bool{false, true} {
			var out bytes.Buffer
			a := newApp(env{stdout: &out})
			a.json = json
			if err := errors.Join(a.printConnections(key.compare, nil, eachOf(list)), a.out.Flush()); err != nil {
				t.Fatal(err)
			}
			want := slices.Clone(list)
			slices.SortFunc(want, func(x, y maps.Connection) int {
				if order := key.compare(&x, &y); order != 0 {
					return order
				}
				return compareConnections(&x, &y)
			})
			rest := out.String()
			for i := range want {
				next := strings.Index(rest, want[i].Client.String())
				if next < 0 {
					t.Fatalf("--sort %s, JSON %v: connection %d, %s, is not in its place", key.name, json, i, want[i].Client)
				}
				rest = rest[next:]
			}
		}
	}
	for name, first := range map[string]func(c *maps.Connection) bool{
		"packets":  func(c *maps.Connection) bool { return c.Packets == 2*(many-1) },
		"bytes":    func(c *maps.Connection) bool { return c.Bytes == 3*(many-1) },
		"age":      func(c *maps.Connection) bool { return c.AgeSeconds == many-1 },
		"idle":     func(c *maps.Connection) bool { return c.IdleSeconds == many },
		"client":   func(c *maps.Connection) bool { return c.Client.Addr().String() == "10.0.0.0" },
		"external": func(c *maps.Connection) bool { return c.External.Port() == 1 },
		"forward":  func(c *maps.Connection) bool { return c.Forward == "a" },
		"state":    func(c *maps.Connection) bool { return c.State == "half-open" },
	} {
		compare, err := findSortKey(connectionKeys, name)
		if err != nil {
			t.Fatal(err)
		}
		if c := slices.MinFunc(list, func(x, y maps.Connection) int { return compare(&x, &y) }); !first(&c) {
			t.Errorf("--sort %s begins with %+v", name, c)
		}
	}
}

func TestSortForwards(t *testing.T) {
	seconds := func(n uint64) *uint64 { return &n }
	rows := []forwardRow{
		{Name: "c", Connections: 1, Packets: 30, Bytes: 100, Refused: 2},
		{Name: "a", Connections: 2, Packets: 10, Bytes: 300, Refused: 1, LastHit: seconds(7)},
		{Name: "b", Connections: 3, Packets: 20, Bytes: 200, Refused: 3, LastHit: seconds(3)},
	}
	for name, want := range map[string]string{
		"connections": "bac", "packets": "cba", "bytes": "abc", "refused": "bca", "last-hit": "bac", "name": "abc",
	} {
		compare, err := findSortKey(forwardKeys, name)
		if err != nil {
			t.Fatal(err)
		}
		var got string
		print := func(r *forwardRow) error {
			got += r.Name
			return nil
		}
		if err := printKept(slices.Clone(rows), compare, nil, print); err != nil || got != want {
			t.Errorf("--sort %s: %s, %v, want %s", name, got, err, want)
		}
	}
}

func TestUnknownSortKey(t *testing.T) {
	for words, want := range map[string]string{
		"conn show --sort packet":   `did you mean "packets"?`,
		"conn show --sort refused":  "possible are packets, bytes, age, idle, client, external, target, forward, state and proto",
		"forward show --sort bites": `did you mean "bytes"?`,
	} {
		_, stderr, code := try(t, append([]string{"--bpffs", "none"}, strings.Fields(words)...)...)
		if code != exitInvalid || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit code %d, %s, want %s", words, code, stderr, want)
		}
	}
}
