// SPDX-License-Identifier: Apache-2.0

package importer

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// The rules of nftables in these tests are written as lines of statements, which ruleset turns into the JSON of nft:
//
//	chain NAME [HOOK PRIORITY]    in the table "ip nat", or as set by the line "table FAMILY NAME"
//	STATEMENT STATEMENT ..        a rule; its handle is the number of the line
//
// A statement is JSON, or one of the short forms in statements.
func ruleset(lines string) string {
	family, table, chain := "ip", "nat", ""
	objects := []string{`{"metainfo":{"version":"1.0.6","json_schema_version":1}}`}
	for i, line := range strings.Split(strings.TrimSpace(lines), "\n") {
		words := strings.Fields(line)
		where := fmt.Sprintf(`"family":%q,"table":%q`, family, table)
		switch {
		case len(words) == 0:
		case words[0] == "table":
			family, table = words[1], words[2]
		case words[0] == "chain" && len(words) == 4:
			chain = words[1]
			kind := map[bool]string{true: "filter", false: "nat"}[words[2] == "forward"]
			objects = append(objects, fmt.Sprintf(`{"chain":{%s,"name":%q,"handle":1,"type":%q,"hook":%q,"prio":%s,"policy":"accept"}}`, where, chain, kind, words[2], words[3]))
		case words[0] == "chain":
			chain = words[1]
			objects = append(objects, fmt.Sprintf(`{"chain":{%s,"name":%q,"handle":1}}`, where, chain))
		case words[0] == "set", words[0] == "map":
			objects = append(objects, fmt.Sprintf(`{%q:{%s,"name":%q,%s}}`, words[0], where, words[1], words[2]))
		default:
			var expr []string
			comment := ""
			for _, word := range words {
				if text, found := strings.CutPrefix(word, "#"); found {
					comment = fmt.Sprintf(`"comment":%q,`, text)
					continue
				}
				expr = append(expr, statement(word))
			}
			objects = append(objects, fmt.Sprintf(`{"rule":{%s,"chain":%q,"handle":%d,%s"expr":[%s]}}`, where, chain, i+1, comment, strings.Join(expr, ",")))
		}
	}
	return `{"nftables": [` + strings.Join(objects, ",\n") + `]}`
}

var statements = []struct {
	short *regexp.Regexp
	json  string
}{
	{regexp.MustCompile(`^iif(!?)=(.*)$`), `{"match":{"op":"$1=","left":{"meta":{"key":"iifname"}},"right":$2}}`},
	{regexp.MustCompile(`^oif(!?)=(.*)$`), `{"match":{"op":"$1=","left":{"meta":{"key":"oifname"}},"right":$2}}`},
	{regexp.MustCompile(`^(tcp|udp|sctp|th)(!?)=(.*)$`), `{"match":{"op":"$2=","left":{"payload":{"protocol":"$1","field":"dport"}},"right":$3}}`},
	{regexp.MustCompile(`^(ip6?)\.(saddr|daddr)(!?)=(.*)$`), `{"match":{"op":"$3=","left":{"payload":{"protocol":"$1","field":"$2"}},"right":$4}}`},
	{regexp.MustCompile(`^proto=(.*)$`), `{"match":{"op":"==","left":{"meta":{"key":"l4proto"}},"right":$1}}`},
	{regexp.MustCompile(`^local$`), `{"match":{"op":"==","left":{"fib":{"result":"type","flags":["daddr"]}},"right":"local"}}`},
	{regexp.MustCompile(`^ct=(.*)$`), `{"match":{"op":"in","left":{"ct":{"key":"state"}},"right":$1}}`},
	{regexp.MustCompile(`^mark=(.*)$`), `{"match":{"op":"==","left":{"meta":{"key":"mark"}},"right":$1}}`},
	{regexp.MustCompile(`^(dnat|snat)=([^,{]*),(.*)$`), `{"$1":{"addr":"$2","port":$3}}`},
	{regexp.MustCompile(`^(dnat|snat)=([^{].*)$`), `{"$1":{"addr":"$2"}}`},
	{regexp.MustCompile(`^(dnat)=(\{.*)$`), `{"$1":$2}`},
	{regexp.MustCompile(`^redirect=(.*)$`), `{"redirect":{"port":$1}}`},
	{regexp.MustCompile(`^(masquerade|accept|return|counter|log|redirect|drop)$`), `{"$1":null}`},
	{regexp.MustCompile(`^(jump|goto)=(.*)$`), `{"$1":{"target":"$2"}}`},
	{regexp.MustCompile(`^dportmap=(.*)$`), `{"dnat":{"addr":{"map":{"key":{"payload":{"protocol":"tcp","field":"dport"}},"data":$1}}}}`},
}

func statement(word string) string {
	for _, s := range statements {
		if s.short.MatchString(word) {
			text := s.short.ReplaceAllString(word, s.json)
			return strings.ReplaceAll(text, `"op":"="`, `"op":"=="`)
		}
	}
	return word
}

func nftCases() []importCase {
	cases := []importCase{
		{name: "a port with another target port, from a WAN alone", rules: `
chain prerouting prerouting -100
iif="wan0" tcp=80 counter dnat=192.168.1.20,8080 #web`,
			want:   []string{"web tcp 80 to 192.168.1.20:8080 reflect off comment web"},
			remove: []string{"nft delete rule ip nat prerouting handle 2"}},
		{name: "WAN and LAN are known by the masquerading", options: &Options{}, rules: `
chain prerouting prerouting -100
ip.daddr="203.0.113.2" tcp=80 dnat=192.168.1.20
chain postrouting postrouting 100
oif="wan0" masquerade
iif="lan0" oif="lan0" ip.daddr="192.168.1.20" masquerade`,
			want:   []string{"tcp-80 tcp 203.0.113.2:80 to 192.168.1.20:80"},
			remove: []string{"nft delete rule ip nat postrouting handle 5", "nft delete rule ip nat prerouting handle 2"}},
		{name: "ranges and lists of ports", rules: `
chain prerouting prerouting -100
iif="wan0" udp={"range":[6000,6010]} dnat=192.168.1.20
iif="wan0" tcp={"set":[25,{"range":[110,111]}]} dnat=192.168.1.20
iif="wan0" tcp={"set":[8000,8001]} dnat=192.168.1.20,80
iif="wan0" tcp={"range":[7000,7010]} dnat=192.168.1.20,{"range":[7000,7010]}
iif="wan0" tcp={"range":[9000,9010]} dnat=192.168.1.20,{"range":[9100,9110]}`,
			want: []string{
				"udp-6000-6010 udp 6000-6010 to 192.168.1.20:6000-6010 reflect off",
				"tcp-25 tcp 25 to 192.168.1.20:25 reflect off",
				"tcp-110-111 tcp 110-111 to 192.168.1.20:110-111 reflect off",
				"tcp-8000 tcp 8000 to 192.168.1.20:80 reflect off",
				"tcp-8001 tcp 8001 to 192.168.1.20:80 reflect off",
				"tcp-7000-7010 tcp 7000-7010 to 192.168.1.20:7000-7010 reflect off",
			},
			left: []string{"rule 6 ... netfilter chooses one of the target ports 9100-9110"}},
		{name: "protocols", rules: `
chain prerouting prerouting -100
iif="wan0" proto={"set":["tcp","udp"]} th=53 dnat=192.168.1.20
iif="wan0" proto="gre" dnat=192.168.1.21
iif="wan0" sctp=9 dnat=192.168.1.20,10
iif="wan0" proto="vrrp" dnat=192.168.1.20`,
			want: []string{"tcp-udp-53 tcp,udp 53 to 192.168.1.20:53 reflect off", "gre gre any to 192.168.1.21 reflect off"},
			left: []string{"rule 4 ... ports of sctp cannot change", "rule 5 ... no such condition ... vrrp"}},
		{name: "external addresses", rules: `
set ext "elem":["203.0.113.2","203.0.113.3"]
chain prerouting prerouting -100
ip.daddr="@ext" tcp=80 dnat=192.168.1.20
ip.daddr={"prefix":{"addr":"203.0.113.8","len":31}} tcp=80 dnat=192.168.1.20
ip.daddr={"prefix":{"addr":"203.0.112.0","len":24}} tcp=80 dnat=192.168.1.20
local tcp=81 dnat=192.168.1.20`,
			want: []string{
				"tcp-80 tcp 203.0.113.2:80 to 192.168.1.20:80", "tcp-80-2 tcp 203.0.113.3:80 to 192.168.1.20:80",
				"tcp-80-3 tcp 203.0.113.8:80 to 192.168.1.20:80", "tcp-80-4 tcp 203.0.113.9:80 to 192.168.1.20:80",
				"tcp-81 tcp 81 to 192.168.1.20:81",
			},
			left: []string{"rule 5 ... a forward for each address"}},
		{name: "a set that changes while it runs", rules: `
set ext "flags":["dynamic","timeout"],"elem":["198.51.100.1"]
chain prerouting prerouting -100
ip.saddr="@ext" tcp=80 dnat=192.168.1.20`,
			left: []string{`rule 3 ... no such condition ... "@ext"`}},
		{name: "clients", rules: `
chain prerouting prerouting -100
iif="wan0" ip.saddr={"prefix":{"addr":"198.51.100.0","len":24}} tcp=80 dnat=192.168.1.20
iif="wan0" ip.saddr!={"prefix":{"addr":"128.0.0.0","len":1}} tcp=81 dnat=192.168.1.20`,
			want: []string{"tcp-80 tcp 80 to 192.168.1.20:80 from 198.51.100.0/24 reflect off", "tcp-81 tcp 81 to 192.168.1.20:81 from 0.0.0.0/1 reflect off"}},
		{name: "several WANs", options: &Options{WAN: []string{"wan0", "wan1", "ppp0"}, LAN: []string{"lan0"}}, rules: `
chain prerouting prerouting -100
iif={"set":["wan0","wan1"]} tcp=80 dnat=192.168.1.20
iif="ppp*" tcp=81 dnat=192.168.1.20
iif!="lan0" tcp=82 dnat=192.168.1.20
iif="eth7" tcp=83 dnat=192.168.1.20`,
			want: []string{
				"tcp-80 tcp wan0:80 to 192.168.1.20:80 reflect off", "tcp-80-2 tcp wan1:80 to 192.168.1.20:80 reflect off",
				"tcp-81 tcp ppp0:81 to 192.168.1.20:81 reflect off", "tcp-82 tcp 82 to 192.168.1.20:82 reflect off",
			},
			left: []string{"rule 5 ... --wan eth7 or --lan eth7"}},
		{name: "maps", rules: `
map fwd "elem":[[{"range":[90,91]},"192.168.1.22"],[{"elem":{"val":92,"comment":"x"}},"192.168.1.23"]]
chain prerouting prerouting -100
iif="wan0" dportmap={"set":[[80,"192.168.1.20"],[443,{"concat":["192.168.1.21",8443]}]]}
iif="wan0" dportmap="@fwd"
iif="wan0" dnat={"addr":{"map":{"key":{"concat":[{"payload":{"protocol":"ip","field":"daddr"}},{"payload":{"protocol":"tcp","field":"dport"}}]},"data":{"set":[[{"concat":["203.0.113.3",25]},"192.168.1.25"]]}}}}
iif="wan0" tcp=99 dnat={"addr":{"map":{"key":{"numgen":{"mode":"inc","mod":2,"offset":0}},"data":{"set":[[0,"192.168.1.1"],[1,"192.168.1.2"]]}}}}`,
			want: []string{
				"tcp-80 tcp 80 to 192.168.1.20:80 reflect off", "tcp-443 tcp 443 to 192.168.1.21:8443 reflect off",
				"tcp-90-91 tcp 90-91 to 192.168.1.22:90-91 reflect off", "tcp-92 tcp 92 to 192.168.1.23:92 reflect off",
				"tcp-25 tcp 203.0.113.3:25 to 192.168.1.25:25 reflect off",
			},
			left: []string{"rule 6 ... numgen", "rule 6 ... numgen"}},
		{name: "chains that others jump to", rules: `
chain web
tcp=80 dnat=192.168.1.20
iif="lan0" return
tcp=81 dnat=192.168.1.21
chain prerouting prerouting -100
iif="wan0" jump=web
{"vmap":{"key":{"meta":{"key":"iifname"}},"data":{"set":[["lan1",{"accept":null}],["wan0",{"goto":{"target":"more"}}]]}}}
tcp=83 iif="wan0" dnat=192.168.1.20
chain more
tcp=82 dnat=192.168.1.20`,
			want: []string{
				"tcp-80 tcp 80 to 192.168.1.20:80 reflect off", "tcp-81 tcp 81 to 192.168.1.21:81 reflect off", "tcp-82 tcp 82 to 192.168.1.20:82 reflect off",
			},
			left: []string{"rule 8 ... rule 7 of the chain ip nat prerouting may take packets away from it"}},
		{name: "clients that a rule before takes out", rules: `
chain prerouting prerouting -100
ip.saddr={"prefix":{"addr":"0.0.0.0","len":1}} return
iif="wan0" tcp=80 dnat=192.168.1.20
ip.saddr="198.51.100.1" ip.daddr="203.0.113.2" tcp=82 return
ip.daddr="203.0.113.2" iif="wan0" ip.saddr!={"prefix":{"addr":"128.0.0.0","len":2}} tcp=82 dnat=192.168.1.20
mark=7 accept
iif="wan0" tcp=81 dnat=192.168.1.20`,
			want: []string{
				"tcp-80 tcp 80 to 192.168.1.20:80 from 128.0.0.0/1 reflect off",
				"tcp-82 tcp 203.0.113.2:82 to 192.168.1.20:82 from 192.0.0.0/6,196.0.0.0/7,198.0.0.0/11,198.32.0.0/12,198.48.0.0/15,198.50.0.0/16,198.51.0.0/18,198.51.64.0/19,198.51.96.0/22,198.51.100.0/32,198.51.100.2/31,198.51.100.4/30,198.51.100.8/29,198.51.100.16/28,198.51.100.32/27,198.51.100.64/26,198.51.100.128/25,198.51.101.0/24,198.51.102.0/23,198.51.104.0/21,198.51.112.0/20,198.51.128.0/17,198.52.0.0/14,198.56.0.0/13,198.64.0.0/10,198.128.0.0/9,199.0.0.0/8,200.0.0.0/5,208.0.0.0/4,224.0.0.0/3 reflect off",
			},
			left: []string{"rule 7 ... rule 6 of the chain ip nat prerouting may take packets away from it"}},
		{name: "IPv6, and a table of both families", rules: `
table inet nat
chain prerouting prerouting -100
ip6.daddr="2001:db8::2" tcp=80 dnat={"family":"ip6","addr":"fd00::20","port":8080}
iif="wan0" tcp=81 dnat={"family":"ip","addr":"192.168.1.20"}
iif="wan0" tcp=81 dnat={"family":"ip6","addr":"fd00::20"}`,
			want: []string{
				"tcp-80 tcp [2001:db8::2]:80 to [fd00::20]:8080", "tcp-81 tcp 81 to 192.168.1.20:81 reflect off", "tcp-81-2 tcp 81 to [fd00::20]:81 reflect off",
			}},
		{name: "1:1", rules: `
chain prerouting prerouting -100
ip.daddr="203.0.113.5" dnat=192.168.1.5
dnat={"family":"ip","addr":{"map":{"key":{"payload":{"protocol":"ip","field":"daddr"}},"data":{"set":[[{"prefix":{"addr":"203.0.113.16","len":31}},{"prefix":{"addr":"192.168.1.32","len":31}}]]}}},"flags":"netmap","type_flags":"prefix"}`,
			want: []string{"any any 203.0.113.5:any to 192.168.1.5", "any-2 any 203.0.113.16:any to 192.168.1.32", "any-3 any 203.0.113.17:any to 192.168.1.33"}},
		{name: "reflection by a pair of rules", rules: `
chain prerouting prerouting -100
iif="wan0" tcp=80 dnat=192.168.1.20,8080
iif={"set":["lan0","lan1"]} ip.daddr="203.0.113.2" tcp=80 dnat=192.168.1.20,8080
iif="lan0" ip.daddr="203.0.113.2" tcp=81 dnat=192.168.1.20
chain postrouting postrouting 100
ip.saddr={"prefix":{"addr":"192.168.1.0","len":24}} ip.daddr="192.168.1.20" masquerade`,
			want:   []string{"tcp-80 tcp 80 to 192.168.1.20:8080"},
			left:   []string{"rule 4 ... for LAN clients alone"},
			remove: []string{"nft delete rule ip nat prerouting handle 3", "nft delete rule ip nat prerouting handle 2"}},
		{name: "the source that the server sees", rules: `
chain prerouting prerouting -100
local tcp=80 dnat=192.168.1.20
local tcp=81 dnat=192.168.1.21
local tcp=82 dnat=192.168.1.22
local tcp=83 dnat=192.168.1.23
chain postrouting postrouting 100
oif="lan0" ip.daddr="192.168.1.20" masquerade
iif="lan0" ip.daddr="192.168.1.21" snat=203.0.113.2
iif={"set":["lan0","lan1"]} ip.daddr="192.168.1.22" masquerade
oif="wan0" masquerade`,
			want: []string{
				"tcp-80 tcp 80 to 192.168.1.20:80 clients router", "tcp-81 tcp 81 to 192.168.1.21:81 reflect public",
				"tcp-82 tcp 82 to 192.168.1.22:82 reflect router", "tcp-83 tcp 83 to 192.168.1.23:83",
			},
			remove: []string{
				"nft delete rule ip nat postrouting handle 9", "nft delete rule ip nat postrouting handle 8", "nft delete rule ip nat postrouting handle 7",
				"nft delete rule ip nat prerouting handle 5", "nft delete rule ip nat prerouting handle 4", "nft delete rule ip nat prerouting handle 3", "nft delete rule ip nat prerouting handle 2",
			}},
		{name: "intercepts", options: &Options{WAN: []string{"wan0"}, LAN: []string{"lan0", "lan1"}, Router: usualRouter}, rules: `
chain prerouting prerouting -100
iif="lan0" ip.daddr!="192.168.1.53" udp=53 dnat=192.168.1.53
iif={"set":["lan0","lan1"]} tcp=53 redirect
iif="lan0" ip.saddr="192.168.1.9" tcp=80 dnat=192.168.1.20,3128
iif="wan0" tcp=8022 redirect=22`,
			want: []string{
				"intercept udp-53 udp lan0:53 to 192.168.1.53:53 except 192.168.1.53/32",
				"intercept tcp-53 tcp 53 to 192.168.1.1:53",
			},
			left: []string{"rule 4 ... for some clients alone", "rule 5 ... leads to the router itself"}},
		{name: "rules for the router's own programs", rules: `
chain prerouting prerouting -100
local tcp=80 dnat=192.168.1.20
chain output output -100
local tcp=80 dnat=192.168.1.20
tcp=81 dnat=192.168.1.20`,
			want:   []string{"tcp-80 tcp 80 to 192.168.1.20:80"},
			left:   []string{"rule 5 ... for programs of the router alone"},
			remove: []string{"nft delete rule ip nat output handle 4", "nft delete rule ip nat prerouting handle 2"}},
		{name: "the first rule decides", rules: `
chain prerouting prerouting -100
iif="wan0" tcp=80 dnat=192.168.1.20
iif="wan0" tcp=80 dnat=192.168.1.21
iif="wan0" ip.daddr="203.0.113.2" tcp=80 dnat=192.168.1.22
iif="wan0" tcp={"range":[80,90]} dnat=192.168.1.23
iif="wan0" tcp={"range":[85,95]} dnat=192.168.1.24
iif="wan0" proto={"set":["tcp","udp"]} th=80 dnat=192.168.1.25
iif="wan0" ip.saddr="198.51.100.1" tcp=99 dnat=192.168.1.26
iif="wan0" tcp=99 dnat=192.168.1.27`,
			want: []string{
				"tcp-80 tcp 80 to 192.168.1.20:80 reflect off", "tcp-80-90 tcp 80-90 to 192.168.1.23:80-90 reflect off",
				"udp-80 udp 80 to 192.168.1.25:80 reflect off",
			},
			left: []string{
				"rule 3 ... rule 2 of the chain ip nat prerouting takes all", "rule 4 ... rule 2 of the chain ip nat prerouting takes all",
				"rule 6 ... rule 5 of the chain ip nat prerouting takes some", "rule 7 ... rule 2 of the chain ip nat prerouting takes all",
				"rule 8 ... hairpin would refuse clients that it does not take, and that rule 9 of the chain ip nat prerouting takes",
				"rule 9 ... rule 8 of the chain ip nat prerouting takes some clients",
			}},
		{name: "a rule that stays takes its packets, so a rule behind it stays, too", rules: `
chain prerouting prerouting -100
iif="wan0" tcp={"range":[80,81]} mark=5 dnat=192.168.1.20
iif="wan0" tcp=81 dnat=192.168.1.21
iif="wan0" tcp={"range":[81,90]} dnat=192.168.1.22
iif="wan0" tcp=90 dnat=192.168.1.23
iif="lan0" tcp=80 ip.daddr="203.0.113.2" dnat=192.168.1.24
iif="wan0" udp=81 dnat=192.168.1.25`,
			want: []string{"udp-81 udp 81 to 192.168.1.25:81 reflect off"},
			left: []string{
				"rule 2 ... mark", "rule 3 ... rule 2 of the chain ip nat prerouting is left", "rule 4 ... rule 2 of the chain ip nat prerouting is left",
				"rule 5 ... rule 4 of the chain ip nat prerouting is left", "rule 6 ... for LAN clients alone",
			}},
		{name: "the priority of chains", rules: `
chain late prerouting -90
iif="wan0" tcp=80 dnat=192.168.1.21
chain early prerouting -110
iif="wan0" tcp=80 dnat=192.168.1.20`,
			want: []string{"tcp-80 tcp 80 to 192.168.1.20:80 reflect off"},
			left: []string{"rule 2 of the chain ip nat late ... rule 4 of the chain ip nat early takes all"}},
		{name: "what hairpin does not have", rules: `
chain prerouting prerouting -100
iif="wan0" tcp=80 mark=5 dnat=192.168.1.20
iif="wan0" tcp=81 {"limit":{"rate":5,"per":"second"}} dnat=192.168.1.20
iif="wan0" tcp=82 dnat={"addr":{"range":["192.168.1.20","192.168.1.25"]}}
iif="wan0" tcp=83 {"xt":{"type":"target","name":"DNAT"}}
iif="wan0" tcp=84 log dnat=127.0.0.1
iif="wan0" tcp=85 dnat={"port":80}`,
			left: []string{"rule 2 ... mark", "rule 3 ... limit", "rule 4 ... spreads connections", "rule 5 ... iptables-save", "rule 6 ... loopback", "rule 7 ... needs a target"}},
	}
	for i := range cases {
		cases[i].rules = ruleset(cases[i].rules)
	}
	return cases
}

func TestNFT(t *testing.T) { runCases(t, "nft", nftCases()) }

func TestBrokenNFT(t *testing.T) {
	deep := "chain c0\n"
	for i := 1; i <= 20; i++ {
		deep += fmt.Sprintf("jump=c%d\nchain c%d\n", i, i)
	}
	bomb := "chain prerouting prerouting -100\n"
	for i := range 10 {
		bomb += strings.Repeat(fmt.Sprintf("jump=c%d\n", i), 10) + fmt.Sprintf("chain c%d\n", i)
	}
	runBroken(t, "nft", []brokenCase{
		{"nothing", "", "rules:1:1: the text ends too early"},
		{"no JSON", "\n table ip nat {\n", `rules:2:2: this is not JSON; write the rules with "nft -j list ruleset"`},
		{"another document", `{"rules": []}`, "is not the output"},
		{"cut off", ruleset("chain a prerouting 0\ntcp=80 dnat=192.168.1.20")[:200], "the text ends too early"},
		{"a wrong character", "{\"nftables\": [\n{\"chain\": {\"name\": é}}]}", "rules:2:20: invalid character"},
		{"a wrong type", "{\"nftables\": [\n  {\"chain\": {\"name\": 7}}]}", "rules:2:3: a chain is not understood"},
		{"a chain that is not there", ruleset("chain prerouting prerouting -100\njump=gone"), "jumps to the chain ip nat gone, which is not there"},
		{"a rule without its chain", `{"nftables": [{"rule": {"family": "ip", "table": "nat", "chain": "x", "handle": 9, "expr": []}}]}`, `the rule with handle 9 is in the chain ip nat x`},
		{"jumps that are too deep", ruleset(deep + "chain prerouting prerouting -100\njump=c0"), "more than 16 jumps"},
		{"too many jumps", ruleset(bomb), "jump to each other too often"},
	})
}

func TestInterfacesThatAreNotKnown(t *testing.T) {
	rules := []byte(ruleset("chain prerouting prerouting -100\ntcp=80 dnat=192.168.1.20"))
	if _, err := Import("nft", "rules", rules, Options{LAN: []string{"lan0"}}); err != ErrNoWAN {
		t.Errorf("error %v, want %v", err, ErrNoWAN)
	}
	if _, err := Import("nft", "rules", rules, Options{WAN: []string{"wan0"}}); err != ErrNoLAN {
		t.Errorf("error %v, want %v", err, ErrNoLAN)
	}
}

// A rule that keeps clients from a target is named: hairpin's packets do not pass it.
func TestFirewallIsNamed(t *testing.T) {
	result, err := Import("nft", "rules", []byte(ruleset(`
chain prerouting prerouting -100
iif="wan0" tcp=80 dnat=192.168.1.20
chain fw forward 0
ip.saddr="198.51.100.1" ip.daddr="192.168.1.20" accept
ip.saddr="198.51.100.1" ip.daddr="192.168.1.21" accept`)), usual)
	if err != nil {
		t.Fatal(err)
	}
	notes := strings.Join(result.Notes, "\n")
	if !strings.Contains(notes, "rule 4 of the chain ip nat fw says who may reach 192.168.1.20") || strings.Contains(notes, "rule 5") {
		t.Errorf("notes: %s", notes)
	}
}
