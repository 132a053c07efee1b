// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Working memory for one packet, per CPU: the steps of a packet need more than the 512 bytes of the stack. Nothing in it
 * outlives the packet. Programs on one CPU do not interrupt each other. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "packet.h"

enum { SECOND_NS = 1000000000, SECOND_MS = 1000, MS_NS = 1000000 };
enum { SLOT_UNREAD = 2, OPTIONS_MAX = 40 };

/* CLOCK_MONOTONIC, as it was when the jiffies last moved. */
struct clock {
	__u64 jiffies;
	__u32 ms, second;
};

/* All that the write step needs. It has no pointers into the packet, which helpers would make invalid. */
struct rewrite {
	/* Cleared for each packet up to gateway, and gateway.nh_family. */
	enum reason reason __attribute__((aligned(8)));	/* so that eight bytes are cleared at once */
	__u32 ifindex;
	__u32 mtu;		/* of the next hop; 0: not known */
	__u16 mss;		/* most that a SYN may promise; 0: what it likes */
	bool resolved;		/* macs are known */
	bool xdp;		/* the output device takes XDP frames */
	bool other_host;	/* XDP: the frame is for another station */
	bool local;		/* to the router itself, by its loopback device */
	struct bpf_redir_neigh gateway;	/* unless its family is 0, the kernel is to resolve this neighbour */
	struct entry entry;	/* of the packet's tuple, with what it leaves as; an ICMP error has only the latter */
	/* From here on set only with VERDICT_SEND. */
	__u8 macs[2 * ETH_ALEN] __attribute__((aligned(4)));	/* destination, source */
	__u64 address_diff;	/* sums that are not folded yet: what the new addresses change */
	__u64 l4_diff;		/* and what changes in the transport header and behind it */
	__u8 ttl;
	/* Of an ICMP error: the quoted packet as its sender sent it. */
	struct tuple quoted;
	__sum16 quoted_ip_check, quoted_check;
};

/* What the kernel is asked of routes. */
struct route {
	struct bpf_fib_lookup fib;
	struct tuple back;	/* an answer whose way is asked for */
	struct hop fresh;	/* the next hop that fib says, before it is stored */
};

/* An ICMP error: the connection of the packet that it quotes. */
struct icmp_error {
	struct tuple answer;	/* as an answer to the quoted packet comes in */
	struct entry entry;	/* of that */
};

/* An entry's value in either family. */
union conn_value {
	struct conn4 four;
	struct conn6 six;
};

/* A mapping in the making. */
struct mapping_entry {
	struct tuple key;
	struct mapping value;
};

/* A connection in the making. */
struct opening {
	/* What the packet asks for. */
	struct external external;	/* the ids of the address it is to */
	bool to_external;	/* there are such ids */
	bool by_server;		/* it is the server's packet, and rebuilds the connection */
	bool from_wan;		/* the same, and its client is on the Internet */
	bool key_used;		/* there may be an entry at the opener's key */
	__u32 ifindex;		/* by which the opener's packets come in */
	struct tuple key;	/* of the opener's direction */
	struct entry entry;	/* what another CPU may have put there */
	/* May it be opened? */
	__u64 client;		/* its hash, by which it is counted */
	__u32 lan;		/* hash of the LAN interface that the client is behind; 0: none */
	__u32 slot;		/* a half-open place */
	bool chosen;		/* the slot is where to begin */
	bool proven;		/* its source has answered a challenge */
	bool client_over_share;		/* its client has more half-open connections than its share */
	/* Where does it lead? */
	bool to_router;		/* its target is the router itself */
	bool resolved;		/* the MAC address of the next hop to the target is known */
	bool mapped;		/* its port is to be the client's alone */
	bool inserted;		/* both entries are this CPU's: life_begin is to follow */
	__u32 client_hop;	/* next hop to the client; 0: not known */
	__u32 tries;		/* how many ports were tried; not on the stack: the verifier would count along */
	struct tuple sent;	/* the client's packet as its target gets it */
	struct tuple answer;	/* key of the answerer's direction */
	struct bpf_sock_tuple socket;	/* the socket that would get an answer */
	__u8 socket_protocol;
	bool socket_v6;
	struct mapping_entry mapping;
	struct direction obstacle;	/* the opener's, of an old connection in the way */
	/* The entry being inserted. */
	struct conn conn;
	struct tuple to;	/* what it translates to */
	union conn_value value;
};

/* The router's own answer to a packet. */
struct answering {
	struct tuple way;
	__u32 sender_hop;	/* next hop to the sender of the packet; 0: not known */
};

/* The datagram of a fragment. */
struct datagram {
	struct held_key held;
	bool known;		/* it is in fragments, by the key in held */
	__u32 waiting;		/* how many of its pieces are held */
};

struct work {
	struct clock clock;
	__u32 live_slot;	/* of forwards and all that swaps with them; SLOT_UNREAD: nobody has asked yet */
	struct packet pkt;
	struct rewrite rw;
	struct direction other;	/* the other direction of the packet's connection */
	struct route route;
	struct icmp_error error;
	struct opening open;
	struct answering reply;
	struct datagram fragment;
	struct scratch scratch;
	__u8 options[OPTIONS_MAX];	/* of the packet, TCP's or IPv4's */
	__u8 header[sizeof(struct ipv6hdr)];	/* of a packet being put together */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__uint(value_size, sizeof(struct work));
	__uint(max_entries, 1);
} works SEC(".maps");

static __always_inline struct work *work_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&works, &zero);
}
