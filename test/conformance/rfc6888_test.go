// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"net/netip"
	"strings"
	"time"

	"hairpin/bpf"
	"hairpin/maps"
	"hairpin/maps/layout"
	"hairpin/test/frames"
	"hairpin/test/home"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

var requirements6888 = []requirement{
	{
		id: "REQ-4 (hairpin)", hairpin: true, level: levelMust,
		demand: "limit the ports of a subscriber: those that its connections are reflected from",
		figure: "a limit",
		check:  func(p *probe) { checkSubscriberLimit(p, "hairpin", "the same LAN") },
	},
	{
		id: "REQ-4 (outbound)", level: levelMust,
		demand: "limit the external ports of a subscriber",
		figure: "a limit",
		absent: noOutbound + ", so nobody gets external ports",
	},
	{
		id: "REQ-5", level: levelShould,
		demand: "limit the state of a subscriber",
		figure: "a limit",
		check:  func(p *probe) { checkSubscriberLimit(p, "from another LAN", "another LAN") },
	},
	{
		id: "REQ-6", level: levelMust,
		demand: "translation can be off for some destinations",
		figure: "3 of 3 unchanged",
		check:  checkUntranslated,
	},
	{
		id: "REQ-8 (hold)", hairpin: true, level: levelShouldNot,
		demand: "give a freed port to another mapping for 120 s, TCP excepted",
		figure: "120 s",
		check:  checkPortHold,
	},
	{
		id: "REQ-8 (after loss of state)", hairpin: true, level: levelShouldNot,
		demand: "give out ports for 120 s after state was lost, unless they are filtered by address and port",
		figure: "filtered",
		check:  checkPortFiltered,
	},
	{
		id: "REQ-8 (restart)", level: levelShouldNot,
		demand: "lose state when the daemon restarts",
		figure: "the connection lives on",
		check:  checkRestart,
	},
	{
		id: "REQ-9", level: levelMust,
		demand: "offer PCP",
		figure: "PCP",
		absent: "there is no PCP server",
	},
	{
		id: "REQ-11A", level: levelMust,
		demand: "no resources or policy: drop the packet",
		figure: "dropped",
		check:  checkExhausted,
	},
	{
		id: "REQ-11B", level: levelShould,
		demand: "send ICMP 3/1 for a packet dropped so (RFC 5508 REQ-8 asks for 3/13)",
		figure: "ICMP 3/1",
		check:  checkExhaustedAnswer,
	},
	{
		id: "REQ-11C", level: levelShould,
		demand: "notify the management of such drops",
		figure: "a counter",
		check:  checkExhaustedCounter,
	},
	{
		id: "REQ-11D", level: levelMustNot,
		demand: "delete mappings to make room",
		figure: "all established connections alive",
		check:  checkNoEviction,
	},
	{
		id: "REQ-12", level: levelShouldNot,
		demand: "log destinations or ports",
		figure: "0 lines",
		check:  checkLog,
	},
	{
		id: "REQ-15", hairpin: true, level: levelShould,
		demand: "ports are hard to guess",
		figure: "all sixteenths of the range, no sequence",
		check:  checkRandomPorts,
	},
}

// checkSubscriberLimit lets one host open more and more connections, and then another host one.
func checkSubscriberLimit(p *probe, way, where string) {
	s := p.stage()
	room := int(maps.ConnectionsLimit(&s.Objects))
	opened := 0
	for opened < room && s.tries(s.Flows(true, uint16(10000+opened))[way]) {
		opened++
	}
	limit := int(s.settings().SourceLimit)
	other := s.tries(s.Flows(true, 20000)["server to itself"])
	p.measure(opened == limit && opened < room && other,
		"one host of %s holds at most %d of %d connections; after that another host %s",
		where, opened, room, either(other, "still connects", "does not connect"))
}

// tries says whether a connection can be opened, all the way.
func (s *stage) tries(f rig.Flow) bool {
	s.p.Helper()
	f, got := s.begin(f)
	return got == fateSent && s.carries(f, false, frames.Payload("answer"))
}

// checkUntranslated: what no forward is for passes as it came.
func checkUntranslated(p *probe) {
	s := p.stage()
	passed := 0
	for _, to := range []string{"198.51.100.9:443", "192.168.2.60:443", "203.0.113.1:444"} {
		f := s.Flows(false, 20000)["hairpin"]
		f.External = netip.MustParseAddrPort(to)
		if _, got := s.begin(f); got == fatePassed {
			passed++
		}
	}
	p.measure(passed == 3, "%d of 3 unchanged: to the Internet, another LAN, a port without a forward", passed)
}

// checkPortHold lets a hairpin connection expire, and another client ask for its port.
func checkPortHold(p *probe) {
	s := p.stage()
	unit := p.lifetimeUnit()
	idle, hold, byDefault := unit, 5*unit, time.Duration(s.settings().PortHold)
	s.Config.Timeouts.PortHold = hold
	s.Apply(p)
	s.set(func(settings *bpf.HairpinSettings) {
		settings.Udp, settings.TcpEstablished = uint64(idle), uint64(idle)
	})
	expired := func(port uint16) rig.Flow {
		f := s.establish(s.lanClient(0, true, port))
		s.age(f.Client, idle+time.Second)
		s.sweep()
		if s.present(f.Client) {
			p.Fatal("an idle connection does not expire")
		}
		return f
	}
	held := func(port uint16, after time.Duration) bool {
		s.age(expired(port).Client, after)
		s.sweep()
		return s.establish(s.lanClient(1, true, port)).Source.Port() != port
	}
	before, after := held(20000, hold*8/10), held(20001, hold*12/10)
	again := s.establish(expired(20002)).Source.Port() == 20002
	p.measure(byDefault >= 120*time.Second && before && !after && again,
		"%.0f s; after 80 %% %s, after 120 %% %s; the same client has it back %s",
		byDefault.Seconds(), either(before, "held", "free"), either(after, "held", "free"), either(again, "at once", "later"))
}

// checkPortFiltered: only the server reaches a reflected port, so that what is left of somebody else's old
// connection to it goes nowhere (RFC 6888 REQ-8 C).
func checkPortFiltered(p *probe) {
	s := p.stage()
	f := s.establish(s.Flows(true, 20000)["hairpin"])
	filtered := 0
	others := []string{"192.168.1.51:8443", "192.168.1.20:8444", "192.168.1.51:20000"}
	for _, from := range others {
		if s.reaches(f.Source, from) == fatePassed {
			filtered++
		}
	}
	p.measure(filtered == len(others),
		"%d of %d packets from other addresses or ports do not get to the client", filtered, len(others))
}

// checkRestart kills the daemon during a connection and starts a new daemon.
func checkRestart(p *probe) {
	n, hp := p.network()
	n.Server.ServeTCP(":8080")
	c, err := n.Client.DialTCP(lab.External+":80", "", lab.Patience)
	if err != nil {
		p.Fatal(err)
	}
	defer c.Close()
	before := c.Echo(10000)
	hp.Kill()
	dead := c.Echo(10000)
	hp.Start()
	after := c.Echo(10000)
	p.measure(before == nil && dead == nil && after == nil, "the connection carries data %s",
		either(dead == nil && after == nil, "without the daemon, and with its successor", "no longer"))
}

// checkExhausted: openings without room or permission go nowhere.
func checkExhausted(p *probe) {
	s := p.stage()
	refused := 0
	fates := []fate{}
	for _, f := range []rig.Flow{s.way("hairpin", false, 20000, 81, 81), s.way("from another LAN", false, 20000, 82, 82)} {
		in, _ := f.In(frames.TCP("S", rig.ClientISN, 0))
		fates = append(fates, s.put(f.At, in.Bytes()).fate)
	}
	made := len(s.states())
	full := s.fillTable()
	for _, got := range fates {
		if got == fateTold || got == fateDropped {
			refused++
		}
	}
	if full != string(fateSent) && full != string(fatePassed) {
		refused++
	}
	p.measure(refused == 3 && made == 0, "%d of 3 dropped: reflect off, from list, table full", refused)
}

func checkExhaustedAnswer(p *probe) {
	s := p.stage()
	answer := s.fillTable()
	p.measure(answer == "ICMP 3/1", "%s", answer)
}

func checkExhaustedCounter(p *probe) {
	s := p.stage()
	s.fillTable()
	counted := 0
	for _, c := range s.reasons() {
		if c.Reason == "table_full" && c.Verdict == "refuse" {
			counted += int(c.Packets)
		}
	}
	p.measure(counted == 1, "hairpin_connections_refused_total{reason=\"table_full\"}: %d", counted)
}

// checkNoEviction floods openings and fills the table, then asks every connection.
func checkNoEviction(p *probe) {
	s := p.stage()
	const early = 50
	var kept []rig.Flow
	for i := range early {
		kept = append(kept, s.establish(s.Flows(true, uint16(30000+i))["from the Internet"]))
	}
	for i := range 3 * int(maps.TCPLimit(&s.Objects)) / 2 {
		for _, udp := range []bool{false, true} {
			f := s.Flows(udp, uint16(1024+i))["from another LAN"]
			in, _ := f.In(frames.TCP("S", rig.ClientISN, 0))
			s.put(f.At, in.Bytes())
		}
	}
	// Two seconds later hairpin challenges no client any more. The clients of this stage cannot answer a challenge.
	s.eachState(func(key bpf.HairpinTuple, _ layout.Entry) { s.rewind(key, 2*time.Second) })
	s.fillTable()
	alive := 0
	for _, f := range kept {
		if s.alive(f) {
			alive++
		}
	}
	p.measure(alive == early, "%d of %d alive after a flood of openings and with a full table", alive, early)
}

// checkLog checks that the daemon's log names no clients and no servers.
func checkLog(p *probe) {
	n, hp := p.network()
	n.Server.ServeTCP(":8080")
	for _, host := range []*lab.Host{n.Internet, n.Client} {
		c, err := host.DialTCP(lab.External+":80", "", lab.Patience)
		if err != nil {
			p.Fatal(err)
		}
		if err := c.Echo(1000); err != nil {
			p.Fatal(err)
		}
		c.Close()
	}
	lines := 0
	for line := range strings.Lines(hp.Log()) {
		for _, addr := range []string{lab.InternetSource, lab.Client, lab.Server} {
			if strings.Contains(line, addr) {
				lines++
			}
		}
	}
	p.measure(lines == 0, "%s of the daemon's log name a client or a server", amount(lines, "line"))
}

// network is the usual network with hairpin on its router.
func (p *probe) network() (*lab.Network, *lab.Hairpin) {
	p.Helper()
	n := lab.NewNetwork(p)
	n.SetOffloads(home.OffloadsFor(p.mode))
	hp := lab.NewHairpin(n.Router, home.Config(p.mode, home.Forwards))
	hp.Start()
	return n, hp
}
