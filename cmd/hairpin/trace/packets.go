// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/cilium/ebpf/ringbuf"

	"hairpin/bpf"
	"hairpin/loader"
	"hairpin/maps"
	"hairpin/maps/rule"
)

// The hooks at which packets are traced.
const (
	HookTC  = "tc"
	HookXDP = "xdp"
)

// Verdicts, by their names in the datapath. The others are drop, refuse and hold.
const (
	VerdictSend  = "send"  // translated and sent
	VerdictPass  = "pass"  // left to the kernel
	VerdictDefer = "defer" // XDP: left to TC. TC: sent to its input interface once more
)

// Ring buffers: room for 7,000 packets, or for 6,000 packets with their frames.
const ringBytes, ringBytesFrames = 1 << 20, 4 << 20

// Packet is one packet at one hook. A packet that XDP leaves to TC (verdict defer or pass) is seen at both.
type Packet struct {
	Time      time.Time     `json:"time"`
	Interface string        `json:"interface"` // by which the packet came in
	Hook      string        `json:"hook"`
	Protocol  rule.Protocol `json:"protocol"`
	// As the packet arrived.
	Source      netip.AddrPort `json:"source"`
	Destination netip.AddrPort `json:"destination"`
	TCPFlags    string         `json:"tcp_flags"` // letters of FIN, SYN, RST, ACK: "SA"
	Length      uint32         `json:"length"`    // IP total length in bytes
	Verdict     string         `json:"verdict"`
	Reason      string         `json:"reason"`  // "": there is none
	Told        bool           `json:"told"`    // the sender of a dropped packet gets an ICMP error, a RST or a challenge
	Forward     string         `json:"forward"` // "": of none
	Sender      string         `json:"sender"`  // the end that has sent the packet: "client", "server"; "": the packet has no connection
	// As the packet leaves. Not valid, and "", if hairpin does not send it.
	NewSource      netip.AddrPort `json:"new_source"`
	NewDestination netip.AddrPort `json:"new_destination"`
	Output         string         `json:"output"`

	Index, OutputIndex uint32 `json:"-"` // of the interfaces
	Bare               bool   `json:"-"` // the frame that arrived has no Ethernet header
	Arrived, Left      Frame  `json:"-"` // with PacketOptions.Frames alone; Left is empty if hairpin does not send the packet
}

// Frame is a frame, of which the first bytes are there.
type Frame struct {
	Data   []byte
	Length int // of the whole frame
}

// PacketOptions say what is traced.
type PacketOptions struct {
	Dir    string // directory of the pins
	Filter Filter
	Sample uint32 // every Nth matching packet; 0 and 1: every one
	Frames bool   // copies of the frames, too
}

// Packets is a running trace of packets. Only one goroutine at a time may use it.
type Packets struct {
	probe  *probe
	names  *namer
	record ringbuf.Record
}

// packetHooks returns the tracing programs. Those at the entries come first: a program at an exit uses what they have kept.
func packetHooks(frames bool) []hook {
	hooks := []hook{{program: bpf.TraceProgTraceCounted, target: tc}, {program: bpf.TraceProgTraceCounted, target: xdp}}
	if frames {
		hooks = append(hooks, hook{program: bpf.TraceProgTraceTcIn, target: tc}, hook{program: bpf.TraceProgTraceXdpIn, target: xdp})
	}
	return append(hooks, hook{program: bpf.TraceProgTraceTc, target: tc}, hook{program: bpf.TraceProgTraceXdp, target: xdp})
}

// OpenPackets starts a trace. It returns an error wrapping ErrUnsupported if the kernel cannot trace programs, loader.ErrVersion
// if the running programs are of another version, ErrNoForward or loader.ErrNoInterface if the filter names what does not exist.
func OpenPackets(o PacketOptions) (_ *Packets, err error) {
	names, err := newNamer(o.Dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, names.Close())
		}
	}()
	filter, err := names.resolve(o.Filter)
	if err != nil {
		return nil, err
	}
	filter.Sample = o.Sample
	room := uint32(ringBytes)
	if o.Frames {
		filter.Frames, room = 1, ringBytesFrames
	}
	p, err := newProbe(o.Dir, packetHooks(o.Frames), filter, room)
	if err != nil {
		return nil, err
	}
	return &Packets{probe: p, names: names}, nil
}

// ErrNoForward says that a filter names a forward that is not running.
var ErrNoForward = errors.New("no such forward")

// resolve looks up the names of a filter.
func (n *namer) resolve(f Filter) (bpf.TracePacketFilter, error) {
	var forward, ifindex uint32
	if f.Interface != "" {
		device, err := net.InterfaceByName(f.Interface)
		if err != nil {
			return bpf.TracePacketFilter{}, fmt.Errorf("%w: %s", loader.ErrNoInterface, rule.Quote(f.Interface))
		}
		ifindex = uint32(device.Index)
	}
	if f.Forward != "" {
		roster, err := n.tables.Roster()
		if err != nil {
			return bpf.TracePacketFilter{}, err
		}
		for id, name := range roster.Names {
			if name == f.Forward {
				forward = uint32(id)
			}
		}
		if forward == 0 {
			return bpf.TracePacketFilter{}, fmt.Errorf("%w: %s", ErrNoForward, rule.Quote(f.Forward))
		}
	}
	return f.encode(forward, ifindex), nil
}

// Next waits for the next packet. After ctx has ended, it returns the cause of that. It returns an error wrapping
// loader.ErrNotLoaded if the datapath was removed.
func (t *Packets) Next(ctx context.Context) (*Packet, error) {
	if err := t.probe.next(ctx, &t.record); err != nil {
		return nil, err
	}
	var raw bpf.TracePacketReport
	if err := binary.Read(bytes.NewReader(t.record.RawSample), binary.NativeEndian, &raw); err != nil {
		return nil, fmt.Errorf("decode a packet: %w", err)
	}
	p := t.packet(&raw)
	if t.probe.filter.Frames != 0 {
		rest := t.record.RawSample[binary.Size(raw):]
		p.Arrived = frame(rest, raw.KeptBefore, raw.FrameBefore)
		p.Left = frame(rest[len(bpf.TraceFrameReport{}.Before):], raw.KeptAfter, raw.FrameAfter)
	}
	return p, nil
}

func (t *Packets) packet(raw *bpf.TracePacketReport) *Packet {
	p := &Packet{
		Time:      t.names.time(raw.Time),
		Interface: t.names.interfaceName(raw.Ifindex),
		Output:    t.names.interfaceName(raw.OutIfindex),
		Hook:      [...]string{HookTC, HookXDP}[raw.Hook&1],
		Protocol:  rule.ProtocolOf(raw.Before.Protocol),
		TCPFlags:  tcpFlags(raw.TcpFlags),
		Length:    raw.Length,
		Verdict:   maps.VerdictName(raw.Verdict),
		Reason:    maps.ReasonName(raw.Reason),
		Told:      raw.Told != 0,
		Forward:   t.names.forward(raw.Forward),
		Index:     raw.Ifindex, OutputIndex: raw.OutIfindex,
		Bare: raw.Bare != 0,
	}
	switch raw.Sender {
	case bpf.TracePacketSenderSENDER_CLIENT:
		p.Sender = "client"
	case bpf.TracePacketSenderSENDER_SERVER:
		p.Sender = "server"
	}
	p.Source, p.Destination = ends(raw.Before)
	p.NewSource, p.NewDestination = ends(raw.After)
	return p
}

// frame copies what was kept of a frame: the next report reuses the memory.
func frame(data []byte, kept uint16, length uint32) Frame {
	return Frame{Data: bytes.Clone(data[:kept]), Length: int(length)}
}

// Lost returns how many packets matched and found no room in the ring buffer.
func (t *Packets) Lost() uint64 { return t.probe.lost() }

// Close ends the trace. The datapath goes on without it.
func (t *Packets) Close() error { return errors.Join(t.probe.Close(), t.names.Close()) }

// tcpFlags returns the letters of the flags, in the order in which tcpdump writes them.
func tcpFlags(bits uint8) string {
	var letters strings.Builder
	for _, flag := range []struct {
		bit    uint8
		letter byte
	}{{0x01, 'F'}, {0x02, 'S'}, {0x04, 'R'}, {0x10, 'A'}} {
		if bits&flag.bit != 0 {
			letters.WriteByte(flag.letter)
		}
	}
	return letters.String()
}

// Decision returns the verdict with what belongs to it: the forward, the reason, and whether the sender is told.
func (p *Packet) Decision() string {
	text := p.Verdict
	if p.Reason != "" {
		text += " (" + p.Reason + ")"
	}
	if p.Told {
		text += ", sender told"
	}
	return text
}

// Text formats the packet as one line: time, interface, hook, protocol, ends as it arrived, flags, decision, forward, ends as it
// leaves, output interface.
func (p *Packet) Text() string {
	text := fmt.Sprintf("%s %s %s %s %s > %s", p.Time.Format("15:04:05.000000"), p.Interface, p.Hook, p.Protocol, Endpoint(p.Source), Endpoint(p.Destination))
	if p.TCPFlags != "" {
		text += " [" + p.TCPFlags + "]"
	}
	text += " " + p.Decision() + " forward " + cmp.Or(p.Forward, "-")
	if p.Verdict == VerdictSend {
		text += fmt.Sprintf(" => %s > %s out %s", Endpoint(p.NewSource), Endpoint(p.NewDestination), p.Output)
	}
	return text
}
