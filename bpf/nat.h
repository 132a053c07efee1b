// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Decides what happens to a packet: returns a verdict, and fills struct rewrite for the write step. No function
 * here reads or writes bytes of the packet. ctx (struct __sk_buff or struct xdp_md) is only passed to helpers. */
#pragma once

#include "conn.h"
#include "edit.h"
#include "fib.h"
#include "forward.h"
#include "fragment.h"
#include "ingress.h"
#include "intercept.h"
#include "lifecycle.h"
#include "open.h"
#include "work.h"

/* Steps that few packets need are global functions: the verifier checks each global function once. The type of the
 * context differs between the hooks, so a step that both hooks need has two functions: NAME_tc and NAME_xdp. Linux
 * 6.1 cannot pass working memory to a global function, so each global function calls work_get(). */

static __always_inline enum role nat_role(__u32 ifindex)
{
	const struct interface *interface = bpf_map_lookup_elem(&interfaces, &ifindex);

	return interface ? interface->role : 0;
}

/* Does the router tell senders behind this interface that it has refused their packets? */
static __always_inline bool nat_sender_is_told(__u32 ifindex)
{
	const struct settings *settings = conn_settings();
	enum role role = nat_role(ifindex);

	return role && settings && settings->told & (role == ROLE_WAN ? SIDE_WAN : SIDE_LAN);
}

/* Returns the verdict for a reason. XDP leaves a packet to TC if the packet needs an answer, or the kernel's help.
 * A refused packet of the router's own processes passes: its destination is the router's address, so the kernel
 * refuses it. */
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
	case REASON_SOURCE_ROUTE:
	case REASON_RACED:
		return VERDICT_DROP;
	case REASON_CHALLENGED:
		return xdp && work->pkt.opens ? VERDICT_DEFER : VERDICT_DROP;
	case REASON_SPOOFED:
	case REASON_PRIVATE_SOURCE:
		return VERDICT_REFUSE;
	case REASON_ENDED:
		return xdp ? VERDICT_DEFER : VERDICT_DROP;
	default:
		if (nat_role(work->pkt.ifindex) == ROLE_LOCAL)
			return VERDICT_PASS;
		return xdp && nat_sender_is_told(work->pkt.ifindex) ? VERDICT_DEFER : VERDICT_REFUSE;
	}
}

/* Returns the verdict for a packet of a known connection. The packet opens nothing, so SPOOFED and NOT_ATTACHED
 * drop it instead of refusing it. */
static __always_inline enum verdict nat_verdict_known(struct work *work, enum reason reason)
{
	work->rw.reason = reason;
	if (reason == REASON_NOT_OURS) {
		work->rw.reason = REASON_NONE;
		return VERDICT_PASS;
	}
	if (reason == REASON_SPOOFED)
		return VERDICT_DROP;
	if (reason == REASON_NOT_ATTACHED)
		return work->pkt.hook == HOOK_XDP ? VERDICT_DEFER : VERDICT_DROP;
	return nat_verdict(work, reason);
}

/* Stores the MTU of the next hop in rw. TOO_BIG: the packet is longer, and must not be divided. */
static __always_inline enum reason nat_check_mtu(const struct packet *pkt, struct rewrite *rw, __u32 mtu)
{
	rw->mtu = mtu;
	if (pkt->segment <= mtu)
		return REASON_NONE;
	return packet_divisible(pkt) ? REASON_NONE : REASON_TOO_BIG;
}

/* Returns TOO_BIG if the segments of this GSO packet are longer than the MTU. Only the kernel can measure the
 * segments. */
static __always_inline enum reason nat_check_segments(void *ctx, const struct work *work)
{
	__u32 mtu = 0;

	return bpf_check_mtu(ctx, work->rw.ifindex, &mtu, 0, BPF_MTU_CHK_SEGS) == BPF_MTU_CHK_RET_SEGS_TOOBIG
		       ? REASON_TOO_BIG : REASON_NONE;
}

__noinline int nat_check_segments_tc(struct __sk_buff *skb)
{
	struct work *work = work_get();

	return work ? nat_check_segments(skb, work) : REASON_TOO_BIG;
}

/* Is this a GSO packet of UDP or of a tunnel? Only the kernel can measure its segments. */
static __always_inline bool nat_tunnelled(const struct packet *pkt)
{
	return pkt->gso_size && pkt->tuple.protocol != IPPROTO_TCP && pkt->tuple.protocol != IPPROTO_SCTP;
}

/* Returns where the route look-up of a packet begins. An answer to the Internet leaves by the WAN on which its
 * opener's packets come in. For any other packet the kernel's own route applies. */
static __always_inline struct fib_start nat_route_start(struct work *work, const struct entry *entry)
{
	const struct conn *opener;

	if (conn_path(entry->identity) != PATH_WAN || entry->identity & CONN_OPENER)
		return (struct fib_start){ .ifindex = work->pkt.ifindex };
	opener = conn_other(entry, &work->other);
	if (!opener)
		return (struct fib_start){ .ifindex = work->pkt.ifindex };
	return (struct fib_start){ .ifindex = opener->ifindex, .flags = BPF_FIB_LOOKUP_OUTPUT };
}

/* Asks the kernel for the route. After FRAG_NEEDED for a packet that may be divided, asks again for a short
 * packet: TC divides the packet later. */
static __always_inline long nat_ask_route(void *ctx, struct work *work, struct fib_start start, const struct tuple *to)
{
	const struct packet *pkt = &work->pkt;
	long result = fib_route(ctx, &work->route.fib, start, to, pkt->segment);

	if (result != BPF_FIB_LKUP_RET_FRAG_NEEDED || nat_check_mtu(pkt, &work->rw, work->route.fib.mtu_result) != REASON_NONE)
		return result;
	return fib_route(ctx, &work->route.fib, start, to, sizeof(struct iphdr));
}

/* Would this packet show a private address to the Internet? A LAN's route may be gone, so that the default route leads to the LAN's
 * hosts. A WAN may show its own addresses, and a WAN with a private IPv4 address is another router's network. */
static __always_inline bool nat_shows_inside(const union addr *source, __u32 ifindex)
{
	const struct interface *out = bpf_map_lookup_elem(&interfaces, &ifindex);

	return out && out->role == ROLE_WAN && !out->private && addr_private(source) && !own_address_has(ifindex, source);
}

/* Asks the kernel for the route, and fills rw. The kernel resolves the neighbour in rw->gateway. If the
 * connection's WAN has no route to the opener, the answer may leave by another WAN, never by a LAN. The source MAC
 * address of the opener's packets is never used as the next hop: every host on that link can forge it. All other packets
 * leave by no WAN that would see an inside source. */
static __always_inline enum reason nat_route(void *ctx, struct work *work, const struct entry *entry)
{
	struct fib_start start = nat_route_start(work, entry);
	struct bpf_fib_lookup *fib = &work->route.fib;
	struct rewrite *rw = &work->rw;
	long result = nat_ask_route(ctx, work, start, &entry->to);

	/* For IPv6 the kernel prefers the wanted output interface, but may return a route by another interface: such
	 * as the default route of a VPN, which a rule puts before the main table. So ask the main table alone. Not if no
	 * route is found: a rule may prohibit the packet (for IPv6 and for unreachable, the result is then NOT_FWDED). */
	if (start.flags && fib_found(result) && !fib_leaves_by(result, fib, start.ifindex)) {
		start.flags |= BPF_FIB_LOOKUP_DIRECT;
		result = nat_ask_route(ctx, work, start, &entry->to);
	}
	if (start.flags && !fib_leaves_by(result, fib, start.ifindex)) {
		result = nat_ask_route(ctx, work, (struct fib_start){ .ifindex = work->pkt.ifindex }, &entry->to);
		if (fib_found(result) && !open_out_is_wan(fib->ifindex))
			return REASON_NO_ROUTE;
	}
	if (!fib_found(result))
		return fib_reason(result);
	if (!start.flags && nat_shows_inside(&entry->to.src, fib->ifindex))
		return REASON_NO_ROUTE;
	rw->ifindex = fib->ifindex;
	fib_gateway(fib, &rw->gateway);
	rw->resolved = result == BPF_FIB_LKUP_RET_SUCCESS;
	if (rw->resolved)
		rw->mtu = fib->mtu_result;
	__builtin_memcpy(rw->macs, fib->dmac, ETH_ALEN);
	__builtin_memcpy(rw->macs + ETH_ALEN, fib->smac, ETH_ALEN);
	return REASON_NONE;
}

/* Finds the output interface and the route of a packet. A packet to the router itself leaves by the loopback
 * device. Not inlined, to save stack. */
static __noinline enum reason nat_find_way(void *ctx, struct work *work, const struct entry *entry)
{
	struct rewrite *rw = &work->rw;

	if (!(entry->identity & CONN_LOCAL))
		return nat_route(ctx, work, entry);
	rw->ifindex = LOOPBACK_IFINDEX;
	rw->local = true;
	return REASON_NONE;
}

/* Does the skb carry a route already? Packets of local sockets carry a loopback route, and bpf_redirect_neigh
 * would use it while ARP is pending. Such a packet is re-injected into the loopback device without its route. */
static __always_inline bool nat_has_route(const struct packet *pkt)
{
	return nat_role(pkt->ifindex) == ROLE_LOCAL && !packet_reinjected(pkt);
}

/* Asks the kernel for the next hop when hop_take has found no valid next hop. This packet leaves by
 * bpf_redirect_neigh, so the kernel keeps its neighbour entry alive. */
static __always_inline enum reason nat_resolve(void *ctx, struct work *work, struct conn *conn)
{
	const struct packet *pkt = &work->pkt;
	struct rewrite *rw = &work->rw;
	__u32 before = conn->hop, fresh;
	enum reason reason;

	rw->resolved = false;
	rw->mtu = 0;
	reason = nat_find_way(ctx, work, &work->rw.entry);
	if (reason != REASON_NONE)
		return reason;
	if (rw->resolved && rw->gateway.nh_family) {
		fresh = hop_remember(true);
		/* If the memory holds another connection by now, its hop differs from before, and the swap fails. */
		if (fresh != before)
			__sync_val_compare_and_swap(&conn->hop, before, fresh);
	}
	return !rw->resolved && nat_has_route(pkt) ? REASON_NEXT_HOP : REASON_NONE;
}

__noinline int nat_resolve_tc(struct __sk_buff *skb, struct conn *conn)
{
	struct work *work = work_get();

	return work && conn ? nat_resolve(skb, work, conn) : REASON_NEXT_HOP;
}

static __always_inline __u32 nat_mss_mtu(__u32 ifindex)
{
	const struct interface *interface = bpf_map_lookup_elem(&interfaces, &ifindex);

	return interface && interface->mss_mtu ? interface->mss_mtu : ~0u;
}

/* Sets the highest MSS that this SYN may have. The MSS limits the segments of the other direction. These segments
 * use both interfaces of the SYN, so the smaller MTU counts. XDP gets REASON_MSS: only TC changes the option. */
__noinline enum reason nat_clamp_mss(void)
{
	struct work *work = work_get();
	const struct packet *pkt;
	__u32 in, out, mtu;

	if (!work)
		return REASON_NONE;
	pkt = &work->pkt;
	in = nat_mss_mtu(pkt->ifindex);
	out = nat_mss_mtu(work->rw.ifindex);
	mtu = in < out ? in : out;
	if (mtu == ~0u)
		return REASON_NONE;
	if (work->rw.mtu && work->rw.mtu < mtu)
		mtu = work->rw.mtu;
	work->rw.mss = (__u16)(mtu - packet_base(pkt) - sizeof(struct tcphdr));
	return pkt->hook == HOOK_XDP ? REASON_MSS : REASON_NONE;
}

/* Sets the new TTL, and the checksum difference of the new addresses. */
static __always_inline void nat_rewrite(const struct packet *pkt, struct rewrite *rw)
{
	rw->ttl = pkt->ttl - 1;
	rw->address_diff = csum_diff_addresses(&pkt->tuple, &rw->entry.to, pkt->v6);
}

/* May this packet come in by a different interface than earlier packets of its direction? NONE: yes. A WAN may
 * replace another WAN. A LAN may replace another LAN if the packet's source may come in there. A WAN never replaces a
 * LAN, and a LAN never replaces a WAN. */
static __always_inline enum reason nat_other_interface(void *ctx, struct work *work, struct conn *conn)
{
	const struct packet *pkt = &work->pkt;
	__u32 ifindex = pkt->ifindex;
	const struct interface *in = bpf_map_lookup_elem(&interfaces, &ifindex);
	bool wan = work->rw.entry.identity & CONN_FROM_WAN;

	if (!in)
		return REASON_NOT_ATTACHED;
	if (wan != (in->role == ROLE_WAN) || (in->role == ROLE_LOCAL) != (conn->ifindex == LOOPBACK_IFINDEX))
		return REASON_SPOOFED;
	return wan ? REASON_NONE : ingress_source(ctx, work, in);
}

__noinline int nat_other_interface_tc(struct __sk_buff *skb, struct conn *conn)
{
	struct work *work = work_get();

	return work && conn ? nat_other_interface(skb, work, conn) : REASON_NOT_ATTACHED;
}

__noinline int nat_other_interface_xdp(struct xdp_md *ctx, struct conn *conn)
{
	struct work *work = work_get();

	return work && conn ? nat_other_interface(ctx, work, conn) : REASON_NOT_ATTACHED;
}

/* May the answerer of a half-open TCP connection send this segment? It may send:
 *  - a SYN/ACK that acknowledges the SYN;
 *  - a SYN, if both sides open at once (RFC 5382 REQ-2);
 *  - a RST;
 *  - one ACK without data for each SYN: the answerer may remember an older connection (challenge ACK, RFC 5961 4);
 *  - after its SYN/ACK, any segment that acknowledges the SYN (TCP Fast Open, RFC 7413).
 * False: the segment may belong to a connection that the answerer itself has opened, so the kernel gets it. */
static __always_inline bool nat_server_may(const struct packet *pkt, struct conn *conn, const struct conn *opener)
{
	__u64 identity = conn_identity(conn);
	bool acknowledges = pkt->ack - opener->end < TCP_NEAR;

	if (pkt->tcp_flags & TCP_RST)
		return true;
	if (pkt->tcp_flags & TCP_SYN) {
		if (pkt->tcp_flags & TCP_ACK && !acknowledges)
			return false;
		conn->end = pkt->seq + pkt->seq_length;
		conn->ack = opener->end;
		conn->window = pkt->window;
		conn_mark(conn, identity, CONN_ANSWERED | CONN_NUMBERED | (__u32)pkt->scale << CONN_SCALE_SHIFT,
			  TCP_SCALE_NONE << CONN_SCALE_SHIFT);
		return true;
	}
	if (identity & CONN_ANSWERED && acknowledges)
		return true;
	return pkt->seq_length == 0 && identity & CONN_CHALLENGE && conn_mark(conn, identity, 0, CONN_CHALLENGE);
}

/* Does this packet of the opener complete the handshake? Its numbers prove that the opener has received the
 * SYN/ACK (RFC 9293 3.5). With TCP Fast Open both sides may already have sent data, so the numbers may be ahead by
 * less than TCP_NEAR. */
static __always_inline bool nat_handshake_done(const struct packet *pkt, const struct conn *opener,
					       const struct conn *answerer, __u64 answerer_identity)
{
	return answerer_identity & CONN_ANSWERED && pkt->seq - opener->end < TCP_NEAR && pkt->ack - answerer->end < TCP_NEAR;
}

/* Makes a half-open connection established. key: of its opener. */
static __always_inline enum reason nat_promote(const struct tuple *key, struct conn *opener, const struct entry *entry)
{
	enum reason reason = life_promote(key, opener, entry);

	if (reason == REASON_NONE)
		balance_know(key, conn_forward(opener), conn_path(entry->identity) == PATH_WAN);
	return reason;
}

/* Handles a packet of the opener in a half-open TCP connection: a repeated SYN, a RST, or the last packet of the
 * handshake. NONE: the packet is sent on. */
static __always_inline enum reason nat_advance_opener(struct work *work, struct conn *conn, struct conn *answerer)
{
	const struct packet *pkt = &work->pkt;
	__u64 identity = work->rw.entry.identity, other = work->other.entry.identity;
	enum reason reason;

	if (pkt->tcp_flags & TCP_SYN) {
		conn->end = pkt->seq + 1;
		conn_mark(conn, identity, (enum conn_flag)((__u32)pkt->scale << CONN_SCALE_SHIFT), (enum conn_flag)CONN_SCALE_BITS);
		conn_mark(answerer, other, CONN_CHALLENGE, 0);
		return REASON_NONE;
	}
	/* A RST that answers a challenge must not reach the answerer. */
	if (pkt->tcp_flags & TCP_RST)
		return pkt->seq != conn->end && challenge_answered(pkt) ? REASON_CHALLENGED : REASON_NONE;
	if (identity & CONN_REBUILT ? !(other & CONN_NUMBERED) : !nat_handshake_done(pkt, conn, answerer, other))
		return identity & CONN_REBUILT ? REASON_NONE : REASON_BAD_HANDSHAKE;
	reason = nat_promote(&pkt->tuple, conn, &work->rw.entry);
	if (reason == REASON_NONE) {
		conn_number(pkt, conn, (identity & ~(__u64)CONN_STATE) | CONN_ESTABLISHED);
		conn_change(answerer, other, CONN_ESTABLISHED, 0, 0);
	}
	return reason;
}

/* Handles a packet of a half-open connection. The packet that completes the handshake makes the connection
 * established. NONE: the packet is sent on. */
__noinline enum reason nat_advance(struct conn *conn)
{
	struct work *work = work_get();
	const struct packet *pkt;
	struct entry *entry;
	enum reason reason;
	struct conn *other;
	bool tcp, opener;

	if (!work || !conn)
		return REASON_ENDED;
	pkt = &work->pkt;
	entry = &work->other.entry;
	tcp = pkt->tuple.protocol == IPPROTO_TCP;
	opener = work->rw.entry.identity & CONN_OPENER;
	if (pkt->fragment == FRAGMENT_LATER || (!tcp && opener))
		return REASON_NONE;
	other = conn_other(&work->rw.entry, &work->other);
	/* Another CPU is inserting or removing the other entry. */
	if (!other)
		return REASON_RACED;
	if (tcp && opener)
		return nat_advance_opener(work, conn, other);
	/* Another CPU has promoted the connection: update the state in this entry. */
	if (!conn_half(entry->identity)) {
		conn_change(conn, work->rw.entry.identity, conn_state(entry->identity), 0, 0);
		return REASON_NONE;
	}
	if (tcp) {
		if (work->rw.entry.identity & CONN_REBUILT) {
			if (!(work->rw.entry.identity & CONN_NUMBERED))
				conn_number(pkt, conn, work->rw.entry.identity);
			return REASON_NONE;
		}
		return nat_server_may(pkt, conn, other) ? REASON_NONE : REASON_NOT_OURS;
	}
	/* The first answer of a protocol other than TCP establishes the connection. */
	reason = nat_promote(&work->other.key, other, entry);
	if (reason == REASON_NONE)
		conn_change(conn, work->rw.entry.identity, CONN_ESTABLISHED, 0, 0);
	return reason;
}

/* In its first EVIDENCE_FIRST s a connection is checked for evidence every second. Later the check pauses for
 * EVIDENCE_EVERY s after each evidence. Evidence right after such a pause counts EVIDENCE_EVERY, any other
 * evidence counts 1. */
enum { EVIDENCE_FIRST = 16, EVIDENCE_EVERY = 8 };

/* Must this packet be checked for evidence? Not if its second has already counted. */
static __always_inline bool nat_evidence_due(const struct packet *pkt, const struct conn *conn)
{
	__u32 second = pkt->second;

	return second != conn->end && (second - conn->end >= EVIDENCE_EVERY || second - conn_created(conn) < EVIDENCE_FIRST);
}

/* Counts evidence of a connection that is not TCP (lifecycle.h). Called for packets of the answerer. A second is
 * evidence if the answerer sends twice in it, or if the opener has sent within the last 1000 ms. The opener's
 * first packet is no evidence. The second in which the connection was created does not count. The opener's entry
 * holds the amount of evidence (end). The answerer's entry holds the second of its last checked packet (ack), and
 * the second of the last evidence (end). */
__noinline int nat_evidence(struct conn *conn)
{
	struct work *work = work_get();
	struct conn *opener;
	__u32 second;
	bool again;

	if (!work || !conn)
		return 0;
	second = work->pkt.second;
	again = conn->ack == second;
	conn->ack = second;
	if (conn->end == second || second == conn_created(conn))
		return 0;
	opener = conn_other(&work->rw.entry, &work->other);
	if (!opener || !(again || work->pkt.ms - opener->seen < SECOND_MS))
		return 0;
	if (again || opener->packets > 1)
		opener->end += second - conn->end == EVIDENCE_EVERY ? EVIDENCE_EVERY : 1;
	conn->end = second;
	return 0;
}

/* Is this a SYN/ACK with other numbers than in the handshake? If it acknowledges a SYN that the opener has sent since, the answerer
 * has lost the connection. As in conntrack, both sides then get new numbers. Any other such SYN/ACK is forged: a host on the
 * answerer's side of the router can send it, but does not know the number of the SYN. */
static __always_inline bool nat_server_restarts(const struct packet *pkt, const struct conn *conn, __u64 identity)
{
	return !(identity & CONN_OPENER) && (pkt->tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK) &&
	       identity & CONN_NUMBERED && !conn_near(pkt, conn) && conn_in_late_syn(identity, pkt->ack - 1);
}

/* Stores the numbers of a segment that is in order, and marks its FIN. */
static __always_inline void nat_take_numbers(const struct packet *pkt, struct conn *conn, __u64 identity)
{
	conn_advance(pkt, conn, identity);
	if (pkt->tcp_flags & TCP_FIN && !(identity & CONN_FIN) && !seq_after(conn->end, pkt->seq + pkt->seq_length))
		conn_mark(conn, identity, CONN_FIN, 0);
}

/* Does this TCP segment refresh its connection? Called after the handshake. The segment may also close the
 * connection. */
__noinline bool nat_track_tcp(struct conn *conn)
{
	struct work *work = work_get();
	const struct packet *pkt;
	__u64 identity, mine;
	struct entry *entry;
	struct conn *other;

	if (!work || !conn)
		return false;
	pkt = &work->pkt;
	entry = &work->other.entry;
	identity = conn_identity(conn);
	other = conn_other(&work->rw.entry, &work->other);
	if (!other)
		return false;
	mine = entry->identity;
	if (pkt->tcp_flags & TCP_RST) {
		if (pkt->seq != other->ack && pkt->seq != conn->end)
			return false;
		conn_mark(conn, identity, CONN_RESET, 0);
	} else {
		if (nat_server_restarts(pkt, conn, identity)) {
			conn_mark(other, mine, CONN_REBUILT, CONN_NUMBERED | CONN_FIN);
			conn_mark(conn, identity, CONN_REBUILT, CONN_NUMBERED | CONN_FIN);
			conn_number(pkt, conn, identity);
			return true;
		}
		if (identity & CONN_OPENER && (pkt->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
			conn_keep_syn(pkt, identity);
		if (!(pkt->tcp_flags & TCP_ACK) || pkt->tcp_flags & TCP_SYN)
			return false;
		if (!(identity & CONN_NUMBERED))
			conn_number(pkt, conn, identity);
		else if (!conn_near(pkt, conn) && !conn_within(pkt, conn, identity, other, mine))
			return false;
		else
			nat_take_numbers(pkt, conn, identity);
		/* Nobody has acknowledged the earlier FIN, which may be forged: this FIN replaces it. */
		if (pkt->tcp_flags & TCP_FIN && identity & CONN_FIN && !conn_fin_acknowledged(identity, conn, other))
			conn->end = pkt->seq + pkt->seq_length;
		if (!conn_closed(conn, conn_identity(conn), other, mine))
			return true;
	}
	if (identity & CONN_OPENER)
		life_move(&pkt->tuple, conn, &work->rw.entry, CONN_CLOSING, false);
	else
		life_move(&work->other.key, other, entry, CONN_CLOSING, false);
	return true;
}

/* Updates the state and the counters of the connection for this packet. */
static __always_inline void nat_track(struct work *work, struct conn *conn)
{
	const struct packet *pkt = &work->pkt;
	__u64 identity = work->rw.entry.identity;
	bool tcp = pkt->tuple.protocol == IPPROTO_TCP && pkt->fragment != FRAGMENT_LATER;
	bool half = conn_half(identity);
	/* After a RST, packets in order keep the connection alive (RFC 7857 2.2). After the FINs of both sides
	 * they do not. */
	bool refresh = conn_state(identity) <= CONN_CLOSING && !(conn_state(identity) == CONN_CLOSING && identity & CONN_FIN);
	__u32 bytes = conn->bytes + pkt->length, path = conn_path(identity);
	struct forward_stats *stats;
	struct traffic *traffic;

	if (refresh && tcp && !half) {
		/* Most segments are near the segment before and carry no SYN, FIN or RST: the other entry is not
		 * needed. */
		if (identity & CONN_NUMBERED && !(identity & CONN_FIN) && conn_near(pkt, conn) &&
		    (pkt->tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK)) == TCP_ACK)
			conn_advance(pkt, conn, identity);
		else
			refresh = nat_track_tcp(conn);
	} else if (tcp && pkt->tcp_flags & TCP_RST) {
		refresh = false;
	}
	if (refresh && !half && pkt->tuple.protocol != IPPROTO_TCP && !(identity & CONN_OPENER) &&
	    nat_evidence_due(pkt, conn))
		nat_evidence(conn);
	if (refresh && conn->seen != pkt->ms)
		conn->seen = pkt->ms;
	/* Store another ingress interface only after a packet that is in order. */
	if (refresh && conn->ifindex != pkt->ifindex)
		conn->ifindex = pkt->ifindex;
	conn->packets++;
	if (bytes < conn->bytes)
		conn->bytes_high++;
	conn->bytes = bytes;
	stats = conn_stats(conn_forward(conn));
	if (!stats || path >= PATHS)
		return;
	traffic = &stats->traffic[path][identity & CONN_OPENER ? 0 : 1];
	traffic->packets++;
	traffic->bytes += pkt->length;
	stats->hit = pkt->second;
}

/* Does XDP send this frame back by the device that it came in by, with XDP_TX? */
static __always_inline bool nat_goes_back(const struct packet *pkt, const struct rewrite *rw)
{
	return rw->xdp & XDP_WAY_BACK && rw->ifindex == pkt->ifindex;
}

/* Returns why XDP cannot send this packet; NONE: XDP can. If a device is to finish the checksum, the checksum
 * field holds the folded sum of the pseudo-header. One finished checksum in 65,536 has this value by chance: TC
 * sends that packet, too. */
static __always_inline enum reason nat_xdp_limits(const struct packet *pkt, const struct rewrite *rw)
{
	if (rw->other_host)
		return REASON_OTHER_HOST;
	if (pkt->segment > rw->mtu)
		return REASON_TOO_BIG;
	if (pkt->tuple.protocol == IPPROTO_UDP && csum_hidden(pkt))
		return REASON_PARTIAL_CHECKSUM;
	if (pkt->l4.check_off && csum_pseudo(pkt) == pkt->l4.check)
		return REASON_PARTIAL_CHECKSUM;
	return rw->xdp & XDP_WAY_REDIRECT || nat_goes_back(pkt, rw) ? REASON_NONE : REASON_NO_XDP_TX;
}

/* May this packet of a half-open connection be an answer to what the router itself, or a client that the kernel masquerades, has
 * asked? A forged packet makes a half-open connection of any host with any port of a forward, and must not take the answers of
 * this host. Then conntrack or a socket knows better (open_kernels_own). The question takes longer than the rest, so a stream of
 * UDP asks once a tick of the clock; whoever wants to hide an answer behind forged packets has to send one in each tick to each
 * port. In TCP a SYN and the packet that completes the handshake are no such answers. Later fragments follow the first one. reason:
 * what nat_advance says of the packet. */
static __always_inline bool nat_may_be_answer(const struct packet *pkt, const struct conn *conn, __u64 identity, enum reason reason)
{
	if (!(identity & CONN_OPENER) || !(identity & CONN_FROM_WAN) || pkt->fragment == FRAGMENT_LATER)
		return false;
	if (pkt->tuple.protocol != IPPROTO_TCP)
		return pkt->tuple.protocol == IPPROTO_UDP && conn->seen != pkt->ms;
	return reason == REASON_BAD_HANDSHAKE || pkt->tcp_flags & TCP_RST || (pkt->tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK);
}

/* Decides about a packet of a known connection. SEND: no check has failed. XDP leaves a packet with an unknown
 * next hop to TC. */
static __always_inline enum verdict nat_follow(void *ctx, struct work *work, struct conn *conn, enum hook hook)
{
	const struct packet *pkt = &work->pkt;
	struct rewrite *rw = &work->rw;
	__u64 identity = rw->entry.identity;
	enum reason reason = pkt->flaw;
	bool xdp = hook == HOOK_XDP;

	if (reason == REASON_NONE && conn->ifindex != pkt->ifindex)
		reason = (enum reason)(xdp ? nat_other_interface_xdp(ctx, conn) : nat_other_interface_tc(ctx, conn));
	if (reason == REASON_NONE && pkt->ttl <= 1)
		reason = REASON_TTL_EXPIRED;
	if (reason == REASON_NONE) {
		if (hop_take(pkt, conn, conn_serial(identity), rw))
			reason = xdp ? nat_xdp_limits(pkt, rw) : nat_check_mtu(pkt, rw, rw->mtu);
		else
			reason = xdp ? REASON_NEXT_HOP : (enum reason)nat_resolve_tc(ctx, conn);
	}
	/* XDP does not see gso_size. A GSO packet is longer than the MTU there, and goes to TC as TOO_BIG. */
	if (reason == REASON_NONE && !xdp && nat_tunnelled(pkt))
		reason = (enum reason)nat_check_segments_tc(ctx);
	if (reason == REASON_NONE && pkt->tcp_flags & TCP_SYN)
		reason = nat_clamp_mss();
	/* Nothing has been changed up to here, so XDP can still leave the packet to TC. */
	if (conn_half(identity)) {
		if (reason == REASON_NONE)
			reason = nat_advance(conn);
		if (nat_may_be_answer(pkt, conn, identity, reason) && open_kernels_own(ctx, hook))
			reason = REASON_NOT_OURS;
	}
	if (reason != REASON_NONE)
		return nat_verdict_known(work, reason);
	nat_rewrite(pkt, rw);
	rw->l4_diff = csum_diff_ports(&pkt->tuple, &rw->entry.to);
	nat_track(work, conn);
	return VERDICT_SEND;
}

/* Is this the opener's answer to a challenge? An old connection on the same tuple must not take this answer. */
static __always_inline bool nat_answers_challenge(const struct packet *pkt)
{
	return pkt->tuple.protocol == IPPROTO_TCP && pkt->tcp_flags & TCP_RST && challenge_answered(pkt);
}

/* Has the connection ended, and does the packet not open a new connection? Then late packets of the answerer must
 * be dropped: the kernel would send them with the answerer's own address. */
static __always_inline bool nat_ended(const struct packet *pkt, const struct conn *conn, __u64 identity,
				      const struct external *external)
{
	bool begins = (pkt->opens || nat_answers_challenge(pkt)) &&
		      (external || stand_in_answered(&pkt->tuple.dst) || intercept_find(pkt) ||
		       conn_made_for(conn) != MADE_FOR_FORWARD);

	return !(identity & CONN_OPENER) || (conn_revoked(conn, identity) && !begins);
}

/* May this packet of the opener open a new connection in place of a half-open or closing connection? Half-open:
 * yes if the old connection has expired. Closing: yes for a SYN (RFC 7857 2), or for an answer to a challenge. */
static __always_inline bool nat_reopens(const struct packet *pkt, const struct conn *conn, __u64 identity)
{
	if (!(identity & CONN_OPENER))
		return false;
	if (conn_half(identity))
		return conn_expired(conn, pkt->tuple.protocol, pkt->ms);
	return conn_state(identity) == CONN_CLOSING && (pkt->opens || nat_answers_challenge(pkt));
}

/* Is the connection revoked, expired or closed, so that the packet may open a new connection? */
static __always_inline bool nat_stale(const struct packet *pkt, const struct conn *conn, __u64 identity)
{
	return conn_revoked(conn, identity) || (conn_state(identity) != CONN_ESTABLISHED && nat_reopens(pkt, conn, identity));
}

/* Returns the verdict of a step of an opening. READY: the connection is prepared. REPLACE: an old connection must be removed
 * first. If the connection is optional, the kernel gets a packet that cannot open it, unless the packet must be tried again. */
static __always_inline enum verdict nat_opening(struct work *work, enum reason reason)
{
	if (reason == REASON_NONE)
		return VERDICT_READY;
	if (reason == REASON_OBSTACLE)
		return VERDICT_REPLACE;
	if (work->open.optional && reason != REASON_RACED && reason != REASON_NEXT_HOP)
		reason = REASON_NONE;
	return nat_verdict(work, reason);
}

/* What a packet may begin that has no connection, or whose connection is stale. */
enum begin {
	BEGIN_NOTHING,
	BEGIN_ELSE,	/* a connection of an intercept; or the packet is an answer, which rebuilds a lost connection */
	BEGIN_DIRECT,	/* a direct connection that meets a translated connection; an intercept may take the packet first */
	BEGIN_FORWARD,	/* a connection of a forward: the destination has external ids, copied to open.external */
};

/* Returns what the packet may begin. stale: the packet has a connection that is over. This quick check keeps all other packets off
 * the slow path: most packets to the external address are answers to what the router or the kernel's masquerading has asked, and no
 * forward has their port. A global function: the verifier checks it once. */
__noinline enum begin nat_may_begin(bool stale)
{
	const struct settings *settings = conn_settings();
	bool intercepted, forwarded, other;
	const struct external *external;
	const struct packet *pkt;
	struct work *work = work_get();
	__u32 may_be;

	if (!work)
		return BEGIN_NOTHING;
	pkt = &work->pkt;
	may_be = external_maybe(&pkt->tuple.dst);
	intercepted = settings && intercept_port(settings, pkt);
	forwarded = stale || intercepted || pkt->broken || forward_maybe(&pkt->tuple);
	other = intercepted || (settings && settings->stand_ins) || open_evicted(pkt);
	if (!forwarded && !other && !(may_be & MAYBE_TARGET))
		return BEGIN_NOTHING;
	external = external_lookup(&pkt->tuple.dst, may_be);
	if (external) {
		work->open.external = *external;
		return forwarded ? BEGIN_FORWARD : BEGIN_NOTHING;
	}
	if (direct_meets(work, may_be))
		return BEGIN_DIRECT;
	return other ? BEGIN_ELSE : BEGIN_NOTHING;
}

/* May this packet be an answer that rebuilds a lost connection? Sets open.from_wan: true if the answer goes to the
 * Internet, false if it goes to a stand-in. */
static __always_inline bool nat_may_answer(struct work *work, enum begin begin, bool stale)
{
	const struct packet *pkt = &work->pkt;

	if (nat_role(pkt->ifindex) != ROLE_LAN)
		return false;
	work->open.from_wan = !stand_in_answered(&pkt->tuple.dst);
	return !work->open.from_wan || (begin != BEGIN_FORWARD && !stale && open_evicted(pkt));
}

/* Handles a packet that matches no forward of an external address. It may open a connection of an intercept, or be
 * an answer that rebuilds a lost connection. An intercept takes only packets that open a connection: older
 * connections stay as they are. */
static __always_inline enum verdict nat_intercept_or_rebuild(void *ctx, struct work *work, enum hook hook, enum begin begin,
							     bool stale)
{
	const struct packet *pkt = &work->pkt;
	const struct forward *forward = intercept_find(pkt);

	if (forward && pkt->opens && !open_kernels_own(ctx, hook))
		return nat_opening(work, open_connection(ctx, work, hook, &forward->epoch_ref, forward));
	work->open.optional = true;
	if (begin == BEGIN_DIRECT)
		return nat_opening(work, open_direct(ctx, work, hook));
	if (!nat_may_answer(work, begin, stale))
		return nat_verdict(work, REASON_NONE);
	work->open.optional = work->open.from_wan;
	return nat_opening(work, open_rebuild(ctx, work, hook));
}

/* Handles a packet that has no connection, or whose connection is stale. READY: the new connection is prepared. BEGUN: another
 * CPU has just opened it. */
static __always_inline enum verdict nat_slow_path(void *ctx, struct work *work, enum hook hook, enum begin begin, bool stale)
{
	const struct packet *pkt = &work->pkt;
	struct conn *conn = stale ? conn_find(&pkt->tuple, &work->rw.entry) : NULL;
	const struct external *external = begin == BEGIN_FORWARD ? &work->open.external : NULL;
	struct forward *forward;

	work->open.key_used = conn;
	work->open.optional = false;
	/* Another CPU has just opened the new connection. */
	if (conn && !nat_stale(pkt, conn, work->rw.entry.identity)) {
		work->open.inserted = false;
		return VERDICT_BEGUN;
	}
	if (conn && nat_ended(pkt, conn, work->rw.entry.identity, external))
		return nat_verdict(work, REASON_ENDED);
	/* The translated connection may be over that took the place of this direct one. Without an entry, the packet
	 * goes the way of every direct connection. */
	if (conn && conn_made_for(conn) == MADE_FOR_DIRECT) {
		work->open.optional = true;
		return nat_opening(work, open_obstacle(work, &pkt->tuple, &pkt->tuple, true));
	}
	/* An answer to the router's own ping opens no connection, and must not be dropped as REASON_NON_SYN. */
	if (external && packet_is_icmp(pkt, pkt->tuple.protocol) && !pkt->opens)
		return nat_verdict(work, REASON_NONE);
	if (external && pkt->broken)
		return nat_verdict(work, REASON_MALFORMED);
	/* The pointer is tested again: the verifier has not followed the earlier tests of it. */
	external = verifier_same_pointer((void *)external);
	forward = external ? forward_find(forward_slot(), external, pkt->tuple.protocol, pkt->tuple.dport) : NULL;
	if (!forward)
		return nat_intercept_or_rebuild(ctx, work, hook, begin, stale);
	/* A mapping of another program: that program's rules in the kernel serve the Internet. */
	if (forward->lan_only && nat_role(pkt->ifindex) == ROLE_WAN)
		return nat_verdict(work, REASON_NONE);
	if (open_kernels_own(ctx, hook))
		return nat_verdict(work, REASON_NONE);
	return nat_opening(work, open_connection(ctx, work, hook, &external->address, forward));
}

__noinline int nat_slow_path_tc(struct __sk_buff *skb, enum begin begin, bool stale)
{
	struct work *work = work_get();

	return work ? nat_slow_path(skb, work, HOOK_TC, begin, stale) : VERDICT_PASS;
}

__noinline int nat_slow_path_xdp(struct xdp_md *ctx, enum begin begin, bool stale)
{
	struct work *work = work_get();

	return work ? nat_slow_path(ctx, work, HOOK_XDP, begin, stale) : VERDICT_PASS;
}

/* Two old connections may block a new connection: at the opener's key and at the answerer's key. Each round
 * removes one of them, the third round opens. But a round draws new ports: where old connections have all of them, the packet may be
 * dropped, and its sender tries again. */
enum { OPEN_ROUNDS = 3 };

/* Opens a connection for a packet that has no connection, or whose connection is stale. Removes old connections
 * that block the new connection, and then asks anew what the packet begins. BEGUN: the new connection is in the table. */
static __always_inline enum verdict nat_open(void *ctx, struct work *work, enum hook hook, enum begin begin, bool stale)
{
	enum verdict verdict;
	enum reason reason;

	work->open.in_rate = false;
	for (int i = 0; i < OPEN_ROUNDS; i++) {
		verdict = (enum verdict)(hook == HOOK_XDP ? nat_slow_path_xdp(ctx, begin, stale)
							  : nat_slow_path_tc(ctx, begin, stale));
		if (verdict == VERDICT_READY) {
			reason = hook == HOOK_XDP ? open_insert_xdp(ctx) : open_insert_tc(ctx);
			verdict = reason == REASON_NONE ? VERDICT_BEGUN : nat_opening(work, reason);
		}
		if (verdict == VERDICT_REPLACE) {
			open_remove_obstacle();
			begin = nat_may_begin(true);
			continue;
		}
		if (verdict == VERDICT_BEGUN && work->open.inserted && !life_begin())
			return nat_verdict(work, REASON_TABLE_FULL);
		return verdict;
	}
	return nat_verdict(work, REASON_RACED);
}

/* Decides about one packet: finds its connection, opens it if needed, then follows it. */
static __always_inline enum verdict nat_decide(void *ctx, struct work *work, enum hook hook)
{
	const struct packet *pkt = &work->pkt;
	struct conn *conn = pkt->v6 ? conn_find_fast(&pkt->tuple, true, &work->rw.entry)
				    : conn_find_fast(&pkt->tuple, false, &work->rw.entry);
	enum verdict verdict;
	enum begin begin;

	if (!conn || nat_stale(pkt, conn, work->rw.entry.identity)) {
		begin = nat_may_begin(conn);
		if (begin == BEGIN_NOTHING && !conn)
			return VERDICT_PASS;
		verdict = nat_open(ctx, work, hook, begin, conn);
		if (verdict != VERDICT_BEGUN)
			return verdict;
		conn = conn_find(&pkt->tuple, &work->rw.entry);
		if (!conn)
			return nat_verdict(work, REASON_RACED);
	}
	return nat_follow(ctx, work, conn, hook);
}
