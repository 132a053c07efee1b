//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The BPF programs. Each packet is parsed, decided, written, sent and counted. The TC program handles every
 * packet. The XDP program handles only packets of which it is sure, and passes all others unchanged to TC. */
#include <linux/bpf.h>

#include "guard.h"
#include "tc.h"
#include "xdp.h"

/* Counts the verdict, and a refused opening also at its forward. A global function: the verifier checks it once. */
__noinline int hairpin_count(enum verdict verdict)
{
	struct work *work = work_get();
	struct forward_stats *stats;

	if (!work)
		return 0;
	count(work->pkt.ifindex, verdict, work->rw.reason);
	if (verdict != VERDICT_REFUSE || !work->rw.opens_at)
		return 0;
	stats = conn_stats(work->rw.opens_at);
	if (stats) {
		stats->refused++;
		stats->hit = work->pkt.second;
	}
	return 0;
}

/* Carries out a verdict. Returns a TC action. */
static __always_inline int tc_apply(struct __sk_buff *skb, const struct work *work, enum verdict verdict)
{
	if (verdict == VERDICT_PASS)
		return tc_pass(skb, work->fragment.waiting);
	if (skb->vlan_present && tc_untag(skb) != 0)
		return TC_ACT_SHOT;
	if (verdict == VERDICT_DEFER)
		return (int)tc_reinject(skb, &work->pkt);
	return verdict == VERDICT_SEND ? (int)tc_forward(skb, work, work->fragment.waiting) : tc_refuse(skb);
}

/* Handles a fragment before the search for its connection. SEND: the connection decides. Not inlined, to save
 * stack. The verifier then also does not check the rest of the program twice, with and without a datagram. */
static __noinline enum verdict tc_enter_fragment(struct __sk_buff *skb, struct work *work)
{
	struct fragment *datagram = frag_datagram(work);
	enum verdict verdict;

	work->fragment.known = datagram;
	if (!datagram)
		return work->pkt.fragment == FRAGMENT_LATER ? VERDICT_PASS : VERDICT_SEND;
	verdict = frag_enter(work, datagram);
	return verdict == VERDICT_HOLD && !hold_keep(skb, work, datagram) ? VERDICT_DROP : verdict;
}

/* Handles a fragment after its connection has decided. Returns the final verdict. Not inlined, to save stack. */
static __noinline enum verdict tc_leave_fragment(struct work *work, enum verdict verdict)
{
	struct fragment *datagram = work->fragment.known ? bpf_map_lookup_elem(&fragments, &work->fragment.held.datagram) : NULL;

	/* The connection has ended since the first fragment: the kernel must not get only the later fragments. */
	if (verdict == VERDICT_PASS && work->pkt.fragment == FRAGMENT_LATER)
		return frag_drop(work, REASON_NO_CONNECTION);
	if (datagram && work->pkt.fragment == FRAGMENT_FIRST) {
		frag_settle(&work->pkt, datagram, verdict);
		work->fragment.waiting = datagram->held;
	}
	return verdict;
}

/* Decides about a packet. SEND: the rewrite is already written into the skb. */
static __always_inline enum verdict tc_decide(struct __sk_buff *skb, struct work *work)
{
	const struct packet *pkt = &work->pkt;
	enum verdict verdict = VERDICT_SEND;

	work->fragment.waiting = 0;
	if (pkt->fragment != FRAGMENT_NONE)
		verdict = tc_enter_fragment(skb, work);
	if (verdict != VERDICT_SEND)
		return verdict;
	verdict = pkt->icmp_error ? tc_icmp(skb) : nat_decide(skb, work, HOOK_TC);
	if (pkt->fragment != FRAGMENT_NONE)
		verdict = tc_leave_fragment(work, verdict);
	return verdict == VERDICT_SEND ? tc_rewrite(skb, work) : verdict;
}

SEC("tc")
int hairpin_tc(struct __sk_buff *skb)
{
	struct work *work = work_get();
	enum verdict verdict;
	int l3_off;

	if (!work || skb->pkt_type != PACKET_TO_US || tc_of_vlan(skb))
		return TC_ACT_UNSPEC;
	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6) && !tc_untag_inner(skb))
		return TC_ACT_UNSPEC;
	l3_off = tc_find_ip(skb, work);
	if (l3_off < 0)
		return TC_ACT_UNSPEC;
	work_begin(work, HOOK_TC, skb->ifindex, skb->len, skb->gso_size, (__u16)l3_off);
	if (!tc_pull(skb) || !tc_parse(skb, work))
		return TC_ACT_UNSPEC;
	if (work->pkt.tcp_flags & TCP_SYN || packet_has_options(&work->pkt))
		tc_read_options(skb);
	verdict = tc_decide(skb, work);
	if (work->rw.reason != REASON_NONE)
		hairpin_count(verdict);
	return tc_apply(skb, work, verdict);
}

SEC("xdp.frags")
int hairpin_xdp(struct xdp_md *ctx)
{
	struct work *work = work_get();
	struct ethhdr *eth = (void *)(long)ctx->data;
	__u32 length = ctx->data_end - ctx->data;
	const struct packet *pkt;
	enum verdict verdict;

	if (!work || (void *)(eth + 1) > (void *)(long)ctx->data_end)
		return XDP_PASS;
	pkt = &work->pkt;
	work_begin(work, HOOK_XDP, ctx->ingress_ifindex, length, 0, sizeof(struct ethhdr));
	if (!packet_parse(eth, (void *)(long)ctx->data_end, eth->h_proto, &work->pkt))
		return XDP_PASS;
	/* Fragments, IP options, ICMP and protocols without ports are left to TC. */
	if (pkt->fragment != FRAGMENT_NONE || packet_has_options(pkt) ||
	    (pkt->tuple.protocol != IPPROTO_TCP && pkt->tuple.protocol != IPPROTO_UDP))
		return XDP_PASS;
	if (pkt->tcp_flags & TCP_SYN)
		xdp_read_options(ctx);
	verdict = nat_decide(ctx, work, HOOK_XDP);
	if (verdict == VERDICT_SEND) {
		if (edit_frame((void *)(long)ctx->data, (void *)(long)ctx->data_end, pkt, &work->rw))
			return nat_goes_back(pkt, &work->rw) ? XDP_TX
							     : (int)bpf_redirect_map(&tx_ports, work->rw.ifindex, XDP_DROP);
		verdict = VERDICT_DROP;
		work->rw.reason = REASON_WRITE_FAILED;
	}
	/* The parser sees only the first buffer of a frame, so a frame of several buffers looks truncated. TC sees
	 * the whole frame. */
	if (verdict == VERDICT_DROP && bpf_xdp_get_buff_len(ctx) != length)
		return XDP_PASS;
	if ((verdict == VERDICT_DROP || verdict == VERDICT_REFUSE) && xdp_doubts(&work->pkt, &work->rw))
		verdict = VERDICT_DEFER;
	if (work->rw.reason != REASON_NONE)
		hairpin_count(verdict);
	return verdict == VERDICT_DROP || verdict == VERDICT_REFUSE ? XDP_DROP : XDP_PASS;
}

/* The leak guard, at egress of a WAN. */
SEC("tc")
int hairpin_guard(struct __sk_buff *skb)
{
	if (!guard_leaks(skb))
		return TC_ACT_UNSPEC;
	count(skb->ifindex, VERDICT_DROP, REASON_LEAK);
	return TC_ACT_SHOT;
}

/* Ends one connection for user space. Both entries get a sum of epochs that never occurs again, because epochs
 * only rise. The serial identifies the connection: another connection may have got the tuple since user space read
 * it. */
SEC("syscall")
int hairpin_end(struct end_request *request)
{
	struct tuple key = request->key, other_key;
	struct entry entry = {}; /* Linux 6.1 passes only memory that is set to a global function */
	struct conn *conn = conn_find(&key, &entry), *other;
	__u32 serial;

	request->found = conn && (!request->serial || request->serial == conn_serial(entry.identity));
	if (!conn || !request->found)
		return 0;
	tuple_reverse(&entry.to, &other_key);
	serial = conn_serial(entry.identity);
	__sync_fetch_and_add(&conn->epochs, -1);
	other = conn_find(&other_key, &entry);
	if (other && conn_serial(entry.identity) == serial)
		__sync_fetch_and_add(&other->epochs, -1);
	return 0;
}

/* Adds change to the count of a ring. The daemon runs this program when several walks of the tables have found the
 * same difference. */
SEC("syscall")
int hairpin_correct(struct correct_request *request)
{
	__u32 index = request->ring;
	struct ring *ring = bpf_map_lookup_elem(&rings, &index);

	if (ring)
		__sync_fetch_and_add(&ring->count, request->change);
	return 0;
}

/* Starts the sweeper, which removes expired connections. The loader runs this program. */
SEC("tc")
int hairpin_start(struct __sk_buff *skb)
{
	(void)skb;
	return (int)sweep_start();
}

char _license[] SEC("license") = "Dual BSD/GPL";
