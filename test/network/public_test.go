// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// publicForwards are two services on two hosts, and the first by a second port.
const publicForwards = `
[reflection]
default = "public"

[[forward]]
name = "one"
protocol = ["tcp", "udp"]
port = "5353"
to = "192.168.1.20:8080"

[[forward]]
name = "two"
protocol = ["tcp", "udp"]
port = "5354"
to = "192.168.2.50:8080"
`

// TestPublicIsOneEndpoint: with reflect public, all servers see a client at one endpoint (RFC 4787 REQ-1), in other LANs, too. The endpoint
// is the external address that the client used (REQ-9a), and a port that no other client has.
func TestPublicIsOneEndpoint(t *testing.T) {
	const second = "203.0.113.3"
	for _, mode := range []string{"tc", "xdp"} {
		n := lab.NewNetwork(t)
		n.SetOffloads(home.OffloadsFor(mode))
		n.Router.Address("wan0", second+"/24")
		var echoers []*lab.Echoer
		for _, h := range []*lab.Host{n.Server, n.Guest} {
			h.ServeTCP(":8080")
			echoers = append(echoers, h.ServeUDP(":8080"))
		}
		home.Start(t, n, mode, publicForwards)
		addrs := aliases(n.Client, 2)
		for _, external := range []string{lab.External, second} {
			t.Run(mode+", "+external, func(t *testing.T) {
				client := n.Client.For(t)
				var known []netip.AddrPort
				for _, addr := range addrs {
					source := netip.AddrPortFrom(addr, 40000)
					udp := seenByBoth(t, client, source, external, echoers)
					tcp := [2]netip.AddrPort{whoAt(t, client, source, external+":5353"), whoAt(t, client, source, external+":5354")}
					if udp[0] != udp[1] || tcp[0] != tcp[1] || udp[0].Addr().String() != external || tcp[0].Addr() != udp[0].Addr() {
						t.Errorf("%v is seen as %v over UDP, as %v over TCP", source, udp, tcp)
					}
					known = append(known, udp[0], tcp[0])
				}
				if known[0].Port() != 40000 || known[1].Port() != 40000 || known[2] == known[0] || known[3] == known[1] {
					t.Errorf("two clients with port 40000 are seen as %v", known)
				}
			})
		}
	}
}

// seenByBoth sends from one socket to both services, and returns the client address that each service sees.
func seenByBoth(t *testing.T, from *lab.Host, source netip.AddrPort, external string, echoers []*lab.Echoer) (seen [2]netip.AddrPort) {
	t.Helper()
	var c *net.UDPConn
	lab.Must(from.Do(func() (err error) {
		c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(source))
		return err
	}))
	defer c.Close()
	for i, port := range []uint16{5353, 5354} {
		to, before := netip.AddrPortFrom(netip.MustParseAddr(external), port), echoers[i].Seen()
		if _, err := c.WriteToUDPAddrPort([]byte("who am I?"), to); err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(lab.Patience))
		if _, peer, err := c.ReadFromUDPAddrPort(make([]byte, 100)); err != nil || peer != to {
			t.Fatalf("answer from %v, want %v (%v)", peer, to, err)
		}
		for peer, tally := range echoers[i].Seen() {
			if before[peer] != tally {
				seen[i] = peer
			}
		}
	}
	return seen
}

// whoAt connects from a port that other connections may also use, and returns the client address that the server sees. The
// connection stays open.
func whoAt(t *testing.T, from *lab.Host, source netip.AddrPort, address string) netip.AddrPort {
	t.Helper()
	dialer := net.Dialer{Timeout: lab.Patience, LocalAddr: net.TCPAddrFromAddrPort(source), Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		if err == nil {
			err = failed
		}
		return err
	}}
	var c net.Conn
	if err := from.Do(func() (err error) {
		c, err = dialer.DialContext(context.Background(), "tcp4", address)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	who, err := (&lab.Conn{TCPConn: c.(*net.TCPConn)}).Who()
	if err != nil {
		t.Fatal(err)
	}
	return who
}
