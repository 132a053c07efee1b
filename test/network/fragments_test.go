// SPDX-License-Identifier: Apache-2.0

package network

import (
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// order is a way in which the fragments of a datagram may arrive.
type order struct {
	name string
	sort func([][]byte)
}

// orders are the plain ones and some that depend on a seed.
func orders(seed uint64) []order {
	list := []order{
		{"in order", func([][]byte) {}},
		{"reversed", slices.Reverse[[][]byte]},
		{"last first", func(f [][]byte) { slices.Reverse(f); slices.Reverse(f[1:]) }},
		{"first last", func(f [][]byte) { slices.Reverse(f); slices.Reverse(f[:len(f)-1]) }},
	}
	for i := range 8 {
		random := mathrand.New(mathrand.NewPCG(seed, uint64(i)))
		list = append(list, order{fmt.Sprintf("shuffle %d of seed %d", i, seed), func(f [][]byte) {
			random.Shuffle(len(f), func(i, j int) { f[i], f[j] = f[j], f[i] })
		}})
	}
	return list
}

// TestFragmentOrders: datagrams of 8 kB in fragments of every order arrive whole, both ways, and no
// fragment arrives as anything but a part of them.
func TestFragmentOrders(t *testing.T) {
	seed := mathrand.Uint64()
	for _, mode := range []string{"tc", "xdp"} {
		n := lab.NewNetwork(t)
		n.SetOffloads(home.OffloadsFor(mode))
		n.Server.ServeUDP(":5353")
		home.Start(t, n, mode, home.Forwards)
		for i, w := range home.Ways(n) {
			t.Run(mode+", "+w.Name, func(t *testing.T) {
				fragmentsBothWays(t, n.For(t), w, orders(seed), uint16(62000+i))
			})
		}
		if held := home.Scrape(t, n, "hairpin_fragments_held_total"); held == 0 {
			t.Error("no fragment was held, though some came early")
		}
	}
}

func fragmentsBothWays(t *testing.T, n *lab.Network, w home.Way, orders []order, port uint16) {
	from := w.From.For(t)
	from.Capture("eth0", arrivals(w))
	n.Server.Capture("eth0", arrivals(w))
	c, err := from.DialUDP(lab.External+":53", netip.AddrPortFrom(w.Addr, port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	out := from.Wire("eth0", routerMAC(n, from))
	back := n.Server.Wire("eth0", n.Router.HardwareAddr("lan0"))
	for _, o := range orders {
		for _, size := range []int{1480, 1024} {
			data := make([]byte, 8000)
			rand.Read(data)
			request := lab.UDP(netip.AddrPortFrom(w.Addr, port), netip.AddrPortFrom(home.ExternalAddress, 53), data)
			if err := arrives(c, out, o, request, size, data); err != nil {
				t.Errorf("to the server, %s, %d bytes each: %v", o.name, size, err)
			}
			rand.Read(data)
			answer := lab.UDP(netip.AddrPortFrom(home.ServerAddress, 5353), netip.AddrPortFrom(w.Sees, port), data)
			if err := arrives(c, back, o, answer, size, data); err != nil {
				t.Errorf("from the server, %s, %d bytes each: %v", o.name, size, err)
			}
		}
	}
}

// routerMAC returns the MAC address of the router's interface that a host is connected to.
func routerMAC(n *lab.Network, from *lab.Host) net.HardwareAddr {
	dev := map[string]string{n.Internet.Name: "wan0", n.Guest.Name: "lan1"}[from.Name]
	if dev == "" {
		dev = "lan0"
	}
	return n.Router.HardwareAddr(dev)
}

// arrives sends a datagram in fragments and waits until a socket reads what it should.
func arrives(c *net.UDPConn, w *lab.Wire, o order, d lab.Datagram, size int, want []byte) error {
	fragments := d.Fragments(size)
	o.sort(fragments)
	if err := w.Send(fragments...); err != nil {
		return err
	}
	return reads(c, want)
}

func reads(c *net.UDPConn, want []byte) error { return lab.ReadsWithin(c, want, 3*time.Second) }

// TestForeignFragments: fragments that belong to no forward are left to the kernel, in every order: fragments to the router's
// own services, on its external and inside addresses, and fragments that the router only routes.
func TestForeignFragments(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		n := lab.NewNetwork(t)
		n.SetOffloads(home.OffloadsFor(mode))
		n.Router.ServeUDP(lab.External + ":7777")
		n.Router.ServeUDP(lab.RouterLAN + ":7777")
		n.Server.ServeUDP(":7777")
		n.Guest.ServeUDP(":7777")
		home.Start(t, n, mode, home.Forwards)
		port := uint16(40000)
		for _, c := range []struct {
			from     *lab.Host
			addr, to string
		}{
			{n.Internet, lab.InternetSource, lab.External},
			{n.Client, lab.Client, lab.External},
			{n.Client, lab.Client, lab.RouterLAN},
			{n.Server, lab.Server, lab.External}, // whose address is a target
			{n.Server, lab.Server, lab.Guest},
			{n.Guest, lab.Guest, lab.Server},
		} {
			port++
			t.Run(fmt.Sprintf("%s, %s to %s", mode, c.from.Name, c.to), func(t *testing.T) {
				from := c.from.For(t)
				source := netip.AddrPortFrom(netip.MustParseAddr(c.addr), port)
				u, err := from.DialUDP(c.to+":7777", source.String())
				if err != nil {
					t.Fatal(err)
				}
				defer u.Close()
				out := from.Wire("eth0", routerMAC(n, from))
				for _, o := range orders(7) {
					data := make([]byte, 8000)
					rand.Read(data)
					d := lab.UDP(source, netip.MustParseAddrPort(c.to+":7777"), data)
					if err := arrives(u, out, o, d, 1480, data); err != nil {
						t.Errorf("%s: %v", o.name, err)
					}
				}
			})
		}
	}
}

// TestFragmentsWithoutFirstOnTheWire: a flood of later fragments without a first fragment does not disturb whole packets or
// other fragmented datagrams, of new and of established connections.
func TestFragmentsWithoutFirstOnTheWire(t *testing.T) {
	n := lab.NewNetwork(t)
	n.Server.ServeTCP(":8080")
	n.Server.ServeUDP(":5353")
	home.Start(t, n, "tc", home.Forwards)
	c, err := n.Internet.DialTCP(lab.External+":80", "", lab.Patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()

	stop := make(chan struct{})
	var flood sync.WaitGroup
	flood.Go(func() {
		if sent, err := floodFragments(n, stop); err != nil {
			t.Errorf("flood: after %d: %v", sent, err)
		} else {
			t.Logf("%d fragments without a first one", sent)
		}
	})
	for i := range 40 {
		from := []*lab.Host{n.Internet, n.Client}[i%2]
		if err := errors.Join(c.Echo(10_000), smallTransfer(from), bigDatagram(from)); err != nil {
			t.Errorf("during the flood, from %s: %v", from.Name, err)
			break
		}
	}
	close(stop)
	flood.Wait()
	if got := home.Scrape(t, n, "hairpin_connections", `state="established"`); got < 1 {
		t.Error("the flood ended an established connection")
	}
}

// floodFragments sends later fragments without first fragments to the external address.
func floodFragments(n *lab.Network, stop <-chan struct{}) (sent int, err error) {
	wire := n.Internet.Wire("eth0", n.Router.HardwareAddr("wan0"))
	for ; ; sent++ {
		select {
		case <-stop:
			return sent, nil
		default:
		}
		d := lab.Datagram{
			Src: netip.AddrFrom4([4]byte{byte(1 + mathrand.N(9)), byte(mathrand.Uint32()), byte(mathrand.Uint32()), 1}),
			Dst: home.ExternalAddress, Protocol: 17, Payload: make([]byte, 1000),
		}
		if err := wire.Send(d.Fragment(504, 1000)); err != nil {
			return sent, err
		}
	}
}

// bigDatagram has a datagram echoed that needs fragments, by the host's own stack.
func bigDatagram(from *lab.Host) error {
	c, err := from.DialUDP(lab.External+":53", "")
	if err != nil {
		return err
	}
	defer c.Close()
	data := make([]byte, 8000)
	rand.Read(data)
	if _, err := c.Write(data); err != nil {
		return err
	}
	return reads(c, data)
}

// piece is a part of a datagram's payload, in bytes.
type piece struct {
	of       lab.Datagram
	from, to int
}

// TestBadFragments: what no honest sender makes is dropped with a reason, and nothing of it
// arrives but a first fragment that was good by itself.
func TestBadFragments(t *testing.T) {
	source, to := netip.MustParseAddrPort(lab.InternetSource+":40000"), netip.AddrPortFrom(home.ExternalAddress, 53)
	good := lab.UDP(source, to, make([]byte, 2992))
	syn := lab.TCP(source, netip.AddrPortFrom(home.ExternalAddress, 80), lab.SYN, 1, 0, nil, make([]byte, 100))
	giant := lab.UDP(source, to, make([]byte, 65620))
	insistent := good
	insistent.DF = true
	tests := []struct {
		name, reason string
		pieces       []piece
		arrive       int
	}{
		{"TCP flags in the second fragment", "fragment_tiny", []piece{{syn, 0, 8}}, 0},
		{"overlap", "fragment_overlap", []piece{{good, 0, 1480}, {good, 1472, 2952}}, 1},
		{"duplicate", "fragment_overlap", []piece{{good, 0, 1480}, {good, 1480, 2960}, {good, 1480, 2960}}, 2},
		{"don't fragment", "malformed", []piece{{insistent, 0, 1480}}, 0},
		{"behind the longest datagram", "malformed", []piece{{giant, 65528, 65628}}, 0},
		{"length no multiple of 8", "malformed", []piece{{good, 0, 1477}}, 0},
	}
	for _, mode := range []string{"tc", "xdp"} {
		n := lab.NewNetwork(t)
		n.SetOffloads(home.OffloadsFor(mode))
		n.Server.ServeUDP(":5353")
		home.Start(t, n, mode, home.Forwards)
		for i, tt := range tests {
			t.Run(mode+", "+tt.name, func(t *testing.T) {
				badFragments(t, n.For(t), tt.pieces, uint16(1000+i), tt.reason, tt.arrive)
			})
		}
	}
}

func badFragments(t *testing.T, n *lab.Network, pieces []piece, id uint16, reason string, arrive int) {
	label := fmt.Sprintf("reason=%q", reason)
	before := home.Scrape(t, n, "hairpin_packets_dropped_total", label)
	arrived := n.Server.Watch("eth0", func(p *lab.Packet) bool { return p.ID == id })
	wire := n.Internet.Wire("eth0", n.Router.HardwareAddr("wan0"))
	for _, p := range pieces {
		p.of.ID = id
		if err := wire.Send(p.of.Fragment(p.from, p.to)); err != nil {
			t.Fatal(err)
		}
	}
	if err := bigDatagram(n.Internet); err != nil {
		t.Errorf("good fragments after the bad ones: %v", err)
	}
	arrived.Stop()
	if got := arrived.Packets(); len(got) != arrive {
		t.Errorf("%d of %d packets arrived, want %d: %v", len(got), len(pieces), arrive, got)
	}
	if got := home.Scrape(t, n, "hairpin_packets_dropped_total", label) - before; got != 1 {
		t.Errorf("%v packets are counted as %s, want 1", got, reason)
	}
}
