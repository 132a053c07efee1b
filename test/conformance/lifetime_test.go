// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/bpf"
	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

// lifetime is the idle time of a kind of connection: the default value in the settings, and whether the datapath obeys it.
type lifetime struct {
	byDefault     time.Duration
	lives, leaves bool // after 80 % of the time configured; after 120 % of it
}

func (l lifetime) String() string {
	return fmt.Sprintf("%.0f s; idle for 80 %%: %s, for 120 %%: %s", l.byDefault.Seconds(), either(l.lives, "lives", "gone"),
		either(l.leaves, "gone", "lives"))
}

// atLeast says whether a connection lives as long as a requirement demands, and not for ever.
func (l lifetime) atLeast(least time.Duration) bool {
	return l.byDefault >= least && l.lives && l.leaves
}

func either(is bool, yes, no string) string {
	if is {
		return yes
	}
	return no
}

// The kinds of lifetimes.
const (
	lifeUDP           = "UDP from the Internet"
	lifeUDPHairpin    = "UDP hairpin"
	lifeUDPWellKnown  = "UDP to port 53"
	lifeICMP          = "ICMP echo"
	lifeOpening       = "TCP half-open"
	lifeEstablished   = "TCP established"
	lifeFinished      = "TCP after both FINs"
	lifeReset         = "TCP after a RST"
	lifeServerSpeaks  = "UDP, and the server speaks in between"
	lifeStranger      = "UDP, and the Internet host speaks in between"
	lifeHairpinClient = "UDP hairpin, and the client speaks in between"
)

// specimen is a kind of connection whose lifetime is measured.
type specimen struct {
	kind     string
	flow     func(clientPort uint16) rig.Flow
	open     func(rig.Flow) rig.Flow
	answers  func(rig.Flow) bool // does the server's answer still get to the client?
	time     func(bpf.HairpinSettings) uint64
	speaking func(rig.Flow) bool // a packet in between; nil: none
}

// lifetimes measures how long connections live, once for each mode.
func (p *probe) lifetimes() map[string]lifetime {
	p.Helper()
	for range 10 {
		if p.suite.lifetimes[p.mode] == nil {
			p.suite.lifetimes[p.mode] = p.measureLifetimes()
		}
	}
	if p.suite.lifetimes[p.mode] == nil {
		p.Fatal("the machine is too slow to tell 80 % of a lifetime from 120 % of it")
	}
	return p.suite.lifetimes[p.mode]
}

// lifetime measures one kind.
func (p *probe) lifetime(kind string) lifetime {
	p.Helper()
	return p.lifetimes()[kind]
}

// measureLifetimes makes connections idle by setting back when they were seen. It returns nil if the
// machine was too slow to tell 80 % of a time from 120 %.
func (p *probe) measureLifetimes() map[string]lifetime {
	p.Helper()
	s := p.stage("web tcp,udp 443 to 192.168.1.20:8443", "dns udp 53 to 192.168.1.20:5353", "ping icmp any to 192.168.1.20")
	byDefault := s.settings()
	unit := p.lifetimeUnit()
	times := &s.Config.Timeouts
	times.TCPEstablished, times.TCPOpening, times.TCPClosing = 5*unit, 3*unit, 4*unit
	times.UDP, times.ICMP = 6*unit, 2*unit
	s.Apply(p)
	configured := s.settings()
	start, specimens := time.Now(), s.specimens()
	flows := map[string][2]rig.Flow{}
	for i, sp := range specimens {
		pair := [2]rig.Flow{sp.open(sp.flow(uint16(31000 + 2*i))), sp.open(sp.flow(uint16(31001 + 2*i)))}
		flows[sp.kind] = pair
		whole := time.Duration(sp.time(configured))
		s.idle(sp, pair[0], whole, whole*8/10)
		s.idle(sp, pair[1], whole, whole*12/10)
	}
	s.sweep()
	found := map[string]lifetime{}
	for _, sp := range specimens {
		found[sp.kind] = lifetime{
			byDefault: time.Duration(sp.time(byDefault)),
			lives:     sp.answers(flows[sp.kind][0]), leaves: !sp.answers(flows[sp.kind][1]),
		}
	}
	if time.Since(start) > unit/3 {
		return nil
	}
	return found
}

// lifetimeUnit is as long as it may be: nothing can have been seen before the machine started.
func (p *probe) lifetimeUnit() time.Duration {
	return min(20*time.Second, p.uptime()/10).Truncate(time.Second)
}

// uptime is the datapath's clock.
func (p *probe) uptime() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		p.Fatalf("read clock: %v", err)
	}
	return time.Duration(now.Nano())
}

// idle makes a connection idle for a time. If it is to speak in between, it does so after 80 % of its
// lifetime, and then is idle for that time.
func (s *stage) idle(sp specimen, f rig.Flow, lifetime, by time.Duration) {
	s.p.Helper()
	if sp.speaking != nil {
		s.age(f.Client, lifetime*8/10)
		if !sp.speaking(f) {
			s.p.Fatalf("%s: the packet in between is not sent on", sp.kind)
		}
	}
	s.age(f.Client, by)
}

func (s *stage) specimens() []specimen {
	wan := func(udp bool) func(uint16) rig.Flow {
		return func(port uint16) rig.Flow { return s.Flows(udp, port)["from the Internet"] }
	}
	hairpin := func(port uint16) rig.Flow { return s.Flows(true, port)["hairpin"] }
	wellKnown := func(port uint16) rig.Flow { return s.way("from the Internet", true, port, 53, 5353) }
	udp := func(settings bpf.HairpinSettings) uint64 { return settings.Udp }
	closing := func(settings bpf.HairpinSettings) uint64 { return settings.TcpClosing }
	server := func(f rig.Flow) bool {
		return s.carries(f, false, frames.TCP("A", rig.ServerISN+1, rig.ClientISN+1), frames.Payload("answer"))
	}
	client := func(f rig.Flow) bool { return s.carries(f, true, frames.Payload("still here")) }
	synAck := func(f rig.Flow) bool { return s.carries(f, false, frames.TCP("SA", rig.ServerISN, rig.ClientISN+1)) }
	return []specimen{
		{lifeUDP, wan(true), s.establish, server, udp, nil},
		{lifeUDPHairpin, hairpin, s.establish, server, udp, nil},
		{lifeUDPWellKnown, wellKnown, s.establish, server, udp, nil},
		{lifeServerSpeaks, wan(true), s.establish, server, udp, server},
		{lifeStranger, wan(true), s.establish, server, udp, client},
		{lifeHairpinClient, hairpin, s.establish, server, udp, client},
		{lifeICMP, wan(true), s.mustPing, s.echoReplies, func(t bpf.HairpinSettings) uint64 { return t.Icmp }, nil},
		{lifeOpening, wan(false), s.mustBegin, synAck, func(t bpf.HairpinSettings) uint64 { return t.TcpOpening }, nil},
		{lifeEstablished, wan(false), s.establish, server, func(t bpf.HairpinSettings) uint64 { return t.TcpEstablished }, nil},
		{lifeFinished, wan(false), s.finish, s.lastAck, closing, nil},
		{lifeReset, wan(false), s.reset, server, closing, nil},
	}
}

func (s *stage) mustPing(f rig.Flow) rig.Flow {
	s.p.Helper()
	if !s.pings(f) {
		s.p.Fatal("no echo through the forward")
	}
	return f
}

func (s *stage) echoReplies(f rig.Flow) bool {
	got := s.put(s.LAN, s.echo(lab.EchoReply, s.LAN, rig.ServerMAC, rig.Server, f.Source.Addr(), f.Source.Port(), 64))
	return got.fate == fateSent
}

func (s *stage) mustBegin(f rig.Flow) rig.Flow {
	s.p.Helper()
	f, got := s.begin(f)
	if got != fateSent {
		s.p.Fatalf("SYN: %s", got)
	}
	return f
}

// finish establishes a connection and closes it from both sides.
func (s *stage) finish(f rig.Flow) rig.Flow {
	s.p.Helper()
	f = s.establish(f)
	if !s.carries(f, true, frames.TCP("FA", rig.ClientISN+1, rig.ServerISN+1)) || !s.carries(f, false, frames.TCP("FA", rig.ServerISN+1, rig.ClientISN+2)) ||
		!s.carries(f, true, frames.TCP("A", rig.ClientISN+2, rig.ServerISN+2)) {
		s.p.Fatal("a connection does not close")
	}
	return f
}

// lastAck sends the server's last acknowledgement, after both FINs.
func (s *stage) lastAck(f rig.Flow) bool {
	return s.carries(f, false, frames.TCP("A", rig.ServerISN+2, rig.ClientISN+2))
}

// reset establishes a connection and resets it from the client's side.
func (s *stage) reset(f rig.Flow) rig.Flow {
	s.p.Helper()
	f = s.establish(f)
	if !s.carries(f, true, frames.TCP("R", rig.ClientISN+1, 0)) {
		s.p.Fatal("a RST is not sent on")
	}
	return f
}
