// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"strings"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// remote is a target at the other end of a VPN, in both families.
const remote = `
[[forward]]
name = "remote"
protocol = ["tcp", "udp"]
port = "81"
to = "10.8.0.5:8080"

[[forward]]
name = "remote6"
protocol = ["tcp", "udp"]
port = "81"
to = "[fd08::5]:8080"
`

// protect adds an IPsec policy for packets that leave a host, without a state: the kernel then sends nothing of these
// packets. more are further words of ip-xfrm(8).
func protect(h *lab.Host, source, destination string, more ...string) {
	protocol := []string{"0.0.0.1", "0.0.0.2"}
	if strings.Contains(destination, ":") {
		protocol = []string{"::1", "::2"}
	}
	words := append([]string{"ip", "xfrm", "policy", "add", "dir", "out", "src", source, "dst", destination}, more...)
	h.Run(append(words, "tmpl", "src", protocol[0], "dst", protocol[1], "proto", "esp", "mode", "tunnel")...)
}

// countedIPsec waits until a drop with the reason ipsec is counted, after before of them.
func countedIPsec(t *testing.T, n *lab.Network, before float64) {
	t.Helper()
	lab.Eventually(t, lab.Patience, func() error {
		if now := home.Scrape(t, n, "hairpin_packets_dropped_total", `reason="ipsec"`); now <= before {
			return fmt.Errorf("%v packets are counted with the reason ipsec, and %v before", now, before)
		}
		return nil
	})
}

// TestIPsecTarget: nothing for a target that a policy protects leaves unencrypted. Each command that takes the forward
// warns. A policy that is removed, and one that lets the packets pass before it, protect nothing.
func TestIPsecTarget(t *testing.T) {
	t.Parallel()
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			n.SetOffloads(home.OffloadsFor(mode))
			// The Internet host answers for the target, should anything get there.
			n.Internet.Address("lo", "10.8.0.5/32")
			n.Internet.Address6("lo", "fd08::5/128")
			n.Internet.Route("eth0", "192.168.1.0/24", lab.External, "")
			n.Internet.Run("ip", "-6", "route", "add", "fd00:1::/64", "via", lab.External6, "dev", "eth0")
			n.Internet.ServeTCP("10.8.0.5:8080")
			n.Internet.ServeTCP("[fd08::5]:8080")
			protect(n.Router, "0.0.0.0/0", "10.8.0.0/24")
			protect(n.Router, "::/0", "fd08::/64")
			hp := home.Start(t, n, mode, remote)
			externals := map[string]string{lab.External + ":81": "10.8.0.0/24", "[" + lab.External6 + "]:81": "fd08::/64"}
			seen := n.Internet.Watch("eth0", func(p *lab.Packet) bool { return p.Dst.Addr().String() == "10.8.0.5" })
			for external, network := range externals {
				before := home.Scrape(t, n, "hairpin_packets_dropped_total", `reason="ipsec"`)
				if err := serves(n.Client, external); err == nil {
					t.Errorf("%s: served past the policy for %s", external, network)
				}
				countedIPsec(t, n, before)
				for _, command := range []string{"check", "status", "apply"} {
					r, err := hp.Try(command)
					if err != nil || !strings.Contains(r.Stdout+r.Stderr, "IPsec policy") || !strings.Contains(r.Stdout+r.Stderr, network) {
						t.Errorf("%s does not warn of the policy for %s: %v\n%s%s", command, network, err, r.Stdout, r.Stderr)
					}
				}
			}
			// A new forward is told of the policy for its own target alone.
			for target, told := range map[string]int{"10.8.0.5:8080": 1, "[fd08::5]:8080": 1, "192.168.1.20:8080": 0, "[fd00:1::20]:8080": 0} {
				r, err := hp.Try("forward", "add", "new", "tcp", "82", "to", target)
				if said := strings.Count(r.Stderr, "IPsec polic"); err != nil || r.Code != 0 || said != told {
					t.Errorf("forward add to %s: %d warnings of policies, want %d: %v\n%s", target, said, told, err, r.Stderr)
				}
				hp.Run("forward", "del", "new")
			}
			if list := seen.Packets(); len(list) > 0 {
				t.Errorf("left unencrypted: %v", list)
			}

			n.Router.Run("ip", "xfrm", "policy", "add", "dir", "out", "src", "0.0.0.0/0", "dst", "10.8.0.5", "proto", "tcp", "priority", "0")
			n.Router.Run("ip", "xfrm", "policy", "delete", "dir", "out", "src", "0.0.0.0/0", "dst", "10.8.0.0/24")
			protect(n.Router, "0.0.0.0/0", "10.8.0.0/24", "priority", "5")
			n.Router.Run("ip", "xfrm", "policy", "delete", "dir", "out", "src", "::/0", "dst", "fd08::/64")
			for external := range externals {
				lab.Eventually(t, lab.Patience, func() error { return serves(n.Client, external) })
			}
		})
	}
}

// TestIPsecClient: a client whose answers a policy protects is refused, and hears nothing unencrypted. Its connections of
// before end when the policy is added. Other clients are served, and so is this client once the policy is gone.
func TestIPsecClient(t *testing.T) {
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.Server.ServeTCP(":8080")
			n.Server.ServeTCP("[::]:8080")
			home.Start(t, n, mode, "[icmp]\nrefuse = [\"lan\", \"wan\"]\n"+home.Forwards+home.Forwards6)
			home.Waiting(t, n.Internet)
			home.WaitingAt(t, n.Internet, "["+lab.External6+"]")
			stays := home.Waiting(t, n.Client)

			protect(n.Router, lab.External, lab.InternetSource)
			protect(n.Router, lab.External6, lab.InternetSource6)
			lab.Eventually(t, atOnce, func() error { return noneEstablished(n.Server, lab.InternetSource) })
			lab.Eventually(t, atOnce, func() error { return noneEstablished(n.Server, "["+lab.InternetSource6) })
			leaked := n.Internet.Watch("eth0", func(p *lab.Packet) bool { return p.Src.Addr() == home.ExternalAddress })
			for _, external := range []string{lab.External, "[" + lab.External6 + "]"} {
				before := home.Scrape(t, n, "hairpin_packets_dropped_total", `reason="ipsec"`)
				if serves(n.Internet, external+":80") == nil {
					t.Errorf("%s: the answers leave unencrypted", external)
				}
				countedIPsec(t, n, before)
			}
			if list := leaked.Packets(); len(list) > 0 {
				t.Errorf("left unencrypted: %v", list)
			}
			if err := stays.Echo(10_000); err != nil {
				t.Errorf("a connection that no policy protects: %v", err)
			}
			n.Router.Run("ip", "xfrm", "policy", "flush")
			for _, external := range []string{lab.External, "[" + lab.External6 + "]"} {
				lab.Eventually(t, lab.Patience, func() error { return serves(n.Internet, external+":80") })
			}
		})
	}
}
