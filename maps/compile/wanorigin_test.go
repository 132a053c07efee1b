// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"testing"

	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

// TestWhereAnswersToTheInternetCameBy: a UDP port of a target has an origin if exactly one external place and port leads to
// the target port.
func TestWhereAnswersToTheInternetCameBy(t *testing.T) {
	c := mapstest.Config(t,
		"dns udp 53 to 10.0.0.1:5353",
		"web tcp 80 to 10.0.0.1:8080",
		"both tcp,udp 443 to 10.0.0.1",
		"range udp 6000-6010 to 10.0.0.1:7000",
		"hole udp 6005 to 10.0.0.9",
		"twice udp 82 to 10.0.0.4:1",
		"again udp 203.0.113.7:83 to 10.0.0.4:1",
		"wide udp 84-90 to 10.0.0.5",
		"own udp 203.0.113.7:86 to 10.0.0.5",
		"every any 203.0.113.8:any to 10.0.0.6",
		"shadow udp 203.0.113.8:54 to 10.0.0.7",
		"meets udp 203.0.113.8:55 to 10.0.0.6:24",
		"v6 udp 53 to fd00::1",
		"basic udp 203.0.113.9:any to 10.0.0.8",
	)
	c.WAN = c.WAN[:1]
	c.Forwards = append(c.Forwards,
		rule.Forward{Name: "catch", Intercept: true, Protocols: []rule.Protocol{rule.UDP}, Ports: rule.Ports{First: 53, Last: 53}, Target: mapstest.Forward(t, "x udp 1 to 10.0.0.1").Target, TargetPort: 5353, Reflect: rule.ReflectRouter})
	p := mustCompile(t, c, &Document{}, testInventory())
	for _, test := range []struct {
		target   string
		protocol rule.Protocol
		port     uint16
		want     string
	}{
		{"10.0.0.1", rule.UDP, 5353, "wan0:53"}, // the intercept does not count: its clients are in LANs
		{"10.0.0.1", rule.UDP, 53, ""},
		{"10.0.0.1", rule.UDP, 8080, ""},
		{"10.0.0.1", rule.TCP, 8080, ""},
		{"10.0.0.1", rule.UDP, 443, "wan0:443"},
		{"10.0.0.1", rule.TCP, 443, ""},
		{"10.0.0.1", rule.UDP, 7000, "wan0:6000"},
		{"10.0.0.1", rule.UDP, 7005, ""},
		{"10.0.0.9", rule.UDP, 6005, "wan0:6005"},
		{"10.0.0.1", rule.UDP, 7010, "wan0:6010"},
		{"10.0.0.1", rule.UDP, 7011, ""},
		{"10.0.0.4", rule.UDP, 1, ""},
		{"10.0.0.5", rule.UDP, 85, "wan0:85"},
		{"10.0.0.5", rule.UDP, 86, ""},
		{"10.0.0.5", rule.UDP, 87, "wan0:87"},
		{"10.0.0.6", rule.UDP, 53, "203.0.113.8:53"},
		{"10.0.0.6", rule.UDP, 54, ""},
		{"10.0.0.7", rule.UDP, 54, "203.0.113.8:54"},
		{"10.0.0.6", rule.UDP, 24, ""},
		{"10.0.0.6", rule.UDP, 55, ""},
		{"10.0.0.6", rule.TCP, 53, ""},
		{"10.0.0.8", rule.UDP, 65535, "203.0.113.9:65535"},
		{"fd00::1", rule.UDP, 53, "wan0:53"},
	} {
		if got := p.cameByWAN(test.target, test.protocol, test.port); got != test.want {
			t.Errorf("%s %s:%d came by %q, want %q", test.protocol, test.target, test.port, got, test.want)
		}
	}
	for i, origin := range p.Origins {
		if origin.Wan != 1 || origin.SeveralWans != 0 || p.OriginKeys[i].Wan != 1 || p.OriginKeys[i].Protocol != uint8(rule.UDP) {
			t.Errorf("%+v: %+v", p.OriginKeys[i], origin)
		}
	}
}

// TestOriginsOfSeveralWANs: a forward of every WAN interface has no origin if there are two WAN interfaces.
func TestOriginsOfSeveralWANs(t *testing.T) {
	p := mustCompile(t, mapstest.Config(t, "all udp 53 to 10.0.0.1", "one udp wan1:54 to 10.0.0.1", "own udp 203.0.113.7:55 to 10.0.0.1"), &Document{}, testInventory())
	for port, want := range map[uint16]string{53: "", 54: "wan1:54", 55: "203.0.113.7:55"} {
		if got := p.cameByWAN("10.0.0.1", rule.UDP, port); got != want {
			t.Errorf("port %d came by %q, want %q", port, got, want)
		}
	}
	for i, origin := range p.Origins {
		if origin.SeveralWans != 1 {
			t.Errorf("%+v: %+v", p.OriginKeys[i], origin)
		}
	}
}

// TestTwoKindsOfOrigin: origins for answers to stand-ins and for answers to the Internet are independent, also for forwards
// of every protocol.
func TestTwoKindsOfOrigin(t *testing.T) {
	c := mapstest.WithStandIns(t, "every any 203.0.113.8:any to 10.0.0.6 reflect prefix", "more udp 53 to 10.0.0.6", "only udp 203.0.113.9:9 to 10.0.0.7 reflect prefix")
	p := mustCompile(t, c, &Document{}, testInventory())
	for _, test := range []struct {
		target       string
		port         uint16
		standIn, wan string
	}{
		{"10.0.0.6", 53, "203.0.113.8:53", ""}, // two forwards reach this port, but only one with reflect prefix
		{"10.0.0.6", 54, "203.0.113.8:54", "203.0.113.8:54"},
		{"10.0.0.7", 9, "203.0.113.9:9", "203.0.113.9:9"},
	} {
		if standIn, wan := p.cameBy(test.target, rule.UDP, test.port), p.cameByWAN(test.target, rule.UDP, test.port); standIn != test.standIn || wan != test.wan {
			t.Errorf("%s:%d: stand-ins by %q, the Internet by %q, want %q and %q", test.target, test.port, standIn, wan, test.standIn, test.wan)
		}
	}
}
