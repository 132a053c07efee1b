// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"slices"
	"time"

	"hairpin/bpf"
	"hairpin/maps"
	"hairpin/maps/config"
	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

var requirements5382 = []requirement{
	{
		id: "REQ-1 (forwards)", level: levelMust,
		demand: "endpoint-independent mapping: a server has the same external endpoint towards everybody",
		figure: "1 external endpoint for 5 remote ones",
		check:  func(p *probe) { checkOneMapping(p, false) },
	},
	{
		id: "REQ-1 (outbound)", level: levelMust,
		demand: "endpoint-independent mapping of outbound connections",
		figure: "same X:x to any Y:y gives same X':x'",
		absent: noOutbound,
		check:  func(p *probe) { checkOutboundPasses(p, false) },
	},
	{
		id: "REQ-2 (from outside)", level: levelMust,
		demand: "pass all valid sequences of connections that begin outside",
		figure: "all",
		check:  func(p *probe) { checkSequences(p, "from the Internet") },
	},
	{
		id: "REQ-2 (hairpin)", hairpin: true, level: levelMust,
		demand: "pass all valid sequences of hairpin connections",
		figure: "all",
		check:  func(p *probe) { checkSequences(p, "hairpin") },
	},
	{
		id: "REQ-2 (outbound)", level: levelMust,
		demand: "pass all valid sequences of connections that begin inside",
		figure: "all",
		absent: noOutbound,
		check:  func(p *probe) { checkOutboundPasses(p, false) },
	},
	{
		id: "REQ-2a", level: levelMust,
		demand: "support the simultaneous open",
		figure: "established, both ways in",
		check:  checkSimultaneousOpen,
	},
	{
		id: "REQ-3", level: levelRecommended,
		demand: "endpoint-independent filtering, or address-dependent for strictness",
		figure: "everybody",
		check:  func(p *probe) { checkFiltering(p, false) },
	},
	{
		id: "REQ-3a", level: levelMay,
		demand: "have configurable filtering",
		figure: "configurable",
		check:  func(p *probe) { checkFilteringConfigured(p, false) },
	},
	{
		id: "REQ-3b", level: levelMay,
		demand: "filter TCP and UDP differently",
		figure: "either",
		check:  checkFilteringByProtocol,
	},
	{
		id: "REQ-4", level: levelMustNot,
		demand: "answer an unsolicited inbound SYN for 6 s, in case an outbound SYN crosses it",
		figure: "silence",
		absent: noOutbound + ", so no outbound SYN can cross",
		check:  checkUnsolicited,
	},
	{
		id: "REQ-4 (afterwards)", level: levelShould,
		demand: "after these 6 s send ICMP 3/3 about the SYN, if no outbound SYN has crossed it",
		figure: "ICMP 3/3",
		absent: noOutbound,
	},
	{
		id: "REQ-4a", level: levelMust,
		demand: "stay silent if the policy says so",
		figure: "0 bytes answered",
		check:  checkSilence,
	},
	{
		id: "REQ-5 (established)", level: levelMustNot,
		demand: "let an established TCP connection expire in less than 2 h 4 min",
		figure: "at least 7440 s",
		check:  checkLifetime(7440*time.Second, lifeEstablished),
	},
	{
		id: "REQ-5 (half-open)", level: levelMustNot,
		demand: "let a half-open TCP connection expire in less than 4 minutes",
		figure: "at least 240 s",
		check:  checkLifetime(240*time.Second, lifeOpening),
	},
	{
		id: "REQ-5 (closing)", level: levelMustNot,
		demand: "let a closing TCP connection expire in less than 4 minutes",
		figure: "at least 240 s",
		check:  checkLifetime(240*time.Second, lifeFinished, lifeReset),
	},
	{
		id: "REQ-5a", level: levelMay,
		demand: "have configurable TCP timeouts",
		figure: "configurable",
		check: func(p *probe) {
			checkConfigured(p, "tcp_established", lifeEstablished, func(t *config.Timeouts, d time.Duration) { t.TCPEstablished = d })
		},
	},
	{
		id: "REQ-6", level: levelShould,
		demand: "TCP ALGs are off",
		figure: "0 bytes of payload changed",
		check:  func(p *probe) { checkNoALG(p, false) },
	},
	{
		id: "REQ-7", hairpin: true, level: levelMustNot,
		demand: "give one port to two mappings",
		figure: "100 clients with one port: 100 ports",
		check:  func(p *probe) { checkNoOverload(p, false) },
	},
	{
		id: "REQ-8", hairpin: true, level: levelMust,
		demand: "support hairpinning",
		figure: "3 of 3 ways",
		check:  func(p *probe) { checkHairpin(p, false) },
	},
	{
		id: "REQ-8a", hairpin: true, level: levelMust,
		demand: "hairpinned packets have the external source address and port",
		figure: "3 of 3 clients",
		check:  func(p *probe) { checkHairpinSource(p, false) },
	},
	{
		id: "REQ-9", level: levelShould,
		demand: "translate ICMP type 3",
		figure: "all 16 codes",
		check:  func(p *probe) { checkUnreachable(p, false) },
	},
	{
		id: "REQ-10", level: levelMust,
		demand: "no ICMP message ends a mapping or a connection",
		figure: "the connection stays as it was",
		check:  func(p *probe) { checkICMPEndsNothing(p, false) },
	},
}

// tcpStep is one of a sequence: of the client or of the server.
type tcpStep struct {
	client   bool
	flags    string
	seq, ack uint32
	data     string
}

// Sequence numbers after the SYNs.
const c1, s1 = rig.ClientISN + 1, rig.ServerISN + 1

var (
	handshake = []tcpStep{
		{true, "S", rig.ClientISN, 0, ""}, {false, "SA", rig.ServerISN, c1, ""}, {true, "A", c1, s1, ""},
	}
	bothFINs = []tcpStep{
		{true, "FA", c1, s1, ""}, {false, "FA", s1, c1 + 1, ""}, {true, "A", c1 + 1, s1 + 1, ""},
	}
)

// after is a sequence that goes on.
func after(steps []tcpStep, more ...tcpStep) []tcpStep { return append(slices.Clone(steps), more...) }

// tcpSequences are valid ones (RFC 9293 section 3), each from its first segment on.
var tcpSequences = map[string][]tcpStep{
	"data both ways": after(handshake,
		tcpStep{true, "PA", c1, s1, "hello"}, tcpStep{false, "PA", s1, c1 + 5, "hello"}, tcpStep{true, "A", c1 + 5, s1 + 5, ""}),
	"SYN again":           after([]tcpStep{handshake[0], handshake[0]}, handshake...),
	"SYN/ACK again":       after(handshake[:2], handshake[0], handshake[1], handshake[1], handshake[2], tcpStep{false, "PA", s1, c1, "hello"}),
	"ACK lost, then data": after(handshake[:2], tcpStep{true, "PA", c1, s1, "hello"}, tcpStep{false, "A", s1, c1 + 5, ""}),
	"client half-closes": after(handshake,
		tcpStep{true, "FA", c1, s1, ""}, tcpStep{false, "PA", s1, c1 + 1, "still talking"}, tcpStep{true, "A", c1 + 1, s1 + 13, ""},
		tcpStep{false, "FA", s1 + 13, c1 + 1, ""}, tcpStep{true, "A", c1 + 1, s1 + 14, ""}),
	"server half-closes": after(handshake,
		tcpStep{false, "FA", s1, c1, ""}, tcpStep{true, "PA", c1, s1 + 1, "still talking"}, tcpStep{false, "A", s1 + 1, c1 + 13, ""},
		tcpStep{true, "FA", c1 + 13, s1 + 1, ""}, tcpStep{false, "A", s1 + 1, c1 + 14, ""}),
	"both close at once": after(handshake,
		tcpStep{true, "FA", c1, s1, ""}, tcpStep{false, "FA", s1, c1, ""},
		tcpStep{true, "A", c1 + 1, s1 + 1, ""}, tcpStep{false, "A", s1 + 1, c1 + 1, ""}),
	"FIN again": after(after(handshake, bothFINs...), bothFINs[1], bothFINs[2]),
	"opened again": after(after(handshake, bothFINs...),
		tcpStep{true, "S", rig.ClientISN + 90000, 0, ""}, tcpStep{false, "SA", rig.ServerISN + 90000, c1 + 90000, ""},
		tcpStep{true, "A", c1 + 90000, s1 + 90000, ""}),
	"server refuses": after(handshake[:1], tcpStep{false, "RA", 0, c1, ""}),
	"client resets":  after(handshake, tcpStep{true, "R", c1, 0, ""}),
	"server resets":  after(handshake, tcpStep{false, "RA", s1, c1, ""}),
	"client reboots": after(handshake,
		tcpStep{true, "S", 77000, 0, ""}, tcpStep{false, "A", s1, c1, ""}, tcpStep{true, "R", c1, 0, ""},
		tcpStep{true, "S", 77000, 0, ""}, tcpStep{false, "SA", 88000, 77001, ""}, tcpStep{true, "A", 77001, 88001, ""}),
	"window wraps": {
		{true, "S", 0xfffffff0, 0, ""}, {false, "SA", 0xfffffff8, 0xfffffff1, ""},
		{true, "PA", 0xfffffff1, 0xfffffff9, "over the top and on"}, {false, "PA", 0xfffffff9, 4, "over the top and on"},
		{true, "FA", 4, 12, ""}, {false, "FA", 12, 5, ""}, {true, "A", 5, 13, ""},
	},
}

// checkSequences lets every segment of every sequence through.
func checkSequences(p *probe, way string) {
	s := p.stage()
	through, port := 0, uint16(20000)
	for name, sequence := range tcpSequences {
		port++
		if s.follows(name, s.Flows(false, port)[way], sequence) {
			through++
		}
	}
	p.measure(through == len(tcpSequences), "%d of %d sequences", through, len(tcpSequences))
}

func (s *stage) follows(name string, f rig.Flow, sequence []tcpStep) bool {
	s.p.Helper()
	for i, g := range sequence {
		if !s.carries(f, g.client, frames.TCP(g.flags, g.seq, g.ack), frames.Payload(g.data)) {
			s.p.Logf("%s: segment %d, %+v", name, i, g)
			return false
		}
	}
	return true
}

// checkSimultaneousOpen checks a connection whose two SYNs cross; each side answers with a SYN/ACK.
func checkSimultaneousOpen(p *probe) {
	s := p.stage()
	opened := 0
	for i, way := range []string{"from the Internet", "hairpin"} {
		f := s.Flows(false, uint16(20000+i))[way]
		crossing := []tcpStep{
			{true, "S", rig.ClientISN, 0, ""}, {false, "S", rig.ServerISN, 0, ""},
			{true, "SA", rig.ClientISN, s1, ""}, {false, "SA", rig.ServerISN, c1, ""},
			{true, "A", c1, s1, ""}, {false, "A", s1, c1, ""},
		}
		if s.follows("simultaneous open", f, crossing) && s.stateOf(f) == maps.StateEstablished && s.alive(f) {
			opened++
		}
	}
	p.measure(opened == 2, "%d of 2 ways, from the Internet and hairpin", opened)
}

// stateOf is the state of a client's connection, "" if there is none.
func (s *stage) stateOf(f rig.Flow) string {
	for _, c := range s.Connections(s.p) {
		if c.Client == f.Client && c.External == f.External {
			return c.State
		}
	}
	return ""
}

func checkFilteringByProtocol(p *probe) {
	s := p.stage("web tcp 443 to 192.168.1.20:8443 from 198.51.100.10/32", "quic udp 443 to 192.168.1.20:8443")
	_, overTCP := s.begin(s.stranger(1, false))
	overUDP := s.alive(s.establish(s.stranger(1, true)))
	p.measure(overTCP == fateDropped && overUDP,
		"by forward: a stranger is %s with TCP and %s with UDP", overTCP, either(overUDP, "served", "not served"))
}

// checkUnsolicited: a SYN to an address of the router's that no forward is for is the router's own.
func checkUnsolicited(p *probe) {
	s := p.stage()
	f := s.way("from the Internet", false, 20000, 444, 444)
	_, got := s.begin(f)
	p.measure(got == fatePassed, "a SYN to a port without a forward is %s", got)
}

// checkSilence checks that a WAN client outside the from list gets no answer.
func checkSilence(p *probe) {
	s := p.stage()
	f := s.way("from the Internet", false, 20000, 82, 82)
	f.Client = addrPortOf("192.0.2.9", 20000)
	_, got := s.begin(f)
	p.measure(got == fateDropped, "a SYN that a from list refuses is %s", got)
}

// told makes the datapath send ICMP errors for refusals to these sides.
func (s *stage) told(sides bpf.HairpinSide) {
	s.p.Helper()
	s.set(func(settings *bpf.HairpinSettings) { settings.Told = sides })
}

// refusal runs a packet that is refused, and returns the ICMP error that its sender gets.
func (s *stage) refusal(f rig.Flow) (notice, fate) {
	s.p.Helper()
	in, _ := f.In(frames.TCP("S", rig.ClientISN, 0), frames.Payload("may I?"))
	got := s.put(f.At, in.Bytes())
	if got.fate != fateTold {
		return notice{}, got.fate
	}
	n := readNotice(got.data)
	if !n.valid || !n.quotes(in.Bytes()) || n.kind != lab.Unreachable {
		s.p.Errorf("%s: valid %v, quotes its sender's packet %v: %x", n, n.valid, n.quotes(in.Bytes()), got.data)
	}
	return n, got.fate
}
