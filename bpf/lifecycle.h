// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The life of a connection: admission, promotion, closing, eviction, removal, the sweep, the challenge.
 *
 * A place is a slot of a ring (struct ring). Each connection holds a place of the kind of its state. The number of
 * places limits the number of connections.
 *
 * Invariants
 *  1. The opener's entry decides. Only the CPU that wins a compare-and-swap of its identity changes counts. Only the
 *     CPU that wins the change to CONN_GONE deletes the entries. So each connection raises a count once and lowers the
 *     count once.
 *  2. One CPU inserts the answerer's entry, then the opener's entry. One CPU deletes the answerer's entry, then the
 *     opener's entry. The answerer's key belongs to the connection all this time: table_claim keeps others from
 *     inserting this key.
 *  3. A half-open connection takes its place right after its entries are inserted (race E). Every later place is taken
 *     before the state changes. The sweeper visits all places, so it finds every connection.
 *  4. A place is held if its serial belongs to a live connection, and the state of this connection is not past the kind
 *     of the place. Otherwise the place is free. So nobody has to give a place back: the search for a place finds that the
 *     place is free. The sweeper clears the words of free places, because the look at a word of 0 is quicker.
 *
 * Races
 *  A. A new SYN against expiry. CPU A has a SYN for a closing connection. CPU B sweeps this connection. Both call
 *     life_remove. The winner of the change to CONN_GONE deletes the entries. The loser's change fails, and the loser
 *     counts nothing. If A loses, the old keys may still be in the table when A inserts. Then the insertion
 *     fails, A drops the SYN with REASON_RACED, and the client sends the SYN again.
 *  B. Deletion against reuse of memory. CPU A has a pointer to an entry. CPU B deletes the entry. CPU C inserts another
 *     connection, whose entry gets this memory. A's changes of state and flags compare the serial, so they fail. But A
 *     may still write sequence numbers and counters, for a few ns after it last read the identity. These writes hit C's
 *     connection. The segments of C's connection are then checked by conn_within, which also reads the other side's
 *     entry, until the numbers are right.
 *  C. Promotion against eviction. CPU A takes an established place for a half-open connection. CPU B evicts the
 *     connection. Then A changes the state. One of the two changes of state fails. If A's change fails, A lowers its
 *     count again, and its place is free by invariant 4. If another CPU has promoted the connection, the connection
 *     holds two places until its end.
 *  D. Two CPUs take one place. Both read that the place is free. Each CPU changes the place by a compare-and-swap from what
 *     it has read. The second CPU fails, and searches again.
 *  E. Place before entries. A place whose connection is not in the table yet looks free to other CPUs. So an opening
 *     inserts both entries first, and then takes its place. If it finds no place, it removes its entries.
 *  F. The sweeper against life_move. The sweeper reads a place, and then the connection moves to a place of another
 *     kind. The sweeper finds that the state is past the kind, and clears the old place. The connection is safe: it
 *     took its new place before its state changed (invariant 3).
 *  G. A count below zero. The CPU that evicts a connection may lower a count before the CPU that opens the connection
 *     raises it. So counts are signed. The sum is right in any order. */
#pragma once

#include "conn.h"
#include "keyed.h"
#include "verifier.h"

/* In ms: a half-open TCP connection of an unproven client may be evicted this long after its opener's last packet. The
 * handshake of a client with a round trip of 300 ms takes less. */
enum { HALF_SURE_MS = 1000 };
/* How many places a search examines (place_tries). */
enum { TRIES_FIFO = 4, TRIES_SHARE = 8, TRIES_SAMPLE = 8, TRIES_ROOM = 64 };
/* How often the search for a place runs. The second search is for the case that another CPU was faster. */
enum { PLACE_ROUNDS = 2 };
/* One client may fill 1/SOURCE_SHARE of a ring with half-open connections, one forward 1/FORWARD_SHARE. */
enum { SOURCE_SHARE = 4, FORWARD_SHARE = 2 };
/* A step of the sweeper ends after so many connections, or after so many places. */
enum { SWEEP_VISITS = 256, SWEEP_PLACES = 4096 };
enum { SWEEP_BUSY_NS = MS_NS, SWEEP_FULL_NS = 10 * MS_NS, SWEEP_IDLE_NS = 100 * MS_NS };
enum { CLOCK_MONOTONIC_ID = 1, TIMER_EXISTS = 16 /* EBUSY */ };
enum { PROVEN_SECONDS = 60, CHALLENGE_SECONDS = 64 };

/* For tests: nanoseconds between two steps of the sweeper. 0: sweep_delay chooses. */
volatile const __u64 sweep_pause = 0;

/* Returns the kind of place that a connection in this state holds. */
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

/* Returns the last state in which a connection holds a place of this kind. */
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

/* Returns the hash by which a client is counted: an IPv6 client on a WAN by its /64, all other clients by address. */
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
	/* Both values are in registers here. Otherwise the compiler selects one of two pointers, and the verifier of
	 * Linux 6.1 does not know where the result points. */
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

/* Returns the hash by which all clients behind one LAN interface are counted. No sender can choose the interface, so the
 * hash needs no key: the factor is 2^64 divided by the golden ratio. */
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

/* Counts a connection for its forward, its client and its LAN. change is 1 or -1. ring_count counts its place. */
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

/* Counts the end of a connection, if it was established. */
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

/* Returns the working memory of the packet or of the sweeper. Global functions call this instead of taking the memory as
 * an argument: Linux 6.1 does not accept memory from an argument as the key of a map. */
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

/* Does nothing. Each change of a connection's state after its opening calls this function once, on the CPU that has won the change.
 * `hairpin watch conn` and the log of connections attach to it (trace.c). The arguments are of the opener's direction; entry
 * has the identity before the change, and both entries are still in the table. event: why a connection is removed;
 * otherwise EVENT_ESTABLISHED or EVENT_CLOSED. The assembler statement keeps the call and its arguments. */
__noinline int life_changed(const struct tuple *key, const struct conn *opener, const struct entry *entry, enum conn_state to,
			    enum conn_event event)
{
	asm volatile("" : : "r"(key), "r"(opener), "r"(entry), "r"(to), "r"(event));
	return 0;
}

/* Removes a connection. key, opener and entry are of the opener's direction. False: another CPU has changed its state,
 * and nothing was removed. */
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
	life_changed(key, opener, entry, CONN_GONE, event);
	tuple_reverse(&entry->to, &scratch->removed_answerer);
	table_erase(&scratch->removed_answerer, conn_serial(identity));
	table_erase(key, conn_serial(identity));
	return true;
}

static __always_inline __u64 place_holds(__u32 serial, __u32 number)
{
	return (__u64)serial << 32 | number;
}

/* Reads a place (struct place). 0: the place is free. */
static __always_inline __u64 place_read(__u32 index)
{
	const struct place *place = bpf_map_lookup_elem(&places, &index);

	return place ? *(const volatile __u64 *)&place->holder : 0;
}

/* Writes a place if it still holds the expected connection. False: another CPU has written the place since. */
static __always_inline bool place_write(__u32 index, __u64 expected, __u64 holder)
{
	struct place *place = bpf_map_lookup_elem(&places, &index);

	return place && __sync_val_compare_and_swap(&place->holder, expected, holder) == expected;
}

/* place_holder without the pointer, which a global function cannot return. */
__noinline bool place_load(__u64 holder, bool v6, enum place_kind kind, struct direction *direction)
{
	struct conn *conn;

	if (!holder || !direction)
		return false;
	conn = v6 ? conn_at(true, (__u32)holder, direction) : conn_at(false, (__u32)holder, direction);
	return conn && conn_serial(direction->entry.identity) == (__u32)(holder >> 32) &&
	       direction->entry.identity & CONN_OPENER && conn_state(direction->entry.identity) <= place_last(kind);
}

/* Finds the connection that holds a place: its opener's direction. NULL: the place is free (invariant 4). */
static __always_inline struct conn *place_holder(__u64 holder, bool v6, enum place_kind kind, struct direction *direction)
{
	if (!place_load(holder, v6, kind, direction))
		return NULL;
	return v6 ? table_conn(true, (__u32)holder) : table_conn(false, (__u32)holder);
}

struct place_search {
	struct scratch *scratch;
	const struct tuple *key;	/* opener's key of the connection that wants a place */
};

/* Returns the slot to examine next. The ring of established TCP has more places than connections are allowed, so a random
 * slot is often free. In all other rings the slots are examined in order. */
static __always_inline __u32 place_next(struct ring *ring, enum place_kind kind)
{
	if (!ring->size)
		return 0;
	if (kind == PLACE_TCP)
		return bpf_get_prandom_u32() % ring->size;
	return (__u32)(__sync_fetch_and_add(&ring->next, 1) % ring->size);
}

/* May the new connection evict this holder? */
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

/* Is this holder spared? A new connection from a WAN evicts a LAN client only if no WAN client in the examined places may
 * be evicted. */
static __always_inline bool place_spared(const struct scratch *scratch)
{
	return scratch->want.kind == PLACE_HALF_OTHER && scratch->want.from_wan && !(scratch->holder.entry.identity & CONN_FROM_WAN);
}

/* How many connections of this kind has the holder's forward? 0 for TCP: its clients prove their addresses. */
static __always_inline __u32 place_crowd(const struct scratch *scratch, const struct conn *holder)
{
	const struct load *load = load_of(conn_forward(holder));
	__s32 crowd;

	if (!load)
		return 0;
	crowd = scratch->want.kind == PLACE_OTHER ? load->other : scratch->want.kind == PLACE_HALF_OTHER ? load->half_open_other : 0;
	return crowd > 0 ? crowd : 0;
}

/* Returns the worth of a holder. The holder with the lowest worth is evicted.
 *  - Established, not TCP: first holders without evidence (nat_evidence), then holders whose forward has the most
 *    connections, then holders with the least evidence.
 *  - All others: first holders that are not spared, then, if not TCP, holders whose forward has the most half-open connections, then
 *    the oldest. */
static __always_inline __u64 place_worth(const struct scratch *scratch, const struct conn *holder)
{
	__u64 few = (__u64)(~place_crowd(scratch, holder) & 0x7fffffff) << 32;
	__s32 age = (__s32)(scratch->now - holder->seen);

	if (scratch->want.kind == PLACE_OTHER)
		return (__u64)!!holder->end << 63 | few | holder->end;
	return (__u64)place_spared(scratch) << 63 | few | ~(__u32)(age > 0 ? age : 0);
}

/* Examines one place (callback of bpf_loop). 1 ends the search: the place is taken, or its holder will be evicted. */
static long place_try(__u32 step, struct place_search *search)
{
	struct scratch *scratch = search->scratch;
	struct place_want *want = &scratch->want;
	struct place_victim *victim = &scratch->victim;
	struct ring *ring = ring_of(want->kind, tuple_is_v6(search->key));
	struct conn *holder;
	__u64 worth, held;
	__u32 index;
	bool own;

	if (!ring)
		return 1;
	if (step || !want->chosen)
		want->slot = place_next(ring, want->kind);
	index = ring->base + want->slot;
	held = place_read(index);
	holder = place_holder(held, tuple_is_v6(search->key), want->kind, &scratch->holder);
	if (!holder) {
		want->taken = place_write(index, held, want->holder);
		return want->taken;
	}
	if (!place_yields(search, holder))
		return 0;
	worth = place_worth(scratch, holder);
	if (!victim->holder || worth < victim->worth) {
		victim->holder = held;
		victim->index = index;
		victim->worth = worth;
	}
	/* A forward or a client over its share evicts the first of its own connections that the search finds. The search
	 * follows the order in which places were taken, so this connection is the oldest. All others search on: a free
	 * place may follow. */
	own = (want->forward_over_share || want->client_over_share) && !place_spared(scratch);
	/* A callback must return 0 or 1. The verifier of Linux 6.1 does not know that a bool from memory is 0 or 1. */
	return verifier_same(own) ? 1 : 0;
}

/* Returns how many places a search examines. In a ring that is at most half full, a free place is near, even behind a row of places that
 * connections of the same moment have taken: then nobody is evicted. The ring of established TCP always has free places. */
static __always_inline __u32 place_tries(const struct place_want *want, bool v6)
{
	const struct ring *ring = ring_of(want->kind, v6);

	if (want->kind == PLACE_TCP || (ring && ring->count <= (__s64)(ring->size / 2)))
		return TRIES_ROOM;
	if (want->kind == PLACE_OTHER)
		return TRIES_SAMPLE;
	return want->forward_over_share || want->client_over_share ? TRIES_SHARE : TRIES_FIFO;
}

/* Stores when a half-open UDP connection was last evicted, for open_evicted. */
static __always_inline void ring_note_evicted(const struct tuple *victim, __u32 now)
{
	struct ring *ring = ring_of(PLACE_HALF_OTHER, tuple_is_v6(victim));

	if (ring && victim->protocol == IPPROTO_UDP && ring->evicted != now)
		ring->evicted = now;
}

/* Evicts the victim of the search, and takes its place. False: another CPU has changed the victim or the place. */
static __always_inline bool place_displace(const struct tuple *key, struct scratch *scratch, bool sweeping)
{
	struct place_want *want = &scratch->want;
	struct place_victim *victim = &scratch->victim;
	struct direction *giving = &victim->direction;
	struct conn *holder = place_holder(victim->holder, tuple_is_v6(key), want->kind, giving);
	enum conn_event event = want->kind == PLACE_OTHER ? EVENT_DISPLACED : EVENT_EVICTED;

	if (holder && !life_remove(&giving->key, holder, &giving->entry, event, sweeping))
		return false;
	if (holder && want->kind == PLACE_HALF_OTHER)
		ring_note_evicted(&giving->key, scratch->now);
	return place_write(victim->index, victim->holder, want->holder);
}

/* Takes a place for scratch->want: a free place, otherwise the place of the holder with the lowest worth. False: no
 * examined place is free, and no holder may be evicted. */
static __always_inline bool place_take(const struct tuple *key, struct scratch *scratch, bool sweeping)
{
	struct place_search search = { .scratch = scratch, .key = key };
	struct place_want *want = &scratch->want;

	for (int i = 0; i < PLACE_ROUNDS && !want->taken; i++) {
		scratch->victim.holder = 0;
		bpf_loop(place_tries(want, tuple_is_v6(key)), place_try, &search, 0);
		want->chosen = false;
		if (!want->taken && scratch->victim.holder)
			want->taken = place_displace(key, scratch, sweeping);
	}
	return want->taken;
}

static __always_inline void place_want_begin(struct scratch *scratch, __u64 identity, __u32 number, enum place_kind kind)
{
	__builtin_memset(&scratch->want, 0, sizeof(scratch->want));
	scratch->want.holder = place_holds(conn_serial(identity), number);
	scratch->want.kind = kind;
	scratch->want.from_wan = identity & CONN_FROM_WAN;
}

/* Counts the change from the state in identity to closing or ended. */
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

/* Changes an established connection to closing or ended. False: another CPU has changed its state, or there is no place.
 * The sweeper then tries again. */
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
	place_want_begin(scratch, identity, entry->number, PLACE_CLOSING);
	if (conn_state(identity) >= CONN_CLOSING || !place_take(key, scratch, sweeping))
		return false;
	if (!conn_change(opener, identity, to, 0, 0))
		return false;
	life_count_move(key, forward, identity, to);
	life_changed(key, opener, entry, to, EVENT_CLOSED);
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

/* Makes a half-open connection established. NONE: the connection is established. If two CPUs do so at once, one of them
 * changes the state, and both return NONE. Not inlined, to have its own stack frame. */
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
	place_want_begin(scratch, identity, entry->number, kind);
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
	life_changed(key, opener, entry, CONN_ESTABLISHED, EVENT_ESTABLISHED);
	return REASON_NONE;
}

/* Counts the connection in work->open. change is 1 or -1. The caller counts before it inserts the opener's entry: after
 * that another CPU may remove the connection, and lower the counts. */
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

/* Takes a place for the connection in work->open, whose entries are inserted. False: there is no place, and the
 * connection is removed again. */
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
	place_want_begin(scratch, identity, work->open.number, kind);
	scratch->want.chosen = work->open.chosen;
	scratch->want.slot = work->open.slot;
	scratch->want.forward = conn_forward(&work->open.conn);
	scratch->want.forward_over_share = kind == PLACE_HALF_OTHER && ring && load &&
				load->half_open_other > (__s32)(ring->size / FORWARD_SHARE);
	scratch->want.client_over_share = kind == PLACE_HALF_OTHER && work->open.client_over_share;
	if (place_take(key, scratch, false))
		return true;
	/* If another CPU has promoted the connection, it has an established place. */
	opener = conn_find(key, &work->open.entry);
	if (!opener || conn_serial(work->open.entry.identity) != conn_serial(identity))
		return false;
	if (!conn_half(work->open.entry.identity))
		return true;
	life_remove(key, opener, &work->open.entry, EVENT_EVICTED, false);
	return false;
}

/* Must a new client prove its address first? True if the holder of the next place may not be evicted (HALF_SURE_MS).
 * Stores the slot of this place in work->open.slot. */
__noinline bool life_under_pressure(bool v6)
{
	struct ring *ring = ring_of(PLACE_HALF_TCP, v6);
	struct work *work = work_get();
	struct place_search search = {};
	struct scratch *scratch;
	struct conn *holder;

	if (!ring || !work)
		return false;
	scratch = &work->scratch;
	search.scratch = scratch;
	search.key = &scratch->holder.key;
	place_want_begin(scratch, 0, 0, PLACE_HALF_TCP);
	work->open.slot = place_next(ring, PLACE_HALF_TCP);
	holder = place_holder(place_read(ring->base + work->open.slot), v6, PLACE_HALF_TCP, &scratch->holder);
	return holder && !place_yields(&search, holder);
}

/* Is a client with so many half-open connections over its share? Only while less than 1/SOURCE_SHARE of the ring is
 * free. */
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

/* Has this client, or its LAN, reached the limit of established connections? TCP has its own count: forged datagrams must
 * not use up the TCP connections of a client. */
static __always_inline bool life_too_many(struct source source, __u32 lan, bool tcp)
{
	const struct settings *settings = conn_settings();

	if (!settings || source_full(source, tcp, settings->source_limit))
		return true;
	return lan && settings->interface_limit && source_full(source_get(source_lan(lan)), tcp, settings->interface_limit);
}

/* The challenge is a SYN/ACK with a wrong acknowledgement number. A client that has really sent the SYN answers with a
 * RST that has this number (RFC 9293 3.10.7.3), and sends its SYN again. The number is in [ISN - 65535, ISN]. Its low 16
 * bits are a hash of the tuple, so challenge_answered recognises the RST without stored state. */
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

/* Stores that a client has answered a challenge. A sender may guess the 16 bits. A right guess only gives its SYNs places
 * of PLACE_HALF_PROVEN. */
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

/* Returns how long a connection past its handshake may be idle, in ns. An ended connection stays for this time too: late
 * packets of its answerer are recognised and dropped. Without TCP, no other client gets its tuple during this time. */
static __always_inline __u64 life_idle_limit(const struct settings *time, enum conn_state state, __u8 protocol)
{
	if (protocol != IPPROTO_TCP)
		return conn_idle_time(time, protocol) + (state == CONN_ENDED ? time->port_hold : 0);
	return state == CONN_ESTABLISHED ? time->tcp_established : time->tcp_closing;
}

/* Returns when the connection was last used, in ms: the last packet in order of either side. From a WAN, without TCP,
 * only packets of the answerer count (RFC 4787 REQ-6): otherwise forged packets keep a connection alive. For TCP sequence
 * numbers prevent this. */
static __always_inline __u32 life_last_seen(const struct conn *opener, const struct conn *answerer, __u64 identity,
				       __u8 protocol)
{
	if (conn_path(identity) == PATH_WAN && protocol != IPPROTO_TCP)
		return answerer->seen;
	return (__s32)(answerer->seen - opener->seen) > 0 ? answerer->seen : opener->seen;
}

/* Does an expired connection become ended, instead of being removed? Its entries then reserve the tuple, so that no other
 * client gets the tuple at once (RFC 6888 REQ-8). */
static __always_inline bool life_lingers(__u64 identity, __u8 protocol)
{
	return conn_state(identity) == CONN_ESTABLISHED && conn_path(identity) == PATH_HAIRPIN && protocol != IPPROTO_TCP;
}

/* Checks one connection for the sweeper: removes it if it has expired, moves it if it is closed or revoked. True: the
 * connection has left its place. */
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
	/* The connection was not moved when it closed: there was no place, or two CPUs handled the last segments at
	 * once. */
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

/* Goes to the next ring. Returns 1 to end the step: this was the last ring. */
static __always_inline long sweep_next_ring(struct sweeper *sweeper)
{
	sweeper->place = 0;
	sweeper->ring++;
	if (sweeper->ring < PLACES * 2)
		return 0;
	sweeper->ring = 0;
	return 1;
}

/* Visits one place (callback of bpf_loop). Returns 1 to end the step. */
static long sweep_place(__u32 step, struct sweep *sweep)
{
	struct sweeper *sweeper = sweep->sweeper;
	__u32 at = sweeper->ring, index;
	struct ring *ring = bpf_map_lookup_elem(&rings, &at);
	struct conn *opener;
	__u64 held;

	(void)step;
	if (!ring || sweeper->place >= ring->size)
		return sweep_next_ring(sweeper);
	index = ring->base + sweeper->place++;
	held = place_read(index);
	if (!held)
		return 0;
	opener = place_holder(held, at & 1, (enum place_kind)(at / 2), &sweeper->visited);
	if (!opener || life_visit(&sweeper->visited.key, opener, &sweeper->visited.entry, sweeper->scratch.now)) {
		sweeper->left += !!opener;
		place_write(index, held, 0);
	}
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

/* One step of the sweeper (callback of the bpf_timer). It visits some of the places, and starts the timer again. It needs
 * no daemon. */
static int sweep_run(void *map, __u32 *key, struct sweeper *sweeper)
{
	/* This clock is at most one tick ahead of conn_now(), from which the entries have their times. */
	struct sweep sweep = { .sweeper = sweeper };

	(void)map;
	(void)key;
	sweeper->scratch.now = (__u32)(bpf_ktime_get_ns() / MS_NS);
	sweeper->visits = sweeper->left = 0;
	bpf_loop(SWEEP_PLACES, sweep_place, &sweep, 0);
	bpf_timer_start(&sweeper->timer, sweep_delay(sweeper), 0);
	return 0;
}

/* Starts the timer. A timer that runs already now calls sweep_run of this program. Returns 0 or a negative errno. */
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
