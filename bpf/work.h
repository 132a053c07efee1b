// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Working memory for one packet, per CPU: the steps of a packet need more than the 512 bytes of the stack. No member is
 * used after the packet, except clock and ethernet. Programs on one CPU do not interrupt each other. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "packet.h"

enum { SECOND_NS = 1000000000, SECOND_MS = 1000, MS_NS = 1000000 };
enum { SLOT_UNREAD = 2, OPTIONS_MAX = 40 };

/* CLOCK_MONOTONIC in ms and in s, read at the last change of the jiffies. */
struct clock {
	__u64 jiffies;
	__u32 ms, second;
};

/* The interface by which a frame to the router came in last, if its MAC address begins like an IP header. */
struct ethernet {
	__u32 ifindex;
	__u32 routes;		/* generation of struct routes at that time: it rises when interfaces change */
	__u8 mac[6] __attribute__((aligned(4)));
};

/* The data for the write step. There are no pointers into the packet: calls of helpers make such pointers invalid. */
struct rewrite {
	/* work_begin clears the members before gateway, and gateway.nh_family, for each packet. */
	enum reason reason __attribute__((aligned(8)));	/* aligned: the compiler then clears eight bytes at once */
	__u32 ifindex;
	__u32 mtu;		/* MTU of the next hop in bytes; 0: not known */
	__u16 mss;		/* highest MSS that a SYN may have; 0: no limit */
	bool resolved;		/* macs has the addresses of the next hop */
	__u8 xdp;		/* bits of enum xdp_way: how XDP can send to the output device */
	bool other_host;	/* XDP: the frame was sent to another station */
	bool local;		/* the packet goes to the router itself, by the loopback device */
	__u32 opens_at;		/* id of the forward where the packet opens a connection, or would; 0: none */
	struct bpf_redir_neigh gateway;	/* nh_family not 0: the kernel must resolve this neighbour */
	struct entry entry;	/* the entry of the packet's tuple; for an ICMP error only entry.to is set */
	/* After nat_decide, the members from here on are valid only with VERDICT_SEND. */
	__u8 macs[2 * ETH_ALEN] __attribute__((aligned(4)));	/* destination, then source */
	__u64 address_diff;	/* checksum difference of the new addresses, not folded */
	__u64 l4_diff;		/* checksum difference of the transport header and payload, not folded */
	__u8 ttl;
	/* ICMP error: the quoted packet in the form in which its sender sent it. */
	struct tuple quoted;
	__sum16 quoted_ip_check, quoted_check;
};

/* Memory for look-ups of routes. */
struct route {
	struct bpf_fib_lookup fib;
	struct tuple back;	/* the reverse of a packet's tuple, for fib_route_back */
	__u32 back_ifindex;	/* ingress_source: interface of the way back to the packet's source; 0: not known */
	bool back_resolved;	/* ingress_source: LAN; fib has the next hop of that way, by the packet's own interface */
	struct bpf_redir_neigh gateway;	/* ingress_by_default: the gateway of the way back to the source */
	struct hop fresh;	/* the next hop in fib, before it is stored in hops */
};

/* The connection of the packet that an ICMP error quotes. */
struct icmp_error {
	struct tuple answer;	/* tuple of an answer to the quoted packet */
	struct entry entry;	/* entry of the tuple in answer */
};

/* The mapping that is being made. */
struct mapping_entry {
	struct tuple key;
	struct mapping value;
};

/* The connection that is being opened. */
struct opening {
	/* The packet, and the connection that it opens. */
	struct external external;	/* copy of the external ids of the packet's destination */
	bool by_server;		/* the target sent the packet, and the packet rebuilds the connection */
	bool from_wan;		/* the target sent the packet to a client on the Internet */
	bool key_used;		/* an entry may exist at the opener's key */
	bool optional;		/* the kernel gets the packet if it cannot open the connection */
	struct forward no_forward;	/* stands for the forward of a direct connection: id 0, and its own target */
	bool in_rate;		/* the packet has taken its tokens, or was refused them (rate.h) */
	__u32 ifindex;		/* interface by which the opener's packets come in */
	struct tuple key;	/* key of the opener's direction */
	struct entry entry;	/* copy of the entry found at key, which may be another CPU's */
	/* For the limits of connections (open_place). */
	__u64 client;		/* source_hash of the client */
	__u32 lan;		/* hash of the client's LAN interface; 0: the client is not on a LAN */
	__u32 slot;		/* slot in the ring of half-open places */
	bool chosen;		/* the search for a place begins at slot */
	bool proven;		/* the client has answered a challenge */
	bool client_over_share;		/* the client has more half-open connections than its share */
	/* The target and the tuples. */
	bool to_router;		/* the target is the router itself */
	bool resolved;		/* the MAC address of the next hop to the target is known */
	bool mapped;		/* reflect public: the connection needs an external port that no other client has */
	struct affinity_key affinity_key;
	struct affinity affinity;	/* what is noted for it */
	bool new_client;	/* the server must be noted */
	bool by_affinity;	/* the server is that of the client's last connection */
	bool fixed;		/* the source port cannot be changed */
	bool other_port;	/* the opener's port is no choice: a direct connection of the opener has it, or needs another */
	bool by_router;		/* the target sees the router's address, and the connection has ports */
	bool inserted;		/* this CPU has inserted both entries: life_begin must follow */
	__u32 client_hop;	/* reference of the next hop to the client; 0: not known */
	__u32 client_by;	/* interface by which the route to the client leaves; 0: not known */
	__u32 tries;		/* number of ports tried; not on the stack: the verifier would follow each value */
	struct tuple sent;	/* the opener's packet in the form that the target gets */
	struct tuple answer;	/* key of the answerer's direction */
	struct bpf_sock_tuple socket;	/* tuple for the look-up of a local socket, and for conntrack */
	struct mapping_entry mapping;
	struct direction obstacle;	/* opener's direction of the old connection that must be removed first */
	/* The entry that is inserted next. */
	struct conn conn;
	struct tuple to;	/* tuple with which packets of this direction leave */
	__u32 number;		/* of the opener's entry */
};

/* The packet with which the router itself answers. */
struct answering {
	struct tuple way;	/* tuple of the answer */
	__u32 sender_hop;	/* reference of the next hop to the packet's sender; 0: not known */
};

/* The datagram to which the fragment belongs. */
struct datagram {
	struct held_key held;	/* held.datagram is the key in the map fragments */
	bool known;		/* the map fragments has an entry for the datagram */
	__u32 waiting;		/* number of fragments of the datagram that are held */
};

struct work {
	struct clock clock;
	struct ethernet ethernet;	/* outlives the packet, like the clock */
	__u32 live_slot;	/* live slot of the forwards, read once for each packet; SLOT_UNREAD: not read yet */
	__u32 fence;		/* content never read: see work_fence */
	struct packet pkt;
	struct rewrite rw;
	struct direction other;	/* the other direction of the packet's connection */
	struct route route;
	struct icmp_error error;
	struct opening open;
	struct answering reply;
	struct datagram fragment;
	struct scratch scratch;
	__u8 options[OPTIONS_MAX];	/* copy of the packet's TCP or IPv4 options */
	__u8 header[sizeof(struct ipv6hdr)];	/* IP header of the packet that is being built */
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

/* A full memory barrier: every CPU sees all earlier writes of this CPU before this CPU reads on. In BPF, an atomic
 * instruction that fetches has this effect. */
static __always_inline void work_fence(struct work *work)
{
	__sync_lock_test_and_set(&work->fence, 1);
}

/* Prepares working memory for a new packet, before a byte of the packet is read. The clock is read once in a tick:
 * jiffies are cheap to read, the clock is not. */
static __always_inline void work_begin(struct work *work, enum hook hook, __u32 ifindex, __u32 frame_length,
				       __u32 gso_size, __u16 l3_off)
{
	__u64 jiffies = bpf_jiffies64(), now;

	__builtin_memset(&work->pkt.flaw, 0, offsetof(struct packet, quote) - offsetof(struct packet, flaw));
	__builtin_memset(&work->rw, 0, offsetof(struct rewrite, gateway));
	work->rw.gateway.nh_family = 0;
	if (work->clock.jiffies != jiffies) {
		now = bpf_ktime_get_coarse_ns();
		work->clock.jiffies = jiffies;
		work->clock.ms = (__u32)(now / MS_NS);
		work->clock.second = (__u32)(now / SECOND_NS);
	}
	work->pkt.ms = work->scratch.now = work->clock.ms;
	work->pkt.second = work->clock.second;
	work->live_slot = SLOT_UNREAD;
	work->pkt.hook = hook;
	work->pkt.ifindex = ifindex;
	work->pkt.frame_length = frame_length;
	work->pkt.gso_size = gso_size;
	work->pkt.l3_off = l3_off;
}
