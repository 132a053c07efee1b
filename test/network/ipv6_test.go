// SPDX-License-Identifier: Apache-2.0

package network

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/test/frames"
	"hairpin/test/home"
	"hairpin/test/lab"
)

// wire6 sends IPv6 packets of a test's own making out of an interface, past the host's IP stack.
type wire6 struct {
	fd     int
	header []byte
}

func newWire6(t *testing.T, h *lab.Host, dev string, neighbour net.HardwareAddr) *wire6 {
	t.Helper()
	w := &wire6{header: append(append(append([]byte(nil), neighbour...), h.HardwareAddr(dev)...), 0x86, 0xdd)}
	index := h.Index(dev)
	lab.Must(h.Do(func() (err error) {
		// A socket of protocol 0 receives nothing.
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Ifindex: index})
	}))
	t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

// send sends frames whose Ethernet header is replaced by the wire's.
func (w *wire6) send(frames ...[]byte) error {
	for _, data := range frames {
		copy(data, w.header)
		if _, err := unix.Write(w.fd, data); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("send packet: %w", err)
		}
	}
	return nil
}

// datagramOf is a UDP datagram in fragments of so many bytes.
func datagramOf(src, dst netip.AddrPort, data []byte, size int) [][]byte {
	f := frames.Frame6{Frame: frames.Frame{From: make(net.HardwareAddr, 6), To: make(net.HardwareAddr, 6), Src: src, Dst: dst, UDP: true, Payload: data}}
	var id [4]byte
	rand.Read(id[:])
	var lengths []int
	for n := 0; n < len(data)+8; n += size {
		lengths = append(lengths, size)
	}
	return frames.Fragments6(f.Bytes(), binary.BigEndian.Uint32(id[:]), 0, lengths...)
}

// TestFragmentOrders6: datagrams of 8 kB in fragments of every order arrive whole, both ways.
func TestFragmentOrders6(t *testing.T) {
	const seed = 6
	for _, mode := range []string{"tc", "xdp"} {
		n := lab.NewNetwork6(t)
		n.SetOffloads(home.OffloadsFor(mode))
		udp := n.Server.ServeUDP("[::]:5353")
		home.Start(t, n, mode, home.Forwards6)
		for i, w := range ways6(n) {
			t.Run(mode+", "+w.Name, func(t *testing.T) {
				fragmentsBothWays6(t, n.For(t), w, orders(seed), uint16(62000+i), udp)
			})
		}
		if held := home.Scrape(t, n, "hairpin_fragments_held_total"); held == 0 {
			t.Error("no fragment was held, though some came early")
		}
	}
}

func fragmentsBothWays6(t *testing.T, n *lab.Network, w home.Way, orders []order, port uint16, udp *lab.Echoer) {
	external, target := netip.MustParseAddrPort("["+lab.External6+"]:53"), netip.MustParseAddrPort("["+lab.Server6+"]:5353")
	c, err := w.From.DialUDP(external.String(), netip.AddrPortFrom(w.Addr, port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	out := newWire6(t, w.From, "eth0", routerMAC(n, w.From))
	back := newWire6(t, n.Server, "eth0", n.Router.HardwareAddr("lan0"))
	for _, o := range orders {
		for _, size := range []int{1448, 1024} {
			data := make([]byte, 8000)
			rand.Read(data)
			request := datagramOf(netip.AddrPortFrom(w.Addr, port), external, data, size)
			o.sort(request)
			lab.Must(out.send(request...))
			if err := reads(c, data); err != nil {
				t.Errorf("to the server, %s, %d bytes each: %v", o.name, size, err)
			}
			if got := udp.Last(); got.Addr() != w.Sees {
				t.Errorf("the server sees %v, want %v", got, w.Sees)
			}
			rand.Read(data)
			answer := datagramOf(target, netip.AddrPortFrom(w.Sees, port), data, size)
			o.sort(answer)
			lab.Must(back.send(answer...))
			if err := reads(c, data); err != nil {
				t.Errorf("from the server, %s, %d bytes each: %v", o.name, size, err)
			}
		}
	}
}

// TestForeignFragments6: fragments that belong to no forward are left to the kernel, in every order.
func TestForeignFragments6(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		n := lab.NewNetwork6(t)
		n.SetOffloads(home.OffloadsFor(mode))
		for _, h := range []*lab.Host{n.Server, n.Guest} {
			h.ServeUDP("[::]:7777")
		}
		n.Router.ServeUDP("[" + lab.External6 + "]:7777")
		n.Router.ServeUDP("[" + lab.RouterLAN6 + "]:7777")
		home.Start(t, n, mode, home.Forwards6)
		port := uint16(40000)
		for _, c := range []struct {
			from     *lab.Host
			addr, to string
		}{
			{n.Internet, lab.InternetSource6, lab.External6},
			{n.Client, lab.Client6, lab.External6},
			{n.Client, lab.Client6, lab.RouterLAN6},
			{n.Server, lab.Server6, lab.External6}, // whose address is a target
			{n.Server, lab.Server6, lab.Guest6},
			{n.Guest, lab.Guest6, lab.Server6},
		} {
			port++
			t.Run(fmt.Sprintf("%s, %s to %s", mode, c.from.Name, c.to), func(t *testing.T) {
				source, to := netip.AddrPortFrom(netip.MustParseAddr(c.addr), port), netip.AddrPortFrom(netip.MustParseAddr(c.to), 7777)
				u, err := c.from.DialUDP(to.String(), source.String())
				if err != nil {
					t.Fatal(err)
				}
				defer u.Close()
				out := newWire6(t, c.from, "eth0", routerMAC(n, c.from))
				for _, o := range orders(7) {
					data := make([]byte, 8000)
					rand.Read(data)
					pieces := datagramOf(source, to, data, 1448)
					o.sort(pieces)
					lab.Must(out.send(pieces...))
					if err := reads(u, data); err != nil {
						t.Errorf("%s: %v", o.name, err)
					}
				}
			})
		}
	}
}

// Addresses beyond the Internet host, behind a narrow link.
const (
	far6        = "2001:db8:f::10"
	farGateway6 = "2001:db8:f::1"
)

// TestPathMTU6: the server learns by Packet Too Big what a hop on the Internet takes, for TCP and for
// datagrams that it sends in fragments, and so does the client for what is narrow at the server's side.
func TestPathMTU6(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		n := lab.NewNetwork6(t)
		n.SetOffloads(home.OffloadsFor(mode))
		far := n.AddFar(t)
		far.Enable6()
		n.Internet.Enable6()
		n.Internet.Address6("eth1", farGateway6+"/64")
		far.Address6("eth0", far6+"/64")
		n.Internet.Sysctl("net/ipv6/conf/all/forwarding", "1")
		n.Internet.MTU("eth1", 1280)
		far.MTU("eth0", 1280)
		// Promises more than it takes, so that nothing but ICMP keeps segments small.
		far.Run("ip", "-6", "route", "add", "default", "via", farGateway6, "dev", "eth0", "advmss", "1440")
		n.Server.ServeTCP("[::]:8080")
		n.Server.ServeUDP("[::]:5353")
		home.Start(t, n, mode, home.Forwards6)
		t.Run(mode+", TCP", func(t *testing.T) {
			c, err := far.DialTCP("["+lab.External6+"]:80", "", lab.Patience)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.Echo(1_000_000); err != nil {
				t.Error(err)
			}
		})
		t.Run(mode+", UDP in fragments", func(t *testing.T) {
			n.Server.Run("ip", "-6", "route", "flush", "cache") // what TCP has learned
			c, err := far.DialUDP("["+lab.External6+"]:53", "")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			data := make([]byte, 8000)
			rand.Read(data)
			lab.Eventually(t, lab.Patience, func() error {
				if _, err := c.Write(data); err != nil {
					return err
				}
				return lab.ReadsWithin(c, data, time.Second)
			})
		})
	}
}

// TestIperf6: the usual tool, both ways, TCP and UDP.
func TestIperf6(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		n := lab.NewNetwork6(t)
		n.SetOffloads(home.OffloadsFor(mode))
		n.Server.Start("iperf3", "-6", "-s", "-p", "5201")
		home.Start(t, n, mode, `
[[forward]]
name = "iperf"
protocol = ["tcp", "udp"]
port = "5000"
to = "[fd00:1::20]:5201"
`)
		for _, w := range ways6(n) {
			for _, flags := range []string{"", "-R", "-u -b 50M", "-u -b 50M -R"} {
				t.Run(strings.TrimSpace(fmt.Sprintf("%s, %s %s", mode, w.Name, flags)), func(t *testing.T) {
					iperf6(t, w.From, strings.Fields(flags))
				})
			}
		}
	}
}

func iperf6(t *testing.T, from *lab.Host, flags []string) {
	t.Helper()
	args := append([]string{"iperf3", "-6", "-J", "-c", lab.External6, "-p", "5000", "-n", "5M", "-l", "1400"}, flags...)
	// The server runs one test at a time, and may not have finished the previous test. Packets that arrive after the client has
	// ended its test are not counted; these may be all packets.
	lab.Eventually(t, lab.Patience, func() error {
		var report struct {
			Error string
			End   struct {
				Sum      struct{ Bytes float64 } // of UDP
				Received struct{ Bytes float64 } `json:"sum_received"`
			}
		}
		result, err := from.Try(args...)
		if err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(result.Stdout), &report); err != nil {
			return fmt.Errorf("%w\n%s%s", err, result.Stdout, result.Stderr)
		}
		if report.Error != "" || report.End.Sum.Bytes == 0 && report.End.Received.Bytes == 0 {
			return fmt.Errorf("iperf3: nothing arrived: %s", report.Error)
		}
		return nil
	})
}

// TestAddressReplaced6: forwards follow the WAN's addresses, as after a night with another prefix.
func TestAddressReplaced6(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"tc", "xdp"} {
		n := lab.NewNetwork6(t)
		n.SetOffloads(home.OffloadsFor(mode))
		n.Server.ServeTCP("[::]:8080")
		home.Start(t, n, mode, home.Forwards6+"\n"+home.Forwards)
		old := lab.External6
		for i := range 3 {
			next := fmt.Sprintf("2001:db8:0:1::%d", 100+i)
			n.Router.Run("ip", "-6", "address", "del", old+"/64", "dev", "wan0")
			n.Router.Address6("wan0", next+"/64")
			for _, w := range ways6(n) {
				t.Run(fmt.Sprintf("%s, address %d, %s", mode, i+1, w.Name), func(t *testing.T) {
					lab.Eventually(t, lab.Patience, func() error {
						c, err := w.From.DialTCP("["+next+"]:80", "", time.Second)
						if err != nil {
							return err
						}
						defer c.Close()
						if who, err := c.Who(); err == nil && who.Addr() != w.Sees {
							t.Errorf("the server sees %v, want %v", who, w.Sees)
						}
						return c.Echo(1000)
					})
					if c, err := w.From.DialTCP("["+old+"]:80", "", 300*time.Millisecond); err == nil {
						c.Close()
						t.Errorf("%s still answers", old)
					}
				})
			}
			old = next
		}
	}
}
