// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// NoXDPTx says why frames would be lost that XDP sends back by this device with XDP_TX. It returns "" if none would be lost. Every
// driver with native XDP sends such frames by its own transmit ring, but a veth puts them into the ring of its other end: without an
// XDP program there, nobody empties this ring (veth_xdp_flush in drivers/net/veth.c).
func (l Link) NoXDPTx() string {
	if !l.Veth {
		return ""
	}
	peer, err := l.otherEnd()
	if err != nil {
		return fmt.Sprintf("no XDP_TX: cannot find out whether the veth's other end has an XDP program (%v); frames are redirected instead", err)
	}
	if xdpMode(peer) != XDPNative {
		return "no XDP_TX: the veth's other end has no XDP program, so it would lose the frames; they are redirected instead"
	}
	return ""
}

// otherEnd returns the other end of a veth, also from another network namespace.
func (l Link) otherEnd() (netlink.Link, error) {
	request := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	message := nl.NewIfInfomsg(unix.AF_UNSPEC)
	message.Index = int32(l.peer)
	request.AddData(message)
	if l.peerNS >= 0 {
		request.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(l.peerNS))))
	}
	messages, err := request.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil {
		return nil, err
	}
	if len(messages) != 1 {
		return nil, fmt.Errorf("%d answers", len(messages))
	}
	return netlink.LinkDeserialize(nil, messages[0])
}
