//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The program of "hairpin explain": it decides about one packet as hairpin_tc does, by the same functions, and reports what was decided.
 * It has no effect on traffic. The loader gives the program maps of its own for everything that a packet changes, such as
 * connections and counters, and shares only the maps that the control plane alone writes. The program writes and sends no packet. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include "tc.h"

/* What the program reports. The types of the members are those of struct work. */
struct explanation {
	enum verdict verdict;
	enum reason reason;
	struct tuple answer;	/* opened: the tuple of the answers, as they arrive */
	__u64 identity;		/* of the entry of the packet's connection; 0: none */
	__u32 attached;		/* 1: the programs are on the input interface */
	__u32 parsed;		/* 1: hairpin can read the packet */
	__u32 opened;		/* 1: the packet has opened its connection */
	__u32 by_affinity;	/* 1: with the server of the client's last connection */
	__u32 external;		/* 1: forwards listen on the destination */
	__u32 forward;		/* id of the forward or intercept of the destination and the port; 0: none */
	__u32 intercept;	/* 1: this forward is an intercept */
	__u32 conn_forward;	/* id of the forward of the packet's connection; 0: none */
	__u32 back_ifindex;	/* interface by which the route back to the source leads; 0: not known */
	/* The members from here on are valid only with VERDICT_SEND. */
	struct tuple sent;	/* the tuple with which the packet leaves */
	__u32 ifindex;		/* output interface */
	__u32 mtu;		/* of the next hop; 0: not known */
	__u32 to_router;	/* 1: the packet goes to the router itself */
	__u32 resolved;		/* 1: mac is the next hop's */
	__u32 gateway_family;	/* AF_INET, AF_INET6; 0: the kernel need not ask for the next hop's MAC address */
	union addr gateway;	/* IPv4-mapped for AF_INET */
	__u8 mac[6];
	__u8 pad[2];
};

/* Index: 0. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct explanation);
	__uint(max_entries, 1);
} explanations SEC(".maps");

/* Looks up what listens on the packet's destination, even if the packet was refused before it got there. Not inlined, to save stack. */
static __noinline void explain_listeners(const struct packet *pkt, struct explanation *to)
{
	const struct external *external = external_find(&pkt->tuple.dst);
	const struct forward *forward = NULL;

	to->external = !!external;
	if (external)
		forward = forward_find(forward_slot(), external, pkt->tuple.protocol, pkt->tuple.dport);
	if (!forward) {
		forward = intercept_find(pkt);
		to->intercept = !!forward;
	}
	to->forward = forward ? forward->epoch_ref.id : 0;
}

/* Reports where the packet leaves, and how. */
static __always_inline void explain_way(const struct rewrite *rw, struct explanation *to)
{
	to->sent = rw->entry.to;
	to->ifindex = rw->ifindex;
	to->mtu = rw->mtu;
	to->to_router = rw->local;
	to->resolved = rw->resolved;
	to->gateway_family = rw->gateway.nh_family;
	if (to->gateway_family == FIB_AF_INET)
		addr_from_v4(&to->gateway, rw->gateway.ipv4_nh);
	else
		__builtin_memcpy(to->gateway.bytes, rw->gateway.ipv6_nh, sizeof(to->gateway.bytes));
	__builtin_memcpy(to->mac, rw->macs, ETH_ALEN);
}

/* Returns the verdict. The frame has an Ethernet header, whatever the device, and no options of IP or TCP. */
SEC("tc")
int hairpin_explain(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct work *work = work_get();
	struct explanation *to = bpf_map_lookup_elem(&explanations, &zero);
	const struct conn *conn;

	if (!work || !to)
		return -1;
	__builtin_memset(to, 0, sizeof(*to));
	work_begin(work, HOOK_TC, skb->ifindex, skb->len, 0, sizeof(struct ethhdr));
	to->attached = nat_role(skb->ifindex) != 0;
	if (!tc_pull(skb) || !tc_parse(skb, work))
		return VERDICT_PASS;
	to->parsed = 1;
	explain_listeners(&work->pkt, to);
	if (!to->attached)
		return VERDICT_PASS;
	work->open.inserted = false;
	work->route.back_ifindex = 0;
	to->verdict = nat_decide(skb, work, HOOK_TC);
	to->reason = work->rw.reason;
	to->back_ifindex = work->route.back_ifindex;
	to->opened = work->open.inserted;
	if (to->opened) {
		to->answer = work->open.answer;
		to->by_affinity = work->open.by_affinity;
	}
	conn = conn_find(&work->pkt.tuple, &work->rw.entry);
	if (conn) {
		to->identity = work->rw.entry.identity;
		to->conn_forward = conn_forward(conn);
	}
	if (to->verdict == VERDICT_SEND)
		explain_way(&work->rw, to);
	return (int)to->verdict;
}

char _license[] SEC("license") = "Dual BSD/GPL";
