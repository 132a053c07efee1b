// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Fragments: the first of a datagram lends its ports to those that follow it.
 * Only datagrams that hairpin translated are remembered; other fragments stay the kernel's. */
#pragma once

#include "conn.h"

/* RFC 791 and Linux: a datagram has 30 s to arrive. */
enum { FRAGMENT_SECONDS = 30 };

/* Into working memory: the stack is short. */
static __always_inline struct fragment_key *frag_key(struct work *work)
{
	const struct packet *pkt = &work->pkt;
	struct fragment_key *key = &work->fragment;

	key->src = pkt->tuple.src;
	key->dst = pkt->tuple.dst;
	key->ifindex = pkt->ifindex;
	key->id = pkt->id;
	key->protocol = pkt->tuple.protocol;
	key->pad = 0;
	return key;
}

/* False: nobody knows the ports of this fragment. */
static __always_inline bool frag_complete(struct work *work)
{
	struct fragment *first = bpf_map_lookup_elem(&fragments, frag_key(work));

	if (!first || conn_now() - first->seen > (__u64)FRAGMENT_SECONDS * SECOND_NS)
		return false;
	work->pkt.tuple.sport = first->sport;
	work->pkt.tuple.dport = first->dport;
	return true;
}

static __always_inline void frag_remember(struct work *work)
{
	struct fragment first = {
		.seen = conn_now(),
		.sport = work->pkt.tuple.sport,
		.dport = work->pkt.tuple.dport,
	};

	bpf_map_update_elem(&fragments, frag_key(work), &first, BPF_ANY);
}
