// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

const (
	virtualRouter  = "192.168.1.254" // gateway of the LAN's hosts
	virtualRouter6 = "fe80::254"
	virtualDevice  = "vrrp.51"
	virtualDevice6 = "vrrp6.51"
)

// keepalive runs keepalived on the network's router. The LAN's hosts get the virtual router as their gateway: each family has a macvlan
// device with the virtual MAC address on top of lan0.
func keepalive(t *testing.T, n *lab.Network) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "keepalived.conf")
	instance := func(name, device, addresses string) string {
		return fmt.Sprintf(`vrrp_instance %s {
	state MASTER
	interface lan0
	virtual_router_id 51
	priority 255
	use_vmac %s
	virtual_ipaddress {
		%s
	}
}
`, name, device, addresses)
	}
	text := instance("lan", virtualDevice, virtualRouter) + instance("lan6", virtualDevice6, virtualRouter6+"\n\t\tfd00:1::254")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	daemon := n.Router.Start("keepalived", "--dont-fork", "--log-console", "--vrrp", "--use-file", file,
		"--pid", filepath.Join(dir, "pid"), "--vrrp_pid", filepath.Join(dir, "vrrp_pid"))
	t.Cleanup(func() {
		daemon.Signal(unix.SIGTERM)
		daemon.Wait()
	})
	for device, address := range map[string]string{virtualDevice: virtualRouter, virtualDevice6: virtualRouter6} {
		lab.Eventually(t, 3*lab.Patience, func() error {
			r, err := n.Router.Try("ip", "address", "show", "dev", device)
			if err == nil && (!strings.Contains(r.Stdout, address+"/") || strings.Contains(r.Stdout, "tentative")) {
				err = fmt.Errorf("%s has no usable address %s yet: %s%s", device, address, r.Stdout, r.Stderr)
			}
			return err
		})
	}
	for _, h := range []*lab.Host{n.Client, n.Server} {
		h.Run("ip", "route", "replace", "default", "via", virtualRouter, "dev", "eth0")
		h.Run("ip", "-6", "route", "replace", "default", "via", virtualRouter6, "dev", "eth0")
	}
}

// TestVirtualRouter: the LAN's gateway is a virtual router of VRRP. The frames of clients and servers come in by a macvlan device, while the
// routes to them leave by the device below.
func TestVirtualRouter(t *testing.T) {
	t.Parallel()
	for _, mode := range home.Modes {
		for _, filter := range []string{"0", "1", "2"} {
			t.Run(mode+", rp_filter "+filter, func(t *testing.T) {
				n := lab.NewNetwork6(t)
				n.SetOffloads(home.OffloadsFor(mode))
				for _, dev := range []string{"all", "default", "lan0"} {
					n.Router.Sysctl("net/ipv4/conf/"+dev+"/rp_filter", filter)
				}
				keepalive(t, n)
				config := strings.Replace(home.Config(mode, home.Forwards+home.Forwards6), `"lan0", "lan1"`,
					fmt.Sprintf(`"lan0", "lan1", %q, %q`, virtualDevice, virtualDevice6), 1)
				hp := lab.NewHairpin(n.Router, config)
				hp.Start()
				for _, offer := range home.Offers(n.Server) {
					guest := netip.MustParseAddr(map[string]string{"IPv4": lab.Guest, "IPv6": lab.Guest6}[offer.Family])
					for _, way := range []struct {
						name string
						from *lab.Host
						sees netip.Addr
					}{{"LAN", n.Client, offer.Router}, {"server itself", n.Server, offer.Router}, {"other LAN", n.Guest, guest}, {"Internet", n.Internet, offer.Internet}} {
						if err := offer.Serves(way.from, way.sees); err != nil {
							t.Errorf("%s, from the %s: %v", offer.Family, way.name, err)
						}
					}
				}
			})
		}
	}
}

// The second way of the guest to the router.
const (
	asymmetricRouter, asymmetricRouter6 = "192.168.3.1", "fd00:3::1"
	asymmetricGuest, asymmetricGuest6   = "192.168.3.50", "fd00:3::50"
)

// asymmetric gives the network a second cable from the guest to the router's lan2. The guest sends by this cable, and the router's route to
// the guest's address leaves by lan1.
func asymmetric(n *lab.Network) {
	lab.Cable(n.Router, "lan2", n.Guest, "eth1")
	n.Router.Enable6()
	n.Guest.Enable6()
	n.Router.Address("lan2", asymmetricRouter+"/24")
	n.Router.Address6("lan2", asymmetricRouter6+"/64")
	n.Guest.Address("eth1", asymmetricGuest+"/24")
	n.Guest.Address6("eth1", asymmetricGuest6+"/64")
	// In strict mode the router answers no ARP request whose sender address it would not accept.
	n.Guest.Sysctl("net/ipv4/conf/all/arp_announce", "2")
	n.Guest.Run("ip", "route", "replace", "default", "via", asymmetricRouter, "dev", "eth1", "src", lab.Guest)
	n.Guest.Run("ip", "-6", "route", "replace", "default", "via", asymmetricRouter6, "dev", "eth1", "src", lab.Guest6)
	n.Router.Sysctl("net/ipv6/conf/all/forwarding", "1")
}

// TestAsymmetricLAN: a LAN client whose packets come in by another interface than the one that leads back to it is served as rp_filter of
// that interface says: the higher one of its own value and the value of all. A source of the Internet is never taken from a LAN.
func TestAsymmetricLAN(t *testing.T) {
	t.Parallel()
	const forged, forged6 = "198.51.100.77", "2001:db8:9::77"
	for _, mode := range home.Modes {
		for _, test := range []struct {
			all, own string
			served   bool
		}{{"0", "0", true}, {"0", "2", true}, {"2", "1", true}, {"0", "1", false}, {"1", "0", false}} {
			t.Run(fmt.Sprintf("%s, all %s, own %s", mode, test.all, test.own), func(t *testing.T) {
				n := lab.NewNetwork6(t)
				asymmetric(n)
				n.SetOffloads(home.OffloadsFor(mode))
				if mode == "xdp" {
					n.Router.Offload("lan2", lab.TransmitChecksum, false)
					n.Guest.Offload("eth1", lab.TransmitChecksum, false)
				}
				n.Router.Sysctl("net/ipv4/conf/all/rp_filter", test.all)
				n.Router.Sysctl("net/ipv4/conf/lan2/rp_filter", test.own)
				n.Guest.Address("lo", forged+"/32")
				n.Guest.Address6("lo", forged6+"/128")
				config := strings.Replace(home.Config(mode, home.Forwards+home.Forwards6), `"lan1"`, `"lan1", "lan2"`, 1)
				hp := lab.NewHairpin(n.Router, config)
				hp.Start()
				offers := home.Offers(n.Server)
				for i, from := range []string{lab.Guest, lab.Guest6} {
					external := []string{lab.External, "[" + lab.External6 + "]"}[i]
					if test.served {
						if err := offers[i].Serves(n.Guest, netip.MustParseAddr(from)); err != nil {
							t.Errorf("%s: %v", offers[i].Family, err)
						}
					} else if err := serves(n.Guest, external+":80"); err == nil {
						t.Errorf("%s: served", offers[i].Family)
					}
					source := netip.AddrPortFrom(netip.MustParseAddr([]string{forged, forged6}[i]), 0).String()
					dropsForged(t, n, n.Guest, external+":53", source, "lan2", "spoofed")
				}
			})
		}
	}
}

// vpns are the ways in which VPN programs make their tunnel the default route.
func vpns() map[string][]string {
	const viaWAN = " via " + lab.Gateway + " dev wan0 metric 100"
	return map[string][]string{
		"rules of wg-quick": {
			"route add default dev tun0 table 51820", "rule add not fwmark 51820 table 51820", "rule add table main suppress_prefixlength 0",
			"-6 route add default dev tun0 table 51820", "-6 rule add not fwmark 51820 table 51820", "-6 rule add table main suppress_prefixlength 0",
		},
		"two halves by a gateway, as of OpenVPN": {
			"route add 0.0.0.0/1 via 10.8.0.1 dev tun0", "route add 128.0.0.0/1 via 10.8.0.1 dev tun0",
			"-6 route add 2000::/3 dev tun0", "-6 route add default via " + lab.GatewayLink6 + " dev wan0 table 7", "-6 rule add from " + lab.External6 + " lookup 7",
		},
		"two halves by the device": {
			"route add 0.0.0.0/1 dev tun0", "route add 128.0.0.0/1 dev tun0",
			"-6 route add ::/1 dev tun0", "-6 route add default via " + lab.GatewayLink6 + " dev wan0 table 7", "-6 rule add from " + lab.External6 + " lookup 7",
		},
		"a lower metric": {
			"route del default", "route add default dev tun0 metric 50", "route add default" + viaWAN,
			"-6 route add default dev tun0 metric 50", "-6 route add default via " + lab.GatewayLink6 + " dev wan0 table 7", "-6 rule add from " + lab.External6 + " lookup 7",
		},
	}
}

// TestVPNIsTheDefaultRoute: the router's default route leads into the tunnel of a VPN, which no list of the configuration names. Clients
// on the Internet reach the forwards by the WAN, and the answers leave by the WAN. LAN sources are refused there as ever.
func TestVPNIsTheDefaultRoute(t *testing.T) {
	t.Parallel()
	for _, mode := range home.Modes {
		for name, routes := range vpns() {
			for _, filter := range []string{"0", "1", "2"} {
				t.Run(mode+", "+name+", rp_filter "+filter, func(t *testing.T) {
					vpnIsTheDefaultRoute(t, mode, filter, routes)
				})
			}
		}
	}
}

func vpnIsTheDefaultRoute(t *testing.T, mode, filter string, routes []string) {
	n := lab.NewNetwork6(t)
	n.SetOffloads(home.OffloadsFor(mode))
	provider := lab.NewHost(t, "provider")
	lab.Tun(n.Router, "tun0", provider, "tun0")
	n.Router.Enable6()
	n.Router.Sysctl("net/ipv6/conf/all/forwarding", "1")
	n.Router.Address("tun0", "10.8.0.2/24")
	n.Router.Address6("tun0", "fd08::2/64")
	for _, route := range routes {
		n.Router.Run(append([]string{"ip"}, strings.Fields(route)...)...)
	}
	for _, dev := range []string{"all", "wan0"} {
		n.Router.Sysctl("net/ipv4/conf/"+dev+"/rp_filter", filter)
	}
	n.Internet.Address("lo", lab.Guest+"/32")
	n.Internet.Address6("lo", lab.Guest6+"/128")
	// In strict mode the router answers no ARP request whose sender address it would not accept.
	n.Internet.Sysctl("net/ipv4/conf/all/arp_announce", "2")
	home.Start(t, n, mode, home.Forwards+home.Forwards6)
	provider.Capture("tun0", func(p *lab.Packet) error {
		if src := p.Src.Addr(); src == home.ExternalAddress || src == netip.MustParseAddr(lab.External6) {
			return errors.New("left by the tunnel")
		}
		return nil
	})
	for i, offer := range home.Offers(n.Server) {
		if err := offer.Serves(n.Internet, offer.Internet); err != nil {
			t.Errorf("%s: %v", offer.Family, err)
		}
		external := []string{lab.External, "[" + lab.External6 + "]"}[i]
		forged := netip.AddrPortFrom(netip.MustParseAddr([]string{lab.Guest, lab.Guest6}[i]), 0).String()
		dropsForged(t, n, n.Internet, external+":53", forged, "wan0", "spoofed")
	}
}

// dropsForged sends datagrams with a source, until one was dropped on an interface for a reason.
func dropsForged(t *testing.T, n *lab.Network, from *lab.Host, to, source, dev, reason string) {
	t.Helper()
	count := func() float64 {
		return home.Scrape(t, n, "hairpin_packets_dropped_total", fmt.Sprintf("reason=%q", reason), fmt.Sprintf("interface=%q", dev))
	}
	before := count()
	c, err := from.DialUDP(to, source)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	lab.Eventually(t, lab.Patience, func() error {
		if _, err := c.Write([]byte("forged")); err != nil {
			return err
		}
		if count() == before {
			return fmt.Errorf("no packet of %s to %s was dropped as %s on %s", source, to, reason, dev)
		}
		return nil
	})
}

// TestPrivateSources: a WAN with a public address takes private sources only where the configuration says so. Status says how many were
// dropped, and which key accepts them.
func TestPrivateSources(t *testing.T) {
	sources := []string{"10.1.2.3", "100.64.7.7", "172.31.2.3", "fd77::7"}
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.Internet.Address("lo", "10.1.2.3/32", "100.64.7.7/32", "172.31.2.3/32", lab.Guest+"/32")
			n.Internet.Address6("lo", "fd77::7/128", lab.Guest6+"/128")
			const forwards = home.Forwards + home.Forwards6
			hp := home.Start(t, n, mode, forwards)
			n.Server.ServeTCP(":8080")
			n.Server.ServeTCP("[::]:8080")
			external := func(source string) string {
				if strings.Contains(source, ":") {
					return "[" + lab.External6 + "]"
				}
				return lab.External
			}
			const hint = `name wan0 in interfaces.private_sources`
			if said := hp.Run("status"); strings.Contains(said, "private") {
				t.Errorf("nothing was dropped yet: %s", said)
			}
			for _, source := range sources {
				dropsForged(t, n, n.Internet, external(source)+":53", netip.AddrPortFrom(netip.MustParseAddr(source), 0).String(), "wan0", "private_source")
			}
			dropped := int(home.Scrape(t, n, "hairpin_packets_dropped_total", `reason="private_source"`, `interface="wan0"`))
			want := fmt.Sprintf("wan0: %d packets were dropped because their sources are private; ", dropped)
			if said := hp.Run("status"); !strings.Contains(said, want) || !strings.Contains(said, hint) {
				t.Errorf("status: %s\nlacks %q or %q", said, want, hint)
			}

			hp.Write(strings.Replace(home.Config(mode, forwards), "[datapath]", "private_sources = [\"wan0\"]\n[datapath]", 1))
			if said := hp.Run("check"); strings.Contains(said, "private") {
				t.Errorf("check: %s", said)
			}
			hp.Reload()
			for _, source := range sources {
				c, err := n.Internet.DialTCP(external(source)+":80", netip.AddrPortFrom(netip.MustParseAddr(source), 0).String(), lab.Patience)
				if err != nil {
					t.Errorf("from %s: %v", source, err)
					continue
				}
				who, err := c.Who()
				if err != nil || who.Addr() != netip.MustParseAddr(source) {
					t.Errorf("from %s: the server sees %v (%v)", source, who, err)
				}
				c.Close()
			}
			// A LAN's source is refused as ever.
			for _, source := range []string{lab.Guest, lab.Guest6} {
				dropsForged(t, n, n.Internet, external(source)+":53", netip.AddrPortFrom(netip.MustParseAddr(source), 0).String(), "wan0", "spoofed")
			}
			if said := hp.Run("status"); strings.Contains(said, hint) {
				t.Errorf("status after the key was set: %s", said)
			}

			hp.Write(home.Config(mode, forwards))
			hp.Reload()
			dropsForged(t, n, n.Internet, external(sources[0])+":53", netip.AddrPortFrom(netip.MustParseAddr(sources[0]), 0).String(), "wan0", "private_source")
		})
	}
}
