// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// Addresses of a second uplink.
const (
	external2     = "203.0.114.2" // of the router's wan1
	gateway2      = "203.0.114.1"
	external26    = "2001:db8:0:2::2"
	gateway26     = "2001:db8:0:2::1"
	secondSource  = "198.51.101.10" // what the second Internet host sends from
	secondSource6 = "2001:db8:a::10"
	wan1Forward   = `
[[forward]]
name = "web"
protocol = ["tcp"]
port = "80"
to = "192.168.1.20:8080"

[[forward]]
name = "dns"
protocol = ["udp"]
port = "53"
to = "192.168.1.20:5353"
`
)

// twoUplinks gives the usual network a second Internet host, at the end of another uplink. The router's
// default route is by the first.
func twoUplinks(t *testing.T) (n *lab.Network, second *lab.Host) {
	t.Helper()
	n = lab.NewNetwork6(t)
	second = lab.NewHost(t, "internet2")
	lab.Cable(n.Router, "wan1", second, "eth0")
	second.Enable6()
	n.Router.Enable6()
	second.Address("eth0", gateway2+"/24", secondSource+"/32")
	second.Address6("eth0", gateway26+"/64", secondSource6+"/128")
	second.Route("eth0", "203.0.114.0/25", "", secondSource)
	second.Route("eth0", "2001:db8:0:2::/80", "", secondSource6)
	n.Router.Address("wan1", external2+"/24")
	n.Router.Address6("wan1", external26+"/64")
	n.Router.Sysctl("net/ipv6/conf/all/forwarding", "1")
	return n, second
}

// TestAnswersLeaveByTheirUplink: whatever route the router has to a client, its answers leave by the WAN
// interface that it came in by: by another default route of that interface (IPv4; of IPv6 the kernel takes an interface for a wish
// and looks at the metric first), and by a table for what has its address. TestAnswersOnlyByRoutes has what has no route.
func TestAnswersLeaveByTheirUplink(t *testing.T) {
	ways := map[string][][]string{
		"second default route": {
			{"ip", "route", "add", "default", "via", gateway2, "dev", "wan1", "metric", "100"},
			{"ip", "-6", "route", "add", "default", "via", gateway26, "dev", "wan1", "table", "7"},
			{"ip", "-6", "rule", "add", "from", external26, "lookup", "7"},
		},
		"policy routing": {
			{"ip", "route", "add", "default", "via", gateway2, "dev", "wan1", "table", "7"},
			{"ip", "rule", "add", "from", external2, "lookup", "7"},
			{"ip", "-6", "route", "add", "default", "via", gateway26, "dev", "wan1", "table", "7"},
			{"ip", "-6", "rule", "add", "from", external26, "lookup", "7"},
		},
	}
	for _, mode := range []string{"tc", "xdp"} {
		for name, routes := range ways {
			t.Run(mode+", "+name, func(t *testing.T) {
				n, second := twoUplinks(t)
				n.SetOffloads(home.OffloadsFor(mode))
				for _, args := range routes {
					n.Router.Run(args...)
				}
				answersLeaveByTheirUplink(t, mode, n, second)
			})
		}
	}
}

func answersLeaveByTheirUplink(t *testing.T, mode string, n *lab.Network, second *lab.Host) {
	n.Server.ServeTCP(":8080")
	n.Server.ServeUDP(":5353")
	n.Server.ServeTCP("[::]:8080")
	hp := lab.NewHairpin(n.Router, uplinks(mode, wan1Forward+home.Forwards6))
	hp.Start()
	n.Internet.Capture("eth0", func(p *lab.Packet) error {
		if src := p.Src.Addr(); src == netip.MustParseAddr(external2) || src == netip.MustParseAddr(external26) {
			return errors.New("left by the wrong uplink")
		}
		return nil
	})
	c, err := second.DialTCP(external2+":80", "", lab.Patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if who, err := c.Who(); err != nil || who.Addr() != netip.MustParseAddr(secondSource) {
		t.Errorf("the server sees %v (%v)", who, err)
	}
	if err := c.Echo(1_000_000); err != nil {
		t.Error(err)
	}
	d, err := second.DialUDP(external2+":53", "")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := lab.Exchange(d, 3000, 3000); err != nil {
		t.Error(err)
	}
	c6, err := second.DialTCP("["+external26+"]:80", "", lab.Patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c6.Close()
	if err := c6.Echo(1_000_000); err != nil {
		t.Error(err)
	}
	// The first uplink works as ever, also when its route has gone.
	for range 2 {
		if err := serves(n.Internet, lab.External+":80"); err != nil {
			t.Errorf("by the first uplink: %v", err)
		}
		n.Router.Run("ip", "route", "del", "default", "dev", "wan0")
		if err := c.Echo(100_000); err != nil {
			t.Errorf("by the second uplink, after the default route went: %v", err)
		}
		n.Router.Run("ip", "route", "add", "default", "via", lab.Gateway, "dev", "wan0", "metric", "5")
	}
}

func uplinks(mode, forwards string) string {
	return fmt.Sprintf("version = 1\n[interfaces]\nwan = [\"wan0\", \"wan1\"]\nlan = [\"lan0\", \"lan1\"]\n[datapath]\nmode = %q\n%s", lab.DeviceMode(mode), forwards)
}
