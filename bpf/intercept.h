// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Intercepts: forwards for LAN clients that match any destination address. They are in the map forwards, under an
 * external id that the LAN interface has. */
#pragma once

#include "conn.h"
#include "forward.h"

/* May the packet be for an intercept? Compares only the port: this needs no look-up. */
static __always_inline bool intercept_port(const struct settings *settings, const struct packet *pkt)
{
	__u16 port = bpf_ntohs(pkt->tuple.dport);

	return port >= settings->intercept_first && port <= settings->intercept_last;
}

/* Finds the intercept that redirects the packet. NULL: there is none. Packets from or to the target of the intercept, or
 * from or to an address in its except list, are not redirected. */
static __always_inline struct forward *intercept_find(const struct packet *pkt)
{
	const struct settings *settings = conn_settings();
	__u32 slot = forward_slot(), ifindex = pkt->ifindex;
	const struct interface *in;
	struct forward *forward;

	if (!settings || !intercept_port(settings, pkt))
		return NULL;
	in = bpf_map_lookup_elem(&interfaces, &ifindex);
	if (!in)
		return NULL;
	forward = forward_lookup(slot, pkt->v6 ? in->intercept_v6 : in->intercept_v4, pkt->tuple.protocol,
				 pkt->tuple.dport);
	if (!forward || !forward_allows(slot, forward, &pkt->tuple.src) ||
	    !forward_allows(slot, forward, &pkt->tuple.dst))
		return NULL;
	return forward;
}
