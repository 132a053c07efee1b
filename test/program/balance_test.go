// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"
	"math"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps/rule"
	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

// balancer is a router with one forward to three servers, whose weights are 1, 2 and 1.
type balancer struct {
	*bench
	left int // packets that XDP has left to TC
}

func balanced(t *testing.T) *balancer {
	t.Helper()
	return &balancer{bench: newBench(t, "web tcp,udp 443 to 192.168.1.20:8443 to 192.168.1.21:8443 weight 2 to 192.168.1.22:443")}
}

// asked sends the first packet of a client's connection through a hook, and returns the server that gets it.
func (b *balancer) asked(t *testing.T, h hook, client netip.AddrPort) netip.AddrPort {
	t.Helper()
	f := b.Flows(true, 0)["from the Internet"]
	f.Client, f.Source = client, client
	in, _ := f.In(frames.Payload("hello"))
	got, sent := h.run(b.bench, t, f.At, in.Bytes()), h.send
	if got.Code == h.pass { // XDP leaves the packet to TC if the next hop was not used of late
		b.left++
		got, sent = b.TC(t, f.At, in.Bytes()), rig.TCRedirect
	}
	if got.Code != sent {
		t.Fatalf("%s: verdict %d for a packet of %s", h.name, int32(got.Code), client)
	}
	return destination(got.Data)
}

// destination returns where an IPv4 packet without options goes.
func destination(frame []byte) netip.AddrPort {
	ip := frame[frames.EthernetLength:]
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[16:20])), frames.WordAt(ip, 22))
}

// clientNumber returns one of many clients on the Internet.
func clientNumber(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), uint16(1024+i))
}

// TestBalance: new connections are shared by the weights; the packets of a connection go to its server; both hooks choose the same one.
func TestBalance(t *testing.T) {
	const clients = 4000
	b := balanced(t)
	shares := map[netip.AddrPort]float64{}
	for i := range clients {
		first := b.asked(t, hooks[i%len(hooks)], clientNumber(i))
		if again := b.asked(t, hooks[(i+1)%len(hooks)], clientNumber(i)); again != first {
			t.Fatalf("client %d: its second packet goes to %s, the first one went to %s", i, again, first)
		}
		shares[first] += 1.0 / clients
	}
	if b.left > clients/2 {
		t.Errorf("XDP has left %d packets to TC", b.left)
	}
	for server, want := range map[string]float64{"192.168.1.20:8443": 0.25, "192.168.1.21:8443": 0.5, "192.168.1.22:443": 0.25} {
		if got := shares[netip.MustParseAddrPort(server)]; math.Abs(got-want) > 0.02 {
			t.Errorf("%s has %.3f of the connections, want %.3f", server, got, want)
		}
	}
}

// TestServersComeAndGo: connections live as long as the forward has their server. New connections go by the new weights. A server with
// weight 0 keeps its connections.
func TestServersComeAndGo(t *testing.T) {
	const clients = 150 // with as many new ones, few enough that none gives way
	b := balanced(t)
	servers := make([]netip.AddrPort, clients)
	for i := range clients {
		servers[i] = b.asked(t, hooks[0], clientNumber(i))
	}
	stays := func(when string, gone netip.Addr) {
		t.Helper()
		for i, was := range servers {
			now := b.asked(t, hooks[0], clientNumber(i))
			if was.Addr() != gone && now != was {
				t.Fatalf("%s: client %d goes to %s, was %s", when, i, now, was)
			}
			if was.Addr() == gone && now.Addr() == gone {
				t.Fatalf("%s: client %d still goes to %s", when, i, gone)
			}
		}
	}
	f := &b.Config.Forwards[0]
	f.Pool.Servers = append(f.Pool.Servers[:3:3], rule.Server{Target: netip.MustParseAddr("192.168.1.23"), Weight: 1})
	b.Neighbour(t, b.LAN, netip.MustParseAddr("192.168.1.23"), rig.ServerMAC)
	b.Apply(t)
	stays("a server more", netip.Addr{})
	f.Pool.Servers[0].Weight = 0
	b.Apply(t)
	stays("a server with weight 0", netip.Addr{})
	drained := f.Pool.Servers[0].Target
	for i := clients; i < 2*clients; i++ {
		if to := b.asked(t, hooks[0], clientNumber(i)); to.Addr() == drained {
			t.Fatalf("a new client goes to %s, whose weight is 0", drained)
		}
	}
	f.Pool.Servers = append([]rule.Server{}, f.Pool.Servers[1:]...)
	f.Target, f.TargetPort = f.Pool.Servers[0].Target, f.Pool.Servers[0].Port
	b.Apply(t)
	stays("a server less", drained)
}

// TestAffinity: the next connections of a client, from any port, go to the server of the last one, also after its weight is smaller.
// A client that has been away for longer, and one whose server takes no new connection, get a server like a new client.
func TestAffinity(t *testing.T) {
	const clients = 200
	b := balanced(t)
	f := &b.Config.Forwards[0]
	f.Pool.Affinity = time.Hour
	b.Apply(t)
	from := func(i, port int) netip.AddrPort { return netip.AddrPortFrom(clientNumber(i).Addr(), uint16(port)) }
	servers := make([]netip.AddrPort, clients)
	for i := range clients {
		servers[i] = b.asked(t, hooks[i%len(hooks)], from(i, 2000))
	}
	f.Pool.Servers[0].Weight, f.Pool.Servers[1].Weight, f.Pool.Servers[2].Weight = 256, 1, 1
	b.Apply(t)
	for i, was := range servers {
		if now := b.asked(t, hooks[i%len(hooks)], from(i, 3000)); now != was {
			t.Fatalf("client %d goes to %s, its last connection to %s", i, now, was)
		}
	}
	// Clients that have been away for longer are new ones, which follow the weights.
	b.ageAffinities(t, 2*time.Hour)
	moved := 0
	for i, was := range servers {
		if now := b.asked(t, hooks[i%len(hooks)], from(i, 4000)); now != was {
			moved++
		}
	}
	if moved < clients/2 {
		t.Errorf("only %d of %d clients that were away for two hours follow the new weights", moved, clients)
	}
	// A server that takes no new connection gets none by affinity either.
	f.Pool.Servers[0].Weight = 0
	b.Apply(t)
	for i := range servers {
		if now := b.asked(t, hooks[0], from(i, 5000)); now.Addr() == f.Pool.Servers[0].Target {
			t.Fatalf("client %d goes to %s, which takes no new connection", i, now)
		}
	}
}

// eachAffinity calls visit for both tables of clients.
func (b *balancer) eachAffinity(t *testing.T, visit func(*ebpf.Map)) {
	t.Helper()
	for slot := range b.Objects.Affinities.MaxEntries() {
		var id uint32
		lab.Must(b.Objects.Affinities.Lookup(slot, &id))
		table, err := ebpf.NewMapFromID(ebpf.MapID(id))
		if err != nil {
			t.Fatal(err)
		}
		visit(table)
		table.Close()
	}
}

// ageAffinities makes all clients' last openings earlier.
func (b *balancer) ageAffinities(t *testing.T, by time.Duration) {
	t.Helper()
	b.eachAffinity(t, func(table *ebpf.Map) {
		var key bpf.HairpinAffinityKey
		var value bpf.HairpinAffinity
		aged := map[bpf.HairpinAffinityKey]bpf.HairpinAffinity{}
		for entries := table.Iterate(); entries.Next(&key, &value); {
			value.Second -= uint32(by / time.Second)
			aged[key] = value
		}
		for key, value := range aged {
			lab.Must(table.Put(key, value))
		}
	})
}

// TestAffinityOutlivesFlood: openings from any number of spoofed sources do not displace clients that have had a connection.
func TestAffinityOutlivesFlood(t *testing.T) {
	const clients, spoofed = 50, 40_000
	b := balanced(t)
	f := &b.Config.Forwards[0]
	f.Pool.Affinity = time.Hour
	b.Apply(t)
	servers := make([]netip.AddrPort, clients)
	for i := range clients {
		servers[i] = b.asked(t, hooks[0], clientNumber(i))
		flow := b.Flows(true, 0)["from the Internet"]
		flow.Client, flow.Source, flow.Target = clientNumber(i), clientNumber(i), servers[i]
		answer, _ := flow.Back(frames.Payload("answer"))
		if got := b.TC(t, b.LAN, answer.Bytes()); got.Code != rig.TCRedirect {
			t.Fatalf("the answer to client %d: verdict %d", i, int32(got.Code))
		}
	}
	for i := range spoofed {
		b.asked(t, hooks[0], netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 19, byte(i >> 8), byte(i)}), uint16(2000+i/65536)))
	}
	for i := range f.Pool.Servers {
		f.Pool.Servers[i].Weight = []uint16{1, 1, 256}[i]
	}
	b.Apply(t)
	for i, was := range servers {
		if now := b.asked(t, hooks[0], netip.AddrPortFrom(clientNumber(i).Addr(), 999)); now != was {
			t.Fatalf("client %d goes to %s, its last connection to %s", i, now, was)
		}
	}
}

// TestServerAnswers: the answers of each server come from the external address, for all kinds of clients, also where the client is a server.
func TestServerAnswers(t *testing.T) {
	b := balanced(t)
	for _, h := range hooks {
		for _, udp := range []bool{true, false} {
			c := newCase(t, b.bench)
			for name, f := range b.Flows(udp, uint16(40000+len(h.name))) {
				first := frames.TCP("S", rig.ClientISN, 0)
				if udp {
					first = frames.Payload("hello")
				}
				in, _ := f.In(first)
				got := b.TC(t, f.At, in.Bytes())
				if got.Code != rig.TCRedirect {
					t.Fatalf("%s: verdict %d", name, int32(got.Code))
				}
				f.Target = destination(got.Data)
				for _, s := range c.opened(f)[1:] {
					c.play(t, h, s)
				}
			}
		}
	}
}

// TestAffinity6: with affinity, all addresses of a /64 of the Internet are one client, and each address of a LAN is one.
func TestAffinity6(t *testing.T) {
	const clients = 40
	b := newBench6(t)
	servers := []netip.Addr{target6, pingTarget6}
	b.Config.Forwards = append(b.Config.Forwards,
		rig.MustForward(t, fmt.Sprintf("pool udp 444 to [%s]:8443 to [%s]:8443 affinity 1h", servers[0], servers[1])))
	b.Apply(t)
	asked := map[string]map[netip.Addr]bool{}
	for way, network := range map[string]string{"from the Internet": "2001:db8:77:1::", "from another LAN": "fd00:2::"} {
		asked[way] = map[netip.Addr]bool{}
		for i := range clients {
			f := b.flow6(way, true, uint16(3000+i))
			f.Client = netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("%s%x", network, 0x1000+i)), f.Client.Port())
			f.Source, f.External = f.Client, netip.AddrPortFrom(f.External.Addr(), 444)
			in, _ := f.In(also(frames.Payload("hello")))
			got := b.TC(t, f.At, in.Bytes())
			if got.Code != rig.TCRedirect {
				t.Fatalf("%s: verdict %d for %s", way, int32(got.Code), f.Client)
			}
			asked[way][netip.AddrFrom16([16]byte(got.Data[frames.EthernetLength+24:]))] = true
		}
	}
	for way, want := range map[string]int{"from the Internet": 1, "from another LAN": len(servers)} {
		if len(asked[way]) != want {
			t.Errorf("%s: the clients go to the servers %v, want %d of them", way, asked[way], want)
		}
	}
}
