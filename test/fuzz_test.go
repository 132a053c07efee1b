// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
)

var (
	executions = flag.Int("executions", 200_000, "frames that TestMutations puts through both programs")
	fuzzSeed   = flag.Uint64("seed", 1, "of TestMutations: the same one makes the same frames")
)

// narrowMTU is that of lan1 while frames are mutated, so that some are too long for it.
const narrowMTU = 600

// executor puts frames through both programs of a bench and judges what they make of them. It stays
// on a thread inside the router.
type executor struct {
	b       *bench
	routers [3][]netip.Addr // by interface
	opened  uint64
	perCPU  []uint64
	out     [2][]byte
	context [2][]byte
}

func newExecutor(tb testing.TB) *executor {
	tb.Helper()
	x := &executor{b: newCorpusBench(tb), context: [2][]byte{make([]byte, 192), make([]byte, 24)}}
	x.b.setMTU("lan1", narrowMTU)
	x.routers = [3][]netip.Addr{{wanAddress, basicAddress, dmzAddress}, {lanAddress}, {otherAddress}}
	for i := range x.out {
		x.out[i] = make([]byte, longestFrame+1024)
	}
	return x
}

// begin makes the connections that the samples are packets of, and no others.
func (x *executor) begin(tb testing.TB) {
	tb.Helper()
	x.b.forget(tb)
	for _, way := range []string{"from the Internet", "hairpin", "from another LAN", "server to itself"} {
		for _, protocol := range []string{"TCP", "UDP", "SCTP", "GRE"} {
			c := &corpus{b: x.b, nextPort: 20000, nextID: 1000}
			_, steps, _ := c.openFlow(protocol, way)
			for _, s := range steps {
				x.b.tc(tb, s.at, s.in)
			}
		}
	}
	x.opened = x.b.opened(tb)
}

func (x *executor) ports() []port { return []port{x.b.wan, x.b.lan, x.b.lan2} }

// samples are the packets of the corpus.
func (b *bench) samples() (samples []sample) {
	at := map[int]int{b.wan.index: 0, b.lan.index: 1, b.lan2.index: 2}
	known := map[string]bool{}
	for _, r := range allRows() {
		for _, s := range r.steps(&corpus{b: b, nextPort: 20000, nextID: 1000}) {
			if !known[string(s.in)] {
				samples = append(samples, sample{at[s.at.index], s.in})
			}
			known[string(s.in)] = true
		}
	}
	return samples
}

// execute puts a frame through XDP and then through TC. What XDP sends or drops, TC has to send and
// drop alike, although XDP was there first.
func (x *executor) execute(from int, data []byte) error {
	at := x.ports()[from]
	xdp, err := x.run(1, at, data)
	if err != nil {
		return err
	}
	tc, err := x.run(0, at, data)
	if err != nil {
		return err
	}
	for i, got := range []answer{tc, xdp} {
		if err := checkAnswer(hooks[i], at, x.routers[from], data, got); err != nil {
			return err
		}
	}
	if err := agree(data, xdp, tc); err != nil {
		return err
	}
	return x.checkOpened(data)
}

// inside is execute on a thread that stays in the router: each input has a goroutine of its own.
func (x *executor) inside(tb testing.TB) func(from int, data []byte) error {
	type input struct {
		from int
		data []byte
	}
	inputs, results := make(chan input), make(chan error)
	go func() {
		err := x.b.router.Do(func() error {
			for in := range inputs {
				results <- x.execute(in.from, in.data)
			}
			return nil
		})
		if err != nil {
			results <- err
		}
	}()
	tb.Cleanup(func() { close(inputs) })
	return func(from int, data []byte) error {
		inputs <- input{from, data}
		return <-results
	}
}

func (x *executor) run(i int, at port, data []byte) (answer, error) {
	program, context := x.b.objs.HairpinTc, x.context[i]
	if i == 0 {
		binary.NativeEndian.PutUint32(context[40:], uint32(at.index)) // struct __sk_buff
	} else {
		program = x.b.objs.HairpinXdp
		binary.NativeEndian.PutUint32(context[4:], uint32(len(data))) // struct xdp_md
		binary.NativeEndian.PutUint32(context[12:], uint32(at.index))
	}
	options := ebpf.RunOptions{Data: data, DataOut: x.out[i], Context: context}
	code, err := program.Run(&options)
	if err != nil {
		return answer{}, fmt.Errorf("run %s: %w", hooks[i].name, err)
	}
	return answer{code, options.DataOut}, nil
}

// agree compares both programs' answers. TC leaves MAC addresses to the kernel now and then.
func agree(data []byte, xdp, tc answer) error {
	switch xdp.code {
	case xdpRedirect:
		if tc.code != tcRedirect || !bytes.Equal(xdp.data[12:], tc.data[12:]) {
			return fmt.Errorf("xdp sends\n%x, tc answers %d\n%x", xdp.data, int32(tc.code), tc.data)
		}
		if !bytes.Equal(xdp.data[:12], tc.data[:12]) && !bytes.Equal(tc.data[:12], data[:12]) {
			return fmt.Errorf("xdp sends\n%x, tc to another station\n%x", xdp.data, tc.data)
		}
	case xdpDrop:
		if tc.code != tcShot && !(tc.code == tcRedirect && told(data, tc.data)) {
			return fmt.Errorf("xdp drops, tc answers %d\n%x", int32(tc.code), tc.data)
		}
	}
	return nil
}

// checkOpened wants connections to be made only by what may open one, and one at most.
func (x *executor) checkOpened(data []byte) error {
	if err := x.b.objs.ConnEvents.Lookup(bpf.HairpinConnEventCONN_OPENED, &x.perCPU); err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	total := uint64(0)
	for _, n := range x.perCPU {
		total += n
	}
	opened := total - x.opened
	x.opened = total
	if opened > 2 || opened > 0 && !opens(data) {
		return fmt.Errorf("opened %d connections", opened)
	}
	return nil
}

// opened is how many connections the datapath ever opened.
func (b *bench) opened(tb testing.TB) (total uint64) {
	tb.Helper()
	var perCPU []uint64
	if err := b.objs.ConnEvents.Lookup(bpf.HairpinConnEventCONN_OPENED, &perCPU); err != nil {
		tb.Fatal(err)
	}
	for _, n := range perCPU {
		total += n
	}
	return total
}

// FuzzDatapath puts frames through both programs. Whatever they are: the verdict is a known one, only
// what is sent changes, and only where a translation changes it; checksums are right afterwards exactly if
// they were before; ICMP errors go back to the sender and are right; only what opens a connection by RFC
// makes state; the kernel has nothing to say about it.
func FuzzDatapath(f *testing.F) {
	x := newExecutor(f)
	for i, s := range x.b.samples() {
		if i%8 == 0 { // each takes some milliseconds before the search begins
			f.Add(uint8(s.at), s.data)
		}
	}
	x.begin(f)
	execute := x.inside(f)
	f.Fuzz(func(t *testing.T, from uint8, data []byte) {
		if len(data) < l4At || len(data) > longestFrame {
			return
		}
		data = bytes.Clone(data)
		copy(data, x.ports()[from%3].mac)
		if err := execute(int(from%3), data); err != nil {
			t.Fatalf("interface %d, %x: %v", from%3, data, err)
		}
	})
}

// executionsPerState is after how many frames the tables are emptied: they would fill up with what
// mutations opened.
const executionsPerState = 20_000

// TestMutations is FuzzDatapath without its search for new paths, and ten times as fast: for millions of
// frames (make fuzz). A frame that fails comes again with the same seed and number of processors.
func TestMutations(t *testing.T) {
	log := openKernelLog(t)
	workers := runtime.GOMAXPROCS(0)
	began := time.Now()
	var all sync.WaitGroup
	for worker := range workers {
		x := newExecutor(t)
		m := mutator{rand.New(rand.NewPCG(*fuzzSeed, uint64(worker))), x.b.samples(), x.ports()}
		all.Go(func() {
			for done := 0; done < *executions/workers && !t.Failed(); done += executionsPerState {
				x.begin(t)
				if err := x.b.router.Do(func() error { return x.mutate(m, executionsPerState) }); err != nil {
					t.Errorf("seed %d, worker %d of %d, after %d: %v", *fuzzSeed, worker, workers, done, err)
				}
			}
		})
	}
	all.Wait()
	log.check(t)
	t.Logf("%d executions, seed %d, %d workers, %.0f a second", *executions, *fuzzSeed, workers,
		float64(*executions)/time.Since(began).Seconds())
}

func (x *executor) mutate(m mutator, count int) error {
	for i := range count {
		at, data := m.next()
		if err := x.execute(at, data); err != nil {
			return fmt.Errorf("frame %d, interface %d, %x: %w", i, at, data, err)
		}
	}
	return nil
}

// kernelLog reads what the kernel says from now on.
type kernelLog struct{ fd int }

func openKernelLog(t *testing.T) kernelLog {
	t.Helper()
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open kernel log: %v", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if _, err := unix.Seek(fd, 0, io.SeekEnd); err != nil {
		t.Fatalf("seek in kernel log: %v", err)
	}
	return kernelLog{fd}
}

// check fails on warnings and worse. Lines of less weight are others': links that come and go.
func (l kernelLog) check(t *testing.T) {
	t.Helper()
	record := make([]byte, 8192)
	for {
		n, err := unix.Read(l.fd, record)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return
		case errors.Is(err, unix.EPIPE): // overwritten before it was read
		case err != nil:
			t.Fatalf("read kernel log: %v", err)
		default:
			var priority int
			text := string(record[:n])
			if _, err := fmt.Sscanf(text, "%d,", &priority); err != nil || priority&7 <= 4 {
				t.Errorf("the kernel says %s", strings.TrimSpace(text))
			}
		}
	}
}
