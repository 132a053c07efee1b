// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The types that the tracing programs (trace.c) share with Go. No code. */
#pragma once

#include "types.h"

/* Bytes of a frame that are copied, from its first byte on. */
enum { TRACE_SNAP = 256 };

/* Which packets are reported. A member that is 0 selects every packet. */
struct packet_filter {
	union addr client;	/* under client_mask */
	union addr client_mask;	/* of the 128 bit form */
	__u32 forward;		/* id of a forward */
	__u32 ifindex;		/* interface by which the packet comes in or leaves */
	__u32 sample;		/* report every Nth matching packet; 0 and 1: every one */
	__u16 port_first;	/* lowest and highest port, host order; port_last 0: every port */
	__u16 port_last;
	__u8 protocol;		/* IPPROTO_ICMP: also ICMPv6 */
	__u8 by_client;		/* 1: client is set */
	__u8 frames;		/* 1: report the frames, too */
	__u8 pad[5];
};
_Static_assert(sizeof(struct packet_filter) == 56, "struct packet_filter has implicit padding");

/* Which end of its connection has sent a packet. */
enum packet_sender {
	SENDER_UNKNOWN,		/* the packet belongs to no connection */
	SENDER_CLIENT,
	SENDER_SERVER,
};

/* One packet at one hook. */
struct packet_report {
	__u64 time;		/* CLOCK_MONOTONIC ns */
	struct tuple before;	/* as the packet arrived */
	struct tuple after;	/* as the packet leaves; protocol 0: hairpin does not send the packet */
	enum verdict verdict;
	enum reason reason;
	__u32 forward;		/* id of the forward; 0: none */
	__u32 ifindex;		/* interface by which the packet came in */
	__u32 out_ifindex;	/* interface by which the packet leaves; 0: hairpin does not send the packet */
	__u32 length;		/* IP total length in bytes */
	__u32 frame_before;	/* bytes of the frame when it arrived; 0: not copied */
	__u32 frame_after;	/* bytes of the frame after the program; 0: not copied */
	__u16 kept_before;	/* how many of these bytes are in struct frame_report */
	__u16 kept_after;
	enum packet_sender sender;
	__u8 hook;		/* 0: TC, 1: XDP (enum hook) */
	__u8 tcp_flags;		/* FIN 1, SYN 2, RST 4, ACK 16 */
	__u8 told;		/* 1: the sender gets an ICMP error, a RST or a challenge */
	__u8 bare;		/* 1: the frame that arrived has no Ethernet header */
	__u8 pad[4];
};
_Static_assert(sizeof(struct packet_report) == 136, "struct packet_report has implicit padding");

/* One packet with its frame. */
struct frame_report {
	struct packet_report packet;
	__u8 before[TRACE_SNAP];
	__u8 after[TRACE_SNAP];
};
_Static_assert(sizeof(struct frame_report) == 648, "struct frame_report has implicit padding");

/* What happened to a connection. */
enum life_change {
	CHANGE_OPENED,		/* the connection is half-open */
	CHANGE_ESTABLISHED,
	CHANGE_CLOSED,		/* the connection was half-open or established, and is neither any more */
	CHANGE_REFUSED,		/* a packet that would have opened a connection was refused */
};

/* Why a connection was closed. */
enum close_cause {
	CLOSE_NONE,
	CLOSE_FIN,		/* TCP: both ends have sent a FIN */
	CLOSE_RESET,		/* TCP: an end has sent a RST */
	CLOSE_IDLE,		/* established, and no packet for the idle time */
	CLOSE_UNANSWERED,	/* half-open, and not established in time, or replaced by a new one on its tuple */
	CLOSE_ENDED,		/* the forward or the external address was removed, or a command ended the connection */
	CLOSE_EVICTED,		/* gave its place to another connection */
};

/* One event of one connection. */
struct conn_report {
	__u64 time;		/* CLOCK_MONOTONIC ns */
	__u64 packets;		/* closed: packets of both directions so far */
	__u64 bytes;		/* closed: sum of their IP total lengths */
	struct tuple client;	/* the client's packets as they arrive */
	struct tuple server;	/* the client's packets as the server gets them; refused: not set */
	enum life_change change;
	enum close_cause cause;
	enum reason reason;	/* refused: why */
	enum conn_path path;
	__u32 forward;		/* id of the forward; 0: none */
	__u32 ifindex;		/* refused: interface by which the packet came in */
};
_Static_assert(sizeof(struct conn_report) == 128, "struct conn_report has implicit padding");
