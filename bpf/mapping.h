// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Reflect public: the external port that stands for a client's port. At one external address, all connections of the
 * client's port have one external port, and no other client has this external port (RFC 4787 REQ-1, REQ-9a). */
#pragma once

#include "maps.h"
#include "work.h"

static __always_inline struct tuple *mapping_key(struct work *work, const union addr *src, __be16 sport,
						 __u8 protocol)
{
	struct tuple *key = &work->open.mapping.key;

	__builtin_memset(key, 0, sizeof(*key));
	key->src = *src;
	key->sport = sport;
	key->protocol = protocol;
	return key;
}

/* Returns the key by client: the client's address and port, and the external address. */
static __always_inline struct tuple *mapping_of_client(struct work *work)
{
	const struct tuple *client = &work->open.key;
	struct tuple *key = mapping_key(work, &client->src, client->sport, client->protocol);

	key->dst = client->dst;
	return key;
}

/* Returns the key by external port: the address and port to which the target answers. */
static __always_inline struct tuple *mapping_of_port(struct work *work)
{
	const struct tuple *answer = &work->open.answer;

	return mapping_key(work, &answer->dst, answer->dport, answer->protocol);
}

/* Returns the external port of the client's port. Without a mapping, returns the client's port: it is tried first. */
static __always_inline __be16 mapping_port(struct work *work)
{
	const struct mapping *known = bpf_map_lookup_elem(&mappings, mapping_of_client(work));

	return known ? known->port : work->open.key.sport;
}

static __always_inline const struct mapping *mapping_fresh(struct work *work)
{
	struct mapping *fresh = &work->open.mapping.value;

	fresh->client = work->open.key.src;
	fresh->client_port = work->open.key.sport;
	fresh->port = work->open.answer.dport;
	return fresh;
}

/* Claims the external port for this client's port. False: another client or another port has the external port. */
static __always_inline bool mapping_claim(struct work *work)
{
	const struct tuple *client = &work->open.key;
	const struct mapping *owner;

	if (bpf_map_update_elem(&mappings, mapping_of_port(work), mapping_fresh(work), BPF_NOEXIST) == 0)
		return true;
	owner = bpf_map_lookup_elem(&mappings, mapping_of_port(work));
	return owner && owner->client_port == client->sport && addr_equal(&owner->client, &client->src);
}

/* Stores the external port in the entry by client. If this entry exists, it stays unchanged. */
static __always_inline void mapping_keep(struct work *work)
{
	bpf_map_update_elem(&mappings, mapping_of_client(work), mapping_fresh(work), BPF_NOEXIST);
}
