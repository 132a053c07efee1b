// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// portState is nmap's verdict about a port.
var portState = regexp.MustCompile(`(?m)^(\d+)/tcp +(\S+)`)

// scan runs nmap on an open forward (80), one whose server refuses (81) and a port that is no
// forward's (82), and returns what it takes them for.
func scan(from *lab.Host, flags ...string) (string, error) {
	args := []string{"nmap", "-n", "-Pn", "-p80-82", "--max-retries", "1", "--initial-rtt-timeout", "200ms"}
	r, err := from.Try(append(append(args, flags...), lab.External)...)
	var states []string
	for _, port := range portState.FindAllStringSubmatch(r.Stdout, -1) {
		states = append(states, port[2])
	}
	return strings.Join(states, " "), err
}

// TestScans: segments with odd flags to a forward get no answer and make no connection. For the router's own ports the kernel
// answers them.
func TestScans(t *testing.T) {
	scans := []struct {
		flags []string
		want  string
	}{
		{[]string{"-sT"}, "open closed closed"},
		{[]string{"-sS"}, "open closed closed"},
		{[]string{"-sN"}, "open|filtered open|filtered closed"},
		{[]string{"-sF"}, "open|filtered open|filtered closed"},
		{[]string{"-sX"}, "open|filtered open|filtered closed"},
		{[]string{"-sM"}, "open|filtered open|filtered closed"},
		{[]string{"-sA"}, "filtered filtered unfiltered"},
		{[]string{"-sW"}, "filtered filtered closed"},
		{[]string{"-sS", "--scanflags", "SYNFIN"}, "filtered filtered closed"},
		{[]string{"-sS", "--scanflags", "SYNRST"}, "filtered filtered filtered"},
		{[]string{"-sS", "--scanflags", "0"}, "filtered filtered closed"},
	}
	for _, mode := range []string{"tc", "xdp"} {
		n := lab.NewNetwork(t)
		n.SetOffloads(home.OffloadsFor(mode))
		n.Server.ServeTCP(":8080")
		hp := home.Start(t, n, mode, home.Forwards+`
[[forward]]
name = "closed"
protocol = ["tcp"]
port = "81"
to = "192.168.1.20:8081"
`)
		lab.Together(2*len(scans), func(i int) { // a scan that nobody answers takes its time
			from, s := []*lab.Host{n.Internet, n.Client}[i%2], scans[i/2]
			if got, err := scan(from, s.flags...); err != nil || got != s.want {
				t.Errorf("%s, %s, nmap %v: ports 80-82 are %s, want %s (%v)", mode, from.Name, s.flags, got, s.want, err)
			}
		})
		for _, c := range home.Show(t, hp, "conn", "show", "proto", "tcp").Connections {
			if c.State == "established" {
				t.Errorf("%s: scans left %+v", mode, c)
			}
		}
		if home.Scrape(t, n, "hairpin_packets_dropped_total", `reason="non_syn"`) == 0 || home.Scrape(t, n, "hairpin_packets_dropped_total", `reason="malformed"`) == 0 {
			t.Errorf("%s: what was dropped is not counted by its reason", mode)
		}
	}
}

// TestSpoofedFloods: an attacker knows the addresses and ports of a connection, but not its sequence numbers. Neither forged segments
// of the client nor forged ICMP errors of a router end the connection.
func TestSpoofedFloods(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		t.Run(mode, func(t *testing.T) { spoofedFloods(t, mode) })
	}
}

// flood is a run of hping3.
type flood struct {
	from *lab.Host
	args []string
}

// spoofs returns floods that forge the client of a connection from port 40000; the resets are returned separately. The segments leave from
// the client's own host, because every other router drops its address as a source.
func spoofs(n *lab.Network, far *lab.Host) (others, resets []flood) {
	hping := []string{"hping3", "-q", "-n", "-i", "u50", "-c", "5000"}
	segment := slices.Concat(hping, []string{"-a", lab.InternetSource, "-s", "40000", "-k", "-p", "80"})
	message := slices.Concat(hping, []string{"--icmp", "--icmp-ipproto", "6", "--icmp-ipsrc", lab.External, "--icmp-srcport", "80",
		"--icmp-ipdst", lab.InternetSource, "--icmp-dstport", "40000"})
	for _, flags := range []string{"-FA", "-S"} {
		others = append(others, flood{n.Internet, slices.Concat(segment, []string{flags, lab.External})})
	}
	for _, kind := range [][]string{{"3", "3"}, {"3", "4"}, {"11", "0"}} {
		others = append(others, flood{far, slices.Concat(message, []string{"-C", kind[0], "-K", kind[1], lab.External})})
	}
	for _, flags := range []string{"-R", "-RA"} {
		resets = append(resets, flood{n.Internet, slices.Concat(segment, []string{flags, lab.External})})
	}
	return others, resets
}

func spoofedFloods(t *testing.T, mode string) {
	n := lab.NewNetwork(t)
	n.SetOffloads(home.OffloadsFor(mode))
	far := n.AddFar(t)
	n.Server.ServeTCP(":8080")
	hp := home.Start(t, n, mode, home.Forwards)
	var conns []*lab.Conn
	for _, w := range home.Ways(n)[:2] {
		c, err := w.From.DialTCP(lab.External+":80", netip.AddrPortFrom(w.Addr, 40000).String(), lab.Patience)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Echo(100); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	floods, resets := spoofs(n, far)
	// The attacked connection is silent during the attack, and the resets come last: a later segment of the connection would repair
	// the effect of a reset.
	for _, attack := range [][]flood{floods, resets} {
		lab.Together(len(attack)+1, func(i int) {
			if i == len(attack) {
				for range 1000 {
					if err := conns[1].Echo(100); err != nil {
						t.Errorf("during the floods: %v", err)
						return
					}
				}
			} else if _, err := attack[i].from.Try(attack[i].args...); err != nil { // nobody answers it: its exit code is 1
				t.Error(err)
			}
		})
	}
	list := home.Show(t, hp, "conn", "show").Connections
	for _, c := range list {
		if c.State != "established" {
			t.Errorf("after the floods: %+v", c)
		}
	}
	if len(list) != len(conns) {
		t.Errorf("%d connections are listed, want %d", len(list), len(conns))
	}
	for _, c := range conns {
		if err := c.Echo(100); err != nil {
			t.Errorf("after the floods: %v", err)
		}
	}
	// The errors are about the connection, but quote no number that was sent (RFC 5927 4.1).
	if got := home.Scrape(t, n, "hairpin_packets_dropped_total", `reason="no_connection"`, `interface="wan0"`); got < 1000 {
		t.Errorf("%v ICMP errors were dropped: they were not about the connection", got)
	}
	if got := home.Scrape(t, n, "hairpin_icmp_errors_translated_total"); got != 0 {
		t.Errorf("%v ICMP errors were translated, which quote no number that was sent", got)
	}
}

// pair is a UDP connection through a forward, with a socket of its own at either end.
type pair struct{ client, server *net.UDPConn }

// openPair establishes a connection from the Internet to the forward and the server's port of
// the same number; the server says only what the test does.
func openPair(t *testing.T, n *lab.Network, port uint16) pair {
	t.Helper()
	source := netip.AddrPortFrom(netip.MustParseAddr(lab.InternetSource), port)
	s, err := n.Server.DialUDP(source.String(), netip.AddrPortFrom(home.ServerAddress, port).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	c, err := n.Internet.DialUDP(netip.AddrPortFrom(home.ExternalAddress, port).String(), source.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	for _, say := range [][2]*net.UDPConn{{c, s}, {s, c}} {
		if _, err := say[0].Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if err := reads(say[1], []byte("hello")); err != nil {
			t.Fatal(err)
		}
	}
	return pair{c, s}
}

// TestNobodyKeepsAlive: only the server's packets keep a connection alive. Datagrams and ICMP errors that others send with the client's
// address do not (RFC 4787 REQ-6, REQ-12).
func TestNobodyKeepsAlive(t *testing.T) {
	const idle = 2 * time.Second
	n := lab.NewNetwork(t)
	hp := home.Start(t, n, "tc", fmt.Sprintf("[timeouts]\nudp = %q\n%s", idle, rangeForward))
	talking, silent := openPair(t, n, 44000), openPair(t, n, 44001)
	source := netip.MustParseAddrPort(lab.InternetSource + ":44001")
	quote := lab.UDP(netip.AddrPortFrom(home.ExternalAddress, 44001), source, []byte("hello")).Packet()
	stranger := lab.ICMP(source.Addr(), home.ExternalAddress, lab.TimeExceeded, 1, 0, quote).Packet()
	wire := n.Internet.Wire("eth0", n.Router.HardwareAddr("wan0"))

	var longest time.Duration
	last := time.Now()
	lab.Eventually(t, lab.Patience, func() error {
		longest, last = max(longest, time.Since(last)), time.Now()
		_, said := talking.server.Write([]byte("I am still here"))
		_, insisted := silent.client.Write([]byte("are you still there?"))
		if err := errors.Join(said, insisted, wire.Send(stranger)); err != nil {
			return err
		}
		list := home.Show(t, hp, "conn", "show").Connections
		for _, c := range list {
			if c.Client == source.String() && c.State == "established" { // else it has been opened anew
				return fmt.Errorf("still listed: %+v", c)
			}
		}
		for _, c := range list {
			if c.Client != source.String() && c.State == "established" {
				return nil
			}
		}
		if longest < idle/2 {
			t.Errorf("the one whose server talks is not listed, but was never silent for longer than %v: %+v", longest, list)
		}
		return nil
	})
}
