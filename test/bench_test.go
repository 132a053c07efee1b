// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"hairpin/bpf"
	"hairpin/loader"
	"hairpin/maps"
	"hairpin/test/lab"
)

// What the kernel's programs answer: linux/pkt_cls.h and linux/bpf.h.
const (
	tcUnspec   = ^uint32(0)
	tcShot     = 2
	tcRedirect = 7

	xdpDrop     = 1
	xdpPass     = 2
	xdpRedirect = 4
)

// The bench's network.
var (
	wanAddress   = netip.MustParseAddr("203.0.113.1")
	lanAddress   = netip.MustParseAddr("192.168.1.1")
	otherAddress = netip.MustParseAddr("192.168.2.1")
	internetHost = netip.MustParseAddr("198.51.100.7")
	server       = netip.MustParseAddr("192.168.1.20")
	basicServer  = netip.MustParseAddr("192.168.1.21") // what basicAddress stands for, without ports
	basicAddress = netip.MustParseAddr("203.0.113.9")
	dmzServer    = netip.MustParseAddr("192.168.1.22") // what dmzAddress stands for, whatever the protocol
	dmzAddress   = netip.MustParseAddr("203.0.113.10")
	client       = netip.MustParseAddr("192.168.1.50")
	otherClient  = netip.MustParseAddr("192.168.2.60")

	wanMAC   = net.HardwareAddr{2, 0, 0, 0, 1, 1} // the router's own
	lanMAC   = net.HardwareAddr{2, 0, 0, 0, 1, 2}
	otherMAC = net.HardwareAddr{2, 0, 0, 0, 1, 3}

	gatewayMAC     = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	serverMAC      = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	clientMAC      = net.HardwareAddr{2, 0, 0, 0, 0, 3}
	otherClientMAC = net.HardwareAddr{2, 0, 0, 0, 0, 4}
)

// bench is the loaded programs and a router around them, for single packets by
// BPF_PROG_TEST_RUN: three interfaces, resolved neighbours, a few forwards.
type bench struct {
	router         *lab.Host
	wires          *lab.Host // the far ends of the router's cables, "to-wan0" and so on
	objs           bpf.HairpinObjects
	tables         *maps.Tables
	config         maps.Config
	wan, lan, lan2 port
	narrow         bool // some MTU is not as it was
}

type port struct {
	index int
	mac   net.HardwareAddr
}

// answer is what a program made of a packet.
type answer struct {
	code uint32
	data []byte
}

func newBench(tb testing.TB, forwards ...string) *bench {
	tb.Helper()
	return newBenchFor(tb, 2048, 2048, forwards...)
}

// newBenchFor is a bench with room for so many connections, and so many half-open ones.
func newBenchFor(tb testing.TB, connections, halfOpen uint32, forwards ...string) *bench {
	tb.Helper()
	spec, err := bpf.LoadHairpin()
	if err != nil {
		tb.Fatal(err)
	}
	return newBenchOf(tb, spec, connections, halfOpen, forwards...)
}

// newBenchOf is a bench with the programs of spec.
func newBenchOf(tb testing.TB, spec *ebpf.CollectionSpec, connections, halfOpen uint32, forwards ...string) *bench {
	tb.Helper()
	b := &bench{router: lab.NewHost(tb, "router"), wires: lab.NewHost(tb, "wires")}
	for _, p := range []struct {
		name, address string
		mac           net.HardwareAddr
		port          *port
	}{
		{"wan0", "203.0.113.1/24", wanMAC, &b.wan},
		{"lan0", "192.168.1.1/24", lanMAC, &b.lan},
		{"lan1", "192.168.2.1/24", otherMAC, &b.lan2},
	} {
		lab.Cable(b.router, p.name, b.wires, "to-"+p.name)
		b.router.Address(p.name, p.address)
		b.router.SetHardwareAddr(p.name, p.mac)
		*p.port = port{b.router.Index(p.name), p.mac}
	}
	b.router.Address("wan0", "203.0.113.9/32", "203.0.113.10/32")
	b.router.Sysctl("net/ipv4/ip_forward", "1")
	b.neighbour(tb, b.wan, netip.MustParseAddr("203.0.113.254"), gatewayMAC)
	for _, target := range []netip.Addr{server, basicServer, dmzServer} {
		b.neighbour(tb, b.lan, target, serverMAC)
	}
	b.neighbour(tb, b.lan, client, clientMAC)
	b.neighbour(tb, b.lan2, otherClient, otherClientMAC)
	b.router.Route("wan0", "0.0.0.0/0", "203.0.113.254", "")
	b.load(tb, spec, connections, halfOpen)
	b.configure(tb, forwards)
	return b
}

func (b *bench) neighbour(tb testing.TB, p port, ip netip.Addr, mac net.HardwareAddr) {
	tb.Helper()
	err := b.router.Do(func() error {
		return netlink.NeighSet(&netlink.Neigh{
			LinkIndex: p.index, IP: ip.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT,
		})
	})
	if err != nil {
		tb.Fatalf("set neighbour %s: %v", ip, err)
	}
}

// load creates the maps with room for so many connections, and so many half-open ones of TCP and of all others.
func (b *bench) load(tb testing.TB, spec *ebpf.CollectionSpec, connections, halfOpen uint32) {
	tb.Helper()
	loader.Size(spec, connections)
	for i, entry := range spec.Maps[bpf.HairpinMapRings].Contents {
		ring := entry.Value.(bpf.HairpinRing)
		if kind := bpf.HairpinPlaceKind(i / 2); kind <= bpf.HairpinPlaceKindPLACE_HALF_OTHER {
			ring.Size, ring.Limit = min(ring.Size, halfOpen), min(ring.Limit, halfOpen)
			spec.Maps[bpf.HairpinMapRings].Contents[i].Value = ring
		}
	}
	spec.Maps[bpf.HairpinMapScratchPackets].MaxEntries = uint32(ebpf.MustPossibleCPU())
	if err := spec.LoadAndAssign(&b.objs, nil); err != nil {
		tb.Fatalf("load programs: %+v", err)
	}
	tb.Cleanup(func() { b.objs.Close() })
	b.tables = maps.New(&b.objs)
}

func (b *bench) configure(tb testing.TB, forwards []string) {
	tb.Helper()
	b.config = maps.DefaultConfig()
	config := &b.config
	config.WAN, config.LAN = []string{"wan0"}, []string{"lan0", "lan1"}
	config.MaxConnections = maps.ConnectionsLimit(&b.objs)
	for _, words := range forwards {
		config.Forwards = append(config.Forwards, mustForward(tb, words))
	}
	b.apply(tb)
	b.watch(tb, netip.PrefixFrom(wanAddress, 24), netip.PrefixFrom(basicAddress, 32), netip.PrefixFrom(dmzAddress, 32))
}

// watch tells the programs of the interfaces; external are the addresses of wan0.
func (b *bench) watch(tb testing.TB, external ...netip.Prefix) {
	tb.Helper()
	interfaces := []maps.Interface{
		{Name: "wan0", Index: b.wan.index, Role: maps.RoleWAN, HardwareAddr: b.wan.mac, XDPTransmit: true, RPFilter: 1, Addresses: external},
		{Name: "lan0", Index: b.lan.index, Role: maps.RoleLAN, HardwareAddr: b.lan.mac, XDPTransmit: true, RPFilter: 1,
			Addresses: []netip.Prefix{netip.PrefixFrom(lanAddress, 24)}},
		{Name: "lan1", Index: b.lan2.index, Role: maps.RoleLAN, HardwareAddr: b.lan2.mac, XDPTransmit: true, RPFilter: 1,
			Addresses: []netip.Prefix{netip.PrefixFrom(otherAddress, 24)}},
	}
	// The devmap takes an ifindex for one of the namespace that writes it.
	must(b.router.Do(func() error { return b.tables.SetInterfaces(interfaces) }))
}

// apply makes b.config what runs.
func (b *bench) apply(tb testing.TB) {
	tb.Helper()
	if _, err := b.tables.Apply(b.config); err != nil {
		tb.Fatalf("apply: %v", err)
	}
}

// tc runs a frame that came in by p through the TC program.
func (b *bench) tc(tb testing.TB, p port, data []byte) answer {
	tb.Helper()
	context := make([]byte, 192) // struct __sk_buff
	binary.NativeEndian.PutUint32(context[40:], uint32(p.index))
	return b.run(tb, b.objs.HairpinTc, context, data)
}

// xdp runs a frame that came in by p through the XDP program.
func (b *bench) xdp(tb testing.TB, p port, data []byte) answer {
	tb.Helper()
	context := make([]byte, 24) // struct xdp_md
	binary.NativeEndian.PutUint32(context[4:], uint32(len(data)))
	binary.NativeEndian.PutUint32(context[12:], uint32(p.index))
	return b.run(tb, b.objs.HairpinXdp, context, data)
}

func (b *bench) run(tb testing.TB, program *ebpf.Program, context, data []byte) (a answer) {
	tb.Helper()
	opts := &ebpf.RunOptions{Data: data, DataOut: make([]byte, len(data)+256), Context: context}
	err := b.router.Do(func() (err error) {
		a.code, err = program.Run(opts)
		return err
	})
	if err != nil {
		tb.Fatalf("run %s with %d bytes: %v", program, len(data), err)
	}
	a.data = opts.DataOut
	return a
}

// counted is how often a reason was given, on any interface.
func (b *bench) counted(tb testing.TB, reason string) (n uint64) {
	tb.Helper()
	counters, err := b.tables.Counters()
	if err != nil {
		tb.Fatal(err)
	}
	for _, c := range counters {
		if c.Reason == reason {
			n += c.Packets
		}
	}
	return n
}

// connections is how many connections there are, half-open ones too.
func (b *bench) connections(tb testing.TB) []maps.Connection {
	tb.Helper()
	var list []maps.Connection
	if err := b.tables.EachConnection(maps.Selector{}, func(c *maps.Connection) { list = append(list, *c) }); err != nil {
		tb.Fatal(err)
	}
	return list
}
