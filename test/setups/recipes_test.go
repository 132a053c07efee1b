// SPDX-License-Identifier: Apache-2.0

package setups

import (
	"net/netip"
	"strings"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// recipe is a section of recipes.md, the servers that it leads to, and what they answer.
type recipe struct {
	section string
	prepare func(t *testing.T, n *lab.Network, blocks []block)
	servers []string // addresses and TCP ports in the LAN; the last one that answers has its address as its name
	asks    func(n *lab.Network) []ask
}

// ask is a question to an address, and the answer. Without an answer the client must not be served.
type ask struct {
	from          *lab.Host
	address, want string
}

const second = "203.0.113.10" // the NAS's public address

var recipes = []recipe{
	{section: "Mail server that sees its clients", servers: []string{"192.168.1.25:25", "192.168.1.25:587", "192.168.1.25:993"}, asks: func(n *lab.Network) (asks []ask) {
		for _, port := range []string{"25", "587", "993"} {
			server := "192.168.1.25:" + port
			asks = append(asks,
				ask{n.Internet, lab.External + ":" + port, saysTo(server, lab.InternetSource)},
				ask{n.Client, lab.External + ":" + port, saysTo(server, "198.18.1.50")})
		}
		return asks
	}},
	{section: "Game console", servers: []string{"192.168.1.30:3074"}, prepare: func(t *testing.T, n *lab.Network, _ []block) {
		console := n.Server.ServeUDP("192.168.1.30:3074")
		t.Cleanup(func() {
			// Both friends were seen by a public address.
			var seen []netip.Addr
			for peer := range console.Seen() {
				seen = append(seen, peer.Addr())
			}
			for _, peer := range seen {
				if peer != netip.MustParseAddr(lab.InternetSource) && peer != home.ExternalAddress {
					t.Errorf("the console has seen %v", peer)
				}
			}
			if len(seen) != 2 {
				t.Errorf("the console has seen %v, want two friends", seen)
			}
		})
	}, asks: func(n *lab.Network) []ask {
		return []ask{
			{n.Internet, lab.External + ":3074", saysTo("192.168.1.30:3074", lab.InternetSource)},
			{n.Client, lab.External + ":3074", saysTo("192.168.1.30:3074", lab.External)},
			{n.Internet, "udp " + lab.External + ":3074", "echo"},
			{n.Client, "udp " + lab.External + ":3074", "echo"},
		}
	}},
	{section: "NAS on a public address of its own", servers: []string{"192.168.1.40:443", "192.168.1.40:5001"}, prepare: func(t *testing.T, n *lab.Network, blocks []block) {
		for _, b := range blocks {
			switch b.language {
			case "sh":
				n.Router.Run("sh", "-e", "-c", b.text)
			case "nft":
				n.Router.RunInput(b.text, "nft", "-f", "-")
			}
		}
		n.Internet.Address("lo", "192.0.2.99/32") // from keeps it out
	}, asks: func(n *lab.Network) []ask {
		return []ask{
			{n.Internet, second + ":443", saysTo("192.168.1.40:443", lab.InternetSource)},
			{n.Client, second + ":443", saysTo("192.168.1.40:443", lab.RouterLAN)},
			{n.Client, second + ":5001", saysTo("192.168.1.40:5001", lab.RouterLAN)},
			{n.Router, "from " + second + " " + second + ":5001", ""}, // the source that the router's kernel takes
			{n.Router, "from " + lab.RouterLAN + " " + second + ":5001", "connected"},
			{n.Internet, "from 192.0.2.99 " + second + ":443", ""},
			{n.Internet, "from " + lab.InternetSource + " " + second + ":443", "connected"},
			{n.Server, "from 192.168.1.40 " + lab.Gateway + ":80", "connected"},
			{n.Server, lab.Gateway + ":80", saysTo("internet", lab.External)},
		}
	}},
	{section: "Reverse proxy with Let's Encrypt", servers: []string{"192.168.1.21:80", "192.168.1.21:443"}, asks: func(n *lab.Network) (asks []ask) {
		for _, port := range []string{"80", "443"} {
			for from, sees := range map[*lab.Host]string{n.Internet: lab.InternetSource, n.Client: lab.RouterLAN, n.Server: lab.RouterLAN, n.Router: lab.RouterLAN} {
				asks = append(asks, ask{from, lab.External + ":" + port, saysTo("192.168.1.21:"+port, sees)})
			}
		}
		return asks
	}},
	{section: "VPN clients", servers: []string{"192.168.1.20:443"}, prepare: func(t *testing.T, n *lab.Network, _ []block) {
		// A tun device in WireGuard's place: this kernel may have no WireGuard. The guest is the client on the road.
		lab.Tun(n.Router, "wg0", n.Guest, "vpn0")
		n.Router.Address("wg0", "10.8.0.1/24")
		n.Guest.Address("vpn0", "10.8.0.2/24")
		n.Guest.Route("vpn0", "0.0.0.0/0", "10.8.0.1", "")
	}, asks: func(n *lab.Network) []ask {
		return []ask{
			{n.Guest, lab.External + ":443", saysTo("192.168.1.20:443", "10.8.0.2")},
			{n.Client, lab.External + ":443", saysTo("192.168.1.20:443", lab.RouterLAN)},
			{n.Internet, lab.External + ":443", saysTo("192.168.1.20:443", lab.InternetSource)},
		}
	}},
}

// TestRecipes: hairpin takes the TOML of each recipe without a warning, and its forwards do what the recipe says.
func TestRecipes(t *testing.T) {
	all := make(map[string][]block)
	for _, b := range blocksOf(t, "recipes.md") {
		all[b.section] = append(all[b.section], b)
	}
	for _, r := range recipes {
		blocks := all[r.section]
		t.Run(r.section, func(t *testing.T) {
			t.Parallel()
			n := lab.NewNetwork(t)
			n.Router.RunInput(`table ip home { chain c { type nat hook postrouting priority srcnat; oifname wan0 masquerade; }; }`, "nft", "-f", "-")
			n.Router.Sysctl("net/ipv4/ip_local_reserved_ports", "61000-65535")
			serveWeb(t, n.Internet, ":80", "internet")
			for _, server := range r.servers {
				address := netip.MustParseAddrPort(server).Addr().String()
				if there := n.Server.Run("ip", "address", "show", "to", address); there == "" {
					n.Server.Address("eth0", address+"/24")
				}
				serveWeb(t, n.Server, server, server)
			}
			if r.prepare != nil {
				r.prepare(t, n, blocks)
			}
			hp := lab.NewHairpin(n.Router, configurationOf(t, blocks))
			if got := hp.TryInput("", "check"); got.Code != 0 || strings.Contains(got.Stderr, "warning") {
				t.Errorf("hairpin check: exit code %d\n%s%s", got.Code, got.Stdout, got.Stderr)
			}
			hp.Start()
			for _, a := range r.asks(n) {
				a.check(t)
			}
		})
		delete(all, r.section)
	}
	for section := range all {
		t.Errorf("nothing tests the recipe %q", section)
	}
}

// configurationOf is the configuration that a recipe is a part of.
func configurationOf(t *testing.T, blocks []block) string {
	t.Helper()
	text := ""
	for _, b := range blocks {
		if b.language == "toml" {
			text += b.text
		}
	}
	if text == "" {
		t.Fatal("the recipe has no TOML")
	}
	if !strings.Contains(text, "[interfaces]") {
		text = "[interfaces]\nwan = [\"wan0\"]\nlan = [\"lan0\"]\n\n" + text
	}
	return "version = 1\n\n" + text
}

func (a ask) check(t *testing.T) {
	t.Helper()
	address, datagram := strings.CutPrefix(a.address, "udp ")
	words := strings.Fields(address)
	switch {
	case datagram:
		c, err := a.from.DialUDP(address, "")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := lab.Exchange(c, 10, 1000); err != nil {
			t.Errorf("%s, %s: %v", a.from.Name, a.address, err)
		}
	case words[0] == "from":
		limit := lab.Patience
		if a.want == "" {
			limit = lab.Patience / 10
		}
		c, err := a.from.DialTCP(words[2], words[1]+":0", limit)
		if err == nil {
			c.Close()
		}
		if (err == nil) != (a.want != "") {
			t.Errorf("%s, %s: %v", a.from.Name, a.address, err)
		}
	default:
		wantAnswer(t, a.from, address, a.want)
	}
}
