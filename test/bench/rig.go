// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"net/netip"
	"testing"

	"hairpin/test/bench/traffic"
	"hairpin/test/lab"
)

// The addresses of a rig.
var (
	clientMAC  = net.HardwareAddr{2, 0, 0, 0, 0, 3}
	serverMAC  = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	gatewayMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}

	client   = netip.MustParseAddr(lab.Client)
	server   = netip.MustParseAddr(lab.Server)
	router   = netip.MustParseAddr(lab.RouterLAN)
	external = netip.MustParseAddr(lab.External)
	gateway  = netip.MustParseAddr(lab.Gateway)
	internet = netip.MustParseAddr(lab.InternetSource)
)

// segment is a LAN of a router.
type segment struct {
	lanDev         string // the router's interface
	client, server netip.Addr
	address        netip.Addr // of the router
	network        netip.Prefix
	firstPort      int // the external ports firstPort to firstPort+ports-1 are forwarded to the server
}

// Two LANs have different clients, servers and ports, so that no connection crosses from one to the other.
var (
	firstLAN  = segment{"lan0", client, server, router, netip.MustParsePrefix("192.168.1.0/24"), externalPort}
	secondLAN = segment{
		"lan1", netip.MustParseAddr("192.168.2.50"), netip.MustParseAddr("192.168.2.20"), netip.MustParseAddr("192.168.2.1"),
		netip.MustParsePrefix("192.168.2.0/24"), externalPort + ports,
	}
)

const (
	// firstSource is the client's port of flow 0.
	firstSource = 1025
	// ports external ports, the first LAN's from externalPort on, are forwarded to targetPort to targetPort+ports-1.
	externalPort = 10000
	targetPort   = 20000
	ports        = 100
)

// rig is a router between two cables. At the far end of each cable, a generator sends the packets of all hosts behind the
// cable, and a sink counts the packets that arrive.
//
//	wan far --- wan0 router lan0 --- far lan
type rig struct {
	site
	segment
	wan, lan       *lab.Host
	traffic        *traffic.Traffic
	wanMAC, lanMAC net.HardwareAddr // the router's MAC addresses
	pins           string           // pin directory of hairpin; "": another translator runs
}

// newRig makes a rig. Its router knows its neighbours and forwards packets, but does not translate.
func newRig(tb testing.TB) *rig {
	r := &rig{site: site{tb, lab.NewHost(tb, "router")}, wan: lab.NewHost(tb, "wan")}
	lab.Cable(r.router, "wan0", r.wan, "far")
	r.wanMAC = r.router.HardwareAddr("wan0")
	r.router.Address("wan0", lab.External+"/24")
	r.router.Neighbour("wan0", gateway, gatewayMAC)
	r.router.Route("wan0", "0.0.0.0/0", lab.Gateway, "")
	r.router.Sysctl("net/ipv4/ip_forward", "1")
	// Without this, the kernel answers a packet that leaves by the interface that it came in by with an ICMP redirect. hairpin
	// and the bare hooks do not, so the comparison would be wrong.
	r.router.Sysctl("net/ipv4/conf/all/send_redirects", "0")
	// A veth without an XDP program takes the generator's XDP frames only if GRO is on.
	r.router.Offload("wan0", lab.ReceiveOffload, true)
	r.connect(firstLAN)
	r.must("attach sink", r.wan.Do(func() error { return r.traffic.Sink(r.wan.Index("far")) }))
	return r
}

// connect makes the cable to a LAN, with a generator and a sink.
func (r *rig) connect(lan segment) {
	r.tb.Helper()
	r.segment, r.lan = lan, lab.NewHost(r.tb, lan.lanDev)
	lab.Cable(r.router, lan.lanDev, r.lan, "far")
	r.lanMAC = r.router.HardwareAddr(lan.lanDev)
	r.router.Address(lan.lanDev, netip.PrefixFrom(lan.address, lan.network.Bits()).String())
	r.router.Neighbour(lan.lanDev, lan.client, clientMAC)
	r.router.Neighbour(lan.lanDev, lan.server, serverMAC)
	r.router.Sysctl("net/ipv4/conf/"+lan.lanDev+"/send_redirects", "0")
	r.router.Offload(lan.lanDev, lab.ReceiveOffload, true)

	t, err := traffic.Load()
	r.must("load", err)
	r.tb.Cleanup(func() { t.Close() })
	r.traffic = t
	r.must("attach sink", r.lan.Do(func() error { return t.Sink(r.lan.Index("far")) }))
}

// beside returns a rig with the same router and another LAN, whose generator may run at the same time.
func (r *rig) beside(lan segment) *rig {
	r.tb.Helper()
	other := *r
	other.connect(lan)
	return &other
}

// direction is the direction of a packet in its connection.
type direction string

const (
	toServer direction = "to server"
	toClient direction = "to client"
)

var directions = []direction{toServer, toClient}

// way is the path by which clients reach the forward.
type way string

const (
	hairpinned way = "LAN"
	forwarded  way = "WAN"
)

// end returns the host with the generator of this direction.
func (r *rig) end(w way, d direction) *lab.Host {
	if w == forwarded && d == toServer {
		return r.wan
	}
	return r.lan
}

// frame returns the frame of a UDP connection on this path, in this direction.
func (r *rig) frame(w way, d direction) traffic.Frame {
	from, sees := r.client, r.address
	fromMAC, toMAC := clientMAC, r.lanMAC
	if w == forwarded {
		from, sees = internet, internet
		fromMAC, toMAC = gatewayMAC, r.wanMAC
	}
	if d == toServer {
		return udpFrame(fromMAC, toMAC, netip.AddrPortFrom(from, firstSource),
			netip.AddrPortFrom(external, uint16(r.firstPort)), sourceVaries, r.server)
	}
	return udpFrame(serverMAC, r.lanMAC, netip.AddrPortFrom(r.server, targetPort),
		netip.AddrPortFrom(sees, firstSource), destinationVaries, from)
}

// Offsets of the source port and the destination port in a frame: Frame.First of the two directions.
const (
	sourceVaries      = 34
	destinationVaries = 36
)

// udpFrame returns the shortest UDP frame. The flows differ in its ports.
func udpFrame(srcMAC, dstMAC net.HardwareAddr, src, dst netip.AddrPort, first int, expected netip.Addr) traffic.Frame {
	const payload = traffic.FrameBytes - 14 - 20 - 8
	data := append(append(append([]byte(nil), dstMAC...), srcMAC...), 0x08, 0x00)
	datagram := lab.UDP(src, dst, make([]byte, payload))
	datagram.DF = true
	return traffic.Frame{
		Data:  append(data, datagram.Packet()...),
		First: first, Second: sourceVaries + destinationVaries - first, Check: 40, Expected: expected,
	}
}

// destination returns the destination address of a frame.
func destination(f traffic.Frame) netip.Addr {
	return netip.AddrFrom4([4]byte(f.Data[30:34]))
}

// open opens the connections with numbers from to from+flows-1, by a packet of the client and a packet of the server each. It
// returns how many packets of clients and of servers arrived.
func (r *rig) open(w way, from, flows int) (arrived [2]uint64) {
	r.tb.Helper()
	s := traffic.Stream{Flows: from + flows, Ordered: true, From: from}
	if w == hairpinned && flows%traffic.Block == 0 {
		s.Frames = []traffic.Frame{r.frame(w, toServer), r.frame(w, toClient)}
		n, err := r.send(w, toServer, s, 2*flows)
		r.must("open connections", err)
		return n
	}
	for i, d := range directions {
		s.Frames = []traffic.Frame{r.frame(w, d)}
		n, err := r.send(w, d, s, flows)
		r.must("open connections", err)
		arrived[i] = n[0]
	}
	return arrived
}

// send sends the first count packets of a stream, and returns how many packets of each frame arrived.
func (r *rig) send(w way, d direction, s traffic.Stream, count int) (arrived [2]uint64, err error) {
	if err := r.traffic.Set(s); err != nil {
		return arrived, err
	}
	return r.again(w, d, count)
}

// again sends the next count packets of the current stream.
func (r *rig) again(w way, d direction, count int) (arrived [2]uint64, err error) {
	end := r.end(w, d)
	before, _, err := r.traffic.Arrived()
	if err != nil {
		return arrived, err
	}
	if err := end.Do(func() error { return r.traffic.Send(end.Index("far"), uint32(count)) }); err != nil {
		return arrived, err
	}
	after, _, err := r.traffic.Arrived()
	for i := range arrived {
		arrived[i] = after[i] - before[i]
	}
	return arrived, err
}

// establish opens connections, and fails if a packet does not arrive.
func (r *rig) establish(w way, flows int) {
	r.tb.Helper()
	const chunk = 20000 // small enough that the answer comes before a half-open connection is evicted
	for from := 0; from < flows; from += chunk {
		n := min(chunk, flows-from)
		if arrived := r.open(w, from, n); arrived != [2]uint64{uint64(n), uint64(n)} {
			r.tb.Fatalf("open %d connections from the %s: %d packets reached the server, %d the client",
				n, w, arrived[0], arrived[1])
		}
	}
}
