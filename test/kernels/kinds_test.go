// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hairpin/test/lab"
)

// line connects the router's device to the one of a host, by a kind of device.
type line struct {
	router, host       *lab.Host
	routerDev, hostDev string
	routerNet, hostNet netip.Prefix
	number             byte // among the lines of the router
}

// kind is a kind of device to make a line of. Both ends have their addresses afterwards.
type kind struct {
	name     string
	link     string   // as `ip link add` calls it, to find out whether the kernel has it
	programs []string // that it needs
	tcAlone  bool     // its packets are bare; tun stands for all of those where XDP runs on the cables
	join     func(t *testing.T, l line)
}

var kinds = []kind{
	{name: "veth", link: "veth", join: joinVeth},
	{name: "bridge", link: "bridge", join: joinBridge},
	{name: "VLAN", link: "vlan", join: joinVLAN},
	{name: "bond", link: "bond", join: joinBond},
	{name: "macvlan", link: "macvlan", join: joinMacvlan},
	{name: "vxlan", link: "vxlan", join: joinVxlan},
	{name: "tun", join: joinTun},
	{name: "WireGuard", link: "wireguard", programs: []string{"wg"}, tcAlone: true, join: joinWireGuard},
	{name: "PPP", link: "ppp", programs: []string{"pppd"}, tcAlone: true, join: joinPPP},
	{name: "PPPoE", link: "ppp", programs: []string{"pppd", "pppoe-server"}, tcAlone: true, join: joinPPPoE},
}

func (k kind) modes() []string {
	if k.tcAlone {
		return []string{"tc"}
	}
	return []string{"tc", "xdp"}
}

// need skips the test if the kernel lacks the kind, or the machine the programs for it.
func (k kind) need(t *testing.T) {
	t.Helper()
	for _, program := range k.programs {
		if _, err := exec.LookPath(program); err != nil {
			lacking(t, "%s: %v: sudo make deps-kernels", k.name, err)
		}
	}
	if k.link == "" {
		return
	}
	if err := k.probe(t); err != nil {
		lacking(t, "%s: not in this kernel: %v", k.name, err)
	}
}

// probe asks the kernel for a device without the attributes some kinds need: it complains of those, or
// of the kind.
func (k kind) probe(t *testing.T) error {
	t.Helper()
	r, err := lab.NewHost(t, "probe").Try("ip", "link", "add", "probe", "type", k.link)
	if err == nil && strings.Contains(r.Stderr, "Unknown device type") {
		err = fmt.Errorf("%s", r.Stderr)
	}
	return err
}

// cut removes every device of the line, and what is below.
func (l line) cut(t *testing.T) {
	t.Helper()
	cutAt(t, l.router, l.routerDev)
	cutAt(t, l.host, l.hostDev)
}

func cutAt(t *testing.T, h *lab.Host, dev string) {
	t.Helper()
	for _, name := range []string{dev, lower(dev), second(dev)} {
		// A device may go with one below it, and PPP's with its daemon, at any time.
		if link, there := h.Links()[name]; there && link.Type() == "device" {
			h.GiveBack(name) // a virtio-net device
		} else if there {
			h.Try("ip", "link", "del", name)
		}
		lab.Eventually(t, lab.Patience, func() error {
			if _, there := h.Links()[name]; there {
				return fmt.Errorf("%s: %s is still there", h.Name, name)
			}
			return nil
		})
	}
}

// Names of the cables below a device.
func lower(dev string) string  { return dev + "-a" }
func second(dev string) string { return dev + "-b" }

// cable lays one of the cables below the line's devices.
func (l line) cable(name func(string) string) {
	lab.Cable(l.router, name(l.routerDev), l.host, name(l.hostDev))
}

// each adds the device of both ends, sets it up, and adds its address.
func (l line) each(add func(h *lab.Host, dev string)) {
	for _, e := range l.ends() {
		add(e.host, e.dev)
		e.host.Up(e.dev)
		e.host.Address(e.dev, e.net.String())
	}
}

type end struct {
	host  *lab.Host
	dev   string
	net   netip.Prefix
	under netip.Addr // of this end in the network below
	peer  netip.Addr // of the other end there
}

func (l line) ends() [2]end {
	first, second := netip.AddrFrom4([4]byte{10, 255, l.number, 1}), netip.AddrFrom4([4]byte{10, 255, l.number, 2})
	return [2]end{
		{l.router, l.routerDev, l.routerNet, first, second},
		{l.host, l.hostDev, l.hostNet, second, first},
	}
}

// underlay lays a cable with addresses, for what is carried in packets of another network.
func (l line) underlay() {
	l.cable(lower)
	for _, e := range l.ends() {
		e.host.Address(lower(e.dev), netip.PrefixFrom(e.under, 24).String())
	}
}

func joinVeth(_ *testing.T, l line) {
	lab.Cable(l.router, l.routerDev, l.host, l.hostDev)
	l.each(func(*lab.Host, string) {})
}

// A bridge with two ports, one of which leads nowhere.
func joinBridge(_ *testing.T, l line) {
	l.cable(lower)
	l.each(func(h *lab.Host, dev string) {
		h.Run("ip", "link", "add", second(dev), "type", "veth", "peer", "name", dev+"-none")
		h.Up(second(dev))
		h.Bridge(dev, lower(dev), second(dev))
	})
}

func joinVLAN(_ *testing.T, l line) {
	l.cable(lower)
	l.tag()
}

// tag makes VLAN devices on the cable's ends.
func (l line) tag() {
	l.each(func(h *lab.Host, dev string) {
		h.Run("ip", "link", "add", dev, "link", lower(dev), "type", "vlan", "id", fmt.Sprint(10+l.number))
	})
}

func joinBond(_ *testing.T, l line) {
	l.cable(lower)
	l.cable(second)
	l.each(func(h *lab.Host, dev string) {
		h.Run("ip", "link", "add", dev, "type", "bond", "mode", "balance-xor", "miimon", "100", "xmit_hash_policy", "layer3+4")
		for _, port := range []string{lower(dev), second(dev)} {
			h.Run("ip", "link", "set", port, "down")
			h.Run("ip", "link", "set", port, "master", dev)
		}
	})
}

func joinMacvlan(_ *testing.T, l line) {
	l.cable(lower)
	l.each(func(h *lab.Host, dev string) {
		h.Run("ip", "link", "add", dev, "link", lower(dev), "type", "macvlan", "mode", "bridge")
	})
}

func joinVxlan(_ *testing.T, l line) {
	l.underlay()
	for _, e := range l.ends() {
		e.host.Run("ip", "link", "add", e.dev, "type", "vxlan", "id", fmt.Sprint(100+int(l.number)), "dstport", "4789",
			"dev", lower(e.dev), "local", e.under.String(), "remote", e.peer.String())
	}
	l.each(func(*lab.Host, string) {})
}

func joinTun(_ *testing.T, l line) {
	lab.Tun(l.router, l.routerDev, l.host, l.hostDev)
	l.each(func(*lab.Host, string) {})
}

func joinWireGuard(t *testing.T, l line) {
	l.underlay()
	const port = 51820
	ends := l.ends()
	var files, public [2]string
	for i, e := range ends {
		private := e.host.Run("wg", "genkey")
		public[i] = strings.TrimSpace(e.host.RunInput(private, "wg", "pubkey"))
		files[i] = filepath.Join(t.TempDir(), "private")
		if err := os.WriteFile(files[i], []byte(private), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i, e := range ends {
		e.host.Run("ip", "link", "add", e.dev, "type", "wireguard")
		e.host.Run("wg", "set", e.dev, "listen-port", fmt.Sprint(port+int(l.number)), "private-key", files[i], "peer", public[1-i],
			"allowed-ips", "0.0.0.0/0,::/0", "endpoint", netip.AddrPortFrom(e.peer, port+uint16(l.number)).String())
	}
	l.each(func(*lab.Host, string) {})
}

// joinPPP connects two pppd by a serial line.
func joinPPP(t *testing.T, l line) {
	devices := serialLine(t)
	for i, e := range l.ends() {
		args := []string{"pppd", devices[i], "local", "nocrtscts", "asyncmap", "0", addresses(l, e)}
		dial(t, e, append(args, pppOptions(e)...))
	}
	negotiated(t, l)
}

// joinPPPoE has the router dial in at the host, as at a provider.
func joinPPPoE(t *testing.T, l line) {
	l.cable(lower)
	ends := l.ends()
	router, host := ends[0], ends[1]
	options := filepath.Join(t.TempDir(), "options")
	if err := os.WriteFile(options, []byte(strings.Join(pppOptions(host), "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	dial(t, host, []string{"pppoe-server", "-F", "-I", lower(host.dev), "-O", options,
		"-L", host.net.Addr().String(), "-R", router.net.Addr().String()})
	dial(t, router, append([]string{"pppd", "plugin", "rp-pppoe.so", "nic-" + lower(router.dev), "noipdefault"}, pppOptions(router)...))
	negotiated(t, l)
}

func pppOptions(e end) []string {
	return []string{"nodetach", "noauth", "nodefaultroute", "noccp", "+ipv6", "ifname", e.dev}
}

func addresses(l line, e end) string {
	peer := l.routerNet
	if e.host == l.router {
		peer = l.hostNet
	}
	return e.net.Addr().String() + ":" + peer.Addr().String()
}

// dial runs a daemon of PPP, and lets it hang up before the test ends.
func dial(t *testing.T, e end, args []string) {
	t.Helper()
	daemon := e.host.Start(args...)
	t.Cleanup(func() {
		daemon.Signal(unix.SIGTERM)
		daemon.Wait()
	})
}

// negotiated waits until both ends have their addresses.
func negotiated(t *testing.T, l line) {
	t.Helper()
	for _, e := range l.ends() {
		lab.Eventually(t, lab.Patience, func() error {
			r, err := e.host.Try("ip", "-4", "address", "show", "dev", e.dev, "up")
			if err == nil && !strings.Contains(r.Stdout, "inet "+e.net.Addr().String()+" ") {
				err = fmt.Errorf("%s: %s has no address yet: %s%s", e.host.Name, e.dev, r.Stdout, r.Stderr)
			}
			return err
		})
	}
}
