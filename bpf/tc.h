// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* TC: writes a rewrite into an skb and sends it. skb helpers, not pointers: they know
 * CHECKSUM_PARTIAL and CHECKSUM_COMPLETE, and keep GSO packets whole. */
#pragma once

#include <linux/pkt_cls.h>

#include "nat.h"

enum { PACKET_TO_US = 0 };	/* PACKET_HOST of linux/if_packet.h */

/* Brings all headers into reach of pointers. */
static __always_inline bool tc_pull(struct __sk_buff *skb)
{
	__u32 wanted = skb->len < PACKET_HEADERS_MAX ? skb->len : PACKET_HEADERS_MAX;

	return skb->data + wanted <= skb->data_end || bpf_skb_pull_data(skb, wanted) == 0;
}

static __always_inline bool tc_write(struct __sk_buff *skb, const struct packet *pkt, const struct rewrite *rw)
{
	__be32 addresses[2] = { rw->to.src.word[3], rw->to.dst.word[3] };
	__be16 ports[2] = { rw->to.sport, rw->to.dport };
	__u64 mangled = pkt->tuple.protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__u32 ip = pkt->l3_off;
	long err = 0;

	if (pkt->l4_check_off) {
		err |= bpf_l4_csum_replace(skb, pkt->l4_check_off, 0, rw->address_diff,
					   BPF_F_PSEUDO_HDR | mangled);
		err |= bpf_l4_csum_replace(skb, pkt->l4_check_off, 0, rw->port_diff, mangled);
	}
	if (pkt->fragment != FRAGMENT_LATER)
		err |= bpf_skb_store_bytes(skb, pkt->l4_off, ports, sizeof(ports), 0);
	err |= bpf_l3_csum_replace(skb, ip + offsetof(struct iphdr, check), 0, rw->ip_diff, 0);
	err |= bpf_skb_store_bytes(skb, ip + offsetof(struct iphdr, ttl), &rw->ttl_protocol, 2, 0);
	err |= bpf_skb_store_bytes(skb, ip + offsetof(struct iphdr, saddr), addresses, sizeof(addresses), 0);
	return err == 0;
}

static __always_inline long tc_send(struct __sk_buff *skb, const struct rewrite *rw)
{
	struct bpf_redir_neigh hop = { .nh_family = FIB_AF_INET, .ipv4_nh = rw->gateway };

	if (rw->gateway)
		return bpf_redirect_neigh(rw->ifindex, &hop, sizeof(hop), 0);
	if (bpf_skb_store_bytes(skb, 0, rw->macs, sizeof(rw->macs), 0) != 0)
		return TC_ACT_SHOT;
	return bpf_redirect(rw->ifindex, 0);
}
