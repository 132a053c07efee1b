// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hairpin/cmd/hairpin/diagnose"
	"hairpin/test/home"
	"hairpin/test/lab"
)

// ruleForm is a rule of a chain at prerouting, or a command of iptables, and whether doctor finds it.
type ruleForm struct {
	rule  string
	found bool
}

// TestRuleForms: a DNAT of the same port is found however it is written, and a DNAT of another port is none.
func TestRuleForms(t *testing.T) {
	n := lab.NewNetwork(t)
	p := &patient{Network: n, t: t, hp: lab.NewHairpin(n.Router, home.Config("tc", forward("web", "tcp", "80", "192.168.1.20:8080")))}
	p.hp.Run("attach")
	const to = "192.168.1.30"
	list := []ruleForm{
		{"tcp dport 80 dnat to " + to, true},
		{"tcp dport 81 dnat to " + to, false},
		{"udp dport 80 dnat to " + to, false},
		{"tcp sport 80 dnat to " + to, false},
		{"tcp dport { 22, 80 } dnat to " + to, true},
		{"tcp dport { 22, 81 } dnat to " + to, false},
		{"tcp dport 70-90 dnat to " + to, true},
		{"tcp dport { 22, 70-79, 81-90 } dnat to " + to, false},
		{"tcp dport { 22, 70-80 } dnat to " + to, true},
		{"tcp dport > 80 dnat to " + to, false},
		{"tcp dport > 79 dnat to " + to, true},
		{"tcp dport < 81 dnat to " + to, true},
		{"tcp dport < 80 dnat to " + to, false},
		{"tcp dport >= 90 dnat to " + to, false},
		{"tcp dport != 81 dnat to " + to, true},
		{"tcp dport != 80 dnat to " + to, false},
		{"tcp dport 80 redirect to :8080", true},
		{"meta l4proto { tcp, udp } th dport 80 dnat to " + to, true},
		{"meta l4proto { 17, 132 } th dport 80 dnat to " + to, false},
		{"iifname wan0 tcp dport 80 dnat to " + to, true},
		{"iifname { wan0, wan1 } tcp dport 80 dnat to " + to, true},
		{`iifname "wan*" tcp dport 80 dnat to ` + to, true},
		{"iifname lan0 tcp dport 80 dnat to " + to, false},
		{"iifname != wan0 tcp dport 80 dnat to " + to, false},
		{"ip daddr " + lab.External + " tcp dport 80 dnat to " + to, true},
		{"ip daddr 203.0.113.0/24 tcp dport 80 dnat to " + to, true},
		{"ip daddr 203.0.113.0/29 tcp dport 80 dnat to " + to, true},
		{"ip daddr 203.0.113.8/29 tcp dport 80 dnat to " + to, false},
		{"ip daddr { 203.0.113.0-203.0.113.9 } tcp dport 80 dnat to " + to, true},
		{"ip daddr { 203.0.113.3-203.0.113.9 } tcp dport 80 dnat to " + to, false},
		{"ip daddr 192.168.1.1 tcp dport 80 dnat to " + to, false},
		{"fib daddr type local tcp dport 80 dnat to " + to, true},
		{"ip saddr 198.51.100.0/24 tcp dport 80 dnat to " + to, true},
		{"dnat to tcp dport map { 22 : 192.168.1.31, 80 : 192.168.1.30 }", true},
		{"dnat to tcp dport map { 22 : 192.168.1.31, 81 : 192.168.1.30 }", false},
		{"tcp dport vmap { 22 : accept, 80 : jump other }", true},
		{"tcp dport vmap { 22 : accept, 70-90 : goto other }", true},
		{"ct state vmap { established : accept, new : jump other }", true},
		{"ct state vmap { established : jump other, related : jump other }", false},
		{"iifname . tcp dport vmap { wan0 . 80 : jump other }", false}, // not understood; the DNAT names no port
		{"tcp dport vmap { 22 : jump other, 81 : jump other }", false},
		{"tcp dport 80 jump other", true},
		{"tcp dport 80 goto other", true},
		{"udp dport 80 jump other", false},
		{"ct state new tcp dport 80 dnat to " + to, true},
		{"ct state established tcp dport 80 dnat to " + to, false},
		{"tcp dport 80 counter log accept", false},
		{"iptables-nft -A PREROUTING -p tcp --dport 80 -j DNAT --to " + to, true},
		{"iptables-nft -A PREROUTING -p tcp --dport 70:90 -j DNAT --to " + to, true},
		{"iptables-nft -A PREROUTING -p tcp --dport 81 -j DNAT --to " + to, false},
		{"iptables-nft -A PREROUTING -p tcp ! --dport 80 -j DNAT --to " + to, false},
		{"iptables-nft -A PREROUTING -p udp --dport 80 -j DNAT --to " + to, false},
		{"iptables-nft -A PREROUTING -p tcp -m multiport --dports 22,80 -j DNAT --to " + to, true},
		{"iptables-nft -A PREROUTING -p tcp -m multiport --dports 22,70:79,81 -j DNAT --to " + to, false},
		{"iptables-nft -A PREROUTING -p tcp -m multiport --dports 22,70:90 -j REDIRECT --to-ports 8080", true},
		{"iptables-nft -A PREROUTING -i lan+ -p tcp --dport 80 -j DNAT --to " + to, false},
		{"iptables-nft -A PREROUTING -d 203.0.113.0/24 -p tcp --dport 80 -j DNAT --to " + to, true},
		{"iptables-nft -A PREROUTING -d 192.168.1.1 -p tcp --dport 80 -j DNAT --to " + to, false},
		{"iptables-nft -A PREROUTING -p tcp --dport 80 -m comment --comment web -j DNAT --to " + to, true},
	}
	for _, test := range list {
		if legacy, is := strings.CutPrefix(test.rule, "iptables-nft"); is {
			list = append(list, ruleForm{"iptables-legacy" + legacy, test.found})
		}
	}
	list = append(list,
		ruleForm{`iptables-legacy -A PREROUTING -p tcp --dport 80 -m comment --comment a\"b\\-j\ DROP -j DNAT --to ` + to, true},
		ruleForm{"iptables-legacy -A PREROUTING -p tcp --tcp-flags SYN,ACK SYN --dport 80 -m mark --mark 1 -j DNAT --to " + to, true},
		ruleForm{"iptables-legacy -A PREROUTING -m addrtype --dst-type LOCAL -p tcp --dport 80 -j REDIRECT --to-ports 8080", true},
		ruleForm{"iptables-legacy -A PREROUTING -m mark --mark 1 -j DNAT --to " + to, false},
		ruleForm{"iptables-legacy -A PREROUTING -m conntrack --ctstate RELATED,ESTABLISHED -j DNAT --to " + to, false},
		ruleForm{"iptables-legacy -A PREROUTING -m conntrack ! --ctstate NEW -p tcp --dport 80 -j DNAT --to " + to, false},
		ruleForm{"iptables-legacy -A POSTROUTING -p tcp --dport 80 -j MASQUERADE", false},
	)
	for _, test := range list {
		if words := strings.Fields(test.rule); strings.HasPrefix(words[0], "iptables") {
			n.Router.Run("sh", "-c", words[0]+" -t nat "+strings.TrimPrefix(test.rule, words[0]))
		} else {
			n.Router.RunInput("table ip nat { chain other { dnat to 192.168.1.30; }; chain pre { type nat hook prerouting priority dstnat; "+test.rule+"; }; }", "nft", "-f", "-")
		}
		found := p.find("second-dnat")
		if (found != nil) != test.found {
			t.Errorf("%s: found %v, want %v\n%s", test.rule, found, test.found, n.Router.Run("sh", "-c", "nft -a list ruleset; iptables-legacy-save"))
		}
		if found != nil {
			p.run(found.Cure)
			if still := p.find("second-dnat"); still != nil {
				t.Errorf("%s: after %s: %s", test.rule, found.Cure, still)
			}
		}
		n.Router.Run("sh", "-c", "nft flush ruleset; iptables-legacy -t nat -F")
	}
}

// TestLegacyUnseen: rules of iptables-legacy that cannot be read are named, and hide no finding about other rules.
func TestLegacyUnseen(t *testing.T) {
	p := provocation{}.patient(t)
	p.sh("iptables-legacy -t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to 192.168.1.30")
	p.sh("nft 'table ip nat { chain pre { type nat hook prerouting priority dstnat; udp dport 53 dnat to 192.168.1.30; }; }'")
	if found := p.find("iptables-legacy-unseen"); found != nil {
		t.Errorf("before: %s", found)
	}
	program := strings.TrimSpace(p.Router.Run("sh", "-c", "command -v iptables-legacy-save"))
	if err := unix.Mount("/dev/null", program, "", unix.MS_BIND, ""); err != nil { // in the mount namespace of the test
		t.Fatal(err)
	}
	unseen, other := p.find("iptables-legacy-unseen"), p.find("second-dnat")
	if err := unix.Unmount(program, 0); err != nil {
		t.Fatal(err)
	}
	if unseen == nil || unseen.Level != diagnose.Unknown || !strings.Contains(unseen.Text, "(tables ip nat): run iptables-legacy-save: ") {
		t.Errorf("found %s", unseen)
	}
	if other == nil || other.Forward != "dns" {
		t.Errorf("found %s", other)
	}
}
