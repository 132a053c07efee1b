// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps"
	"hairpin/test/lab"
)

// stage is a bench on which a check puts packets through hairpin as it is attached: TC alone, or XDP
// and TC behind it.
type stage struct {
	*bench
	p *probe
}

// sharedBench is one that several checks use, one after the other. Loading the programs takes most of
// the time of a check.
type sharedBench struct {
	*bench
	config   maps.Config
	settings bpf.HairpinSettings
}

// stage returns a bench with these forwards, else with benchForwards, as if nothing had happened yet.
func (p *probe) stage(forwards ...string) *stage {
	p.Helper()
	if len(forwards) == 0 {
		forwards = benchForwards
	}
	name := strings.Join(forwards, "\n")
	shared, there := p.suite.benches[name]
	if !there {
		shared.bench = newBench(p.suite.t, append(slices.Clone(forwards), sweptForward)...)
		if code, err := shared.objs.HairpinStart.Run(&ebpf.RunOptions{Data: make([]byte, 64)}); err != nil || code != 0 {
			p.Fatalf("start sweeper: %d %v", int32(code), err)
		}
		shared.config = shared.bench.config
		shared.settings = (&stage{shared.bench, p}).settings()
		p.suite.benches[name] = shared
	}
	s := &stage{shared.bench, p}
	s.bench.config = shared.config
	s.apply(p)
	s.forget()
	s.set(func(settings *bpf.HairpinSettings) { *settings = shared.settings })
	return s
}

// sweptForward is for the connection that sweep makes.
const sweptForward = "swept tcp 9 to 192.168.1.20:9"

// forget empties what the datapath writes.
func (s *stage) forget() {
	s.p.Helper()
	s.bench.forget(s.p)
	s.empty(s.p, s.objs.Counters)
	s.budget()
}

// budget lets the router send as many ICMP errors as if it had sent none yet.
func (s *stage) budget() {
	s.p.Helper()
	for side := range s.objs.IcmpBudgets.MaxEntries() {
		if err := s.objs.IcmpBudgets.Put(side, make([]byte, s.objs.IcmpBudgets.ValueSize())); err != nil {
			s.p.Fatalf("reset ICMP budget: %v", err)
		}
	}
}

// fate is what became of a packet.
type fate string

const (
	fateSent    fate = "sent on"
	fateTold    fate = "dropped, its sender is told"
	fateDropped fate = "dropped in silence"
	fatePassed  fate = "left to the kernel"
)

// outcome is a packet's fate, and the frame that left: the packet, or what its sender is told.
type outcome struct {
	fate fate
	data []byte
}

// put lets a frame come in by a port.
func (s *stage) put(at port, data []byte) outcome {
	s.p.Helper()
	if s.p.mode == "xdp" {
		switch got := s.xdp(s.p, at, data); {
		case got.code == xdpRedirect:
			return outcome{fateSent, got.data}
		case got.code == xdpDrop:
			return outcome{fate: fateDropped}
		case got.code != xdpPass || !bytes.Equal(got.data, data):
			s.p.Fatalf("XDP answers %d and changes the packet: %v", got.code, !bytes.Equal(got.data, data))
		}
	}
	got := s.tc(s.p, at, data)
	switch {
	case got.code == tcShot:
		return outcome{fate: fateDropped}
	case got.code == tcUnspec && bytes.Equal(got.data, data):
		return outcome{fatePassed, got.data}
	case got.code != tcRedirect:
		s.p.Fatalf("TC answers %d and changes the packet: %v", int32(got.code), !bytes.Equal(got.data, data))
	case tells(got.data, data):
		return outcome{fateTold, got.data}
	}
	return outcome{fateSent, got.data}
}

// tells says whether a frame is an ICMP error to the sender of another one.
func tells(frame, about []byte) bool {
	kind := frame[l4Offset(frame)]
	return frame[ethernetLength+9] == 1 && (kind == lab.Unreachable || kind == lab.TimeExceeded) &&
		bytes.Equal(frame[ethernetLength+16:ethernetLength+20], about[ethernetLength+12:ethernetLength+16]) &&
		bytes.Equal(frame[:6], about[6:12])
}

// notice is an ICMP error that the router made.
type notice struct {
	kind, code uint8
	tos        uint8
	mtu        uint16
	source     netip.Addr
	quote      []byte
	valid      bool // both checksums
}

func readNotice(data []byte) notice {
	l4 := l4Offset(data)
	end := min(len(data), ethernetLength+ipLength(data))
	return notice{
		kind: data[l4], code: data[l4+1], tos: data[ethernetLength+1],
		mtu:    binary.BigEndian.Uint16(data[l4+6:]),
		source: netip.AddrFrom4([4]byte(data[ethernetLength+12:])),
		quote:  data[l4+8 : end],
		valid:  ipValid(data) && fold(sum(data[l4:end])) == 0xffff,
	}
}

// quotes says whether the router quotes the packet as its sender sent it.
func (n notice) quotes(frame []byte) bool {
	return len(n.quote) >= 28 && bytes.HasPrefix(frame[ethernetLength:], n.quote)
}

func (n notice) String() string { return fmt.Sprintf("ICMP %d/%d", n.kind, n.code) }

// ethernet puts a packet into a frame.
func ethernet(from, to net.HardwareAddr, packet []byte) []byte {
	return slices.Concat(to, from, []byte{0x08, 0x00}, packet)
}

// carries puts a packet of a flow through hairpin, and says whether every byte of the IP packet that
// came out is right.
func (s *stage) carries(f flow, fromClient bool, change ...func(*frame)) bool {
	s.p.Helper()
	at := s.lan
	in, want := f.back(change...)
	if fromClient {
		at = f.at
		in, want = f.in(change...)
	}
	got := s.put(at, in.bytes())
	if got.fate != fateSent {
		s.p.Logf("%s > %s: %s; counted %v", in.src, in.dst, got.fate, s.reasons())
		return false
	}
	if wanted := want.bytes(); !bytes.Equal(got.data[ethernetLength:], wanted[ethernetLength:]) {
		s.p.Logf("%s > %s\n got %x\nwant %x", in.src, in.dst, got.data[ethernetLength:], wanted[ethernetLength:])
		return false
	}
	return true
}

// reasons are the counters, for the log of a check that fails.
func (s *stage) reasons() []maps.Counter {
	counters, err := s.tables.Counters()
	if err != nil {
		s.p.Error(err)
	}
	return counters
}

// begin sends what opens a connection, and returns the flow with the source that its server sees.
func (s *stage) begin(f flow) (flow, fate) {
	s.p.Helper()
	in, _ := f.in(payload("open"))
	if !f.udp {
		in, _ = f.in(tcp("S", clientISN, 0))
	}
	got := s.put(f.at, in.bytes())
	if got.fate != fateSent {
		return f, got.fate
	}
	f.source = s.seen(f)
	return f, got.fate
}

// seen is the source that the server of a connection sees.
func (s *stage) seen(f flow) netip.AddrPort {
	s.p.Helper()
	key := bpf.HairpinTuple{
		Src: bpf.HairpinAddr{Bytes: f.client.Addr().As16()}, Dst: bpf.HairpinAddr{Bytes: f.external.Addr().As16()},
		Sport: networkPort(f.client.Port()), Dport: networkPort(f.external.Port()), Protocol: uint8(maps.TCP),
	}
	if f.udp {
		key.Protocol = uint8(maps.UDP)
	}
	conn, err := maps.LookupEntry(&s.objs, key)
	if err != nil {
		s.p.Fatalf("no connection of %s to %s: %v", f.client, f.external, err)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(conn.To.Src.Bytes).Unmap(), networkPort(conn.To.Sport))
}

// establish opens a connection, all the way.
func (s *stage) establish(f flow) flow {
	s.p.Helper()
	f, got := s.begin(f)
	ok := got == fateSent
	if f.udp {
		ok = ok && s.carries(f, false, payload("answer")) && s.carries(f, true, payload("and on"))
	} else {
		ok = ok && s.carries(f, false, tcp("SA", serverISN, clientISN+1)) &&
			s.carries(f, true, tcp("A", clientISN+1, serverISN+1)) &&
			s.carries(f, false, tcp("A", serverISN+1, clientISN+1))
	}
	if !ok {
		s.p.Fatalf("%s cannot connect to %s: %s", f.client, f.external, got)
	}
	return f
}

// alive says whether a connection carries packets both ways.
func (s *stage) alive(f flow) bool {
	s.p.Helper()
	return s.carries(f, false, tcp("PA", serverISN+1, clientISN+1), payload("from the server")) &&
		s.carries(f, true, tcp("PA", clientISN+1, serverISN+1), payload("from the client"))
}

// way is one of the bench's flows, to a port of the external address that leads to a port of the server.
func (s *stage) way(name string, udp bool, clientPort, port, target uint16) flow {
	f := s.flows(udp, clientPort)[name]
	f.external = netip.AddrPortFrom(wanAddress, port)
	f.target = netip.AddrPortFrom(server, target)
	return f
}

// lanClient is a flow of one of many hosts in the server's LAN, from one port.
func (s *stage) lanClient(i int, udp bool, clientPort uint16) flow {
	f := s.flows(udp, clientPort)["hairpin"]
	f.client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, 1, byte(60 + i)}), clientPort)
	return f
}

// stranger is a flow of one of many hosts on the Internet.
func (s *stage) stranger(i int, udp bool) flow {
	f := s.flows(udp, 0)["from the Internet"]
	f.client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(10 + i)}), uint16(30000+7*i))
	f.source = f.client
	return f
}

// states are the entries of all connections.
func (s *stage) states() map[bpf.HairpinTuple]maps.Entry {
	s.p.Helper()
	all := map[bpf.HairpinTuple]maps.Entry{}
	if err := maps.EachEntry(&s.objs, func(e maps.Entry) { all[e.Key] = e }); err != nil {
		s.p.Fatal(err)
	}
	return all
}

// eachState visits the entries of all connections; visit may change them.
func (s *stage) eachState(visit func(bpf.HairpinTuple, maps.Entry)) {
	s.p.Helper()
	for key, conn := range s.states() {
		visit(key, conn)
	}
}

// unmoved says whether no connection began, ended, was refreshed, or changed its TCP state since.
func (s *stage) unmoved(since map[bpf.HairpinTuple]maps.Entry) bool {
	s.p.Helper()
	now := s.states()
	for key, old := range since {
		conn, there := now[key]
		if !there || conn.Seen != old.Seen || conn.Flags != old.Flags ||
			conn.Ack != old.Ack || conn.End != old.End || conn.State != old.State || conn.To != old.To {
			s.p.Logf("was %+v\nnow %+v", old, conn)
			return false
		}
	}
	return len(now) == len(since)
}

// age makes a client's connections idle for longer.
func (s *stage) age(client netip.AddrPort, by time.Duration) {
	s.p.Helper()
	s.eachState(func(key bpf.HairpinTuple, conn maps.Entry) {
		if opensFor(key, conn, client) {
			s.rewind(key, by)
			s.rewind(reversed(conn.To), by)
		}
	})
}

// opens says whether an entry is the client's direction of a connection of this client.
func opensFor(key bpf.HairpinTuple, conn maps.Entry, client netip.AddrPort) bool {
	return conn.Opener() && key.Src.Bytes == client.Addr().As16() && key.Sport == networkPort(client.Port())
}

// rewind sets back when one direction was seen.
func (s *stage) rewind(key bpf.HairpinTuple, by time.Duration) {
	s.p.Helper()
	conn, err := maps.LookupEntry(&s.objs, key)
	if err == nil {
		conn.Seen -= uint32(by.Milliseconds()) // modulo 2^32, as the datapath counts
		err = maps.UpdateEntry(&s.objs, &conn, ebpf.UpdateExist)
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		s.p.Fatalf("age connection: %v", err)
	}
}

// networkPort turns a port into its network order form, and such a form back.
func networkPort(port uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, port))
}

// sweep returns when the kernel has looked at every connection made before: when one that came last,
// and is long over, has gone.
func (s *stage) sweep() {
	s.p.Helper()
	last := s.way("from the Internet", false, 64999, 9, 9)
	s.establish(last)
	settings := s.settings()
	s.age(last.client, time.Duration(settings.TcpEstablished)*3/2)
	for deadline := time.Now().Add(30 * time.Second); s.present(last.client); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.p.Fatal("a connection that is over is not swept away")
		}
	}
}

// present says whether a client has a connection that has not expired.
func (s *stage) present(client netip.AddrPort) bool {
	s.p.Helper()
	for key, conn := range s.states() {
		if conn.State != bpf.HairpinConnStateCONN_ENDED && opensFor(key, conn, client) {
			return true
		}
	}
	return false
}

func (s *stage) settings() (settings bpf.HairpinSettings) {
	s.p.Helper()
	if err := s.objs.Settings.Lookup(uint32(0), &settings); err != nil {
		s.p.Fatalf("read settings: %v", err)
	}
	return settings
}

// set changes the settings that the datapath reads.
func (s *stage) set(change func(*bpf.HairpinSettings)) {
	s.p.Helper()
	settings := s.settings()
	change(&settings)
	if err := s.objs.Settings.Put(uint32(0), settings); err != nil {
		s.p.Fatalf("write settings: %v", err)
	}
}
