// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"hairpin/maps/rule"
)

// policy reads "protect" or "pass", a protocol number, and two sides such as 10.0.0.0/8 or 10.0.0.0/8#80.
func policy(t *testing.T, line string) Policy {
	t.Helper()
	words := strings.Fields(line)
	side := func(text string) (s PolicySide) {
		network, port, found := strings.Cut(text, "#")
		s.Network = netip.MustParsePrefix(network)
		if found {
			s.PortMask = 0xffff
			fmt.Sscan(port, &s.Port)
		}
		return s
	}
	p := Policy{Protects: words[0] == "protect", Source: side(words[2]), Destination: side(words[3])}
	fmt.Sscan(words[1], &p.Protocol)
	return p
}

func policies(t *testing.T, lines ...string) (list []Policy) {
	t.Helper()
	for _, line := range lines {
		list = append(list, policy(t, line))
	}
	return list
}

// The first policy that matches decides, and each word of a policy has to match.
func TestPolicyIndex(t *testing.T) {
	index := NewPolicyIndex(policies(t,
		"pass 0 0.0.0.0/0 10.8.0.1/32", "protect 0 10.1.0.0/16 10.8.0.0/24", "pass 6 10.2.0.0/16 10.8.0.0/16", "protect 0 10.2.0.0/16 10.0.0.0/8",
		"protect 17 0.0.0.0/0#1701 0.0.0.0/0", "protect 6 0.0.0.0/0 192.0.2.0/24#443", "protect 0 fd00::/16 ::/0", "pass 0 fd00::/16 ::/0",
	))
	for _, test := range []struct {
		protocol            uint8
		source, destination string
		want                bool
	}{
		{6, "10.1.0.1:80", "10.8.0.2:80", true},
		{6, "10.1.0.1:80", "10.8.0.1:80", false}, // passes before
		{6, "10.3.0.1:80", "10.8.0.2:80", false}, // another source
		{6, "10.1.0.1:80", "10.8.1.2:80", false}, // another destination
		{6, "10.2.0.1:80", "10.8.1.2:80", false},
		{17, "10.2.0.1:80", "10.8.1.2:80", true}, // the policy that lets TCP pass is none for UDP
		{17, "203.0.113.1:1701", "198.51.100.9:1701", true},
		{17, "203.0.113.1:1702", "198.51.100.9:1701", false},
		{6, "203.0.113.1:1701", "198.51.100.9:1701", false},
		{6, "203.0.113.1:80", "192.0.2.1:443", true},
		{6, "203.0.113.1:443", "192.0.2.1:80", false},
		{6, "[fd00::1]:80", "[2001:db8::1]:80", true}, // the first of two
		{6, "[fd01::1]:80", "[2001:db8::1]:80", false},
	} {
		packet := Packet{netip.MustParseAddrPort(test.source), netip.MustParseAddrPort(test.destination), test.protocol}
		if got := index.Protects(packet); got != test.want {
			t.Errorf("protocol %d from %s to %s: protected %v", test.protocol, test.source, test.destination, got)
		}
	}
}

// The index finds what comparing one policy after the other finds.
func TestPolicyIndexIsComplete(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	network := func() netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(random.IntN(4)), byte(random.IntN(4))}), []int{0, 16, 24, 31, 32}[random.IntN(5)]).Masked()
	}
	port := func() uint16 { return uint16(random.IntN(3)) }
	side := func() PolicySide {
		return PolicySide{Network: network(), Port: port(), PortMask: []uint16{0, 0xffff}[random.IntN(2)]}
	}
	var list []Policy
	for range 40 {
		list = append(list, Policy{Source: side(), Destination: side(), Protocol: []uint8{0, 6, 17}[random.IntN(3)], Protects: random.IntN(2) == 0})
	}
	index := NewPolicyIndex(list)
	protected := 0
	for range 5000 {
		packet := Packet{netip.AddrPortFrom(network().Addr(), port()), netip.AddrPortFrom(network().Addr(), port()), []uint8{6, 17}[random.IntN(2)]}
		want := false
		for i := range list {
			p := &list[i]
			if p.Source.Network.Contains(packet.Source.Addr()) && p.Destination.Network.Contains(packet.Destination.Addr()) && p.has(packet) {
				want = p.Protects
				break
			}
		}
		if want {
			protected++
		}
		if got := index.Protects(packet); got != want {
			t.Fatalf("%+v: protected %v, want %v", packet, got, want)
		}
	}
	if protected == 0 {
		t.Error("no packet is protected, so nothing was tested")
	}
}

// Each forward to a protected target is named, and what protects clients alone is one line. Policies that no packet of a
// forward meets are not told.
func TestPolicyWarnings(t *testing.T) {
	const sentence = "; hairpin cannot encrypt, so it refuses connections of targets and clients that this policy matches"
	external := []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")}
	for name, test := range map[string]struct {
		policies, forwards, want []string
	}{
		"no policy":  {nil, []string{"a tcp 80 to 10.8.0.5"}, nil},
		"no forward": {[]string{"protect 0 0.0.0.0/0 10.8.0.0/24"}, nil, nil},
		"a target": {
			[]string{"protect 0 10.1.0.0/16 10.7.0.0/24", "protect 0 0.0.0.0/0 10.8.0.0/24"}, []string{"a tcp 80 to 10.8.0.5", "b tcp 81 to 10.9.0.5"},
			[]string{`forward "a": IPsec policy 0.0.0.0/0 to 10.8.0.0/24 protects packets to the target 10.8.0.5` + sentence},
		},
		"a target whose packets pass before": {[]string{"pass 0 0.0.0.0/0 10.8.0.5/32", "protect 0 10.1.0.0/16 10.8.0.0/24"}, []string{"a tcp 80 to 10.8.0.5"}, nil},
		"a target some of whose packets pass before": {
			[]string{"pass 6 0.0.0.0/0 10.8.0.5/32", "protect 0 10.1.0.0/16 10.8.0.0/24"}, []string{"a tcp 80 to 10.8.0.5"},
			[]string{`forward "a": IPsec policy 10.1.0.0/16 to 10.8.0.0/24 protects packets to the target 10.8.0.5` + sentence},
		},
		"many targets": {
			[]string{"protect 0 10.1.0.0/16 fd08::/64"},
			[]string{"a tcp 80 to fd08::1", "b tcp 81 to fd08::1", "c tcp 82 to fd08::1", "d tcp 83 to fd08::1", "e tcp 84 to fd08::1"},
			[]string{
				`forward "a": IPsec policy 10.1.0.0/16 to fd08::/64 protects packets to the target fd08::1` + sentence,
				`forward "b": IPsec policy 10.1.0.0/16 to fd08::/64 protects packets to the target fd08::1` + sentence,
				`forward "c": IPsec policy 10.1.0.0/16 to fd08::/64 protects packets to the target fd08::1` + sentence,
				"2 more forwards: IPsec policies protect packets to their targets",
			},
		},
		"a client": {
			[]string{"protect 0 203.0.113.1/32 10.1.0.0/16"}, []string{"a tcp 80 to 10.9.0.5"},
			[]string{"1 IPsec policy protects packets to 10.1.0.0/16: clients there are refused"},
		},
		"clients": {
			[]string{"protect 0 203.0.113.1/32 10.1.0.0/16", "protect 6 0.0.0.0/0 10.2.0.0/16", "protect 17 203.0.113.0/24 10.1.0.0/16", "protect 6 203.0.113.1/32#80 10.3.0.0/16"},
			[]string{"a tcp,udp 80 to 10.9.0.5"},
			[]string{"4 IPsec policies protect packets to 10.1.0.0/16, 10.2.0.0/16 and 1 more network: clients there are refused"},
		},
		"clients in another family": {
			[]string{"protect 0 2001:db8::/64 fd08::/64", "protect 0 ::/0 fd09::/64"}, []string{"a tcp 80 to fd07::5"},
			[]string{"2 IPsec policies protect packets to fd08::/64 and fd09::/64: clients there are refused"},
		},
		"other packets": {
			[]string{"protect 17 203.0.113.1/32 10.1.0.0/16", "protect 0 10.2.0.0/16 10.3.0.0/16", "protect 6 203.0.113.1/32#81 10.4.0.0/16", "pass 0 0.0.0.0/0 0.0.0.0/0"},
			[]string{"a tcp 80 to 10.9.0.5"}, nil,
		},
		"clients of a fixed address": {
			[]string{"protect 0 192.0.2.9/32 10.1.0.0/16"}, []string{"a tcp 192.0.2.9:80 to 10.9.0.5"},
			[]string{"1 IPsec policy protects packets to 10.1.0.0/16: clients there are refused"},
		},
	} {
		w := NewPolicyWarnings(policies(t, test.policies...), external)
		for _, line := range test.forwards {
			f, err := rule.ParseForward(strings.Fields(line))
			if err != nil {
				t.Fatal(err)
			}
			w.Add(&f)
		}
		got := w.Targets()
		if clients := w.Clients(); clients != "" {
			got = append(got, clients)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s:\n%s\nwant\n%s", name, strings.Join(got, "\n"), strings.Join(test.want, "\n"))
		}
	}
}
