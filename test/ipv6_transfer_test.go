// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"testing"

	"hairpin/test/lab"
)

// transferBytes6 goes there and back over TCP in each transfer.
const transferBytes6 = 20_000_000

// TestTransfers6: all kinds of clients move data both ways through a forward to an IPv6 address,
// with every way that devices and hooks handle checksums and segments.
func TestTransfers6(t *testing.T) {
	variants := []struct {
		mode     string
		offloads lab.Offloads
	}{
		{"tc", lab.AsTheyCome},
		{"tc", lab.RouterOff},
		{"tc", lab.AllOff},
		{"xdp", lab.AsTheyCome},
		{"xdp", lab.AllOff},
		{"xdp", lab.AllOffGRO},
		{"xdp", lab.OnGRO},
	}
	for _, v := range variants {
		t.Run(fmt.Sprintf("%s, offloads %s", v.mode, v.offloads), func(t *testing.T) {
			n := newNetwork6(t)
			n.SetOffloads(v.offloads)
			serveTCP6(t, n.Server, "[::]:8080")
			peer := serveUDP6(t, n.Server, "[::]:5353")
			start(t, n, v.mode, forwards6)
			for _, w := range ways6(n) {
				t.Run(w.name, func(t *testing.T) {
					transferTCP6(t, w)
					transferUDP6(t, w)
					if got := peer().Addr(); got != w.sees {
						t.Errorf("over UDP the server sees %v, want %v", got, w.sees)
					}
				})
			}
			if v.offloads == lab.AllOffGRO {
				mostlyXDP(t, n)
			}
		})
	}
}

func transferTCP6(t *testing.T, w way) {
	t.Helper()
	c, err := dialTCP6(w.from, "["+external6+"]:80", "", lab.Patience)
	if err != nil {
		t.Errorf("connect: %v", err)
		return
	}
	defer c.Close()
	if c.sees.Addr() != w.sees {
		t.Errorf("server sees %v, want %v", c.sees, w.sees)
	}
	if err := c.echo(transferBytes6); err != nil {
		t.Error(err)
	}
}

func transferUDP6(t *testing.T, w way) {
	t.Helper()
	c, err := dialUDP6(w.from, "["+external6+"]:53", "")
	if err != nil {
		t.Errorf("connect: %v", err)
		return
	}
	defer c.Close()
	if _, err := lab.Exchange(c, 3000, 1452); err != nil {
		t.Error(err)
	}
}
