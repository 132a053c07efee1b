// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Host is a machine of a lab: one network namespace. If a method fails, it ends the test, unless it returns an error.
type Host struct {
	Name string

	tb testing.TB
	fd int
	nl *netlink.Handle
}

// NewHost makes a host with its loopback up. IPv6 is off, so that a cable carries only packets that a test sends. The host
// exists until the test ends.
func NewHost(tb testing.TB, name string) *Host {
	tb.Helper()
	NeedRoot(tb)
	fd, err := newNamespace()
	if err != nil {
		tb.Fatalf("make host %s: %v", name, err)
	}
	h := &Host{Name: name, tb: tb, fd: fd}
	tb.Cleanup(func() { unix.Close(fd) })

	h.nl, err = netlink.NewHandleAt(netns.NsHandle(fd), unix.NETLINK_ROUTE)
	h.must("open netlink", err)
	tb.Cleanup(h.nl.Close)

	h.Up("lo")
	h.Sysctl("net/ipv6/conf/all/disable_ipv6", "1")
	h.Sysctl("net/ipv6/conf/default/disable_ipv6", "1")
	h.speakFreely()
	return h
}

// speakFreely removes the rate limits on ICMP: with them, the kernel would not send most ICMP errors that a test expects.
func (h *Host) speakFreely() {
	h.tb.Helper()
	h.Sysctl("net/ipv4/icmp_ratelimit", "0")
	// Before Linux 6.12 there is one limit for all namespaces; only the initial namespace has the sysctl.
	h.must("lift limit of ICMP", h.Do(func() error {
		for _, key := range []string{"icmp_msgs_per_sec", "icmp_msgs_burst"} {
			err := os.WriteFile("/proc/sys/net/ipv4/"+key, []byte("1000000"), 0)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return nil
	}))
}

func newNamespace() (int, error) {
	type result struct {
		fd  int
		err error
	}
	made := make(chan result)
	go func() {
		// Never unlocked: the thread ends with the goroutine. The descriptor keeps the namespace alive.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{err: fmt.Errorf("unshare network: %w", err)}
			return
		}
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		made <- result{fd, err}
	}()
	r := <-made
	return r.fd, r.err
}

// Do runs fn on a thread in the host's namespace. Sockets that fn opens stay in this namespace. Goroutines that fn starts
// run outside.
func (h *Host) Do(fn func() error) error {
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own namespace: %w", err)
	}
	defer unix.Close(home)
	if err := unix.Setns(h.fd, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter host %s: %w", h.Name, err)
	}
	defer func() {
		// A thread that cannot return to its own namespace stays locked, and ends with its goroutine.
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return fn()
}

// Cable joins two hosts by a veth pair, and sets both ends up.
func Cable(a *Host, aName string, b *Host, bName string) {
	a.tb.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = aName
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(b.fd)}
	a.must("add veth "+aName, a.nl.LinkAdd(pair))
	a.Up(aName)
	b.Up(bName)
}

// Bridge makes a bridge of these ports.
func (h *Host) Bridge(name string, ports ...string) {
	h.tb.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	quiet := false // snooping makes the bridge itself send IGMP reports
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &quiet}
	h.must("add bridge "+name, h.nl.LinkAdd(bridge))
	for _, port := range ports {
		h.must("add port "+port, h.nl.LinkSetMaster(h.link(port), bridge))
	}
	h.Up(name)
}

// Plug adds a port to a bridge.
func (h *Host) Plug(bridge, port string) {
	h.tb.Helper()
	h.must("add port "+port, h.nl.LinkSetMaster(h.link(port), h.link(bridge)))
}

// Unmaster takes a port out of its bridge.
func (h *Host) Unmaster(port string) {
	h.tb.Helper()
	h.must("take "+port+" out", h.nl.LinkSetNoMaster(h.link(port)))
}

// Move moves an interface to another host. The interface is then down and has no addresses.
func (h *Host) Move(dev string, to *Host) {
	h.tb.Helper()
	h.must("move "+dev, h.nl.LinkSetNsFd(h.link(dev), to.fd))
}

// Adopt takes an interface from the network namespace of the test process, such as a device of a virtual machine, and gives it a
// name. The interface has no addresses.
func (h *Host) Adopt(mac net.HardwareAddr, name string) {
	h.tb.Helper()
	list, err := netlink.LinkList()
	h.must("list links", err)
	at := slices.IndexFunc(list, func(l netlink.Link) bool { return bytes.Equal(l.Attrs().HardwareAddr, mac) })
	if at < 0 {
		h.tb.Fatalf("%s: no interface has the MAC address %s", h.Name, mac)
	}
	h.must("adopt "+mac.String(), errors.Join(
		netlink.LinkSetDown(list[at]), netlink.LinkSetName(list[at], name), netlink.LinkSetNsFd(list[at], h.fd)))
	h.Up(name)
}

// GiveBack returns an interface that the host has adopted. Its name is then one that no host uses.
func (h *Host) GiveBack(dev string) {
	h.tb.Helper()
	own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	h.must("open own namespace", err)
	defer unix.Close(own)
	link := h.link(dev)
	mac := link.Attrs().HardwareAddr
	h.must("give back "+dev, errors.Join(
		h.nl.LinkSetDown(link), h.nl.LinkSetName(link, fmt.Sprintf("card-%x", []byte(mac[4:]))), h.nl.LinkSetNsFd(link, own)))
}

// Rename gives an interface another name. Linux before 6.2 renames only an interface that is down.
func (h *Host) Rename(dev, name string) {
	h.tb.Helper()
	h.Down(dev)
	h.must("rename "+dev, h.nl.LinkSetName(h.link(dev), name))
	h.Up(name)
}

// Down sets an interface down.
func (h *Host) Down(dev string) {
	h.tb.Helper()
	h.must("set "+dev+" down", h.nl.LinkSetDown(h.link(dev)))
}

// Up sets interfaces up.
func (h *Host) Up(names ...string) {
	h.tb.Helper()
	for _, name := range names {
		h.must("set "+name+" up", h.nl.LinkSetUp(h.link(name)))
	}
}

// Unplug deletes an interface, and so also the other end of its cable.
func (h *Host) Unplug(name string) {
	h.tb.Helper()
	h.must("delete "+name, h.nl.LinkDel(h.link(name)))
}

// Address adds addresses, written as prefixes, to an interface.
func (h *Host) Address(dev string, prefixes ...string) {
	h.tb.Helper()
	for _, prefix := range prefixes {
		h.must("add address "+prefix, h.nl.AddrAdd(h.link(dev), h.address(prefix)))
	}
}

// Unaddress removes addresses from an interface.
func (h *Host) Unaddress(dev string, prefixes ...string) {
	h.tb.Helper()
	for _, prefix := range prefixes {
		h.must("delete address "+prefix, h.nl.AddrDel(h.link(dev), h.address(prefix)))
	}
}

// Route sets a route through an interface; gateway and source may be empty.
func (h *Host) Route(dev, prefix, gateway, source string) {
	h.tb.Helper()
	_, dst, err := net.ParseCIDR(prefix)
	h.must("parse route", err)
	route := &netlink.Route{LinkIndex: h.Index(dev), Dst: dst, Gw: net.ParseIP(gateway), Src: net.ParseIP(source)}
	if gateway == "" {
		route.Scope = netlink.SCOPE_LINK
	}
	h.must("set route to "+prefix, h.nl.RouteReplace(route))
}

// Neighbour adds a permanent neighbour entry.
func (h *Host) Neighbour(dev string, ip netip.Addr, mac net.HardwareAddr) {
	h.tb.Helper()
	h.must("set neighbour "+ip.String(), h.nl.NeighSet(&netlink.Neigh{
		LinkIndex: h.Index(dev), IP: ip.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT,
	}))
}

// HardwareAddr returns an interface's MAC address.
func (h *Host) HardwareAddr(dev string) net.HardwareAddr {
	h.tb.Helper()
	return h.link(dev).Attrs().HardwareAddr
}

// SetHardwareAddr changes an interface's MAC address.
func (h *Host) SetHardwareAddr(dev string, mac net.HardwareAddr) {
	h.tb.Helper()
	h.must("set MAC address", h.nl.LinkSetHardwareAddr(h.link(dev), mac))
}

// MTU sets the MTU of an interface. A cable carries a packet only if both ends have a sufficient MTU.
func (h *Host) MTU(dev string, mtu int) {
	h.tb.Helper()
	h.must(fmt.Sprintf("set MTU %d of %s", mtu, dev), h.nl.LinkSetMTU(h.link(dev), mtu))
}

// Announce makes the host announce the MSS for this MTU on every route. Its peers may then send larger segments than the path
// allows, so that only path MTU discovery makes the segments smaller.
func (h *Host) Announce(mtu int) {
	h.tb.Helper()
	routes, err := h.nl.RouteList(nil, netlink.FAMILY_V4)
	h.must("list routes", err)
	for _, route := range routes {
		route.AdvMSS = mtu - 40
		h.must(fmt.Sprintf("announce MSS on %v", route), h.nl.RouteReplace(&route))
	}
}

// Index returns an interface's index.
func (h *Host) Index(dev string) int {
	h.tb.Helper()
	return h.link(dev).Attrs().Index
}

// Links returns the host's interfaces by name.
func (h *Host) Links() map[string]netlink.Link {
	h.tb.Helper()
	list, err := h.nl.LinkList()
	h.must("list links", err)
	links := make(map[string]netlink.Link)
	for _, link := range list {
		links[link.Attrs().Name] = link
	}
	return links
}

// Attached returns the ids of the TC programs and of the XDP program on an interface.
func (h *Host) Attached(dev string) (tc []ebpf.ProgramID, xdp uint32) {
	h.tb.Helper()
	h.must("query programs of "+dev, h.Do(func() error {
		result, err := link.QueryPrograms(link.QueryOptions{Target: h.Index(dev), Attach: ebpf.AttachTCXIngress})
		if err != nil {
			return err
		}
		for _, p := range result.Programs {
			tc = append(tc, p.ID)
		}
		return nil
	}))
	if state := h.Links()[dev].Attrs().Xdp; state != nil && state.Attached {
		xdp = state.ProgId
	}
	return tc, xdp
}

// Qdiscs returns the qdiscs of an interface.
func (h *Host) Qdiscs(dev string) []netlink.Qdisc {
	h.tb.Helper()
	list, err := h.nl.QdiscList(h.link(dev))
	h.must("list qdiscs", err)
	return list
}

// Sysctl writes a sysctl of the host's network namespace; key is a path below /proc/sys.
func (h *Host) Sysctl(key, value string) {
	h.tb.Helper()
	h.must("set "+key, h.Do(func() error {
		return os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0)
	}))
}

// SNMP returns a counter of /proc/net/snmp, such as "Tcp InCsumErrors".
func (h *Host) SNMP(protocol, counter string) string {
	h.tb.Helper()
	var text []byte
	h.must("read counters", h.Do(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/snmp")
		return err
	}))
	var names []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if fields[0] != protocol+":" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, name := range names {
			if name == counter {
				return fields[i]
			}
		}
	}
	h.tb.Fatalf("%s: no counter %s %s", h.Name, protocol, counter)
	return ""
}

// Feature is the ethtool ioctl command that switches an offload: linux/ethtool.h, ETHTOOL_S*.
type Feature uint32

const (
	TransmitChecksum Feature = 0x17 // switches TSO off, too: TSO needs checksum offload
	ReceiveOffload   Feature = 0x2c // GRO
)

// Offload switches a feature of an interface on or off.
func (h *Host) Offload(dev string, feature Feature, on bool) {
	h.tb.Helper()
	value := struct{ command, data uint32 }{command: uint32(feature)}
	if on {
		value.data = 1
	}
	h.must(fmt.Sprintf("ethtool %s", dev), h.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		var request struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}
		copy(request.name[:unix.IFNAMSIZ-1], dev)
		request.data = unsafe.Pointer(&value)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
		if errno != 0 {
			return errno
		}
		return nil
	}))
}

func (h *Host) link(name string) netlink.Link {
	h.tb.Helper()
	link, err := h.nl.LinkByName(name)
	h.must("find "+name, err)
	return link
}

func (h *Host) address(prefix string) *netlink.Addr {
	h.tb.Helper()
	if _, err := netip.ParsePrefix(prefix); err != nil {
		h.tb.Fatalf("%s: %v", h.Name, err)
	}
	addr, err := netlink.ParseAddr(prefix)
	h.must("parse address", err)
	return addr
}

func (h *Host) must(what string, err error) {
	h.tb.Helper()
	if err != nil {
		h.tb.Fatalf("%s: %s: %v", h.Name, what, err)
	}
}
