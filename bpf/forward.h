// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The forwards: which one a packet to an external address belongs to, and whom it serves.
 * Each packet reads the number of the slot once, so it sees the old set or the new one, never both. */
#pragma once

#include "maps.h"
#include "packet.h"
#include "work.h"

enum { FORWARD_KEY_BITS = 64, ALLOW_KEY_BITS = 160 };

/* Some of whose bits make a slot of maybe_external; the control plane does the same. */
static __always_inline __u32 external_slot(const union addr *addr)
{
	return (addr->word[0] ^ addr->word[1] ^ addr->word[2] ^ addr->word[3]) * 2654435761u >> 20;
}

/* What forwards listen on; NULL: none does. */
static __always_inline struct external *external_find(const union addr *addr)
{
	__u32 slot = external_slot(addr);
	const __u32 *may_be = bpf_map_lookup_elem(&maybe_external, &slot);

	return may_be && *may_be ? bpf_map_lookup_elem(&externals, addr) : NULL;
}

/* Global: the verifier checks it once. */
__noinline __u32 forward_slot(void)
{
	struct work *work = work_get();
	__u32 zero = 0;
	struct live *now;

	if (!work)
		return 0;
	if (work->slot != SLOT_UNREAD)
		return work->slot;
	now = bpf_map_lookup_elem(&live, &zero);
	if (now)
		work->slot = now->generation & 1;
	return now ? work->slot : 0;
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

/* Forwards for just this address go before those for its interface. */
static __always_inline struct forward *forward_find(__u32 slot, const struct external *external,
						    __u8 protocol, __be16 port)
{
	struct forward *forward = forward_lookup(slot, external->fixed, protocol, port);

	return forward ? forward : forward_lookup(slot, external->group, protocol, port);
}

/* The longest prefix that the address is in says yes or no. */
static __always_inline bool forward_allows(__u32 slot, const struct forward *forward, const union addr *source)
{
	struct allow_key key = {
		.prefix_length = ALLOW_KEY_BITS,
		.forward = forward->stamp.id,
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
