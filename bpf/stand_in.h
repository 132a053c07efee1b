// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Reflect prefix: each client has a stand-in, an address of its own.
 * Origins: from a server's answer they tell which forward its client used. Both follow from the configuration
 * alone, so a connection that is lost can be rebuilt. */
#pragma once

#include "conn.h"
#include "forward.h"

enum { STAND_IN_KEY_BITS = 128, ORIGIN_KEY_BITS = 160 };

/* Into the other one: a client's address into its stand-in, or back. False: it is neither, or not this one. A
 * stack frame of its own. */
static __noinline bool stand_in_swap(union addr *addr, bool client)
{
	struct stand_in_key key = { .prefix_length = STAND_IN_KEY_BITS, .address = *addr };
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

/* Does a server answer a stand-in? Costs those who have none a look at the settings. */
static __always_inline bool stand_in_answered(const union addr *dst)
{
	const struct settings *settings = conn_settings();
	union addr addr = *dst;

	return settings && settings->stand_ins && stand_in_swap(&addr, false);
}

/* wan: of an answer to the Internet, else of one to a stand-in. */
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

	/* The shortest prefix is of every protocol, and of stand-ins alone. */
	return origin && origin->wan == wan ? origin : NULL;
}

/* What the client must have sent for its server to answer like this; several_wans is set if the origin says so. False: no
 * forward, or no single one, accounts for it. A stack frame of its own. */
static __noinline bool origin_asked(const struct tuple *answer, struct tuple *asked, bool wan, bool *several_wans)
{
	const struct origin *origin = origin_find(answer, wan);
	const union addr *listener;
	__u32 external;

	if (!origin)
		return false;
	external = origin->external;
	listener = bpf_map_lookup_elem(&listeners, &external);
	if (!listener)
		return false;
	*several_wans = origin->several_wans;
	tuple_reverse(answer, asked);
	asked->dst = *listener;
	asked->dport = bpf_htons((__u16)(bpf_ntohs(answer->sport) - origin->port_shift));
	return wan || stand_in_swap(&asked->src, false);
}
