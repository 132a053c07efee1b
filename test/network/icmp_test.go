// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// Single forwards for tests that need something special.
const (
	pingForward = `
[[forward]]
name = "ping"
protocol = ["icmp"]
to = "192.168.1.20"
`
	rangeForward = `
[[forward]]
name = "range"
protocol = ["udp"]
port = "44000-44999"
to = "192.168.1.20:44000-44999"
`
)

// pings returns how many echo requests a host has answered.
func pings(t *testing.T, h *lab.Host) int {
	t.Helper()
	count, err := strconv.Atoi(h.SNMP("Icmp", "InEchos"))
	if err != nil {
		t.Fatal(err)
	}
	return count
}

// TestPingRouter: without a forward for ICMP the router answers for its addresses itself, small
// pings and those in fragments.
func TestPingRouter(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork(t)
			n.SetOffloads(home.OffloadsFor(mode))
			home.Start(t, n, mode, home.Forwards)
			for _, h := range []*lab.Host{n.Internet, n.Client, n.Server, n.Guest} {
				for _, to := range []string{lab.External, lab.RouterLAN} {
					if h == n.Internet && to != lab.External {
						continue
					}
					for _, size := range []string{"56", "8000"} {
						h.Run("ping", "-n", "-c3", "-i0.01", "-W2", "-s", size, to)
					}
				}
			}
			if got := pings(t, n.Server); got != 0 {
				t.Errorf("the server answered %d pings that were not for it", got)
			}
			n.Guest.Run("ping", "-n", "-c3", "-i0.01", "-W2", "-s", "8000", lab.Server) // only routed
		})
	}
}

// TestPingForward: with a forward for ICMP the server answers, also through a hairpin. To the client it looks like the router.
func TestPingForward(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork(t)
			n.SetOffloads(home.OffloadsFor(mode))
			hp := home.Start(t, n, mode, pingForward)
			for _, w := range home.Ways(n) {
				t.Run(w.Name, func(t *testing.T) {
					from, before := w.From.For(t), pings(t, n.Server)
					seen := n.Server.For(t).Watch("eth0", func(p *lab.Packet) bool {
						return p.ICMP != nil && p.ICMP.Type == lab.EchoRequest
					})
					from.Run("ping", "-n", "-c5", "-i0.01", "-W2", lab.External)
					from.Run("ping", "-n", "-c5", "-i0.01", "-W2", "-s", "8000", lab.External)
					if got := pings(t, n.Server) - before; got != 10 {
						t.Errorf("the server answered %d pings, want 10", got)
					}
					for _, p := range seen.Packets() {
						if p.Src.Addr() != w.Sees {
							t.Errorf("the server sees %v, want %v", p, w.Sees)
						}
					}
				})
			}
			if got := pings(t, n.Router); got != 0 {
				t.Errorf("the router answered %d pings itself", got)
			}
			n.Client.Run("ping", "-n", "-c1", "-W2", lab.RouterLAN)
			list := home.Show(t, hp, "conn", "show", "proto", "icmp").Connections
			for _, c := range list {
				if c.State != "established" || c.Protocol != "icmp" {
					t.Errorf("listed: %+v", c)
				}
			}
			if len(list) != 8 {
				t.Errorf("%d connections are listed, want one for each of 8 pings", len(list))
			}
		})
	}
}

// TestPingSameID: clients behind the one reflected address keep their ids apart.
func TestPingSameID(t *testing.T) {
	const clients = 20
	n := lab.NewNetwork(t)
	home.Start(t, n, "tc", pingForward)
	ids := make(map[uint16]bool)
	requests := n.Server.Watch("eth0", func(p *lab.Packet) bool { return p.ICMP != nil && p.ICMP.Type == lab.EchoRequest })
	for i := range clients {
		addr := fmt.Sprintf("192.168.1.%d", 100+i)
		n.Client.Address("eth0", addr+"/24")
		n.Client.Run("ping", "-n", "-c2", "-i0.01", "-W2", "-e", "4711", "-I", addr, lab.External)
	}
	for _, p := range requests.Packets() {
		ids[uint16(p.ICMP.Rest>>16)] = true
	}
	if len(ids) != clients || !ids[4711] {
		t.Errorf("%d clients with one id have %d for the server, want each its own and one %d", clients, len(ids), 4711)
	}
}

// hop is a line of traceroute: its number and the address that answered.
var hop = regexp.MustCompile(`(?m)^ *(\d+)  (\d+\.\d+\.\d+\.\d+) `)

// path returns the addresses that a traceroute names, in order.
func path(output string) (hops []string) {
	for _, line := range hop.FindAllStringSubmatch(output, -1) {
		hops = append(hops, line[2])
	}
	return hops
}

// TestTraceroute: a forward looks like the router followed by the external address, from
// everywhere and with every kind of probe.
func TestTraceroute(t *testing.T) {
	n := lab.NewNetwork(t)
	far := n.AddFar(t)
	n.Server.ServeTCP(":8080")
	n.Server.ServeUDP(":5353")
	home.Start(t, n, "xdp", home.Forwards+pingForward+rangeForward)
	places := []struct {
		from *lab.Host
		want []string
	}{
		{far, []string{lab.FarGateway, lab.External, lab.External}},
		{n.Internet, []string{lab.External, lab.External}},
		{n.Client, []string{lab.RouterLAN, lab.External}},
		{n.Server, []string{lab.RouterLAN, lab.External}},
		{n.Guest, []string{lab.RouterGuest, lab.External}},
	}
	probes := map[string][]string{
		"TCP":                          {"-T", "-p", "80"},
		"UDP":                          {"-U", "-p", "53"},
		"ICMP":                         {"-I"},
		"UDP to a closed port":         {"-U", "-p", "44100"},
		"UDP to ever new closed ports": {"-p", "44200"},
	}
	for _, p := range places {
		for name, flags := range probes {
			t.Run(p.from.Name+", "+name, func(t *testing.T) {
				args := append([]string{"traceroute", "-n", "-q2", "-w2", "-m6"}, flags...)
				out := p.from.For(t).Run(append(args, lab.External)...)
				if got := path(out); !slices.Equal(got, p.want) || strings.Contains(out, "!") {
					t.Errorf("path is %v, want %v\n%s", got, p.want, out)
				}
			})
		}
		t.Run(p.from.Name+", tracepath", func(t *testing.T) {
			out := p.from.For(t).Run("tracepath", "-n", "-m6", "-p", "44300", lab.External)
			want := fmt.Sprintf("pmtu 1500 hops %d back", len(p.want))
			got := make(map[string]string) // the first hop is asked twice
			for _, line := range regexp.MustCompile(`(?m)^ *(\d+): +(\d+\.\d+\.\d+\.\d+) `).FindAllStringSubmatch(out, -1) {
				got[line[1]] = line[2]
			}
			for i, addr := range p.want {
				if got[fmt.Sprint(i+1)] != addr {
					t.Errorf("hop %d is %s, want %s", i+1, got[fmt.Sprint(i+1)], addr)
				}
			}
			if len(got) != len(p.want) || !strings.Contains(out, want) || !strings.Contains(out, "reached") {
				t.Errorf("want path %v and %q\n%s", p.want, want, out)
			}
		})
	}
}

// TestClosedPort: whoever asks for a port that the server has closed learns it at once, from the
// address that he asked.
func TestClosedPort(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		n := lab.NewNetwork(t)
		n.SetOffloads(home.OffloadsFor(mode))
		filter(n.Server, "input", "tcp dport 8080 reject with icmp type port-unreachable")
		hp := home.Start(t, n, mode, home.Forwards)
		for _, w := range home.Ways(n) {
			t.Run(mode+", "+w.Name, func(t *testing.T) {
				from := w.From.For(t)
				if _, err := from.DialTCP(lab.External+":80", "", 10*time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("TCP: %v, want connection refused by ICMP", err)
				}
				c, err := from.DialUDP(lab.External+":53", "")
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if err := refusal(c, lab.Patience); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("UDP: %v, want connection refused", err)
				}
			})
		}
		for _, c := range home.Show(t, hp, "conn", "show").Connections {
			if c.State != "half-open" {
				t.Errorf("the server refused this: %+v", c)
			}
		}
		if got := home.Scrape(t, n, "hairpin_icmp_errors_translated_total"); got < 8 {
			t.Errorf("%v ICMP errors counted as translated", got)
		}
	}
}

// refusal sends a datagram and returns what became of it.
func refusal(c interface {
	SetDeadline(time.Time) error
	Write([]byte) (int, error)
	Read([]byte) (int, error)
}, within time.Duration) error {
	c.SetDeadline(time.Now().Add(within))
	if _, err := c.Write([]byte("anybody there?")); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 100))
	return err
}

// TestClientGone: a server sends to a client that has gone. The client's host answers with an ICMP error, and hairpin translates
// it: the error quotes the server's own packet, and comes from the client address that the server knows.
func TestClientGone(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		n := lab.NewNetwork(t)
		n.SetOffloads(home.OffloadsFor(mode))
		home.Start(t, n, mode, home.Forwards)
		for i, w := range home.Ways(n) {
			t.Run(mode+", "+w.Name, func(t *testing.T) { clientGone(t, n.For(t), w, 62000+i) })
		}
	}
}

func clientGone(t *testing.T, n *lab.Network, w home.Way, port int) {
	from := w.From.For(t)
	// Connected, so that the kernel itself matches the quoted packet and reports the error.
	s, err := n.Server.DialUDP(netip.AddrPortFrom(w.Sees, uint16(port)).String(), "192.168.1.20:5353")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c, err := from.DialUDP(lab.External+":53", netip.AddrPortFrom(w.Addr, uint16(port)).String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	s.SetDeadline(time.Now().Add(lab.Patience))
	if _, err := s.Read(make([]byte, 100)); err != nil {
		t.Fatalf("server: %v", err)
	}
	c.Close()
	told := n.Server.Watch("eth0", func(p *lab.Packet) bool { return p.ICMP != nil && p.ICMP.Quote != nil })
	if err := refusal(s, lab.Patience); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("server: %v, want connection refused", err)
	}
	p, err := told.Next(lab.Patience)
	if err != nil {
		t.Fatal(err)
	}
	quote := p.ICMP.Quote
	if p.Src.Addr() != w.Sees || p.ICMP.Type != lab.Unreachable || p.ICMP.Code != lab.PortUnreachable ||
		quote.Src != netip.AddrPortFrom(home.ServerAddress, 5353) || quote.Dst != netip.AddrPortFrom(w.Sees, uint16(port)) {
		t.Errorf("the server is told %v", p)
	}
}
