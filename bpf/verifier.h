// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Functions that exist only for the verifier, each with its reason. The oldest kernel, Linux 6.1, needs most of
 * them. Rules for all files:
 *  - The verifier checks a global function once. A global function gets working memory from work_get(), and returns
 *    an int, an enum or a bool.
 *  - A callback of bpf_loop returns a constant 0 or 1: the verifier must know the value.
 *  - The functions of a call chain share 512 bytes of stack. A function that is not inlined frees its part when it
 *    returns. */
#pragma once

#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

/* Keeps a value in one register for its check and its use. Without this the compiler may check one copy and use
 * another copy. Linux 6.1 does not know that both copies are equal, and rejects the use as unchecked. */
static __always_inline __u32 verifier_same(__u32 value)
{
	asm volatile("" : "+r"(value));
	return value;
}

/* Keeps a pointer in one register. If the compiler computes a pointer twice, or tests the condition from which it is made instead of
 * the pointer, the verifier does not know what is equal. */
static __always_inline void *verifier_same_pointer(void *pointer)
{
	asm volatile("" : "+r"(pointer));
	return pointer;
}

/* Forces the compiler to reload values from memory after this point. The caller then masks the reloaded value, so
 * the verifier sees one bound on every parser path. Without this the verifier checks the rest of the program once
 * for each path. */
static __always_inline void verifier_forget(void)
{
	asm volatile("" : : : "memory");
}

/* Is 0 < *length <= most? If true, the verifier knows both bounds of *length. Linux 6.1 learns no lower bound from
 * a comparison with zero, and no upper bound if the compiler merges two comparisons. */
static __always_inline bool verifier_bounded(__u32 *length, __u32 most)
{
	__u32 less = verifier_same(*length - 1);

	if (less >= most)
		return false;
	*length = verifier_same(less) + 1;
	return true;
}
