// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Checksum arithmetic, and the writes that both hooks share: addresses, ports, TTL, MAC addresses, IP checksum.
 * Checksums are updated by differences (RFC 1624): a recomputation would hide corruption. */
#pragma once

#include "packet.h"
#include "verifier.h"
#include "work.h"

static __always_inline __wsum csum_fold32(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (__wsum)sum;
}

/* Folds a sum to 16 bits. Three steps are enough for a sum of up to 2^15 words of 32 bits. */
static __always_inline __u16 csum_fold16(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)(sum + (sum >> 16));
}

/* Returns the checksum difference between two addresses. For IPv4 only the last word counts: the other words are
 * constant. */
static __always_inline __u64 csum_diff_addr(const union addr *from, const union addr *to, bool v6)
{
	__u64 sum = (__u64)(__u32)~from->word[3] + to->word[3];

	if (!v6)
		return sum;
	for (int i = 0; i < 3; i++)
		sum += (__u64)(__u32)~from->word[i] + to->word[i];
	return sum;
}

/* Returns the sum of an address, not folded. For IPv4 only the last word counts: the v4-mapped prefix adds 0xffff,
 * which is zero in one's complement. */
static __always_inline __u64 csum_addr(const union addr *addr, bool v6)
{
	return v6 ? (__u64)addr->word[0] + addr->word[1] + addr->word[2] + addr->word[3] : addr->word[3];
}

/* Returns the checksum difference of a 16-bit field; 0 if the field does not change. The formula would then give
 * 0xffff, the second zero of one's complement, and would turn a checksum of 0xffff into 0. In UDP 0 means "no
 * checksum". */
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

/* The checksum difference when the TTL goes down by one. In the IPv4 header the TTL is the upper byte of a 16-bit
 * word, in the IPv6 header the hop limit is the lower byte. */
enum { TTL_LESS_V4 = 0xffff - 0x0100, TTL_LESS_V6 = 0xffff - 0x0001 };

static __always_inline __u64 csum_diff_ttl(bool v6)
{
	return bpf_htons(v6 ? TTL_LESS_V6 : TTL_LESS_V4);
}

/* Returns the checksum after a change by diff (RFC 1624 equation 3). */
static __always_inline __sum16 csum_apply(__sum16 check, __u64 diff)
{
	return (__sum16)~csum_fold16((__u64)(__u16)~check + diff);
}

/* UDP destination ports of tunnels. VXLAN has two: IANA's port, and the older default of Linux. */
enum tunnel_port { TUNNEL_VXLAN = 4789, TUNNEL_VXLAN_LINUX = 8472, TUNNEL_GENEVE = 6081, TUNNEL_GUE = 6080 };

/* May this UDP packet carry an inner packet with an unfinished checksum? The outer header does not show this. The
 * tunnel has either no UDP checksum, or computes the UDP checksum as if the inner checksum were finished (local
 * checksum offload of Linux). */
static __always_inline bool csum_hidden(const struct packet *pkt)
{
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

/* Returns the folded sum of the pseudo-header: the checksum field holds it while a device is to finish the
 * checksum. The length has 32 bits: BIG TCP packets are longer than 65,535 bytes. */
static __always_inline __u16 csum_pseudo(const struct packet *pkt)
{
	__u64 sum = bpf_htons(pkt->tuple.protocol) + (__u64)bpf_htonl(pkt->length - packet_header(pkt));

	return csum_fold16(sum + csum_addr(&pkt->tuple.src, pkt->v6) + csum_addr(&pkt->tuple.dst, pkt->v6));
}

enum { EDIT_OFFSET_MAX = 0x3ff };

/* Returns a pointer to length bytes at an offset of the frame; NULL: they are out of reach. The offset is bounded:
 * the verifier gives no range to a packet pointer whose offset may reach 0xffff. */
static __always_inline void *edit_reach(void *data, void *data_end, __u32 offset, __u32 length)
{
	void *p;

	if (offset > EDIT_OFFSET_MAX)
		return NULL;
	p = verifier_same_pointer(data + offset);
	return p + length <= data_end ? p : NULL;
}

/* Writes the IP header, and both ports or the id of an ICMP query. False: some bytes are out of reach, and nothing
 * is written. */
static __always_inline bool edit_headers(void *data, void *data_end, const struct packet *pkt, const struct rewrite *rw)
{
	__be16 *ports = edit_reach(data, data_end, pkt->l4.ports_off, 2 * sizeof(*ports));
	const struct tuple *to = &rw->entry.to;
	struct ipv6hdr *ip6;
	struct iphdr *ip;

	if (!ports)
		return false;
	if (pkt->v6) {
		ip6 = edit_reach(data, data_end, pkt->l3_off, sizeof(*ip6));
		if (!ip6)
			return false;
		ip6->hop_limit = rw->ttl;
		__builtin_memcpy(&ip6->saddr, &to->src, sizeof(to->src));
		__builtin_memcpy(&ip6->daddr, &to->dst, sizeof(to->dst));
	} else {
		ip = edit_reach(data, data_end, pkt->l3_off, sizeof(*ip));
		if (!ip)
			return false;
		ip->check = csum_apply(ip->check, rw->address_diff + csum_diff_ttl(false));
		ip->ttl = rw->ttl;
		ip->saddr = to->src.word[3];
		ip->daddr = to->dst.word[3];
	}
	if (pkt->l4.ports_length == 2 * sizeof(*ports)) {
		ports[0] = to->sport;
		ports[1] = to->dport;
	} else if (pkt->l4.ports_length) {
		ports[0] = to->sport | to->dport;
	}
	return true;
}

/* Writes a transport checksum that is finished. */
static __always_inline void edit_sum(__sum16 *check, const struct packet *pkt, const struct rewrite *rw)
{
	*check = csum_apply(*check, rw->address_diff + rw->l4_diff);
	/* RFC 768: a UDP checksum of 0 would mean "no checksum". */
	if (pkt->tuple.protocol == IPPROTO_UDP && !*check)
		*check = 0xffff;
}

static __always_inline bool edit_macs(void *data, void *data_end, const struct rewrite *rw)
{
	__u8 *macs = edit_reach(data, data_end, 0, sizeof(rw->macs));

	if (!macs)
		return false;
	mac_copy(macs, rw->macs, 2);
	return true;
}

/* Writes all changes of a frame that XDP sends: IP header, ports, MAC addresses, transport checksum. The checksum
 * must be finished. False: some bytes are out of reach, and nothing is written. */
static __always_inline bool edit_frame(void *data, void *data_end, const struct packet *pkt, const struct rewrite *rw)
{
	__sum16 *check = NULL;

	if (pkt->l4.check_off)
		check = edit_reach(data, data_end, pkt->l4.check_off, sizeof(*check));
	if ((pkt->l4.check_off && !check) || !edit_headers(data, data_end, pkt, rw) || !edit_macs(data, data_end, rw))
		return false;
	if (check)
		edit_sum(check, pkt, rw);
	return true;
}
