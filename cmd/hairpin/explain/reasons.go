// SPDX-License-Identifier: Apache-2.0

package explain

// reasons says in plain words what each reason of the datapath means for a packet (enum reason in bpf/types.h). Each is the end of the
// sentence "The packet is dropped: ...".
var reasons = map[string]string{
	"malformed":        "its headers are not sound",
	"bad_checksum":     "the checksum of an ICMP error, or of the packet that it quotes, is wrong",
	"fragment_tiny":    "it is a first fragment without a complete transport header (RFC 1858)",
	"fragment_overlap": "it is a fragment with bytes that an earlier fragment had",
	"fragment_early":   "it is a fragment that came before the first fragment of its datagram",
	"icmp_error":       "it is an ICMP error about a connection",
	"mss":              "its MSS may have to be lowered, which TC does",
	"ttl_expired":      "its TTL is over at this router",
	"too_big":          "it is longer than the MTU of the next hop, and must not be divided",
	"non_syn":          "it does not open a connection, and has none: only a SYN opens a TCP connection",
	"bad_handshake":    "the client's third packet does not match the server's SYN/ACK",
	"ended":            "its connection is over: the forward or the address was removed, or a command ended it",
	"no_connection":    "it is an answer that belongs to no connection",
	"spoofed":          "no route to its source leads back by the interface that it came in by, so a host there cannot have this source (rp_filter)",
	"not_allowed":      "its source is not in the list \"from\" of the forward",
	"reflect_off":      "the client is not on a WAN, and the forward has reflect = \"off\"",
	"source_limit":     "the client, or its LAN, has as many connections as the limits allow (max_per_source, max_per_interface)",
	"table_full":       "the table of connections is full",
	"tuple_in_use":     "another connection has the same addresses and ports",
	"no_port":          "no source port is free for the connection (reflection.ports)",
	"port_fixed":       "its source port is taken, and cannot be changed",
	"no_address":       "the output interface has no address that the server could see as the source",
	"no_route":         "the router has no route to the target, a route forbids the way, or the only route leads out of a WAN, which would see an inside source",
	"not_attached":     "hairpin is not attached to the interface by which the packet would leave",
	"forwarding_off":   "the kernel does not forward packets of this interface (sysctl net.ipv4.ip_forward, net.ipv6.conf.all.forwarding)",
	"next_hop":         "the MAC address of the next hop is not known yet",
	"no_xdp_tx":        "the output device takes no frames of XDP",
	"partial_checksum": "its checksum is left to the device",
	"other_host":       "its frame is for another station",
	"write_failed":     "the packet could not be changed",
	"raced":            "another packet is changing the same connection at this moment",
	"source_route":     "it has the IPv4 option of a source route",
	"challenged":       "the table of half-open connections is under pressure, so a new client is challenged first",
	"leak":             "it would leave by a WAN with a target's private address as its source",
	"ipsec":            "an IPsec policy protects its way, and hairpin cannot encrypt",
	"private_source":   "it has a private source, on a WAN with a public address (interfaces.private_sources)",
	"denied":           "its source is denied (hairpin deny show)",
	"rate":             "the forward has opened as many connections as its rate allows",
	"source_rate":      "the client has opened as many connections as the forward's rate_per_source allows",
}

// Meaning says in plain words what a reason means for a packet; "" if the datapath drops no packet for this reason.
func Meaning(reason string) string { return reasons[reason] }
