// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// Addresses in the tunnel of a VPN, and addresses that only the tunnel leads to.
const (
	tunnelRouter, tunnelRouter6 = "10.8.0.2", "fd08::2"
	tunnelPeer, tunnelPeer6     = "10.8.0.1", "fd08::1"
	beyond, beyond6             = "10.7.7.7", "fd07::7"
)

// keys makes a pair of keys for WireGuard.
func keys(h *lab.Host) (private, public string) {
	private = h.Run("wg", "genkey")
	return strings.TrimSpace(private), strings.TrimSpace(h.RunInput(private, "wg", "pubkey"))
}

// wgQuick makes the far host a WireGuard peer, and runs wg-quick on the router, with the peer as its way to everywhere.
func wgQuick(t *testing.T, n *lab.Network, far *lab.Host) {
	t.Helper()
	routerPrivate, routerPublic := keys(n.Router)
	farPrivate, farPublic := keys(far)
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	far.Run("ip", "link", "add", "wg0", "type", "wireguard")
	far.Run("wg", "set", "wg0", "listen-port", "51820", "private-key", write("far", farPrivate+"\n"), "peer", routerPublic, "allowed-ips", "0.0.0.0/0,::/0")
	far.Enable6()
	far.Up("wg0")
	far.Address("wg0", tunnelPeer+"/24")
	far.Address6("wg0", tunnelPeer6+"/64")
	far.Address("lo", beyond+"/32")
	far.Address6("lo", beyond6+"/128")
	far.Run("ip", "route", "add", "192.168.0.0/16", "dev", "wg0")
	far.Run("ip", "-6", "route", "add", "fd00::/8", "dev", "wg0")

	file := write("wg0.conf", fmt.Sprintf(`[Interface]
PrivateKey = %s
Address = %s/24, %s/64

[Peer]
PublicKey = %s
Endpoint = %s:51820
AllowedIPs = 0.0.0.0/0, ::/0
`, routerPrivate, tunnelRouter, tunnelRouter6, farPublic, lab.Far))
	n.Router.Run("wg-quick", "up", file)
	if rules := n.Router.Run("ip", "rule"); !strings.Contains(rules, "51820") || !strings.Contains(rules, "suppress_prefixlength 0") {
		t.Fatalf("wg-quick made other rules:\n%s", rules)
	}
}

// intoTunnel counts packets of the external addresses in the tunnel.
const intoTunnel = `
table inet tunnel {
	counter wrong { }
	chain c {
		type filter hook prerouting priority raw
		iifname "wg0" ip saddr 203.0.113.2 counter name wrong
		iifname "wg0" ip6 saddr 2001:db8:0:1::2 counter name wrong
	}
}
`

// TestWGQuick: wg-quick has made a WireGuard tunnel the default route, and rp_filter is strict. Forwards of the WAN serve the Internet by
// the WAN. The tunnel goes on, for the router and its LANs.
func TestWGQuick(t *testing.T) {
	kind{name: "WireGuard", link: "wireguard", programs: []string{"wg", "wg-quick"}}.need(t)
	n := lab.NewNetwork6(t)
	far := addFar(t, n)
	for _, dev := range []string{"all", "wan0"} {
		n.Router.Sysctl("net/ipv4/conf/"+dev+"/rp_filter", "1")
	}
	// In strict mode the router answers no ARP request whose sender address it would not accept.
	n.Internet.Sysctl("net/ipv4/conf/all/arp_announce", "2")
	wgQuick(t, n, far)
	far.RunInput(intoTunnel, "nft", "-f", "-")
	goesOn := func() {
		t.Helper()
		for _, h := range []*lab.Host{n.Router, n.Client} {
			for _, address := range []string{beyond, beyond6} {
				lab.Eventually(t, lab.Patience, func() error { return pinged(h, address) })
			}
		}
	}
	goesOn()
	const forwards = home.Forwards + home.Forwards6
	offer(n.Server)
	hp := home.Start(t, n, "tc", forwards)
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n, hp := n.For(t), hp.For(t)
			n.SetOffloads(home.OffloadsFor(mode))
			hp.Write(home.Config(mode, forwards))
			hp.Reload()
			for _, h := range []*lab.Host{n.Internet, n.Guest} {
				served(t, h)
			}
		})
	}
	goesOn()
	if packets := counted(t, far, "inet", "tunnel", "wrong"); packets != 0 {
		t.Errorf("%d packets of the external addresses left by the tunnel", packets)
	}
}

// TestMSSOfWireGuardLAN: a client behind a WireGuard interface in lan, with an MTU of which its own end knows nothing, gets segments that fit
// into the tunnel, without a word in the configuration. The server ignores the ICMP errors about the MTU.
func TestMSSOfWireGuardLAN(t *testing.T) {
	kind{name: "WireGuard", link: "wireguard", programs: []string{"wg"}}.need(t)
	n := lab.NewNetwork6(t)
	l := line{
		router: n.Router, routerDev: "lan1", routerNet: netip.MustParsePrefix(lab.RouterGuest + "/24"),
		host: n.Guest, hostDev: "eth0", hostNet: netip.MustParsePrefix(lab.Guest + "/24"), number: 2,
	}
	l.cut(t)
	joinWireGuard(t, l)
	n.Router.MTU("lan1", 1280)
	n.Router.Enable6()
	n.Guest.Enable6()
	n.Router.Address6("lan1", lab.RouterGuest6+"/64")
	n.Guest.Address6("eth0", lab.Guest6+"/64")
	n.Guest.Run("ip", "route", "replace", "default", "dev", "eth0")
	n.Guest.Run("ip", "-6", "route", "replace", "default", "dev", "eth0")
	n.Server.ServeTCP(":8080")
	n.Server.ServeTCP("[::]:8080")
	n.Server.RunInput(`table inet deaf {
		chain c {
			type filter hook input priority 0
			icmp type destination-unreachable drop
			icmpv6 type packet-too-big drop
		}
	}`, "nft", "-f", "-")
	const forwards = home.Forwards + home.Forwards6
	hp := home.Start(t, n, "tc", forwards)
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n, hp := n.For(t), hp.For(t)
			hp.Write(home.Config(mode, forwards))
			hp.Reload()
			server, client := watchMSS(n.Server), watchMSS(n.Guest)
			for _, external := range []string{lab.External, "[" + lab.External6 + "]"} {
				c, err := n.Guest.DialTCP(external+":80", "", lab.Patience)
				if err != nil {
					t.Fatal(err)
				}
				if err := c.Download(deviceBytes); err != nil {
					t.Errorf("from %s: %v", external, err)
				}
				c.Close()
			}
			if server, client := server(), client(); server != 1240 || client != 1240 {
				t.Errorf("MSS is %d for the server and %d for the guest, want 1240", server, client)
			}
			server = watchMSS(n.Server)
			if err := echoes(n.Client, lab.External+":80", "", lab.Patience); err != nil {
				t.Error(err)
			}
			if got := server(); got != 1460 {
				t.Errorf("MSS of the client is %d, want 1460 where no tunnel is on the way", got)
			}
		})
	}
}

// watchMSS watches a host's SYNs over IPv4. The returned function ends the watch, and returns the MSS of the last one.
func watchMSS(h *lab.Host) func() int {
	var mss atomic.Int64
	capture := h.Capture("eth0", func(p *lab.Packet) error {
		if p.Flags&lab.SYN != 0 {
			mss.Store(int64(p.MSS()))
		}
		return nil
	})
	return func() int {
		capture.Stop()
		return int(mss.Load())
	}
}
