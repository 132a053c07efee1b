// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf/ringbuf"

	"hairpin/bpf"
	"hairpin/maps"
	"hairpin/maps/rule"
)

// The kinds of events.
const (
	EventOpen        = "open"        // the connection is half-open
	EventEstablished = "established" // the handshake is complete, or the server has answered
	EventClosed      = "closed"      // the connection was half-open or established, and is neither any more
	EventRefused     = "refused"     // a packet that would have opened a connection was refused
)

// Event is what happened to one connection. A connection has one event of each kind at most.
type Event struct {
	Time     time.Time      `json:"time"`
	Event    string         `json:"event"`
	Protocol rule.Protocol  `json:"protocol"`
	Path     string         `json:"path"`
	Forward  string         `json:"forward"` // "": a direct connection, or a refused packet of no forward
	Client   netip.AddrPort `json:"client"`
	External netip.AddrPort `json:"external"` // destination of the client's packets
	Source   netip.AddrPort `json:"source"`   // the client as the server sees it; refused: not valid
	Target   netip.AddrPort `json:"target"`   // refused: not valid
	// Reason says why the connection was refused, with a name of the datapath, or why it was closed: fin, reset, idle,
	// unanswered, ended, evicted.
	Reason  string `json:"reason"`
	Packets uint64 `json:"packets"` // closed: of both directions
	Bytes   uint64 `json:"bytes"`   // closed: of both directions, IP total length
}

// ringBytesEvents is room for 30,000 events.
const ringBytesEvents = 4 << 20

var connectionHooks = []hook{
	{program: bpf.TraceProgTraceOpened, target: tc}, {program: bpf.TraceProgTraceOpened, target: xdp},
	{program: bpf.TraceProgTraceChanged, target: tc}, {program: bpf.TraceProgTraceChanged, target: xdp},
	{program: bpf.TraceProgTraceChanged, target: start, sweeping: true},
	{program: bpf.TraceProgTraceRefused, target: tc}, {program: bpf.TraceProgTraceRefused, target: xdp},
}

// Connections is a running trace of connections. Only one goroutine at a time may use it, except Lost.
type Connections struct {
	probe  *probe
	names  *namer
	record ringbuf.Record
}

// OpenConnections starts a trace of connections. dir is the directory of the pins. It fails like OpenPackets.
func OpenConnections(dir string) (*Connections, error) {
	names, err := newNamer(dir)
	if err != nil {
		return nil, err
	}
	p, err := newProbe(dir, connectionHooks, bpf.TracePacketFilter{}, ringBytesEvents)
	if err != nil {
		return nil, errors.Join(err, names.Close())
	}
	return &Connections{probe: p, names: names}, nil
}

// Next waits for the next event. It fails like Packets.Next.
func (t *Connections) Next(ctx context.Context) (*Event, error) {
	if err := t.probe.next(ctx, &t.record); err != nil {
		return nil, err
	}
	var raw bpf.TraceConnReport
	if err := binary.Read(bytes.NewReader(t.record.RawSample), binary.NativeEndian, &raw); err != nil {
		return nil, fmt.Errorf("decode an event: %w", err)
	}
	e := &Event{
		Time:     t.names.time(raw.Time),
		Event:    eventName(raw.Change),
		Protocol: rule.ProtocolOf(raw.Client.Protocol),
		Path:     maps.PathName(raw.Path),
		Forward:  t.names.forward(raw.Forward),
		Reason:   cmp.Or(maps.ReasonName(raw.Reason), causeName(raw.Cause)),
		Packets:  raw.Packets,
		Bytes:    raw.Bytes,
	}
	e.Client, e.External = ends(raw.Client)
	e.Source, e.Target = ends(raw.Server)
	return e, nil
}

func eventName(change bpf.TraceLifeChange) string {
	switch change {
	case bpf.TraceLifeChangeCHANGE_OPENED:
		return EventOpen
	case bpf.TraceLifeChangeCHANGE_ESTABLISHED:
		return EventEstablished
	case bpf.TraceLifeChangeCHANGE_REFUSED:
		return EventRefused
	}
	return EventClosed
}

func causeName(cause bpf.TraceCloseCause) string {
	switch cause {
	case bpf.TraceCloseCauseCLOSE_FIN:
		return "fin"
	case bpf.TraceCloseCauseCLOSE_RESET:
		return "reset"
	case bpf.TraceCloseCauseCLOSE_IDLE:
		return "idle"
	case bpf.TraceCloseCauseCLOSE_UNANSWERED:
		return "unanswered"
	case bpf.TraceCloseCauseCLOSE_ENDED:
		return "ended"
	case bpf.TraceCloseCauseCLOSE_EVICTED:
		return "evicted"
	}
	return ""
}

// Lost returns how many events found no room in the ring buffer. Any goroutine may call it.
func (t *Connections) Lost() uint64 { return t.probe.lost() }

// Close ends the trace. The datapath goes on without it.
func (t *Connections) Close() error { return errors.Join(t.probe.Close(), t.names.Close()) }

// Selected reports whether the selector picks the connection of the event.
func (e *Event) Selected(by *rule.Selector) bool {
	return maps.Picks(by, &maps.Connection{
		Protocol: e.Protocol, Path: e.Path, Forward: e.Forward, Client: e.Client, External: e.External, Source: e.Source, Target: e.Target,
	})
}

// Text formats the event as one line.
func (e *Event) Text() string {
	text := fmt.Sprintf("%s %s %s path=%s forward=%s client=%s external=%s source=%s target=%s", e.Time.Format("2006-01-02T15:04:05.000000Z07:00"),
		e.Event, e.Protocol, e.Path, cmp.Or(e.Forward, "-"), Endpoint(e.Client), Endpoint(e.External), Endpoint(e.Source), Endpoint(e.Target))
	if e.Reason != "" {
		text += " reason=" + e.Reason
	}
	if e.Event == EventClosed {
		text += fmt.Sprintf(" packets=%d bytes=%d", e.Packets, e.Bytes)
	}
	return text
}
