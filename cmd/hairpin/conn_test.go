// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hairpin/maps"
)

// An address stands alone where there is no port, and an echo's identifier where its client has one.
func TestPrintConnections(t *testing.T) {
	at := netip.MustParseAddrPort
	list := []maps.Connection{
		{
			Protocol: maps.TCP, Path: "wan", Forward: "web", State: maps.StateEstablished,
			Client: at("198.51.100.9:5000"), External: at("203.0.113.1:443"), Source: at("198.51.100.9:5000"), Target: at("192.168.1.20:8443"),
			AgeSeconds: 7440, IdleSeconds: 7, Packets: 17, Bytes: 6000,
		},
		{
			Protocol: maps.ICMP, Path: "hairpin", Forward: "ping", State: maps.StateEstablished,
			Client: at("192.168.1.50:77"), External: at("203.0.113.1:0"), Source: at("192.168.1.1:78"), Target: at("192.168.1.20:0"),
		},
		{
			Protocol: maps.GRE, Path: "wan", Forward: "tunnel", State: maps.StateHalfOpen,
			Client: at("198.51.100.9:0"), External: at("203.0.113.1:0"), Source: at("198.51.100.9:0"), Target: at("192.168.1.20:0"),
		},
		{
			Protocol: maps.ICMP, Path: "wan", Forward: "ping", State: maps.StateEstablished,
			Client: at("[2001:db8::9]:77"), External: at("[2001:db8::1]:0"), Source: at("[2001:db8::9]:77"), Target: at("[fd00::20]:0"),
		},
	}
	var out bytes.Buffer
	a := newApp(env{stdout: &out})
	if err := a.printConnections(list); err != nil {
		t.Fatal(err)
	}
	if err := a.out.Flush(); err != nil {
		t.Fatal(err)
	}
	want := `PROTO  PATH     FORWARD  STATE        CLIENT             EXTERNAL         SOURCE             TARGET             AGE     IDLE  PACKETS  BYTES
tcp    wan      web      established  198.51.100.9:5000  203.0.113.1:443  198.51.100.9:5000  192.168.1.20:8443  2h4m0s  7s    17       6000
icmp   hairpin  ping     established  192.168.1.50:77    203.0.113.1      192.168.1.1:78     192.168.1.20       0s      0s    0        0
gre    wan      tunnel   half-open    198.51.100.9       203.0.113.1      198.51.100.9       192.168.1.20       0s      0s    0        0
icmp   wan      ping     established  [2001:db8::9]:77   2001:db8::1      [2001:db8::9]:77   fd00::20           0s      0s    0        0
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
