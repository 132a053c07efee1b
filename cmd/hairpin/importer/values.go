// SPDX-License-Identifier: Apache-2.0

package importer

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"hairpin/maps/rule"
)

// readPorts reads a range of ports, or one port twice.
func readPorts(first, last string) (rule.Ports, bool) {
	a, err := strconv.ParseUint(first, 10, 16)
	b, wrong := strconv.ParseUint(last, 10, 16)
	if err != nil || wrong != nil || a == 0 || a > b {
		return rule.Ports{}, false
	}
	return rule.Ports{First: uint16(a), Last: uint16(b)}, true
}

// readNetworks reads an address, a network, or a range of addresses.
func readNetworks(first, last string) ([]netip.Prefix, bool) {
	if strings.Contains(first, "/") {
		p, err := netip.ParsePrefix(first)
		if err != nil || p.Addr().Is4In6() {
			return nil, false
		}
		return []netip.Prefix{p.Masked()}, first == last
	}
	a, ok := readAddr(first)
	b, fine := readAddr(last)
	if !ok || !fine || a.BitLen() != b.BitLen() || b.Less(a) {
		return nil, false
	}
	return rangeOf(a, b), true
}

func readAddr(text string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(text)
	return a, err == nil && a.Zone() == "" && !a.Is4In6()
}

// rangeOf returns the networks that make up the addresses from a to b.
func rangeOf(a, b netip.Addr) (list []netip.Prefix) {
	for {
		bits := a.BitLen()
		for bits > 0 {
			larger := netip.PrefixFrom(a, bits-1)
			if larger.Masked().Addr() != a || b.Less(lastOf(larger)) {
				break
			}
			bits--
		}
		p := netip.PrefixFrom(a, bits)
		list = append(list, p)
		if end := lastOf(p); end == b || !end.Next().IsValid() {
			return list
		}
		a = lastOf(p).Next()
	}
}

// lastOf returns the last address of a network.
func lastOf(p netip.Prefix) netip.Addr {
	bytes := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(bytes)*8; bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(bytes)
	return last
}

// maxFrom is the largest number of networks in a list that the importer makes.
const maxFrom = 256

// without returns the networks that make up all addresses of a family outside of list. It reports false if they are too many.
func without(v6 bool, list []netip.Prefix) ([]netip.Prefix, bool) {
	all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if v6 {
		all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	left := []netip.Prefix{all}
	for _, hole := range list {
		var next []netip.Prefix
		for _, p := range left {
			next = append(next, cut(p, hole)...)
		}
		if left = next; len(left) > maxFrom {
			return nil, false
		}
	}
	return left, true
}

// cut returns the networks that make up p without hole.
func cut(p, hole netip.Prefix) (list []netip.Prefix) {
	switch {
	case !p.Overlaps(hole):
		return []netip.Prefix{p}
	case hole.Bits() <= p.Bits():
		return nil
	}
	for p.Bits() < hole.Bits() {
		low := netip.PrefixFrom(p.Addr(), p.Bits()+1)
		high := netip.PrefixFrom(lastOf(low).Next(), p.Bits()+1)
		if low.Overlaps(hole) {
			list, p = append(list, high), low
		} else {
			list, p = append(list, low), high
		}
	}
	return list
}

// otherProtocol stands for protocols that hairpin does not forward.
const otherProtocol rule.Protocol = 0

// protocolList reads names and numbers of protocols. It reports false if hairpin does not forward one of them.
func protocolList(values []value) ([]rule.Protocol, bool) {
	list, all := []rule.Protocol{}, true
	for _, v := range values {
		if v.first != v.last {
			return nil, false
		}
		p, ok := readProtocol(v.first)
		list, all = append(list, p), all && ok
	}
	return list, all
}

func readProtocol(text string) (rule.Protocol, bool) {
	switch text = strings.ToLower(text); text {
	case "icmpv6", "icmp6", "ipv6-icmp":
		return rule.ICMP, true
	case "ipencap", "ip-in-ip":
		return rule.IPIP, true
	}
	if p, err := rule.ParseProtocol(text); err == nil && p != rule.Any {
		return p, true
	}
	number, err := strconv.ParseUint(text, 10, 8)
	if err != nil {
		return otherProtocol, false
	}
	for _, p := range rule.Protocols() {
		if p == rule.ProtocolOf(uint8(number)) && p != rule.Any {
			return p, true
		}
	}
	return otherProtocol, false
}

// readTarget sets the address of a translation: an address, or a network for a translation of networks.
func (r *Rule) readTarget(first, last string, ok bool) {
	target, fine := readAddr(first)
	switch {
	case ok && fine && first == last:
		r.target = target
		return
	case ok && strings.Contains(first, "/"):
		if p, err := netip.ParsePrefix(first); err == nil {
			r.network = p.Masked()
			if p.IsSingleIP() {
				r.target, r.network = p.Addr(), netip.Prefix{}
			}
			return
		}
	case ok && fine:
		r.problems = join(r.problems, []string{fmt.Sprintf("it spreads connections over the targets %s to %s; write a forward with several servers yourself", first, last)})
		return
	}
	r.problems = join(r.problems, []string{"its target is not an address"})
}

// shellWord returns text as one word for a shell.
func shellWord(text string) string {
	if text != "" && strings.Trim(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./:@%+,=-") == "" {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
