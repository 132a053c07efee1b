// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"hairpin/maps/rule"
	"hairpin/test/frames"
)

// The first sequence numbers of both sides.
const ClientISN, ServerISN = 1000, 900000

// Flow is a connection through the rig's router: the addresses that each side uses and sees.
type Flow struct {
	Rig      *Rig
	At       Port // the interface that the client's packets come in by
	MAC      net.HardwareAddr
	UDP      bool
	Client   netip.AddrPort
	External netip.AddrPort
	Source   netip.AddrPort // the client's address and port as the server sees them
	Target   netip.AddrPort
}

// In returns a packet of the client, and the packet that the server must get.
func (f Flow) In(change ...func(*frames.Frame)) (in, want frames.Frame) {
	in = frames.Frame{From: f.MAC, To: f.At.MAC, Src: f.Client, Dst: f.External, UDP: f.UDP, TTL: 64}
	for _, c := range change {
		c(&in)
	}
	want = in
	want.From, want.To = f.Rig.LAN.MAC, ServerMAC
	want.Src, want.Dst = f.Source, f.Target
	want.TTL--
	return in, want
}

// Back returns a packet of the server, and the packet that the client must get.
func (f Flow) Back(change ...func(*frames.Frame)) (in, want frames.Frame) {
	in = frames.Frame{From: ServerMAC, To: f.Rig.LAN.MAC, Src: f.Target, Dst: f.Source, UDP: f.UDP, TTL: 64}
	for _, c := range change {
		c(&in)
	}
	want = in
	want.From, want.To = f.At.MAC, f.MAC
	want.Src, want.Dst = f.External, f.Client
	want.TTL--
	return in, want
}

// Open sends the packets that open the connection, and two answers, so that the next hops of both directions are known.
func (f Flow) Open(tb testing.TB) {
	tb.Helper()
	if f.UDP {
		f.Send(tb, true, frames.Payload("open"))
		f.Send(tb, false, frames.Payload("answer"))
		f.Send(tb, false, frames.Payload("answer"))
		return
	}
	f.Send(tb, true, frames.TCP("S", ClientISN, 0))
	f.Send(tb, false, frames.TCP("SA", ServerISN, ClientISN+1))
	f.Send(tb, true, frames.TCP("A", ClientISN+1, ServerISN+1))
	f.Send(tb, false, frames.TCP("A", ServerISN+1, ClientISN+1))
}

// Send runs a packet of one side through TC. The test ends if TC does not send the packet on.
func (f Flow) Send(tb testing.TB, fromClient bool, change ...func(*frames.Frame)) {
	tb.Helper()
	at := f.Rig.LAN
	in, _ := f.Back(change...)
	if fromClient {
		at = f.At
		in, _ = f.In(change...)
	}
	if got := f.Rig.TC(tb, at, in.Bytes()); got.Code != TCRedirect {
		counters, _ := f.Rig.Tables.Counters()
		tb.Fatalf("tc returned %d for %s > %s; counters: %+v", int32(got.Code), in.Src, in.Dst, counters)
	}
}

// Forwards are the forwards of most tests, as the command line takes them.
var Forwards = []string{
	"web tcp,udp 443 to 192.168.1.20:8443",
	"games udp 6000-6010 to 192.168.1.20:7000-7010",
	"plain tcp 80 to 192.168.1.20:80 reflect router",
	"closed tcp 81 to 192.168.1.20:81 reflect off",
	"friends tcp 82 to 192.168.1.20:82 from 198.51.100.0/24,192.168.1.0/24",
}

// MustForward returns the forward that the words say, parsed as by the command line.
func MustForward(tb testing.TB, words string) rule.Forward {
	tb.Helper()
	forward, err := rule.ParseForward(strings.Fields(words))
	if err != nil {
		tb.Fatal(err)
	}
	return forward
}

// Flows returns a flow for each kind of client, by its name; clientPort is the port of every client.
func (r *Rig) Flows(udp bool, clientPort uint16) map[string]Flow {
	external, target := netip.AddrPortFrom(WANAddress, 443), netip.AddrPortFrom(Server, 8443)
	flows := map[string]Flow{
		"from the Internet": {At: r.WAN, MAC: GatewayMAC, Client: netip.AddrPortFrom(InternetHost, clientPort)},
		"hairpin":           {At: r.LAN, MAC: ClientMAC, Client: netip.AddrPortFrom(Client, clientPort)},
		"server to itself":  {At: r.LAN, MAC: ServerMAC, Client: netip.AddrPortFrom(Server, clientPort)},
		"from another LAN":  {At: r.LAN2, MAC: OtherClientMAC, Client: netip.AddrPortFrom(OtherClient, clientPort)},
	}
	for name, f := range flows {
		f.Rig, f.UDP, f.External, f.Target, f.Source = r, udp, external, target, f.Client
		if f.At.Index == r.LAN.Index {
			f.Source = netip.AddrPortFrom(LANAddress, clientPort)
		}
		flows[name] = f
	}
	return flows
}
