// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The parsers: they fill struct packet from the bytes of a frame. A parser reads between data and data_end. It
 * stores values and offsets, never a pointer into the packet: helpers make such pointers invalid. */
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
/* Masks that give the verifier a bound: for the length of the Ethernet header, for the length of the IP header
 * with options or extension headers, and for the offset of the checksum in the transport header. */
enum { ETHERNET_MASK = 15, HEADERS_MASK = 127, TRANSPORT_CHECK_MASK = 31 };
/* IEEE 802.1Q: the VLAN in a tag, which is 0 in a priority tag. Such a frame is an untagged one. */
enum { TAG_VLAN_MASK = 0x0fff };
/* TCP window scale (RFC 7323 2.3). TCP_SCALE_NONE: the SYN has no window scale option. */
enum { TCP_SCALE_MAX = 14, TCP_SCALE_NONE = 15 };
/* The loopback device has this ifindex in every network namespace (LOOPBACK_IFINDEX in include/net/flow.h). */
enum { LOOPBACK_IFINDEX = 1 };
enum { IP_RESERVED = 0x8000, IP_DONT_FRAGMENT = 0x4000, IP_MORE_FRAGMENTS = 0x2000, IP_OFFSET_MASK = 0x1fff };

/* RFC 792. linux/icmp.h is not used here, because it includes headers of the C library. */
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

/* Extension headers that a translated IPv6 packet may have before its transport header (RFC 8200 4). */
enum ipv6_extension { NEXTHDR_HOP = 0, NEXTHDR_FRAGMENT = 44, NEXTHDR_DEST = 60 };
/* The most extension headers of a translated packet, and their greatest length together, in bytes. */
enum { IPV6_EXTENSIONS = 4, IPV6_EXTENSIONS_MAX = 64 };

struct ipv6_fragment {
	__u8 next, reserved;
	__be16 offset;		/* upper 13 bits: fragment offset; lowest bit: more fragments follow */
	__be32 id;
};

struct icmphdr {
	__u8 type, code;
	__sum16 checksum;
	union {
		struct {
			__be16 id;	/* echo request and reply: identifier */
			__be16 mtu;	/* Frag Needed: MTU of the next hop, RFC 1191 */
		};
		__be32 mtu6;	/* Packet Too Big: MTU of the next hop */
	};
};

/* The greatest number of bytes that the parsers read: Ethernet, IP and ICMP headers of an ICMP error, then the IP
 * and TCP headers that it quotes. */
enum {
	PACKET_HEADERS_V4 = sizeof(struct ethhdr) + 60 + sizeof(struct icmphdr) + 60 + sizeof(struct tcphdr),
	PACKET_HEADERS_V6 = sizeof(struct ethhdr) + 2 * (sizeof(struct ipv6hdr) + IPV6_EXTENSIONS_MAX) +
			    sizeof(struct icmphdr) + sizeof(struct tcphdr),
};

/* The fields of a transport header that translation needs. Offsets count from the first byte of the frame. */
struct transport {
	__u16 off;		/* offset of the transport header */
	__u16 ports_off;	/* offset of both ports, or of an ICMP query's id */
	__u16 check_off;	/* offset of the checksum; 0: no checksum covers the translated fields */
	__sum16 check;		/* checksum as the packet arrived */
	__u8 ports_length;	/* in bytes; 4: both ports, 2: id of an ICMP query, 0: nothing may be changed */
	bool pseudo;		/* the checksum covers the IP addresses (pseudo-header) */
};

/* The packet that an ICMP error quotes. Its addresses and ports are those with which it left the router. */
struct quote {
	struct tuple tuple;
	struct transport l4;
	__u16 l3_off;
	__sum16 ip_check;
};

struct packet {
	struct tuple tuple;
	__u32 ms, second;	/* set by the hook: CLOCK_MONOTONIC in ms and in s, read once in a tick */
	__u32 ifindex;		/* set by the hook: ingress interface */
	__u32 frame_length;	/* set by the hook: bytes of the frame; XDP: of its first buffer */
	__u32 gso_size;		/* set by the hook: payload bytes per segment; 0: not a GSO packet */
	__u32 length;		/* IP total length in bytes */
	__u32 segment;		/* bytes of the longest IP packet after segmentation; tunnels: a lower bound */
	__be32 id;		/* fragments: IP identification */
	__u16 l3_off;		/* offset of the IP header in the frame; 0: no Ethernet header */
	__u8 hook;		/* set by the hook: enum hook */
	__u8 ttl;
	bool dont_fragment;
	bool v6;
	__u8 local_mac[6] __attribute__((aligned(4)));	/* destination MAC address of the frame */
	__u8 remote_mac[6] __attribute__((aligned(4)));	/* source MAC address of the frame */
	struct fragment_range piece;	/* fragments: the range of the datagram's payload in this packet */
	struct ipv6_fragment v6_fragment;
	/* Members up to here are set for every packet, and are not cleared before (id and piece: for fragments,
	 * v6_fragment: for IPv6). Members from here on are zero unless a parser sets them. */
	enum reason flaw __attribute__((aligned(8)));	/* ports are valid, but the packet must not be sent on */
	__u32 seq, ack;		/* TCP: sequence and acknowledgement number, host order; ICMP error: seq of the quoted segment */
	__u32 seq_length;	/* TCP: sequence space of the segment: payload bytes, SYN, FIN */
	struct transport l4;
	__u16 window;		/* TCP: window as sent, not scaled, host order */
	__u8 tcp_flags;		/* TCP: FIN, SYN, RST, ACK only */
	__u8 tcp_header;	/* TCP: header length in bytes, with options */
	__u8 scale;		/* SYN: window scale, set by the hook; TCP_SCALE_NONE: no such option */
	__u8 fragment;		/* enum fragment_kind */
	bool last;		/* fragments: the last fragment of its datagram */
	bool icmp_error;	/* the packet is an ICMP error */
	bool opens;		/* this packet may open a connection */
	bool broken;		/* the ports are missing or invalid, or header lengths contradict each other */
	struct quote quote;	/* ICMP error: the packet that it quotes; otherwise not set */
};

/* Both ports of a tuple are read and written as one 32-bit word, protocol and padding as another word. The CPU
 * stalls when a wide load follows narrow stores to the same bytes. */
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

/* Is this a private address: RFC 1918, shared (RFC 6598), IPv4 link-local, or IPv6 unique local (RFC 4193)? */
static __always_inline bool addr_private(const union addr *addr)
{
	__be32 last = addr->word[3];

	if (!addr_is_v4(addr))
		return word_in(addr->word[0], 0xfc000000, 7);
	return word_in(last, 0x0a000000, 8) || word_in(last, 0xac100000, 12) || word_in(last, 0xc0a80000, 16) ||
	       word_in(last, 0x64400000, 10) || word_in(last, 0xa9fe0000, 16);
}

/* Returns the length in bytes of the IP header with IPv4 options or IPv6 extension headers. */
static __always_inline __u32 packet_header(const struct packet *pkt)
{
	return pkt->l4.off - pkt->l3_off;
}

/* Did tc_reinject send this packet to the loopback device? tc_reinject sets the first byte of the source MAC
 * address. In all other packets on the loopback device this byte is 0. */
static __always_inline bool packet_reinjected(const struct packet *pkt)
{
	return pkt->remote_mac[0];
}

/* Returns the length in bytes of an IP header without options, as in packets that hairpin itself makes. */
static __always_inline __u32 packet_base(const struct packet *pkt)
{
	return pkt->v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
}

/* Has the packet no IPv4 options? hairpin does not fragment a packet with options: only some options may be copied
 * into each fragment (RFC 791). */
static __always_inline bool packet_without_options(const struct packet *pkt)
{
	return pkt->v6 || packet_header(pkt) == sizeof(struct iphdr);
}

/* May TC divide the packet into shorter ones? Not with DF or with IP options. Of GSO packets only TCP: TC makes
 * their segments shorter. */
static __always_inline bool packet_divisible(const struct packet *pkt)
{
	return !pkt->dont_fragment && packet_without_options(pkt) &&
	       (!pkt->gso_size || pkt->tuple.protocol == IPPROTO_TCP);
}

/* Has the packet IPv4 options? */
static __always_inline bool packet_has_options(const struct packet *pkt)
{
	return !pkt->v6 && packet_header(pkt) > sizeof(struct iphdr);
}

/* Returns the length in bytes of all headers between l3_off and the transport header. The offset is reloaded, so
 * that all parser paths reach the verifier in one state. The mask then sets the bound. */
static __always_inline __u32 packet_header_reloaded(const struct transport *l4, __u32 l3_off)
{
	verifier_forget();
	return (l4->off - l3_off) & HEADERS_MASK;
}

/* Returns the transport header l4 if wanted bytes of it can be read, otherwise NULL. available: bytes of the
 * packet from l4 on, by the IP total length. */
static __always_inline void *packet_reach(void *l4, void *data_end, __u32 available, __u32 wanted)
{
	return available >= wanted && l4 + wanted <= data_end ? l4 : NULL;
}

/* Reads an ICMP echo request or reply. Its id is the port of the side that asks: the source port of a request, the
 * destination port of a reply. False: another ICMP type. */
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

/* Reads ports and checksum of a transport header. False: the ports cannot be read. A quote may end before the
 * checksum (RFC 792 quotes 8 bytes of payload): then check_off stays 0. */
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
	/* The CRC32c of SCTP covers the ports, so the ports must not change. The CRC32c covers no address. */
	if (protocol == IPPROTO_SCTP) {
		l4->ports_length = 0;
		return true;
	}
	/* Without this the compiler computes bound and address from protocol separately, and the verifier cannot
	 * relate them. */
	check = (__u16)verifier_same(check);
	sum = header + (check & TRANSPORT_CHECK_MASK);
	if (available < check + sizeof(*sum) || (void *)(sum + 1) > data_end)
		return true;
	l4->check = *sum;
	l4->pseudo = true;
	/* RFC 768: a UDP checksum of 0 means that the sender has not computed the checksum. */
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

/* Does translation change only the IP addresses of this protocol? Nothing after the IP header depends on them. */
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
	/* RFC 9293 3.10: no stack accepts a SYN with FIN or RST. A segment without SYN must have ACK or RST. */
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
	/* In UDP-Lite this field is the checksum coverage (RFC 3828). */
	if (pkt->tuple.protocol == IPPROTO_UDP &&
	    (length < sizeof(*udp) || (length > available && pkt->fragment == FRAGMENT_NONE)))
		return;
	pkt->flaw = REASON_NONE;
	pkt->opens = true;
	if (pkt->gso_size)
		pkt->segment = pkt->length - available + sizeof(*udp) + pkt->gso_size;
}

/* Only a packet with an INIT chunk and verification tag 0 opens an association (RFC 9260 3.3.2). */
static __always_inline void packet_parse_sctp(void *sctp, void *data_end, __u32 available, struct packet *pkt)
{
	__be32 *words = packet_reach(sctp, data_end, available, SCTP_HEADER);
	__u8 *chunk = packet_reach(sctp, data_end, available, SCTP_HEADER + 4);

	if (!words)
		return;
	pkt->flaw = REASON_NONE;
	pkt->opens = chunk && !words[1] && chunk[SCTP_HEADER] == SCTP_INIT;
	/* gso_size of SCTP is no length (GSO_BY_FRAGS). The kernel splits the packet where the sender did, so it
	 * always fits. */
	if (pkt->gso_size)
		pkt->segment = 0;
}

/* Skips IPv6 extension headers. Returns the offset of the transport header from the IP header, and sets its
 * protocol. 0: the headers are out of reach or too long. With too many headers, protocol becomes the number of the
 * next extension header, which no parser knows. */
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
	/* A later fragment has no ports. No connection has protocol IPPROTO_RAW, so none is found for it. */
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

/* Parses the IP header that an ICMP error quotes. Returns its length in bytes; 0: the header is incomplete or
 * invalid. */
static __always_inline __u32 packet_parse_quoted_ip(void *header, void *data_end, __u32 available, bool v6,
						    struct quote *quote)
{
	if (!packet_reach(header, data_end, available, v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)))
		return 0;
	return v6 ? packet_parse_quoted_ipv6(header, data_end, quote) : packet_parse_quoted_ipv4(header, quote);
}

/* Parses the packet that an ICMP error quotes. False: hairpin does not translate packets of this kind. If the
 * quote is too short or invalid, sets pkt->broken and returns true. */
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
	/* The second word of a TCP header. Every quote has it: RFC 792 demands 8 bytes behind the IP header. */
	pkt->seq = bpf_ntohl(((struct tcphdr *)icmp)->seq);
	if (packet_is_icmp(pkt, quote->tuple.protocol))
		return packet_query(icmp, quote->l4.off, &quote->tuple, &quote->l4);
	return packet_has_ports(quote->tuple.protocol) &&
	       packet_ports(l4, data_end, available - header, quote->l4.off, &quote->tuple, &quote->l4);
}

/* Parses an ICMP query or error. False: hairpin does not translate this type (redirects, router advertisements). */
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

/* Parses the transport header. False: hairpin does not translate this protocol. */
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
	/* The parser of the protocol clears the flaw if the header is valid. */
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

/* Stores which bytes of its datagram a fragment holds; start is in units of 8 bytes. False: the fragment is empty,
 * reaches beyond 65,535 bytes, or has a length that only the last fragment may have (RFC 791). */
static __always_inline bool packet_parse_piece(__u32 start, bool more, __u32 available, struct packet *pkt)
{
	pkt->last = !more;
	pkt->piece.start = (__u16)start;
	pkt->piece.end = (__u16)(start + (available + 7) / 8);
	pkt->fragment = start ? FRAGMENT_LATER : FRAGMENT_FIRST;
	return available && (pkt->last || available % 8 == 0) &&
	       packet_header(pkt) + start * 8 + available <= 0xffff;
}

/* Returns the IP total length in bytes: the header's length field (said) plus more. In a GSO packet beyond 64 KiB
 * the field is 0 (BIG TCP), and the frame gives the length. */
static __always_inline __u32 packet_length(const struct packet *pkt, __u32 said, __u32 more)
{
	return pkt->gso_size && !said ? pkt->frame_length - pkt->l3_off : said + more;
}

/* Is the IP total length shorter than the headers, or longer than the frame? */
static __always_inline bool packet_misfit(const struct packet *pkt)
{
	return pkt->length < packet_header(pkt) || pkt->length > pkt->frame_length - pkt->l3_off;
}

/* Sets the protocol, and both ports to 0. */
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
	/* A v4-mapped address (::ffff:0:0/96) on the wire would match IPv4 entries of the tables. */
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

/* Corrects all offsets after bytes were inserted before the IP header. by: how many bytes. */
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

/* Copies count MAC addresses in steps of two bytes, because in a frame they may not be aligned to four bytes. */
static __always_inline void mac_copy(void *to, const void *from, __u32 count)
{
	const __u16 *source = from;
	__u16 *copy = to;

	for (__u32 i = 0; i < count * ETH_ALEN / sizeof(*copy); i++)
		copy[i] = source[i];
}

/* Parses the IP packet at pkt->l3_off. At 0 there is no Ethernet header. False: the packet is not for hairpin, or
 * its headers are so wrong that no stack forwards it. */
static __always_inline bool packet_parse(void *data, void *data_end, __be16 protocol, struct packet *pkt)
{
	struct ethhdr *eth = data;
	/* With the mask the verifier sees one bounded pointer, with or without an Ethernet header. */
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
