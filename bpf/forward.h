// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The forwards: finds the forward of a packet to an external address, and checks the client. The live slot is read once
 * for each packet, so a packet uses either the old set of forwards or the new set. */
#pragma once

#include "maps.h"
#include "packet.h"
#include "work.h"

enum { FORWARD_KEY_BITS = 64, ALLOW_KEY_BITS = 160 };

/* Returns the index of an address in maybe_external. MaybeExternalSlot in Go must compute this index, too. */
static __always_inline __u32 external_slot(const union addr *addr)
{
	return (addr->word[0] ^ addr->word[1] ^ addr->word[2] ^ addr->word[3]) * HASH_MULTIPLIER >> (32 - MAYBE_EXTERNAL_BITS);
}

/* Returns what the address may be: bits of enum maybe. */
static __always_inline __u32 external_maybe(const union addr *addr)
{
	__u32 slot = external_slot(addr);
	const enum maybe *may_be = bpf_map_lookup_elem(&maybe_external, &slot);

	return may_be ? *may_be : 0;
}

/* May a forward to some external address take this packet? Protocols without a place in maybe_ports: yes. */
static __always_inline bool forward_maybe(const struct tuple *tuple)
{
	__u32 port = bpf_ntohs(tuple->dport), place = port / PORT_BITS;
	const struct port_bits *ports;

	if (tuple->protocol == IPPROTO_UDP)
		place += PORTS_ALL / PORT_BITS;
	else if (tuple->protocol != IPPROTO_TCP)
		return true;
	ports = bpf_map_lookup_elem(&maybe_ports, &place);
	return !ports || ports->bits >> port % PORT_BITS & 1;
}

/* Returns the external ids of an address. NULL: no forward listens on the address. may_be: external_maybe of the address. */
static __always_inline struct external *external_lookup(const union addr *addr, __u32 may_be)
{
	struct external *external = may_be & MAYBE_EXTERNAL ? bpf_map_lookup_elem(&externals, addr) : NULL;

	return external && (external->fixed | external->group) ? external : NULL;
}

static __always_inline struct external *external_find(const union addr *addr)
{
	return external_lookup(addr, external_maybe(addr));
}

/* Is this the address of a target? may_be: external_maybe of the address. */
static __always_inline bool target_has(const union addr *addr, __u32 may_be)
{
	return may_be & MAYBE_TARGET && bpf_map_lookup_elem(&targets, addr);
}

/* Returns the live slot of the forwards. A global function: the verifier checks it once. */
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

/* Finds the forward of a port. A forward for exactly this address wins over a forward for the interface. */
static __always_inline struct forward *forward_find(__u32 slot, const struct external *external,
						    __u8 protocol, __be16 port)
{
	struct forward *forward = forward_lookup(slot, external->fixed, protocol, port);

	return forward ? forward : forward_lookup(slot, external->group, protocol, port);
}

/* Does the forward take packets of this source? The longest prefix in allow that contains the source decides. */
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
