// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"fmt"
	"net/netip"
	"time"

	"hairpin/maps/config"
	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

var requirements4787 = []requirement{
	{
		id: "REQ-1 (forwards)", level: levelMust,
		demand: "endpoint-independent mapping: a server has the same external endpoint towards everybody",
		figure: "1 external endpoint for 5 remote ones",
		check:  func(p *probe) { checkOneMapping(p, true) },
	},
	{
		id: "REQ-1 (outbound)", level: levelMust,
		demand: "endpoint-independent mapping of outbound connections",
		figure: "same X:x to any Y:y gives same X':x'",
		absent: noOutbound,
		check:  func(p *probe) { checkOutboundPasses(p, true) },
	},
	{
		id: "REQ-2", level: levelRecommended,
		demand: "all connections of a host have the same external address",
		figure: "1 external address a host",
		absent: noOutbound,
	},
	{
		id: "REQ-3", hairpin: true, level: levelMustNot,
		demand: "give one port to two mappings",
		figure: "100 clients with one port: 100 ports",
		check:  func(p *probe) { checkNoOverload(p, true) },
	},
	{
		id: "REQ-3a", hairpin: true, level: levelRecommended,
		demand: "source ports 0-1023 and 1024-65535 stay in their range",
		figure: "all",
		check:  checkPortRange,
	},
	{
		id: "REQ-4", hairpin: true, level: levelRecommended,
		demand: "keep the parity of source ports",
		figure: "all",
		check:  checkParity,
	},
	{
		id: "REQ-5", level: levelMustNot,
		demand: "let a UDP mapping expire in less than 2 minutes",
		figure: "at least 120 s",
		check:  checkLifetime(120*time.Second, lifeUDP, lifeUDPHairpin),
	},
	{
		id: "REQ-5a", level: levelMay,
		demand: "expire sooner if the destination port is a well-known one",
		figure: "any time",
		check:  checkLifetime(0, lifeUDPWellKnown),
	},
	{
		id: "REQ-5b", level: levelMay,
		demand: "have a configurable UDP timeout",
		figure: "configurable",
		check: func(p *probe) {
			checkConfigured(p, "udp", lifeUDP, func(t *config.Timeouts, d time.Duration) { t.UDP = d })
		},
	},
	{
		id: "REQ-5c", level: levelRecommended,
		demand: "a default of 5 minutes or more",
		figure: "at least 300 s",
		check:  checkLifetime(300*time.Second, lifeUDP, lifeUDPHairpin),
	},
	{
		id: "REQ-6", level: levelMust,
		demand: "refresh a UDP mapping with packets from inside to outside",
		figure: "lives on",
		check:  checkOutboundRefresh,
	},
	{
		id: "REQ-6a", level: levelMay,
		demand: "refresh it with packets from outside",
		figure: "either",
		check:  checkInboundRefresh,
	},
	{
		id: "REQ-7", level: levelMust,
		demand: "with a dynamic WAN address: avoid or cope with an overlap of internal and external networks",
		figure: "no overlap",
		absent: "hairpin gives out no addresses",
		check:  checkOverlap,
	},
	{
		id: "REQ-8", level: levelRecommended,
		demand: "endpoint-independent filtering, or address-dependent for strictness",
		figure: "everybody",
		check:  func(p *probe) { checkFiltering(p, true) },
	},
	{
		id: "REQ-8a", level: levelMay,
		demand: "have configurable filtering",
		figure: "configurable",
		check:  func(p *probe) { checkFilteringConfigured(p, true) },
	},
	{
		id: "REQ-9", hairpin: true, level: levelMust,
		demand: "support hairpinning",
		figure: "3 of 3 ways",
		check:  func(p *probe) { checkHairpin(p, true) },
	},
	{
		id: "REQ-9a", hairpin: true, level: levelMust,
		demand: "hairpinned packets have the external source X1':x1'",
		figure: "3 of 3 clients",
		check:  func(p *probe) { checkHairpinSource(p, true) },
	},
	{
		id: "REQ-10", level: levelShould,
		demand: "UDP ALGs are off",
		figure: "0 bytes of payload changed",
		check:  func(p *probe) { checkNoALG(p, true) },
	},
	{
		id: "REQ-10a", level: levelShould,
		demand: "each ALG can be switched on and off",
		figure: "a switch for each",
		absent: "there is no ALG",
	},
	{
		id: "REQ-11", level: levelMust,
		demand: "deterministic behaviour: neither mapping nor filtering changes, whatever port is free",
		figure: "the same with the port free and taken",
		check:  checkDeterministic,
	},
	{
		id: "REQ-12", level: levelMust,
		demand: "no ICMP message ends a mapping",
		figure: "the connection stays as it was",
		check:  func(p *probe) { checkICMPEndsNothing(p, true) },
	},
	{
		id: "REQ-12a", level: levelShouldNot,
		demand: "filter ICMP by its source address",
		figure: "errors of any host",
		check:  checkAnyReporter,
	},
	{
		id: "REQ-12b", level: levelRecommended,
		demand: "Destination Unreachable gets through",
		figure: "all 16 codes",
		check:  func(p *probe) { checkUnreachable(p, true) },
	},
	{
		id: "REQ-13", level: levelMust,
		demand: "too big and DF set: ICMP 3/4 to the inside host",
		figure: "ICMP 3/4 with the MTU 1280",
		check:  checkTooBig,
	},
	{
		id: "REQ-13a (fragment)", level: levelMust,
		demand: "too big and DF not set: fragment",
		figure: "no piece longer than the MTU, the same payload",
		check:  func(p *probe) { checkFragmenting(p, false) },
	},
	{
		id: "REQ-13a (order)", level: levelShould,
		demand: "send the fragments in order",
		figure: "in order",
		check:  func(p *probe) { checkFragmenting(p, true) },
	},
	{
		id: "REQ-14", level: levelMust,
		demand: "handle fragments in order and out of order",
		figure: "every datagram",
		check:  checkFragmentOrder,
	},
	{
		id: "REQ-14a", level: levelMustNot,
		demand: "let a flood of fragments harm in-order or whole packets",
		figure: "every datagram",
		check:  checkFragmentFlood,
	},
}

// checkOneMapping lets strangers talk to one server, and counts what they see it as.
func checkOneMapping(p *probe, udp bool) {
	s := p.stage()
	seen := map[netip.AddrPort]bool{}
	const strangers = 5
	for i := range strangers {
		f := s.establish(s.stranger(i, udp))
		in, _ := f.Back(frames.TCP("PA", rig.ServerISN+1, rig.ClientISN+1), frames.Payload("whom do you see?"))
		got := s.put(s.LAN, in.Bytes())
		if got.fate != fateSent {
			p.Fatalf("answer to %s: %s", f.Client, got.fate)
		}
		seen[sourceOf(got.data)] = true
	}
	p.measure(len(seen) == 1 && seen[netip.AddrPortFrom(rig.WANAddress, 443)],
		"%s for %d remote ones", amount(len(seen), "external endpoint"), strangers)
}

func sourceOf(data []byte) netip.AddrPort {
	l4 := frames.L4Offset(data)
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(data[frames.EthernetLength+12:])), uint16(data[l4])<<8|uint16(data[l4+1]))
}

func amount(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// checkOutboundPasses: what a LAN host starts towards the Internet is none of hairpin's.
func checkOutboundPasses(p *probe, udp bool) {
	s := p.stage()
	f := s.Flows(udp, 20000)["hairpin"]
	f.External = netip.AddrPortFrom(rig.InternetHost, 443)
	in, _ := f.In(frames.TCP("S", rig.ClientISN, 0), frames.Payload("outbound"))
	got := s.put(f.At, in.Bytes())
	p.measure(got.fate == fatePassed && len(s.states()) == 0, "an outbound packet is %s", got.fate)
}

// checkNoOverload checks that clients reflected from the router's one address all get different ports.
func checkNoOverload(p *probe, udp bool) {
	s := p.stage()
	const clients = 100
	used := map[netip.AddrPort]bool{}
	for i := range clients {
		f := s.establish(s.lanClient(i, udp, 20000))
		used[f.Source] = true
	}
	p.measure(len(used) == clients, "%d clients with one port: %s", clients, amount(len(used), "port"))
}

// reflectedPorts are the ports that clients with one and the same port get.
func (s *stage) reflectedPorts(clients int, port uint16) (ports []uint16) {
	for i := range clients {
		f, got := s.begin(s.lanClient(i, true, port))
		if got != fateSent {
			s.p.Fatalf("client %d: %s", i, got)
		}
		ports = append(ports, f.Source.Port())
	}
	return ports
}

func checkPortRange(p *probe) {
	s := p.stage()
	const clients = 20
	low, high := 0, 0
	for _, port := range s.reflectedPorts(clients, 500) {
		if port < 1024 {
			low++
		}
	}
	for _, port := range s.reflectedPorts(clients, 20000) {
		if port >= 1024 {
			high++
		}
	}
	p.measure(low == clients && high == clients,
		"%d of %d stay below 1024, %d of %d above 1023", low, clients, high, clients)
}

func checkParity(p *probe) {
	s := p.stage()
	const clients = 20
	kept := 0
	for _, port := range []uint16{500, 501, 20000, 20001} {
		for _, got := range s.reflectedPorts(clients, port) {
			if got%2 == port%2 {
				kept++
			}
		}
	}
	p.measure(kept == 4*clients, "%d of %d keep it", kept, 4*clients)
}

// checkLifetime demands that connections of some kinds live at least as long idle.
func checkLifetime(least time.Duration, kinds ...string) func(*probe) {
	return func(p *probe) {
		found := p.lifetime(kinds[0])
		met := true
		for _, kind := range kinds {
			met = met && p.lifetime(kind).atLeast(least) && p.lifetime(kind) == found
		}
		p.measure(met, "%s", found)
	}
}

// checkConfigured: what the configuration says is what the kernel gets, and connections of a kind keep to.
func checkConfigured(p *probe, key, kind string, set func(*config.Timeouts, time.Duration)) {
	s := p.stage()
	before := s.settings()
	set(&s.Config.Timeouts, 1234*time.Second)
	s.Apply(p)
	changed := s.settings() != before
	kept := p.lifetime(kind).atLeast(0)
	p.measure(changed && kept, "timeouts.%s is %s", key, either(changed && kept, "kept to", "without effect"))
}

func checkOutboundRefresh(p *probe) {
	found := p.lifetime(lifeServerSpeaks)
	p.measure(found.lives && found.leaves, "80 %% idle, the server speaks, 80 %% idle: %s; 120 %% idle: %s",
		either(found.lives, "lives", "gone"), either(found.leaves, "gone", "lives"))
}

func checkInboundRefresh(p *probe) {
	stranger, inside := p.lifetime(lifeStranger).lives, p.lifetime(lifeHairpinClient).lives
	p.measure(true, "from the Internet: %s; hairpin, where both are inside: %s",
		either(stranger, "refreshes", "does not refresh"), either(inside, "refreshes", "does not refresh"))
}

// checkOverlap: a WAN host with an address of the LAN is not believed, which is all that can be done.
func checkOverlap(p *probe) {
	s := p.stage()
	f := s.Flows(true, 20000)["from the Internet"]
	f.Client = netip.AddrPortFrom(rig.Client, 20000)
	in, _ := f.In(frames.Payload("from a network that is ours too"))
	got := s.put(f.At, in.Bytes())
	p.measure(got.fate == fateDropped && s.Counted(p, "spoofed") == 1,
		"a WAN packet from the LAN's network is %s", got.fate)
}

func checkFiltering(p *probe, udp bool) {
	s := p.stage()
	const strangers = 5
	through := 0
	for i := range strangers {
		if s.alive(s.establish(s.stranger(i, udp))) {
			through++
		}
	}
	p.measure(through == strangers, "%d of %d strangers, each from a port of its own", through, strangers)
}

// checkFilteringConfigured checks that a forward with a from list serves the clients in the list, and no others.
func checkFilteringConfigured(p *probe, udp bool) {
	s := p.stage("web tcp,udp 443 to 192.168.1.20:8443 from 198.51.100.10/32")
	named := s.alive(s.establish(s.stranger(0, udp)))
	_, other := s.begin(s.stranger(1, udp))
	p.measure(named && other == fateDropped,
		"with a from list: clients in the list are %s, others are %s", either(named, "served", "not served"), other)
}

// hairpinWays are the ways into a forward from inside.
var hairpinWays = []string{"hairpin", "server to itself", "from another LAN"}

func checkHairpin(p *probe, udp bool) {
	s := p.stage()
	served := 0
	for _, way := range hairpinWays {
		if s.alive(s.establish(s.Flows(udp, 20000)[way])) {
			served++
		}
	}
	p.measure(served == len(hairpinWays),
		"%d of %d ways: same LAN, the server itself, another LAN", served, len(hairpinWays))
}

// checkHairpinSource has clients with the same port talk to two servers each, with reflect public.
func checkHairpinSource(p *probe, udp bool) {
	s := p.stage("web tcp,udp 443 to 192.168.1.20:8443 reflect public", "other tcp,udp 444 to 192.168.1.21:8444 reflect public")
	own, kept := map[netip.AddrPort]bool{}, 0
	for _, way := range hairpinWays {
		near := s.establish(s.Flows(udp, 20000)[way])
		if near.Source.Addr() == rig.WANAddress {
			own[near.Source] = true
		}
		far := s.Flows(udp, 20000)[way]
		far.External, far.Target = netip.AddrPortFrom(rig.WANAddress, 444), netip.AddrPortFrom(rig.BasicServer, 8444)
		if far = s.establish(far); far.Source == near.Source {
			kept++
		}
	}
	p.measure(len(own) == len(hairpinWays) && kept == len(own),
		"with reflect public, %d of %d clients: an endpoint of the external address for each, the same to two servers", len(own), len(hairpinWays))
}

// checkNoALG sends what ALGs look for, both ways.
func checkNoALG(p *probe, udp bool) {
	s := p.stage()
	f := s.establish(s.Flows(udp, 20000)["hairpin"])
	bait := []string{
		"INVITE sip:bob@203.0.113.1 SIP/2.0\r\nVia: SIP/2.0/UDP 192.168.1.50:20000\r\nContact: <sip:a@192.168.1.50:20000>\r\n\r\n",
		"PORT 192,168,1,50,78,32\r\n",
		"227 Entering Passive Mode (192,168,1,20,32,251)\r\n",
		"DCC SEND file 3232235826 20000 1024\r\n",
		"\x00\x01\x00\x00\x21\x12\xa4\x42",
	}
	changed := 0
	states := len(s.states())
	for _, text := range bait {
		for _, fromClient := range []bool{true, false} {
			segment := frames.TCP("PA", rig.ServerISN+1, rig.ClientISN+1)
			if fromClient {
				segment = frames.TCP("PA", rig.ClientISN+1, rig.ServerISN+1)
			}
			if !s.carries(f, fromClient, segment, frames.Payload(text)) {
				changed += len(text)
			}
		}
	}
	opened := len(s.states()) - states
	p.measure(changed == 0 && opened == 0,
		"%d bytes of payload changed, %d connections opened by it", changed, opened/2)
}

// checkDeterministic: the second client cannot have the port it has asked for, and is served like the first.
func checkDeterministic(p *probe) {
	s := p.stage()
	free := s.establish(s.lanClient(0, true, 20000))
	taken := s.establish(s.lanClient(1, true, 20000))
	filtered := 0
	for _, f := range []rig.Flow{free, taken} {
		// Somebody else than the server addresses the reflected port: none of these connections' business.
		if s.reaches(f.Source, "192.168.1.51:8443") == fatePassed {
			filtered++
		}
	}
	alive := 0
	for _, f := range []rig.Flow{free, taken} {
		if s.alive(f) {
			alive++
		}
	}
	p.measure(alive == 2 && filtered == 2 && free.Source.Port() == 20000 && taken.Source.Port() != 20000,
		"%d of 2 clients of one port are served, %d of 2 closed to third hosts", alive, filtered)
}

// reaches returns the fate of a datagram that a LAN host sends to a reflected port.
func (s *stage) reaches(port netip.AddrPort, from string) fate {
	s.p.Helper()
	in := frames.Frame{From: rig.ClientMAC, To: s.LAN.MAC, Src: netip.MustParseAddrPort(from), Dst: port, UDP: true}
	in.Payload = []byte("is anybody there?")
	return s.put(s.LAN, in.Bytes()).fate
}

// checkICMPEndsNothing: errors of all kinds about a connection, and about none, leave it as it is.
func checkICMPEndsNothing(p *probe, udp bool) {
	s := p.stage()
	sent := 0
	ok := true
	for _, way := range []string{"from the Internet", "hairpin"} {
		f := s.establish(s.Flows(udp, 20000)[way])
		s.age(f.Client, 10*time.Second)
		before := s.states()
		for _, e := range errorsOfEveryKind(f) {
			at, in, _ := e.frames()
			s.put(at, in)
			e.flow.Client = netip.AddrPortFrom(f.Client.Addr(), uint16(10000+sent)) // of no connection
			e.flow.Source = e.flow.Client
			at, in, _ = e.frames()
			s.put(at, in)
			sent += 2
		}
		ok = ok && s.unmoved(before) && s.alive(f)
	}
	p.measure(ok,
		"after %d errors the connections %s", sent, either(ok, "are as they were, and carry packets", "have changed"))
}

// checkAnyReporter: routers on the way report, not only the peer.
func checkAnyReporter(p *probe) {
	s := p.stage()
	through, all := 0, 0
	for _, way := range []string{"from the Internet", "hairpin"} {
		for _, udp := range []bool{true, false} {
			f := s.establish(s.Flows(udp, 20000)[way])
			for _, e := range []errorReport{
				{ofClient: true, reporter: netip.MustParseAddr("192.168.1.77")},
				{ofClient: false, reporter: map[string]netip.Addr{
					"from the Internet": netip.MustParseAddr("192.0.2.99"), "hairpin": netip.MustParseAddr("192.168.1.78"),
				}[way]},
			} {
				e.flow, e.kind, e.code, e.cut = f, lab.TimeExceeded, 0, 28
				e.change = someError(f, e.ofClient).change
				all++
				if s.translates(e) {
					through++
				}
			}
		}
	}
	p.measure(through == all, "%d of %d errors of routers on the way get through", through, all)
}

func checkUnreachable(p *probe, udp bool) {
	s := p.stage()
	f := s.establish(s.Flows(udp, 20000)["from the Internet"])
	codes := map[uint8]int{}
	for _, e := range errorsOfEveryKind(f) {
		if e.kind == lab.Unreachable && e.rest == 0 && s.translates(e) {
			codes[e.code]++
		}
	}
	both := 0
	for _, n := range codes {
		both += n
	}
	p.measure(len(codes) == 16 && both == 32, "%d of 16 codes, %d of 32 with both directions", len(codes), both)
}

// checkTooBig: the server sends more than the WAN takes.
func checkTooBig(p *probe) {
	s := p.stage()
	s.Router.MTU("wan0", 1280)
	p.Cleanup(func() { s.Router.MTU("wan0", 1500) })
	f := s.establish(s.Flows(true, 20000)["from the Internet"])
	big := lab.UDP(f.Target, f.Source, bytes.Repeat([]byte("x"), 1400))
	big.DF, big.ID = true, reportID
	data := ethernet(rig.ServerMAC, s.LAN.MAC, big.Packet())
	got := s.put(s.LAN, data)
	if got.fate != fateTold {
		p.measure(false, "%s", got.fate)
		return
	}
	n := readNotice(got.data)
	p.measure(n.valid && n.kind == lab.Unreachable && n.code == lab.FragNeeded && n.mtu == 1280 && n.quotes(data) && n.source == rig.LANAddress,

		"%s with the MTU %d to the server, quoting its packet as it sent it: %v", n, n.mtu, n.quotes(data))
}
