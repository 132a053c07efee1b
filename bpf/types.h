// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* All types that the programs share with Go: map keys, map values, their enums. No code. bpf2go makes the Go types from
 * them. Padding is explicit. It must be zero in keys, because the kernel compares all bytes of a key. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>

/* IPv4 is stored v4-mapped (::ffff:a.b.c.d), so one key serves both families. */
union addr {
	__u8 bytes[16];
	__be32 word[4];
	__u64 half[2];		/* most addresses are copied and compared as two 64-bit words */
};

/* For an address that is not aligned to eight bytes, such as an address behind the prefix length of an LPM key. */
#define ADDR_BY_WORDS __attribute__((packed, aligned(4)))

/* Addresses, ports and protocol of a packet as it arrives: the key of one direction of a connection. */
struct tuple {
	union addr src;
	union addr dst;
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 pad[3];
};
_Static_assert(sizeof(struct tuple) == 40, "struct tuple has implicit padding");

/* How a connection reached its forward. */
enum conn_path {
	PATH_WAN,	/* the client is on the Internet */
	PATH_HAIRPIN,	/* reflected: the client is on a LAN */
	PATH_LOCAL,	/* the client is the router itself */
	PATHS,
};

/* The source address that a hairpin connection gets. */
enum reflect {
	REFLECT_AUTO,
	REFLECT_ROUTER,
	REFLECT_PUBLIC,
	REFLECT_PREFIX,
	REFLECT_OFF,
};

/* What an address may be: bits of the map maybe_external. */
enum maybe {
	MAYBE_EXTERNAL = 1 << 0,
	MAYBE_TARGET = 1 << 1,
};

/* The states of a connection. The opener's entry decides; the answerer's entry holds a copy. A connection only moves down
 * this list. */
enum conn_state {
	CONN_HALF_OPEN = 1,	/* TCP: the handshake is not complete; others: no answer yet */
	CONN_ESTABLISHED,
	CONN_CLOSING,		/* TCP: both FINs are acknowledged, or a RST had an exact sequence number */
	CONN_ENDED,		/* revoked, or a reflected non-TCP connection expired: entries only reserve tuples */
	CONN_GONE,		/* one CPU is inserting this entry, or deleting both entries */
};

/* The low 32 bits of an entry's identity. The serial is in the high 32 bits. */
enum conn_flag {
	CONN_STATE = 7,		/* mask of enum conn_state */
	CONN_PATH_SHIFT = 3,	/* position of the two bits of enum conn_path */
	CONN_OPENER = 1 << 5,	/* this entry is the opener's direction */
	CONN_FROM_WAN = 1 << 6,	/* packets of this direction come in by a WAN */
	CONN_LOCAL = 1 << 7,	/* packets of this direction go to the router itself */
	CONN_REBUILT = 1 << 8,	/* no handshake seen: a later packet rebuilt the connection, or the answerer restarted */
	CONN_NUMBERED = 1 << 9,	/* TCP: end and ack of this entry are valid */
	CONN_FIN = 1 << 10,	/* TCP: this side sent a FIN; end is the sequence number after the FIN */
	CONN_ANSWERED = 1 << 11, /* TCP, answerer's entry: the answerer sent a SYN, or a SYN/ACK that acknowledges the SYN */
	CONN_CHALLENGE = 1 << 12, /* half-open TCP, answerer's entry: one challenge ACK of the answerer may pass (RFC 5961 4); each SYN of the opener sets this flag */
	CONN_TOLD = 1 << 13,	/* TCP: the connection is over, and a RST was sent to both sides */
	CONN_PROVEN = 1 << 14,	/* half-open TCP: holds a place for proven sources (PLACE_HALF_PROVEN) */
	CONN_RESET = 1 << 15,	/* TCP: this side sent a RST with an exact sequence number */
	CONN_SCALE_SHIFT = 16,	/* position of the four bits of the TCP window scale (RFC 7323); 15: no such option */
	CONN_LAN_SHIFT = 20,	/* position of twelve bits: hash of the client's LAN interface, for its limit; 0: none */
};

enum role {
	ROLE_WAN = 1,
	ROLE_LAN = 2,
	ROLE_LOCAL = 3,	/* the loopback device: the router's own packets come in by it */
	ROLES,
};

/* What hairpin does with a packet. REFUSE is the drop of an opening that may not become a connection. */
enum verdict {
	VERDICT_PASS,	/* left unchanged to the kernel: not a packet of hairpin, or one that the kernel must handle */
	VERDICT_DEFER,	/* XDP: left to TC. TC: sent to its input interface once more (tc_reinject) */
	VERDICT_DROP,
	VERDICT_REFUSE,
	VERDICT_SEND,
	VERDICT_HOLD,	/* TC only: the fragment is kept until the first fragment of its datagram arrives */
	VERDICT_TELL,	/* counter only: the sender of a dropped packet gets an ICMP error, a RST or a challenge */
	VERDICT_READY,	/* internal, never the final verdict: the connection is prepared, and must be inserted */
	VERDICT_BEGUN,	/* internal, never the final verdict: the connection exists now */
	VERDICT_REPLACE, /* internal, never the final verdict: an old connection must be removed first */
};

/* The reason for a verdict. It is part of the counter's key. The name in lower case, without REASON_, is the metric
 * label. */
enum reason {
	REASON_NONE,
	REASON_MALFORMED,	/* headers that no IP stack accepts */
	REASON_BAD_CHECKSUM,	/* checksum of an ICMP error, or of the IP header that it quotes, is wrong */
	REASON_FRAGMENT_TINY,	/* first fragment without a complete transport header (RFC 1858) */
	REASON_FRAGMENT_OVERLAP, /* fragment has bytes that an earlier fragment had, or leaves too many gaps */
	REASON_FRAGMENT_EARLY,	/* fragment before the first of its datagram: held, or dropped if that is impossible */
	REASON_ICMP_ERROR,	/* with SEND: an ICMP error was translated */
	REASON_MSS,		/* XDP: a SYN whose MSS may have to be clamped */
	REASON_TTL_EXPIRED,
	REASON_TOO_BIG,		/* packet is longer than the MTU of the next hop */
	REASON_NON_SYN,		/* packet to a forward that has no connection and opens none (TCP: no SYN, SCTP: no INIT) */
	REASON_BAD_HANDSHAKE,	/* the opener's third packet does not match the SYN/ACK */
	REASON_ENDED,		/* the connection is over: its forward or address was removed, or a command ended it */
	REASON_NO_CONNECTION,	/* ICMP error, later fragment or answer of a target that belongs to no connection */
	REASON_SPOOFED,		/* source address does not belong to the networks behind the input interface */
	REASON_NOT_ALLOWED,	/* source address is not in the forward's from list */
	REASON_REFLECT_OFF,	/* client is not on a WAN, and the forward has reflect off */
	REASON_SOURCE_LIMIT,	/* the client, or its LAN, has as many connections as allowed */
	REASON_TABLE_FULL,	/* no free place or map entry for the connection */
	REASON_TUPLE_IN_USE,	/* another connection uses the tuple */
	REASON_NO_PORT,		/* no free source port for a reflected connection */
	REASON_PORT_FIXED,	/* source port is taken and must stay (no port to change, or a rebuilt connection) */
	REASON_NO_ADDRESS,	/* reflection: output interface has no address to use as the source */
	REASON_NO_ROUTE,
	REASON_NOT_ATTACHED,	/* hairpin is not attached to the input or output interface */
	REASON_FORWARDING_OFF,	/* IP forwarding is off (sysctl) */
	REASON_NEXT_HOP,	/* MAC address of the next hop is unknown, or was confirmed too long ago */
	REASON_NO_XDP_TX,	/* XDP: the output device takes no redirected frames, and the frame does not go back (XDP_TX) */
	REASON_PARTIAL_CHECKSUM, /* XDP: transport checksum may be left to the device (CHECKSUM_PARTIAL) */
	REASON_OTHER_HOST,	/* XDP: destination MAC address is not this router's */
	REASON_WRITE_FAILED,	/* packet could not be changed */
	REASON_BEGUN,		/* internal, never counted: another CPU has begun this connection */
	REASON_RACED,		/* another CPU is inserting or removing this connection; the sender will retransmit */
	REASON_OBSTACLE,	/* internal, never counted: an old connection must be removed first */
	REASON_NOT_OURS,	/* internal, never counted: has the tuple of a connection, but belongs to the kernel */
	REASON_SOURCE_ROUTE,	/* IPv4 option LSRR or SSRR (RFC 7126 4.3, 4.4) */
	REASON_CHALLENGED,	/* SYN flood: hairpin answers this SYN with a challenge, or this RST answers a challenge */
	REASON_LEAK,		/* leak guard: leaves by a WAN with the private address of a target as its source */
	REASON_IPSEC,		/* an IPsec policy protects the packet or its answers: it would leave unencrypted (RFC 4301 5.1) */
	REASON_PRIVATE_SOURCE,	/* private source on a WAN with a public address, and private_sources does not name the WAN */
	REASON_DENIED,		/* the client is a denied source */
	REASON_RATE,		/* the forward has opened as many connections as its rate allows */
	REASON_SOURCE_RATE,	/* the client has opened as many connections as the forward's rate for one client allows */
};

/* One side of a policy's selector. */
struct policy_side {
	union addr address;
	union addr mask;	/* of the 128 bit form */
	__be16 port;		/* under port_mask */
	__be16 port_mask;	/* 0: every port */
	__u32 pad;
};
_Static_assert(sizeof(struct policy_side) == 40, "struct policy_side has implicit padding");

/* An IPsec policy of the kernel for packets that leave. */
struct policy {
	struct policy_side src;
	struct policy_side dst;
	__u8 protocol;		/* 0: every protocol */
	__u8 protects;		/* 1: encrypts or blocks; 0: lets pass as they are */
	__u8 pad[6];
};
_Static_assert(sizeof(struct policy) == 88, "struct policy has implicit padding");

/* Forwards and their allow-lists have two slots. Packets use the slot generation & 1. */
struct live {
	__u32 generation;
};

/* The control plane raises the generation when routes or neighbours change. Hops of an older generation are stale. */
struct routes {
	__u32 generation;
};

/* Sides that get an ICMP error when hairpin refuses their packets: bits of settings.told. */
enum side {
	SIDE_WAN = 1 << 0,
	SIDE_LAN = 1 << 1,
};

/* All times are in nanoseconds. The first five are idle times. */
struct settings {
	__u64 tcp_established;	/* RFC 5382 REQ-5: at least 2 h 4 min */
	__u64 tcp_opening;	/* RFC 5382 REQ-5, RFC 7857 2.1: at least 4 min; during the handshake */
	__u64 tcp_closing;	/* RFC 5382 REQ-5, RFC 7857 2.1: at least 4 min; after both FINs or a RST */
	__u64 udp;		/* RFC 4787 REQ-5c: 5 min; also for every other protocol */
	__u64 icmp;		/* RFC 5508 REQ-2: 60 s */
	__u64 port_hold;	/* RFC 6888 REQ-8: for 120 s no other client gets the tuple of an ended connection */
	__u64 icmp_interval;	/* average interval of ICMP errors to one side; 0: no limit */
	enum side told;		/* bits of enum side: both may be set */
	__u32 source_limit;	/* RFC 6888 REQ-4: established connections of one client; 0: no limit */
	__u32 interface_limit;	/* established connections of all clients behind one LAN interface; 0: no limit */
	__u32 stand_ins;	/* 1: stand-ins are configured */
	__u32 affinity;		/* 1: a forward has affinity */
	__u32 pad;
	__u16 intercept_first;	/* lowest port of all intercepts; without intercepts, it is above intercept_last */
	__u16 intercept_last;	/* highest port of all intercepts */
	__u16 reflect_first;	/* lowest and highest source port of connections that show the router's address */
	__u16 reflect_last;
};
_Static_assert(sizeof(struct settings) == 88, "struct settings has implicit padding");

/* A forward or an external address, and its epoch when a connection was made. Once epochs[id] differs from epoch, the
 * connection is over. */
struct epoch_ref {
	__u32 id;
	__u32 epoch;
};

/* An address that forwards listen on. Id 0: there are no such forwards. If both ids are 0, the router has lost the address a
 * moment ago: nothing opens there, and the entry only keeps the epoch of its connections. */
struct external {
	__u32 fixed;	/* id of the forwards for exactly this address */
	__u32 group;	/* id of the forwards for the interface that has the address */
	struct epoch_ref address;
};
_Static_assert(sizeof(struct external) == 16, "struct external has implicit padding");

/* An address that the router has lost a moment ago. Only the control plane reads and writes it. */
struct absence {
	__u64 since;		/* CLOCK_MONOTONIC ns */
	__u32 group;		/* the id of its interface in struct external; 0: it was in no external entry */
	__u32 pad;
};
_Static_assert(sizeof(struct absence) == 16, "struct absence has implicit padding");

/* LPM key: external id, protocol, then a prefix of the port in network order. */
struct forward_key {
	__u32 prefix_length;
	__u32 external;
	__u8 protocol;
	__u8 pad;
	__be16 port;
};
_Static_assert(sizeof(struct forward_key) == 12, "struct forward_key has implicit padding");

/* How many connections may be opened in so many seconds, and how many at once. */
struct rate {
	__u32 count;		/* 0: as many as clients like */
	__u32 seconds;
};
_Static_assert(sizeof(struct rate) == 8, "struct rate has implicit padding");

struct forward {
	union addr target;	/* of the only server, or of the first one */
	struct epoch_ref epoch_ref;
	enum reflect reflect;
	__u16 port_shift;	/* target port - external port, modulo 65536 */
	__u8 restricted;	/* 1: the map allow has the sources that the forward takes */
	__u8 hides_clients;	/* 1: the target sees the router's address for every client, also from a WAN */
	__u8 wide;		/* 1: the forward has several ports */
	__u8 lan_only;		/* 1: packets that come in by a WAN belong to the kernel, as without the forward */
	__u8 pad[2];
	struct rate rate;	/* of all clients together */
	struct rate source_rate;	/* of each client */
	/* Several servers (balance.h). */
	__u32 places;		/* of the forward's lookup table; 0: there is one server */
	__u32 first_page;	/* of the lookup table, in the map lookups */
	__u32 first_server;	/* of the forward, in the map servers */
	__u32 affinity;		/* for so many seconds after a client's last opening; 0: there is no affinity */
};
_Static_assert(sizeof(struct forward) == 72, "struct forward has implicit padding");

/* One of several servers of a forward. */
struct server {
	union addr target;
	__u32 serial;		/* tells it from a later server with its number */
	__u16 port_shift;	/* target port - external port, modulo 65536 */
	__u8 number;		/* among the servers of the forward */
	__u8 takes;		/* 1: it takes new connections */
};
_Static_assert(sizeof(struct server) == 24, "struct server has implicit padding");

/* LOOKUP_PAGE places of a forward's lookup table. */
enum { LOOKUP_PAGE = 64 };
struct lookup_page {
	__u8 server[LOOKUP_PAGE];	/* numbers of servers */
};

/* Which clients the datapath remembers (balance.h): those whose connections are not yet established, and those that had one. */
enum affinity_kind { AFFINITY_NEW, AFFINITY_KNOWN, AFFINITIES };

/* A client of a forward with affinity. */
struct affinity_key {
	union addr client;	/* an address; of the Internet's IPv6 addresses, a /64 */
	__u32 forward;		/* id */
	__u32 pad;
};
_Static_assert(sizeof(struct affinity_key) == 24, "struct affinity_key has implicit padding");

/* The server of the client's last connection. */
struct affinity {
	__u32 second;		/* of the last opening, CLOCK_MONOTONIC */
	__u32 serial;		/* of the server */
	__u32 server;		/* its number */
};

enum { PORTS_ALL = 65536, PORT_BITS = 64 };

/* PORT_BITS bits of maybe_ports, from the lowest port on. */
struct port_bits {
	__u64 bits;
};

/* When the bucket of a rate is full again: GCRA, as in struct icmp_budget. */
struct bucket {
	__u64 full;		/* CLOCK_MONOTONIC ns */
};
_Static_assert(sizeof(struct bucket) == 8, "struct bucket has implicit padding");

/* The bucket of one client at one forward. The epoch tells it from that of an earlier forward with the id. */
struct source_bucket_key {
	__u64 client;		/* its hash, by which its connections are counted, too */
	struct epoch_ref forward;
};
_Static_assert(sizeof(struct source_bucket_key) == 16, "struct source_bucket_key has implicit padding");

/* LPM key: forward id, then a prefix of the source. */
struct allow_key {
	__u32 prefix_length;
	__u32 forward;
	union addr source;
};
_Static_assert(sizeof(struct allow_key) == 24, "struct allow_key has implicit padding");

/* LPM key: the family, so that ::/0 holds no IPv4 address, then a prefix of the source. */
struct denied_key {
	__u32 prefix_length;
	__u32 v6;
	union addr source;
};
_Static_assert(sizeof(struct denied_key) == 24, "struct denied_key has implicit padding");

/* A source that opens nothing, a single address or a network. The datapath reads until alone. The next two say who wants the entry. */
struct denial {
	__u32 until;		/* second of CLOCK_MONOTONIC from which on the entry means nothing; all bits set: for ever */
	__u32 asked;		/* the same of the command that has added it; 0: no command has */
	__u32 configured;	/* 1: the configuration has it */
};
_Static_assert(sizeof(struct denial) == 12, "struct denial has implicit padding");

/* LPM key: a prefix of addresses. */
struct prefix_key {
	__u32 prefix_length;
	union addr address ADDR_BY_WORDS;
};
_Static_assert(sizeof(struct prefix_key) == 20, "struct prefix_key has implicit padding");

/* A client and its stand-in have equal host bits. So one struct describes both directions: client to stand-in, and
 * back. */
struct stand_in {
	union addr network;	/* replaces the address bits that are set in mask */
	union addr mask;	/* mask of the 128-bit form: an IPv4 /24 has 120 bits set */
	__u32 client;		/* 1: the key is a network of clients; 0: of stand-ins */
	__u32 pad;
};
_Static_assert(sizeof(struct stand_in) == 40, "struct stand_in has implicit padding");

/* LPM key: target, protocol and wan, then a prefix of the port in network order. */
struct origin_key {
	__u32 prefix_length;
	union addr target ADDR_BY_WORDS;
	__u8 protocol;
	__u8 wan;		/* 1: for answers to the Internet; 0: for answers to stand-ins */
	__be16 port;
};
_Static_assert(sizeof(struct origin_key) == 24, "struct origin_key has implicit padding");

/* The only forward to a target's port. An origin for answers to the Internet is unique among all forwards, an origin for
 * answers to stand-ins is unique among the forwards with reflect prefix. */
struct origin {
	__u32 external;		/* id of the address that the forward listens on; 0: several forwards or an intercept */
	__u16 port_shift;	/* port_shift of the forward */
	__u8 wan;		/* wan of the key, stored here too: the prefix of the key may end before wan */
	__u8 several_wans;	/* 1: the router has several WANs */
	__u32 forward;		/* id of the forward */
};
_Static_assert(sizeof(struct origin) == 12, "struct origin has implicit padding");

/* Reflect public: the external port that stands for a client's port (RFC 4787 REQ-1). A mapping has two entries. The
 * entry by client and external address gives one external port to all connections of the client's port. The entry by
 * external address and port keeps other clients from this port. */
struct mapping {
	union addr client;
	__be16 client_port;
	__be16 port;	/* external port */
	__u32 pad;
};
_Static_assert(sizeof(struct mapping) == 24, "struct mapping has implicit padding");

/* A direct connection: a client's connection to a target without a forward (direct.h). Times are CLOCK_MONOTONIC s. */
struct direct {
	__u32 seen;	/* when the client last sent a packet that may open a connection */
	__u32 alone;	/* when hairpin last found no translated connection with the same answers; 0: never */
};

/* LPM key: an interface, then a prefix of the address of the other host. */
struct own_address_key {
	__u32 prefix_length;
	__u32 ifindex;
	union addr peer;
};
_Static_assert(sizeof(struct own_address_key) == 24, "struct own_address_key has implicit padding");

/* The address of the router that hosts with this prefix behind this interface know. Of an interface that hairpin is not
 * configured for, the map has the subnets alone: a WAN refuses their sources. */
struct own_address {
	union addr address;	/* unspecified: the interface is not configured */
	__u32 borrowed;		/* 1: another interface has the address, and this interface has none of the family */
	__u32 pad;
};
_Static_assert(sizeof(struct own_address) == 24, "struct own_address has implicit padding");

struct interface {
	enum role role;
	__u8 mac[6];		/* zero: the device has no Ethernet header */
	__u8 private;		/* 1: it has a private IPv4 address, so private sources may come in by it */
	__u8 rp_filter;		/* rp_filter of the kernel (RFC 3704), used for both families: 0 off, 1 strict, 2 loose */
	__u8 private_sources;	/* 1: the configuration accepts private sources on this WAN */
	__u8 xdp_tx;		/* 1: XDP sends frames back by this interface with XDP_TX */
	__u16 lost;		/* not 0: the interface has lost its name, and keeps its role for the grace: since when (CLOCK_MONOTONIC
				 * in seconds, lower 16 bits; 65535 for 0). Only the control plane reads and writes this field. */
	__u32 below;		/* macvlan: index of the device below it, which sends and receives its frames; 0: none */
	__u32 mss_mtu;		/* MTU in bytes that the MSS of a forwarded SYN must fit; 0: the MSS stays */
	__u32 intercept_v4, intercept_v6; /* LAN: external ids of its intercepts; 0: none */
};
_Static_assert(sizeof(struct interface) == 32, "struct interface has implicit padding");

/* How XDP can send a frame to a device. */
enum xdp_way {
	XDP_WAY_REDIRECT = 1 << 0,	/* by bpf_redirect_map: the device is in tx_ports */
	XDP_WAY_BACK = 1 << 1,	/* by XDP_TX: the frame has come in by this device */
};

/* A next hop, shared by all connections that use it. A connection stores the index and the generation of its hop. */
struct hop {
	__u32 generation;	/* raised when the content changes; odd while a CPU writes */
	__u32 resolved;		/* CLOCK_MONOTONIC ms: when the kernel last confirmed the hop */
	__u32 routes;		/* generation of struct routes at that time */
	__u32 ifindex;		/* output device */
	__u8 dst_mac[6] __attribute__((aligned(4)));	/* MAC addresses are aligned: else they are copied byte by byte */
	__u8 src_mac[6];
	__u8 local_mac[6] __attribute__((aligned(4)));	/* the router's, on the input interface */
	__u8 xdp;		/* bits of enum xdp_way: how XDP could send to the output device at that time */
	__u8 pad;
	__u32 mtu;		/* bytes */
};
_Static_assert(sizeof(struct hop) == 40, "struct hop has implicit padding");

/* One direction of a connection, without addresses: the part that both families share. The key of the other direction is
 * the reverse of the tuple with which this direction's packets leave. */
struct conn {
	__u64 identity;		/* serial << 32 | flags | state: changed only by compare-and-swap of all 64 bits */
	__u32 hop;		/* generation << 20 | index of hops; 0: unknown */
	__u32 forward;		/* low 15 bits of the creation time in s << 17 | forward id */
	__u32 address;		/* next 15 bits of the creation time in s << 17 | address id */
	__u32 epochs;		/* sum of the epochs of forward and address; once the sum differs, the connection is over */
	__u32 ifindex;		/* interface by which this direction's packets come in */
	__u32 seen;		/* when the last packet in order came: CLOCK_MONOTONIC ms, rounded down to a tick */
	__u32 packets;		/* packets of this direction */
	__u32 bytes;		/* sum of the IP total lengths, bits 0 to 31 */
	/* TCP: end is the sequence number after the last byte that this side sent; ack is the highest acknowledgement
	 * that this side sent. Other protocols: the opener's end counts evidence; nat_evidence explains the answerer's
	 * end and ack. */
	__u32 end;
	__u32 ack;
	__u16 window;		/* TCP: the window field as sent, not scaled */
	__u16 bytes_high;	/* sum of the IP total lengths, bits 32 to 47 */
	__be16 sport;		/* ports with which this direction's packets leave */
	__be16 dport;
};
_Static_assert(sizeof(struct conn) == 56, "struct conn has implicit padding");

/* An entry of IPv4. */
struct conn4 {
	struct conn conn;
	__be32 src;
	__be32 dst;
};
_Static_assert(sizeof(struct conn4) == 64, "struct conn4 has implicit padding");

/* An entry of IPv6. */
struct conn6 {
	struct conn conn;
	union addr src;
	union addr dst;
};
_Static_assert(sizeof(struct conn6) == 88, "struct conn6 has implicit padding");

/* The short form of struct tuple for IPv4. */
struct tuple4 {
	__be32 src;
	__be32 dst;
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 pad[3];
};
_Static_assert(sizeof(struct tuple4) == 16, "struct tuple4 has implicit padding");

/* Entries of a bucket, and how many bits of an entry's number are its slot in the bucket. */
enum { BUCKET_SLOTS = 3, BUCKET_SLOT_BITS = 2 };

/* A bucket of conns4: room for three entries (table.h). Header and keys fill one cache line, each entry fills another. */
struct bucket4 {
	__u32 passed;		/* entries that are in a later bucket of their walk */
	__u32 pad[3];
	struct tuple4 key[BUCKET_SLOTS];
	struct conn4 entry[BUCKET_SLOTS];
};
_Static_assert(sizeof(struct bucket4) == 256, "struct bucket4 has implicit padding");

/* A bucket of conns6. */
struct bucket6 {
	__u32 passed;
	__u32 pad[3];
	struct tuple key[BUCKET_SLOTS];
	struct conn6 entry[BUCKET_SLOTS];
};
_Static_assert(sizeof(struct bucket6) == 400, "struct bucket6 has implicit padding");

/* How the tables of entries are searched. The loader writes it once. */
struct table {
	__u64 random[10];	/* numbers of the hash of a key */
	__u32 buckets[2];	/* number of buckets of conns4 and conns6: prime numbers, so that no walk returns to a bucket */
};
_Static_assert(sizeof(struct table) == 88, "struct table has implicit padding");

/* Kinds of places. Each connection holds one place. Its state and protocol decide the kind. */
enum place_kind {
	PLACE_HALF_TCP,		/* half-open TCP */
	PLACE_HALF_PROVEN,	/* half-open TCP, and the client has answered a challenge */
	PLACE_HALF_OTHER,	/* half-open, all other protocols */
	PLACE_TCP,		/* established TCP */
	PLACE_OTHER,		/* established, all other protocols */
	PLACE_CLOSING,		/* closing and ended, all protocols */
	PLACES,
};

/* All places of one kind and family. The index in rings is kind * 2, plus 1 for IPv6. */
struct ring {
	__s64 count;		/* connections that hold a place; may be below zero for a moment (race G, lifecycle.h) */
	__u64 next;		/* number of slots handed out: the next slot is next % size */
	__u32 base;		/* index of the first place */
	__u32 size;		/* number of places */
	__u32 limit;		/* established TCP: most connections that may hold a place */
	__u32 evicted;		/* CLOCK_MONOTONIC ms: when a half-open UDP connection was last evicted; 0: never */
	__u32 pad[8];
};
_Static_assert(sizeof(struct ring) == 64, "struct ring has implicit padding");

/* A place. It names the connection that holds it: serial << 32 | number of the opener's entry; 0: free. A compare-and-swap changes
 * it. */
struct place {
	__u64 holder;
};
_Static_assert(sizeof(struct place) == 8, "struct place has implicit padding");

/* Counts of one client, or of all clients behind one LAN interface. */
struct source {
	__s32 established;	/* established TCP connections */
	__s32 established_other; /* established connections of all other protocols */
	__s32 half_open; /* half-open connections of all protocols */
	__u32 pad;
};

enum { COUNTS_PAGE = 256 };

/* Counts are stored in pages, so that user space reads or clears all of them with few system calls. */
struct source_page {
	struct source source[COUNTS_PAGE];
};

/* Counts of one forward. */
struct load {
	__s32 half_open;	/* half-open TCP connections */
	__s32 half_open_other;	/* half-open connections of all other protocols */
	__s32 other;		/* established connections of all other protocols */
	__u32 pad;
};

struct load_page {
	struct load load[COUNTS_PAGE];
};

/* The last SYN that the opener has sent in a connection that had its handshake before. */
struct late_syn {
	__u32 serial;	/* of the connection */
	__u32 first;	/* sequence number of the SYN */
	__u32 end;	/* sequence number after the SYN and its data */
	__u32 pad;
};

/* Each value: 16 bits of a source's hash, then the low 16 bits of the second in which the source answered a challenge. */
struct proven_page {
	__u32 proven[COUNTS_PAGE];
};

/* Key of keyed_hash: without this key, senders cannot predict the hashes. The loader writes the key once. */
struct secret {
	__u64 key[2];
};

/* Counter of each CPU from which open_serial makes the next serial. */
struct serial {
	__u32 next;
	__u32 pad;
};

/* The parts of an entry of conns4 or conns6 that conn_find copies. */
struct entry {
	__u64 identity;
	struct tuple to;	/* tuple with which the packets leave; never a key: its padding is not set */
	__u32 number;		/* of the entry in its table */
	__u32 pad;
};

/* One direction of a connection: its key, and a copy of its entry. */
struct direction {
	struct tuple key;
	struct entry entry;
};

/* The place that a connection needs, and how far the search for the place has come. */
struct place_want {
	__u64 holder;		/* what the place will hold (struct place) */
	enum place_kind kind;
	__u32 forward;		/* id of the connection's forward */
	__u32 slot;		/* the examined slot of the ring, from 0 */
	bool forward_over_share;	/* the forward holds more than its share: it must evict one of its own */
	bool client_over_share;	/* the client holds more than its share: it must evict one of its own */
	bool from_wan;		/* the client is on the Internet */
	bool chosen;		/* slot is set already: examine this slot first */
	bool taken;		/* the connection has its place */
};

/* The connection that will be evicted: among the holders of the examined places, the one with the lowest worth. */
struct place_victim {
	__u64 holder;		/* what its place holds; 0: none found yet */
	struct direction direction;
	__u32 index;		/* index of its place */
	__u64 worth;		/* result of place_worth */
};

/* Working memory of lifecycle.h. There is one in the struct work of each CPU, and one for the sweeper. */
struct scratch {
	struct place_want want;
	struct direction holder;	/* the connection that holds the examined place */
	struct place_victim victim;
	struct direction other;	/* the answerer's direction of the connection that is handled */
	struct tuple removed_answerer;	/* the answerer's key of the connection that is being removed */
	__u32 now;		/* CLOCK_MONOTONIC ms */
	__u32 pad;
};

/* The timer that visits all places, and the place that it visits next. */
struct sweeper {
	struct bpf_timer timer;
	__u32 ring;		/* index of rings */
	__u32 place;		/* slot in the ring */
	__u32 visits;		/* places visited in this step; not on the stack: the verifier would follow each value */
	__u32 left;		/* connections that left their place in this step */
	struct direction visited;	/* the visited connection; scratch is for life_move and life_remove */
	struct scratch scratch;
};

struct fragment_key {
	union addr src;
	union addr dst;
	__u32 ifindex;
	__be32 id;
	__u8 protocol;
	__u8 pad[7];
};
_Static_assert(sizeof(struct fragment_key) == 48, "struct fragment_key has implicit padding");

/* Who gets the fragments of a datagram. */
enum fragment_owner {
	OWNER_UNKNOWN,		/* nobody yet: the first fragment has not arrived */
	OWNER_CONN,		/* a connection: the fragments are translated */
	OWNER_KERNEL,		/* the kernel: the fragments are passed */
	OWNER_NOBODY,		/* nobody: the first fragment was dropped, so all fragments are dropped */
};

/* A part of a datagram's payload, in units of 8 bytes. end is the first unit after the part. */
struct fragment_range {
	__u16 start;
	__u16 end;
};

enum { FRAGMENT_RANGES = 8 };

/* A datagram that arrives in fragments. */
struct fragment {
	__u64 seen;		/* when the earliest fragment came: CLOCK_MONOTONIC ns, rounded down to a tick */
	__be16 sport;		/* ports, from the first fragment */
	__be16 dport;
	__u8 owner;		/* enum fragment_owner */
	__u8 held;		/* how many fragments were put into held_fragments so far */
	__u16 length;		/* payload length in units of 8 bytes; 0: the last fragment has not arrived yet */
	struct fragment_range range[FRAGMENT_RANGES];	/* received parts of the payload; end 0: unused */
};
_Static_assert(sizeof(struct fragment) == 48, "struct fragment has implicit padding");

struct held_key {
	struct fragment_key datagram;
	__u32 number;		/* number of the fragment: from 0, in order of arrival */
	__u32 pad;
};
_Static_assert(sizeof(struct held_key) == 56, "struct held_key has implicit padding");

enum { HELD_BYTES = 2036 };

/* A fragment that arrived before the first fragment of its datagram. bytes begin with the IP header. */
struct held_fragment {
	__u32 length;	/* bytes in use */
	__u8 bytes[HELD_BYTES];
};

enum { SCRATCH_PACKET_SIZE = 1 << 16, SCRATCH_PACKET_PIECE = 1 << 14 };

/* Room to build an IP packet. The extra SCRATCH_PACKET_PIECE is for the verifier: it must assume that a read of this
 * length begins at the last byte of the packet. */
struct scratch_packet {
	__u8 packet[SCRATCH_PACKET_SIZE + SCRATCH_PACKET_PIECE];
};

/* Rate limit of ICMP errors and RSTs by GCRA. There is one for each enum role. */
struct icmp_budget {
	__u64 next;		/* CLOCK_MONOTONIC ns: when the whole burst is available again */
};

struct traffic {
	__u64 packets;
	__u64 bytes;
};

/* Counters of one forward on one CPU. */
struct forward_stats {
	struct traffic traffic[PATHS][2];	/* packets by path and direction; [0] is the opener's direction */
	__u64 established[PATHS];	/* connections that completed their handshake */
	__u64 closed[PATHS];		/* established connections that have ended */
	__u64 refused;			/* packets that would have opened a connection, and were refused */
	__u32 hit;			/* CLOCK_MONOTONIC s: last packet that was translated, or opening that was refused; 0: none yet */
	__u32 pad;
};

/* Events that are counted on each CPU. A walk of the tables cannot find them. */
enum conn_event {
	EVENT_OPENED,		/* a half-open connection was inserted */
	EVENT_ESTABLISHED,	/* a connection completed its handshake */
	EVENT_ABANDONED,	/* a half-open connection expired, was revoked, or was replaced on its tuple */
	EVENT_EVICTED,		/* a half-open connection lost its place to a newer one, or found no place */
	EVENT_CLOSED,		/* an established connection ended */
	EVENT_DISPLACED,	/* an established connection, not TCP, lost its place to a newer one */
	EVENTS,
};

struct counter_key {
	__u32 ifindex;
	enum verdict verdict;
	enum reason reason;
};

/* Argument of hairpin_end, by which user space ends one connection. */
struct end_request {
	struct tuple key;	/* key of one of the two directions */
	__u32 serial;		/* serial of the connection to end; 0: end any connection with this key */
	__u32 found;		/* result: 1 if the connection was found */
};

/* Argument of hairpin_correct, by which user space corrects a count. */
struct correct_request {
	__s64 change;		/* is added to the count of the ring */
	__u32 ring;		/* index of rings */
	__u32 pad;
};
