// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"net/netip"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

const pingForward6 = `
[[forward]]
name = "ping6"
protocol = ["icmp"]
to = "fd00:1::20"
`

// ways6 are the twins of ways.
func ways6(n *lab.Network) []home.Way {
	addr := netip.MustParseAddr
	return []home.Way{
		{Name: "from the Internet", From: n.Internet, Addr: addr(lab.InternetSource6), Sees: addr(lab.InternetSource6)},
		{Name: "from the LAN", From: n.Client, Addr: addr(lab.Client6), Sees: addr(lab.RouterLAN6)},
		{Name: "from the server itself", From: n.Server, Addr: addr(lab.Server6), Sees: addr(lab.RouterLAN6)},
		{Name: "from a second LAN", From: n.Guest, Addr: addr(lab.Guest6), Sees: addr(lab.Guest6)},
	}
}

// transferBytes6 goes there and back over TCP in each transfer.
const transferBytes6 = 20_000_000

// TestTransfers6: all kinds of clients move data both ways through a forward to an IPv6 address,
// with every way that devices and hooks handle checksums and segments.
func TestTransfers6(t *testing.T) {
	for _, v := range transferVariants {
		t.Run(fmt.Sprintf("%s, offloads %s", v.mode, v.offloads), func(t *testing.T) {
			n := lab.NewNetwork6(t)
			n.SetOffloads(v.offloads)
			n.Server.ServeTCP("[::]:8080")
			udp := n.Server.ServeUDP("[::]:5353")
			home.Start(t, n, v.mode, home.Forwards6)
			for _, w := range ways6(n) {
				t.Run(w.Name, func(t *testing.T) {
					transferTCP6(t, w)
					transferUDP6(t, w)
					if got := udp.Last().Addr(); got != w.Sees {
						t.Errorf("over UDP the server sees %v, want %v", got, w.Sees)
					}
				})
			}
			if v.offloads == lab.AllOffGRO {
				mostlyXDP(t, n)
			}
		})
	}
}

func transferTCP6(t *testing.T, w home.Way) {
	t.Helper()
	c, err := w.From.DialTCP("["+lab.External6+"]:80", "", lab.Patience)
	if err != nil {
		t.Errorf("connect: %v", err)
		return
	}
	defer c.Close()
	if who, err := c.Who(); err != nil || who.Addr() != w.Sees {
		t.Errorf("server sees %v, want %v (%v)", who, w.Sees, err)
	}
	if err := c.Echo(transferBytes6); err != nil {
		t.Error(err)
	}
}

func transferUDP6(t *testing.T, w home.Way) {
	t.Helper()
	c, err := w.From.DialUDP("["+lab.External6+"]:53", "")
	if err != nil {
		t.Errorf("connect: %v", err)
		return
	}
	defer c.Close()
	if _, err := lab.Exchange(c, 3000, 1452); err != nil {
		t.Error(err)
	}
}
