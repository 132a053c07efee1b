// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// Addresses at the other end of the tunnels.
const (
	far6                  = "2001:db8:2::10" // the far host, which is the peer of all tunnels
	farGateway6           = "2001:db8:2::1"  // the Internet host, on the cable to the far host
	office, office6       = "10.8.0.5", "fd08::5"
	traveller, traveller6 = "198.51.100.77", "2001:db8:9::77" // a client with a public address
	branch, branch6       = "10.9.0.5", "fd09::5"             // behind an xfrm interface
)

// behindTunnels are forwards to targets at the other end: one that policies protect, and one behind an xfrm interface.
const behindTunnels = `
[[forward]]
name = "office"
protocol = ["tcp", "udp"]
port = "81"
to = "10.8.0.5:8080"

[[forward]]
name = "office6"
protocol = ["tcp", "udp"]
port = "81"
to = "[fd08::5]:8080"

[[forward]]
name = "branch"
protocol = ["tcp"]
port = "82"
to = "10.9.0.5:8080"

[[forward]]
name = "branch6"
protocol = ["tcp"]
port = "82"
to = "[fd09::5]:8080"
`

// addFar adds a host behind the Internet host, in both families. Both ends of a tunnel are then away from the Internet host, which sees
// only what travels between them.
func addFar(t *testing.T, n *lab.Network) *lab.Host {
	t.Helper()
	far := n.AddFar(t)
	n.Internet.Enable6()
	far.Enable6()
	n.Internet.Sysctl("net/ipv6/conf/all/forwarding", "1")
	n.Internet.Address6("eth1", farGateway6+"/64")
	far.Address6("eth0", far6+"/64")
	far.Route("eth0", "::/0", farGateway6, "")
	return far
}

// protection is what two security gateways protect: what is behind the far host, against all else.
type protection struct {
	behind  string   // network
	id      int      // of the templates and of both states
	virtual []string // more words of the router's states and policies
}

// protect gives both gateways the states and policies of an ESP tunnel. The outer addresses are of the family of the inner ones.
func protect(t *testing.T, router, far *lab.Host, p protection) {
	t.Helper()
	near, remote, all := lab.External, lab.Far, "0.0.0.0/0"
	if strings.Contains(p.behind, ":") {
		near, remote, all = lab.External6, far6, "::/0"
	}
	for _, h := range []*lab.Host{router, far} {
		more := p.virtual
		if h == far {
			more = nil
		}
		xfrm := func(words string) {
			t.Helper()
			args := append([]string{"ip", "xfrm"}, strings.Fields(words)...)
			r, err := h.Try(args...)
			if err != nil || r.Code != 0 {
				lacking(t, "IPsec: %s: not in this kernel: %v %s", words, err, r.Stderr)
			}
		}
		for i, ends := range [][2]string{{near, remote}, {remote, near}} {
			xfrm(fmt.Sprintf("state add src %s dst %s proto esp spi %d reqid %d mode tunnel aead rfc4106(gcm(aes)) 0x%040x 128 %s",
				ends[0], ends[1], 2*p.id+i+1000, p.id, p.id+1, strings.Join(more, " ")))
		}
		for _, dir := range []string{"out", "in", "fwd"} {
			source, destination, from, to := all, p.behind, near, remote
			if (h == router) != (dir == "out") {
				source, destination, from, to = p.behind, all, remote, near
			}
			xfrm(fmt.Sprintf("policy add src %s dst %s dir %s %s tmpl src %s dst %s proto esp reqid %d mode tunnel",
				source, destination, dir, strings.Join(more, " "), from, to, p.id))
		}
	}
}

// onTheWay counts packets on the Internet host: ESP from each side, and what should have been encrypted.
const onTheWay = `
table inet way {
	counter out { }
	counter back { }
	counter clear { }
	chain c {
		type filter hook prerouting priority raw
		meta l4proto esp iifname "eth0" counter name out return
		meta l4proto esp iifname "eth1" counter name back return
		ip daddr { 10.8.0.0/24, 10.9.0.0/24, 198.51.100.77 } counter name clear
		ip6 daddr { fd08::/64, fd09::/64, 2001:db8:9::77 } counter name clear
		ip saddr { 10.8.0.0/24, 10.9.0.0/24, 192.168.0.0/16, 198.51.100.77 } counter name clear
		ip6 saddr { fd00::/8, 2001:db8:9::77 } counter name clear
	}
}
`

// counted returns the packets of a named counter.
func counted(t *testing.T, h *lab.Host, family, table, counter string) (packets int) {
	t.Helper()
	text := h.Run("nft", "list", "counter", family, table, counter)
	_, after, found := strings.Cut(text, "packets ")
	if _, err := fmt.Sscan(after, &packets); !found || err != nil {
		t.Fatalf("counter %s: %v\n%s", counter, err, text)
	}
	return packets
}

// through checks that the tunnel carries ping, and TCP of both sides, in ESP.
func through(t *testing.T, n *lab.Network, far *lab.Host) {
	t.Helper()
	out, back := counted(t, n.Internet, "inet", "way", "out"), counted(t, n.Internet, "inet", "way", "back")
	for _, address := range []string{office, office6} {
		lab.Eventually(t, lab.Patience, func() error { return pinged(n.Server, address) })
	}
	for _, w := range []struct {
		from   *lab.Host
		to, by string
	}{
		{n.Server, office + ":8080", ""}, {n.Server, "[" + office6 + "]:8080", ""},
		{far, lab.Server + ":8080", office + ":0"}, {far, "[" + lab.Server6 + "]:8080", "[" + office6 + "]:0"},
	} {
		if err := echoes(w.from, w.to, w.by, lab.Patience); err != nil {
			t.Errorf("%s to %s through the tunnel: %v", w.from.Name, w.to, err)
		}
	}
	if counted(t, n.Internet, "inet", "way", "out") == out || counted(t, n.Internet, "inet", "way", "back") == back {
		t.Error("the tunnel carried nothing")
	}
}

func pinged(from *lab.Host, address string) error {
	r, err := from.Try("ping", "-n", "-c", "1", "-W", "2", address)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("%s pings %s: %s%s", from.Name, address, r.Stdout, r.Stderr)
	}
	return err
}

// echoes connects and has some bytes sent back.
func echoes(from *lab.Host, to, source string, within time.Duration) error {
	c, err := from.DialTCP(to, source, within)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Echo(10_000)
}

// refusedAs connects until a packet was dropped with a reason. No connection may succeed.
func refusedAs(t *testing.T, n *lab.Network, reason string, from *lab.Host, to, source string) {
	t.Helper()
	count := func() float64 {
		return home.Scrape(t, n, "hairpin_packets_dropped_total", fmt.Sprintf("reason=%q", reason))
	}
	before := count()
	lab.Eventually(t, lab.Patience, func() error {
		if err := echoes(from, to, source, 300*time.Millisecond); err == nil {
			t.Fatalf("%s is served at %s", from.Name, to)
		}
		if count() == before {
			return fmt.Errorf("no packet of %s to %s was dropped with the reason %s", from.Name, to, reason)
		}
		return nil
	})
}

// TestIPsecTunnel: a forward never sends in the clear what a policy protects, to the target or to the client. The tunnel itself goes on,
// and so do other forwards. A target behind an xfrm interface is served, in ESP.
func TestIPsecTunnel(t *testing.T) {
	n := lab.NewNetwork6(t)
	// An xfrm interface has no Ethernet headers, but leaves the header of the ESP packet before what it has decrypted. This MAC address
	// begins as an IP header does.
	n.Router.SetHardwareAddr("wan0", net.HardwareAddr{0x46, 0, 0, 0, 0, 1})
	far := addFar(t, n)
	far.Address("lo", office+"/32", traveller+"/32", branch+"/32")
	far.Address6("lo", office6+"/128", traveller6+"/128", branch6+"/128")
	for i, network := range []string{"10.8.0.0/24", "fd08::/64", traveller, traveller6} {
		protect(t, n.Router, far, protection{behind: network, id: 1 + i})
	}
	if r, err := n.Router.Try("ip", "link", "add", "ipsec0", "type", "xfrm", "dev", "wan0", "if_id", "42"); err != nil || r.Code != 0 {
		lacking(t, "xfrm interface: not in this kernel: %v %s", err, r.Stderr)
	}
	for i, network := range []string{"10.9.0.0/24", "fd09::/64"} {
		protect(t, n.Router, far, protection{behind: network, id: 10 + i, virtual: []string{"if_id", "42"}})
	}
	n.Router.Enable6()
	n.Router.MTU("ipsec0", 1400)
	n.Router.Up("ipsec0")
	n.Router.Run("ip", "route", "add", "10.9.0.0/24", "dev", "ipsec0")
	n.Router.Run("ip", "-6", "route", "add", "fd09::/64", "dev", "ipsec0")
	n.Internet.RunInput(onTheWay, "nft", "-f", "-")
	for _, h := range []*lab.Host{n.Server, far} {
		h.ServeTCP(":8080")
		h.ServeTCP("[::]:8080")
	}
	through(t, n, far)
	config := func(mode string) string {
		text := home.Config(mode, "[icmp]\nrefuse = [\"lan\", \"wan\"]\n"+home.Forwards+home.Forwards6+behindTunnels)
		return strings.Replace(text, `"lan1"`, `"lan1", "ipsec0"`, 1)
	}
	hp := lab.NewHairpin(n.Router, config("tc"))
	hp.Start()
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n, hp := n.For(t), hp.For(t)
			n.SetOffloads(home.OffloadsFor(mode))
			hp.Write(config(mode))
			hp.Reload()
			besideIPsec(t, n, far.For(t))
			through(t, n, far.For(t))
		})
	}
	namesPolicies(t, hp)
	if packets := counted(t, n.Internet, "inet", "way", "clear"); packets != 0 {
		t.Errorf("%d packets travelled unencrypted", packets)
	}
}

// besideIPsec uses forwards that policies protect, and others.
func besideIPsec(t *testing.T, n *lab.Network, far *lab.Host) {
	t.Helper()
	for i, external := range []string{lab.External, "[" + lab.External6 + "]"} {
		for _, client := range []*lab.Host{n.Client, n.Internet} {
			refusedAs(t, n, "ipsec", client, external+":81", "")
		}
		refusedAs(t, n, "ipsec", far, external+":80", netip.AddrPortFrom(netip.MustParseAddr([]string{traveller, traveller6}[i]), 0).String())
		for _, client := range []*lab.Host{n.Client, n.Internet, n.Guest} {
			if err := echoes(client, external+":80", "", lab.Patience); err != nil {
				t.Errorf("%s at %s:80, which no policy protects: %v", client.Name, external, err)
			}
		}
		before := counted(t, n.Internet, "inet", "way", "out")
		if err := echoes(n.Client, external+":82", "", lab.Patience); err != nil {
			t.Errorf("%s:82, behind an xfrm interface: %v", external, err)
		}
		if counted(t, n.Internet, "inet", "way", "out") == before {
			t.Errorf("%s:82 was not reached through the xfrm interface", external)
		}
	}
}

// namesPolicies checks which policies the commands warn of.
func namesPolicies(t *testing.T, hp *lab.Hairpin) {
	t.Helper()
	for _, command := range []string{"check", "status"} {
		r, err := hp.Try(command)
		said := r.Stdout + r.Stderr
		for _, network := range []string{"0.0.0.0/0 to 10.8.0.0/24", "::/0 to fd08::/64", traveller + "/32 and " + traveller6 + "/128"} {
			if err != nil || !strings.Contains(said, "IPsec policy") || !strings.Contains(said, network) {
				t.Errorf("%s does not name the policy %s: %v\n%s", command, network, err, said)
			}
		}
		if strings.Contains(said, "10.9.0.0/24") || strings.Contains(said, "fd09::/64") {
			t.Errorf("%s warns of a policy of an xfrm interface, which encrypts what hairpin sends\n%s", command, said)
		}
	}
}
