// SPDX-License-Identifier: Apache-2.0

// Package rig loads the programs for a router and runs single packets through them by BPF_PROG_TEST_RUN. No program is attached, so
// no packet comes from a wire or goes to a wire.
package rig

import (
	"encoding/binary"
	"fmt"
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

// The verdicts of TC and XDP programs: linux/pkt_cls.h and linux/bpf.h.
const (
	TCUnspec   = ^uint32(0)
	TCShot     = 2
	TCRedirect = 7

	XDPDrop     = 1
	XDPPass     = 2
	XDPTx       = 3
	XDPRedirect = 4
)

// The rig's network.
var (
	WANAddress   = netip.MustParseAddr("203.0.113.1")
	LANAddress   = netip.MustParseAddr("192.168.1.1")
	OtherAddress = netip.MustParseAddr("192.168.2.1")
	InternetHost = netip.MustParseAddr("198.51.100.7")
	Server       = netip.MustParseAddr("192.168.1.20")
	BasicServer  = netip.MustParseAddr("192.168.1.21") // target of BasicAddress, for protocols without ports
	BasicAddress = netip.MustParseAddr("203.0.113.9")
	DMZServer    = netip.MustParseAddr("192.168.1.22") // target of DMZAddress, for every protocol
	DMZAddress   = netip.MustParseAddr("203.0.113.10")
	Client       = netip.MustParseAddr("192.168.1.50")
	OtherClient  = netip.MustParseAddr("192.168.2.60")

	WANMAC   = net.HardwareAddr{2, 0, 0, 0, 1, 1} // MAC addresses of the router's interfaces
	LANMAC   = net.HardwareAddr{2, 0, 0, 0, 1, 2}
	OtherMAC = net.HardwareAddr{2, 0, 0, 0, 1, 3}

	GatewayMAC     = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	ServerMAC      = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	ClientMAC      = net.HardwareAddr{2, 0, 0, 0, 0, 3}
	OtherClientMAC = net.HardwareAddr{2, 0, 0, 0, 0, 4}
)

// Rig is a router with the loaded programs, for single packets by BPF_PROG_TEST_RUN. The router has three interfaces, resolved
// neighbours and a few forwards.
type Rig struct {
	Router         *lab.Host
	Wires          *lab.Host // the host at the far ends of the router's cables; its interfaces are "to-wan0" and so on
	Objects        bpf.HairpinObjects
	Tables         *maps.Tables
	Config         config.Config
	WAN, LAN, LAN2 Port

	// Back: XDP sends back by lan0 with XDP_TX what came in by lan0. OnlyBack: XDP cannot redirect to lan0, either. Watch writes both.
	Back, OnlyBack bool
}

// Port is an interface of the router.
type Port struct {
	Index int
	MAC   net.HardwareAddr
}

// Answer is a program's verdict, and the packet after the program.
type Answer struct {
	Code uint32
	Data []byte
}

// New returns a rig with room for a few connections.
func New(tb testing.TB, forwards ...string) *Rig {
	tb.Helper()
	return NewFor(tb, 2048, 2048, forwards...)
}

// NewFor returns a rig with room for this many connections and half-open connections.
func NewFor(tb testing.TB, connections, halfOpen uint32, forwards ...string) *Rig {
	tb.Helper()
	spec, err := bpf.LoadHairpin()
	if err != nil {
		tb.Fatal(err)
	}
	return NewOf(tb, spec, connections, halfOpen, forwards...)
}

// NewOf returns a rig with the programs of spec.
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

// Neighbour adds a permanent neighbour entry to the router.
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

// load loads the programs. The maps have room for this many connections. halfOpen is the room for half-open TCP connections, and
// also the room for half-open connections of other protocols.
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
	r.cover(tb, spec)
	if err := spec.LoadAndAssign(&r.Objects, nil); err != nil {
		tb.Fatalf("load programs: %+v", err)
	}
	tb.Cleanup(func() { r.Objects.Close() })
	r.collect(tb)
	r.Tables = maps.New(&r.Objects)
}

func (r *Rig) configure(tb testing.TB, forwards []string) {
	tb.Helper()
	r.Config = config.Default()
	cfg := &r.Config
	cfg.WAN, cfg.LAN = []string{"wan0"}, []string{"lan0", "lan1"}
	cfg.Timeouts.AddressGrace = 0 // connections of an address that goes end at once
	cfg.MaxConnections = maps.ConnectionsLimit(&r.Objects)
	// Reflected clients keep their ports, so that tables of frames can name them.
	cfg.ReflectPorts = rule.Ports{First: 1024, Last: 65535}
	for _, words := range forwards {
		cfg.Forwards = append(cfg.Forwards, MustForward(tb, words))
	}
	r.Apply(tb)
	r.Watch(tb, netip.PrefixFrom(WANAddress, 24), netip.PrefixFrom(BasicAddress, 32), netip.PrefixFrom(DMZAddress, 32))
}

// Watch writes the interfaces into the tables; external are the addresses of wan0.
func (r *Rig) Watch(tb testing.TB, external ...netip.Prefix) {
	tb.Helper()
	r.WatchLAN(tb, LANAddress, external...)
}

// WatchLAN is Watch with this address on lan0.
func (r *Rig) WatchLAN(tb testing.TB, lan netip.Addr, external ...netip.Prefix) {
	tb.Helper()
	interfaces := []config.Interface{
		{Name: "wan0", Index: r.WAN.Index, Role: config.RoleWAN, HardwareAddr: r.WAN.MAC, XDPTransmit: true, RPFilter: 1, Addresses: external},
		{Name: "lan0", Index: r.LAN.Index, Role: config.RoleLAN, HardwareAddr: r.LAN.MAC, XDPTransmit: !r.OnlyBack, XDPBack: r.Back || r.OnlyBack, RPFilter: 1,
			Addresses: []netip.Prefix{netip.PrefixFrom(lan, 24)}},
		{Name: "lan1", Index: r.LAN2.Index, Role: config.RoleLAN, HardwareAddr: r.LAN2.MAC, XDPTransmit: true, RPFilter: 1,
			Addresses: []netip.Prefix{netip.PrefixFrom(OtherAddress, 24)}},
	}
	// A devmap looks up an ifindex in the network namespace of the writer, so the router writes.
	lab.Must(r.Router.Do(func() error { return r.Tables.SetInterfaces(interfaces) }))
}

// Apply makes r.Config the running configuration.
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

// Run runs a program on a frame; context is the program's struct __sk_buff or struct xdp_md.
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

// StartSweeper starts the sweeper on the CPU of the caller. Like the loader, it tries again: the kernel may have no memory ready for the
// timer.
func (r *Rig) StartSweeper(tb interface {
	Helper()
	Fatalf(string, ...any)
}) {
	tb.Helper()
	lab.Eventually(tb, lab.Patience, func() error {
		code, err := r.Objects.HairpinStart.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
		if err == nil && code != 0 {
			err = fmt.Errorf("start sweeper: %d", int32(code))
		}
		return err
	})
}

// Counted returns the sum of the counters of a reason, over all interfaces.
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

// Connections returns all connections, half-open ones too.
func (r *Rig) Connections(tb testing.TB) []maps.Connection {
	tb.Helper()
	var list []maps.Connection
	if err := r.Tables.EachConnection(rule.Selector{}, func(c *maps.Connection) { list = append(list, *c) }); err != nil {
		tb.Fatal(err)
	}
	return list
}
