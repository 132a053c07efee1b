// SPDX-License-Identifier: Apache-2.0

package floods

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hairpin/test/bench/traffic"
	"hairpin/test/home"
	"hairpin/test/lab"
)

// floodForwards are the forwards of the flood tests. All of them lead to one server. The flood uses one forward. The clients use
// every forward.
const floodForwards = `
[[forward]]
name = "web"
protocol = ["tcp"]
port = "80"
to = "192.168.1.20:8080"
[[forward]]
name = "other"
protocol = ["tcp"]
port = "81"
to = "192.168.1.20:8081"
[[forward]]
name = "answering"
protocol = ["udp"]
port = "53"
to = "192.168.1.20:5353"
[[forward]]
name = "slow"
protocol = ["udp"]
port = "54"
to = "192.168.1.20:5354"
[[forward]]
name = "stream"
protocol = ["udp"]
port = "56"
to = "192.168.1.20:5356"
[[forward]]
name = "web6"
protocol = ["tcp"]
port = "80"
to = "[fd00:1::20]:8080"
[[forward]]
name = "other6"
protocol = ["tcp"]
port = "81"
to = "[fd00:1::20]:8081"
[[forward]]
name = "answering6"
protocol = ["udp"]
port = "53"
to = "[fd00:1::20]:5353"
[[forward]]
name = "slow6"
protocol = ["udp"]
port = "54"
to = "[fd00:1::20]:5354"
[[forward]]
name = "stream6"
protocol = ["udp"]
port = "56"
to = "[fd00:1::20]:5356"
`

// floodNFT are the same forwards in nftables, with a masquerade for clients in the server's LAN.
const floodNFT = `
table inet nat {
	chain prerouting {
		type nat hook prerouting priority dstnat
		ip daddr 203.0.113.2 tcp dport 80 dnat ip to 192.168.1.20:8080
		ip daddr 203.0.113.2 tcp dport 81 dnat ip to 192.168.1.20:8081
		ip daddr 203.0.113.2 udp dport 53 dnat ip to 192.168.1.20:5353
		ip daddr 203.0.113.2 udp dport 54 dnat ip to 192.168.1.20:5354
		ip daddr 203.0.113.2 udp dport 56 dnat ip to 192.168.1.20:5356
		ip6 daddr 2001:db8:0:1::2 tcp dport 80 dnat ip6 to [fd00:1::20]:8080
		ip6 daddr 2001:db8:0:1::2 tcp dport 81 dnat ip6 to [fd00:1::20]:8081
		ip6 daddr 2001:db8:0:1::2 udp dport 53 dnat ip6 to [fd00:1::20]:5353
		ip6 daddr 2001:db8:0:1::2 udp dport 54 dnat ip6 to [fd00:1::20]:5354
		ip6 daddr 2001:db8:0:1::2 udp dport 56 dnat ip6 to [fd00:1::20]:5356
	}
	chain postrouting {
		type nat hook postrouting priority srcnat
		oifname "lan0" ip saddr 192.168.1.0/24 ip daddr 192.168.1.20 masquerade
		oifname "lan0" ip6 saddr fd00:1::/64 ip6 daddr fd00:1::20 masquerade
	}
}`

const (
	portFlooded   = 80
	portOther     = 81
	portAnswering = 53
	portSlow      = 54
	portStream    = 56

	slowAnswer = 150 * time.Millisecond
)

// farTimes are the round trip times of the far clients.
var farTimes = []time.Duration{20 * time.Millisecond, 100 * time.Millisecond, 300 * time.Millisecond}

// floodNetwork is the usual network with far clients, and a host in the LAN that attacks.
//
//	far20, far100, far300 ~~~ Internet eth0 --- wan0 Router lan0 --- Switch: Client, Server, attacker
type floodNetwork struct {
	*lab.Network
	far      []*lab.Host // by farTimes
	attacker *lab.Host
	standing []standingSource // of the connections before a flood
	family6  bool             // which family the clients use
}

// floodLANSources are the attacker's addresses, by family.
var floodLANSources = [][]netip.Prefix{
	{netip.MustParsePrefix("192.168.1.61/32"), netip.MustParsePrefix("192.168.1.62/32"), netip.MustParsePrefix("192.168.1.63/32")},
	{netip.MustParsePrefix("fd00:1::61/128"), netip.MustParsePrefix("fd00:1::62/128"), netip.MustParsePrefix("fd00:1::63/128")},
}

func newFloodNetwork(t *testing.T, family6 bool) *floodNetwork {
	t.Helper()
	n := &floodNetwork{Network: lab.NewNetwork6(t), family6: family6}
	n.attacker = lab.NewHost(t, "attacker")
	lab.Cable(n.attacker, "eth0", n.Switch, "port3")
	n.Switch.Plug("br0", "port3")
	n.attacker.Enable6()
	for i, prefix := range []string{"/24", "/64"} {
		for _, source := range floodLANSources[i] {
			if i == 0 {
				n.attacker.Address("eth0", source.Addr().String()+prefix)
			} else {
				n.attacker.Address6("eth0", source.Addr().String()+prefix)
			}
		}
	}
	n.attacker.Route("eth0", "0.0.0.0/0", lab.RouterLAN, "")
	n.attacker.Route("eth0", "::/0", lab.RouterLink6, "")

	n.Internet.Sysctl("net/ipv4/ip_forward", "1")
	n.Internet.Sysctl("net/ipv6/conf/all/forwarding", "1")
	// Answers to random sources end here, in silence.
	n.Internet.Run("ip", "route", "add", "blackhole", "default")
	n.Internet.Run("ip", "-6", "route", "add", "blackhole", "default")
	n.addStanding()
	for i, rtt := range farTimes {
		n.far = append(n.far, n.addFar(t, i, rtt))
	}
	for _, dev := range []string{"all", "lan0"} {
		n.Router.Sysctl("net/ipv4/conf/"+dev+"/send_redirects", "0")
	}
	return n
}

// addFar adds a client with a round trip time to the Internet host.
func (n *floodNetwork) addFar(t *testing.T, i int, rtt time.Duration) *lab.Host {
	t.Helper()
	h := lab.NewHost(t, fmt.Sprintf("far%d", rtt.Milliseconds()))
	dev := fmt.Sprintf("far%d", i)
	lab.DelayedTun(n.Internet, dev, h, "up", rtt)
	h.Enable6()
	n.Internet.Sysctl("net/ipv6/conf/"+dev+"/disable_ipv6", "0")
	n.Internet.Address(dev, fmt.Sprintf("192.0.2.%d/28", 16*i+1))
	h.Address("up", fmt.Sprintf("192.0.2.%d/28", 16*i+10))
	n.Internet.Address6(dev, fmt.Sprintf("2001:db8:f:%d::1/64", i))
	h.Address6("up", fmt.Sprintf("2001:db8:f:%d::10/64", i))
	h.Route("up", "0.0.0.0/0", "", "")
	h.Route("up", "::/0", "", "")
	return h
}

// external is a port of the router's external address in the clients' family.
func (n *floodNetwork) external(port uint16) netip.AddrPort {
	if n.family6 {
		return netip.AddrPortFrom(netip.MustParseAddr(lab.External6), port)
	}
	return netip.AddrPortFrom(home.ExternalAddress, port)
}

// listen is a port of the server in the clients' family.
func (n *floodNetwork) listen(port int) string {
	if n.family6 {
		return fmt.Sprintf("[::]:%d", port)
	}
	return fmt.Sprintf(":%d", port)
}

// serve starts the services behind the forwards, except the stream.
func (n *floodNetwork) serve(t *testing.T) {
	t.Helper()
	n.Server.ServeTCPApart(n.listen(8080), n.listen(8081))
	AnswerUDP(t, n.Server, 5353)
	n.Server.AnswerUDP(n.listen(5354), slowAnswer)
}

// AnswerUDP makes a host send back each datagram to a port, until the test ends. A program in the kernel answers: a process would answer
// late, when half-open connections have given way already.
func AnswerUDP(t *testing.T, h *lab.Host, port uint16) {
	t.Helper()
	answerer, err := traffic.Load()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { answerer.Close() })
	if err := h.Do(func() error { return answerer.AnswerUDP(h.Index("eth0"), port) }); err != nil {
		t.Fatal(err)
	}
}

// useNFT makes nftables translate, with conntrack as it is by default.
func (n *floodNetwork) useNFT() { n.Router.RunInput(floodNFT, "nft", "-f", "-") }

// newHairpin prepares hairpin on the router; with 0 connections its table has its default size.
func (n *floodNetwork) newHairpin(mode string, connections int) *lab.Hairpin {
	size := ""
	if connections != 0 {
		size = fmt.Sprintf("max_connections = %d\n", connections)
	}
	return lab.NewHairpin(n.Router, home.Config(mode, size+floodForwards))
}

// rtpStream is datagrams that a server sends to a client who asked once and never says anything again, as RTP
// to a receiver without RTCP.
type rtpStream struct {
	client   *net.UDPConn
	received atomic.Int64
	last     atomic.Int64 // when, in nanoseconds
}

const streamPace = 20 * time.Millisecond

// startStream starts a stream to a client; it goes on until the test ends.
func (n *floodNetwork) startStream(t *testing.T, to *lab.Host) *rtpStream {
	t.Helper()
	var server net.PacketConn
	if err := n.Server.Do(func() (err error) {
		network := map[bool]string{false: "udp4", true: "udp6"}[n.family6]
		server, err = new(net.ListenConfig).ListenPacket(context.Background(), network, n.listen(5356))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	client, err := to.DialUDP(n.external(portStream).String(), "")
	if err != nil {
		t.Fatal(err)
	}
	s := &rtpStream{client: client}
	var running sync.WaitGroup
	t.Cleanup(func() {
		server.Close()
		client.Close()
		running.Wait()
	})
	running.Go(func() { streamTo(server) })
	running.Go(s.receive)
	if _, err := client.Write([]byte("play")); err != nil {
		t.Fatal(err)
	}
	return s
}

// streamTo sends to whoever asks first.
func streamTo(server net.PacketConn) {
	data := make([]byte, 172)
	_, peer, err := server.ReadFrom(data)
	if err != nil {
		return
	}
	pace := time.NewTicker(streamPace)
	defer pace.Stop()
	for ; ; <-pace.C {
		if _, err := server.WriteTo(data, peer); errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

func (s *rtpStream) receive() {
	data := make([]byte, 256)
	for {
		if _, err := s.client.Read(data); errors.Is(err, net.ErrClosed) {
			return
		} else if err == nil {
			s.received.Add(1)
			s.last.Store(time.Now().UnixNano())
		}
	}
}

// streamAge is for how long a stream has to go on before it counts as an old one: evidence of a connection is
// the number of seconds in which its server has sent repeatedly, and a flood's tuples have less than this.
const streamAge = 4 * time.Second

// age waits until a stream is an old one.
func (s *rtpStream) age(t *testing.T) {
	t.Helper()
	want := int64(streamAge / streamPace)
	lab.Eventually(t, lab.Patience, func() error {
		if got := s.received.Load(); got < want {
			return fmt.Errorf("stream: %d datagrams of %d", got, want)
		}
		return nil
	})
}

// survives says whether the stream still comes.
func (s *rtpStream) survives() bool {
	from := s.received.Load()
	return lab.Within(2*time.Second, func() bool { return s.received.Load() >= from+10 })
}

// floodConns is TCP connections that are established before a flood: idle ones, and active ones.
type floodConns struct {
	idle, active []*lab.Conn
	stop         chan struct{}
	running      sync.WaitGroup
	lostActive   atomic.Int64
}

const (
	standingActive = 50
	standingPace   = 50 * time.Millisecond
	// standingPatience is the time limit for an exchange. Devices may drop a connection's segments during a flood, and TCP
	// sends them again.
	standingPatience = 10 * time.Second
)

// mostIdle6 is the number of idle connections in IPv6. It has a quarter of the places of IPv4, and the small table needs some of them for
// new clients.
const mostIdle6 = 2000

// establish opens connections to the forward that is to be flooded, a quarter from the LAN and the others from the Internet. They have
// several sources, so that no source reaches its share of a small table.
func (n *floodNetwork) establish(t *testing.T, idle int) *floodConns {
	t.Helper()
	if n.family6 {
		idle = min(idle, mostIdle6)
	}
	conns := make([]*lab.Conn, idle+standingActive)
	s := &floodConns{active: conns[:standingActive], idle: conns[standingActive:], stop: make(chan struct{})}
	t.Cleanup(s.close)
	const parallel = 50
	lab.Together(parallel, func(worker int) {
		for i := worker; i < len(conns); i += parallel {
			from := n.standing[i%len(n.standing)]
			c, err := from.host.DialTCP(n.external(portFlooded).String(), from.address, lab.Patience)
			if err != nil {
				t.Errorf("establish connection %d: %v", i, err)
				return
			}
			conns[i] = c
			if err := c.Echo(1); err != nil {
				t.Errorf("use connection %d: %v", i, err)
				return
			}
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return s
}

func (s *floodConns) close() {
	for _, c := range slices.Concat(s.active, s.idle) {
		if c != nil {
			c.Close()
		}
	}
}

// standingSource is a host, and one of its addresses as DialTCP takes it.
type standingSource struct {
	host    *lab.Host
	address string
}

// addStanding gives hosts the addresses from which connections are established before a flood. Every fourth address is in the LAN. In
// IPv6 each address on the Internet is in a /64 of its own.
func (n *floodNetwork) addStanding() {
	for i := range 8 {
		host, ipv4, ipv6 := n.Internet, fmt.Sprintf("198.51.100.%d", 11+i), fmt.Sprintf("2001:db8:9:%d::10", 1+i)
		if i%4 == 0 {
			host, ipv4, ipv6 = n.Client, fmt.Sprintf("192.168.1.%d", 51+i), fmt.Sprintf("fd00:1::%d", 51+i)
		}
		from := standingSource{host, ipv4 + ":0"}
		if n.family6 {
			from.address = "[" + ipv6 + "]:0"
			host.Address6("eth0", ipv6+"/128")
		} else {
			host.Address("eth0", ipv4+"/32")
		}
		n.standing = append(n.standing, from)
	}
}

// begin starts the traffic of the active ones.
func (s *floodConns) begin() {
	for _, c := range s.active {
		s.running.Go(func() {
			for {
				if c.EchoWithin(64, standingPatience) != nil {
					s.lostActive.Add(1)
					return
				}
				select {
				case <-s.stop:
					return
				case <-time.After(standingPace):
				}
			}
		})
	}
}

// lost ends the traffic, uses the idle ones, and returns how many of each are lost.
func (s *floodConns) lost() (idle, active int) {
	close(s.stop)
	s.running.Wait()
	var lost atomic.Int64
	var asking sync.WaitGroup
	for _, c := range s.idle {
		asking.Go(func() {
			if c.EchoWithin(1, standingPatience) != nil {
				lost.Add(1)
			}
		})
	}
	asking.Wait()
	return int(lost.Load()), int(s.lostActive.Load())
}

// exchangeSlowly sends datagrams to the server that answers late, evenly over some time and each from a port of
// its own, and returns how many were answered.
func (n *floodNetwork) exchangeSlowly(from *lab.Host, count int, over time.Duration) (answered int, err error) {
	var got atomic.Int64
	var waiting sync.WaitGroup
	pace := time.NewTicker(over / time.Duration(count))
	defer pace.Stop()
	for i := range count {
		<-pace.C
		c, err := from.DialUDP(n.external(portSlow).String(), "")
		if err != nil {
			return 0, err
		}
		waiting.Go(func() {
			defer c.Close()
			if askOnce(c, fmt.Sprintf("question %d", i)) {
				got.Add(1)
			}
		})
	}
	waiting.Wait()
	return int(got.Load()), nil
}

// askOnce sends one datagram and waits for the same one.
func askOnce(c *net.UDPConn, question string) bool {
	if _, err := c.Write([]byte(question)); err != nil {
		return false
	}
	c.SetReadDeadline(time.Now().Add(2 * time.Second))
	answer := make([]byte, 64)
	for {
		length, err := c.Read(answer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return false
		}
		if err == nil && string(answer[:length]) == question {
			return true
		}
	}
}
