// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hairpin/bpf"
)

// mustIntercept reads what Forward.String writes.
func mustIntercept(t testing.TB, line string) Forward {
	t.Helper()
	words := strings.Fields(line)
	f := Forward{Intercept: true, Name: words[0]}
	must := func(err error) {
		if err != nil {
			t.Fatalf("intercept %q: %v", line, err)
		}
	}
	var err error
	for name := range strings.SplitSeq(words[1], ",") {
		protocol, err := ParseProtocol(name)
		must(err)
		f.Protocols = append(f.Protocols, protocol)
	}
	lan, ports := splitPorts(words[2])
	if ports == "" {
		lan, ports = "", lan
	}
	if lan != "" {
		f.LAN = strings.Split(lan, ",")
	}
	f.Ports, err = ParsePorts(ports)
	must(err)
	must(f.SetTarget(words[4]))
	for i := 5; i < len(words); i += 2 {
		switch words[i] {
		case "reflect":
			f.Reflect = Reflect(words[i+1])
		case "except":
			for text := range strings.SplitSeq(words[i+1], ",") {
				prefix, err := ParsePrefix(text)
				must(err)
				f.Except = append(f.Except, prefix)
			}
		}
	}
	return f
}

// withIntercepts is a configuration of two LANs.
func withIntercepts(t testing.TB, lines ...string) Config {
	t.Helper()
	c := configWith(t)
	c.LAN = []string{"lan0", "lan1"}
	for _, line := range lines {
		c.Forwards = append(c.Forwards, mustIntercept(t, line))
	}
	return c
}

func TestInterceptsAreWrittenAlike(t *testing.T) {
	for _, line := range []string{
		"dns udp,tcp 53 to 192.168.1.1:53",
		"dns udp lan0,lan1:53-54 to [fd00::1]:5353-5354 except fd00::2/128,fd00:1::/64 reflect prefix",
	} {
		if got := mustIntercept(t, line).String(); got != line {
			t.Errorf("%s is written %s", line, got)
		}
	}
}

func TestValidateRefusesIntercepts(t *testing.T) {
	for _, test := range []struct {
		name   string
		lines  []string
		change func(*Config)
		want   string
	}{
		{"icmp", []string{"a udp 53 to 10.0.0.1"}, func(c *Config) { c.Forwards[0].Protocols = []Protocol{UDP, ICMP} }, `intercept "a": protocol: icmp cannot be intercepted: only tcp and udp have ports`},
		{"sctp", []string{"a sctp 53 to 10.0.0.1"}, nil, `intercept "a": protocol: sctp cannot be intercepted`},
		{"any", []string{"a any 53 to 10.0.0.1"}, nil, `intercept "a": protocol: any cannot be intercepted`},
		{"no protocol", []string{"a udp 53 to 10.0.0.1"}, func(c *Config) { c.Forwards[0].Protocols = nil }, `intercept "a": protocol: there is none`},
		{"protocol twice", []string{"a udp,udp 53 to 10.0.0.1"}, nil, "udp is there twice"},
		{"every port", []string{"a udp 53 to 10.0.0.1"}, func(c *Config) { c.Forwards[0].Ports = Ports{} }, `port: there is none; without one an intercept would catch everything`},
		{"bad port", []string{"a udp 53 to 10.0.0.1"}, func(c *Config) { c.Forwards[0].Ports = Ports{0, 53} }, `port: 0-53 is not a range`},
		{"name", []string{"A udp 53 to 10.0.0.1"}, nil, `intercept "A": name: "A" is not a name for an intercept`},
		{"same name", []string{"a udp 53 to 10.0.0.1", "a udp 54 to 10.0.0.1"}, nil, `intercept "a": name: the name is taken by another intercept`},
		{"name of a forward", []string{"a udp 53 to 10.0.0.1"}, func(c *Config) { c.Forwards = append(c.Forwards, mustForward(t, "a tcp 80 to 10.0.0.2")) }, `forward "a": name: the name is taken by an intercept`},
		{"unknown LAN", []string{"a udp lan9:53 to 10.0.0.1"}, nil, `intercept "a": lan: "lan9" is not a LAN interface; did you mean "lan0"?`},
		{"WAN", []string{"a udp wan0:53 to 10.0.0.1"}, nil, `lan: "wan0" is a WAN interface where one of interfaces.lan was expected`},
		{"LAN twice", []string{"a udp lan0,lan0:53 to 10.0.0.1"}, nil, `lan: "lan0" is there twice`},
		{"no LAN", []string{"a udp 53 to 10.0.0.1"}, func(c *Config) { c.LAN = nil }, "lan: it is every LAN interface, but none is configured"},
		{"a name, and no LAN", []string{"a udp lan0:53 to 10.0.0.1"}, func(c *Config) { c.LAN = nil }, `"lan0" is not a LAN interface; no LAN interface is configured`},

		{"target 0.0.0.0", []string{"a udp 53 to 0.0.0.0"}, nil, "to: 0.0.0.0 is no address of a host"},
		{"target ::", []string{"a udp 53 to ::"}, nil, "to: :: is no address of a host"},
		{"loopback target", []string{"a udp 53 to 127.0.0.1"}, nil, "to: 127.0.0.1 is a loopback address"},
		{"multicast target", []string{"a udp 53 to 224.0.0.251"}, nil, "is a multicast address"},
		{"multicast target of IPv6", []string{"a udp 53 to ff02::fb"}, nil, "is a multicast address"},
		{"link-local target", []string{"a udp 53 to fe80::1"}, nil, "is a link-local address"},
		{"broadcast target", []string{"a udp 53 to 255.255.255.255"}, nil, "is the broadcast address"},
		{"an external address", []string{"a udp 53 to 203.0.113.1"}, func(c *Config) {
			c.Forwards = append(c.Forwards, mustForward(t, "web tcp 203.0.113.1:80 to 10.0.0.2"))
		}, `intercept "a": to: 203.0.113.1 is the external address of forward "web"`},
		{"ports past the end", []string{"a udp 1-100 to 10.0.0.1:65500"}, nil, "100 ports from 65500 on end at 65599"},

		{"except of the other family", []string{"a udp 53 to 10.0.0.1 except fd00::1"}, nil, `intercept "a": except: fd00::1/128 is an IPv6 network, but the target 10.0.0.1 is IPv4`},
		{"except everybody", []string{"a udp 53 to 10.0.0.1 except 0.0.0.0/0"}, nil, "except: 0.0.0.0/0 is everybody, so nothing would be intercepted"},
		{"except no network", []string{"a udp 53 to 10.0.0.1"}, func(c *Config) { c.Forwards[0].Except = []netip.Prefix{{}} }, "is not a network"},
		{"public", []string{"a udp 53 to 10.0.0.1 reflect public"}, nil, `intercept "a": reflect: public cannot be intercepted by: it would give the target the very address that a client asked`},
		{"off", []string{"a udp 53 to 10.0.0.1 reflect off"}, nil, `reflect: off serves no LAN client, and an intercept has no others`},
		{"what is no mode", []string{"a udp 53 to 10.0.0.1 reflect atuo"}, nil, `reflect: "atuo" is not a reflect mode; did you mean "auto"?`},
		{"prefix without", []string{"a udp 53 to 10.0.0.1 reflect prefix"}, nil, "reflect: it is prefix, but reflection.prefixes has no IPv4 network"},

		{"same port of one LAN", []string{"a udp,tcp lan0:53 to 10.0.0.1", "b udp lan1,lan0:53 to 10.0.0.2"}, nil, `intercept "b": port: 53 is taken by intercept "a"`},
		{"same port of every LAN", []string{"a udp 53 to 10.0.0.1", "b udp 53 to 10.0.0.2"}, nil, `intercept "b": port: 53 is taken by intercept "a"`},
		{"ports in common", []string{"a udp lan0:50-60 to 10.0.0.1", "b udp lan0:55-65 to 10.0.0.1"}, nil, `intercept "b": port: 55-65 shares some ports with intercept "a", which has 50-60`},
		{"a loop", []string{"a udp lan0:53 to 10.0.0.1", "b udp lan1:53 to 10.0.0.2"}, nil, `intercept "a": to: what 10.0.0.1 itself asks others, intercept "b" would catch and send to 10.0.0.2, so that questions could go round; write 10.0.0.1 into except there`},
		{"the other half of it", []string{"a udp lan0:53 to 10.0.0.1", "b udp lan1:53 to 10.0.0.2"}, nil, `intercept "b": to: what 10.0.0.2 itself asks others, intercept "a" would catch and send to 10.0.0.1`},
		{"a loop of ranges", []string{"a udp lan0:50-60 to 10.0.0.1 except 10.0.0.2", "b tcp,udp 60-70 to 10.0.0.2"}, nil, `intercept "a": to: what 10.0.0.1 itself asks others, intercept "b" would catch`},
		{"a loop of IPv6", []string{"a udp lan0:53 to fd00::1", "b udp 53 to fd00::2 except fd00::1:0:0:0/80"}, nil, `intercept "a": to: what fd00::1 itself asks others, intercept "b" would catch`},
	} {
		c := withIntercepts(t, test.lines...)
		if test.change != nil {
			test.change(&c)
		}
		if err := c.Validate(); !contains(err, test.want) {
			t.Errorf("%s: error %v lacks %q", test.name, err, test.want)
		}
	}
}

func TestValidateTakesIntercepts(t *testing.T) {
	for name, c := range map[string]Config{
		"of each family":         withIntercepts(t, "a udp,tcp 53 to 10.0.0.1:5353", "b udp,tcp 53 to fd00::1"),
		"of each protocol":       withIntercepts(t, "a udp 53 to 10.0.0.1", "b tcp 53 to 10.0.0.2"),
		"one target":             withIntercepts(t, "a udp lan0:53 to 10.0.0.1", "b udp lan1:53 to 10.0.0.1:54"),
		"more and less specific": withIntercepts(t, "a udp 53 to 10.0.0.1 except 10.0.0.2", "b udp lan0:53 to 10.0.0.2 except 10.0.0.0/24", "c udp 50-60 to 10.0.0.1 except 10.0.0.2"),
		"other ports":            withIntercepts(t, "a udp 53 to 10.0.0.1", "b udp 123 to 10.0.0.2"),
		"beside forwards": func() Config {
			c := withIntercepts(t, "a udp 53 to 10.0.0.1")
			c.Forwards = append(c.Forwards, mustForward(t, "dns udp 53 to 10.0.0.2"))
			return c
		}(),
		"whatever the default": func() Config {
			c := withIntercepts(t, "a udp 53 to 10.0.0.1")
			c.Reflection = ReflectOff
			return c
		}(),
		"by stand-ins": func() Config {
			c := withIntercepts(t, "a udp 53 to 10.0.0.1 reflect prefix")
			c.StandIns = standIns("192.168.1.0/24 198.18.1.0/24")
			return c
		}(),
	} {
		if err := c.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestManyInterceptsAreCheckedFast(t *testing.T) {
	c := withIntercepts(t)
	for i := range 65535 {
		c.Forwards = append(c.Forwards, Forward{
			Intercept: true, Name: fmt.Sprintf("i%d", i), Protocols: []Protocol{UDP}, Ports: Ports{uint16(i + 1), uint16(i + 1)},
			Target: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i) | 1}),
		})
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	for i := range c.Forwards {
		c.Forwards[i].Ports = Ports{53, 53}
	}
	if problems := len(Problems(c.Validate())); problems != len(c.Forwards)-1 {
		t.Errorf("%d problems", problems)
	}
}

// An intercept may lead to the router itself, but to no address that no host has.
func TestCheckAddressesOfIntercepts(t *testing.T) {
	ifs := []Interface{{Name: "lan0", Role: RoleLAN, Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.1.1/24"), netip.MustParsePrefix("fd00:1::1/64")}}}
	for target, want := range map[string]string{
		"192.168.1.1":   "",
		"fd00:1::1":     "",
		"192.168.1.20":  "",
		"192.168.1.0":   "192.168.1.0 is the network of lan0",
		"192.168.1.255": "192.168.1.255 is the broadcast address of lan0",
		"fd00:1::":      "subnet-router anycast",
	} {
		err := withIntercepts(t, "a udp 53 to "+target).CheckAddresses(ifs)
		if want == "" && err != nil || want != "" && !contains(err, want) {
			t.Errorf("%s: error %v, want %q", target, err, want)
		}
	}
}

func TestInterceptsAreFoundAtTheirLANs(t *testing.T) {
	c := withIntercepts(t, "every udp,tcp 50-60 to 10.0.0.1", "one udp lan1:53 to 10.0.0.1:54", "six tcp lan0:53 to fd00::1")
	c.Forwards = append(c.Forwards, mustForward(t, "web udp 53 to 10.0.0.3"))
	p := mustCompile(t, c, &document{}, testInventory())
	for _, test := range []struct {
		at       place
		protocol Protocol
		port     uint16
		want     string
	}{
		{lanPlace("lan0", false), UDP, 53, "every"}, {lanPlace("lan0", false), TCP, 60, "every"}, {lanPlace("lan0", false), UDP, 61, ""},
		{lanPlace("lan1", false), UDP, 53, "one"}, {lanPlace("lan1", false), TCP, 53, "every"}, {lanPlace("lan1", false), UDP, 54, "every"},
		{lanPlace("lan0", true), TCP, 53, "six"}, {lanPlace("lan0", true), UDP, 53, ""}, {lanPlace("lan1", true), TCP, 53, ""},
		{interfacePlace("wan0", false), UDP, 53, "web"}, {interfacePlace("wan0", false), TCP, 53, ""}, {interfacePlace("wan0", true), UDP, 53, ""},
	} {
		if got := p.find(test.at, test.protocol, test.port); got != test.want {
			t.Errorf("%+v: %q, want %q", test, got, test.want)
		}
	}
	if _, there := p.doc.Externals[lanPlace("lan1", true)]; there {
		t.Error("lan1 has an external id for a family that nobody intercepts there")
	}
	if without := mustCompile(t, withIntercepts(t), &document{}, testInventory()); len(without.doc.Externals) != 4 {
		t.Errorf("without intercepts there are external ids for %v", without.doc.Externals)
	}
}

// catches looks an address up as forward_allows() of the datapath does.
func (p *program) catches(addr string) bool {
	best, allowed := uint32(0), false
	for i, key := range p.sources {
		bits := key.PrefixLength - sourceBits
		network := netip.PrefixFrom(netip.AddrFrom16(key.Source.Bytes), int(bits))
		if key.PrefixLength >= best && network.Contains(netip.AddrFrom16(netip.MustParseAddr(addr).As16())) {
			best, allowed = key.PrefixLength, p.allowed[i] != 0
		}
	}
	return allowed
}

func TestWhomInterceptsCatch(t *testing.T) {
	for line, addrs := range map[string]map[string]bool{
		"a udp 53 to 10.0.0.1 except 10.0.1.0/24,10.0.2.1": {
			"10.0.0.1": false, "10.0.0.2": true, "10.0.1.77": false, "10.0.2.1": false, "10.0.2.2": true, "8.8.8.8": true, "192.168.1.1": true,
			"127.0.0.1": false, "169.254.1.1": false, "224.0.0.251": false, "255.255.255.255": false, "0.0.0.0": false,
			"fd00::1": false, "2001:db8::1": false,
		},
		"a udp 53 to fd00::1 except fd00:1::/64": {
			"fd00::1": false, "fd00::2": true, "fd00:1::77": false, "2001:db8::1": true,
			"fe80::1": false, "ff02::fb": false, "::": false, "::1": false,
			// IPv6 is never asked for IPv4.
			"10.0.0.2": false,
		},
	} {
		p := mustCompile(t, withIntercepts(t, line), &document{}, testInventory())
		if p.values[0].Restricted != 1 {
			t.Errorf("%s: not restricted", line)
		}
		for addr, want := range addrs {
			if got := p.catches(addr); got != want {
				t.Errorf("%s: catches %s: %v", line, addr, got)
			}
		}
	}
}

// Of an intercepted client nobody can tell from its server whom it asked.
func TestInterceptsAreNoOrigins(t *testing.T) {
	c := withIntercepts(t, "a udp,tcp lan0:53 to 10.0.0.1 reflect prefix")
	c.WAN, c.StandIns = c.WAN[:1], standIns("192.168.1.0/24 198.18.1.0/24")
	c.Forwards = append(c.Forwards, mustForward(t, "f udp 53 to 10.0.0.1 reflect prefix"), mustForward(t, "g udp 54 to 10.0.0.1 reflect prefix"))
	p := mustCompile(t, c, &document{}, testInventory())
	for port, want := range map[uint16]string{53: "?", 54: "wan0:54"} {
		if got := p.cameBy("10.0.0.1", UDP, port); got != want {
			t.Errorf("port %d: came by %q, want %q", port, got, want)
		}
	}
	if got := p.cameBy("10.0.0.1", TCP, 53); got != "?" {
		t.Errorf("by an intercept alone: came by %q", got)
	}
}

func TestWhatChangesAnIntercept(t *testing.T) {
	const line = "a udp,tcp lan0,lan1:53 to 10.0.0.1 except 10.0.0.9,10.0.0.8"
	for after, changes := range map[string]bool{
		line: false,
		"a tcp,udp lan1,lan0:53 to 10.0.0.1:53 except 10.0.0.8,10.0.0.9 reflect auto": false,
		"a udp,tcp lan0:53 to 10.0.0.1 except 10.0.0.9,10.0.0.8":                      true,
		"a udp,tcp 53 to 10.0.0.1 except 10.0.0.9,10.0.0.8":                           true,
		"a udp,tcp lan0,lan1:53 to 10.0.0.1 except 10.0.0.9":                          true,
		"a udp,tcp lan0,lan1:53 to 10.0.0.1":                                          true,
		"a udp,tcp lan0,lan1:53 to 10.0.0.1:54 except 10.0.0.9,10.0.0.8":              true,
		"a udp,tcp lan0,lan1:53 to 10.0.0.1 except 10.0.0.9,10.0.0.8 reflect router":  true,
	} {
		running := mustCompile(t, withIntercepts(t, line), &document{}, testInventory())
		c := withIntercepts(t, after)
		// That is for forwards alone.
		c.Reflection = ReflectRouter
		p := mustCompile(t, c, &running.doc, testInventory())
		if ends := len(p.doc.Ended) == 1; ends != changes {
			t.Errorf("%s: connections end: %v", after, ends)
		}
		if changed := len(compare(running.doc.Config, c).Changed) == 1; changed != changes {
			t.Errorf("%s: changed: %v", after, changed)
		}
	}
	forward := withIntercepts(t)
	forward.Forwards = []Forward{mustForward(t, "a udp 53 to 10.0.0.1")}
	running := mustCompile(t, forward, &document{}, testInventory())
	if p := mustCompile(t, withIntercepts(t, "a udp 53 to 10.0.0.1"), &running.doc, testInventory()); len(p.doc.Ended) != 1 {
		t.Error("a forward becomes an intercept, and its connections go on")
	}
}

func (t *Tables) wantLocals(tb testing.TB, want ...string) {
	tb.Helper()
	present, err := readAll[bpf.HairpinAddr, uint8](t.objs.Locals)
	if err != nil {
		tb.Fatal(err)
	}
	var got []string
	for addr := range present {
		got = append(got, fromAddr(addr).String())
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		tb.Errorf("own addresses (-want +got)\n%s", diff)
	}
}

// intercepted finds an intercept in the kernel's maps as intercept_find() does.
func (t *Tables) intercepted(tb testing.TB, index uint32, v6 bool, protocol Protocol, port uint16) string {
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
	if inner(tb, t.objs.Forwards, generation&1).Lookup(forwardKey(id, uint8(protocol), port, portBits), &f) != nil || !t.current(tb, f.EpochRef) {
		return ""
	}
	return fromAddr(f.Target).String()
}

func (t *Tables) wantIntercepted(tb testing.TB, when string, index uint32, protocol Protocol, port uint16, want, want6 string) {
	tb.Helper()
	got, got6 := t.intercepted(tb, index, false, protocol, port), t.intercepted(tb, index, true, protocol, port)
	if got != want || got6 != want6 {
		tb.Errorf("%s: at interface %d %s %d goes to %q and %q, want %q and %q", when, index, protocol, port, got, got6, want, want6)
	}
}

func TestInterceptsInTheKernel(t *testing.T) {
	tables := newTables(t, smallSpec(t))
	address := func(texts ...string) (list []netip.Prefix) {
		for _, text := range texts {
			list = append(list, netip.MustParsePrefix(text))
		}
		return list
	}
	ifs := []Interface{
		{Name: "lan0", Index: 5, Role: RoleLAN, Addresses: address("192.168.1.1/24", "fd00:1::1/64"), Passive: address("192.168.1.2/24")},
		{Name: "lan1", Index: 6, Role: RoleLAN, Addresses: address("192.168.2.1/24")},
		wan("wan0", 7, "203.0.113.1/24"),
		{Name: "docker0", Index: 8, Addresses: address("172.17.0.1/16")},
	}
	mustApply(t, tables, withIntercepts(t))
	mustSetInterfaces(t, tables, ifs...)
	tables.wantIntercepted(t, "before", 5, UDP, 53, "", "")
	tables.wantLocals(t)

	mustApply(t, tables, withIntercepts(t, "a udp lan0:53 to 192.168.1.1", "b udp lan0:50-60 to fd00:1::1", "c tcp 1000 to 10.0.0.1"))
	mustSetInterfaces(t, tables, ifs...)
	tables.wantIntercepted(t, "now", 5, UDP, 53, "192.168.1.1", "fd00:1::1")
	tables.wantIntercepted(t, "now", 5, UDP, 60, "", "fd00:1::1")
	tables.wantIntercepted(t, "now", 5, TCP, 1000, "10.0.0.1", "")
	tables.wantIntercepted(t, "now", 6, TCP, 1000, "10.0.0.1", "")
	tables.wantIntercepted(t, "now", 6, UDP, 53, "", "")
	tables.wantIntercepted(t, "now", 7, TCP, 1000, "", "")
	tables.wantLocals(t, "172.17.0.1", "192.168.1.1", "192.168.1.2", "192.168.2.1", "203.0.113.1", "fd00:1::1")
	if s := tables.mustSettings(t); s.InterceptFirst != 50 || s.InterceptLast != 1000 {
		t.Errorf("ports %d to %d, want 50 to 1000", s.InterceptFirst, s.InterceptLast)
	}

	// The next process changes one, and the addresses follow.
	tables = tables.again()
	mustApply(t, tables, withIntercepts(t, "a udp lan1:53 to 192.168.1.1"))
	tables.wantIntercepted(t, "before the interfaces are set", 5, UDP, 53, "", "")
	tables.wantIntercepted(t, "before the interfaces are set", 5, TCP, 1000, "", "")
	ifs[1].Addresses = address("192.168.3.1/24")
	mustSetInterfaces(t, tables, ifs[:3]...)
	tables.wantIntercepted(t, "then", 5, UDP, 53, "", "")
	tables.wantIntercepted(t, "then", 6, UDP, 53, "192.168.1.1", "")
	tables.wantLocals(t, "192.168.1.1", "192.168.1.2", "192.168.3.1", "203.0.113.1", "fd00:1::1")

	mustApply(t, tables, withIntercepts(t))
	tables.wantIntercepted(t, "removed", 6, UDP, 53, "", "")
	if s := tables.mustSettings(t); s.InterceptFirst <= s.InterceptLast {
		t.Errorf("ports %d to %d without intercepts", s.InterceptFirst, s.InterceptLast)
	}
	mustSetInterfaces(t, tables, ifs...)
	tables.wantLocals(t)
}

// TestAnOldInterceptIDIsNobodyElses: an interface has it until somebody says what interfaces there are.
func TestAnOldInterceptIDIsNobodyElses(t *testing.T) {
	tables := newTables(t, smallSpec(t))
	lan0 := Interface{Name: "lan0", Index: 5, Role: RoleLAN}
	mustApply(t, tables, withIntercepts(t, "a udp lan0:53 to 10.0.0.1"))
	mustSetInterfaces(t, tables, lan0)
	mustApply(t, tables, withIntercepts(t))
	mustApply(t, tables, withIntercepts(t, "b udp lan1:53 to 10.0.0.2"))
	tables.wantIntercepted(t, "of another one", 5, UDP, 53, "", "")
	mustSetInterfaces(t, tables, lan0, Interface{Name: "lan1", Index: 6, Role: RoleLAN})
	tables.wantIntercepted(t, "of another one", 5, UDP, 53, "", "")
	tables.wantIntercepted(t, "its own", 6, UDP, 53, "10.0.0.2", "")
}

func TestTooManyOwnAddressesAreRefused(t *testing.T) {
	spec := smallSpec(t)
	spec.Maps[bpf.HairpinMapLocals].MaxEntries = 2
	tables := newTables(t, spec)
	lan0 := Interface{Name: "lan0", Index: 5, Role: RoleLAN}
	for i := range 3 {
		lan0.Addresses = append(lan0.Addresses, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 24))
	}
	mustApply(t, tables, withIntercepts(t))
	mustSetInterfaces(t, tables, lan0)
	mustApply(t, tables, withIntercepts(t, "a udp 53 to 10.0.0.1"))
	if err := tables.SetInterfaces([]Interface{lan0}); !contains(err, "the router has 3 addresses of its own, but the table holds 2") {
		t.Errorf("error %v", err)
	}
}
