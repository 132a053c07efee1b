// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"hairpin/maps/config"
	"hairpin/test/frames"
	"hairpin/test/lab"
)

// watchFiltered is watch6 with another rp_filter on lan0. Below is the index of the device below lan0, as if lan0 were a macvlan.
func (b *bench) watchFiltered(filter uint8, below int, others ...config.Interface) {
	interfaces := []config.Interface{
		{Name: "wan0", Index: b.WAN.Index, Role: config.RoleWAN, HardwareAddr: b.WAN.MAC, XDPTransmit: true, RPFilter: filter,
			Addresses: prefix("203.0.113.1/24", "2001:db8:1::1/64", "2001:db8:1::9/128", "2001:db8:1::10/128")},
		{Name: "lan0", Index: b.LAN.Index, Role: config.RoleLAN, HardwareAddr: b.LAN.MAC, XDPTransmit: true, RPFilter: filter, Below: below,
			Addresses: prefix("192.168.1.1/24", "fd00:1::1/64")},
		{Name: "lan1", Index: b.LAN2.Index, Role: config.RoleLAN, HardwareAddr: b.LAN2.MAC, XDPTransmit: true, RPFilter: 1,
			Addresses: prefix("192.168.2.1/24", "fd00:2::1/64")},
	}
	interfaces = append(interfaces, others...)
	lab.Must(b.Router.Do(func() error { return b.Tables.SetInterfaces(interfaces) }))
}

func prefix(list ...string) (all []netip.Prefix) {
	for _, text := range list {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// TestSources: which sources an interface accepts, by its rp_filter. A WAN accepts the same sources with every rp_filter.
func TestSources(t *testing.T) {
	const opens = ""
	b := newBench6(t)
	for _, ban := range []string{"blackhole 192.168.66.0/24", "prohibit 198.51.66.0/24", "blackhole fd66::/64", "unreachable 2001:db8:66::/48"} {
		b.Router.Run(append([]string{"ip", "route", "add"}, strings.Fields(ban)...)...)
	}
	below := 0
	for _, test := range []struct {
		name, way, source, source6 string
		macvlan                    bool      // lan0 stands on lan1
		want, want6                [3]string // by rp_filter; opens, or the reason of the refusal
	}{
		{"its own network", "hairpin", "192.168.1.50", "fd00:1::50", false, [3]string{}, [3]string{}},
		{"another LAN's", "hairpin", "192.168.2.60", "fd00:2::60", false, [3]string{opens, "spoofed", opens}, [3]string{opens, "spoofed", opens}},
		{"the device's below", "hairpin", "192.168.2.60", "fd00:2::60", true, [3]string{opens, "spoofed", opens}, [3]string{}},
		{"the Internet's", "hairpin", "198.51.100.7", "2001:db8:7::7", false, all("spoofed"), all("spoofed")},
		{"the router's", "hairpin", "192.168.1.1", "fd00:1::1", false, all("spoofed"), all("spoofed")},
		{"the external address", "hairpin", "203.0.113.1", "2001:db8:1::1", false, all("spoofed"), all("spoofed")},
		{"loopback", "hairpin", "127.0.0.1", "::1", false, all("spoofed"), all("spoofed")},
		{"a banned network's", "hairpin", "192.168.66.6", "fd66::6", false, all("spoofed"), all("spoofed")},
		{"the Internet's", "from the Internet", "198.51.100.7", "2001:db8:7::7", false, [3]string{}, [3]string{}},
		{"a LAN's", "from the Internet", "192.168.1.50", "fd00:1::50", false, all("spoofed"), all("spoofed")},
		{"another LAN's", "from the Internet", "192.168.2.60", "fd00:2::60", false, all("spoofed"), all("spoofed")},
		{"the router's", "from the Internet", "192.168.1.1", "fd00:1::1", false, all("spoofed"), all("spoofed")},
		{"a private network's", "from the Internet", "10.1.2.3", "fd99::1", false, all("private_source"), all("private_source")},
		{"a banned network's", "from the Internet", "192.168.66.6", "fd66::6", false, all("spoofed"), all("spoofed")},
		{"another banned network's", "from the Internet", "198.51.66.6", "2001:db8:66::6", false, all("spoofed"), all("spoofed")},
	} {
		for filter := range 3 {
			t.Run(fmt.Sprintf("%s, %s, rp_filter %d, macvlan=%v", test.way, test.name, filter, test.macvlan), func(t *testing.T) {
				if below = 0; test.macvlan {
					below = b.LAN2.Index
				}
				b.watchFiltered(uint8(filter), below)
				playTwin(t, b, func(_ *testing.T, c twinCase) []step {
					source, want := test.source, test.want[filter]
					if c.v6 {
						source, want = test.source6, test.want6[filter]
					}
					f := c.flow(test.way, true)
					f.Client = netip.AddrPortFrom(netip.MustParseAddr(source), f.Client.Port())
					if test.way == "from the Internet" {
						f.Source = f.Client
					}
					opener := c.in(f, frames.Payload("who am I?"))
					if want == opens {
						return []step{opener.opening()}
					}
					return []step{opener.refused(want)}
				})
			})
		}
	}
}

func all(reason string) [3]string { return [3]string{reason, reason, reason} }

// TestSourcesOfOtherInterfaces: hairpin is not configured for a management network and a VPN. Nobody may forge the sources of the
// networks behind them on the WAN. The VPN may have the default route: sources of the Internet are accepted all the same.
func TestSourcesOfOtherInterfaces(t *testing.T) {
	b := newBench6(t)
	var others []config.Interface
	for name, addresses := range map[string][]string{
		"mgmt0": {"192.0.2.1/24", "172.17.0.1/16", "2001:db8:2::1/64", "fd17::1/64"},
		"tun0":  {"10.8.0.1/24", "198.18.5.1/24", "2001:db8:8::1/64", "fd08::1/64"},
	} {
		lab.Cable(b.Router, name, b.Wires, "to-"+name)
		for _, address := range addresses {
			if netip.MustParsePrefix(address).Addr().Is4() {
				b.Router.Address(name, address)
			} else {
				b.Router.Address6(name, address)
			}
		}
		others = append(others, config.Interface{Name: name, Index: b.Router.Index(name), Addresses: prefix(addresses...)})
	}
	b.watchFiltered(1, 0, others...)
	for _, route := range []string{
		"route add 192.0.9.0/24 dev mgmt0", "-6 route add 2001:db8:9::/48 dev mgmt0",
		"route add 198.18.9.0/24 via 198.18.5.9 dev tun0", "-6 route add 2001:db8:89::/48 via 2001:db8:8::9 dev tun0",
		"-6 route add default via fe80::fe dev wan0 table 7", "-6 rule add from 2001:db8:1::1 lookup 7",
	} {
		b.Router.Run(append([]string{"ip"}, strings.Fields(route)...)...)
	}
	for _, vpn := range []struct {
		name   string
		routes []string
	}{
		{"no default route of the VPN", nil},
		{"two halves by a gateway", []string{
			"route add 0.0.0.0/1 via 10.8.0.9 dev tun0", "route add 128.0.0.0/1 via 10.8.0.9 dev tun0", "-6 route add 2000::/3 via fd08::9 dev tun0",
		}},
		{"two halves by the device", []string{"route add 0.0.0.0/1 dev tun0", "route add 128.0.0.0/1 dev tun0", "-6 route add ::/1 dev tun0"}},
		{"a lower metric", []string{"route del default", "route add default dev tun0 metric 5", "route add default via 203.0.113.254 dev wan0 metric 50",
			"-6 route add default dev tun0 metric 5"}},
	} {
		for _, route := range vpn.routes {
			b.Router.Run(append([]string{"ip"}, strings.Fields(route)...)...)
		}
		for _, test := range []struct{ name, source, source6, want string }{
			{"the Internet's", "198.51.100.7", "2001:db8:7::7", ""},
			{"the other half's", "9.9.9.9", "2620:fe::9", ""},
			{"the management network's", "192.0.2.5", "2001:db8:2::5", "spoofed"},
			{"a private management network's", "172.17.0.5", "fd17::5", "spoofed"},
			{"a network's with a route to the management interface", "192.0.9.5", "2001:db8:9::5", "spoofed"},
			{"the VPN's private network's", "10.8.0.5", "fd08::5", "spoofed"},
			{"the VPN's public network's", "198.18.5.5", "2001:db8:8::5", "spoofed"},
			{"a network's with a route to the VPN", "198.18.9.5", "2001:db8:89::5", "spoofed"},
		} {
			t.Run(vpn.name+", "+test.name, func(t *testing.T) {
				playTwin(t, b, func(_ *testing.T, c twinCase) []step {
					f := c.flow("from the Internet", true)
					f.Client = netip.AddrPortFrom(netip.MustParseAddr(test.source), f.Client.Port())
					if c.v6 {
						f.Client = netip.AddrPortFrom(netip.MustParseAddr(test.source6), f.Client.Port())
					}
					f.Source = f.Client
					opener := c.in(f, frames.Payload("who am I?"))
					if test.want == "" {
						return []step{opener.opening()}
					}
					return []step{opener.refused(test.want)}
				})
			})
		}
		for i := len(vpn.routes) - 1; i >= 0; i-- {
			if undo := strings.Replace(vpn.routes[i], "route add", "route del", 1); undo != vpn.routes[i] {
				b.Router.Run(append([]string{"ip"}, strings.Fields(undo)...)...)
			} else {
				b.Router.Route("wan0", "0.0.0.0/0", "203.0.113.254", "")
			}
		}
	}
}
