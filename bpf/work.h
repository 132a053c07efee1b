// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Working memory for one packet, per CPU: the steps of a packet need more than the 512 bytes of the stack. Nothing in it
 * outlives the packet. Programs on one CPU do not interrupt each other. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "packet.h"

enum { SECOND_NS = 1000000000, MS_NS = 1000000 };
enum { SLOT_UNREAD = 2, OPTIONS_MAX = 40 };

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
	struct entry entry;	/* of the packet's tuple, with what it leaves as; of an ICMP error: of the quoted packet's answer, until icmp_rewrite */
	/* From here on set only with VERDICT_SEND. */
	__u8 macs[2 * ETH_ALEN] __attribute__((aligned(4)));	/* destination, source */
	__u64 address_diff;	/* sums that are not folded yet */
	__u64 port_diff;	/* of an ICMP error: of all that it quotes */
	__u8 ttl;
	struct tuple quoted;	/* the quoted packet as its sender sent it */
	__sum16 quoted_ip_check, quoted_check;
};

/* A connection in the making. */
struct opening {
	struct tuple key;	/* of the opener's direction */
	__u32 ifindex;		/* by which that comes in */
	bool answered;		/* it is the answerer's packet that rebuilds it */
	bool from_wan;		/* the same, and its client is on the Internet */
	bool several_wans;	/* the same, and several WANs lead there */
	bool mapped;		/* its port is to be the client's alone */
	bool local;		/* its target is the router itself */
	bool chosen;		/* scratch.slot is the half-open place to begin with */
	bool begun;		/* both entries are this CPU's: life_begin is to follow */
	bool proven;		/* its source has answered a challenge */
	bool greedy;		/* its client has more half-open connections than its share */
	struct tuple way;	/* what is being routed */
	struct tuple answer;	/* key of the answerer's direction */
	bool neighbour;		/* fib knows a MAC address */
	__u32 back;		/* next hop to the client; 0: not known */
	__u32 tries;		/* how many ports were tried; not on the stack: the verifier would count along */
	__u32 serial;
	__u64 client;		/* its hash, by which it is counted */
	__u32 lan;		/* hash of the LAN interface that the client is behind; 0: none */
	struct conn conn;	/* the direction being written */
	struct tuple to;	/* and what it translates to */
};

/* An entry's value in either family. */
union conn_value {
	struct conn4 four;
	struct conn6 six;
};

struct work {
	__u64 jiffies;		/* when the clock was looked at: it moves with the jiffies */
	__u32 ms, second;	/* CLOCK_MONOTONIC */
	__u32 slot;		/* of forwards and all that swaps with them; SLOT_UNREAD: nobody has asked yet */
	struct packet pkt;
	struct rewrite rw;
	struct bpf_fib_lookup fib;
	struct bpf_sock_tuple sock;
	__u32 back;		/* next hop to the sender of the packet; 0: not known */
	bool stale;		/* there is an entry for the packet, but its connection is over */
	struct entry open_entry; /* of the opener, where the packet is the answerer's */
	struct scratch scratch;
	union conn_value value;	/* of an entry being inserted */
	struct hop hop;		/* one being made */
	bool to_external;	/* external is set */
	struct external external;	/* what it is to */
	struct tuple other;	/* key of the other direction */
	struct tuple mapping;	/* key of one */
	struct mapping fresh;	/* one being made */
	struct opening open;
	struct held_key held;
	bool followed;		/* the fragment's datagram is in fragments, by the key in held */
	__u32 waiting;		/* how many of its pieces are held */
	__u8 options[OPTIONS_MAX];	/* of a TCP or an IPv4 header */
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
