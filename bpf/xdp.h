// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Functions that only the XDP program needs: to read the options of a SYN, and to leave some drops to TC. */
#pragma once

#include "nat.h"
#include "option.h"

/* Reads the window scale of a SYN. A global function: the verifier checks it once. */
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
		work->pkt.scale = option_scale(work, length);
	return 0;
}

/* Must TC decide whether this packet is dropped? Yes if the frame is for another host (promiscuous mode). Yes if
 * hairpin does not know the interface: XDP on a bond runs on the bond's ports. */
static __always_inline bool xdp_doubts(const struct packet *pkt, struct rewrite *rw)
{
	const struct interface *in = bpf_map_lookup_elem(&interfaces, &pkt->ifindex);

	if (in && __builtin_memcmp(in->mac, pkt->local_mac, ETH_ALEN) == 0)
		return false;
	rw->reason = in ? REASON_OTHER_HOST : REASON_NOT_ATTACHED;
	return true;
}
