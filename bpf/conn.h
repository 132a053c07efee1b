// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Connection state: lookup, the pair of entries, promotion, TCP state, expiry.
 * A half-open connection has its entries where it keeps them: what completes its handshake only says so. */
#pragma once

#include "maps.h"
#include "packet.h"
#include "work.h"

enum { SECOND_NS = 1000000000, SWEEP_VISITS = 4096, OPENING_TRIES = 8 };
enum { CLOCK_MONOTONIC_ID = 1, TIMER_EXISTS = 16 /* EBUSY */ };

static __always_inline __u64 conn_now(void)
{
	return bpf_ktime_get_coarse_ns();
}

/* Member by member: a whole one would be put together on the stack first. */
static __always_inline void tuple_reverse(const struct tuple *tuple, struct tuple *reverse)
{
	reverse->src = tuple->dst;
	reverse->dst = tuple->src;
	reverse->sport = tuple->dport;
	reverse->dport = tuple->sport;
	reverse->protocol = tuple->protocol;
	__builtin_memset(reverse->pad, 0, sizeof(reverse->pad));
}

static __always_inline struct conn *conn_find(const struct tuple *key)
{
	return bpf_map_lookup_elem(&conns, key);
}

static __always_inline bool conn_half(const struct conn *conn)
{
	return conn->state < CONN_ESTABLISHED;
}

/* The other direction. A stack frame of its own. */
static __noinline struct conn *conn_other(const struct conn *conn)
{
	struct tuple key;

	tuple_reverse(&conn->to, &key);
	return conn_find(&key);
}

static __always_inline bool stamp_over(const struct stamp *stamp)
{
	__u32 id = stamp->id;
	__u32 *epoch = bpf_map_lookup_elem(&epochs, &id);

	return !epoch || *epoch != stamp->epoch;
}

/* Its forward or its external address has gone, or it was ended by hand. */
static __always_inline bool conn_over(const struct conn *conn)
{
	return stamp_over(&conn->forward) || stamp_over(&conn->address);
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

/* How long a half-open connection waits, counted from its last packet. */
static __always_inline __u64 conn_opening_time(const struct settings *time, __u8 protocol)
{
	return protocol == IPPROTO_TCP ? time->tcp_opening : conn_idle_time(time, protocol);
}

static __always_inline bool conn_expired(const struct conn *half, __u64 now)
{
	const struct settings *time = conn_settings();

	return !time || (now > half->last_seen && now - half->last_seen >= conn_opening_time(time, half->to.protocol));
}

/* One more, or one less, of this client's. */
static __always_inline void conn_charge(const union addr *client, __s32 change)
{
	__u32 *connections = bpf_map_lookup_elem(&sources, client), none = 0;

	if (!connections && change > 0) {
		bpf_map_update_elem(&sources, client, &none, BPF_NOEXIST);
		connections = bpf_map_lookup_elem(&sources, client);
	}
	if (connections && (change > 0 || *connections))
		__sync_fetch_and_add(connections, change);
}

static __always_inline bool conn_too_many(const union addr *client)
{
	const __u32 *connections = bpf_map_lookup_elem(&sources, client);
	const struct settings *settings = conn_settings();

	return connections && settings && settings->source_limit && *connections >= settings->source_limit;
}

static __always_inline void conn_count_closed(const union addr *client, const struct conn *conn)
{
	struct forward_stats *stats = stats_find(conn->forward.id);

	if (conn->state == CONN_EXPIRED)
		return;
	count_event(EVENT_CLOSED);
	conn_charge(client, -1);
	if (stats && conn->path < PATHS)
		stats->closed[conn->path]++;
}

/* False: as many are established as may be. */
static __always_inline bool conn_admit(void)
{
	__u32 zero = 0;
	struct census *census = bpf_map_lookup_elem(&censuses, &zero);

	if (!census)
		return false;
	if (__sync_fetch_and_add(&census->established, 1) < census->limit || !census->limit)
		return true;
	__sync_fetch_and_add(&census->established, -1);
	return false;
}

static __always_inline void conn_leave(void)
{
	__u32 zero = 0;
	struct census *census = bpf_map_lookup_elem(&censuses, &zero);

	if (census)
		__sync_fetch_and_add(&census->established, -1);
}

/* One of several CPUs makes the change: true for that one. */
static __always_inline bool conn_change(struct conn *opener, enum conn_state from, enum conn_state to)
{
	return __sync_val_compare_and_swap((__u32 *)&opener->state, from, to) == from;
}

/* Takes both directions out of the table; an established connection leaves room for another. */
static __always_inline void conn_take_out(const struct tuple *opener, const struct tuple *answerer, bool established)
{
	bpf_map_delete_elem(&conns, answerer);
	if (bpf_map_delete_elem(&conns, opener) == 0 && established)
		conn_leave();
}

/* Takes out the connection that this is a direction of. A stack frame of its own. */
static __noinline void conn_delete(struct work *work, const struct tuple *key, struct conn *conn)
{
	bool opener = conn->opener;

	tuple_reverse(&conn->to, &work->other);
	if (conn_half(conn))
		count_event(EVENT_ABANDONED);
	else
		conn_count_closed(opener ? &key->src : &conn->to.dst, conn);
	conn_take_out(opener ? key : &work->other, opener ? &work->other : key, !conn_half(conn));
}

/* Its FIN counts once the other side has acknowledged it: a forged one never is. */
static __always_inline bool conn_fin_acknowledged(const struct conn *from, const struct conn *by)
{
	return from->fin && by->ack == from->end;
}

/* RFC 7857 section 2: both FINs, or a RST that nothing has followed. */
static __always_inline bool conn_closing(const struct conn *one, const struct conn *other)
{
	return (one->rst && other->rst) ||
	       (conn_fin_acknowledged(one, other) && conn_fin_acknowledged(other, one));
}

/* How long an established connection stays. One that is over stays for a while, so that what its server still
 * sends is recognised and dropped, and, but for TCP, so that its tuple stays out of others' reach. */
static __always_inline __u64 conn_lifetime(const struct settings *time, const struct conn *opener,
					   const struct conn *answerer)
{
	__u8 protocol = opener->to.protocol;

	if (protocol != IPPROTO_TCP)
		return conn_idle_time(time, protocol) + (conn_over(opener) ? time->port_hold : 0);
	return conn_over(opener) || conn_closing(opener, answerer) ? time->tcp_closing : time->tcp_established;
}

/* What counts is the last packet of either side; but no stranger can keep a connection alive that its
 * server has left (RFC 4787 REQ-6). TCP has a state machine for that. */
static __always_inline __u64 conn_seen(const struct conn *opener, const struct conn *answerer)
{
	if (opener->path == PATH_WAN && opener->to.protocol != IPPROTO_TCP)
		return answerer->last_seen;
	return answerer->last_seen > opener->last_seen ? answerer->last_seen : opener->last_seen;
}

static __always_inline bool conn_due(const struct conn *opener, const struct conn *answerer)
{
	const struct settings *time = conn_settings();
	/* Not conn_now(): a syscall program, which starts the sweeping, may not read the coarse clock. */
	__u64 now = bpf_ktime_get_ns(), seen;

	if (!time || !answerer)
		return true;
	seen = conn_seen(opener, answerer);
	return now > seen && now - seen >= conn_lifetime(time, opener, answerer);
}

/* Does nobody else get its tuple for a while (RFC 6888 REQ-8)? Then it is over, but stays. */
static __always_inline bool conn_linger(struct conn *opener, struct conn *answerer)
{
	if (!answerer || opener->path != PATH_HAIRPIN || opener->to.protocol == IPPROTO_TCP || conn_over(opener))
		return false;
	conn_count_closed(&answerer->to.dst, opener);
	opener->state = answerer->state = CONN_EXPIRED;
	opener->forward.epoch--;
	answerer->forward.epoch = opener->forward.epoch;
	return true;
}

/* Has its time come? If so it is out of the table when this returns. */
static __always_inline bool conn_visit_established(const struct tuple *key, struct conn *conn)
{
	struct conn *answerer = conn_other(conn);
	struct tuple other;

	if (!conn_due(conn, answerer) || conn_linger(conn, answerer))
		return false;
	conn_count_closed(&key->src, conn);
	tuple_reverse(&conn->to, &other);
	conn_take_out(key, &other, true);
	return true;
}

/* A half-open connection gives way. False: it has moved on. */
static __always_inline bool conn_give_up(const struct tuple *key, struct conn *conn, enum conn_event event)
{
	struct tuple other;

	if (!conn_change(conn, CONN_HALF_OPEN, CONN_GONE))
		return false;
	count_event(event);
	tuple_reverse(&conn->to, &other);
	conn_take_out(key, &other, false);
	return true;
}

struct sweep {
	__u64 first;	/* created, of the first visited that lives on */
};

/* Does this one still wait here? In visits a key does, whose connection may have become another one since. */
static __always_inline bool conn_waits(const struct conn *conn, const struct visit *visit, bool opening)
{
	return opening ? conn_half(conn) && conn->created == visit->created : conn->opener && conn->queued;
}

/* One visit; 1 ends the round: none waits, or all have been seen. */
static __always_inline long conn_visit(void *queue, struct sweep *sweep)
{
	bool opening = queue != &visits;
	struct visit visit;
	struct conn *conn;

	if (bpf_map_pop_elem(queue, &visit) != 0)
		return 1;
	conn = conn_find(&visit.key);
	if (!conn || !conn_waits(conn, &visit, opening))
		return 0;
	if (opening && conn_expired(conn, bpf_ktime_get_ns()) && conn_give_up(&visit.key, conn, EVENT_ABANDONED))
		return 0;
	if (!opening && !conn_half(conn) && conn_visit_established(&visit.key, conn))
		return 0;
	/* A flood may have taken its place meanwhile. */
	if (bpf_map_push_elem(queue, &visit, 0) != 0)
		return opening && conn_give_up(&visit.key, conn, EVENT_EVICTED);
	if (sweep->first == visit.created)
		return 1;
	if (!sweep->first)
		sweep->first = visit.created;
	return 0;
}

static long conn_sweep_visits(__u32 index, struct sweep *sweep)
{
	(void)index;
	return conn_visit(&visits, sweep);
}

static long conn_sweep_openings(__u32 index, struct sweep *sweep)
{
	(void)index;
	return conn_visit(&openings, sweep);
}

static long conn_sweep_openings_other(__u32 index, struct sweep *sweep)
{
	(void)index;
	return conn_visit(&openings_other, sweep);
}

/* Runs once a second, with or without the daemon: a full table is gone through in half a minute. */
static int conn_sweep(void *map, __u32 *key, struct sweeper *sweeper)
{
	struct sweep established = {}, opening = {}, opening_other = {};

	(void)map;
	(void)key;
	bpf_loop(SWEEP_VISITS, conn_sweep_visits, &established, 0);
	bpf_loop(SWEEP_VISITS, conn_sweep_openings, &opening, 0);
	bpf_loop(SWEEP_VISITS, conn_sweep_openings_other, &opening_other, 0);
	bpf_timer_start(&sweeper->timer, SECOND_NS, 0);
	return 0;
}

/* Starts the sweeping, or hands it to this program. */
static __always_inline long conn_start_sweeper(void)
{
	__u32 zero = 0;
	struct sweeper *sweeper = bpf_map_lookup_elem(&sweepers, &zero);
	long err;

	if (!sweeper)
		return -1;
	err = bpf_timer_init(&sweeper->timer, &sweepers, CLOCK_MONOTONIC_ID);
	if (err && err != -TIMER_EXISTS)
		return err;
	err = bpf_timer_set_callback(&sweeper->timer, conn_sweep);
	return err ? err : bpf_timer_start(&sweeper->timer, SECOND_NS, 0);
}

/* The handshake is complete: it is an established connection, and visited from now on. Two CPUs may want that at
 * once: one does it, the other finds it done. A stack frame of its own. */
static __noinline enum reason conn_promote(const struct tuple *key, struct conn *opener, struct conn *answerer)
{
	struct visit visit = { .key = *key, .created = opener->created };
	struct forward_stats *stats;

	if (!conn_half(opener))
		return REASON_NONE;
	if (!conn_admit())
		return REASON_TABLE_FULL;
	if (!conn_change(opener, CONN_HALF_OPEN, CONN_ESTABLISHED)) {
		conn_leave();
		return conn_half(opener) ? REASON_ENDED : REASON_NONE;
	}
	if (!opener->queued && bpf_map_push_elem(&visits, &visit, 0) != 0) {
		opener->state = CONN_HALF_OPEN;
		conn_leave();
		return REASON_TABLE_FULL;
	}
	opener->queued = 1;
	answerer->state = CONN_ESTABLISHED;
	count_event(EVENT_ESTABLISHED);
	conn_charge(&key->src, 1);
	stats = stats_find(opener->forward.id);
	if (stats && opener->path < PATHS)
		stats->established[opener->path]++;
	return REASON_NONE;
}

/* The opener's third packet proves that it has seen the answer (RFC 9293 3.5); with TCP Fast Open either
 * side may be some data ahead. */
static __always_inline bool conn_handshake_done(const struct packet *pkt, const struct conn *opener,
						const struct conn *answerer)
{
	return answerer->packets && pkt->seq - opener->end < 0x10000 && pkt->ack - answerer->end < 0x10000;
}

static __always_inline void conn_track_tcp(const struct packet *pkt, struct conn *conn)
{
	if (pkt->tcp_flags & TCP_ACK)
		conn->ack = pkt->ack;
	if (conn_half(conn)) {
		if (pkt->tcp_flags & TCP_SYN)
			conn->end = pkt->seq + 1;
		return;
	}
	if (conn->rst)
		conn->rst = 0;
	if (pkt->tcp_flags & TCP_FIN) {
		conn->fin = 1;
		conn->end = pkt->seq + pkt->seq_length;
	}
}

/* A RST closes only with the very sequence number that its receiver expects (RFC 5961 section 3 in
 * spirit); any other is passed on, and changes and refreshes nothing. */
static __always_inline bool conn_track_rst(const struct packet *pkt, struct conn *conn)
{
	struct conn *other = conn_other(conn);

	if (!other || pkt->seq != other->ack)
		return false;
	conn->rst = 1;
	other->rst = 1;
	return true;
}

/* Follows the packet in the state of its connection. */
static __always_inline void conn_track(const struct packet *pkt, struct conn *conn)
{
	bool refresh = true;

	if (pkt->tuple.protocol == IPPROTO_TCP && pkt->fragment != FRAGMENT_LATER) {
		if (pkt->tcp_flags & TCP_RST)
			refresh = !conn_half(conn) && conn_track_rst(pkt, conn);
		else
			conn_track_tcp(pkt, conn);
	}
	if (refresh)
		conn->last_seen = pkt->now;
	conn->packets++;
	conn->bytes += pkt->length;
}

/* Both sides have closed it. */
static __always_inline bool conn_closed(const struct conn *conn)
{
	const struct conn *other;

	if (!(conn->fin || conn->rst))
		return false;
	other = conn_other(conn);
	return !other || conn_closing(conn, other);
}

/* A SYN of the opener begins anew where the old connection has closed (RFC 7857 section 2). */
static __always_inline bool conn_reopens(const struct packet *pkt, const struct conn *conn)
{
	return conn->opener && pkt->opens && conn_closed(conn);
}

/* Nothing follows this connection any more; its tuple may become another's. A half-open one may just have lost
 * its other direction to a flood: without it no answer would find its way. */
static __always_inline bool conn_stale(const struct packet *pkt, const struct conn *conn)
{
	if (conn_over(conn))
		return true;
	if (!conn_half(conn))
		return conn_reopens(pkt, conn);
	return conn_expired(conn, pkt->now) || (conn->opener && pkt->opens && conn->packets && !conn_other(conn));
}

/* May this tuple's connection make room for a new one? It is over, expired, or closed, and what its server
 * last heard of it was not another client's, or is long ago (RFC 6888 REQ-8, which excepts TCP). */
static __always_inline bool conn_gives_way(const struct conn *old, const struct conn *fresh)
{
	const struct settings *time = conn_settings();
	__u8 protocol = old->to.protocol;
	__u64 now = conn_now();

	if (!time || !(conn_over(old) || (conn_half(old) ? conn_expired(old, now) : conn_closed(old))))
		return false;
	if (protocol == IPPROTO_TCP || addr_equal(&old->to.dst, &fresh->to.dst))
		return true;
	return now - old->last_seen >= conn_idle_time(time, protocol) + time->port_hold;
}

/* The answerer's key is the reservation: it is one connection's alone. */
static __always_inline enum reason conn_reserve(struct work *work, const struct tuple *key, const struct conn *conn)
{
	struct conn *other;

	if (bpf_map_update_elem(&conns, key, conn, BPF_NOEXIST) == 0)
		return REASON_NONE;
	other = conn_find(key);
	if (!other)
		return REASON_TABLE_FULL;
	if (!conn_gives_way(other, conn))
		return REASON_TUPLE_IN_USE;
	conn_delete(work, key, other);
	return bpf_map_update_elem(&conns, key, conn, BPF_NOEXIST) == 0 ? REASON_NONE : REASON_TUPLE_IN_USE;
}

/* The half-open connection that came first gives way, if it still is one. A stack frame of its own. */
static __noinline void conn_evict(struct visit *first)
{
	struct conn *conn = conn_find(&first->key);

	if (conn && conn->created == first->created)
		conn_give_up(&first->key, conn, EVENT_EVICTED);
}

static __always_inline bool conn_queue(void *queue, struct work *work, const struct visit *visit)
{
	for (int i = 0; i < OPENING_TRIES; i++) {
		if (bpf_map_push_elem(queue, visit, 0) == 0)
			return true;
		if (bpf_map_pop_elem(queue, &work->evicted) == 0)
			conn_evict(&work->evicted);
	}
	return false;
}

/* Has its expiry seen to, and its giving way to others. A stack frame of its own. */
static __noinline bool conn_queue_opening(struct work *work, const struct tuple *opener, const struct conn *conn)
{
	struct visit visit = { .key = *opener, .created = conn->created };

	return opener->protocol == IPPROTO_TCP ? conn_queue(&openings, work, &visit)
					       : conn_queue(&openings_other, work, &visit);
}
