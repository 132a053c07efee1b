// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"hairpin/test/lab"
)

// IPv6 addresses of the usual network: global ones outside, unique local ones (RFC 4193) inside.
const (
	external6       = "2001:db8:0:1::2"
	gateway6        = "2001:db8:0:1::1"
	internetSource6 = "2001:db8:9::10"
	routerLAN6      = "fd00:1::1"
	routerGuest6    = "fd00:2::1"
	server6         = "fd00:1::20"
	client6         = "fd00:1::50"
	guest6          = "fd00:2::50"
	gatewayLink6    = "fe80::fe"
	routerLink6     = "fe80::1"
)

// forwards6 are the twins of forwards.
const forwards6 = `
[[forward]]
name = "web6"
protocol = ["tcp"]
port = "80"
to = "[fd00:1::20]:8080"

[[forward]]
name = "dns6"
protocol = ["udp"]
port = "53"
to = "[fd00:1::20]:5353"
`

const pingForward6 = `
[[forward]]
name = "ping6"
protocol = ["icmp"]
to = "fd00:1::20"
`

// newNetwork6 makes the usual network with both families.
func newNetwork6(tb testing.TB) *lab.Network {
	tb.Helper()
	n := lab.NewNetwork(tb)
	for _, h := range []*lab.Host{n.Internet, n.Router, n.Client, n.Server, n.Guest} {
		enable6(h)
	}
	// The Internet host's own prefix route would win over the one below.
	address6(n.Internet, "eth0", gateway6+"/128", internetSource6+"/128")
	address6(n.Router, "wan0", external6+"/64")
	address6(n.Router, "lan0", routerLAN6+"/64")
	address6(n.Router, "lan1", routerGuest6+"/64")
	address6(n.Client, "eth0", client6+"/64")
	address6(n.Server, "eth0", server6+"/64")
	address6(n.Guest, "eth0", guest6+"/64")

	n.Internet.Route("eth0", "2001:db8:0:1::/64", "", internetSource6)
	// Routers are known by their link-local addresses, as router advertisements have it.
	address6(n.Internet, "eth0", gatewayLink6+"/64")
	n.Router.Route("wan0", "::/0", gatewayLink6, "")
	for dev, hosts := range map[string][]*lab.Host{"lan0": {n.Client, n.Server}, "lan1": {n.Guest}} {
		address6(n.Router, dev, routerLink6+"/64")
		for _, h := range hosts {
			h.Route("eth0", "::/0", routerLink6, "")
		}
	}
	n.Router.Sysctl("net/ipv6/conf/all/forwarding", "1")
	return n
}

// enable6 turns IPv6 on.
func enable6(h *lab.Host) {
	for name := range h.Links() {
		h.Sysctl("net/ipv6/conf/"+name+"/mldv2_unsolicited_report_interval", "1")
		h.Sysctl("net/ipv6/conf/"+name+"/accept_ra", "0")
		h.Sysctl("net/ipv6/conf/"+name+"/router_solicitations", "0")
		h.Sysctl("net/ipv6/conf/"+name+"/dad_transmits", "0")
	}
	h.Sysctl("net/ipv6/icmp/ratelimit", "0")
	h.Sysctl("net/ipv6/conf/all/disable_ipv6", "0")
}

// address6 adds addresses that can be used at once, without a look for duplicates.
func address6(h *lab.Host, dev string, prefixes ...string) {
	for _, prefix := range prefixes {
		h.Run("ip", "-6", "address", "add", prefix, "dev", dev, "nodad")
	}
}

// ways6 are the twins of ways.
func ways6(n *lab.Network) []way {
	addr := netip.MustParseAddr
	return []way{
		{"from the Internet", n.Internet, addr(internetSource6), addr(internetSource6)},
		{"from the LAN", n.Client, addr(client6), addr(routerLAN6)},
		{"from the server itself", n.Server, addr(server6), addr(routerLAN6)},
		{"from a second LAN", n.Guest, addr(guest6), addr(guest6)},
	}
}

// serveTCP6 tells each client in a line how the host sees it, then sends back what it gets.
func serveTCP6(t *testing.T, h *lab.Host, address string) {
	t.Helper()
	var listener net.Listener
	if err := h.Do(func() (err error) {
		listener, err = net.Listen("tcp6", address)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := fmt.Fprintln(c, c.RemoteAddr()); err != nil {
					return
				}
				io.Copy(c, c)
			}()
		}
	}()
}

// conn6 is a connection to serveTCP6.
type conn6 struct {
	*net.TCPConn
	sees netip.AddrPort // what the server takes the client for
	in   *bufio.Reader
}

func dialTCP6(h *lab.Host, address, source string, within time.Duration) (*conn6, error) {
	dialer := net.Dialer{Timeout: within}
	if source != "" {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.MustParseAddrPort(source))
	}
	var c net.Conn
	if err := h.Do(func() (err error) {
		c, err = dialer.DialContext(context.Background(), "tcp6", address)
		return err
	}); err != nil {
		return nil, fmt.Errorf("%s: %w", h.Name, err)
	}
	c.SetDeadline(time.Now().Add(2 * lab.Patience))
	d := &conn6{TCPConn: c.(*net.TCPConn), in: bufio.NewReader(c)}
	line, err := d.in.ReadString('\n')
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("%s: read greeting: %w", h.Name, err)
	}
	d.sees, err = netip.ParseAddrPort(strings.TrimSpace(line))
	return d, err
}

// echo sends random bytes and compares what comes back.
func (c *conn6) echo(length int) error {
	c.SetDeadline(time.Now().Add(2 * lab.Patience))
	data, back := make([]byte, length), make([]byte, length)
	rand.Read(data)
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		sent <- err
	}()
	n, err := io.ReadFull(c.in, back)
	if err != nil {
		return fmt.Errorf("echo: after %d bytes of %d: %w", n, length, err)
	}
	if !bytes.Equal(data, back) {
		return errors.New("echo: other bytes came back")
	}
	return <-sent
}

// serveUDP6 sends back each datagram, and keeps whom it last saw.
func serveUDP6(t *testing.T, h *lab.Host, address string) func() netip.AddrPort {
	t.Helper()
	var c *net.UDPConn
	if err := h.Do(func() (err error) {
		c, err = net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(address)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetReadBuffer(4 << 20)
	last := make(chan netip.AddrPort, 1)
	go func() {
		data := make([]byte, 1<<16)
		for {
			n, peer, err := c.ReadFromUDPAddrPort(data)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			select {
			case <-last:
			default:
			}
			last <- peer
			c.WriteToUDPAddrPort(data[:n], peer)
		}
	}()
	return func() netip.AddrPort {
		select {
		case peer := <-last:
			return peer
		case <-time.After(lab.Patience):
			return netip.AddrPort{}
		}
	}
}

func dialUDP6(h *lab.Host, address, source string) (*net.UDPConn, error) {
	var local *net.UDPAddr
	if source != "" {
		local = net.UDPAddrFromAddrPort(netip.MustParseAddrPort(source))
	}
	var c *net.UDPConn
	err := h.Do(func() (err error) {
		c, err = net.DialUDP("udp6", local, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(address)))
		return err
	})
	return c, err
}
