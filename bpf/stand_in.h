// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Reflect prefix: the target sees each client under a substitute address, its stand-in: 192.168.1.50 as 198.18.1.50. An
 * origin is the only forward to a target's port. The origin and an answer of the target together say which packet the
 * client sent. Stand-ins and origins come from the configuration alone, so a lost connection can be rebuilt. */
#pragma once

#include "conn.h"
#include "forward.h"

enum { STAND_IN_KEY_BITS = 128, ORIGIN_KEY_BITS = 160 };

/* Changes a client's address into its stand-in (client is true), or a stand-in into its client's address. False: the
 * address is of another kind, and stays. Not inlined, to have its own stack frame. */
static __noinline bool stand_in_swap(union addr *addr, bool client)
{
	struct prefix_key key = { .prefix_length = STAND_IN_KEY_BITS, .address = *addr };
	__u32 slot = forward_slot();
	void *trie = bpf_map_lookup_elem(&stand_ins, &slot);
	const struct stand_in *found = trie ? bpf_map_lookup_elem(trie, &key) : NULL;

	if (!found || found->client != client)
		return false;
	for (int i = 0; i < 4; i++)
		addr->word[i] = (addr->word[i] & ~found->mask.word[i]) | found->network.word[i];
	return true;
}

static __always_inline bool stand_in_has(const union addr *client)
{
	union addr addr = *client;

	return stand_in_swap(&addr, true);
}

/* Is this address a stand-in? If no stand-ins are configured, this costs one look-up of the settings. */
static __always_inline bool stand_in_answered(const union addr *dst)
{
	const struct settings *settings = conn_settings();
	union addr addr = *dst;

	return settings && settings->stand_ins && stand_in_swap(&addr, false);
}

/* Finds the origin of a target's answer. wan: the answer goes to the Internet; otherwise it goes to a stand-in. */
static __always_inline const struct origin *origin_find(const struct tuple *answer, bool wan)
{
	struct origin_key key = {
		.prefix_length = ORIGIN_KEY_BITS,
		.target = answer->src,
		.protocol = answer->protocol,
		.wan = wan,
		.port = answer->sport,
	};
	__u32 slot = forward_slot();
	void *trie = bpf_map_lookup_elem(&origins, &slot);
	const struct origin *origin = trie ? bpf_map_lookup_elem(trie, &key) : NULL;

	/* The prefix of an entry for every protocol ends before wan. Such an entry is for answers to stand-ins only. */
	return origin && origin->wan == wan ? origin : NULL;
}

/* Computes the tuple of the packet that the client must have sent to get this answer, and copies the origin. False: the target's port
 * has no origin, the origin has no single address, or the answer should go to a stand-in and does not. Not inlined, to have its own
 * stack frame. */
static __noinline bool origin_asked(const struct tuple *answer, struct tuple *asked, bool wan, struct origin *origin)
{
	const struct origin *found = origin_find(answer, wan);
	const union addr *listener;
	__u32 external;

	if (!found)
		return false;
	external = found->external;
	listener = bpf_map_lookup_elem(&listeners, &external);
	if (!listener)
		return false;
	*origin = *found;
	tuple_reverse(answer, asked);
	asked->dst = *listener;
	asked->dport = bpf_htons((__u16)(bpf_ntohs(answer->sport) - origin->port_shift));
	return wan || stand_in_swap(&asked->src, false);
}
