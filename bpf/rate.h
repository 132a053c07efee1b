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
 *  D. Two CPUs with packets of one new connection take two tokens for one connection. It is a token less, never one more. */
#pragma once

#include "maps.h"
#include "work.h"

enum { RATE_TRIES = 4 };

/* Takes a token. False: there is none, or other CPUs have been faster every time, so that tokens are scarce. */
static __always_inline bool rate_take(struct bucket *bucket, const struct rate *rate, __u64 now)
{
	__u64 interval = (__u64)rate->seconds * SECOND_NS / rate->count, ahead = (rate->count - 1) * interval;

	for (int i = 0; i < RATE_TRIES; i++) {
		__u64 seen = *(volatile __u64 *)&bucket->full, full = seen > now ? seen : now;

		/* No bucket of this rate is filled so late. The rate was lower until a moment ago: the bucket begins full. */
		if (full - now > ahead + interval)
			full = now;
		if (full - now > ahead)
			return false;
		if (__sync_val_compare_and_swap(&bucket->full, seen, full + interval) == seen)
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

/* May this client open one more connection of this forward now? The client's own bucket is asked first: one client that is over its
 * rate takes no tokens from the others. */
static __always_inline enum reason rate_admit(__u64 client, const struct forward *forward)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	struct bucket *bucket;

	if (forward->source_rate.count) {
		bucket = rate_source_bucket(client, &forward->epoch_ref);
		if (bucket && !rate_take(bucket, &forward->source_rate, now))
			return REASON_SOURCE_RATE;
	}
	if (forward->rate.count) {
		bucket = rate_bucket(forward->epoch_ref.id);
		if (bucket && !rate_take(bucket, &forward->rate, now))
			return REASON_RATE;
	}
	return REASON_NONE;
}
