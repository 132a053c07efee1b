// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Checksum differences by RFC 1624: never a recomputation, which would hide corruption.
 * A difference is computed once and applied to whatever covers the changed fields. */
#pragma once

#include "packet.h"

static __always_inline __wsum csum_fold32(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (__wsum)sum;
}

/* Three steps are enough for a sum of up to 2^15 words of 32 bits. */
static __always_inline __u16 csum_fold16(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)(sum + (sum >> 16));
}

/* Of an IPv4 address only the last word counts: the others never change. */
static __always_inline __u64 csum_diff_addr(const union addr *from, const union addr *to, bool v6)
{
	__u64 sum = (__u64)(__u32)~from->word[3] + to->word[3];

	if (!v6)
		return sum;
	for (int i = 0; i < 3; i++)
		sum += (__u64)(__u32)~from->word[i] + to->word[i];
	return sum;
}

/* The same. The words that map an IPv4 address to IPv6 add up to zero. */
static __always_inline __u64 csum_addr(const union addr *addr, bool v6)
{
	return v6 ? (__u64)addr->word[0] + addr->word[1] + addr->word[2] + addr->word[3] : addr->word[3];
}

/* Without a change the checksum stays: adding 0xffff, the other zero, would turn a checksum of zero into a wrong one. */
static __always_inline __u64 csum_diff16(__be16 from, __be16 to)
{
	return from == to ? 0 : (__u64)(__u16)~from + to;
}

static __always_inline __u64 csum_diff_addresses(const struct tuple *from, const struct tuple *to, bool v6)
{
	return csum_diff_addr(&from->src, &to->src, v6) + csum_diff_addr(&from->dst, &to->dst, v6);
}

static __always_inline __u64 csum_diff_ports(const struct tuple *from, const struct tuple *to)
{
	return csum_diff16(from->sport, to->sport) + csum_diff16(from->dport, to->dport);
}

/* The change of a sum when the TTL goes down by one: it is the upper byte of its 16 bits in IPv4's header, the lower one in IPv6's. */
enum { TTL_LESS_V4 = 0xffff - 0x0100, TTL_LESS_V6 = 0xffff - 0x0001 };

static __always_inline __u64 csum_diff_ttl(bool v6)
{
	return bpf_htons(v6 ? TTL_LESS_V6 : TTL_LESS_V4);
}

/* RFC 1624 equation 3. */
static __always_inline __sum16 csum_apply(__sum16 check, __u64 diff)
{
	return (__sum16)~csum_fold16((__u64)(__u16)~check + diff);
}

/* UDP destinations that are tunnels: VXLAN (IANA, Linux), Geneve, GUE. */
enum tunnel_port { TUNNEL_VXLAN = 4789, TUNNEL_VXLAN_LINUX = 8472, TUNNEL_GENEVE = 6081, TUNNEL_GUE = 6080 };

/* A packet inside this one may have an unfinished checksum, which cannot be seen from outside: tunnels leave their own UDP
 * checksum out, or have finished it as if the inner one were finished (Linux: local checksum offload). */
static __always_inline bool csum_hidden(const struct packet *pkt)
{
	if (pkt->tuple.protocol != IPPROTO_UDP)
		return false;
	switch (bpf_ntohs(pkt->tuple.dport)) {
	case TUNNEL_VXLAN:
	case TUNNEL_VXLAN_LINUX:
	case TUNNEL_GENEVE:
	case TUNNEL_GUE:
		return true;
	default:
		return !pkt->l4.check_off;
	}
}

/* May the checksum be left to the device? Then the field has the folded sum of the pseudo-header. One finished checksum in
 * 65,536 looks the same, so true means «maybe»; false is certain. */
static __always_inline bool csum_maybe_partial(const struct packet *pkt)
{
	__u64 sum = bpf_htons(pkt->tuple.protocol);

	if (csum_hidden(pkt))
		return true;
	if (!pkt->l4.check_off)
		return false;
	sum += bpf_htons((__u16)(pkt->length - packet_header(pkt)));
	sum += csum_addr(&pkt->tuple.src, pkt->v6) + csum_addr(&pkt->tuple.dst, pkt->v6);
	return csum_fold16(sum) == pkt->l4.check;
}
