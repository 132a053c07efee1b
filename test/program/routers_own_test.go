// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

// TestRoutersOwn: which UDP packets to a forwarded port are the router's own, where conntrack tracks nothing. Both programs leave
// them untouched.
func TestRoutersOwn(t *testing.T) {
	b := newBench(t, "dmz tcp,udp any to 192.168.1.20", "one udp 45000 to 192.168.1.20:45000")
	lab.Must(b.Router.Do(func() error {
		for _, port := range []int{5000, 45000, 50005} {
			c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: port})
			if err != nil {
				return err
			}
			t.Cleanup(func() { c.Close() })
		}
		return nil
	}))
	for _, test := range []struct {
		name     string
		from, to uint16
		routers  bool
	}{
		{"of nobody", 20000, 50006, false},
		{"to a socket at an ephemeral port", 20000, 50005, true},
		{"to a socket at another port", 20000, 5000, false},
		{"to a socket at an ephemeral port that alone is forwarded", 20000, 45000, false},
		{"from a DHCP server to a client", 67, 68, true},
		{"from a DHCP client to a server", 68, 67, false},
		{"from elsewhere to a DHCP client's port", 20000, 68, false},
		{"from a DHCPv6 server to a client", 547, 546, true},
	} {
		f := frames.Frame{From: rig.GatewayMAC, To: rig.WANMAC, UDP: true, Payload: []byte("answer"),
			Src: netip.AddrPortFrom(rig.InternetHost, test.from), Dst: netip.AddrPortFrom(rig.WANAddress, test.to)}
		before := len(b.Connections(t))
		xdp, tc := b.XDP(t, b.WAN, f.Bytes()), b.TC(t, b.WAN, f.Bytes())
		got := fmt.Sprint(xdp.Code, tc.Code)
		if want := fmt.Sprint(rig.XDPPass, rig.TCUnspec); (got == want) != test.routers {
			t.Errorf("%s: xdp and tc answer %s; the router's: %v", test.name, got, test.routers)
		}
		if opened := len(b.Connections(t)) > before; opened == test.routers {
			t.Errorf("%s: a connection: %v", test.name, opened)
		}
	}
}

// TestForgedBeforeAsked: a packet that came before the router asked takes no answer, where conntrack tracks nothing. What comes
// while nobody has asked is the forward's, packet by packet.
func TestForgedBeforeAsked(t *testing.T) {
	b := newBench(t, "dmz udp any to 192.168.1.20", "one udp 45000 to 192.168.1.20:45000")
	for _, test := range []struct {
		name    string
		port    uint16
		routers bool
	}{
		{"at an ephemeral port", 50005, true},
		{"at another port", 5000, false},
		{"at an ephemeral port that alone is forwarded", 45000, false},
	} {
		f := frames.Frame{From: rig.GatewayMAC, To: rig.WANMAC, UDP: true, Payload: []byte("answer"),
			Src: netip.AddrPortFrom(rig.InternetHost, 20000), Dst: netip.AddrPortFrom(rig.WANAddress, test.port)}
		for range 2 {
			if tc := b.TC(t, b.WAN, f.Bytes()); tc.Code == rig.TCUnspec {
				t.Errorf("%s: before a socket is there, the kernel gets the packet", test.name)
			}
		}
		lab.Must(b.Router.Do(func() error {
			c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: int(test.port)})
			if err == nil {
				t.Cleanup(func() { c.Close() })
			}
			return err
		}))
		xdp, tc := b.XDP(t, b.WAN, f.Bytes()), b.TC(t, b.WAN, f.Bytes())
		got := fmt.Sprint(xdp.Code, tc.Code)
		if want := fmt.Sprint(rig.XDPPass, rig.TCUnspec); (got == want) != test.routers {
			t.Errorf("%s: xdp and tc answer %s; the router's: %v", test.name, got, test.routers)
		}
	}
}
