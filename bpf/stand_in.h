// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Reflect prefix: each client appears under its own substitute address, its stand-in: 192.168.1.50 as 198.18.1.50. Origins:
 * they say which forward leads to a server's port, so an answer alone says what its client asked. Both follow from the
 * configuration, so a lost connection can be rebuilt. */
#pragma once

#include "conn.h"
#include "forward.h"

enum { STAND_IN_KEY_BITS = 128, ORIGIN_KEY_BITS = 160 };

/* Changes a client's address into its stand-in, or back. False: the address is neither, or the other of both. A stack frame of
 * its own. */
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

/* Is this the address of a stand-in? Without stand-ins this costs one look at the settings. */
static __always_inline bool stand_in_answered(const union addr *dst)
{
	const struct settings *settings = conn_settings();
	union addr addr = *dst;

	return settings && settings->stand_ins && stand_in_swap(&addr, false);
}

/* wan: the answer goes to the Internet, otherwise to a stand-in. */
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

	/* The shortest prefix stands for every protocol, and for stand-ins alone. */
	return origin && origin->wan == wan ? origin : NULL;
}

/* The packet that a client must have sent to get this answer. several_wans is set if the origin says so. False: no forward
 * leads to this server's port, or several do. A stack frame of its own. */
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
