// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* From bytes to struct packet: the one place that knows header lengths.
 * Parsers read (data, data_end) and keep values and offsets, never a pointer into the packet. */
#pragma once

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_endian.h>

#include "types.h"

enum hook { HOOK_TC, HOOK_XDP };
enum fragment_kind { FRAGMENT_NONE, FRAGMENT_FIRST, FRAGMENT_LATER };

enum tcp_flag { TCP_FIN = 0x01, TCP_SYN = 0x02, TCP_RST = 0x04, TCP_ACK = 0x10 };
enum { TCP_FLAGS_OFFSET = 13, IP_MORE_FRAGMENTS = 0x2000, IP_OFFSET_MASK = 0x1fff };

/* Longest Ethernet, IPv4 and TCP headers together. */
enum { PACKET_HEADERS_MAX = sizeof(struct ethhdr) + 60 + 60 };

struct packet {
	struct tuple tuple;
	__u32 ifindex;		/* set by the hook */
	__u32 frame_length;	/* set by the hook: all bytes, not only those in reach */
	__u32 gso_size;		/* set by the hook: transport payload per segment, 0: one packet */
	__u32 length;		/* IP total length */
	__u32 segment;		/* longest IP packet that this is on the wire */
	__u32 seq, ack;		/* TCP, host order */
	__u32 seq_length;	/* TCP: sequence space it takes */
	__u16 l3_off, l4_off;
	__u16 l4_check_off;	/* 0: no transport checksum here */
	__sum16 l4_check;
	__be16 id;
	__u8 local_mac[6];
	__u8 ttl;
	__u8 tcp_flags;		/* FIN, SYN, RST, ACK only */
	__u8 fragment;		/* enum fragment_kind */
	__u8 hook;		/* set by the hook: enum hook */
	bool malformed;		/* ports are good, the rest of the transport header is not */
	bool broken;		/* no ports: lengths that no stack would accept */
};

static __always_inline void addr_from_v4(union addr *addr, __be32 v4)
{
	addr->word[0] = 0;
	addr->word[1] = 0;
	addr->word[2] = bpf_htonl(0xffff);
	addr->word[3] = v4;
}

static __always_inline bool addr_equal(const union addr *a, const union addr *b)
{
	return a->word[3] == b->word[3] && a->word[2] == b->word[2] && a->word[1] == b->word[1] &&
	       a->word[0] == b->word[0];
}

/* RFC 9293 3.10: the combinations a stack would act upon. */
static __always_inline bool tcp_flags_valid(__u8 flags)
{
	if (flags & TCP_SYN)
		return !(flags & (TCP_FIN | TCP_RST));
	return flags & (TCP_ACK | TCP_RST);
}

/* Must not be sent on, whatever it belongs to. */
static __always_inline bool packet_invalid(const struct packet *pkt)
{
	return pkt->malformed || pkt->broken;
}

/* TCP connections begin with a SYN (RFC 7857 section 2), all others with any packet. */
static __always_inline bool packet_opens(const struct packet *pkt)
{
	return pkt->tuple.protocol != IPPROTO_TCP || pkt->tcp_flags == TCP_SYN;
}

static __always_inline void packet_parse_tcp(struct tcphdr *tcp, void *data_end, __u32 available,
					     struct packet *pkt)
{
	__u32 header;

	pkt->malformed = true;
	if ((void *)(tcp + 1) > data_end || available < sizeof(*tcp))
		return;
	header = tcp->doff * 4;
	pkt->tcp_flags = *((__u8 *)tcp + TCP_FLAGS_OFFSET) & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK);
	if (header < sizeof(*tcp) || header > available || !tcp_flags_valid(pkt->tcp_flags))
		return;
	pkt->malformed = false;
	pkt->seq = bpf_ntohl(tcp->seq);
	pkt->ack = bpf_ntohl(tcp->ack_seq);
	pkt->seq_length = available - header + !!(pkt->tcp_flags & TCP_SYN) + !!(pkt->tcp_flags & TCP_FIN);
	pkt->l4_check = tcp->check;
	pkt->l4_check_off = pkt->l4_off + offsetof(struct tcphdr, check);
	if (pkt->gso_size)
		pkt->segment = pkt->length - available + header + pkt->gso_size;
}

static __always_inline void packet_parse_udp(struct udphdr *udp, void *data_end, __u32 available,
					     struct packet *pkt)
{
	__u32 length;

	pkt->malformed = true;
	if ((void *)(udp + 1) > data_end || available < sizeof(*udp))
		return;
	length = bpf_ntohs(udp->len);
	if (length < sizeof(*udp) || (length > available && pkt->fragment == FRAGMENT_NONE))
		return;
	pkt->malformed = false;
	pkt->l4_check = udp->check;
	/* RFC 768: zero means that the sender did not compute one. */
	if (udp->check)
		pkt->l4_check_off = pkt->l4_off + offsetof(struct udphdr, check);
	if (pkt->gso_size)
		pkt->segment = pkt->length - available + sizeof(*udp) + pkt->gso_size;
}

static __always_inline bool packet_parse_l4(void *l4, void *data_end, __u32 available, struct packet *pkt)
{
	__be16 *ports = l4;
	__u8 protocol = pkt->tuple.protocol;

	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return false;
	if (pkt->fragment == FRAGMENT_LATER)
		return true;
	if ((void *)(ports + 2) > data_end || available < 2 * sizeof(*ports)) {
		pkt->broken = true;
		return true;
	}
	pkt->tuple.sport = ports[0];
	pkt->tuple.dport = ports[1];
	if (protocol == IPPROTO_TCP)
		packet_parse_tcp(l4, data_end, available, pkt);
	else
		packet_parse_udp(l4, data_end, available, pkt);
	if (!pkt->tuple.sport)
		pkt->malformed = true;
	pkt->broken = !pkt->tuple.dport;
	return true;
}

static __always_inline bool packet_parse_ipv4(struct iphdr *ip, void *data_end, struct packet *pkt)
{
	__u32 header;
	__u16 frag_off;

	if ((void *)(ip + 1) > data_end || ip->version != 4)
		return false;
	header = ip->ihl * 4;
	if (header < sizeof(*ip))
		return false;
	pkt->length = bpf_ntohs(ip->tot_len);
	frag_off = bpf_ntohs(ip->frag_off);
	if (frag_off & IP_OFFSET_MASK)
		pkt->fragment = FRAGMENT_LATER;
	else if (frag_off & IP_MORE_FRAGMENTS)
		pkt->fragment = FRAGMENT_FIRST;
	pkt->segment = pkt->length;
	pkt->id = ip->id;
	pkt->ttl = ip->ttl;
	pkt->l4_off = pkt->l3_off + header;
	addr_from_v4(&pkt->tuple.src, ip->saddr);
	addr_from_v4(&pkt->tuple.dst, ip->daddr);
	pkt->tuple.protocol = ip->protocol;
	if (pkt->length < header || pkt->length > pkt->frame_length - pkt->l3_off) {
		pkt->broken = true;
		return true;
	}
	return packet_parse_l4((void *)ip + header, data_end, pkt->length - header, pkt);
}

/* False: nothing hairpin could have to do with, or headers no stack would forward. */
static __always_inline bool packet_parse(void *data, void *data_end, struct packet *pkt)
{
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > data_end || eth->h_proto != bpf_htons(ETH_P_IP))
		return false;
	__builtin_memcpy(pkt->local_mac, eth->h_dest, ETH_ALEN);
	pkt->l3_off = sizeof(*eth);
	return packet_parse_ipv4((void *)(eth + 1), data_end, pkt);
}
