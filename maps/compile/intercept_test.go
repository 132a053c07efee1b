// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"net/netip"
	"testing"

	"hairpin/maps/layout"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

func TestInterceptsAreFoundAtTheirLANs(t *testing.T) {
	c := mapstest.Intercepts(t, "every udp,tcp 50-60 to 10.0.0.1", "one udp lan1:53 to 10.0.0.1:54", "six tcp lan0:53 to fd00::1")
	c.Forwards = append(c.Forwards, mapstest.Forward(t, "web udp 53 to 10.0.0.3"))
	p := mustCompile(t, c, &Document{}, testInventory())
	for _, test := range []struct {
		at       rule.Place
		protocol rule.Protocol
		port     uint16
		want     string
	}{
		{rule.AtLAN("lan0", false), rule.UDP, 53, "every"}, {rule.AtLAN("lan0", false), rule.TCP, 60, "every"}, {rule.AtLAN("lan0", false), rule.UDP, 61, ""},
		{rule.AtLAN("lan1", false), rule.UDP, 53, "one"}, {rule.AtLAN("lan1", false), rule.TCP, 53, "every"}, {rule.AtLAN("lan1", false), rule.UDP, 54, "every"},
		{rule.AtLAN("lan0", true), rule.TCP, 53, "six"}, {rule.AtLAN("lan0", true), rule.UDP, 53, ""}, {rule.AtLAN("lan1", true), rule.TCP, 53, ""},
		{rule.AtWAN("wan0", false), rule.UDP, 53, "web"}, {rule.AtWAN("wan0", false), rule.TCP, 53, ""}, {rule.AtWAN("wan0", true), rule.UDP, 53, ""},
	} {
		if got := p.find(test.at, test.protocol, test.port); got != test.want {
			t.Errorf("%+v: %q, want %q", test, got, test.want)
		}
	}
	if _, there := p.Doc.Externals[rule.AtLAN("lan1", true)]; there {
		t.Error("lan1 has an external id for a family that nobody intercepts there")
	}
	if without := mustCompile(t, mapstest.Intercepts(t), &Document{}, testInventory()); len(without.Doc.Externals) != 4 {
		t.Errorf("without intercepts there are external ids for %v", without.Doc.Externals)
	}
}

// catches looks up an address as forward_allows() of the datapath does.
func (p *Program) catches(addr string) bool {
	best, allowed := uint32(0), false
	for i, key := range p.AllowKeys {
		bits := key.PrefixLength - layout.SourceBits
		network := netip.PrefixFrom(netip.AddrFrom16(key.Source.Bytes), int(bits))
		if key.PrefixLength >= best && network.Contains(netip.AddrFrom16(netip.MustParseAddr(addr).As16())) {
			best, allowed = key.PrefixLength, p.Allowed[i] != 0
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
			// The datapath never looks up an IPv4 address for an IPv6 intercept.
			"10.0.0.2": false,
		},
	} {
		p := mustCompile(t, mapstest.Intercepts(t, line), &Document{}, testInventory())
		if p.Forwards[0].Restricted != 1 {
			t.Errorf("%s: not restricted", line)
		}
		for addr, want := range addrs {
			if got := p.catches(addr); got != want {
				t.Errorf("%s: catches %s: %v", line, addr, got)
			}
		}
	}
}

// An intercept has no origin: a client may have asked any address.
func TestInterceptsAreNoOrigins(t *testing.T) {
	c := mapstest.Intercepts(t, "a udp,tcp lan0:53 to 10.0.0.1 reflect prefix")
	c.WAN, c.StandIns = c.WAN[:1], mapstest.StandIns("192.168.1.0/24 198.18.1.0/24")
	c.Forwards = append(c.Forwards, mapstest.Forward(t, "f udp 53 to 10.0.0.1 reflect prefix"), mapstest.Forward(t, "g udp 54 to 10.0.0.1 reflect prefix"))
	p := mustCompile(t, c, &Document{}, testInventory())
	for port, want := range map[uint16]string{53: "?", 54: "wan0:54"} {
		if got := p.cameBy("10.0.0.1", rule.UDP, port); got != want {
			t.Errorf("port %d: came by %q, want %q", port, got, want)
		}
	}
	if got := p.cameBy("10.0.0.1", rule.TCP, 53); got != "?" {
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
		running := mustCompile(t, mapstest.Intercepts(t, line), &Document{}, testInventory())
		c := mapstest.Intercepts(t, after)
		// reflection.default is not used for intercepts.
		c.Reflection = rule.ReflectRouter
		p := mustCompile(t, c, &running.Doc, testInventory())
		if ends := len(p.Doc.Ended) == 1; ends != changes {
			t.Errorf("%s: connections end: %v", after, ends)
		}
		if changed := len(compare(running.Doc.Config, c).Changed) == 1; changed != changes {
			t.Errorf("%s: changed: %v", after, changed)
		}
	}
	forward := mapstest.Intercepts(t)
	forward.Forwards = []rule.Forward{mapstest.Forward(t, "a udp 53 to 10.0.0.1")}
	running := mustCompile(t, forward, &Document{}, testInventory())
	if p := mustCompile(t, mapstest.Intercepts(t, "a udp 53 to 10.0.0.1"), &running.Doc, testInventory()); len(p.Doc.Ended) != 1 {
		t.Error("a forward becomes an intercept, and its connections go on")
	}
}
