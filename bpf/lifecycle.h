// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The life of a connection: places and budgets, admission, promotion, closing, eviction, removal, the sweep, the challenge.
 *
 * Invariants
 *  1. The opener's entry decides: only the winner of a compare-and-swap of its identity counts, and only the winner of the
 *     change to CONN_GONE deletes. So every count goes up once and down once for each connection.
 *  2. The answerer's entry is inserted before the opener's and deleted before it, by the same CPU. Its key belongs to
 *     the connection meanwhile, as BPF_NOEXIST lets nobody else insert it.
 *  3. A half-open connection takes its place right after it is inserted (race E). Every later place is taken before the state
 *     changes. The sweeper walks all places, so no connection is forgotten.
 *  4. A place is held while its serial is that of a live connection whose state has not gone past the kind. Nobody has to give
 *     a place back: who looks for one finds that it is free.
 *
 * Races
 *  A. Reopening against expiry. CPU A has a SYN for a closing connection, CPU B sweeps it. Both call life_remove. One
 *     wins the change to CONN_GONE and deletes; the other one's change fails, and it counts nothing. If A loses, the old
 *     keys may still be in the table when A inserts: BPF_NOEXIST fails, the SYN is dropped as REASON_RACED, and sent again.
 *  B. Deletion against reuse of memory. CPU A holds a pointer to an entry, CPU B deletes it, CPU C makes another connection's of
 *     the memory. A's changes of state and flags carry the serial and fail. What A adds to counters or writes to
 *     sequence numbers in the few ns after its last look at the identity is C's: its segments are then judged by the other
 *     side's entry as well (conn_within), and by the next one they are in order again.
 *  C. Promotion against eviction. CPU A promotes: takes an established place, then changes the state. CPU B evicts the
 *     half-open connection in between. One of the two changes of state fails. If A's fails, A takes its count back, and the
 *     place it took is free by invariant 4; where another CPU has promoted the connection, it holds two places until it ends.
 *  D. Two CPUs take one place. Both read that it is free; each writes under the place's lock, and only if the serial is still
 *     the one it read. The second looks for another place.
 *  E. A place taken before its connection can be found would look free to others. An opening inserts both entries first and takes
 *     the place then. If no place is to be had, the opening removes its connection.
 *  F. The sweeper against life_move. The sweeper reads a place whose connection moves on to another kind meanwhile. It finds
 *     the state past the kind and clears the place; the new place was taken before the state changed (invariant 3).
 *  G. A count may be seen below zero for a moment: the evicting CPU takes away before the opening CPU adds. Counts are signed,
 *     and each is the sum of ups and downs, whatever their order. */
#pragma once

#include "conn.h"
#include "keyed.h"
#include "verifier.h"

/* Among unproven sources a newer opening evicts a half-open TCP connection only after this time: the handshake of a client
 * 300 ms away fits in. */
enum { HALF_SURE_MS = 1000 };
/* How many places a search looks at, by kind; see place_tries. */
enum { TRIES_FIFO = 4, TRIES_SHARE = 8, TRIES_SAMPLE = 8, TRIES_TCP = 64 };
/* How often the search for a place is repeated, where another CPU was faster. */
enum { PLACE_ROUNDS = 2 };
/* Parts of a ring that one source, and one forward, may fill with half-open connections. */
enum { SOURCE_SHARE = 4, FORWARD_SHARE = 2 };
enum { SWEEP_VISITS = 256, SWEEP_PLACES = 4096 };
enum { SWEEP_BUSY_NS = MS_NS, SWEEP_FULL_NS = 10 * MS_NS, SWEEP_IDLE_NS = 100 * MS_NS };
enum { CLOCK_MONOTONIC_ID = 1, TIMER_EXISTS = 16 /* EBUSY */ };
enum { PROVEN_SECONDS = 60, CHALLENGE_SECONDS = 64 };

/* For tests: nanoseconds between two steps of the sweeper. 0: by how much there is to do. */
volatile const __u64 sweep_pause = 0;

/* The kind of place that a connection in this state holds. */
static __always_inline enum place_kind life_kind(__u64 identity, __u8 protocol)
{
	bool tcp = protocol == IPPROTO_TCP;

	switch (conn_state(identity)) {
	case CONN_HALF_OPEN:
		if (!tcp)
			return PLACE_HALF_OTHER;
		return identity & CONN_PROVEN ? PLACE_HALF_PROVEN : PLACE_HALF_TCP;
	case CONN_ESTABLISHED:
		return tcp ? PLACE_TCP : PLACE_OTHER;
	default:
		return PLACE_CLOSING;
	}
}

/* The last state in which a connection holds a place of this kind. */
static __always_inline enum conn_state place_last(enum place_kind kind)
{
	if (kind == PLACE_TCP || kind == PLACE_OTHER)
		return CONN_ESTABLISHED;
	return kind == PLACE_CLOSING ? CONN_ENDED : CONN_HALF_OPEN;
}

static __always_inline struct ring *ring_of(enum place_kind kind, bool v6)
{
	__u32 index = kind * 2 + v6;

	return bpf_map_lookup_elem(&rings, &index);
}

static __always_inline void ring_count(enum place_kind kind, bool v6, __s64 change)
{
	struct ring *ring = ring_of(kind, v6);

	if (ring)
		__sync_fetch_and_add(&ring->count, change);
}

/* The hash by which a client is counted: a WAN's by IPv4 address or IPv6 /64, a LAN's by address. */
static __always_inline __u64 source_hash(const union addr *client, bool wan)
{
	bool prefix = wan && !addr_is_v4(client);

	return keyed_hash((__u64)client->word[0] << 32 | client->word[1],
			  prefix ? 0 : (__u64)client->word[2] << 32 | client->word[3], 0, 0);
}

static __always_inline struct source *source_at(__u64 hash, __u32 row)
{
	__u32 slot = (__u32)(hash >> 32 * row) % SOURCES + SOURCES * row, number = slot / COUNTS_PAGE;
	struct source_page *page = bpf_map_lookup_elem(&sources, &number);

	return page ? &page->source[slot % COUNTS_PAGE] : NULL;
}

static __always_inline void source_add(__u64 hash, struct source change)
{
	for (__u32 row = 0; row < 2; row++) {
		struct source *source = source_at(hash, row);

		if (!source)
			continue;
		if (change.established)
			__sync_fetch_and_add(&source->established, change.established);
		if (change.established_other)
			__sync_fetch_and_add(&source->established_other, change.established_other);
		if (change.half_open)
			__sync_fetch_and_add(&source->half_open, change.half_open);
	}
}

static __always_inline __s32 source_least(__s32 one, __s32 other)
{
	/* Both values are read before: otherwise the compiler chooses between two pointers, and Linux 6.1 loses track of them. */
	one = (__s32)verifier_same((__u32)one);
	other = (__s32)verifier_same((__u32)other);
	return one < other ? one : other;
}

static __always_inline struct source source_get(__u64 hash)
{
	const struct source *one = source_at(hash, 0), *other = source_at(hash, 1);
	struct source least = {};

	if (!one || !other)
		return least;
	least.established = source_least(one->established, other->established);
	least.established_other = source_least(one->established_other, other->established_other);
	least.half_open = source_least(one->half_open, other->half_open);
	return least;
}

/* All clients behind one LAN interface together. The interface is the router's own choice, so no keyed hash is needed: its
 * number times 2^64 over the golden ratio. */
static __always_inline __u64 source_lan(__u32 lan)
{
	return lan * 0x9e3779b97f4a7c15;
}

static __always_inline __u32 source_lan_hash(__u32 ifindex)
{
	__u32 hash = ifindex * HASH_MULTIPLIER >> (32 - LAN_HASH_BITS);

	return hash ? hash : 1;
}

static __always_inline struct load *load_of(__u32 forward)
{
	__u32 slot = forward % LOADS, number = slot / COUNTS_PAGE;
	struct load_page *page = bpf_map_lookup_elem(&loads, &number);

	return page ? &page->load[slot % COUNTS_PAGE] : NULL;
}

static __always_inline void load_count(__u32 forward, enum place_kind kind, __s32 change)
{
	struct load *load = load_of(forward);

	if (!load)
		return;
	if (kind == PLACE_HALF_OTHER)
		__sync_fetch_and_add(&load->half_open_other, change);
	else if (kind == PLACE_HALF_TCP || kind == PLACE_HALF_PROVEN)
		__sync_fetch_and_add(&load->half_open, change);
	else if (kind == PLACE_OTHER)
		__sync_fetch_and_add(&load->other, change);
}

/* Counts a connection of this client in its state, or takes that back. Its place is counted apart, where it is taken. */
static __always_inline void life_count_client(__u64 client, enum place_kind kind, __u32 forward, __u64 identity, __s32 change)
{
	struct source changes = {};

	load_count(forward, kind, change);
	if (kind == PLACE_CLOSING)
		return;
	if (kind == PLACE_TCP)
		changes.established = change;
	else if (kind == PLACE_OTHER)
		changes.established_other = change;
	else
		changes.half_open = change;
	source_add(client, changes);
	changes.half_open = 0;
	if (conn_lan(identity) && conn_state(identity) == CONN_ESTABLISHED)
		source_add(source_lan(conn_lan(identity)), changes);
}

static __always_inline void life_count(const struct tuple *key, __u32 forward, __u64 identity, __s32 change)
{
	life_count_client(source_hash(&key->src, identity & CONN_FROM_WAN), life_kind(identity, key->protocol), forward, identity,
			  change);
}

/* Counts the end of a connection that was established. */
static __always_inline void life_count_closed(__u32 forward, __u64 identity)
{
	struct forward_stats *stats = conn_stats(forward);
	__u32 path = conn_path(identity);

	if (conn_state(identity) != CONN_ESTABLISHED && conn_state(identity) != CONN_CLOSING)
		return;
	count_event(EVENT_CLOSED);
	if (stats && path < PATHS)
		stats->closed[path]++;
}

/* The working memory of a packet, or of the sweeper. Linux 6.1 does not accept a global function's argument as the key of a
 * map: so global functions look it up. */
static __always_inline struct scratch *scratch_get(bool sweeping)
{
	__u32 zero = 0;
	struct sweeper *sweeper;
	struct work *work;

	if (!sweeping) {
		work = work_get();
		return work ? &work->scratch : NULL;
	}
	sweeper = bpf_map_lookup_elem(&sweepers, &zero);
	return sweeper ? &sweeper->scratch : NULL;
}

/* Takes a connection out of the table, by its opener's entry. False: it is in another state by now, or another CPU is at
 * it. */
__noinline bool life_remove(const struct tuple *key, struct conn *opener, const struct entry *entry,
			   enum conn_event event, bool sweeping)
{
	struct scratch *scratch = scratch_get(sweeping);
	__u64 identity;

	if (!key || !opener || !entry || !scratch)
		return false;
	identity = entry->identity;
	if (!conn_change(opener, identity, CONN_GONE, 0, 0))
		return false;
	ring_count(life_kind(identity, key->protocol), tuple_is_v6(key), -1);
	life_count(key, conn_forward(opener), identity, -1);
	if (conn_half(identity) || event == EVENT_DISPLACED)
		count_event(event);
	life_count_closed(conn_forward(opener), identity);
	tuple_reverse(&entry->to, &scratch->removed_answerer);
	scratch->removed_opener = *key;
	conn_erase(&scratch->removed_answerer);
	conn_erase(&scratch->removed_opener);
	return true;
}

/* By family. */
static __always_inline __u32 place_read4(__u32 index, struct tuple *key)
{
	struct place4 *place = bpf_map_lookup_elem(&places4, &index);
	struct tuple4 held;
	__u32 serial;

	if (!place || !*(volatile __u32 *)&place->serial)
		return 0;
	bpf_spin_lock(&place->lock);
	serial = place->serial;
	held = place->key;
	bpf_spin_unlock(&place->lock);
	tuple_from_v4(&held, key);
	return serial;
}

static __always_inline __u32 place_read6(__u32 index, struct tuple *key)
{
	struct place6 *place = bpf_map_lookup_elem(&places6, &index);
	__u32 serial;

	if (!place || !*(volatile __u32 *)&place->serial)
		return 0;
	bpf_spin_lock(&place->lock);
	serial = place->serial;
	*key = place->key;
	bpf_spin_unlock(&place->lock);
	return serial;
}

/* Copies a place of either family. Its serial; 0: it is free. */
__noinline __u32 place_read(__u32 index, bool v6, struct tuple *key)
{
	if (!key)
		return 0;
	return v6 ? place_read6(index, key) : place_read4(index, key);
}

static __always_inline bool place_write4(__u32 index, __u32 expected, __u32 serial, const struct tuple *key)
{
	struct place4 *place = bpf_map_lookup_elem(&places4, &index);
	struct tuple4 held;
	bool mine;

	if (!place)
		return false;
	tuple_to_v4(key, &held);
	bpf_spin_lock(&place->lock);
	mine = place->serial == expected;
	if (mine) {
		place->serial = serial;
		place->key = held;
	}
	bpf_spin_unlock(&place->lock);
	return mine;
}

static __always_inline bool place_write6(__u32 index, __u32 expected, __u32 serial, const struct tuple *key)
{
	struct place6 *place = bpf_map_lookup_elem(&places6, &index);
	bool mine;

	if (!place)
		return false;
	bpf_spin_lock(&place->lock);
	mine = place->serial == expected;
	if (mine) {
		place->serial = serial;
		place->key = *key;
	}
	bpf_spin_unlock(&place->lock);
	return mine;
}

/* False: another connection has got the place since its serial was read. */
__noinline bool place_write(__u32 index, __u32 expected, __u32 serial, const struct tuple *key)
{
	if (!key)
		return false;
	return tuple_is_v6(key) ? place_write6(index, expected, serial, key) : place_write4(index, expected, serial, key);
}

/* The connection that holds a place; NULL: none does any more. */
static __always_inline struct conn *place_holder(const struct tuple *key, __u32 serial, enum place_kind kind,
						 struct entry *entry)
{
	struct conn *conn = conn_find(key, entry);

	if (!conn || conn_serial(entry->identity) != serial || !(entry->identity & CONN_OPENER) ||
	    conn_state(entry->identity) > place_last(kind))
		return NULL;
	return conn;
}

struct place_search {
	struct scratch *scratch;
	const struct tuple *key;	/* of the connection that wants a place */
};

/* The slot to look at next. The ring of established TCP connections has more places than there may be connections, so a random
 * slot is often free. All other rings go round. */
static __always_inline __u32 place_next(struct ring *ring, enum place_kind kind)
{
	if (!ring->size)
		return 0;
	if (kind == PLACE_TCP)
		return bpf_get_prandom_u32() % ring->size;
	return (__u32)(__sync_fetch_and_add(&ring->next, 1) % ring->size);
}

/* May this holder be made to give way to the newcomer? */
static __always_inline bool place_yields(const struct place_search *search, const struct conn *holder)
{
	const struct place_want *want = &search->scratch->want;
	__u64 identity = search->scratch->holder.entry.identity;

	switch (want->kind) {
	case PLACE_HALF_TCP:
		return conn_idle(holder->seen, search->scratch->now, (__u64)HALF_SURE_MS * MS_NS) || conn_revoked(holder, identity);
	case PLACE_HALF_PROVEN:
		return true;
	case PLACE_HALF_OTHER:
		return (!want->forward_over_share || conn_forward(holder) == want->forward) &&
		       (!want->client_over_share || addr_equal(&search->scratch->holder.key.src, &search->key->src));
	case PLACE_OTHER:
		return conn_state(identity) == CONN_ESTABLISHED;
	case PLACE_CLOSING:
		return conn_state(identity) >= CONN_CLOSING;
	default:
		return false;
	}
}

/* Is this holder spared? A newcomer from a WAN displaces a LAN client only if none of the places looked at has a WAN client that may
 * give way. */
static __always_inline bool place_spared(const struct scratch *scratch)
{
	return scratch->want.kind == PLACE_HALF_OTHER && scratch->want.from_wan && !(scratch->holder.entry.identity & CONN_FROM_WAN);
}

/* Of several holders the one that is worth least gives way. Established ones: those without evidence (nat_evidence) first, then
 * those whose forward holds most, then those with least evidence. All others: the oldest that is not spared. */
static __always_inline __u64 place_worth(const struct scratch *scratch, const struct conn *holder)
{
	__s32 age = (__s32)(scratch->now - holder->seen);
	const struct load *load;
	__u32 others;

	if (scratch->want.kind != PLACE_OTHER)
		return (__u64)place_spared(scratch) << 32 | ~(__u32)(age > 0 ? age : 0);
	load = load_of(conn_forward(holder));
	others = load && load->other > 0 ? load->other : 0;
	return (__u64)!!holder->end << 63 | (__u64)(~others & 0x7fffffff) << 32 | holder->end;
}

/* One place; 1 ends the search: it was free, or its holder is the one to give way. */
static long place_try(__u32 step, struct place_search *search)
{
	struct scratch *scratch = search->scratch;
	struct place_want *want = &scratch->want;
	struct place_victim *victim = &scratch->victim;
	struct ring *ring = ring_of(want->kind, tuple_is_v6(search->key));
	struct conn *holder;
	__u32 index, serial;
	__u64 worth;
	bool own;

	if (!ring)
		return 1;
	if (step || !want->chosen)
		want->slot = place_next(ring, want->kind);
	index = ring->base + want->slot;
	serial = place_read(index, tuple_is_v6(search->key), &scratch->holder.key);
	holder = serial ? place_holder(&scratch->holder.key, serial, want->kind, &scratch->holder.entry) : NULL;
	if (!holder) {
		want->taken = place_write(index, serial, want->serial, search->key);
		return want->taken;
	}
	if (!place_yields(search, holder))
		return 0;
	worth = place_worth(scratch, holder);
	if (!victim->serial || worth < victim->worth) {
		victim->serial = serial;
		victim->index = index;
		victim->worth = worth;
		victim->direction.key = scratch->holder.key;
	}
	/* A forward or a client beyond its share gives up the first of its own places that is found. A ring is searched in the order
	 * in which its places were taken, so this is the oldest. All others may still find a free place. */
	own = (want->forward_over_share || want->client_over_share) && !place_spared(scratch);
	/* A bool from memory is no known 0 or 1 to Linux 6.1. */
	return verifier_same(own) ? 1 : 0;
}

static __always_inline __u32 place_tries(enum place_kind kind, bool share)
{
	if (kind == PLACE_TCP)
		return TRIES_TCP;
	if (kind == PLACE_OTHER)
		return TRIES_SAMPLE;
	return share ? TRIES_SHARE : TRIES_FIFO;
}

/* Notes when a half-open UDP connection was last evicted: open_evicted asks. */
static __always_inline void ring_note_evicted(const struct tuple *victim, __u32 now)
{
	struct ring *ring = ring_of(PLACE_HALF_OTHER, tuple_is_v6(victim));

	if (ring && victim->protocol == IPPROTO_UDP && ring->evicted != now)
		ring->evicted = now;
}

/* All places that were looked at are held: the least worthy of their holders gives way. */
static __always_inline bool place_displace(const struct tuple *key, struct scratch *scratch, bool sweeping)
{
	struct place_want *want = &scratch->want;
	struct place_victim *victim = &scratch->victim;
	struct direction *giving = &victim->direction;
	struct conn *holder = place_holder(&giving->key, victim->serial, want->kind, &giving->entry);
	enum conn_event event = want->kind == PLACE_OTHER ? EVENT_DISPLACED : EVENT_EVICTED;

	if (holder && !life_remove(&giving->key, holder, &giving->entry, event, sweeping))
		return false;
	if (holder && want->kind == PLACE_HALF_OTHER)
		ring_note_evicted(&giving->key, scratch->now);
	return place_write(victim->index, victim->serial, want->serial, key);
}

/* Takes the place that scratch->want describes: a free one of some, else that of the holder who is worth least. False: there
 * is none to be had. */
static __always_inline bool place_take(const struct tuple *key, struct scratch *scratch, bool sweeping)
{
	struct place_search search = { .scratch = scratch, .key = key };
	struct place_want *want = &scratch->want;

	for (int i = 0; i < PLACE_ROUNDS && !want->taken; i++) {
		scratch->victim.serial = 0;
		bpf_loop(place_tries(want->kind, want->forward_over_share || want->client_over_share), place_try, &search, 0);
		want->chosen = false;
		if (!want->taken && scratch->victim.serial)
			want->taken = place_displace(key, scratch, sweeping);
	}
	return want->taken;
}

static __always_inline void place_want_begin(struct scratch *scratch, __u64 identity, enum place_kind kind)
{
	__builtin_memset(&scratch->want, 0, sizeof(scratch->want));
	scratch->want.serial = conn_serial(identity);
	scratch->want.kind = kind;
	scratch->want.from_wan = identity & CONN_FROM_WAN;
}

/* Counts that a connection has gone on from this state. */
__noinline int life_count_move(const struct tuple *key, __u32 forward, __u64 identity, enum conn_state to)
{
	if (!key)
		return 0;
	ring_count(life_kind(identity, key->protocol), tuple_is_v6(key), -1);
	ring_count(PLACE_CLOSING, tuple_is_v6(key), 1);
	life_count(key, forward, identity, -1);
	if (to == CONN_ENDED)
		life_count_closed(forward, identity);
	return 0;
}

/* From established to closing or ended. False: another CPU has done so, or no place was to be had: then the sweeper
 * tries again. */
__noinline bool life_move(const struct tuple *key, struct conn *opener, const struct entry *entry,
			  enum conn_state to, bool sweeping)
{
	struct scratch *scratch = scratch_get(sweeping);
	struct conn *answerer;
	__u64 identity;
	__u32 forward;

	if (!key || !opener || !entry || !scratch)
		return false;
	identity = entry->identity;
	forward = conn_forward(opener);
	place_want_begin(scratch, identity, PLACE_CLOSING);
	if (conn_state(identity) >= CONN_CLOSING || !place_take(key, scratch, sweeping))
		return false;
	if (!conn_change(opener, identity, to, 0, 0))
		return false;
	life_count_move(key, forward, identity, to);
	answerer = conn_other(entry, &scratch->other);
	if (answerer)
		conn_change(answerer, scratch->other.entry.identity, to, 0, 0);
	return true;
}

static __always_inline bool ring_admit(enum place_kind kind, bool v6)
{
	struct ring *ring = ring_of(kind, v6);

	if (!ring)
		return false;
	if (__sync_fetch_and_add(&ring->count, 1) < ring->limit || kind != PLACE_TCP)
		return true;
	__sync_fetch_and_add(&ring->count, -1);
	return false;
}

static __always_inline void life_count_established(__u32 forward, __u64 identity)
{
	struct forward_stats *stats = conn_stats(forward);
	__u32 path = conn_path(identity);

	count_event(EVENT_ESTABLISHED);
	if (stats && path < PATHS)
		stats->established[path]++;
}

/* The handshake is complete. Two CPUs may find that at once: one makes the change, the other finds it made. A stack frame
 * of its own. */
__noinline enum reason life_promote(const struct tuple *key, struct conn *opener, const struct entry *entry)
{
	struct scratch *scratch = scratch_get(false);
	__u64 identity, fresh;
	enum place_kind kind;
	__u32 forward;
	bool v6;

	if (!key || !opener || !entry || !scratch)
		return REASON_TABLE_FULL;
	identity = entry->identity;
	fresh = (identity & ~(__u64)CONN_STATE) | CONN_ESTABLISHED;
	kind = life_kind(fresh, key->protocol);
	v6 = tuple_is_v6(key);
	forward = conn_forward(opener);
	if (!conn_half(identity))
		return REASON_NONE;
	if (!ring_admit(kind, v6))
		return REASON_TABLE_FULL;
	place_want_begin(scratch, identity, kind);
	if (!place_take(key, scratch, false)) {
		ring_count(kind, v6, -1);
		return REASON_TABLE_FULL;
	}
	if (!conn_change(opener, identity, CONN_ESTABLISHED, 0, 0)) {
		ring_count(kind, v6, -1);
		return conn_serial(conn_identity(opener)) == conn_serial(identity) &&
		       conn_state(conn_identity(opener)) != CONN_GONE ? REASON_NONE : REASON_ENDED;
	}
	ring_count(life_kind(identity, key->protocol), v6, -1);
	life_count(key, forward, identity, -1);
	life_count(key, forward, fresh, 1);
	life_count_established(forward, identity);
	return REASON_NONE;
}

/* Counts the connection that is being opened, in work->open, or takes that back. Before its opener's entry can be found: from
 * then on another CPU may remove it, and count that. */
__noinline int life_count_opening(__s32 change)
{
	struct work *work = work_get();
	const struct opening *open;
	enum place_kind kind;

	if (!work)
		return 0;
	open = &work->open;
	kind = life_kind(open->conn.identity, open->key.protocol);
	ring_count(kind, tuple_is_v6(&open->key), change);
	life_count_client(open->client, kind, conn_forward(&open->conn), open->conn.identity, change);
	return 0;
}

/* The connection in work->open is in the table, and takes its place. False: there is none, and it is gone again. */
__noinline bool life_begin(void)
{
	struct work *work = work_get();
	const struct tuple *key;
	struct scratch *scratch;
	const struct load *load;
	enum place_kind kind;
	struct conn *opener;
	struct ring *ring;
	__u64 identity;

	if (!work)
		return false;
	key = &work->open.key;
	identity = work->open.conn.identity;
	scratch = &work->scratch;
	kind = life_kind(identity, key->protocol);
	ring = ring_of(kind, tuple_is_v6(key));
	load = load_of(conn_forward(&work->open.conn));
	place_want_begin(scratch, identity, kind);
	scratch->want.chosen = work->open.chosen;
	scratch->want.slot = work->open.slot;
	scratch->want.forward = conn_forward(&work->open.conn);
	scratch->want.forward_over_share = kind == PLACE_HALF_OTHER && ring && load &&
				load->half_open_other > (__s32)(ring->size / FORWARD_SHARE);
	scratch->want.client_over_share = kind == PLACE_HALF_OTHER && work->open.client_over_share;
	if (place_take(key, scratch, false))
		return true;
	/* Another CPU may have promoted it meanwhile: then it has its place. */
	opener = conn_find(key, &work->open.entry);
	if (!opener || conn_serial(work->open.entry.identity) != conn_serial(identity))
		return false;
	if (!conn_half(work->open.entry.identity))
		return true;
	life_remove(key, opener, &work->open.entry, EVENT_EVICTED, false);
	return false;
}

/* Would a half-open TCP connection of an unknown source displace one that has hardly had time for its handshake? Chooses
 * the place to begin with. */
__noinline bool life_under_pressure(bool v6)
{
	struct ring *ring = ring_of(PLACE_HALF_TCP, v6);
	struct work *work = work_get();
	struct place_search search = {};
	struct scratch *scratch;
	struct conn *holder;
	__u32 serial;

	if (!ring || !work)
		return false;
	scratch = &work->scratch;
	search.scratch = scratch;
	search.key = &scratch->holder.key;
	place_want_begin(scratch, 0, PLACE_HALF_TCP);
	work->open.slot = place_next(ring, PLACE_HALF_TCP);
	serial = place_read(ring->base + work->open.slot, v6, &scratch->holder.key);
	holder = serial ? place_holder(&scratch->holder.key, serial, PLACE_HALF_TCP, &scratch->holder.entry) : NULL;
	return holder && !place_yields(&search, holder);
}

/* Has a client with so many half-open connections more than its share, while places are scarce? */
static __always_inline bool life_over_share(__s32 half_open, enum place_kind kind, bool v6)
{
	const struct ring *ring = ring_of(kind, v6);

	return ring && half_open > (__s32)(ring->size / SOURCE_SHARE) &&
	       ring->count > (__s64)(ring->size - ring->size / SOURCE_SHARE);
}

static __always_inline bool source_full(struct source source, bool tcp, __u32 limit)
{
	__s32 count = tcp ? source.established : source.established_other;

	return limit && count >= (__s32)limit;
}

/* Has this client, or its LAN, reached the limit of established connections? TCP is counted apart from all other protocols:
 * forged datagrams must not keep a client from connecting. */
static __always_inline bool life_too_many(struct source source, __u32 lan, bool tcp)
{
	const struct settings *settings = conn_settings();

	if (!settings || source_full(source, tcp, settings->source_limit))
		return true;
	return lan && settings->interface_limit && source_full(source_get(source_lan(lan)), tcp, settings->interface_limit);
}

/* The challenge: a SYN/ACK whose acknowledgement is not the one that the client expects. A client that has really sent the
 * SYN answers with a RST that carries this number (RFC 9293 3.10.7.3), and sends its SYN again. The number lies in
 * [ISN - 65535, ISN], and its lower half is a hash of the tuple: so the answer can be told without a memory. */
static __always_inline __u16 challenge_hash(const struct tuple *syn, __u32 period)
{
	return (__u16)keyed_hash((__u64)syn->src.word[0] << 32 | syn->src.word[1],
				 (__u64)syn->src.word[2] << 32 | syn->src.word[3],
				 (__u64)syn->dst.word[0] << 32 | syn->dst.word[3],
				 (__u64)syn->sport << 48 | (__u64)syn->dport << 32 | period);
}

static __always_inline __u32 challenge_number(const struct packet *syn)
{
	__u32 number = (syn->seq & ~0xffffu) | challenge_hash(&syn->tuple, syn->second / CHALLENGE_SECONDS);

	return number > syn->seq ? number - 0x10000 : number;
}

__noinline bool challenge_answered(const struct packet *rst)
{
	if (!rst)
		return false;
	__u32 period = rst->second / CHALLENGE_SECONDS;

	return (__u16)rst->seq == challenge_hash(&rst->tuple, period) ||
	       (__u16)rst->seq == challenge_hash(&rst->tuple, period - 1);
}

static __always_inline __u32 *proven_at(__u64 hash)
{
	__u32 slot = (__u32)hash % PROVEN, number = slot / COUNTS_PAGE;
	struct proven_page *page = bpf_map_lookup_elem(&proven, &number);

	return page ? &page->proven[slot % COUNTS_PAGE] : NULL;
}

/* Notes that a source has answered a challenge. 16 bits are a hint, not a proof: they give priority among half-open places,
 * nothing more. */
static __always_inline void proven_note(__u64 hash, __u32 second)
{
	__u32 *value = proven_at(hash);

	if (value)
		*value = (__u32)(hash >> 32) << 16 | (second & 0xffff);
}

static __always_inline bool proven_is(__u64 hash, __u32 second)
{
	const __u32 *value = proven_at(hash);

	return value && *value && *value >> 16 == (__u16)(hash >> 32) && (__u16)(second - *value) < PROVEN_SECONDS;
}

/* How long a connection past its handshake may be idle, in ns. An ended one stays for a while: the server's late packets are then
 * recognised and dropped. Where it is not TCP, no other client gets its tuple meanwhile. */
static __always_inline __u64 life_idle_limit(const struct settings *time, enum conn_state state, __u8 protocol)
{
	if (protocol != IPPROTO_TCP)
		return conn_idle_time(time, protocol) + (state == CONN_ENDED ? time->port_hold : 0);
	return state == CONN_ESTABLISHED ? time->tcp_established : time->tcp_closing;
}

/* What counts is the last packet of either side; but no stranger can keep a connection alive that its server has left
 * (RFC 4787 REQ-6). TCP has sequence numbers for that. */
static __always_inline __u32 life_last_seen(const struct conn *opener, const struct conn *answerer, __u64 identity,
				       __u8 protocol)
{
	if (conn_path(identity) == PATH_WAN && protocol != IPPROTO_TCP)
		return answerer->seen;
	return (__s32)(answerer->seen - opener->seen) > 0 ? answerer->seen : opener->seen;
}

/* Is the tuple held for a while, so that no other client gets it (RFC 6888 REQ-8)? Then the connection ends, but its entries
 * stay. */
static __always_inline bool life_lingers(__u64 identity, __u8 protocol)
{
	return conn_state(identity) == CONN_ESTABLISHED && conn_path(identity) == PATH_HAIRPIN && protocol != IPPROTO_TCP;
}

/* The sweeper looks at a connection. True: it has left this place. */
__noinline bool life_visit(const struct tuple *key, struct conn *opener, const struct entry *entry, __u32 now)
{
	const struct settings *time = conn_settings();
	struct scratch *scratch = scratch_get(true);
	struct conn *answerer;
	enum conn_state state;
	bool over;

	if (!key || !opener || !entry || !scratch || !time)
		return false;
	state = conn_state(entry->identity);
	over = conn_revoked(opener, entry->identity);
	if (state == CONN_HALF_OPEN)
		return (over || conn_expired(opener, key->protocol, now)) &&
		       life_remove(key, opener, entry, EVENT_ABANDONED, true);
	if (over && state == CONN_ESTABLISHED)
		return life_move(key, opener, entry, CONN_ENDED, true);
	answerer = conn_other(entry, &scratch->other);
	/* The connection has closed, but there was no place for it, or two CPUs each saw half of the close. */
	if (answerer && state == CONN_ESTABLISHED && key->protocol == IPPROTO_TCP &&
	    conn_closed(opener, entry->identity, answerer, scratch->other.entry.identity))
		return life_move(key, opener, entry, CONN_CLOSING, true);
	if (answerer && !conn_idle(life_last_seen(opener, answerer, entry->identity, key->protocol), now,
				   life_idle_limit(time, over ? CONN_ENDED : state, key->protocol)))
		return false;
	if (answerer && life_lingers(entry->identity, key->protocol))
		return life_move(key, opener, entry, CONN_ENDED, true);
	return life_remove(key, opener, entry, EVENT_ABANDONED, true);
}

struct sweep {
	struct sweeper *sweeper;
};

/* To the next ring. 1: all have been seen. */
static __always_inline long sweep_next_ring(struct sweeper *sweeper)
{
	sweeper->place = 0;
	sweeper->ring++;
	if (sweeper->ring < PLACES * 2)
		return 0;
	sweeper->ring = 0;
	return 1;
}

/* One place; 1 ends the step. */
static long sweep_place(__u32 step, struct sweep *sweep)
{
	struct sweeper *sweeper = sweep->sweeper;
	__u32 at = sweeper->ring, index, serial;
	struct ring *ring = bpf_map_lookup_elem(&rings, &at);
	struct conn *opener;

	(void)step;
	if (!ring || sweeper->place >= ring->size)
		return sweep_next_ring(sweeper);
	index = ring->base + sweeper->place++;
	serial = place_read(index, at & 1, &sweeper->visited.key);
	if (!serial)
		return 0;
	opener = place_holder(&sweeper->visited.key, serial, (enum place_kind)(at / 2), &sweeper->visited.entry);
	if (!opener)
		place_write(index, serial, 0, &sweeper->visited.key);
	else
		sweeper->left += life_visit(&sweeper->visited.key, opener, &sweeper->visited.entry, sweeper->scratch.now);
	sweeper->visits++;
	return sweeper->visits >= SWEEP_VISITS;
}

static __always_inline __u64 sweep_delay(const struct sweeper *sweeper)
{
	if (sweep_pause)
		return sweep_pause;
	if (sweeper->left)
		return SWEEP_BUSY_NS;
	return sweeper->visits >= SWEEP_VISITS ? SWEEP_FULL_NS : SWEEP_IDLE_NS;
}

/* Runs many times a second, with or without the daemon, and sees few places each time. */
static int sweep_run(void *map, __u32 *key, struct sweeper *sweeper)
{
	/* Not conn_now(): a syscall program, which starts the sweeping, may not read the coarse clock. */
	struct sweep sweep = { .sweeper = sweeper };

	(void)map;
	(void)key;
	sweeper->scratch.now = (__u32)(bpf_ktime_get_ns() / MS_NS);
	sweeper->visits = sweeper->left = 0;
	bpf_loop(SWEEP_PLACES, sweep_place, &sweep, 0);
	bpf_timer_start(&sweeper->timer, sweep_delay(sweeper), 0);
	return 0;
}

/* Starts the sweeping, or hands it to this program. */
static __always_inline long sweep_start(void)
{
	__u32 zero = 0;
	struct sweeper *sweeper = bpf_map_lookup_elem(&sweepers, &zero);
	long err;

	if (!sweeper)
		return -1;
	err = bpf_timer_init(&sweeper->timer, &sweepers, CLOCK_MONOTONIC_ID);
	if (err && err != -TIMER_EXISTS)
		return err;
	err = bpf_timer_set_callback(&sweeper->timer, sweep_run);
	return err ? err : bpf_timer_start(&sweeper->timer, SWEEP_BUSY_NS, 0);
}
