// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// atOnce is the time limit for hairpin to serve again after an interface or an address changed. hairpin needs less than a second, usually
// 50 ms; the rest is for a busy machine.
const atOnce = 4 * time.Second

// serves tells whether a client gets an answer to a new connection, without patience.
func serves(from *lab.Host, address string) error {
	c, err := from.DialTCP(address, "", 100*time.Millisecond)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Echo(1000)
}

// replug cuts a cable of the router and lays it again: a new interface of the same name, with
// the MAC address that the neighbours know.
func replug(n *lab.Network, dev string, to *lab.Host, toDev string, addresses ...string) {
	mac, toMAC := n.Router.HardwareAddr(dev), to.HardwareAddr(toDev)
	n.Router.Unplug(dev)
	lab.Cable(n.Router, dev, to, toDev)
	n.Router.SetHardwareAddr(dev, mac)
	to.SetHardwareAddr(toDev, toMAC)
	n.Router.Address(dev, addresses...)
}

// An interface that is deleted and comes back, as a PPPoE or USB one does, serves again.
func TestInterfaceComesBack(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.Server.ServeTCP(":8080")
			home.Start(t, n, mode, home.Forwards)
			ready := func(t *testing.T) {
				for _, w := range home.Ways(n.For(t)) {
					lab.Eventually(t, atOnce, func() error { return serves(w.From, lab.External+":80") })
				}
			}
			ready(t)
			for range 3 {
				replug(n, "lan0", n.Switch, "port0", lab.RouterLAN+"/24")
				n.Switch.Plug("br0", "port0")
				n.SetOffloads(home.OffloadsFor(mode))
				ready(t)
			}
			for range 3 {
				replug(n, "wan0", n.Internet, "eth0", lab.External+"/24")
				n.Internet.Address("eth0", lab.Gateway+"/24", lab.InternetSource+"/32")
				n.Internet.Route("eth0", "203.0.113.0/24", "", lab.InternetSource)
				n.Router.Route("wan0", "0.0.0.0/0", lab.Gateway, "")
				n.SetOffloads(home.OffloadsFor(mode))
				ready(t)
			}
		})
	}
}

// An interface that is not there when the daemon starts is attached when it appears.
func TestInterfacePendingAtStart(t *testing.T) {
	n := lab.NewNetwork(t)
	n.Server.ServeTCP(":8080")
	mac := n.Router.HardwareAddr("wan0")
	n.Router.Unplug("wan0")
	hp := home.Start(t, n, "tc", home.Forwards)
	if out := hp.Run("status"); !strings.Contains(out, "pending") {
		t.Errorf("status does not say that wan0 is pending:\n%s", out)
	}

	lab.Cable(n.Router, "wan0", n.Internet, "eth0")
	n.Router.SetHardwareAddr("wan0", mac)
	n.Router.Address("wan0", lab.External+"/24")
	n.Router.Route("wan0", "0.0.0.0/0", lab.Gateway, "")
	n.Internet.Address("eth0", lab.Gateway+"/24", lab.InternetSource+"/32")
	n.Internet.Route("eth0", "203.0.113.0/24", "", lab.InternetSource)
	for _, w := range home.Ways(n) {
		lab.Eventually(t, atOnce, func() error { return serves(w.From, lab.External+":80") })
	}
	if out := hp.Run("status"); strings.Contains(out, "pending") {
		t.Errorf("status still says pending:\n%s", out)
	}
}

// The provider replaces the address of the WAN interface during traffic. New connections open at the new address. No packet with
// the old address leaves the router, even while the server keeps answering.
func TestExternalAddressReplaced(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		t.Run(mode, func(t *testing.T) { externalAddressReplaced(t, mode) })
	}
}

func externalAddressReplaced(t *testing.T, mode string) {
	const replacement = "203.0.113.77"
	n := lab.NewNetwork(t)
	n.SetOffloads(home.OffloadsFor(mode))
	n.Server.ServeTCP(":8080")
	udp := n.Server.ServeUDP(":5353")
	home.Start(t, n, mode, home.Forwards)
	old, err := n.Internet.DialTCP(lab.External+":80", "", lab.Patience)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	answers := talkative(t, n, udp)

	var stale, moved atomic.Int64
	capture := n.Internet.Capture("eth0", func(p *lab.Packet) error {
		if p.Src.Addr() != home.ExternalAddress {
			return nil
		}
		stale.Add(1)
		if moved.Load() != 0 {
			return fmt.Errorf("from the old address, after new connections to the new one")
		}
		return nil
	})
	lab.Eventually(t, lab.Patience, func() error {
		if stale.Load() == 0 {
			return fmt.Errorf("no answer from the old address before the change")
		}
		return nil
	})

	n.Router.Unaddress("wan0", lab.External+"/24")
	n.Router.Address("wan0", replacement+"/24")
	n.Router.Route("wan0", "0.0.0.0/0", lab.Gateway, "")
	changed := time.Now()
	before := stale.Load()
	for _, w := range home.Ways(n) {
		lab.Eventually(t, atOnce-time.Since(changed), func() error { return serves(w.From, replacement+":80") })
	}
	t.Logf("serving after %v; until then %d packets left with the old address", time.Since(changed), stale.Load()-before)

	moved.Store(1)
	go old.Echo(100) // the old connection also tries
	answers(1000)
	capture.Stop()
}

// talkative has the server send datagrams to a client on the Internet without end. The
// function returned waits until it has sent some more.
func talkative(t *testing.T, n *lab.Network, udp *lab.Echoer) func(more int64) {
	t.Helper()
	c, err := n.Internet.DialUDP(lab.External+":53", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lab.Exchange(c, 10, 100); err != nil {
		t.Fatal(err)
	}
	var peer netip.AddrPort
	for peer = range udp.Seen() {
	}
	var sent atomic.Int64
	var talking sync.WaitGroup
	stop := make(chan struct{})
	talking.Go(func() {
		pace := time.NewTicker(time.Millisecond)
		defer pace.Stop()
		for {
			select {
			case <-stop:
				return
			case <-pace.C:
			}
			if err := udp.Send(peer, []byte("are you still there?")); err == nil {
				sent.Add(1)
			}
		}
	})
	t.Cleanup(func() {
		close(stop)
		talking.Wait()
		c.Close()
	})
	return func(more int64) {
		target := sent.Load() + more
		lab.Eventually(t, lab.Patience, func() error {
			if sent.Load() < target {
				return fmt.Errorf("server sent %d datagrams, want %d", sent.Load(), target)
			}
			return nil
		})
	}
}
