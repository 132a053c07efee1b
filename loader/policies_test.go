// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net/netip"
	"slices"
	"testing"
)

// The list has all policies for packets that leave, in the kernel's order. Each entry has every condition of the policy's selector.
func TestPolicies(t *testing.T) {
	r := newRouter(t)
	list := func() (found []Policy) {
		r.do("list policies", func() (err error) {
			found, err = Policies()
			return err
		})
		return found
	}
	if got := list(); len(got) != 0 {
		t.Errorf("policies %+v in a new namespace", got)
	}
	esp := []string{"tmpl", "src", "192.0.2.1", "dst", "192.0.2.2", "proto", "esp", "mode", "tunnel"}
	esp6 := []string{"tmpl", "src", "2001:db8::1", "dst", "2001:db8::2", "proto", "esp", "mode", "tunnel"}
	add := func(tmpl []string, words ...string) {
		r.Run(slices.Concat([]string{"ip", "xfrm", "policy", "add", "dir"}, words, tmpl)...)
	}
	add(esp, "out", "src", "10.1.0.0/16", "dst", "10.8.0.0/24", "priority", "20")
	add(nil, "out", "src", "0.0.0.0/0", "dst", "10.8.0.1", "priority", "10")
	add(nil, "out", "src", "0.0.0.0/0", "dst", "10.8.0.2", "action", "block", "priority", "20")
	add(esp6, "out", "src", "2001:db8::/32", "dst", "::/0", "proto", "udp", "sport", "500", "priority", "20")
	// hairpin does not know by which device a packet would leave when it asks. So a policy of one device counts for all of
	// them if it encrypts, and for none if it lets packets pass.
	add(nil, "out", "src", "0.0.0.0/0", "dst", "10.9.0.0/24", "dev", "lo", "priority", "10")
	add(nil, "out", "src", "0.0.0.0/0", "dst", "10.9.1.0/24", "dev", "lo", "action", "block", "priority", "30")
	add(esp, "out", "src", "0.0.0.0/0", "dst", "10.9.2.0/24", "dev", "lo", "priority", "40")
	add(esp, "fwd", "src", "10.8.0.0/24", "dst", "10.1.0.0/16")
	add(esp, "out", "src", "0.0.0.0/0", "dst", "0.0.0.0/0", "if_id", "7")
	add(esp, "out", "src", "0.0.0.0/0", "dst", "0.0.0.0/0", "mark", "7", "mask", "0xff")
	side := func(prefix string, ports ...uint16) PolicySide {
		s := PolicySide{Network: netip.MustParsePrefix(prefix)}
		if len(ports) > 0 {
			s.Port, s.PortMask = ports[0], 0xffff
		}
		return s
	}
	want := []Policy{
		{Source: side("0.0.0.0/0"), Destination: side("10.8.0.1/32"), priority: 10},
		{Source: side("10.1.0.0/16"), Destination: side("10.8.0.0/24"), Protects: true, priority: 20},
		{Source: side("0.0.0.0/0"), Destination: side("10.8.0.2/32"), Protects: true, priority: 20},
		{Source: side("2001:db8::/32", 500), Destination: side("::/0"), Protocol: 17, Protects: true, priority: 20},
		{Source: side("0.0.0.0/0"), Destination: side("10.9.1.0/24"), Protects: true, priority: 30},
		{Source: side("0.0.0.0/0"), Destination: side("10.9.2.0/24"), Protects: true, priority: 40},
	}
	if got := list(); !slices.Equal(got, want) {
		t.Errorf("policies\n%+v, want\n%+v", got, want)
	}
}
