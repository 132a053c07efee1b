// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps"
	"hairpin/maps/config"
	"hairpin/maps/rule"
	"hairpin/test/bench/measure"
	"hairpin/test/bench/traffic"
	"hairpin/test/lab"
)

// stand is a router with the loaded programs of one object. Packets come from BPF_PROG_TEST_RUN, not from a device.
type stand struct {
	tb             testing.TB
	router         *lab.Host
	traffic        *traffic.Traffic
	objs           bpf.HairpinObjects
	wanMAC, lanMAC net.HardwareAddr
}

var standForwards = []string{
	"measured tcp,udp 10000-10099 to 192.168.1.20:20000-20099",
	"measured6 tcp,udp 10000-10099 to [fd00:1::20]:20000-20099",
}

// ownObject names the object that is built into this program.
const ownObject = "-"

// newStand makes a router with two interfaces and loads an object: a file whose maps are equal to this tree's maps, or
// ownObject.
func newStand(tb testing.TB, object string) *stand {
	s := &stand{tb: tb, router: lab.NewHost(tb, "router")}
	wires := lab.NewHost(tb, "wires")
	lab.Cable(s.router, "wan0", wires, "to-wan0")
	lab.Cable(s.router, "lan0", wires, "to-lan0")
	// Fixed MAC addresses: the first byte of a random address would change how the TC program finds the IP header.
	for dev, mac := range map[string]string{"wan0": "02:00:00:00:00:01", "lan0": "02:00:00:00:00:02"} {
		s.router.Run("ip", "link", "set", dev, "address", mac)
	}
	s.wanMAC, s.lanMAC = s.router.HardwareAddr("wan0"), s.router.HardwareAddr("lan0")
	s.router.Sysctl("net/ipv4/ip_forward", "1")
	s.router.Sysctl("net/ipv6/conf/all/disable_ipv6", "0")
	s.router.Sysctl("net/ipv6/conf/all/forwarding", "1")
	for _, dev := range []string{"wan0", "lan0"} {
		s.router.Sysctl("net/ipv6/conf/"+dev+"/disable_ipv6", "0")
	}
	for _, a := range [][2]string{{"wan0", lab.External + "/24"}, {"lan0", lab.RouterLAN + "/24"}, {"wan0", external6.String() + "/64"}, {"lan0", router6.String() + "/64"}} {
		s.router.Run("ip", "address", "add", a[1], "dev", a[0], "nodad")
	}
	for _, ip := range []netip.Addr{server, server6} {
		s.router.Neighbour("lan0", ip, serverMAC)
	}
	for _, ip := range []netip.Addr{client, client6} {
		s.router.Neighbour("lan0", ip, clientMAC)
	}
	s.router.Neighbour("wan0", gateway, gatewayMAC)
	s.router.Route("wan0", "0.0.0.0/0", lab.Gateway, "")

	t, err := traffic.Load()
	s.must("load", err)
	tb.Cleanup(func() { t.Close() })
	s.traffic = t
	s.load(object)
	s.configure()
	return s
}

func (s *stand) must(what string, err error) {
	s.tb.Helper()
	if err != nil {
		s.tb.Fatalf("%s: %v", what, err)
	}
}

func (s *stand) load(object string) {
	s.tb.Helper()
	spec, err := bpf.LoadHairpin()
	if object != ownObject {
		spec, err = ebpf.LoadCollectionSpec(object)
	}
	s.must("read object", err)
	// Maps are looked up by name, also by an earlier name: this code is also built in the tree of a base, which may be older.
	for _, name := range []string{"scratch_packets", "crafts"} {
		if m := spec.Maps[name]; m != nil {
			m.MaxEntries = uint32(ebpf.MustPossibleCPU())
		}
	}
	sizeRings(spec)
	// As on a router whose kernel tracks connections.
	for _, name := range []string{"conntrack_asked", "conntrack_tracks"} {
		if v := spec.Variables[name]; v != nil {
			s.must("set "+name, v.Set(true))
		}
	}
	if err := spec.LoadAndAssign(&s.objs, nil); err != nil {
		s.tb.Fatalf("load object %s: %+v\nIf its maps differ from this tree's maps, give a tree or a revision instead of the object file.", object, err)
	}
	s.tb.Cleanup(func() { s.objs.Close() })
}

// sizeRings gives every ring places for all connections of the run. It uses map names and the byte offsets of struct ring
// (bpf/types.h), not Go types: this code is also built in the tree of a base, which may have no rings.
func sizeRings(spec *ebpf.CollectionSpec) {
	rings := spec.Maps["rings"]
	if rings == nil {
		return
	}
	const families, places = 2, 1 << 16
	kinds := rings.MaxEntries / families
	shared := spec.Maps["places"] != nil // both families have their places in one map
	rings.Contents = nil
	for index := range rings.MaxEntries {
		base := index / families * places
		if shared {
			base = index * places
		}
		ring := make([]byte, rings.ValueSize)
		for i, value := range []uint32{base, places, places} { // base, size, limit
			binary.NativeEndian.PutUint32(ring[16+4*i:], value)
		}
		rings.Contents = append(rings.Contents, ebpf.MapKV{Key: index, Value: ring})
	}
	if !shared { // a base from before the datapath had its own tables
		spec.Maps["places4"].MaxEntries, spec.Maps["places6"].MaxEntries = kinds*places, kinds*places
		spec.Maps["conns4"].MaxEntries, spec.Maps["conns6"].MaxEntries = 4*places, 4*places
		return
	}
	spec.Maps["places"].MaxEntries = families * kinds * places
	const buckets = 157291 // a prime number; three fifths of 4 * places
	table := make([]byte, spec.Maps["tables"].ValueSize)
	rand.Read(table)
	for i, name := range []string{"conns4", "conns6"} {
		spec.Maps[name].MaxEntries = buckets
		binary.NativeEndian.PutUint32(table[len(table)-8+4*i:], buckets)
	}
	spec.Maps["tables"].Contents = []ebpf.MapKV{{Key: uint32(0), Value: table}}
}

func (s *stand) configure() {
	s.tb.Helper()
	tables := maps.New(&s.objs)
	cfg := config.Default()
	cfg.WAN, cfg.LAN = []string{"wan0"}, []string{"lan0"}
	cfg.MaxPerSource = cfg.MaxConnections
	// The flows keep their ports. A base may be older than the field.
	if field := reflect.ValueOf(&cfg).Elem().FieldByName("ReflectPorts"); field.IsValid() {
		field.Set(reflect.ValueOf(rule.Ports{First: 1024, Last: 65535}))
	}
	for _, words := range standForwards {
		forward, err := rule.ParseForward(strings.Fields(words))
		s.must("read forward", err)
		cfg.Forwards = append(cfg.Forwards, forward)
	}
	_, err := tables.Apply(cfg)
	s.must("apply", err)
	interfaces := []config.Interface{
		{Name: "wan0", Index: s.router.Index("wan0"), Role: config.RoleWAN, HardwareAddr: s.wanMAC, XDPTransmit: true,
			Addresses: []netip.Prefix{netip.PrefixFrom(external, 24), netip.PrefixFrom(external6, 64)}},
		{Name: "lan0", Index: s.router.Index("lan0"), Role: config.RoleLAN, HardwareAddr: s.lanMAC, XDPTransmit: true,
			Addresses: []netip.Prefix{netip.PrefixFrom(router, 24), netip.PrefixFrom(router6, 64)}},
	}
	// A devmap looks up an ifindex in the network namespace of the writer, so the router writes.
	s.must("set interfaces", s.router.Do(func() error { return tables.SetInterfaces(interfaces) }))
}

// program returns the program of a hook.
func (s *stand) program(hook traffic.Hook) *ebpf.Program {
	if hook == traffic.XDP {
		return s.objs.HairpinXdp
	}
	return s.objs.HairpinTc
}

// prepare makes the connections of a kind, or looks up the next hops of existing connections again.
func (s *stand) prepare(k kind) error {
	for _, stream := range k.prepare {
		if err := s.traffic.Set(stream); err != nil {
			return err
		}
		err := s.router.Do(func() error {
			packets := uint32(stream.Flows * len(stream.Frames))
			code, err := s.traffic.Run(traffic.TC, s.objs.HairpinTc, s.router.Index(k.in), stream.Frames[0].Data, packets)
			if err == nil && code != measure.TCRedirect {
				err = fmt.Errorf("the program returned %d, want %d", int32(code), measure.TCRedirect)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("prepare %s: %w", k.name, err)
		}
	}
	return nil
}

// size is the size of a program: verified instructions, translated bytes, jitted bytes.
type size struct {
	Verified uint32 `json:"verified_instructions"`
	Xlated   int    `json:"xlated_bytes"`
	Jited    uint32 `json:"jited_bytes"`
}

func sizeOf(p *ebpf.Program) (size, error) {
	info, err := p.Info()
	if err != nil {
		return size{}, fmt.Errorf("look at %s: %w", p, err)
	}
	verified, _ := info.VerifiedInstructions()
	xlated, err := info.TranslatedSize()
	if err != nil {
		return size{}, fmt.Errorf("look at %s: %w", p, err)
	}
	jited, err := info.JitedSize()
	if err != nil {
		return size{}, fmt.Errorf("look at %s: %w", p, err)
	}
	return size{verified, xlated, jited}, nil
}
