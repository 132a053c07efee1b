// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hairpin/test/lab"
)

// TestRoutes: Routes lists IPv4 and IPv6 networks of every table, without the networks of addresses and
// without blackholes.
func TestRoutes(t *testing.T) {
	host := lab.NewHost(t, "router")
	lab.Cable(host, "a", host, "b")
	host.Sysctl("net/ipv6/conf/a/disable_ipv6", "0")
	host.Address("a", "192.168.1.1/24", "fd00:1::1/64")
	for _, route := range [][]string{
		{"192.0.2.0/24", "dev", "a"}, {"198.51.100.0/24", "via", "192.168.1.2", "table", "77"}, {"default", "via", "192.168.1.2"},
		{"local", "203.0.113.0/24", "dev", "a"}, {"blackhole", "10.0.0.0/8"}, {"unreachable", "10.1.0.0/16"}, {"prohibit", "10.2.0.0/16"},
		{"2001:db8:2::/48", "dev", "a"}, {"2001:db8:3::/48", "via", "fd00:1::2", "table", "77"}, {"blackhole", "2001:db8:4::/48"},
	} {
		host.Run(append([]string{"ip", "route", "add"}, route...)...)
	}
	var got []string
	err := host.Do(func() error {
		routes, err := Routes()
		for _, network := range routes {
			if network.Bits() > 0 && !network.Addr().IsMulticast() && !network.Addr().IsLinkLocalUnicast() {
				got = append(got, network.String())
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	want := []string{"192.0.2.0/24", "198.51.100.0/24", "2001:db8:2::/48", "2001:db8:3::/48", "203.0.113.0/24"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
}
