// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Reflect public: which external port stands for a client's port, the same one for all its connections by an
 * external address (RFC 4787 REQ-1, REQ-9a) and no other client's. */
#pragma once

#include "maps.h"
#include "work.h"

static __always_inline struct tuple *mapping_key(struct work *work, const union addr *src, __be16 sport,
						 __u8 protocol)
{
	struct tuple *key = &work->mapping;

	__builtin_memset(key, 0, sizeof(*key));
	key->src = *src;
	key->sport = sport;
	key->protocol = protocol;
	return key;
}

/* By its client. */
static __always_inline struct tuple *mapping_of_client(struct work *work)
{
	const struct tuple *client = &work->open.key;
	struct tuple *key = mapping_key(work, &client->src, client->sport, client->protocol);

	key->dst = client->dst;
	return key;
}

/* By what it stands for, in the answer to the client. */
static __always_inline struct tuple *mapping_of_port(struct work *work)
{
	const struct tuple *answer = &work->open.answer;

	return mapping_key(work, &answer->dst, answer->dport, answer->protocol);
}

/* The port that stands for the client's, or else that one itself, to be tried first. */
static __always_inline __be16 mapping_port(struct work *work)
{
	const struct mapping *known = bpf_map_lookup_elem(&mappings, mapping_of_client(work));

	return known ? known->port : work->open.key.sport;
}

static __always_inline const struct mapping *mapping_fresh(struct work *work)
{
	struct mapping *fresh = &work->fresh;

	fresh->client = work->open.key.src;
	fresh->client_port = work->open.key.sport;
	fresh->port = work->open.answer.dport;
	return fresh;
}

/* Makes the answer's port this client's. False: it is another one's. */
static __always_inline bool mapping_claim(struct work *work)
{
	const struct tuple *client = &work->open.key;
	const struct mapping *owner;

	if (bpf_map_update_elem(&mappings, mapping_of_port(work), mapping_fresh(work), BPF_NOEXIST) == 0)
		return true;
	owner = bpf_map_lookup_elem(&mappings, mapping_of_port(work));
	return owner && owner->client_port == client->sport && addr_equal(&owner->client, &client->src);
}

/* The client keeps the port it got first. */
static __always_inline void mapping_keep(struct work *work)
{
	bpf_map_update_elem(&mappings, mapping_of_client(work), mapping_fresh(work), BPF_NOEXIST);
}
