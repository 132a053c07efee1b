// SPDX-License-Identifier: Apache-2.0

package program

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
	"hairpin/maps/entries"
	"hairpin/maps/layout"
	"hairpin/maps/mapstest"
	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

// corpusForwards are what the corpus needs; 203.0.113.9 and .10 are 1:1 forwards.
var corpusForwards = append(slices.Clone(rig.Forwards),
	"media sctp 9899 to 192.168.1.20:9899",
	"closed-media sctp 9898 to 192.168.1.20:9898 reflect off",
	"basic icmp,udplite,gre,esp,ipip 203.0.113.9:any to 192.168.1.21",
	"nowhere tcp 83 to 192.168.77.7:83",
	"elsewhere tcp 84 to 192.168.88.8:84",
	"dmz any 203.0.113.10:any to 192.168.1.22",
)

// corpus hands out what the cases are made of. Flows and datagrams of a case differ in port and id;
// cases share nothing, as every one begins without connections.
type corpus struct {
	b        *bench
	nextPort uint16
	nextID   uint16
}

// newCase begins a case: with no connection and no fragment of any other.
func newCase(tb testing.TB, b *bench) *corpus {
	tb.Helper()
	b.Forget(tb)
	if b.narrow {
		for _, dev := range []string{"wan0", "lan0", "lan1"} {
			b.setMTU(dev, defaultMTU)
		}
		b.narrow = false
	}
	return &corpus{b: b, nextPort: 20000, nextID: 1000}
}

func (c *corpus) port() uint16 {
	c.nextPort++
	return c.nextPort
}

// id is a datagram's, new with every call.
func (c *corpus) id() uint16 {
	c.nextID++
	return c.nextID
}

// flow is a new TCP or UDP connection to the first forward.
func (c *corpus) flow(way string, udp bool) rig.Flow { return c.b.Flows(udp, c.port())[way] }

// to is a new flow to another external address and target. Ports that are 0 stay.
func (c *corpus) to(way string, udp bool, external, target string) rig.Flow {
	f := c.flow(way, udp)
	f.External, f.Target = mustAddrPort(external), mustAddrPort(target)
	return f
}

// basic is a flow to the 1:1 forward of protocols without ports: an echo's id is its client's port.
func (c *corpus) basic(way string) rig.Flow {
	return c.to(way, false, "203.0.113.9:0", "192.168.1.21:0")
}

// step is one packet of a case, and what becomes of it.
type step struct {
	at      rig.Port
	in      []byte
	verdict bpf.HairpinVerdict
	reason  string   // counted with the verdict; none for a packet sent or passed like most
	sent    [][]byte // what leaves, in this order
	passed  [][]byte // what the kernel gets
	tells   bool     // what is sent is the router's own ICMP error
	pieces  int      // if not 0: what is sent leaves as fragments for this MTU
	opens   bool     // a connection
	may     bool     // open a connection
	moves   bool     // may change its connection although it is not sent
	defers  string   // why XDP leaves it to TC; if empty it may do it or not
	state   string   // of the only connection then, if not empty
	before  func()   // is called before the packet
	mayFail string   // why AF_PACKET cannot put this frame on a wire
	spared  *sparing // what becomes of it instead, if it must not be translated
}

// in is a packet of the client that is sent on.
func (c *corpus) in(f rig.Flow, changes ...func(*frames.Frame)) step {
	in, want := f.In(changes...)
	return send(f.At, in, want)
}

// back is a packet of the server that is sent on.
func (c *corpus) back(f rig.Flow, changes ...func(*frames.Frame)) step {
	in, want := f.Back(changes...)
	return send(f.Rig.LAN, in, want)
}

func send(at rig.Port, in, want frames.Frame) step { return sendBytes(at, in.Bytes(), want.Bytes()) }

func sendBytes(at rig.Port, in []byte, want ...[]byte) step {
	return step{at: at, in: in, verdict: bpf.HairpinVerdictVERDICT_SEND, sent: want}
}

func pass(at rig.Port, in []byte) step { return step{at: at, in: in}.passes() }

func (s step) passes() step {
	s.verdict, s.reason, s.sent, s.passed = bpf.HairpinVerdictVERDICT_PASS, "", nil, [][]byte{s.in}
	return s
}

func (s step) dropped(reason string) step {
	s.verdict, s.reason, s.sent = bpf.HairpinVerdictVERDICT_DROP, reason, nil
	return s
}

func (s step) refused(reason string) step {
	s.verdict, s.reason, s.sent = bpf.HairpinVerdictVERDICT_REFUSE, reason, nil
	return s
}

func (s step) held() step {
	s.verdict, s.reason, s.sent = bpf.HairpinVerdictVERDICT_HOLD, "fragment_early", nil
	return s
}

// opening says that the packet makes a connection.
func (s step) opening() step { s.opens = true; return s }

// mayOpen says that the packet may leave a half-open connection.
func (s step) mayOpen() step { s.may, s.moves = true, true; return s }

// uncounted: XDP leaves whole kinds of packets to TC without a word.
const uncounted = "-"

// deferred says why XDP has to leave the packet to TC.
func (s step) deferred(reason string) step { s.defers = reason; return s }

// translatedError counts as an ICMP error that was translated.
func (s step) translatedError() step { s.reason, s.defers = "icmp_error", uncounted; return s }

// releasing says that held fragments leave behind this packet.
func (s step) releasing(sent ...[]byte) step { s.sent = append(s.sent, sent...); return s }

// cut says that the packet leaves in pieces for this MTU.
func (s step) cut(mtu int) step { s.pieces, s.defers = mtu, "too_big"; return s }

// told expects an ICMP error from this address of the router to the packet's sender.
func (s step) told(from netip.Addr, kind, code uint8, rest uint32) step {
	in := s.in
	answer := frames.Frame{
		From: in[0:6], To: in[6:12], Src: netip.AddrPortFrom(from, 0), Dst: netip.AddrPortFrom(senderOf(in), 0),
		TOS: 0xc0,
	}
	icmpError(kind, code, rest, quote(in, quoteLimit))(&answer)
	s.sent, s.tells = [][]byte{answer.Bytes()}, true
	return s
}

// quoteLimit is the maximum number of bytes that the router's ICMP errors quote.
const quoteLimit = 504

func senderOf(data []byte) netip.Addr {
	return netip.AddrFrom4([4]byte(data[frames.EthernetLength+12:]))
}

// opened is the handshake of a flow; both ways are known then.
func (c *corpus) opened(f rig.Flow) []step {
	switch {
	case f.UDP:
		return []step{
			c.in(f, frames.Payload("open")).opening(), c.back(f, frames.Payload("answer")), c.back(f, frames.Payload("answer")),
		}
	default:
		return []step{
			c.in(f, frames.TCP("S", rig.ClientISN, 0)).opening(), c.back(f, frames.TCP("SA", rig.ServerISN, rig.ClientISN+1)),
			c.in(f, frames.TCP("A", rig.ClientISN+1, rig.ServerISN+1)), c.back(f, frames.TCP("A", rig.ServerISN+1, rig.ClientISN+1)),
		}
	}
}

// row is a case of the table: a series of packets.
type row struct {
	name  string
	steps func(c *corpus) []step
}

func allRows() []row {
	return slices.Concat(malformedRows(), checksumRows(), fragmentRows(), icmpRows(), tcpRows(), spoofRows(), protocolRows(), hopRows(),
		twinRows(), errorPlaceRows(), sourceRouteRows())
}

// TestCorpus puts every case through TC alone and through XDP, which may leave a packet to TC.
func TestCorpus(t *testing.T) {
	b := newCorpusBench(t)
	for _, h := range hooks {
		for _, r := range allRows() {
			t.Run(h.name+"/"+r.name, func(t *testing.T) {
				c := newCase(t, b)
				for i, s := range r.steps(c) {
					if !c.play(t, h, s) {
						t.Fatalf("that was packet %d of %q: %x", i+1, r.name, s.in)
					}
				}
			})
		}
	}
}

// newCorpusBench is a bench whose answers to refused openings are not limited in rate, and whose
// lan1 caps the MSS.
func newCorpusBench(tb testing.TB) *bench {
	tb.Helper()
	b := newBench(tb, corpusForwards...)
	b.settings(tb, func(s *bpf.HairpinSettings) {
		s.IcmpInterval, s.Told = 0, bpf.HairpinSideSIDE_LAN
	})
	b.capMSS(tb, b.LAN2, cappedMTU)
	b.kernelPort(tb)
	b.unreachable(tb, "192.168.77.0/24")
	return b
}

// kernelPort is an interface that hairpin does not watch. On wires it is also where frames go that
// were left to the kernel.
func (b *bench) kernelPort(tb testing.TB) {
	tb.Helper()
	lab.Cable(b.Router, "kernel0", b.Wires, "to-kernel0")
	b.Router.Sysctl("net/ipv6/conf/kernel0/disable_ipv6", "1") // it is to say nothing itself
	b.Router.Address("kernel0", "192.168.88.1/24")
	b.Neighbour(tb, rig.Port{Index: b.Router.Index("kernel0")}, netip.MustParseAddr("192.168.88.8"), rig.ServerMAC)
}

// unreachable makes the router refuse to route to a network.
func (b *bench) unreachable(tb testing.TB, prefix string) {
	tb.Helper()
	_, network, err := net.ParseCIDR(prefix)
	lab.Must(err)
	err = b.Router.Do(func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: network, Type: unix.RTN_UNREACHABLE})
	})
	if err != nil {
		tb.Fatalf("route %s nowhere: %v", prefix, err)
	}
}

// end ends every connection as the control plane does.
func (c *corpus) end() {
	var all []layout.Entry
	lab.Must(entries.Each(&c.b.Objects, func(e *layout.Entry) { all = append(all, *e) }))
	for _, entry := range all {
		entry.Epochs--
		lab.Must(mapstest.Entries(&c.b.Objects).Update(&entry, ebpf.UpdateExist))
	}
}

// settings changes the datapath's settings directly, without the configuration.
func (b *bench) settings(tb testing.TB, change func(*bpf.HairpinSettings)) {
	tb.Helper()
	var s bpf.HairpinSettings
	if err := b.Objects.Settings.Lookup(uint32(0), &s); err != nil {
		tb.Fatal(err)
	}
	change(&s)
	if err := b.Objects.Settings.Put(uint32(0), s); err != nil {
		tb.Fatal(err)
	}
}

// cappedMTU is the MTU of the link behind lan1, for the MSS.
const cappedMTU = 1400

func (b *bench) capMSS(tb testing.TB, p rig.Port, mtu uint32) {
	tb.Helper()
	var in bpf.HairpinInterface
	if err := b.Objects.Interfaces.Lookup(uint32(p.Index), &in); err != nil {
		tb.Fatal(err)
	}
	in.MssMtu = mtu
	if err := b.Objects.Interfaces.Put(uint32(p.Index), in); err != nil {
		tb.Fatal(err)
	}
}

// play runs a packet and says whether all is as the step says.
func (c *corpus) play(t *testing.T, h hook, s step) bool {
	t.Helper()
	b := c.b
	if s.before != nil {
		s.before()
	}
	before, connections, opened := b.tally(t), b.halves(t), b.opened(t)
	got := h.run(b, t, s.at, s.in)
	if h.name == "xdp" {
		if s.defers != "" && got.Code != h.pass {
			t.Errorf("xdp answers %d, want it to leave this to TC", got.Code)
			return false
		}
		if s.defers != "" && s.defers != uncounted && !deferred(before, b.tally(t), s.defers) {
			t.Errorf("xdp did not count \"defer %s\"", s.defers)
		}
		if got.Code == h.pass {
			if !bytes.Equal(got.Data, s.in) {
				t.Errorf("xdp changed what it passed to %x", got.Data)
				return false
			}
			got, h = b.TC(t, s.at, s.in), hooks[0]
		}
	}
	ok := s.judge(t, h, got)
	if s.state != "" && b.state(t) != s.state {
		t.Errorf("the connection is %s then, want %s", b.state(t), s.state)
		ok = false
	}
	ok = s.judgeCounters(t, before, b.tally(t)) && ok
	ok = s.judgeState(t, connections, b.halves(t)) && ok
	if n := b.opened(t) - opened; (n == 1) != s.opens && !s.may || n > 1 {
		t.Errorf("%d connections were opened, want it to be %v", n, s.opens)
		return false
	}
	return ok
}

// deferred says whether XDP has left a packet to TC for a reason, or for the one that it looks for first: on a
// slow machine a next hop is more than a second old by then.
func deferred(before, after map[string]uint64, reason string) bool {
	return after["defer "+reason] == before["defer "+reason]+1 || after["defer next_hop"] == before["defer next_hop"]+1
}

// judge compares the program's answer and every byte of the packet.
func (s step) judge(t *testing.T, h hook, got rig.Answer) bool {
	t.Helper()
	if s.spared != nil {
		return s.spared.judge(t, h, s.in, got)
	}
	want := map[bpf.HairpinVerdict]uint32{
		bpf.HairpinVerdictVERDICT_PASS: h.pass, bpf.HairpinVerdictVERDICT_SEND: h.send,
	}
	code, sends := want[s.verdict]
	if !sends {
		code = h.drop
	}
	if s.tells {
		code = h.send
	}
	if s.onlyOnWire() && (got.Code == h.send || got.Code == h.drop) {
		return true
	}
	if got.Code != code {
		t.Errorf("%s answers %d, want %d (%v %s)", h.name, int32(got.Code), int32(code), s.verdict, s.reason)
		return false
	}
	expected := s.in
	if len(s.sent) > 0 {
		expected = s.sent[0]
	}
	if s.tells && len(got.Data) == len(expected) {
		expected = adopt(t, expected, got.Data)
	}
	if err := same(expected, got.Data, s.in); err != nil {
		t.Errorf("%s: %v", h.name, err)
		return false
	}
	return true
}

// onlyOnWire says whether not all that leaves is in the program's answer.
func (s step) onlyOnWire() bool { return len(s.sent) > 1 || len(s.passed) > 1 || s.pieces != 0 }

// adopt takes from an ICMP error of the router's what no rule prescribes, after a look at it: TTL
// (RFC 1812 4.2.2.9: 64 or more), identification, DF.
func adopt(t *testing.T, want, got []byte) []byte {
	t.Helper()
	want = slices.Clone(want)
	if ttl := got[frames.EthernetLength+8]; ttl < 64 {
		t.Errorf("the ICMP error's TTL is %d", ttl)
	}
	copy(want[frames.EthernetLength+4:frames.EthernetLength+6], got[frames.EthernetLength+4:])
	want[frames.EthernetLength+6] |= got[frames.EthernetLength+6] & (dontFragment >> 8)
	want[frames.EthernetLength+8] = got[frames.EthernetLength+8]
	sealIP(want)
	return want
}

// same compares frames. Where the kernel is to resolve the next hop the program leaves the MAC
// addresses as they came; on a wire they show.
func same(want, got, in []byte) error {
	if bytes.Equal(want, got) {
		return nil
	}
	if len(got) > 12 && len(want) == len(got) && bytes.Equal(got[:12], in[:12]) && bytes.Equal(got[12:], want[12:]) {
		return nil
	}
	return fmt.Errorf("%s\n got %x\nwant %x", difference(want, got), got, want)
}

// difference names the first byte that differs.
func difference(want, got []byte) string {
	for i := range min(len(want), len(got)) {
		if want[i] != got[i] {
			return fmt.Sprintf("byte %d differs (%d in the IP packet)", i, i-frames.EthernetLength)
		}
	}
	return fmt.Sprintf("%d bytes, want %d", len(got), len(want))
}

// tally returns the counters, by interface and "verdict reason".
func (b *bench) tally(tb testing.TB) map[string]uint64 {
	tb.Helper()
	counters, err := b.Tables.Counters()
	if err != nil {
		tb.Fatal(err)
	}
	all := make(map[string]uint64, len(counters))
	for _, counter := range counters {
		if counter.Verdict != "defer" {
			all[fmt.Sprintf("%s %s on %d", counter.Verdict, counter.Reason, counter.Index)] = counter.Packets
			continue
		}
		all["defer "+counter.Reason] += counter.Packets
	}
	return all
}

// judgeCounters wants exactly what the step says to be counted, and nothing else but deferrals.
func (s step) judgeCounters(t *testing.T, before, after map[string]uint64) bool {
	t.Helper()
	if s.spared != nil {
		return s.spared.judgeCounters(t, s.at, before, after)
	}
	want := map[string]uint64{}
	if s.reason != "" {
		want[fmt.Sprintf("%s %s on %d", verdictName(s.verdict), s.reason, s.at.Index)] = 1
	}
	if s.tells {
		want[fmt.Sprintf("tell %s on %d", s.reason, s.at.Index)] = 1
	}
	ok := true
	for name, n := range after {
		if d := n - before[name]; d != want[name] && !strings.HasPrefix(name, "defer ") {
			t.Errorf("%q was counted %d times, want %d", name, d, want[name])
			ok = false
		}
		delete(want, name)
	}
	for name := range want {
		t.Errorf("%q was not counted", name)
		ok = false
	}
	return ok
}

func verdictName(verdict bpf.HairpinVerdict) string {
	return map[bpf.HairpinVerdict]string{
		bpf.HairpinVerdictVERDICT_PASS: "pass", bpf.HairpinVerdictVERDICT_DROP: "drop",
		bpf.HairpinVerdictVERDICT_REFUSE: "refuse", bpf.HairpinVerdictVERDICT_SEND: "send",
		bpf.HairpinVerdictVERDICT_HOLD: "hold",
	}[verdict]
}

// halves is every direction of every connection, without what the way there and the time do to it.
func (b *bench) halves(tb testing.TB) map[bpf.HairpinTuple]layout.Entry {
	tb.Helper()
	all := map[bpf.HairpinTuple]layout.Entry{}
	err := entries.Each(&b.Objects, func(e *layout.Entry) {
		half := *e
		half.Hop = 0
		all[e.Key] = half
	})
	if err != nil {
		tb.Fatal(err)
	}
	return all
}

// judgeState wants no connection to be touched by a packet that is not of it: one that is dropped,
// passed, refused, held, or an ICMP error.
func (s step) judgeState(t *testing.T, before, after map[bpf.HairpinTuple]layout.Entry) bool {
	t.Helper()
	follows := s.verdict == bpf.HairpinVerdictVERDICT_SEND && s.reason == ""
	if follows || s.moves {
		return true
	}
	ok := true
	for key, conn := range before {
		now, there := after[key]
		if !there || now != conn {
			t.Errorf("connection %v > %v, still there %v, was\n%+v, is\n%+v", key.Sport, key.Dport, there, conn, now)
			ok = false
		}
	}
	return ok
}
