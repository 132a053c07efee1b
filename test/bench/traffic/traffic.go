// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// FrameBytes is the length of every generated frame: the shortest Ethernet frame, without the FCS.
	FrameBytes = 60
	// FlowsPerRound is the number of flows that differ only in the first number of a frame. The next flow starts again with the
	// first number, and adds one to the second number.
	FlowsPerRound = 60000
	// Block is the number of flows whose first frames are sent before their second frames.
	Block = 250

	maxFrames     = 2
	maxFrameBytes = 128
	// batch is the number of frames that a device gets at once; the ring of a veth holds 256 frames.
	batch = 64
)

// Frame is the template of the frames of all flows. Data is the frame of flow 0. The generator writes the numbers of each flow
// and updates the checksum, so all frames are valid.
type Frame struct {
	// Data is an Ethernet frame: for Send FrameBytes long, for Run at most 128 bytes.
	Data []byte
	// First and Second are the offsets of two 16-bit numbers that differ from flow to flow. Check is the offset of the checksum
	// over both. 0: no such field.
	First, Second, Check int
	// Expected is the destination address of the frame when it arrives at the sink.
	Expected netip.Addr
}

// Stream is a series of frames. If each flow has two frames, the generator sends the first frames of a block of flows, then
// their second frames: a kernel that handles packets in lists then handles the first frame before the second one arrives.
type Stream struct {
	Frames []Frame // one or two
	Flows  int     // if there are two frames, a multiple of Block
	// Ordered sends the flows in the order of their numbers. Otherwise the order is scattered, so that successive packets use
	// distant entries of the tables, as in real traffic.
	Ordered bool
	// From is the number of the first flow, if Ordered.
	From int
}

// Traffic has the loaded programs: generator, sink and bare hooks.
type Traffic struct {
	objs  trafficObjects
	links []io.Closer
}

// Load loads the programs. Call Set before Send or Run.
func Load() (*Traffic, error) {
	t := new(Traffic)
	if err := loadTrafficObjects(&t.objs, nil); err != nil {
		return nil, fmt.Errorf("load traffic programs: %w", err)
	}
	return t, nil
}

// Close detaches and unloads everything.
func (t *Traffic) Close() error {
	var errs []error
	for _, l := range t.links {
		errs = append(errs, l.Close())
	}
	return errors.Join(append(errs, t.objs.Close())...)
}

// Set sets the stream that Send, Run and the sink use, and starts it at its first frame.
func (t *Traffic) Set(s Stream) error {
	plan := trafficPlan{Frames: uint32(len(s.Frames)), Flows: uint32(s.Flows), Flow: uint32(s.From)}
	switch {
	case s.Flows < 1 || s.From < 0 || s.From >= s.Flows:
		return fmt.Errorf("stream of %d flows from number %d: a stream needs at least one flow", s.Flows, s.From)
	case len(s.Frames) == maxFrames && s.Ordered && s.Flows%Block == 0:
		plan.Block, plan.Stride = Block, Block
	case len(s.Frames) == 1 && s.Ordered:
		plan.Block, plan.Stride = 1, 1
	case len(s.Frames) == 1:
		plan.Block, plan.Stride = 1, uint32(scatter(s.Flows))
	default:
		return fmt.Errorf("%d frames for each of %d flows: use one frame, or two if the stream is ordered and has a multiple of %d flows",
			len(s.Frames), s.Flows, Block)
	}
	for i, f := range s.Frames {
		if len(f.Data) > maxFrameBytes {
			return fmt.Errorf("frame of %d bytes: a frame has at most %d bytes", len(f.Data), maxFrameBytes)
		}
		to := &plan.Templates[i]
		copy(to.Frame[:], f.Data)
		to.CheckOff, to.FirstOff, to.SecondOff = uint16(f.Check), uint16(f.First), uint16(f.Second)
		to.First, to.Second = take(to.Frame[:], f.First), take(to.Frame[:], f.Second)
		// In one's complement, subtracting a word is adding its complement.
		to.Sum = 3*0xffff - uint32(swap(take(to.Frame[:], f.Check))) - uint32(swap(to.First)) - uint32(swap(to.Second))
		if f.Expected.Is4() {
			plan.Expected[i] = binary.NativeEndian.Uint32(f.Expected.AsSlice())
		}
	}
	if err := t.objs.Current.Set(plan); err != nil {
		return fmt.Errorf("set stream: %w", err)
	}
	return nil
}

// take returns the 16 bits at an offset, and sets them to zero.
func take(frame []byte, at int) uint16 {
	if at == 0 {
		return 0
	}
	value := binary.BigEndian.Uint16(frame[at:])
	frame[at], frame[at+1] = 0, 0
	return value
}

// swap returns the number that this machine reads if value is in memory in network order.
func swap(value uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, value))
}

// scatter returns a step near the golden section of flows. Adding it again and again, modulo flows, visits every flow.
func scatter(flows int) int {
	for step := flows*618/1000 + 1; step > 1; step-- {
		if gcd(step, flows) == 1 {
			return step
		}
	}
	return 1
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// Sink counts and drops all frames that arrive at an interface of this thread's network namespace.
func (t *Traffic) Sink(ifindex int) error { return t.attachXDP(ifindex, t.objs.Sink) }

// Send sends count frames out of an interface that has a sink, on one CPU that the calling thread may run on. This CPU also
// receives and forwards them.
func (t *Traffic) Send(ifindex int, count uint32) error {
	restore, err := undisturbed()
	if err != nil {
		return fmt.Errorf("send frames: %w", err)
	}
	defer restore()
	context := make([]byte, 24) // struct xdp_md
	binary.NativeEndian.PutUint32(context[4:], FrameBytes)
	binary.NativeEndian.PutUint32(context[12:], uint32(ifindex))
	_, err = t.objs.Generate.Run(&ebpf.RunOptions{
		Data: make([]byte, FrameBytes), Context: context, Repeat: count,
		Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES, BatchSize: batch,
	})
	if err != nil {
		return fmt.Errorf("send %d frames: %w", count, err)
	}
	return nil
}

// undisturbed keeps this thread on the last CPU of its affinity mask: if frames are received on another CPU, they overflow their
// rings. It also blocks the signals of Go's scheduler: a signal ends a run of frames, and the library would start the run again.
// The returned function undoes both.
func undisturbed() (restore func(), err error) {
	runtime.LockOSThread()
	defer func() {
		if err != nil {
			runtime.UnlockOSThread()
		}
	}()
	var may, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		return nil, fmt.Errorf("read affinity: %w", err)
	}
	for cpu := range 8 * int(unsafe.Sizeof(may)) {
		if may.IsSet(cpu) {
			one.Zero()
			one.Set(cpu)
		}
	}
	var urgent, before unix.Sigset_t
	urgent.Val[0] = 1 << (unix.SIGURG - 1)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &urgent, &before); err != nil {
		return nil, fmt.Errorf("block signals: %w", err)
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		_ = unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
		return nil, fmt.Errorf("stay on one CPU: %w", err)
	}
	return func() {
		_ = unix.SchedSetaffinity(0, &may)
		_ = unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
		runtime.UnlockOSThread()
	}, nil
}

// Arrived returns how many packets of each frame have arrived at the sinks with the expected address since Load, and how many others.
func (t *Traffic) Arrived() (frames [maxFrames]uint64, others uint64, err error) {
	for i := range uint32(maxFrames + 1) {
		var perCPU []uint64
		if err := t.objs.Arrived.Lookup(i, &perCPU); err != nil {
			return frames, 0, fmt.Errorf("read count of sink: %w", err)
		}
		for _, n := range perCPU {
			if i < maxFrames {
				frames[i] += n
			} else {
				others += n
			}
		}
	}
	return frames, others, nil
}

// TransmitXDP makes an interface send back every frame it receives.
func (t *Traffic) TransmitXDP(ifindex int) error { return t.attachXDP(ifindex, t.objs.BareXdpTx) }

// RedirectXDP makes interface in send every frame out of interface out, by XDP.
func (t *Traffic) RedirectXDP(in, out int) error {
	if err := t.objs.Port.Put(uint32(0), uint32(out)); err != nil {
		return fmt.Errorf("set device to redirect to: %w", err)
	}
	return t.attachXDP(in, t.objs.BareXdpRedirect)
}

// RedirectTC makes interface in send every frame out of interface out, by TC.
func (t *Traffic) RedirectTC(in, out int) error {
	if err := t.objs.Out.Set(uint32(out)); err != nil {
		return fmt.Errorf("set device to redirect to: %w", err)
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: in, Program: t.objs.BareTc, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return fmt.Errorf("attach bare TC: %w", err)
	}
	t.links = append(t.links, l)
	return nil
}

// AnswerUDP makes an interface send back every datagram for a UDP port, IPv4 and IPv6. It works like a server that is fast enough
// for any rate.
func (t *Traffic) AnswerUDP(ifindex int, port uint16) error {
	if err := t.objs.Answered.Set(uint32(port)); err != nil {
		return fmt.Errorf("set port to answer: %w", err)
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: t.objs.Answer, Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, link.ErrNotSupported) {
		return attachFilter(ifindex, t.objs.Answer)
	}
	if err != nil {
		return fmt.Errorf("attach answer: %w", err)
	}
	t.links = append(t.links, l)
	return nil
}

// attachFilter attaches a program to an interface on kernels without TCX, before 6.6. The program stays until the interface goes.
func attachFilter(ifindex int, program *ebpf.Program) error {
	attrs := netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
	if err := netlink.QdiscReplace(&netlink.GenericQdisc{QdiscAttrs: attrs, QdiscType: "clsact"}); err != nil {
		return fmt.Errorf("add clsact qdisc: %w", err)
	}
	err := netlink.FilterReplace(&netlink.BpfFilter{
		FilterAttrs:  netlink.FilterAttrs{LinkIndex: ifindex, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL},
		Fd:           program.FD(),
		Name:         "answer",
		DirectAction: true,
	})
	if err != nil {
		return fmt.Errorf("add clsact filter: %w", err)
	}
	return nil
}

// Hook is the hook of a program: XDP or TC.
type Hook string

// The hooks of the datapath.
const (
	XDP Hook = "XDP"
	TC  Hook = "TC"
)

// Run runs a program repeat times, each time on the next frame of the stream, as if the frame had come in by an interface of
// this thread's network namespace. It returns the last verdict. If program is nil, an empty program runs instead; subtract the
// time of such a run.
func (t *Traffic) Run(hook Hook, program *ebpf.Program, ifindex int, frame []byte, repeat uint32) (uint32, error) {
	runner, slot, empty := t.objs.RenewXdp, t.objs.TestedXdp, t.objs.EmptyXdp
	context := make([]byte, 24) // struct xdp_md
	binary.NativeEndian.PutUint32(context[4:], uint32(len(frame)))
	binary.NativeEndian.PutUint32(context[12:], uint32(ifindex))
	if hook == TC {
		runner, slot, empty = t.objs.RenewTc, t.objs.TestedTc, t.objs.EmptyTc
		context = make([]byte, 192) // struct __sk_buff
		binary.NativeEndian.PutUint32(context[40:], uint32(ifindex))
	}
	if program == nil {
		program = empty
	}
	if err := slot.Put(uint32(0), program); err != nil {
		return 0, fmt.Errorf("set program to run: %w", err)
	}
	code, err := runner.Run(&ebpf.RunOptions{Data: frame, Context: context, Repeat: repeat})
	if err != nil {
		return 0, fmt.Errorf("run %s: %w", program, err)
	}
	return code, nil
}

func (t *Traffic) attachXDP(ifindex int, program *ebpf.Program) error {
	l, err := link.AttachXDP(link.XDPOptions{Interface: ifindex, Program: program, Flags: link.XDPDriverMode})
	if err != nil {
		return fmt.Errorf("attach %s: %w", program, err)
	}
	t.links = append(t.links, l)
	return nil
}
