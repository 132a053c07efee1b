// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Protocol is the protocol of a forward, an IP protocol number. ICMP also stands for ICMPv6, and Any for every protocol.
type Protocol uint8

// The protocols of forwards.
const (
	TCP     Protocol = unix.IPPROTO_TCP
	UDP     Protocol = unix.IPPROTO_UDP
	SCTP    Protocol = unix.IPPROTO_SCTP
	ICMP    Protocol = unix.IPPROTO_ICMP // echo only; an ICMP error belongs to the connection that it quotes
	UDPLite Protocol = unix.IPPROTO_UDPLITE
	GRE     Protocol = unix.IPPROTO_GRE
	ESP     Protocol = unix.IPPROTO_ESP
	IPIP    Protocol = unix.IPPROTO_IPIP
	// Any means every protocol above. 255 is reserved by IANA, so no packet has this number.
	Any Protocol = 255
)

// protocols has the supported protocols, in the order in which messages list them.
var protocols = []struct {
	Protocol
	name  string
	ports bool // a forward may select ports; false: only addresses
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

// Protocols returns the protocols that a forward may have; the last is Any.
func Protocols() []Protocol {
	all := make([]Protocol, len(protocols))
	for i, p := range protocols {
		all[i] = p.Protocol
	}
	return all
}

// Number returns the protocol number in an IPv4 packet, or in an IPv6 packet if v6: ICMP has two numbers.
func (p Protocol) Number(v6 bool) uint8 {
	if p == ICMP && v6 {
		return unix.IPPROTO_ICMPV6
	}
	return uint8(p)
}

// ProtocolOf returns the Protocol of a protocol number in a packet. The number of ICMPv6 gives ICMP.
func ProtocolOf(number uint8) Protocol {
	if number == unix.IPPROTO_ICMPV6 {
		return ICMP
	}
	return Protocol(number)
}

// ProtocolNames returns the names of the protocols that a forward may have; the last is "any".
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

// String returns the protocol's name, or "protocol-N" for a number without a name here.
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
