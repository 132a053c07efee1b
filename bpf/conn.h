// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* A connection's entries: the one way to find, insert and erase them, what is packed into their words, and TCP tracking.
 * How connections are admitted, promoted, closed and removed is in lifecycle.h. */
#pragma once

#include "maps.h"
#include "packet.h"
#include "verifier.h"
#include "work.h"

enum { CONN_ID_BITS = 17, CONN_ID_MASK = (1 << CONN_ID_BITS) - 1, CONN_CREATED_BITS = 32 - CONN_ID_BITS };
/* Compare-and-swap fails only while another CPU changes the same word. */
enum { CONN_CHANGE_TRIES = 8 };
/* How far a segment may be from the one before it to be judged by its own entry alone. */
enum { TCP_NEAR = 1 << 16 };

static __always_inline __u64 conn_now(void)
{
	return bpf_ktime_get_coarse_ns();
}

/* Member by member: a whole one would be put together on the stack first. */
static __always_inline void tuple_reverse(const struct tuple *tuple, struct tuple *reverse)
{
	reverse->src = tuple->dst;
	reverse->dst = tuple->src;
	*ports_word(&reverse->sport) = ports_join(tuple->dport, tuple->sport);
	*protocol_word(&reverse->protocol) = protocol_pad(tuple->protocol);
}

static __always_inline bool tuple_is_v6(const struct tuple *tuple)
{
	return !addr_is_v4(&tuple->dst);
}

static __always_inline void tuple_to_v4(const struct tuple *tuple, struct tuple4 *key)
{
	key->src = tuple->src.word[3];
	key->dst = tuple->dst.word[3];
	*ports_word(&key->sport) = *ports_word(&tuple->sport);
	*protocol_word(&key->protocol) = protocol_pad(tuple->protocol);
}

static __always_inline void tuple_from_v4(const struct tuple4 *key, struct tuple *tuple)
{
	addr_from_v4(&tuple->src, key->src);
	addr_from_v4(&tuple->dst, key->dst);
	*ports_word(&tuple->sport) = *ports_word(&key->sport);
	*protocol_word(&tuple->protocol) = *protocol_word(&key->protocol);
}

/* The identity as it is in memory now. */
static __always_inline __u64 conn_identity(const struct conn *conn)
{
	return *(const volatile __u64 *)&conn->identity;
}

static __always_inline __u32 conn_serial(__u64 identity)
{
	return (__u32)(identity >> 32);
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

/* CLOCK_MONOTONIC s. */
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

/* The entry of a tuple, and a copy of what it translates to. NULL: there is none.
 *
 * CPU A finds an entry; CPU B deletes it and makes another connection's of its memory, while A copies the addresses. A
 * would send its packet to the other connection's server. Therefore A compares the identity, which B has changed. */
static __always_inline struct conn *conn_find(const struct tuple *key, struct entry *entry)
{
	struct tuple4 short_key;
	struct conn4 *four;
	struct conn6 *six;
	struct conn *conn;

	if (tuple_is_v6(key)) {
		six = bpf_map_lookup_elem(&conns6, key);
		if (!six)
			return NULL;
		entry->identity = conn_identity(&six->conn);
		entry->to.src = six->src;
		entry->to.dst = six->dst;
		conn = &six->conn;
	} else {
		tuple_to_v4(key, &short_key);
		four = bpf_map_lookup_elem(&conns4, &short_key);
		if (!four)
			return NULL;
		entry->identity = conn_identity(&four->conn);
		addr_from_v4(&entry->to.src, four->src);
		addr_from_v4(&entry->to.dst, four->dst);
		conn = &four->conn;
	}
	*ports_word(&entry->to.sport) = *ports_word(&conn->sport);
	entry->to.protocol = key->protocol;
	if (conn_serial(conn_identity(conn)) != conn_serial(entry->identity) || conn_state(entry->identity) == CONN_GONE)
		return NULL;
	return conn;
}

/* Only for openings. 0, or a negative errno: BPF_NOEXIST. The value is put together in working memory: the stack is short. */
static __always_inline long conn_insert(const struct tuple *key, const struct conn *conn, const struct tuple *to,
					union conn_value *value)
{
	struct tuple4 short_key;

	value->six.conn = *conn;
	value->six.conn.sport = to->sport;
	value->six.conn.dport = to->dport;
	if (tuple_is_v6(key)) {
		value->six.src = to->src;
		value->six.dst = to->dst;
		return bpf_map_update_elem(&conns6, key, &value->six, BPF_NOEXIST);
	}
	tuple_to_v4(key, &short_key);
	value->four.src = to->src.word[3];
	value->four.dst = to->dst.word[3];
	return bpf_map_update_elem(&conns4, &short_key, &value->four, BPF_NOEXIST);
}

static __always_inline void conn_erase(const struct tuple *key)
{
	struct tuple4 short_key;

	if (tuple_is_v6(key)) {
		bpf_map_delete_elem(&conns6, key);
		return;
	}
	tuple_to_v4(key, &short_key);
	bpf_map_delete_elem(&conns4, &short_key);
}

/* The other direction of an entry, of the same connection. A stack frame of its own. */
static __noinline struct conn *conn_other(const struct entry *entry, struct direction *other)
{
	struct conn *conn;

	tuple_reverse(&entry->to, &other->key);
	conn = conn_find(&other->key, &other->entry);
	return conn && conn_serial(other->entry.identity) == conn_serial(entry->identity) ? conn : NULL;
}

/* Changes the state, and sets or clears flags, of the connection that the identity was read from. False: it is in another
 * state by now, or its memory is another connection's. One of several CPUs makes a change of state: true for that one. */
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

/* Flags alone. */
static __always_inline bool conn_mark(struct conn *conn, __u64 identity, __u32 set, __u32 clear)
{
	return conn_change(conn, identity, conn_state(identity), set, clear);
}

static __always_inline __u32 conn_epoch(__u32 id)
{
	const __u32 *epoch = bpf_map_lookup_elem(&epochs, &id);

	return epoch ? *epoch : 0;
}

/* Is the connection over? Its forward or external address has gone, or hairpin_end has ended it. Epochs only rise, so a sum
 * never comes again. */
static __always_inline bool conn_revoked(const struct conn *conn, __u64 identity)
{
	return conn_state(identity) == CONN_ENDED ||
	       conn_epoch(conn_forward(conn)) + conn_epoch(conn_address(conn)) != conn->epochs;
}

/* What is counted for a forward. */
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

/* Has this time, in ns, passed since the entry was last seen? Another CPU may have seen it after now was read. */
static __always_inline bool conn_idle(__u32 seen, __u32 now, __u64 time)
{
	__s32 idle = (__s32)(now - seen);

	return idle >= 0 && (__u64)idle * MS_NS >= time;
}

/* How long a half-open connection waits, counted from its client's last packet. */
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

/* The receive window in bytes that the entry's side has offered, and no less than what a segment may stray in order. */
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

/* Next to what this side sent before: most segments are, and need no look at the other side. */
static __always_inline bool conn_near(const struct packet *pkt, const struct conn *conn)
{
	return pkt->seq + pkt->seq_length - conn->end + TCP_NEAR < 2 * TCP_NEAR && pkt->ack - conn->ack < TCP_NEAR;
}

/* Is the segment within both windows ("Real Stateful TCP Packet Filtering in IP Filter", van Rooij 2000)? Its data must end
 * within one receive window of what the receiver has acknowledged. Its acknowledgement must not be beyond what the receiver
 * has sent, nor more than the sender's own window behind that. */
static __always_inline bool conn_within(const struct packet *pkt, const struct conn *conn, __u64 identity,
					const struct conn *other, __u64 other_identity)
{
	__u32 takes = conn_window(other, other_identity, identity), mine = conn_window(conn, identity, other_identity);

	return pkt->seq + pkt->seq_length - other->ack + takes <= 2 * takes && other->end - pkt->ack <= mine;
}

/* Takes the numbers of a segment that is in order. Acknowledgements only go up; the end is frozen by a FIN. */
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

/* The first segment of an entry that nobody has seen the handshake of. */
static __always_inline void conn_number(const struct packet *pkt, struct conn *conn, __u64 identity)
{
	conn->end = pkt->seq + pkt->seq_length;
	conn->ack = pkt->ack;
	conn->window = pkt->window;
	conn_mark(conn, identity, CONN_NUMBERED | (pkt->tcp_flags & TCP_FIN ? CONN_FIN : 0), 0);
}

/* A FIN counts once the other side has acknowledged it. Nobody acknowledges a forged one. */
static __always_inline bool conn_fin_acknowledged(__u64 from, const struct conn *sender, const struct conn *by)
{
	return from & CONN_FIN && !seq_after(sender->end, by->ack);
}

/* Both sides have closed it (RFC 7857 2), or one has cut it. */
static __always_inline bool conn_closed(const struct conn *one, __u64 identity, const struct conn *other, __u64 other_identity)
{
	if ((identity | other_identity) & CONN_RESET)
		return true;
	return conn_fin_acknowledged(identity, one, other) && conn_fin_acknowledged(other_identity, other, one);
}
