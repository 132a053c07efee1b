// SPDX-License-Identifier: Apache-2.0

package program

import (
	"encoding/binary"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hairpin/maps/rule"
	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

var stress = flag.Duration("stress", 10*time.Second, "how long TestRaces runs")

const (
	racingFlows    = 300 // of each protocol
	racingHalfOpen = 32  // places for half-open connections of TCP, and as many for all others
	raceRound      = time.Second
	longIdle       = uint64(time.Hour)
	shortIdle      = uint64(20 * time.Millisecond) // far longer than a packet takes, far shorter than a round
)

// racer is one CPU that plays packets as fast as it can.
type racer struct {
	*races
	random *rand.Rand
	frame  []byte
}

// races has the values that all racers use.
type races struct {
	b        *bench
	tcp, udp []*racingFlow
	stop     atomic.Bool
	meeting  meeting
	packets  atomic.Int64
	failure  atomic.Pointer[error]
}

// racingFlow is a connection that is opened again and again.
type racingFlow struct {
	at                   int // interface of the client
	server               int // and of its server
	fromClient, toClient []byte
	life                 atomic.Uint32 // raised by whoever opens the connection anew: its sequence numbers follow
}

// race has the work of both CPUs in a round.
type race struct {
	name           string
	closing, other uint64 // idle times in nanoseconds
	step           func(*racer)
}

var allRaces = []race{
	{"one TCP connection is reopened", 1, longIdle, func(r *racer) { r.reopen(r.tcp[0]) }},
	{"hundreds of TCP connections are reopened", 1, longIdle, func(r *racer) { r.reopen(pick(r, r.tcp)) }},
	{"UDP connections evict each other", 1, shortIdle, (*racer).crowd},
	{"UDP connections expire at once", 1, 1, func(r *racer) { r.ask(pick(r, r.udp)) }},
	{"promotion during evictions and sweeps", 1, 1, (*racer).promote},
	{"both CPUs send one opening at once", 1, shortIdle, (*racer).openTogether},
	{"connections are ended by hand", 1, shortIdle, (*racer).end},
	{"all of these", 1, shortIdle, (*racer).everything},
	{"all of these, and UDP expires at once", 1, 1, (*racer).everything},
}

// TestRaces lets two CPUs open, promote, close, evict and end the same connections while the sweeper runs without a pause. After each
// round the counts must match the table, each entry must have the entry of the other direction, and all connections must expire: a
// connection that the sweeper no longer visits would never expire.
func TestRaces(t *testing.T) {
	for _, race := range allRaces {
		t.Run(race.name, func(t *testing.T) { runRace(t, race, *stress/time.Duration(len(allRaces))) })
	}
}

func runRace(t *testing.T, race race, duration time.Duration) {
	r := newRaces(t)
	start, played := time.Now(), time.Duration(0)
	for round := 1; played < duration; round++ {
		length := min(raceRound, duration-played)
		played += length
		if failure := r.run(t, race, length); failure != "" {
			t.Fatalf("in round %d, after %.1f s of play and %d packets: %s", round, played.Seconds(), r.packets.Load(), failure)
		}
	}
	t.Logf("%d packets, %.1f s", r.packets.Load(), time.Since(start).Seconds())
}

func newRaces(t *testing.T) *races {
	r := &races{b: newBenchOf(t, racesSpec(t), 1024, racingHalfOpen, rig.Forwards...)}
	narrowTables(t, r.b, 509) // 1,527 slots for at most 1,200 entries
	for i := range racingFlows {
		r.tcp = append(r.tcp, newRacingFlow(r.b, false, i))
		r.udp = append(r.udp, newRacingFlow(r.b, true, i))
	}
	// The timer stays on the CPU that starts it.
	err := r.b.Router.Do(func() error {
		restore, err := pin(0)
		if err != nil {
			return err
		}
		defer restore()
		r.b.StartSweeper(t)
		return nil
	})
	if err != nil {
		t.Fatalf("start the sweeper: %v", err)
	}
	return r
}

func newRacingFlow(b *bench, udp bool, i int) *racingFlow {
	way := []string{"from the Internet", "hairpin", "from another LAN"}[i%3]
	f := b.Flows(udp, uint16(20000+i))[way]
	in, _ := f.In()
	back, _ := f.Back()
	return &racingFlow{at: f.At.Index, server: b.LAN.Index, fromClient: in.Bytes(), toClient: back.Bytes()}
}

// pin keeps this thread on one CPU of those that it may use; restore undoes that.
func pin(number int) (restore func(), err error) {
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return nil, fmt.Errorf("ask for the CPUs of this process: %w", err)
	}
	number %= all.Count()
	for cpu := range len(all) * 64 {
		if !all.IsSet(cpu) {
			continue
		}
		if number > 0 {
			number--
			continue
		}
		var one unix.CPUSet
		one.Set(cpu)
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			return nil, fmt.Errorf("stay on CPU %d: %w", cpu, err)
		}
		break
	}
	return func() { lab.Must(unix.SchedSetaffinity(0, &all)) }, nil
}

// run runs a race, and returns what is wrong with the connections that the race has left; "": nothing.
func (r *races) run(t *testing.T, race race, duration time.Duration) string {
	setIdleTimes(t, r.b, longIdle, race.closing, race.other)
	r.stop.Store(false)
	r.meeting.open(2)
	timer := time.AfterFunc(duration, func() {
		r.stop.Store(true)
		r.meeting.close()
	})
	defer timer.Stop()
	var racers sync.WaitGroup
	for number := range 2 {
		racers.Go(func() { r.failed(r.b.Router.Do(func() error { return r.race(number, race) })) })
	}
	racers.Wait()
	if err := r.failure.Load(); err != nil {
		t.Fatal(*err)
	}
	if failure := r.poll(t, consistent); failure != "" {
		return failure
	}
	setIdleTimes(t, r.b, 1, 1, 1)
	if failure := r.poll(t, empty); failure != "" {
		return "after all idle times have passed: " + failure
	}
	return ""
}

func (r *races) failed(err error) {
	if err != nil {
		r.failure.CompareAndSwap(nil, &err)
		r.stop.Store(true)
		r.meeting.close()
	}
}

func (r *races) race(number int, race race) error {
	restore, err := pin(number)
	if err != nil {
		return err
	}
	defer restore()
	racer := &racer{races: r, random: rand.New(rand.NewPCG(uint64(number), 1))}
	for !r.stop.Load() {
		race.step(racer)
	}
	return nil
}

// poll waits until the tables are right. After a time limit it returns what is wrong with them.
func (r *races) poll(t *testing.T, wrong func(audit) string) string {
	deadline := time.Now().Add(10 * time.Second)
	for {
		failure := wrong(auditTables(t, r.b))
		if failure == "" || time.Now().After(deadline) {
			return failure
		}
		time.Sleep(time.Millisecond)
	}
}

// consistent returns the contradictions in the tables; "": none.
func consistent(a audit) string {
	if a.Orphans != 0 {
		return fmt.Sprintf("%d of %d entries lack that of the other direction; counted %v, found %v",
			a.Orphans, a.Entries, a.Counted, a.Found)
	}
	for kind := range maps.Keys(a.Counted) {
		if a.Counted[kind] != a.Found[kind] {
			return fmt.Sprintf("%s: %d are counted, %d are found", kind, a.Counted[kind], a.Found[kind])
		}
	}
	for kind := range maps.Keys(a.Found) {
		if _, ok := a.Counted[kind]; !ok {
			return fmt.Sprintf("%s: nobody counts them, %d are found", kind, a.Found[kind])
		}
	}
	return ""
}

// empty returns a description of connections that are left; "": none.
func empty(a audit) string {
	if a.Entries != 0 {
		return fmt.Sprintf("%d entries are left; orphans %d, counted %v, found %v", a.Entries, a.Orphans, a.Counted, a.Found)
	}
	if a.Used != 0 {
		return fmt.Sprintf("no entry is left, but %d slots are in use or passed", a.Used)
	}
	return consistent(a)
}

func pick(r *racer, flows []*racingFlow) *racingFlow { return flows[r.random.IntN(len(flows))] }

func (r *racer) rarely(n int) bool { return r.random.IntN(n) == 0 }

// reopen plays a whole TCP connection; now and then a packet is lost.
func (r *racer) reopen(f *racingFlow) {
	life := f.life.Add(1)
	r.handshake(f, life)
	r.close(f, life)
}

func (r *racer) handshake(f *racingFlow, life uint32) {
	r.segment(f, true, tcpSYN, life, 0, 0)
	r.segment(f, false, tcpSYN|tcpACK, life, 0, 1)
	r.segment(f, true, tcpACK, life, 1, 1)
}

func (r *racer) close(f *racingFlow, life uint32) {
	if r.rarely(4) {
		r.segment(f, false, tcpACK, life, 1, 1)
		r.segment(f, true, tcpRST|tcpACK, life, 1, 1)
		return
	}
	r.segment(f, true, tcpFIN|tcpACK, life, 1, 1)
	r.segment(f, false, tcpFIN|tcpACK, life, 1, 2)
	r.segment(f, true, tcpACK, life, 2, 2)
}

// ask opens a UDP connection; nearly all are answered.
func (r *racer) ask(f *racingFlow) {
	r.play(f, true, f.fromClient)
	if !r.rarely(4) {
		r.play(f, false, f.toClient)
	}
}

// crowd opens more UDP connections than there are places for half-open ones, and answers any of them.
func (r *racer) crowd() {
	f := r.udp[r.random.IntN(2*racingHalfOpen)]
	if r.rarely(3) {
		r.play(f, false, f.toClient)
		return
	}
	r.play(f, true, f.fromClient)
}

// promote is half of an exchange: another CPU, or this one later, plays the rest.
func (r *racer) promote() {
	if r.rarely(2) {
		r.crowd()
		return
	}
	f := r.tcp[r.random.IntN(40)]
	life := f.life.Load()
	switch r.random.IntN(4) {
	case 0:
		r.close(f, life)
	case 1:
		r.handshake(f, f.life.Add(1))
	default: // the third packet, often from both CPUs at once
		r.segment(f, false, tcpSYN|tcpACK, life, 0, 1)
		r.segment(f, true, tcpACK, life, 1, 1)
	}
}

// openTogether plays an opening and all that follows on both CPUs at once.
func (r *racer) openTogether() {
	at, ok := r.meeting.wait()
	if !ok {
		return
	}
	flow := int(at) * 7 % racingFlows
	if at%2 == 0 {
		r.ask(r.udp[flow])
		return
	}
	r.handshake(r.tcp[flow], at)
	r.close(r.tcp[flow], at)
}

// end ends connections by hand in between, as hairpin conn flush does.
func (r *racer) end() {
	if !r.rarely(500) {
		r.reopen(r.tcp[r.random.IntN(20)])
		r.ask(r.udp[r.random.IntN(20)])
		return
	}
	selector, err := rule.ParseSelector([]string{"src", netip.PrefixFrom(rig.InternetHost, 32).String()})
	if r.rarely(2) && err == nil {
		selector, err = rule.ParseSelector([]string{"proto", "udp"})
	}
	if err == nil {
		_, err = r.b.Tables.EndConnections(selector)
	}
	r.failed(err)
}

func (r *racer) everything() {
	switch r.random.IntN(8) {
	case 0, 1:
		r.promote()
	case 2:
		r.end()
	case 3, 4:
		r.ask(pick(r, r.udp))
	case 5:
		r.reopen(r.tcp[0])
	default:
		r.reopen(pick(r, r.tcp))
	}
}

// TCP's flags, in the 14th byte of its header.
const (
	tcpFIN = 1 << iota
	tcpSYN
	tcpRST
	_
	tcpACK
)

// segment plays a TCP segment. Sequence and acknowledgement number count from the start of this life of the
// connection. The checksum is left as it was: only its receiver would look.
func (r *racer) segment(f *racingFlow, fromClient bool, flags byte, life, seq, ack uint32) {
	const between = 200000 // the start of one life and of the next
	frame, seqFrom, ackFrom := f.fromClient, rig.ClientISN+life*between, rig.ServerISN+life*between
	if !fromClient {
		frame, seqFrom, ackFrom = f.toClient, ackFrom, seqFrom
	}
	if r.rarely(32) {
		return // lost
	}
	r.frame = append(r.frame[:0], frame...)
	header := r.frame[frames.L4Offset(r.frame):]
	binary.BigEndian.PutUint32(header[4:], seqFrom+seq)
	if flags&tcpACK != 0 {
		binary.BigEndian.PutUint32(header[8:], ackFrom+ack)
	}
	header[13] = flags
	r.play(f, fromClient, r.frame)
}

// play runs a frame through one of the two programs, whatever that makes of it.
func (r *racer) play(f *racingFlow, fromClient bool, frame []byte) {
	at := f.server
	if fromClient {
		at = f.at
	}
	opts := &ebpf.RunOptions{Data: frame}
	program := r.b.Objects.HairpinTc
	if r.rarely(4) {
		program = r.b.Objects.HairpinXdp
		context := make([]byte, 24) // struct xdp_md
		binary.NativeEndian.PutUint32(context[4:], uint32(len(frame)))
		binary.NativeEndian.PutUint32(context[12:], uint32(at))
		opts.Context = context
	} else {
		context := make([]byte, 192) // struct __sk_buff
		binary.NativeEndian.PutUint32(context[40:], uint32(at))
		opts.Context = context
	}
	if _, err := program.Run(opts); err != nil {
		r.failed(fmt.Errorf("run %s with %d bytes: %w", program, len(frame), err))
		return
	}
	r.packets.Add(1)
}

// meeting has all racers go on at the same moment.
type meeting struct {
	of      int64
	arrived atomic.Int64
	closed  atomic.Bool
}

func (m *meeting) open(of int64) {
	m.of = of
	m.arrived.Store(0)
	m.closed.Store(false)
}

func (m *meeting) close() { m.closed.Store(true) }

// wait returns how often all have met, the same to each; false says that the meeting has been closed. It spins, for
// to be woken takes longer than what is to happen at once.
func (m *meeting) wait() (uint32, bool) {
	round := (m.arrived.Add(1)-1)/m.of + 1
	for m.arrived.Load() < round*m.of {
		if m.closed.Load() {
			return 0, false
		}
	}
	return uint32(round), true
}
