// SPDX-License-Identifier: Apache-2.0

package program

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps/layout"
	"hairpin/maps/mapstest"
	"hairpin/test/frames"
	"hairpin/test/rig"
)

// What the fuzzer checks with connections in mind: that their count is right, that a tuple alone proves
// nothing by another interface, and that no target's private address leaves by the WAN.

const (
	// replayEvery is which of the accepted frames TestMutations puts in by the other interfaces.
	replayEvery = 8
	// guardEvery is which of the passed frames the guard is to let pass.
	guardEvery = 8
	// answersKept is how many of the targets' frames to the Internet are sent again without state.
	answersKept = 256
)

// Indices into the sides of an executor.
const (
	sideWAN = iota
	sideLAN
	sideOther
	sideLocal
)

// standInNetwork has the stand-ins of all clients.
var standInNetwork = netip.MustParsePrefix("198.18.0.0/15")

// oracles has the values that the oracles keep from one frame to the next.
type oracles struct {
	replayEvery                int
	targets                    map[netip.Addr]bool // private addresses that forwards lead to
	guarded                    [192]byte           // struct __sk_buff of a frame at egress of wan0
	executions                 int
	accepted, replayed, passed int
	leaks                      int      // passed frames that the guard had to drop
	answers                    []sample // accepted frames of targets to the Internet, made for this state
}

func newOracles(b *bench) oracles {
	o := oracles{replayEvery: replayEvery, targets: map[netip.Addr]bool{}}
	for _, f := range b.Config.Forwards {
		o.targets[f.Target] = f.Target.IsPrivate()
	}
	binary.NativeEndian.PutUint32(o.guarded[40:], uint32(b.WAN.Index))
	return o
}

// behind is the side that the router routes an address to; sideLocal is the router itself.
func (x *executor) behind(addr netip.Addr) int {
	for _, own := range slices.Concat(x.sides[sideWAN].routers, x.sides[sideLAN].routers, x.sides[sideOther].routers) {
		if addr == own {
			return sideLocal
		}
	}
	for side, prefixes := range map[int][2]netip.Prefix{
		sideLAN:   {netip.PrefixFrom(rig.LANAddress, 24), netip.PrefixFrom(lanAddress6, 64)},
		sideOther: {netip.PrefixFrom(rig.OtherAddress, 24), netip.PrefixFrom(otherAddress6, 64)},
	} {
		if prefixes[0].Contains(addr) || prefixes[1].Contains(addr) {
			return side
		}
	}
	return sideWAN
}

// checkState is the part of execute that looks at more than the frame.
func (x *executor) checkState(from int, data []byte, xdp, tc rig.Answer) error {
	for i, got := range []rig.Answer{tc, xdp} {
		if got.Code == hooks[i].send {
			if err := x.checkLeak(delivered(data, got.Data)); err != nil {
				return fmt.Errorf("%s: %w", hooks[i].name, err)
			}
		}
	}
	if tc.Code == rig.TCUnspec {
		if err := x.checkGuard(data); err != nil {
			return err
		}
	}
	if xdp.Code == rig.XDPRedirect || tc.Code == rig.TCRedirect && !told(data, delivered(data, tc.Data)) {
		if err := x.checkAccepted(from, data); err != nil {
			return err
		}
	}
	x.executions++
	if x.executions%executionsPerState == 0 {
		return x.checkCensus()
	}
	return nil
}

// checkCensus wants the datapath to have counted the connections that there are, and each entry to have
// its other direction.
func (x *executor) checkCensus() error {
	audit, err := x.b.Tables.Audit()
	if err != nil {
		return err
	}
	if audit.Orphans != 0 {
		return fmt.Errorf("%d of %d entries have no other direction", audit.Orphans, audit.Entries)
	}
	for kind, counted := range audit.Counted {
		if counted != audit.Found[kind] {
			return fmt.Errorf("%s: %d connections counted, %d found", kind, counted, audit.Found[kind])
		}
	}
	return nil
}

// checkLeak returns an error if a packet to the Internet has a target's private address: as its source, or in the packet that an ICMP
// error quotes.
func (x *executor) checkLeak(out []byte) error {
	p, ok := dissect(out)
	if !ok {
		return fmt.Errorf("what was sent makes no sense: %x", out)
	}
	src, dst := p.addresses()
	if x.behind(dst) != sideWAN {
		return nil
	}
	if x.targets[src] {
		return fmt.Errorf("the target's address %v leaves for %v: %x", src, dst, out)
	}
	if p.isError() {
		from, to, ok := p.quotedAddresses()
		if ok && (x.targets[from] || x.targets[to]) {
			return fmt.Errorf("an ICMP error for %v quotes the target's address: %x", dst, out)
		}
	}
	return nil
}

// checkGuard puts a frame that the kernel gets through the guard of the WAN, as if the kernel sent it on by
// there: it is dropped if its source is a target.
func (x *executor) checkGuard(data []byte) error {
	p, ok := dissect(data)
	if !ok {
		return nil // the kernel does not forward it
	}
	src, _ := p.addresses()
	private := x.targets[src.Unmap()]
	x.passed++
	if !private && x.passed%guardEvery != 0 {
		return nil
	}
	out := slices.Concat(rig.GatewayMAC, rig.WANMAC, data[12:])
	if x.passed%2 == 0 {
		out[0] = 0x42 // might be the first byte of an IP header: the guard looks for the header another way
	}
	code, err := x.b.Objects.HairpinGuard.Run(&ebpf.RunOptions{Data: out, Context: x.guarded[:]})
	if err != nil {
		return fmt.Errorf("run guard: %w", err)
	}
	want := rig.TCUnspec
	if private {
		want = rig.TCShot
		x.leaks++
	}
	if code != want {
		return fmt.Errorf("the guard answers %d to a frame from %v: %x", int32(code), src, out)
	}
	return nil
}

// checkAccepted looks at a frame that was translated and sent.
func (x *executor) checkAccepted(from int, data []byte) error {
	p, _ := dissect(data)
	src, dst := p.addresses()
	// Not answers to a stand-in: they belong to a LAN client, and the forward alone says to which.
	if x.targets[src] && x.behind(dst) == sideWAN && !standInNetwork.Contains(dst) && len(x.answers) < answersKept {
		x.answers = append(x.answers, sample{from, slices.Clone(data)})
	}
	x.accepted++
	if x.accepted%x.replayEvery != 0 {
		return nil
	}
	x.replayed++
	before, err := x.connection(p)
	if err != nil {
		return fmt.Errorf("it is sent: %w", err)
	}
	if before[0].Serial != 0 && before[0].Ifindex != uint32(x.sides[from].Index) && !x.mayReport(p, &before[0], from) {
		return fmt.Errorf("it is sent although its connection's packets come by the device with index %d", before[0].Ifindex)
	}
	for i := range x.sides {
		// Mutations give the router itself the LANs' addresses: a later fragment may be of a datagram of either.
		ambiguous := p.offset != 0 && (from == sideLocal || i == sideLocal)
		if i == from || ambiguous || x.mayReport(p, &before[0], i) {
			continue
		}
		if err := x.replay(i, data); err != nil {
			return fmt.Errorf("again by interface %d: %w", i, err)
		}
		after, err := x.connection(p)
		if err != nil {
			return fmt.Errorf("again by interface %d: %w", i, err)
		}
		if before != after {
			return fmt.Errorf("again by interface %d: its connection was %+v and is %+v", i, before, after)
		}
	}
	return nil
}

// mayReport reports whether a frame is an ICMP error that may come in by interface by. An error may come in by the interface of its
// connection's side. If this interface is a LAN, the error may also be the router's own, or come by the LAN that its source is behind. An
// error from the side of a WAN or of the loopback device may not come in by another interface.
func (x *executor) mayReport(p parts, reported *layout.Entry, by int) bool {
	src, _ := p.addresses()
	if !p.isError() {
		return false
	}
	if reported.Ifindex == uint32(x.sides[by].Index) {
		return true
	}
	if reported.Flags&bpf.HairpinConnFlagCONN_FROM_WAN != 0 || by == sideWAN || reported.Ifindex == uint32(loopback.Index) {
		return false
	}
	return by == sideLocal || x.behind(src) == by
}

// replay puts a frame through both programs by an interface where it proves nothing: it is passed as it is or
// dropped, and opens nothing.
func (x *executor) replay(by int, data []byte) error {
	at := x.sides[by]
	data = slices.Clone(data)
	copy(data, at.MAC)
	for _, i := range []int{1, 0} {
		if i == 1 && by == sideLocal {
			continue
		}
		got, err := x.run(i, at.Port, data)
		if err != nil {
			return err
		}
		if got.Code == hooks[i].send {
			return fmt.Errorf("%s sends %x", hooks[i].name, got.Data)
		}
		if err := checkAnswer(hooks[i], at, data, got); err != nil {
			return err
		}
	}
	opened, err := x.newlyOpened()
	if err == nil && opened != 0 {
		err = fmt.Errorf("it opened %d connections", opened)
	}
	return err
}

// checkStateless puts the answers that targets gave through both programs without any connection: nothing
// is sent then, and the guard drops what the kernel would.
func (x *executor) checkStateless() error {
	for _, s := range x.answers {
		accepted := x.accepted
		err := x.execute(s.at, s.data)
		if err == nil && x.accepted != accepted {
			err = fmt.Errorf("it is sent without a connection")
		}
		if err != nil {
			return fmt.Errorf("without state, interface %d, %x: %w", s.at, s.data, err)
		}
	}
	x.answers = x.answers[:0]
	return nil
}

// connection is both entries of the connection that a translated packet is of, or that an ICMP error reports on; zero
// if the packet alone does not tell, as a fragment without ports.
func (x *executor) connection(p parts) (both [2]layout.Entry, err error) {
	key, ok := p.tuple()
	if !ok {
		return both, nil
	}
	for i := range both {
		if both[i], err = mapstest.Entries(&x.b.Objects).Lookup(key); err != nil {
			return both, fmt.Errorf("entry of %v: %w", key, err)
		}
		key = both[i].Answer()
	}
	return both, nil
}

// tuple is the key of a packet's connection; false: the packet alone does not tell.
func (p parts) tuple() (key bpf.HairpinTuple, ok bool) {
	if p.offset != 0 {
		return key, false
	}
	src, dst := p.addresses()
	if !p.isError() {
		sport, dport := p.ports(p.l4, p.protocol)
		return tupleOf(src, dst, sport, dport, p.protocol), true
	}
	l4, protocol, ok := p.quote(p.l4 + 8)
	src, dst, _ = p.quotedAddresses()
	if !ok {
		return key, false
	}
	sport, dport := p.ports(l4, protocol)
	return tupleOf(dst, src, dport, sport, protocol), true
}

// quotedAddresses returns the addresses of the packet that an ICMP error quotes.
func (p parts) quotedAddresses() (src, dst netip.Addr, ok bool) {
	quoted := p
	quoted.data = p.data[p.l4+8-ipAt:]
	if len(quoted.data) < ipAt+frames.IP6Header && (p.v6 || len(quoted.data) < l4At) {
		return src, dst, false
	}
	src, dst = quoted.addresses()
	return src, dst, true
}

// ports of a transport header, as they are in a key; an echo's id is the port of who asks.
func (p parts) ports(l4 int, protocol uint8) (sport, dport uint16) {
	word := func(at int) uint16 { return binary.NativeEndian.Uint16(p.data[l4+at:]) }
	switch protocol {
	case protocolTCP, protocolUDP, protocolSCTP:
		return word(0), word(2)
	case protocolICMP, protocolICMP6:
		if p.data[l4] == icmpEchoRequest || p.data[l4] == icmp6EchoRequest {
			return word(4), 0
		}
		return 0, word(4)
	}
	return 0, 0
}

func tupleOf(src, dst netip.Addr, sport, dport uint16, protocol uint8) bpf.HairpinTuple {
	key := bpf.HairpinTuple{Sport: sport, Dport: dport, Protocol: protocol}
	key.Src.Bytes, key.Dst.Bytes = src.As16(), dst.As16()
	return key
}

// newlyOpened returns how many connections were opened since its last call.
func (x *executor) newlyOpened() (uint64, error) {
	if err := x.b.Objects.ConnEvents.Lookup(bpf.HairpinConnEventEVENT_OPENED, &x.perCPU); err != nil {
		return 0, fmt.Errorf("read events: %w", err)
	}
	total := uint64(0)
	for _, n := range x.perCPU {
		total += n
	}
	opened := total - x.opened
	x.opened = total
	return opened, nil
}

// did logs how many frames each oracle has judged, so that an oracle that never runs is noticed.
func (x *executor) did(tb testing.TB) {
	tb.Helper()
	tb.Logf("%s: of %d executions %d were accepted, %d of these replayed; the guard dropped %d",
		x.name, x.executions, x.accepted, x.replayed, x.leaks)
}
