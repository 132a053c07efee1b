// SPDX-License-Identifier: Apache-2.0

// Package rig loads the programs with a router around them, and runs single packets through them by BPF_PROG_TEST_RUN. Nothing is
// attached: no packet comes from a wire or goes to one.
package rig

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
	"hairpin/maps/config"
	"hairpin/maps/rule"
	"hairpin/test/lab"
)

// What the kernel's programs answer: linux/pkt_cls.h and linux/bpf.h.
const (
	TCUnspec   = ^uint32(0)
	TCShot     = 2
	TCRedirect = 7

	XDPDrop     = 1
	XDPPass     = 2
	XDPRedirect = 4
)

// The rig's network.
var (
	WANAddress   = netip.MustParseAddr("203.0.113.1")
	LANAddress   = netip.MustParseAddr("192.168.1.1")
	OtherAddress = netip.MustParseAddr("192.168.2.1")
	InternetHost = netip.MustParseAddr("198.51.100.7")
	Server       = netip.MustParseAddr("192.168.1.20")
	BasicServer  = netip.MustParseAddr("192.168.1.21") // what BasicAddress stands for, without ports
	BasicAddress = netip.MustParseAddr("203.0.113.9")
	DMZServer    = netip.MustParseAddr("192.168.1.22") // what DMZAddress stands for, whatever the protocol
	DMZAddress   = netip.MustParseAddr("203.0.113.10")
	Client       = netip.MustParseAddr("192.168.1.50")
	OtherClient  = netip.MustParseAddr("192.168.2.60")

	WANMAC   = net.HardwareAddr{2, 0, 0, 0, 1, 1} // the router's own
	LANMAC   = net.HardwareAddr{2, 0, 0, 0, 1, 2}
	OtherMAC = net.HardwareAddr{2, 0, 0, 0, 1, 3}

	GatewayMAC     = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	ServerMAC      = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	ClientMAC      = net.HardwareAddr{2, 0, 0, 0, 0, 3}
	OtherClientMAC = net.HardwareAddr{2, 0, 0, 0, 0, 4}
)

// Rig is the loaded programs and a router around them, for single packets by
// BPF_PROG_TEST_RUN: three interfaces, resolved neighbours, a few forwards.
type Rig struct {
	Router         *lab.Host
	Wires          *lab.Host // the far ends of the router's cables, "to-wan0" and so on
	Objects        bpf.HairpinObjects
	Tables         *maps.Tables
	Config         config.Config
	WAN, LAN, LAN2 Port
}

// Port is an interface of the router.
type Port struct {
	Index int
	MAC   net.HardwareAddr
}

// Answer is what a program made of a packet.
type Answer struct {
	Code uint32
	Data []byte
}

// New makes a rig with room for a few connections.
func New(tb testing.TB, forwards ...string) *Rig {
	tb.Helper()
	return NewFor(tb, 2048, 2048, forwards...)
}

// NewFor is a rig with room for so many connections, and so many half-open ones.
func NewFor(tb testing.TB, connections, halfOpen uint32, forwards ...string) *Rig {
	tb.Helper()
	spec, err := bpf.LoadHairpin()
	if err != nil {
		tb.Fatal(err)
	}
	return NewOf(tb, spec, connections, halfOpen, forwards...)
}

// NewOf is a rig with the programs of spec.
func NewOf(tb testing.TB, spec *ebpf.CollectionSpec, connections, halfOpen uint32, forwards ...string) *Rig {
	tb.Helper()
	r := &Rig{Router: lab.NewHost(tb, "router"), Wires: lab.NewHost(tb, "wires")}
	for _, p := range []struct {
		name, address string
		mac           net.HardwareAddr
		port          *Port
	}{
		{"wan0", "203.0.113.1/24", WANMAC, &r.WAN},
		{"lan0", "192.168.1.1/24", LANMAC, &r.LAN},
		{"lan1", "192.168.2.1/24", OtherMAC, &r.LAN2},
	} {
		lab.Cable(r.Router, p.name, r.Wires, "to-"+p.name)
		r.Router.Address(p.name, p.address)
		r.Router.SetHardwareAddr(p.name, p.mac)
		*p.port = Port{r.Router.Index(p.name), p.mac}
	}
	r.Router.Address("wan0", "203.0.113.9/32", "203.0.113.10/32")
	r.Router.Sysctl("net/ipv4/ip_forward", "1")
	r.Neighbour(tb, r.WAN, netip.MustParseAddr("203.0.113.254"), GatewayMAC)
	for _, target := range []netip.Addr{Server, BasicServer, DMZServer} {
		r.Neighbour(tb, r.LAN, target, ServerMAC)
	}
	r.Neighbour(tb, r.LAN, Client, ClientMAC)
	r.Neighbour(tb, r.LAN2, OtherClient, OtherClientMAC)
	r.Router.Route("wan0", "0.0.0.0/0", "203.0.113.254", "")
	r.load(tb, spec, connections, halfOpen)
	r.configure(tb, forwards)
	return r
}

// Neighbour tells the router a neighbour, for ever.
func (r *Rig) Neighbour(tb testing.TB, p Port, ip netip.Addr, mac net.HardwareAddr) {
	tb.Helper()
	err := r.Router.Do(func() error {
		return netlink.NeighSet(&netlink.Neigh{
			LinkIndex: p.Index, IP: ip.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT,
		})
	})
	if err != nil {
		tb.Fatalf("set neighbour %s: %v", ip, err)
	}
}

// load creates the maps with room for so many connections, and so many half-open ones of TCP and of all others.
func (r *Rig) load(tb testing.TB, spec *ebpf.CollectionSpec, connections, halfOpen uint32) {
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
	lab.Must(r.Router.Do(func() error { return loader.Suit(spec) }))
	if err := spec.LoadAndAssign(&r.Objects, nil); err != nil {
		tb.Fatalf("load programs: %+v", err)
	}
	tb.Cleanup(func() { r.Objects.Close() })
	r.Tables = maps.New(&r.Objects)
}

func (r *Rig) configure(tb testing.TB, forwards []string) {
	tb.Helper()
	r.Config = config.Default()
	cfg := &r.Config
	cfg.WAN, cfg.LAN = []string{"wan0"}, []string{"lan0", "lan1"}
	cfg.MaxConnections = maps.ConnectionsLimit(&r.Objects)
	for _, words := range forwards {
		cfg.Forwards = append(cfg.Forwards, MustForward(tb, words))
	}
	r.Apply(tb)
	r.Watch(tb, netip.PrefixFrom(WANAddress, 24), netip.PrefixFrom(BasicAddress, 32), netip.PrefixFrom(DMZAddress, 32))
}

// Watch tells the programs of the interfaces; external are the addresses of wan0.
func (r *Rig) Watch(tb testing.TB, external ...netip.Prefix) {
	tb.Helper()
	interfaces := []config.Interface{
		{Name: "wan0", Index: r.WAN.Index, Role: config.RoleWAN, HardwareAddr: r.WAN.MAC, XDPTransmit: true, RPFilter: 1, Addresses: external},
		{Name: "lan0", Index: r.LAN.Index, Role: config.RoleLAN, HardwareAddr: r.LAN.MAC, XDPTransmit: true, RPFilter: 1,
			Addresses: []netip.Prefix{netip.PrefixFrom(LANAddress, 24)}},
		{Name: "lan1", Index: r.LAN2.Index, Role: config.RoleLAN, HardwareAddr: r.LAN2.MAC, XDPTransmit: true, RPFilter: 1,
			Addresses: []netip.Prefix{netip.PrefixFrom(OtherAddress, 24)}},
	}
	// The devmap takes an ifindex for one of the namespace that writes it.
	lab.Must(r.Router.Do(func() error { return r.Tables.SetInterfaces(interfaces) }))
}

// Apply makes r.Config what runs.
func (r *Rig) Apply(tb testing.TB) {
	tb.Helper()
	if _, err := r.Tables.Apply(r.Config); err != nil {
		tb.Fatalf("apply: %v", err)
	}
}

// TC runs a frame that came in by p through the TC program.
func (r *Rig) TC(tb testing.TB, p Port, data []byte) Answer {
	tb.Helper()
	context := make([]byte, 192) // struct __sk_buff
	binary.NativeEndian.PutUint32(context[40:], uint32(p.Index))
	return r.Run(tb, r.Objects.HairpinTc, context, data)
}

// XDP runs a frame that came in by p through the XDP program.
func (r *Rig) XDP(tb testing.TB, p Port, data []byte) Answer {
	tb.Helper()
	context := make([]byte, 24) // struct xdp_md
	binary.NativeEndian.PutUint32(context[4:], uint32(len(data)))
	binary.NativeEndian.PutUint32(context[12:], uint32(p.Index))
	return r.Run(tb, r.Objects.HairpinXdp, context, data)
}

// Run runs a program on a frame, with the context that the program gets.
func (r *Rig) Run(tb testing.TB, program *ebpf.Program, context, data []byte) (a Answer) {
	tb.Helper()
	opts := &ebpf.RunOptions{Data: data, DataOut: make([]byte, len(data)+256), Context: context}
	err := r.Router.Do(func() (err error) {
		a.Code, err = program.Run(opts)
		return err
	})
	if err != nil {
		tb.Fatalf("run %s with %d bytes: %v", program, len(data), err)
	}
	a.Data = opts.DataOut
	return a
}

// Counted is how often a reason was given, on any interface.
func (r *Rig) Counted(tb testing.TB, reason string) (n uint64) {
	tb.Helper()
	counters, err := r.Tables.Counters()
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

// Connections is how many connections there are, half-open ones too.
func (r *Rig) Connections(tb testing.TB) []maps.Connection {
	tb.Helper()
	var list []maps.Connection
	if err := r.Tables.EachConnection(rule.Selector{}, func(c *maps.Connection) { list = append(list, *c) }); err != nil {
		tb.Fatal(err)
	}
	return list
}
