// SPDX-License-Identifier: Apache-2.0

package floods

import (
	"net/netip"
	"sync"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// A flood of a million half-open connections evicts no established connection, not even one of a thousand idle connections, and new
// connections can still open.
func TestSYNFlood(t *testing.T) {
	const idle, syns = 1000, 1_000_000
	n := lab.NewNetwork(t)
	n.Server.ServeTCP(":8080")
	hp := home.Start(t, n, "tc", home.Forwards)

	conns := make([]*lab.Conn, idle)
	for i := range conns {
		from := []*lab.Host{n.Internet, n.Client}[i%2]
		c, err := from.DialTCP(lab.External+":80", "", lab.Patience)
		if err != nil {
			t.Fatalf("open connection %d: %v", i, err)
		}
		defer c.Close()
		if err := c.Echo(1); err != nil {
			t.Fatalf("use connection %d: %v", i, err)
		}
		conns[i] = c
	}

	opened := floodAndOpen(t, n, syns)
	t.Logf("%d connections opened during the flood", opened)
	if opened == 0 {
		t.Error("no connection opened during the flood")
	}
	for i, c := range conns {
		if err := c.Echo(100); err != nil {
			t.Errorf("connection %d: %v", i, err)
		}
	}
	states := map[string]int{}
	for _, c := range home.Show(t, hp, "conn", "show", "forward", "web").Connections {
		states[c.State]++
	}
	if states["established"] < idle {
		t.Errorf("%d established connections listed, want %d", states["established"], idle)
	}
	// The flood has filled the places for half-open connections. With more connections than places, some could not be evicted.
	if got, most := states["half-open"], 131072/8; got > most {
		t.Errorf("%d half-open connections, at most %d have room", got, most)
	}
	c, err := n.Client.DialTCP(lab.External+":80", "", lab.Patience)
	if err != nil {
		t.Fatalf("after the flood: %v", err)
	}
	c.Close()
}

// floodAndOpen floods, and opens connections one after another until the flood is over. It
// returns how many it opened; one that does not open fails the test.
func floodAndOpen(t *testing.T, n *lab.Network, syns int) int {
	router := n.Router.HardwareAddr("wan0")
	over := make(chan struct{})
	var flood sync.WaitGroup
	flood.Go(func() {
		defer close(over)
		target := netip.AddrPortFrom(home.ExternalAddress, 80)
		if err := n.Internet.FloodSYN("eth0", router, target, syns); err != nil {
			t.Errorf("flood: %v", err)
		}
	})
	defer flood.Wait()
	for opened := 0; ; opened++ {
		select {
		case <-over:
			return opened
		default:
		}
		from := []*lab.Host{n.Internet, n.Client}[opened%2]
		c, err := from.DialTCP(lab.External+":80", "", lab.Patience)
		if err != nil {
			t.Errorf("during the flood: %v", err)
			return opened
		}
		if err := c.Echo(100); err != nil {
			t.Errorf("during the flood: %v", err)
		}
		c.Close()
	}
}
