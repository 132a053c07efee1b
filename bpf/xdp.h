// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* XDP: writes a rewrite into a frame and sends it. Only reached with finished checksums,
 * known MAC addresses and an output device that takes XDP frames. */
#pragma once

#include "nat.h"
#include "option.h"
#include "write.h"

/* The window scale of a SYN. A global function: the verifier checks it once. */
__noinline int xdp_read_options(struct xdp_md *ctx)
{
	struct work *work = work_get();
	__u32 start, length;

	if (!work)
		return 0;
	start = work->pkt.l4.off + sizeof(struct tcphdr);
	length = work->pkt.tcp_header - sizeof(struct tcphdr);
	work->pkt.scale = TCP_SCALE_NONE;
	if (verifier_bounded(&length, sizeof(work->options)) &&
	    bpf_xdp_load_bytes(ctx, start, work->options, length) == 0)
		work->pkt.scale = option_scale(work->options, length);
	return 0;
}

static __always_inline bool xdp_parse(struct xdp_md *ctx, struct work *work)
{
	struct ethhdr *eth = (void *)(long)ctx->data;

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return false;
	return packet_parse(eth, (void *)(long)ctx->data_end, eth->h_proto, &work->pkt);
}

/* All else is TC's: what has to be put together, or says something about other packets. */
static __always_inline bool xdp_fit(const struct packet *pkt)
{
	return pkt->fragment == FRAGMENT_NONE && !packet_has_options(pkt) &&
	       (pkt->tuple.protocol == IPPROTO_TCP || pkt->tuple.protocol == IPPROTO_UDP);
}

/* Is it TC's to say whether it is dropped, and why? To another host, in promiscuous mode, it is not this
 * router's to drop. And what is attached to a bond runs at its ports, of which nothing is known. */
static __always_inline bool xdp_doubts(const struct packet *pkt, struct rewrite *rw)
{
	const struct interface *in = bpf_map_lookup_elem(&interfaces, &pkt->ifindex);

	if (in && __builtin_memcmp(in->mac, pkt->local_mac, ETH_ALEN) == 0)
		return false;
	rw->reason = in ? REASON_OTHER_HOST : REASON_NOT_ATTACHED;
	return true;
}

/* What fails does so before the first byte is written. */
static __always_inline bool xdp_write(struct xdp_md *ctx, const struct packet *pkt, const struct rewrite *rw)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	__sum16 *check = NULL;

	if (pkt->l4.check_off)
		check = write_at(data, data_end, pkt->l4.check_off, sizeof(*check));
	if ((pkt->l4.check_off && !check) || !write_headers(data, data_end, pkt, rw) ||
	    !write_macs(data, data_end, rw))
		return false;
	if (check) {
		*check = csum_apply(*check, rw->address_diff + rw->port_diff);
		/* RFC 768: an UDP checksum of zero would mean none. */
		if (pkt->tuple.protocol == IPPROTO_UDP && !*check)
			*check = 0xffff;
	}
	return true;
}

/* Never XDP_TX, also for the interface it came in by: on a veth whose peer has GRO but no XDP program the
 * kernel leaves such frames lying in the peer's ring until other traffic wakes it (veth_xdp_flush). */
static __always_inline long xdp_send(const struct rewrite *rw)
{
	return bpf_redirect_map(&tx_ports, rw->ifindex, XDP_DROP);
}
