// SPDX-License-Identifier: Apache-2.0

package setups

import (
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hairpin/test/debian"
	"hairpin/test/lab"
)

const (
	networkManager = "NetworkManager, WAN by DHCP, dual stack"
	firewalld      = "firewalld"
)

// inDebian are the sections of setups.md that TestDebian runs.
var inDebian = []string{networkManager, firewalld}

// The addresses that the router gets later.
const (
	external2  = "203.0.113.3"
	external26 = "2001:db8:0:1::3"
)

// TestDebian runs the sections of setups.md whose programs would take over the network of this machine, on a Debian with hairpin as
// "make install" installs it.
func TestDebian(t *testing.T) {
	t.Parallel()
	needProgram(t, "mmdebstrap")
	root := debian.Make(t, "network-manager", "firewalld", "netbase", "nftables", "dnsmasq-base")
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
	}
	run("make", "--directory=../..", "--no-print-directory", "install-files", "BINARY="+lab.Binary(t), "DESTDIR="+root)
	run("systemctl", "--root="+root, "enable", "hairpin.service", "nftables.service")
	run("systemctl", "--root="+root, "disable", "firewalld.service")
	blocks := blocksOf(t, "setups.md")

	prepare := func(t *testing.T) *lab.Network {
		t.Helper()
		for _, b := range blocksIn(t, blocks, everyRouter, ipv6, networkManager) {
			if b.path != "" {
				debian.Write(t, root, b.path, b.text, 0o644)
			} else {
				run("chroot", root, "sh", "-e", "-c", b.text)
			}
		}
		return provider(t, true)
	}

	t.Run(networkManager, func(t *testing.T) {
		n := prepare(t)
		first := lease(t, n, lab.External, lab.External6)
		m := debian.Boot(t, n.Router, root)
		works(t, n, lab.External, lab.External6)
		check(t, m, "inet filter forward")

		first.Signal(unix.SIGTERM)
		first.Wait()
		lease(t, n, external2, external26)
		m.Run("nmcli", "connection", "up", "wan0")
		works(t, n, external2, external26)

		m.Run("nmcli", "connection", "modify", "lan0", "ipv4.method", "shared")
		m.Run("nmcli", "connection", "up", "lan0")
		works(t, n, external2, external26)
		if rules := m.Run("nft", "list", "table", "ip", "nm-shared-lan0"); !strings.Contains(rules, "192.168.1.0/24 masquerade") || !strings.Contains(rules, "oifname \"lan0\" reject") {
			t.Errorf("the rules of method=shared are not those that the page describes:\n%s", rules)
		}
		if group := m.Run("systemctl", "status", "--no-pager", "NetworkManager"); !strings.Contains(group, "dnsmasq") {
			t.Errorf("method=shared has started no dnsmasq:\n%s", group)
		}
	})

	t.Run(firewalld, func(t *testing.T) {
		n := prepare(t)
		lease(t, n, lab.External, lab.External6)
		m := debian.Boot(t, n.Router, root)
		for _, b := range blocksIn(t, blocks, firewalld) {
			m.Run("sh", "-e", "-c", b.text)
		}
		m = m.Reboot()
		works(t, n, lab.External, lab.External6)
		// firewalld accepts what a rule of netfilter has translated, so hairpin sees no chain that would drop the packets.
		check(t, m, "")

		// A forward port of firewalld that is also a forward.
		serveWeb(t, n.Server, ":8081", "firewalld")
		const port = "port=80:proto=tcp:toport=8081:toaddr=" + lab.Server
		m.Run("firewall-cmd", "--zone=external", "--add-forward-port="+port)
		wantAnswer(t, n.Internet, lab.External+":80", saysTo("server", lab.InternetSource))
		if said, err := m.Try("hairpin", "check"); err != nil || !strings.Contains(said.Stderr, "translates the destination of the same packets") {
			t.Errorf("hairpin check does not see the forward port: %v\n%s", err, said.Stderr)
		}
		if read := m.Run("sh", "-e", "-c", "nft -j list ruleset | hairpin import nft - --lan lan0"); !strings.Contains(read, lab.Server+":8081") {
			t.Errorf("hairpin import does not read the forward port:\n%s", read)
		}
		m.Run("hairpin", "forward", "disable", "web")
		wantAnswer(t, n.Internet, lab.External+":80", saysTo("firewalld", lab.InternetSource))

		// The zone drop has an effect on the forward port, but none on the forward.
		m.Run("firewall-cmd", "--zone=drop", "--add-source="+lab.InternetSource)
		if got, err := answerWithin(n.Internet, lab.External+":80", lab.Patience/10); err == nil {
			t.Errorf("the zone drop lets a client pass to the forward port: %q", got)
		}
		m.Run("hairpin", "forward", "enable", "web")
		wantAnswer(t, n.Internet, lab.External+":80", saysTo("server", lab.InternetSource))
	})
}

// check runs hairpin check on a Debian. It must warn of this chain, and of nothing else.
func check(t *testing.T, m *debian.Machine, chain string) {
	t.Helper()
	said, err := m.Try("hairpin", "check")
	if err != nil {
		t.Fatal(err)
	}
	wantBypassed(t, said, chain)
}
