// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"os"
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

// snmp6 returns a counter of /proc/net/snmp6, such as Icmp6InEchos.
func snmp6(t *testing.T, h *lab.Host, counter string) int {
	t.Helper()
	var text []byte
	if err := h.Do(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/snmp6")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); fields[0] == counter {
			value, err := strconv.Atoi(fields[1])
			if err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	t.Fatalf("%s: no counter %s", h.Name, counter)
	return 0
}

// TestPingRouter6: without a forward for ICMP the router answers for its addresses itself.
func TestPingRouter6(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			n.SetOffloads(home.OffloadsFor(mode))
			home.Start(t, n, mode, home.Forwards6)
			for _, h := range []*lab.Host{n.Internet, n.Client, n.Server, n.Guest} {
				for _, size := range []string{"56", "8000"} {
					h.Run("ping", "-6", "-n", "-c3", "-i0.01", "-W2", "-s", size, lab.External6)
				}
			}
			if got := snmp6(t, n.Server, "Icmp6InEchos"); got != 0 {
				t.Errorf("the server answered %d pings that were not for it", got)
			}
			n.Guest.Run("ping", "-6", "-n", "-c3", "-i0.01", "-W2", "-s", "8000", lab.Server6) // only routed
		})
	}
}

// TestPingForward6: with a forward for ICMP the server answers, through a hairpin too, small pings
// and those in fragments.
func TestPingForward6(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		n := lab.NewNetwork6(t)
		n.SetOffloads(home.OffloadsFor(mode))
		home.Start(t, n, mode, home.Forwards6+pingForward6)
		for _, w := range ways6(n) {
			t.Run(mode+", "+w.Name, func(t *testing.T) {
				before, from := snmp6(t, n.Server, "Icmp6InEchos"), w.From.For(t)
				for _, size := range []string{"56", "1452", "8000"} {
					from.Run("ping", "-6", "-n", "-c5", "-i0.01", "-W2", "-s", size, lab.External6)
				}
				if got := snmp6(t, n.Server, "Icmp6InEchos") - before; got != 15 {
					t.Errorf("the server answered %d pings, want 15", got)
				}
			})
		}
		if got := snmp6(t, n.Router, "Icmp6InEchos"); got != 0 {
			t.Errorf("the router answered %d pings itself", got)
		}
	}
}

// hop6 is a line of traceroute -6 or tracepath -6: its number and the address that answered.
var hop6 = regexp.MustCompile(`(?m)^ *(\d+)[:?]* +([0-9a-f]+:[0-9a-f:]+)[ \n]`)

// path6 returns the addresses that a traceroute or tracepath names, in order.
func path6(output string) (hops []string) {
	last := ""
	for _, line := range hop6.FindAllStringSubmatch(output, -1) {
		if line[1] != last { // tracepath asks the first hop twice
			hops = append(hops, line[2])
		}
		last = line[1]
	}
	return hops
}

const rangeForward6 = `
[[forward]]
name = "range6"
protocol = ["udp"]
port = "33434-44999"
to = "[fd00:1::20]:33434-44999"
`

// TestTraceroute6: a forward looks like the router followed by the external address.
func TestTraceroute6(t *testing.T) {
	n := lab.NewNetwork6(t)
	n.Server.ServeTCP("[::]:8080")
	n.Server.ServeUDP("[::]:5353")
	home.Start(t, n, "xdp", home.Forwards6+pingForward6+rangeForward6)
	places := []struct {
		from *lab.Host
		want []string
	}{
		{n.Internet, []string{lab.External6, lab.External6}},
		{n.Client, []string{lab.RouterLAN6, lab.External6}},
		{n.Server, []string{lab.RouterLAN6, lab.External6}},
		{n.Guest, []string{lab.RouterGuest6, lab.External6}},
	}
	probes := map[string][]string{
		"TCP":                          {"traceroute", "-6", "-n", "-q2", "-w2", "-m6", "-T", "-p", "80"},
		"UDP":                          {"traceroute", "-6", "-n", "-q2", "-w2", "-m6", "-U", "-p", "53"},
		"ICMP":                         {"traceroute", "-6", "-n", "-q2", "-w2", "-m6", "-I"},
		"UDP to ever new closed ports": {"traceroute", "-6", "-n", "-q2", "-w2", "-m6", "-p", "34200"},
		"tracepath":                    {"tracepath", "-6", "-n", "-m6", "-p", "44300"},
	}
	for _, p := range places {
		for name, probe := range probes {
			t.Run(p.from.Name+", "+name, func(t *testing.T) {
				out := p.from.For(t).Run(append(probe, lab.External6)...)
				if got := path6(out); !slices.Equal(got, p.want) || strings.Contains(out, "!") {
					t.Errorf("path is %v, want %v\n%s", got, p.want, out)
				}
			})
		}
	}
}

// TestClosedPort6: whoever asks for a port that the server has closed learns it at once.
func TestClosedPort6(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		n := lab.NewNetwork6(t)
		n.SetOffloads(home.OffloadsFor(mode))
		home.Start(t, n, mode, home.Forwards6)
		for _, w := range ways6(n) {
			t.Run(mode+", "+w.Name, func(t *testing.T) {
				c, err := w.From.For(t).DialUDP("["+lab.External6+"]:53", "")
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if err := refusal(c, 5*time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("UDP: %v, want connection refused", err)
				}
				if _, err := w.From.DialTCP("["+lab.External6+"]:80", "", 5*time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("TCP: %v, want connection refused", err)
				}
			})
		}
	}
}

// TestTooBig6: a path narrower than the sender's is found by Packet Too Big, both ways and through
// the hairpin, whoever narrows it: the router itself or a hop behind the Internet host.
func TestTooBig6(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		for _, mtu := range [][3]int{{1280, 1500, 1500}, {1500, 1280, 1500}, {1500, 1500, 1280}} {
			n := lab.NewNetwork6(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.SetMTU(mtu[0], mtu[1], mtu[2])
			n.Server.ServeTCP("[::]:8080")
			home.Start(t, n, mode, home.Forwards6)
			for _, w := range ways6(n) {
				t.Run(mode+", MTU "+strconv.Itoa(mtu[0])+" "+strconv.Itoa(mtu[1])+" "+strconv.Itoa(mtu[2])+", "+w.Name, func(t *testing.T) {
					c, err := w.From.For(t).DialTCP("["+lab.External6+"]:80", "", lab.Patience)
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					if err := c.Echo(300_000); err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
}
