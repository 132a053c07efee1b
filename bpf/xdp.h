// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* XDP: writes a rewrite into a frame and sends it. Only reached with finished checksums,
 * known MAC addresses and an output device that takes XDP frames. */
#pragma once

#include "nat.h"

enum { XDP_OFFSET_MAX = 0x3ff };

/* Not static, as those of TC. */
__noinline int xdp_parse(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct work *work = work_get();

	if (!work || (void *)(eth + 1) > (void *)(long)ctx->data_end)
		return false;
	return packet_parse(eth, (void *)(long)ctx->data_end, eth->h_proto, &work->pkt);
}

__noinline int xdp_nat(struct xdp_md *ctx)
{
	struct work *work = work_get();

	return work ? nat_decide(ctx, work) : VERDICT_PASS;
}

/* All else is TC's: what has to be put together, or says something about other packets. */
static __always_inline bool xdp_fit(const struct packet *pkt)
{
	return pkt->fragment == FRAGMENT_NONE &&
	       (pkt->tuple.protocol == IPPROTO_TCP || pkt->tuple.protocol == IPPROTO_UDP);
}

/* Is it TC's to say whether it is dropped, and why? To another host, in promiscuous mode, it is not this
 * router's to drop. And what is attached to a bond runs at its ports, of which nothing is known. */
static __always_inline enum reason xdp_undecided(const struct packet *pkt)
{
	const struct interface *in = bpf_map_lookup_elem(&interfaces, &pkt->ifindex);

	if (!in)
		return REASON_NOT_ATTACHED;
	return __builtin_memcmp(in->mac, pkt->local_mac, ETH_ALEN) != 0 ? REASON_OTHER_HOST : REASON_NONE;
}

/* The only place that turns an offset into a pointer. The verifier grants no range to an offset that may
 * reach 0xffff, so it is bounded; the barrier keeps the checked and the used pointer in one register. */
static __always_inline void *xdp_at(struct xdp_md *ctx, __u32 offset, __u32 length)
{
	void *p;

	if (offset > XDP_OFFSET_MAX)
		return NULL;
	p = (void *)(long)ctx->data + offset;
	asm volatile("" : "+r"(p));
	return p + length <= (void *)(long)ctx->data_end ? p : NULL;
}

static __always_inline bool xdp_write_ipv6(struct xdp_md *ctx, const struct packet *pkt, const struct rewrite *rw)
{
	struct ipv6hdr *ip = xdp_at(ctx, pkt->l3_off, sizeof(*ip));

	if (!ip)
		return false;
	ip->hop_limit = rw->ttl;
	__builtin_memcpy(&ip->saddr, &rw->to.src, sizeof(rw->to.src));
	__builtin_memcpy(&ip->daddr, &rw->to.dst, sizeof(rw->to.dst));
	return true;
}

static __always_inline bool xdp_write_ipv4(struct xdp_md *ctx, const struct packet *pkt, const struct rewrite *rw)
{
	struct iphdr *ip = xdp_at(ctx, pkt->l3_off, sizeof(*ip));

	if (!ip)
		return false;
	ip->check = csum_apply(ip->check, rw->ip_diff);
	ip->ttl = rw->ttl;
	ip->saddr = rw->to.src.word[3];
	ip->daddr = rw->to.dst.word[3];
	return true;
}

/* What fails does so before the first byte is written. */
static __always_inline bool xdp_write(struct xdp_md *ctx, const struct packet *pkt, const struct rewrite *rw)
{
	struct ethhdr *eth = xdp_at(ctx, 0, sizeof(*eth));
	__be16 *ports = xdp_at(ctx, pkt->l4.ports_off, 2 * sizeof(*ports));
	__sum16 *check = NULL;

	if (pkt->l4.check_off)
		check = xdp_at(ctx, pkt->l4.check_off, sizeof(*check));
	if (!eth || !ports || (pkt->l4.check_off && !check) ||
	    !(pkt->v6 ? xdp_write_ipv6(ctx, pkt, rw) : xdp_write_ipv4(ctx, pkt, rw)))
		return false;
	if (check) {
		*check = csum_apply(csum_apply(*check, rw->address_diff), rw->port_diff);
		/* RFC 768: an UDP checksum of zero would mean none. */
		if (pkt->tuple.protocol == IPPROTO_UDP && !*check)
			*check = 0xffff;
	}
	ports[0] = rw->to.sport;
	ports[1] = rw->to.dport;
	__builtin_memcpy(eth, rw->macs, sizeof(rw->macs));
	return true;
}

/* Never XDP_TX, also for the interface it came in by: on a veth whose peer has GRO but no XDP program the
 * kernel leaves such frames lying in the peer's ring until other traffic wakes it (veth_xdp_flush). */
static __always_inline long xdp_send(const struct rewrite *rw)
{
	return bpf_redirect_map(&tx_ports, rw->ifindex, XDP_DROP);
}
