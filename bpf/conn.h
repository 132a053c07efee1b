// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The two entries of a connection: how to find and insert them, how to read their packed fields, and TCP tracking.
 * lifecycle.h admits, promotes, closes and removes connections. */
#pragma once

#include "maps.h"
#include "packet.h"
#include "table.h"
#include "verifier.h"
#include "work.h"

enum { CONN_ID_BITS = 17, CONN_ID_MASK = (1 << CONN_ID_BITS) - 1, CONN_CREATED_BITS = 32 - CONN_ID_BITS };
/* Attempts of conn_change. A compare-and-swap fails only if another CPU changed the identity at this moment. */
enum { CONN_CHANGE_TRIES = 8 };
/* In bytes: a segment that is this near to the previous segment of its side is in order. Only its own entry is read. */
enum { TCP_NEAR = 1 << 16 };

static __always_inline __u64 conn_now(void)
{
	return bpf_ktime_get_coarse_ns();
}

/* Writes the reverse member by member: the compiler would build a struct literal on the stack first. */
static __always_inline void tuple_reverse(const struct tuple *tuple, struct tuple *reverse)
{
	reverse->src = tuple->dst;
	reverse->dst = tuple->src;
	*ports_word(&reverse->sport) = ports_join(tuple->dport, tuple->sport);
	*protocol_word(&reverse->protocol) = protocol_pad(tuple->protocol);
}

static __always_inline void tuple_from_v4(const struct tuple4 *key, struct tuple *tuple)
{
	addr_from_v4(&tuple->src, key->src);
	addr_from_v4(&tuple->dst, key->dst);
	*ports_word(&tuple->sport) = *ports_word(&key->sport);
	*protocol_word(&tuple->protocol) = *protocol_word(&key->protocol);
}

static __always_inline enum conn_state conn_state(__u64 identity)
{
	return (enum conn_state)(identity & CONN_STATE);
}

static __always_inline bool conn_half(__u64 identity)
{
	return conn_state(identity) == CONN_HALF_OPEN;
}

static __always_inline __u32 conn_path(__u64 identity)
{
	return verifier_same(identity >> CONN_PATH_SHIFT & 3);
}

static __always_inline __u32 conn_scale(__u64 identity)
{
	return identity >> CONN_SCALE_SHIFT & 15;
}

static __always_inline __u32 conn_lan(__u64 identity)
{
	return identity >> CONN_LAN_SHIFT & ((1 << LAN_HASH_BITS) - 1);
}

static __always_inline __u32 conn_forward(const struct conn *conn)
{
	return conn->forward & CONN_ID_MASK;
}

static __always_inline __u32 conn_address(const struct conn *conn)
{
	return conn->address & CONN_ID_MASK;
}

/* What a connection was made for. */
enum conn_made_for {
	MADE_FOR_FORWARD,
	MADE_FOR_INTERCEPT,
	MADE_FOR_DIRECT,	/* a direct connection that needs another port (direct.h) */
};

/* An intercept has no external address: its id is the connection's forward and address. A direct connection has no forward:
 * both ids are 0. */
static __always_inline enum conn_made_for conn_made_for(const struct conn *conn)
{
	if (!conn_forward(conn))
		return MADE_FOR_DIRECT;
	return conn_address(conn) == conn_forward(conn) ? MADE_FOR_INTERCEPT : MADE_FOR_FORWARD;
}

/* Returns when the connection was made: CLOCK_MONOTONIC s. */
static __always_inline __u32 conn_created(const struct conn *conn)
{
	return conn->forward >> CONN_ID_BITS | conn->address >> CONN_ID_BITS << CONN_CREATED_BITS;
}

static __always_inline void conn_set_made_from(struct conn *conn, const struct epoch_ref *forward, const struct epoch_ref *address,
					   __u32 created)
{
	conn->forward = (forward->id & CONN_ID_MASK) | created << CONN_ID_BITS;
	conn->address = (address->id & CONN_ID_MASK) | created >> CONN_CREATED_BITS << CONN_ID_BITS;
	conn->epochs = forward->epoch + address->epoch;
}

/* Copies the identity and the tuple `to` of the entry in this slot, if it is the entry of the key. NULL: it is not, or another CPU is
 * inserting or deleting the entry (race J in table.h). */
static __always_inline struct conn *conn_copy(const struct tuple *key, bool v6, void *bucket, __u32 slot, struct entry *entry)
{
	struct table_key words = table_key_of(key);
	struct conn *conn = bucket_conn(v6, bucket, slot);

	entry->identity = conn_identity(conn);
	if (bucket_differs(v6, bucket, slot, &words))
		return NULL;
	if (v6) {
		entry->to.src = ((struct conn6 *)conn)->src;
		entry->to.dst = ((struct conn6 *)conn)->dst;
	} else {
		addr_from_v4(&entry->to.src, ((struct conn4 *)conn)->src);
		addr_from_v4(&entry->to.dst, ((struct conn4 *)conn)->dst);
	}
	*ports_word(&entry->to.sport) = *ports_word(&conn->sport);
	entry->to.protocol = key->protocol;
	if (conn_serial(conn_identity(conn)) != conn_serial(entry->identity) || !entry->identity ||
	    conn_state(entry->identity) == CONN_GONE)
		return NULL;
	return conn;
}

/* conn_copy for the entry with this number. */
static __always_inline struct conn *conn_read(const struct tuple *key, bool v6, __u32 number, struct entry *entry)
{
	__u32 slot = verifier_same(number & ((1 << BUCKET_SLOT_BITS) - 1));
	void *bucket = table_bucket(v6, number >> BUCKET_SLOT_BITS);

	if (!bucket || slot >= BUCKET_SLOTS)
		return NULL;
	entry->number = number;
	return conn_copy(key, v6, bucket, slot, entry);
}

/* conn_find without the pointer, which a global function cannot return. */
__noinline bool conn_load(const struct tuple *key, struct entry *entry)
{
	long number;

	if (!key || !entry)
		return false;
	number = table_find(key);
	if (number < 0)
		return false;
	return tuple_is_v6(key) ? conn_read(key, true, (__u32)number, entry) : conn_read(key, false, (__u32)number, entry);
}

/* Finds the entry of a tuple, and copies its identity and the tuple with which the packet leaves. NULL: there is no
 * entry. */
static __always_inline struct conn *conn_find(const struct tuple *key, struct entry *entry)
{
	if (!conn_load(key, entry))
		return NULL;
	return tuple_is_v6(key) ? table_conn(true, entry->number) : table_conn(false, entry->number);
}

/* conn_find, but without a call if the first bucket of the walk decides: for the step that every packet needs. */
static __always_inline struct conn *conn_find_fast(const struct tuple *key, bool v6, struct entry *entry)
{
	struct table_key words = table_key_of(key);
	struct conn *conn = NULL;
	struct walk walk;
	__u32 *passed, slot;

	if (!walk_begin(&walk, v6, &words))
		return NULL;
	passed = table_bucket(v6, walk.bucket);
	if (!passed)
		return NULL;
	entry->number = entry_number(walk.bucket, bucket_slot(v6, passed, &words));
	/* Reloaded, so that the verifier does not follow each slot through the rest of the program. */
	verifier_forget();
	slot = verifier_same(entry->number & ((1 << BUCKET_SLOT_BITS) - 1));
	if (slot < BUCKET_SLOTS)
		conn = conn_copy(key, v6, passed, slot, entry);
	else if (!*(volatile __u32 *)passed)
		return NULL;
	return conn ? conn : conn_find(key, entry);
}

/* Finds an entry by its number. NULL: the slot is free, or another CPU is inserting or deleting the entry. */
static __always_inline struct conn *conn_at(bool v6, __u32 number, struct direction *direction)
{
	__u32 slot = verifier_same(number & ((1 << BUCKET_SLOT_BITS) - 1));
	struct bucket4 *four;
	struct bucket6 *six;

	if (slot >= BUCKET_SLOTS)
		return NULL;
	if (v6) {
		six = table_bucket(true, number >> BUCKET_SLOT_BITS);
		if (!six)
			return NULL;
		direction->key = six->key[slot];
		return conn_read(&direction->key, true, number, &direction->entry);
	}
	four = table_bucket(false, number >> BUCKET_SLOT_BITS);
	if (!four)
		return NULL;
	tuple_from_v4(&four->key[slot], &direction->key);
	return conn_read(&direction->key, false, number, &direction->entry);
}

/* Inserts one entry of a new connection. Returns its number, or TABLE_EXISTS, TABLE_NO_ROOM or TABLE_AGAIN. The identity is written
 * last: it makes the entry valid. */
__noinline long conn_insert(const struct tuple *key, const struct conn *conn, const struct tuple *to)
{
	struct conn *entry;
	long number;
	bool v6;

	if (!key || !conn || !to)
		return TABLE_NO_ROOM;
	number = table_claim(key, conn_serial(conn->identity));
	if (number < 0)
		return number;
	v6 = tuple_is_v6(key);
	entry = v6 ? table_conn(true, (__u32)number) : table_conn(false, (__u32)number);
	if (!entry)
		return TABLE_NO_ROOM;
	__builtin_memcpy(&entry->hop, &conn->hop, offsetof(struct conn, sport) - offsetof(struct conn, hop));
	*ports_word(&entry->sport) = *ports_word(&to->sport);
	if (v6) {
		((struct conn6 *)entry)->src = to->src;
		((struct conn6 *)entry)->dst = to->dst;
	} else {
		((struct conn4 *)entry)->src = to->src.word[3];
		((struct conn4 *)entry)->dst = to->dst.word[3];
	}
	__sync_lock_test_and_set(&entry->identity, conn->identity);
	return number;
}

/* Finds the other direction of the entry's connection. NULL: there is none. Not inlined, to have its own stack frame. */
static __noinline struct conn *conn_other(const struct entry *entry, struct direction *other)
{
	struct conn *conn;

	tuple_reverse(&entry->to, &other->key);
	conn = conn_find(&other->key, &other->entry);
	return conn && conn_serial(other->entry.identity) == conn_serial(entry->identity) ? conn : NULL;
}

/* Changes the state of an entry, and sets or clears flags. False: since the identity was read, the state has changed, or
 * the memory has become an entry of another connection. If several CPUs try one change of state, one CPU gets true. */
__noinline bool conn_change(struct conn *conn, __u64 identity, enum conn_state to, enum conn_flag set,
			    enum conn_flag clear)
{
	if (!conn)
		return false;
	for (int i = 0; i < CONN_CHANGE_TRIES; i++) {
		__u64 old = conn_identity(conn);
		__u64 fresh = ((old & ~(__u64)CONN_STATE & ~(__u64)clear) | set) | to;

		if (conn_serial(old) != conn_serial(identity) || conn_state(old) != conn_state(identity))
			return false;
		if (__sync_val_compare_and_swap(&conn->identity, old, fresh) == old)
			return true;
	}
	return false;
}

/* Sets or clears flags, and keeps the state. */
static __always_inline bool conn_mark(struct conn *conn, __u64 identity, __u32 set, __u32 clear)
{
	return conn_change(conn, identity, conn_state(identity), set, clear);
}

static __always_inline __u32 conn_epoch(__u32 id)
{
	const __u32 *epoch = bpf_map_lookup_elem(&epochs, &id);

	return epoch ? *epoch : 0;
}

/* Is the connection over? Its forward or external address was removed, hairpin_end has ended it, or its state is ended.
 * Epochs only rise, so an old sum never comes back. */
static __always_inline bool conn_revoked(const struct conn *conn, __u64 identity)
{
	return conn_state(identity) == CONN_ENDED ||
	       conn_epoch(conn_forward(conn)) + conn_epoch(conn_address(conn)) != conn->epochs;
}

/* Finds the counters of a forward on this CPU. NULL: there are none. */
static __always_inline struct forward_stats *conn_stats(__u32 forward)
{
	__u32 page = forward / STATS_PAGE, place = forward % STATS_PAGE;
	void *stats = bpf_map_lookup_elem(&forward_stats, &page);

	return stats ? bpf_map_lookup_elem(stats, &place) : NULL;
}

static __always_inline const struct settings *conn_settings(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&settings, &zero);
}

static __always_inline __u64 conn_idle_time(const struct settings *time, __u8 protocol)
{
	return protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6 ? time->icmp : time->udp;
}

/* Has time, in ns, passed since seen? seen and now are in ms. seen may be later than now: another CPU may have handled a
 * packet since now was read. */
static __always_inline bool conn_idle(__u32 seen, __u32 now, __u64 time)
{
	__s32 idle = (__s32)(now - seen);

	return idle >= 0 && (__u64)idle * MS_NS >= time;
}

/* Has this half-open connection waited too long? The time counts from the opener's last packet. */
static __always_inline bool conn_expired(const struct conn *opener, __u8 protocol, __u32 now)
{
	const struct settings *time = conn_settings();

	return !time || conn_idle(opener->seen, now,
				  protocol == IPPROTO_TCP ? time->tcp_opening : conn_idle_time(time, protocol));
}

static __always_inline bool seq_after(__u32 one, __u32 other)
{
	return (__s32)(one - other) > 0;
}

/* Returns the receive window in bytes that the entry's side has offered, but at least TCP_NEAR. */
static __always_inline __u32 conn_window(const struct conn *conn, __u64 identity, __u64 other)
{
	__u32 scale = conn_scale(identity), window;

	if (identity & CONN_REBUILT)
		scale = TCP_SCALE_MAX;
	else if (scale == TCP_SCALE_NONE || conn_scale(other) == TCP_SCALE_NONE)
		scale = 0;
	window = (__u32)conn->window << (scale > TCP_SCALE_MAX ? TCP_SCALE_MAX : scale);
	return window > TCP_NEAR ? window : TCP_NEAR;
}

/* Is the segment near the numbers that this side sent before? Most segments are near, so the other entry is not read. */
static __always_inline bool conn_near(const struct packet *pkt, const struct conn *conn)
{
	return pkt->seq + pkt->seq_length - conn->end + TCP_NEAR < 2 * TCP_NEAR && pkt->ack - conn->ack < TCP_NEAR;
}

/* Is the segment within both windows ("Real Stateful TCP Packet Filtering in IP Filter", van Rooij 2000)?
 *  - The end of its data must be at most one receive window away from the highest acknowledgement of the receiver.
 *  - Its acknowledgement must be at most the end of the receiver's data, and at least this end minus the own window. */
static __always_inline bool conn_within(const struct packet *pkt, const struct conn *conn, __u64 identity,
					const struct conn *other, __u64 other_identity)
{
	__u32 takes = conn_window(other, other_identity, identity), mine = conn_window(conn, identity, other_identity);

	return pkt->seq + pkt->seq_length - other->ack + takes <= 2 * takes && other->end - pkt->ack <= mine;
}

/* Stores the numbers of a segment that is in order. ack only rises. end only rises, and stays after a FIN. */
static __always_inline void conn_advance(const struct packet *pkt, struct conn *conn, __u64 identity)
{
	__u32 end = pkt->seq + pkt->seq_length;

	if (!(identity & CONN_FIN) && seq_after(end, conn->end))
		conn->end = end;
	if (seq_after(pkt->ack, conn->ack))
		conn->ack = pkt->ack;
	if (conn->window != pkt->window)
		conn->window = pkt->window;
}

/* Stores the numbers of this segment as the first numbers of the entry, and sets CONN_NUMBERED. Later segments are compared with
 * them. Numbers that were stored before are replaced. */
static __always_inline void conn_number(const struct packet *pkt, struct conn *conn, __u64 identity)
{
	conn->end = pkt->seq + pkt->seq_length;
	conn->ack = pkt->ack;
	conn->window = pkt->window;
	conn_mark(conn, identity, CONN_NUMBERED | (pkt->tcp_flags & TCP_FIN ? CONN_FIN : 0), 0);
}

static __always_inline struct late_syn *conn_late_syn(__u64 identity)
{
	__u32 index = conn_serial(identity) % LATE_SYNS;

	return bpf_map_lookup_elem(&late_syns, &index);
}

static __always_inline void conn_keep_syn(const struct packet *pkt, __u64 identity)
{
	struct late_syn *syn = conn_late_syn(identity);

	if (!syn)
		return;
	syn->first = pkt->seq;
	syn->end = pkt->seq + pkt->seq_length;
	syn->serial = conn_serial(identity);
}

/* Is this a number of the opener's late SYN: its own, or one of its data (RFC 7413)? Not inlined, to save stack. */
__noinline bool conn_in_late_syn(__u64 identity, __u32 seq)
{
	const struct late_syn *syn = conn_late_syn(identity);

	return syn && syn->serial == conn_serial(identity) && seq - syn->first < syn->end - syn->first;
}

/* Has the other side acknowledged the sender's FIN? Only then the FIN counts: nobody acknowledges a forged FIN. */
static __always_inline bool conn_fin_acknowledged(__u64 from, const struct conn *sender, const struct conn *by)
{
	return from & CONN_FIN && !seq_after(sender->end, by->ack);
}

/* Is the TCP connection closed: did both sides send a FIN (RFC 7857 2), or one side a RST? */
static __always_inline bool conn_closed(const struct conn *one, __u64 identity, const struct conn *other, __u64 other_identity)
{
	if ((identity | other_identity) & CONN_RESET)
		return true;
	return conn_fin_acknowledged(identity, one, other) && conn_fin_acknowledged(other_identity, other, one);
}
