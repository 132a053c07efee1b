// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The decision: what becomes of a packet, and how it is to be rewritten. Neither hook's context
 * nor the packet is touched here; ctx only passes through to helpers that take either. */
#pragma once

#include "conn.h"
#include "csum.h"
#include "fib.h"
#include "forward.h"
#include "frag.h"
#include "intercept.h"
#include "open.h"
#include "work.h"

/* With a stack frame of its own, and taken by the verifier for itself. */
typedef int nat_unknown(void *ctx);

static __always_inline enum role nat_role(__u32 ifindex)
{
	const struct interface *interface = bpf_map_lookup_elem(&interfaces, &ifindex);

	return interface ? interface->role : 0;
}

/* Are senders behind this interface told why they are refused? */
static __always_inline bool nat_tells(__u32 ifindex)
{
	const struct settings *settings = conn_settings();
	enum role role = nat_role(ifindex);

	return role && settings && settings->told & (role == ROLE_WAN ? SIDE_WAN : SIDE_LAN);
}

/* What needs an answer, or the kernel's help, is not for XDP. The router's own processes are refused by the
 * kernel, for what they ask for is an address of its own. */
static __always_inline enum verdict nat_verdict(struct work *work, enum reason reason)
{
	bool xdp = work->pkt.hook == HOOK_XDP;

	work->rw.reason = reason;
	switch (reason) {
	case REASON_NONE:
	case REASON_FORWARDING_OFF:
		return VERDICT_PASS;
	case REASON_NEXT_HOP:
	case REASON_NO_XDP_TX:
	case REASON_PARTIAL_CHECKSUM:
	case REASON_OTHER_HOST:
	case REASON_MSS:
		return VERDICT_DEFER;
	case REASON_TTL_EXPIRED:
	case REASON_TOO_BIG:
		return xdp ? VERDICT_DEFER : VERDICT_DROP;
	case REASON_MALFORMED:
	case REASON_BAD_CHECKSUM:
	case REASON_FRAGMENT_TINY:
	case REASON_NON_SYN:
	case REASON_BAD_HANDSHAKE:
	case REASON_NO_CONNECTION:
		return VERDICT_DROP;
	case REASON_SPOOFED:
		return VERDICT_REFUSE;
	case REASON_ENDED:
		return xdp && nat_tells(work->pkt.ifindex) ? VERDICT_DEFER : VERDICT_DROP;
	default:
		if (nat_role(work->pkt.ifindex) == ROLE_LOCAL)
			return VERDICT_PASS;
		return xdp && nat_tells(work->pkt.ifindex) ? VERDICT_DEFER : VERDICT_REFUSE;
	}
}

/* What is too long for the next hop is cut up, if it may be. */
static __always_inline enum reason nat_fits(const struct packet *pkt, struct rewrite *rw, __u32 mtu)
{
	rw->mtu = mtu;
	if (pkt->segment <= mtu)
		return REASON_NONE;
	return packet_divisible(pkt) ? REASON_NONE : REASON_TOO_BIG;
}

static __always_inline void nat_take_hop(struct rewrite *rw, const struct next_hop *hop)
{
	rw->ifindex = hop->ifindex;
	rw->resolved = true;
	__builtin_memcpy(rw->macs, hop->dst_mac, sizeof(rw->macs));
}

/* Answers to the Internet leave by the WAN their connection came in by, with other uplinks or without;
 * everything else goes where the kernel would send what came in here. */
static __always_inline struct fib_start nat_start(const struct packet *pkt, const struct conn *conn)
{
	if (conn->path == PATH_WAN && !conn->opener)
		return (struct fib_start){ .ifindex = conn->ifindex, .flags = BPF_FIB_LOOKUP_OUTPUT };
	return (struct fib_start){ .ifindex = pkt->ifindex };
}

/* XDP looks for the way itself where the kernel has had a packet for that neighbour of late. */
static __always_inline bool nat_renew(void *ctx, struct work *work, struct conn *conn)
{
	struct fib_start start = nat_start(&work->pkt, conn);
	struct bpf_fib_lookup *fib = &work->fib;

	if (fib_route(ctx, fib, start, &conn->to, work->pkt.segment) != BPF_FIB_LKUP_RET_SUCCESS ||
	    (start.flags && fib->ifindex != start.ifindex) || fib_renewal_due(fib, work->pkt.now))
		return false;
	fib_remember(&conn->hop, fib, &work->pkt, work->pkt.now);
	return true;
}

/* Is it sent to us? Before a direction's first packet only its interface tells. */
static __always_inline enum reason nat_addressed(const struct packet *pkt, const struct next_hop *hop)
{
	const struct interface *in;

	if (hop->resolved)
		return __builtin_memcmp(hop->local_mac, pkt->local_mac, ETH_ALEN) ? REASON_OTHER_HOST : REASON_NONE;
	in = bpf_map_lookup_elem(&interfaces, &pkt->ifindex);
	if (!in)
		return REASON_NEXT_HOP;
	return __builtin_memcmp(in->mac, pkt->local_mac, ETH_ALEN) ? REASON_OTHER_HOST : REASON_NONE;
}

/* XDP sends only what needs neither the kernel's help nor its word to the sender. */
static __always_inline enum reason nat_xdp_limits(void *ctx, struct work *work, struct conn *conn)
{
	const struct packet *pkt = &work->pkt;
	const struct next_hop *hop = &conn->hop;
	enum reason reason = nat_addressed(pkt, hop);

	if (reason != REASON_NONE)
		return reason;
	if (!fib_fresh(hop, pkt->now) && !nat_renew(ctx, work, conn))
		return REASON_NEXT_HOP;
	if (pkt->segment > hop->mtu)
		return REASON_TOO_BIG;
	if (csum_maybe_partial(pkt))
		return REASON_PARTIAL_CHECKSUM;
	return hop->xdp ? REASON_NONE : REASON_NO_XDP_TX;
}

/* The kernel's answer for a packet that may be cut up. */
static __always_inline long nat_ask(void *ctx, struct work *work, struct fib_start start, const struct tuple *to)
{
	const struct packet *pkt = &work->pkt;
	long result = fib_route(ctx, &work->fib, start, to, pkt->segment);

	if (result != BPF_FIB_LKUP_RET_FRAG_NEEDED || nat_fits(pkt, &work->rw, work->fib.mtu_result) != REASON_NONE)
		return result;
	return fib_route(ctx, &work->fib, start, to, sizeof(struct iphdr));
}

/* Asks the kernel for the way; it will resolve the neighbour. What it knows no way for by the interface that it
 * has to leave by goes back to the station it came from, and if that interface has gone, by any other. */
static __always_inline enum reason nat_route(void *ctx, struct work *work, const struct conn *conn)
{
	struct fib_start start = nat_start(&work->pkt, conn);
	struct bpf_fib_lookup *fib = &work->fib;
	struct rewrite *rw = &work->rw;
	long result = nat_ask(ctx, work, start, &conn->to);

	if (start.flags && result < 0)
		result = nat_ask(ctx, work, (struct fib_start){ .ifindex = work->pkt.ifindex }, &conn->to);
	/* Of IPv6 the kernel takes an interface for a wish. */
	else if (start.flags && (result == BPF_FIB_LKUP_RET_NOT_FWDED ||
				 (fib_found(result) && fib->ifindex != start.ifindex))) {
		nat_take_hop(rw, &conn->hop);
		return REASON_NONE;
	}
	if (!fib_found(result))
		return fib_reason(result);
	rw->ifindex = fib->ifindex;
	fib_gateway(fib, &rw->gateway);
	rw->resolved = result == BPF_FIB_LKUP_RET_SUCCESS;
	if (rw->resolved)
		rw->mtu = fib->mtu_result;
	__builtin_memcpy(rw->macs, fib->dmac, ETH_ALEN);
	__builtin_memcpy(rw->macs + ETH_ALEN, fib->smac, ETH_ALEN);
	return REASON_NONE;
}

/* To whom; the router itself is no next hop, what is for it comes and goes by the loopback device. A stack frame
 * of its own. */
static __noinline enum reason nat_way(void *ctx, struct work *work, const struct conn *conn)
{
	struct rewrite *rw = &work->rw;

	if (!conn->local)
		return nat_route(ctx, work, conn);
	rw->ifindex = LOOPBACK_IFINDEX;
	rw->local = true;
	return REASON_NONE;
}

/* The router's own packets come with a route, of the loopback device. While a neighbour is being resolved the
 * kernel would take that for the one to go by: without it they come in once more. */
static __always_inline bool nat_has_route(const struct packet *pkt)
{
	return nat_role(pkt->ifindex) == ROLE_LOCAL && !packet_again(pkt);
}

/* Once a second a packet of TC's goes by way of the kernel's neighbour table, which keeps its entry alive; the
 * others use what was learned then. */
static __always_inline enum reason nat_next_hop(void *ctx, struct work *work, struct conn *conn)
{
	const struct packet *pkt = &work->pkt;
	struct rewrite *rw = &work->rw;
	__u64 now = pkt->now;
	enum reason reason;

	if (pkt->hook == HOOK_TC && !fib_fresh(&conn->hop, now)) {
		reason = nat_way(ctx, work, conn);
		if (reason == REASON_NONE && rw->resolved && rw->gateway.nh_family)
			fib_remember(&conn->hop, &work->fib, pkt, now);
		if (reason == REASON_NONE && !rw->resolved && nat_has_route(pkt))
			reason = REASON_NEXT_HOP;
		return reason;
	}
	nat_take_hop(rw, &conn->hop);
	return nat_fits(pkt, rw, conn->hop.mtu);
}

static __always_inline __u32 nat_mss_mtu(__u32 ifindex)
{
	const struct interface *interface = bpf_map_lookup_elem(&interfaces, &ifindex);

	return interface && interface->mss_mtu ? interface->mss_mtu : ~0u;
}

/* A SYN says how long the segments of the other direction may be: what comes in by this packet's way out
 * has to leave by its way in, and both have their MTU. */
static __always_inline enum reason nat_clamp_mss(const struct packet *pkt, const struct conn *conn,
						 struct rewrite *rw)
{
	__u32 in, out, mtu;

	if (pkt->tuple.protocol != IPPROTO_TCP || !(pkt->tcp_flags & TCP_SYN))
		return REASON_NONE;
	in = nat_mss_mtu(pkt->ifindex);
	out = nat_mss_mtu(rw->ifindex);
	mtu = in < out ? in : out;
	if (mtu == ~0u)
		return REASON_NONE;
	if (conn->hop.mtu && conn->hop.mtu < mtu)
		mtu = conn->hop.mtu;
	rw->mss = (__u16)(mtu - packet_base(pkt) - sizeof(struct tcphdr));
	return pkt->hook == HOOK_XDP ? REASON_MSS : REASON_NONE;
}

/* Its addresses, which change the checksums by this, and its TTL. */
static __always_inline void nat_rewrite(const struct packet *pkt, const struct tuple *to, __wsum diff,
					struct rewrite *rw)
{
	rw->to = *to;
	rw->ttl = pkt->ttl - 1;
	rw->address_diff = diff;
	/* In IPv4's header the TTL is the upper half of its word, in IPv6's the lower. */
	rw->ip_diff = csum_fold32((__u64)diff +
				  (pkt->v6 ? csum_diff16(bpf_htons(pkt->ttl), bpf_htons(rw->ttl))
					   : csum_diff16(bpf_htons(pkt->ttl << 8), bpf_htons(rw->ttl << 8))));
}

static __always_inline void nat_count(const struct packet *pkt, const struct conn *conn)
{
	struct forward_stats *stats = stats_find(conn->forward.id);
	struct traffic *traffic;

	if (!stats || conn->path >= PATHS)
		return;
	traffic = &stats->traffic[conn->path][conn->opener ? 0 : 1];
	traffic->packets++;
	traffic->bytes += pkt->length;
}

/* Does this packet complete the handshake? One that was rebuilt has both sides speak instead. A stack frame of
 * its own. */
static __noinline enum reason nat_advance(const struct packet *pkt, struct conn *conn)
{
	bool tcp = pkt->tuple.protocol == IPPROTO_TCP;
	struct tuple other_key;
	struct conn *other;

	if (conn->opener != tcp || (tcp && pkt->tcp_flags & (TCP_SYN | TCP_RST)) || pkt->fragment == FRAGMENT_LATER)
		return REASON_NONE;
	tuple_reverse(&conn->to, &other_key);
	other = conn_find(&other_key);
	if (!other)
		return tcp ? REASON_BAD_HANDSHAKE : REASON_ENDED;
	if (!tcp)
		return conn_promote(&other_key, other, conn);
	if (conn->rebuilt && !other->packets)
		return REASON_NONE;
	if (!conn->rebuilt && !conn_handshake_done(pkt, conn, other))
		return REASON_BAD_HANDSHAKE;
	return conn_promote(&pkt->tuple, conn, other);
}

/* A packet of a connection: sent on, if it can be. */
static __always_inline enum verdict nat_follow(void *ctx, struct work *work, struct conn *conn)
{
	const struct packet *pkt = &work->pkt;
	struct rewrite *rw = &work->rw;
	enum reason reason = pkt->flaw;

	if (reason == REASON_NONE && conn_half(conn))
		reason = nat_advance(pkt, conn);
	if (reason == REASON_NONE && pkt->ttl <= 1)
		reason = REASON_TTL_EXPIRED;
	if (reason == REASON_NONE && pkt->hook == HOOK_XDP)
		reason = nat_xdp_limits(ctx, work, conn);
	if (reason == REASON_NONE)
		reason = nat_next_hop(ctx, work, conn);
	if (reason == REASON_NONE)
		reason = nat_clamp_mss(pkt, conn, rw);
	if (reason != REASON_NONE)
		return nat_verdict(work, reason);
	conn_track(pkt, conn);
	nat_count(pkt, conn);
	nat_rewrite(pkt, &conn->to, conn->address_diff, rw);
	rw->port_diff = conn->port_diff;
	return VERDICT_SEND;
}

/* Nothing more may be said on it: it is over, and this begins no other. What a server still says must not leave
 * with its own address. Whom a client asks that is intercepted no more hears it. */
static __always_inline bool nat_ended(const struct packet *pkt, const struct conn *conn,
				      const struct external *external)
{
	bool begins = pkt->opens && (external || stand_in_answered(&pkt->tuple.dst) || intercept_find(pkt) ||
				     intercept_made(conn));

	return !conn->opener || (conn_over(conn) && !begins);
}

/* Has the packet begun a connection? */
static __always_inline enum verdict nat_begun(struct work *work, enum reason reason)
{
	return reason == REASON_NONE ? VERDICT_BEGUN : nat_verdict(work, reason);
}

/* May it begin something, or go on with what was lost? Whether it does comes later. */
static __always_inline bool nat_may_begin(struct work *work)
{
	const struct packet *pkt = &work->pkt;
	const struct external *external = external_find(&pkt->tuple.dst);
	const struct settings *settings = conn_settings();

	work->to_external = external;
	if (external)
		work->external = *external;
	return external || (settings && (settings->stand_ins || intercept_port(settings, pkt)));
}

/* To no forward's address and port: an intercept's, or to a stand-in, from inside. What is in the middle of a
 * connection that was there before an intercept stays as it is. */
static __always_inline enum verdict nat_stranger(void *ctx, struct work *work)
{
	const struct packet *pkt = &work->pkt;
	const struct forward *forward = intercept_find(pkt);

	if (forward && pkt->opens && !open_routers_own(ctx, work))
		return nat_begun(work, open_connection(ctx, work, &forward->stamp, forward));
	if (stand_in_answered(&pkt->tuple.dst) && nat_role(pkt->ifindex) == ROLE_LAN)
		return nat_begun(work, open_rebuild(ctx, work));
	return nat_verdict(work, REASON_NONE);
}

/* The way of a packet, top to bottom. Most are of a connection; the first one of a connection comes by twice.
 * What may be ours and is not is for the hook's own copy of nat_decide_unknown. */
static __always_inline enum verdict nat_decide(void *ctx, struct work *work, nat_unknown *unknown)
{
	const struct packet *pkt = &work->pkt;
	enum verdict verdict;
	struct conn *conn;

	for (int i = 0; i < 2; i++) {
		conn = conn_find(&pkt->tuple);
		if (conn && !conn_stale(pkt, conn))
			return nat_follow(ctx, work, conn);
		if (!nat_may_begin(work) && !conn)
			return VERDICT_PASS;
		work->stale = conn;
		verdict = unknown(ctx);
		if (verdict != VERDICT_BEGUN)
			return verdict;
	}
	return nat_verdict(work, REASON_TABLE_FULL);
}

/* The other packets that may be ours. BEGUN: there is a connection now. */
static __always_inline enum verdict nat_decide_unknown(void *ctx, struct work *work)
{
	const struct packet *pkt = &work->pkt;
	struct conn *conn = work->stale ? conn_find(&pkt->tuple) : NULL;
	const struct external *external = work->to_external ? &work->external : NULL;
	struct forward *forward;

	if (conn && nat_ended(pkt, conn, external))
		return nat_verdict(work, REASON_ENDED);
	/* An answer to the router's own ping opens nothing, and is not to be dropped for that. */
	if (external && packet_is_icmp(pkt, pkt->tuple.protocol) && !pkt->opens)
		return nat_verdict(work, REASON_NONE);
	if (external && pkt->broken)
		return nat_verdict(work, REASON_MALFORMED);
	forward = external ? forward_find(forward_slot(), external, pkt->tuple.protocol, pkt->tuple.dport) : NULL;
	if (!forward)
		return nat_stranger(ctx, work);
	if (open_routers_own(ctx, work))
		return nat_verdict(work, REASON_NONE);
	return nat_begun(work, open_connection(ctx, work, &external->address, forward));
}
