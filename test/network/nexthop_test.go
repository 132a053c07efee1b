// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// hopsChange is the time limit for packets to use another path without the daemon: hairpin looks up a next hop once a second.
const hopsChange = 2 * atOnce

// hopChanges are the changes that give packets another path during a connection.
var hopChanges = []struct {
	name string
	do   func(n *lab.Network)
}{
	{"MAC address of the server", func(n *lab.Network) { changeMAC(n.Server, "eth0") }},
	{"MAC address of the client", func(n *lab.Network) { changeMAC(n.Client, "eth0") }},
	{"MAC address of the gateway", func(n *lab.Network) { changeMAC(n.Internet, "eth0") }},
	{"MAC address of the router", func(n *lab.Network) { changeMAC(n.Router, "lan0") }},
	{"neighbours flushed", func(n *lab.Network) {
		n.Router.Run("ip", "neigh", "flush", "all")
		n.Router.Run("ip", "-6", "neigh", "flush", "all")
	}},
	{"server behind another LAN", moveServer},
}

// changeMAC gives an interface another MAC address, of which its host tells by itself, as when an address moves
// to a spare machine.
func changeMAC(h *lab.Host, dev string) {
	h.Sysctl("net/ipv4/conf/"+dev+"/arp_notify", "1")
	h.Sysctl("net/ipv6/conf/"+dev+"/ndisc_notify", "1")
	mac := h.HardwareAddr(dev)
	mac[5] ^= 0xff
	h.SetHardwareAddr(dev, mac)
}

// moveServer takes the server out of the client's LAN: from now on it is behind the guest, which is a router.
func moveServer(n *lab.Network) {
	const inner, innerLink = "192.168.3.1", "fe80::3"
	lab.Cable(n.Guest, "eth1", n.Server, "eth1")
	n.Guest.Enable6()
	n.Server.Enable6()
	n.Guest.Sysctl("net/ipv4/ip_forward", "1")
	n.Guest.Sysctl("net/ipv6/conf/all/forwarding", "1")
	n.Guest.Address("eth1", inner+"/32")
	n.Guest.Address6("eth1", innerLink+"/64")
	n.Guest.Route("eth1", lab.Server+"/32", "", "")
	n.Guest.Route("eth1", lab.Server6+"/128", "", "")

	n.Server.Address("eth1", lab.Server+"/32")
	n.Server.Run("ip", "link", "set", "eth0", "down")
	n.Server.Address6("eth1", lab.Server6+"/128")
	n.Server.Route("eth1", inner+"/32", "", "")
	n.Server.Route("eth1", "0.0.0.0/0", inner, "")
	n.Server.Route("eth1", "::/0", innerLink, "")

	n.Router.Route("lan1", lab.Server+"/32", lab.Guest, "")
	n.Router.Route("lan1", lab.Server6+"/128", lab.Guest6, "")
}

// TestNextHopsChange: connections go on by every path when what is next on their way becomes another: at
// once with the daemon, and within about a second without.
func TestNextHopsChange(t *testing.T) {
	t.Parallel()
	for _, mode := range home.Modes {
		for _, killed := range []bool{false, true} {
			name, within := mode, atOnce
			if killed {
				name, within = mode+", no daemon", hopsChange
			}
			t.Run(name, func(t *testing.T) {
				c := newChanging(t, mode)
				open := standings(t, c.Internet, c.Client, c.Router)
				if killed {
					c.hp.Kill()
				}
				for _, change := range hopChanges {
					t.Run(change.name, func(t *testing.T) {
						change.do(c.For(t))
						stand(t, open, within)
					})
				}
			})
		}
	}
}

// TestNeighboursFlushed: no packet is lost while the router's neighbour table is flushed.
func TestNeighboursFlushed(t *testing.T) {
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			s := home.StartService(t, mode)
			for range 20 {
				forgetNeighbours(t, s.Router)
				s.Advance(1)
			}
			s.Finish()
		})
	}
}

// forgetNeighbours deletes each neighbour that a host knows, once. "ip neigh flush" goes on until there is none: it also
// deletes those that are being asked for already, and the kernel drops the packets that wait for their answer.
//
// The kernel first sets a neighbour to failed, and then removes it (neigh_delete). Packets that begin to wait between these two
// steps are lost, too. So the thread has priority: a busy machine seldom stops it there.
func forgetNeighbours(t *testing.T, h *lab.Host) {
	t.Helper()
	err := h.Do(func() error {
		before, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
		if err == nil {
			err = unix.Setpriority(unix.PRIO_PROCESS, 0, -20)
		}
		if err != nil {
			return fmt.Errorf("priority: %w", err)
		}
		defer unix.Setpriority(unix.PRIO_PROCESS, 0, 20-before) // the system call returns 20 - nice
		known, err := netlink.NeighList(0, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		for _, n := range known {
			if n.State&(netlink.NUD_REACHABLE|netlink.NUD_STALE|netlink.NUD_DELAY|netlink.NUD_PROBE) == 0 {
				continue
			}
			if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("forget neighbours: %v", err)
	}
}
