// SPDX-License-Identifier: Apache-2.0

package setups

import (
	"fmt"
	"strings"
	"testing"

	"hairpin/test/lab"
)

// everyRouter is the section of setups.md whose files every router has.
const everyRouter = "Every router"

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
			n := provider(t, s)
			m := newMachine(t, n.Router)
			configuration := m.writeFiles(t, blocks, everyRouter, s.section)
			m.Run(m.in("sysctl", "--quiet", "--load=/etc/sysctl.d/90-router.conf")...)
			hp := lab.NewHairpin(n.Router, configuration)
			hp.Run("check")
			hp.Start()
			s.run(t, m)
			s.works(t, n)
			if said := hp.Run("check"); strings.Contains(said, "warning") {
				t.Errorf("hairpin check: %s", said)
			}
		})
	}
	for _, b := range blocks {
		_, no := notRun[b.section]
		for _, s := range setups {
			no = no || s.section == b.section
		}
		if !no && b.section != everyRouter {
			t.Errorf("nothing runs the files of %q", b.section)
		}
	}
}

// writeFiles writes the files of these sections of a page. It returns hairpin's configuration: hairpin.toml and forwards.d.
func (m *machine) writeFiles(t *testing.T, blocks []block, sections ...string) (configuration string) {
	t.Helper()
	for _, section := range sections {
		found := false
		for _, b := range blocks {
			if b.section != section {
				continue
			}
			found = true
			switch {
			case strings.HasPrefix(b.path, "/etc/hairpin/"):
				configuration += b.text
			case b.path != "":
				m.write(t, b.path, b.text)
			}
		}
		if !found {
			t.Fatalf("the page has no section %q", section)
		}
	}
	return configuration
}

// provider makes the usual network, whose router has no address yet, and the server with a web site.
func provider(t *testing.T, s setup) *lab.Network {
	t.Helper()
	make := lab.NewNetwork
	if s.dual {
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
	if s.dual {
		serveWeb(t, n.Server, "[::]:8080", "server6")
		// The link-local address by which the hosts know the router is gone, too.
		for _, h := range []*lab.Host{n.Client, n.Server} {
			h.Run("ip", "-6", "route", "replace", "default", "via", lab.RouterLAN6)
		}
	}
	if s.dhcp {
		needProgram(t, "dnsmasq")
		n.Internet.Start("dnsmasq", "--keep-in-foreground", "--port=0", "--user=root", "--pid-file=", "--conf-file=", "--dhcp-authoritative", "--interface=eth0",
			"--leasefile-ro", "--dhcp-range=203.0.113.2,203.0.113.2,255.255.255.0,1h", "--dhcp-option=option:router,"+lab.Gateway)
	}
	return n
}

// works checks the forward from every side, and the LAN's way to the Internet.
func (s setup) works(t *testing.T, n *lab.Network) {
	t.Helper()
	lab.Eventually(t, 2*lab.Patience, func() error {
		if routes := n.Router.Run("ip", "route"); !strings.Contains(routes, "default via "+lab.Gateway+" dev wan0") || !strings.Contains(routes, "192.168.1.0/24 dev lan0") {
			return fmt.Errorf("routes:\n%s", routes)
		}
		return nil
	})
	asks := []ask{
		{n.Internet, lab.External + ":80", saysTo("server", lab.InternetSource)},
		{n.Client, lab.External + ":80", saysTo("server", lab.RouterLAN)},
		{n.Server, lab.External + ":80", saysTo("server", lab.RouterLAN)},
		{n.Router, lab.External + ":80", saysTo("server", lab.RouterLAN)},
		{n.Client, lab.Gateway + ":80", saysTo("internet", lab.External)},
	}
	if s.dual {
		asks = append(asks,
			ask{n.Internet, "[" + lab.External6 + "]:80", saysTo("server6", lab.InternetSource6)},
			ask{n.Client, "[" + lab.External6 + "]:80", saysTo("server6", lab.RouterLAN6)},
			ask{n.Router, "[" + lab.External6 + "]:80", saysTo("server6", lab.RouterLAN6)})
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
