// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Intercepts: forwards of a LAN's side, for whatever address its clients ask. They stand in the same table as
 * all others, under an external id of the interface's own. */
#pragma once

#include "conn.h"
#include "forward.h"

/* Was it made by an intercept? No address is its, so that has the intercept's own stamp. */
static __always_inline bool intercept_made(const struct conn *conn)
{
	return conn_address(conn) == conn_forward(conn);
}

/* May it be to one? Costs what has other ports nothing more. */
static __always_inline bool intercept_port(const struct settings *settings, const struct packet *pkt)
{
	__u16 port = bpf_ntohs(pkt->tuple.dport);

	return port >= settings->intercept_first && port <= settings->intercept_last;
}

/* Neither what an intercept leads to nor who is excepted is caught, asking or being asked. */
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
