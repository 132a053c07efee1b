// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The maps: who writes them and why they are of their type; and the counters.
 * Sizes given here are defaults, the loader sets those of conns4, conns6, places4, places6 and the rings from the configuration. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "types.h"

/* Layout of everything pinned: raised with each incompatible change of types.h or of a map. */
enum schema { SCHEMA = 9 };

/* Multiplicative hashing (Knuth): 2^32 over the golden ratio. The upper bits are the good ones. */
enum { HASH_MULTIPLIER = 2654435761u };
/* Bits of the index into maybe_external, and of a LAN's hash in an entry's identity. */
enum { MAYBE_EXTERNAL_BITS = 12, LAN_HASH_BITS = 12 };
enum { HOPS = 4096 };

/* Written once by the loader; a program of another schema leaves the pins alone. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, enum schema);
	__uint(max_entries, 1);
} schema SEC(".maps");

/* Written by the control plane: one write swaps the whole set of forwards. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct live);
	__uint(max_entries, 1);
} live SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct routes);
	__uint(max_entries, 1);
} routes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct settings);
	__uint(max_entries, 1);
} settings SEC(".maps");

/* Written by the control plane; an address event is one write. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, union addr);
	__type(value, struct external);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} externals SEC(".maps");

/* By hash of an address: 1, if it is or was in externals. Spares nearly every packet that is not ours the look into
 * them. Written by the control plane, before the address is. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1 << MAYBE_EXTERNAL_BITS);
} maybe_external SEC(".maps");

struct forward_trie {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct forward_key);
	__type(value, struct forward);
	__uint(max_entries, 4194304);
	__uint(map_flags, BPF_F_NO_PREALLOC);
};

struct allow_trie {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct allow_key);
	__type(value, __u8);
	__uint(max_entries, 4194304);
	__uint(map_flags, BPF_F_NO_PREALLOC);
};

struct stand_in_trie {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct stand_in_key);
	__type(value, struct stand_in);
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_NO_PREALLOC);
};

struct origin_trie {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct origin_key);
	__type(value, struct origin);
	__uint(max_entries, 4194304);
	__uint(map_flags, BPF_F_NO_PREALLOC);
};

/* Two slots each. The control plane fills the idle one with a new trie; what runs is only added to, by a
 * forward that meets no other. */
struct forward_trie forwards_empty SEC(".maps");
struct allow_trie allow_empty SEC(".maps");
struct stand_in_trie stand_ins_empty SEC(".maps");
struct origin_trie origins_empty SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, __u32);
	__uint(max_entries, 2);
	__array(values, struct forward_trie);
} forwards SEC(".maps") = { .values = { &forwards_empty, &forwards_empty } };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, __u32);
	__uint(max_entries, 2);
	__array(values, struct allow_trie);
} allow SEC(".maps") = { .values = { &allow_empty, &allow_empty } };

/* Single addresses that are denied. Empty, it takes next to nothing. The control plane puts a larger one in the slot when it is full. */
struct denied_addresses {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, union addr);
	__type(value, struct denial);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
};

struct denied_addresses denied_empty SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, __u32);
	__uint(max_entries, 1);
	__array(values, struct denied_addresses);
} denied SEC(".maps") = { .values = { &denied_empty } };

/* Networks that are denied. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct denied_key);
	__type(value, struct denial);
	__uint(max_entries, 1048576);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} denied_nets SEC(".maps");

/* Of reflect prefix: clients to stand-ins, and back. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, __u32);
	__uint(max_entries, 2);
	__array(values, struct stand_in_trie);
} stand_ins SEC(".maps") = { .values = { &stand_ins_empty, &stand_ins_empty } };

/* And the forwards by their targets: what a server says to a stand-in rebuilds a connection that was lost. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, __u32);
	__uint(max_entries, 2);
	__array(values, struct origin_trie);
} origins SEC(".maps") = { .values = { &origins_empty, &origins_empty } };

/* By external id: the address that has it, if that is one alone. An address event is one write. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, union addr);
	__uint(max_entries, 32768);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} listeners SEC(".maps");

/* Two entries a mapping. A port of a mapping that was evicted may become another client's; no connection can
 * be taken for another by that, BPF_NOEXIST in conns4 and conns6 sees to that. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct tuple);
	__type(value, struct mapping);
	__uint(max_entries, 12288);
} mappings SEC(".maps");

/* The running configuration as text, in chunks, for whoever comes next: it swaps with the forwards. */
struct document_chunks {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__uint(value_size, 4096);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_INNER_MAP);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, __u32);
	__uint(max_entries, 2);
	__array(values, struct document_chunks);
} documents SEC(".maps");

/* Of forwards and external addresses, by id; raised by the control plane to end connections. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 131072);
} epochs SEC(".maps");

/* Two entries a connection, whatever its state. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct tuple4);
	__type(value, struct conn4);
	__uint(max_entries, 335872);
} conns4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct tuple);
	__type(value, struct conn6);
	__uint(max_entries, 83968);
} conns6 SEC(".maps");

/* By enum place_kind and family; sizes and limits are the loader's. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct ring);
	__uint(max_entries, PLACES * 2);
} rings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct place4);
	__uint(max_entries, 192512);
} places4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct place6);
	__uint(max_entries, 48128);
} places6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct sweeper);
	__uint(max_entries, 1);
} sweepers SEC(".maps");

/* Next hops, by a hash of what they are. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct hop);
	__uint(max_entries, HOPS);
} hops SEC(".maps");

enum { SOURCES = 16384, LOADS = 4096, PROVEN = 16384 };

/* What each client has, in two rows by two hashes of its address; the lower figure counts. Two clients meet in both by
 * chance only, and no count is ever forgotten. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct source_page);
	__uint(max_entries, 2 * SOURCES / COUNTS_PAGE);
} sources SEC(".maps");

/* By forward id; from 4096 forwards on some share one. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct load_page);
	__uint(max_entries, LOADS / COUNTS_PAGE);
} loads SEC(".maps");

/* By hash of a source. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct proven_page);
	__uint(max_entries, PROVEN / COUNTS_PAGE);
} proven SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct secret);
	__uint(max_entries, 1);
} secrets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct serial);
	__uint(max_entries, 1);
} serials SEC(".maps");

/* Addresses that forwards lead to, written by the control plane: fragments from them or to an external
 * address may be ours, and the leak guard keeps the private ones off WANs. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, union addr);
	__type(value, __u8);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} targets SEC(".maps");

/* The router's own addresses, written by the control plane: an intercept may lead to one. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, union addr);
	__type(value, __u8);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} locals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
	__uint(max_entries, 4096);
} fragments SEC(".maps");

/* Together with fragments under 2 MiB; a flood of fragments without a first evicts only its like. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct held_key);
	__type(value, struct held_fragment);
	__uint(max_entries, 640);
} held_fragments SEC(".maps");

/* Packets that TC puts together, by CPU: the loader makes one for each. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__uint(value_size, sizeof(struct scratch_packet));
	__uint(max_entries, 1);
} scratch_packets SEC(".maps");

/* By enum role. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct icmp_budget);
	__uint(max_entries, ROLES);
} icmp_budgets SEC(".maps");

/* By ifindex, written by the control plane. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, struct interface);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} interfaces SEC(".maps");

/* Devices that take XDP frames; anything else is TC's. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__type(key, __u32);
	__type(value, struct bpf_devmap_val);
	__uint(max_entries, 4096);
} tx_ports SEC(".maps");

enum { STATS_PAGE = 256 };

struct stats_page {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct forward_stats);
	__uint(max_entries, STATS_PAGE);
};

struct stats_page stats_empty SEC(".maps");

/* By forward id, in pages that the control plane makes as there are forwards: arrays, for every packet of a
 * connection is counted here. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, __u32);
	__uint(max_entries, 256);
	__array(values, struct stats_page);
} forward_stats SEC(".maps");

enum { BUCKETS_PAGE = 256 };

struct buckets_page {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct bucket);
	__uint(max_entries, BUCKETS_PAGE);
};

struct buckets_page buckets_empty SEC(".maps");

/* By forward id, in pages that the control plane makes where a forward has a rate. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, __u32);
	__uint(max_entries, 256);
	__array(values, struct buckets_page);
} buckets SEC(".maps");

/* Of single clients. The least recently used one gives way: its client then begins with a full bucket. The control plane puts a
 * large one in the slot when the first forward has a rate for each client. */
struct source_buckets_table {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct source_bucket_key);
	__type(value, struct bucket);
	__uint(max_entries, 1);
};

struct source_buckets_table source_empty SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, __u32);
	__uint(max_entries, 1);
	__array(values, struct source_buckets_table);
} source_buckets SEC(".maps") = { .values = { &source_empty } };

/* Every verdict but SEND and a PASS of what is not ours. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__type(key, struct counter_key);
	__type(value, __u64);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} counters SEC(".maps");

/* By enum conn_event. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, enum conn_event);
	__type(value, __u64);
	__uint(max_entries, EVENTS);
} conn_events SEC(".maps");

static __always_inline void count_event(enum conn_event event)
{
	__u64 *value = bpf_map_lookup_elem(&conn_events, &event);

	if (value)
		(*value)++;
}

/* Global, for few packets are counted here: the verifier checks it once, and its stack is not the caller's. */
__noinline int count(__u32 ifindex, enum verdict verdict, enum reason reason)
{
	struct counter_key key = { .ifindex = ifindex, .verdict = verdict, .reason = reason };
	__u64 *value = bpf_map_lookup_elem(&counters, &key);

	if (!value) {
		__u64 zero = 0;

		bpf_map_update_elem(&counters, &key, &zero, BPF_NOEXIST);
		value = bpf_map_lookup_elem(&counters, &key);
	}
	if (value)
		(*value)++;
	return 0;
}
