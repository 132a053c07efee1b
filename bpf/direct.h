// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Direct connections: a client connects to a target itself, without a forward. The kernel sends the packets on. A
 * translated connection that shows the target the client's own address may get the same answers: the client has one port
 * for both, at two destinations. Whichever connection comes second gets another port, as nf_nat does it. Netfilter's
 * FORWARD chain does not see a direct connection that got another port. The client gains nothing by that: a forward has
 * just admitted it to this port of the server.
 *
 * Race: CPU A handles the first packet of the direct connection, while CPU B opens the translated connection. A notes the
 * tuple in directs, and then looks for an entry of the answers. B inserts the entry of the answers, and then looks into
 * directs. So at least one of them sees the other. If both do, both connections get another port. */
#pragma once

#include "conn.h"
#include "forward.h"

/* Notes a packet that opens a direct connection. True: its answers have an entry of another connection, so hairpin must
 * give the direct connection another port. Most packets fail at the first condition. Not inlined, to save stack. */
static __noinline bool direct_meets(struct work *work)
{
	const struct packet *pkt = &work->pkt;
	const struct tuple *key = &pkt->tuple;
	__u8 noted = 1;

	if (!pkt->opens || !(external_maybe(&key->dst) & MAYBE_TARGET) || !bpf_map_lookup_elem(&targets, &key->dst))
		return false;
	if (!bpf_map_lookup_elem(&directs, key))
		bpf_map_update_elem(&directs, key, &noted, BPF_ANY);
	tuple_reverse(key, &work->other.key);
	return conn_find(&work->other.key, &work->other.entry) && !(work->other.entry.identity & CONN_OPENER);
}

/* Does a direct connection have this tuple of answers already? */
static __always_inline bool direct_has(struct work *work, const struct tuple *answer)
{
	tuple_reverse(answer, &work->other.key);
	return bpf_map_lookup_elem(&directs, &work->other.key);
}

/* Was the connection made for a direct connection? It has no forward. */
static __always_inline bool direct_made(const struct conn *conn)
{
	return !conn_forward(conn);
}
