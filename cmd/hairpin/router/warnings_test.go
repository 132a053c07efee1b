// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"hairpin/cmd/hairpin/diagnose"
	"hairpin/cmd/hairpin/router/routertest"
	"hairpin/loader"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

func prefixes(list ...string) (found []netip.Prefix) {
	for _, text := range list {
		found = append(found, netip.MustParsePrefix(text))
	}
	return found
}

// An external address that no interface has is told once, however many forwards listen there.
func TestForeignAddresses(t *testing.T) {
	m := routertest.NewMachine("wan0", "lan0", "other0") // 10.0.2.1, 10.0.3.1 and 10.0.4.1
	m.Edit("wan0", func(l *loader.Link) { l.Passive = prefixes("2001:db8::1/64") })
	cfg := routertest.Config()
	cfg.Forwards = nil
	for _, line := range []string{
		"any tcp 80 to 10.9.0.1", "wan tcp wan0:80 to 10.9.0.1", "own tcp 10.0.2.1:80 to 10.9.0.1", "other tcp 10.0.4.1:80 to 10.9.0.1",
		"passive tcp [2001:db8::1]:80 to fd00::1", "a tcp 203.0.113.9:80 to 10.9.0.1", "b tcp 203.0.113.9:81 to 10.9.0.1",
		"c tcp 203.0.113.9:82 to 10.9.0.1", "d tcp [2001:db8::9]:80 to fd00::1",
	} {
		f, err := rule.ParseForward(strings.Fields(line))
		if err != nil {
			t.Fatal(err)
		}
		cfg.Forwards = append(cfg.Forwards, f)
	}
	got, err := routerOf(m).Findings(cfg)
	want := []string{
		`forward "a" and 2 more: no interface has the external address 203.0.113.9; these forwards work only if another router routes 203.0.113.9 to this one; run ip address add 203.0.113.9/32 dev wan0`,
		`forward "d": no interface has the external address 2001:db8::9; the forward works only if another router routes 2001:db8::9 to this one; run ip address add 2001:db8::9/128 dev wan0`,
	}
	if err != nil || !slices.Equal(diagnose.Notices(got), want) {
		t.Errorf("warnings %q, %v, want %q", got, err, want)
	}
}

// findingsOn returns what there is to say of the configuration with these forwards, and what of a last forward alone.
func findingsOn(t *testing.T, edit func(*Options), forwards ...string) (all, last []string) {
	t.Helper()
	m := routertest.NewMachine("wan0", "lan0")
	o := Options{Datapath: m, Tables: m, Links: m.Links, Routes: m.Routes, Policies: m.Policies, Forwards: m.Forwards, Conntrack: m.Conntrack}
	edit(&o)
	cfg := routertest.Config()
	cfg.Forwards = nil
	for _, line := range forwards {
		f, err := rule.ParseForward(strings.Fields(line))
		if err != nil {
			t.Fatal(err)
		}
		cfg.Forwards = append(cfg.Forwards, f)
	}
	found, err := New(o).Findings(cfg)
	if err != nil {
		t.Error(err)
	}
	all = diagnose.Notices(found)
	if len(forwards) > 0 {
		if found, err = New(o).FindingsOf(cfg, cfg.Forwards[len(forwards)-1]); err != nil {
			t.Error(err)
		}
		last = diagnose.Notices(found)
	}
	return all, last
}

// Policies of IPsec: a new forward says only what concerns its target.
func TestPolicyFindings(t *testing.T) {
	side := func(text string) loader.PolicySide { return loader.PolicySide{Network: netip.MustParsePrefix(text)} }
	set := func(list []loader.Policy, err error) func(*Options) {
		return func(o *Options) { o.Policies = func() ([]loader.Policy, error) { return list, err } }
	}
	list := []loader.Policy{
		{Source: side("0.0.0.0/0"), Destination: side("10.8.0.0/24"), Protects: true},
		{Source: side("10.0.2.1/32"), Destination: side("198.51.100.0/24"), Protects: true},
	}
	forwards := []string{"a tcp 80 to 10.8.0.5", "b tcp 81 to 10.9.0.5"}
	const target = `forward "a": IPsec policy 0.0.0.0/0 to 10.8.0.0/24 protects packets to the target 10.8.0.5; hairpin cannot encrypt, so it refuses connections of targets and clients that this policy matches`
	all, last := findingsOn(t, set(list, nil), forwards...)
	if !slices.Equal(all, []string{target, "1 IPsec policy protects packets to 198.51.100.0/24: clients there are refused"}) || len(last) > 0 {
		t.Errorf("findings %q, of another target %q", all, last)
	}
	if _, last = findingsOn(t, set(list, nil), forwards[0]); !slices.Equal(last, []string{target}) {
		t.Errorf("findings of a new forward %q", last)
	}

	denied := fmt.Errorf("list IPsec policies: %w", loader.ErrPermission)
	if all, last = findingsOn(t, set(nil, denied), forwards...); !slices.Equal(all, []string{"IPsec policies were not looked at: needs CAP_NET_ADMIN"}) || len(last) > 0 {
		t.Errorf("without a privilege: %q, %q", all, last)
	}
	if all, _ = findingsOn(t, set(nil, denied)); len(all) > 0 {
		t.Errorf("without a privilege and without forwards: %q", all)
	}
	if all, _ = findingsOn(t, set(nil, errors.New("no memory")), forwards...); !slices.Equal(all, []string{"cannot look for IPsec policies: no memory"}) {
		t.Errorf("policies cannot be read: %q", all)
	}
	many := slices.Repeat([]loader.Policy{{Source: side("10.1.0.0/16"), Destination: side("10.2.0.0/16")}}, config.MaxPolicies+1)
	if all, _ = findingsOn(t, set(many, nil), forwards...); len(all) != 1 || !strings.HasPrefix(all[0], "there are 16385 IPsec policies, but hairpin asks at most 16384: ") {
		t.Errorf("too many policies: %q", all)
	}
}

// TestGeneralFindings: "forward add" does not repeat findings about the router that have nothing to do with the new forward. It
// warns of shapers, because the packets of the new forward skip them. If something cannot be examined, it warns of that.
func TestGeneralFindings(t *testing.T) {
	conflict := func(o *Options) {
		o.Look = func(f *diagnose.Facts) func() {
			f.Ephemeral = rule.Ports{First: 1024, Last: 65535}
			return func() {}
		}
	}
	const ports = "the kernel may give ports 61000-65535 (reflection.ports) to the router's own programs, and answers would reach the wrong one; run sysctl -w net.ipv4.ip_local_reserved_ports=61000-65535"
	broken := func(o *Options) {
		o.Shaping = func(int) (loader.Shaping, error) { return loader.Shaping{}, errors.New("no memory") }
	}
	for _, test := range []struct {
		name, forward string
		edit          func(*Options)
		all, last     []string
	}{
		{"ports", "a tcp 80 to 10.8.0.5", conflict, []string{ports}, []string{ports}},
		{"ports of a forward that is not reflected", "a tcp 80 to 10.8.0.5 reflect off", conflict, []string{ports}, nil},
		{"ports of a forward that hides clients alone", "a tcp 80 to 10.8.0.5 reflect off clients router", conflict, []string{ports}, []string{ports}},
		{"shapers", "a tcp 80 to 10.8.0.5", broken, []string{"wan0: cannot look for shapers: no memory", "lan0: cannot look for shapers: no memory"}, []string{"wan0: cannot look for shapers: no memory", "lan0: cannot look for shapers: no memory"}},
	} {
		all, last := findingsOn(t, test.edit, test.forward)
		if !slices.Equal(all, test.all) || !slices.Equal(last, test.last) {
			t.Errorf("%s: findings %q, of the new forward %q", test.name, all, last)
		}
	}
}

// TestNotForwarding: IPv6 must be forwarded only if an IPv6 forward runs. While every link is down, the
// router may still be booting.
func TestNotForwarding(t *testing.T) {
	up := &loader.Link{Up: true}
	ports := []Port{
		{Name: "wan0", Role: config.RoleWAN, Link: up, Attachment: &loader.Attachment{}},
		{Name: "lan0", Role: config.RoleLAN, Link: up, Attachment: &loader.Attachment{}},
		{Name: "lan1", Role: config.RoleLAN, Link: up},
		{Name: "lan0.10", Role: config.RoleLAN, Link: up, Attachment: &loader.Attachment{}},
		{Name: "l'n$0", Role: config.RoleLAN, Link: up, Attachment: &loader.Attachment{}},
	}
	off := func(string, string) bool { return false }
	booting := []Port{
		{Name: "wan0", Role: config.RoleWAN, Link: &loader.Link{}, Attachment: &loader.Attachment{}},
		{Name: "lan0", Role: config.RoleLAN},
		{Name: "lo", Role: config.RoleLocal, Link: up, Attachment: &loader.Attachment{}},
	}
	if got := New(Options{Forwards: off}).NotForwarding(false, booting); got != nil {
		t.Errorf("no link is up: %q", got)
	}
	const four, six = false, true // whether an IPv6 forward runs
	for _, test := range []struct {
		name string
		ipv6 bool
		off  string
		want []string
	}{
		{"all on", six, "", nil},
		{"IPv4 off", four, "net.ipv4/all", []string{"IPv4 forwarding is off; run sysctl -w net.ipv4.ip_forward=1"}},
		{"IPv4 off on one", four, "net.ipv4/lan0", []string{"lan0: IPv4 forwarding is off on this interface; run sysctl -w net.ipv4.conf.lan0.forwarding=1"}},
		{"off on a VLAN", four, "net.ipv4/lan0.10", []string{"lan0.10: IPv4 forwarding is off on this interface; run sysctl -w net/ipv4/conf/lan0.10/forwarding=1"}},
		{"off on an odd name", four, "net.ipv4/l'n$0", []string{`l'n$0: IPv4 forwarding is off on this interface; run sysctl -w 'net.ipv4.conf.l'\''n$0.forwarding=1'`}},
		{"off on one that is not attached", four, "net.ipv4/lan1", nil},
		{"IPv6 off without a forward of it", four, "net.ipv6/all", nil},
		{"IPv6 off", six, "net.ipv6/all", []string{"IPv6 forwarding is off; run sysctl -w net.ipv6.conf.all.forwarding=1"}},
		{"IPv6 off on one", six, "net.ipv6/wan0", []string{"wan0: IPv6 forwarding is off on this interface; run sysctl -w net.ipv6.conf.wan0.forwarding=1"}},
	} {
		got := New(Options{Forwards: func(sysctl, ifname string) bool { return sysctl+"/"+ifname != test.off }}).NotForwarding(test.ipv6, ports)
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}
