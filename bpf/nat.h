// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The decision: what becomes of a packet, and how it is to be rewritten. Neither hook's context
 * nor the packet is touched here; ctx only passes through to helpers that take either. */
#pragma once

#include "conn.h"
#include "csum.h"
#include "fib.h"
#include "forward.h"
#include "frag.h"
#include "open.h"
#include "work.h"

static __always_inline enum verdict nat_verdict(struct rewrite *rw, enum reason reason)
{
	rw->reason = reason;
	switch (reason) {
	case REASON_NONE:
	case REASON_FORWARDING_OFF:
		return VERDICT_PASS;
	case REASON_NEXT_HOP:
	case REASON_NO_XDP_TX:
	case REASON_PARTIAL_CHECKSUM:
	case REASON_OTHER_HOST:
		return VERDICT_DEFER;
	case REASON_MALFORMED:
	case REASON_TTL_EXPIRED:
	case REASON_TOO_BIG:
	case REASON_NON_SYN:
	case REASON_BAD_HANDSHAKE:
	case REASON_ENDED:
		return VERDICT_DROP;
	default:
		return VERDICT_REFUSE;
	}
}

/* XDP sends only what needs neither the kernel's help nor its word to the sender. */
static __always_inline enum reason nat_xdp_limits(const struct packet *pkt, const struct conn *conn)
{
	__u32 ifindex = conn->hop.ifindex;

	if (!fib_fresh(&conn->hop, conn_now()) || pkt->ttl <= 1 || pkt->segment > conn->hop.mtu)
		return REASON_NEXT_HOP;
	if (__builtin_memcmp(conn->hop.local_mac, pkt->local_mac, ETH_ALEN) != 0)
		return REASON_OTHER_HOST;
	if (csum_maybe_partial(pkt))
		return REASON_PARTIAL_CHECKSUM;
	return bpf_map_lookup_elem(&tx_ports, &ifindex) ? REASON_NONE : REASON_NO_XDP_TX;
}

/* Once a second a packet goes by way of the kernel's neighbour table, which keeps its entry alive; the
 * others use what was learned then. */
static __always_inline enum reason nat_next_hop(void *ctx, struct work *work, struct conn *conn)
{
	const struct packet *pkt = &work->pkt;
	struct rewrite *rw = &work->rw;
	struct bpf_fib_lookup *fib = &work->fib;
	__u64 now = conn_now();
	long result;

	if (pkt->hook == HOOK_TC && !fib_fresh(&conn->hop, now)) {
		result = fib_route(ctx, fib, pkt->ifindex, &conn->to, pkt->segment);
		if (!fib_found(result))
			return fib_reason(result);
		if (result == BPF_FIB_LKUP_RET_SUCCESS)
			fib_remember(&conn->hop, fib, pkt, now);
		rw->ifindex = fib->ifindex;
		rw->gateway = fib->ipv4_dst;
		return REASON_NONE;
	}
	if (pkt->segment > conn->hop.mtu)
		return REASON_TOO_BIG;
	rw->ifindex = conn->hop.ifindex;
	__builtin_memcpy(rw->macs, conn->hop.dst_mac, sizeof(rw->macs));
	return REASON_NONE;
}

static __always_inline void nat_rewrite(const struct packet *pkt, const struct tuple *to, struct rewrite *rw)
{
	__u64 addresses = csum_diff_addr(&pkt->tuple.src, &to->src) + csum_diff_addr(&pkt->tuple.dst, &to->dst);
	__be16 ttl = bpf_htons((__u16)(pkt->ttl << 8 | pkt->tuple.protocol));

	rw->to = *to;
	rw->ttl_protocol = bpf_htons((__u16)((pkt->ttl - 1) << 8 | pkt->tuple.protocol));
	rw->address_diff = csum_fold32(addresses);
	rw->ip_diff = csum_fold32(addresses + csum_diff16(ttl, rw->ttl_protocol));
	rw->port_diff = csum_fold32(csum_diff16(pkt->tuple.sport, to->sport) +
				    csum_diff16(pkt->tuple.dport, to->dport));
}

static __always_inline void nat_count(const struct packet *pkt, const struct conn *conn)
{
	__u32 id = conn->forward.id;
	struct forward_stats *stats = bpf_map_lookup_elem(&forward_stats, &id);
	struct traffic *traffic;

	if (!stats || conn->path >= PATHS)
		return;
	traffic = &stats->traffic[conn->path][conn->opener ? 0 : 1];
	traffic->packets++;
	traffic->bytes += pkt->length;
}

/* A packet of a connection: sent on, if it can be. */
static __always_inline enum verdict nat_follow(void *ctx, struct work *work, struct conn *conn, bool half)
{
	const struct packet *pkt = &work->pkt;
	struct rewrite *rw = &work->rw;
	enum reason reason = REASON_NONE;

	if (packet_invalid(pkt))
		return nat_verdict(rw, REASON_MALFORMED);
	if (pkt->hook == HOOK_XDP)
		reason = nat_xdp_limits(pkt, conn);
	else if (pkt->ttl <= 1)
		reason = REASON_TTL_EXPIRED;
	if (reason == REASON_NONE)
		reason = nat_next_hop(ctx, work, conn);
	if (reason != REASON_NONE)
		return nat_verdict(rw, reason);
	conn_track(pkt, conn, half);
	nat_count(pkt, conn);
	nat_rewrite(pkt, &conn->to, rw);
	if (pkt->fragment == FRAGMENT_FIRST)
		frag_remember(work);
	return VERDICT_SEND;
}

/* Does this packet complete the handshake? Then its connection moves to conns. */
static __always_inline enum reason nat_advance(const struct packet *pkt, const struct conn *conn)
{
	bool tcp = pkt->tuple.protocol == IPPROTO_TCP;
	struct tuple other_key;
	struct conn *other;

	if (conn->opener != tcp || (tcp && pkt->tcp_flags & (TCP_SYN | TCP_RST)))
		return REASON_NONE;
	tuple_reverse(&conn->to, &other_key);
	if (!tcp)
		return conn_promote(&other_key, &pkt->tuple);
	other = bpf_map_lookup_elem(&half_open, &other_key);
	if (!other || !conn_handshake_done(pkt, conn, other))
		return REASON_BAD_HANDSHAKE;
	return conn_promote(&pkt->tuple, &other_key);
}

static __always_inline enum verdict nat_follow_half(void *ctx, struct work *work, struct conn *conn)
{
	const struct packet *pkt = &work->pkt;
	enum reason reason = REASON_NONE;
	struct conn *moved;

	if (!packet_invalid(pkt))
		reason = nat_advance(pkt, conn);
	if (reason != REASON_NONE)
		return nat_verdict(&work->rw, reason);
	moved = conn_established(&pkt->tuple);
	return nat_follow(ctx, work, moved ? moved : conn, !moved);
}

/* The way of a packet, top to bottom. */
static __always_inline enum verdict nat_decide(void *ctx, struct work *work)
{
	const struct packet *pkt = &work->pkt;
	struct rewrite *rw = &work->rw;
	struct conn *conn = conn_established(&pkt->tuple);
	bool half = !conn;
	struct external *external;
	struct forward *forward;
	enum reason reason;

	if (conn && !conn_stale(pkt, conn, false))
		return nat_follow(ctx, work, conn, false);
	external = bpf_map_lookup_elem(&externals, &pkt->tuple.dst);
	if (half && !external && !conn_awaited(&pkt->tuple))
		return nat_verdict(rw, REASON_NONE);
	if (half)
		conn = bpf_map_lookup_elem(&half_open, &pkt->tuple);
	if (half && conn && !conn_stale(pkt, conn, true))
		return nat_follow_half(ctx, work, conn);
	/* What a server still says on a connection that is over must not leave with its own address. */
	if (conn && !conn->opener)
		return nat_verdict(rw, REASON_ENDED);
	if (!external)
		return nat_verdict(rw, REASON_NONE);
	if (pkt->broken)
		return nat_verdict(rw, REASON_MALFORMED);
	forward = forward_find(forward_slot(), external, pkt->tuple.protocol, pkt->tuple.dport);
	if (!forward)
		return nat_verdict(rw, REASON_NONE);
	reason = open_connection(ctx, work, external, forward);
	if (reason != REASON_NONE)
		return nat_verdict(rw, reason);
	conn = bpf_map_lookup_elem(&half_open, &pkt->tuple);
	if (!conn)
		return nat_verdict(rw, REASON_TABLE_FULL);
	return nat_follow(ctx, work, conn, true);
}
