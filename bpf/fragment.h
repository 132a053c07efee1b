// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Fragments: the first fragment of a datagram decides for all its fragments, in whatever order they arrive. hairpin
 * follows only fragments to an external address, to or from a target, or to an intercept. All others are left to the kernel. */
#pragma once

#include "conn.h"
#include "intercept.h"

/* A datagram has 30 s to arrive completely, as in Linux (net.ipv4.ipfrag_time). After 1 s a sender may use an id for the
 * next datagram. */
enum { FRAGMENT_SECONDS = 30, FRAGMENT_AGAIN_SECONDS = 1, FRAGMENT_HELD_MAX = 46 };

/* Fills and returns the key in working memory, because the stack is too short. */
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

/* Is this the first fragment of a datagram for an intercept? Only the first fragment has ports. Not inlined, to have its
 * own stack frame. */
static __noinline bool frag_intercepted(const struct packet *pkt)
{
	return pkt->fragment == FRAGMENT_FIRST && intercept_find(pkt);
}

/* May this fragment belong to a connection of a forward, or to a direct connection (direct.h)? */
static __always_inline bool frag_concerns(const struct packet *pkt)
{
	__u32 may_be = external_maybe(&pkt->tuple.dst);

	return external_lookup(&pkt->tuple.dst, may_be) || target_has(&pkt->tuple.dst, may_be) ||
	       bpf_map_lookup_elem(&targets, &pkt->tuple.src) || frag_intercepted(pkt);
}

/* Adds the bytes of a fragment to the received ranges. False: some of the bytes were received before, or there are too
 * many gaps. Stored ranges never touch each other, so at most one range joins the fragment on each side. */
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

/* Has the whole datagram arrived? */
static __always_inline bool frag_complete(const struct fragment *datagram)
{
	bool whole = false;

	for (int i = 0; i < FRAGMENT_RANGES; i++)
		whole |= !datagram->range[i].start && datagram->range[i].end == datagram->length;
	return whole && datagram->length;
}

/* Has the sender reused the id, so that this fragment belongs to a new datagram? */
static __always_inline bool frag_outdated(const struct packet *pkt, const struct fragment *datagram)
{
	__u64 age = conn_now() - datagram->seen;
	bool again = pkt->fragment == FRAGMENT_FIRST && datagram->owner != OWNER_UNKNOWN;

	/* A complete datagram of the kernel is not outdated: hold_return sends its held fragments in once more. */
	return age > (__u64)FRAGMENT_SECONDS * SECOND_NS ||
	       (frag_complete(datagram) && datagram->owner != OWNER_KERNEL) ||
	       (again && (datagram->owner == OWNER_KERNEL || age > (__u64)FRAGMENT_AGAIN_SECONDS * SECOND_NS));
}

/* Finds or makes the entry of this fragment's datagram. NULL: no forward may be concerned, or there is no memory. */
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

/* Decides about a fragment before its connection is looked up. SEND: the connection decides. */
static __noinline enum verdict frag_enter(struct work *work, struct fragment *datagram)
{
	struct packet *pkt = &work->pkt;

	/* The kernel checks overlaps itself. They must not be checked here: held fragments come in a second time. */
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

/* Stores ports and verdict of the first fragment for all other fragments. */
static __always_inline void frag_settle(const struct packet *pkt, struct fragment *datagram, enum verdict verdict)
{
	datagram->sport = pkt->tuple.sport;
	datagram->dport = pkt->tuple.dport;
	if (verdict == VERDICT_SEND)
		datagram->owner = OWNER_CONN;
	else
		datagram->owner = verdict == VERDICT_PASS ? OWNER_KERNEL : OWNER_NOBODY;
}
