// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* TC: writes struct rewrite into an skb, and sends the skb. A finished checksum is written
 * directly, and skb->csum with it; all others change by skb helpers, which know CHECKSUM_PARTIAL. GSO packets stay whole. */
#pragma once

#include <linux/pkt_cls.h>

#include "hold.h"
#include "icmp.h"
#include "option.h"
#include "reply.h"

enum { PACKET_TO_US = 0 /* PACKET_HOST of linux/if_packet.h */ };
enum { RESEGMENT_STEP = 2048, RESEGMENT_STEPS = 32 };

/* Inserts an Ethernet header before data that begin with an IP header. False: a helper failed. */
static __always_inline bool tc_give_ethernet(struct __sk_buff *skb, const struct ethhdr *eth)
{
	return bpf_skb_change_head(skb, sizeof(*eth), 0) == 0 &&
	       bpf_skb_store_bytes(skb, 0, eth, sizeof(*eth), 0) == 0;
}

/* Does this device carry IP packets without Ethernet headers (PPP, WireGuard, tun)? The control plane leaves the
 * MAC address of such an interface zero. */
static __always_inline bool tc_without_ethernet(const struct interface *in)
{
	return !(in->mac[0] | in->mac[1] | in->mac[2] | in->mac[3] | in->mac[4] | in->mac[5]);
}

/* Returns the offset of the IP header, when the first byte of the data does not decide; negative: not found. Since
 * Linux 6.9, generic XDP may leave an skb of an Ethernet device whose data begin with the IP header. Such an skb
 * gets its Ethernet header back. Not inlined, to save stack. */
static __noinline int tc_search_ip(struct __sk_buff *skb)
{
	struct ethhdr *eth = (void *)(long)skb->data, saved;

	if (bpf_skb_load_bytes_relative(skb, 0, &saved, sizeof(saved), BPF_HDR_START_MAC) != 0 ||
	    saved.h_proto != skb->protocol)
		return -1;
	if ((void *)(eth + 1) <= (void *)(long)skb->data_end && __builtin_memcmp(eth, &saved, sizeof(saved)) == 0)
		return sizeof(*eth);
	return tc_give_ethernet(skb, &saved) ? (int)sizeof(saved) : -1;
}

/* On a device without Ethernet headers: does the packet have one? An xfrm interface leaves there the header of the encrypted
 * packet (skb_mac_header_rebuild), and the data begin with it. In other packets, both headers of the skb are the IP header. Most
 * of these are told by two bytes of their source address, where an Ethernet header has the protocol. */
static __always_inline bool tc_keeps_ethernet(struct __sk_buff *skb)
{
	struct ethhdr *eth = (void *)(long)skb->data, mac, net;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end || eth->h_proto != skb->protocol)
		return false;
	return bpf_skb_load_bytes_relative(skb, 0, &mac, sizeof(mac), BPF_HDR_START_MAC) == 0 &&
	       bpf_skb_load_bytes_relative(skb, 0, &net, sizeof(net), BPF_HDR_START_NET) == 0 &&
	       __builtin_memcmp(&mac, &net, sizeof(mac)) != 0;
}

/* Returns the offset of the IP header, when the first byte of the data may belong to an IP header or to a MAC
 * address; negative: not found. Not inlined, to save stack. */
static __noinline int tc_find_ip_slow(struct __sk_buff *skb)
{
	struct ethhdr *eth = (void *)(long)skb->data;
	__u32 ifindex = skb->ifindex;
	const struct interface *in = bpf_map_lookup_elem(&interfaces, &ifindex);
	struct work *work = work_get();

	if (in && tc_without_ethernet(in))
		return tc_keeps_ethernet(skb) ? sizeof(*eth) : 0;
	if (in && work && (void *)(eth + 1) <= (void *)(long)skb->data_end && eth->h_proto == skb->protocol &&
	    __builtin_memcmp(eth->h_dest, in->mac, ETH_ALEN) == 0) {
		work->ethernet.ifindex = ifindex;
		work->ethernet.routes = fib_generation();
		__builtin_memcpy(work->ethernet.mac, in->mac, ETH_ALEN);
		return sizeof(*eth);
	}
	return tc_search_ip(skb);
}

/* May the destination MAC address of this frame be the first bytes of an IP header? An IP header begins with 0x4x or 0x6x, and most MAC
 * addresses do not. Nor if it is the address that tc_find_ip_slow has found last. */
static __always_inline bool tc_may_be_ip(const struct __sk_buff *skb, const struct ethhdr *eth, const struct work *work)
{
	const struct ethernet *last = &work->ethernet;

	if (eth->h_dest[0] >> 4 != 4 && eth->h_dest[0] >> 4 != 6)
		return false;
	return skb->ifindex != last->ifindex || last->routes != fib_generation() ||
	       __builtin_memcmp(eth->h_dest, last->mac, ETH_ALEN) != 0;
}

/* Returns the offset of the IP header in the data of the skb; negative: not found. */
static __always_inline int tc_find_ip(struct __sk_buff *skb, const struct work *work)
{
	struct ethhdr *eth = (void *)(long)skb->data;

	if ((void *)(eth + 1) <= (void *)(long)skb->data_end && eth->h_proto == skb->protocol && !tc_may_be_ip(skb, eth, work))
		return sizeof(*eth);
	return tc_find_ip_slow(skb);
}

/* Is the frame of a VLAN? Its tag travels beside the frame. */
static __always_inline bool tc_of_vlan(const struct __sk_buff *skb)
{
	return skb->vlan_present && skb->vlan_tci & TAG_VLAN_MASK;
}

/* Takes a priority tag off a frame that is about to be sent. Otherwise the tag would leave with the frame. */
__noinline int tc_untag(struct __sk_buff *skb)
{
	return (int)bpf_skb_vlan_pop(skb);
}

/* A tag in the frame, behind the one that the kernel has put beside it (__netif_receive_skb_core). If both are priority tags,
 * they are taken off, as the kernel does later. False: it is not IP behind priority tags. */
__noinline bool tc_untag_inner(struct __sk_buff *skb)
{
	__be16 tag[2];	/* the VLAN, and the protocol behind it */

	if (skb->protocol != bpf_htons(ETH_P_8021Q) && skb->protocol != bpf_htons(ETH_P_8021AD))
		return false;
	if (tc_of_vlan(skb) || bpf_skb_load_bytes(skb, sizeof(struct ethhdr), tag, sizeof(tag)) != 0)
		return false;
	if (tag[0] & bpf_htons(TAG_VLAN_MASK) || (tag[1] != bpf_htons(ETH_P_IP) && tag[1] != bpf_htons(ETH_P_IPV6)))
		return false;
	return bpf_skb_vlan_pop(skb) == 0;
}

/* Inserts an Ethernet header if the frame has none: the redirect helpers demand one. On a device without Ethernet
 * the kernel removes the header again. False: a helper failed. */
static __always_inline bool tc_ensure_ethernet(struct __sk_buff *skb, struct packet *pkt)
{
	struct ethhdr eth = { .h_proto = skb->protocol };

	if (pkt->l3_off)
		return true;
	packet_shift(pkt, sizeof(eth));
	return tc_give_ethernet(skb, &eth);
}

/* Pulls all headers into the linear part of the skb, where parsers can read them. False: no memory. */
static __always_inline bool tc_pull(struct __sk_buff *skb)
{
	__u32 wanted = skb->protocol == bpf_htons(ETH_P_IPV6) ? PACKET_HEADERS_V6 : PACKET_HEADERS_V4;

	if ((void *)(long)skb->data + wanted <= (void *)(long)skb->data_end || skb->data_end - skb->data == skb->len)
		return true;
	return bpf_skb_pull_data(skb, skb->len < wanted ? skb->len : wanted) == 0;
}

static __always_inline bool tc_parse(struct __sk_buff *skb, struct work *work)
{
	return packet_parse((void *)(long)skb->data, (void *)(long)skb->data_end, skb->protocol, &work->pkt);
}

/* Reads the window scale of a SYN, and looks for a source route in the IPv4 options. A global function: the
 * verifier checks it once. */
__noinline int tc_read_options(struct __sk_buff *skb)
{
	struct work *work = work_get();
	__u32 start, length;

	if (!work)
		return 0;
	if (work->pkt.tcp_flags & TCP_SYN) {
		start = work->pkt.l4.off + sizeof(struct tcphdr);
		length = work->pkt.tcp_header - sizeof(struct tcphdr);
		work->pkt.scale = TCP_SCALE_NONE;
		if (verifier_bounded(&length, sizeof(work->options)) &&
		    bpf_skb_load_bytes(skb, start, work->options, length) == 0)
			work->pkt.scale = option_scale(work, length);
	}
	if (packet_has_options(&work->pkt)) {
		start = work->pkt.l3_off + sizeof(struct iphdr);
		length = packet_header(&work->pkt) - sizeof(struct iphdr);
		if (verifier_bounded(&length, sizeof(work->options)) &&
		    bpf_skb_load_bytes(skb, start, work->options, length) == 0 &&
		    option_source_route(length))
			work->pkt.flaw = REASON_SOURCE_ROUTE;
	}
	return 0;
}

__noinline int tc_icmp(struct __sk_buff *skb)
{
	struct work *work = work_get();

	return work ? icmp_decide(skb, work) : VERDICT_PASS;
}

/* Translates the packet that an ICMP error quotes. Writes by helpers: with IP options the quote may be out of
 * reach of pointers. tc_write_sums changes the checksum of the ICMP error itself. */
static __always_inline long tc_write_quote(struct __sk_buff *skb, const struct packet *pkt,
					   const struct rewrite *rw)
{
	const struct quote *quote = &pkt->quote;
	__be32 addresses[2] = { rw->quoted.src.word[3], rw->quoted.dst.word[3] };
	__be16 ports[2] = { rw->quoted.sport, rw->quoted.dport }, id = rw->quoted.sport | rw->quoted.dport;
	__u32 ip = quote->l3_off;
	long err;

	if (pkt->v6)
		err = bpf_skb_store_bytes(skb, ip + offsetof(struct ipv6hdr, saddr), &rw->quoted.src,
					  2 * sizeof(rw->quoted.src), 0);
	else
		err = bpf_skb_store_bytes(skb, ip + offsetof(struct iphdr, saddr), addresses, sizeof(addresses), 0) |
		      bpf_skb_store_bytes(skb, ip + offsetof(struct iphdr, check), &rw->quoted_ip_check, 2, 0);
	if (quote->l4.check_off)
		err |= bpf_skb_store_bytes(skb, quote->l4.check_off, &rw->quoted_check, 2, 0);
	if (quote->l4.ports_length == sizeof(ports))
		return err | bpf_skb_store_bytes(skb, quote->l4.ports_off, ports, sizeof(ports), 0);
	return quote->l4.ports_length ? err | bpf_skb_store_bytes(skb, quote->l4.ports_off, &id, sizeof(id), 0) : err;
}

/* Is the transport checksum finished for certain (CHECKSUM_NONE, UNNECESSARY or COMPLETE)? If a device is to finish the checksum, the
 * field holds the sum of the pseudo-header. One finished checksum in 65,536 has this value by chance. */
static __always_inline bool tc_sum_finished(const struct packet *pkt)
{
	if (pkt->tuple.protocol != IPPROTO_TCP && (pkt->tuple.protocol != IPPROTO_UDP || csum_hidden(pkt)))
		return false;
	return pkt->l4.check_off && pkt->l4.pseudo && csum_pseudo(pkt) != pkt->l4.check;
}

/* Updates the transport checksum and skb->csum. In IPv4 the IP checksum balances all other changes of the IP
 * header, so skb->csum does not change for them. IPv6 has no such checksum. A finished checksum is written without
 * bpf_l4_csum_replace: its two calls take as long as a fifth of the program. skb->csum (CHECKSUM_COMPLETE) covers the header of the
 * packet, but not the pseudo-header, for whose change the field makes up. */
static __always_inline long tc_write_sums(struct __sk_buff *skb, const struct packet *pkt, const struct rewrite *rw)
{
	__u64 mangled = pkt->tuple.protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__sum16 *check = NULL;
	long err = 0;

	if (tc_sum_finished(pkt))
		check = edit_reach((void *)(long)skb->data, (void *)(long)skb->data_end, pkt->l4.check_off, sizeof(*check));
	if (check) {
		edit_sum(check, pkt, rw);
		bpf_csum_update(skb, pkt->v6 ? csum_fold32(csum_diff_ttl(true)) : (__wsum)~csum_fold32(rw->address_diff));
		return 0;
	}

	if (pkt->v6)
		bpf_csum_update(skb, csum_fold32(rw->address_diff + csum_diff_ttl(true)));
	if (pkt->l4.check_off && pkt->l4.pseudo)
		err |= bpf_l4_csum_replace(skb, pkt->l4.check_off, 0, csum_fold32(rw->address_diff),
					   BPF_F_PSEUDO_HDR | mangled);
	if (pkt->l4.check_off && rw->l4_diff)
		err |= bpf_l4_csum_replace(skb, pkt->l4.check_off, 0, csum_fold32(rw->l4_diff), mangled);
	return err;
}

static __always_inline bool tc_write(struct __sk_buff *skb, const struct packet *pkt, const struct rewrite *rw)
{
	long err = tc_write_sums(skb, pkt, rw);

	if (pkt->icmp_error)
		err |= tc_write_quote(skb, pkt, rw);
	return err == 0 && edit_headers((void *)(long)skb->data, (void *)(long)skb->data_end, pkt, rw);
}

/* Are the checksums of the ICMP error and of the quoted IPv4 header correct? Otherwise the error must be dropped
 * (RFC 5508 REQ-3, REQ-3a). */
static __always_inline bool tc_icmp_sound(struct __sk_buff *skb, const struct packet *pkt)
{
	struct scratch_packet *buffer = scratch_packet_get();
	__u32 icmp = packet_header(pkt), quoted = pkt->quote.l3_off - pkt->l3_off;
	__u32 behind = pkt->quote.l4.off - pkt->l3_off;
	__u64 sum = 0;

	if (!buffer || !scratch_packet_load(skb, buffer, pkt->l3_off, pkt->length))
		return false;
	if (pkt->v6)
		sum = csum_addr(&pkt->tuple.src, true) + csum_addr(&pkt->tuple.dst, true) + bpf_htonl(pkt->length - icmp) +
		      bpf_htonl(IPPROTO_ICMPV6);
	return csum_fold16(sum + scratch_packet_sum(icmp, pkt->length)) == 0xffff &&
	       (pkt->v6 || scratch_packet_sum(quoted, behind) == 0xffff);
}

/* Sends a packet to the router itself by the loopback device. On any other interface the kernel drops a packet
 * whose source is the router's own address (martian source). skb->csum gains the MAC header on redirect, and the
 * loopback device never subtracts it; so the header is zeroed. Returns a TC action. */
static __always_inline long tc_deliver(struct __sk_buff *skb, __u32 ifindex)
{
	const struct ethhdr none = {};

	if (bpf_skb_store_bytes(skb, 0, &none, sizeof(none), 0) != 0)
		return TC_ACT_SHOT;
	return bpf_redirect_neigh(ifindex, NULL, 0, 0);
}

/* Re-injects the packet at the ingress of its interface, and marks it in the source MAC address
 * (packet_reinjected). Returns a TC action. */
static __always_inline long tc_reinject(struct __sk_buff *skb, const struct packet *pkt)
{
	__u8 again = 2;	/* first byte of the source MAC address: locally administered */

	if (bpf_skb_store_bytes(skb, ETH_ALEN, &again, sizeof(again), 0) != 0)
		return TC_ACT_SHOT;
	return bpf_redirect(pkt->ifindex, BPF_F_INGRESS);
}

/* Sends the packet by bpf_redirect_neigh, or to the router itself. Returns a TC action. Not inlined, to save
 * stack. */
static __noinline long tc_send_by_kernel(struct __sk_buff *skb, const struct rewrite *rw)
{
	struct bpf_redir_neigh hop = rw->gateway;

	if (rw->local)
		return tc_deliver(skb, rw->ifindex);
	/* bpf_redirect_neigh adds the MAC header to skb->csum (bpf_push_mac_rcsum), then the kernel writes its own
	 * MAC header. The other end of a veth gets skb->csum, so both headers must be equal: write the addresses
	 * now. Exception: bpf_redirect_neigh drops a frame to a group address, which a cluster of servers may
	 * have. */
	if (!(rw->macs[0] & 1) && !edit_macs((void *)(long)skb->data, (void *)(long)skb->data_end, rw))
		return TC_ACT_SHOT;
	return bpf_redirect_neigh(rw->ifindex, &hop, sizeof(hop), 0);
}

static __always_inline long tc_send(struct __sk_buff *skb, const struct rewrite *rw)
{
	if (rw->local || rw->gateway.nh_family)
		return tc_send_by_kernel(skb, rw);
	if (!edit_macs((void *)(long)skb->data, (void *)(long)skb->data_end, rw))
		return TC_ACT_SHOT;
	return bpf_redirect(rw->ifindex, 0);
}

struct tc_resegment {
	struct __sk_buff *skb;
	__u32 excess;
};

/* Makes the segments of a GSO packet shorter by up to RESEGMENT_STEP bytes. Inserting room lowers gso_size, and
 * removing the room (BPF_F_ADJ_ROOM_FIXED_GSO) does not raise it again. A callback of bpf_loop: 1 ends the loop. */
static long tc_resegment_step(__u32 index, struct tc_resegment *work)
{
	__u32 step = work->excess < RESEGMENT_STEP ? work->excess : RESEGMENT_STEP;

	(void)index;
	if (bpf_skb_adjust_room(work->skb, (__s32)step, BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_NO_CSUM_RESET) != 0 ||
	    bpf_skb_adjust_room(work->skb, -(__s32)step, BPF_ADJ_ROOM_NET,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET) != 0)
		return 1;
	work->excess -= step;
	return !work->excess;
}

/* Shortens a packet without DF that is longer than the MTU. A TCP GSO packet gets shorter segments. Any other
 * packet is fragmented and sent. True: the packet has been sent. */
static __always_inline bool tc_shorten(struct __sk_buff *skb, struct work *work)
{
	const struct packet *pkt = &work->pkt;
	struct tc_resegment resegment = { .skb = skb, .excess = pkt->segment - work->rw.mtu };
	struct scratch_packet *buffer = scratch_packet_get();
	__u16 *check;

	if (pkt->gso_size) {
		bpf_loop(RESEGMENT_STEPS, tc_resegment_step, &resegment, 0);
		return false;
	}
	if (!buffer || !work->rw.resolved || !scratch_packet_load(skb, buffer, pkt->l3_off, pkt->length))
		return false;
	if (scratch_packet_partial(skb, &pkt->l4)) {
		check = (__u16 *)&buffer->packet[(pkt->l4.check_off - pkt->l3_off) & (SCRATCH_PACKET_PIECE - 1)];
		*check = ~scratch_packet_sum(packet_header(pkt), pkt->length);
		if (pkt->tuple.protocol == IPPROTO_UDP && !*check)
			*check = 0xffff;
	}
	if (scratch_packet_begin(skb, pkt))
		scratch_packet_send(skb, work, buffer, pkt->length);
	return true;
}

/* Lowers the MSS option of a SYN (RFC 9293 3.7.1). Never raises it, never adds one. Returns 0, or a negative
 * number if a helper fails. */
static __always_inline long tc_clamp_mss(struct __sk_buff *skb, struct work *work)
{
	const struct packet *pkt = &work->pkt;
	__u32 start = pkt->l4.off + sizeof(struct tcphdr), length = pkt->tcp_header - sizeof(struct tcphdr), at;
	__be16 old, mss = bpf_htons(work->rw.mss);

	__builtin_memset(work->options, 0, sizeof(work->options));
	if (!verifier_bounded(&length, sizeof(work->options)) ||
	    bpf_skb_load_bytes(skb, start, work->options, length) != 0)
		return 0;
	at = option_find(length, TCPOPT_MSS, TCPOLEN_MSS);
	if (!verifier_bounded(&at, OPTIONS_MAX - sizeof(old)))
		return 0;
	__builtin_memcpy(&old, &work->options[at], sizeof(old));
	if (bpf_ntohs(old) <= work->rw.mss)
		return 0;
	if (bpf_skb_store_bytes(skb, start + at, &mss, sizeof(mss), 0) != 0)
		return -1;
	/* At an odd offset the two bytes of the MSS lie in different words of the checksum: swap them. */
	if (at % 2) {
		old = __builtin_bswap16(old);
		mss = __builtin_bswap16(mss);
	}
	return bpf_l4_csum_replace(skb, pkt->l4.check_off, old, mss, sizeof(mss));
}

static __always_inline enum verdict tc_drop(struct work *work, enum reason reason)
{
	work->rw.reason = reason;
	return VERDICT_DROP;
}

/* Like tc_rewrite, with the steps that few packets need: an Ethernet header, the MSS, the quote of an ICMP error.
 * Returns a verdict. */
__noinline int tc_write_all(struct __sk_buff *skb)
{
	struct work *work = work_get();

	if (!work)
		return VERDICT_DROP;
	if (!tc_ensure_ethernet(skb, &work->pkt))
		return tc_drop(work, REASON_WRITE_FAILED);
	if (work->pkt.icmp_error && !tc_icmp_sound(skb, &work->pkt))
		return tc_drop(work, REASON_BAD_CHECKSUM);
	if (!tc_write(skb, &work->pkt, &work->rw) || (work->rw.mss && tc_clamp_mss(skb, work) != 0))
		return tc_drop(work, REASON_WRITE_FAILED);
	return VERDICT_SEND;
}

/* Writes struct rewrite into the skb. Returns SEND, or DROP if the packet is not sent. */
static __always_inline enum verdict tc_rewrite(struct __sk_buff *skb, struct work *work)
{
	if (!work->pkt.l3_off || work->pkt.icmp_error || work->rw.mss)
		return tc_write_all(skb);
	return tc_write(skb, &work->pkt, &work->rw) ? VERDICT_SEND : tc_drop(work, REASON_WRITE_FAILED);
}

/* Sends a reply by the interface on which the packet came in. Returns a TC action. A RST leaves as a clone: when
 * user space runs the program (BPF_PROG_TEST_RUN), the kernel ignores bpf_redirect. A reply to the router itself
 * cannot leave as a clone. */
static __always_inline long tc_answer(struct __sk_buff *skb, __u32 ifindex, bool reset)
{
	if (nat_role(ifindex) == ROLE_LOCAL)
		return tc_deliver(skb, ifindex);
	if (!reset)
		return bpf_redirect(ifindex, 0);
	bpf_clone_redirect(skb, ifindex, 0);
	return TC_ACT_SHOT;
}

/* Drops a packet, and sends the reply that its reason asks for. Returns a TC action. */
__noinline int tc_refuse(struct __sk_buff *skb)
{
	struct work *work = work_get();
	struct reply reply;
	bool written;

	if (!work)
		return TC_ACT_SHOT;
	reply = reply_of(work);
	if (!(reply.type || reply.reset || reply.challenge) || !tc_ensure_ethernet(skb, &work->pkt))
		return TC_ACT_SHOT;
	if (reply.challenge)
		written = reply_write_challenge(skb, work);
	else
		written = reply.reset ? reply_write_reset(skb, work, reply) : reply_write(skb, work, reply);
	if (!written)
		return TC_ACT_SHOT;
	count(work->pkt.ifindex, VERDICT_TELL, work->rw.reason);
	return (int)tc_answer(skb, work->pkt.ifindex, reply.reset);
}

/* Passes a packet to the kernel, and with it the fragments that are held of its datagram. held: their number.
 * Returns a TC action. */
__noinline int tc_pass(struct __sk_buff *skb, __u32 held)
{
	struct work *work = work_get();

	if (!work || !held)
		return TC_ACT_UNSPEC;
	if (tc_ensure_ethernet(skb, &work->pkt))
		hold_return(skb, work, held);
	return TC_ACT_SHOT;
}

static __always_inline bool tc_too_long(const struct work *work)
{
	return work->rw.mtu && work->pkt.segment > work->rw.mtu;
}

/* Sends a packet, shortened if it is too long, and then the fragments that are held of its datagram. held: their
 * number. Returns a TC action. */
__noinline int tc_send_more(struct __sk_buff *skb, __u32 held)
{
	struct work *work = work_get();

	if (!work)
		return TC_ACT_SHOT;
	if (held && hold_send(skb, work, held))
		return TC_ACT_SHOT;
	if (tc_too_long(work) && tc_shorten(skb, work))
		return TC_ACT_SHOT;
	return (int)tc_send(skb, &work->rw);
}

/* Sends a packet to its next hop. Returns a TC action. */
static __always_inline long tc_forward(struct __sk_buff *skb, const struct work *work, __u32 held)
{
	return held || tc_too_long(work) ? tc_send_more(skb, held) : tc_send(skb, &work->rw);
}
