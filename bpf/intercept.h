// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Intercepts: forwards of a LAN's side, for whatever address its clients ask. They stand in the same table as
 * all others, under an external id of the interface's own. */
#pragma once

#include "conn.h"
#include "forward.h"

/* Was it made by an intercept? No address is its, so that has the intercept's own stamp. */
static __always_inline bool intercept_made(const struct conn *conn)
{
	return conn->address.id == conn->forward.id;
}

/* Costs what has other ports a look at the settings. Neither what an intercept leads to nor who is excepted is
 * caught, asking or being asked. */
static __always_inline struct forward *intercept_find(const struct packet *pkt)
{
	const struct settings *settings = conn_settings();
	__u16 port = bpf_ntohs(pkt->tuple.dport);
	__u32 slot = forward_slot(), ifindex = pkt->ifindex;
	const struct interface *in;
	struct forward *forward;

	if (!settings || port < settings->intercept_first || port > settings->intercept_last)
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
