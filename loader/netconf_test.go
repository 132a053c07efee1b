// SPDX-License-Identifier: Apache-2.0

package loader

import "testing"

// TestLinksTellRPFilter: the larger of conf.all.rp_filter and the interface's own rp_filter counts.
func TestLinksTellRPFilter(t *testing.T) {
	r := newRouter(t)
	for _, c := range []struct {
		all, own string
		want     uint8
	}{
		{"0", "0", 0}, {"0", "1", 1}, {"0", "2", 2}, {"1", "0", 1}, {"1", "1", 1}, {"1", "2", 2}, {"2", "0", 2}, {"2", "1", 2},
	} {
		r.Sysctl("net/ipv4/conf/all/rp_filter", c.all)
		r.Sysctl("net/ipv4/conf/wan0/rp_filter", c.own)
		r.Sysctl("net/ipv4/conf/lan0/rp_filter", "0")
		got := make(map[string]uint8)
		r.do("list links", func() error {
			links, err := Links()
			for _, l := range links {
				got[l.Name] = l.RPFilter
			}
			return err
		})
		if got["wan0"] != c.want || got["lan0"] != c.all[0]-'0' {
			t.Errorf("all %s, wan0 %s, lan0 0: wan0 %d, want %d, lan0 %d", c.all, c.own, got["wan0"], c.want, got["lan0"])
		}
	}
}
