// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"

	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

// talkingHost is a host that talks to the UDP service behind the forward, on a real network.
type talkingHost struct {
	p     *probe
	n     *lab.Network
	udp   *lab.Echoer
	host  *lab.Host
	port  string // of the router, that it is connected to
	local netip.AddrPort
	seen  netip.AddrPort // whom the server sees
	conn  *net.UDPConn
}

var (
	udpExternal = netip.MustParseAddrPort(lab.External + ":53")
	udpTarget   = netip.MustParseAddrPort(lab.Server + ":5353")
)

// talkNetwork is the usual network with hairpin and the UDP service on it.
func (p *probe) talkNetwork() (*lab.Network, *lab.Echoer) {
	p.Helper()
	n, _ := p.network()
	return n, n.Server.ServeUDP(":5353")
}

// talk opens connections of a host on the Internet, one in the server's LAN, and one in another LAN. Each keeps its port if
// that is one of reflection.ports.
func (p *probe) talk(n *lab.Network, udp *lab.Echoer, port uint16) (all []talkingHost) {
	p.Helper()
	for _, t := range []talkingHost{
		{host: n.Internet, port: "wan0", local: addrPortOf(lab.InternetSource, port), seen: addrPortOf(lab.InternetSource, port)},
		{host: n.Client, port: "lan0", local: addrPortOf(lab.Client, port), seen: addrPortOf(lab.RouterLAN, port)},
		{host: n.Guest, port: "lan1", local: addrPortOf(lab.Guest, port), seen: addrPortOf(lab.Guest, port)},
	} {
		t.p, t.n, t.udp = p, n, udp
		var err error
		if t.conn, err = t.host.DialUDP(udpExternal.String(), t.local.String()); err != nil {
			p.Fatal(err)
		}
		p.Cleanup(func() { t.conn.Close() })
		if _, err := lab.Exchange(t.conn, 3, 100); err != nil {
			p.Fatalf("%s: %v", t.host.Name, err)
		}
		all = append(all, t)
	}
	return all
}

func addrPortOf(addr string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), port)
}

// toServer says whether the server gets a datagram whose pieces its client sends in some order.
func (t talkingHost) toServer(data []byte, order func([][]byte)) bool {
	t.p.Helper()
	d := lab.UDP(t.local, udpExternal, data)
	before := t.udp.Seen()[t.seen]
	t.send(t.host.Wire("eth0", t.n.Router.HardwareAddr(t.port)), d, order)
	want := before
	want.Add(data)
	return t.arrives("server", func() error {
		if now := t.udp.Seen()[t.seen]; now != want {
			return fmt.Errorf("the server has seen %+v of %s, want %+v", now, t.seen, want)
		}
		return nil
	})
}

// toClient says whether a client gets a datagram whose pieces the server sends in some order.
func (t talkingHost) toClient(data []byte, order func([][]byte)) bool {
	t.p.Helper()
	t.send(t.n.Server.Wire("eth0", t.n.Router.HardwareAddr("lan0")), lab.UDP(udpTarget, t.seen, data), order)
	got := make([]byte, 1<<16)
	t.conn.SetReadDeadline(time.Now().Add(arrival))
	return t.arrives(t.host.Name, func() error { // echoes of what went before may still come
		n, err := t.conn.Read(got)
		if err == nil && !bytes.Equal(got[:n], data) {
			err = errors.New("other bytes")
		}
		return err
	})
}

// arrival is the time limit for a datagram on a busy machine.
const arrival = 5 * time.Second

func (t talkingHost) arrives(where string, check func() error) bool {
	t.p.Helper()
	var err error
	for deadline := time.Now().Add(arrival); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if err = check(); err == nil {
			return true
		}
		if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
			break
		}
	}
	t.p.Logf("%s and the %s: %v", t.local, where, err)
	return false
}

func (t talkingHost) send(wire *lab.Wire, d lab.Datagram, order func([][]byte)) {
	t.p.Helper()
	pieces := [][]byte{d.Packet()}
	if len(pieces[0]) > 1500 {
		pieces = d.Fragments(1480)
	}
	order(pieces)
	if err := wire.Send(pieces...); err != nil {
		t.p.Fatal(err)
	}
}

func asMade([][]byte) {}

func shuffledBack(pieces [][]byte) { slices.Reverse(pieces[1:]); slices.Reverse(pieces) }

func noise(n int) (b []byte) {
	for range n {
		b = append(b, byte(rand.N(256)))
	}
	return b
}

// checkFragmentOrder sends datagrams in pieces, each way, in order, backwards and mixed.
func checkFragmentOrder(p *probe) {
	n, udp := p.talkNetwork()
	got, all := map[string]int{}, 0
	talkers := p.talk(n, udp, 62000)
	orders := []struct {
		name  string
		order func([][]byte)
	}{{"in order", asMade}, {"backwards", slices.Reverse[[][]byte]}, {"mixed", shuffledBack}}
	for _, o := range orders {
		for _, t := range talkers {
			for _, deliver := range []func([]byte, func([][]byte)) bool{t.toServer, t.toClient} {
				if deliver(noise(4000), o.order) {
					got[o.name]++
				}
			}
		}
	}
	all = 2 * len(talkers)
	p.measure(got["in order"] == all && got["backwards"] == all && got["mixed"] == all,
		"%d of %d in order, %d of %d backwards, %d of %d mixed", got["in order"], all, got["backwards"], all, got["mixed"], all)
}

// checkFragmenting sends datagrams that the next link is too small for.
func checkFragmenting(p *probe, order bool) {
	const small = 1280
	n, udp := p.talkNetwork()
	var found fragmentArrivals
	n.SetMTU(small, 1500, small)
	for _, t := range p.talk(n, udp, 62000) {
		if t.host != n.Client {
			found.add(p, t.host, func() bool { return t.toClient(noise(1472), asMade) })
		}
	}
	n.SetMTU(1500, small, 1500)
	for _, t := range p.talk(n, udp, 62001) {
		if t.host != n.Client {
			found.add(p, n.Server, func() bool { return t.toServer(noise(1472), asMade) })
		}
	}
	if order {
		p.measure(found.datagrams == 4 && found.ordered == 4, "%d of 4 datagrams in order", found.ordered)
		return
	}
	p.measure(found.datagrams == 4 && found.longest <= small && found.count == 8,
		"%d of 4 datagrams of 1500 bytes over MTU %d, %s, none longer than the MTU: %v", found.datagrams, small, amount(found.count, "piece"), found.longest <= small)
}

// fragmentArrivals has the counts of datagrams that had to be fragmented, and of their fragments.
type fragmentArrivals struct {
	datagrams, count, longest, ordered int
}

// add watches a host while a datagram is sent to it.
func (f *fragmentArrivals) add(p *probe, host *lab.Host, deliver func() bool) {
	p.Helper()
	watch := host.Watch("eth0", func(packet *lab.Packet) bool { return packet.Fragment })
	if deliver() {
		f.datagrams++
	}
	watch.Stop()
	end, ordered := 0, true
	for _, packet := range watch.Packets() {
		f.count++
		f.longest = max(f.longest, packet.Length)
		offset := int(binary.BigEndian.Uint16(packet.Data[6:])&0x1fff) * 8
		ordered = ordered && offset == end
		end = offset + len(packet.Payload())
	}
	if ordered && end > 0 {
		f.ordered++
	}
}

// checkFragmentFlood sends a thousand fragments that have no first between every two of a datagram.
func checkFragmentFlood(p *probe) {
	s := p.stage()
	f := s.establish(s.Flows(true, 20000)["from the Internet"])
	const datagrams, flood = 20, 1000
	whole, fragmented := 0, 0
	for i := range datagrams {
		data := noise(4000)
		in, want := lab.UDP(f.Client, f.External, data), lab.UDP(f.Source, f.Target, data)
		in.ID, want.ID, want.TTL = uint16(1+i), uint16(1+i), 63
		arrived := 0
		wanted := want.Fragments(1480)
		for j, piece := range in.Fragments(1480) {
			s.flood(f, flood)
			got := s.put(f.At, ethernet(f.MAC, f.At.MAC, piece))
			if got.fate == fateSent && bytes.Equal(got.data[frames.EthernetLength:], wanted[j]) {
				arrived++
			}
		}
		if arrived == len(wanted) {
			fragmented++
		}
		if s.alive(f) {
			whole++
		}
	}
	p.measure(whole == datagrams && fragmented == datagrams,
		"%d fragments without a first between each two: %d of %d datagrams in order, %d of %d whole ones",
		flood, fragmented, datagrams, whole, datagrams)
}

// flood sends later fragments of nothing, from random hosts that are not the flow's.
func (s *stage) flood(f rig.Flow, count int) {
	s.p.Helper()
	d := lab.UDP(f.Client, f.External, make([]byte, 1000))
	for range count {
		d.Src = netip.AddrFrom4([4]byte{198, 51, 101, byte(rand.N(256))})
		d.ID = uint16(1 + rand.N(65535))
		s.put(f.At, ethernet(f.MAC, f.At.MAC, d.Fragment(8*(1+rand.N(50)), 800)))
	}
}
