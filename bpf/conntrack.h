// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The kernel's connection tracking: is a packet the answer to what the router itself, or a client that it masquerades, has
 * asked? Linux can be asked for TCP and UDP (net/netfilter/nf_conntrack_bpf.c). */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "types.h"

/* Set by the loader. Where the kernel cannot be asked, the loader also takes the calls of its functions out of the programs. */
volatile const bool conntrack_asked;
/* Conntrack is active here: a packet without an entry answers nothing. */
volatile const bool conntrack_tracks;
/* net.ipv4.ip_local_port_range: from these the kernel gives ports to sockets that ask for none. */
volatile const __u16 ephemeral_first;
volatile const __u16 ephemeral_last;

enum { CONNTRACK_DIR_REPLY = 1 /* IP_CT_DIR_REPLY */ };

struct nf_conn {
	__u32 use;	/* never read */
};

/* As Linux 5.18 to 6.9 have it. Later kernels take this length, too. */
struct bpf_ct_opts {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	__u8 dir;
	__u8 reserved[2];
};
_Static_assert(sizeof(struct bpf_ct_opts) == 12, "struct bpf_ct_opts has another length than its first version");

extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *skb, struct bpf_sock_tuple *tuple, __u32 tuple_size,
					 struct bpf_ct_opts *opts, __u32 opts_size) __weak __ksym;
extern struct nf_conn *bpf_xdp_ct_lookup(struct xdp_md *ctx, struct bpf_sock_tuple *tuple, __u32 tuple_size,
					 struct bpf_ct_opts *opts, __u32 opts_size) __weak __ksym;
extern void bpf_ct_release(struct nf_conn *conn) __weak __ksym;

/* What conntrack knows of a packet with this tuple. */
enum conntrack_way {
	CONNTRACK_NOTHING,
	CONNTRACK_ORIGINAL,	/* a packet of the connection's client: it may open a connection here */
	CONNTRACK_REPLY,
};

static __always_inline enum conntrack_way conntrack_way(struct nf_conn *conn, const struct bpf_ct_opts *opts)
{
	if (!conn)
		return CONNTRACK_NOTHING;
	bpf_ct_release(conn);
	return opts->dir == CONNTRACK_DIR_REPLY ? CONNTRACK_REPLY : CONNTRACK_ORIGINAL;
}

/* Looks a tuple up. Twice, for TC and XDP: the functions' names and contexts differ. */
static __always_inline enum conntrack_way conntrack_find_tc(struct __sk_buff *skb, struct bpf_sock_tuple *tuple, __u32 length,
							    __u8 protocol)
{
	struct bpf_ct_opts opts = { .netns_id = BPF_F_CURRENT_NETNS, .l4proto = protocol };

	if (!conntrack_asked)
		return CONNTRACK_NOTHING;
	if (length == sizeof(tuple->ipv6))
		return conntrack_way(bpf_skb_ct_lookup(skb, tuple, sizeof(tuple->ipv6), &opts, sizeof(opts)), &opts);
	return conntrack_way(bpf_skb_ct_lookup(skb, tuple, sizeof(tuple->ipv4), &opts, sizeof(opts)), &opts);
}

static __always_inline enum conntrack_way conntrack_find_xdp(struct xdp_md *ctx, struct bpf_sock_tuple *tuple, __u32 length,
							     __u8 protocol)
{
	struct bpf_ct_opts opts = { .netns_id = BPF_F_CURRENT_NETNS, .l4proto = protocol };

	if (!conntrack_asked)
		return CONNTRACK_NOTHING;
	if (length == sizeof(tuple->ipv6))
		return conntrack_way(bpf_xdp_ct_lookup(ctx, tuple, sizeof(tuple->ipv6), &opts, sizeof(opts)), &opts);
	return conntrack_way(bpf_xdp_ct_lookup(ctx, tuple, sizeof(tuple->ipv4), &opts, sizeof(opts)), &opts);
}
