// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Policy is an IPsec policy of the kernel for packets that leave (ip-xfrm(8), dir out).
type Policy struct {
	Source, Destination PolicySide
	Protocol            uint8  // 0: every protocol
	Protects            bool   // encrypts or blocks; otherwise packets leave as they are
	priority            uint32 // a lower one is asked first
}

// PolicySide is the source or the destination of a policy.
type PolicySide struct {
	Network        netip.Prefix
	Port, PortMask uint16 // in host order; PortMask 0: every port
}

// Policies lists the IPsec policies of the network namespace, in the order in which the kernel asks them. It is empty if
// the kernel has no IPsec.
//
// Policies with an if_id or a mark are left out: they are for packets of an xfrm or VTI device, which asks them itself
// when a packet is sent by the device, or for packets that netfilter marks later than hairpin sees them.
//
// The datapath does not compare devices. So a policy of one device counts for every device if it protects packets, and is
// left out if it lets them pass: such packets must not leave as they are by another device.
func Policies() ([]Policy, error) {
	messages, err := retryDump(func() ([][]byte, error) {
		request := nl.NewNetlinkRequest(nl.XFRM_MSG_GETPOLICY, unix.NLM_F_DUMP)
		request.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		return request.Execute(unix.NETLINK_XFRM, nl.XFRM_MSG_NEWPOLICY)
	})
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, nil
	}
	if err != nil {
		return nil, explain(fmt.Errorf("list IPsec policies: %w", err))
	}
	var policies []Policy
	for _, message := range messages {
		p, applies, err := parsePolicy(message)
		if err != nil {
			return nil, fmt.Errorf("list IPsec policies: %w", err)
		}
		if applies {
			policies = append(policies, p)
		}
	}
	// The kernel lists the newest policy first. Of two policies with one priority it asks the older one first.
	slices.Reverse(policies)
	slices.SortStableFunc(policies, func(a, b Policy) int { return cmp.Compare(a.priority, b.priority) })
	return policies, nil
}

// parsePolicy reads a struct xfrm_userpolicy_info with its attributes. The library's own reader takes some IPv6 networks
// for IPv4 ones. applies is false for a policy of another direction, and for one that Policies leaves out.
func parsePolicy(message []byte) (p Policy, applies bool, err error) {
	if len(message) < nl.SizeofXfrmUserpolicyInfo {
		return p, false, errors.New("a message is too short")
	}
	info := nl.DeserializeXfrmUserpolicyInfo(message)
	p = Policy{
		Source:      policySide(info.Sel.Saddr, info.Sel.PrefixlenS, info.Sel.Family, info.Sel.Sport, info.Sel.SportMask),
		Destination: policySide(info.Sel.Daddr, info.Sel.PrefixlenD, info.Sel.Family, info.Sel.Dport, info.Sel.DportMask),
		Protocol:    info.Sel.Proto,
		Protects:    netlink.PolicyAction(info.Action) == netlink.XFRM_POLICY_BLOCK,
		priority:    info.Priority,
	}
	attributes, err := nl.ParseRouteAttr(message[nl.SizeofXfrmUserpolicyInfo:])
	if err != nil {
		return p, false, err
	}
	applies = netlink.Dir(info.Dir) == netlink.XFRM_DIR_OUT
	for _, a := range attributes {
		switch a.Attr.Type {
		case nl.XFRMA_TMPL:
			p.Protects = p.Protects || len(a.Value) > 0
		case nl.XFRMA_IF_ID:
			applies = applies && allZero(a.Value)
		case nl.XFRMA_MARK:
			// A mask alone asks for packets without these marks.
			applies = applies && allZero(a.Value[:min(4, len(a.Value))])
		}
	}
	if info.Sel.Ifindex != 0 && !p.Protects {
		applies = false
	}
	return p, applies, nil
}

func allZero(value []byte) bool {
	return !slices.ContainsFunc(value, func(b byte) bool { return b != 0 })
}

// policySide reads one side of a selector; ports are in network order. A policy for every packet may have no family.
func policySide(address nl.XfrmAddress, length uint8, family, port, mask uint16) PolicySide {
	addr := netip.AddrFrom16(address)
	if family != unix.AF_INET6 {
		addr = netip.AddrFrom4([4]byte(address[:4]))
	}
	return PolicySide{netip.PrefixFrom(addr, int(length)).Masked(), bits.ReverseBytes16(port), bits.ReverseBytes16(mask)}
}
