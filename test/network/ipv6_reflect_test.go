// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"hairpin/test/home"
	"hairpin/test/lab"
)

const prefixes6 = `
[reflection]
prefixes = { "fd00:1::/64" = "fd00:9:1::/64", "fd00:2::50" = "2001:db8:99::50" }
`

// TestReflectModes6 is the twin of TestReflectModes.
func TestReflectModes6(t *testing.T) {
	nobody, addr := netip.Addr{}, netip.MustParseAddr
	internet, guest, router, external := addr(lab.InternetSource6), addr(lab.Guest6), addr(lab.RouterLAN6), addr(lab.External6)
	tests := []struct {
		reflect                         string
		internet, client, server, guest netip.Addr // whom the server sees
	}{
		{"auto", internet, router, router, guest},
		{"router", internet, router, router, router},
		{"public", internet, external, external, external},
		{"prefix", internet, addr("fd00:9:1::50"), addr("fd00:9:1::20"), addr("2001:db8:99::50")},
		{"off", internet, nobody, nobody, nobody},
	}
	for _, mode := range []string{"tc", "xdp"} {
		n := lab.NewNetwork6(t)
		n.SetOffloads(home.OffloadsFor(mode))
		n.Server.ServeTCP("[::]:8080")
		udp := n.Server.ServeUDP("[::]:8080")
		hp := home.Start(t, n, mode, prefixes6)
		for i, tt := range tests {
			port := fmt.Sprint(80 + i)
			hp.Run("forward", "add", tt.reflect, "tcp,udp", port, "to", "["+lab.Server6+"]:8080", "reflect", tt.reflect)
			for _, c := range []struct {
				from *lab.Host
				want netip.Addr
			}{{n.Internet, tt.internet}, {n.Client, tt.client}, {n.Server, tt.server}, {n.Guest, tt.guest}} {
				t.Run(fmt.Sprintf("%s, %s, %s", mode, tt.reflect, c.from.Name), func(t *testing.T) {
					from := c.from.For(t)
					if got := seenTCP6(t, from, port, c.want.IsValid()); got != c.want {
						t.Errorf("over TCP the server sees %v, want %v", got, c.want)
					}
					if !answersUDP6(t, from, port, c.want.IsValid()) {
						return
					}
					if got := udp.Last().Addr(); got != c.want {
						t.Errorf("over UDP the server sees %v, want %v", got, c.want)
					}
				})
			}
		}
	}
}

func seenTCP6(t *testing.T, from *lab.Host, port string, served bool) netip.Addr {
	t.Helper()
	c, err := from.DialTCP("["+lab.External6+"]:"+port, "", patience(served))
	if err != nil {
		if served {
			t.Errorf("connect: %v", err)
		}
		return netip.Addr{}
	}
	defer c.Close()
	who, err := c.Who()
	if err != nil {
		t.Errorf("ask whom the server sees: %v", err)
	}
	return who.Addr()
}

func answersUDP6(t *testing.T, from *lab.Host, port string, served bool) bool {
	t.Helper()
	c, err := from.DialUDP("["+lab.External6+"]:"+port, "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience(served)))
	if _, err := c.Write([]byte("anybody there?")); err != nil {
		t.Fatal(err)
	}
	_, err = c.Read(make([]byte, 100))
	if answered := err == nil; answered != served {
		t.Errorf("over UDP: %v", err)
	}
	return err == nil
}
