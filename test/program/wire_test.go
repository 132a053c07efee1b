// SPDX-License-Identifier: Apache-2.0

package program

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

// wires is a bench with attached programs, and sockets at the far ends of its cables. Packets that the programs leave to the kernel go out
// by kernel0, so that the test can see them.
type wires struct {
	b       *bench
	sockets map[string]int // by the router's device
	marker  uint32
	put     [][]byte // frames of the case that were sent so far
}

// sinks are where frames may come out: the devices of the router in a fixed order.
var sinks = []string{"wan0", "lan0", "lan1", "kernel0"}

// TestWires sends every case as real frames through three routers: only TC, XDP in the driver with TC, generic XDP with TC. The output must
// match the case in every byte and on the right cable, so all three routers give equal output.
func TestWires(t *testing.T) { onWires(t, newCorpusBench, allRows()) }

// onWires plays the cases on wires of their own for each mode.
func onWires(t *testing.T, newBench func(testing.TB) *bench, rows []row) {
	t.Helper()
	first := map[string][]string{}
	for _, mode := range []struct {
		name  string
		flags link.XDPAttachFlags
	}{{"tc", 0}, {"native", link.XDPDriverMode}, {"generic", link.XDPGenericMode}} {
		w := newWires(t, newBench(t), mode.flags)
		failed := 0
		for _, r := range rows {
			if failed == wireFailures {
				t.Errorf("%s: the other cases are left out", mode.name)
				break
			}
			ok := t.Run(mode.name+"/"+r.name, func(t *testing.T) {
				frames := w.play(t, r)
				if other, known := first[r.name]; known && !slices.Equal(frames, other) {
					t.Errorf("what comes out is\n%v, of the router before\n%v", frames, other)
				}
				first[r.name] = frames
			})
			if !ok {
				failed++
			}
		}
	}
}

func newWires(t *testing.T, b *bench, flags link.XDPAttachFlags) *wires {
	t.Helper()
	w := &wires{b: b, sockets: map[string]int{}}
	for _, dev := range sinks {
		w.sockets[dev] = w.open(t, dev)
	}
	kernel := toKernel(t, w.b.Router.Index("kernel0"))
	watching := xdpPasser(t)
	for _, dev := range sinks[:3] {
		if flags == link.XDPDriverMode {
			// Without one a veth does not take the XDP frames of its other end.
			w.attachXDP(t, w.b.Wires, "to-"+dev, watching, link.XDPDriverMode)
		}
		if flags != 0 {
			w.attachXDP(t, w.b.Router, dev, w.b.Objects.HairpinXdp, flags)
		}
		w.attachTC(t, dev, w.b.Objects.HairpinTc)
		w.attachTC(t, dev, kernel)
	}
	w.quiet(t)
	return w
}

// open makes a socket at the far end of a device's cable.
func (w *wires) open(t *testing.T, dev string) int {
	t.Helper()
	fd := -1
	err := w.b.Wires.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
			unix.Bind(fd, &unix.SockaddrLinklayer{
				Protocol: bigEndian(unix.ETH_P_ALL), Ifindex: w.b.Wires.Index("to-" + dev),
			}))
	})
	if err != nil {
		t.Fatalf("packet socket at %s: %v", dev, err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func bigEndian(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// toKernel is a program behind hairpin's: what gets there has been left to the kernel.
func toKernel(t *testing.T, index int) *ebpf.Program {
	t.Helper()
	return program(t, ebpf.SchedCLS, asm.Instructions{
		asm.Mov.Imm(asm.R1, int32(index)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call(), asm.Return(),
	})
}

func xdpPasser(t *testing.T) *ebpf.Program {
	t.Helper()
	return program(t, ebpf.XDP, asm.Instructions{asm.Mov.Imm(asm.R0, rig.XDPPass), asm.Return()})
}

func program(t *testing.T, kind ebpf.ProgramType, code asm.Instructions) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: kind, Instructions: code, License: "Dual BSD/GPL"})
	if err != nil {
		t.Fatalf("load test program: %v", err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func (w *wires) attachXDP(t *testing.T, host *lab.Host, dev string, p *ebpf.Program, flags link.XDPAttachFlags) {
	t.Helper()
	index := host.Index(dev)
	attach(t, host, dev, func() (link.Link, error) {
		return link.AttachXDP(link.XDPOptions{Program: p, Interface: index, Flags: flags})
	})
}

func (w *wires) attachTC(t *testing.T, dev string, p *ebpf.Program) {
	t.Helper()
	index := w.b.Router.Index(dev)
	attach(t, w.b.Router, dev, func() (link.Link, error) {
		return link.AttachTCX(link.TCXOptions{Program: p, Interface: index, Attach: ebpf.AttachTCXIngress, Anchor: link.Tail()})
	})
}

func attach(t *testing.T, host *lab.Host, dev string, attach func() (link.Link, error)) {
	t.Helper()
	var l link.Link
	if err := host.Do(func() (err error) { l, err = attach(); return err }); err != nil {
		t.Fatalf("attach to %s: %v", dev, err)
	}
	t.Cleanup(func() { l.Close() })
}

// play sends the packets of a case and tells what came out, without what a router may choose.
func (w *wires) play(t *testing.T, r row) (seen []string) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c := newCase(t, w.b)
	w.put = nil
	for i, s := range r.steps(c) {
		if s.before != nil {
			s.before()
		}
		if s.mayFail != "" || len(s.in) > frames.EthernetLength+4+w.mtu(t, s.at) {
			return seen
		}
		want := w.expected(s)
		got := w.pass(t, s, want)
		seen = append(seen, fmt.Sprintf("packet %d: %s", i+1, describe(got)))
		if err := s.judgeWire(t, want, got); err != nil {
			t.Fatalf("packet %d of %q: %v", i+1, r.name, err)
		}
	}
	return seen
}

// mtu returns the MTU of the interface that a packet comes in by: a veth does not take longer packets.
func (w *wires) mtu(t *testing.T, p rig.Port) int {
	t.Helper()
	for _, l := range w.b.Router.Links() {
		if l.Attrs().Index == p.Index {
			return l.Attrs().MTU
		}
	}
	t.Fatalf("no interface %d", p.Index)
	return 0
}

// expected returns the expected output, by device. The MAC addresses of a packet show which program sent it.
func (w *wires) expected(s step) map[string][][]byte {
	want := map[string][][]byte{}
	for _, data := range s.sent {
		for dev, mac := range map[string][]byte{"wan0": rig.WANMAC, "lan0": rig.LANMAC, "lan1": rig.OtherMAC} {
			if bytes.Equal(data[6:12], mac) {
				want[dev] = append(want[dev], data)
			}
		}
	}
	if len(s.passed) > 0 {
		want["kernel0"] = s.passed
	}
	if s.spared != nil && !s.spared.drops {
		want["kernel0"] = [][]byte{s.in}
	}
	return want
}

// Each missing frame costs wirePatience, so a router that lets none out is not asked again and again.
const (
	wirePatience = 2 * time.Second
	wireFailures = 20
)

// pass sends a packet and two markers, and returns the output that arrived before the markers. If some of want is missing then, it
// waits for more, at most wirePatience.
func (w *wires) pass(t *testing.T, s step, want map[string][][]byte) map[string][][]byte {
	t.Helper()
	got := map[string][][]byte{}
	into := w.device(s.at)
	w.put = append(w.put, s.in)
	w.send(t, into, s.in)
	deadline := time.Now().Add(wirePatience)
	for range 2 {
		w.marker++
		w.send(t, into, markerFrame(s.at, w.marker))
		for !w.collect(t, got) {
			w.wait(t, deadline)
		}
	}
	for s.pieces == 0 && !complete(want, got) && time.Now().Before(deadline) {
		w.wait(t, deadline)
		w.collect(t, got)
	}
	return got
}

func complete(want, got map[string][][]byte) bool {
	for dev, frames := range want {
		if len(got[dev]) < len(frames) {
			return false
		}
	}
	return true
}

func (w *wires) device(p rig.Port) string {
	return map[int]string{w.b.WAN.Index: "wan0", w.b.LAN.Index: "lan0", w.b.LAN2.Index: "lan1"}[p.Index]
}

func (w *wires) send(t *testing.T, dev string, data []byte) {
	t.Helper()
	if _, err := unix.Write(w.sockets[dev], data); err != nil {
		t.Fatalf("send %d bytes into %s: %v", len(data), dev, err)
	}
}

// markerType is an ethertype for local experiments (IEEE 802), which hairpin leaves to the kernel.
const markerType = 0x88b5

func markerFrame(p rig.Port, number uint32) []byte {
	data := append(slices.Clone(p.MAC), rig.GatewayMAC...)
	data = binary.BigEndian.AppendUint16(data, markerType)
	return append(binary.BigEndian.AppendUint32(data, number), make([]byte, 42)...)
}

// collect reads all that has come out, and says whether the last marker was among it.
func (w *wires) collect(t *testing.T, got map[string][][]byte) (marked bool) {
	t.Helper()
	for _, dev := range sinks {
		for {
			data, err := receive(w.sockets[dev])
			if errors.Is(err, unix.EAGAIN) {
				break
			}
			if err != nil {
				t.Fatalf("read from %s: %v", dev, err)
			}
			data = w.restore(dev, data)
			if frames.WordAt(data, 12) == markerType {
				marked = marked || binary.BigEndian.Uint32(data[frames.EthernetLength:]) == w.marker
				continue
			}
			got[dev] = append(got[dev], data)
		}
	}
	return marked
}

// restore gives back to a frame from kernel0 the Ethernet header that the kernel sent it without: since
// Linux 6.9 generic XDP forgets how long that header is when it copies a frame to make room in front
// of it, and what redirects the frame after XDP pushes nothing back.
func (w *wires) restore(dev string, data []byte) []byte {
	if dev != "kernel0" {
		return data
	}
	marker := markerFrame(w.b.WAN, w.marker)
	for _, sent := range append(w.put, marker) {
		if bytes.Equal(data, sent[frames.EthernetLength:]) {
			return sent
		}
	}
	return data
}

// receive reads a frame, with the VLAN tag that the kernel took out put back.
func receive(fd int) ([]byte, error) {
	data, control := make([]byte, 4096), make([]byte, 128)
	n, used, _, _, err := unix.Recvmsg(fd, data, control, 0)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:used])
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		// struct tpacket_auxdata: status first, VLAN TCI and TPID last.
		if m.Header.Type == unix.PACKET_AUXDATA && binary.NativeEndian.Uint32(m.Data)&unix.TP_STATUS_VLAN_VALID != 0 {
			if n < frames.EthernetLength {
				return data[:n], nil
			}
			tag := binary.BigEndian.AppendUint16(nil, binary.NativeEndian.Uint16(m.Data[18:]))
			tag = binary.BigEndian.AppendUint16(tag, binary.NativeEndian.Uint16(m.Data[16:]))
			return insert(data[:n], tag...), nil
		}
	}
	return data[:n], nil
}

// wait returns when a socket has something, or the deadline is over.
func (w *wires) wait(t *testing.T, deadline time.Time) {
	t.Helper()
	polls := make([]unix.PollFd, 0, len(sinks))
	for _, dev := range sinks {
		polls = append(polls, unix.PollFd{Fd: int32(w.sockets[dev]), Events: unix.POLLIN})
	}
	left := time.Until(deadline)
	if left <= 0 {
		t.Fatal("a marker sent behind the packet never came out")
	}
	if _, err := unix.Poll(polls, int(left/time.Millisecond)+1); err != nil && !errors.Is(err, unix.EINTR) {
		t.Fatal(err)
	}
}

// judgeWire compares what came out with what had to, on each cable.
func (s step) judgeWire(t *testing.T, want, got map[string][][]byte) error {
	t.Helper()
	if s.spared != nil && s.spared.passes && len(got["kernel0"]) > 0 {
		want = map[string][][]byte{"kernel0": {s.in}}
	}
	for _, dev := range sinks {
		wanted := want[dev]
		if s.pieces != 0 && len(wanted) == 1 {
			if err := pieces(wanted[0], got[dev], s.pieces); err != nil {
				return fmt.Errorf("out of %s: %w", dev, err)
			}
			continue
		}
		if len(wanted) != len(got[dev]) {
			return fmt.Errorf("out of %s came %d frames, want %d\n got %x\nwant %x", dev, len(got[dev]), len(wanted), got[dev], wanted)
		}
		for i := range wanted {
			expected := wanted[i]
			if s.tells && len(expected) == len(got[dev][i]) {
				expected = adopt(t, expected, got[dev][i])
			}
			if !bytes.Equal(expected, got[dev][i]) {
				return fmt.Errorf("out of %s, frame %d: %s\n got %x\nwant %x", dev, i+1, difference(expected, got[dev][i]), got[dev][i], expected)
			}
		}
	}
	return nil
}

// pieces checks that frames are fragments of a packet, in order, none longer than the MTU and all of
// one length but the last.
func pieces(whole []byte, got [][]byte, mtu int) error {
	payload := whole[frames.L4Offset(whole) : frames.EthernetLength+frames.IPLength(whole)]
	base := int(frames.WordAt(whole, ipAt+6)&offsetMask) * 8
	at := 0
	for i, data := range got {
		if len(data)-frames.EthernetLength > mtu || len(data)-frames.EthernetLength != frames.IPLength(data) {
			return fmt.Errorf("piece %d has %d bytes, its IP packet %d, the MTU is %d", i+1, len(data), frames.IPLength(data), mtu)
		}
		n := frames.IPLength(data) - 20
		last := i == len(got)-1
		if i > 0 && !last && frames.IPLength(data) != frames.IPLength(got[0]) || last && frames.IPLength(data) > frames.IPLength(got[0]) {
			return fmt.Errorf("piece %d has %d bytes, the first %d", i+1, frames.IPLength(data), frames.IPLength(got[0]))
		}
		if at+n > len(payload) {
			return fmt.Errorf("piece %d ends at %d of %d", i+1, at+n, len(payload))
		}
		more := !last || frames.WordAt(whole, ipAt+6)&moreFragments != 0
		if want := fragment(whole[:l4At], payload[at:at+n], base+at, more); !bytes.Equal(want, data) {
			return fmt.Errorf("piece %d: %s\n got %x\nwant %x", i+1, difference(want, data), data, want)
		}
		at += n
	}
	if at != len(payload) || len(got) < 2 {
		return fmt.Errorf("%d pieces with %d bytes of %d", len(got), at, len(payload))
	}
	return nil
}

// describe returns the output as text, to compare the routers.
func describe(got map[string][][]byte) string {
	var text bytes.Buffer
	for _, dev := range sinks {
		for _, data := range got[dev] {
			fmt.Fprintf(&text, "%s %x; ", dev, data)
		}
	}
	return text.String()
}
