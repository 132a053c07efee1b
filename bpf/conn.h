// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Connection state: lookup, the pair of entries, promotion, TCP state, expiry.
 * An opening lives in half_open until its handshake completes; only then does it enter conns. */
#pragma once

#include "maps.h"
#include "packet.h"
#include "work.h"

enum { SECOND_NS = 1000000000, AWAITED_BITS = 13, SWEEP_VISITS = 4096 };
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

static __always_inline struct conn *conn_established(const struct tuple *key)
{
	return bpf_map_lookup_elem(&conns, key);
}

static __always_inline void *conn_half_table(__u8 protocol)
{
	return protocol == IPPROTO_TCP ? (void *)&half_open : (void *)&half_open_other;
}

static __always_inline struct conn *conn_half_open(const struct tuple *key)
{
	return bpf_map_lookup_elem(conn_half_table(key->protocol), key);
}

static __always_inline struct conn *conn_find(const struct tuple *key)
{
	struct conn *conn = conn_established(key);

	return conn ? conn : conn_half_open(key);
}

/* The other direction, in the table where this one is. A stack frame of its own. */
static __noinline struct conn *conn_other(const struct conn *conn, bool half)
{
	struct tuple key;

	tuple_reverse(&conn->to, &key);
	return half ? conn_half_open(&key) : conn_established(&key);
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

static __always_inline bool conn_expired(const struct conn *half)
{
	const struct settings *time = conn_settings();

	return !time || conn_now() - half->last_seen >= conn_opening_time(time, half->to.protocol);
}

/* FNV-1a over the words of a server's endpoint. */
static __always_inline __u32 conn_awaited_slot(const union addr *server, __be16 port)
{
	__u32 hash = 2166136261u;

	for (int i = 0; i < 4; i++)
		hash = (hash ^ server->word[i]) * 16777619u;
	hash = (hash ^ port) * 16777619u;
	return (hash ^ hash >> AWAITED_BITS) & ((1 << AWAITED_BITS) - 1);
}

/* May half_open hold a connection that waits for this packet? */
static __always_inline bool conn_awaited(const struct tuple *answer)
{
	__u32 slot = conn_awaited_slot(&answer->src, answer->sport);
	__u32 *until = bpf_map_lookup_elem(&awaited, &slot);

	return until && *until && *until > conn_now() / SECOND_NS;
}

static __always_inline void conn_await(const struct tuple *answer, __u64 wait)
{
	__u32 slot = conn_awaited_slot(&answer->src, answer->sport);
	__u32 *until = bpf_map_lookup_elem(&awaited, &slot);
	__u32 end = (conn_now() + wait) / SECOND_NS + 1;

	if (until && *until < end)
		*until = end;
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
	__u32 id = conn->forward.id;
	struct forward_stats *stats = bpf_map_lookup_elem(&forward_stats, &id);

	if (conn->expired)
		return;
	count_event(CONN_CLOSED);
	conn_charge(client, -1);
	if (stats && conn->path < PATHS)
		stats->closed[conn->path]++;
}

/* Takes both directions out, wherever they are. A stack frame of its own. */
static __noinline void conn_delete(struct work *work, const struct tuple *key, const struct conn *conn)
{
	tuple_reverse(&conn->to, &work->other);
	if (conn_established(key)) {
		conn_count_closed(conn->opener ? &key->src : &conn->to.dst, conn);
		bpf_map_delete_elem(&conns, &work->other);
		bpf_map_delete_elem(&conns, key);
		return;
	}
	count_event(CONN_ABANDONED);
	bpf_map_delete_elem(conn_half_table(key->protocol), &work->other);
	bpf_map_delete_elem(conn_half_table(key->protocol), key);
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

/* How long a connection of conns stays. One that is over stays for a while, so that what its server still
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
	opener->expired = answerer->expired = 1;
	opener->forward.epoch--;
	answerer->forward.epoch = opener->forward.epoch;
	return true;
}

struct sweep {
	__u64 first;	/* created, of the first visited that lives on */
};

/* One visit; 1 ends the round: none waits, or all have been seen. */
static long conn_visit(__u32 index, struct sweep *sweep)
{
	struct conn *conn, *answerer;
	struct visit visit;
	struct tuple other;
	bool stays;

	(void)index;
	if (bpf_map_pop_elem(&visits, &visit) != 0)
		return 1;
	conn = conn_established(&visit.key);
	if (!conn || conn->created != visit.created)
		return 0;
	answerer = conn_other(conn, false);
	stays = !conn_due(conn, answerer) || conn_linger(conn, answerer);
	if (stays && bpf_map_push_elem(&visits, &visit, 0) == 0) {
		if (sweep->first == visit.created)
			return 1;
		if (!sweep->first)
			sweep->first = visit.created;
		return 0;
	}
	conn_count_closed(&visit.key.src, conn);
	tuple_reverse(&conn->to, &other);
	bpf_map_delete_elem(&conns, &other);
	bpf_map_delete_elem(&conns, &visit.key);
	return 0;
}

/* Runs once a second, with or without the daemon: a full table is gone through in half a minute. */
static int conn_sweep(void *map, __u32 *key, struct sweeper *sweeper)
{
	struct sweep sweep = {};

	(void)map;
	(void)key;
	bpf_loop(SWEEP_VISITS, conn_visit, &sweep, 0);
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

/* One direction from half_open to conns; the kernel's error otherwise. */
static __always_inline long conn_move(const struct tuple *key, const struct conn *half)
{
	struct work *work = work_get();

	if (!work)
		return -1;
	work->moving = *half;
	return bpf_map_update_elem(&conns, key, &work->moving, BPF_NOEXIST);
}

/* Why the answerer's key is taken: another CPU moves the same connection, or conns is full. */
static __always_inline enum reason conn_promoted_by_other(const struct tuple *opener_key,
							  const struct tuple *answerer_key)
{
	struct conn *found = conn_established(answerer_key);

	if (!found)
		return REASON_TABLE_FULL;
	if (found->to.sport == opener_key->dport && found->to.dport == opener_key->sport &&
	    addr_equal(&found->to.src, &opener_key->dst) && addr_equal(&found->to.dst, &opener_key->src))
		return REASON_NONE;
	return REASON_TUPLE_IN_USE;
}

/* The handshake is complete: both directions move to conns, the answerer's first. Two CPUs may do it at
 * once: the loser finds the answerer's entry there and leaves the rest to the winner. Entries go into
 * conns before they leave half_open, so one table or the other always knows the connection. */
static __noinline enum reason conn_promote(const struct tuple *opener_key, const struct tuple *answerer_key)
{
	struct conn *opener = conn_half_open(opener_key);
	struct conn *answerer = conn_half_open(answerer_key);
	struct forward_stats *stats;
	struct visit visit;
	__u32 id;

	if (!opener || !answerer)
		return REASON_ENDED;
	if (conn_move(answerer_key, answerer) != 0)
		return conn_promoted_by_other(opener_key, answerer_key);
	visit.key = *opener_key;
	visit.created = opener->created;
	if (conn_move(opener_key, opener) != 0 || bpf_map_push_elem(&visits, &visit, 0) != 0) {
		bpf_map_delete_elem(&conns, opener_key);
		bpf_map_delete_elem(&conns, answerer_key);
		return REASON_TABLE_FULL;
	}
	count_event(CONN_ESTABLISHED);
	conn_charge(&opener_key->src, 1);
	id = opener->forward.id;
	stats = bpf_map_lookup_elem(&forward_stats, &id);
	if (stats && opener->path < PATHS)
		stats->established[opener->path]++;
	bpf_map_delete_elem(conn_half_table(opener_key->protocol), opener_key);
	bpf_map_delete_elem(conn_half_table(answerer_key->protocol), answerer_key);
	return REASON_NONE;
}

/* The opener's third packet proves that it has seen the answer (RFC 9293 3.5); with TCP Fast Open either
 * side may be some data ahead. */
static __always_inline bool conn_handshake_done(const struct packet *pkt, const struct conn *opener,
						const struct conn *answerer)
{
	return answerer->packets && pkt->seq - opener->end < 0x10000 && pkt->ack - answerer->end < 0x10000;
}

static __always_inline void conn_track_tcp(const struct packet *pkt, struct conn *conn, bool half)
{
	if (pkt->tcp_flags & TCP_ACK)
		conn->ack = pkt->ack;
	if (half) {
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
	struct conn *other = conn_other(conn, false);

	if (!other || pkt->seq != other->ack)
		return false;
	conn->rst = 1;
	other->rst = 1;
	return true;
}

/* Follows the packet in the state of its connection. */
static __always_inline void conn_track(const struct packet *pkt, struct conn *conn, bool half)
{
	bool refresh = true;

	if (pkt->tuple.protocol == IPPROTO_TCP && pkt->fragment != FRAGMENT_LATER) {
		if (pkt->tcp_flags & TCP_RST)
			refresh = !half && conn_track_rst(pkt, conn);
		else
			conn_track_tcp(pkt, conn, half);
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
	other = conn_other(conn, false);
	return !other || conn_closing(conn, other);
}

/* A SYN of the opener begins anew where the old connection has closed (RFC 7857 section 2). */
static __always_inline bool conn_reopens(const struct packet *pkt, const struct conn *conn)
{
	return conn->opener && pkt->opens && conn_closed(conn);
}

/* Nothing follows this connection any more; its tuple may become another's. A half-open one may have lost
 * its other direction to a flood: without it no answer would find its way. */
static __always_inline bool conn_stale(const struct packet *pkt, const struct conn *conn, bool half)
{
	if (conn_over(conn))
		return true;
	if (!half)
		return conn_reopens(pkt, conn);
	return conn_expired(conn) || (conn->opener && !conn_other(conn, true));
}

/* May this tuple's connection make room for a new one? It is over, expired, or closed, and what its server
 * last heard of it was not another client's, or is long ago (RFC 6888 REQ-8, which excepts TCP). */
static __always_inline bool conn_gives_way(const struct conn *old, const struct conn *fresh, bool half)
{
	const struct settings *time = conn_settings();
	__u8 protocol = old->to.protocol;

	if (!time || !(conn_over(old) || (half ? conn_expired(old) : conn_closed(old))))
		return false;
	if (protocol == IPPROTO_TCP || addr_equal(&old->to.dst, &fresh->to.dst))
		return true;
	return conn_now() - old->last_seen >= conn_idle_time(time, protocol) + time->port_hold;
}

/* Reserves an answerer's key: BPF_NOEXIST in half_open first, then a look into conns. An entry of conns
 * appears before its twin leaves half_open, so the look cannot miss a connection that is just moving. */
static __always_inline enum reason conn_reserve(struct work *work, const struct tuple *key,
						const struct conn *conn)
{
	struct conn *other;

	if (bpf_map_update_elem(conn_half_table(key->protocol), key, conn, BPF_NOEXIST) != 0) {
		other = conn_half_open(key);
		if (!other || !conn_gives_way(other, conn, true))
			return REASON_TUPLE_IN_USE;
		conn_delete(work, key, other);
		if (bpf_map_update_elem(conn_half_table(key->protocol), key, conn, BPF_NOEXIST) != 0)
			return REASON_TUPLE_IN_USE;
	}
	other = conn_established(key);
	if (!other)
		return REASON_NONE;
	if (conn_gives_way(other, conn, false)) {
		conn_delete(work, key, other);
		return REASON_NONE;
	}
	bpf_map_delete_elem(conn_half_table(key->protocol), key);
	return REASON_TUPLE_IN_USE;
}
