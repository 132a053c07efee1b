// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"encoding/binary"
	"strings"
	"time"

	"hairpin/bpf"
	"hairpin/maps"
	"hairpin/test/frames"
	"hairpin/test/rig"
)

var requirements7857 = []requirement{
	{
		id: "2", level: levelShould,
		demand: "follow TCP connections with a state machine like that of RFC 6146",
		figure: "half-open, established, closing, half-open",
		check:  checkTCPStates,
	},
	{
		id: "2.1 (knobs)", level: levelShould,
		demand: "have separate timeouts for opening and closing",
		figure: "separate",
		check:  checkSeparateTimeouts,
	},
	{
		id: "2.1 (default)", level: levelRecommended,
		demand: "have defaults of 4 minutes or more for both",
		figure: "at least 240 s",
		check:  checkTransitoryDefaults,
	},
	{
		id: "2.2 (RST)", level: levelMust,
		demand: "translate a RST that matches a mapping",
		figure: "all",
		check:  checkRSTTranslated,
	},
	{
		id: "2.2 (after)", level: levelShould,
		demand: "keep the session for 4 minutes after a RST",
		figure: "at least 240 s",
		check:  checkLifetime(240*time.Second, lifeReset),
	},
	{
		id: "2.2 (blind)", level: levelShould,
		demand: "check that a RST belongs to the connection",
		figure: "no blind RST closes",
		check:  checkBlindRST,
	},
	{
		id: "3", hairpin: true, level: levelMay,
		demand: "use one port for several destinations",
		figure: "either",
		check:  checkPortReuse,
	},
	{
		id: "4", level: levelShould,
		demand: "pooling \"paired\": a host whose address has no ports left is refused",
		figure: "refused",
		absent: noOutbound,
	},
	{
		id: "5, 6 (forwards)", level: levelMust,
		demand: "mapping and filtering are per protocol by default",
		figure: "per protocol",
		check:  checkPerProtocol,
	},
	{
		id: "5, 6 (outbound)", level: levelMust,
		demand: "mapping and filtering of outbound connections are per protocol by default",
		figure: "per protocol",
		absent: noOutbound,
	},
	{
		id: "7", level: levelShouldNot,
		demand: "refresh a mapping with inbound packets that are refused",
		figure: "unchanged",
		check:  checkRefusedRefresh,
	},
	{
		id: "7.1", level: levelShouldNot,
		demand: "refresh a mapping with outbound ICMP errors and RSTs that answer inbound packets",
		figure: "unchanged",
		check:  checkAnswerRefresh,
	},
	{
		id: "8", hairpin: true, level: levelMay,
		demand: "not keep the parity of ports",
		figure: "either",
		check:  checkParity,
	},
	{
		id: "9", hairpin: true, level: levelShould,
		demand: "choose a random port if that of the client cannot be kept",
		figure: "all sixteenths of the range, no sequence",
		check:  checkRandomPorts,
	},
	{
		id: "10", hairpin: true, level: levelShould,
		demand: "IP ids are as if hairpin were the source (RFC 6864 5.3.1): unique in what may be fragmented",
		figure: "different ids for two clients that use the same id",
		check:  checkIPID,
	},
	{
		id: "11", level: levelMay,
		demand: "drop a query mapping with its last session",
		figure: "either",
		check:  checkQueryMapping,
	},
	{
		id: "12", hairpin: true, level: levelMust,
		demand: "hairpin ICMP by address mappings from external to internal, not only by query mappings",
		figure: "3 of 3 ways",
		check:  checkOneToOneEcho,
	},
}

// checkTCPStates walks a connection through them, and back to the first.
func checkTCPStates(p *probe) {
	s := p.stage()
	f := s.Flows(false, 20000)["from the Internet"]
	var states []string
	for _, part := range [][]tcpStep{handshake[:2], handshake[2:], bothFINs, {{true, "S", rig.ClientISN + 90000, 0, ""}}} {
		if !s.follows("states", f, part) {
			p.Fatal("not a valid sequence any more")
		}
		states = append(states, s.stateOf(f))
	}
	want := []string{maps.StateHalfOpen, maps.StateEstablished, maps.StateClosing, maps.StateHalfOpen}
	p.measure(strings.Join(states, " ") == strings.Join(want, " "), "%s", strings.Join(states, ", "))
}

func checkSeparateTimeouts(p *probe) {
	s := p.stage()
	s.Config.Timeouts.TCPOpening, s.Config.Timeouts.TCPClosing = 11*time.Second, 13*time.Second
	s.Apply(p)
	settings := s.settings()
	opening, closing := time.Duration(settings.TcpOpening), time.Duration(settings.TcpClosing)
	kept := p.lifetime(lifeOpening).atLeast(0) && p.lifetime(lifeFinished).atLeast(0)
	p.measure(opening == 11*time.Second && closing == 13*time.Second && kept,
		"tcp_opening %s, tcp_closing %s; connections %s", opening, closing, either(kept, "keep to them", "do not keep to them"))
}

func checkTransitoryDefaults(p *probe) {
	opening, closing := p.lifetime(lifeOpening).byDefault, p.lifetime(lifeFinished).byDefault
	p.measure(opening >= 4*time.Minute && closing >= 4*time.Minute,
		"opening %.0f s, closing %.0f s", opening.Seconds(), closing.Seconds())
}

// checkRSTTranslated: exact ones of both sides, half-open and established.
func checkRSTTranslated(p *probe) {
	s := p.stage()
	through := 0
	for i, sequence := range [][]tcpStep{
		after(handshake, tcpStep{true, "R", c1, 0, ""}),
		after(handshake, tcpStep{false, "RA", s1, c1, ""}),
		{handshake[0], {false, "RA", 0, c1, ""}},
		{handshake[0], handshake[1], {true, "R", c1, 0, ""}},
	} {
		if s.follows("RST", s.Flows(false, uint16(20000+i))["from the Internet"], sequence) {
			through++
		}
	}
	p.measure(through == 4, "%d of 4", through)
}

// checkBlindRST: none but that with the sequence number that its receiver expects closes (RFC 5961 3.2).
func checkBlindRST(p *probe) {
	s := p.stage()
	f := s.establish(s.Flows(false, 20000)["from the Internet"])
	s.age(f.Client, 10*time.Second)
	before := s.states()
	blind := []uint32{0, 1, rig.ClientISN, c1 + 1, c1 + 100, c1 + 64240, c1 - 100, s1, 0x7fffffff, 0xffffffff}
	for _, seq := range blind {
		for _, at := range []struct {
			client bool
			shift  uint32
		}{{true, 0}, {false, s1 - c1}} {
			in, _ := f.Back(frames.TCP("R", seq+at.shift, 0))
			port := s.LAN
			if at.client {
				in, _ = f.In(frames.TCP("R", seq+at.shift, 0))
				port = f.At
			}
			s.put(port, in.Bytes())
		}
	}
	unmoved := s.unmoved(before)
	alive := s.alive(f)
	exact := s.carries(f, true, frames.TCP("R", c1, 0)) && s.stateOf(f) == maps.StateClosing
	p.measure(unmoved && alive && exact,
		"%d blind ones: %s; the exact one: %s",
		2*len(blind), either(unmoved && alive, "unchanged", "changed"), either(exact, "closes", "does not close"))
}

// checkPortReuse: the server and another port of it see one client's port each.
func checkPortReuse(p *probe) {
	s := p.stage()
	one := s.establish(s.Flows(true, 20000)["hairpin"])
	other := s.establish(s.way("hairpin", true, 20000, 6000, 7000))
	p.measure(true,
		"one port of a client towards two servers is %s", either(one.Source == other.Source, "one port", "two ports"))
}

// checkPerProtocol checks that a forward of one protocol does not translate other protocols.
func checkPerProtocol(p *probe) {
	s := p.stage("games udp 6000 to 192.168.1.20:7000")
	overUDP := s.alive(s.establish(s.way("from the Internet", true, 20000, 6000, 7000)))
	_, overTCP := s.begin(s.way("from the Internet", false, 20000, 6000, 7000))
	p.measure(overUDP && overTCP == fatePassed,
		"a forward of UDP: UDP is %s, TCP %s", either(overUDP, "served", "not served"), overTCP)
}

// checkRefusedRefresh: what is not let in, though it has the tuple of a connection.
func checkRefusedRefresh(p *probe) {
	s := p.stage()
	half := s.Flows(false, 20001)["from the Internet"]
	f := s.establish(s.Flows(false, 20000)["from the Internet"])
	if !s.follows("half-open", half, handshake[:2]) {
		p.Fatal("a connection does not open")
	}
	s.age(f.Client, 10*time.Second)
	s.age(half.Client, 10*time.Second)
	before := s.states()
	malformed, _ := f.In(frames.TCP("PA", c1, s1), frames.Mutate(func(data []byte) { data[frames.L4Offset(data)+12] = 0x40 }))
	guessed, _ := half.In(frames.TCP("A", c1, s1-70000))
	blind, _ := f.In(frames.TCP("R", c1+5000, 0))
	refused := 0
	for _, in := range []frames.Frame{malformed, guessed} {
		if s.put(f.At, in.Bytes()).fate == fateDropped {
			refused++
		}
	}
	s.put(f.At, blind.Bytes())
	p.measure(refused == 2 && s.unmoved(before),
		"%d of 2 refused; the connections are %s", refused, either(s.unmoved(before), "unchanged", "changed"))
}

// checkAnswerRefresh: a server that only turns a stranger away keeps nothing alive.
func checkAnswerRefresh(p *probe) {
	s := p.stage()
	ok := true
	for i, udp := range []bool{true, false} {
		f := s.establish(s.Flows(udp, uint16(20000+i))["from the Internet"])
		s.age(f.Client, 10*time.Second)
		before := s.states()
		ok = ok && s.translates(someError(f, true)) && s.unmoved(before)
	}
	reset := p.lifetime(lifeReset).byDefault < p.lifetime(lifeEstablished).byDefault && p.lifetime(lifeReset).leaves
	p.measure(ok && reset,
		"errors: %s; after a RST the time left is %s",
		either(ok, "unchanged", "changed"), either(reset, "that of a closing connection", "that of an established one"))
}

// checkRandomPorts looks at where in the range ports lie, and how they follow each other.
func checkRandomPorts(p *probe) {
	s := p.stage()
	const clients, parts = 90, 16
	used := map[int]bool{}
	steps, last := 0, 0
	for _, port := range []uint16{20000, 20001, 20002, 20003, 20004, 20005, 20006, 20007} {
		for _, got := range s.reflectedPorts(clients, port)[1:] {
			used[(int(got)-1024)*parts/(65536-1024)] = true
			if step := int(got) - last; step >= -4 && step <= 4 {
				steps++
			}
			last = int(got)
		}
	}
	// One run in ten has a port this close to the one before it, none has nine.
	p.measure(len(used) == parts && steps <= 8,
		"%d of %d sixteenths, %s", len(used), parts, either(steps <= 8, "no sequence", "a sequence"))
}

// checkIPID: two clients behind one address send datagrams that may be fragmented, with one id.
func checkIPID(p *probe) {
	s := p.stage()
	ids := map[uint16]bool{}
	for i := range 2 {
		f := s.establish(s.lanClient(i, true, uint16(20000+i)))
		in, _ := f.In(frames.Payload("may be fragmented"), func(f *frames.Frame) { f.ID = 7 })
		got := s.put(f.At, in.Bytes())
		if got.fate != fateSent || !bytes.Equal(got.data[frames.EthernetLength+12:frames.EthernetLength+16], rig.LANAddress.AsSlice()) {
			p.Fatalf("client %d: %s", i, got.fate)
		}
		ids[binary.BigEndian.Uint16(got.data[frames.EthernetLength+4:])] = true
	}
	p.measure(len(ids) == 2, "%s for two clients behind one address that use the same id", amount(len(ids), "id"))
}

// checkQueryMapping: when a session has ended its id is free for a new one, of the same client at once.
func checkQueryMapping(p *probe) {
	const idle = 10 * time.Second
	s := p.stage(echoForward)
	s.set(func(settings *bpf.HairpinSettings) {
		settings.Icmp, settings.TcpEstablished = uint64(idle), uint64(idle)
	})
	f := s.mustPing(s.Flows(true, 700)["hairpin"])
	s.age(f.Client, 2*idle)
	s.sweep()
	gone := !s.present(f.Client)
	again := s.pings(f)
	p.measure(gone && again,
		"%s with its session; a new one with the same id %s",
		either(gone, "goes", "stays"), either(again, "begins", "does not begin"))
}
