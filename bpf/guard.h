// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The leak guard runs at egress of a WAN, after POSTROUTING. It drops packets that have the private address of a target
 * as their source: the connection that translated this address may be lost. So the guard does not look at connections. */
#pragma once

#include "maps.h"
#include "packet.h"

/* Reads the source address. False: the packet has none. Slow, because it calls a helper. But the helper finds every IP
 * header: also on a device without Ethernet header, and in an skb whose headers are not in the linear part. */
static __noinline bool guard_load_source(struct __sk_buff *skb, union addr *source)
{
	__be32 v4;

	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return bpf_skb_load_bytes_relative(skb, offsetof(struct ipv6hdr, saddr), source, sizeof(*source),
						   BPF_HDR_START_NET) == 0;
	if (bpf_skb_load_bytes_relative(skb, offsetof(struct iphdr, saddr), &v4, sizeof(v4), BPF_HDR_START_NET) != 0)
		return false;
	addr_from_v4(source, v4);
	return true;
}

/* Reads the source address by pointers, if the data begin with an Ethernet header. If the first octet may also be the
 * first octet of an IP header, the device may have no Ethernet header: guard_load_source reads the address. */
static __always_inline bool guard_source(struct __sk_buff *skb, union addr *source)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	const struct ethhdr *eth = data;
	const struct iphdr *ip = data + sizeof(*eth);
	const struct ipv6hdr *ip6 = data + sizeof(*eth);
	bool v6 = skb->protocol == bpf_htons(ETH_P_IPV6);

	if ((void *)(ip + 1) > data_end || (v6 && (void *)(ip6 + 1) > data_end) || eth->h_proto != skb->protocol ||
	    eth->h_dest[0] >> 4 == 4 || eth->h_dest[0] >> 4 == 6)
		return guard_load_source(skb, source);
	if (v6)
		addr_from_v6(source, &ip6->saddr);
	else
		addr_from_v4(source, ip->saddr);
	return true;
}

/* Would this packet show a target's private address to the Internet? A frame of a VLAN belongs to the VLAN device,
 * which may be a LAN. If the WAN itself has a private IPv4 address, another router translates its packets, so the guard
 * drops nothing there. */
static __always_inline bool guard_leaks(struct __sk_buff *skb)
{
	const struct interface *out;
	__u32 ifindex = skb->ifindex;
	union addr source;

	if ((skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6)) ||
	    (skb->vlan_present && skb->vlan_tci & TAG_VLAN_MASK))
		return false;
	if (!guard_source(skb, &source) || !addr_private(&source))
		return false;
	out = bpf_map_lookup_elem(&interfaces, &ifindex);
	return out && out->role == ROLE_WAN && !out->private && bpf_map_lookup_elem(&targets, &source);
}
