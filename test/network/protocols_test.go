// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// others are forwards of protocols without ports, or with ports that cannot be changed.
const others = `
[[forward]]
name = "sctp"
protocol = ["sctp"]
port = "9899"
to = "192.168.1.20:9899"

[[forward]]
name = "tunnels"
protocol = ["gre", "esp", "ipip", "udplite"]
to = "192.168.1.20"
`

// bare is a datagram without ports.
func bare(protocol uint8, payload string) func(from, to netip.Addr) lab.Datagram {
	return func(from, to netip.Addr) lab.Datagram {
		return lab.Datagram{Src: from, Dst: to, Protocol: protocol, Payload: []byte(payload)}
	}
}

// udpLite has ports, which stay, and a checksum that covers the addresses.
func udpLite(source, destination uint16) func(from, to netip.Addr) lab.Datagram {
	return func(from, to netip.Addr) lab.Datagram {
		return lab.UDPLite(netip.AddrPortFrom(from, source), netip.AddrPortFrom(to, destination), []byte("not covered by the checksum"))
	}
}

// sctp is a packet of one chunk (RFC 9260 section 3). Its CRC32c covers no address.
func sctp(source, destination uint16, tag uint32, chunk uint8) func(from, to netip.Addr) lab.Datagram {
	b := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, source), destination)
	b = binary.BigEndian.AppendUint32(b, tag)
	b = append(b, 0, 0, 0, 0, chunk, 0, 0, 20)
	b = append(b, make([]byte, 16)...)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return bare(unix.IPPROTO_SCTP, string(b))
}

// SCTP chunk types.
const (
	sctpData    = 0
	sctpInit    = 1
	sctpInitAck = 2
)

// TestOtherProtocols: what has no ports to translate goes through by its addresses alone, both
// ways, and nothing else in it changes.
func TestOtherProtocols(t *testing.T) {
	protocols := []struct {
		name             string
		question, answer func(from, to netip.Addr) lab.Datagram
	}{
		{"sctp", sctp(40000, 9899, 0, sctpInit), sctp(9899, 40000, 77, sctpInitAck)},
		{"gre", bare(unix.IPPROTO_GRE, "\x00\x00\x08\x00question"), bare(unix.IPPROTO_GRE, "\x00\x00\x08\x00answer")},
		{"esp", bare(unix.IPPROTO_ESP, "\x00\x00\x10\x01\x00\x00\x00\x01question"), bare(unix.IPPROTO_ESP, "\x00\x00\x20\x02\x00\x00\x00\x01answer")},
		{"ipip", bare(unix.IPPROTO_IPIP, "question within"), bare(unix.IPPROTO_IPIP, "answer within")},
		{"udplite", udpLite(40000, 5000), udpLite(5000, 40000)},
	}
	for _, mode := range []string{"tc", "xdp"} {
		for i := range 4 { // ways that each need the same tuple
			n := lab.NewNetwork(t)
			n.SetOffloads(home.OffloadsFor(mode))
			hp := home.Start(t, n, mode, others)
			w := home.Ways(n)[i]
			for _, p := range protocols {
				t.Run(mode+", "+w.Name+", "+p.name, func(t *testing.T) {
					protocolBothWays(t, n.For(t), hp.For(t), w, p.name, p.question, p.answer)
				})
			}
		}
	}
}

func protocolBothWays(t *testing.T, n *lab.Network, hp *lab.Hairpin, w home.Way, name string, question, answer func(from, to netip.Addr) lab.Datagram) {
	from := w.From.For(t)
	asked, want := question(w.Addr, home.ExternalAddress), question(w.Sees, home.ServerAddress)
	comes := func(src, dst netip.Addr) func(*lab.Packet) bool {
		return func(p *lab.Packet) bool {
			return p.Protocol == asked.Protocol && p.Src.Addr() == src && p.Dst.Addr() == dst
		}
	}
	atServer := n.Server.Watch("eth0", comes(w.Sees, home.ServerAddress))
	atClient := from.Watch("eth0", comes(home.ExternalAddress, w.Addr))
	refused := from.Watch("eth0", func(p *lab.Packet) bool { return p.ICMP != nil && p.Src.Addr() == home.ExternalAddress })
	out, back := from.Wire("eth0", routerMAC(n, from)), n.Server.Wire("eth0", n.Router.HardwareAddr("lan0"))
	for i := range 2 { // the first makes the connection, the second finds it
		sends(t, out, asked, atServer, want)
		sends(t, back, answer(home.ServerAddress, w.Sees), atClient, answer(home.ExternalAddress, w.Addr))
		p, err := refused.Next(lab.Patience)
		if err != nil {
			t.Fatalf("what the server thinks of packet %d: %v", i, err)
		}
		if quote := p.ICMP.Quote; p.Src.Addr() != home.ExternalAddress || quote.Src.Addr() != w.Addr || quote.Dst.Addr() != home.ExternalAddress ||
			!bytes.HasPrefix(asked.Packet()[20:], quote.Data[20:24]) {
			t.Errorf("the server's host does not speak %s, and the client hears %v", name, p)
		}
	}
	for _, c := range home.Show(t, hp, "conn", "show", "proto", name).Connections {
		if c.State != "established" || c.Protocol != name {
			t.Errorf("listed: %+v", c)
		}
	}
}

// sends sends a datagram and waits for what it should have become.
func sends(t *testing.T, w *lab.Wire, d lab.Datagram, at *lab.Watch, want lab.Datagram) {
	t.Helper()
	if err := w.Send(d.Packet()); err != nil {
		t.Fatal(err)
	}
	p, err := at.Next(lab.Patience)
	if err != nil {
		t.Fatal(err)
	}
	if p.Src.Addr() != want.Src || p.Dst.Addr() != want.Dst || !bytes.Equal(p.Payload(), want.Payload) {
		t.Errorf("got %v\n%x\nwant %v > %v\n%x", p, p.Payload(), want.Src, want.Dst, want.Payload)
	}
}

// TestPortsThatCannotChange: if the tuple of a reflected client is taken, and the protocol's ports cannot be changed, the second
// client is refused and gets an ICMP error. The first client is not disturbed.
func TestPortsThatCannotChange(t *testing.T) {
	n := lab.NewNetwork(t)
	home.Start(t, n, "tc", others)
	second := aliases(n.Client, 1)[0]
	first := netip.MustParseAddr(lab.Client)
	atServer := n.Server.Watch("eth0", func(p *lab.Packet) bool { return p.Dst.Addr() == home.ServerAddress && p.ICMP == nil })
	atClient := n.Client.Watch("eth0", func(p *lab.Packet) bool {
		return p.ICMP != nil && p.ICMP.Code == lab.Prohibited && p.Dst.Addr() == second
	})
	wire := n.Client.Wire("eth0", n.Router.HardwareAddr("lan0"))
	for _, packet := range []func(from, to netip.Addr) lab.Datagram{sctp(40000, 9899, 0, sctpInit), bare(unix.IPPROTO_GRE, "question")} {
		sends(t, wire, packet(first, home.ExternalAddress), atServer, packet(home.RouterAddress, home.ServerAddress))
		if err := wire.Send(packet(second, home.ExternalAddress).Packet()); err != nil {
			t.Fatal(err)
		}
		if _, err := atClient.Next(lab.Patience); err != nil {
			t.Errorf("the second client: %v", err)
		}
		sends(t, wire, packet(first, home.ExternalAddress), atServer, packet(home.RouterAddress, home.ServerAddress))
	}
	if got := home.Scrape(t, n, "hairpin_connections_refused_total", `reason="port_fixed"`); got != 2 {
		t.Errorf("%v openings counted as refused because their ports cannot change, want 2", got)
	}
	another := sctp(40001, 9899, 0, sctpInit)
	sends(t, wire, another(second, home.ExternalAddress), atServer, another(home.RouterAddress, home.ServerAddress))
}

// TestOnlyInitOpens: an SCTP packet without a connection and without INIT is dropped.
func TestOnlyInitOpens(t *testing.T) {
	n := lab.NewNetwork(t)
	home.Start(t, n, "tc", others)
	source := netip.MustParseAddr(lab.InternetSource)
	atServer := n.Server.Watch("eth0", nil)
	wire := n.Internet.Wire("eth0", n.Router.HardwareAddr("wan0"))
	for _, p := range []func(from, to netip.Addr) lab.Datagram{
		sctp(40000, 9899, 77, sctpData), sctp(40000, 9899, 0, sctpData), sctp(40000, 9899, 77, sctpInit),
	} {
		if err := wire.Send(p(source, home.ExternalAddress).Packet()); err != nil {
			t.Fatal(err)
		}
	}
	init := sctp(40000, 9899, 0, sctpInit)
	sends(t, wire, init(source, home.ExternalAddress), atServer, init(source, home.ServerAddress))
	if got := home.Scrape(t, n, "hairpin_packets_dropped_total", `reason="non_syn"`); got != 3 {
		t.Errorf("%v packets are counted as non_syn, want 3", got)
	}
}
