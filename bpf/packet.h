// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* From bytes to struct packet: the one place that knows header lengths.
 * Parsers read (data, data_end) and keep values and offsets, never a pointer into the packet. */
#pragma once

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_endian.h>

#include "types.h"
#include "verifier.h"

enum hook { HOOK_TC, HOOK_XDP };
enum fragment_kind { FRAGMENT_NONE, FRAGMENT_FIRST, FRAGMENT_LATER };

enum tcp_flag { TCP_FIN = 0x01, TCP_SYN = 0x02, TCP_RST = 0x04, TCP_ACK = 0x10 };
enum { TCP_FLAGS_OFFSET = 13, SCTP_HEADER = 12, SCTP_INIT = 1 };
/* Bounds for the verifier: of an Ethernet header's length, of all headers before the transport's, and of the place of a checksum in
 * the transport's. */
enum { ETHERNET_MASK = 15, HEADERS_MASK = 127, TRANSPORT_CHECK_MASK = 31 };
/* IEEE 802.1Q: the VLAN in a tag, which is 0 in a priority tag. Such a frame is an untagged one. */
enum { TAG_VLAN_MASK = 0x0fff };
/* RFC 7323 2.3; NONE: a SYN without the option. */
enum { TCP_SCALE_MAX = 14, TCP_SCALE_NONE = 15 };
/* In every network namespace (LOOPBACK_IFINDEX of linux/net_namespace.h). */
enum { LOOPBACK_IFINDEX = 1 };
enum { IP_RESERVED = 0x8000, IP_DONT_FRAGMENT = 0x4000, IP_MORE_FRAGMENTS = 0x2000, IP_OFFSET_MASK = 0x1fff };

/* RFC 792; linux/icmp.h would bring the C library with it. */
enum icmp_type {
	ICMP_ECHOREPLY = 0,
	ICMP_DEST_UNREACH = 3,
	ICMP_ECHO = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETERPROB = 12,
};

/* RFC 4443. */
enum icmpv6_type {
	ICMPV6_DEST_UNREACH = 1,
	ICMPV6_PKT_TOOBIG = 2,
	ICMPV6_TIME_EXCEED = 3,
	ICMPV6_PARAMPROB = 4,
	ICMPV6_ECHO_REQUEST = 128,
	ICMPV6_ECHO_REPLY = 129,
};

/* RFC 8200 4: what may stand before the transport header of a packet that is translated. */
enum ipv6_extension { NEXTHDR_HOP = 0, NEXTHDR_FRAGMENT = 44, NEXTHDR_DEST = 60 };
/* So many, and so long together. */
enum { IPV6_EXTENSIONS = 4, IPV6_EXTENSIONS_MAX = 64 };

struct ipv6_fragment {
	__u8 next, reserved;
	__be16 offset;		/* lowest bit: more follow */
	__be32 id;
};

struct icmphdr {
	__u8 type, code;
	__sum16 checksum;
	union {
		struct {
			__be16 id;	/* of a query */
			__be16 mtu;	/* of Frag Needed, RFC 1191 */
		};
		__be32 mtu6;	/* of Packet Too Big */
	};
};

/* Longest Ethernet, IP and TCP headers together, or of an ICMP error and what it quotes. */
enum {
	PACKET_HEADERS_V4 = sizeof(struct ethhdr) + 60 + sizeof(struct icmphdr) + 60 + sizeof(struct tcphdr),
	PACKET_HEADERS_V6 = sizeof(struct ethhdr) + 2 * (sizeof(struct ipv6hdr) + IPV6_EXTENSIONS_MAX) +
			    sizeof(struct icmphdr) + sizeof(struct tcphdr),
};

/* What of a transport header concerns translation; offsets are from the first byte of the frame. */
struct transport {
	__u16 off;
	__u16 ports_off;	/* of both ports, or of an ICMP query's id */
	__u16 check_off;	/* 0: no checksum here that covers what is changed */
	__sum16 check;
	__u8 ports_length;	/* 4: both ports, 2: an id, 0: nothing that may be changed */
	bool pseudo;		/* the checksum covers the addresses */
};

/* The packet inside an ICMP error, as it left the router. */
struct quote {
	struct tuple tuple;
	struct transport l4;
	__u16 l3_off;
	__sum16 ip_check;
};

struct packet {
	struct tuple tuple;
	__u32 ms, second;	/* set by the hook: CLOCK_MONOTONIC in ms and in s, of a tick */
	__u32 ifindex;		/* set by the hook */
	__u32 frame_length;	/* set by the hook: all bytes, not only those in reach */
	__u32 gso_size;		/* set by the hook: transport payload per segment, 0: one packet */
	__u32 length;		/* IP total length */
	__u32 segment;		/* longest IP packet that this is on the wire; of tunnels' GSO packets a lower bound (nat_check_segments asks the kernel) */
	__be32 id;		/* of a datagram in fragments */
	__u16 l3_off;
	__u8 hook;		/* set by the hook: enum hook */
	__u8 ttl;
	bool dont_fragment;
	bool v6;
	__u8 local_mac[6] __attribute__((aligned(4)));	/* ours, that it was sent to */
	__u8 remote_mac[6] __attribute__((aligned(4)));	/* of the station that sent it */
	struct fragment_range piece;	/* of a fragment: what it brings */
	struct ipv6_fragment v6_fragment;
	/* Members up to here are set for every packet (id and piece for fragments, v6_fragment for IPv6) and are not cleared.
	 * Members from here on are zero unless a parser sets them. */
	enum reason flaw __attribute__((aligned(8)));	/* ports are good, but it must not be sent on; NONE: sound */
	__u32 seq, ack;		/* TCP, host order */
	__u32 seq_length;	/* TCP: sequence space it takes */
	struct transport l4;
	__u16 window;		/* TCP, host order */
	__u8 tcp_flags;		/* FIN, SYN, RST, ACK only */
	__u8 tcp_header;	/* its length, with options */
	__u8 scale;		/* TCP, set by the hook from a SYN's options: window scale; TCP_SCALE_NONE: there is no such option */
	__u8 fragment;		/* enum fragment_kind */
	bool last;		/* of a fragment: nothing comes behind it */
	bool icmp_error;
	bool opens;		/* may open a connection */
	bool broken;		/* no ports: lengths that no stack would accept */
	struct quote quote;	/* of an ICMP error, else not set */
};

/* Both ports of a tuple are one 32-bit word, protocol and padding another. They are written and read as words: a processor
 * stalls when it reads as a whole what it has just written in parts. */
typedef __u32 __attribute__((may_alias)) tuple_word;

_Static_assert(offsetof(struct tuple, sport) == 32 && offsetof(struct tuple, dport) == 34, "ports of struct tuple");
_Static_assert(offsetof(struct tuple4, sport) == 8 && offsetof(struct tuple4, dport) == 10, "ports of struct tuple4");
_Static_assert(offsetof(struct conn, sport) == 52 && offsetof(struct conn, dport) == 54, "ports of struct conn");
_Static_assert(offsetof(struct tuple, protocol) == 36 && offsetof(struct tuple4, protocol) == 12, "protocol and padding");

static __always_inline tuple_word *ports_word(const __be16 *sport)
{
	return (tuple_word *)sport;
}

static __always_inline tuple_word *protocol_word(const __u8 *protocol)
{
	return (tuple_word *)protocol;
}

static __always_inline __u32 ports_join(__be16 sport, __be16 dport)
{
	return bpf_htonl((__u32)bpf_ntohs(sport) << 16 | bpf_ntohs(dport));
}

static __always_inline __u32 protocol_pad(__u8 protocol)
{
	return bpf_htonl((__u32)protocol << 24);
}

static __always_inline void addr_from_v4(union addr *addr, __be32 v4)
{
	addr->half[0] = 0;
	addr->word[2] = bpf_htonl(0xffff);
	addr->word[3] = v4;
}

static __always_inline bool addr_equal(const union addr *a, const union addr *b)
{
	return a->half[1] == b->half[1] && a->half[0] == b->half[0];
}

static __always_inline bool addr_is_v4(const union addr *addr)
{
	return !addr->half[0] && addr->word[2] == bpf_htonl(0xffff);
}

static __always_inline void addr_from_v6(union addr *addr, const struct in6_addr *v6)
{
	__builtin_memcpy(addr, v6, sizeof(*addr));
}

static __always_inline bool word_in(__be32 word, __u32 network, __u32 bits)
{
	return bpf_ntohl(word) >> (32 - bits) == network >> (32 - bits);
}

/* RFC 1918, the shared space of RFC 6598, link-local; RFC 4193. */
static __always_inline bool addr_private(const union addr *addr)
{
	__be32 last = addr->word[3];

	if (!addr_is_v4(addr))
		return word_in(addr->word[0], 0xfc000000, 7);
	return word_in(last, 0x0a000000, 8) || word_in(last, 0xac100000, 12) || word_in(last, 0xc0a80000, 16) ||
	       word_in(last, 0x64400000, 10) || word_in(last, 0xa9fe0000, 16);
}

static __always_inline __u32 packet_header(const struct packet *pkt)
{
	return pkt->l4.off - pkt->l3_off;
}

/* On the loopback device, which has no addresses: sent there by this program, to come in once more. */
static __always_inline bool packet_reinjected(const struct packet *pkt)
{
	return pkt->remote_mac[0];
}

/* The IP header itself: what a packet made here has, too. */
static __always_inline __u32 packet_base(const struct packet *pkt)
{
	return pkt->v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
}

/* Has the packet no IPv4 options? Which options are copied into each fragment has rules of its own (RFC 791). */
static __always_inline bool packet_without_options(const struct packet *pkt)
{
	return pkt->v6 || packet_header(pkt) == sizeof(struct iphdr);
}

/* May TC cut the packet up? Not with IP options; and of GSO packets only those of TCP. */
static __always_inline bool packet_divisible(const struct packet *pkt)
{
	return !pkt->dont_fragment && packet_without_options(pkt) &&
	       (!pkt->gso_size || pkt->tuple.protocol == IPPROTO_TCP);
}

/* Has it IPv4 options? */
static __always_inline bool packet_has_options(const struct packet *pkt)
{
	return !pkt->v6 && packet_header(pkt) > sizeof(struct iphdr);
}

/* The length of all headers before the transport's, for every way that a parser may have come. */
static __always_inline __u32 packet_header_reloaded(const struct transport *l4, __u32 l3_off)
{
	verifier_forget();
	return (l4->off - l3_off) & HEADERS_MASK;
}

/* The transport header, if wanted bytes of it are there. NULL: they are not. */
static __always_inline void *packet_reach(void *l4, void *data_end, __u32 available, __u32 wanted)
{
	return available >= wanted && l4 + wanted <= data_end ? l4 : NULL;
}

/* The connection that an ICMP query belongs to: its id is the port of the side that asks. */
static __always_inline bool packet_query(struct icmphdr *icmp, __u16 off, struct tuple *tuple,
					 struct transport *l4)
{
	bool v6 = tuple->protocol == IPPROTO_ICMPV6;

	if (icmp->type == (v6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO))
		tuple->sport = icmp->id;
	else if (icmp->type == (v6 ? ICMPV6_ECHO_REPLY : ICMP_ECHOREPLY))
		tuple->dport = icmp->id;
	else
		return false;
	l4->pseudo = v6;
	l4->ports_off = off + offsetof(struct icmphdr, id);
	l4->ports_length = sizeof(icmp->id);
	l4->check_off = off + offsetof(struct icmphdr, checksum);
	l4->check = icmp->checksum;
	return true;
}

/* Ports and checksum of a transport header, of which a quote may hold no more than 8 bytes. False: not
 * even these. */
static __always_inline bool packet_ports(void *header, void *data_end, __u32 available, __u16 off,
					 struct tuple *tuple, struct transport *l4)
{
	__be16 *ports = packet_reach(header, data_end, available, 2 * sizeof(*ports));
	__u8 protocol = tuple->protocol;
	__u16 check = protocol == IPPROTO_TCP ? offsetof(struct tcphdr, check) : offsetof(struct udphdr, check);
	__sum16 *sum;

	if (!ports)
		return false;
	if (protocol != IPPROTO_UDPLITE) {
		*ports_word(&tuple->sport) = ports_join(ports[0], ports[1]);
		l4->ports_off = off;
		l4->ports_length = 2 * sizeof(*ports);
	}
	/* SCTP's CRC32c covers the ports, so the ports must stay. It covers no address. */
	if (protocol == IPPROTO_SCTP) {
		l4->ports_length = 0;
		return true;
	}
	/* Otherwise the compiler chooses both the bound and the place by protocol. */
	check = (__u16)verifier_same(check);
	sum = header + (check & TRANSPORT_CHECK_MASK);
	if (available < check + sizeof(*sum) || (void *)(sum + 1) > data_end)
		return true;
	l4->check = *sum;
	l4->pseudo = true;
	/* RFC 768: zero of UDP means that the sender did not compute one. */
	if (l4->check || protocol != IPPROTO_UDP)
		l4->check_off = off + check;
	return true;
}

static __always_inline bool packet_has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP ||
	       protocol == IPPROTO_UDPLITE;
}

static __always_inline bool packet_is_icmp(const struct packet *pkt, __u8 protocol)
{
	return protocol == (pkt->v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP);
}

static __always_inline bool packet_is_error(const struct packet *pkt, __u8 type)
{
	if (pkt->v6)
		return type >= ICMPV6_DEST_UNREACH && type <= ICMPV6_PARAMPROB;
	return type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB;
}

/* Is the protocol translated by address alone? Nothing in its packets depends on addresses. */
static __always_inline bool packet_opaque(__u8 protocol)
{
	return protocol == IPPROTO_GRE || protocol == IPPROTO_ESP || protocol == IPPROTO_IPIP;
}

static __always_inline void packet_parse_tcp(struct tcphdr *tcp, void *data_end, __u32 available,
					     struct packet *pkt)
{
	__u32 header;

	if (!packet_reach(tcp, data_end, available, sizeof(*tcp)))
		return;
	header = tcp->doff * 4;
	pkt->tcp_flags = *((__u8 *)tcp + TCP_FLAGS_OFFSET) & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK);
	if (header < sizeof(*tcp) || header > available)
		return;
	/* RFC 9293 3.10: the combinations that a stack acts upon. */
	if (pkt->tcp_flags & TCP_SYN ? pkt->tcp_flags & (TCP_FIN | TCP_RST) : !(pkt->tcp_flags & (TCP_ACK | TCP_RST)))
		return;
	pkt->flaw = REASON_NONE;
	pkt->opens = pkt->tcp_flags == TCP_SYN;
	pkt->tcp_header = (__u8)header;
	pkt->seq = bpf_ntohl(tcp->seq);
	pkt->ack = bpf_ntohl(tcp->ack_seq);
	pkt->window = bpf_ntohs(tcp->window);
	pkt->seq_length = available - header + !!(pkt->tcp_flags & TCP_SYN) + !!(pkt->tcp_flags & TCP_FIN);
	if (pkt->gso_size)
		pkt->segment = pkt->length - available + header + pkt->gso_size;
}

static __always_inline void packet_parse_udp(struct udphdr *udp, void *data_end, __u32 available,
					     struct packet *pkt)
{
	__u32 length;

	if (!packet_reach(udp, data_end, available, sizeof(*udp)))
		return;
	length = bpf_ntohs(udp->len);
	/* Of UDP-Lite this is the checksum's coverage, RFC 3828. */
	if (pkt->tuple.protocol == IPPROTO_UDP &&
	    (length < sizeof(*udp) || (length > available && pkt->fragment == FRAGMENT_NONE)))
		return;
	pkt->flaw = REASON_NONE;
	pkt->opens = true;
	if (pkt->gso_size)
		pkt->segment = pkt->length - available + sizeof(*udp) + pkt->gso_size;
}

/* RFC 9260 3.3.2: an association begins with an INIT chunk and no verification tag. */
static __always_inline void packet_parse_sctp(void *sctp, void *data_end, __u32 available, struct packet *pkt)
{
	__be32 *words = packet_reach(sctp, data_end, available, SCTP_HEADER);
	__u8 *chunk = packet_reach(sctp, data_end, available, SCTP_HEADER + 4);

	if (!words)
		return;
	pkt->flaw = REASON_NONE;
	pkt->opens = chunk && !words[1] && chunk[SCTP_HEADER] == SCTP_INIT;
	/* Its GSO packets carry no size; the kernel splits them where their sender did. */
	if (pkt->gso_size)
		pkt->segment = 0;
}

/* Skips IPv6 extension headers. Returns the offset of the transport header from the IP header, and sets its protocol. 0: out of
 * reach, or too many extension headers. */
static __always_inline __u32 packet_skip_extensions(struct ipv6hdr *ip, void *data_end, __u8 *protocol,
						    struct ipv6_fragment *fragment)
{
	__u32 off = sizeof(*ip);
	__u8 next = ip->nexthdr, *header;

	for (int i = 0; i < IPV6_EXTENSIONS; i++) {
		if (next != NEXTHDR_HOP && next != NEXTHDR_DEST && next != NEXTHDR_FRAGMENT)
			break;
		header = (void *)ip + off;
		if (off > sizeof(*ip) + IPV6_EXTENSIONS_MAX - sizeof(*fragment) ||
		    (void *)(header + sizeof(*fragment)) > data_end)
			return 0;
		off += next == NEXTHDR_FRAGMENT ? sizeof(*fragment) : (header[1] + 1) * 8;
		if (next == NEXTHDR_FRAGMENT)
			__builtin_memcpy(fragment, header, sizeof(*fragment));
		next = header[0];
		if (fragment->id || fragment->offset)
			break;
	}
	*protocol = next;
	return off <= sizeof(*ip) + IPV6_EXTENSIONS_MAX ? off : 0;
}

static __always_inline __u32 packet_parse_quoted_ipv4(struct iphdr *ip, struct quote *quote)
{
	if (ip->version != 4 || ip->ihl * 4 < sizeof(*ip))
		return 0;
	quote->ip_check = ip->check;
	/* A later fragment has no ports. With this protocol it belongs to no connection. */
	quote->tuple.protocol = ip->frag_off & bpf_htons(IP_OFFSET_MASK) ? IPPROTO_RAW : ip->protocol;
	addr_from_v4(&quote->tuple.src, ip->saddr);
	addr_from_v4(&quote->tuple.dst, ip->daddr);
	return ip->ihl * 4;
}

static __always_inline __u32 packet_parse_quoted_ipv6(struct ipv6hdr *ip, void *data_end, struct quote *quote)
{
	struct ipv6_fragment fragment = {};
	__u32 header;

	if (ip->version != 6)
		return 0;
	addr_from_v6(&quote->tuple.src, &ip->saddr);
	addr_from_v6(&quote->tuple.dst, &ip->daddr);
	header = packet_skip_extensions(ip, data_end, &quote->tuple.protocol, &fragment);
	if (fragment.offset & bpf_htons(~7))
		quote->tuple.protocol = IPPROTO_RAW;
	return header;
}

/* The header of the packet that an ICMP error is about. Its length; 0: none that could be understood. */
static __always_inline __u32 packet_parse_quoted_ip(void *header, void *data_end, __u32 available, bool v6,
						    struct quote *quote)
{
	if (!packet_reach(header, data_end, available, v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)))
		return 0;
	return v6 ? packet_parse_quoted_ipv6(header, data_end, quote) : packet_parse_quoted_ipv4(header, quote);
}

/* The packet that an ICMP error is about. False: of no concern to translation. */
static __always_inline bool packet_parse_quote(void *ip, void *data_end, __u32 available, __u16 off,
					       struct packet *pkt)
{
	struct quote *quote = &pkt->quote;
	struct icmphdr *icmp;
	__u32 header;
	void *l4;

	__builtin_memset(quote, 0, sizeof(*quote));
	pkt->broken = true;
	header = packet_parse_quoted_ip(ip, data_end, available, pkt->v6, quote);
	if (!header || header + sizeof(*icmp) > available)
		return true;
	quote->l3_off = off;
	quote->l4.off = off + header;
	header = packet_header_reloaded(&quote->l4, off);
	l4 = ip + header;
	icmp = packet_reach(l4, data_end, available - header, sizeof(*icmp));
	pkt->broken = !icmp;
	if (!icmp || packet_opaque(quote->tuple.protocol))
		return true;
	if (packet_is_icmp(pkt, quote->tuple.protocol))
		return packet_query(icmp, quote->l4.off, &quote->tuple, &quote->l4);
	return packet_has_ports(quote->tuple.protocol) &&
	       packet_ports(l4, data_end, available - header, quote->l4.off, &quote->tuple, &quote->l4);
}

/* False: of no concern to translation, as redirects or router advertisements. */
static __always_inline bool packet_parse_icmp(struct icmphdr *icmp, void *data_end, __u32 available,
					      struct packet *pkt)
{
	if (!packet_reach(icmp, data_end, available, sizeof(*icmp)))
		return false;
	pkt->flaw = REASON_NONE;
	if (packet_query(icmp, pkt->l4.off, &pkt->tuple, &pkt->l4)) {
		pkt->opens = icmp->type == (pkt->v6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO) && icmp->code == 0;
		return true;
	}
	if (!packet_is_error(pkt, icmp->type))
		return false;
	pkt->icmp_error = true;
	pkt->l4.pseudo = pkt->v6;
	pkt->l4.check_off = pkt->l4.off + offsetof(struct icmphdr, checksum);
	pkt->l4.check = icmp->checksum;
	if (pkt->fragment != FRAGMENT_NONE)
		pkt->flaw = REASON_MALFORMED;
	return packet_parse_quote(icmp + 1, data_end, available - sizeof(*icmp), pkt->l4.off + sizeof(*icmp), pkt);
}

/* False: a protocol that hairpin has nothing to do with. */
static __always_inline bool packet_parse_l4(void *l4, void *data_end, __u32 available, struct packet *pkt)
{
	__u8 protocol = pkt->tuple.protocol;
	bool opaque = packet_opaque(protocol), icmp = packet_is_icmp(pkt, protocol);

	if (opaque && pkt->gso_size)
		pkt->segment = packet_header(pkt) + pkt->gso_size;
	if (pkt->fragment == FRAGMENT_LATER || opaque) {
		pkt->opens = opaque && pkt->fragment != FRAGMENT_LATER;
		return opaque || icmp || packet_has_ports(protocol);
	}
	if (!icmp && !packet_has_ports(protocol))
		return false;
	/* The protocol's parser clears this if the header is sound. */
	pkt->flaw = pkt->fragment == FRAGMENT_FIRST ? REASON_FRAGMENT_TINY : REASON_MALFORMED;
	if (icmp)
		return packet_parse_icmp(l4, data_end, available, pkt);
	if (!packet_ports(l4, data_end, available, pkt->l4.off, &pkt->tuple, &pkt->l4)) {
		pkt->broken = true;
		return true;
	}
	if (protocol == IPPROTO_TCP)
		packet_parse_tcp(l4, data_end, available, pkt);
	else if (protocol == IPPROTO_SCTP)
		packet_parse_sctp(l4, data_end, available, pkt);
	else
		packet_parse_udp(l4, data_end, available, pkt);
	if (protocol == IPPROTO_UDPLITE)
		return true;
	if (!pkt->tuple.sport)
		pkt->flaw = REASON_MALFORMED;
	pkt->broken = !pkt->tuple.dport;
	return true;
}

/* Notes which bytes of its datagram a fragment brings; start is in units of 8 bytes. False: the fragment is impossible. */
static __always_inline bool packet_parse_piece(__u32 start, bool more, __u32 available, struct packet *pkt)
{
	pkt->last = !more;
	pkt->piece.start = (__u16)start;
	pkt->piece.end = (__u16)(start + (available + 7) / 8);
	pkt->fragment = start ? FRAGMENT_LATER : FRAGMENT_FIRST;
	return available && (pkt->last || available % 8 == 0) &&
	       packet_header(pkt) + start * 8 + available <= 0xffff;
}

/* The length by the header's field, plus more. A GSO packet beyond 64 KiB has 0 in the field (BIG TCP). */
static __always_inline __u32 packet_length(const struct packet *pkt, __u32 said, __u32 more)
{
	return pkt->gso_size && !said ? pkt->frame_length - pkt->l3_off : said + more;
}

/* Do its lengths contradict each other, or the frame? */
static __always_inline bool packet_misfit(const struct packet *pkt)
{
	return pkt->length < packet_header(pkt) || pkt->length > pkt->frame_length - pkt->l3_off;
}

/* The protocol, and no ports yet. */
static __always_inline void packet_no_ports(struct tuple *tuple, __u8 protocol)
{
	*ports_word(&tuple->sport) = 0;
	*protocol_word(&tuple->protocol) = protocol_pad(protocol);
}

static __always_inline bool packet_parse_ipv4(struct iphdr *ip, void *data_end, struct packet *pkt)
{
	__u32 header, available;
	bool sound, known;
	__u16 frag_off;

	if ((void *)(ip + 1) > data_end || ip->version != 4)
		return false;
	header = ip->ihl * 4;
	if (header < sizeof(*ip))
		return false;
	frag_off = bpf_ntohs(ip->frag_off);
	pkt->length = packet_length(pkt, bpf_ntohs(ip->tot_len), 0);
	pkt->segment = pkt->length;
	pkt->dont_fragment = frag_off & IP_DONT_FRAGMENT;
	pkt->id = ip->id;
	pkt->ttl = ip->ttl;
	pkt->l4.off = pkt->l3_off + header;
	pkt->v6 = false;
	packet_no_ports(&pkt->tuple, ip->protocol);
	addr_from_v4(&pkt->tuple.src, ip->saddr);
	addr_from_v4(&pkt->tuple.dst, ip->daddr);
	if (packet_misfit(pkt)) {
		pkt->broken = true;
		pkt->flaw = REASON_MALFORMED;
		return true;
	}
	available = pkt->length - header;
	sound = !(frag_off & IP_RESERVED);
	if (frag_off & (IP_OFFSET_MASK | IP_MORE_FRAGMENTS))
		sound &= packet_parse_piece(frag_off & IP_OFFSET_MASK, frag_off & IP_MORE_FRAGMENTS, available,
					    pkt) && !pkt->dont_fragment;
	known = packet_parse_l4(verifier_same_pointer((void *)ip + header), data_end, available, pkt);
	if (!sound)
		pkt->flaw = REASON_MALFORMED;
	return known;
}

static __always_inline bool packet_parse_ipv6(struct ipv6hdr *ip, void *data_end, struct packet *pkt)
{
	struct ipv6_fragment *fragment = &pkt->v6_fragment;
	__u32 header, available;
	bool sound = true, known;
	__u16 frag_off;

	if ((void *)(ip + 1) > data_end || ip->version != 6)
		return false;
	pkt->v6 = true;
	packet_no_ports(&pkt->tuple, ip->nexthdr);
	__builtin_memset(fragment, 0, sizeof(*fragment));
	pkt->dont_fragment = true;
	pkt->length = packet_length(pkt, bpf_ntohs(ip->payload_len), sizeof(*ip));
	pkt->segment = pkt->length;
	pkt->ttl = ip->hop_limit;
	addr_from_v6(&pkt->tuple.src, &ip->saddr);
	addr_from_v6(&pkt->tuple.dst, &ip->daddr);
	/* In the tables these are IPv4 addresses. */
	if (addr_is_v4(&pkt->tuple.src) || addr_is_v4(&pkt->tuple.dst))
		return false;
	header = packet_skip_extensions(ip, data_end, &pkt->tuple.protocol, fragment);
	if (!header)
		return false;
	pkt->l4.off = pkt->l3_off + header;
	header = packet_header_reloaded(&pkt->l4, pkt->l3_off);
	if (packet_misfit(pkt)) {
		pkt->broken = true;
		pkt->flaw = REASON_MALFORMED;
		return true;
	}
	available = pkt->length - header;
	frag_off = bpf_ntohs(fragment->offset);
	pkt->id = fragment->id;
	if (frag_off & ~6u)
		sound = packet_parse_piece(frag_off >> 3, frag_off & 1, available, pkt);
	known = packet_parse_l4(verifier_same_pointer((void *)ip + header), data_end, available, pkt);
	if (!sound)
		pkt->flaw = REASON_MALFORMED;
	return known;
}

/* The packet has moved within its frame. */
static __always_inline void packet_shift(struct packet *pkt, __u16 by)
{
	struct transport *l4[] = { &pkt->l4, &pkt->quote.l4 };

	pkt->l3_off += by;
	pkt->frame_length += by;
	pkt->quote.l3_off += by;
	for (int i = 0; i < 2; i++) {
		l4[i]->off += by;
		l4[i]->ports_off += by;
		l4[i]->check_off += l4[i]->check_off ? by : 0;
	}
}

/* MAC addresses, by two bytes: those in a frame need not lie at a multiple of four. */
static __always_inline void mac_copy(void *to, const void *from, __u32 count)
{
	const __u16 *source = from;
	__u16 *copy = to;

	for (__u32 i = 0; i < count * ETH_ALEN / sizeof(*copy); i++)
		copy[i] = source[i];
}

/* The IP packet at l3_off, behind an Ethernet header unless that is 0. False: nothing hairpin could have to do
 * with, or headers no stack would forward. */
static __always_inline bool packet_parse(void *data, void *data_end, __be16 protocol, struct packet *pkt)
{
	struct ethhdr *eth = data;
	/* The mask gives the verifier one bounded pointer for both kinds of devices. */
	void *ip = data + (pkt->l3_off & ETHERNET_MASK);

	if ((void *)(eth + 1) > data_end)
		return false;
	if (pkt->l3_off) {
		mac_copy(pkt->local_mac, eth->h_dest, 1);
		mac_copy(pkt->remote_mac, eth->h_source, 1);
	} else {
		__builtin_memset(pkt->local_mac, 0, ETH_ALEN);
		__builtin_memset(pkt->remote_mac, 0, ETH_ALEN);
	}
	if (protocol == bpf_htons(ETH_P_IP))
		return packet_parse_ipv4(ip, data_end, pkt);
	return protocol == bpf_htons(ETH_P_IPV6) && packet_parse_ipv6(ip, data_end, pkt);
}
