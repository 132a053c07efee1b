// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"hairpin/test/home"
	"hairpin/test/lab"
)

var forgery = scenario{
	number: 6, name: "Forged segments and ICMP errors from every interface, martians, land packets, source routes",
	demanded: "0 connections end, close, open or are refreshed; 0 packets let through whose interface, source or route is wrong; 0 ICMP errors let through that quote a random number (a segment with wrong numbers is its receiver's to judge: RFC 5961)",
	run:      forge,
}

// What may hit by chance. The numbers of a forged packet are random, 32 bits each.
//   - A FIN or an ACK refreshes a connection if both numbers are in the windows. All exchanges here are short, so a window is the smallest
//     that hairpin has: 2^17 numbers for the sequence, 2^17 for the acknowledgement. That is one of 2^30 segments.
//   - A RST closes a connection if its sequence number is one of two: one of 2^31 segments.
//   - A SYN has no number that fits.
//   - An ICMP error is let through if it comes from the right side, as half of them do, and quotes a number that may be in flight. These
//     are two numbers, and in the two of three connections that are busy at most the bytes of one exchange. No ICMP error changes a
//     connection, whatever it quotes.
//
// The long form sends 10 million segments, a quarter of each kind, and 10 million ICMP errors. So 0.006 hits of segments are expected, and
// less than 0.09 of ICMP errors.
const (
	hitsPerSegment = (1.0/(1<<30) + 1.0/(1<<30) + 1.0/(1<<31)) / 4 // of FIN, ACK, RST
	hitsPerError   = (2 + 2.0/3*(crowdRequest+crowdBytes)) / 2 / (1 << 32)
	// crowdRequest is the length of the request before the bytes of an exchange.
	crowdRequest = 9
	// mayHit is the limit for the expected number of hits: above it, a hit would prove nothing.
	mayHit = 0.1
)

var (
	forgedFlags  = []uint8{lab.RST, lab.FIN | lab.ACK, lab.SYN, lab.ACK}
	forgedErrors = []lab.ICMPError{
		{Type: lab.Unreachable, Code: lab.HostUnreachable}, {Type: lab.Unreachable, Code: lab.PortUnreachable},
		{Type: lab.Unreachable, Code: lab.FragNeeded}, {Type: lab.Unreachable, Code: lab.Prohibited}, {Type: lab.TimeExceeded},
	}
)

// The TTL of a forged packet says what it is. The router lowers it by one.
const (
	// wrongTTL: the interface, the source or the route of the packet is wrong, or the number that an ICMP error quotes.
	wrongTTL = 50
	// numbersTTL: only the numbers of the segment are wrong.
	numbersTTL = 60
)

// idlePort is the port of the forward for the idle connections, idleTarget the port of its target.
const idlePort, idleTarget = 81, 8081

const forgeryForwards = home.Forwards + `
[[forward]]
name = "idle"
protocol = ["tcp"]
port = "81"
to = "192.168.1.20:8081"
`

// nftIdle is the forward "idle" in nftables.
const nftIdle = "add rule ip nat prerouting ip daddr 203.0.113.2 tcp dport 81 dnat to 192.168.1.20:8081"

// attack is established connections, and attackers who know their tuples. Busy connections exchange bytes during the attack. The hosts of
// idle connections neither send nor take a segment during the attack, so that nothing but a forged packet can refresh them.
type attack struct {
	t          *trial
	n          *lab.Network
	busy, idle *crowd
	known      []known
	silent     time.Time // the idle connections are silent from here on
	sent       forged
	wrong      map[string]int // packets sent with wrongTTL, for each interface of the router
}

// known is a tuple of a connection, and the interface of the router by which its packets come in.
type known struct {
	lab.Tuple
	dev string
}

// forged is a number of packets for each kind: segments, ICMP errors, and all others.
type forged struct{ segments, errors, others atomic.Int64 }

// attacker is a host that forges packets, and the interface of the router that gets them.
type attacker struct {
	*lab.Host
	dev string
}

func (a *attack) attackers() []attacker {
	return []attacker{{a.n.Internet, "wan0"}, {a.n.Client, "lan0"}, {a.n.Guest, "lan1"}}
}

// ends returns the hosts of the connections.
func (a *attack) ends() []*lab.Host {
	return []*lab.Host{a.n.Internet, a.n.Client, a.n.Guest, a.n.Server}
}

// newVictims makes the network of this scenario. Its router takes a source only from the interface that leads to it.
func (t *trial) newVictims(mode string) *lab.Network {
	n := lab.NewNetwork(t)
	n.SetOffloads(home.OffloadsFor(mode))
	n.Router.Sysctl("net/ipv4/conf/all/rp_filter", "1")
	n.Server.ServeTCP(":8080")
	n.Server.ServeSilentTCP(fmt.Sprintf(":%d", idleTarget))
	return n
}

// newAttack opens the connections. The busy ones begin to exchange bytes.
func (t *trial) newAttack(n *lab.Network) *attack {
	t.Helper()
	hosts := []*lab.Host{n.Internet, n.Client, n.Guest}
	a := &attack{t: t, n: n}
	a.idle = t.newCrowdTo(fmt.Sprintf("%s:%d", lab.External, idlePort), t.size(6, 30), hosts...)
	a.busy = t.newCrowd(t.size(12, 60), hosts...)
	// Unanswered keepalives would end the idle connections.
	for _, m := range a.idle.conns {
		if err := m.SetKeepAlive(false); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []*crowd{a.idle, a.busy} {
		for i, m := range c.conns {
			seen, err := m.Who()
			if err != nil {
				t.Fatal(err)
			}
			in := lab.Tuple{Src: m.LocalAddr().(*net.TCPAddr).AddrPort(), Dst: m.RemoteAddr().(*net.TCPAddr).AddrPort()}
			server := netip.AddrPortFrom(home.ServerAddress, 8080)
			if c == a.idle {
				server = netip.AddrPortFrom(home.ServerAddress, idleTarget)
			}
			a.known = append(a.known, known{in, []string{"wan0", "lan0", "lan1"}[i%len(hosts)]}, known{lab.Tuple{Src: server, Dst: seen}, "lan0"})
		}
	}
	t.quiet(n)
	for _, h := range a.ends() {
		h.RunInput(fmt.Sprintf(`table netdev forged {
			counter wrong { }
			counter numbers { }
			chain arriving {
				type filter hook ingress device eth0 priority 0
				ip ttl %d counter name wrong
				ip ttl %d counter name numbers
				tcp sport %d drop
				tcp dport %d drop
			}
		}
		table ip silence {
			chain leaving {
				type filter hook output priority 0
				tcp sport %d drop
				tcp dport %d drop
			}
		}`, wrongTTL-1, numbersTTL-1, idlePort, idleTarget, idleTarget, idlePort), "nft", "-f", "-")
	}
	a.silent = time.Now()
	a.busy.stream(100 * time.Millisecond)
	return a
}

// firstSilence is how long the idle connections are silent before the first forged packet. A connection that a forged packet refreshes is
// then idle for at least this much less than its hosts are silent. compare allows 2 s for whole seconds and for the time of its command.
const firstSilence = 5 * time.Second

// waitSilent returns when the idle connections are silent for firstSilence.
func (a *attack) waitSilent() {
	a.t.Helper()
	lab.Eventually(a.t, firstSilence+lab.Patience, func() error {
		if silent := time.Since(a.silent); silent < firstSilence {
			return fmt.Errorf("silent for %v only", silent)
		}
		return nil
	})
}

// assault sends all forged packets: segments and errors as many as count says.
func (a *attack) assault(count int) {
	a.t.Helper()
	attackers := a.attackers()
	each := count / (2 * len(attackers))
	wrong := make([]int, len(attackers))
	lab.Together(len(attackers), func(i int) {
		from := attackers[i]
		var fits, strange, near, far []lab.Tuple
		for _, k := range a.known {
			if k.dev == from.dev {
				fits = append(fits, k.Tuple)
			} else {
				strange = append(strange, k.Tuple)
			}
			// Any router between may send an error about a packet: from the Internet about one that left by the WAN, from a LAN about
			// one that left by a LAN.
			if (k.dev == "wan0") == (from.dev == "wan0") {
				near = append(near, k.Tuple)
			} else {
				far = append(far, k.Tuple)
			}
		}
		a.forge(from, lab.Forge{Tuples: fits, Flags: forgedFlags, TTL: numbersTTL}, each, &a.sent.segments)
		wrong[i] += a.forge(from, lab.Forge{Tuples: strange, Flags: forgedFlags, TTL: wrongTTL}, each, &a.sent.segments)
		wrong[i] += a.forge(from, lab.Forge{Tuples: near, Errors: forgedErrors, From: addressOf(from), TTL: wrongTTL}, each, &a.sent.errors)
		wrong[i] += a.forge(from, lab.Forge{Tuples: far, Errors: forgedErrors, From: addressOf(from), TTL: wrongTTL}, each, &a.sent.errors)
		wrong[i] += a.strange(from)
	})
	a.wrong = make(map[string]int)
	for i, from := range attackers {
		a.wrong[from.dev] = wrong[i]
	}
}

// arrived fails the trial if the forged packets did not reach the router, and returns how many hairpin has dropped. hairpin drops almost
// all packets with wrongTTL: the kernel drops the others, and a busy device loses some.
func (a *attack) arrived() (dropped int) {
	a.t.Helper()
	for dev, sent := range a.wrong {
		count := int(home.Scrape(a.t.T, a.n, "hairpin_packets_dropped_total", fmt.Sprintf("interface=%q", dev)))
		dropped += count
		if count < sent/2 {
			a.t.Errorf("%s: hairpin has dropped %d of %d packets whose interface, source, route or quoted number is wrong, want at least half", dev, count, sent)
		}
	}
	return dropped
}

// addressOf returns the attacker's own address.
func addressOf(from attacker) netip.Addr {
	return netip.MustParseAddr(map[string]string{"wan0": lab.InternetSource, "lan0": lab.Client, "lan1": lab.Guest}[from.dev])
}

// forge sends this many forged packets or a few more, and returns how many.
func (a *attack) forge(from attacker, f lab.Forge, count int, counter *atomic.Int64) int {
	a.t.Helper()
	sent, err := from.SendForged("eth0", a.n.Router.HardwareAddr(from.dev), f, func(sent int) bool { return sent >= count })
	if err != nil {
		a.t.Error(err)
	}
	counter.Add(int64(sent))
	return sent
}

// wrongSources are sources that no packet may have. The first ones are wrong on every interface.
func wrongSources(dev string) []string {
	all := []string{"0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", lab.External, lab.RouterLAN, lab.RouterGuest}
	switch dev {
	case "wan0":
		return append(all, "10.1.2.3", lab.Server, lab.Client, lab.Guest, "203.0.113.255")
	case "lan0":
		return append(all, lab.InternetSource, lab.Gateway, lab.Guest, "192.168.1.255")
	default:
		return append(all, lab.InternetSource, lab.Gateway, lab.Client, "192.168.2.255")
	}
}

// strange sends martians, land packets, and packets with a source route. It returns how many.
func (a *attack) strange(from attacker) (sent int) {
	a.t.Helper()
	// Loose and strict source route (RFC 791 3.1) by the router's LAN address, padded.
	routes := [][]byte{{131, 7, 4, 192, 168, 1, 1, 0}, {137, 7, 4, 192, 168, 1, 1, 0}}
	web, dns := netip.AddrPortFrom(home.ExternalAddress, 80), netip.AddrPortFrom(home.ExternalAddress, flowPort)
	var list [][]byte
	add := func(d lab.Datagram, options []byte) {
		d.TTL, d.Options = wrongTTL, options
		list = append(list, d.Packet())
	}
	for _, source := range wrongSources(from.dev) {
		src := netip.AddrPortFrom(netip.MustParseAddr(source), 40000)
		add(lab.TCP(src, web, lab.SYN, 1, 0, nil, nil), nil)
		add(lab.UDP(src, dns, []byte("hello")), nil)
	}
	for _, to := range []netip.AddrPort{web, dns} {
		add(lab.TCP(to, to, lab.SYN, 1, 0, nil, nil), nil)
		add(lab.UDP(to, to, []byte("hello")), nil)
	}
	for _, route := range routes {
		src := netip.AddrPortFrom(addressOf(from), 40001)
		add(lab.TCP(src, web, lab.SYN, 1, 0, nil, nil), route)
		add(lab.UDP(src, dns, []byte("hello")), route)
		for _, k := range a.known {
			if k.dev == from.dev {
				add(lab.TCP(k.Src, k.Dst, lab.ACK, 1, 1, nil, nil), route)
			}
		}
	}
	wire := from.Wire("eth0", a.n.Router.HardwareAddr(from.dev))
	for range a.t.choose(20, 50, 500) {
		if err := wire.Send(list...); err != nil {
			a.t.Error(err)
			return sent
		}
		sent += len(list)
	}
	a.sent.others.Add(int64(sent))
	return sent
}

// outcome is what an attack has done.
type outcome struct {
	ended   int // connections between the hosts
	wrong   int // packets that a host got and should not
	numbers int // segments that a host got, and whose numbers it has to judge
}

// finish ends the attack. ended is the number of connections that do not exchange bytes any more.
func (a *attack) finish() (o outcome) {
	a.t.Helper()
	for _, h := range a.ends() {
		o.wrong += a.t.counter(h, "forged", "wrong")
		o.numbers += a.t.counter(h, "forged", "numbers")
		h.Run("nft", "delete", "table", "netdev", "forged")
		h.Run("nft", "delete", "table", "ip", "silence")
	}
	// Each connection has an exchange after the attack.
	want := a.busy.rounds.Load() + 2*int64(len(a.busy.conns))
	lab.Within(crowdPatience, func() bool { return a.busy.rounds.Load() >= want || a.busy.ended.Load() != 0 })
	ended, _ := a.busy.finish()
	o.ended = ended + a.idle.alive("after the attack")
	return o
}

// table is what hairpin has listed of the connections.
type table struct{ closed, created, refreshed int }

// compare compares hairpin's connections with those that there must be. A refreshed connection is idle for less time than its hosts are silent.
func (a *attack) compare(hp *lab.Hairpin) (c table) {
	a.t.Helper()
	silent := time.Since(a.silent).Seconds()
	listed := make(map[string]home.Connection)
	for _, conn := range home.Show(a.t.T, hp, "conn", "show").Connections {
		listed[conn.Client+" "+conn.External] = conn
	}
	for _, k := range a.known {
		if k.Dst.Addr() != home.ExternalAddress {
			continue // the answers' direction
		}
		key := fmt.Sprintf("%v %v", k.Src, k.Dst)
		conn, found := listed[key]
		delete(listed, key)
		switch {
		case !found || conn.State != "established":
			c.closed++
			a.t.Logf("%s: %+v", key, conn)
		case k.Dst.Port() == idlePort && conn.Idle < silent-2: // listed with whole seconds
			c.refreshed++
			a.t.Logf("%s: silent for %v s, idle for %v s", key, silent, conn.Idle)
		}
	}
	c.created = len(listed)
	for _, conn := range listed {
		a.t.Logf("new: %+v", conn)
	}
	return c
}

// forgedCount is how many segments, and how many ICMP errors, a run sends.
func (t *trial) forgedCount() int {
	// The sum of all kinds of the short form.
	return t.pace(t.count(50_000, 1_000_000) / len(t.modes()))
}

func forge(t *trial) figures {
	var all forged
	var o outcome
	var c table
	dropped := 0
	for i, mode := range t.modes() {
		n := t.newVictims(mode)
		hp := t.start(n, mode, forgeryForwards)
		a := t.newAttack(n)
		a.waitSilent()
		a.assault(t.forgedCount())
		seen := a.compare(hp)
		dropped += a.arrived()
		got := a.finish()
		if got.numbers == 0 {
			t.Errorf("no forged segment reached a host, want those of which only the numbers are wrong, %s", mode)
		}
		c = table{c.closed + seen.closed, c.created + seen.created, c.refreshed + seen.refreshed}
		o = outcome{o.ended + got.ended, o.wrong + got.wrong, o.numbers + got.numbers}
		all.segments.Add(a.sent.segments.Load())
		all.errors.Add(a.sent.errors.Load())
		all.others.Add(a.sent.others.Load())
		t.progress(i+1, len(t.modes()), "modes")
	}
	t.none(o.ended, "established connections ended")
	t.none(c.closed, "connections were closed by a forged packet")
	t.none(c.created, "connections were opened by a forged packet")
	t.none(c.refreshed, "idle connections were refreshed by a forged packet")
	t.none(o.wrong, "forged packets reached a host although their interface, source, route or quoted number is wrong")
	chance := hitsPerSegment*float64(all.segments.Load()) + hitsPerError*float64(all.errors.Load())
	if chance > mayHit {
		t.Errorf("%.2f hits by chance are expected, want at most %v", chance, mayHit)
	}
	return figures{
		measured: fmt.Sprintf("%d segments, %d ICMP errors, %d others: %d ended, %d closed, %d opened, %d refreshed, %d let through, %d dropped by hairpin; expected by chance %.2g; judged by their receivers: %d",
			all.segments.Load(), all.errors.Load(), all.others.Load(), o.ended, c.closed, c.created, c.refreshed, o.wrong, dropped, chance, o.numbers),
		nftables: t.beside(t.forgeNFT),
	}
}

// forgeNFT attacks nftables in the same way, and returns its figure.
func (t *trial) forgeNFT() string {
	t.Helper()
	n := t.newVictims("tc")
	useNFT(n.Router)
	n.Router.Run(append([]string{"nft"}, strings.Fields(nftIdle)...)...)
	a := t.newAttack(n)
	a.assault(t.forgedCount())
	o := a.finish()
	return fmt.Sprintf("%d segments, %d ICMP errors, %d others: %d ended, %d let through; judged by their receivers: %d",
		a.sent.segments.Load(), a.sent.errors.Load(), a.sent.others.Load(), o.ended, o.wrong, o.numbers)
}
