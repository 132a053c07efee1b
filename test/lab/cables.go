// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"net"

	"github.com/vishvananda/netlink"
)

// beneath is appended to the name of an interface below another interface: bridge port, or parent of a macvlan or vxlan device.
const beneath = "u"

// BridgeCable is Cable, but the first end is a port of a bridge with this name.
func BridgeCable(a *Host, aName string, b *Host, bName string) {
	a.tb.Helper()
	Cable(a, aName+beneath, b, bName)
	a.Bridge(aName, aName+beneath)
}

// Macvlan is Cable, but the first end is a macvlan device on top of the veth.
func Macvlan(a *Host, aName string, b *Host, bName string) {
	a.tb.Helper()
	Cable(a, aName+beneath, b, bName)
	// Without this, the parent interface answers ARP requests for the macvlan's addresses.
	a.Sysctl("net/ipv4/conf/"+aName+beneath+"/arp_ignore", "1")
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = aName, a.Index(aName+beneath)
	a.must("add macvlan "+aName, a.nl.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}))
	a.Up(aName)
}

// Vxlan is Cable, but the frames are sent in UDP datagrams (RFC 7348). The MTU of both ends is 50 bytes lower.
func Vxlan(a *Host, aName string, b *Host, bName string) {
	a.tb.Helper()
	Cable(a, aName+beneath, b, bName+beneath)
	// Different for each vxlan device of the host, because a host may have several.
	number := a.Index(aName + beneath)
	aEnd, bEnd := net.IPv4(10, 255, byte(number), 1), net.IPv4(10, 255, byte(number), 2)
	a.vxlan(aName, number, aEnd, bEnd)
	b.vxlan(bName, number, bEnd, aEnd)
}

func (h *Host) vxlan(name string, number int, from, to net.IP) {
	h.tb.Helper()
	h.Address(name+beneath, from.String()+"/30")
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	h.must("add vxlan "+name, h.nl.LinkAdd(&netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: number, Port: 4789, Learning: true,
		VtepDevIndex: h.Index(name + beneath), SrcAddr: from, Group: to,
	}))
	h.Up(name)
}
