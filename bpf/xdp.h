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

/* May XDP handle this packet? Fragments, IP options, ICMP and protocols without ports are left to TC. */
static __always_inline bool xdp_fit(const struct packet *pkt)
{
	return pkt->fragment == FRAGMENT_NONE && !packet_has_options(pkt) &&
	       (pkt->tuple.protocol == IPPROTO_TCP || pkt->tuple.protocol == IPPROTO_UDP);
}

/* Must TC decide whether this packet is dropped? Yes if the frame is for another host (promiscuous mode). Yes if the interface
 * is unknown: XDP on a bond runs at its ports. */
static __always_inline bool xdp_doubts(const struct packet *pkt, struct rewrite *rw)
{
	const struct interface *in = bpf_map_lookup_elem(&interfaces, &pkt->ifindex);

	if (in && __builtin_memcmp(in->mac, pkt->local_mac, ETH_ALEN) == 0)
		return false;
	rw->reason = in ? REASON_OTHER_HOST : REASON_NOT_ATTACHED;
	return true;
}

/* Writes the rewrite into the frame. If anything is out of reach, nothing is written. */
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

/* Always a redirect, never XDP_TX. On a veth whose peer has GRO but no XDP program, XDP_TX leaves frames in the peer's ring
 * until other traffic comes (veth_xdp_flush). */
static __always_inline long xdp_send(const struct rewrite *rw)
{
	return bpf_redirect_map(&tx_ports, rw->ifindex, XDP_DROP);
}
