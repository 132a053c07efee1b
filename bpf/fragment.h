// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Fragments: the first one of a datagram decides for all of them, in whatever order they come. Only fragments to or from
 * addresses of forwards are followed; all others are left to the kernel. */
#pragma once

#include "conn.h"
#include "intercept.h"

/* A datagram has 30 s to arrive, as in RFC 791 and in Linux. A sender may use an id again after a second. */
enum { FRAGMENT_SECONDS = 30, FRAGMENT_AGAIN_SECONDS = 1, FRAGMENT_HELD_MAX = 46 };

/* Filled in working memory: the stack is too short. */
static __always_inline struct fragment_key *frag_key(struct work *work)
{
	const struct packet *pkt = &work->pkt;
	struct fragment_key *key = &work->fragment.held.datagram;

	key->src = pkt->tuple.src;
	key->dst = pkt->tuple.dst;
	key->ifindex = pkt->ifindex;
	key->id = pkt->id;
	key->protocol = pkt->tuple.protocol;
	__builtin_memset(key->pad, 0, sizeof(key->pad));
	work->fragment.held.pad = 0;
	return key;
}

/* Is it the first fragment of a datagram for an intercept? Only the first fragment has ports. A stack frame of its own. */
static __noinline bool frag_intercepted(const struct packet *pkt)
{
	return pkt->fragment == FRAGMENT_FIRST && intercept_find(pkt);
}

/* May a forward be concerned with these addresses? */
static __always_inline bool frag_concerns(const struct packet *pkt)
{
	return external_find(&pkt->tuple.dst) || bpf_map_lookup_elem(&targets, &pkt->tuple.src) ||
	       frag_intercepted(pkt);
}

/* Notes the bytes that a fragment brings. False: some of them have come before, or there are too many gaps. Stored ranges never
 * touch each other, so at most one of them joins the new range on either side. */
static __always_inline bool frag_cover(struct fragment *datagram, struct fragment_range piece)
{
	struct fragment_range *range = datagram->range;

	for (int i = 0; i < FRAGMENT_RANGES; i++) {
		if (piece.start < range[i].end && range[i].start < piece.end)
			return false;
	}
	for (int i = 0; i < FRAGMENT_RANGES; i++) {
		if (!range[i].end || (range[i].end != piece.start && range[i].start != piece.end))
			continue;
		if (range[i].start < piece.start)
			piece.start = range[i].start;
		else
			piece.end = range[i].end;
		range[i].start = range[i].end = 0;
	}
	for (int i = 0; i < FRAGMENT_RANGES; i++) {
		if (!range[i].end) {
			range[i] = piece;
			return true;
		}
	}
	return false;
}

/* All of it has come. */
static __always_inline bool frag_complete(const struct fragment *datagram)
{
	bool whole = false;

	for (int i = 0; i < FRAGMENT_RANGES; i++)
		whole |= !datagram->range[i].start && datagram->range[i].end == datagram->length;
	return whole && datagram->length;
}

/* The id belongs to another datagram now. */
static __always_inline bool frag_outdated(const struct packet *pkt, const struct fragment *datagram)
{
	__u64 age = conn_now() - datagram->seen;
	bool again = pkt->fragment == FRAGMENT_FIRST && datagram->owner != OWNER_UNKNOWN;

	/* Fragments that were held and are handed to the kernel come in once more. */
	return age > (__u64)FRAGMENT_SECONDS * SECOND_NS ||
	       (frag_complete(datagram) && datagram->owner != OWNER_KERNEL) ||
	       (again && (datagram->owner == OWNER_KERNEL || age > (__u64)FRAGMENT_AGAIN_SECONDS * SECOND_NS));
}

/* The datagram of this fragment. NULL: no forward is concerned, or there is no memory. */
static __always_inline struct fragment *frag_datagram(struct work *work)
{
	struct fragment_key *key = frag_key(work);
	struct fragment *datagram = bpf_map_lookup_elem(&fragments, key);
	struct fragment fresh = {};

	if (datagram && !frag_outdated(&work->pkt, datagram))
		return datagram;
	if (!frag_concerns(&work->pkt))
		return NULL;
	fresh.seen = conn_now();
	bpf_map_update_elem(&fragments, key, &fresh, BPF_ANY);
	return bpf_map_lookup_elem(&fragments, key);
}

static __always_inline enum verdict frag_drop(struct work *work, enum reason reason)
{
	work->rw.reason = reason;
	return VERDICT_DROP;
}

/* What becomes of a fragment before its connection is looked for. SEND: the connection decides. */
static __noinline enum verdict frag_enter(struct work *work, struct fragment *datagram)
{
	struct packet *pkt = &work->pkt;

	/* The kernel judges overlapping fragments. Held ones come in once more. */
	if (pkt->fragment == FRAGMENT_LATER && datagram->owner == OWNER_KERNEL)
		return VERDICT_PASS;
	if (pkt->flaw != REASON_NONE)
		return frag_drop(work, pkt->flaw);
	if (!frag_cover(datagram, pkt->piece))
		return frag_drop(work, REASON_FRAGMENT_OVERLAP);
	if (pkt->last)
		datagram->length = pkt->piece.end;
	if (pkt->fragment == FRAGMENT_FIRST)
		return VERDICT_SEND;
	pkt->tuple.sport = datagram->sport;
	pkt->tuple.dport = datagram->dport;
	switch (datagram->owner) {
	case OWNER_CONN:
		return VERDICT_SEND;
	case OWNER_NOBODY:
		return frag_drop(work, REASON_NO_CONNECTION);
	default:
		work->rw.reason = REASON_FRAGMENT_EARLY;
		return VERDICT_HOLD;
	}
}

/* Remembers the verdict of the first fragment for all others. */
static __always_inline void frag_settle(const struct packet *pkt, struct fragment *datagram, enum verdict verdict)
{
	datagram->sport = pkt->tuple.sport;
	datagram->dport = pkt->tuple.dport;
	if (verdict == VERDICT_SEND)
		datagram->owner = OWNER_CONN;
	else
		datagram->owner = verdict == VERDICT_PASS ? OWNER_KERNEL : OWNER_NOBODY;
}
