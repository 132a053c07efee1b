// SPDX-License-Identifier: Apache-2.0

// Package pcapng writes traced packets as a pcapng file, which Wireshark and tshark open. It does not open the file.
package pcapng

import (
	"cmp"
	"fmt"
	"io"
	"runtime"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"hairpin/cmd/hairpin/trace"
)

// block names an interface block: a device whose frames have Ethernet headers, or none.
type block struct {
	index uint32
	bare  bool
}

// Writer writes packets.
type Writer struct {
	file   *pcapgo.NgWriter
	blocks map[block]int
}

// Interface is a device whose block the file has from the beginning.
type Interface struct {
	Name  string
	Index uint32
	Bare  bool // its frames have no Ethernet header
}

// New writes the head of the file, with the blocks of interfaces, of which there must be one at least.
func New(out io.Writer, interfaces []Interface) (*Writer, error) {
	first := interfaces[0]
	options := pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{Hardware: runtime.GOARCH, OS: runtime.GOOS, Application: "hairpin trace"}}
	file, err := pcapgo.NewNgWriterInterface(out, describe(first), options)
	if err != nil {
		return nil, fmt.Errorf("write head of pcapng: %w", err)
	}
	w := &Writer{file: file, blocks: map[block]int{{first.Index, first.Bare}: 0}}
	for _, i := range interfaces[1:] {
		if _, err := w.block(i); err != nil {
			return nil, err
		}
	}
	return w, w.flush()
}

func describe(i Interface) pcapgo.NgInterface {
	link := layers.LinkTypeEthernet
	if i.Bare {
		link = layers.LinkTypeRaw
	}
	return pcapgo.NgInterface{Name: i.Name, OS: runtime.GOOS, LinkType: link, TimestampResolution: 9}
}

// block returns the number of the block of an interface. It writes the block if there is none.
func (w *Writer) block(i Interface) (int, error) {
	key := block{i.Index, i.Bare}
	if number, there := w.blocks[key]; there {
		return number, nil
	}
	number, err := w.file.AddInterface(describe(i))
	if err != nil {
		return 0, fmt.Errorf("write interface of pcapng: %w", err)
	}
	w.blocks[key] = number
	return number, nil
}

// Write writes the packet as it arrived, and then as it leaves if hairpin sends it. A comment of each tells the decision. It
// writes nothing for a packet that XDP leaves to TC, where the same packet is seen again. It reports whether it wrote something.
func (w *Writer) Write(p *trace.Packet) (bool, error) {
	if p.Hook == trace.HookXDP && (p.Verdict == trace.VerdictPass || p.Verdict == trace.VerdictDefer) {
		return false, nil
	}
	decision := fmt.Sprintf("%s, forward %s, %s", p.Decision(), cmp.Or(p.Forward, "-"), p.Hook)
	arrived := Interface{Name: p.Interface, Index: p.Index, Bare: p.Bare}
	if err := w.frame(p, arrived, p.Arrived, pcapgo.NgEpbFlagDirectionInbound, "arrived: "+decision); err != nil {
		return false, err
	}
	if p.Verdict == trace.VerdictSend {
		// Before a redirect every frame has an Ethernet header; a device without takes it off.
		left := Interface{Name: p.Output, Index: p.OutputIndex}
		if err := w.frame(p, left, p.Left, pcapgo.NgEpbFlagDirectionOutbound, "left: "+decision); err != nil {
			return false, err
		}
	}
	return true, w.flush()
}

func (w *Writer) frame(p *trace.Packet, at Interface, f trace.Frame, direction pcapgo.NgEpbFlag, comment string) error {
	number, err := w.block(at)
	if err != nil {
		return err
	}
	info := gopacket.CaptureInfo{Timestamp: p.Time, CaptureLength: len(f.Data), Length: max(f.Length, len(f.Data)), InterfaceIndex: number}
	options := pcapgo.NgPacketOptions{Comments: []string{comment}, Flags: &pcapgo.NgEpbFlags{Direction: direction}}
	if err := w.file.WritePacketWithOptions(info, f.Data, options); err != nil {
		return fmt.Errorf("write packet of pcapng: %w", err)
	}
	return nil
}

func (w *Writer) flush() error {
	if err := w.file.Flush(); err != nil {
		return fmt.Errorf("write pcapng: %w", err)
	}
	return nil
}
