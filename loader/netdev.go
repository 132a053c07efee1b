// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The generic netlink family that reports the XDP features of devices, since Linux 6.3:
// include/uapi/linux/netdev.h, Documentation/netlink/specs/netdev.yaml.
const (
	netdevFamily       = "netdev"
	netdevVersion      = 1
	netdevGroup        = "mgmt"
	netdevCmdDevGet    = 1
	netdevAttrIfindex  = 1
	netdevAttrFeatures = 3
	// featureBasic is NETDEV_XDP_ACT_BASIC: the driver has native XDP.
	featureBasic = 1 << 0
	// featureTransmit is NETDEV_XDP_ACT_NDO_XMIT. A veth has this bit only while its peer has GRO or XDP.
	featureTransmit = 1 << 2
)

// xdpFeatures returns the feature bits of the devices by ifindex, nil if the kernel does not report them.
// It sends one request for each device: the messages of the kernel's dump lack NLM_F_MULTI, so the netlink
// library would stop after the first message.
func xdpFeatures(devices []netlink.Link) (map[int]uint64, error) {
	family, err := netlink.GenlFamilyGet(netdevFamily)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ask for XDP features: %w", err)
	}
	features := make(map[int]uint64, len(devices))
	for _, dev := range devices {
		request := nl.NewNetlinkRequest(int(family.ID), 0)
		request.AddData(genlHeader{netdevCmdDevGet, netdevVersion})
		request.AddData(nl.NewRtAttr(netdevAttrIfindex, nl.Uint32Attr(uint32(dev.Attrs().Index))))
		messages, err := request.Execute(unix.NETLINK_GENERIC, 0)
		if errors.Is(err, unix.ENODEV) {
			continue // the device was deleted a moment ago
		}
		if err != nil {
			return nil, fmt.Errorf("ask for XDP features of %s: %w", dev.Attrs().Name, err)
		}
		for _, message := range messages {
			ifindex, bits, err := parseFeatures(message)
			if err != nil {
				return nil, fmt.Errorf("ask for XDP features of %s: %w", dev.Attrs().Name, err)
			}
			features[ifindex] = bits
		}
	}
	return features, nil
}

// genlHeader is struct genlmsghdr: command, version, and two reserved bytes, which must be zero. nl.Genlmsg
// is not used, because it sends two undefined bytes in their place.
type genlHeader [nl.SizeofGenlmsg]byte

func (h genlHeader) Len() int          { return len(h) }
func (h genlHeader) Serialize() []byte { return h[:] }

func parseFeatures(message []byte) (ifindex int, bits uint64, err error) {
	if len(message) < nl.SizeofGenlmsg {
		return 0, 0, errors.New("short message")
	}
	attrs, err := nl.ParseRouteAttr(message[nl.SizeofGenlmsg:])
	if err != nil {
		return 0, 0, err
	}
	for _, attr := range attrs {
		switch {
		case attr.Attr.Type == netdevAttrIfindex && len(attr.Value) == 4:
			ifindex = int(binary.NativeEndian.Uint32(attr.Value))
		case attr.Attr.Type == netdevAttrFeatures && len(attr.Value) == 8:
			bits = binary.NativeEndian.Uint64(attr.Value)
		}
	}
	return ifindex, bits, nil
}

// transmitsXDP reports whether a device transmits frames that are redirected to it. Old kernels report no
// features. For these, the answer is true for a NIC with native XDP running. It is false for a veth, because
// there it depends on the peer.
func transmitsXDP(dev netlink.Link, features map[int]uint64) bool {
	if features != nil {
		return features[dev.Attrs().Index]&featureTransmit != 0
	}
	return isPhysical(dev.Attrs()) && xdpMode(dev) == XDPNative
}
