// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The forwards: which forward a packet to an external address belongs to, and which clients it serves. A packet reads the
 * number of the live slot once, so it sees either the old set of forwards or the new one. */
#pragma once

#include "maps.h"
#include "packet.h"
#include "work.h"

enum { FORWARD_KEY_BITS = 64, ALLOW_KEY_BITS = 160 };

/* A hash of an address: the index of maybe_external. The control plane computes the same. */
static __always_inline __u32 external_slot(const union addr *addr)
{
	return (addr->word[0] ^ addr->word[1] ^ addr->word[2] ^ addr->word[3]) * HASH_MULTIPLIER >> (32 - MAYBE_EXTERNAL_BITS);
}

/* The external ids of an address; NULL: no forward listens there. */
static __always_inline struct external *external_find(const union addr *addr)
{
	__u32 slot = external_slot(addr);
	const __u32 *may_be = bpf_map_lookup_elem(&maybe_external, &slot);
	struct external *external = may_be && *may_be ? bpf_map_lookup_elem(&externals, addr) : NULL;

	return external && (external->fixed | external->group) ? external : NULL;
}

/* Global: the verifier checks it once. */
__noinline __u32 forward_slot(void)
{
	struct work *work = work_get();
	__u32 zero = 0;
	struct live *now;

	if (!work)
		return 0;
	if (work->live_slot != SLOT_UNREAD)
		return work->live_slot;
	now = bpf_map_lookup_elem(&live, &zero);
	if (now)
		work->live_slot = now->generation & 1;
	return now ? work->live_slot : 0;
}

static __always_inline struct forward *forward_lookup(__u32 slot, __u32 external, __u8 protocol, __be16 port)
{
	struct forward_key key = {
		.prefix_length = FORWARD_KEY_BITS,
		.external = external,
		.protocol = protocol,
		.port = port,
	};
	void *trie = bpf_map_lookup_elem(&forwards, &slot);

	return trie && external ? bpf_map_lookup_elem(trie, &key) : NULL;
}

/* Forwards for this address alone win over those for its interface. */
static __always_inline struct forward *forward_find(__u32 slot, const struct external *external,
						    __u8 protocol, __be16 port)
{
	struct forward *forward = forward_lookup(slot, external->fixed, protocol, port);

	return forward ? forward : forward_lookup(slot, external->group, protocol, port);
}

/* The longest prefix that holds the address decides. */
static __always_inline bool forward_allows(__u32 slot, const struct forward *forward, const union addr *source)
{
	struct allow_key key = {
		.prefix_length = ALLOW_KEY_BITS,
		.forward = forward->epoch_ref.id,
		.source = *source,
	};
	const __u8 *allowed;
	void *trie;

	if (!forward->restricted)
		return true;
	trie = bpf_map_lookup_elem(&allow, &slot);
	allowed = trie ? bpf_map_lookup_elem(trie, &key) : NULL;
	return allowed && *allowed;
}
