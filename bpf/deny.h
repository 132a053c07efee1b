// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Denied sources: they open nothing. Connections that they have already are ended by the control plane when it adds a source.
 *
 * Race. CPU A looks for the source of a SYN, and finds nothing. The control plane then adds the source, and walks the table of
 * connections. CPU A enters its connection after the walk: the connection would live. So after the control plane has added the
 * source, and before it walks, it writes a slot of an array of maps. The kernel returns from that write only when no
 * program runs that began before (maybe_wait_bpf_programs). So the walk sees all that such programs have opened.
 *
 * A packet may find a source's bit in maybe_denied, but no entry, or the entry, but no bit: both come before that write, the bit first.
 * What clears bits puts a new map in the slot, which has those of all entries. */
#pragma once

#include "maps.h"
#include "packet.h"

enum { DENIED_KEY_BITS = 160 };

/* Returns the number of an address's bit in maybe_denied. MaybeDeniedBit in Go must compute this number, too. */
static __always_inline __u32 deny_hash(const union addr *addr)
{
	return (addr->word[0] ^ addr->word[1] ^ addr->word[2] ^ addr->word[3]) * HASH_MULTIPLIER >> (32 - MAYBE_DENIED_BITS);
}

static __always_inline bool deny_address(void *may_be, const union addr *source, __u32 second)
{
	__u32 zero = 0, hash = deny_hash(source), place = hash >> 6;
	const __u64 *bits = bpf_map_lookup_elem(may_be, &place);
	const struct denial *found;
	void *addresses;

	if (!bits || !(*bits >> (hash & 63) & 1))
		return false;
	addresses = bpf_map_lookup_elem(&denied, &zero);
	found = addresses ? bpf_map_lookup_elem(addresses, source) : NULL;
	return found && second < found->until;
}

static __always_inline bool deny_network(void *networks, const union addr *source, __u32 second)
{
	struct denied_key key = { .prefix_length = DENIED_KEY_BITS, .v6 = !addr_is_v4(source), .source = *source };
	const struct denial *found = bpf_map_lookup_elem(networks, &key);

	return found && second < found->until;
}

/* Is this source denied at this second? Of the networks that hold an address the trie gives the longest. Its time is never shorter
 * than that of the others: the control plane sees to that. */
static __always_inline bool deny_has(const union addr *source, __u32 second)
{
	__u32 zero = 0;
	void *may_be = bpf_map_lookup_elem(&maybe_denied, &zero), *networks = bpf_map_lookup_elem(&denied_nets, &zero);

	return (may_be && deny_address(may_be, source, second)) || (networks && deny_network(networks, source, second));
}
