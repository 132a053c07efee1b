// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/features"
	"github.com/vishvananda/netlink"

	"hairpin/test/home"
	"hairpin/test/kernels/cards"
	"hairpin/test/lab"
)

const (
	virtioBytes     = 2 << 20 // go over a TCP connection, each way
	virtioDatagrams = 200
	// severalBuffers is LINUX_VERSION_CODE of the kernel whose virtio-net gives XDP frames of several buffers, 6.3.
	severalBuffers = 6<<16 | 3<<8
)

// How the programs run on a device.
const (
	native  = "xdp + tc"
	generic = "generic xdp + tc"
	alone   = "tc"
)

// Reasons in the status.
const (
	refusedOffloads = "no native XDP: the driver does not support it, or not with its present offloads (LRO, GRO_HW)"
	refusedMTU      = "no native XDP: the driver refuses the program; perhaps the MTU is too large for the driver"
	hiddenTags      = "no XDP: on a vlan device VLAN tags may travel outside the frame, where XDP does not see them"
)

// card is a virtio-net device of the router, and what is expected of it.
type card struct {
	sort     string
	programs string
	whyNot   string // why there is no native XDP
	// Frames arrive with partial checksums, and longer than the MTU. Not known where native XDP redirects nearly all frames of
	// established connections, before a capture sees them.
	partial, long, redirects bool
}

var (
	cardTC      = card{sort: cards.Offloads, programs: alone, partial: true, long: true}
	cardShort   = card{sort: cards.Offloads, programs: alone, partial: true}
	cardBare    = card{sort: cards.Offloads, programs: alone}
	cardNative  = card{sort: cards.Offloads, programs: native, redirects: true}
	cardNotYet  = card{sort: cards.Offloads, programs: native} // leaves all frames to TC: they go to a device without XDP
	cardTagged  = card{sort: cards.Offloads, programs: alone, whyNot: hiddenTags, partial: true, long: true}
	cardJumbo   = card{sort: cards.OneQueue, programs: native, redirects: true}
	cardNone    = card{sort: cards.NoOffloads, programs: native, redirects: true}
	cardChained = card{sort: cards.ChainedBuffers, programs: native}
	cardFixed   = card{sort: cards.FixedOffloads, programs: alone, whyNot: refusedOffloads, partial: true, long: true}
	cardGeneric = card{sort: cards.FixedOffloads, programs: generic, whyNot: refusedOffloads, partial: true, long: true}
)

// jumbo is an MTU for which a frame needs several pages.
const jumbo = 9000

// virtioRow is a configuration of the router's virtio-net devices.
type virtioRow struct {
	name     string
	mode     string
	wan, lan card
	mtu      int  // 0: 1500
	bulk     bool // megabytes go over one connection
	cable    bool // clients and servers are in the other LAN, too, which is a veth
	tagged   bool // wan0 and lan1 are VLAN devices on the cards
	beside   bool // for a while there is a VLAN beside the WAN, on the same card
	// The router's devices, and those of the hosts, have these settings of ethtool -K.
	router, hosts string
}

var virtioRows = []virtioRow{
	{name: "offloads, tc", mode: "tc", bulk: true, cable: true, wan: cardTC, lan: cardTC},
	{name: "router sends without offloads", mode: "tc", wan: cardTC, lan: cardTC, router: "tx off"},
	{name: "router receives no long frames", mode: "tc", wan: cardShort, lan: cardShort, router: "rx-gro-hw off"},
	{name: "hosts send without offloads", mode: "tc", wan: cardBare, lan: cardBare, hosts: "tx off"},
	{name: "offloads, auto", mode: "auto", cable: true, wan: cardNative, lan: cardNative, beside: true},
	{name: "VLAN devices, xdp", mode: "xdp", wan: cardTagged, lan: cardTagged, tagged: true},
	{name: "no offloads, xdp", mode: "xdp", wan: cardNone, lan: cardNone},
	{name: "chained buffers, auto", mode: "auto", wan: cardChained, lan: cardChained},
	{name: "fixed offloads, auto", mode: "auto", wan: cardFixed, lan: cardFixed},
	{name: "fixed offloads, xdp", mode: "xdp", bulk: true, cable: true, wan: cardGeneric, lan: cardGeneric},
	{name: "XDP on the WAN alone", mode: "auto", wan: cardNotYet, lan: cardFixed},
	{name: "MTU 9000, auto", mode: "auto", bulk: true, wan: cardJumbo, lan: cardJumbo, mtu: jumbo},
	{name: "MTU 9000, xdp", mode: "xdp", bulk: true, wan: cardJumbo, lan: cardJumbo, mtu: jumbo},
}

// on returns what is expected on a kernel.
func (r virtioRow) on(version uint32) virtioRow {
	if r.mtu != jumbo || version >= severalBuffers {
		return r
	}
	// The driver refuses XDP if frames of the MTU do not fit into a page. So its receive offloads stay.
	refused := card{sort: r.wan.sort, programs: alone, whyNot: refusedMTU, partial: true, long: true}
	if r.mode == "xdp" {
		// For generic XDP the kernel switches GRO_HW off, where it can.
		refused.programs, refused.long = generic, false
	}
	r.wan, r.lan = refused, refused
	return r
}

// TestVirtio: both the WAN and a LAN are virtio-net devices.
func TestVirtio(t *testing.T) {
	if !hasCards(t) {
		lacking(t, "no virtio-net devices of boot")
	}
	version, err := features.LinuxVersionCode()
	if err != nil {
		t.Fatal(err)
	}
	n := newDeviceNetwork(t)
	hp := lab.NewHairpin(n.Router, virtioConfig("tc"))
	hp.Start()
	for i, row := range virtioRows {
		t.Run(row.name, func(t *testing.T) {
			before := virtioRow{}
			if i > 0 {
				before = virtioRows[i-1]
			}
			row.on(version).test(t, n.For(t), hp.For(t), before)
		})
	}
}

func hasCards(t *testing.T) bool {
	t.Helper()
	list, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range list {
		if bytes.Equal(link.Attrs().HardwareAddr, cards.MAC(cards.Host, 1)) {
			return true
		}
	}
	return false
}

// virtioConfig is deviceConfig with more lines in the table datapath.
func virtioConfig(mode string, datapath ...string) string {
	const key = "mode = %q\n"
	config := strings.Replace(deviceConfig, key, key+strings.Join(append(datapath, ""), "\n"), 1)
	return fmt.Sprintf(config, mode)
}

// join makes a line of virtio-net devices.
func (r virtioRow) join(_ *testing.T, l line) {
	sort := r.cards()[l.number-1].sort
	if !r.tagged {
		l.adopt(sort, l.routerDev, l.hostDev)
		l.each(func(*lab.Host, string) {})
		return
	}
	l.adopt(sort, lower(l.routerDev), lower(l.hostDev))
	l.tag()
}

// adopt takes the devices of the line's wire, and gives them these names. Receivers do not join frames.
func (l line) adopt(sort, routerDev, hostDev string) {
	l.router.Adopt(cards.MAC(sort, l.number), routerDev)
	l.router.Offload(routerDev, lab.ReceiveOffload, false)
	l.host.Adopt(cards.MAC(cards.Host, l.number), hostDev)
	l.host.Offload(hostDev, lab.ReceiveOffload, false)
}

func (r virtioRow) test(t *testing.T, n *lab.Network, hp *lab.Hairpin, before virtioRow) {
	if before.wan.sort != r.wan.sort || before.lan.sort != r.lan.sort || before.mtu != r.mtu || before.tagged != r.tagged {
		// A driver that refuses a large MTU with XDP does not refuse the MTU later.
		hp.Write(virtioConfig("tc"))
		hp.Reload()
		lay(t, n, kind{name: r.name, join: r.join})
		r.stretch(n)
	}
	r.set(t, n)
	hp.Write(virtioConfig(r.mode))
	hp.Reload()
	r.attached(t, hp)
	atRouter := [2]*frames{watchFrames(n.Router.CaptureEarly, "wan0"), watchFrames(n.Router.CaptureEarly, "lan1")}
	atHosts := [2]*frames{watchFrames(n.Internet.Capture, "eth0"), watchFrames(n.Guest.Capture, "eth0")}
	if r.mtu == jumbo && r.wan.programs == native {
		t.Run("short frames first", func(t *testing.T) { useUp(t, n.For(t)) })
	}
	r.travel(t, n)
	for i, c := range r.cards() {
		partial, long := atRouter[i].Stop().Partial > 0, atRouter[i].longest() > r.length()
		if !c.redirects && (partial != c.partial || long != c.long) {
			t.Errorf("wire %d: frames arrived at the router with partial checksums: %v, longer than the MTU: %v; want %v, %v", i+1, partial, long, c.partial, c.long)
		}
		if stats := atHosts[i].Stop(); stats.Partial > 0 {
			t.Errorf("wire %d: %d frames arrived at the host with partial checksums", i+1, stats.Partial)
		}
		if got := atHosts[i].longest(); got != r.length() {
			t.Errorf("wire %d: the longest packet at the host had %d bytes, want %d", i+1, got, r.length())
		}
	}
	server := n.Guest.ServeUDP(lab.Guest + ":8080")
	if r.wan.redirects {
		redirected(t, n)
	}
	if r.beside {
		vlanBeside(t, n, server)
		r.attached(t, hp)
	}
}

// cards returns the router's cards: wire 1 is the WAN, wire 2 the LAN.
func (r virtioRow) cards() [cards.Wires]card { return [...]card{r.wan, r.lan} }

// travel sends between the wires. It sends to the other LAN, and from it, only if the MTU is the same there: the forwards have one external
// address, and a client that knows the path to be narrow sends small packets to all of them.
func (r virtioRow) travel(t *testing.T, n *lab.Network) {
	ways := slices.DeleteFunc(trips(n), func(w trip) bool {
		return !r.cable && (w.from == n.Client || w.server == n.Server)
	})
	travel(t, n, ways)
	for _, w := range ways {
		if r.bulk && (w.name == "WAN to LAN" || w.name == "hairpin") {
			w.bulk(t)
		}
	}
}

func (r virtioRow) length() int { return max(r.mtu, 1500) }

func (r virtioRow) stretch(n *lab.Network) {
	n.Router.MTU("wan0", r.length())
	n.Router.MTU("lan1", r.length())
	n.Internet.MTU("eth0", r.length())
	n.Guest.MTU("eth0", r.length())
}

// set makes the row's settings of ethtool, until the row ends.
func (r virtioRow) set(t *testing.T, n *lab.Network) {
	for _, e := range []struct {
		host          *lab.Host
		dev, settings string
	}{{n.Router, "wan0", r.router}, {n.Router, "lan1", r.router}, {n.Internet, "eth0", r.hosts}, {n.Guest, "eth0", r.hosts}} {
		if feature, _, _ := strings.Cut(e.settings, " "); feature != "" {
			e.host.Run(append([]string{"ethtool", "-K", e.dev}, strings.Fields(e.settings)...)...)
			t.Cleanup(func() { e.host.Run("ethtool", "-K", e.dev, feature, "on") })
		}
	}
}

// attached checks what the status says of the programs.
func (r virtioRow) attached(t *testing.T, hp *lab.Hairpin) {
	t.Helper()
	var d struct {
		Status struct {
			Interfaces []struct{ Name, Mode, Reason string }
		}
	}
	if err := json.Unmarshal([]byte(hp.Run("--json", "status")), &d); err != nil {
		t.Fatal(err)
	}
	want := map[string][2]string{"wan0": {r.wan.programs, r.wan.whyNot}, "lan1": {r.lan.programs, r.lan.whyNot}}
	for _, i := range d.Status.Interfaces {
		hooks := strings.NewReplacer("tcx", "tc", "clsact", "tc", "xdp-generic+", "generic xdp + ", "xdp+", "xdp + ").Replace(i.Mode)
		if w, known := want[i.Name]; known && w != [2]string{hooks, i.Reason} {
			t.Errorf("%s: %q, reason %q; want %q, reason %q", i.Name, hooks, i.Reason, w[0], w[1])
		}
		delete(want, i.Name)
	}
	if len(want) > 0 {
		t.Errorf("the status lacks %v", want)
	}
}

// frames counts the packets that arrive at an interface, and checks their checksums.
type frames struct {
	*lab.Capture
	most int
}

func watchFrames(capture func(string, func(*lab.Packet) error) *lab.Capture, dev string) *frames {
	f := new(frames)
	f.Capture = capture(dev, func(p *lab.Packet) error {
		f.most = max(f.most, p.Length)
		return nil
	})
	return f
}

// longest returns the length of the longest packet. The capture has stopped.
func (f *frames) longest() int { return f.most }

// bulk sends much over one connection, in both directions.
func (w trip) bulk(t *testing.T) {
	t.Helper()
	c, err := w.from.DialTCP(w.to, w.local(), lab.Patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Upload(virtioBytes); err != nil {
		t.Errorf("%s: %v", w.name, err)
	}
	if err := c.Download(virtioBytes); err != nil {
		t.Errorf("%s: %v", w.name, err)
	}
}

// useUp has the router's devices use up the receive buffers that the driver made before XDP was attached. They have no room for what XDP
// needs. The driver drops a long frame that arrives in such buffers, until all of them were used: mergeable_xdp_get_buf calls this
// a transient failure.
func useUp(t *testing.T, n *lab.Network) {
	n.Guest.ServeUDP(lab.Guest + ":8080")
	c, err := n.Internet.DialUDP(lab.External+":81", "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	lab.Eventually(t, lab.Patience, func() error { return echo(c, 100, time.Second) })
	if _, err := lab.Exchange(c, 2*cards.Ring, 100); err != nil {
		t.Error(err)
	}
}

// redirected checks that XDP sends the datagrams of an established connection, before a capture could see them. XDP leaves a datagram to
// TC when the next hop is not known yet, and once in a second.
func redirected(t *testing.T, n *lab.Network) {
	t.Helper()
	for _, from := range []*lab.Host{n.Internet, n.Guest} {
		c, err := from.DialUDP(lab.External+":81", "")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		local := netip.MustParseAddrPort(c.LocalAddr().String()).Addr()
		if err := echo(c, 1000, lab.Patience); err != nil {
			t.Fatal(err)
		}
		seen := [2]*lab.Capture{n.Router.CaptureEarly("wan0", nil), n.Router.CaptureEarly("lan1", nil)}
		if _, err := lab.Exchange(c, virtioDatagrams, virtioDatagrams); err != nil {
			t.Errorf("from %v: %v", local, err)
		}
		for i, capture := range seen {
			if packets := capture.Stop().Packets; packets > virtioDatagrams/4 {
				t.Errorf("from %v, wire %d: XDP left %d packets to TC, of an exchange of %d datagrams", local, i+1, packets, virtioDatagrams)
			}
		}
	}
}

// vlanBeside adds VLAN 5 to the WAN's wire. virtio-net leaves tags in frames, so XDP sees them, and stays. A tagged frame belongs to the
// VLAN device, though its addresses and ports are those of a forward.
func vlanBeside(t *testing.T, n *lab.Network, server *lab.Echoer) {
	t.Helper()
	for h, e := range map[*lab.Host][2]string{n.Router: {"wan0", "10.5.0.1/24"}, n.Internet: {"eth0", "10.5.0.2/24"}} {
		h.Run("ip", "link", "add", "link", e[0], "name", "vlan5", "type", "vlan", "id", "5")
		h.Up("vlan5")
		h.Address("vlan5", e[1])
		defer h.Run("ip", "link", "del", "vlan5")
	}
	n.Router.ServeUDP("10.5.0.1:7000")
	inVLAN, err := n.Internet.DialUDP("10.5.0.1:7000", "")
	if err != nil {
		t.Fatal(err)
	}
	defer inVLAN.Close()
	lab.Eventually(t, lab.Patience, func() error { return echo(inVLAN, 1000, time.Second) })

	before := datagrams(server)
	n.Internet.Neighbour("vlan5", home.ExternalAddress, n.Router.HardwareAddr("wan0"))
	n.Internet.Route("vlan5", lab.External+"/32", "", lab.InternetSource)
	arrived := n.Router.Watch("vlan5", func(p *lab.Packet) bool { return p.Dst.Port() == 81 })
	tagged, err := n.Internet.DialUDP(lab.External+":81", lab.InternetSource+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer tagged.Close()
	if _, err := tagged.Write([]byte("with a tag")); err != nil {
		t.Fatal(err)
	}
	if _, err := arrived.Next(lab.Patience); err != nil {
		t.Errorf("the VLAN device: %v", err)
	}
	if got := datagrams(server) - before; got > 0 {
		t.Errorf("the server got %d datagrams of a VLAN that forwards nothing", got)
	}
}

func datagrams(server *lab.Echoer) (count int) {
	for _, tally := range server.Seen() {
		count += tally.Datagrams
	}
	return count
}
