// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Routes and next hops by bpf_fib_lookup; what each of its answers means for the packet.
 * ctx only passes through to a helper that takes either hook's. */
#pragma once

#include "maps.h"
#include "packet.h"

enum { FIB_AF_INET = 2, FIB_AF_INET6 = 10, FIB_FRESH_NS = 1000000000 };

/* Where a route begins: with the packet that came in by an interface, or at the interface it has to leave by. */
struct fib_start {
	__u32 ifindex;
	__u32 flags;		/* 0, or BPF_FIB_LOOKUP_OUTPUT */
};

/* Routes a packet of this length. SUCCESS and NO_NEIGH both set fib->ifindex and the gateway (kernel 5.12
 * on); only SUCCESS sets the MAC addresses and the MTU. Negative: there is no such interface. */
static __always_inline long fib_route(void *ctx, struct bpf_fib_lookup *fib, struct fib_start start,
				      const struct tuple *way, __u32 length)
{
	__builtin_memset(fib, 0, sizeof(*fib));
	fib->l4_protocol = way->protocol;
	/* Rules may ask for ports (ip-rule(8)). */
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

/* Of another family than the packet, where a route is by way of one (RFC 5549). */
static __always_inline void fib_gateway(const struct bpf_fib_lookup *fib, struct bpf_redir_neigh *gateway)
{
	gateway->nh_family = fib->family;
	__builtin_memcpy(gateway->ipv6_nh, fib->ipv6_dst, sizeof(gateway->ipv6_nh));
}

static __always_inline bool fib_found(long result)
{
	return result == BPF_FIB_LKUP_RET_SUCCESS || result == BPF_FIB_LKUP_RET_NO_NEIGH;
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

/* Raised by the control plane when a route or a neighbour changed. */
static __always_inline __u32 fib_generation(void)
{
	__u32 zero = 0;
	struct routes *now = bpf_map_lookup_elem(&routes, &zero);

	return now ? now->generation : 0;
}

static __always_inline bool fib_fresh(const struct next_hop *hop, __u64 now)
{
	return hop->resolved && now - hop->resolved < FIB_FRESH_NS && hop->routes == fib_generation();
}

/* Is a packet for this neighbour to go the kernel's way? One a second is: without it the kernel would believe
 * for ever in what it once learnt. Whoever asks first sends it. */
static __always_inline bool fib_renewal_due(const struct bpf_fib_lookup *fib, __u64 now)
{
	__u32 slot = (fib->dmac[3] << 16 | fib->dmac[4] << 8 | fib->dmac[5]) * 2654435761u + fib->ifindex;
	struct renewal *last;

	slot = (slot >> 16 ^ slot) & 1023;
	last = bpf_map_lookup_elem(&renewals, &slot);
	if (!last)
		return true;
	if (now - last->time < FIB_FRESH_NS && last->ifindex == fib->ifindex &&
	    __builtin_memcmp(last->mac, fib->dmac, ETH_ALEN) == 0)
		return false;
	last->time = now;
	last->ifindex = fib->ifindex;
	__builtin_memcpy(last->mac, fib->dmac, ETH_ALEN);
	return true;
}

static __always_inline void fib_remember(struct next_hop *hop, const struct bpf_fib_lookup *fib,
					 const struct packet *pkt, __u64 now)
{
	__builtin_memcpy(hop->dst_mac, fib->dmac, ETH_ALEN);
	__builtin_memcpy(hop->src_mac, fib->smac, ETH_ALEN);
	__builtin_memcpy(hop->local_mac, pkt->local_mac, ETH_ALEN);
	hop->ifindex = fib->ifindex;
	hop->xdp = bpf_map_lookup_elem(&tx_ports, &hop->ifindex) != NULL;
	hop->mtu = fib->mtu_result;
	hop->routes = fib_generation();
	hop->resolved = now;
}
