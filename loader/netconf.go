// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Attributes of rtnetlink messages about net.ipv4.conf: linux/netconf.h.
const (
	netconfaIfindex  = 1
	netconfaRPFilter = 3
	netconfaAll      = -1 // net.ipv4.conf.all
)

// rpFilterOf holds the values of net.ipv4.conf.*.rp_filter by ifindex.
type rpFilterOf map[int]uint8

// of returns the effective value for an interface: the larger of net.ipv4.conf.all.rp_filter and its own
// value (Documentation/networking/ip-sysctl.rst).
func (f rpFilterOf) of(ifindex int) uint8 { return max(f[netconfaAll], f[ifindex]) }

// rpFilters reads rp_filter of all interfaces in one request.
func rpFilters() (rpFilterOf, error) {
	messages, err := retryDump(func() ([][]byte, error) {
		request := nl.NewNetlinkRequest(unix.RTM_GETNETCONF, unix.NLM_F_DUMP)
		request.AddData(netconfHeader{unix.AF_INET})
		return request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNETCONF)
	})
	if err != nil {
		return nil, fmt.Errorf("read rp_filter: %w", err)
	}
	filters := make(rpFilterOf, len(messages))
	for _, message := range messages {
		ifindex, value, err := parseRPFilter(message)
		if err != nil {
			return nil, fmt.Errorf("read rp_filter: %w", err)
		}
		filters[ifindex] = value
	}
	return filters, nil
}

// netconfHeader is struct netconfmsg: the address family and padding.
type netconfHeader [unix.NLMSG_ALIGNTO]byte

func (h netconfHeader) Len() int          { return len(h) }
func (h netconfHeader) Serialize() []byte { return h[:] }

func parseRPFilter(message []byte) (ifindex int, value uint8, err error) {
	header := len(netconfHeader{})
	if len(message) < header {
		return 0, 0, fmt.Errorf("a message of %d bytes", len(message))
	}
	attrs, err := nl.ParseRouteAttr(message[header:])
	if err != nil {
		return 0, 0, err
	}
	for _, attr := range attrs {
		if len(attr.Value) != 4 {
			continue
		}
		number := int32(binary.NativeEndian.Uint32(attr.Value))
		switch attr.Attr.Type {
		case netconfaIfindex:
			ifindex = int(number)
		case netconfaRPFilter:
			value = uint8(min(max(number, 0), 2)) // the kernel treats a value above 1 as loose
		}
	}
	return ifindex, value, nil
}
