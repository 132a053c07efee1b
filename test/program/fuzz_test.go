// SPDX-License-Identifier: Apache-2.0

package program

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

var (
	executions = flag.Int("executions", 200_000, "frames that TestMutations puts through both programs")
	fuzzSeed   = flag.Uint64("seed", 1, "of TestMutations: the same one makes the same frames")
)

// family has the values of one IP version for mutated frames.
type family struct {
	name    string
	narrow  int // MTU of lan1 meanwhile, so that some are too long for it
	routers [4][]netip.Addr
	bench   func(testing.TB) *bench
	flows   func(*bench) []step // the connections that the samples are packets of
	samples func(*bench) []step
	opens   func(data []byte) bool // whether a frame may make a connection
}

var (
	family4 = family{"IPv4", 600, [4][]netip.Addr{{rig.WANAddress, rig.BasicAddress, rig.DMZAddress}, {rig.LANAddress}, {rig.OtherAddress}, nil}, newCorpusBench, flows4, samples4, opens}
	family6 = family{"IPv6", 1280, [4][]netip.Addr{{wanAddress6, pingAddress6, dmzAddress6, rig.WANAddress}, {lanAddress6, rig.LANAddress}, {otherAddress6, rig.OtherAddress}, nil}, newBench6, flows6, samples6, opens}

	// Clients that are reflected by stand-ins and by the external address.
	familyReflected = family{"IPv4, reflected", 600, family4.routers, func(tb testing.TB) *bench { return newReflectBench(tb, 2048) }, flowsReflected, samplesReflected, rebuilds}

	families = []family{family4, family6, familyReflected}
)

// loopback is the interface that the router's own packets come in by.
var loopback = rig.Port{Index: 1, MAC: make(net.HardwareAddr, 6)}

// localPort is the port of the router's own connection.
const localPort = 20100

// local is a connection of the router itself to the first forward.
func (b *bench) local(udp bool) rig.Flow {
	f := b.Flows(udp, localPort)["hairpin"]
	f.At, f.MAC, f.Client = loopback, loopback.MAC, netip.AddrPortFrom(rig.WANAddress, localPort)
	return f
}

func (b *bench) local6(udp bool) flow6 {
	f := b.flow6("hairpin", udp, localPort)
	f.At, f.MAC, f.Client = loopback, loopback.MAC, netip.AddrPortFrom(wanAddress6, localPort)
	return f
}

func flows4(b *bench) (steps []step) {
	for _, udp := range []bool{false, true} {
		c := newFlows(b)
		steps = append(steps, c.opened(b.local(udp))...)
	}
	for _, way := range []string{"from the Internet", "hairpin", "from another LAN", "server to itself"} {
		for _, protocol := range []string{"TCP", "UDP", "SCTP", "GRE"} {
			_, opened, _ := newFlows(b).openFlow(protocol, way)
			steps = append(steps, opened...)
		}
	}
	return steps
}

func flows6(b *bench) (steps []step) {
	for _, udp := range []bool{false, true} {
		c := case6{newFlows(b)}
		steps = append(steps, c.opened(b.local6(udp))...)
	}
	for _, way := range ways6Names {
		for _, udp := range []bool{false, true} {
			c := case6{newFlows(b)}
			steps = append(steps, c.opened(c.flow(way, udp))...)
		}
		c := case6{newFlows(b)}
		f := c.ping(way)
		steps = append(steps, c.in(f, echo6(icmp6EchoRequest, 1, "ping")), c.back(f, echo6(icmp6EchoReply, 1, "ping")))
	}
	return steps
}

func flowsReflected(b *bench) (steps []step) {
	for _, way := range []string{"from the Internet", "hairpin", "from another LAN", "server to itself"} {
		for _, udp := range []bool{false, true} {
			c := newFlows(b)
			steps = append(steps, c.opened(c.web(way, udp))...)
			steps = append(steps, c.opened(c.to(way, udp, "203.0.113.1:443", "192.168.1.20:8443"))...)
		}
	}
	return steps
}

// rebuilds reports whether a frame may make a connection: by opening one, or by rebuilding one whose state is lost.
func rebuilds(data []byte) bool {
	p, ok := dissect(data)
	if !ok || p.offset != 0 {
		return false
	}
	_, dst := p.addresses()
	middle := p.protocol != protocolTCP || p.has(20) && data[p.l4+13]&6 == 0
	return opens(data) || standInNetwork.Contains(dst) || middle && slices.Contains([]netip.Addr{rig.WANAddress, rig.BasicAddress, rig.DMZAddress}, dst)
}

// newFlows returns a corpus without flows. Its ports are the ports of the first flows of every row.
func newFlows(b *bench) *corpus { return &corpus{b: b, nextPort: 20000, nextID: 1000} }

func samples4(b *bench) (steps []step) {
	for _, r := range allRows() {
		steps = append(steps, r.steps(newFlows(b))...)
	}
	for _, udp := range []bool{false, true} {
		f := b.local(udp)
		steps = append(steps, newFlows(b).opened(f)...)
		for _, size := range []int{0, 7, 600, 1400} {
			in, _ := f.In(middle, long(size))
			back, _ := f.Back(answerer, long(size))
			steps = append(steps, step{at: f.At, in: in.Bytes()}, step{at: b.LAN, in: back.Bytes()})
		}
	}
	return steps
}

func samplesReflected(b *bench) (steps []step) {
	for _, r := range reflectRows() {
		steps = append(steps, r.steps(newFlows(b))...)
	}
	return steps
}

// samples6 returns few of the many ICMPv6 error steps, and more of the steps that are only sent on.
func samples6(b *bench) (steps []step) {
	rows := slices.Concat(echoRows6(), foreignRows6(), malformedRows6(), openRows6(), fragmentRows6())
	for i, r := range slices.Concat(errorRows6(), badErrorRows6()) {
		if i%16 == 0 {
			rows = append(rows, r)
		}
	}
	for _, r := range rows {
		steps = append(steps, r.steps(case6{newFlows(b)})...)
	}
	var flows []flow6
	for _, udp := range []bool{false, true} {
		for _, way := range ways6Names {
			flows = append(flows, case6{newFlows(b)}.flow(way, udp))
		}
		flows = append(flows, b.local6(udp))
		steps = append(steps, case6{newFlows(b)}.opened(b.local6(udp))...)
	}
	for _, f := range flows {
		for _, size := range []int{0, 1, 7, 100, 600, 1200, 1300, 1400} {
			in, _ := f.In(middle6, also(long(size)))
			back, _ := f.Back(answerer6, also(long(size)))
			steps = append(steps, step{at: f.At, in: in.Bytes()}, step{at: b.LAN, in: back.Bytes()})
		}
	}
	return steps
}

// side is an interface of the router, and what frames that come in there may meet.
type side struct {
	rig.Port
	routers []netip.Addr // that the router may speak as; nil: any, to itself
	narrow  int
}

// executor puts frames through both programs of a bench and judges what they make of them. It stays
// on a thread inside the router.
type executor struct {
	family
	b       *bench
	sides   [4]side
	opened  uint64
	perCPU  []uint64
	out     [2][]byte
	context [2][]byte
	oracles
}

func newExecutor(tb testing.TB, f family) *executor {
	tb.Helper()
	x := &executor{family: f, b: f.bench(tb), context: [2][]byte{make([]byte, 192), make([]byte, 24)}}
	x.b.setMTU("lan1", f.narrow)
	if err := x.b.Objects.Interfaces.Put(uint32(loopback.Index), bpf.HairpinInterface{Role: bpf.HairpinRoleROLE_LOCAL}); err != nil {
		tb.Fatal(err)
	}
	for i, p := range []rig.Port{x.b.WAN, x.b.LAN, x.b.LAN2, loopback} {
		x.sides[i] = side{p, f.routers[i], f.narrow}
	}
	for i := range x.out {
		x.out[i] = make([]byte, longestFrame+1024)
	}
	x.oracles = newOracles(x.b)
	return x
}

// begin makes the connections that the samples are packets of, and no others.
func (x *executor) begin(tb testing.TB) {
	tb.Helper()
	x.b.Forget(tb)
	for _, s := range x.flows(x.b) {
		x.b.TC(tb, s.at, s.in)
	}
	x.opened = x.b.opened(tb)
}

// samples are the packets of the corpus.
func (x *executor) samples() (samples []sample) {
	known := map[string]bool{}
	for _, s := range x.family.samples(x.b) {
		for i, side := range x.sides {
			if side.Index == s.at.Index && !known[string(s.in)] {
				samples = append(samples, sample{i, s.in})
			}
		}
		known[string(s.in)] = true
	}
	return samples
}

// execute runs a frame through XDP and then through TC. TC must send or drop every packet that XDP sends or drops, with equal results,
// although XDP ran first. On the loopback device only TC runs.
func (x *executor) execute(from int, data []byte) error {
	at := x.sides[from]
	xdp := rig.Answer{Code: rig.XDPPass, Data: data}
	if at.Index != loopback.Index {
		var err error
		if xdp, err = x.run(1, at.Port, data); err != nil {
			return err
		}
	}
	tc, err := x.run(0, at.Port, data)
	if err != nil {
		return err
	}
	if err := checkAnswer(hooks[1], at, data, xdp); err != nil {
		return err
	}
	if !bytes.Equal(tc.Data, data) {
		data = withoutPriority(data)
	}
	if err := checkAnswer(hooks[0], at, data, tc); err != nil {
		return err
	}
	if err := agree(data, xdp, tc); err != nil {
		return err
	}
	if err := x.checkOpened(data); err != nil {
		return err
	}
	return x.checkState(from, data, xdp, tc)
}

// inside is execute on a thread that stays in the router: each input has a goroutine of its own.
func (x *executor) inside(tb testing.TB) func(from int, data []byte) error {
	type input struct {
		from int
		data []byte
	}
	inputs, results := make(chan input), make(chan error)
	go func() {
		err := x.b.Router.Do(func() error {
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
		inputs <- input{from: from, data: data}
		return <-results
	}
}

func (x *executor) run(i int, at rig.Port, data []byte) (rig.Answer, error) {
	program, context := x.b.Objects.HairpinTc, x.context[i]
	if i == 0 {
		binary.NativeEndian.PutUint32(context[40:], uint32(at.Index)) // struct __sk_buff
	} else {
		program = x.b.Objects.HairpinXdp
		binary.NativeEndian.PutUint32(context[4:], uint32(len(data))) // struct xdp_md
		binary.NativeEndian.PutUint32(context[12:], uint32(at.Index))
	}
	options := ebpf.RunOptions{Data: data, DataOut: x.out[i], Context: context}
	code, err := program.Run(&options)
	if err != nil {
		return rig.Answer{}, fmt.Errorf("run %s: %w", hooks[i].name, err)
	}
	return rig.Answer{Code: code, Data: options.DataOut}, nil
}

// agree compares both programs' answers. TC leaves MAC addresses to the kernel now and then.
func agree(data []byte, xdp, tc rig.Answer) error {
	switch xdp.Code {
	case rig.XDPRedirect:
		// A half-open connection's server may send one ACK without data for each SYN: XDP has sent it.
		if tc.Code == rig.TCUnspec && bytes.Equal(tc.Data, data) && bareACK(data) {
			return nil
		}
		if tc.Code != rig.TCRedirect || !bytes.Equal(xdp.Data[12:], tc.Data[12:]) {
			return fmt.Errorf("xdp sends\n%x, tc answers %d\n%x", xdp.Data, int32(tc.Code), tc.Data)
		}
		if !bytes.Equal(xdp.Data[:12], tc.Data[:12]) && !bytes.Equal(tc.Data[:12], data[:12]) {
			return fmt.Errorf("xdp sends\n%x, tc to another station\n%x", xdp.Data, tc.Data)
		}
	case rig.XDPDrop:
		if tc.Code != rig.TCShot && !(tc.Code == rig.TCRedirect && told(data, tc.Data)) {
			return fmt.Errorf("xdp drops, tc answers %d\n%x", int32(tc.Code), tc.Data)
		}
	}
	return nil
}

// bareACK says whether a frame is a TCP segment with the ACK flag alone and no data.
func bareACK(data []byte) bool {
	const ethernet, fin, syn, rst, ack = 14, 1, 2, 4, 16
	if len(data) < ethernet+40 {
		return false
	}
	ip := data[ethernet:]
	header, length := 40, 40+int(binary.BigEndian.Uint16(ip[4:]))
	if ip[0]>>4 == 4 {
		header, length = int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	} else {
		const hopByHop, fragment, destination = 0, 44, 60
		for next := ip[6]; (next == hopByHop || next == fragment || next == destination) && header+2 <= len(ip); {
			words := 1
			if next != fragment {
				words += int(ip[header+1])
			}
			next, header = ip[header], header+8*words
		}
	}
	if len(ip) < header+20 {
		return false
	}
	tcp := ip[header:]
	return tcp[13]&(fin|syn|rst|ack) == ack && length == header+int(tcp[12]>>4)*4
}

// checkOpened returns an error if a frame made a connection that it may not open, or more than one.
func (x *executor) checkOpened(data []byte) error {
	opened, err := x.newlyOpened()
	if err != nil {
		return err
	}
	if opened > 2 || opened > 0 && !x.opens(data) && !x.opensDirect(data) {
		return fmt.Errorf("opened %d connections", opened)
	}
	return nil
}

// opensDirect reports whether a frame goes to a target itself, and may open a connection: a direct connection gets another port if a
// translated connection has its answers.
func (x *executor) opensDirect(data []byte) bool {
	p, ok := dissect(data)
	if !ok || p.offset != 0 {
		return false
	}
	_, to := p.addresses()
	_, target := x.targets[to]
	return target && p.opens(true)
}

// opened returns how many connections the datapath has opened so far.
func (b *bench) opened(tb testing.TB) (total uint64) {
	tb.Helper()
	var perCPU []uint64
	if err := b.Objects.ConnEvents.Lookup(bpf.HairpinConnEventEVENT_OPENED, &perCPU); err != nil {
		tb.Fatal(err)
	}
	for _, n := range perCPU {
		total += n
	}
	return total
}

// FuzzDatapath runs frames through both programs, and checks for every frame:
//   - The verdict is a known verdict.
//   - Only a frame that is sent on changes, and only in fields that a translation changes.
//   - Checksums are right afterwards exactly if they were right before.
//   - ICMP errors of the router are right and go to the sender.
//   - Only a packet that opens a connection by its RFC makes a connection.
//   - The kernel logs no warning.
//   - The counts match the connections, and each entry has the entry of the other direction.
//   - A frame that is accepted on one interface is not translated on another interface, and does not change its connection there, if a
//     tuple alone proves nothing.
//   - No target's private address leaves by the WAN.
func FuzzDatapath(f *testing.F) {
	execute := make([]func(int, []byte) error, len(families))
	var first *executor
	for i, family := range families {
		x := newExecutor(f, family)
		for j, s := range x.samples() {
			if j%8 == 0 { // each takes some milliseconds before the search begins
				f.Add(uint8(s.at), s.data)
			}
		}
		x.replayEvery = 1 // an input that fails has to fail again by itself
		x.begin(f)
		execute[i] = x.inside(f)
		if first == nil {
			first = x
		}
	}
	f.Fuzz(func(t *testing.T, from uint8, data []byte) {
		if len(data) < l4At || len(data) > longestFrame || shortForIPv6(data) {
			return
		}
		data = bytes.Clone(data)
		copy(data, first.sides[from%4].MAC)
		for i, execute := range execute {
			if err := execute(int(from%4), data); err != nil {
				t.Fatalf("%s, interface %d, %x: %v", families[i].name, from%4, data, err)
			}
		}
	})
}

// shortForIPv6 reports whether a frame says that it is of IPv6, and is too short for that: a test run of TC refuses such frames
// (bpf_prog_test_run_skb).
func shortForIPv6(data []byte) bool {
	const ethernet, header = 14, 40
	return binary.BigEndian.Uint16(data[12:]) == unix.ETH_P_IPV6 && len(data) < ethernet+header
}

// executionsPerState is after how many frames the tables are emptied: they would fill up with what
// mutations opened.
const executionsPerState = 20_000

// TestMutations is FuzzDatapath without its search for new paths, and ten times as fast: for millions of
// frames (make fuzz). A frame that fails comes again with the same seed and number of processors.
func TestMutations(t *testing.T) {
	log := lab.OpenKernelLog(t)
	workers := runtime.GOMAXPROCS(0)
	began := time.Now()
	var all sync.WaitGroup
	for worker := range workers {
		for _, f := range families {
			x := newExecutor(t, f)
			m := mutator{rand.New(rand.NewPCG(*fuzzSeed, uint64(worker))), x.samples(), x.sides}
			all.Go(func() {
				for done := 0; done < *executions/workers/len(families) && !t.Failed(); done += executionsPerState {
					x.begin(t)
					if err := x.b.Router.Do(func() error { return x.mutate(m, executionsPerState) }); err != nil {
						t.Errorf("%s, seed %d, worker %d of %d, after %d: %v", f.name, *fuzzSeed, worker, workers, done, err)
					}
					x.b.Forget(t)
					if err := x.b.Router.Do(x.checkStateless); err != nil {
						t.Errorf("%s, seed %d, worker %d of %d, after %d: %v", f.name, *fuzzSeed, worker, workers, done, err)
					}
				}
				if worker == 0 {
					x.did(t)
				}
			})
		}
	}
	all.Wait()
	for _, complaint := range log.Complaints(t) {
		t.Errorf("the kernel says %s", complaint)
	}
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
