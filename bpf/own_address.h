// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The router's own addresses: which of them a host behind an interface sees, and which of them an interface has. */
#pragma once

#include "maps.h"
#include "packet.h"

/* OWN_ADDRESS_ALL stands for every interface: where there are intercepts, the trie has all of the router's addresses under it, as
 * one of them may be the target. */
enum { OWN_ADDRESS_KEY_BITS = 160, OWN_ADDRESS_ALL = 0 };

/* Finds the address of the router that a host behind this interface sees. NULL: the router has no address of the host's
 * family. Not inlined, to have its own stack frame. */
static __noinline const struct own_address *own_address_find(__u32 ifindex, const union addr *peer)
{
	struct own_address_key key = { .prefix_length = OWN_ADDRESS_KEY_BITS, .ifindex = ifindex, .peer = *peer };
	const struct own_address *own = bpf_map_lookup_elem(&own_addresses, &key);

	/* Without an IPv4 address, an IPv4 host may match the entry of all IPv6 hosts, ::/0. */
	return own && addr_is_v4(&own->address) == addr_is_v4(peer) ? own : NULL;
}

/* Does this interface have this address? Each address has an entry of its own, which is the longest prefix. */
static __always_inline bool own_address_has(__u32 ifindex, const union addr *addr)
{
	const struct own_address *own = own_address_find(ifindex, addr);

	return own && !own->borrowed && addr_equal(&own->address, addr);
}
