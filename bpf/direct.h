// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Direct connections: a client connects to a target itself, without a forward. The kernel sends the packets on. A
 * translated connection that shows the target the client's own address may get the same answers: the client has one port
 * for both, at two destinations. Whichever connection comes second gets another port, as nf_nat does it. Netfilter's
 * FORWARD chain does not see a direct connection that got another port. The client gains nothing by that: it has a living
 * translated connection to this port of the server.
 *
 * Race: CPU A handles the first packet of the direct connection, while CPU B opens the translated connection.
 *  1. A writes the note in directs.                B inserts the entry of the answers.
 *  2. A has a full memory barrier (work_fence).    B has one, too.
 *  3. A looks for an entry of the answers.         B looks into directs.
 * So at least one of them sees the other. If both do, both connections get another port. */
#pragma once

#include "conn.h"
#include "forward.h"
#include "ingress.h"

/* Can a client behind this interface reach the target without a forward? From the Internet nobody reaches a private
 * address. A WAN with a private address is another router's network: its hosts may have a route to the target. */
static __always_inline bool direct_reaches(const struct interface *in, const union addr *client, const union addr *target)
{
	if (in->role == ROLE_WAN)
		return !addr_private(target) || (addr_private(client) && !ingress_public_only(in));
	return in->role == ROLE_LAN;
}

/* May a packet that opens a connection open a direct one? */
static __always_inline bool direct_may(const struct packet *pkt, __u32 may_be)
{
	__u32 ifindex = pkt->ifindex;
	const struct interface *in;

	if (!target_has(&pkt->tuple.dst, may_be))
		return false;
	in = bpf_map_lookup_elem(&interfaces, &ifindex);
	return in && direct_reaches(in, &pkt->tuple.src, &pkt->tuple.dst);
}

/* Writes the note that the packet opens a direct connection. old: the note of an earlier packet with this tuple, or NULL. */
static __always_inline void direct_note(const struct packet *pkt, struct direct *old)
{
	struct direct fresh = { .seen = pkt->second };

	if (old)
		old->seen = pkt->second;
	else
		bpf_map_update_elem(&directs, &pkt->tuple, &fresh, BPF_ANY);
}

/* Does this packet open a direct connection whose answers are already the key of a translated connection's entry? Most
 * packets fail at the first condition. A packet of a protocol other than TCP passes here as long as its connection is not
 * hairpin's: the answer holds for one second. may_be: external_maybe of the destination. Not inlined, to save stack. */
static __noinline bool direct_meets(struct work *work, __u32 may_be)
{
	const struct packet *pkt = &work->pkt;
	struct direct *note;

	if (!pkt->opens || !(may_be & MAYBE_TARGET))
		return false;
	note = bpf_map_lookup_elem(&directs, &pkt->tuple);
	if (note && note->alone == pkt->second)
		return false;
	/* Asked with a note, too: a packet with a forged source may have come in by another interface, and caused the note. */
	if (!direct_may(pkt, may_be))
		return false;
	direct_note(pkt, note);
	work_fence(work);
	tuple_reverse(&pkt->tuple, &work->other.key);
	if (conn_find(&work->other.key, &work->other.entry) && !(work->other.entry.identity & CONN_OPENER))
		return true;
	if (note)
		note->alone = pkt->second;
	return false;
}

/* Does a direct connection have this tuple of answers already? Call it after the entry of the answers is inserted. Of TCP
 * and SCTP only the first packet is noted, so such a note does not expire. */
static __always_inline bool direct_has(struct work *work, const struct tuple *answer)
{
	const struct settings *time = conn_settings();
	const struct direct *note;
	__s32 idle;

	work_fence(work);
	tuple_reverse(answer, &work->other.key);
	note = bpf_map_lookup_elem(&directs, &work->other.key);
	if (!note || !time || answer->protocol == IPPROTO_TCP || answer->protocol == IPPROTO_SCTP)
		return note;
	idle = (__s32)(work->pkt.second - note->seen);
	return idle <= 0 || (__u64)idle * SECOND_NS <= conn_idle_time(time, answer->protocol);
}
