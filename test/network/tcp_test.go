// SPDX-License-Identifier: Apache-2.0

package network

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// awaitState waits until the connection of a client is in a state.
func awaitState(t *testing.T, hp *lab.Hairpin, client, state string) {
	t.Helper()
	lab.Eventually(t, lab.Patience, func() error {
		for _, c := range home.Show(t, hp, "conn", "show").Connections {
			if c.Client == client && c.State == state {
				return nil
			}
		}
		return fmt.Errorf("no connection of %s is %s", client, state)
	})
}

// TestHalfClosed: a connection of which one side has nothing more to say lasts as long as one of
// which both have: the answer may be long in coming.
func TestHalfClosed(t *testing.T) {
	t.Parallel()
	n := lab.NewNetwork(t)
	listener := listen(t, n.Server, ":8080")
	hp := home.Start(t, n, "tc", "[timeouts]\ntcp_transitory = \"1s\"\n"+home.Forwards)
	for i, from := range []*lab.Host{n.Internet, n.Client} {
		source := netip.AddrPortFrom([]netip.Addr{netip.MustParseAddr(lab.InternetSource), netip.MustParseAddr(lab.Client)}[i], 40000)
		c, err := from.DialTCP(lab.External+":80", source.String(), lab.Patience)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(2 * lab.Patience))
		s, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		s.SetDeadline(time.Now().Add(2 * lab.Patience))
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("server: %v, want the end of the question", err)
		}
		outlast(t, n, hp, listener)
		awaitState(t, hp, source.String(), "established")
		if _, err := s.Write([]byte("the answer")); err != nil {
			t.Fatal(err)
		}
		s.Close()
		if got, err := io.ReadAll(c); err != nil || string(got) != "the answer" {
			t.Errorf("%s: got %q, %v", from.Name, got, err)
		}
	}
}

// outlast returns when connections that closed after now have been forgotten, three times over.
func outlast(t *testing.T, n *lab.Network, hp *lab.Hairpin, listener net.Listener) {
	t.Helper()
	for range 3 {
		c, err := n.Guest.DialTCP(lab.External+":80", "", lab.Patience)
		if err != nil {
			t.Fatal(err)
		}
		s, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		s.Close()
		lab.Eventually(t, lab.Patience, func() error {
			for _, listed := range home.Show(t, hp, "conn", "show").Connections {
				if listed.Client == c.LocalAddr().String() {
					return fmt.Errorf("still listed: %+v", listed)
				}
			}
			return nil
		})
	}
}

func listen(t *testing.T, h *lab.Host, address string) net.Listener {
	t.Helper()
	var listener net.Listener
	if err := h.Do(func() (err error) {
		listener, err = net.Listen("tcp4", address)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}

// filter adds one rule of nft on the way into a host, "input", or out of it, "output".
func filter(h *lab.Host, hook, rule string) {
	h.RunInput(fmt.Sprintf("table ip %[1]s {\n chain c {\n type filter hook %[1]s priority 0\n %[2]s\n }\n}\n", hook, rule), "nft", "-f", "-")
}

// end is one end of a TCP connection that a test plays itself.
type end struct {
	name     string
	wire     *lab.Wire
	hears    *lab.Watch
	self     netip.AddrPort
	other    netip.AddrPort // as this end sees it
	seq, ack uint32
}

func (e *end) send(t *testing.T, flags uint8, data string) {
	t.Helper()
	if err := e.wire.Send(lab.TCP(e.self, e.other, flags, e.seq, e.ack, nil, []byte(data)).Packet()); err != nil {
		t.Fatal(err)
	}
	e.seq += uint32(len(data))
	if flags&(lab.SYN|lab.FIN) != 0 {
		e.seq++
	}
}

// hear waits for the next packet and checks what it is.
func (e *end) hear(t *testing.T, flags uint8, seq, ack uint32, data string) {
	t.Helper()
	p, err := e.hears.Next(lab.Patience)
	if err != nil {
		t.Fatalf("%s, waiting for flags %#02x: %v", e.name, flags, err)
	}
	header := p.Payload()
	gotSeq, gotAck := binary.BigEndian.Uint32(header[4:]), binary.BigEndian.Uint32(header[8:])
	if p.Src != e.other || p.Dst != e.self || p.Flags != flags || gotSeq != seq || gotAck != ack || string(header[20:]) != data {
		t.Fatalf("%s hears %v seq %d ack %d %q, want flags %#02x seq %d ack %d %q from %v", e.name, p, gotSeq, gotAck, header[20:], flags, seq, ack, data, e.other)
	}
	e.ack = seq + uint32(len(data))
	if flags&(lab.SYN|lab.FIN) != 0 {
		e.ack++
	}
}

// TestSimultaneousOpen: both ends send a SYN before the SYN of the other end arrives (RFC 5382 REQ-2a).
func TestSimultaneousOpen(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		n := lab.NewNetwork(t)
		n.SetOffloads(home.OffloadsFor(mode))
		hp := home.Start(t, n, mode, home.Forwards)
		for _, h := range []*lab.Host{n.Internet, n.Client, n.Guest, n.Server} {
			filter(h, "input", "meta l4proto tcp drop") // the test speaks in its place
		}
		for _, w := range home.Ways(n) {
			if w.Addr != home.ServerAddress {
				t.Run(mode+", "+w.Name, func(t *testing.T) { simultaneousOpen(t, n.For(t), hp.For(t), w) })
			}
		}
	}
}

func simultaneousOpen(t *testing.T, n *lab.Network, hp *lab.Hairpin, w home.Way) {
	from := w.From.For(t)
	tcp := func(p *lab.Packet) bool { return p.Protocol == 6 }
	c := &end{name: "client", wire: from.Wire("eth0", routerMAC(n, from)), hears: from.Watch("eth0", tcp),
		self: netip.AddrPortFrom(w.Addr, 62000), other: netip.AddrPortFrom(home.ExternalAddress, 80), seq: 1000}
	s := &end{name: "server", wire: n.Server.Wire("eth0", n.Router.HardwareAddr("lan0")), hears: n.Server.Watch("eth0", tcp),
		self: netip.AddrPortFrom(home.ServerAddress, 8080), other: netip.AddrPortFrom(w.Sees, 62000), seq: 9000}
	c.send(t, lab.SYN, "")
	// The router has to have seen it, or it would not know whose the server's SYN is. The server
	// takes no notice: its own is on the way already.
	first, err := s.hears.Next(lab.Patience)
	if err != nil || first.Flags != lab.SYN {
		t.Fatalf("server: %v, %v, want the client's SYN", first, err)
	}
	s.send(t, lab.SYN, "")
	c.hear(t, lab.SYN, 9000, 0, "")
	s.ack = 1001
	c.seq, s.seq = 1000, 9000
	c.send(t, lab.SYN|lab.ACK, "")
	s.send(t, lab.SYN|lab.ACK, "")
	s.hear(t, lab.SYN|lab.ACK, 1000, 9001, "")
	c.hear(t, lab.SYN|lab.ACK, 9000, 1001, "")
	c.send(t, lab.ACK, "")
	s.hear(t, lab.ACK, 1001, 9001, "")
	c.send(t, lab.ACK, "question")
	s.hear(t, lab.ACK, 1001, 9001, "question")
	s.send(t, lab.ACK, "answer")
	c.hear(t, lab.ACK, 9001, 1009, "answer")
	awaitState(t, hp, c.self.String(), "established")
}

// TestClientReboots: a client that has forgotten its connections, and opens one with the same port
// by chance, is served as soon as server and client have found out.
func TestClientReboots(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		n := lab.NewNetwork(t)
		n.SetOffloads(home.OffloadsFor(mode))
		n.Server.ServeTCP(":8080")
		home.Start(t, n, mode, home.Forwards)
		for _, w := range home.Ways(n) {
			if w.Addr != home.ServerAddress {
				t.Run(mode+", "+w.Name, func(t *testing.T) { clientReboots(t, w) })
			}
		}
	}
}

func clientReboots(t *testing.T, w home.Way) {
	from, source := w.From.For(t), netip.AddrPortFrom(w.Addr, 40000).String()
	c, err := from.DialTCP(lab.External+":80", source, lab.Patience)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Echo(1000); err != nil {
		t.Fatal(err)
	}
	// Power off: nothing says goodbye.
	filter(from, "output", "meta l4proto tcp drop")
	c.SetLinger(0)
	c.Close()
	from.Run("nft", "delete", "table", "ip", "output")

	c, err = from.DialTCP(lab.External+":80", source, lab.Patience)
	if err != nil {
		t.Fatalf("after the reboot: %v", err)
	}
	defer c.Close()
	if err := c.Echo(1000); err != nil {
		t.Errorf("after the reboot: %v", err)
	}
}
