//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Programs that watch the programs of hairpin.c while they run. Nothing of them is attached unless somebody watches. They attach
 * to functions of the loaded programs by BPF trampolines (fentry, fexit), and share their maps. When a program returns, the
 * struct work of its CPU still holds the packet as it arrived, and what was decided about it.
 *
 * They write nothing that hairpin.c reads. If the ring buffer is full, the report is lost, and counted. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "conn.h"
#include "forward.h"
#include "trace.h"

/* The members of kernel types that are read here. The loader looks up their places in the running kernel. */
struct net_device {
	int ifindex;
} __attribute__((preserve_access_index));

struct sk_buff {
	struct net_device *dev;
	unsigned int len, data_len;
	unsigned char *data;
} __attribute__((preserve_access_index));

struct xdp_buff {
	void *data, *data_end;
} __attribute__((preserve_access_index));

/* Set before the programs are loaded, so the verifier takes out what a filter does not need. */
volatile const struct packet_filter filter = {};
/* The program is attached to the sweeper: no packet is being handled. */
volatile const bool sweeping = false;

/* Index: 0. The loader sets the size. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} trace_ring SEC(".maps");

enum tally {
	TALLY_MATCHING,		/* packets that matched the filter */
	TALLY_LOST,		/* reports that found no room in the ring buffer */
	TALLIES,
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, enum tally);
	__type(value, __u64);
	__uint(max_entries, TALLIES);
} tallies SEC(".maps");

/* What the program has counted for its packet last, on each CPU. */
struct trace_verdict {
	enum verdict verdict;
	__u8 told;
	__u8 pad[3];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__uint(value_size, sizeof(struct trace_verdict));
	__uint(max_entries, 1);
} trace_verdicts SEC(".maps");

/* The frame as it arrived, on each CPU. */
struct trace_arrival {
	__u32 length, kept;
	__u8 bytes[TRACE_SNAP];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__uint(value_size, sizeof(struct trace_arrival));
	__uint(max_entries, 1);
} trace_arrivals SEC(".maps");

/* The frame that a program handles. data are the first bytes, of which reach can be read. */
struct frame {
	const void *data;
	__u32 reach;
	__u32 length;
	__u32 ifindex;
};

static __always_inline __u64 tally_add(enum tally which)
{
	__u64 *count = bpf_map_lookup_elem(&tallies, &which);

	return count ? __sync_fetch_and_add(count, 1) : 0;
}

static __always_inline bool port_wanted(__be16 port)
{
	__u16 host = bpf_ntohs(port);

	return host >= filter.port_first && host <= filter.port_last;
}

static __always_inline bool client_wanted(const union addr *addr)
{
	return (addr->half[0] & filter.client_mask.half[0]) == filter.client.half[0] &&
	       (addr->half[1] & filter.client_mask.half[1]) == filter.client.half[1];
}

/* Does the filter take this packet, apart from its forward? to: the tuple with which it leaves; NULL: it does not leave. */
static __always_inline bool packet_wanted(const struct packet *pkt, const struct rewrite *rw, const struct tuple *to)
{
	const struct tuple *tuple = &pkt->tuple;

	if (filter.ifindex && pkt->ifindex != filter.ifindex && rw->ifindex != filter.ifindex)
		return false;
	if (filter.protocol && tuple->protocol != filter.protocol &&
	    !(filter.protocol == IPPROTO_ICMP && tuple->protocol == IPPROTO_ICMPV6))
		return false;
	if (filter.port_last && !port_wanted(tuple->sport) && !port_wanted(tuple->dport) &&
	    !(to && (port_wanted(to->sport) || port_wanted(to->dport))))
		return false;
	return !filter.by_client || client_wanted(&tuple->src) || client_wanted(to ? &to->dst : &tuple->dst);
}

/* May the packet be one of the forward that the filter wants? A quick look: if there is a reason, the forward is looked up later. */
static __always_inline bool forward_may_be_wanted(const struct work *work)
{
	const struct conn *conn;

	if (!filter.forward || work->rw.reason != REASON_NONE)
		return true;
	conn = work->pkt.v6 ? table_conn(true, work->rw.entry.number) : table_conn(false, work->rw.entry.number);
	return conn && conn_forward(conn) == filter.forward;
}

/* Has this program handled this frame? Some frames are passed before hairpin_begin or by the parser. Then struct work still has an
 * earlier packet. The frame goes to the packet's destination, before or after the rewrite, or it is an answer to the packet's sender. */
static __noinline bool frame_of_packet(const struct work *work, const struct frame *frame)
{
	const struct packet *pkt = &work->pkt;
	union addr to = {};
	__u8 first = 0;
	__be32 v4 = 0;
	const void *ip = frame->data + pkt->l3_off;

	if (frame->ifindex != pkt->ifindex || frame->reach < pkt->l3_off + packet_base(pkt))
		return false;
	if (bpf_probe_read_kernel(&first, sizeof(first), ip) != 0 || first >> 4 != (pkt->v6 ? 6 : 4))
		return false;
	if (pkt->v6) {
		if (bpf_probe_read_kernel(&to, sizeof(to), ip + offsetof(struct ipv6hdr, daddr)) != 0)
			return false;
	} else {
		if (bpf_probe_read_kernel(&v4, sizeof(v4), ip + offsetof(struct iphdr, daddr)) != 0)
			return false;
		addr_from_v4(&to, v4);
	}
	return addr_equal(&to, &pkt->tuple.dst) || addr_equal(&to, &work->rw.entry.to.dst) || addr_equal(&to, &pkt->tuple.src);
}

/* Finds the verdict. A program counts every packet that has a reason. A packet without a reason was sent or passed. */
static __always_inline enum verdict verdict_of(const struct work *work, bool sent, __u8 *told)
{
	const struct trace_verdict *counted;
	__u32 zero = 0;

	if (work->rw.reason == REASON_NONE)
		return sent ? VERDICT_SEND : VERDICT_PASS;
	counted = bpf_map_lookup_elem(&trace_verdicts, &zero);
	if (!counted)
		return VERDICT_PASS;
	*told = counted->told;
	return counted->verdict;
}

/* Returns the id of the forward that would take a packet that has no connection; 0: none. */
static __noinline __u32 forward_asked(const struct tuple *tuple)
{
	const struct external *external = external_find(&tuple->dst);
	const struct forward *forward = NULL;

	if (external)
		forward = forward_find(forward_slot(), external, tuple->protocol, tuple->dport);
	return forward ? forward->epoch_ref.id : 0;
}

/* Fills in the connection of the packet, or of the packet that an ICMP error quotes; without one, the forward that would take the
 * packet. */
static __noinline int report_conn(struct work *work, struct packet_report *report)
{
	struct tuple key = work->pkt.icmp_error ? work->error.answer : work->pkt.tuple;
	struct entry entry = {};
	const struct conn *conn = conn_find(&key, &entry);
	bool opener = entry.identity & CONN_OPENER;

	if (!conn) {
		report->forward = report->verdict == VERDICT_PASS ? 0 : forward_asked(&key);
		return 0;
	}
	report->forward = conn_forward(conn);
	report->sender = opener ? SENDER_CLIENT : SENDER_SERVER;
	return 0;
}

/* Copies up to TRACE_SNAP bytes of a frame. Returns how many. */
static __always_inline __u32 frame_copy(__u8 *bytes, const void *data, __u32 reach)
{
	__u32 kept = reach > TRACE_SNAP ? TRACE_SNAP : reach;

	if (!verifier_bounded(&kept, TRACE_SNAP) || bpf_probe_read_kernel(bytes, kept, data) != 0)
		return 0;
	return kept;
}

static __noinline int report_frames(struct frame_report *report, const struct frame *frame, bool sent)
{
	const struct trace_arrival *arrival;
	__u32 zero = 0;

	arrival = bpf_map_lookup_elem(&trace_arrivals, &zero);
	report->packet.kept_before = report->packet.kept_after = 0;
	if (!arrival)
		return 0;
	report->packet.frame_before = arrival->length;
	report->packet.kept_before = (__u16)arrival->kept;
	__builtin_memcpy(report->before, arrival->bytes, sizeof(report->before));
	if (!sent)
		return 0;
	report->packet.frame_after = frame->length;
	report->packet.kept_after = (__u16)frame_copy(report->after, frame->data, frame->reach);
	return 0;
}

/* May the filter take the packet that the program has just handled? This is all that most packets cost. */
static __always_inline bool packet_may_be_wanted(const struct work *work, enum hook hook)
{
	return work->pkt.hook == hook && packet_wanted(&work->pkt, &work->rw, &work->rw.entry.to) && forward_may_be_wanted(work);
}

/* Reports the packet that a program has just handled. sent: the program has sent it, unless there is a reason not to. */
static __always_inline int report_packet(struct work *work, const struct frame *frame, enum hook hook, bool sent)
{
	struct packet_report packet = {};
	struct packet_report *report;
	const struct packet *pkt = &work->pkt;

	if (!frame_of_packet(work, frame))
		return 0;
	packet.verdict = verdict_of(work, sent, &packet.told);
	report_conn(work, &packet);
	sent = packet.verdict == VERDICT_SEND;
	if (filter.forward && packet.forward != filter.forward)
		return 0;
	if (!packet_wanted(pkt, &work->rw, sent || packet.sender != SENDER_UNKNOWN ? &work->rw.entry.to : NULL))
		return 0;
	if (tally_add(TALLY_MATCHING) % (filter.sample ?: 1) != 0)
		return 0;
	report = bpf_ringbuf_reserve(&trace_ring, filter.frames ? sizeof(struct frame_report) : sizeof(*report), 0);
	if (!report) {
		tally_add(TALLY_LOST);
		return 0;
	}
	packet.time = bpf_ktime_get_ns();
	packet.before = pkt->tuple;
	packet.reason = work->rw.reason;
	packet.ifindex = pkt->ifindex;
	packet.length = pkt->length;
	packet.hook = hook;
	packet.tcp_flags = pkt->tuple.protocol == IPPROTO_TCP ? pkt->tcp_flags : 0;
	packet.bare = !pkt->l3_off;
	if (sent) {
		packet.after = work->rw.entry.to;
		packet.after.protocol = pkt->tuple.protocol;
		packet.out_ifindex = work->rw.ifindex;
	}
	*report = packet;
	if (filter.frames)
		report_frames((struct frame_report *)report, frame, sent);
	bpf_ringbuf_submit(report, 0);
	return 0;
}

static __always_inline void frame_of_skb(struct frame *frame, const struct sk_buff *skb)
{
	frame->data = skb->data;
	frame->reach = skb->len - skb->data_len;
	frame->length = skb->len;
	frame->ifindex = skb->dev->ifindex;
}

static __always_inline void frame_of_xdp(struct frame *frame, const struct xdp_buff *xdp)
{
	const struct work *work = work_get();

	frame->data = xdp->data;
	frame->reach = (__u32)(xdp->data_end - xdp->data);
	frame->length = (__u32)bpf_xdp_get_buff_len((struct xdp_md *)xdp);
	frame->ifindex = work ? work->pkt.ifindex : 0;
}

static __always_inline int keep_arrival(const struct frame *frame)
{
	__u32 zero = 0;
	struct trace_arrival *arrival = bpf_map_lookup_elem(&trace_arrivals, &zero);

	if (!arrival)
		return 0;
	arrival->length = frame->length;
	arrival->kept = frame_copy(arrival->bytes, frame->data, frame->reach);
	return 0;
}

SEC("fentry/hairpin_tc")
int trace_tc_in(__u64 *ctx)
{
	struct frame frame = {};

	frame_of_skb(&frame, (struct sk_buff *)ctx[0]);
	return keep_arrival(&frame);
}

SEC("fentry/hairpin_xdp")
int trace_xdp_in(__u64 *ctx)
{
	struct frame frame = {};

	frame_of_xdp(&frame, (struct xdp_buff *)ctx[0]);
	return keep_arrival(&frame);
}

/* TC sends a packet by a redirect. It drops the skb itself when it has sent its content in pieces, as clones. */
SEC("fexit/hairpin_tc")
int trace_tc(__u64 *ctx)
{
	struct work *work = work_get();
	int action = (int)ctx[1];
	struct frame frame = {};

	if (!work || !packet_may_be_wanted(work, HOOK_TC))
		return 0;
	frame_of_skb(&frame, (struct sk_buff *)ctx[0]);
	return report_packet(work, &frame, HOOK_TC, action != TC_ACT_UNSPEC && work->rw.ifindex);
}

SEC("fexit/hairpin_xdp")
int trace_xdp(__u64 *ctx)
{
	struct work *work = work_get();
	struct frame frame = {};
	int action = (int)ctx[1];

	if (!work || !packet_may_be_wanted(work, HOOK_XDP))
		return 0;
	frame_of_xdp(&frame, (struct xdp_buff *)ctx[0]);
	return report_packet(work, &frame, HOOK_XDP, action == XDP_TX || action == XDP_REDIRECT);
}

/* Keeps the verdict of a packet that has a reason. */
SEC("fentry/count")
int trace_counted(__u64 *ctx)
{
	__u32 zero = 0, verdict = (__u32)ctx[1];
	struct trace_verdict *counted = bpf_map_lookup_elem(&trace_verdicts, &zero);

	if (!counted)
		return 0;
	counted->told = verdict == VERDICT_TELL;
	if (verdict != VERDICT_TELL)
		counted->verdict = (enum verdict)verdict;
	return 0;
}

/* Returns room for a report about a connection. NULL: there is none. */
static __always_inline struct conn_report *conn_report_begin(void)
{
	struct conn_report *report = bpf_ringbuf_reserve(&trace_ring, sizeof(*report), 0);

	if (!report) {
		tally_add(TALLY_LOST);
		return NULL;
	}
	__builtin_memset(report, 0, sizeof(*report));
	report->time = bpf_ktime_get_ns();
	return report;
}

/* A connection has got its place: it is open. */
SEC("fexit/life_begin")
int trace_opened(__u64 *ctx)
{
	bool begun = (__u8)ctx[0];
	const struct work *work = work_get();
	struct conn_report *report;

	if (!work || !begun)
		return 0;
	report = conn_report_begin();
	if (!report)
		return 0;
	report->change = CHANGE_OPENED;
	report->path = (enum conn_path)conn_path(work->open.conn.identity);
	report->forward = conn_forward(&work->open.conn);
	report->client = work->open.key;
	report->server = work->open.to;
	report->server.protocol = work->open.key.protocol;
	bpf_ringbuf_submit(report, 0);
	return 0;
}

/* Adds up the packets of both directions. The packet that closes a connection is counted after life_changed. */
static __noinline int report_traffic(struct conn_report *report, const struct conn *opener, const struct entry *entry)
{
	const struct work *work = work_get();
	struct direction other = {};
	const struct conn *answerer = conn_other(entry, &other);

	report->packets = opener->packets;
	report->bytes = opener->bytes | (__u64)opener->bytes_high << 32;
	if (answerer) {
		report->packets += answerer->packets;
		report->bytes += answerer->bytes | (__u64)answerer->bytes_high << 32;
		if (report->cause == CLOSE_FIN && other.entry.identity & CONN_RESET)
			report->cause = CLOSE_RESET;
	}
	if (!sweeping && work && (report->cause == CLOSE_FIN || report->cause == CLOSE_RESET)) {
		report->packets++;
		report->bytes += work->pkt.length;
	}
	return 0;
}

static __always_inline enum close_cause cause_of(const struct conn *opener, __u64 identity, __u32 to, __u32 event)
{
	if (event == EVENT_EVICTED || event == EVENT_DISPLACED)
		return CLOSE_EVICTED;
	if (to == CONN_CLOSING)
		return opener->identity & CONN_RESET ? CLOSE_RESET : CLOSE_FIN;
	if (conn_revoked(opener, identity))
		return CLOSE_ENDED;
	return conn_half(identity) ? CLOSE_UNANSWERED : CLOSE_IDLE;
}

/* A connection has changed its state (life_changed). Closing and ended connections have been reported as closed. */
SEC("fentry/life_changed")
int trace_changed(__u64 *ctx)
{
	__u64 key = 0, opener = 0, old = 0, to = 0, event = 0;
	struct conn_report *report;
	struct entry entry = {};
	struct conn conn = {};

	if (bpf_get_func_arg(ctx, 0, &key) != 0 || bpf_get_func_arg(ctx, 1, &opener) != 0 || bpf_get_func_arg(ctx, 2, &old) != 0 ||
	    bpf_get_func_arg(ctx, 3, &to) != 0 || bpf_get_func_arg(ctx, 4, &event) != 0)
		return 0;
	if (bpf_probe_read_kernel(&entry, sizeof(entry), (void *)old) != 0 ||
	    bpf_probe_read_kernel(&conn, sizeof(conn), (void *)opener) != 0)
		return 0;
	if (conn_state(entry.identity) > CONN_ESTABLISHED)
		return 0;
	report = conn_report_begin();
	if (!report)
		return 0;
	bpf_probe_read_kernel(&report->client, sizeof(report->client), (void *)key);
	report->server = entry.to;
	report->server.protocol = report->client.protocol;
	report->path = (enum conn_path)conn_path(entry.identity);
	report->forward = conn_forward(&conn);
	report->change = CHANGE_ESTABLISHED;
	if ((__u32)to != CONN_ESTABLISHED) {
		report->change = CHANGE_CLOSED;
		report->cause = cause_of(&conn, entry.identity, (__u32)to, (__u32)event);
		report_traffic(report, &conn, &entry);
	}
	bpf_ringbuf_submit(report, 0);
	return 0;
}

/* Returns by which path a packet of this interface would reach a forward. */
static __always_inline enum conn_path path_by(__u32 ifindex)
{
	const struct interface *in = bpf_map_lookup_elem(&interfaces, &ifindex);

	if (in && in->role == ROLE_LOCAL)
		return PATH_LOCAL;
	return in && in->role == ROLE_LAN ? PATH_HAIRPIN : PATH_WAN;
}

/* A packet that would have opened a connection was refused. */
SEC("fentry/count")
int trace_refused(__u64 *ctx)
{
	__u32 ifindex = (__u32)ctx[0], verdict = (__u32)ctx[1], reason = (__u32)ctx[2];
	const struct work *work = work_get();
	struct conn_report *report;

	if (!work || verdict != VERDICT_REFUSE)
		return 0;
	report = conn_report_begin();
	if (!report)
		return 0;
	report->change = CHANGE_REFUSED;
	report->reason = (enum reason)reason;
	report->path = path_by(ifindex);
	report->ifindex = ifindex;
	report->client = work->pkt.tuple;
	report->forward = forward_asked(&work->pkt.tuple);
	bpf_ringbuf_submit(report, 0);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
