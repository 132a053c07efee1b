// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* TC: a fragment that arrives before the first fragment of its datagram is held, and sent after the first fragment. The
 * program itself holds the fragment, because the datapath must work without the daemon. */
#pragma once

#include "scratch_packet.h"
#include "fragment.h"

/* Holds a fragment. False: the fragment is too long or has IP options, or its datagram has too many held fragments. If
 * another CPU sends the first fragment at this moment, the fragment stays in the map and is never sent, as if the network
 * had lost it. */
static __noinline bool hold_keep(struct __sk_buff *skb, struct work *work, struct fragment *datagram)
{
	struct scratch_packet *buffer = scratch_packet_get();
	struct held_fragment *held;
	__u32 length = work->pkt.length;

	if (!buffer || !verifier_bounded(&length, HELD_BYTES) || datagram->held >= FRAGMENT_HELD_MAX ||
	    !packet_without_options(&work->pkt))
		return false;
	held = (struct held_fragment *)buffer->packet;
	held->length = length;
	if (bpf_skb_load_bytes(skb, work->pkt.l3_off, held->bytes, length) != 0)
		return false;
	work->fragment.held.number = datagram->held;
	if (bpf_map_update_elem(&held_fragments, &work->fragment.held, held, BPF_ANY) != 0)
		return false;
	datagram->held++;
	return true;
}

struct hold {
	struct __sk_buff *skb;
	struct work *work;
	struct scratch_packet *buffer;
	bool kernel;
};

/* Translates the IP header of a held fragment. False: the TTL has expired. */
static __always_inline bool hold_translate(struct hold *hold)
{
	const struct rewrite *rw = &hold->work->rw;
	struct ipv6hdr *ip6 = (struct ipv6hdr *)hold->buffer->packet;
	struct iphdr *ip = (struct iphdr *)hold->buffer->packet;
	__u8 ttl = hold->work->pkt.v6 ? ip6->hop_limit : ip->ttl;

	if (ttl <= 1)
		return false;
	if (hold->work->pkt.v6) {
		ip6->hop_limit--;
		__builtin_memcpy(&ip6->saddr, &rw->entry.to.src, sizeof(rw->entry.to.src));
		__builtin_memcpy(&ip6->daddr, &rw->entry.to.dst, sizeof(rw->entry.to.dst));
		return true;
	}
	ip->ttl--;
	ip->check = csum_apply(ip->check, rw->address_diff + csum_diff_ttl(false));
	ip->saddr = rw->entry.to.src.word[3];
	ip->daddr = rw->entry.to.dst.word[3];
	return true;
}

/* Moves a held fragment into the scratch packet, and returns its length in bytes. 0: it is not in the map. */
static __always_inline __u32 hold_take(struct hold *hold, __u32 number)
{
	struct held_fragment *held;
	__u32 length;

	hold->work->fragment.held.number = number;
	held = bpf_map_lookup_elem(&held_fragments, &hold->work->fragment.held);
	if (!held)
		return 0;
	length = held->length;
	if (length <= packet_base(&hold->work->pkt) || !verifier_bounded(&length, HELD_BYTES))
		return 0;
	if (bpf_probe_read_kernel(hold->buffer->packet, length, held->bytes) != 0)
		length = 0;
	bpf_map_delete_elem(&held_fragments, &hold->work->fragment.held);
	return length;
}

static long hold_release_one(__u32 index, struct hold *hold)
{
	__u32 length = hold_take(hold, index), base = packet_base(&hold->work->pkt);

	if (!length)
		return 0;
	if (!hold->kernel) {
		if (hold_translate(hold))
			scratch_packet_send(hold->skb, hold->work, hold->buffer, length);
		return 0;
	}
	__builtin_memcpy(hold->work->header, hold->buffer->packet, sizeof(hold->work->header));
	if (scratch_packet_put(hold->skb, base, length) == 0)
		bpf_clone_redirect(hold->skb, hold->work->pkt.ifindex, BPF_F_INGRESS);
	return 0;
}

/* Sends the first fragment, which is in the skb and translated, and then the held fragments of its datagram. False:
 * nothing was sent, because the MAC address of the next hop is not known, or the first fragment has IP options. */
static __always_inline bool hold_send(struct __sk_buff *skb, struct work *work, __u32 held)
{
	struct hold hold = { .skb = skb, .work = work, .buffer = scratch_packet_get() };
	__u32 length = work->pkt.length;

	if (!hold.buffer || !work->rw.resolved || !packet_without_options(&work->pkt) ||
	    !scratch_packet_load(skb, hold.buffer, work->pkt.l3_off, length))
		return false;
	if (scratch_packet_begin(skb, &work->pkt)) {
		scratch_packet_send(skb, work, hold.buffer, length);
		bpf_loop(held, hold_release_one, &hold, 0);
	}
	return true;
}

/* Sends the first fragment and the held fragments to the input interface once more. There the program passes them to the
 * kernel, because the datagram's owner is OWNER_KERNEL now. */
static __always_inline void hold_return(struct __sk_buff *skb, struct work *work, __u32 held)
{
	struct hold hold = { .skb = skb, .work = work, .buffer = scratch_packet_get(), .kernel = true };

	if (!hold.buffer || bpf_skb_load_bytes(skb, 0, work->rw.macs, sizeof(work->rw.macs)) != 0 ||
	    bpf_clone_redirect(skb, work->pkt.ifindex, BPF_F_INGRESS) != 0 || !scratch_packet_begin(skb, &work->pkt))
		return;
	bpf_loop(held, hold_release_one, &hold, 0);
}
