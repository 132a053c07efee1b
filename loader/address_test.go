// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hairpin/test/lab"
)

func prefixes(list ...string) (found []netip.Prefix) {
	for _, text := range list {
		found = append(found, netip.MustParsePrefix(text))
	}
	return found
}

// TestAddressesInUse: the kernel's flags decide which IPv6 addresses are used, and their order.
func TestAddressesInUse(t *testing.T) {
	address := func(text string, flags int) netlink.Addr {
		prefix := netip.MustParsePrefix(text)
		ip := net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
		return netlink.Addr{IPNet: &ip, Flags: flags, LinkIndex: 7}
	}
	other := address("2001:db8::f/64", 0)
	other.LinkIndex = 8
	l := Link{Index: 7}
	l.setAddresses([]netlink.Addr{
		address("203.0.113.1/24", 0),
		address("203.0.113.2/24", unix.IFA_F_SECONDARY), // the same bit as IFA_F_TEMPORARY
		address("2001:db8::1/64", unix.IFA_F_TEMPORARY),
		address("2001:db8::2/64", unix.IFA_F_TEMPORARY|unix.IFA_F_DEPRECATED),
		address("2001:db8::3/64", unix.IFA_F_MANAGETEMPADDR),
		address("2001:db8::4/64", unix.IFA_F_TENTATIVE),
		address("2001:db8::5/64", unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED),
		address("2001:db8::6/64", unix.IFA_F_DEPRECATED),
		address("fd00::1/128", unix.IFA_F_PERMANENT|unix.IFA_F_NODAD),
		address("fe80::1/64", unix.IFA_F_PERMANENT),
		address("::ffff:203.0.113.9/128", 0),
		other,
	})
	if want := prefixes("203.0.113.1/24", "203.0.113.2/24", "2001:db8::3/64", "fd00::1/128", "fe80::1/64", "2001:db8::1/64"); !slices.Equal(l.Addresses, want) {
		t.Errorf("addresses %v, want %v", l.Addresses, want)
	}
	if want := prefixes("2001:db8::2/64", "2001:db8::4/64", "2001:db8::6/64"); !slices.Equal(l.Passive, want) {
		t.Errorf("passive %v, want %v", l.Passive, want)
	}
}

// newRouter6 makes a router with IPv6 on wan0.
func newRouter6(t *testing.T) *router {
	t.Helper()
	r := newRouter(t)
	r.Sysctl("net/ipv6/conf/wan0/disable_ipv6", "0")
	return r
}

// wantAddresses waits until the kernel lists these addresses on wan0, without the link-local address.
func (r *router) wantAddresses(when string, addresses, passive []netip.Prefix) {
	r.t.Helper()
	linkLocal := func(prefix netip.Prefix) bool { return prefix.Addr().IsLinkLocalUnicast() }
	lab.Eventually(r.t, patience, func() error {
		l := r.listed("wan0")
		got := slices.DeleteFunc(l.Addresses, linkLocal)
		if !slices.Equal(got, addresses) || !slices.Equal(slices.DeleteFunc(l.Passive, linkLocal), passive) {
			return fmt.Errorf("%s: addresses %v, passive %v, want %v and %v", when, got, l.Passive, addresses, passive)
		}
		return nil
	})
}

// TestAddressesOfIPv6: a new address is probed first, may be deprecated later, and disappears when IPv6 is
// switched off.
func TestAddressesOfIPv6(t *testing.T) {
	r := newRouter6(t)
	f := r.follow()
	r.Address("wan0", "203.0.113.2/24")
	links := func(e Event) bool { return e.Links }

	// Without a carrier duplicate address detection cannot run, so the address stays tentative.
	r.Run("ip", "link", "set", "wan1", "down")
	r.Run("ip", "addr", "add", "2001:db8::1/64", "dev", "wan0")
	r.wantAddresses("tentative", prefixes("203.0.113.2/24"), prefixes("2001:db8::1/64"))
	f.drain()
	r.Run("ip", "link", "set", "wan1", "up")
	f.await("probed", func(Event) bool {
		return slices.Contains(r.listed("wan0").Addresses, netip.MustParsePrefix("2001:db8::1/64"))
	})

	f.drain()
	r.Run("ip", "addr", "add", "2001:db8:1::1/64", "dev", "wan0", "nodad")
	f.await("second address", links)
	r.wantAddresses("second address", prefixes("203.0.113.2/24", "2001:db8:1::1/64", "2001:db8::1/64"), nil)

	f.drain()
	r.Run("ip", "addr", "change", "2001:db8::1/64", "dev", "wan0", "preferred_lft", "0")
	f.await("deprecated", links)
	r.wantAddresses("deprecated", prefixes("203.0.113.2/24", "2001:db8:1::1/64"), prefixes("2001:db8::1/64"))

	f.drain()
	r.Unaddress("wan0", "2001:db8:1::1/64")
	f.await("removed", links)
	r.wantAddresses("removed", prefixes("203.0.113.2/24"), prefixes("2001:db8::1/64"))

	f.drain()
	r.Sysctl("net/ipv6/conf/wan0/disable_ipv6", "1")
	f.await("IPv6 off", links)
	r.wantAddresses("IPv6 off", prefixes("203.0.113.2/24"), nil)
}

// TestKeptAddressOfIPv6: an address that the kernel keeps while its link is down stays in the list, so its
// connections continue.
func TestKeptAddressOfIPv6(t *testing.T) {
	r := newRouter6(t)
	r.Sysctl("net/ipv6/conf/wan0/keep_addr_on_down", "1")
	address := netip.MustParsePrefix("2001:db8::1/64")
	r.Run("ip", "addr", "add", address.String(), "dev", "wan0")
	inUse := func() error {
		if l := r.listed("wan0"); !slices.Contains(l.Addresses, address) {
			return fmt.Errorf("addresses %v, passive %v", l.Addresses, l.Passive)
		}
		return nil
	}
	lab.Eventually(t, patience, inUse)
	for _, state := range []string{"down", "up"} {
		r.Run("ip", "link", "set", "wan0", state)
		if l := r.listed("wan0"); !slices.Contains(slices.Concat(l.Addresses, l.Passive), address) {
			t.Errorf("%s: addresses %v, passive %v", state, l.Addresses, l.Passive)
		}
	}
	lab.Eventually(t, patience, inUse)
}

// TestTemporaryAddressComesLast: a temporary address (RFC 8981) comes after the address that it was made
// from.
func TestTemporaryAddressComesLast(t *testing.T) {
	r := newRouter6(t)
	r.Sysctl("net/ipv6/conf/wan0/use_tempaddr", "2")
	r.Run("ip", "addr", "add", "2001:db8::1/64", "dev", "wan0", "mngtmpaddr", "nodad")
	lab.Eventually(t, patience, func() error {
		l := r.listed("wan0")
		global := slices.DeleteFunc(l.Addresses, func(prefix netip.Prefix) bool { return prefix.Addr().IsLinkLocalUnicast() })
		if len(global) != 2 || global[0] != netip.MustParsePrefix("2001:db8::1/64") {
			return fmt.Errorf("addresses %v", l.Addresses)
		}
		return nil
	})
}

// TestPortOf: a port of a bridge names its bridge; an interface in a VRF is no port.
func TestPortOf(t *testing.T) {
	r := newRouter(t)
	r.Bridge("br0", "lan0")
	if got := r.listed("lan0").PortOf; got != "br0" {
		t.Errorf("lan0 is a port of %q, want br0", got)
	}
	for _, dev := range []string{"wan0", "br0", "lo"} {
		if got := r.listed(dev).PortOf; got != "" {
			t.Errorf("%s is a port of %q", dev, got)
		}
	}
	f := r.follow()
	f.drain()
	r.Run("ip", "link", "set", "lan0", "nomaster")
	f.await("out of the bridge", func(e Event) bool { return e.Links })
	if got := r.listed("lan0").PortOf; got != "" {
		t.Errorf("lan0 is still a port of %q", got)
	}

	attrs := func(index, master int) netlink.LinkAttrs {
		return netlink.LinkAttrs{Index: index, MasterIndex: master, Name: fmt.Sprint("dev", index)}
	}
	port, vrf, bond := &netlink.Dummy{LinkAttrs: attrs(2, 3)}, &netlink.Vrf{LinkAttrs: attrs(3, 0)}, &netlink.Bond{LinkAttrs: attrs(3, 0)}
	if got := portOf(port, []netlink.Link{port, vrf}); got != "" {
		t.Errorf("in a VRF: a port of %q", got)
	}
	if got := portOf(port, []netlink.Link{port, bond}); got != "dev3" {
		t.Errorf("in a bond: a port of %q", got)
	}
}

// TestProgramsFollowTheInterfaceNotTheName: a renamed interface keeps its programs; a new interface of the
// name has none.
func TestProgramsFollowTheInterfaceNotTheName(t *testing.T) {
	r := newRouter(t)
	d := r.load(Options{})
	index := r.attach(d, "wan0", ModeXDPUntagged).Index
	f := r.follow()

	f.drain()
	r.Run("ip", "link", "set", "wan0", "down")
	r.Run("ip", "link", "set", "wan0", "name", "ppp7")
	f.await("renamed", func(e Event) bool { return e.Links && r.listed("ppp7").Index == index })
	if list := r.attachments(d); len(list) != 1 || list[0].Index != index || list[0].Interface != "ppp7" {
		t.Errorf("renamed: %+v", list)
	}
	r.do("detach", func() error { return d.Detach(index) })
	if n := r.hooks("ppp7").programs(); n != 0 {
		t.Errorf("%d programs left under the new name", n)
	}

	r.Run("ip", "link", "set", "ppp7", "name", "wan0")
	r.attach(d, "wan0", ModeXDPUntagged)
	f.drain()
	r.Unplug("wan0")
	lab.Cable(r.Host, "wan0", r.Host, "wan1")
	f.await("made again", func(e Event) bool { return e.Links && r.listed("wan0").Index != 0 })
	again := r.listed("wan0").Index
	if n := r.hooks("wan0").programs(); n != 0 {
		t.Errorf("%d programs on the new interface", n)
	}
	if again != index {
		r.do("forget", func() error { return d.Detach(index) })
	}
	if a := r.attach(d, "wan0", ModeXDPUntagged); a.Index != again || a.XDP != XDPNative {
		t.Errorf("attached again: %+v", a)
	}
	if list := r.attachments(d); len(list) != 1 || list[0].Index != again {
		t.Errorf("made again: %+v", list)
	}
}

// TestDetachFromAPortOfABridge: an interface that becomes a port of a bridge keeps its programs until
// Detach.
func TestDetachFromAPortOfABridge(t *testing.T) {
	r := newRouter(t)
	d := r.load(Options{})
	index := r.attach(d, "lan0", ModeTC).Index
	r.Bridge("br0", "lan0")
	if list := r.attachments(d); len(list) != 1 || list[0].Index != index {
		t.Errorf("attachments: %+v", list)
	}
	r.do("detach", func() error { return d.Detach(index) })
	if n := r.hooks("lan0").programs(); n != 0 {
		t.Errorf("%d programs left on the port", n)
	}
	if a := r.attach(d, "br0", ModeAuto); a.XDP != "" || a.TC != TCX {
		t.Errorf("bridge: %+v", a)
	}
}
