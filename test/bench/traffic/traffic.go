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
	"golang.org/x/sys/unix"
)

const (
	// FrameBytes is how long every generated frame is: the shortest of Ethernet, without its checksum.
	FrameBytes = 60
	// FlowsPerRound is after how many flows the second number of a frame counts up, and the first
	// one starts again.
	FlowsPerRound = 60000
	// Block is after how many flows' first frames their second ones follow.
	Block = 250

	maxFrames     = 2
	maxFrameBytes = 128
	// batch is how many frames a device gets at once; the ring of a veth holds 256.
	batch = 64
)

// Frame is a frame that is sent for one flow after another. It is valid for flow 0, and so is every
// other: the checksum follows the numbers.
type Frame struct {
	// Data is an Ethernet frame, of FrameBytes where it is generated, of at most 128 elsewhere.
	Data []byte
	// First and Second are the offsets of two 16 bit numbers that tell flows apart, Check is that of
	// the checksum that covers both. 0 means that there is none.
	First, Second, Check int
	// Expected is whom the frame is for when it arrives.
	Expected netip.Addr
}

// Stream is what is sent. If each flow has two frames, they go by blocks: the first frame of so many
// flows, then their second one. A kernel that works off packets in lists sees to the first before the
// second comes.
type Stream struct {
	Frames []Frame // one or two
	Flows  int     // if there are two frames, a multiple of Block
	// Ordered sends the flows in the order they are numbered. Otherwise they are scattered over the
	// tables they are in, as they would be in real traffic.
	Ordered bool
	// From is the flow to begin with, if Ordered.
	From int
}

// Traffic is a generator, a sink and the bare hooks, loaded.
type Traffic struct {
	objs  trafficObjects
	links []io.Closer
}

// Load loads the programs. They see the Stream that was Set last.
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

// Set makes a stream the one to be sent and expected.
func (t *Traffic) Set(s Stream) error {
	plan := trafficPlan{Frames: uint32(len(s.Frames)), Flows: uint32(s.Flows), Flow: uint32(s.From)}
	switch {
	case s.Flows < 1 || s.From < 0 || s.From >= s.Flows:
		return fmt.Errorf("stream of %d flows from number %d on: want at least one", s.Flows, s.From)
	case len(s.Frames) == maxFrames && s.Ordered && s.Flows%Block == 0:
		plan.Block, plan.Stride = Block, Block
	case len(s.Frames) == 1 && s.Ordered:
		plan.Block, plan.Stride = 1, 1
	case len(s.Frames) == 1:
		plan.Block, plan.Stride = 1, uint32(scatter(s.Flows))
	default:
		return fmt.Errorf("stream of %d frames for each of %d flows: want one, or two if ordered and a multiple of %d flows",
			len(s.Frames), s.Flows, Block)
	}
	for i, f := range s.Frames {
		if len(f.Data) > maxFrameBytes {
			return fmt.Errorf("frame of %d bytes: at most %d", len(f.Data), maxFrameBytes)
		}
		to := &plan.Templates[i]
		copy(to.Frame[:], f.Data)
		to.CheckOff, to.FirstOff, to.SecondOff = uint16(f.Check), uint16(f.First), uint16(f.Second)
		to.First, to.Second = take(to.Frame[:], f.First), take(to.Frame[:], f.Second)
		// In one's complement, what is left of a sum is the sum and the complements of what is taken off.
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

// take reads the 16 bits at an offset and leaves zeros.
func take(frame []byte, at int) uint16 {
	if at == 0 {
		return 0
	}
	value := binary.BigEndian.Uint16(frame[at:])
	frame[at], frame[at+1] = 0, 0
	return value
}

// swap turns a number into what the machine reads where it stands in network order.
func swap(value uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, value))
}

// scatter is a step near the golden section that visits every flow.
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

// Sink counts, and takes away, what arrives at an interface of this thread's network namespace.
func (t *Traffic) Sink(ifindex int) error { return t.attachXDP(ifindex, t.objs.Sink) }

// Send sends count frames out of an interface that has a sink, on one CPU that the calling thread may run on.
// Receiving them, and all that follows, happens in between.
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

// undisturbed keeps this thread on one CPU, the last of those it may run on: frames that others receive on another one
// overflow their rings. And it keeps out the signals by which Go's scheduler interrupts: they end a run of frames, and the
// library would begin it anew. It returns what undoes both.
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
		return nil, fmt.Errorf("keep out signals: %w", err)
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

// Arrived returns how many of each frame have come to a sink as expected, ever, and how many others have.
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

// RedirectXDP makes an interface send every frame out of another one.
func (t *Traffic) RedirectXDP(in, out int) error {
	if err := t.objs.Port.Put(uint32(0), uint32(out)); err != nil {
		return fmt.Errorf("set device to redirect to: %w", err)
	}
	return t.attachXDP(in, t.objs.BareXdpRedirect)
}

// RedirectTC does the same at TC.
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

// AnswerUDP makes an interface send back every datagram for a UDP port, of either family, as a server would that keeps up
// with any rate.
func (t *Traffic) AnswerUDP(ifindex int, port uint16) error {
	if err := t.objs.Answered.Set(uint32(port)); err != nil {
		return fmt.Errorf("set port to answer: %w", err)
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: t.objs.Answer, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return fmt.Errorf("attach answer: %w", err)
	}
	t.links = append(t.links, l)
	return nil
}

// Hook is where a program is run.
type Hook string

// The hooks of the datapath.
const (
	XDP Hook = "XDP"
	TC  Hook = "TC"
)

// Run runs a program as often as is said, each time on the next frame of the stream that was Set, as if it
// had come in by an interface of this thread's network namespace. It returns what the program did
// last. Without a program it does all but that: what it costs then is to be taken off.
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
