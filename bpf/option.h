// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* TCP and IPv4 options. The functions read work.options, a copy of the option list. Both lists have one format: a kind, and for kinds
 * above 1 a length and a value. */
#pragma once

#include <stdbool.h>

#include "verifier.h"
#include "work.h"

enum tcp_option { TCPOPT_MSS = 2, TCPOLEN_MSS = 4, TCPOPT_WINDOW = 3, TCPOLEN_WINDOW = 3 };
enum { OPTION_END = 0, OPTION_NOP = 1 };

struct option_search {
	__u32 end;		/* length of the list */
	__u32 at;		/* offset of the option that is read next */
	__u32 value;		/* offset of the value of the option that was found; 0: none */
	__u8 kind, length;	/* of the wanted option; length 0: any length */
};

/* Reads one option. A callback of bpf_loop: 1 ends the search. */
static long option_read(__u32 index, struct option_search *search)
{
	const struct work *work = work_get();
	__u32 at = verifier_same(search->at);
	const __u8 *option;

	(void)index;
	if (!work || at > OPTIONS_MAX - 2 || at + 2 > search->end)
		return 1;
	option = &work->options[at];
	if (option[0] == search->kind && (!search->length || (option[1] == search->length && at + option[1] <= search->end))) {
		search->value = at + 2;
		return 1;
	}
	if (option[0] == OPTION_END || (option[0] != OPTION_NOP && !option[1]))
		return 1;
	search->at = at + (option[0] == OPTION_NOP ? 1 : option[1]);
	return 0;
}

/* Returns the offset of the value of the first option with this kind and length. 0: none. length 0: any length. end: the length of
 * the list. */
static __always_inline __u32 option_find(__u32 end, __u8 kind, __u8 length)
{
	struct option_search search = { .end = end, .kind = kind, .length = length };

	bpf_loop(OPTIONS_MAX, option_read, &search, 0);
	return search.value;
}

/* Returns the window scale, at most TCP_SCALE_MAX (RFC 7323 2.3). TCP_SCALE_NONE: there is no such option. */
static __always_inline __u8 option_scale(const struct work *work, __u32 end)
{
	__u32 at = option_find(end, TCPOPT_WINDOW, TCPOLEN_WINDOW);
	__u8 scale;

	if (!at || at >= OPTIONS_MAX)
		return TCP_SCALE_NONE;
	scale = work->options[at];
	return scale > TCP_SCALE_MAX ? TCP_SCALE_MAX : scale;
}

/* Is there a loose or strict source route (RFC 791 3.1)? */
static __always_inline bool option_source_route(__u32 end)
{
	return option_find(end, IPOPT_LSRR, 0) || option_find(end, IPOPT_SSRR, 0);
}
