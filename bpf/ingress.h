// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Which sources may come in by an interface. The same function decides for packets that open a connection, for packets of
 * a connection that come in by another interface than before, and for ICMP errors. */
#pragma once

#include "fib.h"
#include "own_address.h"
#include "stand_in.h"
#include "work.h"

/* rp_filter of the kernel (Documentation/networking/ip-sysctl.rst). Any other value but 0 is loose mode. */
enum { RP_FILTER_STRICT = 1 };

/* Must a router never forward a packet with this source (RFC 1122 3.2.1.3, RFC 4291 2.4)? True for unspecified,
 * loopback, multicast and reserved addresses, and for IPv6 link-local addresses. */
static __always_inline bool addr_martian(const union addr *addr)
{
	__be32 first = addr->word[0], last = addr->word[3];

	if (addr_is_v4(addr))
		return word_in(last, 0x00000000, 8) || word_in(last, 0x7f000000, 8) || word_in(last, 0xe0000000, 3);
	return word_in(first, 0xff000000, 8) || word_in(first, 0xfe800000, 10) ||
	       !(first | addr->word[1] | addr->word[2]);
}

/* Does this interface refuse private sources? A WAN does, unless its own address is private, or the configuration
 * accepts private sources there. */
static __always_inline bool ingress_public_only(const struct interface *in)
{
	return in->role == ROLE_WAN && !in->private && !in->private_sources;
}

/* Does a look-up with these flags find a way back by the packet's own interface? Not inlined, to save stack. */
static __noinline bool ingress_finds_back(void *ctx, struct work *work, __u32 flags)
{
	struct fib_start start = { .ifindex = work->pkt.ifindex, .flags = flags };
	struct bpf_fib_lookup *fib = &work->route.fib;
	long result;

	tuple_reverse(&work->pkt.tuple, &work->route.back);
	result = fib_route(ctx, fib, start, &work->route.back, sizeof(struct iphdr));
	return fib_leaves_by(result, fib, start.ifindex);
}

/* Does the packet's own interface have a way back to its source, although the kernel prefers a way by another interface?
 * It takes up to three look-ups. For IPv6 the kernel ignores rules for source addresses if an output interface is wanted
 * (fib6_rule_match), so the first look-up wants none. The last look-up asks the main table alone: for IPv6 the wanted
 * interface is only a preference, and a rule of a VPN may lead to another table first. */
static __always_inline bool ingress_leads_back(void *ctx, struct work *work)
{
	return ingress_finds_back(ctx, work, 0) || ingress_finds_back(ctx, work, BPF_FIB_LOOKUP_OUTPUT) ||
	       ingress_finds_back(ctx, work, BPF_FIB_LOOKUP_OUTPUT | BPF_FIB_LOOKUP_DIRECT);
}

/* Is the way back in work->route.fib a default route, or the half of one that VPN programs set? The kernel does not tell
 * the length of a route's prefix. But a route that leads to the source and also to an address far away has a short
 * prefix: the second address differs in bit 1 for IPv4, so the prefix is at most /1, and in bit 3 for IPv6, so the prefix
 * is at most /3 (2000::/3). Two routes with one gateway and one metric are taken for one route. Not inlined, to save
 * stack. */
static __noinline bool ingress_by_default(void *ctx, struct work *work)
{
	struct fib_start start = { .ifindex = work->pkt.ifindex };
	struct bpf_fib_lookup *fib = &work->route.fib;
	struct tuple *back = &work->route.back;
	__u32 ifindex = fib->ifindex, metric = fib->rt_metric;
	bool on_link = fib_on_link(fib, &back->dst);
	struct bpf_redir_neigh *gateway = &work->route.gateway;
	long result;

	fib_gateway(fib, gateway);
	if (addr_is_v4(&back->dst))
		back->dst.word[3] ^= bpf_htonl(1u << 30);
	else
		back->dst.word[0] ^= bpf_htonl(1u << 28);
	result = fib_route(ctx, fib, start, back, sizeof(struct iphdr));
	if (!fib_leaves_by(result, fib, ifindex) || fib->rt_metric != metric)
		return false;
	return on_link ? fib_on_link(fib, &back->dst)
		       : __builtin_memcmp(gateway->ipv6_nh, fib->ipv6_dst, sizeof(gateway->ipv6_nh)) == 0;
}

/* Asks the kernel for the way back to the packet's source. On a WAN first without the external address: a rule for
 * packets from this address ("from 203.0.113.1 lookup 7") often leads to a table that has no routes to the LANs, and a
 * LAN's source would seem to be behind the WAN. */
static __always_inline long ingress_route_back(void *ctx, struct work *work, const struct interface *in)
{
	struct fib_start start = { .ifindex = work->pkt.ifindex };
	struct tuple *back = &work->route.back;
	long result;

	if (in->role == ROLE_WAN) {
		tuple_reverse(&work->pkt.tuple, back);
		__builtin_memset(&back->src, 0, sizeof(back->src));
		result = fib_route(ctx, &work->route.fib, start, back, sizeof(struct iphdr));
		if (fib_found(result))
			return result;
	}
	return fib_route_back(ctx, &work->route, work->pkt.ifindex, &work->pkt.tuple);
}

/* Do two interfaces use one link? With VRRP, clients' frames come in by a macvlan with the virtual MAC address, while the
 * routes to the clients leave by the device below it. */
static __always_inline bool ingress_one_link(const struct interface *in, __u32 ifindex, const struct interface *out, __u32 back)
{
	return out && (in->below ?: ifindex) == (out->below ?: back);
}

/* May the way back to the source lead by interface back, although the packet came in by another interface?
 *  - WAN: yes if back is a WAN: with several uplinks, the default route leaves by only one of them. Never if back is a
 *    LAN. If hairpin is not configured for back, then back may be a VPN that has the default route: yes for public
 *    sources that only this route leads to, if the packet's own interface has a way back, too. The networks behind back
 *    itself are internal ones, whose sources nobody may forge on a WAN.
 *  - LAN: not in strict mode of rp_filter. Otherwise yes, unless the only way back is by a WAN. The kernel has no
 *    rp_filter for IPv6: the value for IPv4 says how strict this interface is to be. rp_filter is an IPv4 setting, so for
 *    IPv6 a macvlan and its lower device count as one interface. */
static __always_inline bool ingress_detour(void *ctx, struct work *work, const struct interface *in, __u32 back)
{
	const struct interface *out = bpf_map_lookup_elem(&interfaces, &back);
	const union addr *source = &work->pkt.tuple.src;
	enum role role = out ? out->role : 0;

	if (in->role == ROLE_WAN && out)
		return role == ROLE_WAN;
	if (in->role == ROLE_WAN)
		return !addr_private(source) && !own_address_find(back, source) && ingress_by_default(ctx, work) &&
		       ingress_leads_back(ctx, work);
	if (in->rp_filter == RP_FILTER_STRICT)
		return work->pkt.v6 && ingress_one_link(in, work->pkt.ifindex, out, back);
	return role != ROLE_WAN || ingress_leads_back(ctx, work);
}

/* May the packet's source come in by its interface? NONE: yes. Stores the way back to the source in work->route. Not
 * inlined, to save stack. */
static __noinline enum reason ingress_source(void *ctx, struct work *work, const struct interface *in)
{
	const struct packet *pkt = &work->pkt;
	const union addr *source = &pkt->tuple.src;
	__u32 back;
	long result;

	work->route.back_ifindex = 0;
	work->route.back_resolved = false;
	/* Only the router itself sends packets by the loopback device. */
	if (in->role == ROLE_LOCAL)
		return REASON_NONE;
	/* A stand-in replaces the address of a LAN client: no host has it. */
	if (addr_martian(source) || stand_in_answered(source))
		return REASON_SPOOFED;
	/* No way back: the source is the router's own address, broadcast, multicast or unreachable. */
	result = ingress_route_back(ctx, work, in);
	if (!fib_found(result))
		return REASON_SPOOFED;
	back = work->route.fib.ifindex;
	work->route.back_ifindex = back;
	work->route.back_resolved = in->role == ROLE_LAN && result == BPF_FIB_LKUP_RET_SUCCESS && back == pkt->ifindex;
	if (back != pkt->ifindex && !ingress_detour(ctx, work, in, back))
		return REASON_SPOOFED;
	/* Checked last: REASON_PRIVATE_SOURCE says that private_sources would let the packet in. */
	return ingress_public_only(in) && addr_private(source) ? REASON_PRIVATE_SOURCE : REASON_NONE;
}
