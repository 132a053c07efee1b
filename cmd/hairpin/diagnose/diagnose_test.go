// SPDX-License-Identifier: Apache-2.0

package diagnose

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

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

func port(name string, role config.Role, addresses ...string) Port {
	p := Port{
		Name: name, Role: role, Attachment: &loader.Attachment{TC: loader.TCX, Guard: role == config.RoleWAN}, Forwarding: Families{true, true},
		Link: &loader.Link{Name: name, Up: true, MTU: 1500, Addresses: prefixes(addresses...)},
	}
	for _, prefix := range p.Link.Addresses {
		if config.IsExternal(prefix.Addr()) {
			p.Addresses = append(p.Addresses, prefix.Addr())
		}
	}
	return p
}

// healthy returns the facts of a router on which everything is right: a WAN, a LAN, lo.
func healthy() *Facts {
	f := &Facts{
		Config:        config.Default(),
		Datapath:      &Datapath{Kernel: "6.12.1", Daemon: true, Limit: 1000, Traffic: map[string]Traffic{}, PrivateDropped: map[string]uint64{}},
		Ports:         []Port{port("wan0", config.RoleWAN, "203.0.113.2/24"), port("lan0", config.RoleLAN, "192.168.1.1/24"), port("lo", config.RoleLocal)},
		Forwarding:    Families{true, true},
		DefaultRoutes: Families{true, true},
		Conntrack:     loader.ConntrackAsked,
		Ephemeral:     rule.Ports{First: 32768, Last: 60999},
		Rules:         &Ruleset{},
		Neighbour:     func(netip.Addr) Neighbour { return NeighbourSeen },
		Route: func(addr netip.Addr) Route {
			switch {
			case netip.MustParsePrefix("192.168.1.0/24").Contains(addr):
				return Route{Interface: "lan0"}
			case netip.MustParsePrefix("172.16.0.0/12").Contains(addr):
				return Route{Interface: "docker0"}
			case addr == netip.MustParseAddr("192.168.9.9"):
				return Route{Interface: "lo"}
			case addr == netip.MustParseAddr("10.66.66.66"):
				return Route{Err: errors.New("network is unreachable")}
			}
			return Route{Interface: "wan0", Gateway: netip.MustParseAddr("203.0.113.1")}
		},
	}
	f.Config.WAN, f.Config.LAN = []string{"wan0"}, []string{"lan0"}
	for i := range f.Ports {
		f.Links = append(f.Links, *f.Ports[i].Link)
	}
	return f
}

// judge returns the findings that are not OK.
func judge(t *testing.T, f *Facts, scope Scope, forwards ...string) (list []Finding) {
	t.Helper()
	d := New(f, scope)
	for _, line := range forwards {
		forward, err := rule.ParseForward(strings.Fields(line))
		if err != nil {
			t.Fatal(err)
		}
		d.Add(&forward)
	}
	for _, found := range d.Findings() {
		if found.Level != OK {
			list = append(list, found)
		}
	}
	return list
}

const (
	web = "web tcp 80 to 192.168.1.20:8080"
	dns = "dns udp 53 to 192.168.1.20:5353"
)

// chain returns a chain of the family ip with rules.
func chain(name, hook, kind string, drops bool, rules ...Rule) Chain {
	return Chain{Family: "ip", Table: "t", Name: name, Hook: hook, Type: kind, Drops: drops, Rules: rules}
}

func on(action Action, conditions ...Condition) Rule {
	return Rule{Handle: 7, Action: action, Conditions: conditions}
}

func jump(to string, conditions ...Condition) Rule {
	return Rule{Handle: 8, Action: Jump, Chain: to, Conditions: conditions}
}

func numbers(field Field, list ...uint32) Condition {
	c := Condition{Field: field}
	for _, n := range list {
		c.Numbers = append(c.Numbers, Range{n, n})
	}
	return c
}

func not(c Condition) Condition {
	c.Not = true
	return c
}

func by(field Field, names ...string) Condition { return Condition{Field: field, Names: names} }

func to(network string) Condition {
	return Condition{Field: FieldDestination, Networks: prefixes(network)}
}

var tcp = numbers(FieldProtocol, 6)

func rules(chains ...Chain) func(*Facts) { return func(f *Facts) { f.Rules.Chains = chains } }

// TestJudgements: each fact makes its finding and no other one. The facts of test/doctor are the kernel's; here is also what no
// namespace can have.
func TestJudgements(t *testing.T) {
	asked := func(said Answer) func(*Facts) {
		return func(f *Facts) {
			f.Probe = func(list []netip.AddrPort) map[netip.AddrPort]Answer {
				found := map[netip.AddrPort]Answer{}
				for _, at := range list {
					found[at] = said
				}
				return found
			}
		}
	}
	listens := func(protocol rule.Protocol, address string) func(*Facts) {
		return func(f *Facts) {
			f.Sockets = []Socket{{Protocol: protocol, Address: netip.MustParseAddr(address), Port: 80}}
		}
	}
	traffic := func(t Traffic) func(*Facts) { return func(f *Facts) { f.Datapath.Traffic["web"] = t } }
	for _, test := range []struct {
		name     string
		edit     func(*Facts)
		forwards []string // nil: web and dns
		want     string   // "level code subject, ..."
	}{
		{"nothing", func(*Facts) {}, nil, ""},
		{"no capability", func(f *Facts) { f.Datapath.Missing = []string{"CAP_BPF"} }, nil, "unknown privileges-missing"},
		{"an old kernel", func(f *Facts) { f.Datapath.TooOld = loader.ErrKernel }, nil, "problem kernel-too-old"},
		{"not running", func(f *Facts) { f.Datapath.Stopped = loader.ErrNotLoaded }, nil, "problem not-running"},
		{"another layout", func(f *Facts) { f.Datapath.Stopped, f.Datapath.Foreign = loader.ErrSchema, true }, nil, "problem other-layout"},
		{"perhaps running", func(f *Facts) { f.Datapath.Stopped, f.Datapath.Unseen = loader.ErrPermission, true }, nil, "unknown datapath-unseen"},
		{"metrics for everybody", func(f *Facts) { f.Config.MetricsListen = ":9845" }, nil, "warning metrics-open"},
		{"metrics on a public address", func(f *Facts) { f.Config.MetricsListen = "203.0.113.2:9845" }, nil, "warning metrics-open"},
		{"metrics on a public address, with a file about who may ask", func(f *Facts) {
			f.Config.MetricsListen, f.Config.MetricsWeb = "[::]:9845", "/etc/hairpin/web.yml"
		}, nil, ""},
		{"metrics in the LAN", func(f *Facts) { f.Config.MetricsListen = "[fd00:1::1]:9845" }, nil, ""},
		{"no daemon", func(f *Facts) { f.Datapath.Daemon, f.Datapath.Outdated = false, "x" }, nil, "warning no-daemon, warning programs-outdated"},
		{"the daemon loads programs anew", func(f *Facts) { f.Datapath.Outdated = "x" }, nil, ""},
		{"an invalid file", func(f *Facts) { f.Datapath.Invalid = []string{"a", "b"} }, nil, "problem configuration-invalid, problem configuration-invalid"},
		{"a file of others", func(f *Facts) {
			f.Datapath.FileUnseen, f.Config.WAN, f.Config.LAN, f.Ports = errors.New("no"), nil, nil, nil
		}, []string{}, "unknown configuration-unseen"},
		{"no interface is named", func(f *Facts) { f.Config.WAN, f.Config.LAN, f.Ports = nil, nil, nil }, []string{}, "problem no-interfaces"},
		{"an interface is missing", func(f *Facts) { f.Ports[1].Link = nil }, []string{}, "problem no-interface lan0"},
		{"an interface refuses", func(f *Facts) { f.Ports[1].Err = errors.New("lan0: no") }, nil, "problem interface-refused"},
		{"not attached", func(f *Facts) { f.Ports[1].Attachment = nil }, nil, "problem not-attached lan0"},
		{"not attached, because nothing runs", func(f *Facts) { f.Ports[1].Attachment, f.Datapath.Stopped = nil, loader.ErrNotLoaded }, nil, "problem not-running"},
		{"no guard", func(f *Facts) { f.Ports[0].LacksGuard = true }, nil, "warning no-leak-guard wan0"},
		{"tags are not seen", func(f *Facts) { f.Ports[1].MissesTags = true }, nil, "problem vlan-tags-unseen lan0"},
		{"down", func(f *Facts) { f.Ports[1].Link.Up = false }, nil, "problem link-down lan0"},
		{"a WAN without address", func(f *Facts) { f.Ports[0].Addresses = nil }, nil, "problem no-address wan0"},
		{"no forwarding", func(f *Facts) { f.Forwarding.IPv4 = false }, nil, "problem forwarding-off"},
		{"no forwarding of IPv6, no forward of it", func(f *Facts) { f.Forwarding.IPv6 = false }, nil, ""},
		{"no forwarding on lan0", func(f *Facts) { f.Ports[1].Forwarding.IPv4 = false }, nil, "problem forwarding-off-interface lan0"},
		{"the same before hairpin runs", func(f *Facts) {
			f.Ports[1].Forwarding.IPv4, f.Ports[1].Attachment, f.Datapath.Stopped = false, nil, loader.ErrNotLoaded
		}, nil, "problem not-running, problem forwarding-off-interface lan0"},
		{"XDP wanted", func(f *Facts) { f.Config.Mode, f.Ports[0].Attachment.Reason = config.ModeXDP, "no" }, nil, "warning no-xdp wan0"},
		{"XDP where it works", func(f *Facts) { f.Ports[0].Attachment.Reason = "no" }, nil, ""},
		{"a bridge", func(f *Facts) { f.Ports[1].Link.Bridge = true }, nil, ""},
		{"a bridge and br_netfilter", func(f *Facts) { f.Ports[1].Link.Bridge, f.BridgeCall = true, true }, nil, "warning bridge-netfilter"},
		{"br_netfilter alone", func(f *Facts) { f.BridgeCall = true }, nil, ""},
		{"an MTU", func(f *Facts) { f.Ports[0].Link.MTU = 1492 }, nil, "warning mss-not-clamped wan0"},
		{"an MTU of PPP", func(f *Facts) { f.Ports[0].Link.MTU, f.Ports[0].Link.Bare = 1492, true }, nil, ""},
		{"IPsec is not readable", func(f *Facts) { f.PoliciesErr = loader.ErrPermission }, nil, "unknown ipsec-unseen"},
		{"nftables is not readable", func(f *Facts) { f.Rules, f.RulesErr = nil, loader.ErrPermission }, nil, "unknown nftables-unseen"},
		{"sockets are not readable", func(f *Facts) { f.SocketsErr = errors.New("no") }, nil, "unknown services-unseen"},
		{"shapers are not readable", func(f *Facts) { f.Ports[0].ShapingErr = errors.New("no") }, nil, "unknown shaping-unseen wan0"},
		{"iptables-legacy", func(f *Facts) { f.Legacy, f.LegacyErr = []string{"ip nat"}, errors.New("no") }, nil, "unknown iptables-legacy-unseen"},
		{"iptables-legacy beside a DNAT", func(f *Facts) {
			f.Legacy, f.LegacyErr = []string{"ip nat"}, errors.New("no")
			f.Rules.Chains = []Chain{chain("pre", "prerouting", "nat", false, on(DNAT, numbers(FieldPort, 80)))}
		}, nil, "unknown iptables-legacy-unseen, warning second-dnat web"},
		{"a table that is full soon, as TCP has three quarters of it", func(f *Facts) { f.Datapath.Connections = 700 }, nil, "warning table-nearly-full"},
		{"a table of another size", func(f *Facts) { f.Datapath.Resize = "x" }, nil, "warning table-size"},
		{"an address is away", func(f *Facts) { f.Datapath.Away = []netip.Addr{netip.MustParseAddr("203.0.113.7")} }, nil, ""},
		{"an address is away, and no daemon runs", func(f *Facts) {
			f.Datapath.Daemon, f.Datapath.Away = false, []netip.Addr{netip.MustParseAddr("203.0.113.7")}
		}, nil, "warning no-daemon, warning address-away"},
		{"private sources", func(f *Facts) { f.Datapath.PrivateDropped["wan0"] = 3 }, nil, "warning private-sources-dropped wan0"},
		{"private sources that are allowed", func(f *Facts) {
			f.Datapath.PrivateDropped["wan0"], f.Config.PrivateSources = 3, []string{"wan0"}
		}, nil, ""},
		{"a filter before hairpin", func(f *Facts) {
			f.Ports[0].Attachment.TC, f.Ports[0].Shaping = loader.TCClsact, loader.Shaping{Ingress: []string{"u32"}, Early: true}
		}, nil, "warning filter-before wan0"},

		{"no route", func(*Facts) {}, []string{"a tcp 80 to 10.66.66.66", "b tcp 81 to 10.66.66.66"}, "problem target-no-route a+1"},
		{"no route while the router boots", func(f *Facts) {
			for i := range f.Ports {
				f.Ports[i].Link.Up = false
			}
		}, []string{"a tcp 80 to 10.66.66.66"}, "problem link-down wan0, problem link-down lan0, problem link-down lo"},
		{"by a WAN", func(*Facts) {}, []string{"a tcp 80 to 10.9.9.9"}, "warning target-behind-wan a"},
		{"by an interface of others", func(*Facts) {}, []string{"a tcp 80 to 172.17.0.2"}, "problem target-interface a"},
		{"the router", func(*Facts) {}, []string{"a tcp 80 to 192.168.9.9"}, "problem target-is-router a"},

		{"a socket at every address", listens(rule.TCP, "0.0.0.0"), nil, "warning service-shadowed web"},
		{"a socket of both families", listens(rule.TCP, "::"), nil, "warning service-shadowed web"},
		{"a socket at the external address", listens(rule.TCP, "203.0.113.2"), nil, "warning service-shadowed web"},
		{"a socket in the LAN", listens(rule.TCP, "192.168.1.1"), nil, ""},
		{"a socket of another protocol", listens(rule.UDP, "0.0.0.0"), nil, ""},
		{"a socket in a range", listens(rule.TCP, "0.0.0.0"), []string{"a tcp 79-81 to 192.168.1.20"}, "warning service-shadowed a"},

		{"many sockets", func(f *Facts) {
			for port := range uint16(9) {
				f.Sockets = append(f.Sockets, Socket{Protocol: rule.UDP, Address: netip.MustParseAddr("::"), Port: 5000 + port})
			}
		}, []string{"a any any to 192.168.1.20", "b tcp 5000-5005 to 192.168.1.21"}, "warning service-shadowed a"},
		{"answers", traffic(Traffic{ToTarget: 9, FromTarget: 9, Answered: 1}), nil, ""},
		{"no answers", traffic(Traffic{ToTarget: 3}), nil, "problem answers-elsewhere web"},
		{"no answer yet", traffic(Traffic{ToTarget: 2}), nil, ""},
		{"no answers any more", traffic(Traffic{ToTarget: 9, FromTarget: 9, Waiting: 1}), nil, "problem answers-elsewhere web"},
		{"one of two is slow", traffic(Traffic{ToTarget: 9, FromTarget: 9, Waiting: 1, Answered: 1}), nil, ""},
		{"nobody there", func(f *Facts) {
			traffic(Traffic{ToTarget: 3})(f)
			f.Neighbour = func(netip.Addr) Neighbour { return NeighbourSilent }
		}, nil, "problem target-silent web"},
		{"nothing is known of the host", func(f *Facts) {
			traffic(Traffic{ToTarget: 3})(f)
			f.Neighbour = func(netip.Addr) Neighbour { return NeighbourUnknown }
		}, nil, "problem no-answers web"},
		{"UDP may need no answers", func(f *Facts) { f.Datapath.Traffic["dns"] = Traffic{ToTarget: 3} }, nil, "warning answers-elsewhere dns"},

		{"a target takes connections", asked(Connected), nil, ""},
		{"a target refuses", asked(Refused), nil, "problem probe-refused web"},
		{"a target is silent", asked(Silent), nil, "problem probe-silent web"},
		{"a target is unreachable", asked(Unreachable), nil, "problem probe-unreachable web"},
		{"no time to ask", asked(NotAsked), nil, "unknown probe-unfinished web"},

		{"conntrack is not asked", func(f *Facts) { f.Conntrack = loader.ConntrackAbsent }, nil, ""},
		{"a 1:1 forward", func(f *Facts) { f.Conntrack = loader.ConntrackAbsent }, []string{"a any any to 192.168.1.20"}, "problem answers-taken a"},
		{"a range", func(f *Facts) { f.Conntrack = loader.ConntrackDenied }, []string{"a udp 40000-50000 to 192.168.1.20"}, "warning answers-taken a"},

		{"DNAT", rules(chain("pre", "prerouting", "nat", false, on(DNAT, tcp, numbers(FieldPort, 80)))), nil, "warning second-dnat web"},
		{"DNAT of another port", rules(chain("pre", "prerouting", "nat", false, on(DNAT, tcp, numbers(FieldPort, 81)))), nil, ""},
		{"DNAT of another protocol", rules(chain("pre", "prerouting", "nat", false, on(DNAT, numbers(FieldProtocol, 17), numbers(FieldPort, 80)))), nil, ""},
		{"DNAT of another interface", rules(chain("pre", "prerouting", "nat", false, on(DNAT, numbers(FieldPort, 80), by(FieldIncoming, "lan0")))), nil, ""},
		{"DNAT of another address", rules(chain("pre", "prerouting", "nat", false, on(DNAT, numbers(FieldPort, 80), to("203.0.113.9/32")))), nil, ""},
		{"DNAT for some clients", rules(chain("pre", "prerouting", "nat", false, on(DNAT, numbers(FieldPort, 80), Condition{}))), nil, "warning second-dnat web"},
		{"DNAT of something unknown", rules(chain("pre", "prerouting", "nat", false, on(DNAT, Condition{}))), nil, ""},
		{"DNAT of everything", rules(chain("pre", "prerouting", "nat", false, on(DNAT, by(FieldIncoming, "wan*")))), nil, "warning second-dnat web+1"},
		{"DNAT of docker", rules(chain("pre", "prerouting", "nat", false, jump("DOCKER", Condition{})),
			chain("DOCKER", "", "", false, on(DNAT, tcp, numbers(FieldPort, 80)))), nil, "warning second-dnat web"},
		{"DNAT that nothing leads to", rules(chain("DOCKER", "", "", false, on(DNAT, numbers(FieldPort, 80)))), nil, ""},
		{"DNAT of IPv6", rules(Chain{Family: "ip6", Hook: "prerouting", Type: "nat", Rules: []Rule{on(DNAT, numbers(FieldPort, 80))}}), nil, ""},
		{"jumps in a circle", rules(chain("pre", "prerouting", "nat", false, jump("pre"))), nil, ""},
		{"masquerade", rules(chain("post", "postrouting", "nat", false, on(SNAT, by(FieldOutgoing, "wan0")), on(SNAT))), nil, ""},
		{"masquerade of the port", rules(chain("post", "postrouting", "nat", false, on(SNAT, tcp, numbers(FieldPort, 8080)))), nil, "warning second-masquerade web"},

		{"a firewall", rules(chain("forward", "forward", "filter", true)), nil, "warning firewall-bypassed web+1"},
		{"a firewall of the router itself", rules(chain("input", "input", "filter", true)), nil, ""},
		{"a firewall that takes DNAT", rules(chain("forward", "forward", "filter", true, on(Accept, numbers(FieldStatus, 0x20)))), nil, ""},
		{"a firewall that takes what is established", rules(chain("forward", "forward", "filter", true, on(Accept, numbers(FieldState, 6)))), nil, "warning firewall-bypassed web+1"},
		{"a firewall that takes a port", rules(chain("forward", "forward", "filter", true, on(Accept, tcp, numbers(FieldPort, 8080)))), nil, "warning firewall-bypassed dns"},
		{"a firewall that takes another target", rules(chain("forward", "forward", "filter", true, on(Accept, to("192.168.1.30/32")))), nil, "warning firewall-bypassed web+1"},
		{"a firewall that perhaps takes it", rules(chain("forward", "forward", "filter", true, on(Accept, Condition{}))), nil, ""},
		{"a firewall that drops what comes from wan0", rules(chain("forward", "forward", "filter", false, on(Drop, by(FieldIncoming, "wan0")))), nil, "warning firewall-bypassed web+1"},
		{"a firewall that perhaps drops", rules(chain("forward", "forward", "filter", false, on(Drop, Condition{}))), nil, ""},
		{"a firewall that drops everything but this", rules(chain("forward", "forward", "filter", false, on(Drop, not(to("192.168.1.20/32"))))), nil, ""},
		{"a firewall with a chain", rules(chain("forward", "forward", "filter", true, jump("wan", by(FieldIncoming, "wan0")), on(Accept)),
			chain("wan", "", "", false, on(Return, numbers(FieldPort, 5353)), on(Drop))), nil, "warning firewall-bypassed web"},
		{"a firewall, and from", rules(chain("forward", "forward", "filter", true)), []string{web + " from 198.51.100.0/24"}, ""},
		{"a flowtable", func(f *Facts) {
			f.Rules.Flowtables = []Flowtable{{"inet", "t", "ft", []string{"lan0", "eth9"}}, {"inet", "t", "other", []string{"eth9"}}}
		}, nil, "warning flowtable"},
	} {
		facts := healthy()
		test.edit(facts)
		if test.forwards == nil {
			test.forwards = []string{web, dns}
		}
		var got []string
		for _, f := range judge(t, facts, Doctor, test.forwards...) {
			words := []string{string(f.Level), f.Code}
			if subject := f.Forward + f.Interface; f.More > 0 {
				words = append(words, fmt.Sprintf("%s+%d", subject, f.More))
			} else if subject != "" {
				words = append(words, subject)
			}
			got = append(got, strings.Join(words, " "))
			if f.Level != Unknown && f.Cure == "" && !slices.Contains([]string{"interface-refused", "no-address", "table-size"}, f.Code) {
				t.Errorf("%s: no cure: %s", test.name, f)
			}
		}
		if got := strings.Join(got, ", "); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

// Uplinks: rp_filter refuses clients only of the uplink that has not the route to them.
func TestRPFilter(t *testing.T) {
	for _, test := range []struct {
		strict, want string
	}{{"", ""}, {"wan0", ""}, {"wan1", "sysctl -w net.ipv4.conf.wan1.rp_filter=2"}, {"wan0 wan1", "sysctl -w net.ipv4.conf.wan1.rp_filter=2"}} {
		facts := healthy()
		facts.Ports = append(facts.Ports, port("wan1", config.RoleWAN, "198.51.100.2/24"))
		for i := range facts.Ports {
			if p := &facts.Ports[i]; slices.Contains(strings.Fields(test.strict), p.Name) {
				p.Link.RPFilter = 1
			}
		}
		var got []string
		for _, f := range judge(t, facts, Doctor) {
			got = append(got, f.Cure)
		}
		if strings.Join(got, ", ") != test.want {
			t.Errorf("strict on %q: %q, want %q", test.strict, got, test.want)
		}
	}
}

// Addresses of WANs that the Internet does not reach.
func TestWANAddresses(t *testing.T) {
	for address, code := range map[string]string{
		"203.0.113.2/24": "", "10.0.0.2/24": "double-nat", "172.16.0.1/12": "double-nat", "192.168.0.2/24": "double-nat",
		"100.64.0.1/10": "cgnat", "100.127.255.254/10": "cgnat", "100.128.0.1/24": "", "2001:db8::1/64": "",
	} {
		facts := healthy()
		facts.Ports[0] = port("wan0", config.RoleWAN, address)
		got := ""
		for _, f := range judge(t, facts, Doctor) {
			got += f.Code
		}
		if got != code {
			t.Errorf("%s: %q, want %q", address, got, code)
		}
	}
}

// Forwards for whose address family no interface has an address.
func TestListening(t *testing.T) {
	forwards := []string{
		"a tcp 80 to 10.0.0.1", "b tcp wan0:80 to 10.0.0.1", "c tcp wan1:80 to 10.0.0.1", "d tcp 203.0.113.9:80 to 10.0.0.1",
		"a6 tcp 80 to fd00::1", "b6 tcp wan0:80 to fd00::1", "c6 tcp wan1:80 to fd00::1", "d6 tcp [2001:db8::9]:80 to fd00::1",
	}
	for _, test := range []struct {
		name       string
		wan0, wan1 []string
		want       string
	}{
		{"both have both", []string{"203.0.113.1/24", "2001:db8::1/64"}, []string{"198.51.100.1/24", "fd01::1/64"}, ""},
		{"IPv6 on one", []string{"203.0.113.1/24", "2001:db8::1/64"}, []string{"198.51.100.1/24", "fe80::1/64"}, `forward "c6": wan1 has no IPv6 address`},
		{"no IPv6", []string{"203.0.113.1/24"}, []string{"198.51.100.1/24"},
			`forward "a6": no WAN interface has an IPv6 address, forward "b6": wan0 has no IPv6 address, forward "c6": wan1 has no IPv6 address`},
		{"IPv6 alone", []string{"2001:db8::1/64"}, []string{"2001:db8:1::1/64"},
			`forward "a": no WAN interface has an IPv4 address, forward "b": wan0 has no IPv4 address, forward "c": wan1 has no IPv4 address`},
		{"no address at all", nil, nil, ""}, // the check "interfaces" says so
	} {
		facts := &Facts{Ports: []Port{port("wan0", config.RoleWAN, test.wan0...), port("wan1", config.RoleWAN, test.wan1...), port("lan0", config.RoleLAN, "10.0.0.254/8", "fd00::254/64")}}
		var got []string
		for _, f := range judge(t, facts, Status, forwards...) {
			if f.Check == "listening" {
				got = append(got, strings.TrimSuffix(f.String(), ", so nothing reaches the forward"))
			}
		}
		if got := strings.Join(got, ", "); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

// Ports of reflected connections that the kernel may give to sockets of the router.
func TestLocalPorts(t *testing.T) {
	for _, test := range []struct{ reflect, ephemeral, reserved, want string }{
		{"61000-65535", "32768-60999", "", ""},
		{"61000-65535", "1024-60999", "", ""},
		{"61000-65535", "1024-65535", "", "61000-65535"},
		{"61000-65535", "1024-65535", "8080,61000-65535", ""},
		{"61000-65535", "1024-65535", "8080,62000-65535", "8080,62000-65535,61000-65535"},
		{"50000-65535", "32768-60999", "8080", "8080,50000-60999"},
		{"20000-40000", "32768-60999", "32768-40000", ""},
	} {
		facts := healthy()
		var err error
		if facts.Config.ReflectPorts, err = rule.ParsePorts(test.reflect); err == nil {
			facts.Ephemeral, err = rule.ParsePorts(test.ephemeral)
		}
		if err != nil {
			t.Fatal(err)
		}
		facts.Reserved = test.reserved
		want := ""
		if test.want != "" {
			want = "sysctl -w net.ipv4.ip_local_reserved_ports=" + test.want
		}
		if got := localPorts(facts)[0]; got.Cure != want || (got.Level == OK) != (want == "") {
			t.Errorf("%+v: %s", test, got)
		}
	}
}

// Forwards of several ports at an address that the router sends from, where conntrack is not asked.
func TestAtRisk(t *testing.T) {
	facts := &Facts{Conntrack: loader.ConntrackAbsent, Ephemeral: rule.Ports{First: 32768, Last: 60999}, Ports: []Port{
		port("wan0", config.RoleWAN, "203.0.113.1/24", "203.0.113.9/32", "fe80::1/64", "2001:db8::1/64"),
		port("wan1", config.RoleWAN, "198.51.100.1/24"),
		port("lan0", config.RoleLAN, "10.0.0.254/8", "fd00::254/64"),
	}}
	const inside = "32768-60999"
	for line, risk := range map[string]bool{
		"a tcp any to 10.0.0.1":                         true,
		"a udp " + inside + " to 10.0.0.1":              true,
		"a any any to 10.0.0.1":                         true,
		"a udp wan1:" + inside + " to 10.0.0.1":         true,
		"a udp 203.0.113.1:" + inside + " to 10.0.0.1":  true,
		"a udp [2001:db8::1]:" + inside + " to fd00::1": true,
		"a udp " + inside + " to fd00::1":               true,
		"a udp wan1:" + inside + " to fd00::1":          false, // no address of IPv6
		"a udp 203.0.113.9:" + inside + " to 10.0.0.1":  false, // not the first of the interface
		"a udp 203.0.113.7:" + inside + " to 10.0.0.1":  false, // routed to here
		"a udp 1000-1999 to 10.0.0.1":                   false,
		"a tcp 32768 to 10.0.0.1":                       false,
		"a icmp any to 10.0.0.1":                        false,
		"a udp 10.0.0.254:" + inside + " to 10.0.0.1":   true, // a LAN alone
	} {
		f, err := rule.ParseForward(strings.Fields(line))
		if err != nil {
			t.Fatal(err)
		}
		facts.Conntrack = loader.ConntrackAbsent
		if got := facts.atRisk(&f); got != risk {
			t.Errorf("%s: at risk %v, want %v", line, got, risk)
		}
		facts.Conntrack = loader.ConntrackAsked
		if facts.atRisk(&f) {
			t.Errorf("%s: at risk though conntrack is asked", line)
		}
	}
}

// TestScopes: a new forward does not make a command repeat what is wrong with the router besides.
func TestScopes(t *testing.T) {
	facts := healthy()
	facts.Datapath = nil
	facts.Ports[0].Link.MTU = 1400
	facts.Config.Deny = prefixes("192.168.1.0/24")
	facts.Rules.Chains = []Chain{chain("forward", "forward", "filter", true)}
	for scope, want := range map[Scope]string{
		Addition: "firewall-bypassed",
		Change:   "firewall-bypassed denies-router",
		Status:   "firewall-bypassed denies-router",
	} {
		var got []string
		for _, f := range judge(t, facts, scope, web) {
			got = append(got, f.Code)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("scope %d: %q, want %q", scope, got, want)
		}
	}
}

// TestLeases: what keeps mappings from being reflected, one finding each.
func TestLeases(t *testing.T) {
	facts := healthy()
	facts.Datapath.Daemon = false
	facts.Datapath.Leases = &Leases{
		Files: []LeaseFile{
			{Path: "/a"}, {Path: "/b", Err: errors.New("mode 0666")}, {Path: "/c", Err: errors.New("denied"), Unseen: true}, {Path: "/d", Missing: true}, {Path: "/e", Bad: 2, First: "line 7: rubbish"},
		},
		Refused: []RefusedLease{{"lease-tcp-80", `forward "web" has this port`}},
	}
	var got []string
	for _, f := range judge(t, facts, Doctor) {
		if f.Check == "leases" {
			got = append(got, string(f.Level)+" "+f.Code)
		}
	}
	want := []string{"problem lease-file", "unknown lease-file-unseen", "warning lease-file-missing", "warning lease-lines", "warning lease-daemon", "warning lease-refused"}
	if strings.Join(got, ", ") != strings.Join(want, ", ") {
		t.Errorf("%q, want %q", got, want)
	}
	facts.Datapath.Daemon, facts.Datapath.Leases = true, &Leases{Files: []LeaseFile{{Path: "/a"}}, Running: 2}
	for _, f := range judge(t, facts, Doctor) {
		t.Errorf("%+v", f)
	}
}

// TestRulesOfMappings: the rules of netfilter for a mapping serve the Internet, so nothing is wrong with them.
func TestRulesOfMappings(t *testing.T) {
	facts := healthy()
	facts.Rules = &Ruleset{Chains: []Chain{
		{Family: "ip", Table: "nat", Name: "prerouting", Hook: "prerouting", Type: "nat", Rules: []Rule{{Handle: 1, Action: DNAT, Conditions: []Condition{
			{Field: FieldProtocol, Numbers: []Range{{6, 6}}}, {Field: FieldPort, Numbers: []Range{{443, 443}}},
		}}}},
		{Family: "ip", Table: "filter", Name: "forward", Hook: "forward", Type: "filter", Drops: true},
	}}
	forward, err := rule.ParseForward(strings.Fields("web tcp 443 to 192.168.1.20:8443"))
	if err != nil {
		t.Fatal(err)
	}
	codes := func() string {
		var list []string
		d := New(facts, Doctor)
		d.Add(&forward)
		for _, f := range d.Findings() {
			if f.Level != OK {
				list = append(list, f.Code)
			}
		}
		return strings.Join(list, " ")
	}
	if got := codes(); got != "second-dnat firewall-bypassed" {
		t.Errorf("a forward for everybody: %q", got)
	}
	forward.LANOnly = true
	if got := codes(); got != "" {
		t.Errorf("a forward for LANs alone: %q", got)
	}
}

// TestDoctorIsShort: what is right has one line for each check.
func TestDoctorIsShort(t *testing.T) {
	d := New(healthy(), Doctor)
	seen := map[string]bool{}
	for _, f := range d.Findings() {
		if f.Level != OK || seen[f.Check] || f.Code != f.Check+"-ok" || f.Text == "" {
			t.Errorf("%+v", f)
		}
		seen[f.Check] = true
	}
}

// Which addresses a socket takes packets to.
func TestSocketTakes(t *testing.T) {
	for _, test := range []struct {
		socket, to string
		takes      bool
	}{
		{"0.0.0.0", "203.0.113.2", true}, {"0.0.0.0", "2001:db8::2", false},
		{"::", "203.0.113.2", true}, {"::", "2001:db8::2", true},
		{"203.0.113.2", "203.0.113.2", true}, {"203.0.113.3", "203.0.113.2", false}, {"2001:db8::2", "2001:db8::2", true},
	} {
		if got := (Socket{Address: netip.MustParseAddr(test.socket)}).takes(netip.MustParseAddr(test.to)); got != test.takes {
			t.Errorf("a socket of %s takes %s: %v", test.socket, test.to, got)
		}
	}
}
