// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* SipHash-1-3 (Aumasson and Bernstein, 2012) with a secret from the loader: senders cannot predict the hashes. Words are
 * 64 bits in host byte order. Only challenges show bits of a hash to others, 16 bits each. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

struct sip {
	__u64 v[4];
};

static __always_inline __u64 sip_rotate(__u64 word, __u32 bits)
{
	return word << bits | word >> (64 - bits);
}

static __always_inline void sip_round(struct sip *sip)
{
	__u64 *v = sip->v;

	v[0] += v[1];
	v[2] += v[3];
	v[1] = sip_rotate(v[1], 13) ^ v[0];
	v[3] = sip_rotate(v[3], 16) ^ v[2];
	v[0] = sip_rotate(v[0], 32) + v[3];
	v[2] += v[1];
	v[3] = sip_rotate(v[3], 21) ^ v[0];
	v[1] = sip_rotate(v[1], 17) ^ v[2];
	v[2] = sip_rotate(v[2], 32);
}

static __always_inline void sip_word(struct sip *sip, __u64 word)
{
	sip->v[3] ^= word;
	sip_round(sip);
	sip->v[0] ^= word;
}

/* Hashes four words. They are arguments and not an array, because the callers have no stack left for an array. */
__noinline __u64 keyed_hash(__u64 first, __u64 second, __u64 third, __u64 fourth)
{
	__u32 zero = 0;
	const struct secret *secret = bpf_map_lookup_elem(&secrets, &zero);
	struct sip sip;

	if (!secret)
		return 0;
	/* The constants of SipHash. */
	sip.v[0] = secret->key[0] ^ 0x736f6d6570736575;
	sip.v[1] = secret->key[1] ^ 0x646f72616e646f6d;
	sip.v[2] = secret->key[0] ^ 0x6c7967656e657261;
	sip.v[3] = secret->key[1] ^ 0x7465646279746573;
	sip_word(&sip, first);
	sip_word(&sip, second);
	sip_word(&sip, third);
	sip_word(&sip, fourth);
	sip_word(&sip, (__u64)32 << 56);	/* last word of SipHash: the length, 32 bytes */
	sip.v[2] ^= 0xff;
	sip_round(&sip);
	sip_round(&sip);
	sip_round(&sip);
	return sip.v[0] ^ sip.v[1] ^ sip.v[2] ^ sip.v[3];
}
