// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Several servers behind one forward: which of them gets a new connection. The control plane computes a lookup table for each such
 * forward (Maglev: Eisenbud et al. 2016, section 3.4), in which each server has places in proportion to its weight. The hash of a
 * client names a place. Packets of a connection ask nothing here.
 *
 * With affinity, a client's next connections go to the server of its last one, also if the lookup table has changed since. An opening
 * proves nothing, so it is noted among the new clients, where a flood displaces only other new clients. When the connection is
 * established, the client moves to the known ones.
 *
 * Race: CPU A and CPU B open the first connections of one client.
 *   A and B find no affinity. Both choose by the same hash, and note the same server.
 *   If the control plane swaps the tables between the two, A may choose by the old ones. What is noted last then decides about later
 *   connections. A's connection and B's connection keep their servers.
 *
 * Race: the clocks of CPUs differ by a tick. CPU B may note a second that CPU A has not reached. A's difference is then negative, which is
 * less than any affinity. */
#pragma once

#include "conn.h"
#include "forward.h"
#include "packet.h"
#include "work.h"

/* Odd numbers with well mixed bits (murmur3's 64-bit finalizer). */
#define BALANCE_MIX_1 0xff51afd7ed558ccdull
#define BALANCE_MIX_2 0xc4ceb9fe1a85ec53ull

/* Who is one client with affinity? An address; of the Internet's IPv6 addresses, a /64. */
static __always_inline void affinity_client(struct affinity_key *key, const union addr *source, __u32 forward, bool wan)
{
	key->client = *source;
	if (wan && !addr_is_v4(source))
		key->client.half[1] = 0;
	key->forward = forward;
	key->pad = 0;
}

static __always_inline void *affinity_table(enum affinity_kind kind)
{
	__u32 slot = kind;

	return bpf_map_lookup_elem(&affinities, &slot);
}

/* Not keyed with the secret of this machine: two routers with the same configuration choose the same server. */
static __always_inline __u32 balance_hash(const union addr *client, __be16 port)
{
	__u64 mixed = (client->half[0] ^ port) * BALANCE_MIX_1;

	mixed = (mixed ^ mixed >> 33 ^ client->half[1]) * BALANCE_MIX_2;
	mixed = (mixed ^ mixed >> 33) * BALANCE_MIX_1;
	return (__u32)(mixed >> 32);
}

/* Returns a server of a forward by its number. NULL: the forward has no such server. */
static __always_inline const struct server *balance_server(const struct forward *forward, __u32 number)
{
	__u32 slot = forward_slot(), index = forward->first_server + number;
	void *all = bpf_map_lookup_elem(&servers, &slot);
	const struct server *server = all ? bpf_map_lookup_elem(all, &index) : NULL;

	/* Behind the last server of the forward are those of another one, whose numbers begin at 0 again. */
	return server && server->number == number ? server : NULL;
}

/* Returns the server that the forward's lookup table has for this hash. */
static __always_inline const struct server *balance_by_hash(const struct forward *forward, __u32 hash)
{
	__u32 slot = forward_slot(), place = hash % forward->places, page = forward->first_page + place / LOOKUP_PAGE;
	void *all = bpf_map_lookup_elem(&lookups, &slot);
	const struct lookup_page *found = all ? bpf_map_lookup_elem(all, &page) : NULL;

	return found ? balance_server(forward, found->server[place % LOOKUP_PAGE]) : NULL;
}

/* Returns the server that is noted for the client, if the note is recent and the server still takes connections. */
static __always_inline const struct server *balance_noted(struct opening *open, const struct forward *forward, enum affinity_kind kind,
							  __u32 second)
{
	void *table = affinity_table(kind);
	struct affinity *last = table ? bpf_map_lookup_elem(table, &open->affinity_key) : NULL;
	const struct server *server;

	if (!last || (__s32)(second - last->second) > (__s32)forward->affinity)
		return NULL;
	server = balance_server(forward, last->server);
	if (!server || !server->takes || server->serial != last->serial)
		return NULL;
	last->second = second;
	return server;
}

/* Chooses the server of the connection whose opener's key is open.key. False: the tables are not there. wan: the client is on the
 * Internet. A stack frame of its own. */
static __noinline bool balance_choose(struct opening *open, const struct forward *forward, __u32 second, bool wan)
{
	const struct server *server = NULL;
	const union addr *client = &open->key.src;
	__be16 port = open->key.sport;

	open->new_client = false;
	if (forward->affinity) {
		affinity_client(&open->affinity_key, client, forward->epoch_ref.id, wan);
		client = &open->affinity_key.client;
		port = 0;
		server = balance_noted(open, forward, AFFINITY_KNOWN, second);
		if (!server)
			server = balance_noted(open, forward, AFFINITY_NEW, second);
		open->by_affinity = server;
		open->new_client = !server;
	}
	if (!server)
		server = balance_by_hash(forward, balance_hash(client, port));
	if (!server) {
		open->new_client = false;
		return false;
	}
	open->affinity.second = second;
	open->affinity.serial = server->serial;
	open->affinity.server = server->number;
	open->sent.dst = server->target;
	open->sent.dport = bpf_htons((__u16)(bpf_ntohs(open->key.dport) + server->port_shift));
	return true;
}

/* Notes the server of a new client, whose connection is in the table now. */
static __always_inline void balance_note(const struct opening *open)
{
	void *table = open->new_client ? affinity_table(AFFINITY_NEW) : NULL;

	if (table)
		bpf_map_update_elem(table, &open->affinity_key, &open->affinity, BPF_ANY);
}

/* Moves a client to the known ones: a connection with this key of its opener is established. A stack frame of its own. */
static __noinline void balance_know(const struct tuple *key, __u32 forward, bool wan)
{
	const struct settings *settings = conn_settings();
	struct affinity_key client;
	const struct affinity *noted, *known;
	void *fresh, *kept;

	if (!settings || !settings->affinity)
		return;
	fresh = affinity_table(AFFINITY_NEW);
	kept = affinity_table(AFFINITY_KNOWN);
	if (!fresh || !kept)
		return;
	affinity_client(&client, &key->src, forward, wan);
	noted = bpf_map_lookup_elem(fresh, &client);
	if (!noted)
		return;
	known = bpf_map_lookup_elem(kept, &client);
	if (!known || (__s32)(noted->second - known->second) > 0)
		bpf_map_update_elem(kept, &client, noted, BPF_ANY);
}
