// SPDX-License-Identifier: Apache-2.0

package conformance

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
	"hairpin/maps/config"
	"hairpin/maps/entries"
	"hairpin/maps/layout"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

// stage is a rig on which a check puts packets through hairpin as it is attached: TC alone, or XDP
// and TC behind it.
type stage struct {
	*rig.Rig
	p *probe
}

// sharedRig is a rig that several checks use, one after another. Loading the programs takes most of the time of a check.
type sharedRig struct {
	*rig.Rig
	config   config.Config
	settings bpf.HairpinSettings
}

// stage returns a rig with these forwards, else with rig.Forwards, as if nothing had happened yet.
func (p *probe) stage(forwards ...string) *stage {
	p.Helper()
	if len(forwards) == 0 {
		forwards = rig.Forwards
	}
	name := strings.Join(forwards, "\n")
	shared, there := p.suite.rigs[name]
	if !there {
		shared.Rig = rig.New(p.suite.t, forwards...)
		shared.StartSweeper(p)
		shared.config = shared.Config
		shared.settings = (&stage{shared.Rig, p}).settings()
		p.suite.rigs[name] = shared
	}
	s := &stage{shared.Rig, p}
	s.Config = shared.config
	s.Apply(p)
	s.forget()
	s.set(func(settings *bpf.HairpinSettings) { *settings = shared.settings })
	return s
}

// forget empties what the datapath writes.
func (s *stage) forget() {
	s.p.Helper()
	s.Rig.Forget(s.p)
	s.Empty(s.p, s.Objects.Counters)
	s.budget()
}

// budget lets the router send as many ICMP errors as if it had sent none yet.
func (s *stage) budget() {
	s.p.Helper()
	for side := range s.Objects.IcmpBudgets.MaxEntries() {
		if err := s.Objects.IcmpBudgets.Put(side, make([]byte, s.Objects.IcmpBudgets.ValueSize())); err != nil {
			s.p.Fatalf("reset ICMP budget: %v", err)
		}
	}
}

// fate is the result for a packet: sent on, dropped, or left to the kernel.
type fate string

const (
	fateSent    fate = "sent on"
	fateTold    fate = "dropped, its sender is told"
	fateDropped fate = "dropped in silence"
	fatePassed  fate = "left to the kernel"
)

// outcome is a packet's fate, and the frame that left: the packet, or an ICMP error to its sender.
type outcome struct {
	fate fate
	data []byte
}

// put lets a frame come in by a port.
func (s *stage) put(at rig.Port, data []byte) outcome {
	s.p.Helper()
	if s.p.mode == "xdp" {
		switch got := s.XDP(s.p, at, data); {
		case got.Code == rig.XDPRedirect:
			return outcome{fateSent, got.Data}
		case got.Code == rig.XDPDrop:
			return outcome{fate: fateDropped}
		case got.Code != rig.XDPPass || !bytes.Equal(got.Data, data):
			s.p.Fatalf("XDP answers %d and changes the packet: %v", got.Code, !bytes.Equal(got.Data, data))
		}
	}
	got := s.TC(s.p, at, data)
	switch {
	case got.Code == rig.TCShot:
		return outcome{fate: fateDropped}
	case got.Code == rig.TCUnspec && bytes.Equal(got.Data, data):
		return outcome{fatePassed, got.Data}
	case got.Code != rig.TCRedirect:
		s.p.Fatalf("TC answers %d and changes the packet: %v", int32(got.Code), !bytes.Equal(got.Data, data))
	case tells(got.Data, data):
		return outcome{fateTold, got.Data}
	}
	return outcome{fateSent, got.Data}
}

// tells reports whether a frame is an ICMP error to the sender of frame about.
func tells(frame, about []byte) bool {
	kind := frame[frames.L4Offset(frame)]
	return frame[frames.EthernetLength+9] == 1 && (kind == lab.Unreachable || kind == lab.TimeExceeded) &&
		bytes.Equal(frame[frames.EthernetLength+16:frames.EthernetLength+20], about[frames.EthernetLength+12:frames.EthernetLength+16]) &&
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
	l4 := frames.L4Offset(data)
	end := min(len(data), frames.EthernetLength+frames.IPLength(data))
	return notice{
		kind: data[l4], code: data[l4+1], tos: data[frames.EthernetLength+1],
		mtu:    binary.BigEndian.Uint16(data[l4+6:]),
		source: netip.AddrFrom4([4]byte(data[frames.EthernetLength+12:])),
		quote:  data[l4+8 : end],
		valid:  frames.IPValid(data) && frames.Fold(frames.Sum(data[l4:end])) == 0xffff,
	}
}

// quotes says whether the router quotes the packet as its sender sent it.
func (n notice) quotes(frame []byte) bool {
	return len(n.quote) >= 28 && bytes.HasPrefix(frame[frames.EthernetLength:], n.quote)
}

func (n notice) String() string { return fmt.Sprintf("ICMP %d/%d", n.kind, n.code) }

// ethernet puts a packet into a frame.
func ethernet(from, to net.HardwareAddr, packet []byte) []byte {
	return slices.Concat(to, from, []byte{0x08, 0x00}, packet)
}

// carries puts a packet of a flow through hairpin, and says whether every byte of the IP packet that
// came out is right.
func (s *stage) carries(f rig.Flow, fromClient bool, change ...func(*frames.Frame)) bool {
	s.p.Helper()
	at := s.LAN
	in, want := f.Back(change...)
	if fromClient {
		at = f.At
		in, want = f.In(change...)
	}
	got := s.put(at, in.Bytes())
	if got.fate != fateSent {
		s.p.Logf("%s > %s: %s; counted %v", in.Src, in.Dst, got.fate, s.reasons())
		return false
	}
	if wanted := want.Bytes(); !bytes.Equal(got.data[frames.EthernetLength:], wanted[frames.EthernetLength:]) {
		s.p.Logf("%s > %s\n got %x\nwant %x", in.Src, in.Dst, got.data[frames.EthernetLength:], wanted[frames.EthernetLength:])
		return false
	}
	return true
}

// reasons are the counters, for the log of a check that fails.
func (s *stage) reasons() []maps.Counter {
	counters, err := s.Tables.Counters()
	if err != nil {
		s.p.Error(err)
	}
	return counters
}

// begin sends what opens a connection, and returns the flow with the source that its server sees.
func (s *stage) begin(f rig.Flow) (rig.Flow, fate) {
	s.p.Helper()
	in, _ := f.In(frames.Payload("open"))
	if !f.UDP {
		in, _ = f.In(frames.TCP("S", rig.ClientISN, 0))
	}
	got := s.put(f.At, in.Bytes())
	if got.fate != fateSent {
		return f, got.fate
	}
	f.Source = s.seen(f)
	return f, got.fate
}

// seen is the source that the server of a connection sees.
func (s *stage) seen(f rig.Flow) netip.AddrPort {
	s.p.Helper()
	key := bpf.HairpinTuple{
		Src: bpf.HairpinAddr{Bytes: f.Client.Addr().As16()}, Dst: bpf.HairpinAddr{Bytes: f.External.Addr().As16()},
		Sport: networkPort(f.Client.Port()), Dport: networkPort(f.External.Port()), Protocol: uint8(rule.TCP),
	}
	if f.UDP {
		key.Protocol = uint8(rule.UDP)
	}
	conn, err := mapstest.Entries(&s.Objects).Lookup(key)
	if err != nil {
		s.p.Fatalf("no connection of %s to %s: %v", f.Client, f.External, err)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(conn.To.Src.Bytes).Unmap(), networkPort(conn.To.Sport))
}

// establish opens a connection, all the way.
func (s *stage) establish(f rig.Flow) rig.Flow {
	s.p.Helper()
	f, got := s.begin(f)
	ok := got == fateSent
	if f.UDP {
		ok = ok && s.carries(f, false, frames.Payload("answer")) && s.carries(f, true, frames.Payload("and on"))
	} else {
		ok = ok && s.carries(f, false, frames.TCP("SA", rig.ServerISN, rig.ClientISN+1)) &&
			s.carries(f, true, frames.TCP("A", rig.ClientISN+1, rig.ServerISN+1)) &&
			s.carries(f, false, frames.TCP("A", rig.ServerISN+1, rig.ClientISN+1))
	}
	if !ok {
		s.p.Fatalf("%s cannot connect to %s: %s", f.Client, f.External, got)
	}
	return f
}

// alive says whether a connection carries packets both ways.
func (s *stage) alive(f rig.Flow) bool {
	s.p.Helper()
	return s.carries(f, false, frames.TCP("PA", rig.ServerISN+1, rig.ClientISN+1), frames.Payload("from the server")) &&
		s.carries(f, true, frames.TCP("PA", rig.ClientISN+1, rig.ServerISN+1), frames.Payload("from the client"))
}

// way is one of the rig's flows, to a port of the external address that leads to a port of the server.
func (s *stage) way(name string, udp bool, clientPort, port, target uint16) rig.Flow {
	f := s.Flows(udp, clientPort)[name]
	f.External = netip.AddrPortFrom(rig.WANAddress, port)
	f.Target = netip.AddrPortFrom(rig.Server, target)
	return f
}

// lanClient is a flow of one of many hosts in the server's LAN, from one port.
func (s *stage) lanClient(i int, udp bool, clientPort uint16) rig.Flow {
	f := s.Flows(udp, clientPort)["hairpin"]
	f.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, 1, byte(60 + i)}), clientPort)
	return f
}

// stranger is a flow of one of many hosts on the Internet.
func (s *stage) stranger(i int, udp bool) rig.Flow {
	f := s.Flows(udp, 0)["from the Internet"]
	f.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(10 + i)}), uint16(30000+7*i))
	f.Source = f.Client
	return f
}

// states are the entries of all connections.
func (s *stage) states() map[bpf.HairpinTuple]layout.Entry {
	s.p.Helper()
	all := map[bpf.HairpinTuple]layout.Entry{}
	if err := entries.Each(&s.Objects, func(e *layout.Entry) { all[e.Key] = *e }); err != nil {
		s.p.Fatal(err)
	}
	return all
}

// eachState visits the entries of all connections; visit may change them.
func (s *stage) eachState(visit func(bpf.HairpinTuple, layout.Entry)) {
	s.p.Helper()
	for key, conn := range s.states() {
		visit(key, conn)
	}
}

// unmoved says whether no connection began, ended, was refreshed, or changed its TCP state since.
func (s *stage) unmoved(since map[bpf.HairpinTuple]layout.Entry) bool {
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
	s.eachState(func(key bpf.HairpinTuple, conn layout.Entry) {
		if opensFor(key, conn, client) {
			s.rewind(key, by)
			s.rewind(rig.Reversed(conn.To), by)
		}
	})
}

// opens says whether an entry is the client's direction of a connection of this client.
func opensFor(key bpf.HairpinTuple, conn layout.Entry, client netip.AddrPort) bool {
	return conn.Opener() && key.Src.Bytes == client.Addr().As16() && key.Sport == networkPort(client.Port())
}

// rewind sets back when one direction was seen.
func (s *stage) rewind(key bpf.HairpinTuple, by time.Duration) {
	s.p.Helper()
	conn, err := mapstest.Entries(&s.Objects).Lookup(key)
	if err == nil {
		conn.Seen -= uint32(by.Milliseconds()) // modulo 2^32, as the datapath counts
		err = mapstest.Entries(&s.Objects).Update(&conn, ebpf.UpdateExist)
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		s.p.Fatalf("age connection: %v", err)
	}
}

// networkPort turns a port into its network order form, and such a form back.
func networkPort(port uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, port))
}

// sweep returns after the sweeper has visited every place that a connection can have. It counts the steps of the sweeper: a step
// goes on where the last one ended, visits at most sweepPlaces places, and ends at the last place.
func (s *stage) sweep() {
	s.p.Helper()
	const sweepPlaces = 4096 // SWEEP_PLACES of lifecycle.h
	places := uint32(0)
	rings := s.Objects.Rings.MaxEntries()
	for i := range rings {
		var ring bpf.HairpinRing
		if err := s.Objects.Rings.Lookup(i, &ring); err != nil {
			s.p.Fatalf("read ring %d: %v", i, err)
		}
		places += ring.Size
	}
	round := (places+rings)/sweepPlaces + 1
	// The first steps may be the rest of a round. The last step that is seen may still run.
	begun, last := uint32(0), s.lastStep()
	for deadline := time.Now().Add(30 * time.Second); begun <= 2*round; time.Sleep(5 * time.Millisecond) {
		if now := s.lastStep(); now != last {
			begun, last = begun+1, now
		}
		if time.Now().After(deadline) {
			s.p.Fatalf("the sweeper began %d steps, not %d", begun, 2*round+1)
		}
	}
}

// lastStep is the time when the last step of the sweeper began, in milliseconds of the datapath's clock.
func (s *stage) lastStep() uint32 {
	s.p.Helper()
	var sweeper bpf.HairpinSweeper
	if err := s.Objects.Sweepers.Lookup(uint32(0), &sweeper); err != nil {
		s.p.Fatalf("read sweeper: %v", err)
	}
	return sweeper.Scratch.Now
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
	if err := s.Objects.Settings.Lookup(uint32(0), &settings); err != nil {
		s.p.Fatalf("read settings: %v", err)
	}
	return settings
}

// set changes the settings that the datapath reads.
func (s *stage) set(change func(*bpf.HairpinSettings)) {
	s.p.Helper()
	settings := s.settings()
	change(&settings)
	if err := s.Objects.Settings.Put(uint32(0), settings); err != nil {
		s.p.Fatalf("write settings: %v", err)
	}
}
