// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Routes, asked from the kernel by bpf_fib_lookup, and the table of next hops. ctx is struct __sk_buff or struct
 * xdp_md; it is only passed to the helper. */
#pragma once

#include "conn.h"
#include "maps.h"
#include "packet.h"
#include "work.h"

enum { FIB_AF_INET = 2, FIB_AF_INET6 = 10 };

/* Where a route look-up begins. ifindex is the ingress interface; with BPF_FIB_LOOKUP_OUTPUT it is the output
 * interface. */
struct fib_start {
	__u32 ifindex;
	__u32 flags;		/* BPF_FIB_LOOKUP_OUTPUT; BPF_FIB_LOOKUP_DIRECT: main table or the VRF's, no rules */
};

/* Asks the kernel for the route of a packet of length bytes. Returns the result of bpf_fib_lookup. SUCCESS and
 * NO_NEIGH set fib->ifindex and the gateway (since Linux 5.12). Only SUCCESS sets the MAC addresses and the MTU.
 * Negative: the interface does not exist. */
static __always_inline long fib_route(void *ctx, struct bpf_fib_lookup *fib, struct fib_start start,
				      const struct tuple *way, __u32 length)
{
	__builtin_memset(fib, 0, sizeof(*fib));
	fib->l4_protocol = way->protocol;
	/* Routing rules may match ports (ip-rule(8)). */
	fib->sport = way->sport;
	fib->dport = way->dport;
	fib->tot_len = length;
	fib->ifindex = start.ifindex;
	if (addr_is_v4(&way->dst)) {
		fib->family = FIB_AF_INET;
		fib->ipv4_src = way->src.word[3];
		fib->ipv4_dst = way->dst.word[3];
	} else {
		fib->family = FIB_AF_INET6;
		__builtin_memcpy(fib->ipv6_src, way->src.word, sizeof(fib->ipv6_src));
		__builtin_memcpy(fib->ipv6_dst, way->dst.word, sizeof(fib->ipv6_dst));
	}
	return bpf_fib_lookup(ctx, fib, sizeof(*fib), start.flags);
}

/* Asks for the route by which the kernel would answer this packet, which came in by this interface. */
static __always_inline long fib_route_back(void *ctx, struct route *route, __u32 ifindex, const struct tuple *packet)
{
	tuple_reverse(packet, &route->back);
	return fib_route(ctx, &route->fib, (struct fib_start){ .ifindex = ifindex }, &route->back, sizeof(struct iphdr));
}

/* Copies the address of the next hop. Its family may differ from the packet's family (RFC 5549). */
static __always_inline void fib_gateway(const struct bpf_fib_lookup *fib, struct bpf_redir_neigh *gateway)
{
	gateway->nh_family = fib->family;
	__builtin_memcpy(gateway->ipv6_nh, fib->ipv6_dst, sizeof(gateway->ipv6_nh));
}

/* Has the look-up found that this address is a neighbour? Then the next hop is the address itself. */
static __always_inline bool fib_on_link(const struct bpf_fib_lookup *fib, const union addr *to)
{
	if (addr_is_v4(to))
		return fib->family == FIB_AF_INET && fib->ipv4_dst == to->word[3];
	return __builtin_memcmp(fib->ipv6_dst, to->word, sizeof(fib->ipv6_dst)) == 0;
}

static __always_inline bool fib_found(long result)
{
	return result == BPF_FIB_LKUP_RET_SUCCESS || result == BPF_FIB_LKUP_RET_NO_NEIGH;
}

/* Has this look-up found a route that leaves by interface ifindex? */
static __always_inline bool fib_leaves_by(long result, const struct bpf_fib_lookup *fib, __u32 ifindex)
{
	return fib_found(result) && fib->ifindex == ifindex;
}

static __always_inline enum reason fib_reason(long result)
{
	switch (result) {
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		return REASON_TOO_BIG;
	case BPF_FIB_LKUP_RET_FWD_DISABLED:
		return REASON_FORWARDING_OFF;
	default:
		return REASON_NO_ROUTE;
	}
}

/* Returns the generation of the routes. The control plane raises it when a route or a neighbour changes. */
static __always_inline __u32 fib_generation(void)
{
	__u32 zero = 0;
	struct routes *now = bpf_map_lookup_elem(&routes, &zero);

	return now ? now->generation : 0;
}

enum { HOP_WAYS = 4, HOP_INDEX_BITS = 20, HOP_INDEX_MASK = (1 << HOP_INDEX_BITS) - 1 };
enum { HOP_GENERATION_MASK = (1 << (32 - HOP_INDEX_BITS)) - 1 };
/* HOP_FRESH_MS: a stored next hop is valid for this time. HOP_ASK_BITS: each connection asks the kernel for its
 * own route once in 2^13 ms. */
enum { HOP_FRESH_MS = 1000, HOP_ASK_BITS = 13 };

static __always_inline __u32 hop_generation(const struct hop *hop)
{
	return *(const volatile __u32 *)&hop->generation;
}

static __always_inline __u32 hop_reference(__u32 index, __u32 generation)
{
	return index | (generation >> 1 & HOP_GENERATION_MASK) << HOP_INDEX_BITS;
}

/* Must this connection ask the kernel for its own route now? Each connection asks once in 8 s. Otherwise other
 * connections would keep the shared hop fresh, and a route that changes only for this connection would go
 * unnoticed without the daemon. The serial spreads the times of the connections. */
static __always_inline bool hop_ask_due(const struct conn *conn, __u32 serial, __u32 now)
{
	return ((now + serial) ^ (conn->seen + serial)) >> HOP_ASK_BITS;
}

/* Copies the next hop of a connection into rw. False: the kernel must be asked.
 *
 * Race: CPU A copies a hop while CPU B overwrites the hop. B raises the generation to an odd number before its
 * first write, and to the next even number after its last write. A compares the generation before and after its
 * copy, and also with the connection's reference.
 * A reference has 12 bits of the generation, so a value repeats after 4,096 overwrites. This is not reached in
 * time: a hop is overwritten only after one second without use or after a change of routes, and a connection asks
 * the kernel every 8 s. */
static __always_inline bool hop_take(const struct packet *pkt, const struct conn *conn, __u32 serial, struct rewrite *rw)
{
	__u32 reference = conn->hop, index = reference & HOP_INDEX_MASK, generation;
	const struct hop *hop = bpf_map_lookup_elem(&hops, &index);

	if (!reference || !hop || hop_ask_due(conn, serial, pkt->ms))
		return false;
	generation = hop_generation(hop);
	if (generation & 1 || hop_reference(index, generation) != reference ||
	    (__s32)(pkt->ms - hop->resolved) >= HOP_FRESH_MS || hop->routes != fib_generation())
		return false;
	rw->ifindex = hop->ifindex;
	rw->mtu = hop->mtu;
	rw->xdp = hop->xdp;
	rw->other_host = __builtin_memcmp(hop->local_mac, pkt->local_mac, ETH_ALEN) != 0;
	__builtin_memcpy(rw->macs, hop->dst_mac, sizeof(rw->macs));
	rw->resolved = true;
	return hop_generation(hop) == generation;
}

/* Like hop_take, but copies a hop of any age. Used to send a RST to a host that the kernel's neighbour table has
 * forgotten. */
static __always_inline bool hop_recall(__u32 reference, struct rewrite *rw)
{
	__u32 index = reference & HOP_INDEX_MASK, generation;
	const struct hop *hop = bpf_map_lookup_elem(&hops, &index);

	if (!reference || !hop)
		return false;
	generation = hop_generation(hop);
	if (generation & 1 || hop_reference(index, generation) != reference)
		return false;
	rw->ifindex = hop->ifindex;
	__builtin_memcpy(rw->macs, hop->dst_mac, sizeof(rw->macs));
	return hop_generation(hop) == generation;
}

static __always_inline bool hop_same(const struct hop *hop, const struct hop *fresh)
{
	return hop->ifindex == fresh->ifindex && hop->mtu == fresh->mtu && hop->routes == fresh->routes &&
	       hop->xdp == fresh->xdp && !__builtin_memcmp(hop->dst_mac, fresh->dst_mac, ETH_ALEN) &&
	       !__builtin_memcmp(hop->src_mac, fresh->src_mac, ETH_ALEN) &&
	       !__builtin_memcmp(hop->local_mac, fresh->local_mac, ETH_ALEN);
}

/* Overwrites hop with fresh. False: another CPU has changed the hop since its generation was read. */
static __always_inline bool hop_write(struct hop *hop, __u32 generation, const struct hop *fresh)
{
	if (__sync_val_compare_and_swap(&hop->generation, generation, generation + 1) != generation)
		return false;
	hop->resolved = fresh->resolved;
	hop->routes = fresh->routes;
	hop->ifindex = fresh->ifindex;
	hop->mtu = fresh->mtu;
	hop->xdp = fresh->xdp;
	__builtin_memcpy(hop->dst_mac, fresh->dst_mac, ETH_ALEN);
	__builtin_memcpy(hop->src_mac, fresh->src_mac, ETH_ALEN);
	__builtin_memcpy(hop->local_mac, fresh->local_mac, ETH_ALEN);
	__sync_fetch_and_add(&hop->generation, 1);
	return true;
}

static __always_inline __u8 fib_xdp_ways(__u32 ifindex)
{
	const struct interface *out = bpf_map_lookup_elem(&interfaces, &ifindex);

	return (bpf_map_lookup_elem(&tx_ports, &ifindex) ? XDP_WAY_REDIRECT : 0) | (out && out->xdp_tx ? XDP_WAY_BACK : 0);
}

/* Stores the next hop that the kernel has just returned in work->route.fib, and returns a reference to it. 0: no
 * slot of its hash value is free, or another CPU was faster. renew: the packet leaves by bpf_redirect_neigh, which
 * keeps the kernel's neighbour entry alive, so the hop is valid for another second. Without renew, a hop that is
 * already stored keeps its time. */
__noinline __u32 hop_remember(bool renew)
{
	__u32 base, index, generation, port, place = 0, old = 0;
	struct work *work = work_get();
	const struct bpf_fib_lookup *fib;
	const struct packet *pkt;
	struct hop *fresh, *hop;

	if (!work)
		return 0;
	fib = &work->route.fib;
	pkt = &work->pkt;
	fresh = &work->route.fresh;
	port = fib->ifindex;
	fresh->resolved = pkt->ms;
	fresh->routes = fib_generation();
	fresh->ifindex = port;
	fresh->mtu = fib->mtu_result;
	fresh->xdp = fib_xdp_ways(port);
	__builtin_memcpy(fresh->dst_mac, fib->dmac, ETH_ALEN);
	__builtin_memcpy(fresh->src_mac, fib->smac, ETH_ALEN);
	__builtin_memcpy(fresh->local_mac, pkt->local_mac, ETH_ALEN);
	base = ((fib->dmac[3] << 16 | fib->dmac[4] << 8 | fib->dmac[5]) ^ pkt->local_mac[5] << 24) * HASH_MULTIPLIER + port;
	base = base >> 16 ^ base;
	for (__u32 way = 0; way < HOP_WAYS; way++) {
		index = 1 + (base + way) % (HOPS - 1);
		hop = bpf_map_lookup_elem(&hops, &index);
		if (!hop)
			return 0;
		generation = hop_generation(hop);
		if (generation & 1)
			continue;
		if (hop_same(hop, fresh)) {
			if (renew)
				hop->resolved = fresh->resolved;
			return hop_reference(index, generation);
		}
		if (!place && (hop->routes != fresh->routes || (__s32)(pkt->ms - hop->resolved) >= HOP_FRESH_MS || !generation)) {
			place = index;
			old = generation;
		}
	}
	hop = place ? bpf_map_lookup_elem(&hops, &place) : NULL;
	return hop && hop_write(hop, old, fresh) ? hop_reference(place, old + 2) : 0;
}
