// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"net/netip"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"hairpin/bpf"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
)

// TestFilterInTheKernel: a client's network is compared in the 128 bit form, and icmp is the number of IPv4.
func TestFilterInTheKernel(t *testing.T) {
	addr := func(text string) bpf.TraceAddr { return bpf.TraceAddr(layout.ToAddr(netip.MustParseAddr(text))) }
	mask := func(text string) bpf.TraceAddr { return bpf.TraceAddr{Bytes: netip.MustParseAddr(text).As16()} }
	for _, row := range []struct {
		words []string
		want  bpf.TracePacketFilter
	}{
		{nil, bpf.TracePacketFilter{Forward: 7, Ifindex: 3}},
		{[]string{"client", "192.168.1.0/24", "port", "80-90"}, bpf.TracePacketFilter{
			Forward: 7, Ifindex: 3, ByClient: 1, Client: addr("192.168.1.0"), ClientMask: mask("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00"), PortFirst: 80, PortLast: 90,
		}},
		{[]string{"client", "2001:db8::1"}, bpf.TracePacketFilter{
			Forward: 7, Ifindex: 3, ByClient: 1, Client: addr("2001:db8::1"), ClientMask: mask("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
		}},
		{[]string{"proto", "icmp"}, bpf.TracePacketFilter{Forward: 7, Ifindex: 3, Protocol: 1}},
		{[]string{"proto", "udp"}, bpf.TracePacketFilter{Forward: 7, Ifindex: 3, Protocol: 17}},
	} {
		f, err := ParseFilter(row.words)
		if err != nil {
			t.Errorf("%q: %v", row.words, err)
			continue
		}
		if diff := cmp.Diff(row.want, f.encode(7, 3)); diff != "" {
			t.Errorf("%q (-want +got):\n%s", row.words, diff)
		}
	}
}

func FuzzParseFilter(f *testing.F) {
	for _, line := range []string{
		"forward web client 10.0.0.0/8 port 80-90 interface lan0 proto tcp", "client ::ffff:1.2.3.4", "client 10.0.0.1/8", "port 0", "port port", "proto any",
		"client 1.2.3.4 client 1.2.3.4", "interface", "interface ../..", "forward \x1b[2J",
	} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		filter, err := ParseFilter(strings.Split(line, " "))
		if err != nil {
			if strings.ContainsFunc(err.Error(), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) {
				t.Fatalf("not fit for a terminal: %q", err)
			}
			return
		}
		encoded := filter.encode(7, 3)
		if encoded.PortFirst > encoded.PortLast || encoded.ByClient != 0 != filter.Client.IsValid() {
			t.Fatalf("%q: %+v", line, encoded)
		}
		for i, mask := range encoded.ClientMask.Bytes {
			if encoded.Client.Bytes[i]&^mask != 0 {
				t.Fatalf("%q: no client has the address %v under the mask %v", line, encoded.Client, encoded.ClientMask)
			}
		}
	})
}

// TestLines: the lines have what a reader looks for, and what is missing is a dash.
func TestLines(t *testing.T) {
	at := netip.MustParseAddrPort
	p := Packet{
		Interface: "lan0", Hook: HookTC, Protocol: rule.TCP, Source: at("192.168.1.50:4711"), Destination: at("203.0.113.2:80"), TCPFlags: "S",
		Verdict: VerdictSend, Forward: "web", NewSource: at("192.168.1.1:61000"), NewDestination: at("192.168.1.20:8080"), Output: "lan0",
	}
	const stamp = "00:00:00.000000 "
	if got, want := p.Text(), stamp+"lan0 tc tcp 192.168.1.50:4711 > 203.0.113.2:80 [S] send forward web => 192.168.1.1:61000 > 192.168.1.20:8080 out lan0"; got != want {
		t.Errorf("sent:\ngot  %s\nwant %s", got, want)
	}
	p = Packet{
		Interface: "wan0", Hook: HookXDP, Protocol: rule.UDP, Source: at("198.51.100.7:53"), Destination: at("203.0.113.2:81"),
		Verdict: "refuse", Reason: "denied", Told: true,
	}
	if got, want := p.Text(), stamp+"wan0 xdp udp 198.51.100.7:53 > 203.0.113.2:81 refuse (denied), sender told forward -"; got != want {
		t.Errorf("refused:\ngot  %s\nwant %s", got, want)
	}
	e := Event{Event: EventClosed, Protocol: rule.TCP, Path: "wan", Forward: "web", Client: at("198.51.100.7:4711"), External: at("203.0.113.2:80"),
		Source: at("198.51.100.7:4711"), Target: at("192.168.1.20:8080"), Reason: "fin", Packets: 12, Bytes: 3456}
	if got, want := e.Text(), "0001-01-01T00:00:00.000000Z closed tcp path=wan forward=web client=198.51.100.7:4711 external=203.0.113.2:80 "+
		"source=198.51.100.7:4711 target=192.168.1.20:8080 reason=fin packets=12 bytes=3456"; got != want {
		t.Errorf("closed:\ngot  %s\nwant %s", got, want)
	}
	e = Event{Event: EventRefused, Protocol: rule.ICMP, Path: "wan", Client: at("198.51.100.7:0"), External: at("203.0.113.2:0"), Reason: "spoofed"}
	if got, want := e.Text(), "0001-01-01T00:00:00.000000Z refused icmp path=wan forward=- client=198.51.100.7 external=203.0.113.2 source=- target=- reason=spoofed"; got != want {
		t.Errorf("refused:\ngot  %s\nwant %s", got, want)
	}
}
