// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Every type that both the kernel and Go see: map keys, map values, their enums. No code.
 * Padding is explicit and must be zero in keys; sizes are asserted, Go gets its twin by bpf2go. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

/* IPv4 is stored v4-mapped (::ffff:a.b.c.d), so one key serves both families. */
union addr {
	__u8 bytes[16];
	__be32 word[4];
};

/* A packet's addresses as it arrives: the key of a connection's direction. */
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
	PATH_WAN,
	PATH_HAIRPIN,
	PATH_LOCAL,
	PATHS,
};

/* What the source of a hairpin connection becomes. */
enum reflect {
	REFLECT_AUTO,
	REFLECT_ROUTER,
	REFLECT_PUBLIC,
	REFLECT_PREFIX,
	REFLECT_OFF,
};

/* How far a connection has come; what counts is the opener's entry. */
enum conn_state {
	CONN_HALF_OPEN,		/* its handshake has not completed */
	CONN_GONE,		/* half-open, and on its way out */
	CONN_ESTABLISHED,	/* and what comes after it */
	CONN_EXPIRED,		/* idle for too long: only keeps its tuple from other clients for a while */
};

enum role {
	ROLE_WAN = 1,
	ROLE_LAN = 2,
	ROLE_LOCAL = 3,	/* the loopback device: by it the router's own packets come in */
	ROLES,
};

/* What becomes of a packet; REFUSE is the drop of an opening that may not become a connection. */
enum verdict {
	VERDICT_PASS,	/* not ours, or the kernel knows better: untouched, to the stack */
	VERDICT_DEFER,	/* ours, but for the TC program to do: XDP's, or TC's own when it comes in once more */
	VERDICT_DROP,
	VERDICT_REFUSE,
	VERDICT_SEND,
	VERDICT_HOLD,	/* TC only: a fragment kept until the first of its datagram arrives */
	VERDICT_TELL,	/* counter only: a DROP or REFUSE that was answered with an ICMP error */
	VERDICT_BEGUN,	/* never the last word: there is a connection now */
};

/* Why. Also the counter index, and in lower case the metric label. */
enum reason {
	REASON_NONE,
	REASON_MALFORMED,	/* headers that no stack would accept */
	REASON_BAD_CHECKSUM,	/* of an ICMP error, or of the IP header it quotes */
	REASON_FRAGMENT_TINY,	/* first fragment without a whole transport header (RFC 1858) */
	REASON_FRAGMENT_OVERLAP, /* covers bytes that another fragment has brought */
	REASON_FRAGMENT_EARLY,	/* came before the first of its datagram: held, or too long for that */
	REASON_ICMP_ERROR,	/* with SEND: translated */
	REASON_MSS,		/* XDP: a SYN whose MSS may have to be clamped */
	REASON_TTL_EXPIRED,
	REASON_TOO_BIG,		/* for the MTU of the next hop */
	REASON_NON_SYN,		/* TCP to a forward without connection and SYN, or SCTP without INIT */
	REASON_BAD_HANDSHAKE,	/* the opener's answer does not match the SYN/ACK */
	REASON_ENDED,		/* the connection is over: forward or address has gone */
	REASON_NO_CONNECTION,	/* an ICMP error about a forward's packet that no connection sent */
	REASON_SPOOFED,		/* source does not belong behind the interface it came in by */
	REASON_NOT_ALLOWED,	/* not in the forward's from list */
	REASON_REFLECT_OFF,
	REASON_SOURCE_LIMIT,	/* its client has as many connections as one may have */
	REASON_TABLE_FULL,
	REASON_TUPLE_IN_USE,	/* the answer would be taken for another connection's */
	REASON_NO_PORT,		/* no free source port for a reflected connection */
	REASON_PORT_FIXED,	/* its source port is taken, and its protocol's ports cannot be changed */
	REASON_NO_ADDRESS,	/* the output interface has no address to reflect from */
	REASON_NO_ROUTE,
	REASON_NOT_ATTACHED,	/* in or out through an interface hairpin does not watch */
	REASON_FORWARDING_OFF,	/* ip_forward is 0 */
	REASON_NEXT_HOP,	/* unknown, or due for renewal */
	REASON_NO_XDP_TX,	/* XDP: output device does not take XDP frames */
	REASON_PARTIAL_CHECKSUM, /* XDP: transport checksum may be left to an offload */
	REASON_OTHER_HOST,	/* XDP: frame for another station */
	REASON_WRITE_FAILED,	/* the kernel refused a write to the packet */
	REASON_LEAK,		/* out by a WAN, with a target's private address as its source */
};

/* Two slots of forwards and allow-lists; the slot generation & 1 is live. */
struct live {
	__u32 generation;
};

/* Raised by the control plane when routes or neighbours change: cached next hops are then stale. */
struct routes {
	__u32 generation;
};

/* Sides that are told when they are refused: bits of struct settings. */
enum side {
	SIDE_WAN = 1 << 0,
	SIDE_LAN = 1 << 1,
};

/* Idle times in nanoseconds. */
struct settings {
	__u64 tcp_established;	/* RFC 5382 REQ-5: at least 2 h 4 min */
	__u64 tcp_opening;	/* RFC 5382 REQ-5, RFC 7857 2.1: at least 4 min */
	__u64 tcp_closing;	/* the same */
	__u64 udp;		/* RFC 4787 REQ-5c: 5 min; also of every other protocol */
	__u64 icmp;		/* RFC 5508 REQ-2: 60 s */
	__u64 port_hold;	/* RFC 6888 REQ-8: 120 s */
	__u64 icmp_interval;	/* between two ICMP errors to one side, on average; 0: no limit */
	enum side told;		/* bits: both sides may be told */
	__u32 source_limit;	/* RFC 6888 REQ-4: connections of one client address; 0: no limit */
	__u32 stand_ins;	/* whether there are any */
	__u16 intercept_first;	/* lowest port that an intercept has; above the highest one: there is none */
	__u16 intercept_last;
};
_Static_assert(sizeof(struct settings) == 72, "struct settings has implicit padding");

/* What a connection was made from. Once epochs[id] differs from epoch the connection is over. */
struct stamp {
	__u32 id;
	__u32 epoch;
};

/* An address that forwards listen on: forwards for just this address, and for its interface; 0 is none. */
struct external {
	__u32 fixed;
	__u32 group;
	struct stamp address;
};
_Static_assert(sizeof(struct external) == 16, "struct external has implicit padding");

/* LPM key: external id, protocol, then a prefix of the port in network order. */
struct forward_key {
	__u32 prefix_length;
	__u32 external;
	__u8 protocol;
	__u8 pad;
	__be16 port;
};
_Static_assert(sizeof(struct forward_key) == 12, "struct forward_key has implicit padding");

struct forward {
	union addr target;
	struct stamp stamp;
	enum reflect reflect;
	__u16 port_shift;	/* target port = external port + this, modulo 65536 */
	__u8 restricted;	/* has a from list in allow */
	__u8 pad;
};
_Static_assert(sizeof(struct forward) == 32, "struct forward has implicit padding");

/* LPM key: forward id, then a prefix of the source. */
struct allow_key {
	__u32 prefix_length;
	__u32 forward;
	union addr source;
};
_Static_assert(sizeof(struct allow_key) == 24, "struct allow_key has implicit padding");

/* LPM key: a client's address, or its stand-in. */
struct stand_in_key {
	__u32 prefix_length;
	union addr address;
};
_Static_assert(sizeof(struct stand_in_key) == 20, "struct stand_in_key has implicit padding");

/* Clients and their stand-ins have the same host bits, so one value serves both ways. */
struct stand_in {
	union addr network;	/* what the bits under mask become */
	union addr mask;	/* of the 128 bit form */
	__u32 client;		/* 1: the key is a client's, 0: a stand-in's */
};
_Static_assert(sizeof(struct stand_in) == 36, "struct stand_in has implicit padding");

/* LPM key: a target and protocol, then a prefix of the port in network order. */
struct origin_key {
	__u32 prefix_length;
	union addr target;
	__u8 protocol;
	__u8 pad;
	__be16 port;
};
_Static_assert(sizeof(struct origin_key) == 24, "struct origin_key has implicit padding");

/* The forward with reflect prefix that leads to a target, seen from there. */
struct origin {
	__u32 external;		/* where it listens; 0: several lead there */
	__u16 port_shift;	/* as in struct forward */
	__u16 pad;
};
_Static_assert(sizeof(struct origin) == 8, "struct origin has implicit padding");

/* Of reflect public: the external port that stands for a client's (RFC 4787 REQ-1). Kept twice: by client
 * and external address, to be the same for all its connections, and by what it stands for, to be its alone. */
struct mapping {
	union addr client;
	__be16 client_port;
	__be16 port;
};
_Static_assert(sizeof(struct mapping) == 20, "struct mapping has implicit padding");

struct interface_address {
	union addr address;
	union addr mask;	/* of the 128 bit form: an IPv4 /24 has 120 bits set */
};

struct interface {
	enum role role;
	__u8 mac[6];		/* zero without Ethernet header */
	__u8 private;		/* its own address is private, so private sources are no martians on it */
	__u8 addresses;		/* how many of address[] are set */
	__u8 rp_filter;		/* the kernel's, for IPv4 (RFC 3704): 0 off, 1 strict, 2 by any way back */
	__u8 pad[3];
	__u32 mss_mtu;		/* MTU that a passing SYN's MSS has to suit; 0: left alone */
	__u32 intercept_v4, intercept_v6; /* external ids of what listens on every address; 0: nothing does */
	struct interface_address address[8];
};
_Static_assert(sizeof(struct interface) == 284, "struct interface has implicit padding");

/* Where a direction's packets leave. Resolved again after a second or when routes change. */
struct next_hop {
	__u64 resolved;		/* CLOCK_MONOTONIC ns; 0: unknown */
	__u32 routes;		/* struct routes generation it was resolved under */
	__u32 ifindex;
	__u8 dst_mac[6] __attribute__((aligned(4)));	/* aligned, as all MAC addresses: else they are copied by bytes */
	__u8 src_mac[6];
	__u8 local_mac[6] __attribute__((aligned(4)));	/* ours, where this direction's packets come in */
	__u8 xdp;		/* 1: in tx_ports, at that time */
	__u8 pad;
	__u32 mtu;
};
_Static_assert(sizeof(struct next_hop) == 40, "struct next_hop has implicit padding");

/* When a packet for this neighbour last went the kernel's way, which keeps its entry alive. */
struct renewal {
	__u64 time;		/* CLOCK_MONOTONIC ns */
	__u32 ifindex;
	__u8 mac[6];
	__u8 pad[2];
	__u32 pad2;
};
_Static_assert(sizeof(struct renewal) == 24, "struct renewal has implicit padding");

/* One direction of a connection; the other one's key is this one's `to` reversed. */
struct conn {
	struct tuple to;	/* what its packets leave as */
	__u64 last_seen;	/* CLOCK_MONOTONIC ns, of a tick */
	__u64 packets;
	__u64 bytes;		/* IP total length */
	__wsum address_diff;	/* what the checksums change by, from the key to `to` */
	__wsum port_diff;
	struct next_hop hop;
	struct stamp forward;
	struct stamp address;
	enum conn_state state;
	__u32 ifindex;		/* interface the opener came in by */
	__u8 path;		/* enum conn_path */
	__u8 opener;		/* 1: the direction that opened the connection */
	__u8 fin;		/* TCP: sent a FIN, whose end is `end` */
	__u8 rst;		/* TCP: an exact RST of either side, nothing since from this one */
	__u8 local;		/* its packets are for the router itself */
	__u8 rebuilt;		/* made from its rule in the middle: nobody has seen its handshake */
	__u8 queued;		/* the opener's: its key waits in visits */
	__u8 told;		/* it is over, and both sides were told */
	__u32 ack;		/* TCP: last acknowledgement it sent */
	__u32 end;		/* TCP: sequence number after its SYN, later after its FIN */
	__u64 created;		/* CLOCK_MONOTONIC ns */
};
_Static_assert(sizeof(struct conn) == 160, "struct conn has implicit padding");

/* How many connections are established, or keep their tuples though they are not; and how many may be. */
struct census {
	__u32 established;
	__u32 limit;		/* set by the loader; 0: as many as find room */
};

/* An appointment to see whether a connection has expired. */
struct visit {
	struct tuple key;	/* the opener's */
	__u64 created;		/* of the connection meant, should its key have become another's; but in visits it is the key's */
};

/* The one timer that keeps the appointments. */
struct sweeper {
	struct bpf_timer timer;
};

struct fragment_key {
	union addr src;
	union addr dst;
	__u32 ifindex;
	__be32 id;
	__u8 protocol;
	__u8 pad[3];
};
_Static_assert(sizeof(struct fragment_key) == 44, "struct fragment_key has implicit padding");

enum fragment_owner {
	OWNER_UNKNOWN,		/* its first fragment has not come yet */
	OWNER_CONN,		/* a connection's */
	OWNER_KERNEL,
	OWNER_NOBODY,		/* its first fragment was dropped */
};

/* Of a datagram's payload, in units of 8 bytes: from start up to before end. */
struct fragment_range {
	__u16 start;
	__u16 end;
};

/* A datagram that arrives in pieces. */
struct fragment {
	__u64 seen;		/* CLOCK_MONOTONIC ns, of a tick: of the piece that came first */
	__be16 sport;
	__be16 dport;
	__u8 owner;		/* enum fragment_owner */
	__u8 held;		/* how many of its pieces are, or were, in held_fragments */
	__u16 length;		/* units of 8 bytes; 0: its last piece has not come yet */
	struct fragment_range range[8];	/* that have come; an empty one is free */
};
_Static_assert(sizeof(struct fragment) == 48, "struct fragment has implicit padding");

struct held_key {
	struct fragment_key datagram;
	__u32 number;		/* from 0, in the order they came */
};
_Static_assert(sizeof(struct held_key) == 48, "struct held_key has implicit padding");

enum { HELD_BYTES = 2036 };

/* A fragment that came before the first of its datagram, from its IP header on. */
struct held_fragment {
	__u32 length;
	__u8 bytes[HELD_BYTES];
};

enum { CRAFT_PACKET = 1 << 16, CRAFT_PIECE = 1 << 14 };

/* Room to put packets together: a whole IP packet, and what may be read beyond its last byte. */
struct craft {
	__u8 packet[CRAFT_PACKET + CRAFT_PIECE];
};

/* When the next ICMP error or RST may be sent (GCRA), by enum role. */
struct icmp_budget {
	__u64 next;		/* CLOCK_MONOTONIC ns */
};

struct traffic {
	__u64 packets;
	__u64 bytes;
};

/* Per forward and CPU; direction 0 is the opener's. */
struct forward_stats {
	struct traffic traffic[PATHS][2];
	__u64 established[PATHS];	/* connections that completed their handshake */
	__u64 closed[PATHS];		/* of these, no longer in conns */
};

/* Counted per CPU: what no walk of a table can tell. */
enum conn_event {
	EVENT_OPENED,
	EVENT_ESTABLISHED,
	EVENT_ABANDONED,	/* half-open for too long, or replaced by another */
	EVENT_EVICTED,		/* half-open, and gave way to a newer one */
	EVENT_CLOSED,
	EVENTS,
};

struct counter_key {
	__u32 ifindex;
	enum verdict verdict;
	enum reason reason;
};

/* Argument of the program that ends one connection from user space. */
struct end_request {
	struct tuple key;	/* of either direction */
	__u32 found;		/* answer: 1 if there was such a connection */
	__u32 pad;
};
