// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// guarded is closed to everybody in the lab but the server itself.
const guarded = `
[[forward]]
name = "guarded"
protocol = ["tcp", "udp"]
port = "81"
to = "192.168.1.20:8080"
from = ["192.168.1.20/32"]

[[forward]]
name = "outside"
protocol = ["tcp", "udp"]
port = "82"
to = "192.168.1.20:8080"
reflect = "off"

[[forward]]
name = "nowhere"
protocol = ["tcp", "udp"]
port = "83"
to = "10.99.0.1:8080"
`

// refusalTCP and refusalUDP return what becomes of an opening.
func refusalTCP(from *lab.Host, port string, within time.Duration) error {
	c, err := from.DialTCP(lab.External+":"+port, "", within)
	if err == nil {
		c.Close()
	}
	return err
}

func refusalUDP(from *lab.Host, port string, within time.Duration) error {
	c, err := from.DialUDP(lab.External+":"+port, "")
	if err != nil {
		return err
	}
	defer c.Close()
	if err := lab.ReportErrors(c); err != nil {
		return err
	}
	return refusal(c, within)
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// TestRefusalIsTold: a LAN client learns at once that it may not have what it asks for, with the
// error that fits; the Internet learns nothing, unless the configuration says otherwise.
func TestRefusalIsTold(t *testing.T) {
	steps := []struct {
		name, config string
		lan, wan     bool
	}{
		{"by default", "", true, false},
		{"both sides", "[icmp]\nrefuse = [\"lan\", \"wan\"]\n", true, true},
		{"nobody", "[icmp]\nrefuse = []\n", false, false},
	}
	for _, mode := range []string{"tc", "xdp"} {
		n := lab.NewNetwork(t)
		n.SetOffloads(home.OffloadsFor(mode))
		n.Server.ServeTCP(":8080")
		n.Server.ServeUDP(":8080")
		n.Router.Route("wan0", "198.51.100.0/24", lab.Gateway, "")
		n.Router.Run("ip", "route", "del", "default")
		hp := home.Start(t, n, mode, guarded)
		for _, step := range steps {
			hp.Write(home.Config(mode, step.config+guarded))
			hp.Reload()
			t.Run(mode+", "+step.name, func(t *testing.T) { refusals(t, n.For(t), step.lan, step.wan) })
		}
		for _, c := range home.Show(t, hp, "conn", "show").Connections {
			t.Errorf("%s: listed though it was refused: %+v", mode, c)
		}
	}
}

// refusals asks for all that is refused, from everywhere and at once: silence takes its time.
func refusals(t *testing.T, n *lab.Network, lan, wan bool) {
	cases := []struct {
		from *lab.Host
		port string
		told bool
	}{
		{n.Client, "81", lan}, {n.Client, "82", lan}, {n.Client, "83", lan},
		{n.Guest, "81", lan}, {n.Guest, "82", lan}, {n.Guest, "83", lan},
		{n.Internet, "81", wan}, {n.Internet, "83", wan},
	}
	lab.Together(2*len(cases), func(i int) {
		c, ask, protocol := cases[i/2], refusalTCP, "TCP"
		if i%2 == 1 {
			ask, protocol = refusalUDP, "UDP"
		}
		within := 300 * time.Millisecond
		if c.told {
			within = 2 * time.Second // a program that hangs would take longer
		}
		err := ask(c.from, c.port, within)
		if c.told && !errors.Is(err, syscall.EHOSTUNREACH) {
			t.Errorf("%s, port %s, %s: %v, want no route to host", c.from.Name, c.port, protocol, err)
		}
		if !c.told && !isTimeout(err) {
			t.Errorf("%s, port %s, %s: %v, want silence", c.from.Name, c.port, protocol, err)
		}
	})
}

// TestCurlIsRefused: the program that people try first does not hang.
func TestCurlIsRefused(t *testing.T) {
	n := lab.NewNetwork(t)
	n.Server.ServeTCP(":8080")
	home.Start(t, n, "tc", guarded)
	began := time.Now()
	r, err := n.Client.Try("curl", "-sS", "-m20", "http://"+lab.External+":81/")
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); r.Code != 7 || took > 2*time.Second {
		t.Errorf("curl: exit code %d after %v, want 7 at once: %s", r.Code, took, r.Stderr)
	}
	if !strings.Contains(r.Stderr, "No route to host") && !strings.Contains(r.Stderr, "Couldn't connect") {
		t.Errorf("curl says %s", r.Stderr)
	}
}

// TestRefusalWords: the ICMP error quotes the packet as it was sent. Its source is the router's address in the client's network, and
// its code matches the reason.
func TestRefusalWords(t *testing.T) {
	n := lab.NewNetwork(t)
	n.Router.Route("wan0", "198.51.100.0/24", lab.Gateway, "")
	n.Router.Run("ip", "route", "del", "default")
	home.Start(t, n, "tc", guarded)
	heard := n.Client.Watch("eth0", func(p *lab.Packet) bool { return p.ICMP != nil })
	wire := n.Client.Wire("eth0", n.Router.HardwareAddr("lan0"))
	source := netip.MustParseAddrPort(lab.Client + ":40000")
	for port, code := range map[uint16]uint8{81: lab.Prohibited, 82: lab.Prohibited, 83: lab.HostUnreachable} {
		d := lab.UDP(source, netip.AddrPortFrom(home.ExternalAddress, port), []byte("please"))
		d.ID, d.TTL = 4711, 63
		if err := wire.Send(d.Packet()); err != nil {
			t.Fatal(err)
		}
		p, err := heard.Next(lab.Patience)
		if err != nil {
			t.Errorf("port %d: %v", port, err)
			continue
		}
		if p.Src.Addr() != home.RouterAddress || p.ICMP.Type != lab.Unreachable || p.ICMP.Code != code ||
			string(p.Payload()[8:]) != string(d.Packet()) {
			t.Errorf("port %d: heard %v\n%x\nabout\n%x", port, p, p.Payload(), d.Packet())
		}
	}
}

// TestRefusalsAreLimited: as many as the configuration says and no more, however many ask; what a
// path needs to work is never held back.
func TestRefusalsAreLimited(t *testing.T) {
	const rate, asked = 20, 2000
	n := lab.NewNetwork(t)
	n.SetMTU(1500, 1280, 1500)
	n.Client.MTU("eth0", 1280)
	home.Start(t, n, "tc", fmt.Sprintf("[icmp]\nrate = %d\n%s%s", rate, guarded, reflected))
	heard := n.Guest.Watch("eth0", func(p *lab.Packet) bool { return p.ICMP != nil })
	wire := n.Guest.Wire("eth0", n.Router.HardwareAddr("lan1"))
	source := netip.MustParseAddr(lab.Guest)
	began := time.Now()
	for i := range asked {
		from := netip.AddrPortFrom(source, uint16(20000+i))
		refused := lab.UDP(from, netip.AddrPortFrom(home.ExternalAddress, 81), nil)
		expired := lab.UDP(from, netip.AddrPortFrom(home.ExternalAddress, 80), nil)
		expired.TTL = 1
		if err := wire.Send(refused.Packet(), expired.Packet()); err != nil {
			t.Fatal(err)
		}
		if i%100 == 99 {
			big := lab.UDP(from, netip.AddrPortFrom(home.ExternalAddress, 80), make([]byte, 1400))
			big.DF = true
			if err := wire.Send(big.Packet()); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The last one is answered after all others.
	lab.Eventually(t, lab.Patience, func() error {
		if got := len(heardOf(heard, lab.Unreachable, lab.FragNeeded)); got != asked/100 {
			return fmt.Errorf("told %d times that a packet is too big, want %d", got, asked/100)
		}
		return nil
	})
	took := time.Since(began)
	got := len(heardOf(heard, lab.Unreachable, lab.Prohibited)) + len(heardOf(heard, lab.TimeExceeded, 0))
	most := rate + int(took.Seconds()*rate) + 1
	if got < rate || got > most {
		t.Errorf("told %d times in %v, want %d to %d", got, took, rate, most)
	}
}

// heardOf returns the messages of a type and code.
func heardOf(w *lab.Watch, kind, code uint8) (list []*lab.Packet) {
	for _, p := range w.Packets() {
		if p.ICMP != nil && p.ICMP.Type == kind && p.ICMP.Code == code {
			list = append(list, p)
		}
	}
	return list
}
