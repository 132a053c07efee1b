// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
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
	// possible reports whether this kernel can run the contender; nil: every kernel can.
	possible func(r *rig) bool
	setUp    func(r *rig)
}

const (
	nameNftables  = "nftables"
	nameFlowtable = "nftables with flowtable"
	nameIptables  = "iptables-nft"
	nameXDPTx     = "bare XDP_TX"
	nameXDPRedir  = "bare XDP redirect"
	nameTC        = "bare TC redirect"
	nameHairXDP   = "hairpin XDP"
	nameHairTC    = "hairpin TC"
)

// contenders returns the contenders for a path, in the order of the table.
func contenders(w way) []contender {
	list := []contender{
		{Name: nameXDPTx, bare: true, setUp: (*rig).bareTransmit},
		{Name: nameXDPRedir, bare: true, setUp: func(r *rig) { r.bareRedirect(w) }},
		{Name: nameHairXDP, setUp: func(r *rig) { r.pins = r.hairpin("xdp", hairpinOptions{}).Dir }},
		{Name: nameTC, bare: true, setUp: func(r *rig) { r.bareTC(w) }},
		{Name: nameHairTC, setUp: func(r *rig) { r.pins = r.hairpin("tc", hairpinOptions{}).Dir }},
		{Name: nameNftables, setUp: func(r *rig) { r.nftables() }},
		{Name: nameFlowtable, possible: func(r *rig) bool { return r.flowtable() }, setUp: func(r *rig) { r.nftables() }},
		{Name: nameIptables, setUp: func(r *rig) { r.iptables() }},
	}
	if w == forwarded {
		return list[1:] // XDP_TX can only send a frame back to the interface that it came in by
	}
	return list
}

func (r *rig) bareTransmit() {
	r.must("bare XDP_TX", r.router.Do(func() error { return r.traffic.TransmitXDP(r.router.Index("lan0")) }))
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

// nftables sets up equal forwards by DNAT and masquerade.
func (s site) nftables() {
	s.conntrack()
	var forwards strings.Builder
	for i := range ports {
		fmt.Fprintf(&forwards, "%d : %s . %d, ", externalPort+i, server, targetPort+i)
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
				oifname "lan0" ip saddr 192.168.1.0/24 ip daddr %[3]s masquerade
			}
		}`, forwards.String(), external, server), "nft", "-f", "-")
}

// flowtable adds a flowtable, by which established connections bypass most of netfilter. False: this kernel has no flowtables.
func (s site) flowtable() bool {
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
	return r.Code == 0
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
	connections int    // max_connections; 0: 262144, the default of nf_conntrack above 4 GiB of memory. A quarter of them is for protocols other than TCP
	forwards    string // more forwards, in TOML
}

func (s site) hairpin(mode string, opts hairpinOptions) *lab.Hairpin {
	hp := lab.NewHairpin(s.router, hairpinConfig(mode, opts))
	hp.Start()
	return hp
}

// hairpinConfig gives reflected connections all ports from 1024, as masquerade does: the flows of one client outnumber the default ports.
func hairpinConfig(mode string, opts hairpinOptions) string {
	connections := opts.connections
	if connections == 0 {
		connections = 262144
	}
	return fmt.Sprintf(`version = 1
[interfaces]
wan = ["wan0"]
lan = ["lan0"]
[datapath]
mode = %q
max_connections = %d
max_per_source = %[2]d
[reflection]
ports = "1024-65535"
[timeouts]
udp = "1h"
[metrics]
listen = ""
[[forward]]
name = "measured"
protocol = ["udp"]
port = "%d-%d"
to = "%s:%d-%d"
[[forward]]
name = "web"
protocol = ["tcp"]
port = "80"
to = "%[5]s:8080"
[[forward]]
name = "bulk"
protocol = ["tcp"]
port = "5201"
to = "%[5]s:5201"
%[8]s`, lab.DeviceMode(mode), connections, externalPort, externalPort+ports-1, server, targetPort, targetPort+ports-1, opts.forwards)
}
