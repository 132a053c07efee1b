// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Rates: how many connections a forward may open in a time, of all clients together and of each one. A rate is a bucket of tokens
 * that holds as many as the rate's number. GCRA keeps one time for a bucket: when it will be full again.
 *
 * Races
 *  A. Two CPUs at one bucket. Both read the same time, and both find a token. Each writes its new time by compare-and-swap: the
 *     second write fails, and that CPU looks again. So a token is taken once.
 *  B. Two CPUs with the first packets of one client. Both find no bucket, and both insert a full one with BPF_NOEXIST. One insertion
 *     fails. Both look the bucket up again, and take their tokens as in A.
 *  C. A bucket of a client may be evicted between look-up and write. What is written to it is then lost, and the client begins with
 *     a full bucket: as if it had not come for a long time. The rate of all clients together has a bucket that is never evicted.
 *  D. Two CPUs with packets of one new connection take two tokens for one connection. The forward then opens one connection fewer,
 *     never one more.
 *  E. Two CPUs with packets of one client that has one token left. Both see the client's token, and both take a token of the
 *     forward. One of them gets the client's token. The other CPU gives the token of the forward back. */
#pragma once

#include "maps.h"
#include "work.h"

enum { RATE_TRIES = 4 };

/* The time in which one token comes back. */
static __always_inline __u64 rate_interval(const struct rate *rate)
{
	return (__u64)rate->seconds * SECOND_NS / rate->count;
}

/* When a bucket that was seen like this is full again. */
static __always_inline __u64 rate_full(__u64 seen, const struct rate *rate, __u64 now)
{
	/* No bucket of this rate is full so late. The rate was lower until a moment ago: the bucket begins full. */
	if (seen < now || seen - now > rate->count * rate_interval(rate))
		return now;
	return seen;
}

/* Has a bucket that is full again at this time a token now? */
static __always_inline bool rate_left(__u64 full, const struct rate *rate, __u64 now)
{
	return full - now <= (rate->count - 1) * rate_interval(rate);
}

/* Takes a token. False: there is none, or other CPUs have been faster every time, so that tokens are scarce. */
static __always_inline bool rate_take(struct bucket *bucket, const struct rate *rate, __u64 now)
{
	for (int i = 0; i < RATE_TRIES; i++) {
		__u64 seen = *(volatile __u64 *)&bucket->full, full = rate_full(seen, rate, now);

		if (!rate_left(full, rate, now))
			return false;
		if (__sync_val_compare_and_swap(&bucket->full, seen, full + rate_interval(rate)) == seen)
			return true;
	}
	return false;
}

static __always_inline struct bucket *rate_bucket(__u32 forward)
{
	__u32 page = forward / BUCKETS_PAGE, place = forward % BUCKETS_PAGE;
	void *found = bpf_map_lookup_elem(&buckets, &page);

	return found ? bpf_map_lookup_elem(found, &place) : NULL;
}

static __always_inline struct bucket *rate_source_bucket(__u64 client, const struct epoch_ref *forward)
{
	struct source_bucket_key key = { .client = client, .forward = *forward };
	struct bucket full = {}, *found;
	__u32 zero = 0;
	void *table = bpf_map_lookup_elem(&source_buckets, &zero);

	if (!table)
		return NULL;
	found = bpf_map_lookup_elem(table, &key);
	if (found)
		return found;
	bpf_map_update_elem(table, &key, &full, BPF_NOEXIST);
	return bpf_map_lookup_elem(table, &key);
}

/* May this client open one more connection of this forward now? A client that is over its rate takes no tokens of the forward. A forward
 * that is over its rate takes no tokens of the client. So the client's bucket is looked at first, and the forward's token is taken first. */
static __always_inline enum reason rate_admit(__u64 client, const struct forward *forward)
{
	const struct rate *all = &forward->rate, *each = &forward->source_rate;
	struct bucket *of_all = all->count ? rate_bucket(forward->epoch_ref.id) : NULL;
	struct bucket *of_client = each->count ? rate_source_bucket(client, &forward->epoch_ref) : NULL;
	__u64 now = bpf_ktime_get_coarse_ns();

	if (of_client && !rate_left(rate_full(*(volatile __u64 *)&of_client->full, each, now), each, now))
		return REASON_SOURCE_RATE;
	if (of_all && !rate_take(of_all, all, now))
		return REASON_RATE;
	if (!of_client || rate_take(of_client, each, now))
		return REASON_NONE;
	if (of_all)
		__sync_fetch_and_sub(&of_all->full, rate_interval(all));
	return REASON_SOURCE_RATE;
}
