// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hairpin/bpf"
	"hairpin/maps/layout"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

func TestSetInterfacesFollowsBothFamilies(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	mustApply(t, tables, mapstest.Config(t, "a tcp 80 to 10.0.0.1", "a6 tcp,icmp any to fd00::1", "own6 tcp wan1:80 to fd00::2",
		"fixed6 tcp [2001:db8:1::7]:80 to [fd00::3]:8080"))
	wan0 := mapstest.WAN("wan0", 2, "203.0.113.1/24", "fe80::1/64", "2001:db8::1/64", "fd01::1/64")
	wan0.Passive = []netip.Prefix{netip.MustParsePrefix("2001:db8::2/64")}
	wan1 := mapstest.WAN("wan1", 3, "2001:db8:1::1/64", "2001:db8:1::7/64")
	mustSetInterfaces(t, tables, wan0, wan1)
	tables.wantRoute(t, "203.0.113.1", 80, "10.0.0.1:80")
	tables.wantRoute(t, "203.0.113.1", 81, "")
	for _, addr := range []string{"2001:db8::1", "2001:db8::2", "fd01::1"} {
		tables.wantRoute(t, addr, 80, "[fd00::1]:80")
	}
	tables.wantRoute(t, "fe80::1", 80, "")
	tables.wantRoute(t, "2001:db8:1::1", 80, "[fd00::2]:80")
	tables.wantRoute(t, "2001:db8:1::1", 81, "[fd00::1]:81")
	tables.wantRoute(t, "2001:db8:1::7", 80, "[fd00::3]:8080")
	tables.wantRoute(t, "2001:db8:1::7", 81, "[fd00::1]:81")
	if f, found, lives := mapstest.Route(t, tables.objs, "2001:db8::1", rule.ICMP, 0); !found || !lives || layout.FromAddr(f.Target).String() != "fd00::1" {
		t.Errorf("ICMPv6 goes to %s: %v, %v", layout.FromAddr(f.Target), found, lives)
	}
	tables.wantTargets(t, "10.0.0.1", "fd00::1", "fd00::2", "fd00::3")

	// The provider changes the IPv6 prefix.
	_, old := mapstest.EpochRefs(t, tables.objs, "2001:db8::1", 80)
	_, kept := mapstest.EpochRefs(t, tables.objs, "203.0.113.1", 80)
	mustSetInterfaces(t, tables.again(), mapstest.WAN("wan0", 2, "203.0.113.1/24", "2001:db8:5::1/64"), wan1)
	tables.wantRoute(t, "2001:db8::1", 80, "")
	tables.wantRoute(t, "2001:db8:5::1", 80, "[fd00::1]:80")
	if mapstest.IsCurrent(t, tables.objs, old) || !mapstest.IsCurrent(t, tables.objs, kept) {
		t.Errorf("connections live: of the address that went %v, of IPv4 %v", mapstest.IsCurrent(t, tables.objs, old), mapstest.IsCurrent(t, tables.objs, kept))
	}
}

func TestConnectionsOfIPv6(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	mustApply(t, tables, mapstest.Config(t, "web tcp 443 to [fd00::20]:8443", "ping icmp any to fd00::20", "web4 tcp 443 to 192.168.1.20"))
	mustSetInterfaces(t, tables, mapstest.WAN("wan0", 2, "2001:db8::1/64", "203.0.113.1/24"))
	web, address := mapstest.EpochRefs(t, tables.objs, "2001:db8::1", 443)
	ping, _, _ := mapstest.Route(t, tables.objs, "2001:db8::1", rule.ICMP, 0)
	web4, address4 := mapstest.EpochRefs(t, tables.objs, "203.0.113.1", 443)
	const icmp6 = rule.Protocol(unix.IPPROTO_ICMPV6)
	mapstest.Open(t, tables.objs,
		mapstest.Flow{Protocol: rule.TCP, Client: "[2001:db8:9::9]:5000", External: "[2001:db8::1]:443", Source: "[2001:db8:9::9]:5000", Target: "[fd00::20]:8443", Forward: web, Address: address},
		mapstest.Flow{Protocol: icmp6, Client: "[2001:db8:9::9]:77", External: "[2001:db8::1]:0", Source: "[2001:db8:9::9]:77", Target: "[fd00::20]:0", Forward: ping.EpochRef, Address: address, HalfOpen: true},
		mapstest.Flow{Protocol: rule.TCP, Client: "198.51.100.9:5000", External: "203.0.113.1:443", Source: "198.51.100.9:5000", Target: "192.168.1.20:443", Forward: web4, Address: address4},
	)
	for selector, want := range map[string]string{
		"":                              "icmp ping, tcp web4, tcp web",
		"src 2001:db8:9::/48":           "icmp ping, tcp web",
		"src ::/0":                      "icmp ping, tcp web",
		"src 0.0.0.0/0":                 "tcp web4",
		"dst fd00::20":                  "icmp ping, tcp web",
		"dst 2001:db8::1 port 443":      "tcp web",
		"proto icmp":                    "icmp ping",
		"proto tcp src 2001:db8:9::/48": "tcp web",
		"src 2001:db8:8::/48":           "",
	} {
		sel, err := rule.ParseSelector(strings.Fields(selector))
		if err != nil {
			t.Fatal(err)
		}
		list, err := tables.list(sel)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range list {
			got = append(got, c.Protocol.String()+" "+c.Forward)
		}
		if got := strings.Join(got, ", "); got != want {
			t.Errorf("%q picks %q, want %q", selector, got, want)
		}
	}
	list, err := tables.list(rule.Selector{Forward: "web"})
	if err != nil || len(list) != 1 {
		t.Fatalf("connections %v, %v", list, err)
	}
	text, err := json.Marshal(list[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"client":"[2001:db8:9::9]:5000"`, `"external":"[2001:db8::1]:443"`, `"target":"[fd00::20]:8443"`, `"protocol":"tcp"`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s lacks %s", text, want)
		}
	}
}

// A half-open ICMPv6 echo connection has the timeout of ICMP.
func TestOpeningTimeOfICMPv6(t *testing.T) {
	settings := bpf.HairpinSettings{TcpOpening: 1, Icmp: 2, Udp: 3}
	if got := openingTime(&settings, rule.ProtocolOf(unix.IPPROTO_ICMPV6)); got != 2 {
		t.Errorf("%d, want that of ICMP", got)
	}
}

func TestHasIPv6(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	for _, step := range []struct {
		forwards []string
		want     bool
	}{{nil, false}, {[]string{"a tcp 80 to 10.0.0.1"}, false}, {[]string{"a tcp 80 to 10.0.0.1", "b tcp 80 to fd00::1"}, true}, {[]string{"a tcp 80 to 10.0.0.1"}, false}} {
		if step.forwards != nil {
			mustApply(t, tables, mapstest.Config(t, step.forwards...))
		}
		if got, err := tables.HasIPv6(); err != nil || got != step.want {
			t.Errorf("%q: %v, %v, want %v", step.forwards, got, err, step.want)
		}
	}
	if added, err := tables.Add(mapstest.Forward(t, "b tcp 80 to fd00::1")); err != nil || !added {
		t.Fatalf("added %v, %v", added, err)
	}
	if got, err := tables.HasIPv6(); err != nil || !got {
		t.Errorf("after one was added: %v, %v", got, err)
	}
}
