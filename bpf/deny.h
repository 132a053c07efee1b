// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Denied sources: they open nothing. Connections that they have already are ended by the control plane when it adds a source.
 *
 * Race. CPU A looks for the source of a SYN, and finds nothing. The control plane then adds the source, and walks the table of
 * connections. CPU A enters its connection after the walk: the connection would live. So after the control plane has added the
 * source, and before it walks, it writes a slot of an array of maps. The kernel returns from that write only when no
 * program runs that began before (maybe_wait_bpf_programs). So the walk sees all that such programs have opened. */
#pragma once

#include "maps.h"
#include "packet.h"

enum { DENIED_KEY_BITS = 160 };

static __always_inline bool deny_network(void *networks, const union addr *source, __u32 second)
{
	struct denied_key key = { .prefix_length = DENIED_KEY_BITS, .v6 = !addr_is_v4(source), .source = *source };
	const struct denial *found = bpf_map_lookup_elem(networks, &key);

	return found && second < found->until;
}

/* Is this source denied at this second? Of the networks that hold an address the trie gives the longest. Its time is never shorter
 * than that of the others: the control plane sees to that. */
static __always_inline bool deny_has(const union addr *source, __u32 second)
{
	__u32 zero = 0;
	void *addresses = bpf_map_lookup_elem(&denied, &zero), *networks = bpf_map_lookup_elem(&denied_nets, &zero);
	const struct denial *found = addresses ? bpf_map_lookup_elem(addresses, source) : NULL;

	return (found && second < found->until) || (networks && deny_network(networks, source, second));
}
