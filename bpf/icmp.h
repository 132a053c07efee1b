// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* ICMP errors about packets that hairpin sent (RFC 5508 REQ-3 to REQ-7): which connection they are about, and how they are
 * translated. They never make, refresh or end a connection (RFC 4787 REQ-12, RFC 5382 REQ-10). */
#pragma once

#include "nat.h"

/* No connection sent the quoted packet. If the packet is one that a forward could have sent, the error is dropped. But the router
 * itself, or a client that the kernel masquerades, may have sent the packet: then the error is the kernel's. Of queries of ICMP
 * nobody can tell; their answers are left to the kernel, too. */
static __always_inline enum verdict icmp_stray(void *ctx, struct work *work)
{
	const struct tuple *sent = &work->pkt.quote.tuple;
	struct external *external = external_find(&sent->src);
	struct forward *forward;

	forward = external ? forward_find(forward_slot(), external, sent->protocol, sent->sport) : NULL;
	if (!forward || packet_is_icmp(&work->pkt, sent->protocol) ||
	    open_kernels_own(ctx, work, &work->error.answer, forward->wide, HOOK_TC))
		return nat_verdict(work, REASON_NONE);
	return nat_verdict(work, REASON_NO_CONNECTION);
}

/* Translates the quoted packet back to the form in which its sender sent it. The checksums that cover the quote change by the
 * same difference, which this function computes. */
static __always_inline void icmp_requote(struct work *work)
{
	const struct quote *quote = &work->pkt.quote;
	struct rewrite *rw = &work->rw;
	__u64 addresses = csum_diff_addresses(&quote->tuple, &rw->quoted, work->pkt.v6);
	__u64 ports = csum_diff_ports(&quote->tuple, &rw->quoted);
	__u64 changed = addresses + ports;

	if (!work->pkt.v6) {
		rw->quoted_ip_check = csum_apply(quote->ip_check, addresses);
		changed += csum_diff16(quote->ip_check, rw->quoted_ip_check);
	}
	if (quote->l4.check_off) {
		rw->quoted_check = csum_apply(quote->l4.check, ports);
		if (quote->l4.pseudo)
			rw->quoted_check = csum_apply(rw->quoted_check, addresses);
		if (quote->tuple.protocol == IPPROTO_UDP && !rw->quoted_check)
			rw->quoted_check = 0xffff;
		changed += csum_diff16(quote->l4.check, rw->quoted_check);
	}
	rw->l4_diff = changed;
}

/* The error's destination becomes the sender of the quoted packet. Its source stays, unless the connection hides sources in
 * this direction (RFC 5508 REQ-4, REQ-5, REQ-7). */
static __always_inline void icmp_rewrite(struct work *work)
{
	const struct tuple *packet = &work->pkt.tuple;
	struct rewrite *rw = &work->rw;
	struct tuple *to = &rw->entry.to;

	tuple_reverse(&work->error.entry.to, &rw->quoted);
	*to = work->error.entry.to;
	if (addr_equal(&work->error.answer.src, &to->src))
		to->src = packet->src;
	to->sport = packet->sport;
	to->dport = packet->dport;
	to->protocol = packet->protocol;
	nat_rewrite(&work->pkt, rw);
	icmp_requote(work);
}

/* An error may come from any router on the way of the quoted packet. So it may come in by any WAN if the packet left by a WAN,
 * and by a LAN where the kernel would accept the sender if the packet left by a LAN. */
static __always_inline enum reason icmp_other_interface(void *ctx, struct work *work, __u32 expected)
{
	__u32 ifindex = work->pkt.ifindex;
	const struct interface *in = bpf_map_lookup_elem(&interfaces, &ifindex);
	bool wan = work->error.entry.identity & CONN_FROM_WAN;

	/* Only the router itself sends errors about packets to itself. */
	if (!in || wan != (in->role == ROLE_WAN) || expected == LOOPBACK_IFINDEX)
		return REASON_SPOOFED;
	return wan || nat_source_expected(ctx, work, in) ? REASON_NONE : REASON_SPOOFED;
}

/* The way of an ICMP error, top to bottom. */
static __always_inline enum verdict icmp_decide(void *ctx, struct work *work)
{
	const struct packet *pkt = &work->pkt;
	struct icmp_error *error = &work->error;
	const struct conn *conn;
	enum reason reason;

	if (pkt->broken)
		return nat_verdict(work, external_find(&pkt->tuple.dst) ? REASON_MALFORMED
											  : REASON_NONE);
	tuple_reverse(&pkt->quote.tuple, &error->answer);
	conn = conn_find(&error->answer, &error->entry);
	if (!conn)
		return icmp_stray(ctx, work);
	if (conn_revoked(conn, error->entry.identity))
		return nat_verdict(work, REASON_ENDED);
	reason = pkt->flaw;
	/* The error must be addressed to the sender of the quoted packet, and come from where that packet went. */
	if (reason == REASON_NONE && !addr_equal(&pkt->tuple.dst, &pkt->quote.tuple.src))
		reason = REASON_NO_CONNECTION;
	if (reason == REASON_NONE && conn->ifindex != pkt->ifindex)
		reason = icmp_other_interface(ctx, work, conn->ifindex);
	if (reason == REASON_NONE && pkt->ttl <= 1)
		reason = REASON_TTL_EXPIRED;
	if (reason == REASON_NONE)
		reason = nat_find_way(ctx, work, &error->entry);
	if (reason == REASON_NONE && work->rw.mtu && pkt->segment > work->rw.mtu)
		reason = REASON_TOO_BIG;
	if (reason != REASON_NONE)
		return nat_verdict_known(work, reason);
	icmp_rewrite(work);
	work->rw.reason = REASON_ICMP_ERROR;
	return VERDICT_SEND;
}
