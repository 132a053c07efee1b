// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"hairpin/test/bench/traffic"
	"hairpin/test/lab"
)

// site is a router, and the test that it belongs to.
type site struct {
	tb     testing.TB
	router *lab.Host
}

func (s site) must(what string, err error) {
	s.tb.Helper()
	if err != nil {
		s.tb.Fatalf("%s: %v", what, err)
	}
}

// contender is a translator in the comparison: a name, and how to set it up on a rig's router.
type contender struct {
	Name string
	// bare: the contender sends frames on unchanged.
	bare bool
	// setUp returns what this machine lacks for the contender; "": the contender takes part.
	setUp func(r *rig) (missing string)
}

const (
	nameNftables   = "nftables"
	nameFlowtable  = "nftables with flowtable"
	nameXDPForward = "xdp-forward"
	nameIptables   = "iptables-nft"
	nameXDPTx      = "bare XDP_TX"
	nameXDPRedir   = "bare XDP redirect"
	nameTC         = "bare TC redirect"
	nameHairXDP    = "hairpin XDP"
	nameHairTC     = "hairpin TC"
	// The second rigs are for the A/A rows.
	nameSecondXDP = nameHairXDP + second
	nameSecondTC  = nameHairTC + second

	second = ", second rig"
)

// contenders returns the contenders for a path, in the order of the table.
func contenders(w way) []contender {
	always := func(setUp func(r *rig)) func(r *rig) string {
		return func(r *rig) string {
			setUp(r)
			return ""
		}
	}
	runs := func(mode string) func(r *rig) string {
		return always(func(r *rig) { r.pins = r.hairpin(mode, hairpinOptions{}).Dir })
	}
	return []contender{
		{Name: nameXDPTx, bare: true, setUp: always((*rig).bareTransmit)},
		{Name: nameXDPRedir, bare: true, setUp: always(func(r *rig) { r.bareRedirect(w) })},
		{Name: nameHairXDP, setUp: runs("xdp")},
		{Name: nameSecondXDP, setUp: runs("xdp")},
		{Name: nameTC, bare: true, setUp: always(func(r *rig) { r.bareTC(w) })},
		{Name: nameHairTC, setUp: runs("tc")},
		{Name: nameSecondTC, setUp: runs("tc")},
		{Name: nameNftables, setUp: always(func(r *rig) { r.nftables() })},
		{Name: nameFlowtable, setUp: func(r *rig) string { return r.flowtable() }},
		{Name: nameXDPForward, setUp: func(r *rig) string { return r.xdpForward() }},
		{Name: nameIptables, setUp: always(func(r *rig) { r.iptables() })},
	}
}

func (r *rig) bareTransmit() {
	r.must("bare XDP_TX", r.router.Do(func() error { return r.traffic.TransmitXDP(r.router.Index(r.lanDev)) }))
}

// bareRedirect and bareTC redirect lan0 to itself; for path forwarded, wan0 and lan0 to each other.
func (r *rig) bareRedirect(w way) { r.join(w, (*traffic.Traffic).RedirectXDP) }

func (r *rig) bareTC(w way) { r.join(w, (*traffic.Traffic).RedirectTC) }

func (r *rig) join(w way, redirect func(t *traffic.Traffic, in, out int) error) {
	r.tb.Helper()
	pairs := [][2]string{{"lan0", "lan0"}}
	if w == forwarded {
		pairs = [][2]string{{"wan0", "lan0"}, {"lan0", "wan0"}}
	}
	for _, pair := range pairs {
		// Each loaded object can redirect to one device only.
		t, err := traffic.Load()
		r.must("load", err)
		r.tb.Cleanup(func() { t.Close() })
		r.must("attach bare redirect", r.router.Do(func() error {
			return redirect(t, r.router.Index(pair[0]), r.router.Index(pair[1]))
		}))
	}
}

// nftables sets up equal forwards by DNAT and masquerade, to the first LAN or to these LANs.
func (s site) nftables(lans ...segment) {
	s.conntrack()
	if len(lans) == 0 {
		lans = []segment{firstLAN}
	}
	var forwards, masquerades strings.Builder
	for _, lan := range lans {
		for i := range ports {
			fmt.Fprintf(&forwards, "%d : %s . %d, ", lan.firstPort+i, lan.server, targetPort+i)
		}
		fmt.Fprintf(&masquerades, "oifname %q ip saddr %s ip daddr %s masquerade\n", lan.lanDev, lan.network, lan.server)
	}
	s.router.RunInput(fmt.Sprintf(`
		table ip nat {
			map forwards {
				type inet_service : ipv4_addr . inet_service
				elements = { %s }
			}
			chain prerouting {
				type nat hook prerouting priority dstnat
				ip daddr %s dnat ip to udp dport map @forwards
				ip daddr %[2]s tcp dport 80 dnat to %[3]s:8080
				ip daddr %[2]s tcp dport 5201 dnat to %[3]s
			}
			chain postrouting {
				type nat hook postrouting priority srcnat
				%[4]s
			}
		}`, forwards.String(), external, server, masquerades.String()), "nft", "-f", "-")
}

// flowtable sets up nftables with a flowtable, by which established connections bypass most of netfilter.
func (s site) flowtable() (missing string) {
	s.tb.Helper()
	r, err := s.router.TryInput(`
		table ip fast {
			flowtable established {
				hook ingress priority filter
				devices = { lan0, wan0 }
			}
			chain forward {
				type filter hook forward priority filter
				flow add @established
			}
		}`, "nft", "-f", "-")
	s.must("try a flowtable", err)
	if r.Code != 0 {
		return "the kernel has no flowtables (CONFIG_NF_FLOW_TABLE, CONFIG_NFT_FLOW_OFFLOAD)"
	}
	s.nftables()
	return ""
}

// xdpForward sets up nftables with a flowtable, and xdp-forward, which looks up the flowtable in XDP.
func (s site) xdpForward() (missing string) {
	s.tb.Helper()
	var lacks []string
	if _, err := exec.LookPath("xdp-forward"); err != nil {
		lacks = append(lacks, "the program xdp-forward of xdp-tools is not installed")
	}
	if text := s.flowtable(); text != "" {
		lacks = append(lacks, text)
	}
	if len(lacks) > 0 {
		return strings.Join(lacks, ", and ")
	}
	r, err := s.router.Try("xdp-forward", "load", "-f", "flowtable", "lan0", "wan0")
	s.must("try xdp-forward", err)
	if r.Code != 0 {
		return "xdp-forward cannot look up a flowtable here: " + strings.Join(strings.Fields(r.Stdout+r.Stderr), " ")
	}
	// libxdp pins its programs in the machine's bpffs, so they would outlive the namespace.
	s.tb.Cleanup(func() { s.router.Run("xdp-forward", "unload", "lan0", "wan0") })
	return ""
}

// iptables sets up equal forwards by iptables-nft.
func (s site) iptables() {
	s.conntrack()
	for _, rule := range []string{
		fmt.Sprintf("PREROUTING -d %s -p udp --dport %d:%d -j DNAT --to-destination %s:%d-%d/%d",
			external, externalPort, externalPort+ports-1, server, targetPort, targetPort+ports-1, externalPort),
		fmt.Sprintf("POSTROUTING -o lan0 -s 192.168.1.0/24 -d %s -j MASQUERADE", server),
	} {
		s.router.Run(append([]string{"iptables-nft", "-t", "nat", "-A"}, strings.Fields(rule)...)...)
	}
}

// conntrack sets the UDP timeouts of conntrack to hairpin's timeout in hairpinConfig.
func (s site) conntrack() {
	s.router.Sysctl("net/netfilter/nf_conntrack_udp_timeout", "3600")
	s.router.Sysctl("net/netfilter/nf_conntrack_udp_timeout_stream", "3600")
}

// hairpinOptions are the settings that differ in some rows of the table.
type hairpinOptions struct {
	connections int       // max_connections; 0: 262144, the default of nf_conntrack above 4 GiB of memory
	forwards    string    // more forwards, in TOML
	lans        []segment // nil: the first LAN
}

func (s site) hairpin(mode string, opts hairpinOptions) *lab.Hairpin {
	hp := lab.NewHairpin(s.router, hairpinConfig(mode, opts))
	hp.Start()
	return hp
}

// hairpinConfig gives reflected connections all ports from 1024, as masquerade does: the flows of one client outnumber the default ports.
func hairpinConfig(mode string, opts hairpinOptions) string {
	connections := cmp.Or(opts.connections, 262144)
	if len(opts.lans) == 0 {
		opts.lans = []segment{firstLAN}
	}
	var devices []string
	var measured strings.Builder
	for _, lan := range opts.lans {
		devices = append(devices, strconv.Quote(lan.lanDev))
		fmt.Fprintf(&measured, `[[forward]]
name = "measured-%s"
protocol = ["udp"]
port = "%d-%d"
to = "%s:%d-%d"
`, lan.lanDev, lan.firstPort, lan.firstPort+ports-1, lan.server, targetPort, targetPort+ports-1)
	}
	return fmt.Sprintf(`version = 1
[interfaces]
wan = ["wan0"]
lan = [%s]
[datapath]
mode = %q
xdp_tx = "on"
max_connections = %d
max_per_source = %[3]d
[reflection]
ports = "1024-65535"
[timeouts]
udp = "1h"
[metrics]
listen = ""
%[4]s[[forward]]
name = "web"
protocol = ["tcp"]
port = "80"
to = "%[5]s:8080"
[[forward]]
name = "bulk"
protocol = ["tcp"]
port = "5201"
to = "%[5]s:5201"
%[6]s`, strings.Join(devices, ", "), lab.DeviceMode(mode), connections, measured.String(), server, opts.forwards)
}
