// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The tables of entries, conns4 and conns6: finds the entry of a key, claims room for a new entry, frees an entry.
 *
 * A table is an array of buckets with BUCKET_SLOTS slots each. A hash of the key gives the walk of the key: the buckets where its
 * entry may be. An insertion takes the first free slot of the walk. Each bucket counts the entries that are in a later bucket of
 * their walk (passed): a search ends at a bucket that no entry has passed. In a table that is not nearly full, most searches read
 * one bucket. Key and entry are near each other in memory, so a packet waits for memory once; in the kernel's hash table it waits
 * for the chain's head, and then for the entry.
 *
 * The identity of an entry says whether its slot is in use: 0 is a free slot. An identity with CONN_GONE is an entry that is being
 * inserted or deleted: no search finds it. Nobody needs a lock.
 *
 * Races
 *  H. Two CPUs claim one slot. Each tries to change the identity from 0. The CPU that fails begins again.
 *  I. Two CPUs insert one key. Each claims a slot and writes the key. Then, behind a barrier, each searches the walk for the key. At
 *     least one of the two sees the other's slot. The CPU whose entry has the higher number gives up. The CPU with the lower number
 *     waits until the other slot is free, and searches again: there may be a third CPU. If the other CPU has not seen the slot with the
 *     lower number, its own slot becomes an entry: then the CPU with the lower number gives up. So one CPU inserts the key, unless the
 *     wait ends too early: then none does, and the packet's sender tries again. If the key has an entry already, the same search
 *     finds the entry.
 *  J. A slot is freed and used again while another CPU reads it. The reader takes the identity before the key and again after the
 *     rest (conn_read). The serial differs then, and the reader has found nothing.
 *  K. A search meets an insertion or a deletion. An insertion first raises the counts of the buckets that it passes. Then its entry
 *     becomes valid. A deletion first makes its entry invalid. Then it lowers the counts. So while an entry is valid, every bucket
 *     before it says that an entry has passed, and no search ends too early.
 *  L. A CPU deletes its entry while another CPU claims a slot for the same key (race I). Only the slot with the serial of the deleted
 *     entry is freed, by a compare-and-swap. So no claim of another CPU is freed, and no slot twice. */
#pragma once

#include "maps.h"
#include "packet.h"
#include "verifier.h"

/* Most buckets of a walk. With the sizes of loader.Size, a walk without a free slot is rarer than one in 10^8. */
enum { TABLE_PROBES = 16 };
/* How often a claim begins again, and how long it waits for another CPU that inserts the same key (race I). */
enum { TABLE_CLAIMS = 3, TABLE_WAIT = 64, TABLE_RIVALS = 3 };
/* How often table_free tries its compare-and-swap: another CPU may change a flag of the entry at this moment. */
enum { TABLE_FREES = 8 };
enum { TABLE_NONE = -1, TABLE_EXISTS = -2, TABLE_NO_ROOM = -3, TABLE_AGAIN = -4 };

enum { TABLE_WORDS4 = sizeof(struct tuple4) / sizeof(__u64), TABLE_WORDS6 = sizeof(struct tuple) / sizeof(__u64) };

/* A key as 64-bit words: of IPv4 a struct tuple4, of IPv6 the tuple itself. */
struct table_key {
	const struct tuple *tuple;
	__u64 short_key[TABLE_WORDS4];
};

static __always_inline bool tuple_is_v6(const struct tuple *tuple)
{
	return !addr_is_v4(&tuple->dst);
}

static __always_inline struct table_key table_key_of(const struct tuple *tuple)
{
	return (struct table_key){ tuple, {
		tuple->src.word[3] | (__u64)tuple->dst.word[3] << 32,
		*ports_word(&tuple->sport) | (__u64)protocol_pad(tuple->protocol) << 32,
	} };
}

static __always_inline __u64 table_word(bool v6, const struct table_key *key, int i)
{
	return v6 ? ((const __u64 *)key->tuple)[i] : key->short_key[i];
}

/* The buckets where the entry of a key may be. v6 is a constant in all callers, so the compiler makes code for each family. */
struct walk {
	__u32 bucket;
	__u32 step;
	__u32 buckets;
};

/* Multiply-shift hashing of pairs of words with random numbers (Thorup, High Speed Hashing for Integers and Strings, 2015, section
 * 3.5): whoever does not know the numbers finds no keys that meet more often than by chance. The last steps spread sums that are
 * near each other: those of consecutive ports. False: there is no table. */
static __always_inline bool walk_begin(struct walk *walk, bool v6, const struct table_key *key)
{
	__u32 zero = 0;
	const struct table *table = bpf_map_lookup_elem(&tables, &zero);
	__u64 sum = 0;

	if (!table)
		return false;
	for (int i = 0; i < (v6 ? TABLE_WORDS6 : TABLE_WORDS4); i++)
		sum += (table->random[2 * i] + (__u32)table_word(v6, key, i)) * (table->random[2 * i + 1] + (table_word(v6, key, i) >> 32));
	sum ^= sum >> 32;
	sum *= 0x9e3779b97f4a7c15;
	walk->buckets = table->buckets[v6];
	walk->bucket = (sum >> 32) * walk->buckets >> 32;
	walk->step = 1 + ((__u64)(__u32)sum * (walk->buckets - 1) >> 32);
	return true;
}

static __always_inline void walk_next(struct walk *walk)
{
	walk->bucket += walk->step;
	if (walk->bucket >= walk->buckets)
		walk->bucket -= walk->buckets;
}

/* Returns a bucket by its number. Its first member is the count of entries that have passed. */
static __always_inline void *table_bucket(bool v6, __u32 number)
{
	return v6 ? bpf_map_lookup_elem(&conns6, &number) : bpf_map_lookup_elem(&conns4, &number);
}

static __always_inline __u64 *bucket_key(bool v6, void *bucket, __u32 slot)
{
	return v6 ? (__u64 *)&((struct bucket6 *)bucket)->key[slot] : (__u64 *)&((struct bucket4 *)bucket)->key[slot];
}

static __always_inline struct conn *bucket_conn(bool v6, void *bucket, __u32 slot)
{
	return v6 ? &((struct bucket6 *)bucket)->entry[slot].conn : &((struct bucket4 *)bucket)->entry[slot].conn;
}

/* Reads the identity from memory again: another CPU may have changed it. */
static __always_inline __u64 conn_identity(const struct conn *conn)
{
	return *(const volatile __u64 *)&conn->identity;
}

/* Returns 0 if the slot has this key. */
static __always_inline __u64 bucket_differs(bool v6, void *bucket, __u32 slot, const struct table_key *key)
{
	const __u64 *word = bucket_key(v6, bucket, slot);
	__u64 different = 0;

	for (int i = 0; i < (v6 ? TABLE_WORDS6 : TABLE_WORDS4); i++)
		different |= word[i] ^ table_word(v6, key, i);
	return different;
}

static __always_inline __u32 conn_serial(__u64 identity)
{
	return (__u32)(identity >> 32);
}

/* The number of an entry: its bucket, and its slot in the bucket. */
static __always_inline __u32 entry_number(__u32 bucket, __u32 slot)
{
	return bucket << BUCKET_SLOT_BITS | slot;
}

/* Returns an entry by its number; the slot may be free. NULL: there is no such number. */
static __always_inline struct conn *table_conn(bool v6, __u32 number)
{
	__u32 slot = verifier_same(number & ((1 << BUCKET_SLOT_BITS) - 1));
	void *bucket = table_bucket(v6, number >> BUCKET_SLOT_BITS);

	return bucket && slot < BUCKET_SLOTS ? bucket_conn(v6, bucket, slot) : NULL;
}

/* No entry has this serial. */
enum { NO_SERIAL = 0 };

/* Which entry of a key is searched: the states of entries with the given serial, in the bits from WANT_OWN_SHIFT, and the states of
 * all other entries. */
enum { WANT_OWN_SHIFT = 8 };
enum wanted {
	WANT_VALID = 1 << CONN_HALF_OPEN | 1 << CONN_ESTABLISHED | 1 << CONN_CLOSING | 1 << CONN_ENDED,	/* a valid entry */
	WANT_OTHER = WANT_VALID | 1 << CONN_GONE | WANT_VALID << WANT_OWN_SHIFT,	/* any entry but the claim with this serial */
	WANT_SERIAL = (WANT_VALID | 1 << CONN_GONE) << WANT_OWN_SHIFT,	/* the entry with this serial, valid or not */
};

/* Returns 1 if the value is 0, otherwise 0, without a branch. */
static __always_inline __u64 is_zero(__u32 value)
{
	return verifier_same((value - 1ULL) >> 63);
}

/* Returns the number of the wanted entry of this bucket, or TABLE_NONE. An identity is in another cache line than the keys, so it is
 * read only if the key is equal. Few branches: each branch in the loop of a search multiplies the paths that the verifier follows. */
static __always_inline long bucket_search(bool v6, void *bucket, __u32 at, const struct table_key *key, enum wanted wanted, __u32 serial)
{
	__u64 identity, own;

	for (__u32 slot = 0; slot < BUCKET_SLOTS; slot++) {
		if (bucket_differs(v6, bucket, slot, key))
			continue;
		identity = conn_identity(bucket_conn(v6, bucket, slot));
		own = is_zero(conn_serial(identity) ^ serial) * WANT_OWN_SHIFT;
		if (wanted >> own >> (identity & CONN_STATE) & 1)
			return entry_number(at, slot);
	}
	return TABLE_NONE;
}

static __always_inline long walk_search(bool v6, const struct tuple *tuple, enum wanted wanted, __u32 serial)
{
	struct table_key key = table_key_of(tuple);
	struct walk walk;
	__u32 *passed;
	long number;

	if (!walk_begin(&walk, v6, &key))
		return TABLE_NONE;
	for (int i = 0; i < TABLE_PROBES; i++) {
		passed = table_bucket(v6, walk.bucket);
		if (!passed)
			return TABLE_NONE;
		number = bucket_search(v6, passed, walk.bucket, &key, wanted, serial);
		if (number != TABLE_NONE || !*(volatile __u32 *)passed)
			return number;
		walk_next(&walk);
	}
	return TABLE_NONE;
}

/* Returns the number of the wanted entry of this key, or TABLE_NONE. The slot may get another entry at any time: see conn_read. */
__noinline long table_search(const struct tuple *key, enum wanted wanted, __u32 serial)
{
	if (!key)
		return TABLE_NONE;
	return tuple_is_v6(key) ? walk_search(true, key, wanted, serial) : walk_search(false, key, wanted, serial);
}

/* Returns the number of the valid entry with this key, or TABLE_NONE. */
static __always_inline long table_find(const struct tuple *key)
{
	return table_search(key, WANT_VALID, NO_SERIAL);
}

/* Returns the first slot of the bucket with this key, free or not. BUCKET_SLOTS: none. */
static __always_inline __u32 bucket_slot(bool v6, void *bucket, const struct table_key *key)
{
	__u32 slot = 0;

	while (slot < BUCKET_SLOTS && bucket_differs(v6, bucket, slot, key))
		slot++;
	return slot;
}

/* Adds change to the counts of the buckets of the walk before the bucket of this entry. */
static __always_inline void table_pass(bool v6, const struct table_key *key, __u32 number, __s32 change)
{
	struct walk walk;
	__u32 *passed;

	if (!walk_begin(&walk, v6, key))
		return;
	for (int i = 0; i < TABLE_PROBES && walk.bucket != number >> BUCKET_SLOT_BITS; i++) {
		passed = table_bucket(v6, walk.bucket);
		if (passed)
			__sync_fetch_and_add(passed, change);
		walk_next(&walk);
	}
}

static __always_inline long walk_room(bool v6, const struct tuple *tuple)
{
	struct table_key key = table_key_of(tuple);
	struct walk walk;
	void *bucket;

	if (!walk_begin(&walk, v6, &key))
		return TABLE_NO_ROOM;
	for (int i = 0; i < TABLE_PROBES; i++) {
		bucket = table_bucket(v6, walk.bucket);
		if (!bucket)
			return TABLE_NO_ROOM;
		for (__u32 slot = 0; slot < BUCKET_SLOTS; slot++)
			if (!conn_identity(bucket_conn(v6, bucket, slot)))
				return entry_number(walk.bucket, slot);
		walk_next(&walk);
	}
	return TABLE_NO_ROOM;
}

/* Returns the number of the first free slot for this key, or TABLE_NO_ROOM. */
__noinline long table_room(const struct tuple *key)
{
	if (!key)
		return TABLE_NO_ROOM;
	return tuple_is_v6(key) ? walk_room(true, key) : walk_room(false, key);
}

/* May the entry own keep its key, although another CPU is inserting the key, too (race I)? */
static __always_inline bool table_outlasts(bool v6, __u32 own, __u32 rival)
{
	struct conn *other = table_conn(v6, rival);
	__u64 identity = CONN_GONE;

	if (!other || rival < own)
		return false;
	for (int i = 0; i < TABLE_WAIT && (identity & CONN_STATE) == CONN_GONE; i++)
		identity = conn_identity(other);
	return !identity;
}

static __always_inline void walk_free(bool v6, const struct tuple *tuple, __u32 number, __u32 serial)
{
	struct conn *conn = table_conn(v6, number);
	struct table_key key = table_key_of(tuple);
	__u64 identity;
	bool freed = false;

	for (int i = 0; conn && !freed && i < TABLE_FREES; i++) {
		identity = conn_identity(conn);
		if (conn_serial(identity) != serial)
			return;
		freed = __sync_val_compare_and_swap(&conn->identity, identity, 0) == identity;
	}
	if (freed)
		table_pass(v6, &key, number, -1);
}

/* Frees the slot of an entry, if the slot still has this serial (race L). The counts are lowered after that: race K. */
__noinline int table_free(const struct tuple *key, __u32 number, __u32 serial)
{
	if (!key)
		return 0;
	if (tuple_is_v6(key))
		walk_free(true, key, number, serial);
	else
		walk_free(false, key, number, serial);
	return 0;
}

static __always_inline long walk_take(bool v6, const struct tuple *tuple, __u32 number, __u32 serial)
{
	__u32 slot = verifier_same(number & ((1 << BUCKET_SLOT_BITS) - 1));
	void *bucket = table_bucket(v6, number >> BUCKET_SLOT_BITS);
	__u64 claim = (__u64)serial << 32 | CONN_GONE, *word;
	struct table_key key = table_key_of(tuple);
	struct conn *conn;
	long rival;

	if (!bucket || slot >= BUCKET_SLOTS)
		return TABLE_NO_ROOM;
	conn = bucket_conn(v6, bucket, slot);
	if (__sync_val_compare_and_swap(&conn->identity, 0, claim) != 0)
		return TABLE_AGAIN;
	word = bucket_key(v6, bucket, slot);
	for (int i = 0; i < (v6 ? TABLE_WORDS6 : TABLE_WORDS4); i++)
		word[i] = table_word(v6, &key, i);
	table_pass(v6, &key, number, 1);
	/* The barrier of race I: an atomic instruction that fetches. */
	__sync_lock_test_and_set(&conn->identity, claim);
	for (int i = 0; i < TABLE_RIVALS; i++) {
		rival = table_search(tuple, WANT_OTHER, serial);
		if (rival < 0)
			return number;
		if (!table_outlasts(v6, number, (__u32)rival))
			break;
	}
	table_free(tuple, number, serial);
	return TABLE_EXISTS;
}

/* Claims this slot for the key. Returns its number; TABLE_EXISTS if the key has an entry already; or TABLE_AGAIN. */
__noinline long table_take(const struct tuple *key, __u32 number, __u32 serial)
{
	if (!key)
		return TABLE_NO_ROOM;
	return tuple_is_v6(key) ? walk_take(true, key, number, serial) : walk_take(false, key, number, serial);
}

/* Claims a slot for an entry with this key and serial. Returns the number of the entry, which is invalid until its identity is
 * written. TABLE_EXISTS: another entry has the key. TABLE_NO_ROOM: no slot of the walk is free. TABLE_AGAIN: other CPUs were
 * faster. */
static __always_inline long table_claim(const struct tuple *key, __u32 serial)
{
	long number = TABLE_AGAIN;

	for (int i = 0; i < TABLE_CLAIMS && number == TABLE_AGAIN; i++) {
		number = table_room(key);
		if (number >= 0)
			number = table_take(key, (__u32)number, serial);
	}
	return number;
}

/* Frees the slot of the entry with this key and serial. Only the CPU that has inserted the entry, or has won the change to CONN_GONE,
 * calls this. */
__noinline int table_erase(const struct tuple *key, __u32 serial)
{
	long number = table_search(key, WANT_SERIAL, serial);

	return number < 0 ? 0 : table_free(key, (__u32)number, serial);
}
