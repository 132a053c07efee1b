// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* IPsec: which packets the kernel's policies protect (RFC 4301 5.1). bpf_fib_lookup and bpf_redirect know no policies, so such a
 * packet would leave unencrypted. */
#pragma once

#include "maps.h"
#include "packet.h"

/* The control plane refuses more: MaxPolicies in package config. */
enum { POLICIES_MAX = 16384 };

struct policy_search {
	const struct tuple *way;
	bool protects;
};

static __always_inline bool policy_has(const struct policy_side *side, const union addr *addr, __be16 port)
{
	__be32 differ = 0;

	for (int i = 0; i < 4; i++)
		differ |= (addr->word[i] ^ side->address.word[i]) & side->mask.word[i];
	return !differ && !((side->port ^ port) & side->port_mask);
}

/* Not inlined: so struct policy is in the BTF from which the Go types are made. */
static __noinline bool policy_matches(const struct policy *policy, const struct tuple *way)
{
	return (!policy->protocol || policy->protocol == way->protocol) && policy_has(&policy->src, &way->src, way->sport) &&
	       policy_has(&policy->dst, &way->dst, way->dport);
}

/* One policy; 1 ends the search. The first policy that matches decides: the list is in the order of the kernel. */
static long policy_step(__u32 index, struct policy_search *search)
{
	const struct tuple *way = search->way;
	const struct policy *policy;
	__u32 zero = 0;
	void *list = bpf_map_lookup_elem(&policies, &zero);

	policy = list ? bpf_map_lookup_elem(list, &index) : NULL;
	if (!policy)
		return 1;
	if (!policy_matches(policy, way))
		return 0;
	search->protects = policy->protects;
	return 1;
}

/* Would the kernel encrypt or block a packet with these addresses on its way out? Global: the verifier checks it once. */
__noinline bool policy_protects(const struct tuple *way)
{
	struct policy_search search = { .way = way };
	__u32 zero = 0;

	if (!way || !bpf_map_lookup_elem(&policies, &zero))
		return false;
	bpf_loop(POLICIES_MAX, policy_step, &search, 0);
	return search.protects;
}
