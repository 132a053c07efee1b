// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// sees connects to a forward, has data echoed, and returns the address that the server sees. at is the external address, with a port.
func sees(t *testing.T, from *lab.Host, at string) netip.Addr {
	t.Helper()
	c, err := from.DialTCP(at, "", lab.Patience)
	if err != nil {
		t.Errorf("%s: %v", at, err)
		return netip.Addr{}
	}
	defer c.Close()
	who, err := c.Who()
	if err == nil {
		err = c.Echo(10_000)
	}
	if err != nil {
		t.Errorf("%s: %v", at, err)
	}
	return who.Addr()
}

// wantSeen is sees for an address that the server must see.
func wantSeen(t *testing.T, from *lab.Host, at, want string) {
	t.Helper()
	if got := sees(t, from, at); got != netip.MustParseAddr(want) {
		t.Errorf("%s at %s: the server sees %v, want %s", from.Name, at, got, want)
	}
}

// external returns the external address of a family, as DialTCP takes it.
func external(v6 bool) string {
	if v6 {
		return "[" + lab.External6 + "]"
	}
	return lab.External
}

// With any number of subnets on one interface, a reflected client appears as the router's address in the server's subnet.
func TestRouterAddressInTheServersSubnet(t *testing.T) {
	t.Parallel()
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.Server.ServeTCP(":8080")
			n.Server.ServeTCP("[::]:8080")
			for i := 1; i < 10; i++ {
				n.Router.Address("lan0", fmt.Sprintf("10.0.%d.1/24", i))
				n.Server.Address("eth0", fmt.Sprintf("10.0.%d.20/24", i))
				n.Router.Address6("lan0", fmt.Sprintf("fd00:1:%d::1/64", i))
				n.Server.Address6("eth0", fmt.Sprintf("fd00:1:%d::20/64", i))
			}
			// A server behind a gateway in the last subnet.
			n.Server.Address("eth0", "172.16.5.20/32")
			n.Router.Route("lan0", "172.16.5.0/24", "10.0.9.20", "")
			hp := home.Start(t, n, mode, "")
			for i := 1; i < 10; i++ {
				hp.Run("forward", "add", fmt.Sprint("four", i), "tcp", fmt.Sprint(4000+i), "to", fmt.Sprintf("10.0.%d.20:8080", i))
				hp.Run("forward", "add", fmt.Sprint("six", i), "tcp", fmt.Sprint(6000+i), "to", fmt.Sprintf("[fd00:1:%d::20]:8080", i))
			}
			hp.Run("forward", "add", "gateway", "tcp", "4010", "to", "172.16.5.20:8080")
			for i := 1; i < 10; i++ {
				wantSeen(t, n.Client, fmt.Sprintf("%s:%d", external(false), 4000+i), fmt.Sprintf("10.0.%d.1", i))
				wantSeen(t, n.Client, fmt.Sprintf("%s:%d", external(true), 6000+i), fmt.Sprintf("fd00:1:%d::1", i))
			}
			wantSeen(t, n.Client, lab.External+":4010", "10.0.9.1")
			wantSeen(t, n.Router, lab.External+":4009", "10.0.9.1")

			// The address goes: its connections end, and the next connection has another address.
			waiting, err := n.Client.DialTCP(lab.External+":4009", "", lab.Patience)
			if err != nil {
				t.Fatal(err)
			}
			defer waiting.Close()
			n.Router.Unaddress("lan0", "10.0.9.1/24")
			n.Router.Route("lan0", "10.0.9.0/24", "", "")
			if _, err := waiting.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
				t.Errorf("the connection of the address that went: %v, want a reset", err)
			}
			lab.Eventually(t, lab.Patience, func() error {
				c, err := n.Client.DialTCP(lab.External+":4009", "", lab.Patience)
				if err != nil {
					return err
				}
				defer c.Close()
				if who, err := c.Who(); err != nil || who.Addr() != home.RouterAddress {
					return fmt.Errorf("the server sees %v (%v)", who, err)
				}
				return nil
			})
		})
	}
}

// dnat has nftables do what a forward does, with masquerading, for all packets to these ports of the external addresses.
const dnat = `
table inet reference {
	chain prerouting {
		type nat hook prerouting priority dstnat
		ip daddr 203.0.113.2 tcp dport 4080 dnat ip to %s
		ip6 daddr 2001:db8:0:1::2 tcp dport 4080 dnat ip6 to [%s]:8080
	}
	chain postrouting {
		type nat hook postrouting priority srcnat
		ct status dnat masquerade
	}
}`

// An interface has no address, as the veths of container hosts: routes lead to single hosts. The server behind it sees another
// address of the router, the same as with a masquerading nftables.
func TestRouterAddressOfAnInterfaceWithoutAddress(t *testing.T) {
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			n.SetOffloads(home.OffloadsFor(mode))
			bareVeth(n)
			n.Guest.ServeTCP(":8080")
			n.Guest.ServeTCP("[::]:8080")
			n.Router.RunInput(fmt.Sprintf(dnat, lab.Guest+":8080", lab.Guest6), "nft", "-f", "-")
			hp := home.Start(t, n, mode, "")
			hp.Run("forward", "add", "four", "tcp", "80", "to", lab.Guest+":8080", "reflect", "router")
			hp.Run("forward", "add", "six", "tcp", "80", "to", "["+lab.Guest6+"]:8080", "reflect", "router")
			for _, v6 := range []bool{false, true} {
				want := sees(t, n.Client, external(v6)+":4080")
				if !want.IsValid() {
					t.Fatal("nftables does not serve the client")
				}
				wantSeen(t, n.Client, external(v6)+":80", want.String())
				wantSeen(t, n.Guest, external(v6)+":80", want.String())
				wantSeen(t, n.Router, external(v6)+":80", want.String())
			}
		})
	}
}

// bareVeth takes the addresses from lan1, and leaves a route to the guest alone.
func bareVeth(n *lab.Network) {
	n.Router.Unaddress("lan1", lab.RouterGuest+"/24")
	n.Router.Run("ip", "-6", "addr", "del", lab.RouterGuest6+"/64", "dev", "lan1")
	n.Router.Route("lan1", lab.Guest+"/32", "", "")
	n.Router.Route("lan1", lab.Guest6+"/128", "", "")
	n.Router.Sysctl("net/ipv4/conf/lan1/proxy_arp", "1")
	n.Guest.Run("ip", "addr", "flush", "dev", "eth0", "scope", "global")
	n.Guest.Address("eth0", lab.Guest+"/32")
	n.Guest.Address6("eth0", lab.Guest6+"/128")
	n.Guest.Run("ip", "route", "replace", "default", "via", "169.254.1.1", "dev", "eth0", "onlink")
	n.Guest.Route("eth0", "::/0", lab.RouterLink6, "")
}

// The target is in the WAN's own network, whose gateway is another router. Its answers would go there, so it sees the router's
// address for every client; also a forward of every port works.
func TestTargetInTheWANsNetwork(t *testing.T) {
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			n.SetOffloads(home.OffloadsFor(mode))
			far := n.AddFar(t)
			n.Internet.ServeTCP(":8080")
			n.Internet.ServeTCP("[::]:8080")
			hp := home.Start(t, n, mode, "")
			for _, forwards := range [][]string{{"tcp", "8080"}, {"any", "any"}} {
				for _, v6 := range []bool{false, true} {
					family, target, want := "four", lab.Gateway, lab.External
					if v6 {
						family, target, want = "six", lab.Gateway6, lab.External6
					}
					hp.Run("forward", "add", family, forwards[0], external(v6)+":"+forwards[1], "to", target)
					for _, from := range []*lab.Host{n.Client, n.Guest, n.Router} {
						wantSeen(t, from, external(v6)+":8080", want)
					}
					if !v6 {
						wantSeen(t, far, external(v6)+":8080", want)
						// Echo requests have no port to change.
						n.Client.Run("ping", "-c1", "-W5", lab.External)
					}
					hp.Run("forward", "del", family)
				}
			}
		})
	}
}

// The target is behind the WAN. The kernel masquerades another client's own connection to this target, which has the port that a
// reflected client has, too. The target could not tell both apart, so the reflected connection gets another port.
func TestReflectedBesideMasqueraded(t *testing.T) {
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.Router.RunInput(masquerading, "nft", "-f", "-")
			for _, target := range []string{lab.Gateway, "[" + lab.Gateway6 + "]"} {
				n.Internet.ServeTCP(target + ":8080")
				n.Internet.ServeUDP(target + ":8080")
			}
			hp := home.Start(t, n, mode, "")
			hp.Run("forward", "add", "four", "tcp,udp", "81", "to", lab.Gateway+":8080")
			hp.Run("forward", "add", "six", "tcp,udp", "81", "to", "["+lab.Gateway6+"]:8080")
			for _, v6 := range []bool{false, true} {
				target, guest, client := lab.Gateway, lab.Guest, lab.Client
				if v6 {
					target, guest, client = "["+lab.Gateway6+"]", "["+lab.Guest6+"]", "["+lab.Client6+"]"
				}
				for i, network := range []string{"tcp", "udp"} {
					// The reflected client may keep these ports: they are in reflection.ports.
					port := 62000 + i
					for _, from := range []*lab.Host{n.Client, n.Router} {
						source := client
						if from == n.Router {
							port, source = port+10, external(v6)
						}
						own := dialShared(t, n.Guest, network, target+":8080", fmt.Sprintf("%s:%d", guest, port))
						if err := echoes(own); err != nil {
							t.Fatalf("a masqueraded connection over %s: %v", network, err)
						}
						reflected, err := tryDial(from, network, external(v6)+":81", fmt.Sprintf("%s:%d", source, port))
						if err == nil {
							defer reflected.Close()
							err = echoes(reflected)
						}
						if err != nil {
							t.Errorf("%s's reflected connection to %s over %s: %v", from.Name, target, network, err)
						}
						if err := echoes(own); err != nil {
							t.Errorf("the masqueraded connection to %s over %s beside it: %v", target, network, err)
						}
					}
				}
			}
		})
	}
}

// The server's gateway is another router, which leads nowhere. With clients = "router" the server sees the router's address for every client.
func TestServerWithAnotherGateway(t *testing.T) {
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.Server.Run("ip", "route", "del", "default")
			n.Server.Run("ip", "-6", "route", "del", "default")
			n.Server.ServeTCP(":8080")
			n.Server.ServeTCP("[::]:8080")
			udp := n.Server.ServeUDP(":5353")
			n.Internet.Address("eth0", "198.51.100.11/32")
			hp := home.Start(t, n, mode, `
[[forward]]
name = "web"
protocol = ["tcp"]
port = "80"
to = "192.168.1.20:8080"
clients = "router"

[[forward]]
name = "web6"
protocol = ["tcp"]
port = "80"
to = "[fd00:1::20]:8080"
clients = "router"
`)
			hp.Run("forward", "add", "dns", "udp", "53", "to", lab.Server+":5353", "clients", "router")
			hp.Run("forward", "add", "ping", "icmp", "any", "to", lab.Server, "clients", "router")
			for _, from := range []*lab.Host{n.Internet, n.Client, n.Guest, n.Router} {
				wantSeen(t, from, lab.External+":80", lab.RouterLAN)
				wantSeen(t, from, "["+lab.External6+"]:80", lab.RouterLAN6)
			}
			// Two clients with one source port: each has a port of its own.
			clients := map[netip.AddrPort]string{}
			for _, source := range []string{lab.InternetSource + ":40000", "198.51.100.11:40000"} {
				c, err := n.Internet.DialTCP(lab.External+":80", source, lab.Patience)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				who, err := c.Who()
				if err != nil || clients[who] != "" {
					t.Errorf("%s: the server sees %v, as for %q (%v)", source, who, clients[who], err)
				}
				clients[who] = source
				if err := c.Echo(100_000); err != nil {
					t.Error(err)
				}
			}
			c, err := n.Internet.DialUDP(lab.External+":53", "")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := lab.Exchange(c, 100, 3000); err != nil {
				t.Error(err)
			}
			for peer := range udp.Seen() {
				if peer.Addr() != home.RouterAddress {
					t.Errorf("the server sees %v over UDP, want %v", peer, home.RouterAddress)
				}
			}
			n.Internet.Run("ping", "-c1", "-W5", lab.External)
			if f := home.ForwardNamed(t, hp, "web"); f.Clients != "router" || f.Reflect != "router" {
				t.Errorf("web has clients %q and reflect %q, want router", f.Clients, f.Reflect)
			}
		})
	}
}

// A server sees one address for reflected connections and for connections of the router itself. Each connection must have its own
// port. The router's programs must get their answers, whether they choose their port or the kernel does.
func TestRoutersOwnPorts(t *testing.T) {
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.Server.ServeTCP(":8080")
			n.Server.ServeTCP("[::]:8080")
			for _, h := range []*lab.Host{n.Client, n.Router} {
				h.Sysctl("net/ipv4/ip_local_port_range", "20000 20999")
			}
			home.Start(t, n, mode, home.Forwards+home.Forwards6)
			for _, at := range []struct{ external, server, client, router string }{
				{lab.External, lab.Server, lab.Client, lab.RouterLAN},
				{"[" + lab.External6 + "]", "[" + lab.Server6 + "]", "[" + lab.Client6 + "]", "[" + lab.RouterLAN6 + "]"},
			} {
				var reflected []*lab.Conn
				for i := range 300 {
					source := ""
					if i == 0 {
						source = at.client + ":5555"
					}
					c, err := n.Client.DialTCP(at.external+":80", source, lab.Patience)
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					reflected = append(reflected, c)
				}
				for i := range 41 {
					source := ""
					if i == 0 {
						source = at.router + ":5555"
					}
					c, err := n.Router.DialTCP(at.server+":8080", source, lab.Patience)
					if err != nil {
						t.Errorf("connection %d of the router itself: %v", i, err)
						continue
					}
					if err := c.Echo(1000); err != nil {
						t.Errorf("connection %d of the router itself: %v", i, err)
					}
					c.Close()
				}
				for i, c := range reflected {
					if err := c.Echo(1000); err != nil {
						t.Errorf("reflected connection %d: %v", i, err)
					}
				}
				who, err := reflected[0].Who()
				if err != nil || who.Port() < 61000 {
					t.Errorf("the server sees %v, want a port from 61000 up (%v)", who, err)
				}
			}
		})
	}
}

// The router's own ports with the ephemeral ports of the kernel in the way: the daemon and each command that takes the configuration name the sysctl.
// A new forward is told only if it is reflected.
func TestPortConflictIsTold(t *testing.T) {
	n := lab.NewNetwork(t)
	n.Router.Sysctl("net/ipv4/ip_local_port_range", "1024 65535")
	hp := home.Start(t, n, "tc", home.Forwards)
	const want = "sysctl -w net.ipv4.ip_local_reserved_ports=61000-65535"
	if out := hp.Run("status"); !strings.Contains(out, want) {
		t.Errorf("status does not say %q:\n%s", want, out)
	}
	if r, err := hp.Try("check", hp.File); err != nil || r.Code != 0 || !strings.Contains(r.Stderr, want) {
		t.Errorf("check does not say %q: %+v, %v", want, r, err)
	}
	for _, command := range []string{"apply", "apply --dry-run", "forward add other tcp 81 to 192.168.1.20"} {
		if r, err := hp.Try(strings.Fields(command)...); err != nil || r.Code != 0 || !strings.Contains(r.Stderr, want) {
			t.Errorf("%s does not say %q: %+v, %v", command, want, r, err)
		}
	}
	if r, err := hp.Try(strings.Fields("forward add hidden tcp 82 to 192.168.1.20 reflect off")...); err != nil || r.Code != 0 || strings.Contains(r.Stderr, want) {
		t.Errorf("a new forward that is not reflected has no conflict: %+v, %v", r, err)
	}
	if log := hp.Log(); strings.Count(log, want) != 1 {
		t.Errorf("the daemon does not say %q once:\n%s", want, log)
	}
	n.Router.Sysctl("net/ipv4/ip_local_reserved_ports", "61000-65535")
	if out := hp.Run("status"); strings.Contains(out, want) {
		t.Errorf("the ports are reserved, and status says:\n%s", out)
	}
}

// dialShared connects from an address and port that other sockets of the host may have, too.
func dialShared(t *testing.T, from *lab.Host, network, at, source string) net.Conn {
	t.Helper()
	c, err := tryDial(from, network, at, source)
	if err != nil {
		t.Fatalf("%s from %s to %s: %v", network, source, at, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func tryDial(from *lab.Host, network, at, source string) (c net.Conn, err error) {
	dialer := net.Dialer{Timeout: lab.Patience, Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if failed := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		}); failed != nil {
			return failed
		}
		return err
	}}
	if network == "udp" {
		dialer.LocalAddr = net.UDPAddrFromAddrPort(netip.MustParseAddrPort(source))
	} else {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.MustParseAddrPort(source))
	}
	err = from.Do(func() (err error) {
		c, err = dialer.DialContext(context.Background(), network, at)
		return err
	})
	return c, err
}

// echoes has data echoed on a connection of TCP or UDP.
func echoes(c net.Conn) error {
	if udp, ok := c.(*net.UDPConn); ok {
		_, err := lab.Exchange(udp, 1, 100)
		return err
	}
	return (&lab.Conn{TCPConn: c.(*net.TCPConn)}).Echo(1000)
}

// A client connects to a server in another network directly, and by its forward, from one port. The server could not tell the
// connections apart. The first keeps its port, the second gets another one, and both work.
func TestDirectConnectionBesideItsForward(t *testing.T) {
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.Guest.ServeTCP(":8080")
			n.Guest.ServeTCP("[::]:8080")
			n.Guest.ServeUDP(":8080")
			n.Guest.ServeUDP("[::]:8080")
			// A second network of servers, which the Internet reaches without translation.
			n.Guest.Address6("eth0", "2001:db8:7::50/64")
			n.Router.Address6("lan1", "2001:db8:7::1/64")
			n.Internet.Route("eth0", "2001:db8:7::/64", lab.External6, lab.InternetSource6)
			hp := home.Start(t, n, mode, "")
			hp.Run("forward", "add", "four", "tcp,udp", "81", "to", lab.Guest+":8080")
			hp.Run("forward", "add", "six", "tcp,udp", "81", "to", "["+lab.Guest6+"]:8080")
			hp.Run("forward", "add", "global", "tcp,udp", "82", "to", "[2001:db8:7::50]:8080")
			for i, way := range []struct {
				from                    *lab.Host
				source, forward, server string
			}{
				{n.Client, lab.Client, lab.External + ":81", lab.Guest + ":8080"},
				{n.Client, "[" + lab.Client6 + "]", "[" + lab.External6 + "]:81", "[" + lab.Guest6 + "]:8080"},
				{n.Internet, "[" + lab.InternetSource6 + "]", "[" + lab.External6 + "]:82", "[2001:db8:7::50]:8080"},
			} {
				for j, network := range []string{"tcp", "udp"} {
					for k, order := range [][]string{{way.forward, way.server}, {way.server, way.forward}} {
						what := fmt.Sprintf("%s, %s first", network, order[0])
						source := fmt.Sprintf("%s:%d", way.source, 5601+100*i+10*j+k)
						first := dialShared(t, way.from, network, order[0], source)
						if err := echoes(first); err != nil {
							t.Errorf("%s: the first connection: %v", what, err)
						}
						second := dialShared(t, way.from, network, order[1], source)
						for range 3 {
							if err := echoes(second); err != nil {
								t.Errorf("%s: the second connection: %v", what, err)
							}
							if err := echoes(first); err != nil {
								t.Errorf("%s: the first connection, later: %v", what, err)
							}
						}
					}
				}
			}
		})
	}
}

// A client has a direct connection of TCP that is silent for long: so many others are noted after it that its note has gone. Where the
// kernel tracks connections, a translated one from the same port still gets another port, and both work.
func TestDirectConnectionOutlivesItsNote(t *testing.T) {
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.Router.RunInput(masquerading, "nft", "-f", "-")
			n.Guest.ServeTCP(":8080")
			n.Guest.ServeTCP("[::]:8080")
			hp := home.Start(t, n, mode, "")
			hp.Run("forward", "add", "four", "tcp", "81", "to", lab.Guest+":8080")
			hp.Run("forward", "add", "six", "tcp", "81", "to", "["+lab.Guest6+"]:8080")
			for i, way := range []struct{ source, forward, server string }{
				{lab.Client, lab.External + ":81", lab.Guest},
				{"[" + lab.Client6 + "]", "[" + lab.External6 + "]:81", "[" + lab.Guest6 + "]"},
			} {
				source := fmt.Sprintf("%s:%d", way.source, 5601+i)
				first := dialShared(t, n.Client, "tcp", way.server+":8080", source)
				if err := echoes(first); err != nil {
					t.Fatal(err)
				}
				forgetNote(t, n.Client, way.server)
				second := dialShared(t, n.Client, "tcp", way.forward, source)
				for range 3 {
					if err := echoes(second); err != nil {
						t.Errorf("%s, the translated connection: %v", way.forward, err)
					}
					if err := echoes(first); err != nil {
						t.Errorf("%s, the direct connection: %v", way.forward, err)
					}
				}
			}
		})
	}
}

// forgetNote sends datagrams to many ports of a server, each of which hairpin notes as a direct connection.
func forgetNote(t *testing.T, from *lab.Host, server string) {
	t.Helper()
	c, err := from.DialUDP(server+":9", "")
	if err != nil {
		t.Fatal(err)
	}
	local := c.LocalAddr().String()
	c.Close()
	err = from.Do(func() error {
		local := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(local))
		c, err := net.ListenUDP("udp", local)
		if err != nil {
			return err
		}
		defer c.Close()
		for port := range 20_000 {
			to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(fmt.Sprintf("%s:%d", server, 10_000+port)))
			if _, err := c.WriteTo([]byte("x"), to); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
