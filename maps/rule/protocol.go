// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Protocol is what forwards may have: an IP protocol number, and ICMP for that of
// either family.
type Protocol uint8

// The protocols of forwards.
const (
	TCP     Protocol = unix.IPPROTO_TCP
	UDP     Protocol = unix.IPPROTO_UDP
	SCTP    Protocol = unix.IPPROTO_SCTP
	ICMP    Protocol = unix.IPPROTO_ICMP // echo; errors follow the connections they are about
	UDPLite Protocol = unix.IPPROTO_UDPLITE
	GRE     Protocol = unix.IPPROTO_GRE
	ESP     Protocol = unix.IPPROTO_ESP
	IPIP    Protocol = unix.IPPROTO_IPIP
	// Any is every protocol above. Its number is reserved: no packet has it.
	Any Protocol = 255
)

// protocols is in the order that messages list them.
var protocols = []struct {
	Protocol
	name  string
	ports bool // forwards may select by port; the others go by address alone
}{
	{TCP, "tcp", true},
	{UDP, "udp", true},
	{SCTP, "sctp", true},
	{ICMP, "icmp", false},
	{UDPLite, "udplite", false},
	{GRE, "gre", false},
	{ESP, "esp", false},
	{IPIP, "ipip", false},
	{Any, "any", false},
}

// Protocols lists what a forward may have as its protocol, Any as the last one.
func Protocols() []Protocol {
	all := make([]Protocol, len(protocols))
	for i, p := range protocols {
		all[i] = p.Protocol
	}
	return all
}

// Number is the protocol's number in packets of a family.
func (p Protocol) Number(v6 bool) uint8 {
	if p == ICMP && v6 {
		return unix.IPPROTO_ICMPV6
	}
	return uint8(p)
}

// ProtocolOf is the protocol that a number in a packet stands for.
func ProtocolOf(number uint8) Protocol {
	if number == unix.IPPROTO_ICMPV6 {
		return ICMP
	}
	return Protocol(number)
}

// ProtocolNames lists what a forward may have as its protocol; the last one,
// "any", is all the others.
func ProtocolNames() []string {
	words := make([]string, len(protocols))
	for i, p := range protocols {
		words[i] = p.name
	}
	return words
}

// ParseProtocol reads a protocol by its name, such as "tcp".
func ParseProtocol(text string) (Protocol, error) {
	for _, p := range protocols {
		if p.name == text {
			return p.Protocol, nil
		}
	}
	return 0, fmt.Errorf("%s is not a supported protocol; %s", Quote(text), Suggest(text, ProtocolNames()...))
}

// String is the protocol's name, its number if it has none here.
func (p Protocol) String() string {
	for _, known := range protocols {
		if known.Protocol == p {
			return known.name
		}
	}
	return fmt.Sprintf("protocol-%d", uint8(p))
}

// MarshalText implements encoding.TextMarshaler.
func (p Protocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Protocol) UnmarshalText(text []byte) error {
	protocol, err := ParseProtocol(string(text))
	if err == nil {
		*p = protocol
	}
	return err
}

// HasPorts reports whether forwards of the protocol may select by port.
func (p Protocol) HasPorts() bool {
	for _, known := range protocols {
		if known.Protocol == p {
			return known.ports
		}
	}
	return false
}
