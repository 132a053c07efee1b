// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// prefixes has stand-ins for the first half of the LAN and for the guests.
const prefixes = `
[reflection]
prefixes = { "192.168.1.0/25" = "198.18.1.0/25", "192.168.2.0/24" = "198.18.2.0/24" }
`

// The reflect mode decides which client address the server sees; with off, LAN clients are not served. All modes are configured at the
// same time.
func TestReflectModes(t *testing.T) {
	nobody := netip.Addr{}
	internet, guest := netip.MustParseAddr(lab.InternetSource), netip.MustParseAddr(lab.Guest)
	tests := []struct {
		reflect                         string
		internet, client, server, guest netip.Addr // whom the server sees
	}{
		{"auto", internet, home.RouterAddress, home.RouterAddress, guest},
		{"router", internet, home.RouterAddress, home.RouterAddress, home.RouterAddress},
		{"public", internet, home.ExternalAddress, home.ExternalAddress, home.ExternalAddress},
		{"prefix", internet, netip.MustParseAddr("198.18.1.50"), netip.MustParseAddr("198.18.1.20"), netip.MustParseAddr("198.18.2.50")},
		{"off", internet, nobody, nobody, nobody},
	}
	for _, mode := range []string{"tc", "xdp"} {
		n := lab.NewNetwork(t)
		n.SetOffloads(home.OffloadsFor(mode))
		n.Server.ServeTCP(":8080")
		udp := n.Server.ServeUDP(":8080")
		hp := home.Start(t, n, mode, prefixes)
		for i, tt := range tests {
			port := fmt.Sprint(80 + i)
			hp.Run("forward", "add", tt.reflect, "tcp,udp", port, "to", lab.Server+":8080", "reflect", tt.reflect)
			for _, c := range []struct {
				from *lab.Host
				want netip.Addr
			}{{n.Internet, tt.internet}, {n.Client, tt.client}, {n.Server, tt.server}, {n.Guest, tt.guest}} {
				t.Run(fmt.Sprintf("%s, %s, %s", mode, tt.reflect, c.from.Name), func(t *testing.T) {
					from := c.from.For(t)
					if got := seenTCP(t, from, port, c.want.IsValid()); got != c.want {
						t.Errorf("over TCP the server sees %v, want %v", got, c.want)
					}
					if got := seenUDP(t, from, port, udp, c.want.IsValid()); got != c.want {
						t.Errorf("over UDP the server sees %v, want %v", got, c.want)
					}
				})
			}
		}
	}
}

// A client without a stand-in is reflected as with auto: in the server's own LAN it appears as the router, in another LAN as
// itself.
func TestClientWithoutStandIn(t *testing.T) {
	const prefixes = "[reflection]\ndefault = \"prefix\"\nprefixes = { \"192.168.1.0/25\" = \"198.18.1.0/25\" }\n"
	for _, mode := range []string{"tc", "xdp"} {
		n := lab.NewNetwork(t)
		n.SetOffloads(home.OffloadsFor(mode))
		n.Server.ServeTCP(":8080")
		home.Start(t, n, mode, prefixes+home.Forwards)
		n.Client.Address("eth0", "192.168.1.200/24")
		for source, want := range map[string]string{
			"192.168.1.50:0": "198.18.1.50", "192.168.1.200:0": lab.RouterLAN, lab.Guest + ":0": lab.Guest,
		} {
			from := n.Client
			if strings.HasPrefix(source, lab.Guest) {
				from = n.Guest
			}
			c, err := from.DialTCP(lab.External+":80", source, lab.Patience)
			if err != nil {
				t.Errorf("%s, %s: %v", mode, source, err)
				continue
			}
			defer c.Close()
			if who, err := c.Who(); err != nil || who.Addr().String() != want {
				t.Errorf("%s, %s: the server sees %v, want %s (%v)", mode, source, who, want, err)
			}
		}
	}
}

// patience returns how long to wait for an answer: longer if the answer must come.
func patience(served bool) time.Duration {
	if served {
		return 5 * time.Second
	}
	return 300 * time.Millisecond
}

func seenTCP(t *testing.T, from *lab.Host, port string, served bool) netip.Addr {
	t.Helper()
	c, err := from.DialTCP(lab.External+":"+port, "", patience(served))
	if err != nil {
		if served {
			t.Errorf("connect: %v", err)
		}
		return netip.Addr{}
	}
	defer c.Close()
	who, err := c.Who()
	if err != nil {
		t.Error(err)
	}
	return who.Addr()
}

func seenUDP(t *testing.T, from *lab.Host, port string, udp *lab.Echoer, served bool) netip.Addr {
	t.Helper()
	before := udp.Seen()
	c, err := from.DialUDP(lab.External+":"+port, "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience(served)))
	if _, err := c.Write([]byte("anybody there?")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 100)); err != nil && served {
		t.Errorf("no answer over UDP: %v", err)
	}
	for peer, tally := range udp.Seen() {
		if before[peer] != tally {
			return peer.Addr()
		}
	}
	return netip.Addr{}
}

// A hundred LAN clients that all use the same source port share one forward: behind the one
// reflected address each needs a port of its own.
func TestSameSourcePort(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		t.Run(mode, func(t *testing.T) { sameSourcePort(t, mode, "", home.RouterAddress, 100) })
		t.Run(mode+", public", func(t *testing.T) {
			sameSourcePort(t, mode, "[reflection]\ndefault = \"public\"\n", home.ExternalAddress, 100)
		})
	}
}

// sameSourcePort has the server see clients by one address.
func sameSourcePort(t *testing.T, mode, settings string, sees netip.Addr, clients int) {
	n := lab.NewNetwork(t)
	n.SetOffloads(home.OffloadsFor(mode))
	n.Server.ServeTCP(":8080")
	udp := n.Server.ServeUDP(":5353")
	home.Start(t, n, mode, settings+home.Forwards)

	var sources []string
	for i := range clients {
		addr := fmt.Sprintf("192.168.1.%d", 100+i)
		n.Client.Address("eth0", addr+"/24")
		sources = append(sources, addr+":40000")
	}
	t.Run("tcp", func(t *testing.T) { sameSourcePortTCP(t, n.Client.For(t), sees, sources) })
	t.Run("udp", func(t *testing.T) { sameSourcePortUDP(t, n.Client.For(t), sees, sources, udp) })
}

func sameSourcePortTCP(t *testing.T, client *lab.Host, sees netip.Addr, sources []string) {
	var mu sync.Mutex
	tuples := make(map[netip.AddrPort]string)
	lab.Together(len(sources), func(i int) {
		c, err := client.DialTCP(lab.External+":80", sources[i], lab.Patience)
		if err != nil {
			t.Errorf("connect: %v", err)
			return
		}
		t.Cleanup(func() { c.Close() }) // open until all are
		who, err := c.Who()
		if err != nil {
			t.Errorf("%s: %v", sources[i], err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if other := tuples[who]; other != "" || who.Addr() != sees {
			t.Errorf("server sees %s as %v, and so %q", sources[i], who, other)
		}
		tuples[who] = sources[i]
	})
	if len(tuples) != len(sources) {
		t.Errorf("%d of %d clients answered, with tuples of their own", len(tuples), len(sources))
	}
}

func sameSourcePortUDP(t *testing.T, client *lab.Host, sees netip.Addr, sources []string, udp *lab.Echoer) {
	lab.Together(len(sources), func(i int) {
		c, err := client.DialUDP(lab.External+":53", sources[i])
		if err != nil {
			t.Errorf("connect: %v", err)
			return
		}
		defer c.Close()
		// The echo has to be the client's own: Exchange compares contents. One at a time, as the ring for XDP
		// frames of a veth holds 256.
		for range 20 {
			if _, err := lab.Exchange(c, 1, 100); err != nil {
				t.Errorf("%s: %v", sources[i], err)
			}
		}
	})
	seen := udp.Seen()
	for peer, tally := range seen {
		if peer.Addr() != sees || tally.Datagrams != 20 {
			t.Errorf("server saw %d datagrams from %v, want 20 from %v", tally.Datagrams, peer, sees)
		}
	}
	if len(seen) != len(sources) {
		t.Errorf("server saw %d tuples, want %d", len(seen), len(sources))
	}
}
