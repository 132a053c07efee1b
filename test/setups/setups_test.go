// SPDX-License-Identifier: Apache-2.0

package setups

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"hairpin/test/lab"
)

// everyRouter is the section of setups.md whose files every router has.
const everyRouter = "Every router"

// ipv6 is the section whose files every router with IPv6 has.
const ipv6 = "IPv6"

// setup runs the tools that read the files of a section of setups.md.
type setup struct {
	section  string
	dhcp     bool // the provider gives the WAN's address by DHCP
	dual     bool
	programs []string
	run      func(t *testing.T, m *machine)
}

var setups = []setup{
	{section: "ifupdown, WAN by DHCP", dhcp: true, programs: []string{"ifup", "dhclient"}, run: func(t *testing.T, m *machine) {
		m.Start(m.service("sh", "-c", "ifup -a && exec sleep infinity")...)
		firewall(m)
	}},
	{section: "systemd-networkd, static addresses, dual stack", dual: true, programs: []string{"/lib/systemd/systemd-networkd"}, run: func(t *testing.T, m *machine) {
		// The directory is RuntimeDirectory= of the unit.
		m.Start(m.service("sh", "-c", "install -d -o systemd-network /run/systemd/netif /run/systemd/netif/links /run/systemd/netif/leases &&"+
			" SYSTEMD_LOG_TARGET=console exec /lib/systemd/systemd-networkd")...)
		firewall(m)
	}},
}

// notRun are the sections of setups.md whose files no test reads, with the reason. TestDevices of test/kernels tests the same with PPPoE.
var notRun = map[string]string{
	"PPPoE":            "the kernel may have no PPP; test/kernels dials in by pppd and pppoe-server",
	"OpenWrt (netifd)": "netifd is in no Debian package",
}

// firewall loads the page's rules.
func firewall(m *machine) { m.Run(m.in("nft", "-f", "/etc/nftables.conf")...) }

// TestSetups writes the files of each section of setups.md, has the real tools read them, and looks whether the forward serves everybody, and
// whether the LAN has the Internet. hairpin starts before the interfaces have addresses, as with the package.
func TestSetups(t *testing.T) {
	blocks := blocksOf(t, "setups.md")
	for _, s := range setups {
		t.Run(s.section, func(t *testing.T) {
			t.Parallel()
			for _, name := range s.programs {
				needProgram(t, name)
			}
			n := provider(t, s.dual)
			if s.dhcp {
				lease(t, n, lab.External, "")
			}
			m := newMachine(t, n.Router)
			sections, external6 := []string{everyRouter, s.section}, ""
			if s.dual {
				sections, external6 = append(sections, ipv6), lab.External6
			}
			configuration := m.writeFiles(t, blocks, sections...)
			m.Run(m.in("sysctl", "--quiet", "--load=/etc/sysctl.d/90-router.conf")...)
			hp := lab.NewHairpin(n.Router, configuration)
			hp.Run("check")
			hp.Start()
			s.run(t, m)
			works(t, n, lab.External, external6)
			wantBypassed(t, hp.TryInput("", "check"), "inet filter forward")
		})
	}
	for _, b := range blocks {
		_, no := notRun[b.section]
		for _, s := range setups {
			no = no || s.section == b.section
		}
		if !no && !slices.Contains(inDebian, b.section) && b.section != everyRouter && b.section != ipv6 {
			t.Errorf("nothing runs the files of %q", b.section)
		}
	}
}

// wantBypassed checks that hairpin check warns of a chain that the forward passes by, and of nothing else; without a chain, of nothing.
func wantBypassed(t *testing.T, said lab.Result, chain string) {
	t.Helper()
	warnings := 0
	if chain != "" {
		warnings, chain = 1, "the chain "+chain+" would drop these packets"
	}
	if said.Code != 0 || strings.Count(said.Stderr, "warning: ") != warnings || !strings.Contains(said.Stderr, chain) {
		t.Errorf("hairpin check: exit code %d\n%s%swant %d warnings: %q", said.Code, said.Stdout, said.Stderr, warnings, chain)
	}
}

// writeFiles writes the files of these sections of a page. It returns hairpin's configuration: hairpin.toml and forwards.d.
func (m *machine) writeFiles(t *testing.T, blocks []block, sections ...string) (configuration string) {
	t.Helper()
	for _, b := range blocksIn(t, blocks, sections...) {
		switch {
		case strings.HasPrefix(b.path, "/etc/hairpin/"):
			configuration += b.text
		case b.path != "":
			m.write(t, b.path, b.text)
		}
	}
	return configuration
}

// provider makes the usual network, whose router has no address yet, and the server with a web site.
func provider(t *testing.T, dual bool) *lab.Network {
	t.Helper()
	make := lab.NewNetwork
	if dual {
		make = lab.NewNetwork6
	}
	n := make(t)
	for _, dev := range []string{"wan0", "lan0", "lan1"} {
		n.Router.Run("ip", "address", "flush", "dev", dev)
		if dev != "lan1" {
			n.Router.Down(dev)
		}
	}
	n.Router.Sysctl("net/ipv4/ip_forward", "0")
	serveWeb(t, n.Server, ":8080", "server")
	serveWeb(t, n.Internet, ":80", "internet")
	if dual {
		// The DHCP server wants an address with the length of the prefix.
		n.Internet.Run("ip", "-6", "address", "delete", lab.Gateway6, "dev", "eth0")
		n.Internet.Run("ip", "-6", "address", "add", lab.Gateway6+"/64", "dev", "eth0", "noprefixroute", "nodad")
		serveWeb(t, n.Server, "[::]:8080", "server6")
		// The link-local address by which the hosts know the router is gone, too.
		for _, h := range []*lab.Host{n.Client, n.Server} {
			h.Run("ip", "-6", "route", "replace", "default", "via", lab.RouterLAN6)
		}
	}
	return n
}

// lease has the provider give these addresses to the router, by DHCP and, unless external6 is empty, by router advertisements and DHCPv6.
func lease(t *testing.T, n *lab.Network, external, external6 string) *lab.Process {
	t.Helper()
	needProgram(t, "dnsmasq")
	command := []string{"dnsmasq", "--keep-in-foreground", "--port=0", "--user=root", "--pid-file=", "--conf-file=", "--dhcp-authoritative", "--interface=eth0",
		"--leasefile-ro", "--dhcp-range=" + external + "," + external + ",255.255.255.0,1h", "--dhcp-option=option:router," + lab.Gateway}
	if external6 != "" {
		command = append(command, "--enable-ra", "--dhcp-range="+external6+","+external6+",64,1h")
	}
	return n.Internet.Start(command...)
}

// works checks the forward from every side, and the LAN's way to the Internet. The router has these addresses; external6 may be empty.
func works(t *testing.T, n *lab.Network, external, external6 string) {
	t.Helper()
	lab.Eventually(t, 2*lab.Patience, func() error {
		if routes := n.Router.Run("ip", "route"); !strings.Contains(routes, "default via "+lab.Gateway+" dev wan0") || !strings.Contains(routes, "192.168.1.0/24 dev lan0") {
			return fmt.Errorf("routes:\n%s", routes)
		}
		return nil
	})
	asks := []ask{
		{n.Internet, external + ":80", saysTo("server", lab.InternetSource)},
		{n.Client, external + ":80", saysTo("server", lab.RouterLAN)},
		{n.Server, external + ":80", saysTo("server", lab.RouterLAN)},
		{n.Router, external + ":80", saysTo("server", lab.RouterLAN)},
		{n.Client, lab.Gateway + ":80", saysTo("internet", external)},
	}
	if external6 != "" {
		asks = append(asks,
			ask{n.Internet, "[" + external6 + "]:80", saysTo("server6", lab.InternetSource6)},
			ask{n.Client, "[" + external6 + "]:80", saysTo("server6", lab.RouterLAN6)},
			ask{n.Router, "[" + external6 + "]:80", saysTo("server6", lab.RouterLAN6)})
	}
	for _, a := range asks {
		// hairpin follows an address within moments.
		var got string
		lab.Within(lab.Patience, func() bool {
			var err error
			if got, err = answerWithin(a.from, a.address, lab.Patience/10); err != nil {
				got = err.Error()
			}
			return got == a.want
		})
		if got != a.want {
			t.Errorf("%s asks %s: %q, want %q", a.from.Name, a.address, got, a.want)
		}
	}
}
