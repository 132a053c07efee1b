// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Writes what a rewrite changes in either hook's packet, through checked pointers: addresses, ports, TTL, MAC
 * addresses, the IP header's checksum. That of the transport header is each hook's own affair. */
#pragma once

#include "csum.h"
#include "verifier.h"
#include "work.h"

enum { WRITE_OFFSET_MAX = 0x3ff };

/* The only place that turns an offset into a pointer. The offset is bounded, as the verifier grants no range to one that may
 * reach 0xffff. */
static __always_inline void *write_at(void *data, void *data_end, __u32 offset, __u32 length)
{
	void *p;

	if (offset > WRITE_OFFSET_MAX)
		return NULL;
	p = verifier_same_pointer(data + offset);
	return p + length <= data_end ? p : NULL;
}

static __always_inline bool write_ipv6(void *data, void *data_end, const struct packet *pkt, const struct rewrite *rw)
{
	struct ipv6hdr *ip = write_at(data, data_end, pkt->l3_off, sizeof(*ip));

	if (!ip)
		return false;
	ip->hop_limit = rw->ttl;
	__builtin_memcpy(&ip->saddr, &rw->entry.to.src, sizeof(rw->entry.to.src));
	__builtin_memcpy(&ip->daddr, &rw->entry.to.dst, sizeof(rw->entry.to.dst));
	return true;
}

static __always_inline bool write_ipv4(void *data, void *data_end, const struct packet *pkt, const struct rewrite *rw)
{
	struct iphdr *ip = write_at(data, data_end, pkt->l3_off, sizeof(*ip));

	if (!ip)
		return false;
	ip->check = csum_apply(ip->check, rw->address_diff + csum_diff_ttl(false));
	ip->ttl = rw->ttl;
	ip->saddr = rw->entry.to.src.word[3];
	ip->daddr = rw->entry.to.dst.word[3];
	return true;
}

/* IP header and both ports, or a query's id. False, if any of it is out of reach: then nothing is written. */
static __always_inline bool write_headers(void *data, void *data_end, const struct packet *pkt,
					  const struct rewrite *rw)
{
	const struct transport *l4 = &pkt->l4;
	__be16 *ports = write_at(data, data_end, l4->ports_off, 2 * sizeof(*ports));

	if (!ports || !(pkt->v6 ? write_ipv6(data, data_end, pkt, rw) : write_ipv4(data, data_end, pkt, rw)))
		return false;
	if (l4->ports_length == 2 * sizeof(*ports)) {
		ports[0] = rw->entry.to.sport;
		ports[1] = rw->entry.to.dport;
	} else if (l4->ports_length) {
		ports[0] = rw->entry.to.sport | rw->entry.to.dport;
	}
	return true;
}

static __always_inline bool write_macs(void *data, void *data_end, const struct rewrite *rw)
{
	__u8 *macs = write_at(data, data_end, 0, sizeof(rw->macs));

	if (!macs)
		return false;
	mac_copy(macs, rw->macs, 2);
	return true;
}
