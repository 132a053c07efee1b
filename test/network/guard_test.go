// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// collector is a socket of the Internet host that hears datagrams and says who sent them.
const collector = ":7777"

// An answer whose connection is lost must not show the server's private address to the Internet: SYN/ACKs
// after a flood of openings, and after everything was detached and attached again.
func TestLostStateLeaksNoInsideAddress(t *testing.T) {
	n := lab.NewNetwork(t)
	n.Server.ServeTCP(":8080")
	hp := home.Start(t, n, "tc", home.Forwards)
	inside := netip.MustParseAddr(lab.Server)
	leaks := n.Internet.Watch("eth0", func(p *lab.Packet) bool { return p.Src.Addr() == inside })

	router := n.Router.HardwareAddr("wan0")
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		if err := n.Internet.FloodSYN("eth0", router, netip.AddrPortFrom(home.ExternalAddress, 80), 10000); err != nil {
			t.Fatal(err)
		}
	}
	leaks.Stop()

	hp.Stop()
	hp.Run("detach", "--all")
	hp.Start()
	// The server repeats its SYN/ACKs for a minute, after 1, 3 and 7 seconds.
	again := n.Internet.Watch("eth0", func(p *lab.Packet) bool { return p.Src.Addr() == inside })
	lab.Eventually(t, lab.Patience, func() error {
		if dropped := home.Scrape(t, n, "hairpin_packets_dropped_total", `reason="leak"`, `interface="wan0"`); dropped == 0 {
			return fmt.Errorf("no packet was dropped for its source address")
		}
		return nil
	})
	again.Stop()
	for when, w := range map[string]*lab.Watch{"during the flood": leaks, "after the state was lost": again} {
		if leaked := w.Packets(); len(leaked) > 0 {
			t.Errorf("%s %d packets with the inside address arrived, the first: %v", when, len(leaked), leaked[0])
		}
	}
}

// The guard looks at what the Internet would see: what was translated on the way passes, and so do other
// hosts, global addresses, and everything on a WAN whose own address is private.
func TestGuardDropsOnlyPrivateTargets(t *testing.T) {
	const global, aside = "2001:db8:5::20", "192.168.1.21"
	n := lab.NewNetwork6(t)
	n.Server.Address6("eth0", global+"/128")
	n.Router.Route("lan0", global+"/128", "", "")
	n.Internet.Route("eth0", "2001:db8:5::/64", lab.RouterLink6, "")
	n.Server.Address("eth0", aside+"/24")
	n.Router.RunInput(`table ip nat {
		chain post {
			type nat hook postrouting priority srcnat
			oifname wan0 udp sport 6000 masquerade
		}
	}`, "nft", "-f", "-")
	home.Start(t, n, "tc", home.Forwards+home.Forwards6+fmt.Sprintf(`
[[forward]]
name = "global"
protocol = ["udp"]
port = "54"
to = "[%s]:5454"
`, global))

	heard := map[bool]*lab.Echoer{}
	heard[false] = n.Internet.ServeUDP(lab.Gateway + collector)
	heard[true] = n.Internet.ServeUDP("[" + lab.Gateway6 + "]" + collector)
	cases := []struct {
		what, from string
		seen       string // as which it arrives, "" if it does not
	}{
		{"a target", lab.Server + ":5353", ""},
		{"another port of a target", lab.Server + ":5999", ""},
		{"a target that the kernel masquerades", lab.Server + ":6000", lab.External},
		{"a private address that is no target", aside + ":5353", aside},
		{"a target with a unique local address", "[" + lab.Server6 + "]:5353", ""},
		{"a target with a global address", "[" + global + "]:5454", global},
	}
	for _, c := range cases {
		t.Run(c.what, func(t *testing.T) {
			from := netip.MustParseAddrPort(c.from)
			v6 := from.Addr().Is6()
			to := lab.Gateway + collector
			if v6 {
				to = "[" + lab.Gateway6 + "]" + collector
			}
			before := home.Scrape(t, n, "hairpin_packets_dropped_total", `reason="leak"`)
			socket, err := n.Server.DialUDP(to, c.from)
			if err != nil {
				t.Fatal(err)
			}
			defer socket.Close()
			if _, err := socket.Write([]byte("unasked")); err != nil {
				t.Fatal(err)
			}
			lab.Eventually(t, lab.Patience, func() error {
				dropped := home.Scrape(t, n, "hairpin_packets_dropped_total", `reason="leak"`) > before
				seen := false
				for peer := range heard[v6].Seen() {
					seen = seen || peer.Addr().Unmap().String() == c.seen
					if peer.Addr().Unmap() == from.Addr() && c.seen == "" {
						t.Fatalf("arrived from %v", peer)
					}
				}
				if dropped != (c.seen == "") || seen == (c.seen == "") {
					return fmt.Errorf("dropped %v, seen as %q %v", dropped, c.seen, seen)
				}
				return nil
			})
		})
	}

	t.Run("a target, on a WAN with a private address", func(t *testing.T) {
		n.Router.Unaddress("wan0", lab.External+"/24")
		n.Router.Address("wan0", "10.9.9.2/24")
		n.Router.Route("wan0", "203.0.113.0/24", "", "")
		socket, err := n.Server.DialUDP(lab.Gateway+collector, lab.Server+":5353")
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
		// The daemon hears of the address in its own time.
		lab.Eventually(t, lab.Patience, func() error {
			if _, err := socket.Write([]byte("unasked")); err != nil {
				return err
			}
			for peer := range heard[false].Seen() {
				if peer.Addr().Unmap().String() == lab.Server {
					return nil
				}
			}
			return fmt.Errorf("it does not arrive")
		})
	})
}

// guards counts the programs at egress of an interface.
func guards(t *testing.T, router *lab.Host, dev string) (count int) {
	t.Helper()
	err := router.Do(func() error {
		result, err := link.QueryPrograms(link.QueryOptions{Target: router.Index(dev), Attach: ebpf.AttachTCXEgress})
		if err == nil {
			count = len(result.Programs)
		}
		return err
	})
	if err != nil {
		t.Fatalf("query programs of %s: %v", dev, err)
	}
	return count
}

// The guard is on WANs, of this moment: it goes with detach, and moves with the role.
func TestGuardIsOnWANsAlone(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := home.Start(t, n, "tc", home.Forwards)
	expect := func(when string, want map[string]int) {
		t.Helper()
		for dev, count := range want {
			if got := guards(t, n.Router, dev); got != count {
				t.Errorf("%s: %d programs at egress of %s, want %d", when, got, dev, count)
			}
		}
	}
	expect("attached", map[string]int{"wan0": 1, "lan0": 0, "lan1": 0, "lo": 0})
	hp.Run("upgrade")
	expect("upgraded", map[string]int{"wan0": 1, "lan0": 0})

	hp.Write(`version = 1

[interfaces]
wan = ["lan1"]
lan = ["lan0", "wan0"]

[datapath]
mode = "tc"
`)
	hp.Reload()
	expect("with another WAN", map[string]int{"wan0": 0, "lan0": 0, "lan1": 1})
	hp.Stop()
	hp.Run("detach")
	expect("detached", map[string]int{"wan0": 0, "lan0": 0, "lan1": 0})
	hp.Run("attach")
	expect("attached again", map[string]int{"wan0": 0, "lan1": 1})
	hp.Run("detach", "--all")
	expect("all detached", map[string]int{"wan0": 0, "lan0": 0, "lan1": 0})
}
