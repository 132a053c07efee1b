// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Opens connections: may the connection be opened, where does its target lie, and which source does the target
 * see? The opener is the end that opens the connection, the answerer is the end that answers. Both entries are
 * inserted only after these questions are answered. */
#pragma once

#include "balance.h"
#include "conn.h"
#include "conntrack.h"
#include "deny.h"
#include "direct.h"
#include "fib.h"
#include "forward.h"
#include "ingress.h"
#include "lifecycle.h"
#include "mapping.h"
#include "own_address.h"
#include "policy.h"
#include "rate.h"
#include "stand_in.h"
#include "work.h"

/* The search for a source port is bounded: PORT_TRIES tries. With half of all ports in use, 32 misses in a row
 * happen once in 4,000 million searches. The first PORT_PARITY_TRIES random ports have the parity of the opener's
 * port. The first PORT_RANGE_TRIES are in the range that is meant for the connection. PORT_LOWEST is the first port above
 * the well-known ports. */
enum { PORT_TRIES = 32, PORT_PARITY_TRIES = 16, PORT_RANGE_TRIES = 24, PORT_LOWEST = 1024 };

enum { SERIAL_CPU_BITS = 10, SERIAL_CPU_MASK = (1 << SERIAL_CPU_BITS) - 1 };
enum { CONN_SCALE_BITS = 15 << CONN_SCALE_SHIFT };

/* Returns the router's address that the target sees. The choice is the one of the kernel's masquerading: for IPv4 the
 * address in the subnet of the next hop (inet_select_addr), for IPv6 the address that fits the target
 * (ipv6_dev_get_saddr). NULL: the router has no address of this family. */
static __always_inline const struct own_address *open_router_address(const struct bpf_fib_lookup *fib,
								     const union addr *target)
{
	union addr next = *target;

	if (addr_is_v4(target) && fib->family == FIB_AF_INET)
		addr_from_v4(&next, fib->ipv4_dst);
	return own_address_find(fib->ifindex, &next);
}

/* Must the target see the router's address? Yes where its answers would not pass the router otherwise:
 *  - the router's own processes have opened the connection;
 *  - the target is behind a WAN: its gateway may be another router (the kernel masquerades such a packet, too);
 *  - the target is behind the interface of a LAN client. The client's packets may come in by another interface than the one
 *    behind which the client is: by a macvlan with a virtual MAC address (VRRP), or with asymmetric routes.
 * And yes if the forward wants it: for all clients, or with reflect router for LAN clients. */
static __always_inline bool open_hides_client(const struct opening *open, const struct forward *forward,
					      const struct interface *in, const struct interface *out, __u32 out_ifindex)
{
	if (in->role == ROLE_LOCAL || out->role == ROLE_WAN || forward->hides_clients)
		return true;
	return in->role == ROLE_LAN && (forward->reflect == REFLECT_ROUTER || out_ifindex == open->ifindex ||
					out_ifindex == open->client_by);
}

/* Sets open->sent.src, the source that the answerer sees. With reflect prefix, an opener that has no stand-in is
 * treated as with reflect auto. NO_CONNECTION: the server answered the client's own address. With this forward the
 * server never sees that address, so the packet is no answer of this forward. */
static __always_inline enum reason open_source(struct work *work, const struct interface *in,
					       const struct forward *forward)
{
	struct opening *open = &work->open;
	__u32 ifindex = work->route.fib.ifindex;
	const struct interface *out = bpf_map_lookup_elem(&interfaces, &ifindex);
	const struct own_address *own;

	open->by_router = false;
	/* No ingress program sees what the router sends to other hosts. With its own address as the source, the
	 * router answers to itself by the loopback device, where hairpin sees the answers. */
	if (open->to_router) {
		open->sent.src = open->sent.dst;
		return REASON_NONE;
	}
	if (!out)
		return REASON_NOT_ATTACHED;
	if (in->role == ROLE_LAN && out->role != ROLE_WAN && forward->reflect == REFLECT_PREFIX &&
	    stand_in_swap(&open->sent.src, true))
		return REASON_NONE;
	open->mapped = in->role == ROLE_LAN && forward->reflect == REFLECT_PUBLIC;
	if (open->mapped) {
		open->sent.src = open->key.dst;
		return REASON_NONE;
	}
	if (!open_hides_client(open, forward, in, out, ifindex))
		return REASON_NONE;
	if (open->by_server)
		return REASON_NO_CONNECTION;
	open->by_router = true;
	own = open_router_address(&work->route.fib, &open->sent.dst);
	if (!own)
		return REASON_NO_ADDRESS;
	open->sent.src = own->address;
	return REASON_NONE;
}

/* The length of the argument of bpf_sk_lookup_tcp and bpf_sk_lookup_udp in bytes tells the kernel the address family. */
static __always_inline __u32 open_socket_length(const struct tuple *packet)
{
	return tuple_is_v6(packet) ? sizeof(((struct bpf_sock_tuple *)0)->ipv6) : sizeof(((struct bpf_sock_tuple *)0)->ipv4);
}

/* Fills the argument of bpf_sk_lookup_tcp and bpf_sk_lookup_udp. Returns its length. */
static __always_inline __u32 open_socket_tuple(const struct tuple *packet, struct bpf_sock_tuple *tuple)
{
	if (addr_is_v4(&packet->dst)) {
		tuple->ipv4.saddr = packet->src.word[3];
		tuple->ipv4.daddr = packet->dst.word[3];
		tuple->ipv4.sport = packet->sport;
		tuple->ipv4.dport = packet->dport;
		return sizeof(tuple->ipv4);
	}
	__builtin_memcpy(tuple->ipv6.saddr, packet->src.word, sizeof(tuple->ipv6.saddr));
	__builtin_memcpy(tuple->ipv6.daddr, packet->dst.word, sizeof(tuple->ipv6.daddr));
	tuple->ipv6.sport = packet->sport;
	tuple->ipv6.dport = packet->dport;
	return sizeof(tuple->ipv6);
}

/* Has hairpin already translated this packet, and sent it to the router itself by the loopback device? Then the
 * reversed tuple is the key of an entry. */
static __always_inline bool open_delivered(struct work *work)
{
	if (work->pkt.ifindex != LOOPBACK_IFINDEX)
		return false;
	tuple_reverse(&work->pkt.tuple, &work->other.key);
	return conn_find(&work->other.key, &work->other.entry);
}

enum { DHCP_SERVER = 67, DHCP_CLIENT = 68, DHCP6_CLIENT = 546, DHCP6_SERVER = 547 };

/* From a DHCP server to a client (RFC 2131 4.1, RFC 8415 7.2)? The router's client may read it by a packet socket, which no
 * look-up finds, and conntrack knows no answer to a broadcast. */
static __always_inline bool open_dhcp_answer(const struct tuple *packet)
{
	return packet->protocol == IPPROTO_UDP &&
	       ((packet->sport == bpf_htons(DHCP_SERVER) && packet->dport == bpf_htons(DHCP_CLIENT)) ||
		(packet->sport == bpf_htons(DHCP6_SERVER) && packet->dport == bpf_htons(DHCP6_CLIENT)));
}

/* Has the forward that would take this packet several ports? */
static __always_inline bool open_wide(const struct tuple *packet)
{
	const struct external *external = external_find(&packet->dst);
	const struct forward *forward;

	forward = external ? forward_find(forward_slot(), external, packet->protocol, packet->dport) : NULL;
	return forward && forward->wide;
}

/* May an unconnected UDP socket at this port have asked for the packet? An unconnected socket may be a server or a client. A server
 * must not take a forward's packets. Where connections are tracked, conntrack knows which of them has asked. Elsewhere the port
 * tells: the kernel has chosen it for a client, or it is a DHCP client's. A forward of one port in the ephemeral range means that
 * port, and wins. */
static __always_inline bool open_port_asks(const struct tuple *packet)
{
	__u16 port = bpf_ntohs(packet->dport);

	if (port == DHCP_CLIENT || port == DHCP6_CLIENT)
		return true;
	return !conntrack_tracks && port >= ephemeral_first && port <= ephemeral_last && open_wide(packet);
}

/* Has a socket of the router asked for this packet, whose tuple is in open.socket? */
static __always_inline bool open_socket_asked(void *ctx, struct work *work, const struct tuple *packet, __u32 length)
{
	struct bpf_sock_tuple *tuple = &work->open.socket;
	struct bpf_sock *sock = NULL;
	bool connected;

	if (packet->protocol == IPPROTO_TCP)
		sock = bpf_sk_lookup_tcp(ctx, tuple, length, BPF_F_CURRENT_NETNS, 0);
	else
		sock = bpf_sk_lookup_udp(ctx, tuple, length, BPF_F_CURRENT_NETNS, 0);
	if (!sock)
		return false;
	connected = sock->dst_port != 0;
	bpf_sk_release(sock);
	return connected || (packet->protocol == IPPROTO_UDP && open_port_asks(packet));
}

/* Whose is a packet? ASKED_CONNTRACK: conntrack must be asked, for the tuple in open.socket. */
enum asked { ASKED_NOT, ASKED_BY_ROUTER, ASKED_CONNTRACK };

static __always_inline const struct tuple *open_asked_tuple(const struct work *work, bool quoted)
{
	return quoted ? &work->error.answer : &work->pkt.tuple;
}

/* Is the packet an answer to what the router has asked? All that is known without conntrack. A stack frame of its own. */
static __noinline enum asked open_asked(void *ctx, struct work *work, bool quoted)
{
	const struct tuple *packet = open_asked_tuple(work, quoted);
	__u32 length;

	if (!quoted && open_delivered(work))
		return ASKED_BY_ROUTER;
	if (packet->protocol != IPPROTO_TCP && packet->protocol != IPPROTO_UDP)
		return ASKED_NOT;
	if (open_dhcp_answer(packet))
		return ASKED_BY_ROUTER;
	length = open_socket_tuple(packet, &work->open.socket);
	if (open_socket_asked(ctx, work, packet, length))
		return ASKED_BY_ROUTER;
	return conntrack_asked ? ASKED_CONNTRACK : ASKED_NOT;
}

/* Is this packet, or if quoted is set the answer to the packet that an ICMP error quotes, an answer to what the router itself, or a
 * client that the kernel masquerades, has asked? A forward must not take such an answer (RFC 4787 REQ-1): netfilter, too, looks into
 * its connections before it looks at a rule. */
__noinline bool open_kernels_own_tc(struct __sk_buff *skb, bool quoted)
{
	struct work *work = work_get();
	const struct tuple *packet;
	enum asked asked;

	if (!work)
		return false;
	asked = open_asked(skb, work, quoted);
	if (asked != ASKED_CONNTRACK)
		return asked == ASKED_BY_ROUTER;
	packet = open_asked_tuple(work, quoted);
	return conntrack_find_tc(skb, &work->open.socket, open_socket_length(packet), packet->protocol) == CONNTRACK_REPLY;
}

/* The same for XDP, which leaves ICMP errors to TC. */
__noinline bool open_kernels_own_xdp(struct xdp_md *ctx)
{
	struct work *work = work_get();
	const struct tuple *packet;
	enum asked asked;

	if (!work)
		return false;
	asked = open_asked(ctx, work, false);
	if (asked != ASKED_CONNTRACK)
		return asked == ASKED_BY_ROUTER;
	packet = open_asked_tuple(work, false);
	return conntrack_find_xdp(ctx, &work->open.socket, open_socket_length(packet), packet->protocol) == CONNTRACK_REPLY;
}

static __always_inline bool open_kernels_own(void *ctx, enum hook hook)
{
	return hook == HOOK_XDP ? open_kernels_own_xdp(ctx) : open_kernels_own_tc(ctx, false);
}

/* May the answers come to a port of a forward? A forward of every port leaves no other port. An answer is found by its
 * connection before the forwards are asked, so such a port is only the last choice. With reflect public other hosts also
 * send to this port, so a forward's port is never used. */
static __always_inline bool open_shares_port(const struct opening *open)
{
	return !open->mapped && (open->fixed || open->tries > PORT_RANGE_TRIES);
}

/* Does the kernel's conntrack know a connection with this tuple, in either direction? The verifier knows the hook, so each program
 * calls the function of its own hook. Not inlined, to save stack. */
static __noinline bool open_kernel_has(void *ctx, struct work *work, const struct tuple *packet, enum hook hook)
{
	struct bpf_sock_tuple *tuple = &work->open.socket;
	__u32 length;

	if (packet->protocol != IPPROTO_TCP && packet->protocol != IPPROTO_UDP)
		return false;
	length = open_socket_tuple(packet, tuple);
	return (hook == HOOK_XDP ? conntrack_find_xdp(ctx, tuple, length, packet->protocol)
				 : conntrack_find_tc(ctx, tuple, length, packet->protocol)) != CONNTRACK_NOTHING;
}

/* Do the answers come by a WAN? The target is behind a WAN, and the kernel masquerades other connections to this target. */
static __always_inline bool open_meets_masquerade(const struct opening *open)
{
	return conntrack_asked && open->conn.identity & CONN_FROM_WAN;
}

/* Is the port of the answers already in use by a forward or by a socket of the router, or by a connection that the kernel
 * masquerades? Then these and this reflected connection would get each other's answers. Not inlined, to save stack. */
static __noinline bool open_port_taken(void *ctx, struct work *work, enum hook hook)
{
	const struct tuple *answer = &work->open.answer;
	struct bpf_sock_tuple *tuple = &work->open.socket;
	struct bpf_sock *sock = NULL;
	struct external *external;
	__u32 length;

	if (addr_equal(&answer->dst, &work->open.key.src) && work->pkt.ifindex != LOOPBACK_IFINDEX)
		return false;
	external = open_shares_port(&work->open) ? NULL : external_find(&answer->dst);
	if (external && forward_find(forward_slot(), external, answer->protocol, answer->dport))
		return true;
	length = open_socket_tuple(answer, tuple);
	/* Sockets that are just opening or closing also get segments: bpf_skc_lookup_tcp finds them,
	 * bpf_sk_lookup_tcp does not. */
	if (answer->protocol == IPPROTO_TCP)
		sock = bpf_skc_lookup_tcp(ctx, tuple, length, BPF_F_CURRENT_NETNS, 0);
	else if (answer->protocol == IPPROTO_UDP)
		sock = bpf_sk_lookup_udp(ctx, tuple, length, BPF_F_CURRENT_NETNS, 0);
	if (!sock)
		return open_meets_masquerade(&work->open) && open_kernel_has(ctx, work, answer, hook);
	bpf_sk_release(sock);
	return true;
}

/* May the old connection be removed, to make room for a new connection on the same tuple? It must be revoked,
 * closing, or half-open and expired (only the opener's entry shows that). If it is not TCP, one more condition
 * must hold (RFC 6888 REQ-8):
 *  - the tuple is the key of the new opener (own);
 *  - the old entry leads to the same address as the new entry;
 *  - or no packet has come for the idle time plus port_hold. */
static __always_inline bool open_gives_way(const struct conn *old, const struct entry *entry, const struct tuple *to, bool own,
					   __u32 now)
{
	const struct settings *time = conn_settings();
	__u8 protocol = to->protocol;
	bool opener = entry->identity & CONN_OPENER, over = conn_revoked(old, entry->identity);

	if (!time)
		return false;
	if (!over && conn_state(entry->identity) != CONN_CLOSING &&
	    !(conn_half(entry->identity) && opener && conn_expired(old, protocol, now)))
		return false;
	if (protocol == IPPROTO_TCP || own || addr_equal(&entry->to.dst, &to->dst))
		return true;
	return conn_idle(old->seen, now, conn_idle_time(time, protocol) + time->port_hold);
}

/* Is the port of the answers one that was drawn, and may another one be drawn? The opener's own port is not drawn, nor the external
 * port that the opener has already (reflect public). For a drawn port every old connection stays: the server may have a closing one
 * in TIME-WAIT, and may not know yet that an established one is over. */
static __always_inline bool open_may_draw_again(const struct opening *open)
{
	bool given = open->mapped && open->tries == 1;

	return open->answer.dport != open->key.sport && !given && open->tries < PORT_TRIES;
}

/* Handles an old entry with this key. TUPLE_IN_USE: the old connection stays. RACED: another CPU is removing the
 * old connection. OBSTACLE: the old connection must be removed first, and open.obstacle is its opener's direction.
 * nat_open calls open_remove_obstacle: the call chain has no stack left for the removal here. */
static __always_inline enum reason open_obstacle(struct work *work, const struct tuple *key, const struct tuple *to, bool own)
{
	struct direction *obstacle = &work->open.obstacle;
	struct conn *old = conn_find(key, &obstacle->entry);
	__u32 serial;

	if (!old)
		return REASON_RACED;
	if ((!own && open_may_draw_again(&work->open)) || !open_gives_way(old, &obstacle->entry, to, own, work->pkt.ms))
		return REASON_TUPLE_IN_USE;
	if (obstacle->entry.identity & CONN_OPENER) {
		obstacle->key = *key;
		return REASON_OBSTACLE;
	}
	serial = conn_serial(obstacle->entry.identity);
	tuple_reverse(&obstacle->entry.to, &obstacle->key);
	old = conn_find(&obstacle->key, &obstacle->entry);
	return old && conn_serial(obstacle->entry.identity) == serial ? REASON_OBSTACLE : REASON_RACED;
}

/* Removes the connection in open.obstacle. False: another CPU has changed or removed it. */
__noinline bool open_remove_obstacle(void)
{
	struct work *work = work_get();
	struct direction *obstacle;
	struct conn *old;
	__u32 serial;

	if (!work)
		return false;
	obstacle = &work->open.obstacle;
	serial = conn_serial(obstacle->entry.identity);
	old = conn_find(&obstacle->key, &obstacle->entry);
	return old && conn_serial(obstacle->entry.identity) == serial &&
	       life_remove(&obstacle->key, old, &obstacle->entry, EVENT_ABANDONED, false);
}

/* Can the opener also have a direct connection with the same answers? The target must see the opener's own address. */
static __always_inline bool open_may_be_direct(const struct opening *open)
{
	__u32 ifindex = open->ifindex;
	const struct interface *in;

	if (!addr_equal(&open->answer.dst, &open->key.src))
		return false;
	in = bpf_map_lookup_elem(&interfaces, &ifindex);
	return in && direct_reaches(in, &open->key.src, &open->answer.src);
}

/* Inserts the answerer's entry. No other entry may have its key, so the insertion also reserves the source port.
 * BEGUN: another CPU has already opened this connection. OBSTACLE, RACED, TUPLE_IN_USE: as in open_obstacle. */
__noinline enum reason open_reserve(void)
{
	struct work *work = work_get();
	struct opening *open;
	long number;

	if (!work)
		return REASON_TABLE_FULL;
	open = &work->open;
	number = conn_insert(&open->answer, &open->conn, &open->to);
	if (number >= 0 && open_may_be_direct(open) && direct_has(work, &open->answer)) {
		table_erase(&open->answer, conn_serial(open->conn.identity));
		return REASON_TUPLE_IN_USE;
	}
	if (number >= 0)
		return REASON_NONE;
	if (number != TABLE_EXISTS)
		return number == TABLE_AGAIN ? REASON_RACED : REASON_TABLE_FULL;
	/* Another CPU has opened this connection for another packet of the opener: its entries stay. */
	if (conn_find(&open->key, &open->entry))
		return REASON_BEGUN;
	return open_obstacle(work, &open->answer, &open->to, false);
}

struct port_search {
	void *ctx;
	__u64 hook;	/* of eight bytes: the verifier knows the value of such a word on the stack */
	enum reason reason;
};

/* The range of ports to draw from. */
struct port_range {
	__u32 first, last;
};

/* Returns the ports for a connection of this opener. An opener below 1024 gets a port below 1024, others one from 1024 up
 * (RFC 4787 REQ-3a). With the router's address as the source, the ports from 1024 up are those of the setting reflect_ports:
 * no socket of the router gets one of them. The last tries, when nearly all of these are in use, take a lower port: the kernel
 * gives such a port only to a socket that asks for it. */
static __always_inline struct port_range open_port_range(const struct opening *open)
{
	const struct settings *settings = conn_settings();

	if (bpf_ntohs(open->key.sport) < PORT_LOWEST)
		return (struct port_range){ 0, PORT_LOWEST - 1 };
	if (open->by_router && settings && open->tries < PORT_RANGE_TRIES)
		return (struct port_range){ settings->reflect_first, settings->reflect_last };
	if (open->by_router && ephemeral_first > PORT_LOWEST)
		return (struct port_range){ PORT_LOWEST, ephemeral_first - 1 };
	return (struct port_range){ PORT_LOWEST, PORTS_ALL - 1 };
}

/* May the connection keep the opener's port, if it is free? */
static __always_inline bool open_keeps_port(const struct opening *open)
{
	struct port_range range = open_port_range(open);
	__u32 port = bpf_ntohs(open->key.sport);

	return !open->other_port && (!open->by_router || (range.first <= port && port <= range.last));
}

/* Returns a random port of the range. The port has the parity of the opener's port (RFC 4787 REQ-4), unless any_parity. */
static __always_inline __be16 open_draw_port(const struct opening *open, bool any_parity)
{
	struct port_range range = open_port_range(open);
	__u32 kept = bpf_ntohs(open->key.sport);
	__u32 port = range.first + bpf_get_prandom_u32() % (range.last - range.first + 1);

	if (!any_parity)
		port = (port & ~1u) | (kept & 1);
	if (port < range.first)
		port += 2;
	if (port > range.last)
		port -= 2;
	return bpf_htons((__u16)(port ? port : 2));
}

/* Tries one port. A callback of bpf_loop: 1 ends the search. */
static long open_try_port(__u32 index, struct port_search *search)
{
	struct work *work = work_get();
	struct opening *open;

	(void)index;
	if (!work)
		return 1;
	open = &work->open;
	if (!open->fixed && (open->tries > 0 || !open_keeps_port(open)))
		open->answer.dport = open_draw_port(open, open->tries > PORT_PARITY_TRIES);
	open->tries++;
	if ((open->other_port && open->answer.dport == open->key.sport) || open_port_taken(search->ctx, work, (enum hook)search->hook) ||
	    (open->mapped && !mapping_claim(work)))
		return 0;
	search->reason = open_reserve();
	return search->reason != REASON_TUPLE_IN_USE && search->reason != REASON_NO_PORT;
}

/* Reserves the source port of the connection: the opener's port if it is free and allowed, otherwise a random port
 * (RFC 6056 3.3.2). The opener's port is in use if the opener reaches one target by two forwards, or if another reflected
 * opener has the same port. The insertion of the answerer's entry reserves the port. */
static __always_inline enum reason open_reserve_port(void *ctx, struct work *work, enum hook hook)
{
	struct port_search search = { .ctx = ctx, .hook = hook, .reason = REASON_NO_PORT };
	struct opening *open = &work->open;

	open->fixed = !work->pkt.l4.ports_length || open->by_server;
	open->mapped &= !open->fixed;
	/* The target could not tell a direct connection from this one. Unlike a note in directs, an entry of conntrack lives as long
	 * as its connection. */
	open->other_port = conn_made_for(&open->conn) == MADE_FOR_DIRECT ||
			   (conntrack_asked && !open->by_server && open_may_be_direct(open) && open_kernel_has(ctx, work, &open->sent, hook));
	/* An ICMP query has an id, which no socket of the router reserves. */
	open->by_router &= work->pkt.l4.ports_length == 2 * sizeof(__be16);
	if (open->mapped)
		open->answer.dport = mapping_port(work);
	open->tries = 0;
	if (!open_try_port(0, &search) && !open->fixed)
		bpf_loop(PORT_TRIES - 1, open_try_port, &search, 0);
	if (search.reason == REASON_NONE && open->mapped)
		mapping_keep(work);
	if (search.reason != REASON_TUPLE_IN_USE && search.reason != REASON_NO_PORT)
		return search.reason;
	return open->fixed ? REASON_PORT_FIXED : REASON_NO_PORT;
}

/* May this packet rebuild a connection that was lost? With a stand-in, the forward alone determines the
 * translation. For an answer to the Internet, open_rebuild has found exactly one forward. */
static __always_inline bool open_rebuilds(const struct work *work, const struct interface *in,
					  const struct forward *forward)
{
	const struct packet *pkt = &work->pkt;

	if (work->open.from_wan)
		return true;
	if (in->role != ROLE_LAN || forward->reflect != REFLECT_PREFIX || pkt->fragment == FRAGMENT_LATER)
		return false;
	return !(pkt->tcp_flags & (TCP_SYN | TCP_RST)) && stand_in_has(&work->open.key.src);
}

/* May the opener have a half-open connection? CHALLENGED: half-open TCP places are scarce, or the opener's source
 * has more than its share. The SYN then gets a challenge, unless its source has answered a challenge before.
 * SOURCE_LIMIT: the source, or its LAN, has too many connections. A LAN client's direct connection counts as proven: it needs
 * a living translated connection of the same client and port, which no flood has. */
__noinline enum reason open_place(bool direct)
{
	struct work *work = work_get();
	struct source source;
	struct opening *open;
	bool v6, tcp;

	if (!work)
		return REASON_TABLE_FULL;
	open = &work->open;
	source = source_get(open->client);
	v6 = tuple_is_v6(&open->key);
	tcp = open->key.protocol == IPPROTO_TCP;
	open->proven = false;
	open->client_over_share = life_over_share(source.half_open, tcp ? PLACE_HALF_TCP : PLACE_HALF_OTHER, v6);
	open->chosen = tcp && !open->client_over_share && !life_under_pressure(v6);
	if (tcp && !open->chosen) {
		open->proven = (direct && open->lan) || proven_is(open->client, work->pkt.second);
		if (!open->proven && work->pkt.tcp_flags == TCP_SYN)
			return REASON_CHALLENGED;
		if (life_over_share(source.half_open, PLACE_HALF_PROVEN, v6))
			return REASON_SOURCE_LIMIT;
	}
	return life_too_many(source, open->lan, tcp) ? REASON_SOURCE_LIMIT : REASON_NONE;
}

/* May this packet open or rebuild a connection of this forward? NONE: yes. Not inlined, to save stack. */
static __noinline enum reason open_permitted(void *ctx, struct work *work, const struct interface *in,
					     const struct forward *forward)
{
	const struct packet *pkt = &work->pkt;
	const union addr *client = &work->open.key.src;
	const struct interface *by = work->open.by_server ? bpf_map_lookup_elem(&interfaces, &pkt->ifindex) : in;
	enum reason reason;

	work->open.client_hop = 0;
	work->open.lan = in->role == ROLE_LAN ? source_lan_hash(work->open.ifindex) : 0;
	if (pkt->flaw != REASON_NONE)
		return pkt->flaw;
	/* This RST answers a challenge: note that its source is proven. */
	if (pkt->tcp_flags & TCP_RST && !work->open.by_server && challenge_answered(pkt)) {
		proven_note(source_hash(client, in->role == ROLE_WAN), pkt->second);
		return REASON_CHALLENGED;
	}
	if ((!pkt->opens || work->open.by_server) && !open_rebuilds(work, in, forward))
		return REASON_NON_SYN;
	if (pkt->hook == HOOK_XDP && __builtin_memcmp(in->mac, pkt->local_mac, ETH_ALEN) != 0)
		return REASON_OTHER_HOST;
	reason = by ? ingress_source(ctx, work, by) : REASON_SPOOFED;
	if (reason != REASON_NONE)
		return reason;
	work->open.client_by = work->open.by_server ? work->open.ifindex : work->route.back_ifindex;
	/* The way back to the opener is the way of the answers: keep its next hop. */
	if (work->route.back_resolved && !work->open.by_server)
		work->open.client_hop = hop_remember(false);
	if (deny_has(client, pkt->second))
		return REASON_DENIED;
	if (!forward_allows(forward_slot(), forward, client))
		return REASON_NOT_ALLOWED;
	if (in->role != ROLE_WAN && forward->reflect == REFLECT_OFF)
		return REASON_REFLECT_OFF;
	work->open.client = source_hash(client, in->role == ROLE_WAN);
	return open_place(!forward->epoch_ref.id);
}

/* Sets the target in open->sent. A packet of the target, which rebuilds its connection, says itself which server it is. */
static __always_inline void open_target(struct work *work, const struct interface *in, const struct forward *forward)
{
	struct opening *open = &work->open;
	struct tuple *sent = &open->sent;

	open->new_client = open->by_affinity = false;
	if (open->by_server) {
		sent->dst = work->pkt.tuple.src;
		sent->dport = work->pkt.tuple.sport;
	} else if (!forward->places || !balance_choose(open, forward, work->pkt.second, in->role == ROLE_WAN)) {
		sent->dst = forward->target;
		sent->dport = bpf_htons((__u16)(bpf_ntohs(sent->dport) + forward->port_shift));
	}
}

/* Finds the route to the target. Then sets the source that the answerer sees (open->sent), and the key of the
 * answers (open->answer). Not inlined, to save stack. */
static __noinline enum reason open_route(void *ctx, struct work *work, const struct interface *in,
					 const struct forward *forward)
{
	struct opening *open = &work->open;
	struct fib_start start = { .ifindex = open->ifindex };
	struct tuple *sent = &open->sent;
	enum reason reason;
	long result;

	*sent = open->key;
	open_target(work, in, forward);
	result = fib_route(ctx, &work->route.fib, start, sent, sizeof(struct iphdr));
	open->to_router = !fib_found(result) && in->role == ROLE_LAN && own_address_has(OWN_ADDRESS_ALL, &sent->dst);
	if (!fib_found(result) && !open->to_router)
		return fib_reason(result);
	open->resolved = result == BPF_FIB_LKUP_RET_SUCCESS;
	if (work->pkt.hook == HOOK_XDP && !open->resolved)
		return REASON_NEXT_HOP;
	reason = open_source(work, in, forward);
	tuple_reverse(sent, &open->answer);
	return reason;
}

/* Returns how the connection reaches its forward. Not inlined, so that the enum stays in BTF: bpf2go makes a Go
 * type from it. */
static __noinline enum conn_path open_path(const struct interface *in)
{
	switch (in->role) {
	case ROLE_LAN:
		return PATH_HAIRPIN;
	case ROLE_LOCAL:
		return PATH_LOCAL;
	default:
		return PATH_WAN;
	}
}

static __always_inline bool open_out_is_wan(__u32 ifindex)
{
	const struct interface *out = bpf_map_lookup_elem(&interfaces, &ifindex);

	return out && out->role == ROLE_WAN;
}

/* Returns a new serial, never 0. Serials of different CPUs differ in their lowest SERIAL_CPU_BITS bits. */
static __always_inline __u32 open_serial(void)
{
	__u32 zero = 0, cpu = bpf_get_smp_processor_id();
	struct serial *serial = bpf_map_lookup_elem(&serials, &zero);

	if (!serial)
		return 1;
	serial->next++;
	return ((serial->next << SERIAL_CPU_BITS) | (cpu & SERIAL_CPU_MASK)) + 1 ?: 1;
}

/* Fills open.conn with the answerer's entry, and open.to with the tuple that its packets leave with. */
static __always_inline void open_write(struct work *work, const struct interface *in, const struct epoch_ref *address,
				       const struct forward *forward)
{
	struct opening *open = &work->open;
	const struct packet *pkt = &work->pkt;
	struct conn *conn = &open->conn;

	__builtin_memset(conn, 0, sizeof(*conn));
	conn->identity = (__u64)open_serial() << 32 | CONN_HALF_OPEN | open_path(in) << CONN_PATH_SHIFT |
			 open->lan << CONN_LAN_SHIFT | TCP_SCALE_NONE << CONN_SCALE_SHIFT;
	if (!pkt->opens || open->by_server)
		conn->identity |= CONN_REBUILT;
	if (pkt->tcp_flags & TCP_SYN)
		conn->identity |= CONN_CHALLENGE;
	if (in->role == ROLE_LOCAL)
		conn->identity |= CONN_LOCAL;
	conn_set_made_from(conn, &forward->epoch_ref, address, pkt->second);
	conn->seen = pkt->ms;
	conn->ifindex = open->to_router ? LOOPBACK_IFINDEX : work->route.fib.ifindex;
	if (!open->to_router && open_out_is_wan(work->route.fib.ifindex))
		conn->identity |= CONN_FROM_WAN;
	/* If opener and answerer are behind one interface, the answers leave by the next hop that ingress_source
	 * has found. A stored hop holds the ingress interface's MAC address, so it fits no other interface. */
	conn->hop = work->route.fib.ifindex == open->ifindex ? open->client_hop : 0;
	tuple_reverse(&open->key, &open->to);
}

/* Changes open.conn into the opener's entry, and open.to into the tuple that its packets leave with. */
static __always_inline void open_write_opener(struct work *work, const struct interface *in)
{
	struct opening *open = &work->open;
	const struct packet *pkt = &work->pkt;
	struct conn *conn = &open->conn;

	conn->identity &= ~(__u64)(CONN_LOCAL | CONN_FROM_WAN | CONN_CHALLENGE | CONN_SCALE_BITS);
	conn->identity |= CONN_OPENER | (open->proven ? CONN_PROVEN : 0) | (open->to_router ? CONN_LOCAL : 0) |
			  (in->role == ROLE_WAN ? CONN_FROM_WAN : 0) | (__u32)pkt->scale << CONN_SCALE_SHIFT;
	if (pkt->tcp_flags & TCP_SYN)
		conn->end = pkt->seq + 1;
	conn->window = pkt->window;
	conn->ifindex = open->ifindex;
	conn->hop = 0;
	if (open->resolved && !open->by_server)
		conn->hop = hop_remember(false);
	tuple_reverse(&open->answer, &open->to);
}

/* Inserts both entries of the connection that open_prepare has prepared. The answerer's entry comes first, because its key
 * reserves the source port. If the opener's entry cannot be inserted, the answerer's entry is erased. NONE: the connection is in
 * the table. */
static __always_inline enum reason open_insert(void *ctx, struct work *work, enum hook hook)
{
	struct opening *open = &work->open;
	__u32 ifindex = open->ifindex;
	const struct interface *in = bpf_map_lookup_elem(&interfaces, &ifindex);
	enum reason reason;
	long number;

	open->inserted = false;
	if (!in)
		return REASON_NOT_ATTACHED;
	reason = open_reserve_port(ctx, work, hook);
	if (reason == REASON_BEGUN)
		return REASON_NONE;
	if (reason != REASON_NONE)
		return reason;
	open_write_opener(work, in);
	count_event(EVENT_OPENED);
	life_count_opening(1);
	number = conn_insert(&open->key, &open->conn, &open->to);
	if (number < 0) {
		table_erase(&open->answer, conn_serial(open->conn.identity));
		life_count_opening(-1);
		count_event(EVENT_ABANDONED);
		if (number != TABLE_EXISTS)
			return number == TABLE_AGAIN ? REASON_RACED : REASON_TABLE_FULL;
		/* Another CPU has opened the connection first: its entries stay. */
		return REASON_NONE;
	}
	open->number = (__u32)number;
	open->inserted = true;
	balance_note(open);
	return REASON_NONE;
}

__noinline enum reason open_insert_tc(struct __sk_buff *skb)
{
	struct work *work = work_get();

	return work ? open_insert(skb, work, HOOK_TC) : REASON_TABLE_FULL;
}

__noinline enum reason open_insert_xdp(struct xdp_md *ctx)
{
	struct work *work = work_get();

	return work ? open_insert(ctx, work, HOOK_XDP) : REASON_TABLE_FULL;
}

/* Does an IPsec policy protect the packets of either direction as they leave? What goes to the router itself does not leave. */
static __always_inline bool open_protected(const struct opening *open, const struct interface *in)
{
	return (!open->to_router && policy_protects(&open->sent)) || (in->role != ROLE_LOCAL && policy_protects(&open->to));
}

/* May the connection be opened, by the rates of its forward? A packet takes a token once, even if it is tried several times. A packet
 * that XDP leaves to TC has taken none yet. Rebuilding a lost connection takes none. A stack frame of its own. */
static __noinline enum reason open_in_rate(struct work *work, const struct forward *forward)
{
	struct opening *open = &work->open;

	if (open->in_rate || open->by_server)
		return REASON_NONE;
	open->in_rate = true;
	return rate_admit(open->client, forward);
}

/* Prepares the connection whose opener's key is open.key. NONE: the connection may be opened, and open_insert puts it into the
 * table: the call chain has no stack left for that here. */
static __always_inline enum reason open_prepare(void *ctx, struct work *work, const struct epoch_ref *address,
						const struct forward *forward)
{
	struct opening *open = &work->open;
	__u32 ifindex = open->ifindex;
	const struct interface *in = bpf_map_lookup_elem(&interfaces, &ifindex);
	enum reason reason;

	if (!in)
		return REASON_NOT_ATTACHED;
	reason = open_permitted(ctx, work, in, forward);
	if (reason == REASON_NONE)
		reason = open_route(ctx, work, in, forward);
	if (reason != REASON_NONE)
		return reason;
	open_write(work, in, address, forward);
	if (open_protected(open, in))
		return REASON_IPSEC;
	if (open->key_used && conn_find(&open->key, &open->entry))
		return open_obstacle(work, &open->key, &open->to, true);
	return forward->rate.count || forward->source_rate.count ? open_in_rate(work, forward) : REASON_NONE;
}

__noinline enum reason open_prepare_tc(struct __sk_buff *skb, const struct epoch_ref *address, const struct forward *forward)
{
	struct work *work = work_get();

	return work && address && forward ? open_prepare(skb, work, address, forward) : REASON_TABLE_FULL;
}

__noinline enum reason open_prepare_xdp(struct xdp_md *ctx, const struct epoch_ref *address, const struct forward *forward)
{
	struct work *work = work_get();

	return work && address && forward ? open_prepare(ctx, work, address, forward) : REASON_TABLE_FULL;
}

/* Four steps prepare a connection. The verifier checks a global function once for all of them. */
static __always_inline enum reason open_prepare_by(void *ctx, enum hook hook, const struct epoch_ref *address,
						   const struct forward *forward)
{
	return hook == HOOK_XDP ? open_prepare_xdp(ctx, address, forward) : open_prepare_tc(ctx, address, forward);
}

/* Prepares a connection for a packet of the opener. address: epoch reference of the external address, or of the
 * intercept. An old entry may be at the opener's key. */
static __always_inline enum reason open_connection(void *ctx, struct work *work, enum hook hook, const struct epoch_ref *address,
						   const struct forward *forward)
{
	work->open.key = work->pkt.tuple;
	work->open.ifindex = work->pkt.ifindex;
	work->open.by_server = false;
	work->open.from_wan = false;
	work->rw.opens_at = forward->epoch_ref.id;
	return open_prepare_by(ctx, hook, address, forward);
}

/* Prepares a connection of no forward, for a direct connection that needs another port: a living translated connection has its
 * answers. OBSTACLE: that connection is over, and must be removed. Then the kernel sends the packet on. */
static __always_inline enum reason open_direct(void *ctx, struct work *work, enum hook hook)
{
	struct forward *none = &work->open.no_forward;
	struct tuple *answer = &work->open.answer;
	enum reason reason;

	work->open.key = work->pkt.tuple;
	tuple_reverse(&work->open.key, answer);
	reason = open_obstacle(work, answer, answer, false);
	if (reason != REASON_TUPLE_IN_USE)
		return reason;
	__builtin_memset(none, 0, sizeof(*none));
	none->target = work->pkt.tuple.dst;
	return open_connection(ctx, work, hook, &none->epoch_ref, none);
}

/* Finds the opener's interface for a connection that is being rebuilt: the route to the opener leaves by it.
 * False: there is no route. */
static __always_inline bool open_find_client(void *ctx, struct work *work)
{
	struct opening *open = &work->open;

	if (!fib_found(fib_route_back(ctx, &work->route, work->pkt.ifindex, &open->key)))
		return false;
	open->ifindex = work->route.fib.ifindex;
	return true;
}

/* An eviction is recent for EVICTED_RECENTLY_MS. CPUs' clocks differ: the CPU that noted the eviction may be up to
 * EVICTED_AHEAD_MS ahead. */
enum { EVICTED_RECENTLY_MS = 60000, EVICTED_AHEAD_MS = 1000 };

/* Was a half-open UDP connection evicted recently? Then this UDP datagram may be the answer of an evicted
 * connection. Otherwise the datagram belongs to no forward, and the kernel masquerades it. */
static __always_inline bool open_evicted(const struct packet *pkt)
{
	const struct ring *ring;
	__u32 evicted;

	if (pkt->tuple.protocol != IPPROTO_UDP || pkt->fragment != FRAGMENT_NONE)
		return false;
	ring = ring_of(PLACE_HALF_OTHER, tuple_is_v6(&pkt->tuple));
	evicted = ring ? ring->evicted : 0;
	/* Unsigned, unlike in conn_idle: nobody renews this time, and a signed difference would be negative after
	 * 25 days. */
	return evicted && pkt->ms - evicted + EVICTED_AHEAD_MS < EVICTED_RECENTLY_MS + EVICTED_AHEAD_MS;
}

/* Can this opener be on the Internet, and can it have reached this external address? With several WANs, the
 * external address must be an address of the WAN by which the route to the opener leaves. */
static __always_inline bool open_client_fits(const struct opening *open, bool several_wans)
{
	__u32 ifindex = open->ifindex;
	const struct interface *in = bpf_map_lookup_elem(&interfaces, &ifindex);

	if (!in || in->role != ROLE_WAN || addr_martian(&open->key.src) ||
	    (ingress_public_only(in) && addr_private(&open->key.src)))
		return false;
	return !several_wans || own_address_has(ifindex, &open->key.dst);
}

/* Prepares to rebuild a lost connection from a packet of the answerer. The packet goes to the Internet if open.from_wan is
 * set, otherwise to a stand-in. */
static __always_inline enum reason open_rebuild(void *ctx, struct work *work, enum hook hook)
{
	struct opening *open = &work->open;
	const struct external *external;
	const struct forward *forward;
	struct origin origin = {};

	if (work->pkt.hook == HOOK_XDP && !open->from_wan)
		return REASON_NEXT_HOP;
	if (!origin_asked(&work->pkt.tuple, &open->key, open->from_wan, &origin))
		return REASON_NO_CONNECTION;
	if (work->pkt.hook == HOOK_XDP)
		return REASON_NEXT_HOP;
	external = external_find(&open->key.dst);
	forward = external ? forward_find(forward_slot(), external, open->key.protocol, open->key.dport) : NULL;
	/* At an address with several forwards, another forward may have the asked port. */
	if (!forward || forward->epoch_ref.id != origin.forward || !open_find_client(ctx, work))
		return REASON_NO_CONNECTION;
	if (open->from_wan && !open_client_fits(open, origin.several_wans))
		return REASON_NO_CONNECTION;
	open->by_server = true;
	open->key_used = true;
	return open_prepare_by(ctx, hook, &external->address, forward);
}
