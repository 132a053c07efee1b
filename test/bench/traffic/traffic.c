//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Programs for measurements:
 *  - generate makes frames, and sink counts the frames that arrive;
 *  - bare_* only forward, to compare with;
 *  - answer is a UDP server;
 *  - renew_* give a program under test a new frame for each run. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>
#include <linux/udp.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

enum {
	FRAME = 60,		/* bytes of a generated frame: the Ethernet minimum without FCS */
	FRAME_MAX = 128,	/* most bytes of a frame for a program under test; a multiple of 8 */
	FRAMES = 2,		/* most templates of a plan */
	PORTS = 60000,		/* number of flows that differ only in their first number */
};

/* A frame, and where the frames of different flows differ. The first 16-bit number counts flows from 0 to PORTS -
 * 1. The second 16-bit number goes up by one after every PORTS flows. */
struct template {
	__u8 frame[FRAME_MAX];	/* both numbers and the checksum are zero */
	__u32 sum;		/* sum of all bytes that the checksum covers, not folded */
	__u16 check_off;	/* offset of the checksum in the frame; 0: none */
	__u16 first_off;	/* offset of the first number; 0: none */
	__u16 second_off;	/* offset of the second number; 0: none */
	__u16 first;		/* first number of flow 0 */
	__u16 second;		/* second number of flow 0 */
	__u16 pad;
};

/* The order of the frames: the first frame of each flow of a block, then the second frame of each flow of this
 * block, then the next block. */
struct plan {
	struct template templates[FRAMES];
	__u32 frames;		/* number of templates, 1 to FRAMES */
	__u32 flows;		/* number of flows, a multiple of block */
	__u32 block;		/* flows of a block */
	__u32 stride;		/* flows from one block to the next, modulo flows */
	__u32 flow;		/* first flow of the current block */
	__u32 frame;		/* next frame: index of its template */
	__u32 at;		/* next frame: number of its flow within the block */
	__be32 expected[FRAMES];	/* destination addresses of the frames after translation */
};

struct plan current;
__u32 out;	/* ifindex that bare_tc sends to */
__u32 answered;	/* UDP port that answer serves */

/* Numbers of frames that arrived, by index of current.expected. The last number counts frames to any other
 * address. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, FRAMES + 1);
} arrived SEC(".maps");

/* The device that bare_xdp_redirect sends to. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} port SEC(".maps");

/* The program under test. */
struct program_slot {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
};
struct program_slot tested_xdp SEC(".maps");
struct program_slot tested_tc SEC(".maps");

/* Returns the 16-bit word at an offset of the frame. NULL: the offset is 0, or the word is not in the frame. */
static __always_inline __be16 *word_at(void *data, void *data_end, __u32 offset)
{
	__be16 *word = data + (offset & (FRAME_MAX - 1));

	return offset && (void *)(word + 1) <= data_end ? word : NULL;
}

static __always_inline __sum16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__sum16)((sum & 0xffff) + (sum >> 16));
}

/* Writes the numbers and the checksum of this flow into a copy of the template. */
static __always_inline void personalise(void *data, void *data_end, const struct template *template, __u32 flow)
{
	__be16 *first = word_at(data, data_end, template->first_off);
	__be16 *second = word_at(data, data_end, template->second_off);
	__be16 *check = word_at(data, data_end, template->check_off);
	__u64 sum = template->sum;

	if (first) {
		*first = bpf_htons(template->first + flow % PORTS);
		sum += *first;
	}
	if (second) {
		*second = bpf_htons(template->second + flow / PORTS);
		sum += *second;
	}
	if (check)
		*check = ~fold(sum);
}

/* Returns the template of the next frame, and sets the number of its flow. */
static __always_inline const struct template *next_frame(__u32 *flow)
{
	const struct template *template = &current.templates[current.frame & (FRAMES - 1)];

	*flow = current.flow + current.at;
	if (++current.at < current.block)
		return template;
	current.at = 0;
	if (++current.frame < current.frames)
		return template;
	current.frame = 0;
	current.flow += current.stride;
	if (current.flow >= current.flows)
		current.flow -= current.flows;
	return template;
}

/* Writes the next frame of the plan. User space runs this program with BPF_F_TEST_XDP_LIVE_FRAMES, so the frame
 * leaves by the device. The kernel reuses the buffers, so every byte must be written. */
SEC("xdp")
int generate(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	const struct template *template;
	__u32 flow;

	if (data + FRAME > data_end)
		return XDP_ABORTED;
	template = next_frame(&flow);
	__builtin_memcpy(data, template->frame, FRAME);
	personalise(data, data_end, template, flow);
	return XDP_TX;
}

/* Counts the frames that arrive. */
SEC("xdp")
int sink(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + sizeof(struct ethhdr);
	__u32 which = FRAMES;
	__u64 *frames;

	for (__u32 i = 0; i < FRAMES; i++)
		if ((void *)(ip + 1) <= data_end && ip->daddr == current.expected[i])
			which = i;
	frames = bpf_map_lookup_elem(&arrived, &which);
	if (frames)
		(*frames)++;
	return XDP_DROP;
}

/* The bare hooks: programs that only forward. They show the least cost of each hook. */
SEC("xdp")
int bare_xdp_tx(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_TX;
}

SEC("xdp")
int bare_xdp_redirect(struct xdp_md *ctx)
{
	(void)ctx;
	return (int)bpf_redirect_map(&port, 0, XDP_DROP);
}

SEC("tc")
int bare_tc(struct __sk_buff *skb)
{
	(void)skb;
	return (int)bpf_redirect(out, 0);
}

/* Sends the datagram back to its sender. A swap of addresses or ports does not change a checksum. */
static __always_inline int send_back(struct __sk_buff *skb, struct ethhdr *eth, struct udphdr *udp)
{
	__u8 mac[ETH_ALEN];
	__be16 port = udp->source;

	udp->source = udp->dest;
	udp->dest = port;
	__builtin_memcpy(mac, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, mac, ETH_ALEN);
	return (int)bpf_redirect(skb->ifindex, 0);
}

static __always_inline int answer4(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + sizeof(struct ethhdr);
	struct udphdr *udp = (void *)(ip + 1);
	__be32 address;

	if ((void *)(udp + 1) > data_end || ip->ihl != 5 || ip->protocol != IPPROTO_UDP || udp->dest != bpf_htons(answered))
		return TC_ACT_UNSPEC;
	address = ip->saddr;
	ip->saddr = ip->daddr;
	ip->daddr = address;
	return send_back(skb, data, udp);
}

static __always_inline int answer6(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct ipv6hdr *ip = data + sizeof(struct ethhdr);
	struct udphdr *udp = (void *)(ip + 1);
	struct in6_addr address;

	if ((void *)(udp + 1) > data_end || ip->nexthdr != IPPROTO_UDP || udp->dest != bpf_htons(answered))
		return TC_ACT_UNSPEC;
	address = ip->saddr;
	ip->saddr = ip->daddr;
	ip->daddr = address;
	return send_back(skb, data, udp);
}

/* A UDP server that sends each datagram back at once, at any packet rate. */
SEC("tc")
int answer(struct __sk_buff *skb)
{
	bpf_skb_pull_data(skb, sizeof(struct ethhdr) + sizeof(struct ipv6hdr) + sizeof(struct udphdr));
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return answer4(skb);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return answer6(skb);
	return TC_ACT_UNSPEC;
}

SEC("xdp.frags")
int empty_xdp(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_PASS;
}

SEC("tc")
int empty_tc(struct __sk_buff *skb)
{
	(void)skb;
	return TC_ACT_UNSPEC;
}

/* Overwrites the frame of the last run with the next frame of the plan. */
static __always_inline void renew(void *data, void *data_end)
{
	const struct template *template;
	__u32 flow;

	template = next_frame(&flow);
	for (__u32 i = 0; i < FRAME_MAX; i += 8) {
		if (data + i + 8 > data_end)
			break;
		*(__u64 *)(data + i) = *(__u64 *)(template->frame + i);
	}
	personalise(data, data_end, template, flow);
}

/* User space runs this program many times on one buffer: it writes the next frame, then calls the program under
 * test. A run with empty_xdp gives the cost of renew_xdp itself, to subtract. */
SEC("xdp.frags")
int renew_xdp(struct xdp_md *ctx)
{
	renew((void *)(long)ctx->data, (void *)(long)ctx->data_end);
	bpf_tail_call(ctx, &tested_xdp, 0);
	return XDP_ABORTED;
}

SEC("tc")
int renew_tc(struct __sk_buff *skb)
{
	renew((void *)(long)skb->data, (void *)(long)skb->data_end);
	bpf_tail_call(skb, &tested_tc, 0);
	return TC_ACT_SHOT;
}

char _license[] SEC("license") = "Dual BSD/GPL";
