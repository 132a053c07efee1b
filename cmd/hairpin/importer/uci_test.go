// SPDX-License-Identifier: Apache-2.0

package importer

import (
	"strings"
	"testing"
)

// firewall returns the output of "uci export firewall" with two zones; the first line of sections is line 14.
func firewall(sections string) string {
	return `package firewall

config zone
	option name 'lan'
	list network 'lan'
	option input 'ACCEPT'

config zone
	option name 'wan'
	option network 'wan wan6'
	option masq '1'

#
` + strings.TrimSpace(sections) + "\n"
}

const network = `
package network

config interface 'lan'
	option device 'br-lan'
	option proto 'static'
	option ipaddr '192.168.1.1/24'

config interface 'wan'
	option device 'eth1'
	option proto 'pppoe'

config interface 'wan6'
	option device '@wan'
	option proto 'dhcpv6'
`

func uciCases() []importCase {
	cases := []importCase{
		{name: "a port forward", rules: `
config redirect
	option name 'Web server'
	option src 'wan'
	option src_dport '80'
	option dest 'lan'
	option dest_ip '192.168.1.20'
	option dest_port '8080'
	option proto 'tcp'
	option target 'DNAT'

config redirect 'ssh'
	option src 'wan'
	option src_dport '2222'
	option dest_ip '192.168.1.20'
	option dest_port '22'
	list proto 'tcp'
	option enabled '1'`,
			want: []string{
				`web-server tcp 80 to 192.168.1.20:8080 reflect router comment "Web server"`,
				"tcp-2222 tcp 2222 to 192.168.1.20:22 reflect router",
			},
			remove: []string{"uci delete firewall.ssh", "uci delete 'firewall.@redirect[0]'", "uci commit firewall && /etc/init.d/firewall reload"}},
		{name: "a name with a command in it", rules: `
config redirect 'x; reboot'
	option src 'wan'
	option src_dport '80'
	option dest_ip '192.168.1.20'
	option dest_port '8080'
	option proto 'tcp'`,
			want:   []string{"tcp-80 tcp 80 to 192.168.1.20:8080 reflect router"},
			remove: []string{"uci delete 'firewall.x; reboot'", "uci commit firewall && /etc/init.d/firewall reload"}},
		{name: "protocols and ranges", rules: `
config redirect
	option src 'wan'
	option src_dport '6000-6010'
	option dest_ip '192.168.1.20'

config redirect
	option src wan
	option src_dport 7000:7010
	option dest_ip 192.168.1.20
	option dest_port 8000-8010

config redirect
	option src 'wan'
	option src_dport '81 82'
	option dest_ip '192.168.1.20'
	option proto 'tcpudp'

config redirect
	option src 'wan'
	option proto 'all'
	option dest_ip '192.168.1.99'`,
			want: []string{
				"tcp-udp-6000-6010 tcp,udp 6000-6010 to 192.168.1.20:6000-6010 reflect router",
				"tcp-udp-81 tcp,udp 81 to 192.168.1.20:81 reflect router", "tcp-udp-82 tcp,udp 82 to 192.168.1.20:82 reflect router",
			},
			left: []string{"line 19: netfilter chooses one of the target ports", "line 31: line 19 is left, and takes packets before it"}},
		{name: "a host for all other ports", rules: `
config redirect
	option src 'wan'
	option src_dport '80'
	option dest_ip '192.168.1.20'

config redirect
	option src 'wan'
	option proto 'all'
	option dest_ip '192.168.1.99'`,
			want: []string{"tcp-udp-80 tcp,udp 80 to 192.168.1.20:80 reflect router", "any any any to 192.168.1.99 reflect router"}},
		{name: "clients, external address, reflection", rules: `
config redirect
	option src 'wan'
	option src_ip '198.51.100.0/24'
	option src_dip '203.0.113.2'
	option src_dport '80'
	option dest_ip '192.168.1.20'
	option proto 'tcp'
	option reflection '0'

config redirect
	option src 'wan'
	option src_ip '!0.0.0.0/1'
	option src_dport '81'
	option dest_ip '192.168.1.20'
	option proto 'tcp'
	option reflection_src 'external'

config redirect
	option src 'wan'
	option src_dport '82'
	option dest_ip 'fd00::20'
	option family 'ipv6'
	option proto 'tcp'`,
			want: []string{
				"tcp-80 tcp 203.0.113.2:80 to 192.168.1.20:80 from 198.51.100.0/24 reflect off",
				"tcp-81 tcp 81 to 192.168.1.20:81 from 128.0.0.0/1 reflect public",
				"tcp-82 tcp 82 to [fd00::20]:82 reflect router",
			}},
		{name: "an intercept; the interfaces are known", options: &Options{}, rules: `
config redirect
	option name 'Intercept-DNS'
	option src 'lan'
	option src_dport '53'
	option target 'DNAT'

config redirect
	option src 'wan'
	option src_dport '80'
	option dest_ip '192.168.1.20'
	option proto 'tcp'
` + network,
			want: []string{
				"intercept intercept-dns tcp,udp 53 to 192.168.1.1:53 comment Intercept-DNS",
				"tcp-80 tcp 80 to 192.168.1.20:80 reflect router",
			}},
		{name: "what is not translated", rules: `
config redirect
	option name 'off'
	option enabled '0'
	option src 'wan'
	option src_dport '80'
	option dest_ip '192.168.1.20'

config redirect
	option src 'wan'
	option src_mac '00:11:22:33:44:55'
	option src_dport '81'
	option dest_ip '192.168.1.20'

config redirect
	option src 'dmz'
	option src_dport '82'
	option dest_ip '192.168.1.20'

config redirect
	option src 'lan'
	option dest 'wan'
	option src_dip '203.0.113.2'
	option target 'SNAT'

config redirect
	option src 'wan'
	option src_dport '22'
	option dest_port '2222'
	option proto 'tcp'

config redirect
	option src 'wan'
	option src_dport 'http'
	option dest_ip 'server'`,
			left: []string{
				"line 14: it is disabled", "line 21: ... option src_mac", `line 27: there is no zone "dmz"`, "line 32: ... SNAT",
				"line 38: ... leads to the router itself", "line 44: src_dport \"http\"", "line 44: dest_ip \"server\"",
			}},
	}
	for i := range cases {
		cases[i].rules = firewall(cases[i].rules)
	}
	return append(cases, importCase{
		name: "a file of /etc/config, with two zones that masquerade", options: &Options{WAN: []string{"wan0", "wan1"}, LAN: []string{"lan0"}}, rules: `
config zone
	option name 'wan'
	option masq '1'
	list device 'wan0'
config zone
	option name 'vpn'
	option masq '1'
	list network 'vpn'
config redirect
	option src 'wan'
	option src_dport '80'
	option dest_ip '192.168.1.20'
config redirect
	option src 'vpn'
	option src_dport '80'
	option dest_ip '192.168.1.20'
`, want: []string{"tcp-udp-80 tcp,udp wan0:80 to 192.168.1.20:80 reflect router"},
		left: []string{`line 14: ... devices of the zone "vpn" are not in the input`}})
}

func TestUCI(t *testing.T) { runCases(t, "uci", uciCases()) }

func TestSidesOfUCI(t *testing.T) {
	result, err := Import("uci", "rules", []byte(firewall("config include\n\toption path '/etc/firewall.user'\n"+network)), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(result.WAN, " ") != "pppoe-wan" || strings.Join(result.LAN, " ") != "br-lan" {
		t.Errorf("WAN %q, LAN %q", result.WAN, result.LAN)
	}
	if notes := strings.Join(result.Notes, "\n"); !strings.Contains(notes, "line 14 includes /etc/firewall.user") {
		t.Error(notes)
	}
}

func TestBrokenUCI(t *testing.T) {
	runBroken(t, "uci", []brokenCase{
		{"nothing", "package firewall\n", "rules:2:1: there are no sections"},
		{"another text", "*nat\n", `rules:1:1: "*nat" where package, config, option or list was expected`},
		{"an open quote", "package firewall\nconfig redirect\n\toption name 'web\n", "rules:3:14: the quote that begins here is not closed"},
		{"an option without a value", "config redirect\n\toption name\n", "rules:2:2: option needs a name and a value"},
		{"an option outside of a section", "package firewall\noption name 'x'\n", "rules:2:1: option before the first section"},
		{"a word too many", "config redirect a b\n", `rules:1:19: "b" is one word too many`},
		{"a section without a kind", "config\n", "rules:1:1: config needs a type"},
	})
}
