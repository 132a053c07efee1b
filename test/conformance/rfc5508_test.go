// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"hairpin/bpf"
	"hairpin/maps"
	"hairpin/maps/config"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

var requirements5508 = []requirement{
	{
		id: "REQ-1 (hairpin)", hairpin: true, level: levelMust,
		demand: "permit queries from inside to a forward, and their replies",
		figure: "3 of 3 ways",
		check:  func(p *probe) { checkEcho(p, hairpinWays...) },
	},
	{
		id: "REQ-1 (outbound)", level: levelMust,
		demand: "permit queries from inside to outside, and their replies",
		figure: "permitted",
		absent: noOutbound,
		check:  checkOutboundEcho,
	},
	{
		id: "REQ-1a", level: levelShould,
		demand: "query mappings are independent of the external host",
		figure: "one id for all",
		absent: noOutbound,
	},
	{
		id: "REQ-2", level: levelMustNot,
		demand: "let a query session expire in less than 60 s",
		figure: "at least 60 s",
		check:  checkLifetime(60*time.Second, lifeICMP),
	},
	{
		id: "REQ-2a", level: levelRecommended,
		demand: "have a configurable query timeout",
		figure: "configurable",
		check: func(p *probe) {
			checkConfigured(p, "icmp", lifeICMP, func(t *config.Timeouts, d time.Duration) { t.ICMP = d })
		},
	},
	{
		id: "REQ-3", level: levelShould,
		demand: "drop errors with a bad ICMP checksum",
		figure: "dropped",
		check: func(p *probe) {
			checkErrorDropped(p, "bad_checksum", func(e *errorReport) { e.damageICMP = func(m []byte) { m[2] ^= 0x40 } })
		},
	},
	{
		id: "REQ-3a", level: levelShould,
		demand: "drop errors with a bad checksum of the embedded IP header",
		figure: "dropped",
		check: func(p *probe) {
			checkErrorDropped(p, "bad_checksum", func(e *errorReport) { e.damage = func(q []byte) { q[10] ^= 0x40 } })
		},
	},
	{
		id: "REQ-3b", level: levelMust,
		demand: "skip IP options of the embedded packet",
		figure: "translated",
		check: func(p *probe) {
			optional := func(n int) func(*errorReport) {
				return func(e *errorReport) { e.change, e.cut = append(e.change, frames.Options(n)), e.cut+n }
			}
			checkErrorsTranslated(p, "with 8 and 40 bytes of options", optional(8), optional(40))
		},
	},
	{
		id: "REQ-3c", level: levelShouldNot,
		demand: "verify the embedded transport checksum",
		figure: "translated",
		check: func(p *probe) {
			damage := func(q []byte) { q[len(q)-1] ^= 0x40 }
			checkErrorsTranslated(p, "with a wrong one", func(e *errorReport) { e.cut, e.damage = 0, damage })
		},
	},
	{
		id: "REQ-3d", level: levelMust,
		demand: "leave RFC 4884 extensions alone",
		figure: "translated",
		check: func(p *probe) {
			checkErrorsTranslated(p, "with an extension", func(e *errorReport) {
				e.cut, e.rest, e.extension = 0, 32<<16, mplsExtension() // 32 words are quoted
			})
		},
	},
	{
		id: "REQ-4 (no mapping)", level: levelShould,
		demand: "drop errors from outside that no mapping matches",
		figure: "dropped",
		check:  func(p *probe) { checkUnmatchedError(p, false) },
	},
	{
		id: "REQ-4 (mapping)", level: levelMust,
		demand: "restore the embedded headers of errors from outside, keep type and code, destination is the embedded source",
		figure: "every byte",
		check:  func(p *probe) { checkErrorsOfSide(p, false, "from the Internet") },
	},
	{
		id: "REQ-5 (no mapping)", level: levelShould,
		demand: "drop errors from inside that no mapping matches",
		figure: "dropped",
		check:  func(p *probe) { checkUnmatchedError(p, true) },
	},
	{
		id: "REQ-5 (mapping)", level: levelMust,
		demand: "restore the embedded headers of errors from inside, keep type and code",
		figure: "every byte",
		check:  func(p *probe) { checkErrorsOfSide(p, true, "from the Internet") },
	},
	{
		id: "REQ-5c", level: levelMust,
		demand: "errors from inside leave with the public address as their source",
		figure: "the external address",
		check:  checkErrorSource,
	},
	{
		id: "REQ-6", level: levelMustNot,
		demand: "refresh or delete a query session for an error about it",
		figure: "unchanged",
		check:  checkQueryErrors,
	},
	{
		id: "REQ-7 (queries)", hairpin: true, level: levelMust,
		demand: "a 1:1 NAT hairpins ICMP queries",
		figure: "3 of 3 ways",
		check:  checkOneToOneEcho,
	},
	{
		id: "REQ-7 (errors)", hairpin: true, level: levelMust,
		demand: "hairpin ICMP errors",
		figure: "every byte",
		check:  func(p *probe) { checkHairpinErrors(p) },
	},
	{
		id: "REQ-7a", hairpin: true, level: levelMust,
		demand: "their destination is the embedded source after translation",
		figure: "the client, or the server",
		check:  checkHairpinErrorDestination,
	},
	{
		id: "REQ-8", level: levelShould,
		demand: "no session is possible: drop, and send ICMP 3/13",
		figure: "ICMP 3/13",
		check:  checkRefusals,
	},
	{
		id: "REQ-9", level: levelMay,
		demand: "suppress ICMP messages towards an interface by policy",
		figure: "either",
		check:  checkToldSides,
	},
	{
		id: "REQ-10a (unreachable)", level: levelMust,
		demand: "support Destination Unreachable",
		figure: "all 16 codes",
		check:  func(p *probe) { checkUnreachable(p, true) },
	},
	{
		id: "REQ-10a (time exceeded)", level: levelMust,
		demand: "support Time Exceeded: translate it, and send it",
		figure: "translated and sent",
		check:  checkTimeExceeded,
	},
	{
		id: "REQ-10a (echo)", level: levelMust,
		demand: "support Echo",
		figure: "4 of 4 ways",
		check:  func(p *probe) { checkEcho(p, append([]string{"from the Internet"}, hairpinWays...)...) },
	},
	{
		id: "REQ-10b (parameter problem)", level: levelMay,
		demand: "support Parameter Problem",
		figure: "either",
		check:  checkParameterProblem,
	},
	{
		id: "REQ-10b (others)", level: levelMay,
		demand: "support redirect, timestamp, address mask and router messages",
		figure: "either",
		check: func(p *probe) {
			checkLeftToKernel(p, redirect, routerAdvert, timestampRequest, addressMaskRequest)
		},
	},
	{
		id: "REQ-10c", level: levelShouldNot,
		demand: "support source quench and information messages",
		figure: "not translated",
		check:  func(p *probe) { checkLeftToKernel(p, sourceQuench, informationRequest) },
	},
	{
		id: "REQ-10d", level: levelRecommended,
		demand: "DS field: kept in translation; precedence 6 or 7 in errors of its own (RFC 1812 4.3.2.5)",
		figure: "kept; 6 or 7",
		check:  checkDSField,
	},
	{
		id: "REQ-10e", level: levelRecommended,
		demand: "send no error about errors, later fragments, broadcast frames, and sources that are no host's (RFC 1812 4.3.2.7)",
		figure: "0 errors",
		check:  checkNoErrorAbout,
	},
	{
		id: "REQ-10f", level: levelRecommended,
		demand: "limit the rate of errors (RFC 1812 4.3.2.8)",
		figure: "limited",
		check:  checkErrorRate,
	},
	{
		id: "REQ-11", level: levelMay,
		demand: "drop other ICMP messages",
		figure: "either",
		check:  func(p *probe) { checkLeftToKernel(p, 42) },
	},
}

// echoForward is a 1:1 forward of ICMP queries.
const echoForward = "ping icmp any to 192.168.1.20"

func checkEcho(p *probe, ways ...string) {
	s := p.stage(echoForward)
	answered := 0
	for i, way := range ways {
		if s.pings(s.Flows(true, uint16(700+i))[way]) {
			answered++
		}
	}
	p.measure(answered == len(ways), "%d of %d ways", answered, len(ways))
}

// checkOneToOneEcho: the forward is of all protocols.
func checkOneToOneEcho(p *probe) {
	s := p.stage("host any any to 192.168.1.20")
	answered := 0
	for i, way := range hairpinWays {
		if s.pings(s.Flows(true, uint16(700+i))[way]) {
			answered++
		}
	}
	p.measure(answered == len(hairpinWays), "%d of %d ways", answered, len(hairpinWays))
}

func checkOutboundEcho(p *probe) {
	s := p.stage(echoForward)
	got := s.put(s.LAN, s.echo(lab.EchoRequest, s.LAN, rig.ClientMAC, rig.Client, rig.InternetHost, 700, 64))
	p.measure(got.fate == fatePassed, "an outbound request is %s", got.fate)
}

// someError is an ICMP error about a connection's packet, with the quote that every host makes.
func someError(f rig.Flow, ofClient bool) errorReport {
	segment := frames.TCP("PA", s1, c1)
	if ofClient {
		segment = frames.TCP("PA", c1, s1)
	}
	return errorReport{
		flow: f, ofClient: ofClient, kind: lab.Unreachable, code: lab.PortUnreachable, cut: 28,
		change: frames.With(segment, frames.Payload("what the error is about")),
	}
}

// eachError calls visit with errors about TCP and UDP connections, from the Internet and hairpin, and
// about packets of both their sides. It returns for how many visit did.
func (s *stage) eachError(visit func(errorReport) bool) (did, all int) {
	for i, udp := range []bool{true, false} {
		for j, way := range []string{"from the Internet", "hairpin"} {
			f := s.establish(s.Flows(udp, uint16(20000+2*i+j))[way])
			for _, ofClient := range []bool{true, false} {
				all++
				if visit(someError(f, ofClient)) {
					did++
				}
			}
		}
	}
	return did, all
}

func checkErrorDropped(p *probe, reason string, damage func(*errorReport)) {
	s := p.stage()
	dropped, all := s.eachError(func(e errorReport) bool {
		before := s.states()
		damage(&e)
		at, in, _ := e.frames()
		return s.dropsFor(reason, at, in) && s.unmoved(before)
	})
	p.measure(dropped == all, "%d of %d dropped and counted as %s", dropped, all, reason)
}

func checkErrorsTranslated(p *probe, which string, changes ...func(*errorReport)) {
	s := p.stage()
	translated, all := 0, 0
	for _, change := range changes {
		did, of := s.eachError(func(e errorReport) bool {
			change(&e)
			return s.translates(e)
		})
		translated, all = translated+did, all+of
	}
	p.measure(translated == all, "%d of %d %s are translated with every byte right", translated, all, which)
}

// checkUnmatchedError: errors about packets that a forward's connection might have sent, had there been one.
func checkUnmatchedError(p *probe, inside bool) {
	s := p.stage()
	fates := map[fate]int{}
	for _, udp := range []bool{true, false} {
		at, in, _ := someError(s.Flows(udp, 20000)["from the Internet"], inside).frames()
		fates[s.put(at, in).fate]++
	}
	counted := s.Counted(p, "no_connection")
	p.measure(fates[fateDropped] == 2 && counted == 2,
		"%d of 2 dropped, %d counted as no_connection, %d left to the kernel, which may know the connection",
		fates[fateDropped], counted, fates[fatePassed])
}

// checkErrorsOfSide: every kind of error, with short quotes and long ones.
func checkErrorsOfSide(p *probe, inside bool, way string) {
	s := p.stage()
	right, all := 0, 0
	for i, udp := range []bool{true, false} {
		f := s.establish(s.Flows(udp, uint16(20000+i))[way])
		for _, e := range errorsOfEveryKind(f) {
			if e.ofClient != inside {
				continue
			}
			for _, cut := range []int{28, 0} {
				e.cut = cut
				all++
				if s.translates(e) {
					right++
				}
			}
		}
	}
	p.measure(right == all, "%d of %d right in every byte", right, all)
}

func checkHairpinErrors(p *probe) {
	s := p.stage()
	right, all := 0, 0
	for i, way := range hairpinWays {
		for j, udp := range []bool{true, false} {
			f := s.establish(s.Flows(udp, uint16(20000+2*i+j))[way])
			for _, e := range errorsOfEveryKind(f) {
				all++
				if s.translates(e) {
					right++
				}
			}
		}
	}
	p.measure(right == all, "%d of %d right in every byte", right, all)
}

// checkErrorSource: errors of the server and of a router between.
func checkErrorSource(p *probe) {
	s := p.stage()
	f := s.establish(s.Flows(true, 20000)["from the Internet"])
	sources := map[netip.Addr]bool{}
	for _, reporter := range []netip.Addr{rig.Server, netip.MustParseAddr("192.168.1.77")} {
		e := someError(f, true)
		e.reporter = reporter
		at, in, _ := e.frames()
		got := s.put(at, in)
		if got.fate != fateSent {
			p.Fatalf("error of %s: %s", reporter, got.fate)
		}
		sources[sourceOf(got.data).Addr()] = true
	}
	p.measure(len(sources) == 1 && sources[rig.WANAddress],
		"%s, the external one: %v", amount(len(sources), "source"), sources[rig.WANAddress])
}

// checkQueryErrors: errors about an echo request and about its reply.
func checkQueryErrors(p *probe) {
	s := p.stage(echoForward)
	f := s.mustPing(s.Flows(true, 700)["from the Internet"])
	s.age(f.Client, 10*time.Second)
	before := s.states()
	request := s.echo(lab.EchoRequest, s.LAN, rig.ServerMAC, f.Client.Addr(), rig.Server, 700, 63)[frames.EthernetLength:]
	restored := s.echo(lab.EchoRequest, s.LAN, rig.ServerMAC, f.Client.Addr(), rig.WANAddress, 700, 63)[frames.EthernetLength:]
	in := lab.ICMP(rig.Server, f.Client.Addr(), lab.Unreachable, 2, 0, request)
	want := lab.ICMP(rig.WANAddress, f.Client.Addr(), lab.Unreachable, 2, 0, restored)
	in.ID, want.ID, want.TTL = reportID, reportID, 63
	inside := s.put(s.LAN, ethernet(rig.ServerMAC, s.LAN.MAC, in.Packet()))
	reply := s.echo(lab.EchoReply, s.WAN, rig.GatewayMAC, rig.WANAddress, f.Client.Addr(), 700, 63)[frames.EthernetLength:]
	expired := lab.ICMP(f.Client.Addr(), rig.WANAddress, lab.TimeExceeded, 0, 0, reply)
	outside := s.put(s.WAN, ethernet(rig.GatewayMAC, s.WAN.MAC, expired.Packet()))
	right := outside.fate == fateSent && inside.fate == fateSent && bytes.Equal(inside.data[frames.EthernetLength:], want.Packet())
	unmoved := s.unmoved(before)
	p.measure(right && unmoved, "errors about a request and a reply are %s, the session is %s",
		either(right, "translated", "not translated"), either(unmoved, "unchanged", "changed"))
}

func checkHairpinErrorDestination(p *probe) {
	s := p.stage()
	f := s.establish(s.Flows(true, 20000)["hairpin"])
	var to [2]netip.Addr
	for i, ofClient := range []bool{true, false} {
		at, in, _ := someError(f, ofClient).frames()
		got := s.put(at, in)
		if got.fate != fateSent && got.fate != fateTold {
			p.Fatalf("error: %s", got.fate)
		}
		to[i] = netip.AddrFrom4([4]byte(got.data[frames.EthernetLength+16:]))
	}
	p.measure(to == [2]netip.Addr{rig.Client, rig.Server},
		"about the client's packet to %s, about the server's to %s", to[0], to[1])
}

// checkRefusals: openings that policy and resources refuse to hosts inside.
func checkRefusals(p *probe) {
	s := p.stage()
	var answers []string
	hear := func(f rig.Flow) {
		n, got := s.refusal(f)
		answers = append(answers, either(got == fateTold, n.String(), string(got)))
	}
	hear(s.way("hairpin", false, 20000, 81, 81))
	hear(s.way("from another LAN", false, 20000, 82, 82))
	s.establish(s.Flows(false, 20000)["from another LAN"])
	s.set(func(settings *bpf.HairpinSettings) { settings.SourceLimit = 1 })
	hear(s.Flows(false, 20001)["from another LAN"])
	answers = append(answers, s.fillTable())
	told := 0
	for _, answer := range answers {
		told += strings.Count(answer, "ICMP 3/13")
	}
	p.measure(told == len(answers),
		"ICMP 3/13 for %d of %d: reflect off, from list, too many of one host, table full", told, len(answers))
}

// fillTable opens connections until the table is full, and returns the ICMP error for the connection that
// is too many.
func (s *stage) fillTable() string {
	s.p.Helper()
	s.set(func(settings *bpf.HairpinSettings) { settings.SourceLimit, settings.InterfaceLimit = 0, 0 })
	room := int(maps.TCPLimit(&s.Objects))
	s.eachState(func(_ bpf.HairpinTuple, conn layout.Entry) {
		if conn.Opener() && conn.State == bpf.HairpinConnStateCONN_ESTABLISHED && conn.Key.Protocol == uint8(rule.TCP) {
			room--
		}
	})
	at := func(i int) rig.Flow { return s.Flows(false, uint16(10000+i))["hairpin"] }
	for i := range room {
		s.establish(at(i))
	}
	f, _ := s.begin(at(room))
	if !s.carries(f, false, frames.TCP("SA", rig.ServerISN, c1)) {
		s.p.Fatal("no SYN/ACK of the connection that is too many")
	}
	in, _ := f.In(frames.TCP("A", c1, s1))
	got := s.put(f.At, in.Bytes())
	if got.fate != fateTold {
		return string(got.fate)
	}
	if n := readNotice(got.data); !n.quotes(in.Bytes()) || !n.valid {
		s.p.Errorf("%s does not quote its sender's packet: %x", n, got.data)
	}
	return readNotice(got.data).String()
}

// checkToldSides checks that by default only the LAN gets ICMP errors for refusals, and that each side can be configured.
func checkToldSides(p *probe) {
	s := p.stage()
	inside, outside := s.way("hairpin", false, 20000, 81, 81), s.way("from the Internet", false, 20000, 82, 82)
	outside.Client = addrPortOf("192.0.2.9", 20000)
	hears := func() string {
		_, lan := s.refusal(inside)
		_, wan := s.refusal(outside)
		return fmt.Sprintf("LAN %stold, WAN %stold", either(lan == fateTold, "", "not "), either(wan == fateTold, "", "not "))
	}
	byDefault := hears()
	s.told(0)
	none := hears()
	s.told(bpf.HairpinSideSIDE_LAN | bpf.HairpinSideSIDE_WAN)
	both := hears()
	p.measure(byDefault == "LAN told, WAN not told" && none == "LAN not told, WAN not told" && both == "LAN told, WAN told",

		"by default: %s; none: %s; both: %s", byDefault, none, both)
}

func checkTimeExceeded(p *probe) {
	s := p.stage()
	translated, all := s.eachError(func(e errorReport) bool {
		e.kind, e.code = lab.TimeExceeded, 0
		return s.translates(e)
	})
	sent, ways := 0, 0
	for way, router := range map[string]netip.Addr{
		"from the Internet": rig.WANAddress, "hairpin": rig.LANAddress, "from another LAN": rig.OtherAddress,
	} {
		ways++
		in, _ := s.Flows(false, 20100)[way].In(frames.TCP("S", rig.ClientISN, 0), frames.TTL(1))
		got := s.put(s.Flows(false, 20100)[way].At, in.Bytes())
		if got.fate != fateTold {
			continue
		}
		n := readNotice(got.data)
		if n.String() == "ICMP 11/0" && n.valid && n.source == router && n.quotes(in.Bytes()) {
			sent++
		}
	}
	p.measure(translated == all && sent == ways,
		"%d of %d translated; sent for TTL 1 on %d of %d ways", translated, all, sent, ways)
}

func checkParameterProblem(p *probe) {
	s := p.stage()
	translated, all := s.eachError(func(e errorReport) bool {
		e.kind, e.code, e.rest = parameterProblem, 0, 20<<24
		return s.translates(e)
	})
	p.measure(translated == all, "%d of %d translated", translated, all)
}

// checkLeftToKernel: messages of these types to the external address are the router's own.
func checkLeftToKernel(p *probe, kinds ...uint8) {
	s := p.stage()
	passed, all := 0, 0
	for _, kind := range kinds {
		did, of := s.eachError(func(e errorReport) bool {
			if e.ofClient {
				return true // it would be for another host than the router
			}
			e.kind, e.code = kind, 0
			at, in, _ := e.frames()
			return s.put(at, in).fate == fatePassed
		})
		passed, all = passed+did-of/2, all+of/2
	}
	p.measure(passed == all, "%d of %d left to the kernel as they came", passed, all)
}

func checkDSField(p *probe) {
	s := p.stage()
	f := s.establish(s.Flows(true, 20000)["from the Internet"])
	kept := 0
	for _, tos := range []uint8{0x00, 0x28, 0xb8, 0xff} {
		mark := func(f *frames.Frame) { f.TOS = tos }
		if s.carries(f, true, frames.Payload("marked"), mark) && s.carries(f, false, frames.Payload("marked"), mark) {
			kept++
		}
	}
	in, _ := f.In(frames.Payload("last hop"), frames.TTL(1))
	got := s.put(f.At, in.Bytes())
	if got.fate != fateTold {
		p.measure(false, "an expired TTL: %s", got.fate)
		return
	}
	precedence := readNotice(got.data).tos >> 5
	p.measure(kept == 4 && precedence >= 6, "%d of 4 values kept; precedence %d", kept, precedence)
}

// checkNoErrorAbout sends what would deserve an error, were it not for what it is.
func checkNoErrorAbout(p *probe) {
	s := p.stage()
	f := s.establish(s.Flows(true, 20000)["from the Internet"])
	at, expired, _ := someError(f, false).frames()
	retime(expired, 1)
	d := lab.UDP(f.Client, f.External, noise(1000))
	d.ID, d.TTL = 7, 1
	pieces := d.Fragments(800)
	everybody := net.HardwareAddr{255, 255, 255, 255, 255, 255}
	broadcast, _ := f.In(frames.Payload("to everybody"), frames.TTL(1), func(f *frames.Frame) { f.To = everybody })
	quiet := [][]byte{expired, ethernet(f.MAC, f.At.MAC, pieces[1]), broadcast.Bytes()}
	for _, source := range []string{"0.0.0.0", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"} {
		in, _ := f.In(frames.Payload("from nobody"), frames.TTL(1), func(f *frames.Frame) { f.Src = addrPortOf(source, 20000) })
		quiet = append(quiet, in.Bytes())
	}
	s.told(bpf.HairpinSideSIDE_LAN | bpf.HairpinSideSIDE_WAN)
	errors := 0
	for _, data := range quiet {
		if s.put(at, data).fate == fateTold {
			errors++
		}
	}
	p.measure(errors == 0, "%d errors about %d such packets", errors, len(quiet))
}

// retime changes a packet's TTL.
func retime(data []byte, ttl uint8) {
	data[frames.EthernetLength+8] = ttl
	data[frames.IPChecksumAt], data[frames.IPChecksumAt+1] = 0, 0
	check := ^frames.Fold(frames.Sum(data[frames.EthernetLength:frames.L4Offset(data)]))
	data[frames.IPChecksumAt], data[frames.IPChecksumAt+1] = byte(check>>8), byte(check)
}

// checkErrorRate allows so few errors that only the first is due while the check runs.
func checkErrorRate(p *probe) {
	s := p.stage()
	const refused = 200
	count := func(interval time.Duration) (told int) {
		s.set(func(settings *bpf.HairpinSettings) { settings.IcmpInterval = uint64(interval) })
		s.budget()
		for range refused {
			if _, got := s.refusal(s.way("hairpin", false, 20000, 81, 81)); got == fateTold {
				told++
			}
		}
		return told
	}
	unlimited, limited := count(0), count(time.Hour)
	p.measure(limited == 1 && unlimited == refused,
		"%d of %d without a limit, %d of %d with one an hour", unlimited, refused, limited, refused)
}
