// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* TC: replaces the packet in an skb by a new packet of any length. The IP header of the new packet is built in
 * work->header, its payload in the scratch packet of this CPU. */
#pragma once

#include "nat.h"

enum { SCRATCH_PACKET_SUM_STEP = 512, SCRATCH_PACKET_EINVAL = 22 };
/* Bytes that scratch_packet_begin removes after the IP header, in two steps. The first step is longer than any
 * headers before a checksum. */
enum { SCRATCH_PACKET_PULL = 128, SCRATCH_PACKET_PULL_AGAIN = 4 };

static __always_inline struct scratch_packet *scratch_packet_get(void)
{
	__u32 cpu = bpf_get_smp_processor_id();

	return bpf_map_lookup_elem(&scratch_packets, &cpu);
}

struct scratch_packet_sum {
	struct scratch_packet *buffer;
	__u32 at, end;
	__u64 sum;
};

/* Adds up to 512 bytes to the sum. A callback of bpf_loop: 1 ends the loop. bpf_csum_diff takes whole words of 4
 * bytes, and on older kernels at most 512 bytes. */
static long scratch_packet_sum_step(__u32 index, struct scratch_packet_sum *work)
{
	__u32 length = (work->end - work->at) & ~3u, at = work->at & (SCRATCH_PACKET_SIZE - 1);
	__s64 sum;

	(void)index;
	if (length > SCRATCH_PACKET_SUM_STEP)
		length = SCRATCH_PACKET_SUM_STEP;
	if (!length || work->at > work->end)
		return 1;
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&work->buffer->packet[at], length, 0);
	work->sum += (__u32)sum;
	work->at += length;
	return 0;
}

/* Returns the folded sum of the scratch packet's 16-bit words in network order, from offset at to before offset
 * end. at is even. A global function: the verifier checks it once. */
__noinline int scratch_packet_sum(__u32 at, __u32 end)
{
	struct scratch_packet_sum work = { .buffer = scratch_packet_get(), .at = at, .end = end };
	__u32 left;

	if (!work.buffer)
		return 0;
	bpf_loop(SCRATCH_PACKET_SIZE / SCRATCH_PACKET_SUM_STEP + 1, scratch_packet_sum_step, &work, 0);
	for (int i = 0; i < 3; i++) {
		left = (work.at + i) & (SCRATCH_PACKET_SIZE - 1);
		if (work.at + i < end)
			work.sum += bpf_htons(i % 2 ? work.buffer->packet[left] : work.buffer->packet[left] << 8);
	}
	return csum_fold16(work.sum);
}

/* Copies length bytes of the skb, from offset off on, into the scratch packet. False: they do not fit or cannot be
 * read. */
static __always_inline bool scratch_packet_load(struct __sk_buff *skb, struct scratch_packet *buffer, __u32 off, __u32 length)
{
	if (!verifier_bounded(&length, SCRATCH_PACKET_SIZE - 1))
		return false;
	return bpf_skb_load_bytes(skb, off, buffer->packet, length) == 0;
}

/* Is a device to finish the checksum of this skb (CHECKSUM_PARTIAL)? Then the kernel refuses to cut the skb before
 * the end of the checksum field (EINVAL). Otherwise this attempt shortens the skb: the caller must have copied the
 * packet. */
static __always_inline bool scratch_packet_partial(struct __sk_buff *skb, const struct transport *l4)
{
	return l4->check_off && l4->pseudo && bpf_skb_change_tail(skb, l4->check_off + 1, 0) == -SCRATCH_PACKET_EINVAL;
}

/* Prepares the skb for a new packet; the old packet is lost. No device may finish a checksum in the new packet.
 * The kernel clears CHECKSUM_PARTIAL when the start of the checksum is removed after the IP header
 * (skb_postpull_rcsum). Some kernels clear it only at the next removal, so there is a second removal. */
static __always_inline bool scratch_packet_begin(struct __sk_buff *skb, const struct packet *pkt)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET;

	return bpf_skb_change_tail(skb, pkt->l4.off + 2 * SCRATCH_PACKET_PULL, 0) == 0 &&
	       bpf_skb_adjust_room(skb, -SCRATCH_PACKET_PULL, BPF_ADJ_ROOM_NET, flags) == 0 &&
	       bpf_skb_adjust_room(skb, -SCRATCH_PACKET_PULL_AGAIN, BPF_ADJ_ROOM_NET, flags) == 0;
}

/* Writes the new packet into the skb: work->header, then the bytes of the scratch packet from at to before end.
 * Also writes the MAC addresses of work->rw. Returns 0, or a negative number if a helper fails. */
__noinline int scratch_packet_put(struct __sk_buff *skb, __u32 at, __u32 end)
{
	struct work *work = work_get();
	struct scratch_packet *buffer = scratch_packet_get();
	__u32 base, payload, length = end - at;
	int err;

	if (!work || !buffer)
		return -1;
	base = packet_base(&work->pkt);
	payload = work->pkt.l3_off + base;
	at &= SCRATCH_PACKET_SIZE - 1;
	if (!verifier_bounded(&length, SCRATCH_PACKET_PIECE))
		return -1;
	err = (int)bpf_skb_change_tail(skb, payload + length, 0);
	err |= (int)bpf_skb_store_bytes(skb, work->pkt.l3_off, work->header, base, BPF_F_RECOMPUTE_CSUM);
	err |= (int)bpf_skb_store_bytes(skb, payload, &buffer->packet[at], length, BPF_F_RECOMPUTE_CSUM);
	return err | (int)bpf_skb_store_bytes(skb, 0, work->rw.macs, sizeof(work->rw.macs), BPF_F_RECOMPUTE_CSUM);
}

struct scratch_packet_split {
	struct __sk_buff *skb;
	struct work *work;
	__u32 at, size, end;	/* offset of the next piece, bytes of a piece, end of the packet */
	__u16 frag_off;		/* IPv4 fragment field of the whole packet, host order */
};

/* Writes total length, fragment offset and checksum of a piece into its IPv4 header. The piece reaches from
 * split->at to before end. */
static __always_inline void scratch_packet_piece_header(struct iphdr *ip, const struct scratch_packet_split *split, __u32 end)
{
	__be16 length = bpf_htons((__u16)(sizeof(*ip) + end - split->at));
	__u32 start = (split->frag_off & IP_OFFSET_MASK) + (split->at - sizeof(*ip)) / 8;
	__u32 more = end < split->end ? IP_MORE_FRAGMENTS : split->frag_off & IP_MORE_FRAGMENTS;
	__be16 frag_off = bpf_htons((__u16)((split->frag_off & IP_DONT_FRAGMENT) | more | start));

	ip->check = csum_apply(ip->check, csum_diff16(ip->tot_len, length) + csum_diff16(ip->frag_off, frag_off));
	ip->tot_len = length;
	ip->frag_off = frag_off;
}

/* Sends one piece. A callback of bpf_loop: 1 ends the loop. */
static long scratch_packet_send_piece(__u32 index, struct scratch_packet_split *split)
{
	__u32 end = split->at + split->size;

	(void)index;
	if (end > split->end)
		end = split->end;
	if (!split->work->pkt.v6)
		scratch_packet_piece_header((struct iphdr *)split->work->header, split, end);
	if (scratch_packet_put(split->skb, split->at, end) != 0)
		return 1;
	bpf_clone_redirect(split->skb, split->work->rw.ifindex, 0);
	split->at = end;
	return end >= split->end;
}

/* Sends the IP packet in the scratch packet, which must have no IP options. An IPv4 packet longer than the MTU is
 * fragmented. All pieces have nearly equal length, so that no piece is too short for a checksum field. The pieces
 * leave in order (RFC 4787 REQ-13a). IPv6 is not fragmented. Returns -1 if nothing was sent. */
static __noinline long scratch_packet_send(struct __sk_buff *skb, struct work *work, struct scratch_packet *buffer, __u32 length)
{
	__u32 base = packet_base(&work->pkt), payload = length - base, pieces;
	struct scratch_packet_split split = { .skb = skb, .work = work, .at = base, .end = length };
	__u32 room = (work->rw.mtu - base) & ~7u;

	__builtin_memcpy(work->header, buffer->packet, sizeof(work->header));
	split.frag_off = bpf_ntohs(((struct iphdr *)work->header)->frag_off);
	split.size = payload;
	if (work->rw.mtu && length > work->rw.mtu) {
		if (room < 8 || room > SCRATCH_PACKET_PIECE || work->pkt.v6)
			return -1;
		pieces = (payload + room - 1) / room;
		split.size = ((payload + pieces - 1) / pieces + 7) & ~7u;
	}
	return bpf_loop(SCRATCH_PACKET_SIZE / 8, scratch_packet_send_piece, &split, 0);
}
