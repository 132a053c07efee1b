// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The maps: who writes each map, and why it has its type; and the functions that count. The sizes here are defaults: from
 * the configuration the loader sets the sizes of conns4, conns6 and places, and the content of rings and tables. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "types.h"

/* Version of the layout of the pinned maps. It is raised with each incompatible change of types.h or of a map. */
enum schema { SCHEMA = 14 };

/* Multiplicative hashing (Knuth): 2^32 divided by the golden ratio. Use the upper bits of the product: they mix best. */
enum { HASH_MULTIPLIER = 2654435761u };
/* Number of bits: of an index of maybe_external, and of the LAN interface's hash in an entry's identity. */
enum { MAYBE_EXTERNAL_BITS = 12, LAN_HASH_BITS = 12 };
enum { MAYBE_DENIED_BITS = 21 };
enum { HOPS = 4096 };

/* The loader writes the schema once. A hairpin with another schema does not use the pinned maps. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, enum schema);
	__uint(max_entries, 1);
} schema SEC(".maps");

/* The control plane writes the generation: one write swaps the whole set of forwards. */
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

/* Key: an external address. The control plane writes it: one write adds, changes or removes an address. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, union addr);
	__type(value, struct external);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} externals SEC(".maps");

/* The addresses that the router has lost, until they are back or their grace is over. Stored in a map because the daemon and
 * the command line both write it. Nobody looks up a prefix: a trie takes no memory while it is empty. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct prefix_key);
	__type(value, struct absence);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} absences SEC(".maps");

/* Index: external_slot of an address. Value: bits of enum maybe. MAYBE_EXTERNAL: an address with this hash is or was in
 * externals. MAYBE_TARGET: such an address is or was in targets. 0: the packet needs no look-up; that holds for nearly every
 * packet that hairpin does not handle. The control plane sets the bit before it writes the address. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, enum maybe);
	__uint(max_entries, 1 << MAYBE_EXTERNAL_BITS);
} maybe_external SEC(".maps");

/* One bit for each port of TCP, then one for each port of UDP: a forward or an intercept may have this port. 0: no forward
 * has the port. The control plane sets the bits before the forwards, and clears those that are left over after the change. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct port_bits);
	__uint(max_entries, 2 * PORTS_ALL / PORT_BITS);
} maybe_ports SEC(".maps");

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
	__type(key, struct prefix_key);
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

/* Tables of forwards with several servers (balance.h). The real maps have as many places as the configuration needs. */
struct server_list {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct server);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_INNER_MAP);
};

struct lookup_pages {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct lookup_page);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_INNER_MAP);
};

struct server_list servers_empty SEC(".maps");
struct lookup_pages lookups_empty SEC(".maps");

/* Each map has two slots. The control plane fills the unused slot with a new trie. It changes a live trie in one case
 * only: it adds a forward that shares no port with another forward. */
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

/* Single addresses that are denied. The slot is empty until the first address is denied; openings then skip the look-up. The control
 * plane puts a larger table in the slot when one is full. */
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
} denied SEC(".maps");

/* One bit for each value of deny_hash. 1: an address with this hash is or was in denied. 0: the source needs no look-up there. The
 * elements of denied are scattered over the memory, so that a look-up among 100,000 waits for it; these bits stay in the cache. */
struct denied_bits {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_INNER_MAP);	/* the real one has 1 << (MAYBE_DENIED_BITS - 6) places */
};

struct denied_bits bits_empty SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, __u32);
	__uint(max_entries, 1);
	__array(values, struct denied_bits);
} maybe_denied SEC(".maps");

/* Networks that are denied, alike. */
struct denied_trie {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct denied_key);
	__type(value, struct denial);
	__uint(max_entries, 1048576);
	__uint(map_flags, BPF_F_NO_PREALLOC);
};

struct denied_trie nets_empty SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, __u32);
	__uint(max_entries, 1);
	__array(values, struct denied_trie);
} denied_nets SEC(".maps");

/* 1: denied sources may still have connections, because the writer that denied the sources may have been killed. The next writer ends
 * these connections. Only the control plane reads and writes it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} denied_unended SEC(".maps");

/* Reflect prefix: from clients to stand-ins, and back. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, __u32);
	__uint(max_entries, 2);
	__array(values, struct stand_in_trie);
} stand_ins SEC(".maps") = { .values = { &stand_ins_empty, &stand_ins_empty } };

/* The forwards by their targets. By them the answer of a target rebuilds a lost connection (stand_in.h). */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, __u32);
	__uint(max_entries, 2);
	__array(values, struct origin_trie);
} origins SEC(".maps") = { .values = { &origins_empty, &origins_empty } };

/* A slot is empty, or its map has one place, while no forward has several servers. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, __u32);
	__uint(max_entries, 2);
	__array(values, struct server_list);
} servers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, __u32);
	__uint(max_entries, 2);
	__array(values, struct lookup_pages);
} lookups SEC(".maps");

/* Index: enum affinity_kind. The least recently used client gives way. The control plane puts large tables in the slots when the first
 * forward has affinity. */
struct affinity_table {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct affinity_key);
	__type(value, struct affinity);
	__uint(max_entries, 1);
};

struct affinity_table affinity_empty SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, __u32);
	__uint(max_entries, AFFINITIES);
	__array(values, struct affinity_table);
} affinities SEC(".maps") = { .values = { &affinity_empty, &affinity_empty } };

/* Key: an external id. Value: the address with this id. An id of several addresses has no entry. One write changes an address. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, union addr);
	__uint(max_entries, 32768);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} listeners SEC(".maps");

/* Two entries for each mapping. After an LRU eviction another client may get the port of the mapping. table_claim
 * keeps tuples unique even then. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct tuple);
	__type(value, struct mapping);
	__uint(max_entries, 12288);
} mappings SEC(".maps");

/* The running configuration as text, in chunks, for later commands and daemons. It has two slots, too. */
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

/* Index: the id of a forward or an external address. Raised by the control plane to end all connections of the id. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 131072);
} epochs SEC(".maps");

/* IPsec policies in the order in which the kernel asks them. Written by the control plane; one write swaps the list, and none
 * is there if there are no policies. */
struct policy_list {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__uint(value_size, sizeof(struct policy));
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_INNER_MAP);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, __u32);
	__uint(max_entries, 1);
	__array(values, struct policy_list);
} policies SEC(".maps");

/* Two entries for each connection, in every state. Index: the number of a bucket (table.h). BPF_F_MMAPABLE: the kernel then puts the
 * first bucket at the start of a page, so a bucket of conns4 covers four cache lines, not five. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct bucket4);
	__uint(max_entries, 201523);
	__uint(map_flags, BPF_F_MMAPABLE);
} conns4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct bucket6);
	__uint(max_entries, 50380);
	__uint(map_flags, BPF_F_MMAPABLE);
} conns6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct table);
	__uint(max_entries, 1);
} tables SEC(".maps");

/* Index: enum place_kind * 2, plus 1 for IPv6. The loader sets sizes and limits. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct ring);
	__uint(max_entries, PLACES * 2);
} rings SEC(".maps");

/* The rings, one after the other. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct place);
	__uint(max_entries, 240640);
} places SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct sweeper);
	__uint(max_entries, 1);
} sweepers SEC(".maps");

/* Next hops. hop_remember makes the index by a hash of MAC addresses and output device. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct hop);
	__uint(max_entries, HOPS);
} hops SEC(".maps");

enum { SOURCES = 16384, LOADS = 4096, PROVEN = 16384, LATE_SYNS = 4096 };

/* The counts of each client, in two rows: each row has another hash of the address as index. The lower of both counts is
 * used. A client's count is too high only if other clients use both of its counters. An array, because no count may be evicted. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct source_page);
	__uint(max_entries, 2 * SOURCES / COUNTS_PAGE);
} sources SEC(".maps");

/* Index: forward id % LOADS. With more than 4096 forwards, some forwards share their counts. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct load_page);
	__uint(max_entries, LOADS / COUNTS_PAGE);
} loads SEC(".maps");

/* Index: the serial of the connection % LATE_SYNS. XDP and TC share the SYNs: one may see the SYN, the other the SYN/ACK. Two
 * connections may have the same place: the later SYN counts. A client with many connections can so displace the SYN of another one,
 * whose restart then waits for the next SYN, at the longest until the old connection expires.
 *
 * Race: CPU A and CPU B write one place.
 *   A writes first and end. B writes first, end and serial. A writes serial.
 * The place then has the numbers of B's SYN for A's connection. A SYN/ACK of A's server does not fit, and A's client sends its SYN
 * again. A forged SYN/ACK would have to hit B's number. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct late_syn);
	__uint(max_entries, LATE_SYNS);
} late_syns SEC(".maps");

/* Index: a hash of a source address. */
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

/* The target addresses of all forwards. The control plane writes them. hairpin follows fragments from a target, and the
 * leak guard drops packets that would leave by a WAN with a target's private address. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, union addr);
	__type(value, __u8);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} targets SEC(".maps");

/* Tuples of packets with which clients have opened connections to targets without a forward: direct connections, which
 * the kernel sends on. LRU: after an eviction only the kernel's conntrack knows the direct connection. Without conntrack, a
 * translated connection may then get its tuple, as after a restart of the router. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct tuple);
	__type(value, struct direct);
	__uint(max_entries, 2048);
} directs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
	__uint(max_entries, 4096);
} fragments SEC(".maps");

/* The maps fragments and held_fragments take less than 2 MiB together. LRU: a flood of later fragments evicts only held
 * fragments, never connections. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct held_key);
	__type(value, struct held_fragment);
	__uint(max_entries, 640);
} held_fragments SEC(".maps");

/* Buffers in which TC builds packets. Index: the CPU. The loader sets max_entries to the number of CPUs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__uint(value_size, sizeof(struct scratch_packet));
	__uint(max_entries, 1);
} scratch_packets SEC(".maps");

/* Index: enum role. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct icmp_budget);
	__uint(max_entries, ROLES);
} icmp_budgets SEC(".maps");

/* Key: ifindex. The control plane writes it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, struct interface);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} interfaces SEC(".maps");

/* The addresses that the router itself has, as hosts behind each interface see them. The control plane writes them. A
 * look-up reads one entry, so a packet uses either an old address or a new one. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct own_address_key);
	__type(value, struct own_address);
	__uint(max_entries, 4194304);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} own_addresses SEC(".maps");

/* Output devices that take XDP frames. TC sends the packets to all other devices. */
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

/* Index: forward id / STATS_PAGE, then forward id % STATS_PAGE. The control plane adds the pages that its forwards need.
 * Arrays, because every packet of a connection is counted here, and an array is faster than a hash. */
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

/* Counts the packets that have a reason, by interface, verdict and reason. Packets of connections are counted in
 * forward_stats. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__type(key, struct counter_key);
	__type(value, __u64);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} counters SEC(".maps");

/* Index: enum conn_event. */
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

/* A global function: the verifier checks it once, and it has its own stack frame. Only few packets need the call. */
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
