// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* ICMP errors about packets that hairpin sent (RFC 5508 REQ-3 to REQ-7): finds the connection of the quoted packet, and
 * translates the error. An ICMP error never opens, refreshes or ends a connection (RFC 4787 REQ-12, RFC 5382 REQ-10). */
#pragma once

#include "nat.h"

/* Decides about an error whose quoted packet no connection sent. The error is dropped if the quoted packet has the external
 * address and port of a forward, unless the router itself, or a client that the kernel masquerades, has sent the packet. The kernel
 * gets all other errors; and errors about queries of ICMP, as it gets the answers to queries. */
static __always_inline enum verdict icmp_stray(void *ctx, struct work *work)
{
	const struct tuple *sent = &work->pkt.quote.tuple;
	struct external *external = external_find(&sent->src);
	struct forward *forward;

	forward = external ? forward_find(forward_slot(), external, sent->protocol, sent->sport) : NULL;
	if (!forward || packet_is_icmp(&work->pkt, sent->protocol) || open_kernels_own_tc(ctx, true))
		return nat_verdict(work, REASON_NONE);
	return nat_verdict(work, REASON_NO_CONNECTION);
}

/* Translates the quoted packet back to the form in which its sender sent it. Computes the new checksums in the quote, and
 * the difference that all changes in the quote make in the error's own checksum. */
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

/* The error's destination becomes the sender of the quoted packet. If the connection translates sources in this
 * direction, the error gets the source that answers get; otherwise its source stays (RFC 5508 REQ-4, REQ-5, REQ-7). */
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

/* May the error come in by another interface than the answers? Any router on the route of the quoted packet may send an
 * error. If the quoted packet left by a WAN, the error may come in by any WAN. If the quoted packet left by a LAN, the
 * error may come in by a LAN where the error's source may come in. */
static __always_inline enum reason icmp_other_interface(void *ctx, struct work *work, __u32 expected)
{
	__u32 ifindex = work->pkt.ifindex;
	const struct interface *in = bpf_map_lookup_elem(&interfaces, &ifindex);
	bool wan = work->error.entry.identity & CONN_FROM_WAN;

	/* Only the router itself sends errors about packets to itself. */
	if (!in || wan != (in->role == ROLE_WAN) || expected == LOOPBACK_IFINDEX)
		return REASON_SPOOFED;
	return wan ? REASON_NONE : ingress_source(ctx, work, in);
}

/* Can the quoted TCP segment have been in flight (RFC 5927 4.1)? Its number is then from the other side's highest acknowledgement
 * on, up to the end of what the sender has sent. A keepalive is one below. Nothing is judged while the numbers of a side are
 * not known, or while the other side has acknowledged more than hairpin has seen. A SYN with which the opener begins anew has other
 * numbers. answers: the entry of the answers to the quoted packet. */
static __always_inline bool icmp_quotes_sent(struct work *work, const struct conn *answers)
{
	const struct conn *sent;
	__u32 first;

	if (!(work->error.entry.identity & CONN_NUMBERED))
		return true;
	sent = conn_other(&work->error.entry, &work->other);
	if (!sent || !(work->other.entry.identity & CONN_NUMBERED) || seq_after(answers->ack, sent->end))
		return true;
	first = answers->ack - 1;
	return work->pkt.seq - first <= sent->end - first ||
	       (work->other.entry.identity & CONN_OPENER && conn_in_late_syn(work->other.entry.identity, work->pkt.seq));
}

/* Decides what happens to an ICMP error. */
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
	/* The error must be addressed to the source of the quoted packet, and come from the side to which it went. */
	if (reason == REASON_NONE &&
	    (!addr_equal(&pkt->tuple.dst, &pkt->quote.tuple.src) || !icmp_quotes_sent(work, conn)))
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
