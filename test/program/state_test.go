// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/loader"
	"hairpin/maps"
	"hairpin/maps/config"
	"hairpin/maps/entries"
	"hairpin/maps/layout"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

// state returns the state of the only connection.
func (b *bench) state(tb testing.TB) string {
	tb.Helper()
	list := b.Connections(tb)
	if len(list) != 1 {
		tb.Fatalf("%d connections, want one: %+v", len(list), list)
	}
	return list[0].State
}

func wantState(tb testing.TB, b *bench, when, want string) {
	tb.Helper()
	if got := b.state(tb); got != want {
		tb.Fatalf("%s the connection is %s, want %s", when, got, want)
	}
}

// TestHandshake: only the opener's right answer to the server's right answer makes a connection
// that a flood cannot evict.
func TestHandshake(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	f := b.Flows(false, 20000)["from the Internet"]
	f.Send(t, true, frames.TCP("S", rig.ClientISN, 0))
	wantState(t, b, "after a SYN", "half-open")
	f.Send(t, true, frames.TCP("S", rig.ClientISN, 0))
	f.Send(t, true, frames.TCP("S", rig.ClientISN, 0))
	wantState(t, b, "after the SYN again", "half-open")
	forged, _ := f.In(frames.TCP("A", rig.ClientISN+1, rig.ServerISN+1))
	if got := b.TC(t, f.At, forged.Bytes()); got.Code != rig.TCShot {
		t.Errorf("an ACK before the SYN/ACK: tc answers %d", int32(got.Code))
	}
	f.Send(t, false, frames.TCP("SA", rig.ServerISN, rig.ClientISN+1))
	forged, _ = f.In(frames.TCP("A", rig.ClientISN+1, rig.ServerISN-70000))
	if got := b.TC(t, f.At, forged.Bytes()); got.Code != rig.TCShot || b.Counted(t, "bad_handshake") != 2 {
		t.Errorf("a guessed ACK: tc answers %d", int32(got.Code))
	}
	wantState(t, b, "after a guessed ACK", "half-open")
	f.Send(t, true, frames.TCP("A", rig.ClientISN+1, rig.ServerISN+1))
	wantState(t, b, "after the handshake", "established")
}

// TestReset: a RST ends a connection only with the sequence number that its receiver expects.
func TestReset(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	f := b.Flows(false, 20000)["from the Internet"]
	f.Open(t)
	for _, seq := range []uint32{0, rig.ClientISN, rig.ClientISN + 2, rig.ClientISN + 5000, rig.ServerISN} {
		f.Send(t, true, frames.TCP("R", seq, 0))
		wantState(t, b, fmt.Sprintf("after a RST at %d", seq), "established")
	}
	f.Send(t, true, frames.TCP("R", rig.ClientISN+1, 0))
	wantState(t, b, "after the exact RST", "closing")
	f.Send(t, true, frames.TCP("PA", rig.ClientISN+1, rig.ServerISN+1), frames.Payload("still here"))
	wantState(t, b, "after data behind the RST, which are sent on (RFC 7857 2.2)", "closing")
	f.Send(t, false, frames.TCP("R", rig.ServerISN+1, 0))
	wantState(t, b, "after the server's exact RST", "closing")
}

// TestClose: when both FINs are acknowledged, the connection closes. A SYN of the opener then opens a new connection.
func TestClose(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	f := b.Flows(false, 20000)["hairpin"]
	f.Open(t)
	f.Send(t, true, frames.TCP("FA", rig.ClientISN+400, rig.ServerISN+1)) // forged: nobody acknowledges it
	f.Send(t, false, frames.TCP("FA", rig.ServerISN+1, rig.ClientISN+1))
	f.Send(t, true, frames.TCP("A", rig.ClientISN+1, rig.ServerISN+2))
	wantState(t, b, "after a forged FIN", "established")
	f.Send(t, true, frames.TCP("S", rig.ClientISN+9000, 0))
	wantState(t, b, "after a SYN in the middle", "established")
	f.Send(t, true, frames.TCP("FA", rig.ClientISN+1, rig.ServerISN+2))
	wantState(t, b, "before the last ACK", "established")
	f.Send(t, false, frames.TCP("A", rig.ServerISN+2, rig.ClientISN+2))
	wantState(t, b, "after both FINs", "closing")
	f.Send(t, true, frames.TCP("S", rig.ClientISN+9000, 0))
	wantState(t, b, "after a new SYN", "half-open")
}

// TestForwardGone: when a forward is removed, its connections end at once. Later packets of either side are not sent on; TC answers
// them.
func TestForwardGone(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	for i, udp := range []bool{false, true} {
		f := b.Flows(udp, uint16(20000+i))["hairpin"]
		f.Open(t)
	}
	kept := b.Flows(true, 20007)["hairpin"]
	kept.External, kept.Target = mustAddrPort("203.0.113.1:6003"), mustAddrPort("192.168.1.20:7003")
	kept.Open(t)
	b.Config.Forwards = b.Config.Forwards[1:]
	b.Apply(t)
	// TC sends a RST as a new packet and drops the segment. It writes an ICMP error over the packet and redirects it.
	answered := map[bool]map[string]uint32{false: {"tc": rig.TCShot, "xdp": rig.XDPPass}, true: {"tc": rig.TCRedirect, "xdp": rig.XDPPass}}
	for i, udp := range []bool{false, true} {
		f := b.Flows(udp, uint16(20000+i))["hairpin"]
		for _, h := range hooks {
			in, _ := f.Back(frames.TCP("PA", rig.ServerISN+1, rig.ClientISN+1))
			if got := h.run(b, t, b.LAN, in.Bytes()); got.Code != answered[udp][h.name] {
				t.Errorf("the server, %s udp=%v: answers %d", h.name, udp, int32(got.Code))
			}
			in, _ = f.In(frames.TCP("PA", rig.ClientISN+1, rig.ServerISN+1))
			want := answered[udp][h.name]
			if udp {
				want = h.pass // it may be a new one, of which the kernel knows nothing either
			}
			if got := h.run(b, t, b.LAN, in.Bytes()); got.Code != want {
				t.Errorf("the client, %s udp=%v: answers %d", h.name, udp, int32(got.Code))
			}
		}
	}
	kept.Send(t, true, frames.Payload("of another forward"))
	if list := b.Connections(t); len(list) != 1 {
		t.Errorf("%d connections are listed, want the one that is kept", len(list))
	}
}

// TestRetargeted: no connection jumps to the new target; a new one goes there.
func TestRetargeted(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	f := b.Flows(false, 20000)["from the Internet"]
	f.Open(t)
	b.Config.Forwards[0].TargetPort = 9443
	b.Apply(t)
	in, _ := f.In(frames.TCP("PA", rig.ClientISN+1, rig.ServerISN+1))
	if got := b.TC(t, f.At, in.Bytes()); got.Code != rig.TCShot {
		t.Errorf("data of the old connection: tc answers %d", int32(got.Code))
	}
	f.Target = mustAddrPort("192.168.1.20:9443")
	in, want := f.In(frames.TCP("S", rig.ClientISN+5000, 0))
	hooks[0].sends(t, f, func() {}, f.At, in, want)
}

// TestTableFull: connections of TCP are refused, none makes room for them.
func TestTableFull(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	room := int(maps.TCPLimit(&b.Objects))
	at := func(i int) rig.Flow { // each of another client, who may have only so many
		f := b.Flows(false, 20001)["from the Internet"]
		f.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{45, 0, byte(i >> 8), byte(i)}), 20001)
		f.Source = f.Client
		return f
	}
	for i := range room {
		at(i).Open(t)
	}
	c := &corpus{b: b}
	late := at(room)
	for _, s := range []step{
		c.in(late, opener).opening(), c.back(late, frames.TCP("SA", rig.ServerISN, rig.ClientISN+1)),
		c.in(late, frames.TCP("A", rig.ClientISN+1, rig.ServerISN+1)).refused("table_full"),
	} {
		c.play(t, hooks[0], s)
	}
	for i := range room {
		at(i).Send(t, true, middle, frames.Payload("still there"))
	}
}

// TestDatagramsAreNotRefused: where all places of other protocols than TCP are held, a connection that nothing but one
// answer speaks for gives way; one that has gone on for seconds stays, and TCP is not touched.
func TestDatagramsAreNotRefused(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	room := int(maps.ConnectionsLimit(&b.Objects) - maps.TCPLimit(&b.Objects))
	at := func(i int) rig.Flow {
		f := b.Flows(true, 20001)["from the Internet"]
		f.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{45, 0, byte(i >> 8), byte(i)}), 20001)
		f.Source = f.Client
		return f
	}
	kept, web := at(0), b.Flows(false, 20001)["from the Internet"]
	web.Open(t)
	kept.Open(t)
	var all []layout.Entry
	lab.Must(entries.Each(&b.Objects, func(e *layout.Entry) { all = append(all, *e) }))
	for _, e := range all {
		if e.Opener() && e.Key.Protocol == uint8(rule.UDP) {
			e.End = 60 // seconds in which both sides have sent
			lab.Must(mapstest.Entries(&b.Objects).Update(&e, ebpf.UpdateExist))
		}
	}
	for i := range 2 * room {
		at(i+1).Send(t, true, frames.Payload("open"))
		at(i+1).Send(t, false, frames.Payload("answer"))
	}
	kept.Send(t, false, frames.Payload("an hour of this"))
	web.Send(t, true, middle, frames.Payload("still there"))
	count, err := b.Tables.CountConnections(rule.Selector{})
	if err != nil || count.Established != room+1 {
		t.Errorf("%+v, %v: want %d established", count, err, room+1)
	}
}

// TestExpiry: an idle connection goes when its time is over, a busy one stays. No daemon is needed.
func TestExpiry(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	b.Config.Timeouts = config.Timeouts{
		TCPEstablished: 2 * time.Second, TCPTransitory: time.Second, UDP: time.Second, ICMP: time.Second, PortHold: time.Second,
	}
	b.Apply(t)
	b.StartSweeper(t)
	for i := range 50 {
		b.Flows(i%2 == 0, uint16(20000+i))["hairpin"].Open(t)
	}
	busy := b.Flows(true, 21000)["from the Internet"]
	busy.Open(t)
	for deadline := time.Now().Add(30 * time.Second); len(b.Connections(t)) > 1; {
		busy.Send(t, true, frames.Payload("busy"))
		busy.Send(t, false, frames.Payload("busy"))
		if time.Now().After(deadline) {
			t.Fatalf("%d connections are left", len(b.Connections(t)))
		}
	}
	if list := b.Connections(t); len(list) != 1 || list[0].Client.Port() != 21000 {
		t.Errorf("left: %+v", list)
	}
}

// TestManyEndAtOnce: more connections end at once than there are places for such. Those that found none are ended later, and
// all expire; what counts them agrees.
func TestManyEndAtOnce(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	b.settings(t, func(s *bpf.HairpinSettings) { s.SourceLimit, s.InterfaceLimit = 0, 0 })
	for i := range 1000 {
		b.Flows(false, uint16(20000+i))["from the Internet"].Open(t)
	}
	b.Config.Forwards[0].Target = netip.MustParseAddr("192.168.1.99")
	b.Config.Timeouts.TCPTransitory, b.Config.Timeouts.TCPEstablished = time.Second, 2*time.Second
	b.Apply(t)
	b.StartSweeper(t)
	lab.Eventually(t, 30*time.Second, func() error {
		audit, err := b.Tables.Audit()
		if err != nil || audit.Entries > 0 {
			return fmt.Errorf("%d entries are left (%v): %v", audit.Entries, err, audit.Found)
		}
		for kind, count := range audit.Counted {
			if count != 0 {
				return fmt.Errorf("%d of %s are counted, and none is there", count, kind)
			}
		}
		return nil
	})
}

// TestHairpinPorts: several clients with one port are all served, each with a different port at the server. No client gets the port of a forward or
// of a socket of the router.
func TestHairpinPorts(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	first, second := b.Flows(true, 20000)["hairpin"], b.Flows(true, 20000)["server to itself"]
	first.Open(t)
	in, _ := second.In(frames.Payload("same port"))
	if got := b.TC(t, second.At, in.Bytes()); got.Code != rig.TCRedirect {
		t.Fatalf("tc answers %d", int32(got.Code))
	}
	seen := map[string]bool{}
	for _, c := range b.Connections(t) {
		if c.Source.Port() < 1024 || c.Source.Addr() != rig.LANAddress || seen[c.Source.String()] {
			t.Errorf("the server sees %s", c.Source)
		}
		seen[c.Source.String()] = true
	}
	if len(seen) != 2 {
		t.Errorf("the server sees %v", seen)
	}
}

// TestMemory: with room for 131,072 IPv4 connections and a quarter as many of IPv6, the kernel holds at most 80 MiB for all maps, and 480
// bytes for each IPv4 connection.
func TestMemory(t *testing.T) {
	lab.NeedRoot(t)
	spec, err := bpf.LoadHairpin()
	if err != nil {
		t.Fatal(err)
	}
	const room = 131072
	loader.Size(spec, room)
	var objs bpf.HairpinObjects
	if err := spec.LoadAndAssign(&objs, nil); err != nil {
		t.Fatal(err)
	}
	defer objs.Close()
	total := uint64(0)
	for all, i := reflect.ValueOf(objs.HairpinMaps), 0; i < all.NumField(); i++ {
		total += memory(t, all.Field(i).Interface().(*ebpf.Map))
	}
	six := memory(t, objs.Conns6) + memory(t, objs.Places)/5
	t.Logf("%d bytes, %d without what is IPv6's alone: %d an IPv4 connection", total, total-six, (total-six)/room)
	if got := maps.ConnectionsLimit(&objs); got != room {
		t.Errorf("room for %d connections, want %d", got, room)
	}
	if total > 80<<20 || (total-six)/room > 480 {
		t.Errorf("%d bytes, %d an IPv4 connection: want at most 80 MiB and 480", total, (total-six)/room)
	}
}

// TestFragmentMemory: a flood of fragments finds at most 2 MiB to fill.
func TestFragmentMemory(t *testing.T) {
	lab.NeedRoot(t)
	var objs bpf.HairpinObjects
	if err := bpf.LoadHairpinObjects(&objs, nil); err != nil {
		t.Fatal(err)
	}
	defer objs.Close()
	if total := memory(t, objs.Fragments) + memory(t, objs.HeldFragments); total > 2<<20 {
		t.Errorf("fragments may take %d bytes", total)
	}
}

func memory(t *testing.T, m *ebpf.Map) uint64 {
	t.Helper()
	info, err := m.Info()
	if err != nil {
		t.Fatal(err)
	}
	locked, ok := info.Memlock()
	if !ok && m.Type() != ebpf.LPMTrie { // an empty one takes nothing
		t.Fatalf("the kernel does not tell the memory of %s", m)
	}
	return locked
}

// TestForwardsOfOneServer: a client uses two forwards to one server from one port. The second connection gets another port at the server. After
// the first connection has closed, the client can use its own port again.
func TestForwardsOfOneServer(t *testing.T) {
	b := newBench(t, append(rig.Forwards, "again tcp 444 to 192.168.1.20:8443")...)
	first := b.Flows(false, 20000)["from the Internet"]
	first.Open(t)
	second := first
	second.External = netip.AddrPortFrom(rig.WANAddress, 444)
	second.Send(t, true, frames.TCP("S", rig.ClientISN, 0))
	ports := map[uint16]bool{}
	for _, c := range b.Connections(t) {
		if c.Source.Addr() != rig.InternetHost || c.Source.Port()%2 != 0 || c.Source.Port() < 1024 {
			t.Errorf("the server sees %s, want an even port of %s", c.Source, rig.InternetHost)
		}
		ports[c.Source.Port()] = true
	}
	if len(ports) != 2 || !ports[20000] {
		t.Errorf("ports %v, want 20000 and another", ports)
	}

	first.Send(t, true, frames.TCP("FA", rig.ClientISN+1, rig.ServerISN+1))
	first.Send(t, false, frames.TCP("FA", rig.ServerISN+1, rig.ClientISN+2))
	first.Send(t, true, frames.TCP("A", rig.ClientISN+2, rig.ServerISN+2))
	third := first
	third.External = netip.AddrPortFrom(rig.WANAddress, 445)
	b.Config.Forwards = append(b.Config.Forwards, rig.MustForward(t, "third tcp 445 to 192.168.1.20:8443"))
	b.Apply(t)
	in, want := third.In(frames.TCP("S", rig.ClientISN+9000, 0))
	hooks[0].sends(t, third, func() {}, third.At, in, want)
}

// TestReopenedWithoutRest: one client may open and close the same connection more often than there is room for
// connections, faster than any of them is visited.
func TestReopenedWithoutRest(t *testing.T) {
	b := newBenchFor(t, 64, 64, rig.Forwards...)
	f := b.Flows(false, 20000)["hairpin"]
	for range 4 * 64 {
		f.Open(t)
		f.Send(t, true, frames.TCP("R", rig.ClientISN+1, 0))
		wantState(t, b, "after a RST", "closing")
	}
}
