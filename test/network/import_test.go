// SPDX-License-Identifier: Apache-2.0

package network

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"hairpin/test/lab"
)

// further are addresses of the router's WAN besides lab.External.
const further = "203.0.113.5"

// attempt is a client that connects. sees is the address of the client as the target sees it; "": the client is not served.
type attempt struct {
	from, protocol, to, source, sees string
	stays                            bool   // the rule is not translated, and stays
	differs                          string // sees with hairpin, if not the same: a program of the router has another address of the router
}

// translation is a set of rules as public documentation shows them. Each client is served by the rules, and then by hairpin
// with the imported file, in the same way.
type translation struct {
	name     string
	format   string // nft or iptables, or uci: then config is what the rules were made of
	rules    string // for "nft -f" or "iptables-restore"; with an empty line between, the second part is for ip6tables-restore
	config   string
	options  []string // of import
	tcp, udp []string // where the server listens
	attempts []attempt
}

const (
	internetSees, internetSees6 = lab.InternetSource, lab.InternetSource6
	up                          = `chain postrouting { type nat hook postrouting priority srcnat; oifname "wan0" masquerade; `
)

var translations = []translation{
	{name: "a list of ports", format: "nft", tcp: []string{":80", ":443"}, rules: `table ip nat {
	chain prerouting { type nat hook prerouting priority dstnat; iif "wan0" tcp dport { 80, 443 } dnat to 192.168.1.20; }
	` + up + `}
}`, attempts: []attempt{
		{from: "internet", to: "203.0.113.2:80", sees: internetSees}, {from: "internet", to: "203.0.113.2:443", sees: internetSees},
		{from: "client", to: "203.0.113.2:80"}, {from: "internet", to: "203.0.113.2:81"},
	}},
	{name: "a map of ports", format: "nft", tcp: []string{":80", ":8888"}, rules: `table ip nat {
	chain prerouting { type nat hook prerouting priority dstnat; iifname "wan0" dnat to tcp dport map { 80 : 192.168.1.20, 8888 : 192.168.1.20 }; }
	` + up + `}
}`, attempts: []attempt{{from: "internet", to: "203.0.113.2:80", sees: internetSees}, {from: "internet", to: "203.0.113.2:8888", sees: internetSees}}},
	{name: "a named map of addresses and ports", format: "nft", tcp: []string{":8080", ":8443"}, rules: `table ip nat {
	map ports { type inet_service : ipv4_addr . inet_service; elements = { 80 : 192.168.1.20 . 8080, 443 : 192.168.1.20 . 8443 } }
	chain prerouting { type nat hook prerouting priority dstnat; iifname "wan0" dnat ip to tcp dport map @ports; }
	` + up + `}
}`, attempts: []attempt{{from: "internet", to: "203.0.113.2:80", sees: internetSees}, {from: "internet", to: "203.0.113.2:443", sees: internetSees}}},
	{name: "both families in one table", format: "nft", tcp: []string{":8080", "[::]:8080"}, rules: `table inet nat {
	chain prerouting { type nat hook prerouting priority dstnat
		iifname "wan0" tcp dport 80 dnat ip to 192.168.1.20:8080
		iifname "wan0" tcp dport 80 dnat ip6 to [fd00:1::20]:8080; }
	` + up + `}
}`, attempts: []attempt{
		{from: "internet", to: "203.0.113.2:80", sees: internetSees}, {from: "internet", to: "[" + lab.External6 + "]:80", sees: internetSees6},
	}},
	{name: "a home router with reflection", format: "nft", tcp: []string{":8080"}, udp: []string{":5353"}, rules: `table inet home {
	chain prerouting { type nat hook prerouting priority dstnat
		ip daddr 203.0.113.2 tcp dport 80 dnat ip to 192.168.1.20:8080
		ip daddr 203.0.113.2 udp dport 53 dnat ip to 192.168.1.20:5353; }
	` + up + `iifname "lan0" oifname "lan0" ct status dnat masquerade; }
}`, attempts: []attempt{
		{from: "internet", to: "203.0.113.2:80", sees: internetSees}, {from: "client", to: "203.0.113.2:80", sees: lab.RouterLAN}, {from: "server", to: "203.0.113.2:80", sees: lab.RouterLAN},
		{from: "guest", to: "203.0.113.2:80", sees: lab.Guest}, {from: "client", protocol: "udp", to: "203.0.113.2:53", sees: lab.RouterLAN},
	}},
	{name: "every LAN client appears as the router", format: "nft", tcp: []string{":8080"}, rules: `table ip nat {
	chain prerouting { type nat hook prerouting priority dstnat; fib daddr type local tcp dport 80 dnat to 192.168.1.20:8080; }
	` + up + `iifname { "lan0", "lan1" } ip daddr 192.168.1.20 tcp dport 8080 masquerade; }
}`, attempts: []attempt{
		{from: "internet", to: "203.0.113.2:80", sees: internetSees}, {from: "client", to: "203.0.113.2:80", sees: lab.RouterLAN}, {from: "guest", to: "203.0.113.2:80", sees: lab.RouterLAN},
	}},
	{name: "every client appears as the router", format: "nft", tcp: []string{":8080"}, rules: `table ip nat {
	chain prerouting { type nat hook prerouting priority dstnat; ip daddr 203.0.113.2 tcp dport 80 dnat to 192.168.1.20:8080; }
	` + up + `ip daddr 192.168.1.20 tcp dport 8080 masquerade; }
}`, attempts: []attempt{
		{from: "internet", to: "203.0.113.2:80", sees: lab.RouterLAN}, {from: "client", to: "203.0.113.2:80", sees: lab.RouterLAN}, {from: "guest", to: "203.0.113.2:80", sees: lab.RouterLAN},
	}},
	{name: "reflection from the public address", format: "nft", tcp: []string{":8080"}, rules: `table ip nat {
	chain prerouting { type nat hook prerouting priority dstnat; ip daddr 203.0.113.2 tcp dport 80 dnat to 192.168.1.20:8080; }
	` + up + `iifname { "lan0", "lan1" } ip daddr 192.168.1.20 tcp dport 8080 snat to 203.0.113.2; }
}`, attempts: []attempt{
		{from: "internet", to: "203.0.113.2:80", sees: internetSees}, {from: "client", to: "203.0.113.2:80", sees: lab.External}, {from: "guest", to: "203.0.113.2:80", sees: lab.External},
	}},
	{name: "clients of some networks alone", format: "nft", tcp: []string{":8080", ":8081"}, rules: `table ip nat {
	set office { type ipv4_addr; flags interval; elements = { 198.51.100.0/24, 192.0.2.7 } }
	chain prerouting { type nat hook prerouting priority dstnat
		iifname "wan0" ip saddr @office tcp dport 80 dnat to 192.168.1.20:8080
		iifname "wan0" ip saddr != { 198.51.100.0/24 } tcp dport 81 dnat to 192.168.1.20:8081; }
	` + up + `}
}`, attempts: []attempt{
		{from: "internet", to: "203.0.113.2:80", sees: internetSees}, {from: "internet", source: lab.Gateway + ":0", to: "203.0.113.2:80"},
		{from: "internet", source: lab.Gateway + ":0", to: "203.0.113.2:81", sees: lab.Gateway}, {from: "internet", to: "203.0.113.2:81"},
	}},
	{name: "exceptions before the rule", format: "nft", tcp: []string{":8080"}, rules: `table ip nat {
	chain prerouting { type nat hook prerouting priority dstnat
		ip saddr 203.0.113.0/24 return
		iifname "wan0" tcp dport 80 dnat to 192.168.1.20:8080; }
	` + up + `}
}`, attempts: []attempt{{from: "internet", to: "203.0.113.2:80", sees: internetSees}, {from: "internet", source: lab.Gateway + ":0", to: "203.0.113.2:80"}}},
	{name: "1:1", format: "nft", tcp: []string{":80", ":22"}, rules: `table ip nat {
	chain prerouting { type nat hook prerouting priority dstnat; ip daddr 203.0.113.5 dnat to 192.168.1.20; }
	chain postrouting { type nat hook postrouting priority srcnat; ip saddr 192.168.1.20 oifname "wan0" snat to 203.0.113.5; oifname "wan0" masquerade; }
}`, attempts: []attempt{
		{from: "internet", to: further + ":80", sees: internetSees}, {from: "internet", to: further + ":22", sees: internetSees}, {from: "guest", to: further + ":80", sees: lab.Guest},
	}},
	{name: "DNS of a LAN", format: "nft", udp: []string{":53"}, tcp: []string{":53"}, rules: `table ip nat {
	chain prerouting { type nat hook prerouting priority dstnat
		iifname "lan1" ip daddr != 192.168.1.20 meta l4proto { tcp, udp } th dport 53 dnat to 192.168.1.20; }
	` + up + `}
}`, attempts: []attempt{
		{from: "guest", protocol: "udp", to: "198.51.100.99:53", sees: lab.Guest}, {from: "guest", to: "198.51.100.99:53", sees: lab.Guest}, {from: "client", to: "203.0.113.1:53"},
	}},
	{name: "a redirect to the router stays", format: "nft", tcp: []string{":8080"}, rules: `table ip nat {
	chain prerouting { type nat hook prerouting priority dstnat
		iifname "wan0" tcp dport 22 redirect to :2222
		iifname "wan0" tcp dport 80 dnat to 192.168.1.20:8080; }
	` + up + `}
}`, attempts: []attempt{{from: "internet", to: "203.0.113.2:22", sees: internetSees, stays: true}, {from: "internet", to: "203.0.113.2:80", sees: internetSees}}},
	{name: "zones in chains, reflected", format: "nft", tcp: []string{":8080"}, rules: fw4, attempts: fw4Attempts},
	{name: "the configuration of these zones", format: "uci", options: []string{"--wan", "wan0"}, tcp: []string{":8080"}, rules: fw4, attempts: fw4Attempts, config: `package firewall

config zone
	option name 'lan'
	list network 'lan'

config zone
	option name 'wan'
	list network 'wan'
	option masq '1'

config redirect
	option name 'web'
	option src 'wan'
	option src_dport '80'
	option dest 'lan'
	option dest_ip '192.168.1.20'
	option dest_port '8080'
	option proto 'tcp'
	option target 'DNAT'
`},
	{name: "iptables: a port and a range", format: "iptables", tcp: []string{":8080", ":7005"}, udp: []string{":6005"}, rules: `*nat
-A PREROUTING -i wan0 -p tcp --dport 80 -j DNAT --to-destination 192.168.1.20:8080
-A PREROUTING -i wan0 -p udp -m multiport --dports 6000:6010,6100 -j DNAT --to-destination 192.168.1.20
-A PREROUTING -i wan0 -p tcp --dport 9000:9010 -j DNAT --to-destination 192.168.1.20:7000-7010/9000
-A POSTROUTING -o wan0 -j MASQUERADE
COMMIT`, attempts: []attempt{
		{from: "internet", to: "203.0.113.2:80", sees: internetSees}, {from: "internet", protocol: "udp", to: "203.0.113.2:6005", sees: internetSees}, {from: "internet", to: "203.0.113.2:9005", sees: internetSees},
	}},
	{name: "iptables: reflection", format: "iptables", tcp: []string{":80"}, rules: `*nat
-A PREROUTING -d 203.0.113.2 -p tcp --dport 80 -m comment --comment "the \"web\"" -j DNAT --to-destination 192.168.1.20
-A POSTROUTING -s 192.168.1.0/24 -d 192.168.1.20 -p tcp --dport 80 -j SNAT --to-source 192.168.1.1
-A POSTROUTING -o wan0 -j MASQUERADE
COMMIT`, attempts: []attempt{
		{from: "internet", to: "203.0.113.2:80", sees: internetSees}, {from: "client", to: "203.0.113.2:80", sees: lab.RouterLAN}, {from: "guest", to: "203.0.113.2:80", sees: lab.Guest},
	}},
	{name: "iptables: a published port of a container", format: "iptables", options: []string{"--wan", "wan0"}, tcp: []string{":80"}, rules: `*nat
:PUBLISHED -
-A PREROUTING -m addrtype --dst-type LOCAL -j PUBLISHED
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j PUBLISHED
-A POSTROUTING -s 192.168.1.0/24 ! -o lan0 -j MASQUERADE
-A POSTROUTING -s 192.168.1.20/32 -d 192.168.1.20/32 -p tcp --dport 80 -j MASQUERADE
-A PUBLISHED ! -i lan0 -p tcp --dport 8080 -j DNAT --to-destination 192.168.1.20:80
COMMIT`, attempts: []attempt{
		{from: "internet", to: "203.0.113.2:8080", sees: internetSees}, {from: "guest", to: "203.0.113.2:8080", sees: lab.Guest}, {from: "router", to: "203.0.113.2:8080", sees: lab.External, differs: lab.RouterLAN},
	}},
	{name: "iptables: networks 1:1", format: "iptables", tcp: []string{":80"}, rules: `*nat
-A PREROUTING -d 203.0.113.4/31 -j NETMAP --to 192.168.1.20/31
-A POSTROUTING -o wan0 -j MASQUERADE
COMMIT`, attempts: []attempt{{from: "internet", to: "203.0.113.4:80", sees: internetSees}, {from: "internet", to: further + ":80"}}},
	{name: "ip6tables", format: "iptables", tcp: []string{":8080", "[::]:8080"}, rules: `*nat
-A PREROUTING -i wan0 -p tcp --dport 80 -j DNAT --to-destination 192.168.1.20:8080
-A POSTROUTING -o wan0 -j MASQUERADE
COMMIT

*nat
-A PREROUTING -d 2001:db8:0:1::2 -p tcp --dport 80 -j DNAT --to-destination [fd00:1::20]:8080
COMMIT`, attempts: []attempt{
		{from: "internet", to: "203.0.113.2:80", sees: internetSees}, {from: "internet", to: "[" + lab.External6 + "]:80", sees: internetSees6}, {from: "guest", to: "[" + lab.External6 + "]:80", sees: lab.Guest6},
	}},
}

// fw4 is what OpenWrt's firewall makes of a redirect.
const fw4 = `table inet fw4 {
	chain dstnat { type nat hook prerouting priority dstnat; policy accept;
		iifname "lan0" jump dstnat_lan
		iifname "wan0" jump dstnat_wan; }
	chain srcnat { type nat hook postrouting priority srcnat; policy accept;
		oifname "lan0" jump srcnat_lan
		oifname "wan0" jump srcnat_wan; }
	chain dstnat_lan { ip saddr 192.168.1.0/24 ip daddr 203.0.113.2 tcp dport 80 dnat ip to 192.168.1.20:8080 comment "web (reflection)"; }
	chain dstnat_wan { meta nfproto ipv4 tcp dport 80 counter dnat ip to 192.168.1.20:8080 comment "web"; }
	chain srcnat_lan { ip saddr 192.168.1.0/24 ip daddr 192.168.1.20 tcp dport 8080 snat ip to 192.168.1.1 comment "web (reflection)"; }
	chain srcnat_wan { meta nfproto ipv4 masquerade; }
}`

var fw4Attempts = []attempt{
	{from: "internet", to: "203.0.113.2:80", sees: internetSees}, {from: "client", to: "203.0.113.2:80", sees: lab.RouterLAN}, {from: "server", to: "203.0.113.2:80", sees: lab.RouterLAN},
}

// TestImport: what an imported file does is what the rules did, for clients inside and outside. The commands that import prints
// remove the rules.
func TestImport(t *testing.T) {
	whole := lab.NewNetwork6(t)
	whole.Router.Address("wan0", "203.0.113.4/32", further+"/32")
	whole.Router.ServeTCP(":2222")
	for _, tt := range translations {
		t.Run(tt.name, func(t *testing.T) {
			n := whole.For(t)
			r := &importRun{t: t, Network: n, translation: tt, hp: lab.NewHairpin(n.Router, "version = 1\n")}
			for _, address := range tt.tcp {
				n.Server.ServeTCP(address)
			}
			for _, address := range tt.udp {
				r.udp = append(r.udp, n.Server.ServeUDP(address))
			}
			r.load()
			r.try("with the rules", func(a attempt) string { return a.sees })
			r.importAndRemove()
			r.try("without the rules", func(a attempt) string {
				if a.stays {
					return a.sees
				}
				return ""
			})
			r.hp.Run("attach")
			r.try("with hairpin", func(a attempt) string { return cmp.Or(a.differs, a.sees) })
			r.hp.Run("detach", "--all")
		})
	}
}

type importRun struct {
	*lab.Network
	translation
	t   *testing.T
	hp  *lab.Hairpin
	udp []*lab.Echoer
}

// load gives the router the rules, and nothing else.
func (r *importRun) load() {
	r.Router.Run("nft", "flush", "ruleset")
	if r.format != "iptables" {
		r.Router.RunInput(r.rules, "nft", "-f", "-")
		return
	}
	four, six, _ := strings.Cut(r.rules, "\n\n")
	r.Router.RunInput(four+"\n", "iptables-restore")
	if six != "" {
		r.Router.RunInput(six+"\n", "ip6tables-restore")
	}
}

// importAndRemove imports the rules into the configuration file, and runs the commands that the file names.
func (r *importRun) importAndRemove() {
	var text string
	switch r.format {
	case "nft":
		text = r.Router.Run("nft", "-j", "list", "ruleset")
	case "iptables":
		text = r.Router.Run("iptables-save") + r.Router.Run("ip6tables-save")
	default:
		text = r.config
	}
	file := r.hp.RunInput(text, append([]string{"-q", "import", r.format, "-", "--lan", "lan0,lan1"}, r.options...)...)
	r.hp.Write(file)
	_, removals, found := strings.Cut(file, "# Remove the rules")
	if !found {
		r.t.Fatalf("nothing is to be removed:\n%s", file)
	}
	for line := range strings.Lines(removals) {
		if command, is := strings.CutPrefix(strings.TrimSpace(line), "#   "); is && r.format != "uci" {
			r.Router.Run("sh", "-c", command)
		}
	}
	if r.format == "uci" { // its commands are for OpenWrt
		r.Router.Run("nft", "flush", "ruleset")
	}
	if strings.Count(file, "\n[[") == 0 {
		r.t.Fatalf("no forward:\n%s", file)
	}
}

// try makes all attempts.
func (r *importRun) try(when string, want func(attempt) string) {
	r.t.Helper()
	hosts := map[string]*lab.Host{"internet": r.Internet, "client": r.Client, "server": r.Server, "guest": r.Guest, "router": r.Router}
	lab.Together(len(r.attempts), func(i int) {
		a := r.attempts[i]
		if got := r.sees(hosts[a.from], a, want(a) != ""); got != want(a) {
			r.t.Errorf("%s, %s of the %s to %s: the target sees %q, want %q", when, cmp.Or(a.protocol, "tcp"), a.from, a.to, got, want(a))
		}
	})
}

// sees connects, and returns the client's address as the target sees it, "" if the client is not served.
func (r *importRun) sees(from *lab.Host, a attempt, served bool) string {
	if a.protocol == "udp" {
		return r.seesUDP(from, a, served)
	}
	c, err := from.DialTCP(a.to, a.source, patience(served))
	if err != nil {
		return ""
	}
	defer c.Close()
	who, err := c.Who()
	if err != nil {
		return fmt.Sprint(err)
	}
	return who.Addr().String()
}

// seesUDP needs that no other attempt sends datagrams at the same time.
func (r *importRun) seesUDP(from *lab.Host, a attempt, served bool) string {
	before := map[netip.AddrPort]lab.Tally{}
	for _, udp := range r.udp {
		maps.Copy(before, udp.Seen())
	}
	c, err := from.DialUDP(a.to, a.source)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience(served)))
	if _, err := c.Write([]byte("anybody there?")); err != nil {
		return err.Error()
	}
	if _, err := c.Read(make([]byte, 100)); err != nil {
		return ""
	}
	for _, udp := range r.udp {
		for peer, tally := range udp.Seen() {
			if before[peer] != tally {
				return peer.Addr().String()
			}
		}
	}
	return "nobody"
}
