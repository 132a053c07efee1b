// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
)

func TestForwardsOfIPv6(t *testing.T) {
	prefix := netip.MustParsePrefix
	for _, test := range []struct {
		line, written string // written as String has it; "" is the same
		want          Forward
	}{
		{"web tcp [2001:db8::1]:443 to [fd00::20]:8443", "", Forward{
			Protocols: []Protocol{TCP}, External: External{Address: netip.MustParseAddr("2001:db8::1")}, Ports: Ports{443, 443}, TargetPort: 8443,
		}},
		{"web udp wan0:6000-6010 to [fd00::20]:7000-7010 from 2001:db8::/32,::/0,2001:db8::9 reflect router",
			"web udp wan0:6000-6010 to [fd00::20]:7000-7010 from 2001:db8::/32,::/0,2001:db8::9/128 reflect router", Forward{
				Protocols: []Protocol{UDP}, External: External{Interface: "wan0"}, Ports: Ports{6000, 6010}, TargetPort: 7000,
				From: []netip.Prefix{prefix("2001:db8::/32"), prefix("::/0"), prefix("2001:db8::9/128")}, Reflect: ReflectRouter,
			}},
		{"web tcp 443 to fd00::20", "web tcp 443 to [fd00::20]:443", Forward{Protocols: []Protocol{TCP}, Ports: Ports{443, 443}}},
		{"web tcp 443 to [FD00:0::20]", "web tcp 443 to [fd00::20]:443", Forward{Protocols: []Protocol{TCP}, Ports: Ports{443, 443}}},
		{"web any any to fd00::20", "", Forward{Protocols: []Protocol{Any}}},
		{"web icmp [2001:db8::1]:any to [fd00::20]", "web icmp [2001:db8::1]:any to fd00::20", Forward{
			Protocols: []Protocol{ICMP}, External: External{Address: netip.MustParseAddr("2001:db8::1")},
		}},
	} {
		test.want.Name, test.want.Target = "web", netip.MustParseAddr("fd00::20")
		f := mustForward(t, test.line)
		if diff := cmp.Diff(test.want, f, netipValues); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", test.line, diff)
		}
		if test.written == "" {
			test.written = test.line
		}
		if f.String() != test.written {
			t.Errorf("%s: String gives %s", test.line, f)
		}
		if again := mustForward(t, f.String()); again.String() != f.String() {
			t.Errorf("%s: read again it is %s", f, again)
		}
		if err := configWith(t, test.line).Validate(); err != nil {
			t.Errorf("%s: %v", test.line, err)
		}
	}
}

// What a forward of IPv6 cannot be is told before anything is opened.
func TestWrongForwardsOfIPv6(t *testing.T) {
	for line, want := range map[string]string{
		"a tcp [2001:db8::1]:443 to 10.0.0.1":                        "to: 10.0.0.1 is an IPv4 address, but the external address 2001:db8::1 is IPv6; a forward stays within its family",
		"a tcp 203.0.113.1:443 to fd00::1":                           "to: fd00::1 is an IPv6 address, but the external address 203.0.113.1 is IPv4",
		"a tcp 443 to 10.0.0.1 from ::/0":                            "from: ::/0 is an IPv6 network, but the target 10.0.0.1 is IPv4",
		"a tcp 443 to fd00::1 from 2001:db8::/32,0.0.0.0/0":          "from: 0.0.0.0/0 is an IPv4 network, but the target fd00::1 is IPv6",
		"a tcp 443 to fd00::1 from 2001:db8::1/32":                   "write 2001:db8::/32",
		"a tcp 443 to fd00::1 from 2001:db8::/129":                   "is not a network",
		"a tcp 443 to fd00::1 from ::ffff:10.0.0.0/104":              "is an IPv4-mapped address; write 10.0.0.0/8",
		"a tcp 443 to ::ffff:10.0.0.1":                               "is an IPv4-mapped address; write 10.0.0.1",
		"a tcp 443 to [::ffff:10.0.0.1]:443":                         "is an IPv4-mapped address; write 10.0.0.1",
		"a tcp [::ffff:203.0.113.1]:443 to 10.0.0.1":                 "external: ",
		"a tcp 443 to fe80::1%lan0":                                  "has a zone",
		"a tcp 443 to [fd00::1":                                      `"[fd00:" is not an address`,
		"a tcp 443 to fd00::1]:443":                                  `"fd00::1]:443" is not an address`,
		"a tcp 443 to [10.0.0.1]:443":                                `"[10.0.0.1]" is not an address`,
		"a tcp 443 to [fd00::1]443":                                  "is not an address",
		"a tcp 443 to [fd00::1]:":                                    "ends where a port was expected",
		"a tcp 443 to fd00:::1":                                      `"fd00:::1" is not an address`,
		"a tcp 443 to 2001:db8:1:2:3:4:5:6:443":                      "an IPv6 address with a port, which needs brackets; write [2001:db8:1:2:3:4:5:6]:443",
		"a tcp 2001:db8:1:2:3:4:5:6:443 to fd00::1":                  "external: \"2001:db8:1:2:3:4:5:6:443\" is an IPv6 address with a port",
		"a tcp 2001:db8::1 to fd00::1":                               "has no port; write [2001:db8::1]:443, or [2001:db8::1]:any",
		"a tcp [2001:db8::1] to fd00::1":                             "has no port; write [2001:db8::1]:443",
		"a sctp [2001:db8::1]:1 to [fd00::1]:2":                      "the ports of sctp cannot change",
		"a icmp 1 to fd00::1":                                        "icmp has no ports",
		"a tcp [2001:db8::1]:443 to [fd00::1]:443 from fd00::/8,x:y": "is not an address",
	} {
		if _, err := ParseForward(strings.Fields(line)); !contains(err, want) {
			t.Errorf("%s: error %v lacks %q", line, err, want)
		}
	}
}

func TestAddressesThatAreNoHosts(t *testing.T) {
	for addr, want := range map[string]string{
		"::":               "is no address of a host",
		"::1":              "is a loopback address",
		"ff02::1":          "is a multicast address",
		"ff0e::1":          "is a multicast address",
		"fe80::1":          "is a link-local address, which cannot be reached through a router",
		"::ffff:10.0.0.1":  "is an IPv4-mapped address; write 10.0.0.1",
		"::ffff:127.0.0.1": "is an IPv4-mapped address",
	} {
		at := netip.MustParseAddr(addr)
		c := configWith(t, "a tcp 80 to fd00::1", "b tcp [2001:db8::1]:81 to fd00::1")
		c.Forwards[0].Target, c.Forwards[1].External.Address = at, at
		fields := ""
		for _, p := range Problems(c.Validate()) {
			if strings.Contains(p.Message, want) {
				fields += p.Field + " "
			}
		}
		if fields != "to external " {
			t.Errorf("%s: %q refused for %q: %v", addr, fields, want, c.Validate())
		}
	}
	c := configWith(t, "a tcp [2001:db8::1]:80 to fd00::1")
	for _, cross := range []func(){
		func() { c.Forwards[0].Target = netip.MustParseAddr("10.0.0.1") },
		func() { c.Forwards[0].External.Address = netip.MustParseAddr("203.0.113.1") },
	} {
		before := c.Forwards[0]
		cross()
		if err := c.Validate(); !contains(err, "a forward stays within its family") {
			t.Errorf("%s: %v", c.Forwards[0], err)
		}
		c.Forwards[0] = before
	}
	c.Forwards[0].From = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	if err := c.Validate(); !contains(err, "from: 10.0.0.0/8 is an IPv4 network") {
		t.Error(err)
	}
}

// Forwards of both families may have the same ports; those of one may not.
func TestFamiliesDoNotConflict(t *testing.T) {
	c := configWith(t, "a tcp 80 to 10.0.0.1", "a6 tcp 80 to fd00::1", "b any wan0:any to 10.0.0.2", "b6 any wan0:any to fd00::2")
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	for line, want := range map[string]string{
		"c tcp 80 to fd00::3":       `80 is taken by forward "a6"`,
		"c any wan0:any to fd00::3": `every protocol is taken by forward "b6"`,
		"c tcp 80 to 10.0.0.3":      `80 is taken by forward "a"`,
	} {
		if err := configWith(t, "a tcp 80 to 10.0.0.1", "a6 tcp 80 to fd00::1", "b any wan0:any to 10.0.0.2", "b6 any wan0:any to fd00::2", line).Validate(); !contains(err, want) {
			t.Errorf("%s: error %v lacks %q", line, err, want)
		}
	}
	ring := configWith(t, "a tcp [2001:db8::1]:80 to 2001:db8::2", "b tcp [2001:db8::2]:80 to fd00::1")
	if err := ring.Validate(); !contains(err, `2001:db8::2 is the external address of forward "b"`) {
		t.Error(err)
	}
}

func TestCheckAddressesOfIPv6(t *testing.T) {
	ifs := []Interface{
		{Name: "lan0", Addresses: []netip.Prefix{netip.MustParsePrefix("fd00::1/64"), netip.MustParsePrefix("fe80::1/64")}},
		{Name: "wan0", Addresses: []netip.Prefix{netip.MustParsePrefix("2001:db8::3/127"), netip.MustParsePrefix("2001:db8:1::9/128")},
			Passive: []netip.Prefix{netip.MustParsePrefix("2001:db8:2::5/64")}},
	}
	for target, want := range map[string]string{
		"fd00::1":                  "fd00::1 is this router's own address on lan0",
		"fd00::":                   "fd00:: is every router's address on the network of lan0",
		"2001:db8:1::9":            "is this router's own address on wan0",
		"2001:db8:2::5":            "is this router's own address on wan0",
		"2001:db8::2":              "", // the other end of a /127, RFC 6164
		"fd00::ffff:ffff:ffff:ff":  "",
		"fd00::20":                 "",
		"2001:db8:9::1":            "",
		"fd00::ffff:ffff:ffff:fff": "",
	} {
		err := configWith(t, "a tcp 80 to "+target).CheckAddresses(ifs)
		if want == "" && err != nil || want != "" && !contains(err, want) {
			t.Errorf("%s: error %v, want %q", target, err, want)
		}
	}
}

func TestEachFamilyHasItsPlaces(t *testing.T) {
	p := mustCompile(t, configWith(t,
		"every4 tcp,icmp any to 10.0.0.1",
		"every6 tcp,icmp any to fd00::1",
		"own4 tcp wan0:80 to 10.0.0.2",
		"own6 tcp wan1:80 to fd00::2",
		"own-any6 any wan0:any to fd00::3",
		"fixed6 tcp,icmp [2001:db8::7]:any to fd00::4",
	), &document{}, testInventory())
	fixed := addressPlace(netip.MustParseAddr("2001:db8::7"))
	for _, test := range []struct {
		at       place
		protocol Protocol
		port     uint16
		want     string
	}{
		{interfacePlace("wan0", false), TCP, 80, "own4"},
		{interfacePlace("wan0", false), TCP, 81, "every4"},
		{interfacePlace("wan0", false), UDP, 81, ""},
		{interfacePlace("wan0", false), ICMP, 0, "every4"},
		{interfacePlace("wan0", true), TCP, 80, "own-any6"},
		{interfacePlace("wan0", true), UDP, 81, "own-any6"},
		{interfacePlace("wan0", true), ICMP, 0, "own-any6"},
		{interfacePlace("wan1", false), TCP, 80, "every4"},
		{interfacePlace("wan1", true), TCP, 80, "own6"},
		{interfacePlace("wan1", true), TCP, 81, "every6"},
		{interfacePlace("wan1", true), ICMP, 0, "every6"},
		{fixed, TCP, 80, "fixed6"},
		{fixed, ICMP, 0, "fixed6"},
		{fixed, UDP, 80, ""},
	} {
		if got := p.find(test.at, test.protocol, test.port); got != test.want {
			t.Errorf("%s (IPv6: %v) %s %d goes to %q, want %q", test.at, test.at.is6(), test.protocol, test.port, got, test.want)
		}
	}
	for i, key := range p.keys {
		v6 := fromAddr(p.values[i].Target).Is6()
		if v6 && key.Protocol == unix.IPPROTO_ICMP || !v6 && key.Protocol == unix.IPPROTO_ICMPV6 {
			t.Errorf("a target of IPv6: %v, and protocol %d", v6, key.Protocol)
		}
	}
}

// What an older version has written names no family: it is IPv4, and keeps its ids.
func TestPlacesInTheDocument(t *testing.T) {
	places := map[place]uint32{
		interfacePlace("wan0", false): 1, interfacePlace("wan0", true): 2,
		addressPlace(netip.MustParseAddr("203.0.113.1")): 3, addressPlace(netip.MustParseAddr("2001:db8::1")): 4,
	}
	text, err := json.Marshal(places)
	if err != nil {
		t.Fatal(err)
	}
	var again map[place]uint32
	if err := json.Unmarshal(text, &again); err != nil || fmt.Sprint(again) != fmt.Sprint(places) || len(again) != 4 {
		t.Errorf("%s reads as %v, %v", text, again, err)
	}
	var old map[place]uint32
	if err := json.Unmarshal([]byte(`{"wan0":7,"203.0.113.1":8}`), &old); err != nil || old[interfacePlace("wan0", false)] != 7 {
		t.Fatalf("old document: %v, %v", old, err)
	}
	p := mustCompile(t, configWith(t, "a tcp 80 to fd00::1"), &document{Externals: old}, testInventory())
	if now := p.doc.Externals; now[interfacePlace("wan0", false)] != 7 || now[interfacePlace("wan0", true)] <= 8 {
		t.Errorf("ids %v", now)
	}
}

func TestAllowKeysOfIPv6(t *testing.T) {
	p := mustCompile(t, configWith(t, "a tcp 80 to fd00::1 from 2001:db8::/32,::/0,2001:db8::9"), &document{}, testInventory())
	var bits []uint32
	for _, key := range p.sources {
		bits = append(bits, key.PrefixLength-sourceBits)
	}
	if want := []uint32{32, 0, 128}; !slices.Equal(bits, want) || p.sources[0].Source != toAddr(netip.MustParseAddr("2001:db8::")) {
		t.Errorf("sources %+v", p.sources)
	}
}

func TestSetInterfacesFollowsBothFamilies(t *testing.T) {
	tables := newTables(t, smallSpec(t))
	mustApply(t, tables, configWith(t, "a tcp 80 to 10.0.0.1", "a6 tcp,icmp any to fd00::1", "own6 tcp wan1:80 to fd00::2",
		"fixed6 tcp [2001:db8:1::7]:80 to [fd00::3]:8080"))
	wan0 := wan("wan0", 2, "203.0.113.1/24", "fe80::1/64", "2001:db8::1/64", "fd01::1/64")
	wan0.Passive = []netip.Prefix{netip.MustParsePrefix("2001:db8::2/64")}
	wan1 := wan("wan1", 3, "2001:db8:1::1/64", "2001:db8:1::7/64")
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
	if f, found, lives := tables.route(t, "2001:db8::1", ICMP, 0); !found || !lives || fromAddr(f.Target).String() != "fd00::1" {
		t.Errorf("ICMPv6 goes to %s: %v, %v", fromAddr(f.Target), found, lives)
	}
	tables.wantTargets(t, "10.0.0.1", "fd00::1", "fd00::2", "fd00::3")

	// The prefix changes at night, as a provider's does.
	_, old := tables.epochRefs(t, "2001:db8::1", 80)
	_, kept := tables.epochRefs(t, "203.0.113.1", 80)
	mustSetInterfaces(t, tables.again(), wan("wan0", 2, "203.0.113.1/24", "2001:db8:5::1/64"), wan1)
	tables.wantRoute(t, "2001:db8::1", 80, "")
	tables.wantRoute(t, "2001:db8:5::1", 80, "[fd00::1]:80")
	if tables.current(t, old) || !tables.current(t, kept) {
		t.Errorf("connections live: of the address that went %v, of IPv4 %v", tables.current(t, old), tables.current(t, kept))
	}
}

// The datapath knows eight addresses of an interface, and of both families if it can.
func TestInterfaceEntriesOfBothFamilies(t *testing.T) {
	list := func(v4, v6 int) (link Interface) {
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
		entry := list(test.v4, test.v6).kernel()
		var got4, got6 int
		for _, at := range entry.Address[:entry.Addresses] {
			ones := 0
			for _, b := range at.Mask.Bytes {
				for ; b != 0; b &= b - 1 {
					ones++
				}
			}
			switch addr := fromAddr(at.Address); {
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
	if first := list(0, 3).kernel().Address[0].Address; fromAddr(first).String() != "2001:db8::1" {
		t.Errorf("the first is %s", fromAddr(first))
	}
}

func TestConnectionsOfIPv6(t *testing.T) {
	tables := newTables(t, smallSpec(t))
	mustApply(t, tables, configWith(t, "web tcp 443 to [fd00::20]:8443", "ping icmp any to fd00::20", "web4 tcp 443 to 192.168.1.20"))
	mustSetInterfaces(t, tables, wan("wan0", 2, "2001:db8::1/64", "203.0.113.1/24"))
	web, address := tables.epochRefs(t, "2001:db8::1", 443)
	ping, _, _ := tables.route(t, "2001:db8::1", ICMP, 0)
	web4, address4 := tables.epochRefs(t, "203.0.113.1", 443)
	const icmp6 = Protocol(unix.IPPROTO_ICMPV6)
	tables.open(t,
		flow{protocol: TCP, client: "[2001:db8:9::9]:5000", external: "[2001:db8::1]:443", source: "[2001:db8:9::9]:5000", target: "[fd00::20]:8443", forward: web, address: address},
		flow{protocol: icmp6, client: "[2001:db8:9::9]:77", external: "[2001:db8::1]:0", source: "[2001:db8:9::9]:77", target: "[fd00::20]:0", forward: ping.EpochRef, address: address, half: true},
		flow{protocol: TCP, client: "198.51.100.9:5000", external: "203.0.113.1:443", source: "198.51.100.9:5000", target: "192.168.1.20:443", forward: web4, address: address4},
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
		sel, err := ParseSelector(strings.Fields(selector))
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
	list, err := tables.list(Selector{Forward: "web"})
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

// A half-open echo of IPv6 waits as long as one of IPv4.
func TestOpeningTimeOfICMPv6(t *testing.T) {
	settings := bpf.HairpinSettings{TcpOpening: 1, Icmp: 2, Udp: 3}
	if got := openingTime(&settings, protocolOf(unix.IPPROTO_ICMPV6)); got != 2 {
		t.Errorf("%d, want that of ICMP", got)
	}
}

func TestExternalAddressInfoOfBothFamilies(t *testing.T) {
	tables := newTables(t, smallSpec(t))
	addresses := func(list ...string) (addrs []netip.Addr) {
		for _, text := range list {
			addrs = append(addrs, netip.MustParseAddr(text))
		}
		return addrs
	}
	c := NewCollector(tables, CollectorOptions{Interfaces: func() []InterfaceStatus {
		return []InterfaceStatus{
			{Name: "wan0", Role: RoleWAN, Attached: true, Addresses: addresses("203.0.113.1", "2001:db8::1", "fe80::1")},
			{Name: "lan0", Role: RoleLAN, Attached: true, Addresses: addresses("192.168.1.1", "fd00::1")},
		}
	}})
	wantSamples(t, samples(t, c, "hairpin_external_address"),
		`hairpin_external_address_info{address="2001:db8::1",interface="wan0"} 1`,
		`hairpin_external_address_info{address="203.0.113.1",interface="wan0"} 1`)
}

func TestHasIPv6(t *testing.T) {
	tables := newTables(t, smallSpec(t))
	for _, step := range []struct {
		forwards []string
		want     bool
	}{{nil, false}, {[]string{"a tcp 80 to 10.0.0.1"}, false}, {[]string{"a tcp 80 to 10.0.0.1", "b tcp 80 to fd00::1"}, true}, {[]string{"a tcp 80 to 10.0.0.1"}, false}} {
		if step.forwards != nil {
			mustApply(t, tables, configWith(t, step.forwards...))
		}
		if got, err := tables.HasIPv6(); err != nil || got != step.want {
			t.Errorf("%q: %v, %v, want %v", step.forwards, got, err, step.want)
		}
	}
	if added, err := tables.Add(mustForward(t, "b tcp 80 to fd00::1")); err != nil || !added {
		t.Fatalf("added %v, %v", added, err)
	}
	if got, err := tables.HasIPv6(); err != nil || !got {
		t.Errorf("after one was added: %v, %v", got, err)
	}
}
