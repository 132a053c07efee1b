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
func (b *bench) watchFiltered(filter uint8, below int) {
	prefix := func(list ...string) (all []netip.Prefix) {
		for _, text := range list {
			all = append(all, netip.MustParsePrefix(text))
		}
		return all
	}
	interfaces := []config.Interface{
		{Name: "wan0", Index: b.WAN.Index, Role: config.RoleWAN, HardwareAddr: b.WAN.MAC, XDPTransmit: true, RPFilter: filter,
			Addresses: prefix("203.0.113.1/24", "2001:db8:1::1/64", "2001:db8:1::9/128", "2001:db8:1::10/128")},
		{Name: "lan0", Index: b.LAN.Index, Role: config.RoleLAN, HardwareAddr: b.LAN.MAC, XDPTransmit: true, RPFilter: filter, Below: below,
			Addresses: prefix("192.168.1.1/24", "fd00:1::1/64")},
		{Name: "lan1", Index: b.LAN2.Index, Role: config.RoleLAN, HardwareAddr: b.LAN2.MAC, XDPTransmit: true, RPFilter: 1,
			Addresses: prefix("192.168.2.1/24", "fd00:2::1/64")},
	}
	lab.Must(b.Router.Do(func() error { return b.Tables.SetInterfaces(interfaces) }))
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
