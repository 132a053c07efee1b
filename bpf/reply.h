// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* TC: packets that the router itself sends. They say why a packet was not sent on: an ICMP error that quotes the
 * packet as it arrived (RFC 1812 4.3.2), or a RST. A challenge is a SYN/ACK. The kernel cannot send these packets,
 * because it does not know the forwards. */
#pragma once

#include "scratch_packet.h"

/* Codes of Destination Unreachable (RFC 792, RFC 1812 5.2.7.1; RFC 4443 3.1). */
enum icmp_code { ICMP_HOST_UNREACH = 1, ICMP_PORT_UNREACH = 3, ICMP_FRAG_NEEDED = 4, ICMP_PKT_FILTERED = 13 };
enum icmpv6_code { ICMPV6_ADM_PROHIBITED = 1, ICMPV6_ADDR_UNREACH = 3, ICMPV6_PORT_UNREACH = 4 };
/* REPLY_QUOTE_*: how many bytes of a packet an ICMP error quotes. With both headers an IPv4 error has at most 532
 * bytes, below the 576 of RFC 1812 4.3.2.3. An IPv6 error has at most 1280 bytes (RFC 4443 2.4). */
enum { REPLY_QUOTE_V4 = 504, REPLY_QUOTE_V6 = 1232, REPLY_TTL = 64, REPLY_BURST_NS = SECOND_NS };
enum { REPLY_TOS = 0xc0 };	/* precedence 6, internetwork control (RFC 1812 4.3.2.5) */

struct reply {
	__u8 type, code;	/* ICMP type and code; both 0: no ICMP error */
	bool mtu;		/* the ICMP error carries the MTU */
	bool reset;		/* send a RST instead of an ICMP error */
	bool challenge;		/* send a challenge, a SYN/ACK, instead of an ICMP error (lifecycle.h) */
};

/* Returns Destination Unreachable with the code for the packet's family. Returns no reply if senders on this side
 * are not told of refusals. */
static __always_inline struct reply reply_unreachable(const struct packet *pkt, enum icmp_code v4, enum icmpv6_code v6)
{
	if (!nat_sender_is_told(pkt->ifindex))
		return (struct reply){};
	if (pkt->v6)
		return (struct reply){ .type = ICMPV6_DEST_UNREACH, .code = (__u8)v6 };
	return (struct reply){ .type = ICMP_DEST_UNREACH, .code = (__u8)v4 };
}

/* May a RST leave by this interface? On a WAN its source address (from) must still be an address of this router:
 * otherwise another router may have the address now. */
static __always_inline bool reply_reaches(__u32 ifindex, const union addr *from)
{
	const struct interface *out = bpf_map_lookup_elem(&interfaces, &ifindex);

	if (!out || out->role != ROLE_WAN || external_find(from))
		return out;
	return own_address_has(ifindex, from);
}

/* Returns the reply for a packet of an ended connection. A RST makes a TCP sender connect again at once. It is
 * sent on LANs and WANs, even where senders are not told of refusals. */
static __always_inline struct reply reply_ended(const struct packet *pkt)
{
	if (pkt->tuple.protocol != IPPROTO_TCP || pkt->fragment != FRAGMENT_NONE)
		return reply_unreachable(pkt, ICMP_PORT_UNREACH, ICMPV6_PORT_UNREACH);
	return (struct reply){ .reset = !(pkt->tcp_flags & TCP_RST) };
}

/* Returns Frag Needed or Packet Too Big if the packet has DF, otherwise no reply. Without DF the packet was not
 * divided because of its IP options or its protocol: a lower MTU would not help. */
static __always_inline struct reply reply_too_big(const struct packet *pkt)
{
	if (!pkt->dont_fragment)
		return (struct reply){};
	if (pkt->v6)
		return (struct reply){ .type = ICMPV6_PKT_TOOBIG, .mtu = true };
	return (struct reply){ .type = ICMP_DEST_UNREACH, .code = ICMP_FRAG_NEEDED, .mtu = true };
}

/* Returns the reply for the reason in work->rw. */
static __always_inline struct reply reply_of(const struct work *work)
{
	const struct packet *pkt = &work->pkt;

	switch (work->rw.reason) {
	case REASON_TTL_EXPIRED:
		return (struct reply){ .type = pkt->v6 ? ICMPV6_TIME_EXCEED : ICMP_TIME_EXCEEDED };
	case REASON_TOO_BIG:
		return reply_too_big(pkt);
	case REASON_NO_ROUTE:
		return reply_unreachable(pkt, ICMP_HOST_UNREACH, ICMPV6_ADDR_UNREACH);
	case REASON_ENDED:
		return reply_ended(pkt);
	case REASON_CHALLENGED:
		return (struct reply){ .challenge = pkt->tcp_flags == TCP_SYN };
	case REASON_DENIED:
	case REASON_RATE:
	case REASON_SOURCE_RATE:
	case REASON_NOT_ALLOWED:
	case REASON_REFLECT_OFF:
	case REASON_SOURCE_LIMIT:
	case REASON_TABLE_FULL:
	case REASON_TUPLE_IN_USE:
	case REASON_NO_PORT:
	case REASON_PORT_FIXED:
	case REASON_NO_ADDRESS:
	case REASON_NOT_ATTACHED:
	case REASON_IPSEC:
		return reply_unreachable(pkt, ICMP_PKT_FILTERED, ICMPV6_ADM_PROHIBITED);
	default:
		return (struct reply){};
	}
}

/* Would the router's own packet leave unencrypted, though an IPsec policy protects it? Then nothing is said. */
static __always_inline bool reply_protected(const struct work *work, const struct tuple *way)
{
	return nat_role(work->pkt.ifindex) != ROLE_LOCAL && policy_protects(way);
}

/* May this reply be sent now? The rate is limited by GCRA (RFC 1812 4.3.2.8): each role of interface has one
 * message per icmp_interval, and may save messages of one second. Frag Needed and Packet Too Big have no limit, as
 * in Linux: without them path MTU discovery fails. */
static __always_inline bool reply_allowed(const struct interface *in, struct reply reply)
{
	const struct settings *settings = conn_settings();
	__u32 role = in->role;
	struct icmp_budget *budget = bpf_map_lookup_elem(&icmp_budgets, &role);
	__u64 now = conn_now(), next;

	if (reply.mtu)
		return true;
	if (!settings || !budget)
		return false;
	next = budget->next > now ? budget->next : now;
	if (next - now >= REPLY_BURST_NS)
		return false;
	budget->next = next + settings->icmp_interval;
	return true;
}

static __always_inline void reply_header4(struct work *work, const struct tuple *way, __u32 length)
{
	struct iphdr *ip = (struct iphdr *)work->header;

	ip->version = 4;
	ip->ihl = sizeof(*ip) / 4;
	ip->tos = REPLY_TOS;
	ip->tot_len = bpf_htons((__u16)(sizeof(*ip) + length));
	ip->frag_off = bpf_htons(IP_DONT_FRAGMENT);
	ip->ttl = REPLY_TTL;
	ip->protocol = way->protocol;
	ip->saddr = way->src.word[3];
	ip->daddr = way->dst.word[3];
	ip->check = (__sum16)~csum_fold16((__u32)bpf_csum_diff(NULL, 0, (__be32 *)ip, sizeof(*ip), 0));
}

static __always_inline void reply_header(struct work *work, const struct tuple *way, __u32 length)
{
	struct ipv6hdr *ip = (struct ipv6hdr *)work->header;

	__builtin_memset(work->header, 0, sizeof(work->header));
	if (!work->pkt.v6)
		return reply_header4(work, way, length);
	ip->version = 6;
	ip->priority = REPLY_TOS >> 4;
	ip->payload_len = bpf_htons((__u16)length);
	ip->nexthdr = way->protocol;
	ip->hop_limit = REPLY_TTL;
	__builtin_memcpy(&ip->saddr, &way->src, sizeof(way->src));
	__builtin_memcpy(&ip->daddr, &way->dst, sizeof(way->dst));
}

/* Returns the sum of the pseudo-header, not folded: for ICMPv6, and for TCP over IPv4 and IPv6. */
static __always_inline __u64 reply_pseudo_sum(const struct tuple *way, __u32 length)
{
	return csum_addr(&way->src, tuple_is_v6(way)) + csum_addr(&way->dst, tuple_is_v6(way)) + bpf_htonl(length) + bpf_htonl(way->protocol);
}

/* Writes the ICMP error into the scratch packet, after room for an IP header. Returns the length of the ICMP error
 * in bytes; 0: the packet to quote cannot be read. */
static __always_inline __u32 reply_message(struct __sk_buff *skb, const struct work *work, struct scratch_packet *buffer,
					  const struct tuple *way, struct reply reply)
{
	const struct packet *pkt = &work->pkt;
	__u32 base = packet_base(pkt), quote = pkt->length, most = pkt->v6 ? REPLY_QUOTE_V6 : REPLY_QUOTE_V4, end;
	struct icmphdr *icmp = (struct icmphdr *)&buffer->packet[base];

	if (quote > most)
		quote = most;
	if (!verifier_bounded(&quote, REPLY_QUOTE_V6) || bpf_skb_load_bytes(skb, pkt->l3_off, icmp + 1, quote) != 0)
		return 0;
	__builtin_memset(icmp, 0, sizeof(*icmp));
	icmp->type = reply.type;
	icmp->code = reply.code;
	if (reply.mtu && pkt->v6)
		icmp->mtu6 = bpf_htonl(work->rw.mtu);
	else if (reply.mtu)
		icmp->mtu = bpf_htons((__u16)work->rw.mtu);
	end = base + sizeof(*icmp) + quote;
	icmp->checksum = (__sum16)~csum_fold16((pkt->v6 ? reply_pseudo_sum(way, end - base) : 0) +
					       scratch_packet_sum(base, end));
	return end - base;
}

/* Sets the MAC addresses of a reply to the host that sent the packet. */
static __always_inline void reply_address(struct work *work)
{
	__builtin_memcpy(work->rw.macs, work->pkt.remote_mac, ETH_ALEN);
	__builtin_memcpy(work->rw.macs + ETH_ALEN, work->pkt.local_mac, ETH_ALEN);
}

/* Sets the addresses of an ICMP error. Its source is the address by which the sender knows this router. False: the
 * router has no address of this family. */
static __always_inline bool reply_way(struct work *work, const struct interface *in)
{
	const struct packet *pkt = &work->pkt;
	struct tuple *way = &work->reply.way;
	const struct own_address *own = own_address_find(pkt->ifindex, &pkt->tuple.src);
	const union addr *from = own ? &own->address : NULL;

	if (in->role == ROLE_LOCAL)
		from = &pkt->tuple.dst;
	if (!from)
		return false;
	__builtin_memset(way, 0, sizeof(*way));
	way->src = *from;
	way->dst = pkt->tuple.src;
	way->protocol = pkt->v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP;
	return true;
}

/* Replaces the packet in the skb by an ICMP error. True: the skb is ready to leave by the interface on which the
 * packet came in. */
static __always_inline bool reply_write(struct __sk_buff *skb, struct work *work, struct reply reply)
{
	const struct packet *pkt = &work->pkt;
	const struct interface *in = bpf_map_lookup_elem(&interfaces, &pkt->ifindex);
	struct scratch_packet *buffer = scratch_packet_get();
	__u32 length, base = packet_base(pkt);

	/* RFC 1812 4.3.2.7: no ICMP error about an ICMP error, or about a fragment that is not the first. */
	if (!in || !buffer || pkt->icmp_error || pkt->fragment == FRAGMENT_LATER)
		return false;
	if (!reply_way(work, in) || reply_protected(work, &work->reply.way) || !reply_allowed(in, reply))
		return false;
	length = reply_message(skb, work, buffer, &work->reply.way, reply);
	if (!length)
		return false;
	reply_address(work);
	reply_header(work, &work->reply.way, length);
	return scratch_packet_begin(skb, pkt) && scratch_packet_put(skb, base, base + length) == 0;
}

/* The TCP header fields of a segment that the router itself sends. */
struct reply_segment {
	__u32 seq, ack;
	__u16 window;
	__u8 flags;
};

/* Replaces the packet in the skb by a TCP segment. False: a helper failed. */
static __always_inline bool reply_put_segment(struct __sk_buff *skb, struct work *work, const struct tuple *way,
					   struct reply_segment segment)
{
	struct scratch_packet *buffer = scratch_packet_get();
	__u32 base = packet_base(&work->pkt);
	struct tcphdr *tcp;

	if (!buffer)
		return false;
	tcp = (struct tcphdr *)&buffer->packet[base];
	__builtin_memset(tcp, 0, sizeof(*tcp));
	tcp->source = way->sport;
	tcp->dest = way->dport;
	tcp->seq = bpf_htonl(segment.seq);
	tcp->ack_seq = bpf_htonl(segment.ack);
	tcp->doff = sizeof(*tcp) / 4;
	*((__u8 *)tcp + TCP_FLAGS_OFFSET) = segment.flags;
	tcp->window = bpf_htons(segment.window);
	tcp->check = (__sum16)~csum_fold16(reply_pseudo_sum(way, sizeof(*tcp)) + scratch_packet_sum(base, base + sizeof(*tcp)));
	reply_header(work, way, sizeof(*tcp));
	return scratch_packet_put(skb, base, base + sizeof(*tcp)) == 0;
}

/* Sends a RST also to the receiver of the packet, once for each ended connection: the receiver may wait for data
 * that never comes. The RST has exactly the sequence number that the receiver expects. */
static __always_inline void reply_other_side(struct __sk_buff *skb, struct work *work)
{
	struct entry *entry = &work->rw.entry;
	struct conn *conn = conn_find(&work->pkt.tuple, entry), *other;
	struct reply_segment reset = { .flags = TCP_RST };

	if (!conn || conn_half(entry->identity) || entry->identity & CONN_TOLD)
		return;
	other = conn_other(entry, &work->other);
	if (!other || !conn_mark(conn, entry->identity, CONN_TOLD, 0))
		return;
	conn_mark(other, work->other.entry.identity, CONN_TOLD, 0);
	reset.seq = other->ack;
	work->reply.sender_hop = other->hop;
	if (!hop_recall(conn->hop, &work->rw) &&
	    (nat_find_way(skb, work, entry) != REASON_NONE || !(work->rw.resolved || work->rw.local)))
		return;
	if (!reply_reaches(work->rw.ifindex, &entry->to.src) || (!work->rw.local && policy_protects(&entry->to)))
		return;
	/* Packets on the loopback device have no MAC addresses. */
	if (work->rw.local)
		__builtin_memset(work->rw.macs, 0, sizeof(work->rw.macs));
	if (reply_put_segment(skb, work, &entry->to, reset))
		bpf_clone_redirect(skb, work->rw.ifindex, 0);
}

/* Sets the MAC addresses of the sender, if the packet has no source MAC address: user space runs the program with
 * such packets (BPF_PROG_TEST_RUN). Takes the last known next hop, otherwise the route back. False: both are
 * unknown. */
static __always_inline bool reply_station(struct __sk_buff *skb, struct work *work)
{
	const __u8 *mac = work->pkt.remote_mac;
	const struct packet *pkt = &work->pkt;

	if (mac[0] | mac[1] | mac[2] | mac[3] | mac[4] | mac[5] || nat_role(work->pkt.ifindex) == ROLE_LOCAL)
		return true;
	if (hop_recall(work->reply.sender_hop, &work->rw))
		return true;
	if (fib_route_back(skb, &work->route, pkt->ifindex, &pkt->tuple) != BPF_FIB_LKUP_RET_SUCCESS)
		return false;
	__builtin_memcpy(work->rw.macs, work->route.fib.dmac, ETH_ALEN);
	__builtin_memcpy(work->rw.macs + ETH_ALEN, work->route.fib.smac, ETH_ALEN);
	return true;
}

/* Replaces the packet in the skb by a RST to its sender. Before, reply_other_side may send a RST to the receiver.
 * True: the skb is ready to leave by the interface on which the packet came in. */
static __always_inline bool reply_write_reset(struct __sk_buff *skb, struct work *work, struct reply reply)
{
	const struct packet *pkt = &work->pkt;
	const struct interface *in = bpf_map_lookup_elem(&interfaces, &pkt->ifindex);
	struct reply_segment reset = { .seq = pkt->ack, .flags = TCP_RST };

	if (!in || !reply_allowed(in, reply) || !scratch_packet_begin(skb, pkt))
		return false;
	work->reply.sender_hop = 0;
	reply_other_side(skb, work);
	if (!reply_reaches(pkt->ifindex, &pkt->tuple.dst))
		return false;
	if (!(pkt->tcp_flags & TCP_ACK))
		reset = (struct reply_segment){ .ack = pkt->seq + pkt->seq_length, .flags = TCP_RST | TCP_ACK };
	reply_address(work);
	tuple_reverse(&pkt->tuple, &work->reply.way);
	if (reply_protected(work, &work->reply.way) || !reply_station(skb, work))
		return false;
	return reply_put_segment(skb, work, &work->reply.way, reset);
}

/* Replaces the SYN in the skb by a challenge. True: the skb is ready to leave. Each SYN gets at most one
 * challenge, which is not longer than the SYN. Nothing is amplified, so the rate limit of ICMP errors does not
 * apply. Window and acknowledgement number pass conntrack (MAXACKWINCONST in nf_conntrack_proto_tcp.c). So the
 * challenge also reaches an opener behind a masquerading router. */
static __always_inline bool reply_write_challenge(struct __sk_buff *skb, struct work *work)
{
	const struct packet *pkt = &work->pkt;
	struct reply_segment challenge = {
		.seq = bpf_get_prandom_u32(), .ack = challenge_number(pkt), .flags = TCP_SYN | TCP_ACK, .window = 0xffff,
	};

	tuple_reverse(&pkt->tuple, &work->reply.way);
	if (reply_protected(work, &work->reply.way) || !scratch_packet_begin(skb, pkt))
		return false;
	reply_address(work);
	return reply_put_segment(skb, work, &work->reply.way, challenge);
}
