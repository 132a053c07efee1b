// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* What is there for the verifier alone, each with its reason. The oldest kernel, Linux 6.1, needs most of it. Two more rules hold
 * everywhere: a global function is checked once, looks its working memory up by work_get(), and returns an int, an enum or a
 * bool; and a callback of bpf_loop returns a 0 or 1 that the verifier knows. */
#pragma once

#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

/* Compares and uses a value in the same register. Without this the compiler may compare one copy and use another copy. Linux 6.1
 * does not know that both copies are equal, so it rejects the use as unchecked. */
static __always_inline __u32 verifier_same(__u32 value)
{
	asm volatile("" : "+r"(value));
	return value;
}

/* The same of a pointer: a sum that is made twice is two places to Linux 6.1. */
static __always_inline void *verifier_same_pointer(void *pointer)
{
	asm volatile("" : "+r"(pointer));
	return pointer;
}

/* Values in memory are read anew from here on. All ways of a parser then reach the verifier in one state, with a bound that
 * the caller sets by a mask; otherwise it would follow each way to the end. */
static __always_inline void verifier_forget(void)
{
	asm volatile("" : : : "memory");
}

/* Is 0 < *length <= most? Linux 6.1 learns no lower bound from a comparison with zero, and no upper bound where the
 * compiler folds two comparisons into one. */
static __always_inline bool verifier_bounded(__u32 *length, __u32 most)
{
	__u32 less = verifier_same(*length - 1);

	if (less >= most)
		return false;
	*length = verifier_same(less) + 1;
	return true;
}
