// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// named answers over TCP and UDP, of both families, with its name and the port that was asked, as the host sees it.
func named(t *testing.T, h *lab.Host, ports ...uint16) {
	t.Helper()
	for _, port := range ports {
		name := fmt.Sprintf("%s:%d", h.Name, port)
		for _, family := range []string{"4", "6"} {
			var tcp net.Listener
			var udp net.PacketConn
			if err := h.Do(func() (err error) {
				if tcp, err = net.Listen("tcp"+family, fmt.Sprintf(":%d", port)); err == nil {
					udp, err = net.ListenPacket("udp"+family, fmt.Sprintf(":%d", port))
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { errors.Join(tcp.Close(), udp.Close()) })
			go func() {
				for {
					c, err := tcp.Accept()
					if err != nil {
						return
					}
					io.WriteString(c, name)
					c.Close()
				}
			}()
			go func() {
				for {
					_, peer, err := udp.ReadFrom(make([]byte, 100))
					if errors.Is(err, net.ErrClosed) {
						return
					}
					udp.WriteTo([]byte(name), peer)
				}
			}()
		}
	}
}

// whoIsAt asks a port of an external address who answers there, over TCP and UDP alike.
func whoIsAt(from *lab.Host, external string, port uint16) (string, error) {
	at := netip.AddrPortFrom(netip.MustParseAddr(external), port).String()
	var names [2]string
	for i, network := range []string{"tcp", "udp"} {
		var c net.Conn
		err := from.Do(func() (err error) {
			dialer := net.Dialer{Timeout: lab.Patience}
			c, err = dialer.DialContext(context.Background(), network, at)
			return err
		})
		if err != nil {
			return "", err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(lab.Patience))
		if network == "udp" {
			if _, err := c.Write([]byte("who is there?")); err != nil {
				return "", err
			}
		}
		answer := make([]byte, 100)
		n, err := c.Read(answer)
		if err != nil {
			return "", fmt.Errorf("%s: %w", network, err)
		}
		names[i] = string(answer[:n])
	}
	if names[0] != names[1] {
		return "", fmt.Errorf("TCP reaches %s, UDP %s", names[0], names[1])
	}
	return names[0], nil
}

// TestRanges: each port of a range reaches its own, at both ends and between, however long the range is and
// however far it is shifted.
func TestRanges(t *testing.T) {
	ranges := []struct {
		external, target string
		shift            uint16
		ports            []uint16
	}{
		{"7000", "17000", 10000, []uint16{7000}},
		{"1-65535", "1-65535", 0, []uint16{1, 2, 1023, 1024, 32767, 32768, 65534, 65535}},
		{"1-65534", "2-65535", 1, []uint16{1, 2, 1023, 1024, 32767, 32768, 65533, 65534}},
		{"2-65535", "1-65534", 65535, []uint16{2, 3, 1024, 32768, 65535}},
		{"6000-6010", "7005-7015", 1005, []uint16{6000, 6001, 6005, 6009, 6010}},
	}
	for _, mode := range home.Modes {
		n := lab.NewNetwork6(t)
		n.SetOffloads(home.OffloadsFor(mode))
		served := map[uint16]bool{}
		for _, r := range ranges {
			for _, port := range r.ports {
				if !served[port+r.shift] {
					named(t, n.Server, port+r.shift)
				}
				served[port+r.shift] = true
			}
		}
		hp := home.Start(t, n, mode, "")
		for _, r := range ranges {
			t.Run(fmt.Sprintf("%s, %s to %s", mode, r.external, r.target), func(t *testing.T) {
				hp := hp.For(t)
				hp.Run("forward", "add", "four", "tcp,udp", r.external, "to", lab.Server+":"+r.target)
				hp.Run("forward", "add", "six", "tcp,udp", r.external, "to", "["+lab.Server6+"]:"+r.target)
				for _, from := range []*lab.Host{n.Internet, n.Client} {
					for _, external := range []string{lab.External, lab.External6} {
						for _, port := range r.ports {
							want := fmt.Sprintf("server:%d", port+r.shift)
							if got, err := whoIsAt(from, external, port); err != nil || got != want {
								t.Errorf("%s, port %d of %s: reaches %q, want %q (%v)", from.Name, port, external, got, want, err)
							}
						}
					}
				}
				hp.Run("forward", "del", "four")
				hp.Run("forward", "del", "six")
			})
		}
	}
}

// TestMostSpecificWins: a port within a range within a 1:1 forward is the port's; what is left of the range is
// the range's; and all else, ICMP echo and protocols without ports too, is the 1:1 forward's.
func TestMostSpecificWins(t *testing.T) {
	const whole, whole6 = "203.0.113.9", "2001:db8:0:1::9"
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.Router.Address("wan0", whole+"/32")
			n.Router.Address6("wan0", whole6+"/128")
			named(t, n.Server, 22, 7999, 8011)
			named(t, n.Client, 8000, 8004, 8006, 8010)
			named(t, n.Guest, 9005)
			hp := home.Start(t, n, mode, "")
			for _, words := range []string{
				"all any %s:any to " + lab.Server, "some tcp,udp %s:8000-8010 to " + lab.Client, "one tcp,udp %s:8005 to " + lab.Guest + ":9005",
			} {
				hp.Run(append([]string{"forward", "add"}, strings.Fields(fmt.Sprintf(words, whole))...)...)
			}
			for _, words := range []string{
				"all6 any [%s]:any to " + lab.Server6, "some6 tcp,udp [%s]:8000-8010 to " + lab.Client6, "one6 tcp,udp [%s]:8005 to [" + lab.Guest6 + "]:9005",
			} {
				hp.Run(append([]string{"forward", "add"}, strings.Fields(fmt.Sprintf(words, whole6))...)...)
			}
			for _, external := range []string{whole, whole6} {
				for port, want := range map[uint16]string{
					22: "server:22", 7999: "server:7999", 8000: "client:8000", 8004: "client:8004", 8005: "guest:9005",
					8006: "client:8006", 8010: "client:8010", 8011: "server:8011",
				} {
					if got, err := whoIsAt(n.Internet, external, port); err != nil || got != want {
						t.Errorf("port %d of %s: reaches %q, want %q (%v)", port, external, got, want, err)
					}
				}
				n.Internet.Run("ping", "-n", "-c2", "-i0.01", "-W5", external)
				if got := home.Show(t, hp, "conn", "show", "proto", "icmp", "dst", external).Connections; len(got) != 1 || !strings.HasPrefix(got[0].Forward, "all") {
					t.Errorf("pings of %s: %+v", external, got)
				}
			}
			bareToWhole(t, n, netip.MustParseAddr(whole))
			said := hp.Fail(1, "forward", "add", "other", "tcp", whole+":8010-8020", "to", lab.Server)
			if !strings.Contains(said, `"some"`) || !strings.Contains(said, `"other"`) {
				t.Errorf("an overlap that is neither's: %s", said)
			}
		})
	}
}

// bareToWhole sends a packet of GRE, which has no ports.
func bareToWhole(t *testing.T, n *lab.Network, whole netip.Addr) {
	t.Helper()
	from := netip.MustParseAddr(lab.InternetSource)
	question := bare(unix.IPPROTO_GRE, "\x00\x00\x08\x00question")
	at := n.Server.Watch("eth0", func(p *lab.Packet) bool { return p.Protocol == unix.IPPROTO_GRE })
	sends(t, n.Internet.Wire("eth0", n.Router.HardwareAddr("wan0")), question(from, whole), at, question(from, home.ServerAddress))
}
