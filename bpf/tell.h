// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* TC: tells a sender by ICMP why its packet went no further, quoting it as it came (RFC 1812 4.3.2).
 * Written here, as the kernel knows neither the forward nor, for packets to itself, of any lifetime. */
#pragma once

#include "craft.h"

/* The error and its quote come to 532 bytes, below the 576 of RFC 1812 4.3.2.3, or to the 1280 of RFC 4443 2.4. */
enum icmp_code { ICMP_HOST_UNREACH = 1, ICMP_FRAG_NEEDED = 4, ICMP_PKT_FILTERED = 13 };
enum icmpv6_code { ICMPV6_ADM_PROHIBITED = 1, ICMPV6_ADDR_UNREACH = 3 };
enum { TELL_QUOTE_V4 = 504, TELL_QUOTE_V6 = 1232, TELL_TTL = 64, TELL_BURST_NS = SECOND_NS };
enum { TELL_TOS = 0xc0 };	/* RFC 1812 4.3.2.5 */

struct tell {
	__u8 type, code;	/* both 0: says nothing */
	bool mtu;		/* says the MTU, too */
};

static __always_inline struct tell tell_prohibited(const struct packet *pkt)
{
	if (!nat_tells(pkt))
		return (struct tell){};
	if (pkt->v6)
		return (struct tell){ .type = ICMPV6_DEST_UNREACH, .code = ICMPV6_ADM_PROHIBITED };
	return (struct tell){ .type = ICMP_DEST_UNREACH, .code = ICMP_PKT_FILTERED };
}

static __always_inline struct tell tell_unreachable(const struct packet *pkt)
{
	if (!nat_tells(pkt))
		return (struct tell){};
	if (pkt->v6)
		return (struct tell){ .type = ICMPV6_DEST_UNREACH, .code = ICMPV6_ADDR_UNREACH };
	return (struct tell){ .type = ICMP_DEST_UNREACH, .code = ICMP_HOST_UNREACH };
}

/* Without DF the size is not to blame, but options or a protocol that cannot be cut up. */
static __always_inline struct tell tell_too_big(const struct packet *pkt)
{
	if (!pkt->dont_fragment)
		return (struct tell){};
	if (pkt->v6)
		return (struct tell){ .type = ICMPV6_PKT_TOOBIG, .mtu = true };
	return (struct tell){ .type = ICMP_DEST_UNREACH, .code = ICMP_FRAG_NEEDED, .mtu = true };
}

/* What this reason is called in ICMP. */
static __always_inline struct tell tell_of(const struct work *work)
{
	const struct packet *pkt = &work->pkt;

	switch (work->rw.reason) {
	case REASON_TTL_EXPIRED:
		return (struct tell){ .type = pkt->v6 ? ICMPV6_TIME_EXCEED : ICMP_TIME_EXCEEDED };
	case REASON_TOO_BIG:
		return tell_too_big(pkt);
	case REASON_NO_ROUTE:
		return tell_unreachable(pkt);
	case REASON_NOT_ALLOWED:
	case REASON_REFLECT_OFF:
	case REASON_SOURCE_LIMIT:
	case REASON_TABLE_FULL:
	case REASON_TUPLE_IN_USE:
	case REASON_NO_PORT:
	case REASON_PORT_FIXED:
	case REASON_NO_ADDRESS:
	case REASON_NOT_ATTACHED:
		return tell_prohibited(pkt);
	default:
		return (struct tell){};
	}
}

/* RFC 1812 4.3.2.8, by GCRA: a side has one message an interval, and may save up a second's worth. Frag
 * Needed is exempt, as in Linux: without it a path stays a black hole. */
static __always_inline bool tell_allowed(const struct interface *in, struct tell tell)
{
	const struct settings *settings = conn_settings();
	__u32 role = in->role;
	struct icmp_budget *budget = bpf_map_lookup_elem(&icmp_budgets, &role);
	__u64 now = conn_now(), next;

	if (tell.mtu)
		return true;
	if (!settings || !budget)
		return false;
	next = budget->next > now ? budget->next : now;
	if (next - now >= TELL_BURST_NS)
		return false;
	budget->next = next + settings->icmp_interval;
	return true;
}

static __always_inline void tell_header4(struct work *work, const union addr *from, __u32 length)
{
	struct iphdr *ip = (struct iphdr *)work->header;

	ip->version = 4;
	ip->ihl = sizeof(*ip) / 4;
	ip->tos = TELL_TOS;
	ip->tot_len = bpf_htons((__u16)(sizeof(*ip) + length));
	ip->frag_off = bpf_htons(IP_DONT_FRAGMENT);
	ip->ttl = TELL_TTL;
	ip->protocol = IPPROTO_ICMP;
	ip->saddr = from->word[3];
	ip->daddr = work->pkt.tuple.src.word[3];
	ip->check = (__sum16)~csum_fold16((__u32)bpf_csum_diff(NULL, 0, (__be32 *)ip, sizeof(*ip), 0));
}

static __always_inline void tell_header(struct work *work, const union addr *from, __u32 length)
{
	struct ipv6hdr *ip = (struct ipv6hdr *)work->header;

	__builtin_memset(work->header, 0, sizeof(work->header));
	if (!work->pkt.v6)
		return tell_header4(work, from, length);
	ip->version = 6;
	ip->priority = TELL_TOS >> 4;
	ip->payload_len = bpf_htons((__u16)length);
	ip->nexthdr = IPPROTO_ICMPV6;
	ip->hop_limit = TELL_TTL;
	__builtin_memcpy(&ip->saddr, from, sizeof(*from));
	__builtin_memcpy(&ip->daddr, &work->pkt.tuple.src, sizeof(*from));
}

/* The ICMP message, behind the room for an IP header in the craft. Its length; 0: cannot be. */
static __always_inline __u32 tell_message(struct __sk_buff *skb, const struct work *work, struct craft *craft,
					  const union addr *from, struct tell tell)
{
	const struct packet *pkt = &work->pkt;
	__u32 base = packet_base(pkt), quote = pkt->length, most = pkt->v6 ? TELL_QUOTE_V6 : TELL_QUOTE_V4, end;
	struct icmphdr *icmp = (struct icmphdr *)&craft->packet[base];
	__u64 sum = 0;

	if (quote > most)
		quote = most;
	if (!packet_bounded(&quote, TELL_QUOTE_V6) || bpf_skb_load_bytes(skb, pkt->l3_off, icmp + 1, quote) != 0)
		return 0;
	__builtin_memset(icmp, 0, sizeof(*icmp));
	icmp->type = tell.type;
	icmp->code = tell.code;
	if (tell.mtu && pkt->v6)
		icmp->mtu6 = bpf_htonl(work->rw.mtu);
	else if (tell.mtu)
		icmp->mtu = bpf_htons((__u16)work->rw.mtu);
	end = base + sizeof(*icmp) + quote;
	if (pkt->v6)
		sum = csum_addr(from) + csum_addr(&pkt->tuple.src) + bpf_htonl(end - base) +
		      bpf_htonl(IPPROTO_ICMPV6);
	icmp->checksum = (__sum16)~csum_fold16(sum + craft_sum(base, end));
	return end - base;
}

/* Back where it came from: out of the interface and to the station that sent it. */
static __always_inline bool tell_address(struct __sk_buff *skb, struct work *work)
{
	__u8 *macs = work->rw.macs;

	if (bpf_skb_load_bytes(skb, ETH_ALEN, macs, ETH_ALEN) != 0)
		return false;
	__builtin_memcpy(macs + ETH_ALEN, work->pkt.local_mac, ETH_ALEN);
	return true;
}

/* True: the skb now holds the answer, to go out where it came in. */
static __always_inline bool tell_write(struct __sk_buff *skb, struct work *work)
{
	const struct packet *pkt = &work->pkt;
	const struct interface *in = bpf_map_lookup_elem(&interfaces, &pkt->ifindex);
	struct craft *craft = craft_get();
	struct tell tell = tell_of(work);
	__u32 length, base = packet_base(pkt);
	const union addr *from;

	/* RFC 1812 4.3.2.7: not about errors, nor about any but the first fragment. */
	if (!tell.type || !in || !craft || pkt->icmp_error || pkt->fragment == FRAGMENT_LATER)
		return false;
	from = open_router_address(in, &pkt->tuple.src);
	if (!from || !tell_allowed(in, tell))
		return false;
	length = tell_message(skb, work, craft, from, tell);
	if (!length || !tell_address(skb, work))
		return false;
	tell_header(work, from, length);
	return craft_begin(skb, pkt) &&
	       craft_put(skb, base, base + length) == 0;
}
