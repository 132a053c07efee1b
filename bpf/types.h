// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Every type that both the kernel and Go see: map keys, map values, their enums. No code.
 * Padding is explicit and must be zero in keys; sizes are asserted, Go gets its twin by bpf2go. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>

/* IPv4 is stored v4-mapped (::ffff:a.b.c.d), so one key serves both families. */
union addr {
	__u8 bytes[16];
	__be32 word[4];
	__u64 half[2];		/* most addresses are copied and compared by these */
};

/* Of an address that does not lie at a multiple of eight bytes, as behind the prefix length of an LPM key. */
#define ADDR_BY_WORDS __attribute__((packed, aligned(4)))

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

/* The states of a connection. The opener's entry decides; the answerer's holds a copy. A connection only moves down
 * this list. */
enum conn_state {
	CONN_HALF_OPEN = 1,	/* its handshake has not completed */
	CONN_ESTABLISHED,
	CONN_CLOSING,		/* TCP: both FINs are acknowledged, or a RST was exact */
	CONN_ENDED,		/* its forward or address has gone, or it has expired: it only keeps its tuples */
	CONN_GONE,		/* on its way out of the table: one CPU deletes both entries */
};

/* The other bits of an entry's identity. */
enum conn_flag {
	CONN_STATE = 7,		/* mask of enum conn_state */
	CONN_PATH_SHIFT = 3,	/* two bits: enum conn_path */
	CONN_OPENER = 1 << 5,	/* the direction that opened the connection */
	CONN_FROM_WAN = 1 << 6,	/* this direction's packets come in by a WAN */
	CONN_LOCAL = 1 << 7,	/* this direction's packets are for the router itself */
	CONN_REBUILT = 1 << 8,	/* made from its rule in the middle: nobody has seen its handshake */
	CONN_NUMBERED = 1 << 9,	/* TCP: end and ack are known */
	CONN_FIN = 1 << 10,	/* TCP: this side has sent a FIN, and end is the number behind it */
	CONN_ANSWERED = 1 << 11, /* TCP, the answerer's: it has sent a SYN/ACK that acknowledges the SYN */
	CONN_CHALLENGE = 1 << 12, /* TCP, the answerer's: it may send one ACK without data (RFC 5961) */
	CONN_TOLD = 1 << 13,	/* it is over, and both sides were told */
	CONN_PROVEN = 1 << 14,	/* half-open: counted among the places of proven sources */
	CONN_RESET = 1 << 15,	/* TCP: this side has sent an exact RST */
	CONN_SCALE_SHIFT = 16,	/* four bits: TCP window scale (RFC 7323); 15: the option was not sent */
	CONN_LAN_SHIFT = 20,	/* twelve bits: hash of the LAN interface whose share it is counted in; 0: none */
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
	VERDICT_REPLACE, /* never the last word: another connection has to be removed first */
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
	REASON_NEXT_HOP,	/* unknown, or no longer fresh */
	REASON_NO_XDP_TX,	/* XDP: output device does not take XDP frames */
	REASON_PARTIAL_CHECKSUM, /* XDP: transport checksum may be left to an offload */
	REASON_OTHER_HOST,	/* XDP: frame for another station */
	REASON_WRITE_FAILED,	/* the kernel refused a write to the packet */
	REASON_BEGUN,		/* never counted: another CPU has just begun the connection */
	REASON_RACED,		/* another CPU is at this connection: the sender will try again */
	REASON_OBSTACLE,	/* never counted: an old connection is in the way, and may be removed */
	REASON_NOT_OURS,	/* never counted: it has a connection's tuple, but is the kernel's */
	REASON_SOURCE_ROUTE,	/* LSRR or SSRR option (RFC 7126 4.3, 4.4) */
	REASON_CHALLENGED,	/* too many openings: the SYN was answered by a challenge, or this is its answer */
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
	__u32 source_limit;	/* RFC 6888 REQ-4: established connections of one client; 0: no limit */
	__u32 interface_limit;	/* the same of all clients behind one LAN interface */
	__u32 stand_ins;	/* whether there are any */
	__u16 intercept_first;	/* lowest port that an intercept has; above the highest one: there is none */
	__u16 intercept_last;
	__u32 pad;
};
_Static_assert(sizeof(struct settings) == 80, "struct settings has implicit padding");

/* What a connection was made from. Once epochs[id] differs from epoch the connection is over. */
struct epoch_ref {
	__u32 id;
	__u32 epoch;
};

/* An address that forwards listen on: forwards for just this address, and for its interface; 0 is none. */
struct external {
	__u32 fixed;
	__u32 group;
	struct epoch_ref address;
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
	struct epoch_ref epoch_ref;
	enum reflect reflect;
	__u16 port_shift;	/* target port = external port + this, modulo 65536 */
	__u8 restricted;	/* has a from list in allow */
	__u8 wide;		/* has several ports */
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
	union addr address ADDR_BY_WORDS;
};
_Static_assert(sizeof(struct stand_in_key) == 20, "struct stand_in_key has implicit padding");

/* Clients and their stand-ins have the same host bits, so one value serves both ways. */
struct stand_in {
	union addr network;	/* what the bits under mask become */
	union addr mask;	/* of the 128 bit form */
	__u32 client;		/* 1: the key is a client's, 0: a stand-in's */
	__u32 pad;
};
_Static_assert(sizeof(struct stand_in) == 40, "struct stand_in has implicit padding");

/* LPM key: a target and protocol, then a prefix of the port in network order. */
struct origin_key {
	__u32 prefix_length;
	union addr target ADDR_BY_WORDS;
	__u8 protocol;
	__u8 wan;		/* 1: whose answers go to the Internet; 0: to a stand-in */
	__be16 port;
};
_Static_assert(sizeof(struct origin_key) == 24, "struct origin_key has implicit padding");

/* The only forward that leads to a target, seen from there: of all, or of those with reflect prefix. */
struct origin {
	__u32 external;		/* where it listens; 0: several lead there */
	__u16 port_shift;	/* as in struct forward */
	__u8 wan;		/* as in its key, which may say nothing of it */
	__u8 several_wans;	/* 1: there are several WANs */
};
_Static_assert(sizeof(struct origin) == 8, "struct origin has implicit padding");

/* Of reflect public: the external port that stands for a client's (RFC 4787 REQ-1). Kept twice: by client
 * and external address, to be the same for all its connections, and by what it stands for, to be its alone. */
struct mapping {
	union addr client;
	__be16 client_port;
	__be16 port;
	__u32 pad;
};
_Static_assert(sizeof(struct mapping) == 24, "struct mapping has implicit padding");

enum { INTERFACE_ADDRESSES = 8 };

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
	__u8 pad[7];
	__u32 mss_mtu;		/* MTU that a passing SYN's MSS has to suit; 0: left alone */
	__u32 intercept_v4, intercept_v6; /* external ids of what listens on every address; 0: nothing does */
	struct interface_address address[INTERFACE_ADDRESSES];
};
_Static_assert(sizeof(struct interface) == 288, "struct interface has implicit padding");

/* A next hop, shared by all connections that use it. Connections refer to it by its index and generation. */
struct hop {
	__u32 generation;	/* raised when the content changes; odd: being written */
	__u32 resolved;		/* ms: when the kernel last confirmed it */
	__u32 routes;		/* struct routes generation it was resolved under */
	__u32 ifindex;
	__u8 dst_mac[6] __attribute__((aligned(4)));	/* aligned, as all MAC addresses: else they are copied by bytes */
	__u8 src_mac[6];
	__u8 local_mac[6] __attribute__((aligned(4)));	/* ours, where the packets come in */
	__u8 xdp;		/* 1: in tx_ports, at that time */
	__u8 pad;
	__u32 mtu;
};
_Static_assert(sizeof(struct hop) == 40, "struct hop has implicit padding");

/* One direction of a connection, without its addresses: the part that both families share. The other direction's key is
 * what this one's packets leave as, reversed. */
struct conn {
	__u64 identity;		/* serial << 32 | flags | state: changed only by compare-and-swap of all 64 bits */
	__u32 hop;		/* generation << 20 | index of hops; 0: unknown */
	__u32 forward;		/* low half of created << 17 | forward id */
	__u32 address;		/* high half of created << 17 | address id */
	__u32 epochs;		/* sum of the epochs of both; another sum: the connection is over */
	__u32 ifindex;		/* by which this direction's packets come in */
	__u32 seen;		/* CLOCK_MONOTONIC ms, of a tick: last packet that was in order */
	__u32 packets;
	__u32 bytes;		/* IP total length, low 32 bits */
	/* TCP: the sequence number behind what it has sent, and the highest acknowledgement it sent.
	 * All else: the opener's end counts evidence; the answerer's two seconds are explained at nat_evidence. */
	__u32 end;
	__u32 ack;
	__u16 window;		/* TCP: as it was sent, without the scale */
	__u16 bytes_high;	/* bits 32 to 47 */
	__be16 sport;		/* what its packets leave as */
	__be16 dport;
};
_Static_assert(sizeof(struct conn) == 56, "struct conn has implicit padding");

/* IPv4: with the kernel's 48 bytes the header and key fill one cache line, and the value the next. */
struct conn4 {
	struct conn conn;
	__be32 src;
	__be32 dst;
};
_Static_assert(sizeof(struct conn4) == 64, "struct conn4 has implicit padding");

struct conn6 {
	struct conn conn;
	union addr src;
	union addr dst;
};
_Static_assert(sizeof(struct conn6) == 88, "struct conn6 has implicit padding");

/* A packet's IPv4 addresses as it arrives. */
struct tuple4 {
	__be32 src;
	__be32 dst;
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 pad[3];
};
_Static_assert(sizeof(struct tuple4) == 16, "struct tuple4 has implicit padding");

/* Kinds of places. Each connection holds one place, of the kind that its state asks for. */
enum place_kind {
	PLACE_HALF_TCP,
	PLACE_HALF_PROVEN,	/* half-open TCP whose source has answered a challenge */
	PLACE_HALF_OTHER,
	PLACE_TCP,		/* established */
	PLACE_OTHER,		/* established, all other protocols */
	PLACE_CLOSING,		/* closing and ended */
	PLACES,
};

/* All places of one kind and family; index: kind * 2, and 1 more for IPv6. */
struct ring {
	__s64 count;		/* connections that hold one: see lifecycle.h */
	__u64 next;		/* tickets given out */
	__u32 base;		/* its first place in places4 or places6 */
	__u32 size;
	__u32 limit;		/* connections that may hold a place */
	__u32 evicted;		/* ms: when a half-open UDP connection was last evicted; 0: never */
	__u32 pad[8];
};
_Static_assert(sizeof(struct ring) == 64, "struct ring has implicit padding");

/* A place: the connection that holds it, by its opener's key. */
struct place4 {
	struct bpf_spin_lock lock;
	__u32 serial;		/* 0: free */
	struct tuple4 key;
};
_Static_assert(sizeof(struct place4) == 24, "struct place4 has implicit padding");

struct place6 {
	struct bpf_spin_lock lock;
	__u32 serial;
	struct tuple key;
};
_Static_assert(sizeof(struct place6) == 48, "struct place6 has implicit padding");

/* What one client has, or all clients behind one LAN interface. */
struct source {
	__s32 established;	/* TCP */
	__s32 established_other;
	__s32 half_open;
	__u32 pad;
};

enum { COUNTS_PAGE = 256 };

/* Counts lie in pages: whoever reads or clears all of them makes few calls. */
struct source_page {
	struct source source[COUNTS_PAGE];
};

/* What one forward has. */
struct load {
	__s32 half_open;	/* TCP */
	__s32 half_open_other;
	__s32 other;		/* established, other protocols */
	__u32 pad;
};

struct load_page {
	struct load load[COUNTS_PAGE];
};

/* 16 more bits of a source's hash, and the second in which it answered a challenge. */
struct proven_page {
	__u32 proven[COUNTS_PAGE];
};

/* Key of the hashes that strangers must not foresee. Filled once by the loader. */
struct secret {
	__u64 key[2];
};

/* The next serial of each CPU. */
struct serial {
	__u32 next;
	__u32 pad;
};

/* What a look into conns4 or conns6 copies out of an entry. */
struct entry {
	__u64 identity;
	struct tuple to;	/* what its packets leave as; no key: its padding is not set */
};

/* One direction of a connection: its key, and what was read of its entry. */
struct direction {
	struct tuple key;
	struct entry entry;
};

/* A place that is wanted. */
struct place_want {
	__u32 serial;
	enum place_kind kind;
	__u32 forward;
	__u32 slot;		/* the place being looked at, from 0 */
	bool forward_over_share;		/* its forward holds more than its share: one of its own has to give way */
	bool client_over_share;		/* the same of its client */
	bool from_wan;		/* its client is on the Internet */
	bool chosen;		/* the slot is where to begin */
	bool taken;
};

/* Of the holders of places that were looked at the one that is worth least: it is to give way. */
struct place_victim {
	struct direction direction;
	__u32 serial;		/* 0: none so far */
	__u32 index;
	__u64 worth;
};

/* Working memory of lifecycle.h. Packets have theirs by CPU; the sweeper has its own. */
struct scratch {
	struct place_want want;
	struct direction holder;	/* who holds the place being looked at */
	struct place_victim victim;
	struct direction other;	/* the answerer's, of the opener at hand */
	struct tuple removed_opener; /* keys of the connection being removed */
	struct tuple removed_answerer;
	__u32 now;		/* ms */
	__u32 pad;
};

/* The one timer that visits all places, and where it goes on. */
struct sweeper {
	struct bpf_timer timer;
	__u32 ring;
	__u32 place;		/* of that ring */
	__u32 visits;		/* in this step; not on the stack: the verifier would count along */
	__u32 left;		/* connections that left their place in this step */
	struct direction visited;	/* the connection being looked at: scratch is for what is done with it */
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

enum { FRAGMENT_RANGES = 8 };

/* A datagram that arrives in pieces. */
struct fragment {
	__u64 seen;		/* CLOCK_MONOTONIC ns, of a tick: of the piece that came first */
	__be16 sport;
	__be16 dport;
	__u8 owner;		/* enum fragment_owner */
	__u8 held;		/* how many of its pieces are, or were, in held_fragments */
	__u16 length;		/* units of 8 bytes; 0: its last piece has not come yet */
	struct fragment_range range[FRAGMENT_RANGES];	/* that have come; an empty one is free */
};
_Static_assert(sizeof(struct fragment) == 48, "struct fragment has implicit padding");

struct held_key {
	struct fragment_key datagram;
	__u32 number;		/* from 0, in the order they came */
	__u32 pad;
};
_Static_assert(sizeof(struct held_key) == 56, "struct held_key has implicit padding");

enum { HELD_BYTES = 2036 };

/* A fragment that came before the first of its datagram, from its IP header on. */
struct held_fragment {
	__u32 length;
	__u8 bytes[HELD_BYTES];
};

enum { SCRATCH_PACKET_SIZE = 1 << 16, SCRATCH_PACKET_PIECE = 1 << 14 };

/* Room to put packets together: a whole IP packet, and what may be read beyond its last byte. */
struct scratch_packet {
	__u8 packet[SCRATCH_PACKET_SIZE + SCRATCH_PACKET_PIECE];
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
	__u64 closed[PATHS];		/* of these, that have ended */
};

/* Counted per CPU: what no walk of a table can tell. */
enum conn_event {
	EVENT_OPENED,
	EVENT_ESTABLISHED,
	EVENT_ABANDONED,	/* half-open for too long, or replaced by another */
	EVENT_EVICTED,		/* half-open, and gave way to a newer one */
	EVENT_CLOSED,
	EVENT_DISPLACED,	/* established, not TCP: gave way to a newer one */
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
	__u32 serial;		/* of the connection meant; 0: whatever has the key */
	__u32 found;		/* answer: 1 if there was such a connection */
};

/* Argument of the program that corrects a count. */
struct correct_request {
	__s64 change;
	__u32 ring;		/* index of rings */
	__u32 pad;
};
