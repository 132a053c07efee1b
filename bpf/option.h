// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* TCP and IPv4 options. The functions read a copy of the option list. Both lists have one format: a kind, and for kinds
 * above 1 a length and a value. */
#pragma once

#include <stdbool.h>

#include "verifier.h"
#include "work.h"

enum tcp_option { TCPOPT_MSS = 2, TCPOLEN_MSS = 4, TCPOPT_WINDOW = 3, TCPOLEN_WINDOW = 3 };
enum { OPTION_END = 0, OPTION_NOP = 1 };

/* Returns the offset of the value of the first option with this kind and length. 0: none. length 0: any length. */
static __always_inline __u32 option_find(const __u8 *options, __u32 end, __u8 kind, __u8 length)
{
	__u32 at = 0;

	for (int i = 0; i < OPTIONS_MAX && at + 2 <= end; i++) {
		at = verifier_same(at);
		if (at > OPTIONS_MAX - 2)
			return 0;
		if (options[at] == kind && (!length || (options[at + 1] == length && at + length <= end)))
			return at + 2;
		if (options[at] == OPTION_END || (options[at] != OPTION_NOP && !options[at + 1]))
			return 0;
		at += options[at] == OPTION_NOP ? 1 : options[at + 1];
	}
	return 0;
}

/* Returns the window scale, at most TCP_SCALE_MAX (RFC 7323 2.3). TCP_SCALE_NONE: there is no such option. */
static __always_inline __u8 option_scale(const __u8 *options, __u32 end)
{
	__u32 at = option_find(options, end, TCPOPT_WINDOW, TCPOLEN_WINDOW);
	__u8 scale;

	if (!at || at >= OPTIONS_MAX)
		return TCP_SCALE_NONE;
	scale = options[at];
	return scale > TCP_SCALE_MAX ? TCP_SCALE_MAX : scale;
}

/* Is there a loose or strict source route (RFC 791 3.1)? */
static __always_inline bool option_source_route(const __u8 *options, __u32 end)
{
	return option_find(options, end, IPOPT_LSRR, 0) || option_find(options, end, IPOPT_SSRR, 0);
}
