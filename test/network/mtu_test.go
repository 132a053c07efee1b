// SPDX-License-Identifier: Apache-2.0

package network

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"hairpin/test/home"
	"hairpin/test/lab"
)

var mtus = []int{9000, 1500, 1492, 1280}

// reflected reflects by the router's address whatever the way, so that a guest's packets take
// a hairpin between networks of different MTU.
const reflected = `
[[forward]]
name = "web"
protocol = ["tcp", "udp"]
port = "80"
to = "192.168.1.20:8080"
reflect = "router"

[[forward]]
name = "iperf"
protocol = ["tcp", "udp"]
port = "5201"
to = "192.168.1.20"
reflect = "router"
`

// newMTUNetwork makes a network whose hosts announce segments of 8960 bytes, whatever their own
// MTU: too large for most pairs, and only path MTU discovery makes up for it, or fragments.
func newMTUNetwork(t *testing.T, discover bool) *lab.Network {
	n := lab.NewNetwork(t)
	for _, h := range []*lab.Host{n.Internet, n.Client, n.Server, n.Guest} {
		h.Announce(9000)
		if !discover {
			h.Sysctl("net/ipv4/ip_no_pmtu_disc", "1")
		}
	}
	n.Server.ServeTCP(":8080")
	n.Server.ServeUDP(":8080")
	return n
}

// forget drops what a host has learned about paths.
func forget(hosts ...*lab.Host) {
	for _, h := range hosts {
		h.Sysctl("net/ipv4/route/flush", "1")
	}
}

// TestTransfersOverMTUs moves 200 kB each way between links of every pair of MTUs, with don't
// fragment and without, with segmentation offloads and without.
func TestTransfersOverMTUs(t *testing.T) {
	variants := []struct {
		mode     string
		offloads lab.Offloads
	}{
		{"tc", lab.AsTheyCome},
		{"tc", lab.AllOff},
		{"xdp", lab.AllOffGRO},
	}
	for _, v := range variants {
		for _, pmtu := range []bool{true, false} {
			name := fmt.Sprintf("%s, offloads %s, may fragment", v.mode, v.offloads)
			if pmtu {
				name = fmt.Sprintf("%s, offloads %s, don't fragment", v.mode, v.offloads)
			}
			t.Run(name, func(t *testing.T) {
				n := newMTUNetwork(t, pmtu)
				n.SetOffloads(v.offloads)
				home.Start(t, n, v.mode, reflected)
				everyPair(t, n, pmtu)
				dropped := home.Scrape(t, n, "hairpin_packets_dropped_total", "reason=")
				tooBig := home.Scrape(t, n, "hairpin_packets_dropped_total", `reason="too_big"`)
				if dropped != tooBig || tooBig > 0 != pmtu {
					t.Errorf("%v packets were dropped, %v of them as too big", dropped, tooBig)
				}
			})
		}
	}
}

func everyPair(t *testing.T, n *lab.Network, discover bool) {
	for _, outer := range mtus {
		for _, inner := range mtus {
			n.SetMTU(outer, inner, outer)
			forget(n.Internet, n.Client, n.Server, n.Guest)
			for _, from := range []*lab.Host{n.Internet, n.Guest, n.Client} {
				if err := errors.Join(smallTransfer(from), datagramOverMTUs(from, discover)); err != nil {
					t.Fatalf("%s, MTU %d, to the server, MTU %d: %v", from.Name, outer, inner, err)
				}
			}
		}
	}
}

// datagramOverMTUs has 8 kB echoed by UDP. A sender who discovers the path's MTU loses what is too
// big for it, once on each way; any other has it fragmented on the way, and loses nothing.
func datagramOverMTUs(from *lab.Host, discover bool) error {
	c, err := from.DialUDP(lab.External+":80", "")
	if err != nil {
		return err
	}
	defer c.Close()
	data := make([]byte, 8000)
	rand.Read(data)
	for range 10 {
		if _, err = c.Write(data); err == nil {
			err = lab.ReadsWithin(c, data, map[bool]time.Duration{true: 300 * time.Millisecond, false: lab.Patience}[discover])
		}
		if err == nil || !discover || !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, syscall.EMSGSIZE) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("a datagram: %w", err)
	}
	return nil
}

func smallTransfer(from *lab.Host) error {
	c, err := from.DialTCP(lab.External+":80", "", lab.Patience)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Upload(200_000); err != nil {
		return err
	}
	return c.Download(200_000)
}

// TestIperf runs the tool that everybody runs, over every pair of MTUs, both ways.
func TestIperf(t *testing.T) {
	n := newMTUNetwork(t, true)
	home.Start(t, n, "tc", reflected)
	n.Server.Start("iperf3", "-s")
	for _, outer := range mtus {
		for _, inner := range mtus {
			n.SetMTU(outer, inner, outer)
			for _, from := range []*lab.Host{n.Internet, n.Guest} {
				forget(from, n.Server)
				for _, way := range [][]string{nil, {"-R"}} {
					// It ends as soon as all is sent, which is some megabytes before it has arrived.
					if got := iperf(t, from, way...); got < 1<<20 {
						t.Errorf("%s, MTU %d, the server, MTU %d, %v: only %d bytes arrived", from.Name, outer, inner, way, got)
					}
				}
			}
		}
	}
}

// iperf sends 20 MB by TCP and returns how much of it arrived. Between two tests the server closes its listening socket for a
// moment, so a refused connection is tried again.
func iperf(t *testing.T, from *lab.Host, flags ...string) int64 {
	t.Helper()
	type report struct {
		Error string
		End   struct {
			Received struct{ Bytes int64 } `json:"sum_received"`
		}
	}
	var last report
	lab.Eventually(t, lab.Patience, func() error {
		out := from.Run(append([]string{"iperf3", "-c", lab.External, "-n", "20M", "-J"}, flags...)...)
		last = report{}
		if err := json.Unmarshal([]byte(out), &last); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		if last.Error != "" {
			return errors.New(last.Error)
		}
		return nil
	})
	return last.End.Received.Bytes
}

// TestPingDontFragment: a ping too big for the server's network is answered with the MTU that it
// should have had, by the router that cannot pass it on, whatever the way.
func TestPingDontFragment(t *testing.T) {
	n := lab.NewNetwork(t)
	n.SetMTU(9000, 1492, 9000)
	home.Start(t, n, "xdp", strings.Replace(pingForward, "to =", "reflect = \"router\"\nto =", 1))
	for from, router := range map[*lab.Host]string{n.Internet: lab.External, n.Guest: lab.RouterGuest} {
		from.Run("ping", "-n", "-c1", "-W2", "-M", "do", "-s", "1464", lab.External)
		forget(from)
		r, err := from.Try("ping", "-n", "-c1", "-W2", "-M", "do", "-s", "1465", lab.External)
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("From %s icmp_seq=1 Frag needed and DF set (mtu = 1492)", router)
		if r.Code != 1 || !strings.Contains(r.Stdout, want) {
			t.Errorf("%s: exit code %d, want 1 and %q\n%s", from.Name, r.Code, want, r.Stdout)
		}
		forget(from)
		from.Run("ping", "-n", "-c1", "-W2", "-M", "dont", "-s", "8000", lab.External)
	}
}

// TestNarrowInternet: a router on the Internet reports that a packet is too big. The server does not know the external address, so
// hairpin translates the error, and the server accepts it.
func TestNarrowInternet(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		t.Run(mode, func(t *testing.T) {
			n := newMTUNetwork(t, true)
			n.SetOffloads(home.OffloadsFor(mode))
			far := n.AddFar(t)
			n.Internet.MTU("eth1", 1280)
			far.MTU("eth0", 1280)
			far.Announce(9000)
			home.Start(t, n, mode, home.Forwards)
			told := n.Server.Watch("eth0", func(p *lab.Packet) bool { return p.ICMP != nil })
			if err := smallTransfer(far); err != nil {
				t.Error(err)
			}
			p, err := told.Next(lab.Patience)
			if err != nil {
				t.Fatal(err)
			}
			quote := p.ICMP.Quote
			if quote == nil || p.ICMP.Code != lab.FragNeeded || p.ICMP.Rest != 1280 ||
				p.Src.Addr() != netip.MustParseAddr(lab.InternetSource) && p.Src.Addr() != netip.MustParseAddr(lab.Gateway) ||
				quote.Src != netip.AddrPortFrom(home.ServerAddress, 8080) || quote.Dst.Addr() != netip.MustParseAddr(lab.Far) {
				t.Errorf("the server is told %v", p)
			}
			if out := n.Server.Run("ip", "route", "get", lab.Far); !strings.Contains(out, "mtu 1280") {
				t.Errorf("the server has not learned the MTU: %s", out)
			}
		})
	}
}

// TestTooBigIsTold: if a packet does not fit, the ICMP error quotes the packet as its sender sent it, not as translated.
func TestTooBigIsTold(t *testing.T) {
	n := lab.NewNetwork(t)
	n.SetMTU(9000, 1280, 9000)
	n.Server.ServeUDP(":8080")
	hp := home.Start(t, n, "tc", reflected)
	for i, c := range []struct {
		from   *lab.Host
		router string
		addr   string
	}{{n.Internet, lab.External, lab.InternetSource}, {n.Guest, lab.RouterGuest, lab.Guest}} {
		told := c.from.Watch("eth0", func(p *lab.Packet) bool { return p.ICMP != nil })
		dev := map[bool]string{true: "wan0", false: "lan1"}[c.from == n.Internet]
		source, to := netip.AddrPortFrom(netip.MustParseAddr(c.addr), uint16(40000+i)), netip.AddrPortFrom(home.ExternalAddress, 80)
		d := lab.UDP(source, to, make([]byte, 1253))
		d.ID, d.TTL, d.DF = 4711, 63, true
		if err := c.from.Wire("eth0", n.Router.HardwareAddr(dev)).Send(d.Packet()); err != nil {
			t.Fatal(err)
		}
		p, err := told.Next(lab.Patience)
		if err != nil {
			t.Errorf("%s: %v", c.from.Name, err)
			continue
		}
		quoted := p.Payload()[8:]
		if p.Src.Addr() != netip.MustParseAddr(c.router) || p.ICMP.Type != lab.Unreachable || p.ICMP.Code != lab.FragNeeded || p.ICMP.Rest != 1280 {
			t.Errorf("%s is told %v", c.from.Name, p)
		}
		if sent := d.Packet(); len(quoted) > len(sent) || len(quoted) < 28 || string(quoted) != string(sent[:len(quoted)]) {
			t.Errorf("%s is quoted %x, sent %x", c.from.Name, quoted, sent)
		}
	}
	for _, c := range home.Show(t, hp, "conn", "show").Connections {
		if c.State != "half-open" {
			t.Errorf("nobody answered %+v", c)
		}
	}
}

// TestServerIsToldTooBig: the server gets such an error, too, if the client's network has a smaller MTU.
func TestServerIsToldTooBig(t *testing.T) {
	n := lab.NewNetwork(t)
	n.SetMTU(1280, 1500, 1280)
	home.Start(t, n, "tc", reflected)
	for i, w := range []home.Way{
		{From: n.Internet, Addr: netip.MustParseAddr(lab.InternetSource), Sees: netip.MustParseAddr(lab.InternetSource)},
		{From: n.Guest, Addr: netip.MustParseAddr(lab.Guest), Sees: home.RouterAddress},
	} {
		port := uint16(62000 + i)
		asked := n.Server.Watch("eth0", func(p *lab.Packet) bool { return p.Dst.Port() == 8080 })
		told := n.Server.Watch("eth0", func(p *lab.Packet) bool { return p.ICMP != nil && p.ICMP.Quote != nil })
		c, err := w.From.DialUDP(lab.External+":80", netip.AddrPortFrom(w.Addr, port).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("send me something big")); err != nil {
			t.Fatal(err)
		}
		question, err := asked.Next(lab.Patience)
		if err != nil {
			t.Fatal(err)
		}
		if question.Src != netip.AddrPortFrom(w.Sees, port) {
			t.Errorf("the server is asked by %v", question)
		}
		d := lab.UDP(question.Dst, question.Src, make([]byte, 1400))
		d.DF = true
		if err := n.Server.Wire("eth0", n.Router.HardwareAddr("lan0")).Send(d.Packet()); err != nil {
			t.Fatal(err)
		}
		p, err := told.Next(lab.Patience)
		if err != nil {
			t.Errorf("answer to %s: %v", w.From.Name, err)
			continue
		}
		quote := p.ICMP.Quote
		if p.Src.Addr() != home.RouterAddress || p.ICMP.Code != lab.FragNeeded || p.ICMP.Rest != 1280 || quote.Src != question.Dst || quote.Dst != question.Src {
			t.Errorf("answer to %s: the server is told %v", w.From.Name, p)
		}
	}
}

// handshakeMSS opens a connection and returns the MSS that the server and the client receive.
func handshakeMSS(t *testing.T, n *lab.Network, from *lab.Host) (server, client int) {
	t.Helper()
	var atServer, atClient atomic.Int64
	keep := func(to *atomic.Int64) func(*lab.Packet) error {
		return func(p *lab.Packet) error {
			if p.Flags&lab.SYN != 0 {
				to.Store(int64(p.MSS()))
			}
			return nil
		}
	}
	captures := []*lab.Capture{n.Server.Capture("eth0", keep(&atServer)), from.Capture("eth0", keep(&atClient))}
	c, err := from.DialTCP(lab.External+":80", "", lab.Patience)
	if err != nil {
		t.Fatalf("%s: %v", from.Name, err)
	}
	c.Close()
	for _, capture := range captures {
		capture.Stop()
	}
	return int(atServer.Load()), int(atClient.Load())
}

// TestMSSClamp: on the WAN interfaces of the configuration no SYN asks for larger segments than
// they carry, and only there.
func TestMSSClamp(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.Server.ServeTCP(":8080")
			n.Router.MTU("wan0", 1492) // the far end of the provider's line knows nothing of it
			hp := lab.NewHairpin(n.Router, strings.Replace(home.Config(mode, home.Forwards), "mode =", "mss_clamp = [\"wan0\"]\nmode =", 1))
			hp.Start()
			expect := func(from *lab.Host, want int) {
				t.Helper()
				lab.Eventually(t, lab.Patience, func() error {
					if server, client := handshakeMSS(t, n, from); server != want || client != want {
						return fmt.Errorf("MSS is %d for the server and %d for %s, want %d", server, client, from.Name, want)
					}
					return nil
				})
			}
			expect(n.Internet, 1452)
			expect(n.Client, 1460)
			expect(n.Guest, 1460)
			n.Router.MTU("wan0", 1400)
			expect(n.Internet, 1360)
			n.Internet.Announce(1000)
			if server, client := handshakeMSS(t, n, n.Internet); server != 960 || client != 1360 {
				t.Errorf("MSS is %d for the server and %d for the client, want 960 and 1360: never raised", server, client)
			}
			hp.Write(strings.Replace(home.Config(mode, home.Forwards), "mode =", "mss_clamp = []\nmode =", 1))
			hp.Reload()
			if server, client := handshakeMSS(t, n, n.Internet); server != 960 || client != 1460 {
				t.Errorf("MSS is %d for the server and %d for the client, want 960 and 1460: not clamped", server, client)
			}
		})
	}
}
