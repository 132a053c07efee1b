// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The leak guard: at egress of a WAN, after POSTROUTING. A target's private address must not be seen on the Internet, not even
 * when the connection that translated it is lost. The guard needs no connections. */
#pragma once

#include "maps.h"
#include "packet.h"

/* Reads the source address; false: the packet has none. Slow: by a helper, which finds the IP header on every
 * device, also where data begin with it and in an skb whose header is out of reach of pointers. */
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

/* The same behind an Ethernet header, by pointers. The first octet of most MAC addresses cannot be that of an IP
 * header; behind any other one there may be a device of bare packets. */
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

/* Would this packet show a target's private address? A frame of a VLAN is that VLAN device's, which may be
 * a LAN. On a WAN whose own address is private there is another router that translates. */
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
